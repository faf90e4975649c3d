"""Targets on the answers: the least cost among the thresholds that keep them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.deferral.held_out import HeldOut, Outcome
from cascadebert.deferral.pvalues import paired_p_value
from cascadebert.deferral.targets.base import OnAnswers, Share, bounded_mean_p_value
from cascadebert.errors import InputError


@dataclass(frozen=True)
class MaxDrop(OnAnswers):
    """Lose at most ``value`` of the last stage's accuracy (0.01 is one point), at least cost."""

    value: float
    reference_keeps_it = True
    quantity = "the drop in accuracy"

    def __post_init__(self) -> None:
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
    """Be right on a share of ``value`` of the rows or more, at least cost."""

    value: float

    called = "an accuracy"

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return np.ones_like(rows.right), rows.right


@dataclass(frozen=True)
class MinAgreement(Share):
    """Answer as the last stage does on a share of ``value`` of the rows or more, at least cost.

    It needs no labels.
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
    """A share that is about one label.

    Args:
        label: its name, or its class index where the classes have no names.
        value: the share, or the score.
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
    """Find a share of ``value`` or more of the rows of one label, at least cost."""

    called = "a recall"

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        label = rows.class_index(self.label)
        return np.broadcast_to(rows.truth == label, rows.right.shape), rows.right


@dataclass(frozen=True)
class MinPrecision(ShareOfLabel):
    """Be right on a share of ``value`` or more of the rows that get one label, at least cost."""

    called = "a precision"

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return rows.says(rows.class_index(self.label)), rows.right


@dataclass(frozen=True)
class MinF1(ShareOfLabel):
    """An F1 score of ``value`` or more for one label, at least cost.

    F1 is 2 p / (1 + p) for p the share of hits among the rows that have the label, get it, or
    both; so it is promised as exactly as that share.
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
    """Be wrong on a share of ``value`` of the answered rows at most; leave others unanswered.

    Rows that even the last stage is unsure of are returned as abstained. Unless other targets
    say otherwise, at most ``coverage_drop`` fewer rows are to be answered than the last stage alone
    could answer under the same limit, at least cost; that is sought, not promised.

    Args:
        value: the share of wrong answers.
        coverage_drop: share of all rows.
    """

    value: float
    coverage_drop: float = 0.01
    called = "an error among the rows answered"
    abstains = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.coverage_drop < 1:
            raise InputError(f"a coverage drop of {self.coverage_drop} is not in [0, 1)")

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
    """Answer a share of ``value`` of the rows or more, beside a limit on errors."""

    value: float
    needs_labels = False
    reference_keeps_it = True

    called = "a coverage"

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return np.ones_like(rows.right), rows.answered

    def __str__(self) -> str:
        return f"an answer to a share of at least {self.value:g} of the rows"
