"""CascadeTrainer: from labelled rows and pre-trained checkpoints to a tuned cascade.

A training is a list of parts: the last stage, its outputs on the training rows, the folds of every
other stage's difficulty, and the other stages. A finished part is kept under the fingerprint of
everything that it depends on, so that an interrupted training continues where it stopped.
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
"""Called with the current task and the share of the work done, 0 to 1."""

DEFAULT_OUTPUT = "cascadebert_output"
PARTS, DIFFICULTY, LOG_FILE = "parts", "difficulty", "log.txt"

logger = logging.getLogger("cascadebert.training")


class CascadeTrainer:
    """Trains, calibrates and tunes a cascade.

    Args:
        stages: names pre-trained checkpoints, small to large: folders, hub names, or "linear" for
            the linear stage.
        args: sets ``TrainingArguments`` of every stage; by default 3 epochs, with a learning rate
            by each encoder's width.
        train_dataset: gives labelled training rows: :class:`~cascadebert.Rows`, dicts or a data
            set of ``datasets``.
        eval_dataset: gives other labelled rows for calibration and thresholds.
        recipe: sets the loss and what it needs, see :class:`~cascadebert.Recipe`.
        target: sets one or more targets for the thresholds; by default an accuracy drop of at
            most 0.005.
        cost: names the cost: "seconds", "flops" or "layers", as in :meth:`Cascade.tune`.
        output_dir: names the folder for finished parts, difficulties and the log; by default
            ``args.output_dir``, or "cascadebert_output".
        callbacks: are passed to transformers' Trainer for every stage. A callback with a saved
            state (``ExportableState``, for example early stopping) is copied for each stage, and
            its arguments are part of the stage's fingerprint; other callbacks only observe.
        progress: is called with the current task and the share of the work done, 0 to 1.

    Attributes:
        labels: label names, sorted.
        policy: thresholds and certificate, after :meth:`train`.
        difficulties: difficulty by stage number, after :meth:`train` with the loss "dar".
        report: what was done and measured, as plain values, after :meth:`train`.

    Raises:
        InputError: rows, stages or settings are invalid; nothing has been trained then.
        ArtifactError: a checkpoint cannot be opened or has no tokenizer.

    Examples:
        >>> import tempfile
        >>> from cascadebert import Rows
        >>> texts = [f"{word} film {number}" for number in range(20) for word in ("good", "bad")]
        >>> labels = ["yes", "no"] * 20
        >>> trainer = CascadeTrainer(
        ...     ["linear"],
        ...     train_dataset=Rows(texts[:30], None, labels[:30]),
        ...     eval_dataset=Rows(texts[30:], None, labels[30:]),
        ...     cost="flops",
        ...     output_dir=tempfile.mkdtemp(),
        ... )
        >>> trainer.train().predict(["a good film"]).labels
        array(['yes'], dtype='<U3')
        >>> trainer.report["tuning"]["accuracy"]
        1.0
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
                "training needs rows to train on and other rows to calibrate and tune on; give "
                "train_dataset and eval_dataset"
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: a cascade is trained by one process on "
                "all visible GPUs; start it without torchrun or accelerate launch"
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
        """Train what is not finished, and build the cascade.

        Raises:
            TrainingError: a loss is not finite.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with _log_to(self._folder / LOG_FILE):
            start = time.perf_counter()
            self._run(list(self._plan()))
            self._keep_difficulties()
            stages = [*self._smaller, self._last]
            self._announce("exporting the stages", 1.0)
            quantise = self._recipe.quantise and len(self._job.train) >= FEWEST_ROWS
            if quantise != self._recipe.quantise:
                logger.info("too few training rows to quantise on (%d)", len(self._job.train))
            cascade = Cascade.from_stages(
                [stage.folder for stage in stages],
                names=[stage.source.name for stage in stages],
                rows=self._job.train,
                quantise=quantise,
            )
            self._announce("calibrating and tuning", 1.0)
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
        """SHA-256 of everything that the result depends on, in hexadecimal."""
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
            # Of linear stages too: their difficulty is reported, though not trained with.
            if self._recipe.objective.needs_difficulty:
                yield from stage.folds()
            if stage.objective.needs_teacher and stage.state_layers not in taught:
                taught.add(stage.state_layers)
                yield self._last.answering(stage)
            yield stage.training()

    def _run(self, tasks: Sequence[Task]) -> None:
        todo = [task for task in tasks if not self._parts.has(task.name, task.settings)]
        if len(todo) < len(tasks):
            logger.info("%d of %d parts are finished already", len(tasks) - len(todo), len(tasks))
        whole, before = sum(task.work for task in todo), 0.0
        for number, task in enumerate(todo, start=1):
            title = f"[{number}/{len(todo)}] {task.title}"
            self._announce(title, before / whole)
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

    def _announce(self, what: str, share: float) -> None:
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
            logger.info("%s: wrong on %.1f %% of the held-out rows", stage.title, share)

    def _refuse_unfit_settings(self) -> None:
        stages = len(self._smaller) + 1
        for number, settings in self._recipe.stage_arguments.items():
            unknown = sorted(set(settings) - set(TrainingArguments.__dataclass_fields__))
            if not 1 <= number <= stages or unknown:
                raise InputError(
                    f"stage_arguments has {dict(settings)} for stage {number}; give stages 1 to "
                    f"{stages}, and names as in transformers.TrainingArguments"
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
    """Remove trained stages and unfinished parts; keep logs, answers and difficulties.

    Args:
        folder: names the ``output_dir`` of a training.

    Examples:
        >>> remove_parts(Path("no-such-folder"))
    """
    Parts(folder / PARTS).remove_weights()


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Copy this package's log of trainings to a file."""
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
