"""``cascadebert check``: test whether a certificate still holds."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from cascadebert.cascade import Cascade
from cascadebert.cli import console
from cascadebert.errors import DamagedError, InputError
from cascadebert.evaluation.check import (
    DEFAULT_LEVEL,
    Finding,
    RowsCheck,
    check_cascade,
    check_rows,
    needs_labels,
)
from cascadebert.rows.files import Columns
from cascadebert.runtimes import AUTO

_LEAST_LEVEL = 0.002


def check(
    cascade_folder: console.CascadeFolder,
    data: Annotated[
        str | None,
        typer.Option(help="Fresh rows to test the certificate on. " + console.ROWS_HELP),
    ] = None,
    level: Annotated[
        float,
        typer.Option(help="Probability of a false alarm on rows drawn like the certificate's."),
    ] = DEFAULT_LEVEL,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the permutations.")] = 0,
    runtime: console.RuntimeName = AUTO,
    json_file: console.JsonFile = None,
    text_column: console.TextColumnName = "text",
    text_pair_column: console.PairColumnName = None,
    label_column: console.LabelColumnName = "label",
    group_column: console.GroupColumnName = None,
) -> None:
    """Check that the certificate matches the saved files and this machine's engine; for CI.

    With --data, also test on fresh rows whether a promise is broken, and whether the rows are drawn
    like the certificate's own. The exit code is 1 if any check fails.

    [bold]Examples[/]

    cascadebert check my-cascade

    cascadebert check my-cascade --data last-week.jsonl --json check.json
    """
    if not _LEAST_LEVEL <= level < 1:
        raise InputError(
            f"the level {level} is invalid; give one from {_LEAST_LEVEL} (lower ones need more "
            "permutations) to below 1, such as 0.05 for 5 %"
        )
    console.refuse_targets(data or cascade_folder, json_file)
    tested: RowsCheck | None = None
    try:
        cascade = Cascade.from_pretrained(cascade_folder, runtime=runtime)
    except DamagedError as error:
        findings = [Finding("files", False, str(error))]
    else:
        findings = check_cascade(cascade)
        if data is not None and all(finding.passed for finding in findings[:2]):
            names = console.columns(text_column, text_pair_column, label_column, group_column)
            tested = _test(cascade, data, names, level, seed)
            findings += tested.findings()
    passed = all(finding.passed for finding in findings)
    values: dict[str, Any] = {
        "passed": passed,
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "fresh": tested and tested.to_dict(),
    }
    console.write_json(json_file, values)
    for finding in findings:
        mark = "ok    " if finding.passed else "FAILED"
        console.say(console.escaped(f"{mark} {finding.what}: {finding.detail}"))
    if not passed:
        raise typer.Exit(1)


def _test(cascade: Cascade, data: str, names: Columns, level: float, seed: int) -> RowsCheck:
    rows = console.rows_for(cascade, data, names, needs_labels(cascade))
    total = len(rows) * len(cascade.stages)
    with console.progress_bar("running every stage", total) as progress:
        return check_rows(cascade, rows, level=level, seed=seed, progress=progress)
