"""Cascades of complete transformer classifiers (CascadeBERT, arXiv 2012.14682)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cascadebert.cascade import Cascade, Prediction
from cascadebert.data import Rows
from cascadebert.deferral.targets import MaxDrop, OperatingPoint, Speedup
from cascadebert.deferral.thresholds import Policy, choose_thresholds
from cascadebert.errors import CascadeError
from cascadebert.evaluation.evaluate import Evaluation, evaluate
from cascadebert.files import Columns, read_rows
from cascadebert.stage import Stage

if TYPE_CHECKING:
    from cascadebert.training.trainer import fine_tune

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
    "fine_tune",
    "read_rows",
]


def __getattr__(name: str) -> Any:
    # Fine-tuning needs torch; running a cascade does not, so it is imported on first use.
    if name == "fine_tune":
        from cascadebert.training.trainer import fine_tune

        return fine_tune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
