"""Checkpoints to stages: ``model.onnx`` beside the safetensors, checked against torch."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import re
import struct
import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from cascadebert.artifact import (
    MODEL_FILE,
    STAGES,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    CascadeRecord,
    StageCost,
    StageRecord,
    hash_files,
    refuse_unsafe_name,
)
from cascadebert.data import Rows
from cascadebert.deferral.confidence import DEFAULT_SCORE
from cascadebert.errors import (
    CascadeWarning,
    ExportError,
    InputError,
)
from cascadebert.stage import are_placeholders, load_stage, same_labels
from cascadebert.training.checkpoints import (
    label_names,
    maximum_length,
    model_inputs,
    open_checkpoint,
    open_config,
    own_labels,
)
from cascadebert.training.linear import export_linear, is_linear, linear_labels
from cascadebert.training.logs import quiet
from cascadebert.training.quantisation import with_best_runtime

LOGIT_TOLERANCE = 1e-4
_LONGEST_PROBE = 1024
_MOST_PROBES = 256
_TYPICAL_TOKENS = 32
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

PROBE_ROWS = Rows(
    [
        "Good.",
        "the plot is thin , but the acting carries it",
        "Der Zug nach Köln fährt heute 20 Minuten später; 电影很好看 🎬",
        "Is there a way to change the PIN of my card before I travel to Lisbon on Friday?",
        "shares " * 40 + "fell",
        "a row that is far longer than the others " * _LONGEST_PROBE,
    ]
)
PROBE_PAIRS = Rows(PROBE_ROWS.texts, PROBE_ROWS.texts[::-1])


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
    costs = [float(stage.cost.row_flops(_TYPICAL_TOKENS)) for stage in stages]
    if costs != sorted(costs):
        shown = ", ".join(
            f"{stage.name} {cost:.1e}" for stage, cost in zip(stages, costs, strict=True)
        )
        warnings.warn(
            f"the stages are not ordered small to large (operations for a row of "
            f"{_TYPICAL_TOKENS} tokens: {shown}); a cascade saves time when the cheapest is first",
            CascadeWarning,
            stacklevel=4,
        )


def export_stage(
    checkpoint: str | PathLike[str],
    output: Path,
    *,
    name: str,
    label_map: Mapping[str, str] | None = None,
    max_length: int | None = None,
    rows: Rows | None = None,
) -> StageRecord:
    """Write a fine-tuned classifier as a stage: checkpoint, tokenizer and ONNX graph.

    The graph has no weights of its own: it points at the tensors in ``model.safetensors``. A
    fitted linear stage is copied as it is.

    Args:
        checkpoint: folder or hub name of a sequence classification checkpoint.
        output: an empty folder for the stage.
        name: the stage's name in the cascade.
        label_map: new names for the checkpoint's labels, old to new.
        max_length: tokens a row is truncated at; by default what model and tokenizer allow.
        rows: rows on the first of which torch and ONNX Runtime are compared, beside the built-in
            ones.

    Returns:
        The stage's record; ``folder`` is left empty for the caller.

    Raises:
        ArtifactError: the checkpoint cannot be opened, or is no sequence classifier.
        LabelMismatchError: ``label_map`` does not fit the checkpoint's labels.
        ExportError: the logits of ONNX Runtime and torch differ by more than 1e-4, or 1e-4 of
            the largest.
    """
    if is_linear(checkpoint):
        labels = label_names(linear_labels(checkpoint), checkpoint, label_map or {})
        return export_linear(checkpoint, output, name=name, labels=labels)
    model, tokenizer = open_checkpoint(checkpoint)
    labels = label_names(own_labels(model.config), checkpoint, label_map or {})
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: i for i, label in enumerate(labels)}
    max_length = maximum_length(model, tokenizer, max_length)
    tokenizer.model_max_length = max_length
    with quiet():
        model.save_pretrained(output, max_shard_size="1TB")
        tokenizer.save_pretrained(output)
    tokenizer.backend_tokenizer.save(str(output / TOKENIZER_FILE))
    inputs = model_inputs(model, tokenizer)
    _write_onnx(model, inputs, output)
    record = StageRecord(
        name=name,
        folder="",
        labels=labels,
        inputs=inputs,
        max_length=max_length,
        pad_token_id=int(tokenizer.pad_token_id or 0),
        truncation_side=tokenizer.truncation_side,
        cost=model_cost(model, inputs),
        files=hash_files(output),
        trained_on=getattr(model.config, "trained_on", None),
    )
    for probe in (PROBE_ROWS, PROBE_PAIRS, rows and rows.slice(0, _MOST_PROBES)):
        if probe is not None:
            _check_same_logits(record, output, probe)
    return record


class _LogitsOnly(torch.nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: torch.Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, **types
        ).logits
        return logits


def _example(inputs: tuple[str, ...], rows: int, tokens: int) -> dict[str, torch.Tensor]:
    values = {"input_ids": 5, "attention_mask": 1, "token_type_ids": 0}
    return {name: torch.full((rows, tokens), values[name], dtype=torch.long) for name in inputs}


def _write_onnx(model: PreTrainedModel, inputs: tuple[str, ...], output: Path) -> None:
    example = _example(inputs, rows=3, tokens=11)
    with quiet():
        program = torch.onnx.export(
            _LogitsOnly(model).eval(),
            kwargs=example,
            dynamo=True,
            # Folding would turn transposed weights into copies; the runtime folds when it loads.
            optimize=False,
            dynamic_shapes={name: {0: "rows", 1: "tokens"} for name in inputs},
            input_names=list(inputs),
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    graph = program.model
    _point_at_safetensors(graph, output)
    for node in graph.graph:
        node.metadata_props.clear()
    onnx_ir.save(graph, output / MODEL_FILE)


def _point_at_safetensors(model: onnx_ir.Model, folder: Path) -> None:
    with (folder / WEIGHTS_FILE).open("rb") as file:
        (header_size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_size))
    for name, value in model.graph.initializers.items():
        entry = header.get(name.removeprefix("model."))
        if entry is None:
            continue
        start, stop = entry["data_offsets"]
        assert value.dtype is not None
        assert value.shape is not None
        value.const_value = onnx_ir.ExternalTensor(
            WEIGHTS_FILE,
            offset=8 + header_size + start,
            length=stop - start,
            dtype=value.dtype,
            shape=value.shape,
            name=name,
            base_dir=folder,
        )


def model_cost(model: Any, inputs: tuple[str, ...]) -> StageCost:
    """What a model on the CPU costs, by counting."""
    return StageCost(
        layers=int(model.config.num_hidden_layers),
        parameters=sum(own.numel() for own in model.parameters()),
        flops=count_flops(lambda example: model(**example), inputs),
    )


def count_flops(
    run: Callable[[dict[str, torch.Tensor]], object], inputs: tuple[str, ...]
) -> tuple[int, int, int]:
    """Count operations at three lengths; they determine a + b·n + c·n² exactly.

    Args:
        run: takes a batch of one row.
        inputs: names of what is in it.
    """
    lengths = [8, 16, 24]
    counts = []
    for tokens in lengths:
        # Fused attention on the CPU is not counted.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run(_example(inputs, rows=1, tokens=tokens))
        counts.append(counter.get_total_flops())
    a, b, c = np.linalg.solve(np.vander(lengths, increasing=True), counts)
    return round(float(a)), round(float(b)), round(float(c))


def _check_same_logits(record: StageRecord, folder: Path, rows: Rows) -> None:
    probe_length = min(record.max_length, _LONGEST_PROBE)
    short = dataclasses.replace(record, max_length=probe_length)
    logits = []
    for runtime in ("onnx", "torch"):
        with quiet():
            stage = load_stage(folder, short, record.labels, runtime)
        logits.append(stage.run_all(rows).logits)
    worst = float(np.abs(logits[0] - logits[1]).max())
    # Rounding grows with the numbers that are rounded.
    allowed = LOGIT_TOLERANCE * max(1.0, float(np.abs(logits[1]).max()))
    if not worst <= allowed:
        raise ExportError(
            f"stage '{record.name}': ONNX Runtime and torch differ by {worst:.1e} in logits on "
            f"{len(rows)} rows, at most {allowed:.0e} is allowed; "
            "report it with the model's architecture and versions"
        )
