"""``cascadebert tune``: choose thresholds on held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cascadebert.artifact import refuse_other_folder
from cascadebert.cascade import Cascade
from cascadebert.cli import console
from cascadebert.deferral.certificate import NOT_CERTIFIED
from cascadebert.deferral.targets import MaxDrop, MinAccuracy, MinAgreement, Speedup, Target
from cascadebert.errors import InputError
from cascadebert.files import read_rows

TARGETS: dict[str, Callable[[float], Target]] = {
    "max_drop": MaxDrop,
    "speedup": Speedup,
    "min_accuracy": MinAccuracy,
    "min_agreement": MinAgreement,
}


def tune(
    cascade_folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of a cascade.")],
    data: Annotated[str, typer.Option(help="Held-out labelled rows. " + console.ROWS_HELP)],
    max_drop: Annotated[
        float | None,
        typer.Option(help="Lose at most this much accuracy (0.01 is a point), at least cost."),
    ] = None,
    speedup: Annotated[
        float | None,
        typer.Option(help="Cost at most 1/X of the last stage alone, at the best accuracy."),
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Be right on this share of the rows, at least cost.")
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            help="Answer as the last stage does on this share of the rows, at least cost; "
            "needs no labels."
        ),
    ] = None,
    confidence: Annotated[
        float,
        typer.Option(
            help="Promise it with this confidence, for rows like these; 0 asks for no promise."
        ),
    ] = 0.95,
    seed: Annotated[
        int, typer.Option(help="Of the draw of the rows that propose; the others certify.")
    ] = 0,
    cost: Annotated[
        str, typer.Option(help="What a stage costs: seconds (measured now), flops or layers.")
    ] = "seconds",
    output: Annotated[
        Path | None,
        typer.Option(help="Save the tuned cascade here.", show_default="in DIR itself"),
    ] = None,
    runtime: console.RuntimeName = "onnx",
    json_file: console.JsonFile = None,
    text_column: console.TextColumnName = "text",
    text_pair_column: console.PairColumnName = None,
    label_column: console.LabelColumnName = "label",
) -> None:
    """Choose thresholds on held-out rows that meet a target, certify them and save them.

    A part of the rows proposes thresholds, the others test them. Where no promise can be made the
    safest thresholds are saved, and the exit code is 1.

    [bold]Examples[/]

    cascadebert tune my-cascade --data validation.jsonl --max-drop 0.01

    cascadebert tune my-cascade --data validation.csv --speedup 4 --label-column intent

    cascadebert tune my-cascade --data unlabelled.jsonl --min-agreement 0.98 --confidence 0.99
    """
    target = chosen_target(
        max_drop=max_drop, speedup=speedup, min_accuracy=min_accuracy, min_agreement=min_agreement
    )
    console.refuse_targets(data, json_file)
    if output is not None:
        refuse_other_folder(output)
    cascade = Cascade.from_pretrained(cascade_folder, runtime=runtime)
    names = console.columns(text_column, text_pair_column, label_column)
    rows = (
        console.labelled_rows(cascade, data, names)
        if target.needs_labels
        else read_rows(data, names)
    )
    with console.progress_bar("running every stage", len(rows) * len(cascade.stages)) as progress:
        policy = cascade.tune(
            rows, target, confidence or None, seed=seed, cost=cost, progress=progress
        )
    folder = cascade.save_pretrained(output or cascade_folder)
    console.write_json(json_file, policy.summary(cost))
    shares = zip(cascade.stages, policy.thresholds, policy.exit_fractions, strict=False)
    for number, (stage, threshold, share) in enumerate(shares, start=1):
        how = f"answers above {threshold:.8g}, {share:.1%} of the rows"
        console.say(
            f"stage {number} {stage.name}: {how if threshold < 1 else 'left out, it does not pay'}"
        )
    judged = "accuracy" if target.needs_labels else "agreement"
    console.say(
        f"on {policy.rows} rows: {judged} {policy.accuracy:.4f}, last stage alone "
        f"{policy.reference_accuracy:.4f}; speed-up {policy.speedup:.2f} in {cost}"
    )
    if policy.certificate:
        console.say(policy.certificate.words())
    console.say(f"wrote {folder}\nnext: cascadebert evaluate {folder} --data OTHER_ROWS")
    if policy.certificate and policy.certificate.verdict == NOT_CERTIFIED:
        raise typer.Exit(1)


def chosen_target(**values: float | None) -> Target:
    """The one target that was named, out of options by name."""
    named = {name: value for name, value in values.items() if value is not None}
    if len(named) != 1:
        options = ", ".join(f"--{name.replace('_', '-')} X" for name in values)
        raise InputError(f"name one target of {options}")
    ((name, value),) = named.items()
    return TARGETS[name](value)
