"""Fixed-sequence testing, and the split into rows that propose and rows that certify.

The proposing rows order vectors of thresholds from the one that keeps the promise best to the one
that serves the user best. The certifying rows test the vectors in that order, each at the full
level, and stop at the first that fails ("Learn then Test", arXiv 2110.01052). The chance that any
vector passes without keeping the promise is at most the level.
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


def walk(path: Sequence[T], p_value: Callable[[T], float], level: float) -> list[float]:
    """Fixed-sequence test: p-values of the points that pass, in their order, up to the first that
    does not.

    Args:
        path: from the point that keeps the promise best.
        p_value: of the null hypothesis that a point does not keep it.
        level: chance of a wrong promise, over all points together.
    """
    passed = []
    for point in path:
        value = p_value(point)
        if not value <= level:
            break
        passed.append(value)
    return passed


def split_rows(
    rows: int, groups: NDArray[np.int64] | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions that propose and positions that certify, drawn at random.

    Args:
        rows: number of rows.
        groups: number of each row's group, shape (rows,); rows of a group stay on one side.
        seed: of the draw.

    Raises:
        InputError: too few rows or groups to have both sides.
    """
    group = np.arange(rows) if groups is None else groups
    refuse_too_few(group)
    count = int(group.max()) + 1
    random = np.random.default_rng(seed)
    proposing = random.permutation(count)[group] < round(count * PROPOSING_SHARE)
    # In an order that nothing depends on, as tests that bet on one row after the other need it.
    order = random.permutation(rows)
    return np.flatnonzero(proposing), order[~proposing[order]]


def refuse_too_few(groups: NDArray[np.int64]) -> None:
    """Refuse rows that could not both propose and certify.

    Args:
        groups: number of each row's group or text, shape (rows,).

    Raises:
        InputError: too few different ones.
    """
    count = len(np.unique(groups))
    if count < FEWEST_ROWS:
        apart = "" if count == len(groups) else f", {count} of them independent of one another,"
        raise InputError(
            f"{len(groups)} rows{apart} are too few to certify anything; give {FEWEST_ROWS} at the "
            "very least (hundreds, for a promise of a few per cent), or ask for none "
            "(confidence=None, --confidence 0)"
        )


def one_of_each(rows: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first of these rows of each group, in their order.

    Args:
        rows: positions, in random order.
        groups: number of each row's group, shape (all rows,).
    """
    _, first = np.unique(groups[rows], return_index=True)
    return rows[np.sort(first)]
