"""Promises that were made of trained cascades, checked on the test split.

    CASCADEBERT_DATA=... python benchmarks/certified.py [TASK ...]

Takes the logits that ``train_small_stages.py`` kept of stages trained with cross-entropy (seed 0).
Thresholds are tuned on the validation split, with counted operations as the cost, and checked on
the test split. For abstention the cascade of clinc150 that ``plain_cascades.py`` saved is tuned and
run on rows that belong to no class.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

import common
from cascadebert import (
    Cascade,
    MaxDrop,
    MaxErrorWhenAnswering,
    MinAgreement,
    Policy,
    Speedup,
    choose_thresholds,
    read_rows,
)
from cascadebert.deferral.certificates.certificate import NOT_CERTIFIED
from cascadebert.deferral.certificates.shift import shift_p_value, shifts
from cascadebert.deferral.confidence import confidence_score
from cascadebert.deferral.held_out import HeldOut
from cascadebert.deferral.search.replay import Replay
from cascadebert.deferral.targets import Target
from cascadebert.training.fine_tuning import label_order
from train_plain_stages import training_rows
from train_small_stages import ENCODERS, RECIPES, last_stage
from training_scores import row_flops, small_stages

TASKS = ("sst2", "mrpc", "agnews", "clinc150", "snli")
TARGETS = (
    MaxDrop(0.01),
    MaxDrop(0.02),
    MinAgreement(0.95),
    MaxErrorWhenAnswering(0.05),
    Speedup(3),
)
ABSTENTION = MaxErrorWhenAnswering(0.02)
CONFIDENCE = 0.95


def run(task: str) -> dict[str, Any]:
    """Every target on one task."""
    train = training_rows(task, RECIPES[task][0])
    names = label_order(train, None)
    small = small_stages(task, "cross_entropy", 0, train)
    if small is None:
        raise SystemExit(f"{task}: run 'train_small_stages.py --tasks {task}' first")
    stages = [small[name] for name in ENCODERS] + [last_stage(task)]
    replays, groups = {}, {}
    for split in ("validation", "test"):
        rows = read_rows(common.data_folder(task) / f"{split}.jsonl", with_labels=True)
        logits = [stage[split].astype(np.float64) for stage in stages]
        held_out = HeldOut(
            answers=np.stack([values.argmax(axis=1) for values in logits]),
            truth=np.array([names.index(label) for label in rows.labels or ()]),
            costs=np.stack([row_flops(s, rows, len(names)) for s in (*ENCODERS, "MPNet")], axis=1),
            names=names,
        )
        replays[split] = Replay.of(held_out, logits, confidence_score("max_probability"))
        groups[split] = rows.group_ids()
    held_out, test = replays["validation"].rows, replays["test"]
    results = []
    for target in TARGETS:
        policy = choose_thresholds(
            [stage["validation"] for stage in stages],
            held_out.truth,
            held_out.costs,
            target,
            CONFIDENCE,
            groups=groups["validation"],
            logits=True,
            names=names,
        )
        results.append(checked(policy, target, test))
        print(task, results[-1], flush=True)
    return {
        "rows": {split: len(replay.rows) for split, replay in replays.items()},
        "reference_accuracy": float(test.rows.right[-2].mean()),
        "targets": results,
    }


def checked(policy: Policy, target: Target, test: Replay) -> dict[str, Any]:
    """A certificate and what came of it on the test rows."""
    certificate = policy.certificate
    assert certificate.seen is not None
    outcome = test.outcome(policy.routing)
    fresh = test.summary(policy.routing, certificate.seen.edges)
    return {
        "target": str(target),
        "verdict": certificate.verdict,
        "validation": certificate.promises[0].observed,
        "test": target.observed(outcome),
        "kept": bool(target.losses(outcome).mean() <= 0),
        "broken_p_value": target.broken_p_value(outcome),
        "shift_p_value": shift_p_value(shifts(certificate.seen, fresh)),
        "speedup": float(test.rows.costs[:, -1].sum() / outcome.cost.sum()),
        "thresholds": certificate.thresholds,
        "abstained": float((~outcome.answered).mean()),
    }


def abstention() -> dict[str, Any]:
    """Rows of clinc150 that belong to a class, and rows that do not."""
    cascade = Cascade.from_pretrained(common.CHECKPOINTS / "clinc150" / "cascade")
    data = common.data_folder("clinc150")
    rows = read_rows(data / "validation.jsonl", with_labels=True, known_labels=cascade.labels)
    certificate = cascade.tune(rows, ABSTENTION, CONFIDENCE)
    test = read_rows(data / "test.jsonl", with_labels=True, known_labels=cascade.labels)
    out = cascade.predict(test)
    wrong = out.labels != np.array(test.labels)
    outside = cascade.predict(read_rows(data / "oos_test.jsonl"))
    return {
        "target": str(ABSTENTION),
        "verdict": certificate.verdict,
        "observed": certificate.promises[0].observed,
        "abstain_threshold": certificate.abstain_threshold,
        "speedup": certificate.speedup,
        "test_rows": len(test),
        "test_abstained": float(out.abstained.mean()),
        "test_error_when_answering": float(wrong[~out.abstained].mean()),
        "outside_rows": len(outside),
        "outside_abstained": float(outside.abstained.mean()),
        "outside_answered_by": [
            float(((outside.stage == number) & ~outside.abstained).mean())
            for number in range(1, len(cascade.stages) + 1)
        ],
    }


def table(results: dict[str, Any], outside: dict[str, Any]) -> str:
    lines = [
        "| task (rows: validation, test) | promise | verdict | on validation | on test "
        "| kept on test? | drawn alike? | speed-up on test | abstained |",
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
            name = ""
    shares = ", ".join(f"{share:.1%}" for share in outside["outside_answered_by"])
    lines += [
        "",
        f"Abstention, on clinc150: {outside['verdict']} for {outside['target']}, with a speed-up "
        f"of {outside['speedup']:.2f} in measured seconds. Of {outside['test_rows']:,} test rows "
        f"{outside['test_abstained']:.1%} get no answer, and of the others "
        f"{outside['test_error_when_answering']:.2%} are wrong. Of {outside['outside_rows']:,} "
        f"rows that belong to no class {outside['outside_abstained']:.1%} get no answer; stage by "
        f"stage {shares} of them are answered.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=TASKS)
    results = {task: run(task) for task in parser.parse_args().tasks}
    outside = abstention()
    kept = {"confidence": CONFIDENCE, "tasks": results, "abstention": outside}
    common.keep("certified", kept, table(results, outside))


if __name__ == "__main__":
    main()
