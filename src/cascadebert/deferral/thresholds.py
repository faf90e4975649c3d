"""Choosing one threshold a stage, so that a target is met, and promising that it is.

Every stage has run on every held-out row, so any vector of thresholds can be replayed exactly
(:mod:`cascadebert.deferral.search`). Without a promise the vector is the one that serves the
target best on these rows. With one, some of the rows propose and the others certify
(:mod:`cascadebert.deferral.certificate`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.certificate import (
    CERTIFIED,
    DO_NOT_CASCADE,
    NOT_CERTIFIED,
    Certificate,
    rows_needed,
    split_rows,
    walk,
)
from cascadebert.deferral.confidence import DEFAULT_SCORE, ConfidenceScore, Floats, confidence_score
from cascadebert.deferral.cost import NEVER_EXIT
from cascadebert.deferral.search import Replay, exit_stages, frontier, polish
from cascadebert.deferral.targets import OperatingPoint, Outcome, Target
from cascadebert.errors import InputError, TargetError

_SUM_TOLERANCE = 1e-3
_MOST_PROPOSALS = 60
_APPROACH = 20


@dataclass(frozen=True)
class Policy:
    """Thresholds, what they gave on held-out rows, and what is promised of them.

    With a certificate the figures are of the rows that certify; without one they are of all
    rows, the very ones that the thresholds were chosen on.

    Attributes:
        thresholds: one a stage but the last, on the scale of the score (0 to 1): a row exits
            where its confidence is above it. 1 and more mean that the stage is not run.
        score: name of the confidence score.
        target: what was asked for.
        rows: how many rows the figures are of.
        accuracy, reference_accuracy: of the cascade and of the last stage alone; for a target on
            agreement, the agreement with the last stage, and 1.
        cost, reference_cost: mean of a row, in the unit of the costs.
        exit_fractions: share of the rows that exits at each stage.
        frontier: the operating points that no other beats, by cost, on the rows that propose.
        certificate: the promise; None where none was asked for.
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
    certificate: Certificate | None = None

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
            "certificate": self.certificate and asdict(self.certificate),
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


def choose_thresholds(
    probabilities: Sequence[ArrayLike],
    labels: ArrayLike | None,
    costs: ArrayLike,
    target: Target,
    confidence: float | None = 0.95,
    seed: int = 0,
    *,
    groups: ArrayLike | None = None,
    score: str = DEFAULT_SCORE,
) -> Policy:
    """The thresholds that serve a target best, and the promise that can be made of them.

    Bring your own stages: nothing is asked of them but their probabilities.

    Args:
        probabilities: one array (rows, classes) a stage, small to large.
        labels: class index of each row, integers of shape (rows,); None for a target that needs
            no labels.
        costs: seconds (or any other cost) of one row in each stage, shape (stages,), or of
            each row in each stage, shape (rows, stages).
        target: what is wanted, see :mod:`cascadebert.deferral.targets`.
        confidence: 1 minus the chance that a promise is made which does not hold for rows drawn
            as these were. None asks for no promise, and for the best thresholds on these rows.
        seed: of the draw of the rows that propose.
        groups: group of each row, shape (rows,), if some belong together; a group is not parted.
        score: name of the confidence score.

    Raises:
        InputError: arrays that do not fit together or are not finite, or too few rows.
        TargetError: no promise is asked for, and no thresholds meet the target on these rows.
    """
    if confidence is not None and not 0 < confidence < 1:
        raise InputError(f"a confidence of {confidence} is not between 0 and 1; 0.95 means 95 %")
    replay = _replay(probabilities, labels, costs, target, confidence_score(score))
    if confidence is None:
        best, points = _propose(replay, target)
        _refuse_out_of_reach(replay, best, points[0], target)
        return _policy(replay, best.thresholds, points, target, None)
    proposing, certifying = split_rows(len(replay.costs), groups, seed)
    proposals = replay.take(proposing)
    best, points = _propose(proposals, target)
    rest = replay.take(certifying)
    path = _path(proposals, best, points, target)
    passed = walk(path, lambda at: _p_value(rest, at, target), 1 - confidence)
    chosen = path[len(passed) - 1] if passed else path[0]
    verdict = _verdict(chosen, best.thresholds, bool(passed))
    outcome = _outcome(rest, chosen)
    more = None
    if verdict == NOT_CERTIFIED:
        wanted = _outcome(rest, best.thresholds)
        needed = rows_needed(target.losses(wanted), target.limit, 1 - confidence)
        if needed is not None:
            # Only a part of the rows certifies.
            whole = math.ceil(needed * len(replay.costs) / len(certifying))
            more = max(whole - len(replay.costs), 1)
    certificate = Certificate(
        target=type(target).__name__,
        value=target.value,
        promise=str(target),
        confidence=confidence,
        verdict=verdict,
        rows_proposing=len(proposing),
        rows_certifying=len(certifying),
        observed=target.observed(outcome),
        p_value=passed[-1] if passed else _p_value(rest, chosen, target),
        more_rows=more,
    )
    return _policy(rest, chosen, points, target, certificate)


def _replay(
    probabilities: Sequence[ArrayLike],
    labels: ArrayLike | None,
    costs: ArrayLike,
    target: Target,
    score: ConfidenceScore,
) -> Replay:
    stages = _checked_probabilities(probabilities)
    if target.needs_labels:
        if labels is None:
            raise InputError(f"{type(target).__name__} needs the labels of the rows; give them")
        truth = _checked_labels(labels, *stages[0].shape)
    else:
        truth = stages[-1].argmax(axis=1)
    table = _checked_costs(costs, len(truth), len(stages))
    correct = np.stack([p.argmax(axis=1) == truth for p in stages])
    return Replay(_scores(stages, score), correct, table, score)


def _propose(replay: Replay, target: Target) -> tuple[OperatingPoint, list[OperatingPoint]]:
    """The best point on these rows, and the frontier."""
    reference = replay.point(_never(replay))
    points = frontier(replay, reference.cost)
    best = min(points, key=lambda point: target.rank(point, reference))
    best = polish(replay, best, lambda point: target.rank(point, reference))
    return best, points


def _refuse_out_of_reach(
    replay: Replay, best: OperatingPoint, cheapest: OperatingPoint, target: Target
) -> None:
    reference = replay.point(_never(replay))
    if target.rank(best, reference)[0]:
        raise TargetError(
            f"{target} is out of reach on these rows: the cheapest way through the stages has a "
            f"speed-up of {reference.cost / cheapest.cost:.2f}, with accuracy "
            f"{cheapest.accuracy:.4f} against {reference.accuracy:.4f}; "
            "ask for less or add a smaller stage"
        )


def _path(
    replay: Replay, best: OperatingPoint, points: Sequence[OperatingPoint], target: Target
) -> list[tuple[float, ...]]:
    """Thresholds from those that keep the promise best to those that serve the user best.

    The frontier may begin far from the last stage alone, where the cascade is the more accurate of
    the two; a walk in such a stride would fall at its first step. So smaller ones lead there.
    """
    by_cost = sorted({*points, best}, key=lambda point: point.cost, reverse=not target.limits_cost)
    steps = np.linspace(0, len(by_cost) - 1, min(_MOST_PROPOSALS, len(by_cost)))
    kept = {by_cost[round(step)] for step in steps} | {best}
    path = [point.thresholds for point in by_cost if point in kept]
    if target.limits_cost:
        return path
    never = _never(replay)
    path = [thresholds for thresholds in path if thresholds != never]
    first = path[0] if path else never
    approach = [replay.part_way(first, step / _APPROACH) for step in range(1, _APPROACH)]
    return [never, *approach, *path]


def _outcome(replay: Replay, thresholds: tuple[float, ...]) -> Outcome:
    right, cost = replay.outcome(thresholds)
    return Outcome(
        right=right,
        reference_right=replay.correct[-1],
        cost=cost,
        reference_cost=replay.costs[:, -1],
        highest_cost=float(replay.costs.sum(axis=1).max()),
    )


def _p_value(replay: Replay, thresholds: tuple[float, ...], target: Target) -> float:
    # The last stage alone loses nothing against itself, whatever the rows.
    if target.against_reference and thresholds == _never(replay):
        return 0.0
    return target.p_value(_outcome(replay, thresholds))


def _verdict(chosen: tuple[float, ...], best: tuple[float, ...], passed: bool) -> str:
    never = all(threshold >= NEVER_EXIT for threshold in chosen)
    if not passed or (never and not _is_single(best)):
        return NOT_CERTIFIED
    return DO_NOT_CASCADE if _is_single(chosen) else CERTIFIED


def _is_single(thresholds: tuple[float, ...]) -> bool:
    """Whether one stage answers every row."""
    runs = [threshold for threshold in thresholds if threshold < NEVER_EXIT]
    return not runs or runs[0] <= 0


def _never(replay: Replay) -> tuple[float, ...]:
    return (NEVER_EXIT,) * len(replay.scores)


def _policy(
    replay: Replay,
    thresholds: tuple[float, ...],
    points: Sequence[OperatingPoint],
    target: Target,
    certificate: Certificate | None,
) -> Policy:
    point, reference = replay.point(thresholds), replay.point(_never(replay))
    exits = exit_stages(replay.scores, thresholds, replay.score)
    shares = np.bincount(exits - 1, minlength=len(replay.correct)) / len(replay.costs)
    return Policy(
        thresholds=thresholds,
        score=replay.score.name,
        target=target,
        rows=len(replay.costs),
        accuracy=point.accuracy,
        reference_accuracy=reference.accuracy,
        cost=point.cost,
        reference_cost=reference.cost,
        exit_fractions=tuple(shares.tolist()),
        frontier=tuple(points),
        certificate=certificate,
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
