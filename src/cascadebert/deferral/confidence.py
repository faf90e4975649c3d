"""Confidence scores: how sure a stage is of its answer, one number a row.

A score is compared in its own unbounded units and shown on a scale from 0 to 1. A softmax in
float32 rounds to 1.0 and makes ties of rows that differ; log-odds in float64 do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.errors import InputError

Floats = NDArray[np.float64]

DEFAULT_SCORE = "max_probability"


def max_probability_log_odds(logits: ArrayLike) -> Floats:
    """Log-odds of the most probable class: log p - log(1 - p) for p the largest softmax output.

    It orders rows as the maximum softmax probability of arXiv 2012.14682 does.

    Args:
        logits: shape (rows, classes), two classes or more; logarithms of probabilities will do.

    Returns:
        float64 of shape (rows,).
    """
    values = np.array(logits, dtype=np.float64)
    best = values.argmax(axis=1)[:, None]
    top = np.take_along_axis(values, best, axis=1)
    np.put_along_axis(values, best, -np.inf, axis=1)
    score: Floats = top[:, 0] - _logsumexp(values)
    return score


def _logsumexp(values: Floats) -> Floats:
    peak = values.max(axis=1, keepdims=True)
    # A row that is -inf throughout has no mass: its sum stays -inf instead of becoming NaN.
    peak = np.where(np.isfinite(peak), peak, 0.0)
    with np.errstate(divide="ignore"):
        total: Floats = np.log(np.exp(values - peak).sum(axis=1)) + peak[:, 0]
    return total


def softmax(logits: ArrayLike) -> Floats:
    """Probabilities, float64 of shape (rows, classes)."""
    values = np.asarray(logits, dtype=np.float64)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    result: Floats = powers / powers.sum(axis=1, keepdims=True)
    return result


def sigmoid(score: ArrayLike) -> Floats:
    """Log-odds to probability."""
    values = np.asarray(score, dtype=np.float64)
    return np.exp(-np.logaddexp(0.0, -values))


def logit(probability: ArrayLike) -> Floats:
    """Probability to log-odds; 0 and below give -inf, 1 and above +inf."""
    values = np.clip(np.asarray(probability, dtype=np.float64), 0.0, 1.0)
    with np.errstate(divide="ignore"):
        return np.log(values) - np.log1p(-values)


@dataclass(frozen=True)
class ConfidenceScore:
    """A score by name.

    Attributes:
        score: logits (rows, classes) to comparable scores (rows,).
        shown: scores to the scale that users see and thresholds are given on.
        compared: that scale back to scores.
    """

    name: str
    score: Callable[[ArrayLike], Floats]
    shown: Callable[[ArrayLike], Floats]
    compared: Callable[[ArrayLike], Floats]


SCORES = {
    score.name: score
    for score in (ConfidenceScore(DEFAULT_SCORE, max_probability_log_odds, sigmoid, logit),)
}


def confidence_score(name: str) -> ConfidenceScore:
    """The score called ``name``.

    Raises:
        InputError: there is none of this name.
    """
    if name not in SCORES:
        raise InputError(f"no confidence score is called {name!r}; there are {', '.join(SCORES)}")
    return SCORES[name]
