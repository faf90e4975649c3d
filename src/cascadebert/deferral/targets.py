"""What users ask of a cascade.

Each target says how far thresholds are from it on the rows that propose, for the search, and
tests its promise on the rows that certify. All but one have a loss that each row contributes by
the stage it ends at, with the promise that the expected loss is not above 0; so the search needs to
add up tables only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.deferral.held_out import HeldOut, Outcome
from cascadebert.deferral.pvalues import (
    binomial_interval,
    binomial_p_value,
    mean_p_value,
    paired_p_value,
)
from cascadebert.errors import InputError


class Target(Protocol):
    """What the user wants; drops and speed-ups are against the last stage alone (the reference).

    Attributes:
        value: the number in it.
        needs_labels: whether answers are judged by labels, or by the last stage's answers.
        on_cost: whether it is a promise about the cost, which the cheapest thresholds keep best, or
            about the answers.
        reference_keeps_it: whether the last stage alone keeps it by what it is, without a test.
        abstains: whether it gives the search leave to leave rows unanswered.
    """

    @property
    def value(self) -> float: ...

    needs_labels: bool
    on_cost: bool
    reference_keeps_it: bool
    abstains: bool

    def tables(self, rows: HeldOut) -> Floats:
        """Numbers that the search adds up, by the way that a row ends.

        Returns:
            float64 of shape (tables, stages + 1, rows), the last way to end being no answer.
        """
        ...

    def risk(self, means: Floats, cost: Floats, rows: HeldOut) -> Floats:
        """How far the target is missed; it is met where this is not above 0.

        Args:
            means: of the tables' entries over all rows, shape (tables, choices).
            cost: mean of a row, shape (choices,).
            rows: the rows that the means are of.

        Returns:
            float64 of shape (choices,).
        """
        ...

    def losses(self, outcome: Outcome) -> Floats:
        """What each row adds to the risk, float64 of shape (rows,)."""
        ...

    def p_value(self, outcome: Outcome) -> float:
        """Of the null hypothesis that the promise does not hold for rows drawn as these were."""
        ...

    def observed(self, outcome: Outcome) -> float:
        """What the promise is about, as seen in these rows, in the unit of ``value``."""
        ...

    def __str__(self) -> str: ...


class _OnAnswers:
    """A target on the answers: the expectation of one loss is to be 0 or less."""

    needs_labels = True
    on_cost = False
    reference_keeps_it = False
    abstains = False

    def table(self, rows: HeldOut) -> Floats:
        """Loss of a row for each way to end, float64 of shape (stages + 1, rows)."""
        raise NotImplementedError

    def tables(self, rows: HeldOut) -> Floats:
        return self.table(rows)[None]

    def risk(self, means: Floats, cost: Floats, rows: HeldOut) -> Floats:  # noqa: ARG002
        result: Floats = means[0]
        return result

    def losses(self, outcome: Outcome) -> Floats:
        return outcome.of(self.table(outcome.rows))


@dataclass(frozen=True)
class MaxDrop(_OnAnswers):
    """Lose at most ``value`` of the last stage's accuracy (0.01 is one point), at least cost."""

    value: float
    reference_keeps_it = True

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

    def observed(self, outcome: Outcome) -> float:
        return float(outcome.reference_right.mean() - outcome.right.mean())

    def __str__(self) -> str:
        return f"an accuracy at most {self.value:g} below the last stage's"


class _Share(_OnAnswers):
    """A share of at least ``value``, of rows picked by their label or by their answer.

    Among the picked rows the number of misses is binomial, however many were picked.
    """

    value: float

    @property
    def least(self) -> float:
        """The share of hits among the picked rows that is promised."""
        return self.value

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """For each way to end, whether the row counts, and whether it counts for the promise.

        Returns:
            Both bool of shape (stages + 1, rows).
        """
        raise NotImplementedError

    def table(self, rows: HeldOut) -> Floats:
        picked, hit = self.picked_and_hit(rows)
        return np.where(picked, self.least - hit, 0.0)

    def counts(self, outcome: Outcome) -> tuple[int, int]:
        """Rows picked, and hits among them."""
        picked, hit = (outcome.of(table) for table in self.picked_and_hit(outcome.rows))
        return int(picked.sum()), int((picked & hit).sum())

    def p_value(self, outcome: Outcome) -> float:
        picked, hits = self.counts(outcome)
        return binomial_p_value(picked - hits, picked, 1 - self.least) if picked else 1.0

    def observed(self, outcome: Outcome) -> float:
        picked, hits = self.counts(outcome)
        return hits / picked if picked else math.nan


@dataclass(frozen=True)
class MinAccuracy(_Share):
    """Be right on a share of ``value`` of the rows or more, at least cost."""

    value: float

    def __post_init__(self) -> None:
        _refuse_share(self.value, "an accuracy")

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return np.ones_like(rows.right), rows.right

    def __str__(self) -> str:
        return f"an accuracy of at least {self.value:g}"


@dataclass(frozen=True)
class MinAgreement(_Share):
    """Answer as the last stage does on a share of ``value`` of the rows or more, at least cost.

    It needs no labels.
    """

    value: float
    needs_labels = False
    reference_keeps_it = True

    def __post_init__(self) -> None:
        _refuse_share(self.value, "an agreement")

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        same = np.zeros_like(rows.right)
        same[:-1] = rows.answers == rows.answers[-1]
        return np.ones_like(same), same

    def __str__(self) -> str:
        return f"the last stage's answer on a share of at least {self.value:g} of the rows"


@dataclass(frozen=True)
class MinRecall(_Share):
    """Find a share of ``value`` or more of the rows of one label, at least cost.

    Args:
        label: its name, or its class index where the classes have no names.
        value: the share.
    """

    label: str | int
    value: float

    def __post_init__(self) -> None:
        _refuse_share(self.value, "a recall")

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        label = rows.class_index(self.label)
        return np.broadcast_to(rows.truth == label, rows.right.shape), rows.right

    def __str__(self) -> str:
        return f"a recall of at least {self.value:g} for label {self.label!r}"


@dataclass(frozen=True)
class MinPrecision(_Share):
    """Be right on a share of ``value`` or more of the rows that get one label, at least cost.

    Args:
        label: its name, or its class index where the classes have no names.
        value: the share.
    """

    label: str | int
    value: float

    def __post_init__(self) -> None:
        _refuse_share(self.value, "a precision")

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return rows.says(rows.class_index(self.label)), rows.right

    def __str__(self) -> str:
        return f"a precision of at least {self.value:g} for label {self.label!r}"


@dataclass(frozen=True)
class MinF1(_Share):
    """An F1 score of ``value`` or more for one label, at least cost.

    F1 is 2 p / (1 + p) for p the share of hits among the rows that have the label, get it, or
    both; so it is promised as exactly as that share.

    Args:
        label: its name, or its class index where the classes have no names.
        value: the score.
    """

    label: str | int
    value: float

    def __post_init__(self) -> None:
        _refuse_share(self.value, "an F1 score")

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

    def __str__(self) -> str:
        return f"an F1 score of at least {self.value:g} for label {self.label!r}"


@dataclass(frozen=True)
class MinMatthews(_OnAnswers):
    """A Matthews correlation of ``value`` or more between answers and labels, at least cost.

    For two classes. It is no mean over rows, so its promise takes more rows than others: the
    share of the first class and the share of hits in either class each get an exact confidence
    interval, and the worst of the box that they make counts.
    """

    value: float

    def __post_init__(self) -> None:
        _refuse_share(self.value, "a Matthews correlation")

    def tables(self, rows: HeldOut) -> Floats:
        if len(rows.names) != 2:
            raise InputError(
                f"MinMatthews is for two classes, these rows have {len(rows.names)}; for more no "
                "promise can be made of it: ask for MinAccuracy, or MinF1 of a label"
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
        low, high = 0.0, 1.0
        while high - low > _LEVEL_DIGITS * high:
            level = (low + high) / 2
            if self._lower_bound(outcome, level) >= self.value:
                high = level
            else:
                low = level
        return high

    def _lower_bound(self, outcome: Outcome, level: float) -> float:
        sizes, hits = self._counts(outcome)
        if min(sizes) == 0:
            return -1.0
        # Only the lower ends of the shares of hits matter; of the class's share both do.
        lower = [
            binomial_interval(hit, size, 2 * level / 3)[0]
            for hit, size in zip(hits, sizes, strict=True)
        ]
        if sum(lower) <= 1:
            return -1.0
        shares = np.array(binomial_interval(sizes[0], sum(sizes), level / 3))
        # As a function of the share it rises and then falls, so an end of the interval is lowest.
        return float(matthews(np.array(lower[0]), np.array(lower[1]), shares).min())

    def _counts(self, outcome: Outcome) -> tuple[list[int], list[int]]:
        of_class = [outcome.rows.truth == label for label in (0, 1)]
        return [int(c.sum()) for c in of_class], [int((outcome.right & c).sum()) for c in of_class]

    def observed(self, outcome: Outcome) -> float:
        sizes, hits = self._counts(outcome)
        if min(sizes) == 0:
            return 0.0
        shares = [np.array(hit / size) for hit, size in zip(hits, sizes, strict=True)]
        return float(matthews(shares[0], shares[1], sizes[0] / sum(sizes)))

    def __str__(self) -> str:
        return f"a Matthews correlation of at least {self.value:g}"


_LEVEL_DIGITS = 0.01


def matthews(first_hits: Floats, second_hits: Floats, first: float | Floats) -> Floats:
    """Matthews correlation of two classes.

    Args:
        first_hits: share of right answers among the rows of the first class.
        second_hits: the same of the second class.
        first: share of the rows that are of the first class.
    """
    says_first = first * first_hits + (1 - first) * (1 - second_hits)
    spread = says_first * (1 - says_first)
    difference = (first_hits + second_hits - 1) * np.sqrt(first * (1 - first))
    result: Floats = difference / np.sqrt(np.where(spread > 0, spread, 1.0))
    return result


@dataclass(frozen=True)
class MaxErrorWhenAnswering(_Share):
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
    abstains = True

    def __post_init__(self) -> None:
        _refuse_share(self.value, "an error")
        if not 0 <= self.coverage_drop < 1:
            raise InputError(f"a coverage drop of {self.coverage_drop} is not in [0, 1)")

    @property
    def least(self) -> float:
        return 1 - self.value

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        answered = np.ones_like(rows.right)
        answered[-1] = False
        return answered, rows.right

    def observed(self, outcome: Outcome) -> float:
        return 1 - super().observed(outcome)

    def __str__(self) -> str:
        return f"a share of wrong answers of at most {self.value:g} among the rows answered"


@dataclass(frozen=True)
class MinCoverage(_Share):
    """Answer a share of ``value`` of the rows or more, beside a limit on errors."""

    value: float
    needs_labels = False
    reference_keeps_it = True

    def __post_init__(self) -> None:
        _refuse_share(self.value, "a coverage")

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        answered = np.ones_like(rows.right)
        answered[-1] = False
        return np.ones_like(answered), answered

    def __str__(self) -> str:
        return f"an answer to a share of at least {self.value:g} of the rows"


class _OnCost:
    """A target on the mean cost of a row: the best accuracy within it."""

    needs_labels = True
    on_cost = True
    reference_keeps_it = False
    abstains = False

    def tables(self, rows: HeldOut) -> Floats:
        return np.empty((0, rows.stages + 1, len(rows)))


@dataclass(frozen=True)
class Speedup(_OnCost):
    """Cost at most 1 / ``value`` of the last stage alone, at the best accuracy."""

    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise InputError(f"a speed-up of {self.value} is not a positive number; 4 means 4x")

    def risk(self, means: Floats, cost: Floats, rows: HeldOut) -> Floats:  # noqa: ARG002
        return cost * self.value / float(rows.costs[:, -1].mean()) - 1

    def losses(self, outcome: Outcome) -> Floats:
        return outcome.cost * self.value - outcome.rows.costs[:, -1]

    def p_value(self, outcome: Outcome) -> float:
        costs = outcome.rows.costs
        highest = float(costs.sum(axis=1).max()) * self.value
        return _bounded_mean_p_value(self.losses(outcome), -float(costs[:, -1].max()), highest)

    def observed(self, outcome: Outcome) -> float:
        return float(outcome.rows.costs[:, -1].sum() / outcome.cost.sum())

    def __str__(self) -> str:
        return f"a speed-up of at least {self.value:g}"


@dataclass(frozen=True)
class MaxSecondsPerRow(_OnCost):
    """Take at most ``value`` seconds a row on average, at the best accuracy.

    With costs in another unit it limits those.
    """

    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise InputError(f"{self.value} seconds a row is not a positive number")

    def risk(self, means: Floats, cost: Floats, rows: HeldOut) -> Floats:  # noqa: ARG002
        return cost / self.value - 1

    def losses(self, outcome: Outcome) -> Floats:
        return outcome.cost - self.value

    def p_value(self, outcome: Outcome) -> float:
        highest = float(outcome.rows.costs.sum(axis=1).max())
        return _bounded_mean_p_value(self.losses(outcome), -self.value, highest - self.value)

    def observed(self, outcome: Outcome) -> float:
        return float(outcome.cost.mean())

    def __str__(self) -> str:
        return f"at most {self.value:g} seconds a row"


def _bounded_mean_p_value(losses: Floats, lowest: float, highest: float) -> float:
    if highest <= 0:
        return 0.0
    width = highest - lowest
    return mean_p_value((losses - lowest) / width, -lowest / width)


def _refuse_share(value: float, what: str) -> None:
    if not 0 < value < 1:
        raise InputError(f"{what} of {value} is not a share between 0 and 1; 0.95 means 95 %")


TARGETS: dict[str, Callable[..., Target]] = {
    kind.__name__: kind
    for kind in (
        MaxDrop,
        MinAccuracy,
        MinAgreement,
        MinRecall,
        MinPrecision,
        MinF1,
        MinMatthews,
        MaxErrorWhenAnswering,
        MinCoverage,
        Speedup,
        MaxSecondsPerRow,
    )
}
