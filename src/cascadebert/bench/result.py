"""The results of a benchmark: figures of each contender from its times and answers."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.evaluation.oracle import Oracle, oracle
from cascadebert.machine import usable_cores
from cascadebert.rows.rows import evenly

CASCADE, STAGE, PIPELINE, COMMAND = "cascade", "stage", "pipeline", "command"


@dataclass(frozen=True)
class Measured:
    """The measurements of one contender.

    Attributes:
        name: unique name.
        kind: "cascade", "stage", "pipeline" or "command".
        runtime: name of its runtime; for a cascade one name per stage, separated by spaces; None
            for others.
        seconds: wall time in each round.
        right: whether each of its rows was answered right, bool of shape (rows,).
        compute_seconds: seconds within the stages in each round; empty for other contenders.
        row_seconds: seconds of single rows; empty where they were not timed.
        startup_seconds, peak_memory_mb: None where they were not measured.
    """

    name: str
    kind: str
    runtime: str | None
    seconds: Sequence[float]
    right: NDArray[np.bool_]
    compute_seconds: Sequence[float] = ()
    row_seconds: Sequence[float] = ()
    startup_seconds: float | None = None
    peak_memory_mb: float | None = None

    @property
    def rates(self) -> Floats:
        """Rows per second in each round."""
        rates: Floats = len(self.right) / np.asarray(self.seconds, dtype=np.float64)
        return rates

    def right_of(self, count: int, rows: int) -> NDArray[np.bool_]:
        """``right`` on fewer rows, as if the contender had been run on these.

        Args:
            count: is the number of these rows.
            rows: is the number of all rows.
        """
        return self.right[np.isin(evenly(rows, len(self.right)), evenly(rows, count))]


@dataclass(frozen=True)
class Latency:
    """Percentiles of the milliseconds per single row, and the number of rows."""

    p50: float
    p95: float
    p99: float
    rows: int


@dataclass(frozen=True)
class ContenderResult:
    """The figures of one contender; None where one was not measured.

    Attributes:
        name: unique name; for a command the command itself.
        kind: "cascade", "stage", "pipeline" or "command".
        runtime: name of its runtime; for the cascade one name per stage, separated by spaces.
        rows: number of rows that it was run on, evenly drawn where it was too slow for all.
        seconds: wall time for these rows in each round; for a command including its start.
        rows_per_second: median over the rounds.
        rows_per_second_range: smallest and largest over the rounds.
        rows_per_second_per_core: the median over the number of usable cores.
        ratio: rows per second over those of the reference in the same round, median.
        ratio_range: smallest and largest ratio.
        latency_ms: latency of single rows, one after another.
        peak_memory_mb: peak memory of its process, in 10**6 bytes.
        startup_seconds: seconds from nothing loaded to the first answer, including the import of
            the engine.
        accuracy: share of right answers; a row without an answer is wrong.
        accuracy_retained: accuracy over that of the reference on the same rows.
        overhead: share of the time outside the stages, for reading and deferring rows; median
            over the rounds.
    """

    name: str
    kind: str
    runtime: str | None
    rows: int
    seconds: tuple[float, ...]
    rows_per_second: float
    rows_per_second_range: tuple[float, float]
    rows_per_second_per_core: float
    ratio: float
    ratio_range: tuple[float, float]
    latency_ms: Latency | None
    peak_memory_mb: float | None
    startup_seconds: float | None
    accuracy: float
    accuracy_retained: float | None
    overhead: float | None


@dataclass(frozen=True)
class BenchResult:
    """All contenders on the same labelled rows.

    Attributes:
        rows: number of rows.
        rows_fingerprint: SHA-256 of their texts and labels.
        machine: processor and usable cores.
        cores: number of usable cores.
        versions: version of each package that ran.
        rounds: how often each contender was timed, in turn.
        reference: name of the reference of all ratios: the last stage alone.
        contenders: figures, in the order of timing.
        oracle: bound of every deferral without skips; None where a stage alone was left out.
        measured_seconds: the cascade's seconds on its rows, median over the rounds; None where it
            was left out.
        predicted_seconds: prediction for the same rows by the stages' measured speeds; None where
            a stage has not been measured with its runtime.
        predicted_ratio: predicted over measured seconds.
        predicted_on: machine on which the speeds were measured.
    """

    rows: int
    rows_fingerprint: str
    machine: str
    cores: int
    versions: Mapping[str, str]
    rounds: int
    reference: str
    contenders: tuple[ContenderResult, ...]
    oracle: Oracle | None
    measured_seconds: float | None
    predicted_seconds: float | None
    predicted_ratio: float | None
    predicted_on: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``bench --json`` writes them."""
        return dataclasses.asdict(self)

    def contender(self, name: str) -> ContenderResult:
        """The contender of this name."""
        return next(contender for contender in self.contenders if contender.name == name)


def figures(measured: Measured, reference: Measured, rows: int) -> ContenderResult:
    """Compute the figures of a contender.

    Args:
        measured: has the contender's measurements.
        reference: has those of the last stage alone, in the same rounds.
        rows: is the number of all rows.
    """
    rates = measured.rates
    ratios = rates / reference.rates
    rate = float(np.median(rates))
    return ContenderResult(
        name=measured.name,
        kind=measured.kind,
        runtime=measured.runtime,
        rows=len(measured.right),
        seconds=tuple(measured.seconds),
        rows_per_second=rate,
        rows_per_second_range=(float(rates.min()), float(rates.max())),
        rows_per_second_per_core=rate / usable_cores(),
        ratio=float(np.median(ratios)),
        ratio_range=(float(ratios.min()), float(ratios.max())),
        latency_ms=_latency(measured.row_seconds),
        peak_memory_mb=measured.peak_memory_mb,
        startup_seconds=measured.startup_seconds,
        accuracy=float(measured.right.mean()),
        accuracy_retained=_retained(measured, reference, rows),
        overhead=_overhead(measured),
    )


def _latency(row_seconds: Sequence[float]) -> Latency | None:
    if not row_seconds:
        return None
    p50, p95, p99 = 1000 * np.percentile(row_seconds, [50, 95, 99])
    return Latency(float(p50), float(p95), float(p99), len(row_seconds))


def _retained(measured: Measured, reference: Measured, rows: int) -> float | None:
    common = min(len(measured.right), len(reference.right))
    against = float(reference.right_of(common, rows).mean())
    return float(measured.right_of(common, rows).mean()) / against if against else None


def _overhead(measured: Measured) -> float | None:
    if not measured.compute_seconds:
        return None
    shares = zip(measured.compute_seconds, measured.seconds, strict=True)
    return statistics.median(1 - compute / wall for compute, wall in shares)


def oracle_of(stages: Sequence[Measured], rows: int) -> Oracle:
    """The oracle on the rows that every stage was run on.

    Args:
        stages: has each stage alone, small to large.
        rows: is the number of all rows.
    """
    common = min(len(stage.right) for stage in stages)
    right = np.stack([stage.right_of(common, rows) for stage in stages])
    return oracle(right, np.array([1 / np.median(stage.rates) for stage in stages]))
