"""Metrics against scikit-learn and against their definitions spelled out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from cascadebert.deferral.confidence import softmax
from cascadebert.errors import InputError
from cascadebert.evaluation.metrics import aurc, auroc, brier, dis, ece, nll

pairs = st.lists(
    st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.7, 0.9]), st.integers(0, 3)),
    min_size=1,
    max_size=30,
)


@given(pairs)
def test_dis_by_its_definition(rows: list[tuple[float, int]]) -> None:
    credit, count = 0.0, 0
    for easy_score, easy in rows:
        for hard_score, hard in rows:
            if easy < hard:
                count += 1
                credit += 1.0 if easy_score > hard_score else 0.5 * (easy_score == hard_score)
    value = dis([score for score, _ in rows], [level for _, level in rows])
    assert math.isnan(value) if count == 0 else value == pytest.approx(100 * credit / count)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 3), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_dis_of_many_levels_by_its_definition(
    rows: int, levels: int, decimals: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    confidence, difficulty = random.random(rows).round(decimals), random.integers(0, levels, rows)
    is_pair = difficulty[:, None] < difficulty
    above = (confidence[:, None] > confidence) + 0.5 * (confidence[:, None] == confidence)
    value = dis(confidence, difficulty / 7)
    if is_pair.any():
        assert value == pytest.approx(100 * above[is_pair].mean())
    else:
        assert math.isnan(value)


def test_dis_of_as_many_levels_as_rows_is_kendalls_tau() -> None:
    """A quadratic algorithm takes minutes for as many rows."""
    random = np.random.default_rng(0)
    difficulty = random.random(200_000)
    confidence = random.normal(size=200_000) - difficulty
    assert dis(confidence, difficulty) == pytest.approx(
        50 * (1 - kendalltau(confidence, difficulty).statistic)
    )


def test_dis_of_right_and_wrong_is_auroc() -> None:
    random = np.random.default_rng(0)
    confidence, wrong = random.normal(size=500).round(1), random.random(500) < 0.3
    assert dis(confidence, wrong) == pytest.approx(100 * roc_auc_score(~wrong, confidence))
    assert dis([-np.inf, 0.0, np.inf], [2, 1, 0]) == 100
    assert math.isnan(dis([], []))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_ece_by_its_definition(rows: list[tuple[float, bool]]) -> None:
    bins: dict[int, list[tuple[float, bool]]] = {}
    for confidence, right in rows:
        index = next(i for i in range(15) if confidence <= np.linspace(0, 1, 16)[i + 1])
        bins.setdefault(index, []).append((confidence, right))
    expected = sum(
        abs(sum(c for c, _ in rows_in) - sum(r for _, r in rows_in)) for rows_in in bins.values()
    ) / len(rows)
    value = ece([c for c, _ in rows], [r for _, r in rows])
    assert value == pytest.approx(expected)


def test_calibrated_confidence_has_no_error() -> None:
    confidence = np.repeat([0.25, 0.75], 400)
    right = np.concatenate([np.arange(400) < 100, np.arange(400) < 300])
    assert ece(confidence, right) == pytest.approx(0)
    assert ece(np.ones(10), np.zeros(10)) == 1


def test_shapes_must_fit() -> None:
    with pytest.raises(InputError):
        dis([0.1, 0.2], [1])
    with pytest.raises(InputError):
        ece([], [])


def test_ece_of_equal_mass_is_scikit_learns_curve() -> None:
    random = np.random.default_rng(0)
    confidence = random.beta(5, 2, size=1500)
    right = random.random(1500) < confidence**1.5
    share, mean = calibration_curve(right, confidence, n_bins=15, strategy="quantile")
    assert ece(confidence, right, equal_mass=True) == pytest.approx(np.abs(share - mean).mean())


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9]), st.booleans()), min_size=1, max_size=6))
def test_aurc_is_the_mean_over_all_orders_of_equals(rows: list[tuple[float, bool]]) -> None:
    areas = []
    for order in itertools.permutations(range(len(rows))):
        if any(rows[a][0] < rows[b][0] for a, b in itertools.pairwise(order)):
            continue
        wrong = np.array([not rows[i][1] for i in order])
        areas.append((wrong.cumsum() / np.arange(1, len(rows) + 1)).mean())
    value = aurc([c for c, _ in rows], [r for _, r in rows])
    assert value == pytest.approx(np.mean(areas))


def test_probability_scores_are_scikit_learns() -> None:
    random = np.random.default_rng(1)
    logits, labels = random.normal(size=(300, 4)) * 3, random.integers(0, 4, 300)
    p = softmax(logits)
    assert nll(logits, labels) == pytest.approx(log_loss(labels, p, labels=range(4)))
    assert brier(p, labels) == pytest.approx(
        brier_score_loss(labels, p, labels=range(4), scale_by_half=False)
    )
    right, confidence = p.argmax(axis=1) == labels, p.max(axis=1)
    assert auroc(confidence, right) == pytest.approx(roc_auc_score(right, confidence))
    assert math.isnan(auroc(confidence, np.ones(300)))


@pytest.mark.parametrize("metric", [ece, aurc])
def test_confidence_and_correct_must_fit(metric: Callable[..., float]) -> None:
    with pytest.raises(InputError, match=r"shape \(2,\), correct \(3,\)"):
        metric([0.1, 0.2], [1, 0, 1])
    with pytest.raises(InputError, match="at least one row"):
        metric([], [])


@pytest.mark.parametrize("metric", [brier, nll])
def test_probabilities_and_labels_must_fit(metric: Callable[..., float]) -> None:
    with pytest.raises(InputError, match=r"labels \(3,\)"):
        metric([[0.5, 0.5], [0.1, 0.9]], [1, 0, 1])
