"""Plainly fine-tuned stages as a cascade: tuned on validation rows, measured on test rows.

    CASCADEBERT_DATA=... python benchmarks/plain_cascades.py [TASK ...]

Needs the checkpoints that ``train_plain_stages.py`` makes. Thresholds are chosen for a speed-up
of 4 in measured seconds on the validation split; the test split is only looked at by ``evaluate``.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import common
from cascadebert import Cascade, Speedup, evaluate, read_rows

TASKS = ("sst2", "clinc150", "snli")
STAGES = ("MiniLM-L3", "MiniLM-L6", "MPNet")
TARGET = Speedup(4)
REPEATS = 3


def run(task: str) -> dict[str, Any]:
    """Build, tune and evaluate one cascade."""
    checkpoints = [common.CHECKPOINTS / task / stage for stage in STAGES]
    folder = common.CHECKPOINTS / task / "cascade"
    cascade = Cascade.from_stages(checkpoints)
    data = common.data_folder(task)
    validation = read_rows(data / "validation.jsonl", with_labels=True)
    tuned = cascade.tune(validation, TARGET, confidence=None)
    cascade.save_pretrained(folder)
    cascade = Cascade.from_pretrained(folder)
    rows = read_rows(data / "test.jsonl", with_labels=True, known_labels=cascade.labels)
    result = evaluate(cascade, rows, repeats=REPEATS)
    print(task, json.dumps(result.to_dict()), flush=True)
    return {
        "training": {
            stage: json.loads((path / "training.json").read_text())
            for stage, path in zip(STAGES, checkpoints, strict=True)
        },
        "tuning": {
            "rows": len(validation),
            "thresholds": tuned.thresholds,
            "accuracy": tuned.accuracy,
            "reference_accuracy": tuned.reference_accuracy,
            "speedup": tuned.speedup,
        },
        "test": result.to_dict(),
    }


def table(results: dict[str, Any]) -> str:
    """One line a task for the cascade, then one for each stage alone."""
    lines = [
        "| task | | accuracy | of the last stage's | rows/s | speed-up measured (range of 3) "
        "| FLOPs | layers | answered | DIS | ECE |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task, result in results.items():
        test = result["test"]
        low, high = test["speedup_measured_range"]
        lines.append(
            f"| {task} | **cascade** | {test['accuracy']:.4f} "
            f"| {test['accuracy'] / test['reference_accuracy']:.1%} "
            f"| {test['rows'] / test['seconds']:.0f} "
            f"| {test['speedup_measured']:.2f} ({low:.2f}–{high:.2f}) "
            f"| {test['speedup_flops']:.2f} | {test['speedup_layers']:.2f} | "
            f"| {test['dis']:.1f} | {test['ece']:.3f} |"
        )
        for stage, share in zip(test["stages"], test["exit_fractions"], strict=True):
            lines.append(
                f"| | {stage['name']} alone | {stage['accuracy']:.4f} "
                f"| {stage['accuracy'] / test['reference_accuracy']:.1%} "
                f"| {test['rows'] / stage['seconds']:.0f} "
                f"| {test['reference_seconds'] / stage['seconds']:.2f} | | | {share:.1%} "
                f"| {stage['dis']:.1f} | {stage['ece']:.3f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=TASKS)
    results = {task: run(task) for task in parser.parse_args().tasks}
    common.keep("plain_cascades", {"tasks": results}, table(results))


if __name__ == "__main__":
    main()
