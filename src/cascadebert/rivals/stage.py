"""Rivals that answer every row, as stages of a cascade.

Build the cascade with the checkpoint that the rival comes from in its place, and change it before
tuning::

    cascade = Cascade.from_stages(["small", "large", "large"])
    first, second, last = cascade.stages
    cascade.stages = (first, as_stage(second, pruned, "pruned"), last)
    cascade.tune(rows, MaxDrop(0.01))
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch

from cascadebert.errors import LabelMismatchError
from cascadebert.runtimes.torch import ModelRuntime
from cascadebert.stage import TransformerStage
from cascadebert.training.checkpoints import own_labels
from cascadebert.training.export import model_cost
from cascadebert.training.outputs import bf16_is_fast


def as_stage(stage: TransformerStage, model: Any, name: str) -> TransformerStage:
    """A stage that reads rows as another does and is answered by a model in memory.

    Args:
        stage: a stage with the model's tokenizer and labels, such as that of the checkpoint which
            the model was made from.
        model: a classifier, for instance a shrunk one, or one with experts; in fp32. It runs in
            bfloat16 where that is fast. It cannot be saved with the cascade.
        name: of the stage.

    Raises:
        LabelMismatchError: the model's labels are others, or in another order.
    """
    if own_labels(model.config) != list(stage.record.labels):
        raise LabelMismatchError(
            f"the model's labels are {own_labels(model.config)} and those of stage "
            f"'{stage.name}' {list(stage.record.labels)}; they must be the same, in one order"
        )
    made = copy.copy(stage)
    made.record = dataclasses.replace(
        stage.record,
        name=name,
        cost=model_cost(model.eval(), stage.record.inputs),
        calibration=None,
        speed=None,
    )
    dtype = torch.bfloat16 if bf16_is_fast() else torch.float32
    made.model = ModelRuntime(copy.deepcopy(model).to(dtype))
    made.token_budgets = made.model.token_budgets
    made.runtime = "torch-bf16" if dtype == torch.bfloat16 else "torch"
    return made
