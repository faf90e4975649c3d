"""Choosing one threshold a stage, so that a target is met on held-out rows.

Every stage has run on every row, so any vector of thresholds can be replayed exactly. The
best vectors lie on the frontier of accuracy against cost. They are found by coordinate
ascent on accuracy - price * cost for a range of prices: with all other thresholds fixed, one
pass over the rows sorted by score gives the exact optimum of one threshold. The target then
picks from the frontier, and the same exact passes close the gap to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.confidence import DEFAULT_SCORE, ConfidenceScore, Floats, confidence_score
from cascadebert.deferral.cost import NEVER_EXIT, row_costs, runs_stage
from cascadebert.deferral.targets import OperatingPoint, Target
from cascadebert.errors import InputError, TargetError

ALWAYS_EXIT = 0.0
_PRICES = np.geomspace(1e-3, 10, 41)
_MOST_ROUNDS = 20
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Policy:
    """Thresholds with what they gave on the rows that they were chosen on.

    The figures are estimates on those very rows: no probability is claimed for other rows.

    Attributes:
        thresholds: one a stage but the last, on the scale of the score (0 to 1): a row exits
            where its confidence is above it. 1 and more mean that the stage is not run.
        score: name of the confidence score.
        target: what was asked for.
        rows: how many rows they were chosen on.
        accuracy, reference_accuracy: of the cascade and of the last stage alone.
        cost, reference_cost: mean of a row, in the unit of the costs.
        exit_fractions: share of the rows that exits at each stage.
        frontier: the operating points that no other beats in accuracy and cost, by cost.
    """

    thresholds: tuple[float, ...]
    score: str
    target: Target
    rows: int
    accuracy: float
    reference_accuracy: float
    cost: float
    reference_cost: float
    exit_fractions: tuple[float, ...]
    frontier: tuple[OperatingPoint, ...]

    @property
    def speedup(self) -> float:
        """Cost of the last stage alone over the cost of the cascade."""
        return self.reference_cost / self.cost

    def summary(self, cost: str) -> dict[str, Any]:
        """Plain values, as ``tune --json`` writes them; ``cost`` names the unit of the costs."""
        return {
            "target": {"kind": type(self.target).__name__, **vars(self.target)},
            "thresholds": self.thresholds,
            "score": self.score,
            "cost": cost,
            "rows": self.rows,
            "accuracy": self.accuracy,
            "reference_accuracy": self.reference_accuracy,
            "accuracy_drop": self.reference_accuracy - self.accuracy,
            "speedup": self.speedup,
            "exit_fractions": self.exit_fractions,
        }

    def apply(
        self, probabilities: Sequence[ArrayLike]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Route rows through stages that have all been run.

        Args:
            probabilities: one array (rows, classes) a stage.

        Returns:
            Class index of each row and the stage that gave it, counted from 1, both int64 of
            shape (rows,).
        """
        stages = _checked_probabilities(probabilities)
        if len(stages) != len(self.thresholds) + 1:
            raise InputError(
                f"{len(stages)} arrays for a policy of {len(self.thresholds) + 1} stages; "
                "give one array a stage"
            )
        score = confidence_score(self.score)
        stage = exit_stages(_scores(stages, score), self.thresholds, score)
        classes = np.stack([p.argmax(axis=1) for p in stages], axis=1)
        return np.take_along_axis(classes, stage[:, None] - 1, axis=1)[:, 0], stage


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


def choose_thresholds(
    probabilities: Sequence[ArrayLike],
    labels: ArrayLike,
    costs: ArrayLike,
    target: Target,
    *,
    score: str = DEFAULT_SCORE,
) -> Policy:
    """The thresholds that serve a target best on these rows.

    Bring your own stages: nothing is asked of them but their probabilities.

    Args:
        probabilities: one array (rows, classes) a stage, small to large.
        labels: class index of each row, integers of shape (rows,).
        costs: seconds (or any other cost) of one row in each stage, shape (stages,), or of
            each row in each stage, shape (rows, stages).
        target: :class:`~cascadebert.MaxDrop` or :class:`~cascadebert.Speedup`.
        score: name of the confidence score.

    Raises:
        InputError: arrays that do not fit together or are not finite.
        TargetError: no thresholds meet the target.
    """
    stages = _checked_probabilities(probabilities)
    truth = _checked_labels(labels, *stages[0].shape)
    table = _checked_costs(costs, len(truth), len(stages))
    confidence = confidence_score(score)
    correct = np.stack([p.argmax(axis=1) == truth for p in stages])
    replay = _Replay(_scores(stages, confidence), correct, table, confidence)
    reference = replay.point((NEVER_EXIT,) * (len(stages) - 1))
    frontier = _frontier(replay, reference.cost)
    best = min(frontier, key=lambda point: target.rank(point, reference))
    best = _polish(replay, best, lambda point: target.rank(point, reference))
    if target.rank(best, reference)[0]:
        cheapest = frontier[0]
        raise TargetError(
            f"{target} is out of reach on these rows: the cheapest way through the stages has a "
            f"speed-up of {reference.cost / cheapest.cost:.2f}, with accuracy "
            f"{cheapest.accuracy:.4f} against {reference.accuracy:.4f}; "
            "ask for less or add a smaller stage"
        )
    exits = exit_stages(replay.scores, best.thresholds, confidence)
    return Policy(
        thresholds=best.thresholds,
        score=score,
        target=target,
        rows=len(truth),
        accuracy=best.accuracy,
        reference_accuracy=reference.accuracy,
        cost=best.cost,
        reference_cost=reference.cost,
        exit_fractions=tuple((np.bincount(exits - 1, minlength=len(stages)) / len(truth)).tolist()),
        frontier=tuple(frontier),
    )


def _checked_probabilities(probabilities: Sequence[ArrayLike]) -> list[Floats]:
    stages = [np.asarray(p, dtype=np.float64) for p in probabilities]
    if not stages:
        raise InputError("no stages: give one array of probabilities a stage")
    for number, p in enumerate(stages, start=1):
        if p.ndim != 2 or p.shape != stages[0].shape or p.shape[1] < 2 or not len(p):
            raise InputError(
                f"stage {number}: probabilities have shape {p.shape}, stage 1 has "
                f"{stages[0].shape}; give (rows, classes) alike for every stage"
            )
        usable = (p >= 0).all(axis=1) & (np.abs(p.sum(axis=1) - 1) < _SUM_TOLERANCE)
        if not usable.all():
            bad = int(np.flatnonzero(~usable)[0])
            raise InputError(
                f"stage {number}, row {bad}: {p[bad]} are not probabilities; give softmax outputs, "
                "which are not negative and sum to 1"
            )
    return stages


def _checked_labels(labels: ArrayLike, rows: int, classes: int) -> NDArray[np.int64]:
    truth = np.asarray(labels)
    if truth.shape != (rows,) or not np.issubdtype(truth.dtype, np.integer):
        raise InputError(
            f"labels are {truth.dtype} of shape {truth.shape}; give {rows} integers, the index of "
            "each row's class"
        )
    if truth.min() < 0 or truth.max() >= classes:
        raise InputError(
            f"labels run from {truth.min()} to {truth.max()}; "
            f"give class indices, 0 to {classes - 1}"
        )
    return truth.astype(np.int64)


def _checked_costs(costs: ArrayLike, rows: int, stages: int) -> Floats:
    table = np.asarray(costs, dtype=np.float64)
    if table.shape not in ((stages,), (rows, stages)):
        raise InputError(f"costs have shape {table.shape}; give ({stages},) or ({rows}, {stages})")
    if not (np.isfinite(table).all() and (table > 0).all()):
        raise InputError("costs must be positive and finite, one a stage")
    return np.broadcast_to(table, (rows, stages))


def _scores(stages: Sequence[Floats], score: ConfidenceScore) -> Floats:
    with np.errstate(divide="ignore"):
        rows = [score.score(np.log(p)) for p in stages[:-1]]
    return np.array(rows).reshape(len(rows), len(stages[0]))


class _Replay:
    """All outcomes of all stages on the held-out rows, to try thresholds on.

    Attributes:
        scores: shape (stages - 1, rows). correct: shape (stages, rows).
        costs: shape (rows, stages).
    """

    def __init__(
        self, scores: Floats, correct: NDArray[np.bool_], costs: Floats, score: ConfidenceScore
    ) -> None:
        self.scores = scores
        self.correct = correct
        self.costs = costs
        self._score = score
        self._descending = [np.argsort(-row, kind="stable") for row in scores]

    def outcome(
        self, thresholds: Sequence[float], first: int = 0
    ) -> tuple[NDArray[np.bool_], Floats]:
        """Of each row: whether the answer is right and what it costs, from stage ``first`` on."""
        stage = exit_stages(self.scores[first:], thresholds[first:], self._score)
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
        reached = exit_stages(self.scores[:k], thresholds[:k], self._score) > k
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
        between = self._score.shown(below + gap / 2)
        compared = self._score.compared(between)
        parts = (below <= compared) & (compared < above) & (between < NEVER_EXIT)
        if not len(descending):
            return np.array([NEVER_EXIT]), np.array([True])
        limits = np.concatenate([[NEVER_EXIT], between, [ALWAYS_EXIT]])
        return limits, np.concatenate([[True], parts, [True]])


def _frontier(replay: _Replay, unit: float) -> list[OperatingPoint]:
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


def _best_nearby(replay: _Replay, thresholds: tuple[float, ...], k: int) -> list[OperatingPoint]:
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


def _ascend(replay: _Replay, thresholds: tuple[float, ...], price: float) -> tuple[float, ...]:
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


def _polish(
    replay: _Replay, best: OperatingPoint, rank: Callable[[OperatingPoint], tuple[float, ...]]
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
