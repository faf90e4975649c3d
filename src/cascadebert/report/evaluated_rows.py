"""Labelled rows, every stage's answers to them, and the cascade's figures on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascadebert.cascade import Cascade
from cascadebert.deferral.confidence import Floats, softmax
from cascadebert.deferral.held_out import HeldOut, Outcome
from cascadebert.deferral.routing import Thresholds
from cascadebert.deferral.search.replay import Replay
from cascadebert.evaluation.evaluate import Quality, quality
from cascadebert.rows.rows import Rows, as_rows
from cascadebert.stages.costs import StageRun, row_costs

SECONDS, FLOPS = "seconds", "flops"


@dataclass(frozen=True)
class StageFigures(Quality):
    """One stage alone on all rows.

    Attributes:
        name: name of the stage.
        answered: share of the rows that the cascade answers with it.
        threshold: confidence above which rows exit, or get an answer from the last stage; None
            where the stage is not run.
        skip: confidence up to which rows go straight to the last stage.
        cost: mean cost per row, as a share of the last stage's.
    """

    name: str
    answered: float
    threshold: float | None
    skip: float
    cost: float


@dataclass(frozen=True)
class Figures:
    """The cascade on all rows; the reference is its last stage alone.

    Attributes:
        rows: number of rows.
        accuracy, reference_accuracy: share of right answers; a row without an answer is wrong.
        drop_error: standard error of the accuracy drop.
        agreement: share of rows with the reference's answer.
        abstained: share of rows without an answer.
        error_when_answering: share of wrong answers among the answered rows; None where there are
            none.
        speedup_seconds: speed-up by the seconds that each stage took in this run, shared among the
            rows by their operations.
        speedup_flops: speed-up by counted operations.
    """

    rows: int
    accuracy: float
    reference_accuracy: float
    drop_error: float
    agreement: float
    abstained: float
    error_when_answering: float | None
    speedup_seconds: float
    speedup_flops: float

    @property
    def drop(self) -> float:
        return self.reference_accuracy - self.accuracy


@dataclass(frozen=True)
class EvaluatedRows:
    """Labelled rows with every stage's answers and the thresholds.

    Attributes:
        rows: the labelled rows.
        runs: each stage's run on all rows.
        stages: names of the stages.
        labels: labels of the cascade.
        truth: class index of each row's label, int64 of shape (rows,).
        routing: the thresholds; the last stage alone where the cascade has none.
        tuned: whether the cascade has thresholds.
        replays: the rows with their costs, by kind of cost.
        unit: the kind of cost in the pictures: the certificate's, else seconds.
        length_unit: unit of the last stage's lengths.
    """

    rows: Rows
    runs: tuple[StageRun, ...]
    stages: tuple[str, ...]
    labels: tuple[str, ...]
    truth: NDArray[np.int64]
    routing: Thresholds
    tuned: bool
    replays: Mapping[str, Replay]
    unit: str
    length_unit: str

    @classmethod
    def of(
        cls, cascade: Cascade, rows: Any, progress: Callable[[int], object] | None = None
    ) -> EvaluatedRows:
        """Run every stage once on every row.

        Args:
            cascade: may be tuned or not.
            rows: have labels.
            progress: is called with the number of rows after each batch; each row counts once per
                stage.

        Raises:
            InputError: the rows are unusable, or have a label that the cascade does not know.
        """
        checked = as_rows(rows, with_labels=True)
        truth = cascade.label_ids(checked)
        runs = cascade.run_stages(checked, progress=progress)
        certificate = cascade.certificate
        unit = (certificate and certificate.cost_unit) or SECONDS
        replay = cascade.replay(checked, runs, cost=unit)
        replays = {unit: replay}
        for kind in {SECONDS, FLOPS} - {unit}:
            replays[kind] = replay.with_costs(row_costs(runs, kind))
        return cls(
            rows=checked,
            runs=tuple(runs),
            stages=tuple(stage.name for stage in cascade.stages),
            labels=cascade.labels,
            truth=truth,
            routing=cascade.routing or Thresholds.last_stage_alone(len(cascade.stages)),
            tuned=cascade.routing is not None,
            replays=replays,
            unit=unit,
            length_unit=cascade.stages[-1].record.length_unit,
        )

    def __len__(self) -> int:
        return len(self.truth)

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """Number of each row's group, shape (rows,)."""
        return np.array(self.rows.group_ids())

    @property
    def replay(self) -> Replay:
        """The rows with their costs in the unit of the pictures."""
        return self.replays[self.unit]

    @property
    def held_out(self) -> HeldOut:
        return self.replay.rows

    @property
    def answers(self) -> NDArray[np.int64]:
        """Class index, int64 of shape (stages, rows)."""
        return self.held_out.answers

    @property
    def right(self) -> NDArray[np.bool_]:
        """Bool of shape (stages, rows)."""
        result: NDArray[np.bool_] = self.held_out.right[:-1]
        return result

    @cached_property
    def outcome(self) -> Outcome:
        return self.replay.outcome(self.routing)

    @cached_property
    def scores(self) -> Floats:
        """Comparable confidence scores, float64 of shape (stages, rows)."""
        return self.replay.scores(self.routing)

    @cached_property
    def confidence(self) -> Floats:
        """The scores on the scale from 0 to 1, float64 of shape (stages, rows)."""
        return self.replay.score.shown(self.scores)

    @cached_property
    def probabilities(self) -> Floats:
        """Probabilities from each stage, float64 of shape (stages, rows, classes)."""
        return np.stack([softmax(run.logits) for run in self.runs])

    @cached_property
    def qualities(self) -> list[Quality]:
        """The quality of each stage alone."""
        stages = zip(self.probabilities, self.scores, strict=True)
        return [quality(probabilities, self.truth, scores) for probabilities, scores in stages]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of each row in the last stage, int64 of shape (rows,)."""
        return self.runs[-1].lengths

    @property
    def first_stage(self) -> int:
        """Index of the first stage that is run."""
        return int(self.routing.runs.argmax())

    @property
    def reference_cost(self) -> float:
        return float(self.held_out.costs[:, -1].mean())

    @property
    def cost_shares(self) -> Floats:
        """Mean cost per row in each stage, as a share of the last stage's; shape (stages,)."""
        shares: Floats = self.held_out.costs.mean(axis=0) / self.reference_cost
        return shares

    def figures(self) -> Figures:
        """The cascade against its last stage alone."""
        outcome, count = self.outcome, len(self)
        right, reference = outcome.right, outcome.reference_right
        answered = outcome.answered
        apart = reference.astype(np.float64) - right
        wrong = float((~right[answered]).mean()) if answered.any() else None
        return Figures(
            rows=count,
            accuracy=float(right.mean()),
            reference_accuracy=float(reference.mean()),
            drop_error=float(apart.std()) / math.sqrt(count),
            agreement=float(outcome.of(self.held_out.agrees).mean()),
            abstained=float((~answered).mean()),
            error_when_answering=wrong,
            speedup_seconds=self._speedup(SECONDS),
            speedup_flops=self._speedup(FLOPS),
        )

    def _speedup(self, kind: str) -> float:
        return 1 / cost_share(self.replays[kind].outcome(self.routing))

    def stage_figures(self) -> list[StageFigures]:
        """Each stage on all rows."""
        count = len(self.stages)
        shares = np.bincount(self.outcome.end, minlength=count + 1) / len(self)
        found = []
        for k, (limit, skip) in enumerate(self.routing.by_stage):
            found.append(
                StageFigures(
                    **vars(self.qualities[k]),
                    name=self.stages[k],
                    answered=float(shares[k]),
                    threshold=limit if self.routing.runs[k] else None,
                    skip=skip,
                    cost=float(self.cost_shares[k]),
                )
            )
        return found


def cost_share(outcome: Outcome) -> float:
    """The cost of all rows as a share of the last stage's: the inverse of the speed-up."""
    return float(outcome.cost.sum() / outcome.rows.costs[:, -1].sum())
