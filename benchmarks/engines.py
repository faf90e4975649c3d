"""Engines and precisions on plain sst2 stages: speed, accuracy, and how far a batch moves a row.

    CASCADEBERT_DATA=... python benchmarks/engines.py [STAGE ...]

Needs the checkpoints that ``stages.py`` makes. Each stage is exported and quantised as
``cascadebert build --data`` does it, and beside that by ONNX Runtime's own tools: dynamically,
statically (QDQ) and with 8-bit weights (MatMulNBits). Rows of one width go together, and in turn:
every engine runs all rows once a round. Then the rows are put into other batches of one width, and
into ordinary ones, 32 at random and padded to the longest.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import common
from cascadebert.artifact import MODEL_FILE
from cascadebert.data import Rows
from cascadebert.files import read_rows
from cascadebert.stage import TransformerStage
from cascadebert.training.export import export_stage
from cascadebert.training.quantisation import single_rows, with_best_runtime
from stages import training_rows

TASK = "sst2"
STAGES = ("MiniLM-L3", "MiniLM-L6", "MPNet")
ROUNDS = 3
CALIBRATION_ROWS = 300
BATCH = 32
OURS = {
    "torch fp32": "torch",
    "torch bf16": "torch-bf16",
    "ONNX Runtime fp32": "onnx",
    "OpenVINO fp32": "openvino",
    "OpenVINO bf16": "openvino-bf16",
    "OpenVINO int8, static (NNCF)": "openvino-int8",
}
REFERENCE = "torch fp32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", default=STAGES)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    results = {stage: compare(stage) for stage in arguments.stages}
    common.keep("engines", {"stages": results}, table(results))


def compare(name: str) -> dict[str, Any]:
    """Every engine on one stage."""
    folder = common.CHECKPOINTS / "engines" / name
    shutil.rmtree(folder, ignore_errors=True)
    train = Rows(training_rows(TASK, 2_000).texts)
    record = export_stage(common.CHECKPOINTS / TASK / name, folder, name=name)
    record = with_best_runtime(record, folder, train)
    stages = {
        title: TransformerStage(folder, record, record.labels, runtime)
        for title, runtime in OURS.items()
    }
    calibration = single_rows(stages["ONNX Runtime fp32"], train.slice(0, CALIBRATION_ROWS))
    for title, place in quantised_by_onnx_runtime(folder, calibration).items():
        stages[title] = TransformerStage(place, record, record.labels, "onnx")
    test = read_rows(common.data_folder(TASK) / "test.jsonl", with_labels=True)
    truth = np.array([record.labels.index(label) for label in test.labels or ()])
    logits = {title: stage.run_all(test).logits for title, stage in stages.items()}
    rounds = [
        {title: stage.run_all(test).seconds for title, stage in stages.items()}
        for _ in range(ROUNDS)
    ]
    found = {}
    for title, stage in stages.items():
        ratios = [once[REFERENCE] / once[title] for once in rounds]
        order = shuffled(len(test))
        half = len(test) // 2
        parts = [stage.run_all(test.take(part)).logits for part in (order[:half], order[half:])]
        apart = np.concatenate(parts)[np.argsort(order)]
        padded = in_padded_batches(stage, test)
        found[title] = {
            "rows_per_second": len(test) / statistics.median(once[title] for once in rounds),
            "against_torch": [statistics.median(ratios), min(ratios), max(ratios)],
            "accuracy": float((logits[title].argmax(axis=1) == truth).mean()),
            "agreement": share_alike(logits[title], logits["ONNX Runtime fp32"]),
            "one_width": moved(apart, logits[title]),
            "padded": moved(padded, logits[title]),
            "chosen": OURS.get(title) == record.runtime,
        }
        print(name, title, found[title], flush=True)
    return found


def quantised_by_onnx_runtime(
    folder: Path, calibration: list[dict[str, np.ndarray]]
) -> dict[str, Path]:
    """The stage's graph in int8 by ONNX Runtime's tools, each in a folder of its own."""
    folded = folder / "folded.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    onnxruntime.InferenceSession(str(folder / MODEL_FILE), options)
    model = onnx.load(folded)
    del model.graph.value_info[:]
    onnx.save(model, folded)
    places = {}
    for title in ("dynamic", "static (QDQ)", "MatMulNBits"):
        place = folder.with_name(f"{folder.name}-{title.split()[0]}")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        shutil.copy(folder / "tokenizer.json", place)
        target = place / MODEL_FILE
        if title == "dynamic":
            options_by_name = {"DefaultTensorType": onnx.TensorProto.FLOAT}
            quantize_dynamic(folded, target, per_channel=True, extra_options=options_by_name)
        elif title == "MatMulNBits":
            quantiser = MatMulNBitsQuantizer(
                onnx.load(folded), bits=8, block_size=64, is_symmetric=True, accuracy_level=4
            )
            quantiser.process()
            onnx.save(quantiser.model.model, target)
        else:
            quantize_static(
                folded,
                target,
                Feed(calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul", "Gemm"],
            )
        places[f"ONNX Runtime int8, {title}"] = place
    return places


class Feed(CalibrationDataReader):
    """Rows one by one, as ONNX Runtime's calibration wants them."""

    def __init__(self, batches: Iterable[dict[str, np.ndarray]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def in_padded_batches(stage: TransformerStage, rows: Rows) -> np.ndarray:
    """Logits from batches of rows at random, padded to the longest of them."""
    tokens = stage.tokenize(rows)
    order = np.array(shuffled(len(rows)))
    logits = np.empty((len(rows), len(stage.record.labels)), dtype=np.float32)
    for start in range(0, len(rows), BATCH):
        part = order[start : start + BATCH]
        width = int(tokens.lengths[part].max())
        singles = [
            tokens.batch(np.array([i]), stage.padding, stage.record.max_length) for i in part
        ]
        padding = {**stage.padding, "attention_mask": 0}
        padded = {
            name: np.stack([padded_row(row[name][0], width, padding[name]) for row in singles])
            for name in stage.record.inputs
        }
        logits[part] = stage.model(padded)()
    return logits


def padded_row(ids: np.ndarray, width: int, value: int) -> np.ndarray:
    return np.pad(ids, (0, max(width - len(ids), 0)), constant_values=value)[:width]


def shuffled(count: int) -> list[int]:
    return np.random.default_rng(1).permutation(count).tolist()


def share_alike(logits: np.ndarray, others: np.ndarray) -> float:
    return float((logits.argmax(axis=1) == others.argmax(axis=1)).mean())


def moved(logits: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """How many labels differ, and by how much logits do at most."""
    labels = int((logits.argmax(axis=1) != others.argmax(axis=1)).sum())
    return {"labels": labels, "logits": float(np.abs(logits - others).max())}


def table(results: dict[str, Any]) -> str:
    """One line an engine and stage."""
    lines = [
        "| stage | engine | rows/s | × torch fp32 (range) | test accuracy | labels as in fp32 "
        "| other batches of one width: labels, logits moved | padded batches of 32: the same |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, engines in results.items():
        for title, found in engines.items():
            middle, low, high = found["against_torch"]
            shown = f"**{title}**" if found["chosen"] else title
            lines.append(
                f"| {name} | {shown} | {found['rows_per_second']:,.0f} "
                f"| {middle:.2f} ({low:.2f}–{high:.2f}) | {found['accuracy']:.4f} "
                f"| {found['agreement']:.2%} | {told(found['one_width'])} "
                f"| {told(found['padded'])} |"
            )
    return "\n".join(lines)


def told(found: dict[str, float]) -> str:
    return f"{found['labels']}, {found['logits']:.2g}"


if __name__ == "__main__":
    main()
