"""The route of a row through the stages, given its confidence in each and the thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.confidence import ConfidenceScore, Floats
from cascadebert.deferral.plain import plain_number
from cascadebert.errors import InputError

ALWAYS_EXIT = 0.0
NEVER_EXIT = 1.0
"""At this exit threshold or above no row exits, so the stage is not run."""
EXIT, STAY, SKIP, ABSTAIN = range(4)
"""What follows a stage: its answer, the next stage, the last stage, or no answer."""


@dataclass(frozen=True)
class Thresholds:
    """Confidences above which rows exit, are deferred, or get an answer; all on the shown scale.

    Attributes:
        exits: one per stage except the last. A row exits where its confidence is above it. At 1
            and above the stage is not run; at 0 every row exits.
        skips: one per stage except the last two. A row that does not exit goes straight to the
            last stage where its confidence is not above it. At 0 no row does.
        abstain: of the last stage. A row that reaches it gets no answer where its confidence is
            not above it. At 0 every row gets one.

    Raises:
        InputError: a threshold is not a number.

    >>> Thresholds((0.9, 0.8))
    Thresholds(exits=(0.9, 0.8), skips=(0.0,), abstain=0.0)
    """

    exits: tuple[float, ...]
    skips: tuple[float, ...] = ()
    abstain: float = 0.0

    def __post_init__(self) -> None:
        values = {
            "exits": tuple(map(_plain, self.exits)),
            "skips": tuple(map(_plain, self.skips)) or (0.0,) * max(len(self.exits) - 1, 0),
            "abstain": _plain(self.abstain),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def last_stage_alone(cls, stages: int) -> Thresholds:
        """Thresholds under which the last of so many stages answers every row."""
        return cls((NEVER_EXIT,) * (stages - 1))

    @property
    def runs(self) -> NDArray[np.bool_]:
        """Which stages are run, bool of shape (stages,); the last stage always is."""
        return np.append(np.asarray(self.exits) < NEVER_EXIT, True)

    @property
    def by_stage(self) -> list[tuple[float, float]]:
        """Per stage, the threshold of an answer and the skip threshold; 0 where there is none."""
        skips = (*self.skips, 0.0, 0.0)
        return list(zip((*self.exits, self.abstain), skips, strict=False))

    @property
    def only_stage(self) -> int | None:
        """The stage, from 0, that alone answers every row; None where several stages answer."""
        first = int(self.runs.argmax())
        alone = first == len(self.exits) or self.exits[first] <= ALWAYS_EXIT
        return first if alone else None

    def decide(self, scores: Floats, stage: int, score: ConfidenceScore) -> NDArray[np.int64]:
        """What follows a stage, for each row.

        Args:
            scores: holds the comparable scores of the stage, shape (rows,).
            stage: numbers the stage, from 0.
            score: converts thresholds to comparable scores.

        Returns:
            EXIT, STAY, SKIP or ABSTAIN, int64 of shape (rows,).
        """
        if stage == len(self.exits):
            if self.abstain <= 0:
                return np.full(len(scores), EXIT)
            return np.where(scores > compared(score, [self.abstain])[0], EXIT, ABSTAIN)
        decided = np.where(scores > compared(score, [self.exits[stage]])[0], EXIT, STAY)
        if stage < len(self.skips) and self.skips[stage] > 0:
            skips = scores <= compared(score, [self.skips[stage]])[0]
            decided[skips & (decided == STAY)] = SKIP
        return decided

    def check(self, stages: int) -> None:
        """Refuse thresholds that do not fit a cascade.

        Args:
            stages: counts its stages.

        Raises:
            InputError: their number is wrong, or one is negative, infinite or NaN.
        """
        if len(self.exits) != stages - 1:
            raise InputError(
                f"{len(self.exits)} thresholds for {stages} stages; "
                f"give {stages - 1}, one per stage except the last"
            )
        if len(self.skips) != max(stages - 2, 0):
            raise InputError(
                f"{len(self.skips)} skip thresholds for {stages} stages; "
                f"give {max(stages - 2, 0)}, one per stage except the last two"
            )
        values = (*self.exits, *self.skips, self.abstain)
        if not all(0 <= value < math.inf for value in values):
            raise InputError(
                f"thresholds {values} are not all finite numbers from 0 up; change them"
            )


@dataclass(frozen=True)
class Routes:
    """Where rows end, and what they cost on the way.

    Attributes:
        end: the stage that answers, from 0, or the number of stages where none does; int64 of
            shape (rows,).
        cost: cost per row, float64 of shape (rows,).
    """

    end: NDArray[np.int64]
    cost: Floats


def route(
    scores: Floats,
    costs: Floats,
    thresholds: Thresholds,
    score: ConfidenceScore,
    first: int = 0,
) -> Routes:
    """Send rows through the stages.

    Args:
        scores: holds comparable scores, shape (stages, rows).
        costs: holds the cost of each row in each stage, shape (rows, stages).
        thresholds: decide where rows end.
        score: converts thresholds to comparable scores.
        first: is the stage, from 0, at which all rows start.

    >>> from cascadebert.deferral.confidence import confidence_score
    >>> scores, costs = np.array([[3.0, 1.0], [2.0, 2.0]]), np.array([[1.0, 10.0]] * 2)
    >>> found = route(scores, costs, Thresholds((0.9,)), confidence_score("max_probability"))
    >>> found.end.tolist(), found.cost.tolist()
    ([0, 1], [1.0, 11.0])
    """
    end, cost, _ = _advance(scores, costs, thresholds, score, first, len(scores) - 1)
    last = np.flatnonzero(end < 0)
    cost[last] += costs[last, -1]
    end[last] = last_ends(scores, thresholds, score)[last]
    return Routes(end, cost)


def arrivals(
    scores: Floats, costs: Floats, thresholds: Thresholds, score: ConfidenceScore, stage: int
) -> tuple[NDArray[np.int64], Floats]:
    """Rows that reach a stage, numbered from 0, and their cost before it.

    Returns:
        Positions, int64 of shape (arrivals,), and costs, float64 of the same shape.
    """
    end, cost, pending = _advance(scores, costs, thresholds, score, 0, stage)
    if stage == len(scores) - 1:
        pending = np.flatnonzero(end < 0)
    return pending, cost[pending]


def last_ends(scores: Floats, thresholds: Thresholds, score: ConfidenceScore) -> NDArray[np.int64]:
    """Where each row would end at the last stage, int64 of shape (rows,)."""
    last = len(scores) - 1
    return np.where(thresholds.decide(scores[-1], last, score) == EXIT, last, last + 1)


def _advance(
    scores: Floats,
    costs: Floats,
    thresholds: Thresholds,
    score: ConfidenceScore,
    first: int,
    stop: int,
) -> tuple[NDArray[np.int64], Floats, NDArray[np.int64]]:
    """Send all rows from stage ``first`` up to stage ``stop``.

    Returns:
        Where rows have ended, -1 where they have not; their cost so far; and the rows that reach
        ``stop``, without rows that skip to the last stage.
    """
    rows = scores.shape[1]
    runs = thresholds.runs
    end = np.full(rows, -1)
    cost = np.zeros(rows)
    pending = np.arange(rows)
    for k in range(first, stop):
        if not runs[k]:
            continue
        cost[pending] += costs[pending, k]
        decided = thresholds.decide(scores[k, pending], k, score)
        end[pending[decided == EXIT]] = k
        pending = pending[decided == STAY]
    return end, cost, pending


def compared(score: ConfidenceScore, thresholds: Sequence[float]) -> Floats:
    """Comparable scores of thresholds, float64 of the same shape."""
    return np.asarray(score.compared(np.asarray(thresholds, dtype=np.float64)))


def _plain(threshold: object) -> float:
    return float(plain_number(threshold, "a threshold"))


def path_costs(passed: ArrayLike, costs: ArrayLike) -> NDArray[np.float64]:
    """Cost of each row's path: the sum over the stages that it went through.

    Args:
        passed: tells whether each row went through each stage, bool of shape (rows, stages).
        costs: holds the cost per row of each stage, shape (stages,), or of each row in each stage,
            shape (rows, stages); in any unit.

    Returns:
        float64 of shape (rows,).

    >>> path_costs([[True, False], [True, True]], [2, 12]).tolist()
    [2.0, 14.0]
    """
    spent = np.where(np.asarray(passed, dtype=np.bool_), np.asarray(costs, dtype=np.float64), 0.0)
    result: NDArray[np.float64] = spent.sum(axis=1)
    return result


def speedup(passed: ArrayLike, costs: ArrayLike) -> float:
    """Cost of the last stage alone over the cost of the cascade.

    With layers as costs it is the speed-up of arXiv 2012.14682: 12 over the mean of {2, 14} for two
    stages of 2 and 12 layers.

    Args:
        passed: tells whether each row went through each stage, bool of shape (rows, stages).
        costs: holds the cost per row of each stage, shape (stages,), or of each row in each stage,
            shape (rows, stages); in any unit.

    Raises:
        InputError: there are no rows.

    >>> speedup([[True, False], [True, True]], [2, 12])
    1.5
    """
    went = np.asarray(passed, dtype=np.bool_)
    if not len(went):
        raise InputError("the speed-up of no rows is not defined; give at least one row")
    table = np.broadcast_to(np.asarray(costs, dtype=np.float64), went.shape)
    return float(table[:, -1].sum() / path_costs(went, table).sum())
