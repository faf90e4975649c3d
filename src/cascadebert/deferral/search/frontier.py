"""The search for the frontier of accuracy against cost, on rows that every stage has answered.

Any thresholds can be replayed exactly. Coordinate ascent on merit - price * cost, for a range of
prices, finds those on the frontier: with the other thresholds fixed, one pass over the rows sorted
by score gives the exact optimum of one threshold. With many rows the prices are scanned on a
sample. A target then picks a point of the frontier, and the same exact passes, on all rows, close
the gap to the target.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.deferral.held_out import Outcome
from cascadebert.deferral.routing import ALWAYS_EXIT, NEVER_EXIT, Routes, Thresholds
from cascadebert.deferral.search.policy import OperatingPoint
from cascadebert.deferral.search.replay import Knob, Replay
from cascadebert.deferral.targets import Target

_PRICES = np.geomspace(1e-3, 10, 13)
_RATIOS = (0.0625, 0.25, 1.0, 4.0, 16.0)
_MOST_ROUNDS = 20
_SCANNED_ROWS = 2_000
_MOST_POINTS = 150
_PAIRED_ROWS = 1_500
_MOST_STARTS = 4
# With few rows every value is tried, with many rows fewer.
_PAIR_STEPS = (64, 16)
_FEW_ROWS = 300
_SKIPPING_PAYS = 0.01
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Point:
    """Thresholds and what they give on the proposing rows.

    Attributes:
        thresholds: the thresholds.
        means: mean of each table of the search, shape (tables,); the first is the accuracy.
        cost: mean per row.
    """

    thresholds: Thresholds
    means: Floats
    cost: float


@dataclass(frozen=True)
class Choices:
    """Every value of one threshold that changes the outcome, with the others fixed.

    Attributes:
        values: of the threshold, shape (choices,).
        means: mean of each table of the search, shape (tables, choices).
        costs: mean per row, shape (choices,).
    """

    values: Floats
    means: Floats
    costs: Floats


class Search:
    """The search for thresholds that meet targets on the proposing rows.

    Args:
        replay: holds the rows.
        promised: are the targets to be promised, all at once.
        secondary: are targets that are wanted but not promised.
    """

    def __init__(
        self, replay: Replay, promised: Sequence[Target], secondary: Sequence[Target] = ()
    ) -> None:
        self.replay = replay
        self.secondary = list(secondary)
        self.targets = targets = [*promised, *secondary]
        rows = replay.rows
        tables = [rows.right[None].astype(np.float64), *(target.tables(rows) for target in targets)]
        self._tables = np.concatenate(tables)
        # Where each target's tables end; the first table is nobody's.
        self._ends = list(itertools.accumulate(len(own) for own in tables))
        stages = rows.stages
        self._knobs = [Knob("exits", k) for k in reversed(range(stages - 1))]
        if any(target.abstains for target in targets):
            self._knobs.insert(0, Knob("abstain", stages - 1))
        self.minimises_cost = not all(target.on_cost for target in targets)

    def point(self, thresholds: Thresholds) -> Point:
        """What the thresholds give."""
        return self.point_of(thresholds, self.replay.routes(thresholds))

    def point_of(self, thresholds: Thresholds, routes: Routes | Outcome) -> Point:
        """What the thresholds give, where the routes of the rows are known."""
        means = _entries(self._tables, routes.end, slice(None)).mean(axis=1)
        return Point(thresholds, means, float(routes.cost.mean()))

    @cached_property
    def reference(self) -> Point:
        """What the last stage alone gives."""
        return self.point(Thresholds.last_stage_alone(self.replay.rows.stages))

    def rank(self, means: Floats, costs: Floats) -> tuple[Floats, Floats, Floats]:
        """Sort keys of choices, best first: how far they miss the targets, then cost and accuracy.

        Args:
            means: holds the mean of each table, shape (tables, choices).
            costs: holds the mean cost per row, shape (choices,).
        """
        missed = np.zeros(len(costs))
        for target, own in zip(self.targets, itertools.pairwise(self._ends), strict=True):
            risk = target.risk(means[slice(*own)], costs, self.replay.rows)
            missed = np.maximum(missed, np.where(risk > _ROUNDING, risk, 0.0))
        keys = (costs, -means[0]) if self.minimises_cost else (-means[0], costs)
        return missed, *keys

    def misses(self, point: Point) -> bool:
        """Whether a point misses a target on these rows."""
        return self.rank_of(point)[0] > 0

    def coverage_of_last_stage(self) -> float:
        """The largest coverage at which the last stage alone meets the targets."""
        knob = Knob("abstain", self.replay.rows.stages - 1)
        choices = self.sweep(self.reference.thresholds, knob, self._tables)
        met = self.rank(choices.means, choices.costs)[0] == 0
        answered = [
            self.replay.outcome(knob.set(self.reference.thresholds, float(value))).answered.mean()
            for value in choices.values[met][-1:]
        ]
        return float(max(answered, default=0.0))

    def shown(self, points: Sequence[Point]) -> tuple[OperatingPoint, ...]:
        """The frontier of accuracy against cost."""
        keep = _undominated(
            np.array([point.means[0] for point in points]),
            np.array([point.cost for point in points]),
        )
        return tuple(
            OperatingPoint(points[i].thresholds.exits, float(points[i].means[0]), points[i].cost)
            for i in keep
        )

    def rank_of(self, point: Point) -> tuple[float, ...]:
        """Sort key of a point, see :meth:`rank`."""
        keys = self.rank(point.means[:, None], np.array([point.cost]))
        return tuple(float(key[0]) for key in keys)

    def sweep(self, thresholds: Thresholds, knob: Knob, tables: Floats) -> Choices:
        """Try every value of one threshold.

        Args:
            thresholds: give the other thresholds.
            knob: is the threshold to vary.
            tables: are the tables to average, shape (tables, stages + 1, rows).
        """
        replay = self.replay
        if knob.kind == "exits":
            thresholds = knob.set(thresholds, 0.5)
        order, high, low = replay.two_ways(thresholds, knob)
        routes = replay.routes(thresholds)
        others = np.setdiff1d(np.arange(len(replay.rows)), order, assume_unique=True)
        low_entries = _entries(tables, low.end, order)
        means = _cumulated(
            _entries(tables, high.end, order) - low_entries,
            low_entries.sum(axis=1) + _entries(tables, routes.end[others], others).sum(axis=1),
        )
        costs = _cumulated(
            (high.cost - low.cost)[None], low.cost.sum() + routes.cost[others].sum(keepdims=True)
        )[0]
        means, costs = means / len(replay.rows), costs / len(replay.rows)
        values, parts = replay.cuts(thresholds, knob, order)
        if knob.kind == "exits":
            # Where no row exits the stage is not run, which changes the cost of every row.
            without = replay.routes(knob.set(thresholds, NEVER_EXIT))
            means[:, 0] = _entries(tables, without.end, slice(None)).mean(axis=1)
            costs[0] = without.cost.mean()
        return Choices(values[parts], means[:, parts], costs[parts])

    # The frontier

    def frontier(self) -> list[Point]:
        """Points that no other found point beats.

        Several targets on answers have no single frontier, so the points come from several weighted
        means of them.
        """
        scan = self._sample(_SCANNED_ROWS)
        found: set[Thresholds] = set()
        for weights in _mixtures(len(self._tables) - 1):
            found |= scan._scan(weights)
        return [self.point(thresholds) for thresholds in found]

    def _sample(self, most: int) -> Search:
        """The same search on a sample of at most so many rows."""
        rows = len(self.replay.rows)
        if rows <= most:
            return self
        chosen = np.sort(np.random.default_rng(0).permutation(rows)[:most])
        return Search(self.replay.take(chosen), self.targets)

    def _scan(self, weights: Floats) -> set[Thresholds]:
        """Thresholds on the frontier of a weighted mean of the tables against cost."""
        merit = self._merit(weights)
        unit = self.reference.cost
        safest = Thresholds.last_stage_alone(self.replay.rows.stages)
        cheapest = Thresholds((ALWAYS_EXIT,) * len(safest.exits))
        visited = {safest, cheapest}
        for thresholds, prices in ((safest, _PRICES), (cheapest, _PRICES[::-1])):
            for price in prices:
                thresholds = self._ascend(thresholds, merit, price / unit)
                visited.add(thresholds)
        points: list[tuple[Thresholds, Knob | None, float]] = [(t, None, 0.0) for t in visited]
        replayed = [self.replay.routes(thresholds) for thresholds in visited]
        merits = [_entries(merit, r.end, slice(None)).mean(axis=1) for r in replayed]
        costs = [np.array([r.cost.mean()]) for r in replayed]
        for thresholds in visited:
            for knob in self._knobs:
                choices = self.sweep(thresholds, knob, merit)
                keep = _undominated(choices.means[0], choices.costs)
                points.extend((thresholds, knob, float(choices.values[i])) for i in keep)
                merits.append(choices.means[0, keep])
                costs.append(choices.costs[keep])
        keep = _undominated(np.concatenate(merits), np.concatenate(costs))
        if len(keep) > _MOST_POINTS:
            keep = keep[np.unique(np.linspace(0, len(keep) - 1, _MOST_POINTS).round().astype(int))]
        chosen = [points[i] for i in keep]
        return {t if knob is None else knob.set(t, value) for t, knob, value in chosen}

    def _merit(self, weights: Floats) -> Floats:
        """The table to maximise, shape (1, stages + 1, rows)."""
        if not len(weights):
            return self._tables[:1]
        return -np.tensordot(weights, self._tables[1:], axes=1)[None]

    def _ascend(self, thresholds: Thresholds, merit: Floats, price: float) -> Thresholds:
        """Climb merit - price * cost, one threshold at a time, the last stage's first."""
        for _ in range(_MOST_ROUNDS):
            previous = thresholds
            for knob in self._knobs:
                choices = self.sweep(thresholds, knob, merit)
                best = np.argmax(choices.means[0] - price * choices.costs)
                thresholds = knob.set(thresholds, float(choices.values[best]))
            if thresholds == previous:
                break
        return thresholds

    # The best point

    def best(self, points: Sequence[Point], thorough: bool = True) -> Point:
        """The best point near those of the frontier.

        Args:
            points: are those of the frontier.
            thorough: starts from the best point for each set of stages and moves two thresholds
                at a time; otherwise the search starts from the best point and moves one.
        """
        if not thorough:
            return self._polish(min(points, key=self.rank_of), self._knobs)
        starts: dict[bytes, Point] = {}
        for point in sorted(points, key=self.rank_of):
            starts.setdefault(point.thresholds.runs.tobytes(), point)
        first = list(starts.values())[:_MOST_STARTS]
        sample = self._sample(_PAIRED_ROWS)
        near = [sample._polish(point, sample._knobs, pairs=True) for point in first]
        return min(
            (self._polish(point, self._knobs) for point in [first[0], *near]), key=self.rank_of
        )

    def with_skips(self, best: Point) -> Point:
        """The best point with skip thresholds, if they save enough."""
        stages = range(len(best.thresholds.skips))
        skips = [Knob("skips", k) for k in stages if best.thresholds.exits[k] < NEVER_EXIT]
        other = self._polish(best, [*skips, *self._knobs])
        # The objective is the cost or the accuracy, whichever the targets do not limit.
        missed, objective, *_ = self.rank_of(other)
        before = self.rank_of(best)[1]
        pays = objective < before - _SKIPPING_PAYS * abs(before)
        return other if missed == 0 and pays else best

    def _polish(self, best: Point, knobs: Sequence[Knob], pairs: bool = False) -> Point:
        """Move one threshold at a time, or also two, until the rank stops improving."""
        best = self.point(best.thresholds)
        improved = True
        while improved:
            improved = False
            for start, knob in self._moves(best.thresholds, knobs, pairs):
                choices = self.sweep(start, knob, self._tables)
                first = np.lexsort(self.rank(choices.means, choices.costs)[::-1])[0]
                candidate = self.point(knob.set(start, float(choices.values[first])))
                if self.rank_of(candidate) < self.rank_of(best):
                    best, improved = candidate, True
                    break
        return best

    def _moves(
        self, thresholds: Thresholds, knobs: Sequence[Knob], pairs: bool
    ) -> Iterator[tuple[Thresholds, Knob]]:
        """Thresholds to start from, and the threshold to sweep."""
        for knob in knobs:
            yield thresholds, knob
        for first, second in itertools.permutations(knobs, 2) if pairs else ():
            values = self.sweep(thresholds, first, self._tables).values
            most = _PAIR_STEPS[len(self.replay.rows) > _FEW_ROWS]
            steps = np.linspace(0, len(values) - 1, min(len(values), most))
            for value in values[steps.round().astype(int)]:
                yield first.set(thresholds, float(value)), second


def _mixtures(tables: int) -> Iterator[Floats]:
    """Weights of the tables for the scans, in ratios from 1/16 to 16."""
    if tables < 2:
        yield np.ones(tables)
        return
    for ratios in itertools.product(_RATIOS, repeat=min(tables, 3) - 1):
        weights = np.ones(tables)
        weights[1 : len(ratios) + 1] = ratios
        yield weights


def _entries(tables: Floats, ends: NDArray[np.int64], rows: NDArray[np.int64] | slice) -> Floats:
    """Entries for rows by where they end, shape (tables, rows)."""
    positions = np.arange(tables.shape[2])[rows]
    result: Floats = tables[:, ends, positions]
    return result


def _cumulated(gains: Floats, start: Floats) -> Floats:
    """Start, start + gain, ... along the last axis, shape (tables, choices)."""
    sums = np.zeros((len(gains), gains.shape[1] + 1))
    np.cumsum(gains, axis=1, out=sums[:, 1:])
    result: Floats = sums + np.asarray(start)[:, None]
    return result


def _undominated(merits: Floats, costs: Floats) -> NDArray[np.int64]:
    """Positions of the points that no other beats, by rising cost."""
    order = np.lexsort((-merits, costs))
    best_so_far = np.maximum.accumulate(merits[order])
    return order[np.diff(best_so_far, prepend=-np.inf) > 0]
