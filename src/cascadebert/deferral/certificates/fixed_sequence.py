"""Fixed-sequence testing, and the split into proposing and certifying rows.

The proposing rows order threshold vectors from the safest to the most useful. The certifying rows
test them in that order, each at the full level, and stop at the first that fails ("Learn then
Test", arXiv 2110.01052, section 3.2). The probability that any vector passes but breaks its promise
is at most the level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cascadebert.errors import InputError

FEWEST_ROWS = 20
PROPOSING_SHARE = 0.2

T = TypeVar("T")


def fixed_sequence_test(
    path: Sequence[T], p_value: Callable[[T], float], level: float
) -> Sequence[T]:
    """The candidates that pass: those before the first with a p-value above the level.

    Args:
        path: lists candidates, the safest first.
        p_value: gives the p-value of the null hypothesis that a candidate breaks its promise.
        level: bounds the probability that any broken promise passes.

    >>> fixed_sequence_test([0.01, 0.03, 0.2, 0.01], lambda p: p, level=0.05)
    [0.01, 0.03]
    """
    failed = (number for number, candidate in enumerate(path) if not p_value(candidate) <= level)
    return path[: next(failed, len(path))]


def split_rows(
    rows: int, groups: NDArray[np.int64] | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the proposing and the certifying rows, drawn at random.

    Args:
        rows: counts the rows.
        groups: numbers the group of each row, shape (rows,); each group stays on one side.
        seed: seeds the draw.

    Returns:
        Two int64 arrays; the certifying rows are in random order.

    Raises:
        InputError: there are too few rows or groups.

    >>> [len(side) for side in split_rows(100, None, seed=0)]
    [20, 80]
    """
    group = np.arange(rows) if groups is None else groups
    refuse_too_few(group)
    count = int(group.max()) + 1
    random = np.random.default_rng(seed)
    proposing = random.permutation(count)[group] < round(count * PROPOSING_SHARE)
    # Betting tests take the rows one by one, in an order independent of their losses.
    order = random.permutation(rows)
    return np.flatnonzero(proposing), order[~proposing[order]]


def refuse_too_few(groups: NDArray[np.int64]) -> None:
    """Refuse too few independent rows to both propose and certify.

    Args:
        groups: numbers the group or text of each row, shape (rows,).

    Raises:
        InputError: fewer than 20 numbers differ.

    >>> refuse_too_few(np.arange(20))
    """
    count = len(np.unique(groups))
    if count < FEWEST_ROWS:
        apart = "" if count == len(groups) else f", {count} of them independent,"
        raise InputError(
            f"{len(groups)} rows{apart} are too few to certify anything; give at least "
            f"{FEWEST_ROWS} (hundreds, for a limit of a few per cent), or ask for no certificate "
            "(confidence=None, --confidence 0)"
        )


def one_of_each(rows: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first of these rows in each group, in their order.

    Args:
        rows: lists positions, in random order.
        groups: numbers the group of each row, shape (all rows,).

    >>> one_of_each(np.array([3, 0, 1, 2]), np.array([0, 0, 1, 1])).tolist()
    [3, 0]
    """
    _, first = np.unique(groups[rows], return_index=True)
    return rows[np.sort(first)]
