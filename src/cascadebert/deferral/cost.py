"""What a cascade costs, given what each stage costs and where rows exit."""

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


def row_costs(
    stage: ArrayLike, costs: ArrayLike, runs: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Cost of each row: the sum over the stages that it went through.

    Args:
        stage: stage at which each row exits, counted from 1, shape (rows,).
        costs: cost of one row in each stage, shape (stages,), or each row's own, shape
            (rows, stages); in any unit.
        runs: which stages are run at all, shape (stages,); by default all.

    Returns:
        float64 of shape (rows,).
    """
    exits = np.asarray(stage, dtype=np.int64)
    table = np.asarray(costs, dtype=np.float64)
    if runs is not None:
        table = np.where(np.asarray(runs), table, 0.0)
    spent = np.broadcast_to(table.cumsum(axis=-1), (len(exits), table.shape[-1]))
    result: NDArray[np.float64] = np.take_along_axis(spent, exits[:, None] - 1, axis=1)[:, 0]
    return result


def speedup(stage: ArrayLike, costs: ArrayLike, runs: ArrayLike | None = None) -> float:
    """Cost of the last stage alone over the cost of the cascade.

    With layers as costs this is the speed-up of arXiv 2012.14682: 12 / mean of {2, 14} for two
    stages of 2 and 12 layers.

    Raises:
        InputError: no rows.
    """
    spent = row_costs(stage, costs, runs)
    if not len(spent):
        raise InputError("the speed-up of no rows is not defined; give at least one row")
    table = np.asarray(costs, dtype=np.float64)
    return float(np.broadcast_to(table[..., -1], spent.shape).sum() / spent.sum())
