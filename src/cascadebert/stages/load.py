"""Loading a stage of the kind that its record names."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from cascadebert.persistence.record import StageRecord
from cascadebert.stages.base import Stage

STAGE_KINDS = {
    "transformer": ("cascadebert.stages.transformer", "TransformerStage"),
    "linear": ("cascadebert.stages.linear", "LinearStage"),
}


def load_stage(folder: Path, record: StageRecord, labels: Sequence[str], runtime: str) -> Stage:
    """Load a stage of the kind that its record names.

    Args:
        folder: the stage's folder.
        record: what ``cascade.json`` says of it.
        labels: the cascade's label names.
        runtime: of transformers, a name in :data:`cascadebert.runtimes.RUNTIMES`.
    """
    module, attribute = STAGE_KINDS[record.kind]
    make = getattr(importlib.import_module(module), attribute)
    return cast(Stage, make(folder, record, labels, runtime))
