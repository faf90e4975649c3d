"""``cascadebert report``: write a web page on a cascade and labelled rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cascadebert.cascade import Cascade
from cascadebert.cli import console
from cascadebert.disk import REPORT, REPORT_FILE
from cascadebert.errors import InputError
from cascadebert.report.page import write_report
from cascadebert.runtimes import AUTO


def report(
    cascade_folder: console.CascadeFolder,
    data: Annotated[
        str, typer.Option(help="Labelled rows, other than those of tuning. " + console.ROWS_HELP)
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="Write the page to this file.", show_default="DIR/report/report.html"),
    ] = None,
    runtime: console.RuntimeName = AUTO,
    text_column: console.TextColumnName = "text",
    text_pair_column: console.PairColumnName = None,
    label_column: console.LabelColumnName = "label",
    group_column: console.GroupColumnName = None,
) -> None:
    """Write a report on a cascade and labelled rows as one HTML file.

    It has the certificate, accuracy against cost, the price of confidence, calibration, where rows
    end, and the texts of the hardest rows. Needs the extra 'report'.

    [bold]Examples[/]

    cascadebert report my-cascade --data test.jsonl

    cascadebert report my-cascade --data test.csv --label-column intent --output page.html
    """
    if output is not None:
        console.refuse_targets(data, output)
    elif not Path(cascade_folder).is_dir():
        raise InputError(
            f"{cascade_folder} is not a folder, so the report needs a place; give --output"
        )
    cascade = Cascade.from_pretrained(cascade_folder, runtime=runtime)
    target = output or _own_place(Path(cascade_folder), data)
    names = console.columns(text_column, text_pair_column, label_column, group_column)
    rows = console.rows_for(cascade, data, names)
    with console.progress_bar("running every stage", len(rows) * len(cascade.stages)) as progress:
        write_report(cascade, rows, target, title=_title(cascade_folder), progress=progress)
    console.say(f"wrote {console.escaped(target)}")


def _own_place(folder: Path, data: str) -> Path:
    (folder / REPORT).mkdir(exist_ok=True)
    console.refuse_targets(data, folder / REPORT / REPORT_FILE)
    return folder / REPORT / REPORT_FILE


def _title(cascade_folder: str) -> str:
    path = Path(cascade_folder)
    return path.resolve().name if path.is_dir() else cascade_folder
