"""Prediction: the answers of a cascade."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
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
    """

    labels: NDArray[np.str_]
    probabilities: NDArray[np.float64]
    stage: NDArray[np.int64]
    confidence: NDArray[np.float64]
    truncated: NDArray[np.bool_]
    abstained: NDArray[np.bool_]
    passed: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.stage)

    @classmethod
    def joined(cls, parts: Sequence[Prediction]) -> Prediction:
        """Predictions one after another as one; there must be one at least."""
        if len(parts) == 1:
            return parts[0]
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
