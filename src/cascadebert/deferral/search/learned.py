"""Fitting the learned confidence score: a small logistic model on a stage's own outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.confidence import ConfidenceScore, Floats, learned_score, output_features
from cascadebert.errors import MissingDependencyError

_FOLDS = 5


def fit_learned_score(
    logits: Sequence[ArrayLike], right: NDArray[np.bool_], seed: int = 0
) -> tuple[ConfidenceScore, Floats]:
    """Learn for each stage how likely it is right, from its own outputs.

    A stage that is right or wrong on fewer than five rows keeps the log-odds of its answer.

    Args:
        logits: one array (rows, classes) a stage.
        right: whether each stage is right, bool of shape (stages, rows).
        seed: of the folds.

    Returns:
        The score, fitted on all rows; and cross-fitted scores of these rows, float64 of shape
        (stages, rows), each by a model that has not seen the row.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    parameters, held_out = [], []
    for values, target in zip(logits, right, strict=True):
        features = output_features(values)
        model, scores = _fit(features, target, seed)
        parameters.append(model)
        held_out.append(scores)
    return learned_score(parameters), np.stack(held_out)


def _fit(features: Floats, right: NDArray[np.bool_], seed: int) -> tuple[tuple[float, ...], Floats]:
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold
    except ModuleNotFoundError:
        raise MissingDependencyError("scikit-learn", "a learned score", "train") from None
    fewest = int(min(right.sum(), (~right).sum()))
    if fewest < _FOLDS:
        plain = (1.0, *np.zeros(features.shape[1]))
        return plain, features[:, 0].copy()
    scale = features[:, :3].std(axis=0)
    scale = np.concatenate([np.where(scale > 0, scale, 1.0), np.ones(features.shape[1] - 3)])

    def fitted(rows: NDArray[np.int64]) -> tuple[Floats, float]:
        model = LogisticRegression(max_iter=1000).fit(features[rows] / scale, right[rows])
        return model.coef_[0] / scale, float(model.intercept_[0])

    scores = np.empty(len(right))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    for rest, fold in folds.split(features, right):
        weights, bias = fitted(rest)
        scores[fold] = features[fold] @ weights + bias
    weights, bias = fitted(np.arange(len(right)))
    return (*weights.tolist(), bias), scores
