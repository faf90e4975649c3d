"""Rivals as stages of a cascade, without their early exits.

Build the cascade with the rival's checkpoint in its place, and exchange the stage before tuning::

    cascade = Cascade.from_stages(["small", "large", "large"])
    first, second, last = cascade.stages
    cascade = cascade.with_stages([first, as_stage(second, rival.model, "pruned"), last])
    cascade.tune(rows, MaxDrop(0.01))

The cascade can predict, be tuned and be evaluated, but it cannot be saved.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from cascadebert.disk import TOKENIZER_FILE
from cascadebert.errors import ArtifactError, LabelMismatchError
from cascadebert.export.checkpoints import own_labels
from cascadebert.export.costs import model_cost
from cascadebert.rivals.rival import in_fast_precision, runtime_of
from cascadebert.runtimes.torch import ModelRuntime
from cascadebert.stages.transformer import TransformerStage


def as_stage(stage: TransformerStage, model: Any, name: str) -> TransformerStage:
    """Make a stage from a model in memory and the tokenizer of another stage.

    Args:
        stage: has the model's tokenizer and labels; usually the stage of the model's checkpoint.
        model: is a classifier in fp32, such as :attr:`~cascadebert.rivals.rival.Rival.model`; it
            runs in bfloat16 where that is fast.
        name: names the new stage.

    Raises:
        LabelMismatchError: the model has other labels. Their order may differ.
        ArtifactError: the tokenizer's vocabulary is larger than the model's.
    """
    labels = own_labels(model.config)
    if sorted(labels) != sorted(stage.record.labels):
        raise LabelMismatchError(
            f"the model's labels are {labels} and those of stage '{stage.name}' "
            f"{list(stage.record.labels)}; train the model on the labels of the stage"
        )
    if stage.largest_id >= model.config.vocab_size:
        raise ArtifactError(
            f"the tokenizer of stage '{stage.name}' has the id {stage.largest_id}, the model only "
            f"{model.config.vocab_size} embeddings; give the stage of the checkpoint that it was "
            "made from"
        )
    made = stage.with_labels(labels)
    made.record = dataclasses.replace(
        made.record,
        name=name,
        cost=model_cost(model.eval(), stage.record.inputs),
        files={TOKENIZER_FILE: stage.record.files[TOKENIZER_FILE], "memory": hash_of(model)},
        calibration=None,
        speed=None,
        trials=(),
        trained_on=getattr(model.config, "trained_on", None),
        quantised_on=None,
    )
    made.in_memory = True
    fast = in_fast_precision(model)
    made.model, made.runtime = ModelRuntime(fast), runtime_of(fast)
    return made


def hash_of(model: Any) -> str:
    """SHA-256 of a model's weights."""
    digest = hashlib.sha256()
    for name, weights in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weights.shape)}".encode())
        digest.update(weights.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
