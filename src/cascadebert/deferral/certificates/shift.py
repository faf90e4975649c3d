"""Whether rows go through a cascade as the rows of its certificate did.

A certificate holds for rows drawn as its own were. Its rows' confidences, sorted into bins that
other rows have set, and the stages they ended at are kept as counts. The counts of fresh rows are
compared with them by permutation tests: under the null hypothesis that all rows are drawn alike,
given all counts together, the fresh ones are a draw without replacement. That is valid at any
number of rows.
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
class Seen:
    """How rows went through a cascade.

    Attributes:
        ends: rows that each stage answered, and, last, rows without an answer.
        edges: for each stage that is run the borders of its bins of confidence, on the shown
            scale.
        confidences: rows in each bin, for the same stages; all rows, also such as exit before.
        stages: the numbers of those stages, from 1.
    """

    ends: tuple[int, ...]
    stages: tuple[int, ...]
    edges: tuple[tuple[float, ...], ...]
    confidences: tuple[tuple[int, ...], ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Seen:
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
        recorded, fresh: shares of the rows in each bin.
        p_value: of the null hypothesis that all rows are drawn alike.
    """

    what: str
    recorded: tuple[float, ...]
    fresh: tuple[float, ...]
    p_value: float


def bin_edges(shown: Floats) -> tuple[float, ...]:
    """Borders that part these confidences into bins of about as many rows each."""
    if not len(shown):
        return ()
    inner = np.quantile(shown, np.linspace(0, 1, _BINS + 1)[1:-1])
    return tuple(np.unique(inner).tolist())


def count_bins(shown: Floats, edges: Sequence[float]) -> tuple[int, ...]:
    """Rows in each bin; at a border a row belongs to the lower bin."""
    bins = np.searchsorted(np.asarray(edges), shown, side="left")
    return tuple(np.bincount(bins, minlength=len(edges) + 1).tolist())


def shifts(recorded: Seen, fresh: Seen, seed: int = 0) -> list[Shift]:
    """Compare two sets of rows; see :func:`shift_p_value` for all comparisons together."""
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
    """p-value of all comparisons together (Bonferroni)."""
    return min(min(shift.p_value for shift in found) * len(found), 1.0)


def counts_p_value(first: Sequence[int], second: Sequence[int], seed: int = 0) -> float:
    """Permutation p-value of two rows of counts being draws from one distribution.

    Args:
        first: rows in each bin.
        second: the same of the other draw.
        seed: of the permutations.

    Returns:
        1 where one of the two is empty.
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
    """Chi-square statistic of each row of counts."""
    used = expected > 0
    result: Floats = ((counts[:, used] - expected[used]) ** 2 / expected[used]).sum(axis=1)
    return result


def _shares(counts: Sequence[int]) -> tuple[float, ...]:
    total = max(sum(counts), 1)
    return tuple(count / total for count in counts)
