"""How a cascade is trained, beside what ``TrainingArguments`` say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cascadebert.deferral.fit_calibration import refuse_unknown
from cascadebert.errors import InputError
from cascadebert.training.difficulty import aggregate, refuse_few
from cascadebert.training.objective import DEFAULT_LOSS, Objective

_FEWEST_TOKENS = 3


@dataclass(frozen=True)
class Recipe:
    """How a cascade is trained, beside what ``TrainingArguments`` say.

    Attributes:
        objective: the loss of every stage but the last, which has the label term of it alone.
        folds: parts that the training rows are cut into for difficulty.
        difficulty_seeds: how often every row is answered by a copy that has not seen it.
        difficulty: how those answers are put together: "all", "majority" or "graded".
        paired_batches: whether every batch of a stage with "dar" gets a pair.
        calibration: of every stage, on the validation rows: "temperature", "vector",
            "isotonic" or "none".
        quantise: whether stages may run in int8 or bfloat16, where answers stay those of fp32.
        max_length: tokens at which every transformer truncates, or fewer if it reads fewer.
        stage_arguments: ``TrainingArguments`` of single stages, by number from 1.

    Raises:
        InputError: a name that there is not, or too few folds or seeds.
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
        aggregate(np.zeros((1, 1), dtype=np.bool_), self.difficulty)
        refuse_unknown(self.calibration)
        if self.max_length < _FEWEST_TOKENS:
            raise InputError(
                f"max_length is {self.max_length}; give {_FEWEST_TOKENS} tokens or more"
            )
        refuse_few(self.folds, self.difficulty_seeds)
        if self.paired_batches and not self.objective.needs_difficulty:
            raise InputError(
                f"paired batches are for the loss 'dar', and the loss is {self.objective.name!r}; "
                "leave them out"
            )
