"""The protocol of targets, and the base classes of targets on answers."""

from __future__ import annotations

import math
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.deferral.held_out import HeldOut, Outcome
from cascadebert.deferral.plain import make_plain
from cascadebert.deferral.pvalues import binomial_p_value, mean_p_value
from cascadebert.errors import InputError


class Target(Protocol):
    """What the user wants; drops and speed-ups are against the last stage alone (the reference).

    Attributes:
        value: the limit.
        needs_labels: whether labels judge the answers; otherwise the last stage's answers do.
        on_cost: whether the promise is about the cost, which the cheapest thresholds keep best;
            otherwise it is about the answers.
        reference_keeps_it: whether the last stage alone keeps the promise by definition.
        abstains: whether the search may leave rows unanswered.
        quantity: what the limit is on, with its article.
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
        """Numbers that the search adds up, by where a row ends.

        Returns:
            float64 of shape (tables, stages + 1, rows); the last entry along the second axis is
            for rows without an answer.
        """
        ...

    def risk(self, means: Floats, cost: Floats, rows: HeldOut) -> Floats:
        """How far each choice misses the target; at most 0 where it meets it.

        Args:
            means: holds the mean of each table over all rows, shape (tables, choices).
            cost: holds the mean cost per row, shape (choices,).
            rows: are the rows that the means were taken over.

        Returns:
            float64 of shape (choices,).
        """
        ...

    def losses(self, outcome: Outcome) -> Floats:
        """Loss per row, whose mean is the risk, float64 of shape (rows,)."""
        ...

    def p_value(self, outcome: Outcome) -> float:
        """p-value of the null hypothesis that the promise is broken in the population."""
        ...

    def broken_p_value(self, outcome: Outcome) -> float:
        """p-value of the null hypothesis that the promise holds in the population."""
        ...

    def observed(self, outcome: Outcome) -> float:
        """The quantity on these rows, in the unit of ``value``; NaN where it is undefined."""
        ...

    def __str__(self) -> str: ...


class OnAnswers:
    """A target on the answers: it promises that the expected loss is at most 0."""

    needs_labels = True
    on_cost = False
    reference_keeps_it = False
    abstains = False

    def table(self, rows: HeldOut) -> Floats:
        """Loss of each row by where it ends, float64 of shape (stages + 1, rows)."""
        raise NotImplementedError

    def tables(self, rows: HeldOut) -> Floats:
        return self.table(rows)[None]

    def risk(self, means: Floats, cost: Floats, rows: HeldOut) -> Floats:  # noqa: ARG002
        result: Floats = means[0]
        return result

    def losses(self, outcome: Outcome) -> Floats:
        return outcome.of(self.table(outcome.rows))


class Share(OnAnswers):
    """A share of at least ``value`` among rows picked by their label or answer.

    The number of misses among the picked rows is binomial, given how many were picked.
    """

    value: float
    called: ClassVar[str]
    """Name of the share, with its indefinite article."""

    def __post_init__(self) -> None:
        make_plain(self)
        refuse_share(self.value, self.called)

    def __str__(self) -> str:
        return f"{self.called} of at least {self.value:g}"

    @property
    def quantity(self) -> str:
        return f"the {self.called.split(maxsplit=1)[1]}"

    @property
    def least(self) -> float:
        """The promised share of hits among the picked rows."""
        return self.value

    def picked_and_hit(self, rows: HeldOut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which rows are picked and which are hits, by where they end.

        Returns:
            Two arrays of bool, both of shape (stages + 1, rows).
        """
        raise NotImplementedError

    def table(self, rows: HeldOut) -> Floats:
        picked, hit = self.picked_and_hit(rows)
        return np.where(picked, self.least - hit, 0.0)

    def counts(self, outcome: Outcome) -> tuple[int, int]:
        """How many rows are picked, and how many of them are hits."""
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
        losses: have shape (rows,), in an order independent of their values.
        lowest: bounds the loss of any row from below.
        highest: bounds the loss of any row from above.

    >>> round(bounded_mean_p_value(np.full(50, -0.5), -1.0, 1.0), 4)
    0.0
    """
    if highest <= 0:
        return 0.0
    width = highest - lowest
    return mean_p_value((losses - lowest) / width, -lowest / width)


def refuse_share(value: float, what: str) -> None:
    """Refuse a limit outside (0, 1).

    Args:
        value: is the limit.
        what: names it in the error, with its article.

    Raises:
        InputError: it is out of range.
    """
    if not 0 < value < 1:
        raise InputError(f"{what} of {value} is not above 0 and below 1; 0.95 means 95 %")
