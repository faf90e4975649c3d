"""State: everything that decides a cascade's answers, frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.calibration import Calibration
from cascadebert.deferral.confidence import DEFAULT_SCORE, ConfidenceScore
from cascadebert.deferral.held_out import HeldOut
from cascadebert.deferral.routing import ALWAYS_EXIT, NEVER_EXIT, Thresholds
from cascadebert.deferral.search.policy import Policy
from cascadebert.deferral.search.replay import Replay
from cascadebert.errors import InputError, LabelMismatchError
from cascadebert.machine import processor_name
from cascadebert.persistence.record import CascadeRecord
from cascadebert.rows.rows import Rows, listed
from cascadebert.runtimes import runtime_versions
from cascadebert.stages.base import Stage
from cascadebert.stages.costs import StageRun, row_costs
from cascadebert.stages.transformer import TransformerStage

Progress = Callable[[int], object]


@dataclass(frozen=True)
class State:
    """Loaded stages and what is recorded of them; an operation reads it once, at its start.

    Attributes:
        record: what ``cascade.json`` says, or will say.
        stages: the loaded stages, small to large; ``record.stages`` are theirs.
        policy: what tuning chose, with the frontier that it chose from; None otherwise.
    """

    record: CascadeRecord
    stages: tuple[Stage, ...]
    policy: Policy | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of the logits."""
        return self.record.labels

    @property
    def score(self) -> ConfidenceScore:
        """The confidence score that thresholds are compared with."""
        return self.record.confidence_score()

    @property
    def versions(self) -> dict[str, str]:
        """Versions of everything that decides the answers in this process."""
        runtimes = [s.runtime for s in self.stages if isinstance(s, TransformerStage)]
        return {**runtime_versions(runtimes), "processor": processor_name()}

    def with_routing(self, routing: Thresholds) -> State:
        """The same stages under other thresholds.

        Raises:
            InputError: the thresholds are not those of so many stages.
        """
        return State(self.record.with_routing(routing), self.stages)

    def with_own_stages(self, stages: Sequence[Stage]) -> State:
        """The same thresholds over other versions of the same stages."""
        records = tuple(stage.record for stage in stages)
        record = dataclasses.replace(self.record, stages=records)
        return dataclasses.replace(self, record=record, stages=tuple(stages))

    def with_stages(self, stages: Sequence[Stage]) -> State:
        """Other stages, without thresholds.

        Raises:
            InputError: no stages.
            LabelMismatchError: a stage gives logits in another order.
        """
        if not stages:
            raise InputError("a cascade needs at least one stage; give one")
        for stage in stages:
            if list(stage.logit_labels) != list(self.labels):
                raise LabelMismatchError(
                    f"stage '{stage.name}' gives logits for {list(stage.logit_labels)}, this "
                    f"cascade has {list(self.labels)}; take a stage of this cascade, or build one"
                )
        # What a learned score knows is of the stages before.
        untuned = dataclasses.replace(
            self.record.untuned(), score=DEFAULT_SCORE, score_parameters=None
        )
        return State(untuned, ()).with_own_stages(stages)

    def with_calibrations(self, calibrations: Sequence[Calibration | None]) -> State:
        """The same stages under other calibrations."""
        pairs = zip(self.stages, calibrations, strict=True)
        return self.with_own_stages([stage.with_calibration(own) for stage, own in pairs])

    def alone(self, number: int) -> State:
        """Stage ``number`` (from 1) answers every row, and no other stage runs.

        Raises:
            InputError: there is no stage of this number.
        """
        stages = len(self.stages)
        if not isinstance(number, int | np.integer) or not 1 <= number <= stages:
            raise InputError(f"there is no stage {number!r}; give a number from 1 to {stages}")
        exits = (NEVER_EXIT,) * (number - 1) + (ALWAYS_EXIT,) * (stages - number)
        return self.with_routing(Thresholds(exits[: stages - 1]))

    def label_ids(self, rows: Rows) -> NDArray[np.int64]:
        """Class index of each row's label, int64 of shape (rows,).

        Raises:
            InputError: a label that the cascade does not know.
        """
        ids = {label: i for i, label in enumerate(self.labels)}
        for i, label in enumerate(rows.labels or ()):
            if label not in ids:
                raise InputError(
                    f"row {i}: label {label!r} is unknown to the cascade "
                    f"({listed(self.labels)}); rename it, or map the stages' labels when building"
                )
        return np.array([ids[label] for label in rows.labels or ()], dtype=np.int64)

    def replay(self, rows: Rows, runs: Sequence[StageRun], cost: str, with_labels: bool) -> Replay:
        """Rows that every stage has answered, to try thresholds on."""
        answers = np.stack([run.logits.argmax(axis=1) for run in runs])
        held_out = HeldOut(
            answers=answers,
            truth=self.label_ids(rows) if with_labels else answers[-1],
            costs=row_costs(runs, cost),
            names=self.labels,
        )
        return Replay.of(held_out, [run.logits.astype(np.float64) for run in runs], self.score)
