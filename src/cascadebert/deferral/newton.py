"""Minimising smooth convex functions, for scores and calibrations that are fitted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cascadebert.deferral.confidence import Floats

_MOST_STEPS = 100
_LEAST_GAIN = 1e-7
_LEAST_DAMPING = 1e-10


def minimise_convex(
    objective: Callable[[Floats], tuple[float, Floats, Floats]], start: Floats
) -> Floats:
    """Minimise a smooth convex function by Newton's method, damped as Levenberg's.

    It stops after a step that gains no more than 1e-7, so a function that falls for ever, as a
    log loss on separable data does, still has a finite answer. The damping is never quite 0, which
    picks one answer where many are as good.

    Args:
        objective: takes parameters, float64 of shape (parameters,), and gives its value, its
            gradient and its Hessian there.
        start: gives the first parameters.

    >>> quadratic = lambda x: (float((x - 3) @ (x - 3)), 2 * (x - 3), 2 * np.eye(1))
    >>> minimise_convex(quadratic, np.zeros(1)).round(6).tolist()
    [3.0]
    """
    parameters, damping = start, _LEAST_DAMPING
    value, gradient, hessian = objective(parameters)
    for _ in range(_MOST_STEPS):
        scale = float(np.trace(hessian)) / len(start) or 1.0
        step = np.linalg.solve(hessian + damping * scale * np.eye(len(start)), gradient)
        following = objective(parameters - step)
        gain = float(gradient @ step)
        if following[0] <= value - gain / 4:
            parameters = parameters - step
            value, gradient, hessian = following
            damping = max(damping / 100, _LEAST_DAMPING)
        else:
            damping *= 10
        if gain <= _LEAST_GAIN:
            break
    return parameters
