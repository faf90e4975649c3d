"""p-values against scipy, and against their promise by going through every outcome."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
from scipy import special, stats

from cascadebert.deferral.pvalues import (
    binomial_cdf,
    binomial_interval,
    binomial_p_value,
    mean_p_value,
    paired_p_value,
    ranking_p_value,
)
from cascadebert.errors import InputError


@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None)
def test_binomial_is_scipys(rows: int, share: float, limit: float) -> None:
    losses = round(share * rows)
    wanted = stats.binomtest(losses, rows, limit, alternative="less").pvalue
    assert binomial_p_value(losses, rows, limit) == pytest.approx(wanted, abs=1e-9)


def test_binomial_of_many_rows_is_scipys() -> None:
    cases = [
        (480, 100_000, 0.005), (99_000, 100_000, 0.991), (0, 50_000, 1e-4), (31, 1_000, 0.03),
        (19_000, 1_000_000, 0.02), (500_000, 1_000_000, 0.5), (900_000, 1_000_000, 0.1),
    ]  # fmt: skip
    for count, rows, chance in cases:
        assert binomial_cdf(count, rows, chance) == pytest.approx(
            stats.binom.cdf(count, rows, chance), rel=1e-9
        )


@given(st.integers(1, 200), st.floats(0, 1))
@settings(deadline=None)
def test_interval_is_scipys(rows: int, share: float) -> None:
    count = round(share * rows)
    wanted = stats.binomtest(count, rows).proportion_ci(0.99, method="exact")
    assert binomial_interval(count, rows, 0.01) == pytest.approx((wanted.low, wanted.high))


def tango(worse: np.ndarray, better: np.ndarray, rows: int, limit: float) -> np.ndarray:
    """The score statistic as Tango (1998) gives it, outcomes without any variance at 0."""
    b = (2 * rows - worse + better) * limit - worse - better
    c = -better * limit * (1 - limit)
    chance = (np.sqrt(b**2 - 8 * rows * c) - b) / (4 * rows)
    variance = rows * (2 * chance + limit * (1 - limit))
    with np.errstate(invalid="ignore"):
        return np.nan_to_num((worse - better - rows * limit) / np.sqrt(variance))


def by_enumeration(worse: int, better: int, rows: int, limit: float) -> float:
    """The p-value from all outcomes, at many values of the nuisance parameter."""
    pairs = np.array(list(itertools.product(range(rows + 1), repeat=2)))
    counts = np.column_stack([pairs, rows - pairs.sum(axis=1)])
    counts = counts[counts[:, 2] >= 0]
    scores = tango(counts[:, 0], counts[:, 1], rows, limit)
    extreme = counts[scores <= tango(np.array([worse]), np.array([better]), rows, limit) + 1e-9]
    ends = stats.binomtest(better, rows).proportion_ci(1 - 1e-5, method="exact")
    values = np.linspace(ends.low, min(ends.high, (1 - limit) / 2), 300)
    chances = np.stack([values + limit, values, 1 - limit - 2 * values], axis=1).clip(0)
    ways = special.gammaln(rows + 1) - special.gammaln(extreme + 1).sum(axis=1)
    logs = ways + special.xlogy(extreme, chances[:, None]).sum(axis=2)
    return float(min(np.exp(logs).sum(axis=1).max() + 1e-5, 1))


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_paired_is_the_largest_probability_by_enumeration(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 30))
    worse = data.draw(st.integers(0, rows))
    better = data.draw(st.integers(0, min(rows - worse, rows // 3)))
    limit = data.draw(st.sampled_from([0.0, 0.003, 0.02, 0.1, 0.3]))
    exact = by_enumeration(worse, better, rows, limit)
    # A grid of 300 values is a little below the supremum.
    assert exact - 1e-9 <= paired_p_value(worse, better, rows, limit) <= exact + 1e-4


@pytest.mark.parametrize("limit", [0.0, 0.002, 0.01])
@pytest.mark.parametrize("changed", [0.005, 0.1])
def test_paired_of_many_rows_is_never_below_scipys_sum(limit: float, changed: float) -> None:
    rows = 20_000
    better = round(changed * rows)
    worse = round(better + limit * rows - 1.2 * np.sqrt(rows * (limit + 2 * changed)))
    here = tango(np.array([worse]), np.array([better]), rows, limit) + 1e-9
    counts = np.arange(better - 400, better + 400).clip(0)
    counts = np.unique(counts)
    candidates = np.arange(3 * worse + 1_000)
    most = [int((tango(candidates, b, rows, limit) <= here).sum()) - 1 for b in counts]
    ends = stats.binomtest(better, rows).proportion_ci(1 - 1e-5, method="exact")
    found = []
    for value in np.linspace(ends.low, ends.high, 200):
        others = stats.binom.cdf(most, rows - counts, (value + limit) / (1 - value))
        found.append((stats.binom.pmf(counts, rows, value) * others).sum())
    exact = max(found) + 1e-5
    assert exact - 1e-9 <= paired_p_value(worse, better, rows, limit) <= exact + 5e-6


def test_paired_of_a_million_rows_needs_little_memory() -> None:
    tracemalloc.start()
    try:
        value = paired_p_value(108_500, 100_000, 1_000_000, 0.01)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert value == pytest.approx(5.191e-4, rel=1e-3)
    assert peak < 50e6


def test_paired_without_a_null_hypothesis_left() -> None:
    """The interval for P(better) alone speaks against a limit near 1, or against no change."""
    assert paired_p_value(5, 0, 5, 1.0) == 1
    assert paired_p_value(4, 0, 5, 1.0) == 0
    assert paired_p_value(4, 7, 11, 0.9) == pytest.approx(1e-5)


@pytest.mark.parametrize("rows", [15, 40, 80])
@pytest.mark.parametrize("limit", [0.0, 0.02, 0.1, 0.3])
def test_paired_keeps_its_promise_whatever_the_truth(rows: int, limit: float) -> None:
    """The chance of a p-value of delta or less, over every outcome, for truths on the border."""
    outcomes = [(w, b) for w, b in itertools.product(range(rows + 1), repeat=2) if w + b <= rows]
    # Where nearly all rows changed nobody rejects; the far corner is left out to save time.
    values = np.array(
        [paired_p_value(w, b, rows, limit) if w <= b + limit * rows else 1.0 for w, b in outcomes]
    )
    counts = np.array([(w, b, rows - w - b) for w, b in outcomes])
    for better in (0.0, 0.003, 0.011, 0.037, 0.08, 0.19, 0.33):
        chances = [better + limit, better, 1 - limit - 2 * better]
        if chances[2] < 0:
            continue
        weights = stats.multinomial(rows, chances).pmf(counts)
        for delta in (0.01, 0.05, 0.1, 0.3):
            assert weights[values <= delta].sum() <= delta + 1e-9


def test_paired_keeps_its_promise_inside_the_null_too() -> None:
    random = np.random.default_rng(0)
    found = random.multinomial(300, [0.06, 0.02, 0.92], size=400)
    values = [paired_p_value(int(w), int(b), 300, 0.02) for w, b, _ in found]
    assert np.mean(np.array(values) <= 0.1) < 0.05


def test_paired_without_a_better_row_is_nearly_binomial() -> None:
    for rows, worse, limit in ((500, 2, 0.02), (2_000, 8, 0.01), (40, 0, 0.1)):
        exact = binomial_p_value(worse, rows, limit)
        assert exact <= paired_p_value(worse, 0, rows, limit) <= exact + 0.011


def test_paired_has_more_power_than_betting_on_the_mean() -> None:
    random = np.random.default_rng(1)
    wins = {"exact": 0, "betting": 0}
    for _ in range(60):
        losses = random.choice([1, -1, 0], p=[0.01, 0.01, 0.98], size=1_000)
        worse, better = int((losses == 1).sum()), int((losses == -1).sum())
        wins["exact"] += paired_p_value(worse, better, 1_000, 0.01) <= 0.05
        wins["betting"] += mean_p_value((losses + 1) / 2, (0.01 + 1) / 2) <= 0.05
    assert wins["exact"] > wins["betting"]
    assert wins["exact"] > 30


@given(st.integers(0, 12), st.integers(0, 12), st.integers(30, 200))
@settings(deadline=None, max_examples=40)
def test_paired_moves_the_right_way(worse: int, better: int, rows: int) -> None:
    here = paired_p_value(worse, better, rows, 0.05)
    # The extreme outcomes of more worse rows include these, and the interval is the same.
    assert here <= paired_p_value(worse + 1, better, rows, 0.05) + 1e-6
    assert paired_p_value(worse, better + 1, rows, 0.05) <= here + 2e-3
    assert paired_p_value(worse, better, rows, 0.08) <= here + 2e-3
    assert 0 < here <= 1


@pytest.mark.parametrize("shape", [(1, 1), (0.3, 2.7), (40, 360)])
def test_betting_keeps_its_promise(shape: tuple[float, float]) -> None:
    random = np.random.default_rng(2)
    limit = shape[0] / sum(shape)
    values = [mean_p_value(random.beta(*shape, size=200), limit) for _ in range(1_000)]
    # At most 5 %, with a standard error of 0.7 % over 1,000 repeats.
    assert np.mean(np.array(values) <= 0.05) < 0.07


def test_means_well_below_the_limit_are_seen_as_mapie_sees_them() -> None:
    random = np.random.default_rng(3)
    losses = random.beta(1, 9, size=400)
    assert mean_p_value(losses, 0.2) < 1e-3
    assert compute_hoeffding_bentkus_p_value(losses.mean()[None], 400, 0.2)[0, 0] < 1e-3
    assert mean_p_value(losses, 0.05) > 0.5
    assert compute_hoeffding_bentkus_p_value(losses.mean()[None], 400, 0.05)[0, 0] > 0.5


def test_what_is_not_a_count() -> None:
    with pytest.raises(InputError, match="5 of 4 rows"):
        binomial_p_value(5, 4, 0.1)
    with pytest.raises(InputError, match=r"-1 \+ 3 of 4 rows"):
        paired_p_value(-1, 3, 4, 0.1)
    with pytest.raises(InputError, match=r"a limit of 1\.5"):
        paired_p_value(0, 0, 4, 1.5)
    with pytest.raises(InputError, match="one number from 0 to 1 per row"):
        mean_p_value([0.5, 2.0], 0.1)


@pytest.mark.parametrize("decimals", [1, 8])
def test_ranking_agrees_with_scipy(decimals: int) -> None:
    random = np.random.default_rng(0)
    score = np.round(random.normal(size=200), decimals)
    right = random.random(200) < 0.5 + 0.1 * score.clip(-3, 3)
    theirs = stats.mannwhitneyu(
        score[right], score[~right], alternative="greater", method="asymptotic",
        use_continuity=False,
    ).pvalue  # fmt: skip
    assert ranking_p_value(score, right) == pytest.approx(theirs, rel=1e-9)
    assert ranking_p_value(np.ones(10), np.arange(10) < 5) == 0.5
    assert np.isnan(ranking_p_value(score, np.ones(200, dtype=bool)))
