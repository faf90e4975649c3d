"""What a cascade costs, given what each stage costs and which stages rows go through."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.errors import InputError

NEVER_EXIT = 1.0
"""A stage whose threshold is this or more lets no row exit, and so is not run at all."""


def runs_stage(thresholds: Sequence[float]) -> NDArray[np.bool_]:
    """Which stages are run under these thresholds, bool of shape (stages,); the last always."""
    return np.append(np.asarray(thresholds, dtype=np.float64) < NEVER_EXIT, True)


def row_costs(passed: ArrayLike, costs: ArrayLike) -> NDArray[np.float64]:
    """Cost of each row: the sum over the stages that it went through.

    Args:
        passed: whether each row went through each stage, bool of shape (rows, stages).
        costs: cost of one row in each stage, shape (stages,), or each row's own, shape
            (rows, stages); in any unit.

    Returns:
        float64 of shape (rows,).
    """
    spent = np.where(np.asarray(passed, dtype=np.bool_), np.asarray(costs, dtype=np.float64), 0.0)
    result: NDArray[np.float64] = spent.sum(axis=1)
    return result


def speedup(passed: ArrayLike, costs: ArrayLike) -> float:
    """Cost of the last stage alone over the cost of the cascade.

    With layers as costs this is the speed-up of arXiv 2012.14682: 12 / mean of {2, 14} for two
    stages of 2 and 12 layers.

    Raises:
        InputError: no rows.
    """
    went = np.asarray(passed, dtype=np.bool_)
    if not len(went):
        raise InputError("the speed-up of no rows is not defined; give at least one row")
    table = np.broadcast_to(np.asarray(costs, dtype=np.float64), went.shape)
    return float(table[:, -1].sum() / row_costs(went, table).sum())
