"""The order in which rows are trained on: like lengths together, and pairs in every batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Trainer
from transformers.trainer_pt_utils import get_length_grouped_indices

from cascadebert.errors import InputError
from cascadebert.training.encoding import EncodedRows

ORDERS = ("group_by_length", "random", "sequential")


class RowSampler(torch.utils.data.Sampler[int]):
    """Rows in the order of one epoch; the same seed and epoch give the same order.

    Args:
        lengths: tokens of each row.
        batch_size: rows a batch.
        seed: of the order.
        order: "group_by_length", "random" or "sequential", as TrainingArguments'
            train_sampling_strategy.
        difficulty: if given, every batch holds rows of two difficulties at least. Where there
            are fewer rows of one kind than batches, some come more than once an epoch; no row
            is left out.

    Raises:
        InputError: no such order; or pairs are asked for and there are none, or a batch has only
            one row.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int = 0,
        *,
        order: str = "group_by_length",
        difficulty: NDArray[np.float64] | None = None,
    ) -> None:
        if order not in ORDERS:
            raise InputError(
                f"train_sampling_strategy is {order!r}; give one of {', '.join(ORDERS)}"
            )
        self._lengths = list(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._order_name = order
        self._epoch = 0
        self._groups = None if difficulty is None else _two_groups(difficulty, batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        if self._groups is None:
            return len(self._lengths)
        return len(self._lengths) + sum(_repeats(self._groups, self._batch_size))

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        if self._groups is None:
            return iter(self._order(range(len(self._lengths)), generator))
        return iter(self._paired(self._groups, generator))

    def _order(self, rows: Sequence[int], generator: torch.Generator) -> list[int]:
        if self._order_name == "sequential":
            return list(rows)
        if self._order_name == "random" or not rows:
            return [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
        lengths = [self._lengths[row] for row in rows]
        order = get_length_grouped_indices(lengths, self._batch_size, generator=generator)  # type: ignore[no-untyped-call]
        return [rows[i] for i in order]

    def _paired(
        self, groups: tuple[NDArray[np.int64], ...], generator: torch.Generator
    ) -> list[int]:
        """One row of each group for every batch, of like length, and the others around them."""
        repeats = _repeats(groups, self._batch_size)
        batches = _batch_count(len(self), self._batch_size)
        firsts, others = [], []
        for rows, extra in zip(groups, repeats, strict=True):
            order = torch.randperm(len(rows), generator=generator).numpy()
            drawn = rows[np.resize(order, len(rows) + extra)].tolist()
            firsts.append(sorted(drawn[:batches], key=self._lengths.__getitem__))
            others += drawn[batches:]
        others = self._order(others, generator)
        size = self._batch_size - 2
        parts = [others[i * size : (i + 1) * size] for i in range(batches)]
        # The longest pair goes to the batch whose other rows are longest.
        by_longest = sorted(
            range(batches), key=lambda i: max((self._lengths[r] for r in parts[i]), default=0)
        )
        result: list[list[int]] = [[] for _ in range(batches)]
        for rank, batch in enumerate(by_longest):
            result[batch] = [firsts[0][rank], firsts[1][rank], *parts[batch]]
        # A batch that is not full must be the last one.
        result.sort(key=len, reverse=True)
        return [row for batch in result for row in batch]


def _two_groups(
    difficulty: NDArray[np.float64], batch_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the commonest difficulty, and the others."""
    levels, level, counts = np.unique(difficulty, return_inverse=True, return_counts=True)
    if len(levels) < 2:
        raise InputError(
            f"every row has the difficulty {levels[0]}: no batch can have a pair; train without "
            "paired batches"
        )
    if batch_size < 2:
        raise InputError("a batch of 1 row cannot hold a pair; use batches of 2 rows or more")
    common = level == counts.argmax()
    return np.flatnonzero(common), np.flatnonzero(~common)


def _repeats(groups: tuple[NDArray[np.int64], ...], batch_size: int) -> list[int]:
    """How many rows of each group come again so that there is one for every batch."""
    sizes = [len(rows) for rows in groups]
    batches = _batch_count(sum(sizes), batch_size)
    while sum(max(size, batches) for size in sizes) > batches * batch_size:
        batches += 1
    repeats = [max(batches - size, 0) for size in sizes]
    # A last batch of one row would have no pair.
    if (sum(sizes) + sum(repeats)) % batch_size == 1:
        repeats[sizes.index(min(sizes))] += 1
    return repeats


def _batch_count(rows: int, batch_size: int) -> int:
    return -(-rows // batch_size)


class RowTrainer(Trainer):
    """The Trainer with a reproducible order of rows.

    Attributes:
        paired: whether every batch gets rows of two difficulties.
    """

    paired = False

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        assert isinstance(dataset, EncodedRows)
        return RowSampler(
            dataset.lengths,
            self.args.train_batch_size,
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
            order=str(self.args.train_sampling_strategy),
            difficulty=dataset.columns.get("difficulty") if self.paired else None,
        )
