"""Which way a row takes through the stages, given its confidence in each and the thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.confidence import ConfidenceScore, Floats
from cascadebert.errors import InputError

ALWAYS_EXIT = 0.0
NEVER_EXIT = 1.0
"""A stage whose threshold is this or more lets no row exit, and so is not run at all."""
EXIT, STAY, SKIP, ABSTAIN = range(4)
"""What becomes of a row after a stage: an answer, the next stage, the last stage, no answer."""


@dataclass(frozen=True)
class Thresholds:
    """Where rows exit, go straight to the last stage, or get no answer; all on the shown scale.

    Attributes:
        exits: one a stage but the last. A row exits where its confidence is above it. At 1 and
            more the stage is not run, at 0 every row exits.
        skips: one a stage but the last two. A row that does not exit goes straight to the last
            stage where its confidence is not above it. At 0 no row does.
        abstain: of the last stage. A row that reaches it gets no answer where its confidence is
            not above it. At 0 every row gets one.
    """

    exits: tuple[float, ...]
    skips: tuple[float, ...] = ()
    abstain: float = 0.0

    def __post_init__(self) -> None:
        if not self.skips:
            object.__setattr__(self, "skips", (0.0,) * max(len(self.exits) - 1, 0))

    @classmethod
    def last_stage_alone(cls, stages: int) -> Thresholds:
        return cls((NEVER_EXIT,) * (stages - 1))

    @property
    def runs(self) -> NDArray[np.bool_]:
        """Which stages are run at all, bool of shape (stages,); the last always."""
        return np.append(np.asarray(self.exits) < NEVER_EXIT, True)

    @property
    def by_stage(self) -> list[tuple[float, float]]:
        """What a row's confidence must be above to get an answer, and up to which it skips ahead,
        for every stage; 0 where there is no such threshold.
        """
        skips = (*self.skips, 0.0, 0.0)
        return list(zip((*self.exits, self.abstain), skips, strict=False))

    @property
    def only_stage(self) -> int | None:
        """The stage, from 0, that no row leaves for another; None where there are several."""
        first = int(self.runs.argmax())
        alone = first == len(self.exits) or self.exits[first] <= ALWAYS_EXIT
        return first if alone else None

    def decide(self, scores: Floats, stage: int, score: ConfidenceScore) -> NDArray[np.int64]:
        """What becomes of rows after a stage.

        Args:
            scores: comparable confidence scores, shape (rows,).
            stage: the stage that they are of, counted from 0.
            score: the confidence score.

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
        """Refuse thresholds that a cascade of so many stages cannot have.

        Raises:
            InputError: too many or too few, or not all from 0 up and finite.
        """
        if len(self.exits) != stages - 1:
            raise InputError(
                f"{len(self.exits)} thresholds for {stages} stages; "
                f"give {stages - 1}, one a stage but the last"
            )
        if len(self.skips) != max(stages - 2, 0):
            raise InputError(
                f"{len(self.skips)} skip thresholds for {stages} stages; "
                f"give {max(stages - 2, 0)}, one a stage but the last two"
            )
        values = (*self.exits, *self.skips, self.abstain)
        if not all(0 <= value < math.inf for value in values):
            raise InputError(f"thresholds {values} are not all numbers from 0 up; mend them")


@dataclass(frozen=True)
class Routes:
    """Where rows end, and what they cost on the way.

    Attributes:
        end: the stage that answers, counted from 0; the number of stages where none does; int64
            of shape (rows,).
        cost: of each row, float64 of shape (rows,).
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
        scores: comparable confidence scores, shape (stages, rows).
        costs: of each row in each stage, shape (rows, stages).
        thresholds: of all stages.
        score: the confidence score that the scores are of.
        first: stage, from 0, that all rows start at.
    """
    end, cost, _ = _advance(scores, costs, thresholds, score, first, len(scores) - 1)
    last = np.flatnonzero(end < 0)
    cost[last] += costs[last, -1]
    end[last] = last_ends(scores, thresholds, score)[last]
    return Routes(end, cost)


def arrivals(
    scores: Floats, costs: Floats, thresholds: Thresholds, score: ConfidenceScore, stage: int
) -> tuple[NDArray[np.int64], Floats]:
    """Rows that come to a stage (from 0), and what each has cost until there.

    Returns:
        Positions, int64 of shape (arrivals,), and costs, float64 of the same shape.
    """
    end, cost, pending = _advance(scores, costs, thresholds, score, 0, stage)
    if stage == len(scores) - 1:
        pending = np.flatnonzero(end < 0)
    return pending, cost[pending]


def last_ends(scores: Floats, thresholds: Thresholds, score: ConfidenceScore) -> NDArray[np.int64]:
    """Where rows end that come to the last stage, int64 of shape (rows,)."""
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
    """All rows from stage ``first`` up to stage ``stop``.

    Returns:
        Where rows have ended, -1 where they have not; what they have cost; and which rows come
        to ``stop``. Those that skip to the last stage are not among them.
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
    """Thresholds from the shown scale to the one that scores are compared on."""
    return np.asarray(score.compared(np.asarray(thresholds, dtype=np.float64)))


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
