"""Targets on the answers: of the thresholds that keep them, the cheapest win."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.deferral.held_out import HeldOut, Outcome
from cascadebert.deferral.plain import make_plain
from cascadebert.deferral.pvalues import paired_p_value
from cascadebert.deferral.targets.base import OnAnswers, Share, bounded_mean_p_value
from cascadebert.errors import InputError


@dataclass(frozen=True)
class MaxDrop(OnAnswers):
    """An accuracy at most ``value`` below the last stage's (0.01 is one point).

    Raises:
        InputError: the value is not a number in [0, 1).

    >>> print(MaxDrop(0.01))
    an accuracy at most 0.01 below the last stage's
    """

    value: float
    reference_keeps_it = True
    quantity = "the drop in accuracy"

    def __post_init__(self) -> None:
        make_plain(self)
        if not 0 <= self.value < 1:
            raise InputError(
                f"a drop in accuracy of {self.value} is not in [0, 1); 0.01 means one point"
            )

    def table(self, rows: HeldOut) -> Floats:
        loss: Floats = rows.right[-2].astype(np.float64) - rows.right - self.value
        return loss

    def p_value(self, outcome: Outcome) -> float:
        worse = int((outcome.reference_right & ~outcome.right).sum())
        better = int((outcome.right & ~outcome.reference_right).sum())
        return paired_p_value(worse, better, len(outcome.rows), self.value)

    def broken_p_value(self, outcome: Outcome) -> float:
        gains = -self.losses(outcome)
        return bounded_mean_p_value(gains, self.value - 1, self.value + 1)

    def observed(self, outcome: Outcome) -> float:
        return float(outcome.reference_right.mean() - outcome.right.mean())

    def __str__(self) -> str:
        return f"an accuracy at most {self.value:g} below the last stage's"


@dataclass(frozen=True)
class MinAccuracy(Share):
    """An accuracy of at least ``value``.

    Raises:
        InputError: the value is not a number in (0, 1).

    >>> print(MinAccuracy(0.9))
    an accuracy of at least 0.9
    """

    value: float

    called = "an accuracy"

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return np.ones_like(rows.right), rows.right


@dataclass(frozen=True)
class MinAgreement(Share):
    """The last stage's answer on a share of at least ``value`` of the rows; it needs no labels.

    Raises:
        InputError: the value is not a number in (0, 1).

    >>> print(MinAgreement(0.98))
    the last stage's answer on a share of at least 0.98 of the rows
    """

    value: float
    needs_labels = False
    reference_keeps_it = True

    called = "an agreement"

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return np.ones_like(rows.right), rows.agrees

    def __str__(self) -> str:
        return f"the last stage's answer on a share of at least {self.value:g} of the rows"


@dataclass(frozen=True)
class ShareOfLabel(Share):
    """A share that concerns one label.

    Args:
        label: names a class, or is its index where the classes have no names.
        value: is the least share or score.

    Raises:
        InputError: the value is not a number in (0, 1), or the label is not a string or int.
    """

    label: str | int
    value: float

    @property
    def quantity(self) -> str:
        return f"{super().quantity} for label {self.label!r}"

    def __str__(self) -> str:
        return f"{super().__str__()} for label {self.label!r}"


@dataclass(frozen=True)
class MinRecall(ShareOfLabel):
    """A recall of at least ``value`` for one label.

    >>> print(MinRecall("spam", 0.9))
    a recall of at least 0.9 for label 'spam'
    """

    called = "a recall"

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        label = rows.class_index(self.label)
        return np.broadcast_to(rows.truth == label, rows.right.shape), rows.right


@dataclass(frozen=True)
class MinPrecision(ShareOfLabel):
    """A precision of at least ``value`` for one label.

    >>> print(MinPrecision("spam", 0.9))
    a precision of at least 0.9 for label 'spam'
    """

    called = "a precision"

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return rows.says(rows.class_index(self.label)), rows.right


@dataclass(frozen=True)
class MinF1(ShareOfLabel):
    """An F1 score of at least ``value`` for one label.

    F1 is 2 p / (1 + p), where p is the share of hits among the rows that have the label, get it,
    or both. So the test of that share is an exact test of F1.

    >>> print(MinF1("spam", 0.9))
    an F1 score of at least 0.9 for label 'spam'
    """

    called = "an F1 score"

    @property
    def least(self) -> float:
        return self.value / (2 - self.value)

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        label = rows.class_index(self.label)
        has, gets = rows.truth == label, rows.says(label)
        return has | gets, has & gets

    def observed(self, outcome: Outcome) -> float:
        share = super().observed(outcome)
        return 2 * share / (1 + share)


@dataclass(frozen=True)
class MaxErrorWhenAnswering(Share):
    """A share of wrong answers of at most ``value`` among the rows answered; others abstain.

    The cascade abstains on rows of which the last stage is unsure too. Unless ``MinCoverage`` is
    given as well, the search aims to answer at most ``coverage_drop`` fewer rows than the last
    stage alone could under the same limit. That aim is not certified.

    Args:
        value: limits the share of wrong answers.
        coverage_drop: is a share of all rows.

    Raises:
        InputError: the value is not a number in (0, 1), or the coverage drop not in [0, 1).

    >>> print(MaxErrorWhenAnswering(0.05))
    a share of wrong answers of at most 0.05 among the rows answered
    """

    value: float
    coverage_drop: float = 0.01
    called = "an error among the rows answered"
    abstains = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.coverage_drop < 1:
            raise InputError(
                f"a coverage drop of {self.coverage_drop} is not in [0, 1); 0.01 means one point"
            )

    @property
    def least(self) -> float:
        return 1 - self.value

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return rows.answered, rows.right

    def observed(self, outcome: Outcome) -> float:
        return 1 - super().observed(outcome)

    def __str__(self) -> str:
        return f"a share of wrong answers of at most {self.value:g} among the rows answered"


@dataclass(frozen=True)
class MinCoverage(Share):
    """An answer to a share of at least ``value`` of the rows, next to a limit on errors.

    Raises:
        InputError: the value is not a number in (0, 1).

    >>> print(MinCoverage(0.8))
    an answer to a share of at least 0.8 of the rows
    """

    value: float
    needs_labels = False
    reference_keeps_it = True

    called = "a coverage"

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return np.ones_like(rows.right), rows.answered

    def __str__(self) -> str:
        return f"an answer to a share of at least {self.value:g} of the rows"
