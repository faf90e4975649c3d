"""Orders of rows: every row, like lengths together, and pairs where they are asked for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadebert.errors import InputError
from cascadebert.training.sampling import RowSampler


@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.sampled_from([0.0, 0.5, 1.0])), min_size=2, max_size=90
    ),
    st.integers(2, 12),
    st.integers(0, 3),
)
@settings(deadline=None)
def test_every_batch_has_a_pair_and_every_row_comes(
    rows: list[tuple[int, float]], batch_size: int, epoch: int
) -> None:
    lengths, difficulty = zip(*rows, strict=True)
    if len(set(difficulty)) < 2:
        return
    sampler = RowSampler(lengths, batch_size, difficulty=np.array(difficulty))
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert len(order) == len(sampler)
    assert set(order) == set(range(len(rows)))
    for start in range(0, len(order), batch_size):
        assert len({difficulty[row] for row in order[start : start + batch_size]}) > 1
    # Where both kinds are plentiful none comes twice, but for one that fills the last batch.
    batches = -(-len(rows) // batch_size)
    common = Counter(difficulty).most_common(1)[0][1]
    if min(common, len(rows) - common) >= batches:
        assert len(order) <= len(rows) + 1


def test_without_pairs_each_row_comes_once_and_lengths_together() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 1000).tolist()
    order = list(RowSampler(lengths, 10))
    assert sorted(order) == list(range(1000))

    def padding(rows: list[int]) -> int:
        batches = [rows[i : i + 10] for i in range(0, 1000, 10)]
        return sum(max(lengths[r] for r in b) * len(b) for b in batches) - sum(lengths)

    assert padding(order) < padding(list(RowSampler(lengths, 10, order="random"))) / 3


def test_same_seed_and_epoch_same_order() -> None:
    lengths = list(range(1, 60))
    hard = np.arange(59) % 5 == 0
    for difficulty in (None, hard.astype(float)):
        first, second = (RowSampler(lengths, 7, 3, difficulty=difficulty) for _ in range(2))
        assert list(first) == list(second)
        second.set_epoch(1)
        assert list(first) != list(second)


def test_what_cannot_have_pairs() -> None:
    with pytest.raises(InputError, match=r"every row has the difficulty 0\.0"):
        RowSampler([3, 4], 2, difficulty=np.zeros(2))
    with pytest.raises(InputError, match="a batch of 1 row"):
        RowSampler([3, 4], 1, difficulty=np.arange(2.0))
