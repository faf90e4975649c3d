"""``cascadebert evaluate``: compare a cascade with its last stage alone."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from cascadebert.cascade import Cascade
from cascadebert.cli import console
from cascadebert.evaluation.evaluate import Evaluation, StageEvaluation
from cascadebert.evaluation.evaluate import evaluate as run_evaluation
from cascadebert.runtimes import AUTO


def evaluate(
    cascade_folder: console.CascadeFolder,
    data: Annotated[str, typer.Option(help="Labelled rows. " + console.ROWS_HELP)],
    repeats: Annotated[
        int, typer.Option(min=1, help="Time cascade and last stage this often, in turn.")
    ] = 1,
    runtime: console.RuntimeName = AUTO,
    json_file: console.JsonFile = None,
    text_column: console.TextColumnName = "text",
    text_pair_column: console.PairColumnName = None,
    label_column: console.LabelColumnName = "label",
) -> None:
    """Measure a cascade on labelled rows against its last stage alone, in the same run.

    [bold]Examples[/]

    cascadebert evaluate my-cascade --data test.jsonl

    cascadebert evaluate my-cascade --data test.parquet --repeats 5 --json result.json
    """
    console.refuse_targets(data, json_file)
    cascade = Cascade.from_pretrained(cascade_folder, runtime=runtime)
    names = console.columns(text_column, text_pair_column, label_column)
    rows = console.rows_for(cascade, data, names)
    passes = 2 * repeats + len(cascade.stages) - 1
    with console.progress_bar("evaluating", len(rows) * passes) as progress:
        result = run_evaluation(cascade, rows, repeats=repeats, progress=progress)
    console.write_json(json_file, result.to_dict())
    console.output.print(evaluation_table(result))
    console.output.print(
        f"speed-up {result.speedup_measured:.2f} measured, {result.speedup_flops:.2f} in FLOPs, "
        f"{result.speedup_layers:.2f} in layers; same answer as the last stage on "
        f"{result.agreement:.1%} of {result.rows} rows"
    )
    if result.abstained:
        wrong = result.error_when_answering
        rest = "" if wrong is None else f"; of the others {wrong:.2%} get a wrong one"
        console.output.print(f"{result.abstained:.1%} of the rows get no answer{rest}")
    if result.truncated:
        console.output.print(
            f"{result.truncated} rows were cut to the maximum length of their stage"
        )


def evaluation_table(result: Evaluation) -> Table:
    """One line for the cascade and one per stage alone."""
    table = Table("", "accuracy", "rows/s", "answers", "DIS", "ECE")
    alone: list[tuple[str, Evaluation | StageEvaluation, str]] = [
        (f"{stage.name} alone", stage, f"{share:.1%} of the rows")
        for stage, share in zip(result.stages, result.exit_fractions, strict=True)
    ]
    answers = f"{1 - result.abstained:.1%} of the rows" if result.abstained else "all"
    lines: list[tuple[str, Evaluation | StageEvaluation, str]] = [("cascade", result, answers)]
    for name, measured, share in lines + alone:
        table.add_row(
            Text(console.escaped(name)),
            f"{measured.accuracy:.4f}",
            f"{result.rows / measured.seconds:,.0f}",
            share,
            "-" if measured.dis is None else f"{measured.dis:.1f}",
            f"{measured.ece:.3f}",
        )
    return table
