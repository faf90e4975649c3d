"""Replaying thresholds on rows that every stage has answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.certificates.shift import RoutingSummary, bin_edges, count_bins
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
        """The thresholds with a new value for this one.

        Args:
            thresholds: give the other thresholds.
            value: is the new value.
        """
        if self.kind == "abstain":
            return dataclasses.replace(thresholds, abstain=value)
        if self.kind == "skips":
            return dataclasses.replace(thresholds, skips=self._replaced(thresholds.skips, value))
        return dataclasses.replace(thresholds, exits=self._replaced(thresholds.exits, value))

    def _replaced(self, values: tuple[float, ...], value: float) -> tuple[float, ...]:
        return (*values[: self.stage], value, *values[self.stage + 1 :])


class Replay:
    """Held-out rows with the scores of every stage, to try thresholds on.

    Args:
        rows: are the rows.
        scores: holds comparable scores, shape (stages, rows).
        alone: holds the scores where the previous stage was not run, if they differ.
        score: is the confidence score.

    >>> from cascadebert.deferral.confidence import confidence_score
    >>> answers, costs = np.array([[0, 1], [0, 0]]), np.array([[1.0, 10.0]] * 2)
    >>> rows = HeldOut(answers, np.array([0, 0]), costs, ["a", "b"])
    >>> logits = [np.array([[3.0, 0.0], [0.0, 1.0]]), np.array([[4.0, 0.0]] * 2)]
    >>> replay = Replay.of(rows, logits, confidence_score("max_probability"))
    >>> replay.outcome(Thresholds((0.9,))).cost.tolist()
    [1.0, 11.0]
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
        """Rows with the scores of their logits.

        Args:
            rows: are the rows.
            logits: holds one array (rows, classes) per stage.
            score: is the confidence score.
        """
        alone = stage_scores(score, logits, alone=True) if score.uses_previous else None
        return cls(rows, stage_scores(score, logits), alone, score)

    def take(self, rows: NDArray[np.int64]) -> Replay:
        """The rows at these positions.

        Args:
            rows: lists positions, shape (any,).
        """
        alone = None if self._alone is None else self._alone[:, rows]
        return Replay(self.rows.take(rows), self._scores[:, rows], alone, self.score)

    def with_costs(self, costs: Floats) -> Replay:
        """The same rows at other costs.

        Args:
            costs: holds the cost of each row in each stage, shape (rows, stages).
        """
        rows = dataclasses.replace(self.rows, costs=costs)
        return Replay(rows, self._scores, self._alone, self.score)

    def scores(self, thresholds: Thresholds) -> Floats:
        """Comparable scores under these thresholds, float64 of shape (stages, rows)."""
        if self._alone is None:
            return self._scores
        after_run = np.append(False, thresholds.runs[:-1])
        return np.where(after_run[:, None], self._scores, self._alone)

    def order(self, k: int, thresholds: Thresholds) -> NDArray[np.int64]:
        """Rows by falling score in stage ``k``, int64 of shape (rows,)."""
        after_run = self._alone is None or (k > 0 and bool(thresholds.runs[k - 1]))
        if (k, after_run) not in self._orders:
            self._orders[k, after_run] = np.argsort(-self.scores(thresholds)[k], kind="stable")
        return self._orders[k, after_run]

    def routes(self, thresholds: Thresholds, first: int = 0) -> Routes:
        """Where all rows end if they start at stage ``first``."""
        return route(self.scores(thresholds), self.rows.costs, thresholds, self.score, first)

    def outcome(self, thresholds: Thresholds) -> Outcome:
        """What the thresholds do to each row."""
        routes = self.routes(thresholds)
        return Outcome(self.rows, routes.end, routes.cost)

    def confidence_edges(self, thresholds: Thresholds) -> tuple[tuple[float, ...], ...]:
        """Per stage that is run, the borders of bins with about as many rows each."""
        return tuple(map(bin_edges, self._shown(thresholds)))

    def summary(self, thresholds: Thresholds, edges: Sequence[Sequence[float]]) -> RoutingSummary:
        """Counts of how these rows go through the stages.

        Args:
            thresholds: decide where rows end.
            edges: holds the borders of the bins of confidence, per stage that is run.
        """
        ends = np.bincount(self.routes(thresholds).end, minlength=self.rows.stages + 1)
        return RoutingSummary(
            ends=tuple(ends.tolist()),
            stages=tuple((np.flatnonzero(thresholds.runs) + 1).tolist()),
            edges=tuple(map(tuple, edges)),
            confidences=tuple(map(count_bins, self._shown(thresholds), edges)),
        )

    def _shown(self, thresholds: Thresholds) -> Floats:
        return self.score.shown(self.scores(thresholds)[thresholds.runs])

    def shifted(self, thresholds: Thresholds, steps: Floats) -> list[Thresholds]:
        """Exit and abstention thresholds moved together, by each step in turn.

        Args:
            thresholds: are to be moved; stages that are not run stay so.
            steps: are in the units of the score, shape (steps,).
        """
        scores = self.scores(thresholds)
        limits = compared(self.score, (*thresholds.exits, thresholds.abstain))
        # Beyond these a threshold no longer changes the outcome.
        limits = np.clip(limits, scores.min(axis=1), scores.max(axis=1))
        moved = np.asarray(self.score.shown(limits + steps[:, None]))
        moved[:, :-1] = np.where(thresholds.runs[:-1], moved[:, :-1], NEVER_EXIT)
        moved[:, -1] *= thresholds.abstain > 0
        return [
            dataclasses.replace(thresholds, exits=tuple(exits), abstain=abstain)
            for *exits, abstain in moved.tolist()
        ]

    def always_exiting(self, thresholds: Thresholds) -> Thresholds:
        """The thresholds changed so that every row exits at the first stage that is run."""
        exits = np.where(thresholds.runs[:-1], ALWAYS_EXIT, NEVER_EXIT)
        return dataclasses.replace(thresholds, exits=tuple(exits.tolist()))

    def two_ways(
        self, thresholds: Thresholds, knob: Knob
    ) -> tuple[NDArray[np.int64], Routes, Routes]:
        """Both outcomes of the rows that reach one threshold.

        Args:
            thresholds: give the other thresholds.
            knob: is the threshold.

        Returns:
            The rows that reach it, by falling score, int64 of shape (arrivals,); their routes if
            they are above it; and their routes if they are not.
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
        """Values of a threshold with 0, 1, 2, ... of the ordered rows above it.

        Args:
            thresholds: give the other thresholds.
            knob: is the threshold.
            order: lists the rows by falling score, shape (arrivals,).

        Returns:
            The values, float64 of shape (arrivals + 1,), and whether each separates its rows from
            the others, bool of the same shape; tied scores cannot be separated.
        """
        highest = thresholds.exits[knob.stage] if knob.kind == "skips" else NEVER_EXIT
        if not len(order):
            return np.array([highest]), np.array([True])
        descending = self.scores(thresholds)[knob.stage, order]
        above, below = descending[:-1], descending[1:]
        # Given probabilities of exactly 1 and 0 have an infinite score.
        gap = np.where(np.isinf(above), 2.0, above - np.where(np.isinf(below), 0.0, below))
        between = np.asarray(self.score.shown(below + gap / 2))
        limits = self.score.compared(between)
        parts = (below <= limits) & (limits < above) & (between < NEVER_EXIT)
        values = np.concatenate([[highest], between, [0.0]])
        return values, np.concatenate([[True], parts, [True]])
