"""p-values for promises about rows drawn as these were, valid at any number of rows.

Each is of the null hypothesis that the promise does not hold: the expected loss of a row is the
limit or more. Reject at a p-value of delta or less, and a promise that does not hold is made with
probability delta at most.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.errors import InputError

_NUISANCE_LEVEL = 1e-5
# With few rows the probability has bumps as the nuisance moves; with many it is smooth.
_NUISANCE_POINTS = {2_000: 41, 10**9: 11}
_WINDOW = 6.0
_NEGLIGIBLE = 12.0
# Numbers in an array at a time, to stay in the cache.
_BLOCK = 30_000
_TIE = 1e-9


def binomial_p_value(losses: int, rows: int, limit: float) -> float:
    """Exact p-value for losses of 0 or 1: P(Binomial(rows, limit) <= losses).

    Args:
        losses: rows that went wrong.
        rows: all rows.
        limit: expected loss of a row under the null hypothesis, 0 to 1.
    """
    _refuse_counts(losses, rows, limit)
    if limit >= 1:
        return 1.0 if losses == rows else 0.0
    return binomial_cdf(losses, rows, limit)


def paired_p_value(worse: int, better: int, rows: int, limit: float) -> float:
    """Exact p-value for losses of -1, 0 or 1: rows that got worse, and rows that got better.

    The null hypothesis is P(worse) - P(better) >= limit. Outcomes are ordered by Tango's score
    statistic for paired proportions (Statistics in Medicine 17, 1998); the p-value is the largest
    probability, under the null hypothesis, of an outcome that speaks against it as much or more.
    P(better) is not known: the largest is taken over a confidence interval for it, and the
    chance that it lies outside is added (Berger and Boos, JASA 89, 1994). More worse and fewer
    better rows only lower that probability, so that its largest value has P(worse) - P(better)
    equal to the limit, and one number is left to search over.

    Args:
        worse: rows right before and wrong now.
        better: rows wrong before and right now.
        rows: all rows.
        limit: expected loss of a row under the null hypothesis, 0 to 1.
    """
    _refuse_counts(worse + better, rows, limit)
    if limit >= 1:
        return 1.0 if worse == rows else 0.0
    low, high = binomial_interval(better, rows, _NUISANCE_LEVEL)
    high = min(high, (1 - limit) / 2)
    points = next(count for most, count in _NUISANCE_POINTS.items() if rows <= most)
    # Evenly in the standard error, so that small shares get their part.
    nuisance = np.unique(np.linspace(math.sqrt(min(low, high)), math.sqrt(high), points) ** 2)
    counts_worse, counts_better = _as_extreme(worse, better, rows, limit, nuisance)
    log_factorials = _log_factorials(rows)
    same = rows - counts_worse - counts_better
    ways = (
        log_factorials[rows]
        - log_factorials[counts_worse]
        - log_factorials[counts_better]
        - log_factorials[same]
    )

    def probability(chances: Floats) -> Floats:
        logarithms = (
            ways
            + _times_log(counts_worse, chances + limit)
            + _times_log(counts_better, chances)
            + _times_log(same, 1 - limit - 2 * chances)
        )
        result: Floats = np.exp(logarithms).sum(axis=1)
        return result

    def probabilities(chances: Floats) -> Floats:
        blocks = min(len(chances), 1 + len(ways) * len(chances) // _BLOCK)
        return np.concatenate([probability(some) for some in np.array_split(chances, blocks)])

    coarse = probabilities(nuisance)
    best = int(np.argmax(coarse))
    around = nuisance[max(best - 1, 0) : best + 2]
    fine = probabilities(np.linspace(around[0], around[-1], points))
    return float(min(max(coarse.max(), fine.max()) + _NUISANCE_LEVEL, 1.0))


def _as_extreme(
    worse: int, better: int, rows: int, limit: float, nuisance: Floats
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts (worse, better) that speak against the null hypothesis as much as these or more.

    Those that no value of the nuisance gives a chance worth counting are left out.
    """
    first, last = float(nuisance[0]), float(nuisance[-1])
    all_worse = _likely(rows, first + limit, last + limit)
    all_better = _likely(rows, first, last)
    pairs_worse, pairs_better = (
        axis.ravel() for axis in np.meshgrid(all_worse, all_better, indexing="ij")
    )
    here = _score(np.array([worse]), np.array([better]), rows, limit)[0]
    extreme = (pairs_worse + pairs_better <= rows) & (
        _score(pairs_worse, pairs_better, rows, limit) <= here + _TIE
    )
    return pairs_worse[extreme], pairs_better[extreme]


def _likely(rows: int, first: float, last: float) -> NDArray[np.int64]:
    """Counts that a binomial with a chance between the two can be expected to give."""

    def reach(chance: float) -> float:
        return _WINDOW * (math.sqrt(rows * chance * (1 - chance)) + 1)

    low = max(math.floor(rows * first - reach(first)), 0)
    high = min(math.ceil(rows * last + reach(last)), rows)
    return np.arange(low, high + 1)


def _score(worse: NDArray[np.int64], better: NDArray[np.int64], rows: int, limit: float) -> Floats:
    """Tango's statistic: the excess over the limit in standard errors under the null hypothesis."""
    b, c = worse.astype(np.float64), better.astype(np.float64)
    middle = (2 * rows - b + c) * limit - b - c
    last = -c * limit * (1 - limit)
    root = np.sqrt(np.maximum(middle**2 - 8 * rows * last, 0.0))
    chance = (root - middle) / (4 * rows)
    variance = rows * (2 * chance + limit * (1 - limit))
    excess = b - c - rows * limit
    # Without a limit and without a change there is neither excess nor variance.
    score: Floats = np.where(variance > 0, excess, 0.0) / np.sqrt(
        np.where(variance > 0, variance, 1)
    )
    return score


def _times_log(counts: NDArray[np.int64], chances: Floats) -> Floats:
    """Products of log(chance) and counts, shape (chances, counts), where log(0) times 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        products: Floats = np.log(np.maximum(chances, 0.0))[:, None] * counts.astype(np.float64)
    products[:, counts == 0] = 0.0
    return products


def binomial_cdf(count: int, rows: int, chance: float) -> float:
    """P(Binomial(rows, chance) <= count)."""
    if count >= rows or chance <= 0:
        return 1.0
    if count < 0 or chance >= 1:
        return 0.0
    # What lies further below the mean does not change the sum.
    reach = _NEGLIGIBLE * (math.sqrt(rows * chance * (1 - chance)) + 1)
    counts = np.arange(max(math.floor(min(count, rows * chance) - reach), 0), count + 1)
    table = _log_factorials(rows)
    ways = table[rows] - table[counts] - table[rows - counts]
    log_p = ways + counts * math.log(chance) + (rows - counts) * math.log1p(-chance)
    return min(float(np.exp(log_p).sum()), 1.0)


def binomial_interval(count: int, rows: int, level: float) -> tuple[float, float]:
    """Clopper and Pearson's interval: it misses the true chance with probability ``level`` at most.

    Returns:
        Its lower and upper end.
    """
    lower = 0.0 if count == 0 else 1 - _upper_bound(rows - count, rows, level / 2)
    upper = 1.0 if count == rows else _upper_bound(count, rows, level / 2)
    return lower, upper


def _upper_bound(count: int, rows: int, level: float) -> float:
    """The chance under which so few are seen with probability ``level``."""
    low, high = count / rows, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if binomial_cdf(count, rows, middle) > level:
            low = middle
        else:
            high = middle
    return high


def mean_p_value(losses: ArrayLike, limit: float) -> float:
    """p-value for losses from 0 to 1 of any kind, by betting against the null hypothesis.

    The capital of one who bets on each row, in the order given, that its loss is below the limit
    is a supermartingale under the null hypothesis, so 1 over its highest state is a p-value
    (Waudby-Smith and Ramdas, JRSS B 86, 2024, with their predictable plug-in bets).

    Args:
        losses: shape (rows,), in an order that does not depend on them.
        limit: expected loss of a row under the null hypothesis, 0 to 1.
    """
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not ((values >= 0) & (values <= 1)).all():
        raise InputError("losses are not one number from 0 to 1 a row; scale them")
    if limit >= 1:
        return 1.0
    seen = np.arange(1, len(values) + 1)
    means = (0.5 + values.cumsum()) / (1 + seen)
    variances = (0.25 + ((values - means) ** 2).cumsum()) / (1 + seen)
    before = np.concatenate([[0.25], variances[:-1]])
    bets = np.minimum(
        np.sqrt(2 * math.log(1 / _BETTING_LEVEL) / (len(values) * before)),
        _LARGEST_BET / (1 - limit),
    )
    capital = np.log1p(bets * (limit - values)).cumsum()
    return float(min(np.exp(-capital.max()), 1.0))


_BETTING_LEVEL = 0.05
_LARGEST_BET = 0.99


@lru_cache(maxsize=4)
def _log_factorials(count: int) -> Floats:
    table = np.zeros(count + 1)
    np.cumsum(np.log(np.arange(1, count + 1)), out=table[1:])
    return table


def _refuse_counts(count: int, rows: int, limit: float) -> None:
    if not 0 <= count <= rows or rows < 1:
        raise InputError(f"{count} of {rows} rows is not a count; give 0 to all, of 1 or more")
    if not 0 <= limit <= 1:
        raise InputError(f"a limit of {limit} is not a share; give a number from 0 to 1")
