"""Every promise that was made of trained cascades, checked on the test split.

    CASCADEBERT_DATA=... python benchmarks/certified.py [TASK ...]

Needs the checkpoints that ``stages.py`` makes. Every stage runs once on the validation split, on
which thresholds are tuned with measured seconds as the cost, and once on the test split.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import numpy as np

import common
from cascadebert import (
    Cascade,
    MaxDrop,
    MaxErrorWhenAnswering,
    MinAgreement,
    Speedup,
    choose_thresholds,
    read_rows,
)
from cascadebert.deferral.certificate import NOT_CERTIFIED
from cascadebert.deferral.shift import shift_p_value, shifts

TASKS = ("sst2", "mrpc", "agnews", "clinc150", "snli")
STAGES = ("MiniLM-L3", "MiniLM-L6", "MPNet")
TARGETS = (
    MaxDrop(0.01),
    MaxDrop(0.02),
    MinAgreement(0.95),
    MaxErrorWhenAnswering(0.05),
    Speedup(3),
)
CONFIDENCE = 0.95


def run(task: str) -> dict[str, Any]:
    """Every target on one task; of clinc150 also the rows that belong to no class."""
    cascade = Cascade.from_stages([common.CHECKPOINTS / task / stage for stage in STAGES])
    data = common.data_folder(task)
    rows = {
        split: read_rows(data / f"{split}.jsonl", with_labels=True, known_labels=cascade.labels)
        for split in ("validation", "test")
    }
    runs = {split: cascade.run_stages(part) for split, part in rows.items()}
    logits = [run.logits for run in runs["validation"]]
    test = cascade.replay(rows["test"], runs["test"])
    outside = outside_logits(task, cascade)
    results = []
    for target in TARGETS:
        policy = choose_thresholds(
            logits,
            cascade.label_ids(rows["validation"]),
            np.stack([run.costs("seconds") for run in runs["validation"]], axis=1),
            target,
            CONFIDENCE,
            groups=rows["validation"].groups(),
            logits=True,
            names=cascade.labels,
        )
        certificate = policy.certificate
        assert certificate.seen is not None
        outcome = test.outcome(policy.routing)
        fresh = test.seen(policy.routing, certificate.seen.edges)
        (promise,) = certificate.promises
        result = {
            "target": str(target),
            "verdict": certificate.verdict,
            "validation": promise.observed,
            "test": target.observed(outcome),
            "kept": bool(target.losses(outcome).mean() <= 0),
            "broken_p_value": target.broken_p_value(outcome),
            "shift_p_value": shift_p_value(shifts(certificate.seen, fresh)),
            "speedup": float(test.rows.costs[:, -1].sum() / outcome.cost.sum()),
            "thresholds": certificate.thresholds,
            "abstained": float((~outcome.answered).mean()),
        }
        if outside is not None and target.abstains:
            classes, _ = policy.apply(outside, logits=True)
            result["outside_abstained"] = float((classes < 0).mean())
        results.append(result)
        print(task, result, flush=True)
    return {
        "rows": {split: len(part) for split, part in rows.items()},
        "reference_accuracy": float(test.rows.right[-2].mean()),
        "targets": results,
    }


def outside_logits(task: str, cascade: Cascade) -> list[np.ndarray] | None:
    """Logits for rows that belong to no class, where the data set has such."""
    path = common.data_folder(task) / "oos_test.jsonl"
    if not path.exists():
        return None
    return [
        run.logits for run in cascade.run_stages(dataclasses.replace(read_rows(path), labels=None))
    ]


def table(results: dict[str, Any]) -> str:
    lines = [
        "| task (rows: validation, test) | promise | verdict | on validation | on test "
        "| kept on test? | like the certificate's rows? | speed-up on test | abstained |",
        "|---" * 9 + "|",
    ]
    for task, result in results.items():
        name = f"{task} ({result['rows']['validation']:,}, {result['rows']['test']:,})"
        for target in result["targets"]:
            kept = "yes" if target["kept"] else f"no (p = {target['broken_p_value']:.2g})"
            if target["verdict"] == NOT_CERTIFIED:
                kept = "–"
            lines.append(
                f"| {name} | {target['target']} | {target['verdict']} "
                f"| {target['validation']:.4f} | {target['test']:.4f} | {kept} "
                f"| p = {target['shift_p_value']:.2g} | {target['speedup']:.2f} "
                f"| {target['abstained']:.1%} |"
            )
            if "outside_abstained" in target:
                lines.append(
                    f"| | of 1,000 rows that belong to no class | | | | | | "
                    f"| {target['outside_abstained']:.1%} |"
                )
            name = ""
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=TASKS)
    results = {task: run(task) for task in parser.parse_args().tasks}
    common.keep("certified", {"confidence": CONFIDENCE, "tasks": results}, table(results))


if __name__ == "__main__":
    main()
