"""What the commands share: where they write, progress bars and options."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cascadebert.artifact import write_text
from cascadebert.files import Columns

output = Console()
errors = Console(stderr=True)

CascadeFolder = Annotated[
    str, typer.Argument(metavar="DIR", help="Folder or hub name of a cascade.")
]
TextColumnName = Annotated[str, typer.Option("--text-column", help="Column with the text.")]
PairColumnName = Annotated[
    str | None,
    typer.Option(
        "--text-pair-column",
        help="Column with the second text.  [dim]\\[default: text_pair, if there is one][/]",
        show_default=False,
    ),
]
LabelColumnName = Annotated[str, typer.Option("--label-column", help="Column with the label.")]
RuntimeName = Annotated[str, typer.Option("--runtime", help="Engine: onnx or torch.")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write the result to this file as JSON.")
]
ROWS_HELP = (
    "CSV, TSV, JSONL or Parquet file, or NAME:SPLIT of a data set if 'datasets' is installed."
)


def columns(text: str, pair: str | None, label: str = "label") -> Columns:
    return Columns(text=text, text_pair=pair, label=label)


@contextmanager
def progress_bar(
    title: str, total: int | None, unit: str = "rows"
) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; the block gets a function to call with what is done.

    Where standard error is no terminal there is a line with the title instead.
    """
    if not errors.is_terminal:
        errors.print(f"{title} ...")
        yield lambda _: None
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.advance(task, done)


def write_json(path: Path | None, values: dict[str, Any]) -> None:
    if path is not None:
        write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
