"""Confidence scores: how sure a stage is of its answer, one number per row.

Scores are compared in their own unbounded units and shown on a scale from 0 to 1. A float32 softmax
rounds to 1.0 and ties rows that differ; float64 log-odds do not.
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

    It orders rows as the maximum softmax probability does, the score of arXiv 2012.14682.

    Args:
        logits: has shape (rows, classes) with two classes or more; log-probabilities also work.

    Returns:
        float64 of shape (rows,).

    >>> max_probability_log_odds([[0.0, 3.0], [1.0, 1.0]]).tolist()
    [3.0, 0.0]
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
    """Probabilities, float64 of shape (rows, classes).

    >>> softmax([[0.0, 0.0]]).tolist()
    [[0.5, 0.5]]
    """
    values = np.asarray(logits, dtype=np.float64)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    result: Floats = powers / powers.sum(axis=1, keepdims=True)
    return result


def sigmoid(score: ArrayLike) -> Floats:
    """Log-odds to probability, float64 of the same shape.

    >>> sigmoid([-800.0, 0.0]).tolist()
    [0.0, 0.5]
    """
    values = np.asarray(score, dtype=np.float64)
    return np.exp(-np.logaddexp(0.0, -values))


def logit(probability: ArrayLike) -> Floats:
    """Probability to log-odds, float64 of the same shape; at most 0 gives -inf, at least 1 +inf.

    >>> logit([0.0, 0.5, 1.0]).tolist()
    [-inf, 0.0, inf]
    """
    values = np.clip(np.asarray(probability, dtype=np.float64), 0.0, 1.0)
    with np.errstate(divide="ignore"):
        return np.log(values) - np.log1p(-values)


def margin(logits: ArrayLike) -> Floats:
    """Log of the ratio of the two largest probabilities, float64 of shape (rows,).

    >>> margin([[0.0, 3.0, 1.0]]).tolist()
    [2.0]
    """
    top = np.sort(np.asarray(logits, dtype=np.float64), axis=1)[:, -2:]
    result: Floats = top[:, 1] - top[:, 0]
    return result


def negative_log_entropy(logits: ArrayLike) -> Floats:
    """Minus the log of the softmax's entropy in nats, float64 of shape (rows,).

    >>> negative_log_entropy([[0.0, 0.0], [40.0, 0.0]]).round(2).tolist()
    [0.37, 36.29]
    """
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
    """Log of the sum of exponentials, float64 of shape (rows,).

    It is minus the free energy of arXiv 2010.03759, equation 4, at temperature 1.

    >>> negative_energy([[0.0, 0.0]]).round(2).tolist()
    [0.69]
    """
    return _logsumexp(np.asarray(logits, dtype=np.float64))


def agreement(logits: ArrayLike, previous: ArrayLike | None) -> Floats:
    """Log-odds of the answer under the mean of this stage's and the previous one's probabilities.

    Without a previous stage it is :func:`max_probability_log_odds`.

    Args:
        logits: has shape (rows, classes).
        previous: has the same shape, or is None.

    Returns:
        float64 of shape (rows,).

    >>> agreement([[0.0, 3.0]], [[3.0, 0.0]]).tolist()
    [0.0]
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
        # At a threshold of 0 a margin of 0 exits too.
        return np.where(values > 0, 2 * np.arctanh(values), -np.inf)


def _shown_entropy(score: ArrayLike) -> Floats:
    return np.exp(-np.exp(-np.asarray(score, dtype=np.float64)))


def _compared_entropy(shown: ArrayLike) -> Floats:
    values = np.clip(np.asarray(shown, dtype=np.float64), 0.0, 1.0)
    with np.errstate(divide="ignore"):
        return -np.log(-np.log(values))


@dataclass(frozen=True)
class ConfidenceScore:
    """A confidence score, told apart by its name and parameters.

    Attributes:
        name: one of ``SCORE_NAMES``.
        parameters: per stage, the fitted values of the learned score; None for the others.

    >>> SCORES["margin"].shown([0.0, 2.0]).round(2).tolist()
    [0.0, 0.76]
    """

    name: str
    parameters: tuple[tuple[float, ...], ...] | None = None

    @property
    def uses_previous(self) -> bool:
        """Whether the logits of the previous stage change the score."""
        return self.name == "agreement"

    @property
    def needs_logits(self) -> bool:
        """Whether logarithms of probabilities cannot stand in for logits."""
        return self.name == "energy"

    def score(self, logits: ArrayLike, stage: int, previous: ArrayLike | None) -> Floats:
        """Comparable scores, float64 of shape (rows,).

        Args:
            logits: has shape (rows, classes).
            stage: numbers the stage, from 0.
            previous: holds the logits of the previous stage, or None if that did not run.
        """
        if self.parameters is not None:
            *weights, bias = self.parameters[stage]
            # A matrix product rounds by the number of rows; a sum over each row does not.
            result: Floats = (output_features(logits) * np.array(weights)).sum(axis=1) + bias
            return result
        return agreement(logits, previous) if self.uses_previous else _OWN_SCORES[self.name](logits)

    def shown(self, score: ArrayLike) -> Floats:
        """Scores on the scale from 0 to 1 that users see and thresholds are given on."""
        return _SCALES.get(self.name, _LOG_ODDS)[0](score)

    def compared(self, shown: ArrayLike) -> Floats:
        """Comparable scores from that scale."""
        return _SCALES.get(self.name, _LOG_ODDS)[1](shown)


LEARNED = "learned"
_OWN_SCORES: dict[str, Callable[[ArrayLike], Floats]] = {
    DEFAULT_SCORE: max_probability_log_odds,
    "margin": margin,
    "entropy": negative_log_entropy,
    "energy": negative_energy,
}
_LOG_ODDS = (sigmoid, logit)
_SCALES = {
    "margin": (_shown_margin, _compared_margin),
    "entropy": (_shown_entropy, _compared_entropy),
}
SCORES = {name: ConfidenceScore(name) for name in (*_OWN_SCORES, "agreement")}
SCORE_NAMES = (*SCORES, LEARNED)


def learned_score(parameters: Sequence[Sequence[float]]) -> ConfidenceScore:
    """Log-odds that a stage is right, by a logistic model on its own outputs.

    Args:
        parameters: holds, per stage, the weights of :func:`output_features` and the bias, from
            :func:`cascadebert.deferral.search.learned.fit_learned_score`.

    >>> learned_score([[1, 0, 0, 0, 0, 0.5]]).score([[0.0, 2.0]], 0, None).tolist()
    [2.5]
    """
    return ConfidenceScore(LEARNED, tuple(tuple(map(float, model)) for model in parameters))


def output_features(logits: ArrayLike) -> Floats:
    """Features of a learned score, float64 of shape (rows, 3 + classes).

    They are the answer's log-odds, the margin, the negative log entropy, and the class one-hot.

    >>> output_features([[0.0, 3.0]]).round(2).tolist()
    [[3.0, 3.0, 1.66, 0.0, 1.0]]
    """
    values = np.asarray(logits, dtype=np.float64)
    classes = np.arange(values.shape[1])
    columns = [max_probability_log_odds(values), margin(values), negative_log_entropy(values)]
    scores = np.clip(np.stack(columns, axis=1), -_LARGEST_FEATURE, _LARGEST_FEATURE)
    return np.hstack([scores, values.argmax(axis=1)[:, None] == classes])


_LARGEST_FEATURE = 50.0


def confidence_score(
    name: str, parameters: Sequence[Sequence[float]] | None = None
) -> ConfidenceScore:
    """The score called ``name``.

    Args:
        name: is one of ``SCORE_NAMES``.
        parameters: belong to the learned score; the others ignore them.

    Raises:
        InputError: the name is unknown, or the learned score has no parameters.

    >>> confidence_score("margin").name
    'margin'
    """
    if name == LEARNED:
        if parameters is None:
            raise InputError("the learned confidence score has no parameters; fit it")
        return learned_score(parameters)
    if name not in SCORES:
        raise InputError(
            f"unknown confidence score {name!r}; choose one of {', '.join(SCORE_NAMES)}"
        )
    return SCORES[name]


def stage_scores(
    score: ConfidenceScore, logits: Sequence[ArrayLike], alone: bool = False
) -> Floats:
    """Scores of every stage, float64 of shape (stages, rows).

    Args:
        score: computes the scores.
        logits: holds one array (rows, classes) per stage.
        alone: scores each stage as if no other had run before. The last stage is always scored
            so, because a row may reach it from any stage.

    >>> logits = [[[0.0, 1.0]], [[0.0, 3.0]]]
    >>> stage_scores(confidence_score("max_probability"), logits).tolist()
    [[1.0], [3.0]]
    """
    last = len(logits) - 1
    previous = [None, *logits[:-1]]
    return np.stack(
        [
            score.score(values, k, None if alone or k == last else previous[k])
            for k, values in enumerate(logits)
        ]
    )
