"""Tests of distribution shift: do fresh rows go through a cascade as its certifying rows did?

A certificate holds for rows from the same distribution as its own. It stores counts: of the
certifying rows per bin of confidence, with bins that other rows set, and per stage where they
ended. Permutation tests compare the counts of fresh rows with them. Under the null hypothesis of
one distribution, and given the pooled counts, the fresh rows are a draw without replacement, so the
tests are valid for any number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.confidence import Floats

_BINS = 10
_DRAWS = 9_999


@dataclass(frozen=True)
class RoutingSummary:
    """Counts of how rows went through a cascade.

    Attributes:
        ends: rows that each stage answered; the last number counts rows without an answer.
        stages: numbers of the stages that are run, from 1.
        edges: per stage that is run, the borders of its bins of confidence, on the shown scale.
        confidences: per stage that is run, all rows per bin, including rows that exit earlier.
    """

    ends: tuple[int, ...]
    stages: tuple[int, ...]
    edges: tuple[tuple[float, ...], ...]
    confidences: tuple[tuple[int, ...], ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RoutingSummary:
        """A summary from the output of :func:`dataclasses.asdict`, with tuples or lists.

        Args:
            values: holds the fields.

        Raises:
            TypeError, KeyError, ValueError: a field is missing or of the wrong type.
        """
        return cls(
            ends=tuple(map(int, values["ends"])),
            stages=tuple(map(int, values["stages"])),
            edges=tuple(tuple(map(float, edges)) for edges in values["edges"]),
            confidences=tuple(tuple(map(int, counts)) for counts in values["confidences"]),
        )


@dataclass(frozen=True)
class Shift:
    """One comparison of fresh rows with a certificate's.

    Attributes:
        what: "exits", or "confidence of stage N".
        recorded, fresh: share of the rows in each bin.
        p_value: for the null hypothesis of one distribution.
    """

    what: str
    recorded: tuple[float, ...]
    fresh: tuple[float, ...]
    p_value: float


def bin_edges(shown: Floats) -> tuple[float, ...]:
    """Borders of up to ten bins with about as many rows each.

    Args:
        shown: holds the confidences, shape (rows,).

    >>> bin_edges(np.arange(100.0))[:2]
    (9.9, 19.8)
    """
    if not len(shown):
        return ()
    inner = np.quantile(shown, np.linspace(0, 1, _BINS + 1)[1:-1])
    return tuple(np.unique(inner).tolist())


def count_bins(shown: Floats, edges: Sequence[float]) -> tuple[int, ...]:
    """Rows per bin; a row on a border belongs to the lower bin.

    Args:
        shown: holds the confidences, shape (rows,).
        edges: are the borders of the bins.

    >>> count_bins(np.array([0.1, 0.5, 0.9]), [0.5])
    (2, 1)
    """
    bins = np.searchsorted(np.asarray(edges), shown, side="left")
    return tuple(np.bincount(bins, minlength=len(edges) + 1).tolist())


def shifts(recorded: RoutingSummary, fresh: RoutingSummary, seed: int = 0) -> list[Shift]:
    """Compare where rows ended, and the confidence of each stage.

    Args:
        recorded: summarises the rows of the certificate.
        fresh: summarises other rows, by the same bins.
        seed: seeds the permutations.

    >>> rows = RoutingSummary((8, 2, 0), (1,), ((0.5,),), ((3, 7),))
    >>> [shift.what for shift in shifts(rows, rows)]
    ['exits', 'confidence of stage 1']
    """
    pairs = [("exits", recorded.ends, fresh.ends)]
    for number, old, new in zip(
        recorded.stages, recorded.confidences, fresh.confidences, strict=True
    ):
        pairs.append((f"confidence of stage {number}", old, new))
    return [
        Shift(what, _shares(old), _shares(new), counts_p_value(old, new, seed))
        for what, old, new in pairs
    ]


def shift_p_value(found: Sequence[Shift]) -> float:
    """p-value of all comparisons together, by Bonferroni's correction.

    Args:
        found: lists the comparisons, one or more.

    >>> shift_p_value([Shift("exits", (1.0,), (1.0,), 0.2)] * 3)
    0.6000000000000001
    """
    return min(min(shift.p_value for shift in found) * len(found), 1.0)


def counts_p_value(first: Sequence[int], second: Sequence[int], seed: int = 0) -> float:
    """Permutation p-value for the null hypothesis that two samples have one distribution.

    Args:
        first: counts the first sample per bin.
        second: counts the second sample per bin.
        seed: seeds the permutations.

    Returns:
        The p-value, which is 1 where a sample is empty.

    >>> counts_p_value([50, 0], [0, 50])
    0.0001
    """
    table = np.array([first, second], dtype=np.int64)
    size = int(table[1].sum())
    if min(int(table[0].sum()), size) == 0:
        return 1.0
    together = table.sum(axis=0)
    draws = np.random.default_rng(seed).multivariate_hypergeometric(together, size, size=_DRAWS)
    expected = together * (size / together.sum())
    distances = _distance(draws, expected)
    here = _distance(table[1:], expected)[0]
    at_least = int((distances >= here * (1 - 1e-12)).sum())
    return (1 + at_least) / (1 + _DRAWS)


def _distance(counts: NDArray[np.int64], expected: Floats) -> Floats:
    """Chi-square statistic per row of counts."""
    used = expected > 0
    result: Floats = ((counts[:, used] - expected[used]) ** 2 / expected[used]).sum(axis=1)
    return result


def _shares(counts: Sequence[int]) -> tuple[float, ...]:
    total = max(sum(counts), 1)
    return tuple(count / total for count in counts)
