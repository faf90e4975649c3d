"""What users ask of a cascade: each target ranks operating points and says if it is met."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from cascadebert.errors import InputError

_ROUNDING = 1e-12


@dataclass(frozen=True)
class OperatingPoint:
    """One vector of thresholds and what it gives on the rows it was tried on.

    ``cost`` is the mean of a row, in the unit of the costs.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    cost: float


class Target(Protocol):
    """What the user wants, measured against the last stage alone (the reference)."""

    def rank(self, point: OperatingPoint, reference: OperatingPoint) -> tuple[float, ...]:
        """Sort key, best first; its first number is 0 where the target is met, else 1."""
        ...


@dataclass(frozen=True)
class MaxDrop:
    """Lose at most ``value`` of the last stage's accuracy (0.01 is one point), at least cost."""

    value: float

    def __post_init__(self) -> None:
        if not 0 <= self.value < 1:
            raise InputError(
                f"a drop in accuracy of {self.value} is not in [0, 1); 0.01 means one point"
            )

    def rank(self, point: OperatingPoint, reference: OperatingPoint) -> tuple[float, ...]:
        if point.accuracy >= reference.accuracy - self.value - _ROUNDING:
            return (0, point.cost, -point.accuracy)
        return (1, -point.accuracy, point.cost)


@dataclass(frozen=True)
class Speedup:
    """Cost at most 1 / ``value`` of the last stage alone, at the best accuracy."""

    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise InputError(f"a speed-up of {self.value} is not a positive number; 4 means 4x")

    def rank(self, point: OperatingPoint, reference: OperatingPoint) -> tuple[float, ...]:
        if point.cost * self.value <= reference.cost * (1 + _ROUNDING):
            return (0, -point.accuracy, point.cost)
        return (1, point.cost, -point.accuracy)
