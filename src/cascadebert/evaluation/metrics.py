"""Metrics of predictions and of their confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.errors import InputError


def dis(confidence: ArrayLike, difficulty: ArrayLike) -> float:
    """Difficulty inversion score of arXiv 2012.14682, times 100; higher is better.

    It is the share of pairs of an easier and a harder row in which the easier one has the higher
    confidence. Equal confidences count half, and rows of equal difficulty make no pair. With
    difficulty 1 for a wrong answer and 0 for a right one it is the AUROC of confidence for being
    right. It takes O(rows log(rows) log(levels of difficulty)).

    Args:
        confidence: has the shape (rows,). Give log-odds: rounded probabilities tie.
        difficulty: has the shape (rows,); larger is harder.

    Returns:
        0 to 100, or NaN where no two rows differ in difficulty.

    Raises:
        InputError: the shapes differ.

    >>> dis([0.9, 0.8, 0.3], difficulty=[0, 2, 1])
    66.66666666666667
    """
    levels, level = np.unique(np.asarray(difficulty), return_inverse=True)
    scores, rank = np.unique(np.asarray(confidence, dtype=np.float64), return_inverse=True)
    if rank.shape != level.shape:
        raise InputError(
            f"confidence has shape {rank.shape}, difficulty {level.shape}; give one of each per row"
        )
    pairs = (len(level) ** 2 - int((np.bincount(level) ** 2).sum())) // 2
    in_order = 0.0
    # Two levels differ first at one of their bits, and there each pair of rows is counted.
    for bit in range((len(levels) - 1).bit_length()):
        # Rows whose levels have the same higher bits make a block.
        key = (level >> bit) // 2 * len(scores) + rank
        is_harder = (level >> bit) % 2 == 1
        easier, harder = np.sort(key[~is_harder]), np.sort(key[is_harder])
        ends = np.searchsorted(easier, (harder // len(scores) + 1) * len(scores))
        below = np.searchsorted(easier, harder) + np.searchsorted(easier, harder, side="right")
        in_order += float((ends - below / 2).sum())
    return 100 * in_order / pairs if pairs else math.nan


def auroc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Area under the ROC curve of confidence for being right; equal confidences count half.

    Args:
        confidence: is any rising score, shape (rows,).
        correct: tells whether the prediction is right, shape (rows,).

    Returns:
        0 to 1, or NaN where all predictions are right or all wrong.

    >>> auroc([0.9, 0.8, 0.8, 0.3], correct=[True, True, False, False])
    0.875
    """
    return dis(confidence, ~np.asarray(correct, dtype=np.bool_)) / 100


def aurc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Area under the risk-coverage curve (arXiv 1805.08206); lower is better.

    It is the mean over k of the share of wrong answers among the k most confident rows. Where
    confidences are equal it is averaged over all orders of those rows.

    Args:
        confidence: is any rising score, shape (rows,).
        correct: tells whether the prediction is right, shape (rows,).

    Returns:
        0 to 1.

    Raises:
        InputError: the shapes differ, or there is no row.

    >>> round(aurc([0.9, 0.8, 0.3], correct=[True, False, True]), 4)
    0.2778
    """
    scores, right = _checked(confidence, correct)
    _, group, sizes = np.unique(-scores, return_inverse=True, return_counts=True)
    wrong = np.bincount(group, 1 - right)
    # Within a group of equals each next row is wrong with the group's share.
    steps = np.repeat(wrong / sizes, sizes)
    return float((steps.cumsum() / np.arange(1, len(scores) + 1)).mean())


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Brier score (Monthly Weather Review 78, 1950) in its original form; lower is better.

    It is the mean squared distance of the probabilities to the one-hot vector of the label.

    Args:
        probabilities: have the shape (rows, classes).
        labels: are class indices of shape (rows,).

    Returns:
        0 to 2.

    Raises:
        InputError: the shapes do not fit together, or there is no row.

    >>> round(brier([[0.9, 0.1], [0.4, 0.6]], labels=[0, 1]), 4)
    0.17
    """
    values, truth = _checked_probabilities(probabilities, labels)
    apart = values.copy()
    apart[np.arange(len(truth)), truth] -= 1
    return float((apart**2).sum(axis=1).mean())


def nll(log_probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-likelihood of the labels, in nats per row; lower is better.

    Args:
        log_probabilities: have the shape (rows, classes); logits will do, as they are normalised.
        labels: are class indices of shape (rows,).

    Raises:
        InputError: the shapes do not fit together, or there is no row.

    >>> round(nll([[0.0, 0.0], [2.0, 0.0]], labels=[0, 0]), 4)
    0.41
    """
    values, truth = _checked_probabilities(log_probabilities, labels)
    peak = values.max(axis=1, keepdims=True)
    total = np.log(np.exp(values - peak).sum(axis=1)) + peak[:, 0]
    return float((total - values[np.arange(len(truth)), truth]).mean())


def ece(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15, *, equal_mass: bool = False
) -> float:
    """Expected calibration error (arXiv 1706.04599).

    It is the mean over bins of |share right - mean confidence|, weighted by the rows in each.

    Args:
        confidence: is the probability of the predicted class, 0 to 1, shape (rows,).
        correct: tells whether the prediction is right, shape (rows,).
        bins: sets the number of bins.
        equal_mass: gives all bins about as many rows, instead of the same width between 0 and 1;
            rows of equal confidence stay together.

    Returns:
        0 to 1; lower is better.

    Raises:
        InputError: the shapes differ, or there is no row.

    >>> round(ece([0.9, 0.9, 0.6, 0.6], correct=[True, True, True, False]), 4)
    0.1
    """
    probability, right = _checked(confidence, correct)
    if equal_mass:
        edges = np.quantile(probability, np.linspace(0, 1, bins + 1)[1:-1])
    else:
        edges = np.linspace(0, 1, bins + 1)[1:-1]
    which = np.digitize(probability, edges, right=True)
    gaps = np.bincount(which, weights=right - probability, minlength=bins)
    return float(np.abs(gaps).sum() / len(right))


def _checked(confidence: ArrayLike, correct: ArrayLike) -> tuple[Floats, Floats]:
    scores = np.asarray(confidence, dtype=np.float64)
    right = np.asarray(correct, dtype=np.float64)
    if scores.ndim != 1 or scores.shape != right.shape or not len(right):
        raise InputError(
            f"confidence has shape {scores.shape}, correct {right.shape}; give one of each per "
            "row, and at least one row"
        )
    return scores, right


def _checked_probabilities(
    values: ArrayLike, labels: ArrayLike
) -> tuple[Floats, NDArray[np.int64]]:
    table = np.asarray(values, dtype=np.float64)
    truth = np.asarray(labels, dtype=np.int64)
    if table.ndim != 2 or truth.shape != table.shape[:1] or not len(truth):
        raise InputError(
            f"values have shape {table.shape}, labels {truth.shape}; give (rows, classes) and "
            "(rows,), with at least one row"
        )
    return table, truth


def macro_f1(labels: ArrayLike, answers: ArrayLike, names: Sequence[str]) -> float:
    """Unweighted mean of the F1 score over the classes; one without labels and answers counts 0.

    Args:
        labels: holds the label per row, shape (rows,).
        answers: holds the answer per row, shape (rows,); an unknown name is a wrong answer.
        names: lists all classes.

    Returns:
        0 to 1.

    >>> round(macro_f1(["a", "a", "b"], answers=["a", "b", "b"], names=["a", "b"]), 4)
    0.6667
    """
    truth, said = np.asarray(labels), np.asarray(answers)
    scores = []
    for name in names:
        either = int((truth == name).sum() + (said == name).sum())
        scores.append(2 * int(((truth == name) & (said == name)).sum()) / either if either else 0.0)
    return float(np.mean(scores))


def matthews_correlation(labels: ArrayLike, answers: ArrayLike) -> float:
    """Matthews correlation of labels and answers; R_K of Gorodkin (2004) for many classes.

    Args:
        labels: holds the label per row, shape (rows,).
        answers: holds the answer per row, shape (rows,).

    Returns:
        -1 to 1; 0 where all labels or all answers are the same.

    >>> matthews_correlation(["a", "a", "b", "b"], answers=["a", "a", "b", "a"])
    0.5773502691896258
    """
    truth, said = np.asarray(labels), np.asarray(answers)
    names = np.unique(np.concatenate([truth, said]))
    rows = len(truth)
    own = np.array([(truth == name).sum() for name in names], dtype=np.float64)
    given = np.array([(said == name).sum() for name in names], dtype=np.float64)
    spread = math.sqrt((rows**2 - (own**2).sum()) * (rows**2 - (given**2).sum()))
    together = rows * float((truth == said).sum()) - float(own @ given)
    return together / spread if spread else 0.0
