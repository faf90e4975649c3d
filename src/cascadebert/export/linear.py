"""Fitted linear stages to stages of a cascade."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from cascadebert.disk import CONFIG_FILE, WEIGHTS_FILE, hash_files
from cascadebert.persistence.record import StageCost, StageRecord
from cascadebert.stages.linear import MODEL_TYPE, RUNTIME, read_tensors
from cascadebert.stages.ngrams import NGRAMS_A_CHARACTER

LINEAR = "linear"


def is_linear(folder: str | PathLike[str]) -> bool:
    """Whether this is the folder of a linear stage."""
    try:
        config = _read_config(Path(folder))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE


def linear_labels(folder: str | PathLike[str]) -> list[str]:
    """The label names of a fitted linear stage in the order of its logits."""
    names = _read_config(Path(folder))["id2label"]
    return [names[str(i)] for i in range(len(names))]


def export_linear(
    checkpoint: str | PathLike[str], output: Path, *, name: str, labels: Sequence[str]
) -> StageRecord:
    """Write a fitted linear stage as a stage of a cascade.

    Args:
        checkpoint: folder that :func:`fit_linear` wrote.
        output: folder for the stage.
        name: the stage's name in the cascade.
        labels: names for its labels, in the order of its logits.

    Returns:
        The stage's record; ``folder`` is left empty for the caller.
    """
    output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(checkpoint) / WEIGHTS_FILE, output / WEIGHTS_FILE)
    write_config(output, {**_read_config(Path(checkpoint)), **label_names_of(labels)})
    return linear_record(output, name)


def label_names_of(labels: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {name: i for i, name in enumerate(labels)},
    }


def _read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return config


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    text = json.dumps(config, indent=1, ensure_ascii=False)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def linear_record(folder: Path, name: str) -> StageRecord:
    """The record of a fitted linear stage; ``folder`` in it is left empty for the caller."""
    config = _read_config(folder)
    labels = tuple(linear_labels(folder))
    return StageRecord(
        name=name,
        folder="",
        labels=labels,
        inputs=(),
        max_length=config["max_length"],
        pad_token_id=0,
        truncation_side="right",
        cost=_cost(folder, len(labels)),
        files=hash_files(folder),
        kind="linear",
        runtime=RUNTIME,
        trained_on=config.get("trained_on"),
    )


def _cost(folder: Path, classes: int) -> StageCost:
    buckets, outputs = read_tensors(folder / WEIGHTS_FILE)["weights"].shape
    # Each n-gram adds one line of weights; the hashing is of integers and not counted.
    return StageCost(
        layers=1,
        parameters=buckets * outputs + classes,
        flops=(2.0 * outputs, 2.0 * outputs * NGRAMS_A_CHARACTER, 0.0),
    )
