"""Calibrations: maps from logits to logits whose softmax matches the observed frequencies.

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
from cascadebert.deferral.plain import plain_number

_LEAST_PROBABILITY = 1e-9


class Calibration(Protocol):
    """A fitted calibration: a frozen dataclass of plain values, stored in ``cascade.json``."""

    @property
    def kind(self) -> str:
        """Its name in ``cascade.json``."""
        ...

    def __call__(self, logits: ArrayLike) -> Floats:
        """Calibrated logits, float64 of shape (rows, classes).

        Args:
            logits: has the same shape.
        """
        ...


@dataclass(frozen=True)
class Temperature:
    """Logits divided by one number (Guo et al., arXiv 1706.04599, equation 9); no answer changes.

    Raises:
        ValueError: the temperature is not positive and finite.

    >>> Temperature(2.0)([[0.0, 3.0]]).tolist()
    [[0.0, 1.5]]
    """

    temperature: float
    kind: str = field(default="temperature", init=False)

    def __post_init__(self) -> None:
        _make_plain(self)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature is {self.temperature}; give a positive finite number")

    def __call__(self, logits: ArrayLike) -> Floats:
        return np.asarray(logits, dtype=np.float64) / self.temperature


@dataclass(frozen=True)
class VectorScaling:
    """Logits scaled and shifted per class (arXiv 1706.04599, section 4.2).

    Raises:
        ValueError: scale and shift are not finite numbers, one per class each.

    >>> VectorScaling((1.0, 2.0), (0.0, -1.0))([[0.0, 3.0]]).tolist()
    [[0.0, 5.0]]
    """

    scale: tuple[float, ...]
    shift: tuple[float, ...]
    kind: str = field(default="vector", init=False)

    def __post_init__(self) -> None:
        _make_plain(self)
        if len(self.scale) != len(self.shift) or not np.isfinite([*self.scale, *self.shift]).all():
            raise ValueError("scale and shift are not finite numbers, one per class each")

    def __call__(self, logits: ArrayLike) -> Floats:
        values: Floats = np.asarray(logits, dtype=np.float64) * self.scale + self.shift
        return values


@dataclass(frozen=True)
class Isotonic:
    """Probabilities mapped by one rising line per class, then normalised.

    Zadrozny and Elkan (KDD 2002) describe it.

    Attributes:
        before: x-coordinates of the corners of each line; with two classes there is one line, of
            the second class.
        after: y-coordinates of the same corners.

    Raises:
        ValueError: the lines do not rise, or their coordinates differ in number.

    >>> Isotonic(((0.0, 1.0),), ((0.5, 1.0),))([[0.0, 0.0]]).round(2).tolist()
    [[-1.39, -0.29]]
    """

    before: tuple[tuple[float, ...], ...]
    after: tuple[tuple[float, ...], ...]
    kind: str = field(default="isotonic", init=False)

    def __post_init__(self) -> None:
        _make_plain(self)
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
        # Where every line gives 0, all classes are equally likely.
        mapped = np.where(total > 0, mapped / np.where(total > 0, total, 1), 1 / mapped.shape[1])
        return np.log(np.maximum(mapped, _LEAST_PROBABILITY))


def read_calibration(values: Mapping[str, Any] | None) -> Calibration | None:
    """A calibration from its values in ``cascade.json``.

    Args:
        values: holds its kind and fields, or is None.

    Raises:
        KeyError, TypeError, ValueError, InputError: they do not make a calibration.

    >>> read_calibration({"kind": "temperature", "temperature": 2})
    Temperature(temperature=2.0, kind='temperature')
    """
    if values is None:
        return None
    own = {name: value for name, value in values.items() if name != "kind"}
    kinds = {"temperature": Temperature, "vector": VectorScaling, "isotonic": Isotonic}
    calibration: Calibration = kinds[values["kind"]](**own)
    return calibration


def _make_plain(calibration: Calibration) -> None:
    for name, value in vars(calibration).items():
        if name != "kind":
            object.__setattr__(calibration, name, _plain(value, f"the calibration's {name}"))


def _plain(value: Any, what: str) -> Any:
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(_plain(item, what) for item in value)
    return float(plain_number(value, what))
