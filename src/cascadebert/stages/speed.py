"""How fast a stage is on this machine: seconds as a function of rows and their lengths."""

from __future__ import annotations

import itertools
import time

import numpy as np
from numpy.typing import NDArray

from cascadebert.machine import machine_name
from cascadebert.persistence.record import StageSpeed
from cascadebert.rows.rows import Rows, evenly
from cascadebert.stages.base import Stage

_MOST_ROWS = 8_192
_FIRST_ROWS = 64
_SECONDS_A_RUN = 1.0
_LENGTHS = 6
_GOOD_ENOUGH = 1.02


def measure_speed(stage: Stage, rows: Rows) -> StageSpeed:
    """Time a stage on rows: the best size of its batches, and what rows of each length take.

    Takes some seconds.

    Args:
        stage: loaded, on the runtime that will run it.
        rows: like those that it will see; several hundred with their usual lengths.
    """
    rows = _enough(stage, rows)
    budget = _best_budget(stage, rows) if stage.token_budgets else None
    lengths = stage.tokenize(rows).lengths
    order = np.argsort(lengths, kind="stable")
    groups = [group for group in np.array_split(order, _LENGTHS) if len(group)]
    parts = [rows.take(group) for group in groups]
    sums = np.stack([_powers(lengths[group]).sum(axis=0) for group in groups])
    seconds = [min(_seconds(stage, part, budget) for _ in range(2)) for part in parts]
    shape = _non_negative_fit(sums, np.array(seconds))
    # Batches of all rows together are fuller than those of the rows of one length.
    whole = min(_seconds(stage, rows, budget) for _ in range(2))
    a, b, c = shape * (whole / (_powers(lengths).sum(axis=0) @ shape))
    return StageSpeed(
        machine=machine_name(),
        runtime=stage.runtime,
        token_budget=budget,
        seconds=(float(a), float(b), float(c)),
    )


def _enough(stage: Stage, rows: Rows) -> Rows:
    """As many of the rows as take about a second, drawn evenly; again and again if they are few."""
    some = rows.take(evenly(len(rows), _FIRST_ROWS))
    _seconds(stage, some, None)
    took = _seconds(stage, some, None)
    wanted = int(np.clip(len(some) * _SECONDS_A_RUN / took, _FIRST_ROWS, _MOST_ROWS))
    return rows.take(np.resize(evenly(len(rows), wanted), wanted))


def _best_budget(stage: Stage, rows: Rows) -> int:
    best: dict[int, float] = {}
    for _ in range(3):
        for budget in stage.token_budgets:
            took = _seconds(stage, rows, budget)
            # The first time has the engine prepare for new shapes.
            best[budget] = min(best.get(budget, np.inf), took)
    enough = _GOOD_ENOUGH * min(best.values())
    return next(budget for budget in stage.token_budgets if best[budget] <= enough)


def _seconds(stage: Stage, rows: Rows, budget: int | None) -> float:
    start = time.perf_counter()
    tokens = stage.tokenize(rows)
    for _ in stage.run(tokens, budget):
        pass
    return time.perf_counter() - start


def _powers(lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.vander(lengths.astype(np.float64), 3, increasing=True)


def _non_negative_fit(
    sums: NDArray[np.float64], seconds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The three coefficients, none below 0, with the least squared relative error."""
    scaled = sums / seconds[:, None]
    best, least = np.zeros(3), np.inf
    for used in itertools.product([False, True], repeat=3):
        columns = np.flatnonzero(used)
        if not len(columns):
            continue
        found = np.linalg.lstsq(scaled[:, columns], np.ones(len(seconds)), rcond=None)[0]
        error = float(np.square(scaled[:, columns] @ found - 1).sum())
        if (found >= 0).all() and error < least:
            best, least = np.zeros(3), error
            best[columns] = found
    return best
