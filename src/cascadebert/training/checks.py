"""What is refused before a training starts, so that no hour is spent on what cannot end well."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cascadebert.errors import ArtifactError, CascadeWarning, InputError
from cascadebert.export.cascade import stage_name
from cascadebert.export.checkpoints import maximum_length, refuse_other_tokenizer
from cascadebert.export.costs import TYPICAL_TOKENS, model_cost
from cascadebert.export.linear import LINEAR
from cascadebert.rows.rows import Rows, listed
from cascadebert.stages.ngrams import feature_version
from cascadebert.training.difficulty import refuse_small_classes
from cascadebert.training.fine_tuning import label_order, open_encoder
from cascadebert.training.linear import DEFAULT_C
from cascadebert.training.parts import checkpoint_fingerprint


@dataclass(frozen=True)
class StageSource:
    """What a stage is to be made of.

    Attributes:
        number: place in the cascade, from 1.
        name: for people and folders.
        checkpoint: of the pre-trained encoder, or "linear".
        fingerprint: of the checkpoint.
        flops: floating point operations of a typical row.
        layers: of the encoder.
        width: of its hidden states, 0 for a linear stage.
        max_length: tokens that it will read.
    """

    number: int
    name: str
    checkpoint: str
    fingerprint: str
    flops: float
    layers: int
    width: int
    max_length: int

    @property
    def is_linear(self) -> bool:
        return self.checkpoint == LINEAR


def checked_rows(train: Rows, validation: Rows, folds: int | None) -> list[str]:
    """The label names that all stages will have, sorted.

    Args:
        train: checked rows with labels.
        validation: checked rows with labels.
        folds: that difficulty will need, or None.

    Raises:
        InputError: one class only, a class with fewer rows than folds, labels in validation that
            no training row has, or pairs in only one of the two.
    """
    names = label_order(train, None)
    if (train.pairs is None) != (validation.pairs is None):
        raise InputError(
            "only one of training and validation rows has second texts; give both the same columns"
        )
    unknown = sorted(set(validation.labels or ()) - set(names))
    if unknown:
        count = sum(label in unknown for label in validation.labels or ())
        raise InputError(
            f"{count} validation rows have labels that no training row has: {listed(unknown)}; "
            "add training rows of them or remove these"
        )
    if folds is not None:
        refuse_small_classes(np.array(train.labels), folds, seeds=1)
    seen = set(train.both_texts())
    again = sum(row in seen for row in validation.both_texts())
    if again:
        warnings.warn(
            f"{again} of {len(validation)} validation rows are training rows too: what is chosen "
            "on them will look better than it is; remove them from one of the two",
            CascadeWarning,
            stacklevel=4,
        )
    return names


def checked_stages(
    checkpoints: Sequence[str], labels: Sequence[str], max_length: int
) -> list[StageSource]:
    """Open every checkpoint once, and refuse what cannot be a stage.

    Raises:
        InputError: no stages, or not ordered by cost.
        ArtifactError: a checkpoint without weights, or without a tokenizer that fits.
    """
    if not checkpoints:
        raise InputError("a cascade needs at least one stage; name a checkpoint")
    stages = [
        _open_stage(number, checkpoint, labels, max_length)
        for number, checkpoint in enumerate(checkpoints, start=1)
    ]
    for smaller, larger in itertools.pairwise(stages):
        if smaller.flops >= larger.flops:
            raise InputError(
                f"stage {smaller.number} '{smaller.name}' costs {smaller.flops:.2g} operations for "
                f"a row of {TYPICAL_TOKENS} tokens, stage {larger.number} '{larger.name}' only "
                f"{larger.flops:.2g}; give the stages from small to large, each once"
            )
    return stages


def _open_stage(
    number: int, checkpoint: str, labels: Sequence[str], max_length: int
) -> StageSource:
    if checkpoint == LINEAR:
        flops = 100.0 * len(labels)
        fingerprint = f"features {feature_version()}, C {DEFAULT_C}"
        return StageSource(number, LINEAR, LINEAR, fingerprint, flops, 1, 0, 0)
    model, tokenizer = open_encoder(checkpoint, labels, max_length)
    refuse_other_tokenizer(tokenizer, model, checkpoint)
    if tokenizer.pad_token is None:
        raise ArtifactError(
            f"{checkpoint}: its tokenizer has no padding token, so rows cannot be put into "
            "batches; set pad_token and save it again"
        )
    cost = model_cost(model.train(False), ("input_ids", "attention_mask"))
    return StageSource(
        number=number,
        name=stage_name(checkpoint),
        checkpoint=checkpoint,
        fingerprint=checkpoint_fingerprint(checkpoint),
        flops=float(cost.row_flops(TYPICAL_TOKENS)),
        layers=int(model.config.num_hidden_layers),
        width=int(model.config.hidden_size),
        max_length=min(max_length, maximum_length(model, tokenizer, None)),
    )
