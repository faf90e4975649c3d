"""p-values for promises about the population that the rows were drawn from, valid for any number.

The null hypothesis of each test is that the promise is broken: the expected loss per row is the
limit or more. A test that rejects where the p-value is at most delta makes a broken promise with
probability delta at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.errors import InputError

Counts = NDArray[np.int64]

_NUISANCE_LEVEL = 1e-5
# Standard errors around the mean beyond which probabilities are bounded, or too small to matter.
_WINDOW = 7.5
_NEGLIGIBLE = 12.0
_TIE = 1e-9
_INTERVAL_ERROR = 1e-12
_INTERPOLATION_ERROR = 1e-9
_INTERPOLATION_GRID = 2**14
_POLYGON = 32
_BETTING_LEVEL = 0.05
_LARGEST_BET = 0.99


def binomial_p_value(losses: int, rows: int, limit: float) -> float:
    """Exact p-value for losses of 0 or 1: P(Binomial(rows, limit) <= losses).

    Args:
        losses: counts the rows with a loss of 1.
        rows: counts all rows, 1 or more.
        limit: gives the expected loss per row under the null hypothesis, 0 to 1.

    Raises:
        InputError: a count or the limit is out of range.

    >>> round(binomial_p_value(2, 500, limit=0.02), 4)
    0.0026
    """
    _check(rows, limit, losses)
    if limit >= 1:
        return 1.0 if losses == rows else 0.0
    return binomial_cdf(losses, rows, limit)


def paired_p_value(worse: int, better: int, rows: int, limit: float) -> float:
    """Exact p-value for losses of -1, 0 or 1: rows that got better, stayed the same, got worse.

    The null hypothesis is P(worse) - P(better) >= limit. Outcomes are ordered by Tango's score
    statistic for paired proportions (Statistics in Medicine 17, 1998). The p-value is the largest
    probability, under the null hypothesis, of an outcome as extreme as this one or more.

    P(better) is a nuisance parameter: the largest is taken over a confidence interval for it, and
    the level of the interval is added (Berger and Boos, JASA 89, 1994). The probability falls as
    P(worse) rises, so the largest has P(worse) - P(better) = limit, which leaves P(better) alone
    to search over. Rounding aside, the result is never below the exact p-value, and above it by
    about 1e-6 at most.

    Args:
        worse: counts the rows right before and wrong now.
        better: counts the rows wrong before and right now.
        rows: counts all rows, 1 or more.
        limit: gives the expected loss per row under the null hypothesis, 0 to 1.

    Raises:
        InputError: a count or the limit is out of range.

    >>> round(paired_p_value(worse=12, better=10, rows=2_000, limit=0.01), 4)
    0.0007
    """
    _check(rows, limit, worse, better)
    if limit >= 1:
        return 1.0 if worse == rows else 0.0
    low, high = binomial_interval(better, rows, _NUISANCE_LEVEL)
    high = min(high, (1 - limit) / 2)
    if low >= high:
        return _NUISANCE_LEVEL
    region = _extreme_outcomes(worse, better, rows, limit, low, high)

    def log_bound(chances: NDArray[np.complex128]) -> Floats:
        # By the triangle inequality in the multinomial theorem.
        total = abs(chances + limit) + abs(chances) + abs(1 - limit - 2 * chances)
        result: Floats = rows * np.log(total)
        return result

    largest = _supremum(
        lambda chances: _probability(*region, rows, limit, chances), log_bound, low, high
    )
    return min(largest + _NUISANCE_LEVEL, 1.0)


def _extreme_outcomes(
    worse: int, better: int, rows: int, limit: float, low: float, high: float
) -> tuple[Counts, Counts]:
    """Outcomes as extreme as this one, as the largest count of worse rows per count of better.

    Tango's score rises with the count of worse rows and falls with that of better rows, so the
    outcomes of one count of better rows are an interval from 0, and longer for a higher count.

    Returns:
        Consecutive counts of better rows that a chance from ``low`` to ``high`` makes likely, and
        the largest extreme count of worse rows for each, -1 where none is.
    """
    first = max(math.floor(rows * low - _WINDOW * _spread(rows, low)), 0)
    last = min(math.ceil(rows * high + _WINDOW * _spread(rows, high)), rows)
    counts = np.arange(first, last + 1)
    limit_score = _score(np.array([worse]), np.array([better]), rows, limit)[0] + _TIE
    most, too_many = np.full(len(counts), -1), rows - counts + 1
    while (too_many - most > 1).any():
        middle = (most + too_many) // 2
        extreme = _score(middle, counts, rows, limit) <= limit_score
        # Where both ends have met, the middle is the lower one.
        most = np.where(extreme, middle, most)
        too_many = np.where(extreme, too_many, np.maximum(middle, most + 1))
    return counts, np.maximum.accumulate(most)


def _probability(
    better: Counts, most_worse: Counts, rows: int, limit: float, chances: Floats
) -> Floats:
    """P(worse <= most_worse for this count of better rows), plus P(better is not in the counts).

    It is the sum over b of P(better = b) times the binomial cdf of worse rows among the other
    ``rows - b``. Those cdfs F follow from one another, with a chance c and probabilities f, by
    F(w; m - 1) = F(w; m) + c f(w; m - 1) and F(w + 1; m) = F(w; m) + f(w + 1; m).

    Returns:
        float64, one per chance of a better row.
    """
    among_others = (chances + limit) / (1 - chances)
    start = _tail_terms(int(most_worse[0]), rows - int(better[0]), among_others)
    start = start.sum(axis=1, keepdims=True)
    steps = 1 + np.diff(most_worse)
    ends = steps.cumsum()
    step = np.repeat(np.arange(len(steps)), steps)
    within = np.arange(len(step)) - (ends - steps)[step]
    added = _pmf(most_worse[step] + within, rows - better[1:][step], among_others)
    added[:, within == 0] *= among_others[:, None]
    cdf = start + np.hstack([np.zeros_like(start), added.cumsum(axis=1)[:, ends - 1]])
    weights = _pmf(better, np.array(rows), chances)
    result: Floats = (weights * cdf).sum(axis=1) + np.maximum(1 - weights.sum(axis=1), 0.0)
    return result


def _score(worse: Counts, better: Counts, rows: int, limit: float) -> Floats:
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


def _supremum(
    function: Callable[[Floats], Floats],
    log_bound: Callable[[NDArray[np.complex128]], Floats],
    low: float,
    high: float,
) -> float:
    """A tight upper bound of a polynomial's maximum on an interval.

    The polynomial is interpolated at Chebyshev points. The error of degree n is at most
    4 M r^-n / (r - 1), M being its largest modulus on the Bernstein ellipse of r (Trefethen,
    Approximation Theory and Approximation Practice, theorem 8.2). The interpolant is the sum of
    c_j cos(j t), so on a grid of step h in t it exceeds its largest value on the grid by at most
    h^2 / 8 times the sum of j^2 |c_j|.

    Args:
        function: takes points of the interval, shape (points,).
        log_bound: takes complex points and gives the log of a convex bound of the modulus.
        low: starts the interval.
        high: ends the interval.
    """
    middle, half = (low + high) / 2, (high - low) / 2
    radii = np.geomspace(1.1, 50, 80)[:, None]
    turns = np.exp(2j * math.pi * np.arange(_POLYGON // 2 + 1) / _POLYGON)
    # A convex function is largest at the corners of a polygon, and this one holds the ellipse.
    corners = (radii * turns + 1 / (radii * turns)) / 2 / math.cos(math.pi / _POLYGON)
    log_sizes = log_bound(middle + half * corners).max(axis=1, keepdims=True)
    degrees = (log_sizes + np.log(4 / (radii - 1) / _INTERPOLATION_ERROR)) / np.log(radii)
    powers = np.arange(math.ceil(degrees.min()) + 1)
    nodes = (powers + 0.5) * math.pi / len(powers)
    values = function(middle + half * np.cos(nodes))
    coefficients = np.cos(np.outer(powers, nodes)) @ values * np.where(powers, 2, 1) / len(powers)
    largest = np.fft.rfft(coefficients, _INTERPOLATION_GRID).real.max()
    bend = (powers**2 * abs(coefficients)).sum()
    between = bend * (2 * math.pi / _INTERPOLATION_GRID) ** 2 / 8
    return float(largest + between + _INTERPOLATION_ERROR)


def binomial_cdf(count: int, rows: int, chance: float) -> float:
    """P(Binomial(rows, chance) <= count).

    >>> round(binomial_cdf(1, 2, 0.5), 4)
    0.75
    """
    if count >= rows or chance <= 0:
        return 1.0
    if count < 0 or chance >= 1:
        return 0.0
    return min(float(_tail_terms(count, rows, np.array([chance])).sum()), 1.0)


def _tail_terms(count: int, rows: int, chances: Floats) -> Floats:
    """Binomial probabilities of the counts up to this one, without negligible ones.

    Returns:
        float64 of shape (chances, counts).
    """
    low, high = float(chances.min()), float(chances.max())
    spread = _NEGLIGIBLE * max(_spread(rows, low), _spread(rows, high))
    first = max(math.floor(min(count, rows * low) - spread), 0)
    last = min(math.ceil(rows * high + spread), count)
    return _pmf(np.arange(first, last + 1), np.array(rows), chances)


def _spread(rows: int, chance: float) -> float:
    return math.sqrt(rows * chance * (1 - chance)) + 1


def _pmf(counts: Counts, rows: Counts, chances: Floats) -> Floats:
    """Binomial probabilities, float64 of shape (chances, counts).

    Loader's expansion (2000) keeps the digits that differences of log factorials lose. It is
    evaluated at one chance; the others differ by a factor that is a power of their ratio.

    Args:
        counts: may lie out of range, where the probability is 0.
        rows: broadcast against the counts.
        chances: lie strictly between 0 and 1.
    """
    chance = chances[len(chances) // 2]
    others = rows - counts
    possible = (counts >= 0) & (others >= 0)
    hits, misses = np.where(possible, counts, 0), np.where(possible, others, rows)
    log_p = (
        _stirling(rows)
        - _stirling(hits)
        - _stirling(misses)
        - _deviance(hits, rows * chance)
        - _deviance(misses, rows * (1 - chance))
    )
    tilted = (
        np.where(possible, log_p, -np.inf)
        + (np.log(chances) - np.log(chance))[:, None] * hits
        + (np.log1p(-chances) - np.log1p(-chance))[:, None] * misses
    )
    result: Floats = np.exp(tilted, out=tilted)
    return result


def _deviance(counts: Counts, means: Floats) -> Floats:
    """The unit deviance x log(x / m) + m - x, without cancellation near x = m."""
    floors = np.maximum(means, 1e-300)
    # Zero times the logarithm is zero, whatever the positive number that stands in for x.
    logs: Floats = np.log1p((np.maximum(counts, 0.5) - floors) / floors)
    return counts * logs - (counts - floors)


def _stirling(counts: Counts) -> Floats:
    """The remainder log(x!) - x log(x) + x of Stirling's formula."""
    x = np.maximum(counts, 1).astype(np.float64)
    series = (1 / 12 - (1 / 360 - 1 / 1260 / x**2) / x**2) / x + np.log(2 * math.pi * x) / 2
    few = np.minimum(counts, len(_STIRLING) - 1)
    return np.where(counts < len(_STIRLING), _STIRLING[few], series)


_STIRLING = np.array(
    [math.lgamma(x + 1) - (x * math.log(x) - x if x else 0.0) for x in range(32)], dtype=np.float64
)


def binomial_interval(count: int, rows: int, level: float) -> tuple[float, float]:
    """Clopper and Pearson's interval (Biometrika 26, 1934).

    It misses the true chance with probability ``level`` at most.

    Returns:
        Its lower and upper end.

    >>> [round(end, 4) for end in binomial_interval(3, 100, level=0.05)]
    [0.0062, 0.0852]
    """
    lower = 0.0 if count == 0 else 1 - _upper_bound(rows - count, rows, level / 2)
    upper = 1.0 if count == rows else _upper_bound(count, rows, level / 2)
    return lower, upper


@lru_cache
def _upper_bound(count: int, rows: int, level: float) -> float:
    """The chance under which ``count`` or fewer have the probability ``level``, or just above it.

    The log of that probability is concave in the chance, so Newton's steps approach from above.
    """
    chance = (count + 1) / (rows + 2)
    while True:
        probabilities = _tail_terms(count, rows, np.array([chance]))[0]
        tail = float(probabilities.sum())
        slope = (rows - count) / (1 - chance) * float(probabilities[-1]) / tail
        # The first step may lead far beyond, where the probability underflows.
        longest = min(_NEGLIGIBLE * _spread(rows, chance) / rows, (1 - chance) / 2)
        step = min(math.log(tail / level) / slope, longest)
        chance += step
        if abs(step) <= _INTERVAL_ERROR:
            return min(chance + _INTERVAL_ERROR, 1.0)


def mean_p_value(losses: ArrayLike, limit: float) -> float:
    """p-value for any losses from 0 to 1, by betting against the null hypothesis.

    A gambler bets on each row in turn that its loss is below the limit. Under the null hypothesis
    the capital is a supermartingale, so 1 over its highest value is a p-value (Waudby-Smith and
    Ramdas, JRSS B 86, 2024, with their predictable plug-in bets).

    Args:
        losses: are float64 of shape (rows,), in an order that does not depend on them.
        limit: gives the expected loss per row under the null hypothesis, 0 to 1.

    Raises:
        InputError: a loss is not between 0 and 1, or there is none.

    >>> round(mean_p_value([0.0, 0.2] * 100, limit=0.3), 4)
    0.0
    """
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not ((values >= 0) & (values <= 1)).all():
        raise InputError("losses are not one number from 0 to 1 per row; scale them")
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


def ranking_p_value(score: Floats, right: NDArray[np.bool_]) -> float:
    """One-sided Mann-Whitney test of whether right answers score higher than wrong ones.

    It uses the normal approximation, with ties counted half (Annals of Mathematical Statistics
    18, 1947).

    Args:
        score: gives the confidence, shape (rows,).
        right: tells whether the answer is right, shape (rows,).

    Returns:
        p-value of the null hypothesis that right answers score no higher than wrong ones; NaN
        where all are right or all are wrong.

    >>> round(ranking_p_value(np.arange(6.0), np.array([0, 0, 0, 1, 1, 1], dtype=bool)), 4)
    0.0248
    """
    rows, hits = len(score), int(right.sum())
    if hits in (0, rows):
        return math.nan
    _, group, sizes = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (sizes.cumsum() - (sizes - 1) / 2)[group]
    pairs = hits * (rows - hits)
    above = float(ranks[right].sum()) - hits * (hits + 1) / 2
    ties = float((sizes.astype(np.float64) ** 3 - sizes).sum()) / (rows * (rows - 1))
    variance = pairs / 12 * (rows + 1 - ties)
    if variance <= 0:
        return 0.5
    return 0.5 * math.erfc((above - pairs / 2) / math.sqrt(2 * variance))


def _check(rows: int, limit: float, *counts: int) -> None:
    if rows < 1 or min(counts) < 0 or sum(counts) > rows:
        raise InputError(
            f"{' + '.join(map(str, counts))} of {rows} rows is not a count; "
            "give 0 to all, of 1 row or more"
        )
    if not 0 <= limit <= 1:
        raise InputError(f"a limit of {limit} is not a share; give a number from 0 to 1")
