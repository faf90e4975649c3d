"""``cascadebert tune``: choose thresholds on held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cascadebert.cascade import Cascade
from cascadebert.cli import console
from cascadebert.deferral.certificates.certificate import NOT_CERTIFIED
from cascadebert.deferral.confidence import DEFAULT_SCORE, SCORE_NAMES
from cascadebert.deferral.search.policy import Policy
from cascadebert.deferral.targets import (
    MaxDrop,
    MaxErrorWhenAnswering,
    MaxSecondsPerRow,
    MinAccuracy,
    MinAgreement,
    MinCoverage,
    MinF1,
    MinMatthews,
    MinPrecision,
    MinRecall,
    Speedup,
    Target,
)
from cascadebert.disk import REPORT, REPORT_FILE, refuse_read_only
from cascadebert.errors import InputError
from cascadebert.persistence.save import refuse_other_folder
from cascadebert.runtimes import AUTO

_OF_NUMBERS: dict[str, Callable[[float], Target]] = {
    "max_drop": MaxDrop,
    "min_accuracy": MinAccuracy,
    "min_agreement": MinAgreement,
    "min_matthews": MinMatthews,
    "max_error_when_answering": MaxErrorWhenAnswering,
    "min_coverage": MinCoverage,
    "speedup": Speedup,
    "max_seconds_per_row": MaxSecondsPerRow,
}
_OF_LABELS: dict[str, Callable[[str, float], Target]] = {
    "min_recall": MinRecall,
    "min_precision": MinPrecision,
    "min_f1": MinF1,
}


def _of_label(what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        metavar="LABEL=X", help=f"{what} of at least X for a label; more than once for more."
    )
    return option


def tune(
    cascade_folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of a cascade.")],
    data: Annotated[str, typer.Option(help="Held-out labelled rows. " + console.ROWS_HELP)],
    max_drop: Annotated[
        float | None, typer.Option(help="Lose at most this much accuracy (0.01 is a point).")
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Be right on this share of the rows.")
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(help="Answer this share as the last stage does; needs no labels."),
    ] = None,
    min_recall: Annotated[list[str] | None, _of_label("Recall")] = None,
    min_precision: Annotated[list[str] | None, _of_label("Precision")] = None,
    min_f1: Annotated[list[str] | None, _of_label("F1 score")] = None,
    min_matthews: Annotated[
        float | None, typer.Option(help="Matthews correlation of at least this, for two labels.")
    ] = None,
    max_error_when_answering: Annotated[
        float | None,
        typer.Option(help="Be wrong on this share of the answered rows; abstain from others."),
    ] = None,
    min_coverage: Annotated[
        float | None, typer.Option(help="Answer at least this share of the rows.")
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(help="Cost at most 1/X of the last stage alone.")
    ] = None,
    max_seconds_per_row: Annotated[
        float | None, typer.Option(help="Take at most this long a row on average.")
    ] = None,
    confidence: Annotated[
        float,
        typer.Option(
            help="Promise it with this confidence, for rows like these; 0 asks for no promise."
        ),
    ] = 0.95,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the draw of the rows that propose; the others certify.")
    ] = 0,
    cost: Annotated[
        str,
        typer.Option(
            help="What a stage costs: seconds (as measured by build, train or bench --calibrate, "
            "or else now), flops or layers."
        ),
    ] = "seconds",
    score: Annotated[
        str, typer.Option(help=f"Confidence score: {', '.join(SCORE_NAMES)}.")
    ] = DEFAULT_SCORE,
    output: Annotated[
        Path | None,
        typer.Option(help="Save the tuned cascade here.", show_default="in DIR itself"),
    ] = None,
    runtime: console.RuntimeName = AUTO,
    json_file: console.JsonFile = None,
    text_column: console.TextColumnName = "text",
    text_pair_column: console.PairColumnName = None,
    label_column: console.LabelColumnName = "label",
    group_column: console.GroupColumnName = None,
) -> None:
    """Choose thresholds on held-out rows that meet targets, certify them and save them.

    With a target on the answers the cost is as low as it keeps; with none, accuracy as high as the
    cost allows. A part of the rows proposes thresholds (none where a single one is to be chosen);
    the others test them. Where no promise can be made that is said, and the exit code is 1.

    [bold]Examples[/]

    cascadebert tune my-cascade --data validation.jsonl --max-drop 0.01

    cascadebert tune my-cascade --data validation.csv --speedup 4 --label-column intent

    cascadebert tune my-cascade --data unlabelled.jsonl --min-agreement 0.98 --confidence 0.99

    cascadebert tune my-cascade --data validation.csv --max-drop 0.01 --min-recall toxic=0.95
    """
    targets = chosen_targets(
        max_drop=max_drop,
        min_accuracy=min_accuracy,
        min_agreement=min_agreement,
        min_recall=min_recall,
        min_precision=min_precision,
        min_f1=min_f1,
        min_matthews=min_matthews,
        max_error_when_answering=max_error_when_answering,
        min_coverage=min_coverage,
        speedup=speedup,
        max_seconds_per_row=max_seconds_per_row,
    )
    console.refuse_targets(data, json_file)
    if output is not None:
        refuse_other_folder(output)
    else:
        refuse_read_only(Path(cascade_folder))
    cascade = Cascade.from_pretrained(cascade_folder, runtime=runtime)
    names = console.columns(text_column, text_pair_column, label_column, group_column)
    with_labels = any(target.needs_labels for target in targets)
    rows = console.rows_for(cascade, data, names, with_labels)
    with console.progress_bar("running every stage", len(rows) * len(cascade.stages)) as progress:
        certificate = cascade.tune(
            rows, targets, confidence or None, seed=seed, cost=cost, score=score, progress=progress
        )
    folder = cascade.save_pretrained(output or cascade_folder)
    policy = cascade.policy
    assert policy is not None
    console.write_json(json_file, policy.summary())
    for line in _stages_in_words(cascade, policy):
        console.say(line)
    console.say(certificate.words())
    page = folder / REPORT / REPORT_FILE
    if page.exists():
        console.say(f"{page} is of the thresholds before; report again")
    console.say(f"wrote {folder}\nnext: cascadebert evaluate {folder} --data OTHER_ROWS")
    if certificate.verdict == NOT_CERTIFIED:
        raise typer.Exit(1)


def _stages_in_words(cascade: Cascade, policy: Policy) -> list[str]:
    shares, last = policy.certificate.exit_fractions, len(cascade.stages)
    lines = []
    for number, (stage, (limit, skip), share) in enumerate(
        zip(cascade.stages, policy.routing.by_stage, shares, strict=False), start=1
    ):
        if number < last and limit >= 1:
            lines.append(f"stage {number} {stage.name}: left out, it does not pay")
            continue
        above = f" above {limit:.8g}" if number < last or limit else ""
        straight = f"; up to {skip:.8g} straight to stage {last}" if skip else ""
        lines.append(
            f"stage {number} {stage.name}: answers{above}, {share:.1%} of the rows{straight}"
        )
    return lines


def chosen_targets(**values: float | list[str] | None) -> list[Target]:
    """The targets that were named, out of options by name.

    Raises:
        InputError: none was, or one that needs a label lacks it.
    """
    targets: list[Target] = []
    for name, value in values.items():
        if isinstance(value, list):
            targets.extend(_label_target(name, text) for text in value)
        elif value is not None:
            targets.append(_OF_NUMBERS[name](value))
    if not targets:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in values)
        raise InputError(f"name a target: one or more of {options}")
    return targets


def _label_target(name: str, text: str) -> Target:
    label, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        label = ""
    if not label:
        raise InputError(f"--{name.replace('_', '-')} {text}: give LABEL=X, as in toxic=0.95")
    return _OF_LABELS[name](label, value)
