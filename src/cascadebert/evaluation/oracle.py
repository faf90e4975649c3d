"""The oracle: the bound of every deferral without skips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.deferral.routing import speedup


@dataclass(frozen=True)
class Oracle:
    """Each row ends at the first stage that is right, and at the first of all where none is.

    Attributes:
        rows: number of rows that every stage was run on.
        accuracy: share of rows that some stage is right on.
        speedup: cost of the last stage alone over the cost of the stages that rows go through.
        exit_fractions: share of rows that end at each stage.
    """

    rows: int
    accuracy: float
    speedup: float
    exit_fractions: tuple[float, ...]


def oracle(right: NDArray[np.bool_], costs: Floats) -> Oracle:
    """Compute the bound that no deferral without skips can beat.

    Args:
        right: whether each stage alone is right on each row, bool of shape (stages, rows).
        costs: cost per row in each stage, shape (stages,), or of each row, shape (rows, stages).

    >>> oracle(np.array([[True, False], [True, True]]), np.array([1.0, 9.0]))
    Oracle(rows=2, accuracy=1.0, speedup=1.6363636363636365, exit_fractions=(0.5, 0.5))
    """
    stages, rows = right.shape
    end = right.argmax(axis=0)
    return Oracle(
        rows=rows,
        accuracy=float(right.any(axis=0).mean()),
        speedup=speedup(np.arange(stages) <= end[:, None], costs),
        exit_fractions=tuple((np.bincount(end, minlength=stages) / rows).tolist()),
    )
