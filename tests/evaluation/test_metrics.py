"""Metrics against scikit-learn and against their definitions spelled out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cascadebert.errors import InputError
from cascadebert.evaluation.metrics import dis, ece

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


def test_dis_of_right_and_wrong_is_auroc() -> None:
    random = np.random.default_rng(0)
    confidence, wrong = random.normal(size=500).round(1), random.random(500) < 0.3
    assert dis(confidence, wrong) == pytest.approx(100 * roc_auc_score(~wrong, confidence))


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
