"""Train the small stages with every loss, on five data sets.

    CASCADEBERT_DATA=... python benchmarks/train_small_stages.py [--tasks sst2 ...] [--jobs 2]

Trains MiniLM-L3 and MiniLM-L6 with every loss and seed under one MPNet per task (made by
``train_plain_stages.py``), and keeps the logits on the validation and test rows as parts in
``checkpoints/training``. Parts that exist are not trained again. ``training_scores.py`` makes the
tables.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import common
from cascadebert.rows.files import read_rows
from cascadebert.rows.rows import Rows
from cascadebert.training.difficulty import aggregate, cross_fit
from cascadebert.training.fine_tuning import fine_tune, label_order
from cascadebert.training.objective import Objective
from cascadebert.training.outputs import Outputs, outputs_of
from cascadebert.training.parts import Parts, checkpoint_fingerprint
from train_plain_stages import training_rows

PARTS = Parts(common.CHECKPOINTS / "training")
ENCODERS = ("MiniLM-L3", "MiniLM-L6")
LOSSES = ("cross_entropy", "dar", "distillation", "dar+distillation", "gatekeeper")
SEEDS = (0, 1, 2)
# Parts of "dar" are not named by these, nor what is distilled by its teacher: remove them when that
# changes.
FOLDS, DIFFICULTY_SEEDS = 3, (0,)
MAX_LENGTH = 128

# (training rows at most, epochs, learning rate) of the small stages.
RECIPES = {
    "mrpc": (3_668, 3, 1e-4),
    "snli": (8_341, 2, 1e-4),
    "sst2": (12_000, 2, 1e-4),
    "clinc150": (15_000, 3, 3e-4),
    "agnews": (8_500, 1, 1e-4),
}
Cell = tuple[str, str, str, int]


def cells(tasks: list[str]) -> Iterator[Cell]:
    """Every training, the cheap ones and whole data sets first."""
    for seed, task in itertools.product(SEEDS, tasks):
        for encoder, loss in itertools.product(ENCODERS, LOSSES):
            yield task, encoder, loss, seed


def run_cell(cell: Cell) -> Path:
    """The logits of one small stage on validation and test rows."""

    def make(result: Path, scratch: Path) -> None:
        save_logits(result, train_stage(cell, scratch / "model"), cell[0])

    return PARTS.run(*cell_part(cell), make)


def train_stage(cell: Cell, output: Path) -> Path:
    """One small stage, trained; the checkpoint that it is."""
    task, encoder, loss, seed = cell
    train = training_rows(task, RECIPES[task][0])
    objective = Objective(loss)
    wrong = difficulty(task, encoder, train) if objective.needs_difficulty else None
    teacher = teaching(task, train)[0] if objective.needs_teacher else None
    return fine_tune(
        common.CHECKPOINTS / "pretrained" / encoder,
        train,
        output,
        objective=objective,
        difficulty=None if wrong is None else aggregate(wrong, "graded"),
        teacher=teacher,
        max_length=MAX_LENGTH,
        **arguments(task, seed),
    )


def cell_part(cell: Cell) -> tuple[str, dict[str, Any]]:
    """Name and settings of the part that a cell is kept as."""
    task, encoder, loss, seed = cell
    settings = Objective(loss).settings() | recipe(task, encoder) | {"seed": seed}
    return f"{task}-{encoder}-{loss}-{seed}", settings


def difficulty(task: str, encoder: str, train: Rows) -> np.ndarray:
    """Wrong answers of copies that had not seen the row, (rows, seeds)."""
    names = label_order(train, None)
    truth = np.array([names.index(label) for label in train.labels or ()])

    def answers(seen: np.ndarray, unseen: np.ndarray, seed: int, fold: int) -> np.ndarray:
        def make(result: Path, scratch: Path) -> None:
            checkpoint = fine_tune(
                common.CHECKPOINTS / "pretrained" / encoder,
                train.take(seen),
                scratch / "model",
                labels=names,
                max_length=MAX_LENGTH,
                **arguments(task, seed),
            )
            out = outputs_of(checkpoint, train.take(unseen), max_length=MAX_LENGTH)
            np.save(result / "logits.npy", out.logits)

        settings = recipe(task, encoder) | {"folds": FOLDS, "fold": fold, "seed": seed}
        part = PARTS.run(f"{task}-{encoder}-fold-{seed}-{fold}", settings, make)
        return np.load(part / "logits.npy").argmax(axis=1)

    return cross_fit(truth, answers, folds=FOLDS, seeds=DIFFICULTY_SEEDS)


def teaching(task: str, train: Rows) -> tuple[Outputs, float]:
    """What MPNet says of the training rows, and the seconds of one core that took."""
    whole = whole_of(task)
    settings = {"task": task, "rows": train.fingerprint(), "made_of": known(whole)}

    def make(result: Path, _: Path) -> None:
        start = common.core_seconds()
        out = outputs_of(whole, train, max_length=MAX_LENGTH)
        spent = common.core_seconds() - start
        np.savez(result / "teacher.npz", logits=out.logits, core_seconds=spent)

    part = PARTS.run(f"{task}-teacher", settings, make)
    found = np.load(part / "teacher.npz")
    return Outputs(found["logits"]), float(found["core_seconds"])


def last_stage(task: str) -> dict[str, np.ndarray]:
    """MPNet's logits on the validation and test rows."""
    whole = whole_of(task)

    def make(result: Path, _: Path) -> None:
        save_logits(result, whole, task)

    part = PARTS.run(f"{task}-MPNet", {"task": task, "made_of": known(whole)}, make)
    return dict(np.load(part / "logits.npz"))


def whole_of(task: str) -> Path:
    """Where the last stage, MPNet, lies."""
    return common.CHECKPOINTS / task / "MPNet"


@functools.cache
def known(checkpoint: Path) -> str:
    """What a checkpoint is told from others by."""
    return checkpoint_fingerprint(checkpoint)


def save_logits(result: Path, checkpoint: Path, task: str) -> None:
    """Logits on the validation and test rows."""
    folder = common.data_folder(task)
    logits = {
        name: outputs_of(
            checkpoint, read_rows(folder / f"{name}.jsonl"), max_length=MAX_LENGTH
        ).logits
        for name in ("validation", "test")
    }
    np.savez(result / "logits.npz", **logits)


def recipe(task: str, encoder: str) -> dict[str, Any]:
    """What identifies a training beside its loss."""
    rows, epochs, learning_rate = RECIPES[task]
    return {"task": task, "encoder": encoder, "rows": rows, "epochs": epochs, "lr": learning_rate}


def arguments(task: str, seed: int) -> dict[str, Any]:
    _, epochs, learning_rate = RECIPES[task]
    return {"num_train_epochs": epochs, "learning_rate": learning_rate, "seed": seed}


def prepare(job: tuple[str, str]) -> None:
    """What several cells of a task read: the last stage's logits, a stage's difficulty."""
    task, encoder = job
    train = training_rows(task, RECIPES[task][0])
    if encoder == "MPNet":
        last_stage(task)
        teaching(task, train)
    else:
        difficulty(task, encoder, train)


def run(tasks: list[str], jobs: int) -> None:
    """Train all that is not there yet, ``jobs`` at a time."""
    with common.side_by_side(jobs) as pool:
        shared = itertools.product(tasks, (*ENCODERS, "MPNet"))
        list(pool.map(prepare, shared))
        for path in pool.map(run_cell, cells(tasks)):
            print(path.name, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    run(options.tasks, options.jobs)


if __name__ == "__main__":
    main()
