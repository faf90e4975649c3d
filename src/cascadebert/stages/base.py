"""Stage: one complete classifier with its own reading of a row, maximum length and label order."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import re
import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cascadebert.artifact import TOKENIZER_FILE, StageCost, StageRecord, StageSpeed
from cascadebert.batching import token_batches, widths
from cascadebert.data import Rows
from cascadebert.deferral.calibration import Calibration
from cascadebert.errors import ArtifactError, CascadeError, LabelMismatchError
from cascadebert.runtimes import load_runtime

# Encodings are large until they are cut down to ids, so few are alive at a time.
_ROWS_PER_TOKENIZER_CALL = 512
_CHARACTERS_PER_TOKENIZER_CALL = 1_000_000
_WARM_UP_ROWS = 8


STAGE_KINDS = {
    "transformer": ("cascadebert.stage", "TransformerStage"),
    "linear": ("cascadebert.linear", "LinearStage"),
}


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


@dataclass(frozen=True)
class TokenizedRows:
    """Rows as a transformer reads them.

    Attributes:
        columns: for each model input the ids of all rows on end, int32.
        starts: where each row begins there, int64 of shape (rows,).
        lengths: tokens of each row, int64 of shape (rows,).
        truncated: rows that were longer than the stage reads, bool of shape (rows,).
    """

    columns: Mapping[str, NDArray[np.int32]]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    truncated: NDArray[np.bool_]

    def take(self, positions: NDArray[np.int64]) -> TokenizedRows:
        """Some of the rows; the ids are not copied."""
        return TokenizedRows(
            self.columns, self.starts[positions], self.lengths[positions], self.truncated[positions]
        )

    @classmethod
    def joined(cls, parts: Sequence[TokenizedRows]) -> TokenizedRows:
        """All rows of several such as one; there must be one at least."""
        sizes = [len(part.columns["input_ids"]) for part in parts]
        rows = [len(part.lengths) for part in parts]
        before: NDArray[np.int64] = np.repeat(np.cumsum(sizes) - sizes, rows)
        return TokenizedRows(
            {
                name: np.concatenate([part.columns[name] for part in parts])
                for name in parts[0].columns
            },
            before + np.concatenate([part.starts for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.truncated for part in parts]),
        )

    def batch(
        self, positions: NDArray[np.int64], padding: Mapping[str, int], most: int | None
    ) -> dict[str, NDArray[np.int64]]:
        """Rows of one width as a model takes them, each of shape (rows, width).

        Args:
            positions: rows whose :func:`~cascadebert.batching.widths` are the same.
            padding: for each column the id that fills rows up on the right.
            most: tokens that the model reads, if that is known.
        """
        lengths = self.lengths[positions][:, None]
        place = np.arange(widths(lengths, most).max())
        inside = place < lengths
        index = np.where(inside, self.starts[positions][:, None] + place, 0)
        batch = {
            name: np.where(inside, ids[index], padding[name]).astype(np.int64)
            for name, ids in self.columns.items()
        }
        return {**batch, "attention_mask": inside.astype(np.int64)}


@dataclass(frozen=True)
class StageRun:
    """One stage run on every row.

    Attributes:
        logits: in the cascade's label order, float32 of shape (rows, classes).
        lengths: tokens of each row, int64 of shape (rows,).
        seconds: wall time, tokenising included.
    """

    logits: NDArray[np.float32]
    lengths: NDArray[np.int64]
    seconds: float
    cost: StageCost
    speed: StageSpeed | None = None


def row_costs(
    runs: Sequence[StageRun], kind: str, *, modelled: bool = False
) -> NDArray[np.float64]:
    """What each row costs in each stage, float64 of shape (rows, stages).

    Args:
        runs: of all stages on the same rows.
        kind: "flops" and "layers" are counted. "seconds" are the time that each stage took here,
            shared out by the operations of each row.
        modelled: take as seconds what was measured before of rows of such lengths, where it was of
            every stage.
    """
    if kind == "layers":
        costs = [np.full(len(run.lengths), float(run.cost.layers)) for run in runs]
    elif kind == "seconds" and modelled and measured_on(runs) is not None:
        costs = [run.speed.row_seconds(run.lengths) for run in runs if run.speed]
    else:
        costs = [run.cost.row_flops(run.lengths) for run in runs]
        if kind == "seconds":
            costs = [
                flops * (run.seconds / flops.sum()) for run, flops in zip(runs, costs, strict=True)
            ]
    return np.stack(costs, axis=1)


def measured_on(runs: Sequence[StageRun]) -> str | None:
    """The machine on which the speed of all stages was measured; None if it was not."""
    machines = {run.speed.machine if run.speed else None for run in runs}
    return machines.pop() if len(machines) == 1 else None


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


def load_stage(folder: Path, record: StageRecord, labels: Sequence[str], runtime: str) -> Stage:
    """Load a stage of the kind that its record names.

    Args:
        folder: the stage's folder.
        record: what ``cascade.json`` says of it.
        labels: the cascade's label names.
        runtime: of transformers, a name in :data:`cascadebert.runtimes.RUNTIMES`.
    """
    module, attribute = STAGE_KINDS[record.kind]
    make = getattr(importlib.import_module(module), attribute)
    return cast(Stage, make(folder, record, labels, runtime))


class TransformerStage(Stage):
    """A stage whose classifier is an encoder run by one of the runtimes.

    Attributes:
        padding: for each of the model's inputs the id that fills rows up.
        model: the loaded model.
    """

    def __init__(
        self, folder: Path, record: StageRecord, labels: Sequence[str], runtime: str
    ) -> None:
        super().__init__(folder, record, labels)
        self.padding = {"input_ids": record.pad_token_id, "token_type_ids": 0}
        self._tokenizer = _load_tokenizer(folder / TOKENIZER_FILE, record)
        self.runtime = runtime
        self.model = load_runtime(runtime, folder)
        self.token_budgets = self.model.token_budgets

    @property
    def reading(self) -> object:
        record = self.record
        tokenizer = record.files[TOKENIZER_FILE]
        return (tokenizer, record.inputs, record.max_length, record.truncation_side)

    @property
    def largest_id(self) -> int:
        """Of all words that the tokenizer knows."""
        return int(max(self._tokenizer.get_vocab().values()))

    def tokenize(self, rows: Rows) -> TokenizedRows:
        """Encode rows with the stage's own tokenizer, cut at the stage's maximum length."""
        columns = {"input_ids": array("i"), "token_type_ids": array("i")}
        lengths = np.zeros(len(rows), dtype=np.int64)
        truncated = np.zeros(len(rows), dtype=np.bool_)
        for start, stop in _tokenizer_calls(rows):
            texts = rows.texts[start:stop]
            pairs = rows.pairs and rows.pairs[start:stop]
            batch = texts if pairs is None else list(zip(texts, pairs, strict=True))
            for i, encoding in enumerate(self._tokenizer.encode_batch_fast(batch), start):
                columns["input_ids"].extend(encoding.ids)
                if "token_type_ids" in self.record.inputs:
                    columns["token_type_ids"].extend(encoding.type_ids)
                lengths[i] = len(encoding)
                full = lengths[i] >= self.record.max_length
                truncated[i] = full and bool(encoding.overflowing)
        needed = [name for name in self.record.inputs if name != "attention_mask"]
        ids = {name: np.frombuffer(columns[name], dtype=np.int32) for name in needed}
        return TokenizedRows(ids, lengths.cumsum() - lengths, lengths, truncated)

    def run(
        self, tokens: TokenizedRows, token_budget: int | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Run rows of one width together; see :meth:`Stage.run`."""
        measured = self.speed.token_budget if self.speed else None
        budget = token_budget or measured or self.token_budgets[1]
        begun = None
        most = self.record.max_length
        for positions in token_batches(tokens.lengths, budget, most):
            wait = self.model(tokens.batch(positions, self.padding, most))
            # One batch is always under way while the one before is dealt with.
            if begun:
                yield begun[0], self.finish(begun[1](), begun[0])
            begun = positions, wait
        if begun:
            yield begun[0], self.finish(begun[1](), begun[0])


def _tokenizer_calls(rows: Rows) -> Iterator[tuple[int, int]]:
    """First and last row of parts that are small in rows and, but for one row, in characters."""
    start, characters = 0, 0
    for i, size in enumerate(rows.sizes().tolist()):
        too_long = characters + size > _CHARACTERS_PER_TOKENIZER_CALL and i > start
        if too_long or i - start == _ROWS_PER_TOKENIZER_CALL:
            yield start, i
            start, characters = i, 0
        characters += size
    if start < len(rows):
        yield start, len(rows)


def _load_tokenizer(path: Path, record: StageRecord) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise ArtifactError(
            f"{path}: not a tokenizer that can be read ({error}); export the stage again"
        ) from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(record.max_length, direction=record.truncation_side)
    return tokenizer


def same_labels(
    stages: Sequence[tuple[str, Sequence[str]]],
) -> tuple[str, ...]:
    """The label names that all stages share, in the order of the last stage.

    Args:
        stages: name and label names of each stage; their orders may differ.

    Raises:
        LabelMismatchError: two stages differ in more than order; the message shows both lists and
            how to map one to the other.
    """
    last_name, last_labels = stages[-1]
    for number, (name, labels) in enumerate(stages[:-1], start=1):
        if set(labels) != set(last_labels) or len(labels) != len(last_labels):
            raise LabelMismatchError(
                f"stage {number} '{name}' has the labels {list(labels)}, stage {len(stages)} "
                f"'{last_name}' has {list(last_labels)}; if they mean the same, map them: "
                f"{_mapping_hint(stages, number)}"
            )
    return tuple(last_labels)


def _mapping_hint(stages: Sequence[tuple[str, Sequence[str]]], number: int) -> str:
    # The side with placeholders is the one to rename.
    if are_placeholders(stages[-1][1]):
        number, labels = len(stages), stages[-1][1]
    else:
        labels = stages[number - 1][1]
    pairs = ",".join(f"{label}=NAME" for label in labels[:3])
    more = ",…" if len(labels) > 3 else ""
    return f"--map-labels '{number}:{pairs}{more}' (in Python label_maps={{{number}: {{...}}}})"


def are_placeholders(labels: Sequence[str]) -> bool:
    """Whether these are the names that transformers gives when nobody named the classes."""
    return all(re.fullmatch(r"LABEL_\d+", label) for label in labels)
