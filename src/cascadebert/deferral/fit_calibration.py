"""Fitting calibrations on held-out rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.isotonic import IsotonicRegression

from cascadebert.deferral.calibration import Calibration, Isotonic, Temperature, VectorScaling
from cascadebert.deferral.confidence import Floats
from cascadebert.errors import InputError

# Where every row is right the likelihood has no maximum; confidences must stay apart.
_LOG_TEMPERATURES = (-3.0, 3.0)


def fit_calibration(kind: str, logits: ArrayLike, labels: ArrayLike) -> Calibration | None:
    """Fit a calibration on rows that the stage was not trained on.

    Args:
        kind: "temperature", "vector", "isotonic" or "none".
        logits: shape (rows, classes).
        labels: class indices, shape (rows,).

    Returns:
        None for "none".

    Raises:
        InputError: an unknown kind, or arrays that do not fit together.
    """
    refuse_unknown(kind)
    values = np.asarray(logits, dtype=np.float64)
    truth = np.asarray(labels, dtype=np.int64)
    if values.ndim != 2 or truth.shape != values.shape[:1] or not len(truth):
        raise InputError(
            f"logits have the shape {values.shape} and labels {truth.shape}; "
            "give (rows, classes) and (rows,), with one row at least"
        )
    return CALIBRATIONS[kind](values, truth)


def refuse_unknown(kind: str) -> None:
    """Refuse a name that is not in :data:`CALIBRATIONS`.

    Raises:
        InputError: there is none of this name.
    """
    if kind not in CALIBRATIONS:
        raise InputError(f"no calibration is called {kind!r}; there are {', '.join(CALIBRATIONS)}")


def _temperature(logits: Floats, labels: NDArray[np.int64]) -> Temperature:
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean())

    best = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded")
    return Temperature(float(np.exp(best.x)))


def _vector(logits: Floats, labels: NDArray[np.int64]) -> VectorScaling:
    rows, classes = logits.shape
    wanted = np.zeros_like(logits)
    wanted[np.arange(rows), labels] = 1

    def loss(parameters: Floats) -> tuple[float, Floats]:
        scaled = logits * parameters[:classes] + parameters[classes:]
        apart = softmax(scaled, axis=1) - wanted
        value = -(log_softmax(scaled, axis=1) * wanted).sum() / rows
        gradient = np.concatenate([(apart * logits).sum(axis=0), apart.sum(axis=0)]) / rows
        return float(value), gradient

    start = np.concatenate([np.ones(classes), np.zeros(classes)])
    best = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    scale, shift = best.x[:classes], best.x[classes:]
    return VectorScaling(tuple(scale.tolist()), tuple(shift.tolist()))


def _isotonic(logits: Floats, labels: NDArray[np.int64]) -> Isotonic:
    probabilities = softmax(logits, axis=1)
    columns = [1] if logits.shape[1] == 2 else range(logits.shape[1])
    before, after = [], []
    for column in columns:
        line = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        line.fit(probabilities[:, column], labels == column)
        before.append(tuple(line.X_thresholds_.tolist()))
        after.append(tuple(line.y_thresholds_.tolist()))
    return Isotonic(tuple(before), tuple(after))


CALIBRATIONS: dict[str, Callable[[Floats, NDArray[np.int64]], Calibration | None]] = {
    "temperature": _temperature,
    "vector": _vector,
    "isotonic": _isotonic,
    "none": lambda _logits, _labels: None,
}
