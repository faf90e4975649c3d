"""Rows as transformers' Trainer reads them: token ids and other columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from cascadebert.rows.rows import Rows


class EncodedRows(torch.utils.data.Dataset[dict[str, Any]]):
    """A data set of token ids and other columns.

    Args:
        encoded: holds the tokenizer's output: for each model input one list per row.
        columns: holds other values, one per row.

    Attributes:
        lengths: number of tokens of each row.

    Examples:
        >>> rows = EncodedRows({"input_ids": [[5, 6], [7]]}, {"labels": [0, 1]})
        >>> rows[1], rows.lengths
        ({'input_ids': [7], 'labels': 1}, [2, 1])
    """

    def __init__(self, encoded: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
        self.encoded = encoded
        self.columns = columns
        self.lengths = [len(ids) for ids in encoded["input_ids"]]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        values = {name: column[index] for name, column in self.encoded.items()}
        return values | {name: column[index] for name, column in self.columns.items()}


class Encoder:
    """A function from rows to token ids and label ids.

    Args:
        tokenizer: encodes the texts.
        names: gives the label names in the order of the logits.
        max_length: truncates rows to this many tokens.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, names: Sequence[str], max_length: int
    ) -> None:
        self._tokenizer = tokenizer
        self._ids = {name: i for i, name in enumerate(names)}
        self._max_length = max_length

    def __call__(
        self, rows: Rows, columns: Mapping[str, Any], numbers: Sequence[int] | None = None
    ) -> EncodedRows:
        """Encode rows.

        Args:
            rows: gives texts and labels.
            columns: adds other values, one per row.
            numbers: numbers the rows; by default from 0.
        """
        pairs = None if rows.pairs is None else list(rows.pairs)
        encoded = self._tokenizer(
            list(rows.texts), pairs, truncation=True, max_length=self._max_length
        )
        labels = [self._ids[name] for name in rows.labels or ()]
        named = range(len(rows)) if numbers is None else numbers
        return EncodedRows(encoded, {**columns, "labels": labels, "row": named})


class Collator:
    """A function from encoded rows to one batch: pads token ids, stacks the other columns.

    Args:
        tokenizer: pads the token ids.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        tokens = set(self._tokenizer.model_input_names)
        batch = self._tokenizer.pad(
            {name: [f[name] for f in features] for name in features[0] if name in tokens},
            pad_to_multiple_of=8,
            return_tensors="pt",
        )
        others = {
            name: torch.from_numpy(np.stack([f[name] for f in features]))
            for name in features[0]
            if name not in tokens
        }
        return {**batch, **others}
