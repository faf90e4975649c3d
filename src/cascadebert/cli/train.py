"""``cascadebert train``: labelled rows and pre-trained checkpoints to a cascade."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from cascadebert.cascade import Cascade
from cascadebert.cli import console
from cascadebert.cli.evaluate import evaluation_table
from cascadebert.cli.options import grouped
from cascadebert.cli.tune import chosen_targets
from cascadebert.disk import RECORD_FILE, REPORT, TRAINING
from cascadebert.errors import InputError, MissingDependencyError
from cascadebert.evaluation.evaluate import Evaluation, evaluate
from cascadebert.persistence.save import refuse_other_folder
from cascadebert.report.training_page import read_training, write_training_page
from cascadebert.rows.files import read_rows
from cascadebert.rows.rows import Rows

if TYPE_CHECKING:
    from cascadebert.training.objective import Objective
    from cascadebert.training.trainer import CascadeTrainer

DarScore = StrEnum("DarScore", ["probability", "log_odds"])
Aggregate = StrEnum("Aggregate", ["all", "majority", "graded"])
Calibration = StrEnum("Calibration", ["temperature", "vector", "isotonic", "none"])

_loss_option = partial(typer.Option, rich_help_panel="Loss and difficulty")
_trainer_option = partial(typer.Option, rich_help_panel="Trainer")


@dataclass(frozen=True)
class RowOptions:
    """The files of rows, and their columns."""

    train_file: Annotated[str, typer.Option("--train", help="Labelled rows. " + console.ROWS_HELP)]
    validation_file: Annotated[
        str,
        typer.Option("--validation", help="Other labelled rows, for calibration and tuning."),
    ]
    test_file: Annotated[
        str | None,
        typer.Option("--test", help="Labelled rows to measure the finished cascade on."),
    ] = None
    text_column: console.TextColumnName = "text"
    text_pair_column: console.PairColumnName = None
    label_column: console.LabelColumnName = "label"

    def read(self) -> tuple[Rows, Rows, Rows | None]:
        """The training, validation and test rows."""
        names = console.columns(self.text_column, self.text_pair_column, self.label_column)
        rows = read_rows(self.train_file, names, with_labels=True)
        validation = read_rows(self.validation_file, names, with_labels=True)
        if self.test_file is None:
            return rows, validation, None
        known = sorted(set(rows.labels or ()))
        test = read_rows(self.test_file, names, with_labels=True, known_labels=known)
        if (test.pairs is None) != (rows.pairs is None):
            raise InputError(
                f"only one of {self.train_file} and {self.test_file} has second texts; give both "
                "the same columns"
            )
        return rows, validation, test


@dataclass(frozen=True)
class LossOptions:
    """The loss: the name and settings of an ``Objective``."""

    loss: Annotated[
        str,
        _loss_option(
            help="Loss of every stage but the last: cross_entropy, dar, distillation, gatekeeper; "
            "join several with '+'."
        ),
    ] = "distillation"
    dar_weight: Annotated[float, _loss_option(help="Lambda of dar.")] = 0.5
    dar_margin: Annotated[float, _loss_option(help="Epsilon of dar.")] = 0.5
    dar_score: Annotated[DarScore, _loss_option(help="Unit of the margin.")] = DarScore.probability
    distillation_weight: Annotated[
        float, _loss_option(help="Share of the last stage's logits in the loss.")
    ] = 0.5
    temperature: Annotated[float, _loss_option(help="Temperature of distillation.")] = 2.0
    hidden_weight: Annotated[
        float, _loss_option(help="Weight of matching hidden states; needs equal widths.")
    ] = 0.0
    gatekeeper_alpha: Annotated[float, _loss_option(help="Weight of rows answered right.")] = 0.5
    label_smoothing: Annotated[
        float, _loss_option(help="Share of the label mass spread over all classes.")
    ] = 0.0
    class_weights: Annotated[str | None, _loss_option(help="'balanced', or name=weight,...")] = None

    def objective(self) -> Objective:
        """The objective."""
        from cascadebert.training.objective import Objective

        settings = asdict(self) | {"class_weights": _class_weights(self.class_weights)}
        return Objective(settings.pop("loss"), **settings)


@dataclass(frozen=True)
class RecipeOptions:
    """Other settings of a ``Recipe``, by their names in it."""

    folds: Annotated[int, _loss_option(help="Folds of difficulty.")] = 3
    difficulty_seeds: Annotated[int, _loss_option(help="Held-out answers per row.")] = 1
    difficulty: Annotated[
        Aggregate, _loss_option(help="How these answers become a difficulty.")
    ] = Aggregate.graded
    paired_batches: Annotated[
        bool,
        _loss_option("--paired-batches", help="Put an easier and a harder row in every batch."),
    ] = False
    calibration: Annotated[Calibration, _loss_option(help="Calibration of every stage.")] = (
        Calibration.temperature
    )
    quantise: Annotated[
        bool,
        typer.Option(help="Find the fastest runtime of each stage, including int8 and bfloat16."),
    ] = True
    max_length: Annotated[int, _trainer_option(help="Maximum tokens per row.")] = 128


@dataclass(frozen=True)
class TrainerOptions:
    """Settings of transformers' Trainer."""

    epochs: Annotated[
        str | None,
        _trainer_option(
            help="For all stages, or one per stage: 4,3,2.  [dim]\\[default: 3][/]",
            show_default=False,
        ),
    ] = None
    learning_rate: Annotated[
        str | None,
        _trainer_option(help="For all stages, or one per stage.", show_default="by width"),
    ] = None
    batch_size: Annotated[
        str | None,
        _trainer_option(
            help="For all stages, or one per stage.  [dim]\\[default: 32][/]", show_default=False
        ),
    ] = None
    seed: Annotated[int, _trainer_option(help="Seed of every training.")] = 0
    early_stopping: Annotated[
        int | None,
        _trainer_option(
            min=1,
            help="Stop a stage after this many epochs without better validation accuracy, and "
            "keep its best epoch.",
        ),
    ] = None
    arg: Annotated[
        list[str] | None,
        _trainer_option(
            help="Any of transformers' TrainingArguments, as name=value. Can be repeated."
        ),
    ] = None

    def stage_arguments(self, stages: int) -> dict[int, dict[str, Any]]:
        """``TrainingArguments`` by number of the stage."""
        columns = {
            "num_train_epochs": _per_stage("--epochs", self.epochs, stages),
            "learning_rate": _per_stage("--learning-rate", self.learning_rate, stages),
            "per_device_train_batch_size": _per_stage("--batch-size", self.batch_size, stages, int),
        }
        common: dict[str, Any] = {"seed": self.seed}
        if self.early_stopping is not None:
            common |= {
                "eval_strategy": "epoch",
                "save_strategy": "epoch",
                "load_best_model_at_end": True,
                "metric_for_best_model": "accuracy",
            }
        common |= _parsed(self.arg or [])
        return {
            stage + 1: common | {name: values[stage] for name, values in columns.items() if values}
            for stage in range(stages)
        }

    def callbacks(self) -> list[Any]:
        """Callbacks of the Trainer."""
        if self.early_stopping is None:
            return []
        from transformers import EarlyStoppingCallback

        return [EarlyStoppingCallback(self.early_stopping)]


@grouped
def train(
    files: RowOptions,
    stage: Annotated[
        list[str],
        typer.Option(
            help="Pre-trained checkpoint: folder or hub name, or 'linear'. "
            "Once per stage, small to large.",
            metavar="CKPT",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the cascade.")],
    objective: LossOptions,
    settings: RecipeOptions,
    trainer_options: TrainerOptions,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Tune for at most this drop in accuracy.  [dim]\\[default: 0.005][/]",
            show_default=False,
        ),
    ] = None,
    speedup: Annotated[float | None, typer.Option(help="Tune for this speed-up instead.")] = None,
    cost: Annotated[
        str, typer.Option(help="Cost for tuning: seconds, flops or layers.")
    ] = "seconds",
    work: Annotated[
        Path | None,
        typer.Option(
            help="Keep finished parts here, also for other trainings.",
            show_default=f"OUTPUT/{TRAINING}, until the training is done",
        ),
    ] = None,
    json_file: console.JsonFile = None,
) -> None:
    """Train, calibrate and tune a cascade of pre-trained checkpoints, small to large.

    An interrupted training continues where it stopped: run the same command again.

    [bold]Examples[/]

    cascadebert train --train train.csv --validation dev.csv --stage ./small --stage ./large
    --output my-cascade

    cascadebert train --train train.jsonl --validation dev.jsonl --test test.jsonl
    --stage linear --stage ./small --stage ./large --loss dar --speedup 4 --output my-cascade
    """
    if max_drop is None and speedup is None:
        max_drop = 0.005
    targets = chosen_targets(max_drop=max_drop, speedup=speedup)
    console.refuse_targets(files.train_file, json_file)
    rows, validation, test = files.read()
    try:
        from cascadebert.training.recipe import Recipe
        from cascadebert.training.trainer import CascadeTrainer, remove_parts
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or "torch", "training", "train") from None
    with _plan_bar() as progress:
        trainer = CascadeTrainer(
            stage,
            train_dataset=rows,
            eval_dataset=validation,
            recipe=Recipe(
                objective.objective(),
                stage_arguments=trainer_options.stage_arguments(len(stage)),
                **asdict(settings),
            ),
            target=targets,
            cost=cost,
            output_dir=work or output / TRAINING,
            callbacks=trainer_options.callbacks(),
            progress=progress,
        )
        cascade, report = _trained(trainer, output)
    remove_parts(output / TRAINING)
    result = None
    if test is not None and report.get("test_rows") != test.fingerprint():
        with console.progress_bar("measuring", len(test) * (len(stage) + 1)) as count:
            result = evaluate(cascade, test, progress=count)
        report = report | {"test_rows": test.fingerprint(), "test": result.to_dict()}
        write_training_page(output / REPORT, report, trainer.policy, result)
    console.write_json(json_file, report)
    _say_result(report["tuning"], result)
    console.say(f"wrote {output}\nnext: cascadebert evaluate {output} --data OTHER_ROWS")


def _trained(trainer: CascadeTrainer, output: Path) -> tuple[Cascade, dict[str, Any]]:
    """The cascade in ``output`` and its report, trained now if it is not there."""
    if not (output / RECORD_FILE).exists():
        refuse_other_folder(output)
        cascade = trainer.train()
        write_training_page(output / REPORT, trainer.report)
        cascade.save_pretrained(output)
        return cascade, trainer.report
    report = read_training(output / REPORT)
    if report.get("fingerprint") != trainer.fingerprint():
        raise InputError(
            f"{output}: holds a cascade of another training; name a new or empty folder"
        )
    console.say(f"{output}: this training is already done")
    return Cascade.from_pretrained(output), report


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
    """A progress bar over all parts; without a terminal, one line per part."""
    if not console.errors.is_terminal:
        shown = ""

        def show(what: str, _share: float) -> None:
            nonlocal shown
            if what != shown:
                console.errors.print(f"{what} ...", markup=False, highlight=False)
            shown = what

        yield show
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


def _per_stage(option: str, text: str | None, stages: int, kind: type = float) -> list[Any]:
    """One number per stage out of text with one number, or one per stage."""
    if text is None:
        return []
    try:
        values = [kind(value) for value in text.split(",")]
    except ValueError:
        raise InputError(
            f"{option} {text!r}: give one number, or {stages} separated by commas"
        ) from None
    if len(values) not in (1, stages):
        raise InputError(
            f"{option} {text!r}: {len(values)} numbers for {stages} stages; give 1 or {stages}"
        )
    return values * (stages // len(values))


def _class_weights(text: str | None) -> Any:
    if text is None or "=" not in text:
        return text
    pairs = [pair.rpartition("=") for pair in text.split(",")]
    try:
        return {name: float(weight) for name, _, weight in pairs}
    except ValueError:
        raise InputError(
            f"--class-weights {text!r} is invalid; give 'balanced' or name=weight,name=weight"
        ) from None


def _parsed(pairs: Sequence[str]) -> dict[str, Any]:
    """``TrainingArguments`` out of texts like name=value."""
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"--arg {pair!r} is invalid; give name=value")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = {"True": True, "False": False}.get(text, text)
    return values
