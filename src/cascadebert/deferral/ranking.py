"""Whether a confidence score tells right answers from wrong ones at all."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.confidence import Floats


def ranking_p_value(score: Floats, right: NDArray[np.bool_]) -> float:
    """One-sided Mann-Whitney test, by its normal approximation with ties counted half.

    Args:
        score: confidence of each row, shape (rows,).
        right: whether its answer is right, shape (rows,).

    Returns:
        p-value of the null hypothesis that right answers score no higher than wrong ones; NaN
        where all are right or all are wrong.
    """
    rows, hits = len(score), int(right.sum())
    if hits in (0, rows):
        return math.nan
    _, group, sizes = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (sizes.cumsum() - (sizes - 1) / 2)[group]
    pairs = hits * (rows - hits)
    above = float(ranks[right].sum()) - hits * (hits + 1) / 2
    ties = float((sizes.astype(np.float64) ** 3 - sizes).sum()) / (rows * (rows - 1))
    variance = pairs / 12 * (rows + 1 - ties)
    if variance <= 0:
        return 0.5
    return 0.5 * math.erfc((above - pairs / 2) / math.sqrt(2 * variance))
