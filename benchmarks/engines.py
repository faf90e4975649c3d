"""Engines and precisions: speed, accuracy, and how far a batch moves a row.

    CASCADEBERT_DATA=... python benchmarks/engines.py speed
    CASCADEBERT_DATA=... python benchmarks/engines.py accuracy

Needs the cascades that ``fast_cascades.py`` builds. Each stage of sst2's, quantised as
``cascadebert build --data`` does it, is quantised by ONNX Runtime's own tools too: dynamically,
statically (QDQ) and with 8-bit weights (MatMulNBits). Rows of one width go together, and in turn:
every engine runs all rows once a round. Then the rows are put into other batches of one width, and
into ordinary ones, 32 at random and padded to the longest. ``accuracy`` has what bfloat16 and int8
cost MPNet, on the test rows of all five data sets.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import common
from cascadebert.disk import MODEL_FILE, WEIGHTS_FILE
from cascadebert.export.quantisation import single_rows
from cascadebert.machine import usable_cores
from cascadebert.persistence.record import StageRecord, read_record
from cascadebert.rows.files import read_rows
from cascadebert.rows.rows import Rows, evenly
from cascadebert.stages.transformer import TransformerStage
from fast_cascades import TASKS
from train_plain_stages import training_rows

TASK = "sst2"
ROUNDS = 2
CACHE = common.CHECKPOINTS / "engines"
CALIBRATION_ROWS = 300
TEST_ROWS = 1_000
SIDE = 4_096
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
    parser.add_argument("step", choices=("speed", "accuracy"))
    logging.disable(logging.WARNING)
    CACHE.mkdir(parents=True, exist_ok=True)
    if parser.parse_args().step == "speed":
        found = {}
        for record, folder in transformers(TASK):
            found[record.name] = compare(record, folder)
            (CACHE / "speed.json").write_text(json.dumps(found))
    else:
        losses = {task: precisions(task) for task in TASKS}
        (CACHE / "accuracy.json").write_text(json.dumps(losses))
    results = {
        name: json.loads((CACHE / f"{name}.json").read_text())
        for name in ("speed", "accuracy")
        if (CACHE / f"{name}.json").exists()
    }
    tables = {"speed": table, "accuracy": precision_table}
    common.keep("engines", results, "\n\n".join(tables[name](results[name]) for name in results))


def transformers(task: str) -> list[tuple[StageRecord, Path]]:
    """The transformers of a task's cascade, small to large, and where they lie."""
    cascade = common.CHECKPOINTS / task / "fast"
    stages = read_record(cascade).stages
    return [(stage, cascade / stage.folder) for stage in stages if stage.kind == "transformer"]


def compare(record: StageRecord, folder: Path) -> dict[str, Any]:
    """Every engine on one stage."""
    name = record.name
    train = Rows(training_rows(TASK, 2_000).texts)
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
    lengths = stages[REFERENCE].tokenize(test).lengths
    # Of the products with weights, which are what is quantised, on tokens that are no padding.
    fixed, a_token, _ = record.cost.flops
    operations = float((fixed + a_token * lengths).sum())
    peak = int8_peak()
    found = {}
    for title, stage in stages.items():
        seconds = statistics.median(once[title] for once in rounds)
        ratios = [once[REFERENCE] / once[title] for once in rounds]
        order = shuffled(len(test))
        half = len(test) // 2
        parts = [stage.run_all(test.take(part)).logits for part in (order[:half], order[half:])]
        apart = np.concatenate(parts)[np.argsort(order)]
        padded = in_padded_batches(stage, test)
        found[title] = {
            "rows_per_second": len(test) / seconds,
            "share_of_int8_peak": operations / seconds / peak,
            "against_torch": [statistics.median(ratios), min(ratios), max(ratios)],
            "accuracy": float((logits[title].argmax(axis=1) == truth).mean()),
            "agreement": share_alike(logits[title], logits["ONNX Runtime fp32"]),
            "one_width": moved(apart, logits[title]),
            "padded": moved(padded, logits[title]),
            "chosen": OURS.get(title) == record.runtime,
        }
        print(name, title, found[title], flush=True)
    return found


def int8_peak() -> float:
    """Operations a second of one large product of int8 matrices, the best of a few."""
    torch.set_num_threads(usable_cores())
    left = torch.randint(-100, 100, (SIDE, SIDE), dtype=torch.int8)
    right = torch.randint(-100, 100, (SIDE, SIDE), dtype=torch.int8)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        torch._int_mm(left, right)
        seconds.append(time.perf_counter() - start)
    return 2 * SIDE**3 / min(seconds)


def precisions(task: str) -> dict[str, Any]:
    """Accuracy of MPNet by runtime, and its loss against fp32 on the same rows."""
    record, folder = transformers(task)[-1]
    test = read_rows(common.data_folder(task) / "test.jsonl", with_labels=True)
    test = test.take(evenly(len(test), TEST_ROWS).tolist())
    truth = np.array([record.labels.index(label) for label in test.labels or ()])
    right = {
        runtime: TransformerStage(folder, record, record.labels, runtime)
        .run_all(test)
        .logits.argmax(axis=1)
        == truth
        for runtime in ("onnx", "openvino-bf16", "openvino-int8")
    }
    found: dict[str, Any] = {"rows": len(test), "fp32": float(right["onnx"].mean())}
    for runtime in ("openvino-bf16", "openvino-int8"):
        lost = right["onnx"].astype(int) - right[runtime]
        error = float(lost.std(ddof=1) / np.sqrt(len(lost)))
        found[runtime] = {"lost": float(lost.mean()), "standard_error": error}
    print(task, found, flush=True)
    return found


def precision_table(losses: dict[str, Any]) -> str:
    """One line a data set, then the mean."""
    lines = [
        "| MPNet on | test rows | accuracy in fp32 | lost in bfloat16, points | lost in int8 |",
        "|---|---|---|---|---|",
    ]
    names = ("openvino-bf16", "openvino-int8")
    for task, found in losses.items():
        shown = (
            f"{100 * found[name]['lost']:+.2f} ± {100 * found[name]['standard_error']:.2f}"
            for name in names
        )
        lines.append(f"| {task} | {found['rows']:,} | {found['fp32']:.4f} | {' | '.join(shown)} |")
    means = [np.mean([found[name]["lost"] for found in losses.values()]) for name in names]
    errors = [
        np.sqrt(sum(found[name]["standard_error"] ** 2 for found in losses.values())) / len(losses)
        for name in names
    ]
    shown = (f"{100 * m:+.2f} ± {100 * e:.2f}" for m, e in zip(means, errors, strict=True))
    lines.append(f"| mean | | | {' | '.join(shown)} |")
    return "\n".join(lines)


def quantised_by_onnx_runtime(
    folder: Path, calibration: list[dict[str, np.ndarray]]
) -> dict[str, Path]:
    """The stage's graph in int8 by ONNX Runtime's tools, each in a folder of its own."""
    scratch = CACHE / folder.name
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    # Weights must lie beside the graph that names them.
    for name in (MODEL_FILE, WEIGHTS_FILE):
        shutil.copy(folder / name, scratch)
    folded = scratch / "folded.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    onnxruntime.InferenceSession(str(scratch / MODEL_FILE), options)
    model = onnx.load(folded)
    del model.graph.value_info[:]
    onnx.save(model, folded)
    places = {}
    for title in ("dynamic", "static (QDQ)", "MatMulNBits"):
        place = scratch / title.split()[0]
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
        "| stage | engine | rows/s | × torch fp32 (range) | of the int8 peak | test accuracy "
        "| labels as in fp32 | other batches of one width: labels, logits moved "
        "| padded batches of 32: the same |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, engines in results.items():
        for title, found in engines.items():
            middle, low, high = found["against_torch"]
            shown = f"**{title}**" if found["chosen"] else title
            lines.append(
                f"| {name} | {shown} | {found['rows_per_second']:,.0f} "
                f"| {middle:.2f} ({low:.2f}–{high:.2f}) | {found['share_of_int8_peak']:.0%} "
                f"| {found['accuracy']:.4f} "
                f"| {found['agreement']:.2%} | {told(found['one_width'])} "
                f"| {told(found['padded'])} |"
            )
    return "\n".join(lines)


def told(found: dict[str, float]) -> str:
    return f"{found['labels']}, {found['logits']:.2g}"


if __name__ == "__main__":
    main()
