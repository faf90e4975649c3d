"""Difficulty of training rows: a row is hard for a stage that gets it wrong when held out.

The rows are split into folds. A copy of the stage, trained on the other folds, answers each fold.
This is repeated once per seed, so that each row has one held-out answer per seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from cascadebert.disk import write_text
from cascadebert.errors import ArtifactError, InputError
from cascadebert.rows.rows import Rows

Positions = NDArray[np.int64]
Answers = Callable[[Positions, Positions, int, int], NDArray[np.int64]]

_ROWS_FILE, _ABOUT_FILE = "difficulty.jsonl", "difficulty.json"

AGGREGATES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "all": lambda share: np.ceil(share),
    "majority": lambda share: (share >= 0.5).astype(np.float64),
    "graded": lambda share: share,
}
"""Functions from each row's share of wrong answers to its difficulty. ``all``: 0 (easy) if every
answer is right, else 1. ``majority``: 0 if more than half are right, else 1. ``graded``: the
share."""


@dataclass(frozen=True)
class Difficulty:
    """How hard each training row is for one stage.

    Attributes:
        wrong: whether the held-out answer was wrong, bool of shape (rows, seeds).
        aggregate: a name in :data:`AGGREGATES`.
        fingerprint: SHA-256 of the rows, the checkpoint and the settings.

    Examples:
        >>> Difficulty(np.array([[True, False], [False, False]]), "graded", "0" * 64).values
        array([0.5, 0. ])
    """

    wrong: NDArray[np.bool_]
    aggregate: str
    fingerprint: str

    @property
    def values(self) -> NDArray[np.float64]:
        """0 (easy) to 1 (hard), float64 of shape (rows,)."""
        return aggregate(self.wrong, self.aggregate)

    def save(self, folder: Path, rows: Rows) -> None:
        """Write one JSON line per row, and a file with the fingerprint.

        Args:
            folder: names the folder; it is created if needed.
            rows: gives the labels that are written beside the difficulties.

        Examples:
            >>> import tempfile
            >>> folder = Path(tempfile.mkdtemp())
            >>> made = Difficulty(np.array([[True], [False]]), "all", "0" * 64)
            >>> made.save(folder, Rows(["a", "b"], None, ["x", "y"]))
            >>> Difficulty.load(folder).values
            array([1., 0.])
        """
        labels: Sequence[str | None] = rows.labels or [None] * len(rows)
        lines = [
            json.dumps(
                {"row": i, "label": label, "difficulty": value, "wrong": wrong},
                ensure_ascii=False,
            )
            for i, (label, value, wrong) in enumerate(
                zip(labels, self.values.tolist(), self.wrong.tolist(), strict=True)
            )
        ]
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / _ROWS_FILE, "\n".join(lines) + "\n")
        about = {
            "fingerprint": self.fingerprint,
            "aggregate": self.aggregate,
            "rows": len(self.wrong),
            "seeds": self.wrong.shape[1],
            "wrong": float(self.wrong.mean()),
        }
        write_text(folder / _ABOUT_FILE, json.dumps(about, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Difficulty:
        """Read what :meth:`save` wrote.

        Raises:
            ArtifactError: a file is missing or damaged.
        """
        try:
            about = json.loads((folder / _ABOUT_FILE).read_text(encoding="utf-8"))
            with (folder / _ROWS_FILE).open(encoding="utf-8") as lines:
                wrong = np.array([json.loads(line)["wrong"] for line in lines], dtype=np.bool_)
            if wrong.shape != (about["rows"], about["seeds"]):
                raise ValueError(f"its shape is {wrong.shape}")
            return cls(wrong, about["aggregate"], about["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{folder}: unreadable difficulty ({error}); remove the folder and train again"
            ) from error


def aggregate(wrong: NDArray[np.bool_], how: str) -> NDArray[np.float64]:
    """Difficulty of each row from its held-out answers.

    Args:
        wrong: holds whether each answer is wrong, bool of shape (rows, seeds).
        how: names the function in :data:`AGGREGATES`.

    Returns:
        0 (easy) to 1 (hard), float64 of shape (rows,).

    Raises:
        InputError: ``how`` is unknown.

    Examples:
        >>> aggregate(np.array([[True, False], [False, False]]), "all")
        array([1., 0.])
    """
    if how not in AGGREGATES:
        raise InputError(f"unknown difficulty {how!r}; give one of {', '.join(AGGREGATES)}")
    return AGGREGATES[how](wrong.mean(axis=1, dtype=np.float64))


def cross_fit(
    labels: NDArray[Any],
    answers: Answers,
    *,
    folds: int = 3,
    seeds: Sequence[int] = (0,),
) -> NDArray[np.bool_]:
    """Find which rows a classifier gets wrong when they are held out.

    Args:
        labels: holds the class of each row, shape (rows,).
        answers: is called with the positions to train on, the positions to answer, the seed and
            the fold from 0. It returns a class for each position to answer.
        folds: sets the number of parts, shuffled and stratified by class.
        seeds: gives one shuffle, and one set of trainings, each.

    Returns:
        Whether each answer was wrong, bool of shape (rows, seeds).

    Raises:
        InputError: there are fewer than two folds, no seed, or a class with fewer rows than
            folds.

    Examples:
        >>> def most_common(train, held_out, seed, fold):
        ...     return np.full(len(held_out), np.bincount(labels[train]).argmax())
        >>> labels = np.array([0, 0, 0, 0, 1, 1])
        >>> cross_fit(labels, most_common, folds=2)[:, 0]
        array([False, False, False, False,  True,  True])
    """
    refuse_small_classes(labels, folds, len(seeds))
    wrong = np.zeros((len(labels), len(seeds)), dtype=np.bool_)
    for column, seed in enumerate(seeds):
        for fold, (train, held_out) in enumerate(split_folds(labels, folds, seed)):
            found = answers(train, held_out, seed, fold)
            wrong[held_out, column] = found != labels[held_out]
    return wrong


def split_folds(labels: NDArray[Any], folds: int, seed: int) -> list[tuple[Positions, Positions]]:
    """Positions outside and inside each fold, shuffled and stratified by class.

    Examples:
        >>> [len(held_out) for _, held_out in split_folds(np.array([0, 1] * 6), 3, seed=0)]
        [4, 4, 4]
    """
    folding = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return list(folding.split(np.zeros(len(labels)), labels))


def refuse_small_classes(labels: NDArray[Any], folds: int, seeds: int) -> None:
    """Check that every class has a row in every fold.

    Args:
        labels: holds the class of each row, shape (rows,).
        folds: sets the number of folds.
        seeds: sets the number of shuffles.

    Raises:
        InputError: there are fewer than two folds, no seed, or a class with fewer rows than
            folds.
    """
    refuse_few(folds, seeds)
    names, counts = np.unique(labels, return_counts=True)
    if counts.min() < folds:
        rare = counts.argmin()
        raise InputError(
            f"class {str(names[rare])!r} has {counts[rare]} rows, fewer than the {folds} folds of "
            "the difficulty; add rows of this class, or use fewer folds"
        )


def refuse_few(folds: int, seeds: int) -> None:
    """Check that there are two folds or more, and a seed.

    Raises:
        InputError: there are fewer.
    """
    if folds < 2 or seeds < 1:
        raise InputError(
            f"difficulty has {folds} folds and {seeds} seeds; give at least 2 folds and 1 seed"
        )
