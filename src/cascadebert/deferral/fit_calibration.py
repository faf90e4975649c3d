"""Fitting calibrations on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.calibration import (
    Calibration,
    Isotonic,
    Temperature,
    VectorScaling,
)
from cascadebert.deferral.confidence import Floats, softmax
from cascadebert.deferral.newton import minimise_convex
from cascadebert.errors import InputError

# Where every row is right the likelihood has no maximum; confidences must stay apart.
_LOG_TEMPERATURES = (-3.0, 3.0)
_TEMPERATURE_ERROR = 1e-6


def fit_calibration(kind: str, logits: ArrayLike, labels: ArrayLike) -> Calibration | None:
    """Fit a calibration on rows that the stage was not trained on.

    Temperature and vector scaling minimise the negative log-likelihood of the labels (Guo et al.,
    arXiv 1706.04599). Isotonic regression fits each class against the others by least squares
    (Zadrozny and Elkan, KDD 2002).

    Args:
        kind: names the calibration: "temperature", "vector", "isotonic" or "none".
        logits: have the shape (rows, classes).
        labels: are class indices of shape (rows,).

    Returns:
        The calibration, or None for "none".

    Raises:
        InputError: the kind is unknown, or the arrays do not fit together or are not finite.

    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> calibration = fit_calibration("temperature", logits, [0, 0, 1, 1])
    >>> round(calibration.temperature, 3)
    3.641
    """
    refuse_unknown(kind)
    values = np.asarray(logits, dtype=np.float64)
    truth = np.asarray(labels, dtype=np.int64)
    if values.ndim != 2 or truth.shape != values.shape[:1] or not len(truth):
        raise InputError(
            f"logits have the shape {values.shape} and labels {truth.shape}; "
            "give (rows, classes) and (rows,), with at least one row"
        )
    if not np.isfinite(values).all():
        raise InputError("logits are not all finite; leave out the rows with NaN or infinity")
    if truth.min() < 0 or truth.max() >= values.shape[1]:
        raise InputError(
            f"labels run from {truth.min()} to {truth.max()} for {values.shape[1]} classes; "
            "give class indices, counted from 0"
        )
    return CALIBRATIONS[kind](values, truth)


def refuse_unknown(kind: str) -> None:
    """Refuse a name that is not in :data:`CALIBRATIONS`.

    Raises:
        InputError: the name is unknown.

    >>> refuse_unknown("platt")
    Traceback (most recent call last):
    ...
    cascadebert.errors.InputError: no calibration is called 'platt'; there are temperature, \
vector, isotonic, none
    """
    if kind not in CALIBRATIONS:
        raise InputError(f"no calibration is called {kind!r}; there are {', '.join(CALIBRATIONS)}")


def _temperature(logits: Floats, labels: NDArray[np.int64]) -> Temperature:
    """The loss is convex in the inverse temperature, so its slope there changes sign once."""
    against_label = logits - np.take_along_axis(logits, labels[:, None], axis=1)
    low, high = _LOG_TEMPERATURES
    while high - low > _TEMPERATURE_ERROR:
        middle = (low + high) / 2
        slope = (softmax(against_label * math.exp(-middle)) * against_label).sum()
        low, high = (low, middle) if slope < 0 else (middle, high)
    return Temperature(math.exp((low + high) / 2))


def _vector(logits: Floats, labels: NDArray[np.int64]) -> VectorScaling:
    rows, classes = logits.shape
    each = np.arange(classes)
    wanted = np.zeros_like(logits)
    wanted[np.arange(rows), labels] = 1

    def objective(parameters: Floats) -> tuple[float, Floats, Floats]:
        scaled = logits * parameters[:classes] + parameters[classes:]
        p = softmax(scaled)
        excess = scaled - scaled.max(axis=1, keepdims=True)
        loss = (np.log(np.exp(excess).sum(axis=1)) - (excess * wanted).sum(axis=1)).mean()
        apart = p - wanted
        gradient = np.concatenate([(apart * logits).mean(axis=0), apart.mean(axis=0)])
        moved = p * logits
        both = np.hstack([moved, p])
        hessian = -(both.T @ both) / rows
        hessian[each, each] += (moved * logits).mean(axis=0)
        hessian[each, classes + each] += moved.mean(axis=0)
        hessian[classes + each, each] += moved.mean(axis=0)
        hessian[classes + each, classes + each] += p.mean(axis=0)
        return float(loss), gradient, hessian

    start = np.full(classes, 1 / _temperature(logits, labels).temperature)
    found = minimise_convex(objective, np.concatenate([start, np.zeros(classes)]))
    scale, shift = found[:classes], found[classes:]
    # A constant added to every shift changes nothing.
    return VectorScaling(tuple(scale.tolist()), tuple((shift - shift.mean()).tolist()))


def _isotonic(logits: Floats, labels: NDArray[np.int64]) -> Isotonic:
    probabilities = softmax(logits)
    columns = [1] if logits.shape[1] == 2 else range(logits.shape[1])
    lines = [_rising_line(probabilities[:, column], labels == column) for column in columns]
    before, after = zip(*lines, strict=True)
    return Isotonic(before, after)


def _rising_line(x: Floats, hits: NDArray[np.bool_]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Isotonic regression by pooling adjacent violators, without points inside flat parts."""
    points, which = np.unique(x, return_inverse=True)
    rows, sums = np.bincount(which), np.bincount(which, weights=hits)
    lengths = np.ones(len(points), dtype=np.int64)
    while not (rising := np.diff(sums / rows) > 0).all():
        starts = np.flatnonzero(np.append(True, rising))
        rows, sums, lengths = (np.add.reduceat(part, starts) for part in (rows, sums, lengths))
    y = np.repeat(sums / rows, lengths)
    steps = np.diff(y) != 0
    kept = np.append(True, steps) | np.append(steps, True)
    kept[[0, -1]] = True
    return tuple(points[kept].tolist()), tuple(y[kept].tolist())


CALIBRATIONS: dict[str, Callable[[Floats, NDArray[np.int64]], Calibration | None]] = {
    "temperature": _temperature,
    "vector": _vector,
    "isotonic": _isotonic,
    "none": lambda _logits, _labels: None,
}
