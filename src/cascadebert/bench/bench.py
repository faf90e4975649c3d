"""Benchmark: a cascade, its stages alone, other engines, transformers' pipeline, any command."""

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
"""Further calls of ``progress`` per contender: when it is ready, and after the single rows."""

_LEAST_ROWS = 32
_FIRST_ROWS, _MORE_ROWS = 8, 4
# Shares of a round's seconds: by how much a probe must exceed the first one, and for single rows.
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
    """Time a cascade and its alternatives on the same rows, in turn.

    Every contender runs in its own process, and one computes at a time. Each runs on its rows once
    before any is timed. Rounds go through all contenders, every other round in reverse order.

    Args:
        cascade: is timed as it is; if it has changed since it was saved, a copy is saved to a
            temporary folder first.
        rows: have labels, and are other rows than those of tuning.
        against: are shell commands to time too, see :class:`Command`.
        rounds: sets how often each contender is timed.
        seconds: limits a round of a contender; a slow one runs on as many of the rows as fit, at
            least 32.
        skip: leaves out contenders with one of these texts in their names.
        progress: is called with 1, ``rounds + STEPS_BESIDE_ROUNDS`` times per contender.

    Raises:
        InputError: the rows are unusable, have labels that the cascade does not know, or a command
            fails.
        CascadeError: the process of a contender ended.
    """
    checked = as_rows(rows, with_labels=True)
    cascade.label_ids(checked)
    if rounds < 1 or not 0 < seconds < math.inf:
        raise InputError(
            f"{rounds} rounds of {seconds} s are invalid; give 1 round or more, of more than 0 s"
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
                # Engines prepare for new shapes; a command starts anew every time.
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
    """Number of rows to run: all, or as many as fit into the time, at least 32.

    Args:
        run: runs a number of rows; a fixed cost, such as the start of a program, counts.
        rows: is the number of all rows.
        seconds: limits one run.
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
    """The measurements of a contender so far."""

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
    """Start every contender; commands are tried before anything is loaded."""
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
    """The cascade's own folder, or a copy if the cascade has changed since it was saved."""
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
    """The cascade's measured and predicted seconds."""
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
    """Versions of Python, the packages that may have run, and the cascade's runtimes."""
    runtimes = " ".join(record.contender.runtime or "" for record in records).split()
    packages = runtime_versions(sorted(set(runtimes) & set(RUNTIMES)))
    packages["runtime"] = cascade.versions["runtime"]
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name):
            packages[name] = importlib.metadata.version(name)
    return {"python": platform.python_version(), **packages}
