"""The transformer stage: a tokenizer, and an encoder that one of the runtimes runs."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cascadebert.disk import TOKENIZER_FILE
from cascadebert.errors import ArtifactError
from cascadebert.persistence.record import StageRecord
from cascadebert.rows.rows import Rows
from cascadebert.runtimes import Runtime
from cascadebert.runtimes.lazy import LazyModel
from cascadebert.stages.base import Stage
from cascadebert.stages.batching import token_batches, widths

# Encodings are large until they are cut down to ids, so few are alive at a time.
_ROWS_PER_TOKENIZER_CALL = 512
_CHARACTERS_PER_TOKENIZER_CALL = 1_000_000


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
            positions: rows whose :func:`~cascadebert.stages.batching.widths` are the same.
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


class TransformerStage(Stage):
    """A stage whose classifier is an encoder run by one of the runtimes.

    Attributes:
        padding: for each of the model's inputs the id that fills rows up.
        model: the model, opened when first needed.
    """

    def __init__(
        self, folder: Path, record: StageRecord, labels: Sequence[str], runtime: str, *rest: Any
    ) -> None:
        super().__init__(folder, record, labels, runtime, *rest)
        self.padding = {"input_ids": record.pad_token_id, "token_type_ids": 0}
        self._tokenizer = _load_tokenizer(folder / TOKENIZER_FILE, record)
        self.model: Runtime = LazyModel(runtime, folder, self.threads)

    @property
    def token_budgets(self) -> tuple[int, ...]:
        """See :attr:`Stage.token_budgets`."""
        return self.model.token_budgets

    def open(self) -> None:
        """Compile the model now and not when the first row comes."""
        if isinstance(self.model, LazyModel):
            self.model.open()

    @property
    def tokenization_key(self) -> object:
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
