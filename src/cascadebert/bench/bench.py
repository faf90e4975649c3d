"""A cascade against its stages alone, other engines, transformers' pipeline and any command."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import platform
import statistics
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cascadebert.bench.command import Command, try_commands
from cascadebert.bench.contenders import Contender, contenders, reference_name, stage_names
from cascadebert.bench.process import Run, Worker
from cascadebert.bench.result import (
    CASCADE,
    COMMAND,
    STAGE,
    BenchResult,
    Measured,
    figures,
    oracle_of,
)
from cascadebert.cascade import Cascade
from cascadebert.disk import RECORD_FILE
from cascadebert.errors import InputError
from cascadebert.machine import machine_name, usable_cores
from cascadebert.persistence.record import read_record
from cascadebert.rows.rows import Rows, as_rows, evenly
from cascadebert.runtimes import RUNTIMES, runtime_versions

DEFAULT_ROUNDS = 3
DEFAULT_SECONDS = 30.0
STEPS_BESIDE_ROUNDS = 2
"""Calls of ``progress`` for a contender beside its rounds: it is ready; single rows are done."""

_LEAST_ROWS = 32
_FIRST_ROWS, _MORE_ROWS = 8, 4
# Shares of the seconds of a round: probes last until they are as much longer than the first;
# single rows take about so much.
_PROBE, _LATENCY = 1 / 20, 1 / 3


class _Runner(Protocol):
    """Something that can be timed: a :class:`Worker` or a :class:`Command`."""

    startup_seconds: float | None
    peak_memory_mb: float | None

    def run(self, rows: int, predict: bool = False) -> Run: ...

    def latency(self, seconds: float) -> list[float]: ...


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
    names = [f"{name} alone" for name in stage_names(cascade)]
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
