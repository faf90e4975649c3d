"""Rivals as stages of a cascade, where they answer every row that comes to them.

Build the cascade with the checkpoint that the rival comes from in its place, and change it before
tuning::

    cascade = Cascade.from_stages(["small", "large", "large"])
    first, second, last = cascade.stages
    cascade = cascade.with_stages([first, as_stage(second, rival.model, "pruned"), last])
    cascade.tune(rows, MaxDrop(0.01))

Such a cascade predicts and is tuned and evaluated as any other, but cannot be saved.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from cascadebert.errors import LabelMismatchError
from cascadebert.rivals.rival import in_fast_precision
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
        model: a classifier in fp32, such as :attr:`~cascadebert.rivals.rival.Rival.model`; it
            runs in bfloat16 where that is fast.
        name: of the stage.

    Raises:
        LabelMismatchError: the model's labels are others. Their order may be any.
    """
    labels = own_labels(model.config)
    if sorted(labels) != sorted(stage.record.labels):
        raise LabelMismatchError(
            f"the model's labels are {labels} and those of stage '{stage.name}' "
            f"{list(stage.record.labels)}; train the model on the labels of the stage"
        )
    made = stage.with_labels(labels)
    made.record = dataclasses.replace(
        made.record,
        name=name,
        cost=model_cost(model.eval(), stage.record.inputs),
        calibration=None,
        speed=None,
    )
    made.in_memory = True
    made.model = ModelRuntime(in_fast_precision(model))
    made.token_budgets = made.model.token_budgets
    made.runtime = "torch-bf16" if bf16_is_fast() else "torch"
    return made
