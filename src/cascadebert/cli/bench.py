"""``cascadebert bench``: time a cascade and its alternatives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from cascadebert.bench.bench import DEFAULT_ROUNDS, DEFAULT_SECONDS, STEPS_BESIDE_ROUNDS
from cascadebert.bench.bench import bench as run_benchmark
from cascadebert.bench.command import try_commands
from cascadebert.bench.contenders import contenders
from cascadebert.bench.picture import plot_bench, refuse_picture
from cascadebert.bench.result import COMMAND, BenchResult, ContenderResult
from cascadebert.cascade import Cascade
from cascadebert.cli import console
from cascadebert.errors import InputError
from cascadebert.report.svg import shown
from cascadebert.rows.rows import evenly

_NAME = 48


def bench(
    cascade_folder: console.CascadeFolder,
    data: Annotated[
        str, typer.Option(help="Labelled rows, other than those of tuning. " + console.ROWS_HELP)
    ],
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COMMAND",
            help="Time this shell command too. It reads rows as JSONL (text, text_pair) from "
            'standard input and writes one {"label": ...} per line to standard output, or uses '
            "files in place of {input} and {output}. Can be repeated.",
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="Leave out contenders with this in their name. Can be repeated."
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Time each contender this often, in turn.")
    ] = DEFAULT_ROUNDS,
    row_count: Annotated[
        int | None,
        typer.Option(
            "--rows", min=1, help="Use this many of the rows, evenly drawn.", show_default="all"
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            min=0.01,
            help="Limit each round of a contender; slow ones get fewer rows.",
        ),
    ] = DEFAULT_SECONDS,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="First measure the speed of each stage here, and save it in the cascade.",
        ),
    ] = False,
    json_file: console.JsonFile = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw rows per second and accuracy: an SVG or PNG file.")
    ] = None,
    text_column: console.TextColumnName = "text",
    text_pair_column: console.PairColumnName = None,
    label_column: console.LabelColumnName = "label",
) -> None:
    """Time a cascade, its stages alone, other engines, transformers' pipeline and your commands.

    Each runs in its own process; they are timed in turn. All ratios are against the last stage
    alone.

    [bold]Examples[/]

    cascadebert bench my-cascade --data test.jsonl

    cascadebert bench my-cascade --data test.jsonl --rows 2000 --json bench.json --picture bench.svg

    cascadebert bench my-cascade --data test.jsonl --calibrate --skip pipeline

    cascadebert bench my-cascade --data test.jsonl --against 'python my_model.py {input} {output}'
    """
    console.refuse_targets(data, json_file, picture)
    if picture is not None:
        refuse_picture(picture)
    if calibrate and not Path(cascade_folder).is_dir():
        raise InputError(
            f"{cascade_folder} is not a folder, so speeds cannot be saved in it; download it first"
        )
    cascade = Cascade.from_pretrained(cascade_folder)
    names = console.columns(text_column, text_pair_column, label_column)
    rows = console.rows_for(cascade, data, names)
    if row_count is not None:
        rows = rows.take(evenly(len(rows), row_count).tolist())
    entered = contenders(cascade, against or [], skip or [])
    if calibrate:
        commands = [one.name for one in entered if one.kind == COMMAND]
        try_commands(commands, rows, cascade.labels)
        stages = len(cascade.stages)
        with console.progress_bar("measuring the stages", stages, "stages") as progress:
            cascade.measure_speed(rows, progress=progress)
        cascade.save_pretrained(cascade_folder)
    steps = len(entered) * (rounds + STEPS_BESIDE_ROUNDS)
    with console.progress_bar(f"timing {len(entered)} contenders", steps, "steps") as progress:
        result = run_benchmark(
            cascade,
            rows,
            against=against or [],
            rounds=rounds,
            seconds=seconds,
            skip=skip or [],
            progress=progress,
        )
    console.write_json(json_file, result.to_dict())
    if picture is not None:
        plot_bench(result, picture)
    _print(result)


def _print(result: BenchResult) -> None:
    console.output.print(speed_table(result))
    console.output.print(process_table(result))
    for line in _notes(result):
        console.say(console.escaped(line))


def _notes(result: BenchResult) -> Iterator[str]:
    yield (
        f"{result.machine}; ratios are to {result.reference}; medians of {result.rounds} rounds "
        "with their range"
    )
    if any(one.kind == COMMAND for one in result.contenders):
        yield "commands are timed as a whole, including their start"
    bound = result.oracle
    if bound is not None:
        yield (
            f"oracle: accuracy {bound.accuracy:.4f}, ratio {bound.speedup:.2f}, if each of "
            f"{bound.rows:,} rows exited at the first stage that is right"
        )
    if result.predicted_seconds is not None and result.measured_seconds is not None:
        where = "" if result.predicted_on == result.machine else f" on {result.predicted_on}"
        yield (
            f"cascade: {_short(result.measured_seconds)} s measured; by the speed of its stages"
            f"{where} {_short(result.predicted_seconds)} s, {result.predicted_ratio:.2f} of that"
        )


def speed_table(result: BenchResult) -> Table:
    """Speed and accuracy, one line per contender."""
    table = Table(_names(), "rows/s", "ratio", "accuracy", "retained", "rows")
    for one in result.contenders:
        retained = one.accuracy_retained
        slowest, fastest = one.ratio_range
        table.add_row(
            _name(one),
            f"{_short(one.rows_per_second)} ({'–'.join(map(_short, one.rows_per_second_range))})",
            f"{one.ratio:.2f} ({slowest:.2f}–{fastest:.2f})",
            f"{one.accuracy:.4f}",
            "-" if retained is None else f"{retained:.1%}",
            f"{one.rows:,}",
        )
    return table


def process_table(result: BenchResult) -> Table:
    """Resources of each contender; commands are left out, as they cannot be observed."""
    table = Table(
        _names(), "rows/s per core", "ms per row, p50 / p95 / p99", "peak MB", "start s", "overhead"
    )
    for one in result.contenders:
        if one.kind == COMMAND:
            continue
        late, overhead = one.latency_ms, one.overhead
        table.add_row(
            _name(one),
            _short(one.rows_per_second_per_core),
            " / ".join(map(_short, (late.p50, late.p95, late.p99))) if late else "-",
            "-" if one.peak_memory_mb is None else f"{one.peak_memory_mb:,.0f}",
            _short(one.startup_seconds),
            "-" if overhead is None else f"{overhead:.1%}",
        )
    return table


def _names() -> Column:
    return Column("", overflow="fold")


def _name(one: ContenderResult) -> Text:
    return Text(shown(one.name, _NAME))


def _short(value: float | None) -> str:
    """Three digits, or more before the point."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
