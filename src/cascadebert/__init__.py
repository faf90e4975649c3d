"""Cascades of complete transformer classifiers (CascadeBERT, arXiv 2012.14682)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cascadebert.cascade import Cascade, Prediction
from cascadebert.data import Rows
from cascadebert.deferral.targets import MaxDrop, OperatingPoint, Speedup
from cascadebert.deferral.thresholds import Policy, choose_thresholds
from cascadebert.errors import CascadeError, MissingDependencyError
from cascadebert.evaluation.evaluate import Evaluation, evaluate
from cascadebert.evaluation.frontier import plot_frontier
from cascadebert.files import Columns, read_rows
from cascadebert.stage import Stage

if TYPE_CHECKING:
    from cascadebert.training.fine_tuning import fine_tune as fine_tune

__all__ = [
    "Cascade",
    "CascadeError",
    "Columns",
    "Evaluation",
    "MaxDrop",
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


def __getattr__(name: str) -> Any:
    # Fine-tuning needs torch; running a cascade does not, so it is imported on first use, and
    # is not in __all__.
    if name == "fine_tune":
        try:
            from cascadebert.training.fine_tuning import fine_tune
        except ModuleNotFoundError as error:
            missing = error.name or "torch"
            raise MissingDependencyError(missing, "fine-tuning", "train") from None
        return fine_tune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
