"""The order of training rows: similar lengths together, and a pair in every batch."""

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
    """Positions of the rows in the order of one epoch, the same for the same seed and epoch.

    Args:
        lengths: gives the number of tokens of each row.
        batch_size: sets the number of rows per batch.
        seed: sets the order.
        order: names the order as ``train_sampling_strategy`` of ``TrainingArguments`` does:
            "group_by_length", "random" or "sequential".
        difficulty: puts rows of at least two difficulties into every batch, float64 of shape
            (rows,). If one difficulty has fewer rows than there are batches, some of them occur
            more than once per epoch. No row is left out.

    Raises:
        InputError: the order is unknown; or pairs are requested and all rows have the same
            difficulty, or a batch has only one row.

    Examples:
        >>> list(RowSampler([3, 5, 4], batch_size=2, order="sequential"))
        [0, 1, 2]
        >>> sampler = RowSampler([3, 5, 4, 4], 2, difficulty=np.array([0.0, 1.0, 0.0, 0.0]))
        >>> order = list(sampler)
        >>> [1 in order[start : start + 2] for start in range(0, len(order), 2)]
        [True, True, True]
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
        """Set the epoch, which the Trainer does before each one."""
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
        """One row of each group per batch, of similar length, and the other rows around them."""
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
    """Positions of the rows with the most common difficulty, and of the others."""
    levels, level, counts = np.unique(difficulty, return_inverse=True, return_counts=True)
    if len(levels) < 2:
        raise InputError(
            f"every row has the difficulty {levels[0]}, so that no batch has a pair; unset "
            "paired_batches"
        )
    if batch_size < 2:
        raise InputError("a batch of 1 row has no pair; use batches of at least 2 rows")
    common = level == counts.argmax()
    return np.flatnonzero(common), np.flatnonzero(~common)


def _repeats(groups: tuple[NDArray[np.int64], ...], batch_size: int) -> list[int]:
    """The number of repeated rows of each group, so that every batch has one."""
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
    """transformers' Trainer with a reproducible order of rows.

    Attributes:
        paired: whether every batch holds rows of two difficulties.
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
