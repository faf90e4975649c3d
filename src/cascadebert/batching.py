"""Which rows go into one batch: rows of like length, up to a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

DEFAULT_TOKEN_BUDGET = 1024


def token_batches(
    lengths: NDArray[np.int64], token_budget: int = DEFAULT_TOKEN_BUDGET
) -> Iterator[NDArray[np.int64]]:
    """Split rows into batches of like length, longest first.

    Each batch holds as many rows as fit ``rows x longest row <= token_budget``, and at least
    one. The longest go first, so that memory is at its highest at once and not at the end.

    Args:
        lengths: tokens of each row, int64 of shape (rows,).
        token_budget: tokens in a batch, padding included.

    Yields:
        Positions into ``lengths``, int64; every row is in exactly one batch.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        stop = start + max(token_budget // longest, 1)
        yield order[start:stop]
        start = stop


def pad(
    columns: Mapping[str, Sequence[Sequence[int]]], padding: Mapping[str, int]
) -> dict[str, NDArray[np.int64]]:
    """Stack rows of unequal length into int64 arrays of shape (rows, longest row).

    Args:
        columns: for each model input one sequence of ids a row.
        padding: for each model input the id that fills short rows up on the right.
    """
    arrays = {}
    for name, rows in columns.items():
        longest = max(map(len, rows))
        array = np.full((len(rows), longest), padding[name], dtype=np.int64)
        for i, row in enumerate(rows):
            array[i, : len(row)] = row
        arrays[name] = array
    return arrays
