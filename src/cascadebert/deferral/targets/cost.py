"""Targets on the mean cost of a row: the best accuracy within it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cascadebert.deferral.confidence import Floats
from cascadebert.deferral.held_out import HeldOut, Outcome
from cascadebert.deferral.targets.base import bounded_mean_p_value
from cascadebert.errors import InputError

_LARGEST_SPEEDUP = 1e6


class OnCost:
    """A target on the mean cost of a row: the best accuracy within it."""

    needs_labels = True
    on_cost = True
    reference_keeps_it = False
    abstains = False

    def tables(self, rows: HeldOut) -> Floats:
        return np.empty((0, rows.stages + 1, len(rows)))

    def losses(self, outcome: Outcome) -> Floats:
        """What each row costs too much, float64 of shape (rows,)."""
        raise NotImplementedError

    def bounds(self, outcome: Outcome) -> tuple[float, float]:
        """The lowest and the highest loss of a row; none is taken to cost more than those seen."""
        raise NotImplementedError

    def p_value(self, outcome: Outcome) -> float:
        return bounded_mean_p_value(self.losses(outcome), *self.bounds(outcome))

    def broken_p_value(self, outcome: Outcome) -> float:
        lowest, highest = self.bounds(outcome)
        return bounded_mean_p_value(-self.losses(outcome), -highest, -lowest)


@dataclass(frozen=True)
class Speedup(OnCost):
    """Cost at most 1 / ``value`` of the last stage alone, at the best accuracy."""

    value: float
    quantity = "the speed-up"

    def __post_init__(self) -> None:
        if not 0 < self.value <= _LARGEST_SPEEDUP:
            raise InputError(
                f"a speed-up of {self.value} is not a number above 0, a million at most; 4 means 4x"
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
    """Take at most ``value`` seconds a row on average, at the best accuracy.

    With costs in another unit it limits those.
    """

    value: float
    quantity = "the mean of seconds a row"

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise InputError(f"{self.value} seconds a row is not a positive number")

    def risk(self, means: Floats, cost: Floats, rows: HeldOut) -> Floats:  # noqa: ARG002
        return cost / self.value - 1

    def losses(self, outcome: Outcome) -> Floats:
        return outcome.cost - self.value

    def bounds(self, outcome: Outcome) -> tuple[float, float]:
        return -self.value, float(outcome.rows.costs.sum(axis=1).max()) - self.value

    def observed(self, outcome: Outcome) -> float:
        return float(outcome.cost.mean())

    def __str__(self) -> str:
        return f"at most {self.value:g} seconds a row"
