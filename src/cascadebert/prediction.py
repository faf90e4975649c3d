"""Prediction: the answers of a cascade."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Prediction:
    """Answers for a number of rows, every array in input order.

    Attributes:
        labels: label names, str of shape (rows,); empty where the cascade abstained.
        probabilities: softmax of the last stage that the row came to, float64 of shape
            (rows, classes), columns in the order of ``Cascade.labels``.
        stage: that stage, counted from 1, int64 of shape (rows,).
        confidence: that stage's confidence score on a scale from 0 to 1, float64 (rows,).
        truncated: rows that were longer than that stage reads and were cut, bool (rows,).
        abstained: rows that even the last stage was too unsure of to answer, bool (rows,).
        passed: the stages that each row went through, bool of shape (rows, stages).
        row: number of each row in the input, from 0, int64 of shape (rows,).
    """

    labels: NDArray[np.str_]
    probabilities: NDArray[np.float64]
    stage: NDArray[np.int64]
    confidence: NDArray[np.float64]
    truncated: NDArray[np.bool_]
    abstained: NDArray[np.bool_]
    passed: NDArray[np.bool_]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.stage)

    @classmethod
    def joined(cls, parts: Sequence[Prediction]) -> Prediction:
        """Predictions one after another as one; there must be at least one."""
        if len(parts) == 1:
            return parts[0]
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def numbered(self, row: NDArray[np.int64]) -> Prediction:
        """The same answers for rows of these numbers, int64 of shape (rows,)."""
        return dataclasses.replace(self, row=row)

    def spread(self, positions: NDArray[np.int64], total: int, first: int = 0) -> Prediction:
        """These answers among rows that could not be classified and have none.

        Such a row has an empty label, stage 0, probabilities and a confidence of NaN, has passed no
        stage, and counts as abstained.

        Args:
            positions: place each answer among all rows, int64 of shape (rows,).
            total: counts all rows.
            first: numbers the first of them.
        """

        def among(values: NDArray[np.generic], fill: object) -> NDArray[np.generic]:
            everywhere = np.full((total, *values.shape[1:]), fill, dtype=values.dtype)
            everywhere[positions] = values
            return everywhere

        fills = {"labels": "", "stage": 0, "truncated": False, "abstained": True, "passed": False}
        columns = {
            field.name: among(getattr(self, field.name), fills.get(field.name, np.nan))
            for field in dataclasses.fields(self)
            if field.name != "row"
        }
        return Prediction(**columns, row=np.arange(first, first + total))  # type: ignore[arg-type]
