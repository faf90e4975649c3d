"""Stage: one complete classifier with its own reading of a row, maximum length and label order."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cascadebert.artifact import TOKENIZER_FILE, StageCost, StageRecord
from cascadebert.batching import DEFAULT_TOKEN_BUDGET, pad, token_batches
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


@dataclass(frozen=True)
class TokenizedRows:
    """Rows as a transformer reads them.

    Attributes:
        columns: for each model input one int32 array of ids a row.
        lengths: tokens of each row, int64 of shape (rows,).
        truncated: rows that were longer than the stage reads, bool of shape (rows,).
    """

    columns: Mapping[str, list[NDArray[np.int32]]]
    lengths: NDArray[np.int64]
    truncated: NDArray[np.bool_]


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

    def costs(self, kind: str) -> NDArray[np.float64]:
        """What each row costs in this stage, float64 of shape (rows,).

        "seconds" are the measured time, shared out by the operations that each row takes.
        """
        if kind == "layers":
            return np.full(len(self.lengths), float(self.cost.layers))
        flops = self.cost.row_flops(self.lengths)
        return flops if kind == "flops" else flops * (self.seconds / flops.sum())


def row_costs(runs: Sequence[StageRun], kind: str) -> NDArray[np.float64]:
    """What each row costs in each stage, float64 of shape (rows, stages)."""
    return np.stack([run.costs(kind) for run in runs], axis=1)


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

    @property
    def name(self) -> str:
        return self.record.name

    def with_calibration(self, calibration: Calibration | None) -> Stage:
        """The same loaded stage under another calibration."""
        other = copy.copy(self)
        other.record = dataclasses.replace(self.record, calibration=calibration)
        return other

    @abstractmethod
    def tokenize(self, rows: Rows) -> ReadRows:
        """Rows as the stage reads them, cut at its maximum length."""

    @abstractmethod
    def run(self, tokens: Any) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Run rows batch by batch.

        Args:
            tokens: what :meth:`tokenize` of this stage gave.

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
        return StageRun(logits, tokens.lengths, seconds, self.record.cost)

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


def load_stage(
    folder: Path, record: StageRecord, labels: Sequence[str], runtime: str = "onnx"
) -> Stage:
    """Load a stage of the kind that its record names.

    Args:
        folder: the stage's folder.
        record: what ``cascade.json`` says of it.
        labels: the cascade's label names.
        runtime: engine for transformers, see :data:`cascadebert.runtimes.RUNTIMES`.
    """
    module, attribute = STAGE_KINDS[record.kind]
    make = getattr(importlib.import_module(module), attribute)
    return cast(Stage, make(folder, record, labels, runtime))


class TransformerStage(Stage):
    """A stage whose classifier is an encoder run by one of the runtimes."""

    def __init__(
        self, folder: Path, record: StageRecord, labels: Sequence[str], runtime: str = "onnx"
    ) -> None:
        super().__init__(folder, record, labels)
        self._padding = {"input_ids": record.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
        self._tokenizer = _load_tokenizer(folder / TOKENIZER_FILE, record)
        self._runtime = load_runtime(runtime, folder)

    def tokenize(self, rows: Rows) -> TokenizedRows:
        """Encode rows with the stage's own tokenizer, cut at the stage's maximum length."""
        needed = [name for name in self.record.inputs if name != "attention_mask"]
        columns: dict[str, list[NDArray[np.int32]]] = {name: [] for name in needed}
        truncated = np.zeros(len(rows), dtype=np.bool_)
        for start, stop in _tokenizer_calls(rows):
            texts = rows.texts[start:stop]
            pairs = rows.pairs and rows.pairs[start:stop]
            batch = texts if pairs is None else list(zip(texts, pairs, strict=True))
            for i, encoding in enumerate(self._tokenizer.encode_batch_fast(batch), start):
                columns["input_ids"].append(np.array(encoding.ids, dtype=np.int32))
                if "token_type_ids" in columns:
                    columns["token_type_ids"].append(np.array(encoding.type_ids, dtype=np.int32))
                full = len(encoding) >= self.record.max_length
                truncated[i] = full and bool(encoding.overflowing)
        lengths = np.array([len(ids) for ids in columns["input_ids"]], dtype=np.int64)
        return TokenizedRows(columns, lengths, truncated)

    def run(
        self, tokens: TokenizedRows, token_budget: int = DEFAULT_TOKEN_BUDGET
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Run rows batch by batch; see :meth:`Stage.run`."""
        for positions in token_batches(tokens.lengths, token_budget):
            batch = pad(
                {name: [rows[i] for i in positions] for name, rows in tokens.columns.items()},
                self._padding,
            )
            lengths = tokens.lengths[positions]
            width = batch["input_ids"].shape[1]
            batch["attention_mask"] = (np.arange(width) < lengths[:, None]).astype(np.int64)
            yield positions, self.finish(self._runtime(batch), positions)


def _tokenizer_calls(rows: Rows) -> Iterator[tuple[int, int]]:
    """First and last row of parts that are small in rows and, but for one row, in characters."""
    start, characters = 0, 0
    for i, text in enumerate(rows.texts):
        size = len(text) + (len(rows.pairs[i]) if rows.pairs else 0)
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
