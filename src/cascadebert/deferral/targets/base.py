"""What a target must tell the search and the test, and the two kinds that most targets are of."""

from __future__ import annotations

import math
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.deferral.held_out import HeldOut, Outcome
from cascadebert.deferral.pvalues import binomial_p_value, mean_p_value
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
        quantity: what the number is of, with its article.
    """

    @property
    def value(self) -> float: ...

    @property
    def quantity(self) -> str: ...

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

    def broken_p_value(self, outcome: Outcome) -> float:
        """Of the null hypothesis that the promise does hold for rows drawn as these were."""
        ...

    def observed(self, outcome: Outcome) -> float:
        """What the promise is about, as seen in these rows, in the unit of ``value``."""
        ...

    def __str__(self) -> str: ...


class OnAnswers:
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


class Share(OnAnswers):
    """A share of at least ``value``, of rows picked by their label or by their answer.

    Among the picked rows the number of misses is binomial, however many were picked.
    """

    value: float
    called: ClassVar[str]
    """What the share is called, with its indefinite article."""

    def __post_init__(self) -> None:
        refuse_share(self.value, self.called)

    def __str__(self) -> str:
        return f"{self.called} of at least {self.value:g}"

    @property
    def quantity(self) -> str:
        return f"the {self.called.split(maxsplit=1)[1]}"

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

    def broken_p_value(self, outcome: Outcome) -> float:
        picked, hits = self.counts(outcome)
        return binomial_p_value(hits, picked, self.least) if picked else 1.0

    def observed(self, outcome: Outcome) -> float:
        picked, hits = self.counts(outcome)
        return hits / picked if picked else math.nan


def bounded_mean_p_value(losses: Floats, lowest: float, highest: float) -> float:
    """p-value of the null hypothesis that the expected loss is above 0.

    Args:
        losses: shape (rows,), in an order that does not depend on them.
        lowest: loss that a row can have.
        highest: loss that a row can have.
    """
    if highest <= 0:
        return 0.0
    width = highest - lowest
    return mean_p_value((losses - lowest) / width, -lowest / width)


def refuse_share(value: float, what: str) -> None:
    if not 0 < value < 1:
        raise InputError(
            f"{what} of {value} is not a share of rows above 0 and below 1; 0.95 means 95 %"
        )
