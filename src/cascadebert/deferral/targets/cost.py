"""Targets on the mean cost per row: of the thresholds that keep them, the most accurate win."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cascadebert.deferral.confidence import Floats
from cascadebert.deferral.held_out import HeldOut, Outcome
from cascadebert.deferral.plain import make_plain
from cascadebert.deferral.targets.base import bounded_mean_p_value
from cascadebert.errors import InputError

_LARGEST_SPEEDUP = 1e6


class OnCost:
    """A target on the mean cost per row."""

    needs_labels = True
    on_cost = True
    reference_keeps_it = False
    abstains = False

    def tables(self, rows: HeldOut) -> Floats:
        return np.empty((0, rows.stages + 1, len(rows)))

    def losses(self, outcome: Outcome) -> Floats:
        """Excess cost per row, float64 of shape (rows,)."""
        raise NotImplementedError

    def bounds(self, outcome: Outcome) -> tuple[float, float]:
        """The lowest and the highest loss; no row is assumed to cost more than those seen."""
        raise NotImplementedError

    def p_value(self, outcome: Outcome) -> float:
        return bounded_mean_p_value(self.losses(outcome), *self.bounds(outcome))

    def broken_p_value(self, outcome: Outcome) -> float:
        lowest, highest = self.bounds(outcome)
        return bounded_mean_p_value(-self.losses(outcome), -highest, -lowest)


@dataclass(frozen=True)
class Speedup(OnCost):
    """A mean cost of at most 1 / ``value`` of the last stage's.

    Raises:
        InputError: the value is not a number above 0 and at most a million.

    >>> print(Speedup(4))
    a speed-up of at least 4
    """

    value: float
    quantity = "the speed-up"

    def __post_init__(self) -> None:
        make_plain(self)
        if not 0 < self.value <= _LARGEST_SPEEDUP:
            raise InputError(
                f"a speed-up of {self.value} is not above 0 and at most a million; 4 means 4x"
            )

    def risk(self, means: Floats, cost: Floats, rows: HeldOut) -> Floats:  # noqa: ARG002
        return cost * self.value / float(rows.costs[:, -1].mean()) - 1

    def losses(self, outcome: Outcome) -> Floats:
        return outcome.cost * self.value - outcome.rows.costs[:, -1]

    def bounds(self, outcome: Outcome) -> tuple[float, float]:
        costs = outcome.rows.costs
        return -float(costs[:, -1].max()), float(costs.sum(axis=1).max()) * self.value

    def observed(self, outcome: Outcome) -> float:
        return float(outcome.rows.costs[:, -1].sum() / outcome.cost.sum())

    def __str__(self) -> str:
        return f"a speed-up of at least {self.value:g}"


@dataclass(frozen=True)
class MaxSecondsPerRow(OnCost):
    """A mean of at most ``value`` seconds per row, or of the unit of the costs.

    Raises:
        InputError: the value is not a positive finite number.

    >>> print(MaxSecondsPerRow(0.01))
    at most 0.01 seconds per row
    """

    value: float
    quantity = "the mean of seconds per row"

    def __post_init__(self) -> None:
        make_plain(self)
        if not 0 < self.value < math.inf:
            raise InputError(
                f"{self.value} seconds per row is not positive and finite; give 0.01 or the like"
            )

    def risk(self, means: Floats, cost: Floats, rows: HeldOut) -> Floats:  # noqa: ARG002
        return cost / self.value - 1

    def losses(self, outcome: Outcome) -> Floats:
        return outcome.cost - self.value

    def bounds(self, outcome: Outcome) -> tuple[float, float]:
        return -self.value, float(outcome.rows.costs.sum(axis=1).max()) - self.value

    def observed(self, outcome: Outcome) -> float:
        return float(outcome.cost.mean())

    def __str__(self) -> str:
        return f"at most {self.value:g} seconds per row"
