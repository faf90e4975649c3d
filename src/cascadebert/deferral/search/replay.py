"""Trying thresholds on rows that every stage has answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.certificates.shift import Seen, bin_edges, count_bins
from cascadebert.deferral.confidence import ConfidenceScore, Floats, stage_scores
from cascadebert.deferral.held_out import HeldOut, Outcome
from cascadebert.deferral.routing import (
    ALWAYS_EXIT,
    NEVER_EXIT,
    Routes,
    Thresholds,
    arrivals,
    compared,
    last_ends,
    route,
)


class Knob(NamedTuple):
    """One threshold: its kind ("exits", "skips" or "abstain") and stage, from 0."""

    kind: str
    stage: int

    def set(self, thresholds: Thresholds, value: float) -> Thresholds:
        if self.kind == "abstain":
            return dataclasses.replace(thresholds, abstain=value)
        if self.kind == "skips":
            return dataclasses.replace(thresholds, skips=self._replaced(thresholds.skips, value))
        return dataclasses.replace(thresholds, exits=self._replaced(thresholds.exits, value))

    def _replaced(self, values: tuple[float, ...], value: float) -> tuple[float, ...]:
        return (*values[: self.stage], value, *values[self.stage + 1 :])


class Replay:
    """Held-out rows with every stage's scores, to try thresholds on.

    Args:
        rows: the rows.
        scores: comparable scores, shape (stages, rows).
        alone: the scores where the stage before was not run, if that makes a difference.
        score: the confidence score.
    """

    def __init__(
        self, rows: HeldOut, scores: Floats, alone: Floats | None, score: ConfidenceScore
    ) -> None:
        self.rows = rows
        self.score = score
        self._scores = scores
        self._alone = alone
        self._orders: dict[tuple[int, bool], NDArray[np.int64]] = {}

    @classmethod
    def of(cls, rows: HeldOut, logits: Sequence[Floats], score: ConfidenceScore) -> Replay:
        """Rows with the scores that their logits give.

        Args:
            rows: the rows.
            logits: one array (rows, classes) a stage.
            score: the confidence score.
        """
        alone = stage_scores(score, logits, alone=True) if score.uses_previous else None
        return cls(rows, stage_scores(score, logits), alone, score)

    def take(self, rows: NDArray[np.int64]) -> Replay:
        """The same stages on some of the rows."""
        alone = None if self._alone is None else self._alone[:, rows]
        return Replay(self.rows.take(rows), self._scores[:, rows], alone, self.score)

    def with_costs(self, costs: Floats) -> Replay:
        """The same rows at other costs, shape (rows, stages)."""
        rows = dataclasses.replace(self.rows, costs=costs)
        return Replay(rows, self._scores, self._alone, self.score)

    def scores(self, thresholds: Thresholds) -> Floats:
        """Scores under these thresholds, shape (stages, rows)."""
        if self._alone is None:
            return self._scores
        after_run = np.append(False, thresholds.runs[:-1])
        return np.where(after_run[:, None], self._scores, self._alone)

    def order(self, k: int, thresholds: Thresholds) -> NDArray[np.int64]:
        """Rows by falling score in stage ``k``."""
        after_run = self._alone is None or (k > 0 and bool(thresholds.runs[k - 1]))
        if (k, after_run) not in self._orders:
            self._orders[k, after_run] = np.argsort(-self.scores(thresholds)[k], kind="stable")
        return self._orders[k, after_run]

    def routes(self, thresholds: Thresholds, first: int = 0) -> Routes:
        """Where all rows end, from stage ``first`` on."""
        return route(self.scores(thresholds), self.rows.costs, thresholds, self.score, first)

    def outcome(self, thresholds: Thresholds) -> Outcome:
        routes = self.routes(thresholds)
        return Outcome(self.rows, routes.end, routes.cost)

    def confidence_edges(self, thresholds: Thresholds) -> tuple[tuple[float, ...], ...]:
        """Borders of bins of about as many rows each, for every stage that is run."""
        return tuple(map(bin_edges, self._shown(thresholds)))

    def seen(self, thresholds: Thresholds, edges: Sequence[Sequence[float]]) -> Seen:
        """How these rows go through the stages.

        Args:
            thresholds: the thresholds.
            edges: borders of the bins of confidence, for every stage that is run.
        """
        ends = np.bincount(self.routes(thresholds).end, minlength=self.rows.stages + 1)
        return Seen(
            ends=tuple(ends.tolist()),
            stages=tuple((np.flatnonzero(thresholds.runs) + 1).tolist()),
            edges=tuple(map(tuple, edges)),
            confidences=tuple(map(count_bins, self._shown(thresholds), edges)),
        )

    def _shown(self, thresholds: Thresholds) -> Floats:
        return self.score.shown(self.scores(thresholds)[thresholds.runs])

    def shifted(self, thresholds: Thresholds, steps: Floats) -> list[Thresholds]:
        """All thresholds that rows must be above moved together, by each step in turn.

        Steps are in the units of the score. Stages that are not run stay so.
        """
        scores = self.scores(thresholds)
        limits = compared(self.score, (*thresholds.exits, thresholds.abstain))
        # From where a threshold begins to make a difference.
        limits = np.clip(limits, scores.min(axis=1), scores.max(axis=1))
        moved = np.asarray(self.score.shown(limits + steps[:, None]))
        moved[:, :-1] = np.where(thresholds.runs[:-1], moved[:, :-1], NEVER_EXIT)
        moved[:, -1] *= thresholds.abstain > 0
        return [
            dataclasses.replace(thresholds, exits=tuple(exits), abstain=abstain)
            for *exits, abstain in moved.tolist()
        ]

    def always_exiting(self, thresholds: Thresholds) -> Thresholds:
        """Every row exits at the first stage that is run."""
        exits = np.where(thresholds.runs[:-1], ALWAYS_EXIT, NEVER_EXIT)
        return dataclasses.replace(thresholds, exits=tuple(exits.tolist()))

    def two_ways(
        self, thresholds: Thresholds, knob: Knob
    ) -> tuple[NDArray[np.int64], Routes, Routes]:
        """What a threshold decides.

        Returns:
            The rows that come to it, by falling score, int64 of shape (arrivals,); where they end
            and what they cost in all if they are above the threshold, and if they are not.
        """
        k, costs, stages = knob.stage, self.rows.costs, self.rows.stages
        scores = self.scores(thresholds)
        positions, spent = arrivals(scores, costs, thresholds, self.score, k)
        so_far = np.full(len(self.rows), np.nan)
        so_far[positions] = spent
        order = self.order(k, thresholds)
        if knob.kind == "skips":
            limit = compared(self.score, thresholds.exits)[k]
            order = order[scores[k, order] <= limit]
        order = order[~np.isnan(so_far[order])]
        here = so_far[order] + costs[order, k]
        last = last_ends(scores, thresholds, self.score)[order]
        if knob.kind == "abstain":
            return (
                order,
                Routes(np.full(len(order), stages - 1), here),
                Routes(np.full(len(order), stages), here),
            )
        to_last = Routes(last, here + costs[order, -1])
        later = self.routes(thresholds, first=k + 1)
        onward = Routes(later.end[order], here + later.cost[order])
        if knob.kind == "skips":
            return order, onward, to_last
        if k < len(thresholds.skips) and thresholds.skips[k] > 0:
            skip = scores[k, order] <= compared(self.score, thresholds.skips)[k]
            onward = Routes(
                np.where(skip, to_last.end, onward.end), np.where(skip, to_last.cost, onward.cost)
            )
        return order, Routes(np.full(len(order), k), here), onward

    def cuts(
        self, thresholds: Thresholds, knob: Knob, order: NDArray[np.int64]
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Thresholds above which 0, 1, 2, ... of the ordered rows are.

        Returns:
            The thresholds, float64 of shape (rows + 1,), and whether each really parts them.
        """
        highest = thresholds.exits[knob.stage] if knob.kind == "skips" else NEVER_EXIT
        if not len(order):
            return np.array([highest]), np.array([True])
        descending = self.scores(thresholds)[knob.stage, order]
        above, below = descending[:-1], descending[1:]
        # A score of given probabilities may be infinite: exactly 1 and 0.
        gap = np.where(np.isinf(above), 2.0, above - np.where(np.isinf(below), 0.0, below))
        between = np.asarray(self.score.shown(below + gap / 2))
        limits = self.score.compared(between)
        parts = (below <= limits) & (limits < above) & (between < NEVER_EXIT)
        values = np.concatenate([[highest], between, [0.0]])
        return values, np.concatenate([[True], parts, [True]])
