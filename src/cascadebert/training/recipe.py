"""How a cascade is trained, beyond ``TrainingArguments``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cascadebert.deferral.fit_calibration import refuse_unknown
from cascadebert.errors import InputError
from cascadebert.training.difficulty import aggregate, refuse_few
from cascadebert.training.losses import python_value
from cascadebert.training.objective import DEFAULT_LOSS, Objective

_FEWEST_TOKENS = 3


@dataclass(frozen=True)
class Recipe:
    """How a cascade is trained, beyond ``TrainingArguments``.

    Attributes:
        objective: loss of every stage but the last, which is trained with its label term alone.
        folds: number of parts that the training rows are split into for difficulty.
        difficulty_seeds: number of held-out answers per row.
        difficulty: how these become a difficulty: "all", "majority" or "graded".
        paired_batches: whether every batch holds rows of two difficulties; for the loss "dar".
        calibration: calibration of every stage on the validation rows: "temperature", "vector",
            "isotonic" or "none".
        quantise: whether a stage may run in int8 or bfloat16 if its answers stay those of fp32.
        max_length: maximum tokens per row, or fewer if an encoder has fewer positions.
        stage_arguments: ``TrainingArguments`` of single stages, by number from 1.

    Raises:
        InputError: a name is unknown, a number is not whole or out of its range, or
            ``paired_batches`` is set without the loss "dar".

    Examples:
        >>> Recipe(Objective("dar"), folds=5, stage_arguments={2: {"num_train_epochs": 4}}).folds
        5
    """

    objective: Objective = field(default_factory=lambda: Objective(DEFAULT_LOSS))
    folds: int = 3
    difficulty_seeds: int = 1
    difficulty: str = "graded"
    paired_batches: bool = False
    calibration: str = "temperature"
    quantise: bool = True
    max_length: int = 128
    stage_arguments: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("paired_batches", "quantise", "folds", "difficulty_seeds", "max_length"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        for name in ("difficulty", "calibration"):
            object.__setattr__(self, name, str(getattr(self, name)))
        stage_arguments = {
            python_value(number): {name: python_value(value) for name, value in arguments.items()}
            for number, arguments in self.stage_arguments.items()
        }
        object.__setattr__(self, "stage_arguments", stage_arguments)
        aggregate(np.zeros((1, 1), dtype=np.bool_), self.difficulty)
        refuse_unknown(self.calibration)
        if self.max_length < _FEWEST_TOKENS:
            raise InputError(
                f"max_length is {self.max_length}; give at least {_FEWEST_TOKENS} tokens"
            )
        refuse_few(self.folds, self.difficulty_seeds)
        if self.paired_batches and not self.objective.needs_difficulty:
            raise InputError(
                f"paired_batches needs the loss 'dar', not {self.objective.name!r}; unset it"
            )


def _whole(name: str, value: Any) -> int:
    number = python_value(value)
    if not isinstance(number, int):
        raise InputError(f"{name} is {number!r}; give a whole number")
    return number
