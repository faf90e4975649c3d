"""The result of tuning: thresholds with their certificate, ready to apply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.certificates.certificate import Certificate, Promise
from cascadebert.deferral.certificates.shift import RoutingSummary
from cascadebert.deferral.confidence import ConfidenceScore, Floats
from cascadebert.deferral.held_out import HeldOut, Outcome
from cascadebert.deferral.pvalues import ranking_p_value
from cascadebert.deferral.routing import Thresholds
from cascadebert.deferral.search.arguments import checked_costs, checked_logits
from cascadebert.deferral.search.replay import Replay
from cascadebert.deferral.targets import Target
from cascadebert.errors import InputError

_RANKING_LEVEL = 0.05


@dataclass(frozen=True)
class OperatingPoint:
    """One choice of exit thresholds and what it gives on the proposing rows.

    Attributes:
        thresholds: one per stage except the last.
        accuracy: share of right answers; where no target needs labels, the agreement with the last
            stage.
        cost: mean per row, in the unit of the costs.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    cost: float


@dataclass(frozen=True)
class Policy:
    """Thresholds with their certificate.

    Attributes:
        routing: all thresholds.
        score: the confidence score.
        targets: the targets asked for.
        certificate: the verdict and the figures.
        frontier: the operating points that no other beats on the proposing rows, by rising cost.

    >>> import cascadebert
    >>> first, last, labels = [[0.9, 0.1]] * 200, [[0.8, 0.2]] * 200, [0] * 200
    >>> target = cascadebert.MaxDrop(0.05)
    >>> policy = cascadebert.choose_thresholds([first, last], labels, [1, 10], target)
    >>> policy.thresholds
    (0.0,)
    >>> answers, stage = policy.apply([first[:1], last[:1]])
    >>> answers.tolist(), stage.tolist()
    ([0], [1])
    """

    routing: Thresholds
    score: ConfidenceScore
    targets: tuple[Target, ...]
    certificate: Certificate
    frontier: tuple[OperatingPoint, ...]

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Exit thresholds, one per stage except the last, on the score's scale from 0 to 1.

        A row exits where its confidence is above the threshold. From 1 on the stage is not run.
        """
        return self.routing.exits

    @property
    def rows(self) -> int:
        """How many rows the figures were measured on."""
        return self.certificate.rows_certifying or self.certificate.rows_proposing

    def summary(self) -> dict[str, Any]:
        """The policy as plain values, which ``tune --json`` writes."""
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
            probabilities: holds one array (rows, classes) per stage.
            logits: says that the arrays hold logits instead.

        Returns:
            The class index of each row, -1 where it gets no answer, and the stage where it ends,
            from 1; both int64 of shape (rows,).

        Raises:
            InputError: the arrays do not fit the policy, or are not probabilities.
        """
        stages = len(self.thresholds) + 1
        replay = self._replay(probabilities, np.ones(stages), logits)
        end = replay.routes(self.routing).end
        answers = np.vstack([replay.rows.answers, np.full((1, len(end)), -1)])
        return np.take_along_axis(answers, end[None], axis=0)[0], np.minimum(end + 1, stages)

    def costs(
        self, probabilities: Sequence[ArrayLike], costs: ArrayLike, *, logits: bool = False
    ) -> Floats:
        """Cost of each row, float64 of shape (rows,).

        Args:
            probabilities: holds one array (rows, classes) per stage.
            costs: holds the cost per row of each stage, shape (stages,), or of each row in each
                stage, shape (rows, stages).
            logits: says that the arrays hold logits instead.

        Raises:
            InputError: the arrays do not fit the policy, or are not probabilities.
        """
        return self._replay(probabilities, costs, logits).routes(self.routing).cost

    def _replay(self, probabilities: Sequence[ArrayLike], costs: ArrayLike, logits: bool) -> Replay:
        stages = checked_logits(probabilities, logits)
        if len(stages) != len(self.thresholds) + 1:
            raise InputError(
                f"{len(stages)} arrays for a policy of {len(self.thresholds) + 1} stages; "
                "give one array per stage"
            )
        answers = np.stack([values.argmax(axis=1) for values in stages])
        table = checked_costs(costs, answers.shape[1], len(stages))
        return Replay.of(HeldOut(answers, answers[-1], table, ()), stages, self.score)


def make_policy(
    replay: Replay,
    thresholds: Thresholds,
    targets: tuple[Target, ...],
    frontier: tuple[OperatingPoint, ...],
    summary: RoutingSummary,
    verdict: str,
    *,
    chances: Sequence[float | None] | None = None,
    confidence: float | None = None,
    rows_proposing: int | None = None,
    more_rows: int | None = None,
    grouped: bool = False,
) -> Policy:
    """The chosen thresholds with their certificate.

    Args:
        replay: holds the rows of the figures.
        thresholds: are the chosen ones.
        targets: are those asked for.
        frontier: lists operating points on the proposing rows.
        summary: counts how the certifying rows went through the stages.
        verdict: is explained at :class:`~cascadebert.Certificate`.
        chances: holds a p-value per target, or is None where nothing was tested.
        confidence: is that of the certificate.
        rows_proposing: counts the proposing rows; by default they are the rows of the figures.
        more_rows: estimates how many more rows would certify.
        grouped: says that one row per group certifies.
    """
    outcome = replay.outcome(thresholds)
    tested = chances is not None
    chances = chances or [None] * len(targets)
    stages, count = replay.rows.stages, len(replay.rows)
    ends = np.bincount(outcome.end, minlength=stages + 1) / count
    certificate = Certificate(
        verdict=verdict,
        confidence=confidence,
        promises=tuple(
            _promise(target, outcome, p_value)
            for target, p_value in zip(targets, chances, strict=True)
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
        seen=summary,
    )
    return Policy(thresholds, replay.score, targets, certificate, frontier)


def observed(target: Target, outcome: Outcome) -> float | None:
    """The quantity of a target on these rows; None where it is undefined.

    Args:
        target: has the quantity.
        outcome: is that of the rows.
    """
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


def p_values(outcome: Outcome, thresholds: Thresholds, targets: Sequence[Target]) -> list[float]:
    """p-value per target, for the null hypothesis that its promise is broken.

    Args:
        outcome: is that of the rows under the thresholds.
        thresholds: are to be tested.
        targets: are to be promised.
    """
    reference = thresholds == Thresholds.last_stage_alone(outcome.rows.stages)
    # On any rows the last stage alone loses nothing against itself.
    return [
        0.0 if target.reference_keeps_it and reference else target.p_value(outcome)
        for target in targets
    ]


def _unranked(replay: Replay, thresholds: Thresholds) -> tuple[int, ...]:
    """Numbers of the stages whose score does not significantly rank right above wrong answers."""
    scores = replay.scores(thresholds)
    chances = [
        ranking_p_value(scores[k], replay.rows.right[k]) for k in range(replay.rows.stages - 1)
    ]
    return tuple(k for k, chance in enumerate(chances, start=1) if chance > _RANKING_LEVEL)
