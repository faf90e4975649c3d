"""The training of one stage, as a sequence of tasks."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import fspath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_callback import ExportableState

from cascadebert.errors import ArtifactError, InputError, first_line
from cascadebert.rows.rows import Rows
from cascadebert.training.checks import StageSource
from cascadebert.training.difficulty import Difficulty, Positions, cross_fit, split_folds
from cascadebert.training.fine_tuning import default_arguments, fine_tune
from cascadebert.training.linear import fit_linear, linear_outputs
from cascadebert.training.objective import Objective
from cascadebert.training.outputs import Outputs, outputs_of
from cascadebert.training.parts import Parts, fingerprint
from cascadebert.training.recipe import Recipe
from cascadebert.training.sampling import ORDERS

DEFAULT_EPOCHS = 3.0

_BASE_LEARNING_RATE, _BASE_WIDTH, _WIDTH_EXPONENT = 3e-5, 768, 1.5
_BACKWARD = 3.0
_LOGITS, _STATES, _ANSWERS = "logits.npy", "states.npy", "answers.npy"

_ABOVE_ZERO = 1e-300
_LEAST = {
    "num_train_epochs": _ABOVE_ZERO,
    "learning_rate": _ABOVE_ZERO,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "seed": 0,
}

# Arguments that do not change the result of a training.
_NO_INFLUENCE = {
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "disable_tqdm",
    "hub_model_id",
    "hub_strategy",
    "hub_token",
    "log_level",
    "log_level_replica",
    "logging_dir",
    "logging_first_step",
    "logging_steps",
    "logging_strategy",
    "output_dir",
    "push_to_hub",
    "report_to",
    "resume_from_checkpoint",
    "run_name",
    "save_only_model",
    "save_steps",
    "save_strategy",
    "save_total_limit",
}

Advance = Callable[[float], object]
"""Called with the share of a task that is done, 0 to 1."""


@dataclass(frozen=True)
class Task:
    """One part of a training.

    Attributes:
        title: description for people.
        name: beginning of the folder's name.
        settings: everything that the result depends on.
        work: estimated floating point operations.
        make: function that does the task. It gets a folder for the result, a scratch folder that
            survives interruptions, and a function to report progress to.

    Examples:
        >>> task = Task("stage 1: training", "small", {"seed": 0}, 1e9, lambda *_: None)
        >>> task.settings["seed"]
        0
    """

    title: str
    name: str
    settings: Mapping[str, Any]
    work: float
    make: Callable[[Path, Path, Advance], object]


@dataclass(frozen=True)
class Job:
    """What all stages of one training share.

    Attributes:
        train: training rows with labels.
        validation: held-out rows with labels.
        labels: label names in the order of the logits.
        recipe: the loss and what it needs.
        args: ``TrainingArguments`` of every stage, or None for the defaults.
        callbacks: callbacks of transformers' Trainer.
        parts: the folder of finished parts.
        rows_fingerprint: SHA-256 of ``train``.
    """

    train: Rows
    validation: Rows
    labels: list[str]
    recipe: Recipe
    args: TrainingArguments | None
    callbacks: Sequence[TrainerCallback]
    parts: Parts
    rows_fingerprint: str


class StageJob:
    """The tasks of one stage.

    Args:
        job: gives what all stages share.
        source: describes the checkpoint.
        teacher: gives the last stage; None makes this the last stage.
    """

    def __init__(self, job: Job, source: StageSource, teacher: StageJob | None) -> None:
        self.source = source
        self._job = job
        self._teacher = teacher
        # The last stage defers no rows; a linear stage is fitted by scikit-learn.
        objective = job.recipe.objective
        self.objective = objective.plain() if teacher is None or source.is_linear else objective

    @property
    def title(self) -> str:
        """Number and name of the stage, for people."""
        return f"stage {self.source.number} {self.source.name}"

    @property
    def folder(self) -> Path:
        """Folder of the trained stage, once :meth:`training` is done."""
        return self._path(self.training())

    def training(self) -> Task:
        """The training of the stage itself."""
        return Task(
            title=f"{self.title}: training",
            name=self.source.name,
            settings=self._settings(),
            work=self._training_work(len(self._job.train)),
            make=self._train,
        )

    def answering(self, student: StageJob) -> Task:
        """The outputs of this stage on the training rows, as a student needs them."""
        layers = student.state_layers
        return Task(
            title=f"{self.title}: answering the training rows",
            name=f"{self.source.name}-answers",
            settings={"stage": self._settings(), "layers": layers},
            work=self.source.flops * len(self._job.train),
            make=lambda result, _scratch, advance: self._answer(layers, result, advance),
        )

    def folds(self) -> Iterator[Task]:
        """The held-out answers that :meth:`difficulty` is computed from."""
        recipe = self._job.recipe
        for seed in range(recipe.difficulty_seeds):
            for fold in range(recipe.folds):
                yield self._fold(seed, fold)

    def difficulty(self) -> Difficulty:
        """Difficulty of the training rows for this stage, once :meth:`folds` are done.

        Raises:
            ArtifactError: a finished fold holds answers to other rows.
        """
        recipe = self._job.recipe
        seeds = range(recipe.difficulty_seeds)
        wrong = cross_fit(self._label_ids(), self._fold_answers, folds=recipe.folds, seeds=seeds)
        settings = [dict(task.settings) for task in self.folds()]
        return Difficulty(wrong, recipe.difficulty, fingerprint({"folds": settings}))

    @property
    def state_layers(self) -> int:
        """Number of layers whose hidden states are matched with the last stage's."""
        return self.source.layers if self.objective.needs_states else 0

    def refuse_unfit_arguments(self) -> None:
        """Check the values of ``TrainingArguments``.

        Raises:
            InputError: ``TrainingArguments`` rejects a value, or a value is out of its range.
        """
        try:
            arguments = self._arguments(Path())
            reporters = get_reporting_integration_callbacks(arguments.report_to)  # type: ignore[no-untyped-call]
            for reporter in reporters:
                reporter()
        except (TypeError, ValueError, ImportError, RuntimeError) as error:
            raise InputError(
                f"{self.title}: TrainingArguments rejects {dict(self._own_arguments())} "
                f"({first_line(error)}); fix these values"
            ) from None
        for name, least in _LEAST.items():
            value = getattr(arguments, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and least <= value < float("inf")):
                what = "a number above 0" if least == _ABOVE_ZERO else f"{least} or more"
                raise InputError(f"{self.title}: {name} is {value!r}; give {what}")
        if str(arguments.train_sampling_strategy) not in ORDERS:
            raise InputError(
                f"{self.title}: train_sampling_strategy is {arguments.train_sampling_strategy!r}; "
                f"give one of {', '.join(ORDERS)}"
            )
        if self._job.recipe.paired_batches and arguments.per_device_train_batch_size == 1:
            raise InputError(
                f"{self.title}: a batch of 1 row has no pair; use batches of at least 2 rows"
            )

    # What the results depend on.

    def _settings(self) -> dict[str, Any]:
        settings = self._base_settings() | {"objective": self.objective.settings()}
        if self.objective.needs_difficulty:
            settings["folds"] = [fingerprint(task.settings) for task in self.folds()]
            settings["difficulty"] = self._job.recipe.difficulty
            settings["paired_batches"] = self._job.recipe.paired_batches
        if self.objective.needs_teacher and self._teacher:
            settings["teacher"] = fingerprint(self._teacher.training().settings)
        return settings

    def _base_settings(self) -> dict[str, Any]:
        """What every training of the stage depends on, with any loss."""
        values: dict[str, Any] = {}
        if not self.source.is_linear:
            values = self._arguments(Path()).to_dict()  # type: ignore[no-untyped-call]
        return {
            "rows": self._job.rows_fingerprint,
            "checkpoint": self.source.fingerprint,
            "max_length": self.source.max_length,
            "arguments": {k: v for k, v in values.items() if k not in _NO_INFLUENCE},
            **self._selection(values),
        }

    def _selection(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What decides which checkpoint of a training is kept, if one is chosen."""
        # A callback with a state may stop a training; the others only observe it.
        stopping = [c for c in self._job.callbacks if isinstance(c, ExportableState)]
        if self.source.is_linear or not (stopping or arguments["load_best_model_at_end"]):
            return {}
        return {
            "validation": self._job.validation.fingerprint(),
            "saving": [arguments["save_strategy"], arguments["save_steps"]],
            "callbacks": [[type(c).__qualname__, c.state()["args"]] for c in stopping],
        }

    def _arguments(self, output: Path) -> TrainingArguments:
        if self.source.is_linear:
            return default_arguments(output)
        own = self._own_arguments()
        if self._job.args is not None:
            given = dataclasses.replace(self._job.args, **own) if own else copy.copy(self._job.args)
            given.output_dir = fspath(output)
            return given
        rate = _BASE_LEARNING_RATE * (_BASE_WIDTH / self.source.width) ** _WIDTH_EXPONENT
        defaults = {"num_train_epochs": DEFAULT_EPOCHS, "learning_rate": rate}
        return default_arguments(output, **defaults | dict(own))

    def _own_arguments(self) -> Mapping[str, Any]:
        return self._job.recipe.stage_arguments.get(self.source.number, {})

    def _training_work(self, rows: int) -> float:
        if self.source.is_linear:
            return self.source.flops * rows
        return _BACKWARD * self.source.flops * rows * self._arguments(Path()).num_train_epochs

    def _path(self, task: Task) -> Path:
        return self._job.parts.path(task.name, task.settings)

    # The tasks themselves.

    def _train(self, result: Path, scratch: Path, advance: Advance) -> None:
        objective, teacher = self.objective, None
        if objective.needs_teacher and self._teacher:
            folder = self._path(self._teacher.answering(self))
            states = np.load(folder / _STATES) if self.state_layers else None
            teacher = Outputs(np.load(folder / _LOGITS), states)
        self._fit(
            self._job.train,
            result,
            scratch,
            advance,
            objective=objective,
            difficulty=self.difficulty().values if objective.needs_difficulty else None,
            teacher=teacher,
            paired_batches=self._job.recipe.paired_batches and objective.needs_difficulty,
        )

    def _fit(
        self,
        rows: Rows,
        output: Path,
        scratch: Path,
        advance: Advance,
        *,
        objective: Objective,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        labels = self._job.labels
        if self.source.is_linear:
            weights = objective.cross_entropy.class_weights
            fit_linear(rows, output, labels=labels, class_weights=weights)
            return
        arguments = self._arguments(scratch)
        arguments.seed += seed
        fine_tune(
            self.source.checkpoint,
            rows,
            output,
            labels=labels,
            objective=objective,
            eval_rows=self._job.validation,
            max_length=self.source.max_length,
            args=arguments,
            resume=True,
            progress=_shares(advance, len(rows) * arguments.num_train_epochs),
            # State, for example of early stopping, must not carry over to the next training.
            callbacks=[
                copy.deepcopy(callback) if isinstance(callback, ExportableState) else callback
                for callback in self._job.callbacks
            ],
            **settings,
        )

    def _outputs(self, folder: Path, rows: Rows, **settings: Any) -> Outputs:
        if self.source.is_linear:
            return linear_outputs(folder, rows)
        return outputs_of(folder, rows, max_length=self.source.max_length, **settings)

    def _answer(self, layers: int, result: Path, advance: Advance) -> None:
        rows = self._job.train
        progress = _shares(advance, len(rows))
        out = self._outputs(self.folder, rows, state_layers=layers, progress=progress)
        np.save(result / _LOGITS, out.logits)
        if out.states is not None:
            np.save(result / _STATES, out.states)

    def _fold_answers(
        self, _train: Positions, held_out: Positions, seed: int, fold: int
    ) -> NDArray[np.int64]:
        path = self._path(self._fold(seed, fold)) / _ANSWERS
        rows, answers = np.load(path)
        if not np.array_equal(rows, held_out):
            raise ArtifactError(
                f"{path.parent}: holds answers to other rows; remove this folder and train again"
            )
        return np.asarray(answers, dtype=np.int64)

    def _fold(self, seed: int, fold: int) -> Task:
        recipe = self._job.recipe
        objective = recipe.objective.plain()
        settings = {"objective": objective.settings(), "folds": recipe.folds}

        def make(result: Path, scratch: Path, advance: Advance) -> None:
            rows = self._job.train
            train, held_out = split_folds(self._label_ids(), recipe.folds, seed)[fold]
            copied = scratch / "copy"
            self._fit(
                rows.take(train),
                copied,
                scratch,
                advance,
                objective=objective,
                seed=seed,
                row_numbers=train.tolist(),
            )
            found = self._outputs(copied, rows.take(held_out)).logits.argmax(axis=1)
            np.save(result / _ANSWERS, np.stack([held_out, found]))

        return Task(
            title=f"{self.title}: difficulty, fold {fold + 1} of {recipe.folds}, "
            f"seed {seed + 1} of {recipe.difficulty_seeds}",
            name=f"{self.source.name}-fold-{seed}-{fold}",
            settings=self._base_settings() | settings | {"fold_seed": seed, "fold": fold},
            work=self._training_work(round(len(self._job.train) * (1 - 1 / recipe.folds))),
            make=make,
        )

    def _label_ids(self) -> NDArray[np.int64]:
        ids = {name: i for i, name in enumerate(self._job.labels)}
        return np.array([ids[label] for label in self._job.train.labels or ()], dtype=np.int64)


def _shares(advance: Advance, whole: float) -> Callable[[int], None]:
    """A function that turns counts of rows into shares of ``whole``."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        advance(min(done / max(whole, 1), 1.0))

    return count
