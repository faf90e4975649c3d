"""Held-out rows that every stage has answered, and what thresholds make of them."""

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

    Attributes:
        answers: class index, int64 of shape (stages, rows).
        truth: class index of each row's label, int64 of shape (rows,); without labels the last
            stage's answers.
        costs: of each row in each stage, float64 of shape (rows, stages).
        names: of the classes; without names they are called by their numbers.
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
        """Whether each way to end is right, bool of shape (stages + 1, rows).

        The last way is no answer, which is never right.
        """
        return self._ways(self.answers == self.truth)

    @property
    def agrees(self) -> NDArray[np.bool_]:
        """Whether each way to end is the last stage's answer, bool of shape (stages + 1, rows)."""
        return self._ways(self.answers == self.answers[-1])

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Whether each way to end is an answer at all, bool of shape (stages + 1, rows)."""
        return self._ways(np.ones_like(self.answers, dtype=np.bool_))

    def take(self, rows: NDArray[np.int64]) -> HeldOut:
        return HeldOut(self.answers[:, rows], self.truth[rows], self.costs[rows], self.names)

    def says(self, label: int) -> NDArray[np.bool_]:
        """Whether each way to end says this class, bool of shape (stages + 1, rows)."""
        return self._ways(self.answers == label)

    def _ways(self, stages: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """What holds of each stage's answer, and does not of no answer."""
        return np.vstack([stages, np.zeros((1, len(self)), dtype=np.bool_)])

    def class_index(self, label: str | int) -> int:
        """Position of a class.

        Raises:
            InputError: there is none of this name.
        """
        if str(label) not in self.names:
            known = ", ".join(map(repr, self.names[:6])) + (", …" if len(self.names) > 6 else "")
            raise InputError(f"the target's label {label!r} is not one of {known}; mend it")
        return list(self.names).index(str(label))


@dataclass(frozen=True)
class Outcome:
    """What one choice of thresholds does to each held-out row.

    Attributes:
        rows: the held-out rows.
        end: the stage that answers, counted from 0; the number of stages where none does; int64
            of shape (rows,).
        cost: of each row, float64 of shape (rows,).
    """

    rows: HeldOut
    end: NDArray[np.int64]
    cost: Floats

    def take(self, rows: NDArray[np.int64]) -> Outcome:
        return Outcome(self.rows.take(rows), self.end[rows], self.cost[rows])

    def of(self, table: NDArray[T]) -> NDArray[T]:
        """Each row's entry in a table of shape (stages + 1, rows)."""
        entries: NDArray[T] = np.take_along_axis(table, self.end[None], axis=0)[0]
        return entries

    @property
    def right(self) -> NDArray[np.bool_]:
        return self.of(self.rows.right)

    @property
    def reference_right(self) -> NDArray[np.bool_]:
        """Whether the last stage is right, bool of shape (rows,)."""
        result: NDArray[np.bool_] = self.rows.right[-2]
        return result

    @property
    def answered(self) -> NDArray[np.bool_]:
        result: NDArray[np.bool_] = self.end < self.rows.stages
        return result
