"""The search for thresholds that no others beat, on rows that every stage has answered.

Any thresholds can be replayed exactly. The best ones lie on the frontier of answers against cost,
and are found by coordinate ascent on merit - price * cost for a range of prices: with all other
thresholds fixed, one pass over the rows sorted by score gives the exact optimum of one threshold.
With many rows the prices are scanned on a sample. A target then picks from the frontier, and the
same exact passes, on all rows, close the gap to it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.deferral.routing import ALWAYS_EXIT, NEVER_EXIT, Thresholds
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
# Every value on a few dozen rows, fewer where they lie close together.
_PAIR_STEPS = (64, 16)
_FEW_ROWS = 300
_SKIPPING_PAYS = 0.01
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Point:
    """Thresholds and what they give on the rows that they were tried on.

    Attributes:
        thresholds: the thresholds.
        means: of the search's tables, shape (tables,); the first is the share of right answers.
        cost: mean of a row.
    """

    thresholds: Thresholds
    means: Floats
    cost: float


@dataclass(frozen=True)
class Choices:
    """Every value of one threshold that makes a difference, all others fixed.

    Attributes:
        values: of the threshold, shape (choices,).
        means: of the search's tables, shape (tables, choices).
        costs: mean of a row, shape (choices,).
    """

    values: Floats
    means: Floats
    costs: Floats


class Search:
    """Thresholds for a number of targets on rows that propose.

    Args:
        replay: the rows.
        promised: what is to be promised, all together.
        sought: what is wanted beside it without a promise.
    """

    def __init__(
        self, replay: Replay, promised: Sequence[Target], sought: Sequence[Target] = ()
    ) -> None:
        self.replay = replay
        self.sought = list(sought)
        self.targets = targets = [*promised, *sought]
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
        routes = self.replay.routes(thresholds)
        means = _entries(self._tables, routes.end, slice(None)).mean(axis=1)
        return Point(thresholds, means, float(routes.cost.mean()))

    @cached_property
    def reference(self) -> Point:
        return self.point(Thresholds.last_stage_alone(self.replay.rows.stages))

    def rank(self, means: Floats, costs: Floats) -> tuple[Floats, Floats, Floats]:
        """Sort keys of choices, best first: by how much targets are missed, then by what is left.

        Args:
            means: shape (tables, choices).
            costs: shape (choices,).
        """
        missed = np.zeros(len(costs))
        for target, own in zip(self.targets, itertools.pairwise(self._ends), strict=True):
            risk = target.risk(means[slice(*own)], costs, self.replay.rows)
            missed = np.maximum(missed, np.where(risk > _ROUNDING, risk, 0.0))
        keys = (costs, -means[0]) if self.minimises_cost else (-means[0], costs)
        return missed, *keys

    def left(self, thresholds: Thresholds) -> tuple[float, float, float]:
        """What is left to the user where the promises are kept; less is better.

        By how much other wishes are missed, then the cost or what is lacking in accuracy.
        """
        outcome = self.replay.outcome(thresholds)
        missed = sum(max(float(target.losses(outcome).mean()), 0.0) for target in self.sought)
        cost, wrong = float(outcome.cost.mean()), 1 - float(outcome.right.mean())
        return (missed, cost, wrong) if self.minimises_cost else (missed, wrong, cost)

    def cost_per_answer(self, thresholds: Thresholds) -> float:
        """Cost of all rows over the number that are answered."""
        outcome = self.replay.outcome(thresholds)
        answers = int(outcome.answered.sum())
        return float(outcome.cost.sum()) / answers if answers else math.inf

    def misses(self, point: Point) -> bool:
        """Whether a point misses one of the targets on these rows."""
        return self.rank_of(point)[0] > 0

    def coverage_of_last_stage(self) -> float:
        """Share of the rows that the last stage alone can answer within the targets."""
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
            thresholds: the others are taken from here.
            knob: the one to vary.
            tables: to take the means of, shape (tables, stages + 1, rows).
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
            # Where nothing exits the stage is not run, which changes more than this threshold.
            without = replay.routes(knob.set(thresholds, NEVER_EXIT))
            means[:, 0] = _entries(tables, without.end, slice(None)).mean(axis=1)
            costs[0] = without.cost.mean()
        return Choices(values[parts], means[:, parts], costs[parts])

    # The frontier

    def frontier(self) -> list[Point]:
        """The points found that no other beats, by rising cost.

        With several targets on answers there is no one frontier; points of several mixtures of
        them are put together.
        """
        scan = self._sample(_SCANNED_ROWS)
        found: set[Thresholds] = set()
        for weights in _mixtures(len(self._tables) - 1):
            found |= scan._scan(weights)
        return [self.point(thresholds) for thresholds in found]

    def _sample(self, most: int) -> Search:
        """The same search on so many of the rows."""
        rows = len(self.replay.rows)
        if rows <= most:
            return self
        chosen = np.sort(np.random.default_rng(0).permutation(rows)[:most])
        return Search(self.replay.take(chosen), self.targets)

    def _scan(self, weights: Floats) -> set[Thresholds]:
        """Thresholds on the frontier of a weighted mean of tables against cost."""
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
        """One table to make as large as can be, shape (1, stages + 1, rows)."""
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
        """The best of what is near the points.

        Args:
            points: of the frontier.
            thorough: whether to start from the best point for each set of stages, and to move two
                thresholds at a time; else from the best of all, one at a time.
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
        """The best point with rows going straight to the last stage, if that pays."""
        stages = range(len(best.thresholds.skips))
        skips = [Knob("skips", k) for k in stages if best.thresholds.exits[k] < NEVER_EXIT]
        other = self._polish(best, [*skips, *self._knobs])
        missed, left, *_ = self.rank_of(other)
        # Of the cost, or of the accuracy, whichever the targets leave open.
        before = self.rank_of(best)[1]
        pays = left < before - _SKIPPING_PAYS * abs(before)
        return other if missed == 0 and pays else best

    def _polish(self, best: Point, knobs: Sequence[Knob], pairs: bool = False) -> Point:
        """Move one threshold at a time, or also two, as long as that ranks better."""
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
        """Thresholds to start from, and one to sweep from there."""
        for knob in knobs:
            yield thresholds, knob
        for first, second in itertools.permutations(knobs, 2) if pairs else ():
            values = self.sweep(thresholds, first, self._tables).values
            most = _PAIR_STEPS[len(self.replay.rows) > _FEW_ROWS]
            steps = np.linspace(0, len(values) - 1, min(len(values), most))
            for value in values[steps.round().astype(int)]:
                yield first.set(thresholds, float(value)), second


def _mixtures(tables: int) -> Iterator[Floats]:
    """Weights of tables for the scans: all in proportions of powers of a number."""
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
    """Start, start + gain, ... along the last axis: shape (tables, choices)."""
    sums = np.zeros((len(gains), gains.shape[1] + 1))
    np.cumsum(gains, axis=1, out=sums[:, 1:])
    result: Floats = sums + np.asarray(start)[:, None]
    return result


def _undominated(merits: Floats, costs: Floats) -> NDArray[np.int64]:
    """Positions of the points that no other beats, by rising cost."""
    order = np.lexsort((-merits, costs))
    best_so_far = np.maximum.accumulate(merits[order])
    return order[np.diff(best_so_far, prepend=-np.inf) > 0]
