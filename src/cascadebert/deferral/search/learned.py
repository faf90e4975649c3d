"""The learned confidence score: a small logistic regression on a stage's own outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.confidence import (
    ConfidenceScore,
    Floats,
    learned_score,
    output_features,
    sigmoid,
)
from cascadebert.deferral.newton import minimise_convex

_FOLDS = 5


def fit_learned_score(
    logits: Sequence[ArrayLike], right: NDArray[np.bool_], seed: int = 0
) -> tuple[ConfidenceScore, Floats]:
    """Learn how likely each stage is right from its own outputs.

    Each stage gets a logistic regression with an L2 penalty (:func:`logistic_regression`) on
    :func:`~cascadebert.deferral.confidence.output_features`. A stage that is right or wrong on
    fewer than five rows keeps the log-odds of its answer.

    Args:
        logits: holds one array (rows, classes) per stage.
        right: tells whether each stage is right, bool of shape (stages, rows).
        seed: draws the folds.

    Returns:
        The score, fitted on all rows; and cross-fitted scores of these rows, float64 of shape
        (stages, rows), each by a model that has not seen the row.

    >>> random = np.random.default_rng(0)
    >>> logits = random.normal(size=(200, 2))
    >>> right = random.random((1, 200)) < 0.8
    >>> score, cross_fitted = fit_learned_score([logits], right)
    >>> score.name, len(score.parameters[0]), cross_fitted.shape
    ('learned', 6, (1, 200))
    """
    parameters, held_out = [], []
    for values, target in zip(logits, right, strict=True):
        features = output_features(values)
        model, scores = _fit(features, target, seed)
        parameters.append(model)
        held_out.append(scores)
    return learned_score(parameters), np.stack(held_out)


def _fit(features: Floats, right: NDArray[np.bool_], seed: int) -> tuple[tuple[float, ...], Floats]:
    fewest = int(min(right.sum(), (~right).sum()))
    if fewest < _FOLDS:
        plain = (1.0, *np.zeros(features.shape[1]))
        return plain, features[:, 0].copy()
    scale = features[:, :3].std(axis=0)
    scale = np.concatenate([np.where(scale > 0, scale, 1.0), np.ones(features.shape[1] - 3)])
    scaled = features / scale
    scores, fold = np.empty(len(right)), _stratified_folds(right, seed)
    for number in range(_FOLDS):
        own = fold == number
        weights, bias = logistic_regression(scaled[~own], right[~own])
        scores[own] = scaled[own] @ weights + bias
    weights, bias = logistic_regression(scaled, right)
    return (*(weights / scale).tolist(), bias), scores


def _stratified_folds(right: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    """The fold of each row: right and wrong rows are dealt out in turn, in random order."""
    random = np.random.default_rng(seed)
    rows = [random.permutation(np.flatnonzero(right == value)) for value in (True, False)]
    fold = np.empty(len(right), dtype=np.int64)
    fold[np.concatenate(rows)] = np.arange(len(right)) % _FOLDS
    return fold


def logistic_regression(features: Floats, target: NDArray[np.bool_]) -> tuple[Floats, float]:
    """Weights and bias that minimise the summed log loss plus half the squared weights.

    This is scikit-learn's ``LogisticRegression`` with its default penalty ``C=1``.

    Args:
        features: have the shape (rows, features).
        target: is bool of shape (rows,), with both values.

    Returns:
        float64 of shape (features,), and the bias, which is not penalised.

    >>> features, target = np.array([[0.0], [1.0], [2.0]]), np.array([False, False, True])
    >>> weights, bias = logistic_regression(features, target)
    >>> round(float(weights[0]), 4), round(bias, 4)
    (0.7016, -1.4492)
    """
    rows, columns = features.shape
    table = np.hstack([features, np.ones((rows, 1))])
    penalty = np.append(np.ones(columns), 0.0) / rows
    signs = np.where(target, 1.0, -1.0)

    def objective(parameters: Floats) -> tuple[float, Floats, Floats]:
        margins = signs * (table @ parameters)
        wrong = sigmoid(-margins)
        loss = np.logaddexp(0.0, -margins).mean() + (penalty * parameters**2).sum() / 2
        gradient = penalty * parameters - (signs * wrong) @ table / rows
        hessian = (table * (wrong * (1 - wrong))[:, None]).T @ table / rows + np.diag(penalty)
        return float(loss), gradient, hessian

    found = minimise_convex(objective, np.zeros(columns + 1))
    return found[:-1], float(found[-1])
