"""What tuning gives: thresholds with their certificate, ready to be applied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.certificates.certificate import Certificate, Promise
from cascadebert.deferral.certificates.shift import Seen
from cascadebert.deferral.confidence import ConfidenceScore, Floats
from cascadebert.deferral.held_out import HeldOut, Outcome
from cascadebert.deferral.ranking import ranking_p_value
from cascadebert.deferral.routing import Thresholds
from cascadebert.deferral.search.arguments import checked_costs, checked_logits
from cascadebert.deferral.search.replay import Replay
from cascadebert.deferral.targets import Target
from cascadebert.errors import InputError

_RANKING_LEVEL = 0.05


@dataclass(frozen=True)
class OperatingPoint:
    """One choice of thresholds and what it gave on the rows that it was tried on.

    ``accuracy`` is the share of right answers; where no target needs labels, of answers that are
    the last stage's. ``cost`` is the mean of a row, in the unit of the costs.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    cost: float


@dataclass(frozen=True)
class Policy:
    """Thresholds, with what is promised of them.

    Attributes:
        routing: the thresholds, all of them.
        score: the confidence score.
        targets: what was asked for.
        certificate: the promise, or that there is none, and the figures.
        frontier: the operating points that no other beats, by rising cost, on the rows that
            propose.
    """

    routing: Thresholds
    score: ConfidenceScore
    targets: tuple[Target, ...]
    certificate: Certificate
    frontier: tuple[OperatingPoint, ...]

    @property
    def thresholds(self) -> tuple[float, ...]:
        """One a stage but the last, on the scale of the score (0 to 1): a row exits where its
        confidence is above it. At 1 and more the stage is not run.
        """
        return self.routing.exits

    @property
    def rows(self) -> int:
        """How many rows the figures are of."""
        return self.certificate.rows_certifying or self.certificate.rows_proposing

    def summary(self) -> dict[str, Any]:
        """Plain values, as ``tune --json`` writes them."""
        certificate = self.certificate
        return {
            "targets": [{"kind": type(t).__name__, **vars(t)} for t in self.targets],
            "thresholds": self.thresholds,
            "skip_thresholds": self.routing.skips,
            "abstain_threshold": self.routing.abstain,
            "score": self.score.name,
            "cost": certificate.cost_unit,
            "rows": self.rows,
            "accuracy": certificate.accuracy,
            "reference_accuracy": certificate.reference_accuracy,
            "accuracy_drop": certificate.accuracy_drop,
            "speedup": certificate.speedup,
            "exit_fractions": certificate.exit_fractions,
            "abstained": certificate.abstained,
            "certificate": asdict(certificate),
        }

    def apply(
        self, probabilities: Sequence[ArrayLike], *, logits: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Route rows through stages that have all been run.

        Args:
            probabilities: one array (rows, classes) a stage.
            logits: whether these are logits instead.

        Returns:
            Class index of each row, -1 where it gets no answer; and the stage that it ends at,
            counted from 1; both int64 of shape (rows,).
        """
        stages = len(self.thresholds) + 1
        replay = self._replay(probabilities, np.ones(stages), logits)
        end = replay.routes(self.routing).end
        without = np.full((1, len(end)), -1)
        ways = np.vstack([replay.rows.answers, without])
        return np.take_along_axis(ways, end[None], axis=0)[0], np.minimum(end + 1, stages)

    def costs(
        self, probabilities: Sequence[ArrayLike], costs: ArrayLike, *, logits: bool = False
    ) -> Floats:
        """What each row costs on its way.

        Args:
            probabilities: one array (rows, classes) a stage.
            costs: of one row in each stage, shape (stages,), or of each row, (rows, stages).
            logits: whether the arrays are logits instead.

        Returns:
            float64 of shape (rows,).
        """
        return self._replay(probabilities, costs, logits).routes(self.routing).cost

    def _replay(self, probabilities: Sequence[ArrayLike], costs: ArrayLike, logits: bool) -> Replay:
        stages = checked_logits(probabilities, logits)
        if len(stages) != len(self.thresholds) + 1:
            raise InputError(
                f"{len(stages)} arrays for a policy of {len(self.thresholds) + 1} stages; "
                "give one array a stage"
            )
        answers = np.stack([values.argmax(axis=1) for values in stages])
        table = checked_costs(costs, answers.shape[1], len(stages))
        return Replay.of(HeldOut(answers, answers[-1], table, ()), stages, self.score)


def make_policy(
    replay: Replay,
    thresholds: Thresholds,
    targets: tuple[Target, ...],
    frontier: tuple[OperatingPoint, ...],
    seen: Seen,
    verdict: str,
    *,
    confidence: float | None = None,
    rows_proposing: int | None = None,
    more_rows: int | None = None,
    grouped: bool = False,
) -> Policy:
    """The chosen thresholds with their certificate.

    Args:
        replay: the rows that the figures are of.
        thresholds: the chosen ones.
        targets: what was asked for.
        frontier: operating points on the rows that proposed.
        seen: how rows went through the stages.
        verdict: see :class:`~cascadebert.Certificate`.
        confidence: of the promise.
        rows_proposing: how many proposed; by default those of the figures.
        more_rows: how many would have certified more.
        grouped: whether one row of each group certifies.
    """
    outcome = replay.outcome(thresholds)
    tested = confidence is not None
    values = p_values(replay, thresholds, targets) if tested else [None] * len(targets)
    stages, count = replay.rows.stages, len(replay.rows)
    ends = np.bincount(outcome.end, minlength=stages + 1) / count
    certificate = Certificate(
        verdict=verdict,
        confidence=confidence,
        promises=tuple(
            _promise(target, outcome, p_value)
            for target, p_value in zip(targets, values, strict=True)
        ),
        rows_proposing=count if rows_proposing is None else rows_proposing,
        rows_certifying=count if tested else 0,
        more_rows=more_rows,
        score=replay.score.name,
        thresholds=thresholds.exits,
        skip_thresholds=thresholds.skips,
        abstain_threshold=thresholds.abstain,
        accuracy=float(outcome.right.mean()),
        reference_accuracy=float(outcome.reference_right.mean()),
        cost=float(outcome.cost.mean()),
        reference_cost=float(replay.rows.costs[:, -1].mean()),
        exit_fractions=tuple(ends[:-1].tolist()),
        abstained=float(ends[-1]),
        grouped=grouped,
        unranked_stages=_unranked(replay, thresholds),
        seen=seen,
    )
    return Policy(thresholds, replay.score, targets, certificate, frontier)


def observed(target: Target, outcome: Outcome) -> float | None:
    """What a target is about, as seen in these rows; None where no row tells."""
    value = target.observed(outcome)
    return None if math.isnan(value) else value


def _promise(target: Target, outcome: Outcome, p_value: float | None) -> Promise:
    label = getattr(target, "label", None)
    return Promise(
        target=type(target).__name__,
        value=target.value,
        label=None if label is None else str(label),
        words=str(target),
        observed=observed(target, outcome),
        p_value=p_value,
    )


def p_values(replay: Replay, thresholds: Thresholds, targets: Sequence[Target]) -> list[float]:
    """Of each target, for the null hypothesis that its promise does not hold."""
    outcome = replay.outcome(thresholds)
    reference = thresholds == Thresholds.last_stage_alone(replay.rows.stages)
    # The last stage alone loses nothing against itself, whatever the rows.
    return [
        0.0 if target.reference_keeps_it and reference else target.p_value(outcome)
        for target in targets
    ]


def _unranked(replay: Replay, thresholds: Thresholds) -> tuple[int, ...]:
    """Numbers of the stages whose score does not rank right answers above wrong ones."""
    scores = replay.scores(thresholds)
    chances = [
        ranking_p_value(scores[k], replay.rows.right[k]) for k in range(replay.rows.stages - 1)
    ]
    return tuple(k for k, chance in enumerate(chances, start=1) if chance > _RANKING_LEVEL)
