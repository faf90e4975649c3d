"""How good predictions and their confidences are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.errors import InputError


def dis(confidence: ArrayLike, difficulty: ArrayLike) -> float:
    """Difficulty inversion score of arXiv 2012.14682, times 100; higher is better.

    The share of pairs of an easier and a harder row in which the easier one has the higher
    confidence; equal confidences count half and rows of equal difficulty are no pairs. With
    difficulty 1 for a wrong answer and 0 for a right one it is the AUROC of confidence for
    being right.

    Args:
        confidence: shape (rows,); log-odds, not rounded probabilities, or ties will hide order.
        difficulty: shape (rows,); larger is harder.

    Returns:
        0 to 100, or NaN where no two rows differ in difficulty.
    """
    scores = np.asarray(confidence, dtype=np.float64)
    levels, level = np.unique(np.asarray(difficulty), return_inverse=True)
    if scores.shape != level.shape:
        raise InputError(f"confidence has shape {scores.shape}, difficulty {level.shape}")
    in_order, pairs = 0.0, 0
    easier = np.empty(0)
    for value in range(len(levels)):
        harder = scores[level == value]
        below = np.searchsorted(easier, harder, side="right")
        not_above = np.searchsorted(easier, harder, side="left")
        in_order += float((len(easier) - (below + not_above) / 2).sum())
        pairs += len(easier) * len(harder)
        easier = np.sort(np.concatenate([easier, harder]))
    return 100 * in_order / pairs if pairs else math.nan


def auroc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Area under the ROC curve of confidence for being right; equal confidences count half.

    Args:
        confidence: any rising score, shape (rows,).
        correct: whether the prediction is right, shape (rows,).

    Returns:
        0 to 1, or NaN where all predictions are right or all wrong.
    """
    return dis(confidence, ~np.asarray(correct, dtype=np.bool_)) / 100


def aurc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Area under the risk-coverage curve (arXiv 1805.08206); lower is better.

    The mean over k of the share of wrong answers among the k most confident rows; rows of equal
    confidence stand in any order, and the mean over all orders is taken.

    Args:
        confidence: any rising score, shape (rows,).
        correct: whether the prediction is right, shape (rows,).

    Returns:
        0 to 1.
    """
    scores, right = _checked(confidence, correct)
    _, group, sizes = np.unique(-scores, return_inverse=True, return_counts=True)
    wrong = np.bincount(group, 1 - right)
    # Within a group of equals each next row is wrong with the group's share.
    steps = np.repeat(wrong / sizes, sizes)
    return float((steps.cumsum() / np.arange(1, len(scores) + 1)).mean())


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Brier score: the mean over rows of the squared distance to the label's one-hot vector.

    Args:
        probabilities: shape (rows, classes).
        labels: class indices, shape (rows,).

    Returns:
        0 to 2; lower is better.
    """
    values, truth = _checked_probabilities(probabilities, labels)
    apart = values.copy()
    apart[np.arange(len(truth)), truth] -= 1
    return float((apart**2).sum(axis=1).mean())


def nll(log_probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Negative log-likelihood of the labels, the mean over rows, in nats.

    Args:
        log_probabilities: shape (rows, classes); logits will do, they are normalised.
        labels: class indices, shape (rows,).
    """
    values, truth = _checked_probabilities(log_probabilities, labels)
    peak = values.max(axis=1, keepdims=True)
    total = np.log(np.exp(values - peak).sum(axis=1)) + peak[:, 0]
    return float((total - values[np.arange(len(truth)), truth]).mean())


def ece(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15, *, equal_mass: bool = False
) -> float:
    """Expected calibration error (arXiv 1706.04599).

    The mean over bins of |share right - mean confidence|, weighted by the rows in each.

    Args:
        confidence: probability of the predicted class, in [0, 1], shape (rows,).
        correct: whether the prediction is right, shape (rows,).
        bins: number of bins.
        equal_mass: bins with like numbers of rows, in place of bins of equal width between 0
            and 1; rows of equal confidence stay together.
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
            f"confidence has shape {scores.shape}, correct {right.shape}; give one of each a row, "
            "and one row at least"
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
            "(rows,), with one row at least"
        )
    return table, truth


def macro_f1(labels: ArrayLike, answers: ArrayLike, names: Sequence[str]) -> float:
    """F1 averaged over the names; one that neither has rows nor is said counts 0.

    Args:
        labels: of each row, shape (rows,).
        answers: to each row, shape (rows,); any that is no name is a wrong one.
        names: of all classes.
    """
    truth, said = np.asarray(labels), np.asarray(answers)
    scores = []
    for name in names:
        either = int((truth == name).sum() + (said == name).sum())
        scores.append(2 * int(((truth == name) & (said == name)).sum()) / either if either else 0.0)
    return float(np.mean(scores))


def matthews_correlation(labels: ArrayLike, answers: ArrayLike) -> float:
    """Correlation of labels and answers, R_K of Gorodkin (2004) where there are more than two.

    Args:
        labels: of each row, shape (rows,).
        answers: to each row, shape (rows,).

    Returns:
        -1 to 1; 0 where all labels or all answers are the same.
    """
    truth, said = np.asarray(labels), np.asarray(answers)
    names = np.unique(np.concatenate([truth, said]))
    rows = len(truth)
    own = np.array([(truth == name).sum() for name in names], dtype=np.float64)
    given = np.array([(said == name).sum() for name in names], dtype=np.float64)
    spread = math.sqrt((rows**2 - (own**2).sum()) * (rows**2 - (given**2).sum()))
    together = rows * float((truth == said).sum()) - float(own @ given)
    return together / spread if spread else 0.0
