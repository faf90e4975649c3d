"""Confidence scores: how sure a stage is of its answer, one number a row.

A score is compared in its own unbounded units and shown on a scale from 0 to 1. A softmax in
float32 rounds to 1.0 and makes ties of rows that differ; log-odds in float64 do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def margin(logits: ArrayLike) -> Floats:
    """Log of the ratio of the two largest probabilities, float64 of shape (rows,)."""
    top = np.sort(np.asarray(logits, dtype=np.float64), axis=1)[:, -2:]
    result: Floats = top[:, 1] - top[:, 0]
    return result


def certainty(logits: ArrayLike) -> Floats:
    """Minus the log of the entropy (in nats) of the softmax, float64 of shape (rows,)."""
    values = np.asarray(logits, dtype=np.float64)
    top = max_probability_log_odds(values)
    best = values.argmax(axis=1)[:, None]
    # log p = -log(1 + odds against) keeps its digits where p rounds to 1.
    log_p = values - values.max(axis=1, keepdims=True) - np.logaddexp(0.0, -top)[:, None]
    np.put_along_axis(log_p, best, -np.logaddexp(0.0, -top)[:, None], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        entropy = -np.where(np.isneginf(log_p), 0.0, np.exp(log_p) * log_p).sum(axis=1)
        result: Floats = -np.log(entropy)
    return result


def negative_energy(logits: ArrayLike) -> Floats:
    """Log of the sum of exponentials (minus the energy of arXiv 2010.03759), shape (rows,)."""
    return _logsumexp(np.asarray(logits, dtype=np.float64))


def agreement(logits: ArrayLike, previous: ArrayLike | None) -> Floats:
    """Log-odds of the answer under the mean of this stage's and the previous one's probabilities.

    Without a previous stage it is :func:`max_probability_log_odds`.
    """
    if previous is None:
        return max_probability_log_odds(logits)
    values = np.asarray(logits, dtype=np.float64)
    best = values.argmax(axis=1)
    own, before = (
        _log_odds_of(np.asarray(table, dtype=np.float64), best) for table in (values, previous)
    )

    def mean_of_logs(sign: float) -> Floats:
        return np.logaddexp(-np.logaddexp(0.0, -sign * own), -np.logaddexp(0.0, -sign * before))

    result: Floats = mean_of_logs(1.0) - mean_of_logs(-1.0)
    return result


def _log_odds_of(logits: Floats, classes: NDArray[np.int64]) -> Floats:
    values = logits.copy()
    chosen = np.take_along_axis(values, classes[:, None], axis=1)[:, 0]
    np.put_along_axis(values, classes[:, None], -np.inf, axis=1)
    result: Floats = chosen - _logsumexp(values)
    return result


def _shown_margin(score: ArrayLike) -> Floats:
    return np.tanh(np.asarray(score, dtype=np.float64) / 2)


def _compared_margin(shown: ArrayLike) -> Floats:
    values = np.clip(np.asarray(shown, dtype=np.float64), 0.0, 1.0)
    with np.errstate(divide="ignore"):
        # A margin of 0 exits at a threshold of 0 like any other.
        return np.where(values > 0, 2 * np.arctanh(values), -np.inf)


def _shown_certainty(score: ArrayLike) -> Floats:
    return np.exp(-np.exp(-np.asarray(score, dtype=np.float64)))


def _compared_certainty(shown: ArrayLike) -> Floats:
    values = np.clip(np.asarray(shown, dtype=np.float64), 0.0, 1.0)
    with np.errstate(divide="ignore"):
        return -np.log(-np.log(values))


@dataclass(frozen=True)
class ConfidenceScore:
    """A score by name.

    Attributes:
        score: called with logits (rows, classes), the stage's number from 0, and the logits of
            the stage before where that ran, else None; gives comparable scores (rows,).
        shown: scores to the scale from 0 to 1 that users see and thresholds are given on.
        compared: that scale back to scores.
        uses_previous: whether the stage before makes a difference.
        needs_logits: whether logarithms of probabilities will not do.
        parameters: what was learned, by stage; None for a score that learns nothing.
    """

    name: str
    score: Callable[[ArrayLike, int, ArrayLike | None], Floats]
    shown: Callable[[ArrayLike], Floats]
    compared: Callable[[ArrayLike], Floats]
    uses_previous: bool = False
    needs_logits: bool = False
    parameters: tuple[tuple[float, ...], ...] | None = None


SCORES = {
    DEFAULT_SCORE: ConfidenceScore(
        DEFAULT_SCORE, lambda logits, *_: max_probability_log_odds(logits), sigmoid, logit
    ),
    "margin": ConfidenceScore(
        "margin", lambda logits, *_: margin(logits), _shown_margin, _compared_margin
    ),
    "entropy": ConfidenceScore(
        "entropy", lambda logits, *_: certainty(logits), _shown_certainty, _compared_certainty
    ),
    "energy": ConfidenceScore(
        "energy", lambda logits, *_: negative_energy(logits), sigmoid, logit, needs_logits=True
    ),
    "agreement": ConfidenceScore(
        "agreement",
        lambda logits, _, previous: agreement(logits, previous),
        sigmoid,
        logit,
        uses_previous=True,
    ),
}
LEARNED = "learned"
SCORE_NAMES = (*SCORES, LEARNED)


def learned_score(parameters: Sequence[Sequence[float]]) -> ConfidenceScore:
    """Log-odds that a stage is right, by a logistic model on its own outputs.

    Args:
        parameters: for each stage the weights of :func:`output_features`, then the bias; from
            :func:`cascadebert.deferral.search.learned.fit_learned_score`.
    """
    models = tuple(tuple(float(value) for value in model) for model in parameters)

    def score(logits: ArrayLike, stage: int, _: ArrayLike | None) -> Floats:
        *weights, bias = models[stage]
        result: Floats = output_features(logits) @ np.array(weights) + bias
        return result

    return ConfidenceScore(LEARNED, score, sigmoid, logit, parameters=models)


def output_features(logits: ArrayLike) -> Floats:
    """What a learned score sees of a stage's outputs, float64 of shape (rows, 3 + classes).

    Log-odds of the answer, its margin, minus the log of the entropy, and which class it is.
    """
    values = np.asarray(logits, dtype=np.float64)
    classes = np.arange(values.shape[1])
    columns = [max_probability_log_odds(values), margin(values), certainty(values)]
    scores = np.clip(np.stack(columns, axis=1), -_LARGEST_FEATURE, _LARGEST_FEATURE)
    return np.hstack([scores, values.argmax(axis=1)[:, None] == classes])


_LARGEST_FEATURE = 50.0


def confidence_score(
    name: str, parameters: Sequence[Sequence[float]] | None = None
) -> ConfidenceScore:
    """The score called ``name``.

    Args:
        name: one of ``SCORE_NAMES``.
        parameters: of the learned score.

    Raises:
        InputError: there is none of this name, or the learned one without its parameters.
    """
    if name == LEARNED:
        if parameters is None:
            raise InputError("the learned confidence score comes without its parameters")
        return learned_score(parameters)
    if name not in SCORES:
        raise InputError(
            f"no confidence score is called {name!r}; there are {', '.join(SCORE_NAMES)}"
        )
    return SCORES[name]


def stage_scores(
    score: ConfidenceScore, logits: Sequence[ArrayLike], alone: bool = False
) -> Floats:
    """Scores of every stage, float64 of shape (stages, rows).

    Args:
        score: the confidence score.
        logits: one array (rows, classes) a stage.
        alone: as if no stage had run before. The last stage's are always such, as a row may come
            to it from anywhere.
    """
    last = len(logits) - 1
    previous = [None, *logits[:-1]]
    return np.stack(
        [
            score.score(values, k, None if alone or k == last else previous[k])
            for k, values in enumerate(logits)
        ]
    )
