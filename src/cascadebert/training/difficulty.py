"""Which training rows are hard for a stage: those it gets wrong when it has not seen them.

The rows are cut into folds; a copy of the stage that is trained on the others answers each
fold. That is done once for every seed, so that every row is answered by as many copies as there
are seeds, none of which has seen it.
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
"""From each row's share of wrong answers to its difficulty. ``all``: easy (0) are rows that
every copy answers right. ``majority``: easy are rows that more than half answer right.
``graded``: the share of wrong answers."""


@dataclass(frozen=True)
class Difficulty:
    """How hard each training row is for one stage.

    Attributes:
        wrong: whether the copy that had not seen the row was wrong, bool (rows, seeds).
        aggregate: name in :data:`AGGREGATES`.
        fingerprint: of the rows, the checkpoint and the settings that it was made with.
    """

    wrong: NDArray[np.bool_]
    aggregate: str
    fingerprint: str

    @property
    def values(self) -> NDArray[np.float64]:
        """0 (easy) to 1 (hard), float64 of shape (rows,)."""
        return aggregate(self.wrong, self.aggregate)

    def save(self, folder: Path, rows: Rows) -> None:
        """Write a line a row, with its label and column ``difficulty``, and what they are of."""
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
            ArtifactError: the files are missing or damaged.
        """
        try:
            about = json.loads((folder / _ABOUT_FILE).read_text(encoding="utf-8"))
            with (folder / _ROWS_FILE).open(encoding="utf-8") as lines:
                wrong = np.array([json.loads(line)["wrong"] for line in lines], dtype=np.bool_)
            if wrong.shape != (about["rows"], about["seeds"]):
                raise ValueError(f"it has the shape {wrong.shape}")
            return cls(wrong, about["aggregate"], about["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{folder}: not a difficulty that can be read ({error}); remove it and train again"
            ) from error


def aggregate(wrong: NDArray[np.bool_], how: str) -> NDArray[np.float64]:
    """Difficulty of each row from wrong answers of shape (rows, seeds).

    Raises:
        InputError: ``how`` is not a name in :data:`AGGREGATES`.
    """
    if how not in AGGREGATES:
        raise InputError(f"no aggregate is called {how!r}; there are {', '.join(AGGREGATES)}")
    return AGGREGATES[how](wrong.mean(axis=1, dtype=np.float64))


def cross_fit(
    labels: NDArray[Any],
    answers: Answers,
    *,
    folds: int = 3,
    seeds: Sequence[int] = (0,),
) -> NDArray[np.bool_]:
    """Answer every row once a seed with a classifier that has not seen it.

    Args:
        labels: class of each row, shape (rows,).
        answers: called with the positions to train on, the positions to answer, the seed and
            the number of the fold from 0; returns a class for each position to answer.
        folds: parts that the rows are cut into, shuffled, with like shares of every class.
        seeds: one shuffle and one set of trainings for each.

    Returns:
        Whether the answer was wrong, bool of shape (rows, seeds).

    Raises:
        InputError: fewer than two folds, no seed, or a class with fewer rows than folds.
    """
    refuse_small_classes(labels, folds, len(seeds))
    wrong = np.zeros((len(labels), len(seeds)), dtype=np.bool_)
    for column, seed in enumerate(seeds):
        for fold, (seen, unseen) in enumerate(cut(labels, folds, seed)):
            wrong[unseen, column] = answers(seen, unseen, seed, fold) != labels[unseen]
    return wrong


def cut(labels: NDArray[Any], folds: int, seed: int) -> list[tuple[Positions, Positions]]:
    """For each fold the positions outside and inside it."""
    folding = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return list(folding.split(np.zeros(len(labels)), labels))


def refuse_small_classes(labels: NDArray[Any], folds: int, seeds: int) -> None:
    """Refuse rows that cannot be cut into so many folds.

    Raises:
        InputError: fewer than two folds, no seed, or a class with fewer rows than folds.
    """
    refuse_few(folds, seeds)
    names, counts = np.unique(labels, return_counts=True)
    if counts.min() < folds:
        rare = counts.argmin()
        raise InputError(
            f"class {str(names[rare])!r} has {counts[rare]} rows, fewer than the {folds} folds "
            "that difficulty needs; add rows of it, or use fewer folds"
        )


def refuse_few(folds: int, seeds: int) -> None:
    """Refuse fewer than two folds, or no seed.

    Raises:
        InputError: with what was asked for.
    """
    if folds < 2 or seeds < 1:
        raise InputError(
            f"difficulty with {folds} folds and {seeds} seeds is not possible; "
            "give 2 folds or more and 1 seed or more"
        )
