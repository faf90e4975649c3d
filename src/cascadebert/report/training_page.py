"""The report of a training, as JSON and as a page, in the cascade's folder ``report``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cascadebert.deferral.search.policy import Policy
from cascadebert.disk import write_text
from cascadebert.errors import MissingDependencyError
from cascadebert.evaluation.evaluate import Evaluation
from cascadebert.report.frontier_picture import plot_frontier

TRAINING_FILE, PAGE_FILE, PICTURE_FILE = "training.json", "training.md", "frontier.png"


def write_training_page(
    folder: Path,
    report: Mapping[str, Any],
    policy: Policy | None = None,
    evaluation: Evaluation | None = None,
) -> None:
    """Write ``training.json``, a page with its content, and a picture of the frontier.

    The picture needs matplotlib, a policy and an evaluation.

    Args:
        folder: is created if it does not exist.
        report: is ``CascadeTrainer.report``, with an evaluation's values under "test".
        policy: comes from tuning.
        evaluation: was made on test rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictured = False
    if policy is not None and evaluation is not None:
        with contextlib.suppress(MissingDependencyError):
            plot_frontier(policy, evaluation, folder / PICTURE_FILE)
            pictured = True
    write_text(folder / PAGE_FILE, _page(report, pictured))
    text = json.dumps(report, indent=1, ensure_ascii=False)
    write_text(folder / TRAINING_FILE, text + "\n")


def read_training(folder: Path) -> dict[str, Any]:
    """Read ``training.json``; an empty dictionary if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        values = json.loads((folder / TRAINING_FILE).read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else {}
    return {}


def _page(report: Mapping[str, Any], pictured: bool) -> str:
    tuning = report["tuning"]
    promises = tuning["certificate"]["promises"]
    lines = [
        "# How this cascade was trained",
        "",
        f"On {report['rows']:,} rows with the loss `{report['loss']['name']}`; calibrated and "
        f"tuned on {report['validation_rows']:,} others.",
        "",
        "| part | seconds |",
        "|---|---|",
        *(
            f"| {part['title']} | {part['seconds']:,.0f}"
            f"{' since it was resumed' if part['resumed'] else ''} |"
            for part in report["parts"]
        ),
        f"| all | {sum(part['seconds'] for part in report['parts']):,.0f} |",
        "",
        f"Target: {' and '.join(promise['words'] for promise in promises)}, with {tuning['cost']} "
        f"as the cost. On the validation rows the cascade is right on {tuning['accuracy']:.2%}, "
        f"its last stage alone on {tuning['reference_accuracy']:.2%}, at "
        f"{tuning['speedup']:.2f} times the speed. These rows chose the thresholds, so expect "
        "slightly lower figures on others.",
    ]
    for number, wrong in report["wrong_when_held_out"].items():
        lines += [
            "",
            f"Stage {number} was wrong on {wrong:.1%} of the training rows when held out.",
        ]
    test = report.get("test")
    if test:
        lines += [
            "",
            f"## On {test['rows']:,} test rows",
            "",
            "| | accuracy | seconds | DIS | ECE |",
            "|---|---|---|---|---|",
            _line("cascade", test),
            *(_line(f"{stage['name']} alone", stage) for stage in test["stages"]),
            "",
            f"Speed-up {test['speedup_measured']:.2f} measured, {test['speedup_flops']:.2f} in "
            f"FLOPs, {test['speedup_layers']:.2f} in layers; the same answer as the last stage on "
            f"{test['agreement']:.1%} of the rows.",
        ]
    if pictured:
        lines += ["", f"![accuracy against cost]({PICTURE_FILE})"]
    return "\n".join(lines) + "\n"


def _line(name: str, values: Mapping[str, Any]) -> str:
    dis = "-" if values["dis"] is None else f"{values['dis']:.1f}"
    return (
        f"| {name} | {values['accuracy']:.4f} | {values['seconds']:.1f} | {dis} "
        f"| {values['ece']:.3f} |"
    )
