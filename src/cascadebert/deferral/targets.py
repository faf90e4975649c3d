"""What users ask of a cascade: each target ranks operating points, and tests its promise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.deferral.pvalues import binomial_p_value, mean_p_value, paired_p_value
from cascadebert.errors import InputError

_ROUNDING = 1e-12


@dataclass(frozen=True)
class OperatingPoint:
    """One vector of thresholds and what it gives on the rows it was tried on.

    ``accuracy`` is the share of right answers; for a target on agreement, of answers that are the
    last stage's. ``cost`` is the mean of a row, in the unit of the costs.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    cost: float


@dataclass(frozen=True)
class Outcome:
    """What one vector of thresholds does to each row, beside the last stage alone.

    Attributes:
        right, reference_right: bool of shape (rows,); for a target on agreement, whether the
            answer is the last stage's, which the reference always is.
        cost, reference_cost: of each row, float64 of shape (rows,).
        highest_cost: that a row can have at all.
    """

    right: NDArray[np.bool_]
    reference_right: NDArray[np.bool_]
    cost: Floats
    reference_cost: Floats
    highest_cost: float


class Target(Protocol):
    """What the user wants, measured against the last stage alone (the reference).

    Attributes:
        value: the number in it.
        needs_labels: whether answers are judged by labels, or by the last stage's answers.
        limits_cost: whether it is a promise about the cost, which the cheapest thresholds keep
            best, or about the answers, which the last stage alone keeps best.
        against_reference: whether the last stage alone keeps it by what it is, without a test.
    """

    @property
    def value(self) -> float: ...

    @property
    def needs_labels(self) -> bool: ...

    @property
    def limits_cost(self) -> bool: ...

    @property
    def against_reference(self) -> bool: ...

    def rank(self, point: OperatingPoint, reference: OperatingPoint) -> tuple[float, ...]:
        """Sort key, best first; its first number is 0 where the target is met, else 1."""
        ...

    def p_value(self, outcome: Outcome) -> float:
        """Of the null hypothesis that the promise does not hold for rows drawn as these were."""
        ...

    def losses(self, outcome: Outcome) -> Floats:
        """One number a row, shape (rows,), whose expectation the promise limits."""
        ...

    @property
    def limit(self) -> float:
        """What the expected loss must not be above."""
        ...

    def observed(self, outcome: Outcome) -> float:
        """What the promise is about, as seen in these rows, in the unit of ``value``."""
        ...

    def __str__(self) -> str: ...


class _ByAnswers:
    """A target on the answers: least cost among the thresholds that keep it."""

    needs_labels = True
    limits_cost = False
    against_reference = False


@dataclass(frozen=True)
class MaxDrop(_ByAnswers):
    """Lose at most ``value`` of the last stage's accuracy (0.01 is one point), at least cost."""

    value: float
    against_reference = True

    def __post_init__(self) -> None:
        if not 0 <= self.value < 1:
            raise InputError(
                f"a drop in accuracy of {self.value} is not in [0, 1); 0.01 means one point"
            )

    def rank(self, point: OperatingPoint, reference: OperatingPoint) -> tuple[float, ...]:
        return _cheapest_above(point, reference.accuracy - self.value)

    def p_value(self, outcome: Outcome) -> float:
        worse = int((outcome.reference_right & ~outcome.right).sum())
        better = int((outcome.right & ~outcome.reference_right).sum())
        return paired_p_value(worse, better, len(outcome.right), self.value)

    def losses(self, outcome: Outcome) -> Floats:
        return outcome.reference_right.astype(np.float64) - outcome.right

    @property
    def limit(self) -> float:
        return self.value

    def observed(self, outcome: Outcome) -> float:
        return float(outcome.reference_right.mean() - outcome.right.mean())

    def __str__(self) -> str:
        return f"an accuracy at most {self.value:g} below the last stage's"


@dataclass(frozen=True)
class MinAccuracy(_ByAnswers):
    """Be right on a share of ``value`` of the rows or more, at least cost."""

    value: float

    def __post_init__(self) -> None:
        _refuse_share(self.value, "an accuracy")

    def rank(self, point: OperatingPoint, reference: OperatingPoint) -> tuple[float, ...]:  # noqa: ARG002
        return _cheapest_above(point, self.value)

    def p_value(self, outcome: Outcome) -> float:
        wrong = int((~outcome.right).sum())
        return binomial_p_value(wrong, len(outcome.right), self.limit)

    def losses(self, outcome: Outcome) -> Floats:
        return (~outcome.right).astype(np.float64)

    @property
    def limit(self) -> float:
        return 1 - self.value

    def observed(self, outcome: Outcome) -> float:
        return float(outcome.right.mean())

    def __str__(self) -> str:
        return f"an accuracy of at least {self.value:g}"


@dataclass(frozen=True)
class MinAgreement(MinAccuracy):
    """Answer as the last stage does on a share of ``value`` of the rows or more, at least cost.

    It needs no labels.
    """

    needs_labels = False
    against_reference = True

    def __post_init__(self) -> None:
        _refuse_share(self.value, "an agreement")

    def __str__(self) -> str:
        return f"the last stage's answer on a share of at least {self.value:g} of the rows"


@dataclass(frozen=True)
class Speedup:
    """Cost at most 1 / ``value`` of the last stage alone, at the best accuracy."""

    value: float
    needs_labels = True
    limits_cost = True
    against_reference = False

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise InputError(f"a speed-up of {self.value} is not a positive number; 4 means 4x")

    def rank(self, point: OperatingPoint, reference: OperatingPoint) -> tuple[float, ...]:
        if point.cost * self.value <= reference.cost * (1 + _ROUNDING):
            return (0, -point.accuracy, point.cost)
        return (1, point.cost, -point.accuracy)

    def p_value(self, outcome: Outcome) -> float:
        lowest = -float(outcome.reference_cost.max())
        width = outcome.highest_cost * self.value - lowest
        return mean_p_value((self.losses(outcome) - lowest) / width, -lowest / width)

    def losses(self, outcome: Outcome) -> Floats:
        return outcome.cost * self.value - outcome.reference_cost

    @property
    def limit(self) -> float:
        return 0.0

    def observed(self, outcome: Outcome) -> float:
        return float(outcome.reference_cost.sum() / outcome.cost.sum())

    def __str__(self) -> str:
        return f"a speed-up of at least {self.value:g}"


def _cheapest_above(point: OperatingPoint, least: float) -> tuple[float, ...]:
    if point.accuracy >= least - _ROUNDING:
        return (0, point.cost, -point.accuracy)
    return (1, -point.accuracy, point.cost)


def _refuse_share(value: float, what: str) -> None:
    if not 0 < value < 1:
        raise InputError(f"{what} of {value} is not a share between 0 and 1; 0.95 means 95 %")
