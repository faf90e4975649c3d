"""Checkpoints to stages: ``model.onnx`` beside the safetensors, checked against torch."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np
import onnx_ir
import torch
from transformers import PreTrainedModel

from cascadebert.disk import MODEL_FILE, TOKENIZER_FILE, WEIGHTS_FILE, hash_files
from cascadebert.errors import ExportError
from cascadebert.export.checkpoints import (
    label_names,
    maximum_length,
    model_inputs,
    open_checkpoint,
    own_labels,
)
from cascadebert.export.costs import example_batch, model_cost
from cascadebert.export.linear import export_linear, is_linear, linear_labels
from cascadebert.persistence.record import StageRecord
from cascadebert.rows.rows import Rows
from cascadebert.runtimes.quiet import quiet
from cascadebert.stages.load import load_stage

LOGIT_TOLERANCE = 1e-4
_LONGEST_PROBE = 1024
_MOST_PROBES = 256

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


def _write_onnx(model: PreTrainedModel, inputs: tuple[str, ...], output: Path) -> None:
    example = example_batch(inputs, rows=3, tokens=11)
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
