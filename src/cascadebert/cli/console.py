"""What the commands share: where they write, progress bars and options."""

from __future__ import annotations

import json
import os
import unicodedata
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

from cascadebert.cascade import Cascade
from cascadebert.disk import write_text
from cascadebert.errors import InputError
from cascadebert.rows.files import Columns, read_rows
from cascadebert.rows.readers import STANDARD_STREAM
from cascadebert.rows.rows import Rows

output = Console()
errors = Console(stderr=True)
# Characters that turn the direction of the text after them.
_DIRECTIONS = ("LRE", "LRO", "RLE", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")

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
GroupColumnName = Annotated[
    str | None,
    typer.Option(
        "--group-column",
        help="Column naming rows that depend on one another; one of each group certifies.  "
        "[dim]\\[default: group, if there is one][/]",
        show_default=False,
    ),
]
RuntimeName = Annotated[
    str,
    typer.Option(
        "--runtime",
        help="What runs transformers: onnx, openvino or torch in fp32, openvino-bf16, torch-bf16, "
        "openvino-int8 (quantised), or auto, the one that was measured best for each stage.",
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write the result to this file as JSON.")
]
ROWS_HELP = (
    "CSV, TSV, JSONL or Parquet file, or NAME:SPLIT of a data set if 'datasets' is installed."
)


def columns(text: str, pair: str | None, label: str = "label", group: str | None = None) -> Columns:
    return Columns(text=text, text_pair=pair, label=label, group=group)


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


def rows_for(cascade: Cascade, data: str, names: Columns, with_labels: bool = True) -> Rows:
    """Rows, with labels that the cascade knows where labels are needed."""
    if not with_labels:
        return read_rows(data, names)
    return read_rows(data, names, with_labels=True, known_labels=cascade.labels)


def say(text: str) -> None:
    """Print plain text, paths and all, as it is."""
    output.print(text, markup=False, highlight=False, soft_wrap=True)


def escaped(text: object) -> str:
    r"""Escape control characters and changes of direction, so that a terminal shows them.

    >>> print(escaped("a\x1b[31m\tb"))
    a\x1b[31m\tb
    """
    return "".join(char if _is_safe(char) else ascii(char)[1:-1] for char in str(text))


def _is_safe(char: str) -> bool:
    hidden = unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
    return not hidden and unicodedata.bidirectional(char) not in _DIRECTIONS


def refuse_targets(source: str, *targets: str | Path | None) -> None:
    """Refuse files that could not be written or are the source, or one another, before any work.

    Raises:
        InputError: a folder that does not exist, a folder in place of a file, one file twice.
    """
    seen = {Path(source).resolve()}
    for target in targets:
        if target is None or str(target) == STANDARD_STREAM:
            continue
        path = Path(target).absolute()
        if path.is_dir():
            raise InputError(f"{target}: is a folder; name a file")
        if not path.parent.is_dir():
            raise InputError(f"{target}: the folder {path.parent} does not exist; make it first")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InputError(f"{target}: may not be written here; name another place")
        if path.resolve() in seen and (path.is_file() or not path.exists()):
            raise InputError(f"{target}: is named for two things; give each its own file")
        seen.add(path.resolve())


def write_json(path: Path | None, values: dict[str, Any]) -> None:
    if path is not None:
        write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
