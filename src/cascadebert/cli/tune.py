"""``cascadebert tune``: choose thresholds on held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cascadebert.artifact import refuse_other_folder
from cascadebert.cascade import Cascade
from cascadebert.cli import console
from cascadebert.deferral.targets import MaxDrop, Speedup
from cascadebert.errors import InputError


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
    """Choose the thresholds that serve one target best on held-out rows, and save them.

    The figures are estimates on these rows; run 'cascadebert evaluate' on others.

    [bold]Examples[/]

    cascadebert tune my-cascade --data validation.jsonl --max-drop 0.01

    cascadebert tune my-cascade --data validation.csv --speedup 4 --label-column intent
    """
    target = chosen_target(max_drop, speedup)
    console.refuse_targets(data, json_file)
    if output is not None:
        refuse_other_folder(output)
    cascade = Cascade.from_pretrained(cascade_folder, runtime=runtime)
    names = console.columns(text_column, text_pair_column, label_column)
    rows = console.labelled_rows(cascade, data, names)
    with console.progress_bar("running every stage", len(rows) * len(cascade.stages)) as progress:
        policy = cascade.tune(rows, target, cost=cost, progress=progress)
    folder = cascade.save_pretrained(output or cascade_folder)
    console.write_json(json_file, policy.summary(cost))
    shares = zip(cascade.stages, policy.thresholds, policy.exit_fractions, strict=False)
    for number, (stage, threshold, share) in enumerate(shares, start=1):
        how = f"answers above {threshold:.8g}, {share:.1%} of the rows"
        console.say(
            f"stage {number} {stage.name}: {how if threshold < 1 else 'left out, it does not pay'}"
        )
    console.say(
        f"on these {policy.rows} rows: accuracy {policy.accuracy:.4f}, last stage alone "
        f"{policy.reference_accuracy:.4f}; speed-up {policy.speedup:.2f} in {cost}\n"
        f"wrote {folder}\nnext: cascadebert evaluate {folder} --data OTHER_ROWS"
    )


def chosen_target(max_drop: float | None, speedup: float | None) -> MaxDrop | Speedup:
    """The one target that was named."""
    if (max_drop is None) == (speedup is None):
        raise InputError("name one target: --max-drop X or --speedup X")
    return MaxDrop(max_drop) if max_drop is not None else Speedup(speedup or 0.0)
