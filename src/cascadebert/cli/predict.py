"""``cascadebert predict``: classify a file."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import typer

from cascadebert.cascade import DEFAULT_WINDOW, Cascade, Prediction, batched
from cascadebert.cli import console
from cascadebert.errors import InputError
from cascadebert.files import (
    STANDARD_STREAM,
    BadRow,
    GoodRow,
    RowFile,
    RowWriter,
    refuse_bad_rows,
    rows_of,
    spooled_input,
)

_RESULT = ("row", "label", "stage", "confidence")


class OnError(enum.StrEnum):
    """What to do with rows that cannot be classified."""

    fail = "fail"
    skip = "skip"


def predict(
    cascade_folder: console.CascadeFolder,
    input_file: Annotated[
        str, typer.Option("--input", help=console.ROWS_HELP + " '-' is standard input (JSONL).")
    ],
    output_file: Annotated[
        str,
        typer.Option("--output", help="CSV, TSV, JSONL or Parquet file; '-' is standard output."),
    ],
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Copy this column of the input to the output. Can be repeated."),
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write the probability of every label.")
    ] = False,
    on_error: Annotated[
        OnError,
        typer.Option(help="fail: one bad row stops everything. skip: write the good rows."),
    ] = OnError.fail,
    errors_file: Annotated[
        str | None,
        typer.Option(
            "--errors",
            help="Where --on-error skip writes the bad rows with reasons.",
            show_default="OUTPUT.errors.jsonl",
        ),
    ] = None,
    input_format: Annotated[
        str | None, typer.Option(help="csv, tsv, jsonl or parquet.", show_default="by suffix")
    ] = None,
    output_format: Annotated[
        str | None, typer.Option(help="csv, tsv, jsonl or parquet.", show_default="by suffix")
    ] = None,
    runtime: console.RuntimeName = "onnx",
    json_file: console.JsonFile = None,
    text_column: console.TextColumnName = "text",
    text_pair_column: console.PairColumnName = None,
) -> None:
    """Classify every row of a file; the input is checked as a whole before anything is written.

    A row of the output has the row's number in the input (from 0), the label,
    the stage that answered (from 1) and its confidence.

    [bold]Examples[/]

    cascadebert predict my-cascade --input rows.csv --output answers.csv --keep id

    cascadebert predict my-cascade --input rows.jsonl --output answers.parquet --on-error skip

    cat rows.jsonl | cascadebert predict my-cascade --input - --output - > answers.jsonl
    """
    if on_error is OnError.skip and errors_file is None:
        if output_file == STANDARD_STREAM:
            raise InputError("--output - with --on-error skip needs --errors FILE for the bad rows")
        errors_file = f"{output_file}.errors.jsonl"
    source = RowFile(
        input_file, console.columns(text_column, text_pair_column), format=input_format
    )
    writer = RowWriter(output_file, output_format)
    with spooled_input(source) as file:
        good, bad = _check(file, on_error, keep or [])
        cascade = Cascade.from_pretrained(cascade_folder, runtime=runtime)
        start = time.perf_counter()
        with writer, console.progress_bar("classifying", good) as progress:
            exits, truncated = np.zeros(len(cascade.stages), dtype=np.int64), 0
            for rows in batched((r for r in file if isinstance(r, GoodRow)), DEFAULT_WINDOW):
                out = cascade.predict(rows_of(rows), progress=progress)
                writer.write(list(_records(cascade, rows, out, keep or [], probabilities)))
                exits += np.bincount(out.stage - 1, minlength=len(exits))
                truncated += int(out.truncated.sum())
        seconds = time.perf_counter() - start
        if bad:
            _write_bad(file, str(errors_file))
    summary = {
        "rows": good,
        "bad_rows": bad,
        "truncated": truncated,
        "exit_fractions": (exits / good).tolist(),
        "seconds": seconds,
        "rows_per_second": good / seconds,
    }
    console.write_json(json_file, summary)
    _print_summary(cascade, summary, errors_file)


def _check(file: RowFile, on_error: OnError, keep: Sequence[str]) -> tuple[int, int]:
    """Read the input once, and count the good and the bad rows."""
    good, bad = 0, 0
    first_bad: list[BadRow] = []
    unseen = set(keep)
    for row in file:
        if isinstance(row, GoodRow):
            good += 1
            unseen.difference_update(row.record)
        else:
            bad += 1
            first_bad = first_bad or [row]
    if on_error is OnError.fail or not good:
        refuse_bad_rows(file, good, bad, first_bad, "mend or remove them, or use --on-error skip")
    if unseen:
        raise InputError(f"{file.source}: no column {sorted(unseen)} for --keep; leave it out")
    return good, bad


def _records(
    cascade: Cascade,
    rows: Sequence[GoodRow],
    out: Prediction,
    keep: Sequence[str],
    probabilities: bool,
) -> Iterator[dict[str, Any]]:
    for i, row in enumerate(rows):
        record: dict[str, Any] = {
            "row": row.number,
            "label": str(out.labels[i]),
            "stage": int(out.stage[i]),
            "confidence": float(out.confidence[i]),
        }
        if probabilities:
            for label, value in zip(cascade.labels, out.probabilities[i].tolist(), strict=True):
                record[f"probability_{label}"] = value
        for name in keep:
            record[f"input_{name}" if name in _RESULT else name] = row.record.get(name)
        yield record


def _write_bad(file: RowFile, target: str) -> None:
    with RowWriter(target, "jsonl") as writer:
        for row in file:
            if isinstance(row, BadRow):
                writer.write([{"row": row.number, "place": row.place, "reason": row.reason}])


def _print_summary(cascade: Cascade, summary: dict[str, Any], errors_file: str | None) -> None:
    shares = ", ".join(
        f"{stage.name} {share:.1%}"
        for stage, share in zip(cascade.stages, summary["exit_fractions"], strict=True)
    )
    lines = [
        f"{summary['rows']:,} rows in {summary['seconds']:.1f} s, "
        f"{summary['rows_per_second']:,.0f} rows/s; answered by {shares}"
    ]
    if summary["truncated"]:
        lines.append(f"{summary['truncated']:,} rows were longer than the stage reads, and cut")
    if summary["bad_rows"]:
        lines.append(f"{summary['bad_rows']:,} rows could not be used; see {errors_file}")
    console.errors.print("\n".join(lines), soft_wrap=True)
