"""Held-out rows that every stage has answered, and their outcome under thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.errors import InputError

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class HeldOut:
    """Every stage's answer to every row.

    Tables by where a row ends have shape (stages + 1, rows); their last line is for no answer.

    Attributes:
        answers: class indices, int64 of shape (stages, rows).
        truth: class index of each row's label, int64 of shape (rows,); without labels, the last
            stage's answer.
        costs: cost of each row in each stage, float64 of shape (rows, stages).
        names: names of the classes.

    >>> rows = HeldOut(np.array([[0], [1]]), np.array([1]), np.array([[1.0, 10.0]]), ["a", "b"])
    >>> rows.right.tolist()
    [[False], [True], [False]]
    """

    answers: NDArray[np.int64]
    truth: NDArray[np.int64]
    costs: Floats
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def stages(self) -> int:
        return len(self.answers)

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Whether the answer is right, by where a row ends; no answer never is."""
        return self._by_end(self.answers == self.truth)

    @cached_property
    def agrees(self) -> NDArray[np.bool_]:
        """Whether the answer is the last stage's, by where a row ends."""
        return self._by_end(self.answers == self.answers[-1])

    @cached_property
    def answered(self) -> NDArray[np.bool_]:
        """Whether there is an answer, by where a row ends."""
        return self._by_end(np.ones_like(self.answers, dtype=np.bool_))

    def take(self, rows: NDArray[np.int64]) -> HeldOut:
        """The rows at these positions.

        Args:
            rows: lists positions, shape (any,).
        """
        return HeldOut(self.answers[:, rows], self.truth[rows], self.costs[rows], self.names)

    def says(self, label: int) -> NDArray[np.bool_]:
        """Whether the answer is this class, by where a row ends.

        Args:
            label: is a class index.
        """
        return self._by_end(self.answers == label)

    def _by_end(self, stages: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """What holds per stage, and False for no answer."""
        return np.vstack([stages, np.zeros((1, len(self)), dtype=np.bool_)])

    def class_index(self, label: str | int) -> int:
        """Index of a class.

        Args:
            label: names it.

        Raises:
            InputError: the name is unknown.
        """
        if str(label) not in self.names:
            known = ", ".join(map(repr, self.names[:6])) + (", …" if len(self.names) > 6 else "")
            raise InputError(f"the target's label {label!r} is not one of {known}; change it")
        return list(self.names).index(str(label))


@dataclass(frozen=True)
class Outcome:
    """The outcome of held-out rows under one choice of thresholds.

    Attributes:
        rows: the held-out rows.
        end: the stage that answers, from 0, or the number of stages where none does; int64 of
            shape (rows,).
        cost: cost per row, float64 of shape (rows,).
    """

    rows: HeldOut
    end: NDArray[np.int64]
    cost: Floats

    def take(self, rows: NDArray[np.int64]) -> Outcome:
        """The rows at these positions.

        Args:
            rows: lists positions, shape (any,).
        """
        return Outcome(self.rows.take(rows), self.end[rows], self.cost[rows])

    def of(self, table: NDArray[T]) -> NDArray[T]:
        """Each row's entry in a table by where a row ends, shape (rows,).

        Args:
            table: has shape (stages + 1, rows).
        """
        entries: NDArray[T] = np.take_along_axis(table, self.end[None], axis=0)[0]
        return entries

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the answer is right, bool of shape (rows,)."""
        return self.of(self.rows.right)

    @property
    def reference_right(self) -> NDArray[np.bool_]:
        """Whether the last stage is right, bool of shape (rows,)."""
        result: NDArray[np.bool_] = self.rows.right[-2]
        return result

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Whether there is an answer, bool of shape (rows,)."""
        result: NDArray[np.bool_] = self.end < self.rows.stages
        return result
