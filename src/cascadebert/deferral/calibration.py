"""Logits to logits whose softmax can be trusted: what calibrations are when a cascade runs.

:mod:`cascadebert.deferral.fit_calibration` fits them on held-out rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from cascadebert.deferral.confidence import Floats, softmax

_LEAST_PROBABILITY = 1e-9


class Calibration(Protocol):
    """A fitted calibration; a frozen dataclass of plain values, kept in ``cascade.json``."""

    @property
    def kind(self) -> str: ...

    def __call__(self, logits: ArrayLike) -> Floats:
        """Calibrated logits, float64 of shape (rows, classes)."""
        ...


@dataclass(frozen=True)
class Temperature:
    """Logits divided by one number (Guo et al., arXiv 1706.04599); no answer changes."""

    temperature: float
    kind: str = field(default="temperature", init=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature is {self.temperature}")

    def __call__(self, logits: ArrayLike) -> Floats:
        return np.asarray(logits, dtype=np.float64) / self.temperature


@dataclass(frozen=True)
class VectorScaling:
    """Each class's logit scaled and shifted by its own numbers (arXiv 1706.04599)."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]
    kind: str = field(default="vector", init=False)

    def __post_init__(self) -> None:
        if len(self.scale) != len(self.shift) or not np.isfinite([*self.scale, *self.shift]).all():
            raise ValueError("scale and shift are not finite numbers, one each a class")

    def __call__(self, logits: ArrayLike) -> Floats:
        values: Floats = np.asarray(logits, dtype=np.float64) * self.scale + self.shift
        return values


@dataclass(frozen=True)
class Isotonic:
    """Each class's probability through a rising step line of its own, then normalised.

    ``before`` and ``after`` have the corners of the lines: one for two classes, that of the
    second class, else one a class.
    """

    before: tuple[tuple[float, ...], ...]
    after: tuple[tuple[float, ...], ...]
    kind: str = field(default="isotonic", init=False)

    def __post_init__(self) -> None:
        lines = [*self.before, *self.after]
        if [len(line) for line in self.before] != [len(line) for line in self.after]:
            raise ValueError("before and after differ in length")
        if not lines or not all(len(line) and np.all(np.diff(line) >= 0) for line in lines):
            raise ValueError("before and after are not rising lines")

    def __call__(self, logits: ArrayLike) -> Floats:
        probabilities = softmax(logits)
        if len(self.before) == 1:
            second = np.interp(probabilities[:, 1], self.before[0], self.after[0])
            mapped = np.stack([1 - second, second], axis=1)
        else:
            lines = zip(probabilities.T, self.before, self.after, strict=True)
            mapped = np.stack([np.interp(*line) for line in lines], axis=1)
        total = mapped.sum(axis=1, keepdims=True)
        # Where every line gives 0 nothing is known of the row.
        mapped = np.where(total > 0, mapped / np.where(total > 0, total, 1), 1 / mapped.shape[1])
        return np.log(np.maximum(mapped, _LEAST_PROBABILITY))


def read_calibration(values: Mapping[str, Any] | None) -> Calibration | None:
    """A calibration from its values in ``cascade.json``.

    Raises:
        KeyError, TypeError, ValueError: they are not those of a calibration.
    """
    if values is None:
        return None
    own = {name: _tuples(value) for name, value in values.items() if name != "kind"}
    kinds = {"temperature": Temperature, "vector": VectorScaling, "isotonic": Isotonic}
    calibration: Calibration = kinds[values["kind"]](**own)
    return calibration


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return float(value)
