"""Simulated stages, whose outputs several tests draw."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax


def synthetic(
    seed: int, rows: int, stages: int, classes: int = 3
) -> tuple[list[np.ndarray], np.ndarray]:
    """Probabilities per stage, and labels; stages of growing accuracy find the same rows hard."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    difficulty = random.normal(size=rows)
    probabilities = []
    for k in range(stages):
        logits = random.normal(size=(rows, classes))
        logits[np.arange(rows), labels] += 1 + k - difficulty
        probabilities.append(softmax(logits, axis=1))
    return probabilities, labels
