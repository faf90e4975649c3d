from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cascadebert.stages.batching import token_batches, widths

LENGTHS = st.lists(st.integers(0, 600), max_size=200).map(lambda n: np.array(n, dtype=np.int64))


@given(LENGTHS, st.integers(1, 3000))
def test_every_row_is_in_one_batch_of_its_own_width(lengths, budget):
    batches = list(token_batches(lengths, budget))
    seen = np.concatenate([*batches, np.array([], dtype=np.int64)])
    assert sorted(seen.tolist()) == list(range(len(lengths)))
    for batch in batches:
        (width,) = set(widths(lengths[batch]).tolist())
        assert len(batch) == 1 or len(batch) * width <= budget


@given(LENGTHS, st.integers(1, 3000))
def test_batches_come_widest_first_and_are_as_few_as_can_be(lengths, budget):
    batches = list(token_batches(lengths, budget))
    of_each = [int(widths(lengths[batch])[0]) for batch in batches]
    assert of_each == sorted(of_each, reverse=True)
    for width in set(of_each):
        rows = int((widths(lengths) == width).sum())
        assert of_each.count(width) == -(-rows // max(budget // width, 1))


@given(st.integers(1, 100_000))
def test_a_row_is_padded_by_a_quarter_at_most(tokens):
    (width,) = widths([tokens])
    assert tokens <= width <= tokens * 5 / 4


@given(LENGTHS, st.integers(1, 600))
def test_no_row_is_padded_beyond_what_the_model_reads(lengths, most):
    cut = np.minimum(lengths, most)
    assert (widths(cut, most) <= most).all()
    assert (widths(cut, most) >= cut).all()
    for batch in token_batches(cut, 1024, most):
        assert len(set(widths(cut[batch], most).tolist())) == 1


def test_widths_are_few():
    assert len(np.unique(widths(np.arange(1, 513)))) <= 32
    assert widths([0, 1, 15, 17, 33, 100]).tolist() == [1, 1, 16, 20, 40, 112]
