"""Cascades of complete transformer classifiers (CascadeBERT, arXiv 2012.14682)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cascadebert.cascade import Cascade
from cascadebert.deferral.certificates.certificate import Certificate
from cascadebert.deferral.search.choose import choose_thresholds
from cascadebert.deferral.search.policy import OperatingPoint, Policy
from cascadebert.deferral.targets import (
    MaxDrop,
    MaxErrorWhenAnswering,
    MaxSecondsPerRow,
    MinAccuracy,
    MinAgreement,
    MinCoverage,
    MinF1,
    MinMatthews,
    MinPrecision,
    MinRecall,
    Speedup,
)
from cascadebert.errors import CascadeError, MissingDependencyError
from cascadebert.evaluation.evaluate import Evaluation, evaluate
from cascadebert.prediction import Prediction
from cascadebert.report.frontier_picture import plot_frontier
from cascadebert.rows.files import Columns, read_rows
from cascadebert.rows.rows import Rows
from cascadebert.stages.base import Stage

if TYPE_CHECKING:
    from cascadebert.training.estimator import CascadeClassifier as CascadeClassifier
    from cascadebert.training.fine_tuning import fine_tune as fine_tune
    from cascadebert.training.objective import Objective as Objective
    from cascadebert.training.recipe import Recipe as Recipe
    from cascadebert.training.trainer import CascadeTrainer as CascadeTrainer

__all__ = [
    "Cascade",
    "CascadeError",
    "Certificate",
    "Columns",
    "Evaluation",
    "MaxDrop",
    "MaxErrorWhenAnswering",
    "MaxSecondsPerRow",
    "MinAccuracy",
    "MinAgreement",
    "MinCoverage",
    "MinF1",
    "MinMatthews",
    "MinPrecision",
    "MinRecall",
    "OperatingPoint",
    "Policy",
    "Prediction",
    "Rows",
    "Speedup",
    "Stage",
    "choose_thresholds",
    "evaluate",
    "plot_frontier",
    "read_rows",
]


# Training needs torch; running a cascade does not, so these are imported on first use, and are
# not in __all__.
_TRAINING = {
    "CascadeClassifier": "estimator",
    "CascadeTrainer": "trainer",
    "Objective": "objective",
    "Recipe": "recipe",
    "fine_tune": "fine_tuning",
}


def __getattr__(name: str) -> Any:
    if name not in _TRAINING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"cascadebert.training.{_TRAINING[name]}")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or "torch", "training", "train") from None
    return getattr(module, name)
