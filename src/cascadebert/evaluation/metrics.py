"""How good predictions and their confidences are."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

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


def ece(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error with bins of equal width.

    The mean over bins of |share right - mean confidence|, weighted by the rows in each.

    Args:
        confidence: probability of the predicted class, in [0, 1], shape (rows,).
        correct: whether the prediction is right, shape (rows,).
        bins: number of bins between 0 and 1.
    """
    probability = np.asarray(confidence, dtype=np.float64)
    right = np.asarray(correct, dtype=np.float64)
    if probability.shape != right.shape or not len(right):
        raise InputError(f"confidence has shape {probability.shape}, correct {right.shape}")
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    which = np.digitize(probability, edges, right=True)
    gaps = np.bincount(which, weights=right - probability, minlength=bins)
    return float(np.abs(gaps).sum() / len(right))
