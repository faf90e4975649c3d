"""The Matthews correlation, which is not a mean over rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cascadebert.deferral.confidence import Floats
from cascadebert.deferral.held_out import HeldOut, Outcome
from cascadebert.deferral.plain import make_plain
from cascadebert.deferral.pvalues import binomial_interval
from cascadebert.deferral.targets.base import OnAnswers, refuse_share
from cascadebert.errors import InputError

_LEVEL_DIGITS = 0.01
_LEAST_LEVEL = 1e-9
_SHARES = 101


@dataclass(frozen=True)
class MinMatthews(OnAnswers):
    """A Matthews correlation of at least ``value`` between answers and labels of two classes.

    It is not a mean over rows, so certifying it takes more rows than other targets do. The share of
    the first class and the share of hits in each class get an exact confidence interval; the
    lowest correlation in the box of these intervals is what the test compares with the value.

    Raises:
        InputError: the value is not a number in (0, 1).

    >>> print(MinMatthews(0.6))
    a Matthews correlation of at least 0.6
    """

    value: float
    quantity = "the Matthews correlation"

    def __post_init__(self) -> None:
        make_plain(self)
        refuse_share(self.value, "a Matthews correlation")

    def tables(self, rows: HeldOut) -> Floats:
        if len(rows.names) != 2:
            raise InputError(
                f"MinMatthews is for two classes, these rows have {len(rows.names)}; "
                "use MinAccuracy, or MinF1 per label"
            )
        return np.stack([~rows.right & (rows.truth == label) for label in (0, 1)]).astype(float)

    def risk(self, means: Floats, cost: Floats, rows: HeldOut) -> Floats:  # noqa: ARG002
        first = float((rows.truth == 0).mean())
        if not 0 < first < 1:
            return np.full(means.shape[1], self.value)
        return self.value - matthews(1 - means[0] / first, 1 - means[1] / (1 - first), first)

    def losses(self, outcome: Outcome) -> Floats:
        # Near the target a hit moves the correlation about twice as far as the accuracy.
        correlation = self.observed(outcome)
        right = outcome.right.astype(np.float64)
        losses: Floats = self.value - correlation - 2 * (right - right.mean())
        return losses

    def p_value(self, outcome: Outcome) -> float:
        return _smallest_level(lambda level: self._bounds(outcome, level)[0] >= self.value)

    def broken_p_value(self, outcome: Outcome) -> float:
        return _smallest_level(lambda level: self._bounds(outcome, level)[1] < self.value)

    def _bounds(self, outcome: Outcome, level: float) -> tuple[float, float]:
        """Confidence bounds of the correlation, each at the level."""
        sizes, hits = self._counts(outcome)
        if min(sizes) == 0:
            return -1.0, 1.0
        # The lower bound needs only the lower ends of the shares of hits, the upper bound only the
        # upper ends; both need both ends of the class's share.
        ends = [
            binomial_interval(hit, size, 2 * level / 3)
            for hit, size in zip(hits, sizes, strict=True)
        ]
        shares = np.linspace(*binomial_interval(sizes[0], sum(sizes), level / 3), _SHARES)
        low, high = (matthews(ends[0][side], ends[1][side], shares) for side in (0, 1))
        if ends[0][0] + ends[1][0] <= 1:
            return -1.0, float(high.max())
        return float(low.min()), float(high.max())

    def _counts(self, outcome: Outcome) -> tuple[list[int], list[int]]:
        of_class = [outcome.rows.truth == label for label in (0, 1)]
        return [int(c.sum()) for c in of_class], [int((outcome.right & c).sum()) for c in of_class]

    def observed(self, outcome: Outcome) -> float:
        sizes, hits = self._counts(outcome)
        if min(sizes) == 0:
            return 0.0
        return float(matthews(hits[0] / sizes[0], hits[1] / sizes[1], sizes[0] / sum(sizes)))

    def __str__(self) -> str:
        return f"a Matthews correlation of at least {self.value:g}"


def _smallest_level(shown: Callable[[float], bool]) -> float:
    """The smallest level at which ``shown`` is true, rounded up."""
    low, high = 0.0, 1.0
    while high - low > _LEVEL_DIGITS * high and high > _LEAST_LEVEL:
        level = (low + high) / 2
        low, high = (low, level) if shown(level) else (level, high)
    return high


def matthews(
    first_hits: float | Floats, second_hits: float | Floats, first: float | Floats
) -> Floats:
    """Matthews correlation of two classes, float64 of the shape that the arguments broadcast to.

    Args:
        first_hits: is the share of right answers among the rows of the first class.
        second_hits: is the same for the second class.
        first: is the share of rows that belong to the first class.

    >>> matthews(0.9, 0.9, 0.5).round(6).tolist()
    0.8
    """
    says_first = first * first_hits + (1 - first) * (1 - second_hits)
    spread = says_first * (1 - says_first)
    difference = (first_hits + second_hits - 1) * np.sqrt(first * (1 - first))
    result: Floats = difference / np.sqrt(np.where(spread > 0, spread, 1.0))
    return result
