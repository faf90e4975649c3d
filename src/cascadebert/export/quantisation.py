"""Stages in int8: calibrated on rows, compared with fp32, and run where that is alike and faster.

Weights have a scale for each output channel and activations one that is fixed beforehand, so that a
row's answer does not depend on the rows beside it, as it does where activations are scaled batch
by batch. SmoothQuant (arXiv 2211.10438) moves outliers of the activations into the weights; how far
(its alpha) matters much, and is found by trying.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascadebert.disk import INT8_FILES, MODEL_FILE, hash_files
from cascadebert.errors import CascadeWarning, MissingDependencyError, first_line
from cascadebert.persistence.record import RuntimeTrial, StageRecord
from cascadebert.rows.rows import Rows
from cascadebert.runtimes.quiet import quiet
from cascadebert.stages.transformer import TransformerStage

FEWEST_ROWS = 100
MOST_LOGIT_ERROR = 0.1
"""Root mean square by which logits may move, over their standard deviation."""

_CALIBRATION_ROWS = 300
_TRIAL_ROWS = 500
_TIMED_ROWS = 128
_ROUNDS = 3
_ALPHAS = (0.5, 0.85)
_INT8 = "openvino-int8"
_BESIDE_FP32 = ("openvino", "openvino-bf16", _INT8)


def with_best_runtime(record: StageRecord, folder: Path, rows: Rows) -> StageRecord:
    """Quantise a stage, try every runtime on rows, and record the best.

    That is the fastest of those that keep to fp32: logits move by at most
    :data:`MOST_LOGIT_ERROR`. The int8 model is kept in any case, for who asks for it.

    Args:
        record: of an exported transformer.
        folder: where it lies.
        rows: what the stage will see, such as its training rows; labels are not used.

    Returns:
        The record with ``runtime``, ``trials``, ``files`` and ``quantised_on``.

    Raises:
        MissingDependencyError: NNCF or OpenVINO is not installed.
    """
    if len(rows) < FEWEST_ROWS:
        warnings.warn(
            f"stage '{record.name}' stays in fp32: it takes {FEWEST_ROWS} rows to quantise it, and "
            f"{len(rows)} were given",
            CascadeWarning,
            stacklevel=2,
        )
        return record
    order = np.random.default_rng(0).permutation(len(rows))
    calibration = rows.take(order[: min(_CALIBRATION_ROWS, len(rows) // 2)])
    trial = rows.take(order[::-1][: min(_TRIAL_ROWS, len(rows) // 2)])
    trials = _try(folder, record, calibration, trial)
    best = max(
        (trial for trial in trials if trial.logit_error <= MOST_LOGIT_ERROR),
        key=lambda trial: trial.rows_per_second,
    )
    return dataclasses.replace(
        record,
        runtime=best.runtime,
        trials=tuple(trials),
        files=hash_files(folder),
        quantised_on=rows.texts_fingerprint(),
    )


def logit_error(logits: NDArray[np.floating[Any]], reference: NDArray[np.floating[Any]]) -> float:
    """Root mean square by which logits differ, over the standard deviation of the reference.

    Args:
        logits: of shape (rows, classes).
        reference: what they are compared with, of the same shape.
    """
    moved = np.sqrt(np.square(logits - reference, dtype=np.float64).mean())
    spread = float(reference.std(dtype=np.float64))
    if not moved:
        return 0.0
    return float(moved / spread) if spread else float("inf")


def _try(folder: Path, record: StageRecord, calibration: Rows, trial: Rows) -> list[RuntimeTrial]:
    """Compare the answers of all runtimes that can run the stage, then time them in turn.

    A warning tells of the others.
    """
    fp32 = _load(folder, record, "onnx")
    stages, logits = {"onnx": fp32}, {"onnx": fp32.run_all(trial).logits}
    reference = logits["onnx"]
    for name in _BESIDE_FP32:
        try:
            if name == _INT8:
                _quantise(fp32, single_rows(fp32, calibration), trial, reference)
            stage = _load(folder, record, name)
            logits[name] = stage.run_all(trial).logits
        except MissingDependencyError:
            raise
        except Exception as error:
            warnings.warn(
                f"stage '{record.name}' does not run on {name}, which is left out "
                f"({first_line(error)})",
                CascadeWarning,
                stacklevel=3,
            )
            if name == _INT8:
                shutil.rmtree((folder / INT8_FILES[0]).parent, ignore_errors=True)
        else:
            stages[name] = stage
    timed = trial.slice(0, _TIMED_ROWS)
    rounds = [
        {name: stage.run_all(timed).seconds for name, stage in stages.items()}
        for _ in range(_ROUNDS)
    ]
    return [
        RuntimeTrial(
            runtime=name,
            rows_per_second=len(timed) / statistics.median(once[name] for once in rounds),
            agreement=float((own.argmax(axis=1) == reference.argmax(axis=1)).mean()),
            logit_error=logit_error(own, reference),
        )
        for name, own in logits.items()
    ]


def _load(folder: Path, record: StageRecord, runtime: str) -> TransformerStage:
    return TransformerStage(folder, record, record.labels, runtime)


def _quantise(
    stage: TransformerStage,
    batches: Sequence[dict[str, NDArray[np.int64]]],
    trial: Rows,
    reference: NDArray[np.float32],
) -> None:
    """Write the int8 model with the alpha that moves logits least."""
    folder = stage.folder
    target = (folder / INT8_FILES[0]).parent
    target.mkdir()
    least = np.inf
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for alpha in _ALPHAS:
            _write_int8(folder / MODEL_FILE, target, batches, alpha)
            logits = _load(folder, stage.record, _INT8).run_all(trial).logits
            error = logit_error(logits, reference)
            if error < least:
                least = error
                shutil.copytree(target, scratch, dirs_exist_ok=True)
        shutil.copytree(scratch, target, dirs_exist_ok=True)


def single_rows(stage: TransformerStage, rows: Rows) -> list[dict[str, NDArray[np.int64]]]:
    """Each row as the stage's model takes it, a batch of its own."""
    tokens, most = stage.tokenize(rows), stage.record.max_length
    return [
        {
            name: column
            for name, column in tokens.batch(np.array([i]), stage.padding, most).items()
            if name in stage.record.inputs
        }
        for i in range(len(rows))
    ]


def _write_int8(
    source: Path, target: Path, batches: Sequence[dict[str, NDArray[np.int64]]], alpha: float
) -> None:
    # NNCF reports each use to its makers unless it is told that this is automation.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        with quiet():
            import nncf
            import openvino
            from nncf.quantization.advanced_parameters import (
                AdvancedQuantizationParameters,
                AdvancedSmoothQuantParameters,
            )
            from openvino._offline_transformations import apply_moc_transformations
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or "nncf", "quantising a stage", "train") from None
    model = openvino.Core().read_model(source)
    # Unfolded, transposed weights are not seen to be weights, and stay in fp32.
    apply_moc_transformations(model, cf=True)
    with quiet():
        quantised = nncf.quantize(
            model,
            nncf.Dataset(batches),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            advanced_parameters=AdvancedQuantizationParameters(
                smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=alpha)
            ),
        )
    openvino.save_model(quantised, target / Path(INT8_FILES[0]).name, compress_to_fp16=False)
