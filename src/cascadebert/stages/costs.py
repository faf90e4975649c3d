"""One stage run on every row, and what each row costs in each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadebert.errors import InputError
from cascadebert.persistence.record import StageCost, StageSpeed

COSTS = ("seconds", "flops", "layers")


@dataclass(frozen=True)
class StageRun:
    """One stage run on every row.

    Attributes:
        logits: in the cascade's label order, float32 of shape (rows, classes).
        lengths: tokens of each row, int64 of shape (rows,).
        seconds: wall time, tokenising included.
    """

    logits: NDArray[np.float32]
    lengths: NDArray[np.int64]
    seconds: float
    cost: StageCost
    speed: StageSpeed | None = None


def row_costs(
    runs: Sequence[StageRun], kind: str, *, modelled: bool = False
) -> NDArray[np.float64]:
    """What each row costs in each stage, float64 of shape (rows, stages).

    Args:
        runs: of all stages on the same rows.
        kind: "flops" and "layers" are counted. "seconds" are the time that each stage took here,
            shared out by the operations of each row.
        modelled: takes the seconds from the measured speed of the stages, if every stage has one.
    """
    if kind == "layers":
        costs = [np.full(len(run.lengths), float(run.cost.layers)) for run in runs]
    elif kind == "seconds" and modelled and measured_on(runs) is not None:
        costs = [run.speed.row_seconds(run.lengths) for run in runs if run.speed]
    else:
        costs = [run.cost.row_flops(run.lengths) for run in runs]
        if kind == "seconds":
            costs = [
                flops * (run.seconds / flops.sum()) for run, flops in zip(runs, costs, strict=True)
            ]
    return np.stack(costs, axis=1)


def refuse_unknown_cost(kind: str) -> None:
    """Refuse a kind of cost that there is not.

    Raises:
        InputError: ``kind`` is not one of :data:`COSTS`.
    """
    if kind not in COSTS:
        raise InputError(f"unknown cost {kind!r}; give one of {', '.join(COSTS)}")


def measured_on(runs: Sequence[StageRun]) -> str | None:
    """The machine on which the speed of all stages was measured; None if it was not."""
    machines = {run.speed.machine if run.speed else None for run in runs}
    return machines.pop() if len(machines) == 1 else None
