"""Stage: one complete classifier with its own reading of a row, maximum length and label order."""

from __future__ import annotations

import copy
import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.calibration import Calibration
from cascadebert.errors import CascadeError
from cascadebert.persistence.record import StageRecord, StageSpeed
from cascadebert.rows.rows import Rows
from cascadebert.stages.costs import StageRun

_WARM_UP_ROWS = 8


class ReadRows(Protocol):
    """Rows as one stage reads them; only that stage knows the rest.

    Attributes:
        lengths: size of each row in the stage's own unit, int64 of shape (rows,).
        truncated: rows that were longer than the stage reads, bool of shape (rows,).
    """

    @property
    def lengths(self) -> NDArray[np.int64]: ...

    @property
    def truncated(self) -> NDArray[np.bool_]: ...

    def take(self, positions: NDArray[np.int64]) -> ReadRows:
        """Some of the rows."""
        ...

    @classmethod
    def joined(cls, parts: Sequence[Any]) -> ReadRows:
        """All rows of several such as one; there must be one at least."""
        ...


class Stage(ABC):
    """One complete classifier, loaded and ready to run; :func:`load_stage` makes it.

    Args:
        folder: the stage's folder.
        record: what ``cascade.json`` says of it.
        labels: the cascade's label names; logits come out in this order.
    """

    def __init__(self, folder: Path, record: StageRecord, labels: Sequence[str]) -> None:
        self.folder = folder
        self.record = record
        self._columns = [record.labels.index(label) for label in labels]

    runtime: str
    """What runs it."""

    in_memory = False
    """Whether its model lies in no folder, so that it cannot be saved."""

    token_budgets: tuple[int, ...] = ()
    """Sizes of batches, in tokens, of which the best depends on the machine; small to large."""

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def logit_labels(self) -> tuple[str, ...]:
        """The labels in the order of the logits that come out."""
        return tuple(self.record.labels[column] for column in self._columns)

    @property
    @abstractmethod
    def reading(self) -> object:
        """Equal for stages whose :meth:`tokenize` gives the same."""

    def with_calibration(self, calibration: Calibration | None) -> Stage:
        """The same loaded stage under another calibration."""
        return self._with_record(dataclasses.replace(self.record, calibration=calibration))

    def with_labels(self, labels: Sequence[str]) -> Self:
        """The same stage for a model that has the same labels in another order."""
        other = copy.copy(self)
        other.record = dataclasses.replace(self.record, labels=tuple(labels))
        other._columns = [other.record.labels.index(name) for name in self.logit_labels]
        return other

    def with_runtime(self) -> Stage:
        """The same loaded stage, whose record names the runtime that it has here."""
        return self._with_record(dataclasses.replace(self.record, runtime=self.runtime))

    def with_speed(self, speed: StageSpeed) -> Stage:
        """The same loaded stage, as fast as was measured."""
        return self._with_record(dataclasses.replace(self.record, speed=speed))

    def _with_record(self, record: StageRecord) -> Stage:
        other = copy.copy(self)
        other.record = record
        return other

    @abstractmethod
    def tokenize(self, rows: Rows) -> ReadRows:
        """Rows as the stage reads them, cut at its maximum length."""

    @property
    def speed(self) -> StageSpeed | None:
        """How fast it is with the runtime that it has here, where that was measured."""
        speed = self.record.speed
        return speed if speed and speed.runtime == self.runtime else None

    @abstractmethod
    def run(
        self, tokens: Any, token_budget: int | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Run rows batch by batch.

        Args:
            tokens: what :meth:`tokenize` of this stage gave.
            token_budget: tokens in a batch, of a transformer; by default what was measured best.

        Yields:
            Positions in ``tokens`` of the batch's rows, int64 of shape (batch,), and their
            logits in the cascade's label order, calibrated, float32 of shape (batch, classes).

        Raises:
            CascadeError: the model gave a logit that is not finite.
        """

    def run_all(self, rows: Rows, *, progress: Callable[[int], object] | None = None) -> StageRun:
        """Run the stage on every row and take the time.

        Args:
            rows: checked rows.
            progress: called with the number of rows after each batch.
        """
        for _ in self.run(self.tokenize(rows.slice(0, _WARM_UP_ROWS))):
            pass
        start = time.perf_counter()
        tokens = self.tokenize(rows)
        logits = np.empty((len(rows), len(self._columns)), dtype=np.float32)
        for positions, batch_logits in self.run(tokens):
            logits[positions] = batch_logits
            if progress:
                progress(len(positions))
        seconds = time.perf_counter() - start
        return StageRun(logits, tokens.lengths, seconds, self.record.cost, self.speed)

    def finish(
        self, logits: NDArray[np.float32], positions: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """The model's own logits in the cascade's label order, calibrated.

        Raises:
            CascadeError: one of them is not finite; ``positions`` tell which row.
        """
        logits = logits[:, self._columns]
        if not np.isfinite(logits).all():
            bad = int(positions[~np.isfinite(logits).all(axis=1)][0])
            raise CascadeError(
                f"stage '{self.name}' gave logits that are not finite for row {bad} of those "
                "it was given; its weights are broken, train or export it again"
            )
        calibration = self.record.calibration
        return logits if calibration is None else calibration(logits).astype(np.float32)
