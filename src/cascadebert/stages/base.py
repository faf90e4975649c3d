"""Stage: one complete classifier with its own reading of a row, maximum length and label order."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.calibration import Calibration
from cascadebert.errors import ArtifactError, CascadeError
from cascadebert.machine import thread_count
from cascadebert.persistence.integrity import check_files
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
        runtime: runs it.
        threads: limits the threads of its engine.
        scratch: is the temporary folder that its files lie in, if they lie in one.
    """

    def __init__(
        self,
        folder: Path,
        record: StageRecord,
        labels: Sequence[str],
        runtime: str,
        threads: int | None = None,
        scratch: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        self.folder = folder
        self.record = record
        self.runtime = runtime
        self.threads = thread_count(threads)
        # Keeps the folder alive for as long as the stage is.
        self._scratch = scratch
        self._columns = [record.labels.index(label) for label in labels]

    in_memory = False
    """Whether its model lies in no folder, so that it cannot be saved."""

    @property
    def token_budgets(self) -> tuple[int, ...]:
        """Sizes of batches, in tokens, of which the best depends on the machine; small to large."""
        return ()

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def logit_labels(self) -> tuple[str, ...]:
        """The labels in the order of the logits that come out."""
        return tuple(self.record.labels[column] for column in self._columns)

    @property
    @abstractmethod
    def tokenization_key(self) -> object:
        """Equal for stages whose :meth:`tokenize` gives the same."""

    def open(self) -> None:  # noqa: B027
        """Compile the model now and not when the first row comes."""

    def close(self) -> None:
        """Remove the temporary folder that the stage's files lie in, if they lie in one."""
        if self._scratch is not None:
            self._scratch.cleanup()

    def __copy__(self) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """By the folder; with the files' content where the folder is a temporary one."""
        if self.in_memory:
            raise ArtifactError(
                f"stage '{self.name}' has a model in memory, which cannot be pickled; put a stage "
                "made from a checkpoint in its place, and save the cascade with save_pretrained"
            )
        content = None
        if self._scratch is not None:
            content = {name: (self.folder / name).read_bytes() for name in self.record.files}
        made_of = (self.folder, self.record, self.logit_labels, self.runtime, self.threads)
        return _unpickled, (type(self), content, *made_of)

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


def _unpickled(
    kind: type[Stage],
    content: Mapping[str, bytes] | None,
    folder: Path,
    record: StageRecord,
    labels: Sequence[str],
    runtime: str,
    threads: int,
) -> Stage:
    scratch, root = None, folder.parents[1]
    if content is not None:
        scratch = tempfile.TemporaryDirectory(prefix="cascadebert-")
        root = Path(scratch.name)
        for name, data in content.items():
            path = root / record.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    check_files(root, [record], [runtime])
    return kind(root / record.folder, record, labels, runtime, threads, scratch)
