"""What a benchmark found: the figures of each contender out of its times and answers."""

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
    """One contender as it was measured.

    Attributes:
        name: tells it from the others.
        kind: "cascade", "stage", "pipeline" or "command".
        runtime: what runs it; of a cascade one name a stage, with spaces between; None of others.
        seconds: wall time in each round.
        right: whether each row that it was run on was answered right, bool of shape (rows,).
        compute_seconds: those within the stages, in each round; empty where there are none.
        row_seconds: of single rows; empty where they were not timed.
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
        """The same of fewer rows, as if it had been run on these.

        Args:
            count: their number.
            rows: number of all rows.
        """
        return self.right[np.isin(evenly(rows, len(self.right)), evenly(rows, count))]


@dataclass(frozen=True)
class Latency:
    """Percentiles of the milliseconds that a single row takes, and on how many rows."""

    p50: float
    p95: float
    p99: float
    rows: int


@dataclass(frozen=True)
class ContenderResult:
    """One contender; what was not measured of it is None.

    Attributes:
        name: tells it from the others; of a command the command itself.
        kind: "cascade", "stage", "pipeline" or "command".
        runtime: what runs it; of the cascade one name a stage, with spaces between.
        rows: number of rows that it was run on, evenly drawn where it was too slow for all.
        seconds: wall time for these in each round; of a command with its start.
        rows_per_second: median of the rounds.
        rows_per_second_range: the smallest and the largest.
        rows_per_second_per_core: the median over the cores that the process may use.
        ratio: rows per second over those of the reference in the same round, the median.
        ratio_range: the smallest and the largest.
        latency_ms: of single rows, one after another.
        peak_memory_mb: the most that its process held, in 10**6 bytes.
        startup_seconds: from nothing loaded to the first answer, the engine's import included.
        accuracy: share of right answers; no answer is not a right one.
        accuracy_retained: accuracy over that of the reference on the same rows.
        overhead: share of its time in which no stage calculates: rows are read and
            deferred; median of the rounds.
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
    """Contenders on the same labelled rows; nothing in it is drawn at random.

    Attributes:
        rows: number of rows.
        rows_fingerprint: SHA-256 of their texts and labels.
        machine: processor and usable cores.
        cores: their number.
        versions: of what ran, by package.
        rounds: how often each contender was timed, in turn.
        reference: name of the contender that ratios are against: the last stage alone.
        contenders: in the order in which they were timed.
        oracle: None where a stage alone was left out.
        measured_seconds: of the cascade on its rows, the median of the rounds; None where it was
            left out.
        predicted_seconds: for the same rows by the speed that each stage was measured to have
            before; None where one has not been measured with its runtime.
        predicted_ratio: predicted over measured seconds.
        predicted_on: the machine that the speeds are of.
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
    """What there is to say of a contender.

    Args:
        measured: the contender.
        reference: the last stage alone, timed in the same rounds.
        rows: number of all rows.
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
        stages: each stage alone, small to large.
        rows: number of all rows.
    """
    common = min(len(stage.right) for stage in stages)
    right = np.stack([stage.right_of(common, rows) for stage in stages])
    return oracle(right, np.array([1 / np.median(stage.rates) for stage in stages]))
