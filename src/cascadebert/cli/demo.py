"""``cascadebert demo``: train, tune and measure a small cascade."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from cascadebert.cli import console
from cascadebert.cli.evaluate import evaluation_table
from cascadebert.disk import RECORD_FILE
from cascadebert.errors import InputError, MissingDependencyError


def demo(
    output: Annotated[Path, typer.Option(help="Write everything to this folder.")] = Path(
        "cascadebert-demo"
    ),
) -> None:
    """Fine-tune two models, build a cascade from them, tune it and measure it, in minutes.

    Needs the extra 'demo', but no model hub.

    [bold]Examples[/]

    cascadebert demo

    cascadebert demo --output /tmp/demo
    """
    if (
        output.is_dir()
        and any(output.iterdir())
        and not (output / "cascade" / RECORD_FILE).exists()
    ):
        raise InputError(f"{output}: the folder has other files in it; give a new or empty one")
    try:
        from cascadebert.demo.tutorial import run_demo
    except (ModuleNotFoundError, MissingDependencyError) as error:
        missing = getattr(error, "name", None) or "torch"
        raise MissingDependencyError(missing, "the demo", "demo") from None
    start = time.perf_counter()
    result = run_demo(output, console.progress_bar)
    policy, evaluation = result.policy, result.evaluation
    console.output.print(
        f"\nThe task: the topic of one sentence of a news article, {evaluation.rows:,} test rows."
    )
    console.output.print(evaluation_table(evaluation))
    names = (result.cascade, result.validation, result.test, result.picture)
    cascade, validation, test, picture = map(console.escaped, names)
    low, high = evaluation.speedup_measured_range
    console.say(
        f"The cascade is {evaluation.speedup_measured:.2f} times as fast as its last stage alone "
        f"({low:.2f} to {high:.2f} in three timings) and loses "
        f"{100 * evaluation.accuracy_drop:.2f} points of accuracy; on the "
        f"{policy.rows:,} tuning rows it was "
        f"{100 * policy.certificate.accuracy_drop:.2f}, at most 1 was asked for.\n"
        f"The frontier as a picture: {picture}\n"
        f"Done in {time.perf_counter() - start:.0f} s. Next:\n\n"
        f"  cascadebert tune {cascade} --data {validation} --max-drop 0.02\n"
        f"  cascadebert evaluate {cascade} --data {test}\n"
        f"  cascadebert report {cascade} --data {test}\n"
        f"  cascadebert predict {cascade} --input {test} --output answers.jsonl\n",
    )
