"""The search for thresholds that no others beat, on rows that every stage has answered.

Any vector of thresholds can be replayed exactly. The best ones lie on the frontier of accuracy
against cost, and are found by coordinate ascent on accuracy - price * cost for a range of prices:
with all other thresholds fixed, one pass over the rows sorted by score gives the exact optimum of
one threshold. A target then picks from the frontier, and the same exact passes close the gap to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.confidence import ConfidenceScore, Floats
from cascadebert.deferral.cost import NEVER_EXIT, row_costs, runs_stage
from cascadebert.deferral.targets import OperatingPoint

ALWAYS_EXIT = 0.0
_PRICES = np.geomspace(1e-3, 10, 41)
_MOST_ROUNDS = 20


def exit_stages(
    scores: Floats, thresholds: Sequence[float], score: ConfidenceScore
) -> NDArray[np.int64]:
    """The first stage whose score is above its threshold, counted from 1; else the last.

    Args:
        scores: one row of scores a stage but the last, shape (stages - 1, rows).
        thresholds: one a stage but the last, on the shown scale.
        score: the confidence score that the scores are of.

    Returns:
        int64 of shape (rows,).
    """
    limits = score.compared(np.asarray(thresholds, dtype=np.float64))
    last = np.ones((1, scores.shape[1]), dtype=np.bool_)
    stage: NDArray[np.int64] = np.vstack([scores > limits[:, None], last]).argmax(axis=0) + 1
    return stage


class Replay:
    """All outcomes of all stages on the held-out rows, to try thresholds on.

    Attributes:
        scores: shape (stages - 1, rows). correct: shape (stages, rows).
        costs: shape (rows, stages). score: the confidence score.
    """

    def __init__(
        self, scores: Floats, correct: NDArray[np.bool_], costs: Floats, score: ConfidenceScore
    ) -> None:
        self.scores = scores
        self.correct = correct
        self.costs = costs
        self.score = score
        self._descending = [np.argsort(-row, kind="stable") for row in scores]

    def take(self, rows: NDArray[np.int64]) -> Replay:
        """The same stages on some of the rows."""
        return Replay(self.scores[:, rows], self.correct[:, rows], self.costs[rows], self.score)

    def part_way(self, thresholds: Sequence[float], share: float) -> tuple[float, ...]:
        """Thresholds that only this share of the rows is above that is above the given ones."""
        limits = self.score.compared(np.asarray(thresholds, dtype=np.float64))
        result = []
        for scores, order, limit in zip(self.scores, self._descending, limits, strict=True):
            wanted = round(share * int((scores > limit).sum()))
            if wanted == 0:
                result.append(NEVER_EXIT)
                continue
            last, following = scores[order[wanted - 1]], scores[order[wanted : wanted + 1]]
            below = float(following[0]) if len(following) else -np.inf
            middle = (last + below) / 2 if np.isfinite(last + below) else max(below, limit)
            result.append(float(self.score.shown(middle)))
        return tuple(result)

    def outcome(
        self, thresholds: Sequence[float], first: int = 0
    ) -> tuple[NDArray[np.bool_], Floats]:
        """Of each row: whether the answer is right and what it costs, from stage ``first`` on."""
        stage = exit_stages(self.scores[first:], thresholds[first:], self.score)
        runs = runs_stage(thresholds[first:])
        right: NDArray[np.bool_] = np.take_along_axis(
            self.correct[first:], stage[None] - 1, axis=0
        )[0]
        return right, row_costs(stage, self.costs[:, first:], runs)

    def point(self, thresholds: tuple[float, ...]) -> OperatingPoint:
        right, cost = self.outcome(thresholds)
        return OperatingPoint(thresholds, float(right.mean()), float(cost.mean()))

    def sweep(self, thresholds: tuple[float, ...], k: int) -> tuple[Floats, Floats, Floats]:
        """Every choice of threshold ``k`` (from 0) that makes a difference, all others fixed.

        Returns:
            Thresholds, accuracies and mean costs, each of shape (choices,).
        """
        reached = exit_stages(self.scores[:k], thresholds[:k], self.score) > k
        order = self._descending[k][reached[self._descending[k]]]
        right, cost = self.outcome(thresholds)
        right_later, cost_later = self.outcome(thresholds, first=k + 1)
        spent = row_costs(
            np.full(len(order), k + 1), self.costs[order, : k + 1], runs_stage(thresholds[:k])
        )
        own = self.costs[order, k]

        def totals(exiting: Floats, deferred: Floats, rest: float) -> Floats:
            """Mean over all rows, for 0, 1, 2, ... exits in the order of the scores."""
            gain: Floats = np.concatenate([[0.0], np.cumsum(exiting - deferred)])
            mean: Floats = (rest + deferred.sum() + gain) / len(reached)
            return mean

        accuracy = totals(
            self.correct[k][order].astype(np.float64),
            right_later[order].astype(np.float64),
            float(right[~reached].sum()),
        )
        mean_cost = totals(spent, spent + cost_later[order], float(cost[~reached].sum()))
        # With no exits the stage is not run at all.
        mean_cost[0] -= own.sum() / len(reached)
        limits, valid = self._cuts(self.scores[k][order])
        return limits[valid], accuracy[valid], mean_cost[valid]

    def _cuts(self, descending: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """Thresholds between neighbouring scores, and whether each really parts them."""
        above, below = descending[:-1], descending[1:]
        # A score of given probabilities may be infinite: exactly 1 and 0.
        gap = np.where(np.isinf(above), 2.0, above - np.where(np.isinf(below), 0.0, below))
        between = self.score.shown(below + gap / 2)
        compared = self.score.compared(between)
        parts = (below <= compared) & (compared < above) & (between < NEVER_EXIT)
        if not len(descending):
            return np.array([NEVER_EXIT]), np.array([True])
        limits = np.concatenate([[NEVER_EXIT], between, [ALWAYS_EXIT]])
        return limits, np.concatenate([[True], parts, [True]])


def frontier(replay: Replay, unit: float) -> list[OperatingPoint]:
    """The operating points found that no other beats, by rising cost."""
    stages = len(replay.scores)
    safest, cheapest = (NEVER_EXIT,) * stages, (ALWAYS_EXIT,) * stages
    visited = {safest, cheapest}
    for start, prices in ((safest, _PRICES), (cheapest, _PRICES[::-1])):
        thresholds = start
        for price in prices:
            thresholds = _ascend(replay, thresholds, price / unit)
            visited.add(thresholds)
    points = [replay.point(thresholds) for thresholds in visited]
    for thresholds in visited:
        for k in range(stages):
            points.extend(_best_nearby(replay, thresholds, k))
    keep = _undominated(
        np.array([point.accuracy for point in points]), np.array([point.cost for point in points])
    )
    return [points[i] for i in keep]


def _best_nearby(replay: Replay, thresholds: tuple[float, ...], k: int) -> list[OperatingPoint]:
    """The choices of threshold ``k`` that no other choice beats."""
    limits, accuracies, costs = replay.sweep(thresholds, k)
    return [
        OperatingPoint(
            (*thresholds[:k], float(limits[i]), *thresholds[k + 1 :]),
            float(accuracies[i]),
            float(costs[i]),
        )
        for i in _undominated(accuracies, costs)
    ]


def _undominated(accuracies: Floats, costs: Floats) -> NDArray[np.int64]:
    """Positions of the points that no other beats, by rising cost."""
    order = np.lexsort((-accuracies, costs))
    best_so_far = np.maximum.accumulate(accuracies[order])
    return order[np.diff(best_so_far, prepend=-np.inf) > 0]


def _ascend(replay: Replay, thresholds: tuple[float, ...], price: float) -> tuple[float, ...]:
    """Climb accuracy - price * cost, one threshold at a time, the last stage's first."""
    for _ in range(_MOST_ROUNDS):
        previous = thresholds
        for k in reversed(range(len(thresholds))):
            limits, accuracies, costs = replay.sweep(thresholds, k)
            choice = float(limits[np.argmax(accuracies - price * costs)])
            thresholds = (*thresholds[:k], choice, *thresholds[k + 1 :])
        if thresholds == previous:
            break
    return thresholds


def polish(
    replay: Replay, best: OperatingPoint, rank: Callable[[OperatingPoint], tuple[float, ...]]
) -> OperatingPoint:
    """Move one threshold at a time as long as that ranks better."""
    best = replay.point(best.thresholds)
    improved = True
    while improved:
        improved = False
        for k in range(len(best.thresholds)):
            nearby = min(_best_nearby(replay, best.thresholds, k), key=rank)
            candidate = replay.point(nearby.thresholds)
            if rank(candidate) < rank(best):
                best, improved = candidate, True
    return best
