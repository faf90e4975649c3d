"""Fine-tuned checkpoints to the stages of one cascade."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cascadebert.deferral.confidence import DEFAULT_SCORE
from cascadebert.disk import STAGES, refuse_unsafe_name
from cascadebert.errors import CascadeWarning, InputError
from cascadebert.export.checkpoints import label_names, open_config, own_labels
from cascadebert.export.costs import TYPICAL_TOKENS
from cascadebert.export.linear import is_linear, linear_labels
from cascadebert.export.onnx import export_stage
from cascadebert.export.quantisation import with_best_runtime
from cascadebert.persistence.record import CascadeRecord, StageRecord
from cascadebert.rows.rows import Rows
from cascadebert.stages.labels import are_placeholders, same_labels

_VERSIONS = (
    "cascadebert",
    "nncf",
    "numpy",
    "onnxruntime",
    "openvino",
    "tokenizers",
    "torch",
    "transformers",
)


def export_cascade(
    checkpoints: Sequence[str],
    folder: Path,
    *,
    names: Sequence[str] | None = None,
    label_maps: Mapping[int, Mapping[str, str]],
    max_length: int | None,
    rows: Rows | None,
    quantise: bool,
    on_stage: Callable[[int], object] | None,
) -> CascadeRecord:
    """Export checkpoints, small to large, below ``folder``; see ``Cascade.from_stages``."""
    if not checkpoints:
        raise InputError("a cascade needs at least one stage; name a checkpoint")
    for number in label_maps:
        if not 1 <= number <= len(checkpoints):
            raise InputError(
                f"a label map names stage {number}; there are stages 1 to {len(checkpoints)}"
            )
    names = [stage_name(checkpoint) for checkpoint in checkpoints] if names is None else names
    if len(names) != len(checkpoints):
        raise InputError(f"{len(checkpoints)} stages and {len(names)} names; give one for each")
    for name in names:
        refuse_unsafe_name(name, "a stage's name")
    # Before the long part: labels that differ are found without exporting anything.
    label_lists = [
        label_names(_own_labels(checkpoint), checkpoint, label_maps.get(number, {}))
        for number, checkpoint in enumerate(checkpoints, 1)
    ]
    labels = same_labels(list(zip(names, label_lists, strict=True)))
    stages = []
    for number, (name, checkpoint) in enumerate(zip(names, checkpoints, strict=True), start=1):
        place = f"{STAGES}/{number}-{name}"
        stage = export_stage(
            checkpoint,
            folder / place,
            name=name,
            label_map=label_maps.get(number),
            max_length=max_length,
            rows=rows,
        )
        if quantise and rows is not None and stage.kind == "transformer":
            stage = with_best_runtime(stage, folder / place, rows)
        stages.append(dataclasses.replace(stage, folder=place))
        if on_stage:
            on_stage(1)
    _warn_of_order(stages)
    if len(stages) > 1 and are_placeholders(labels):
        warnings.warn(
            f"nobody named the labels of these stages ({', '.join(labels[:3])}, ...), so their "
            "order cannot be checked; name them with --map-labels (label_maps in Python)",
            CascadeWarning,
            stacklevel=3,
        )
    return CascadeRecord(
        labels=labels,
        stages=tuple(stages),
        score=DEFAULT_SCORE,
        thresholds=None,
        cost=None,
        certificate=None,
        versions={name: importlib.metadata.version(name) for name in _VERSIONS},
        data_fingerprint=None,
    )


def _own_labels(checkpoint: str) -> list[str]:
    return (
        linear_labels(checkpoint) if is_linear(checkpoint) else own_labels(open_config(checkpoint))
    )


def stage_name(checkpoint: str) -> str:
    """What a stage is called: the last part of its checkpoint's name, fit for a folder."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(checkpoint).absolute().name)
    return name[-100:].strip(".-") or "stage"


def _warn_of_order(stages: Sequence[StageRecord]) -> None:
    costs = [float(stage.cost.row_flops(TYPICAL_TOKENS)) for stage in stages]
    if costs != sorted(costs):
        shown = ", ".join(
            f"{stage.name} {cost:.1e}" for stage, cost in zip(stages, costs, strict=True)
        )
        warnings.warn(
            f"the stages are not ordered small to large (operations for a row of "
            f"{TYPICAL_TOKENS} tokens: {shown}); a cascade saves time when the cheapest is first",
            CascadeWarning,
            stacklevel=4,
        )
