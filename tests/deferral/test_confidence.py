"""Confidence scores against scipy, and where float32 would have rounded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special

from cascadebert.deferral.confidence import (
    confidence_score,
    logit,
    max_probability_log_odds,
    sigmoid,
    softmax,
)
from cascadebert.errors import InputError

logit_tables = arrays(
    np.float64, st.tuples(st.integers(1, 8), st.integers(2, 6)), elements=st.floats(-15, 15)
)


@given(logit_tables)
def test_log_odds_of_the_largest_probability(logits: np.ndarray) -> None:
    probabilities = special.softmax(logits, axis=1)
    np.testing.assert_allclose(softmax(logits), probabilities, atol=1e-12)
    rest = np.sort(probabilities, axis=1)[:, :-1].sum(axis=1)
    expected = np.log(probabilities.max(axis=1)) - np.log(rest)
    np.testing.assert_allclose(max_probability_log_odds(logits), expected, atol=1e-9)
    np.testing.assert_allclose(max_probability_log_odds(np.log(probabilities)), expected, atol=1e-6)


@given(arrays(np.float64, st.integers(1, 20), elements=st.floats(-30, 30)))
def test_sigmoid_and_logit(values: np.ndarray) -> None:
    np.testing.assert_allclose(sigmoid(values), special.expit(values), rtol=1e-12)
    np.testing.assert_allclose(logit(special.expit(values)), special.logit(special.expit(values)))


def test_ends_of_the_scale() -> None:
    assert logit([0, 1, 1.5]).tolist() == [-np.inf, np.inf, np.inf]


def test_rows_that_a_float32_softmax_ties_keep_their_order() -> None:
    logits = np.array([[20, 0], [25, 0], [30, 0]], dtype=np.float32)
    assert (special.softmax(logits, axis=1)[:, 0] == 1).all()
    assert (np.diff(max_probability_log_odds(logits)) > 4).all()


def test_certain_probabilities_are_infinitely_sure() -> None:
    with np.errstate(divide="ignore"):
        assert max_probability_log_odds(np.log([[1.0, 0.0]])).tolist() == [np.inf]


def test_unknown_score() -> None:
    with pytest.raises(InputError, match=r"no confidence score is called 'mood'"):
        confidence_score("mood")
