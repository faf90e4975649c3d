"""CascadeTrainer: labelled rows and pre-trained checkpoints to a tuned cascade.

A training is a list of parts: the last stage, what it says of the training rows, every fold of
every stage's difficulty, every other stage. Each is kept when it is done, by the fingerprint of
all that it depends on, so that a training which is cut off goes on where it was.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from cascadebert.cascade import Cascade
from cascadebert.deferral.search.policy import Policy
from cascadebert.deferral.targets import MaxDrop, Target
from cascadebert.errors import CascadeError, InputError
from cascadebert.export.quantisation import FEWEST_ROWS
from cascadebert.rows.rows import as_rows
from cascadebert.stages.costs import refuse_unknown_cost
from cascadebert.training.checks import checked_rows, checked_stages
from cascadebert.training.difficulty import Difficulty
from cascadebert.training.distillation import refuse_other_width
from cascadebert.training.parts import Parts, fingerprint, read_part
from cascadebert.training.recipe import Recipe
from cascadebert.training.stage_job import Job, StageJob, Task

PlanProgress = Callable[[str, float], object]
"""Called with what is being done, and the share of the whole that is done, 0 to 1."""

DEFAULT_OUTPUT = "cascadebert_output"
PARTS, DIFFICULTY, LOG_FILE = "parts", "difficulty", "log.txt"

logger = logging.getLogger("cascadebert.training")


class CascadeTrainer:
    """Trains the stages of a cascade, and calibrates and tunes it.

    Args:
        stages: pre-trained checkpoints, small to large: folders or hub names; "linear" for the
            linear stage.
        args: ``TrainingArguments`` of every stage. By default 3 epochs, with a learning rate by
            each encoder's width.
        train_dataset: labelled rows, see :func:`~cascadebert.rows.rows.as_rows`.
        eval_dataset: other labelled rows: the calibrations and thresholds come from them.
        recipe: the loss and what it needs.
        target: what the thresholds are chosen for, one or several at once; by default at most
            half a point of accuracy.
        cost: "seconds", "flops" or "layers", as in :meth:`Cascade.tune`.
        output_dir: where finished parts, difficulties and the log are kept; by default
            ``args.output_dir``, or "cascadebert_output".
        callbacks: for transformers' Trainer, of every stage. Those with a state to be saved
            (``ExportableState``, such as early stopping) are copied for each, and count among
            what a stage depends on; the others are taken to watch only.
        progress: called with what is being done and the share of the whole that is done.

    Attributes:
        labels: label names, sorted.
        policy: from tuning, after :meth:`train`.
        difficulties: by stage number, after :meth:`train` with the loss "dar".
        report: plain values of what was done and measured, after :meth:`train`.

    Raises:
        InputError: rows, stages or settings that cannot be trained with; nothing has been
            trained then.
        ArtifactError: a checkpoint that cannot be opened, or has no tokenizer.
    """

    def __init__(
        self,
        stages: Sequence[str | PathLike[str]],
        args: TrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        recipe: Recipe | None = None,
        target: Target | Sequence[Target] | None = None,
        cost: str = "seconds",
        output_dir: str | PathLike[str] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        progress: PlanProgress | None = None,
    ) -> None:
        if train_dataset is None or eval_dataset is None:
            raise InputError(
                "training needs rows to train on and other rows to calibrate and tune on; "
                "give train_dataset and eval_dataset"
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: a cascade is trained by one process, "
                "which uses all the GPUs that it sees; start it without torchrun or accelerate "
                "launch"
            )
        refuse_unknown_cost(cost)
        self._recipe = recipe or Recipe()
        train = as_rows(train_dataset, with_labels=True)
        validation = as_rows(eval_dataset, with_labels=True)
        needs_folds = self._recipe.objective.needs_difficulty
        self.labels = checked_rows(train, validation, self._recipe.folds if needs_folds else None)
        sources = checked_stages(
            [fspath(stage) for stage in stages], self.labels, self._recipe.max_length
        )
        self._target = MaxDrop(0.005) if target is None else target
        self._cost = cost
        self._progress = progress or (lambda _what, _share: None)
        self._folder = Path(output_dir or (args and args.output_dir) or DEFAULT_OUTPUT)
        self._parts = Parts(self._folder / PARTS)
        self._job = Job(
            train=train,
            validation=validation,
            labels=self.labels,
            recipe=self._recipe,
            args=args,
            callbacks=callbacks,
            parts=self._parts,
            rows_fingerprint=train.fingerprint(),
        )
        self._last = StageJob(self._job, sources[-1], None)
        self._smaller = [StageJob(self._job, source, self._last) for source in sources[:-1]]
        self._refuse_unfit_settings()
        self.policy: Policy | None = None
        self.difficulties: dict[int, Difficulty] = {}
        self.report: dict[str, Any] = {}

    def train(self) -> Cascade:
        """Do whatever is not done yet, and make the cascade.

        Raises:
            TrainingError: a loss that is not finite.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with _log_to(self._folder / LOG_FILE):
            start = time.perf_counter()
            self._run(list(self._plan()))
            self._keep_difficulties()
            stages = [*self._smaller, self._last]
            self._tell("exporting the stages", 1.0)
            quantise = self._recipe.quantise and len(self._job.train) >= FEWEST_ROWS
            if quantise != self._recipe.quantise:
                logger.info("too few training rows to quantise on (%d)", len(self._job.train))
            cascade = Cascade.from_stages(
                [stage.folder for stage in stages],
                names=[stage.source.name for stage in stages],
                rows=self._job.train,
                quantise=quantise,
            )
            self._tell("calibrating and tuning", 1.0)
            cascade.tune(
                self._job.validation,
                self._target,
                confidence=None,
                cost=self._cost,
                calibration=self._recipe.calibration,
            )
            assert cascade.policy is not None
            self.policy = cascade.policy
            self.report = self._describe(cascade, cascade.policy)
            logger.info("done in %.0f s", time.perf_counter() - start)
        return cascade

    def fingerprint(self) -> str:
        """SHA-256 of everything that the result depends on."""
        return fingerprint(
            {
                "parts": [[task.name, dict(task.settings)] for task in self._plan()],
                "validation": self._job.validation.fingerprint(),
                "calibration": self._recipe.calibration,
                "quantise": self._recipe.quantise,
                "target": repr(self._target),
                "cost": self._cost,
            }
        )

    def _plan(self) -> Iterator[Task]:
        yield self._last.training()
        taught = set()
        for stage in self._smaller:
            # Of a linear stage too, though it does not learn from it: others may ask.
            if self._recipe.objective.needs_difficulty:
                yield from stage.folds()
            if stage.objective.needs_teacher and stage.state_layers not in taught:
                taught.add(stage.state_layers)
                yield self._last.answering(stage)
            yield stage.training()

    def _run(self, tasks: Sequence[Task]) -> None:
        todo = [task for task in tasks if not self._parts.has(task.name, task.settings)]
        if len(todo) < len(tasks):
            logger.info("%d of %d parts are done already", len(tasks) - len(todo), len(tasks))
        whole, before = sum(task.work for task in todo), 0.0
        for number, task in enumerate(todo, start=1):
            title = f"[{number}/{len(todo)}] {task.title}"
            self._tell(title, before / whole)
            seconds = self._do(task, title, before / whole, task.work / whole)
            logger.info("[%d/%d] done in %.0f s", number, len(todo), seconds)
            before += task.work

    def _do(self, task: Task, title: str, start: float, share: float) -> float:
        def advance(done: float) -> None:
            self._progress(title, start + done * share)

        def make(result: Path, scratch: Path) -> None:
            task.make(result, scratch, advance)

        try:
            folder = self._parts.run(task.name, task.settings, make)
        except CascadeError as error:
            logger.error("%s", error)
            raise type(error)(f"{task.title}: {error}") from None
        return read_part(folder).seconds

    def _tell(self, what: str, share: float) -> None:
        logger.info("%s", what)
        self._progress(what, share)

    def _keep_difficulties(self) -> None:
        if not self._recipe.objective.needs_difficulty:
            return
        for stage in self._smaller:
            difficulty = stage.difficulty()
            self.difficulties[stage.source.number] = difficulty
            name = f"{stage.source.name}-{difficulty.fingerprint[:16]}"
            difficulty.save(self._folder / DIFFICULTY / name, self._job.train)
            share = 100 * difficulty.wrong.mean()
            logger.info("%s: wrong on %.1f %% of the rows it had not seen", stage.title, share)

    def _refuse_unfit_settings(self) -> None:
        stages = len(self._smaller) + 1
        for number, settings in self._recipe.stage_arguments.items():
            unknown = sorted(set(settings) - set(TrainingArguments.__dataclass_fields__))
            if not 1 <= number <= stages or unknown:
                raise InputError(
                    f"stage_arguments has {dict(settings)} for stage {number}; there are stages 1 "
                    f"to {stages}, and names as in transformers.TrainingArguments"
                )
        for stage in (*self._smaller, self._last):
            stage.refuse_unfit_arguments()
        self._recipe.objective.refuse_other_classes(self.labels)
        for stage in self._smaller:
            if stage.state_layers:
                refuse_other_width(stage.source.width, self._last.source.width, stage.source.name)

    def _describe(self, cascade: Cascade, policy: Policy) -> dict[str, Any]:
        tasks = list(self._plan())
        parts = [read_part(self._parts.path(task.name, task.settings)) for task in tasks]
        calibrations = [stage.record.calibration for stage in cascade.stages]
        return {
            "fingerprint": self.fingerprint(),
            "loss": self._recipe.objective.settings(),
            "labels": self.labels,
            "rows": len(self._job.train),
            "validation_rows": len(self._job.validation),
            "parts": [
                {"title": task.title, "seconds": part.seconds, "resumed": part.resumed}
                for task, part in zip(tasks, parts, strict=True)
            ],
            "wrong_when_held_out": {
                str(number): float(difficulty.wrong.mean())
                for number, difficulty in self.difficulties.items()
            },
            "calibration": [
                None if calibration is None else asdict(calibration)  # type: ignore[call-overload]
                for calibration in calibrations
            ],
            "tuning": policy.summary(),
        }


def remove_parts(folder: Path) -> None:
    """Remove trained stages and whatever is unfinished; logs, answers and difficulties stay."""
    Parts(folder / PARTS).remove_weights()


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Let this package's log of trainings go to a file too."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
