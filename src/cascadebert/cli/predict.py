"""``cascadebert predict``: classify a file."""

from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cascadebert.cascade import DEFAULT_WINDOW, Cascade, batched
from cascadebert.cli import console
from cascadebert.errors import InputError
from cascadebert.prediction import Prediction
from cascadebert.rows.files import BadRow, GoodRow, RowFile, refuse_bad_rows, rows_of, spooled
from cascadebert.rows.readers import STANDARD_STREAM, checked_format, parquet_types
from cascadebert.rows.writer import RowWriter
from cascadebert.runtimes import AUTO

_RESULT = ("row", "label", "stage", "confidence", "abstained")


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
    runtime: console.RuntimeName = AUTO,
    json_file: console.JsonFile = None,
    text_column: console.TextColumnName = "text",
    text_pair_column: console.PairColumnName = None,
) -> None:
    """Classify every row of a file; the input is checked as a whole before anything is written.

    A row of the output has the row's number in the input (from 0), the label, the stage that
    answered (from 1), its confidence, and whether it abstained; then there is no label.

    [bold]Examples[/]

    cascadebert predict my-cascade --input rows.csv --output answers.csv --keep id

    cascadebert predict my-cascade --input rows.jsonl --output answers.parquet --on-error skip

    cat rows.jsonl | cascadebert predict my-cascade --input - --output - > answers.jsonl
    """
    if on_error is OnError.skip and errors_file is None:
        if output_file == STANDARD_STREAM:
            raise InputError("--output - with --on-error skip needs --errors FILE for the bad rows")
        errors_file = f"{output_file}.errors.jsonl"
    skipping = on_error is OnError.skip
    console.refuse_targets(input_file, output_file, errors_file if skipping else None, json_file)
    checked_format(output_file, output_format)
    cascade = Cascade.from_pretrained(cascade_folder, runtime=runtime)
    shown_labels = cascade.labels if probabilities else ()
    kept = _kept_names(keep or [], shown_labels)
    source = RowFile(
        input_file,
        console.columns(text_column, text_pair_column),
        with_groups=False,
        keep=list(kept),
        format=input_format,
    )
    with spooled(source) as file, contextlib.ExitStack() as files:
        good, bad = _check(file, on_error)
        types = _kept_types(file, kept)
        writer = files.enter_context(RowWriter(output_file, output_format, types))
        if bad:
            reasons = files.enter_context(RowWriter(str(errors_file), "jsonl"))
            for row in file:
                if isinstance(row, BadRow):
                    values = {"row": row.number, "place": row.place, "reason": row.reason}
                    reasons.write([values])
        exits, truncated, abstained = np.zeros(len(cascade.stages), dtype=np.int64), 0, 0
        start = time.perf_counter()
        with console.progress_bar("classifying", good) as progress:
            for rows in batched((r for r in file if isinstance(r, GoodRow)), DEFAULT_WINDOW):
                out = cascade.predict(rows_of(rows), progress=progress)
                writer.write(list(_records(rows, out, kept, shown_labels)))
                exits += np.bincount(out.stage[~out.abstained] - 1, minlength=len(exits))
                abstained += int(out.abstained.sum())
                truncated += int(out.truncated.sum())
        seconds = time.perf_counter() - start
    summary = {
        "rows": good,
        "bad_rows": bad,
        "truncated": truncated,
        "exit_fractions": (exits / good).tolist(),
        "abstained": abstained / good,
        "seconds": seconds,
        "rows_per_second": good / seconds,
    }
    console.write_json(json_file, summary)
    _print_summary(cascade, summary, errors_file)


def _kept_names(keep: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """Where each kept column of the input goes in the output."""
    taken = [*_RESULT, *(f"probability_{label}" for label in labels)]
    names = {name: f"input_{name}" if name in taken else name for name in keep}
    everything = [*taken, *names.values()]
    twice = sorted(name for name in set(everything) if everything.count(name) > 1)
    if twice:
        raise InputError(f"--keep would give two columns the name {twice}; leave one out")
    return names


def _kept_types(file: RowFile, kept: Mapping[str, str]) -> dict[str, Any]:
    """Types of kept columns where the input has them, so that the output has the same."""
    if file.resolved_format != "parquet":
        return {}
    types = parquet_types(file.path or Path(file.source), list(kept))
    return {kept[name]: column_type for name, column_type in types.items()}


def _check(file: RowFile, on_error: OnError) -> tuple[int, int]:
    """Read the input once, and count the good and the bad rows."""
    good, bad = 0, 0
    first_bad: list[BadRow] = []
    unseen = set(file.keep)
    with console.progress_bar("checking the input", None) as progress:
        for row in file:
            if isinstance(row, GoodRow):
                good += 1
                unseen.difference_update(row.record)
            else:
                bad += 1
                first_bad = first_bad or [row]
            progress(1)
    if on_error is OnError.fail or not good:
        refuse_bad_rows(file, good, bad, first_bad, "mend or remove them, or use --on-error skip")
    if unseen:
        raise InputError(f"{file.source}: no row has {sorted(unseen)} for --keep; leave it out")
    return good, bad


def _records(
    rows: Sequence[GoodRow], out: Prediction, kept: Mapping[str, str], labels: Sequence[str]
) -> Iterator[dict[str, Any]]:
    for i, row in enumerate(rows):
        record: dict[str, Any] = {
            "row": row.number,
            "label": None if out.abstained[i] else str(out.labels[i]),
            "stage": int(out.stage[i]),
            "confidence": float(out.confidence[i]),
            "abstained": bool(out.abstained[i]),
        }
        for label, value in zip(labels, out.probabilities[i].tolist(), strict=False):
            record[f"probability_{label}"] = value
        for name, target in kept.items():
            record[target] = row.record.get(name)
        yield record


def _print_summary(cascade: Cascade, summary: dict[str, Any], errors_file: str | None) -> None:
    shares = ", ".join(
        f"{stage.name} {share:.1%}"
        for stage, share in zip(cascade.stages, summary["exit_fractions"], strict=True)
    )
    lines = [
        f"{summary['rows']:,} rows in {summary['seconds']:.1f} s, "
        f"{summary['rows_per_second']:,.0f} rows/s; answered by {shares}"
    ]
    if summary["abstained"]:
        lines.append(f"{summary['abstained']:.1%} of the rows got no answer")
    if summary["truncated"]:
        lines.append(f"{summary['truncated']:,} rows were longer than the stage reads, and cut")
    if summary["bad_rows"]:
        lines.append(f"{summary['bad_rows']:,} rows could not be used; see {errors_file}")
    console.errors.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
