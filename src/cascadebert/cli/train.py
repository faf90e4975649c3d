"""``cascadebert train``: labelled rows and pre-trained checkpoints to a cascade."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from cascadebert.cascade import Cascade
from cascadebert.cli import console
from cascadebert.cli.evaluate import evaluation_table
from cascadebert.cli.tune import chosen_targets
from cascadebert.disk import RECORD_FILE, REPORT, TRAINING
from cascadebert.errors import InputError, MissingDependencyError
from cascadebert.evaluation.evaluate import Evaluation, evaluate
from cascadebert.persistence.save import refuse_other_folder
from cascadebert.report.training_page import read_training, write_training_page
from cascadebert.rows.files import read_rows


class DarScore(StrEnum):
    probability = "probability"
    log_odds = "log_odds"


class Aggregate(StrEnum):
    all = "all"
    majority = "majority"
    graded = "graded"


class CalibrationKind(StrEnum):
    temperature = "temperature"
    vector = "vector"
    isotonic = "isotonic"
    none = "none"


_MODELS, _LOSS, _TRAINER = "Rows and stages", "Loss and difficulty", "Trainer"


def train(
    train_file: Annotated[
        str,
        typer.Option("--train", help="Labelled rows. " + console.ROWS_HELP),
    ],
    validation_file: Annotated[
        str,
        typer.Option(
            "--validation",
            help="Other labelled rows, to calibrate and tune on.",
        ),
    ],
    stage: Annotated[
        list[str],
        typer.Option(
            help="Pre-trained checkpoint: folder or hub name, or 'linear'. "
            "Once for each stage, small to large.",
            metavar="CKPT",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the cascade.")],
    test_file: Annotated[
        str | None,
        typer.Option("--test", help="Labelled rows that the finished cascade is measured on."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Tune for at most this drop of accuracy.  [dim]\\[default: 0.005][/]",
            show_default=False,
        ),
    ] = None,
    speedup: Annotated[float | None, typer.Option(help="Tune for this speed-up instead.")] = None,
    cost: Annotated[str, typer.Option(help="Cost for tuning: seconds, flops or layers.")] = (
        "seconds"
    ),
    loss: Annotated[
        str,
        typer.Option(
            help="Of every stage but the last: cross_entropy, dar, distillation, gatekeeper; "
            "join several with '+'.",
            rich_help_panel=_LOSS,
        ),
    ] = "distillation",
    dar_weight: Annotated[float, typer.Option(help="Lambda.", rich_help_panel=_LOSS)] = 0.5,
    dar_margin: Annotated[float, typer.Option(help="Epsilon.", rich_help_panel=_LOSS)] = 0.5,
    dar_score: Annotated[
        DarScore, typer.Option(help="What the margin is on.", rich_help_panel=_LOSS)
    ] = DarScore.probability,
    folds: Annotated[int, typer.Option(help="Folds of difficulty.", rich_help_panel=_LOSS)] = 3,
    difficulty_seeds: Annotated[
        int, typer.Option(help="Held-out answers a row.", rich_help_panel=_LOSS)
    ] = 1,
    difficulty: Annotated[
        Aggregate, typer.Option(help="How they make a difficulty.", rich_help_panel=_LOSS)
    ] = Aggregate.graded,
    paired_batches: Annotated[
        bool,
        typer.Option(
            "--paired-batches",
            help="An easier and a harder row in every batch.",
            rich_help_panel=_LOSS,
        ),
    ] = False,
    distillation_weight: Annotated[
        float, typer.Option(help="Share of the last stage's word.", rich_help_panel=_LOSS)
    ] = 0.5,
    temperature: Annotated[
        float, typer.Option(help="Of distillation.", rich_help_panel=_LOSS)
    ] = 2.0,
    hidden_weight: Annotated[
        float,
        typer.Option(help="Of matching hidden states, of equal width.", rich_help_panel=_LOSS),
    ] = 0.0,
    gatekeeper_alpha: Annotated[
        float, typer.Option(help="Weight of rows answered right.", rich_help_panel=_LOSS)
    ] = 0.5,
    label_smoothing: Annotated[float, typer.Option(rich_help_panel=_LOSS)] = 0.0,
    class_weights: Annotated[
        str | None, typer.Option(help="'balanced', or name=weight,...", rich_help_panel=_LOSS)
    ] = None,
    calibration: Annotated[
        CalibrationKind, typer.Option(help="Of every stage.", rich_help_panel=_LOSS)
    ] = CalibrationKind.temperature,
    quantise: Annotated[
        bool,
        typer.Option(help="Whether to look for the fastest runtime, int8 and bfloat16 too."),
    ] = True,
    epochs: Annotated[
        str | None,
        typer.Option(
            help="For all stages, or one a stage: 4,3,2.  [dim]\\[default: 3][/]",
            show_default=False,
            rich_help_panel=_TRAINER,
        ),
    ] = None,
    learning_rate: Annotated[
        str | None,
        typer.Option(
            help="For all stages, or one a stage.",
            show_default="by width",
            rich_help_panel=_TRAINER,
        ),
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            help="For all stages, or one a stage.  [dim]\\[default: 32][/]",
            show_default=False,
            rich_help_panel=_TRAINER,
        ),
    ] = None,
    max_length: Annotated[
        int, typer.Option(help="Tokens a row is cut at.", rich_help_panel=_TRAINER)
    ] = 128,
    seed: Annotated[int, typer.Option(rich_help_panel=_TRAINER)] = 0,
    early_stopping: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Stop a stage after so many epochs without better validation accuracy, and keep "
            "its best.",
            rich_help_panel=_TRAINER,
        ),
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option(
            help="Any of transformers' TrainingArguments, as name=value. Can be repeated.",
            rich_help_panel=_TRAINER,
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Keep finished parts here, for other trainings too.",
            show_default=f"OUTPUT/{TRAINING}, until it is done",
        ),
    ] = None,
    json_file: console.JsonFile = None,
    text_column: console.TextColumnName = "text",
    text_pair_column: console.PairColumnName = None,
    label_column: console.LabelColumnName = "label",
) -> None:
    """Train, calibrate and tune a cascade of pre-trained checkpoints, small to large.

    A training that was cut off goes on where it was: run the same command again.

    [bold]Examples[/]

    cascadebert train --train train.csv --validation dev.csv --stage ./small --stage ./large
    --output my-cascade

    cascadebert train --train train.jsonl --validation dev.jsonl --test test.jsonl
    --stage linear --stage ./small --stage ./large --loss dar --speedup 4 --output my-cascade
    """
    if max_drop is None and speedup is None:
        max_drop = 0.005
    targets = chosen_targets(max_drop=max_drop, speedup=speedup)
    console.refuse_targets(train_file, json_file)
    names = console.columns(text_column, text_pair_column, label_column)
    rows = read_rows(train_file, names, with_labels=True)
    validation = read_rows(validation_file, names, with_labels=True)
    known = sorted(set(rows.labels or ()))
    test = read_rows(test_file, names, with_labels=True, known_labels=known) if test_file else None
    if test is not None and (test.pairs is None) != (rows.pairs is None):
        raise InputError(
            f"only one of {train_file} and {test_file} has second texts; give both the same columns"
        )
    try:
        from cascadebert.training.objective import Objective
        from cascadebert.training.recipe import Recipe
        from cascadebert.training.trainer import CascadeTrainer, remove_parts
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or "torch", "training", "train") from None
    objective = Objective(
        name=loss,
        dar_weight=dar_weight,
        dar_margin=dar_margin,
        dar_score=dar_score.value,
        distillation_weight=distillation_weight,
        temperature=temperature,
        hidden_weight=hidden_weight,
        gatekeeper_alpha=gatekeeper_alpha,
        class_weights=_class_weights(class_weights),
        label_smoothing=label_smoothing,
    )
    arguments = {
        "num_train_epochs": _one_a_stage("--epochs", epochs, len(stage)),
        "learning_rate": _one_a_stage("--learning-rate", learning_rate, len(stage)),
        "per_device_train_batch_size": _one_a_stage("--batch-size", batch_size, len(stage), int),
    }
    common = {"seed": seed} | _early_stopping(early_stopping) | _parsed(arg or [])
    recipe = Recipe(
        objective=objective,
        folds=folds,
        difficulty_seeds=difficulty_seeds,
        difficulty=difficulty.value,
        paired_batches=paired_batches,
        calibration=calibration.value,
        quantise=quantise,
        max_length=max_length,
        stage_arguments={
            number: common
            | {name: values[number - 1] for name, values in arguments.items() if values}
            for number in range(1, len(stage) + 1)
        },
    )
    if early_stopping is not None:
        from transformers import EarlyStoppingCallback

        callbacks = [EarlyStoppingCallback(early_stopping)]
    else:
        callbacks = []
    with _plan_bar() as progress:
        trainer = CascadeTrainer(
            stage,
            train_dataset=rows,
            eval_dataset=validation,
            recipe=recipe,
            target=targets,
            cost=cost,
            output_dir=work or output / TRAINING,
            callbacks=callbacks,
            progress=progress,
        )
        done = read_training(output / REPORT) if (output / RECORD_FILE).exists() else None
        if done is None:
            refuse_other_folder(output)
            cascade = trainer.train()
            report = trainer.report
            write_training_page(output / REPORT, report)
            cascade.save_pretrained(output)
        elif done.get("fingerprint") == trainer.fingerprint():
            console.say(f"{output}: this training is done already")
            cascade, report = Cascade.from_pretrained(output), done
        else:
            raise InputError(
                f"{output}: holds a cascade that was made otherwise; name a new or empty folder"
            )
    remove_parts(output / TRAINING)
    result = None
    if test is not None and report.get("test_rows") != test.fingerprint():
        with console.progress_bar("measuring", len(test) * (len(stage) + 1)) as count:
            result = evaluate(cascade, test, progress=count)
        report = {**report, "test_rows": test.fingerprint(), "test": result.to_dict()}
        write_training_page(output / REPORT, report, trainer.policy, result)
    console.write_json(json_file, report)
    _say_result(report["tuning"], result)
    console.say(f"wrote {output}\nnext: cascadebert evaluate {output} --data OTHER_ROWS")


def _say_result(tuning: Mapping[str, Any], result: Evaluation | None) -> None:
    console.say(
        f"on the {tuning['rows']} validation rows: accuracy {tuning['accuracy']:.4f}, last stage "
        f"alone {tuning['reference_accuracy']:.4f}; speed-up {tuning['speedup']:.2f} in "
        f"{tuning['cost']}"
    )
    if result is not None:
        console.output.print(evaluation_table(result))
        console.say(
            f"speed-up {result.speedup_measured:.2f} measured, {result.speedup_flops:.2f} in FLOPs"
        )


@contextmanager
def _plan_bar() -> Iterator[Any]:
    """A bar over the whole plan; without a terminal one line for every part."""
    if not console.errors.is_terminal:
        told = ""

        def tell(what: str, _share: float) -> None:
            nonlocal told
            if what != told:
                console.errors.print(f"{what} ...", markup=False, highlight=False)
            told = what

        yield tell
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console.errors,
        transient=True,
    ) as bar:
        task = bar.add_task("preparing", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)


def _one_a_stage(option: str, text: str | None, stages: int, kind: type = float) -> list[Any]:
    if text is None:
        return []
    try:
        values = [kind(value) for value in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text!r}: give one number, or {stages} with commas") from None
    if len(values) not in (1, stages):
        raise InputError(f"{option} {text!r}: {len(values)} numbers for {stages} stages")
    return values * (stages // len(values))


def _class_weights(text: str | None) -> Any:
    if text is None or "=" not in text:
        return text
    pairs = [pair.rpartition("=") for pair in text.split(",")]
    try:
        return {name: float(weight) for name, _, weight in pairs}
    except ValueError:
        raise InputError(f"--class-weights {text!r} is not name=weight,name=weight") from None


def _early_stopping(patience: int | None) -> dict[str, Any]:
    if patience is None:
        return {}
    return {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
    }


def _parsed(pairs: Sequence[str]) -> dict[str, Any]:
    """TrainingArguments given as text."""
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"--arg {pair!r} is not name=value")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = {"True": True, "False": False}.get(text, text)
    return values
