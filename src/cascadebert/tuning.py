"""Tuning: run every stage on held-out rows, choose thresholds, and build the next state whole."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.calibration import Calibration
from cascadebert.deferral.certificates.fixed_sequence import refuse_too_few
from cascadebert.deferral.confidence import DEFAULT_SCORE, SCORE_NAMES, confidence_score
from cascadebert.deferral.fit_calibration import fit_calibration, refuse_unknown
from cascadebert.deferral.search.arguments import (
    checked_seed,
    checked_targets,
    refuse_confidence,
    refuse_unfit,
)
from cascadebert.deferral.search.choose import choose_thresholds
from cascadebert.deferral.targets import MaxSecondsPerRow, Target
from cascadebert.errors import CascadeWarning, InputError
from cascadebert.inference.state import Progress, State
from cascadebert.machine import machine_name
from cascadebert.rows.rows import Rows, as_rows
from cascadebert.stages.costs import COSTS, StageRun, measured_on, refuse_unknown_cost, row_costs
from cascadebert.stages.speed import measure_speed

# From here to the caller of Cascade.tune.
_CALLER = 4


def tune(
    state: State,
    rows: Any,
    target: Target | Sequence[Target],
    confidence: float | None = 0.95,
    *,
    seed: int = 0,
    cost: str = COSTS[0],
    score: str = DEFAULT_SCORE,
    calibration: str | None = None,
    progress: Progress | None = None,
) -> State:
    """The state under the thresholds that serve a target best; see ``Cascade.tune``."""
    targets = checked_targets(target)
    _refuse_unknown(state, targets, cost, score)
    refuse_confidence(confidence)
    seed = checked_seed(seed)
    if calibration is not None:
        refuse_unknown(calibration)
        if confidence is not None:
            raise InputError(
                f"calibration {calibration!r} and confidence {confidence} cannot use the same "
                "rows: rows that shaped a stage cannot certify it; calibrate with "
                "confidence=None, then tune on other rows"
            )
    needs_labels = calibration not in (None, "none") or any(t.needs_labels for t in targets)
    held_out = as_rows(rows, with_labels=needs_labels)
    if not len(held_out):
        raise InputError("there are no rows to tune on; give hundreds of held-out ones")
    _refuse_training_rows(state, held_out, certifying=confidence is not None)
    together = np.array(held_out.group_ids())
    if confidence is not None:
        refuse_too_few(together)
    truth = state.label_ids(held_out) if needs_labels else None
    if calibration is not None:
        state = state.with_calibrations([None] * len(state.stages))
    runs = [stage.run_all(held_out, progress=progress) for stage in state.stages]
    if truth is not None:
        _warn_if_worse_than_chance(state, runs, truth)
    logits: list[NDArray[np.floating[Any]]] = [run.logits for run in runs]
    if calibration is not None and truth is not None:
        fitted = [fit_calibration(calibration, values, truth) for values in logits]
        state = state.with_calibrations(fitted)
        logits = [_calibrated(*pair) for pair in zip(logits, fitted, strict=True)]
    costs = row_costs(runs, cost, modelled=True)
    machine = _machine_of(runs) if cost == "seconds" else None
    policy = choose_thresholds(
        logits,
        truth,
        costs,
        targets,
        confidence,
        seed,
        groups=None if held_out.group is None else together,
        duplicates=together,
        score=score,
        logits=True,
        names=state.labels,
    )
    _warn_of_unranked(state, policy.certificate.unranked_stages, score)
    state = state.with_own_stages([stage.with_runtime() for stage in state.stages])
    record = dataclasses.replace(
        state.record, score=score, score_parameters=policy.score.parameters
    ).with_routing(policy.routing)
    certificate = dataclasses.replace(
        policy.certificate,
        cost_unit=cost,
        paired=held_out.pairs is not None,
        rows_fingerprint=held_out.texts_fingerprint(),
        versions=state.versions,
    )
    record = dataclasses.replace(
        record,
        cost={"kind": cost, "per_row": costs.mean(axis=0).tolist(), "machine": machine},
        certificate=certificate,
        data_fingerprint=held_out.fingerprint(),
    )
    certificate = dataclasses.replace(certificate, artefact_fingerprint=record.fingerprint())
    return State(
        dataclasses.replace(record, certificate=certificate),
        state.stages,
        dataclasses.replace(policy, certificate=certificate),
    )


def with_speeds(state: State, rows: Any, progress: Progress | None = None) -> State:
    """The same state, with the speed of each stage as measured on this machine.

    Raises:
        InputError: there are no rows.
    """
    checked = as_rows(rows)
    if not len(checked):
        raise InputError("there are no rows to time the stages on; give several hundred")
    stages = []
    for stage in state.stages:
        stages.append(stage.with_speed(measure_speed(stage, checked)))
        if progress:
            progress(1)
    return state.with_own_stages(stages)


def _calibrated(
    logits: NDArray[np.floating[Any]], calibration: Calibration | None
) -> NDArray[np.floating[Any]]:
    return logits if calibration is None else calibration(logits)


def _refuse_unknown(state: State, targets: Sequence[Target], cost: str, score: str) -> None:
    refuse_unknown_cost(cost)
    if score not in SCORE_NAMES:
        confidence_score(score)
    refuse_unfit(targets, len(state.stages), state.labels)
    for target in targets:
        if isinstance(target, MaxSecondsPerRow) and cost != "seconds":
            raise InputError(
                f"{target}, with {cost} as the cost: leave the cost at seconds, or ask for a "
                "speed-up"
            )


def _refuse_training_rows(state: State, rows: Rows, *, certifying: bool) -> None:
    fingerprint = rows.texts_fingerprint()
    for number, stage in enumerate(state.stages, start=1):
        if stage.record.trained_on == fingerprint:
            raise InputError(
                f"stage {number} '{stage.name}' was trained on these very rows (fingerprint "
                f"{fingerprint[:12]}…), and is more confident on them than on any others; give "
                "rows that no stage has seen"
            )
        if certifying and stage.record.quantised_on == fingerprint:
            raise InputError(
                f"stage {number} '{stage.name}' was quantised on these very rows (fingerprint "
                f"{fingerprint[:12]}…): rows that shaped a stage cannot certify it; give others"
            )


def _machine_of(runs: Sequence[StageRun]) -> str:
    """The machine on which the seconds were measured."""
    here, machine = machine_name(), measured_on(runs)
    if machine not in (None, here):
        _warn(
            f"the seconds per stage were measured on another machine ({machine}) than this one "
            f"({here}); if the cascade is to run here, measure them again with "
            "'cascadebert bench --calibrate', or Cascade.measure_speed",
        )
    return machine or here


def _warn_if_worse_than_chance(
    state: State, runs: Sequence[StageRun], truth: NDArray[np.int64]
) -> None:
    chance = 1 / len(state.labels)
    noise = 3 * math.sqrt(chance * (1 - chance) / len(truth))
    for number, (stage, run) in enumerate(zip(state.stages, runs, strict=True), start=1):
        accuracy = float((run.logits.argmax(axis=1) == truth).mean())
        if accuracy < chance - noise:
            _warn(
                f"stage {number} '{stage.name}' is right on {accuracy:.1%} of the rows, less than "
                "chance: are its label names in the order of its logits?"
            )


def _warn_of_unranked(state: State, numbers: Sequence[int], score: str) -> None:
    for number in numbers:
        _warn(
            f"the {score} of stage {number} '{state.stages[number - 1].name}' does not rank its "
            "right answers above its wrong ones any better than chance; try another score, or "
            "train the stage on more rows"
        )


def _warn(message: str) -> None:
    warnings.warn(message, CascadeWarning, stacklevel=_CALLER + 1)
