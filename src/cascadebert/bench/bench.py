"""A cascade against its stages alone, other engines, transformers' pipeline and any command."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import math
import platform
import statistics
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cascadebert.artifact import RECORD_FILE, read_record
from cascadebert.cascade import Cascade
from cascadebert.data import Rows, as_rows, evenly, listed
from cascadebert.errors import InputError
from cascadebert.evaluation.bench_result import (
    CASCADE,
    COMMAND,
    PIPELINE,
    STAGE,
    BenchResult,
    Measured,
    figures,
    oracle_of,
)
from cascadebert.evaluation.command import Command, try_commands
from cascadebert.evaluation.worker import Run, Worker
from cascadebert.machine import machine_name, usable_cores
from cascadebert.runtimes import RUNTIMES, runtime_versions
from cascadebert.stage import TransformerStage

DEFAULT_ROUNDS = 3
DEFAULT_SECONDS = 30.0
STEPS_BESIDE_ROUNDS = 2
"""Calls of ``progress`` for a contender beside its rounds: it is ready; single rows are done."""

_LEAST_ROWS = 32
_FIRST_ROWS, _MORE_ROWS = 8, 4
# Shares of the seconds of a round: probes last until they are as much longer than the first;
# single rows take about so much.
_PROBE, _LATENCY = 1 / 20, 1 / 3
_ENGINES = {
    "onnx": "fp32 ONNX Runtime",
    "openvino-bf16": "OpenVINO bf16",
    "torch-bf16": "torch bf16",
}
_BATCH_SIZES = (1, 32)


@dataclass(frozen=True)
class Contender:
    """What is to be timed.

    Attributes:
        name: tells it from the others; of a command the command itself.
        kind: "cascade", "stage", "pipeline" or "command".
        runtime: what runs it, if that is a runtime; of a cascade one name a stage.
        recipe: what its process loads, see :func:`cascadebert.evaluation.contender.load`.
    """

    name: str
    kind: str
    runtime: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)


class _Runner(Protocol):
    """Something that can be timed: a :class:`Worker` or a :class:`Command`."""

    startup_seconds: float | None
    peak_memory_mb: float | None

    def run(self, rows: int, predict: bool = False) -> Run: ...

    def latency(self, seconds: float) -> list[float]: ...


def reference_name(cascade: Cascade) -> str:
    """Name of the contender that ratios are against: the last stage alone."""
    return f"{_stage_names(cascade)[-1]} alone"


def contenders(
    cascade: Cascade, against: Sequence[str] = (), skip: Sequence[str] = ()
) -> list[Contender]:
    """All that :func:`bench` times, in order.

    Args:
        cascade: as it is loaded.
        against: shell commands.
        skip: leaves out contenders with one of these in their names.

    Raises:
        InputError: ``skip`` would leave out the reference, or nothing.
    """
    names = _stage_names(cascade)
    last = len(names)
    found = [_cascade(cascade), _alone(cascade, last)]
    if isinstance(cascade.stages[-1], TransformerStage):
        found += [
            _alone(cascade, last, runtime)
            for runtime in _ENGINES
            if _is_installed(runtime) and runtime != cascade.stages[-1].runtime
        ]
        if _is_installed("torch"):
            found += [_pipeline(names[-1], last, size) for size in _BATCH_SIZES]
    found += [_alone(cascade, number) for number in range(last - 1, 0, -1)]
    found += [Contender(command, COMMAND) for command in dict.fromkeys(against)]
    for text in skip:
        if text in reference_name(cascade):
            raise InputError(
                f"skipping {text!r} would leave out '{reference_name(cascade)}', which all ratios "
                "are against; name more of what you mean"
            )
        if not any(text in contender.name for contender in found):
            names = [contender.name for contender in found]
            raise InputError(f"no contender has {text!r} in its name: {listed(names, 12)}")
    return [c for c in found if not any(text in c.name for text in skip)]


def bench(
    cascade: Cascade,
    rows: Any,
    *,
    against: Sequence[str] = (),
    rounds: int = DEFAULT_ROUNDS,
    seconds: float = DEFAULT_SECONDS,
    skip: Sequence[str] = (),
    progress: Callable[[int], object] | None = None,
) -> BenchResult:
    """Time a cascade and what could be used in its place on the same rows, in turn.

    Every contender has a process of its own, and one computes at a time. Each is run on its rows
    once before any is timed. Rounds go through all of them, every other one in reverse order.

    Args:
        cascade: as it is to be used; one that is not as it was saved is written to a temporary
            folder first.
        rows: labelled rows, other than those of tuning.
        against: shell commands to be timed too, see :class:`Command`.
        rounds: how often each contender is timed.
        seconds: for a round of a contender; one that would take longer is run on as many of the
            rows as fit, at least 32.
        skip: leaves out contenders with one of these in their names.
        progress: called with 1 ``rounds + STEPS_BESIDE_ROUNDS`` times for every contender.

    Raises:
        InputError: unusable rows, labels that the cascade does not know, or a command that does
            not do what it has to.
        CascadeError: the process of a contender ended.
    """
    checked = as_rows(rows, with_labels=True)
    cascade.label_ids(checked)
    if rounds < 1 or not 0 < seconds < math.inf:
        raise InputError(
            f"{rounds} rounds of {seconds} s cannot be run; give 1 round or more, of more than 0 s"
        )
    entered = contenders(cascade, against, skip)
    advance = progress or (lambda _: None)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cascadebert-")))
        runners = list(_started(entered, cascade, checked, scratch, stack))
        records = []
        for contender, runner in zip(entered, runners, strict=True):
            count = rows_that_fit(runner.run, len(checked), seconds)
            if contender.kind != COMMAND:
                # Engines prepare for shapes that they have not seen; a command starts anew anyway.
                runner.run(count)
            records.append(_Record(contender, runner, count))
            advance(1)
        for number in range(rounds):
            for record in records[:: -1 if number % 2 else 1]:
                record.run(checked)
                advance(1)
        for record in records:
            record.row_seconds = record.runner.latency(seconds * _LATENCY)
            advance(1)
        return _result(cascade, checked, records)


def rows_that_fit(run: Callable[[int], Run], rows: int, seconds: float) -> int:
    """How many of the rows to run: all, or about as many as take so many seconds, at least 32.

    Args:
        run: runs a number of rows; what it takes for none, such as a program's start, counts.
        rows: number of all rows.
        seconds: for one run.
    """
    few = count = min(_FIRST_ROWS, rows)
    run(few)
    start = run(few).seconds
    while count < rows:
        count = min(_MORE_ROWS * count, rows)
        more = run(count).seconds - start
        if more >= seconds * _PROBE:
            more = min(more, run(count).seconds - start)
        if more >= seconds * _PROBE:
            fit = few + int((seconds - start) * (count - few) / more)
            return min(max(fit, _LEAST_ROWS), rows)
    return rows


@dataclass
class _Record:
    """What has been measured of a contender so far."""

    contender: Contender
    runner: _Runner
    count: int
    runs: list[Run] = field(default_factory=list)
    right: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    row_seconds: Sequence[float] = ()

    def run(self, rows: Rows) -> None:
        out = self.runner.run(self.count, predict=self.contender.kind == CASCADE)
        if not self.runs:
            truth = np.array(rows.labels)[evenly(len(rows), self.count)]
            self.right = np.array(out.labels) == truth
        self.runs.append(out._replace(labels=[]))

    def measured(self) -> Measured:
        compute = [run.compute_seconds for run in self.runs if run.compute_seconds is not None]
        return Measured(
            name=self.contender.name,
            kind=self.contender.kind,
            runtime=self.contender.runtime,
            seconds=[run.seconds for run in self.runs],
            right=self.right,
            compute_seconds=compute,
            row_seconds=self.row_seconds,
            startup_seconds=self.runner.startup_seconds,
            peak_memory_mb=self.runner.peak_memory_mb,
        )


def _stage_names(cascade: Cascade) -> list[str]:
    """With their numbers where two are called the same."""
    names = [stage.name for stage in cascade.stages]
    if len(set(names)) < len(names):
        return [f"{number}-{name}" for number, name in enumerate(names, start=1)]
    return names


def _cascade(cascade: Cascade) -> Contender:
    stages = cascade.stages
    return Contender(
        CASCADE,
        CASCADE,
        " ".join(stage.runtime for stage in stages),
        _recipe(range(1, len(stages) + 1), (stage.runtime for stage in stages)),
    )


def _alone(cascade: Cascade, number: int, runtime: str | None = None) -> Contender:
    name = f"{_stage_names(cascade)[number - 1]} alone"
    stage = cascade.stages[number - 1]
    return Contender(
        f"{name}, {_ENGINES[runtime]}" if runtime else name,
        STAGE,
        runtime or stage.runtime,
        _recipe([number], [runtime or stage.runtime]),
    )


def _recipe(stages: Iterable[int], runtimes: Iterable[str]) -> dict[str, Any]:
    return {"stages": list(stages), "runtimes": list(runtimes)}


def _pipeline(name: str, number: int, size: int) -> Contender:
    return Contender(
        f"{name}, transformers pipeline, batch {size}",
        PIPELINE,
        recipe={"number": number, "batch_size": size},
    )


def _is_installed(runtime: str) -> bool:
    engine, _ = RUNTIMES[runtime]
    needed = [engine.package, *(["transformers"] if engine.package == "torch" else [])]
    return all(importlib.util.find_spec(package) for package in needed)


def _started(
    entered: Collection[Contender],
    cascade: Cascade,
    rows: Rows,
    scratch: Path,
    stack: contextlib.ExitStack,
) -> Iterator[_Runner]:
    """Every contender, ready to run; the commands are tried before anything is loaded."""
    try_commands([one.name for one in entered if one.kind == COMMAND], rows, cascade.labels)
    folder = _saved(cascade, scratch)
    file = scratch / "rows.json"
    texts = {"texts": rows.texts, "pairs": rows.pairs}
    file.write_text(json.dumps(texts), encoding="utf-8")
    for contender in entered:
        if contender.kind == COMMAND:
            place = stack.enter_context(tempfile.TemporaryDirectory(dir=scratch))
            yield Command(contender.name, rows, Path(place))
            continue
        worker = stack.enter_context(Worker(contender.name))
        worker.load(folder=str(folder), rows=str(file), **contender.recipe)
        yield worker


def _saved(cascade: Cascade, scratch: Path) -> Path:
    """A folder with the cascade as it is: its own, or a copy if it has changed since."""
    own = cascade.stages[0].folder.parents[1]
    if (own / RECORD_FILE).is_file():
        record = read_record(own)
        speeds = [stage.speed for stage in record.stages]
        now = [stage.record.speed for stage in cascade.stages]
        if record.fingerprint() == cascade.fingerprint and speeds == now:
            return own
    return cascade.save_pretrained(scratch / "cascade")


def _result(cascade: Cascade, rows: Rows, records: Sequence[_Record]) -> BenchResult:
    measured = [record.measured() for record in records]
    alone = {one.name: one for one in measured if one.kind == STAGE}
    reference = alone[reference_name(cascade)]
    names = [f"{name} alone" for name in _stage_names(cascade)]
    stages = [alone[name] for name in names if name in alone]
    return BenchResult(
        rows=len(rows),
        rows_fingerprint=rows.fingerprint(),
        machine=machine_name(),
        cores=usable_cores(),
        versions=_versions(cascade, records),
        rounds=len(reference.seconds),
        reference=reference.name,
        contenders=tuple(figures(one, reference, len(rows)) for one in measured),
        oracle=oracle_of(stages, len(rows)) if len(stages) == len(names) else None,
        **_prediction(records),
    )


def _prediction(records: Sequence[_Record]) -> dict[str, Any]:
    """The cascade's seconds, and what they were predicted to be."""
    runs = next((record.runs for record in records if record.contender.kind == CASCADE), None)
    measured = statistics.median(run.seconds for run in runs) if runs else None
    predicted = runs[0].predicted_seconds if runs else None
    return {
        "measured_seconds": measured,
        "predicted_seconds": predicted,
        "predicted_ratio": predicted / measured if predicted and measured else None,
        "predicted_on": runs[0].predicted_on if runs else None,
    }


def _versions(cascade: Cascade, records: Sequence[_Record]) -> dict[str, str]:
    """Of all that may have run; of the runtimes those of the cascade."""
    runtimes = " ".join(record.contender.runtime or "" for record in records).split()
    packages = runtime_versions(sorted(set(runtimes) & set(RUNTIMES)))
    packages["runtime"] = cascade.versions["runtime"]
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name):
            packages[name] = importlib.metadata.version(name)
    return {"python": platform.python_version(), **packages}
