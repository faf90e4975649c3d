"""``cascadebert build``: fine-tuned checkpoints to a cascade."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cascadebert.cascade import Cascade
from cascadebert.cli import console
from cascadebert.errors import InputError
from cascadebert.persistence.record import RuntimeTrial
from cascadebert.persistence.save import refuse_other_folder
from cascadebert.rows.files import read_rows


def build(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            help="Fine-tuned checkpoints or linear stages, small to large: folders or hub names.",
            metavar="CKPT...",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the cascade.")],
    map_labels: Annotated[
        list[str] | None,
        typer.Option(
            help="Rename a stage's labels, by stage number: 'N:old=new,old=new'. Can be repeated."
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="Tokens at which every stage truncates.", show_default="as each reads"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Rows such as the cascade will see, best those that the stages were trained on: "
            "they are quantised and timed on them."
        ),
    ] = None,
    quantise: Annotated[
        bool, typer.Option(help="Whether to look for the fastest runtime, int8 and bfloat16 too.")
    ] = True,
    text_column: console.TextColumnName = "text",
    text_pair_column: console.PairColumnName = None,
) -> None:
    """Make one cascade of fine-tuned checkpoints, small to large.

    Each is exported to ONNX and checked against torch. Labels are matched by name. With --data each
    stage runs on the engine and in the precision that were measured fastest while its answers stay
    those of fp32.

    [bold]Examples[/]

    cascadebert build ./small ./large --output my-cascade --data train.jsonl

    cascadebert build ./small ./large --output my-cascade --map-labels '1:LABEL_0=neg,LABEL_1=pos'
    """
    refuse_other_folder(output)
    label_maps: dict[int, dict[str, str]] = {}
    for text in map_labels or []:
        number, names = _parse_map(text)
        label_maps.setdefault(number, {}).update(names)
    rows = read_rows(data, console.columns(text_column, text_pair_column)) if data else None
    with console.progress_bar("exporting", len(checkpoints), "stages") as progress:
        cascade = Cascade.from_stages(
            checkpoints,
            label_maps=label_maps,
            max_length=max_length,
            rows=rows,
            quantise=quantise,
            on_stage=progress,
        )
        cascade.save_pretrained(output)
    for number, stage in enumerate(cascade.stages, start=1):
        cost = stage.record.cost
        console.say(
            f"stage {number} {stage.name}: {cost.layers} layers, {cost.parameters / 1e6:.1f} M "
            f"parameters, reads {stage.record.max_length} {stage.record.length_unit}, "
            f"runs on {stage.runtime}{_tried(stage.record.trials)}"
        )
    console.say(
        f"wrote {output}\nnext: cascadebert tune {output} --data HELD_OUT_ROWS --max-drop 0.01"
    )


def _tried(trials: Sequence[RuntimeTrial]) -> str:
    """How much faster each runtime was than fp32, and how far it moved the answers."""
    if not trials:
        return ""
    fp32 = trials[0].rows_per_second
    shown = ", ".join(
        f"{trial.runtime} {trial.rows_per_second / fp32:.1f}x with {trial.agreement:.1%} of the "
        "labels"
        for trial in trials[1:]
    )
    return f" (against fp32 on ONNX Runtime: {shown})"


def _parse_map(text: str) -> tuple[int, dict[str, str]]:
    number, colon, pairs = text.partition(":")
    names = dict(pair.partition("=")[::2] for pair in pairs.split(",") if pair)
    if not (number.isdecimal() and colon and names and all(names) and all(names.values())):
        raise InputError(
            f"--map-labels {text!r} is not 'N:old=new,old=new' with N the number of a stage; "
            "names with a comma or '=' can be mapped in Python, with label_maps"
        )
    return int(number), names
