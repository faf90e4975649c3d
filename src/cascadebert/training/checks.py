"""Checks before a training starts, so that invalid input costs no training time."""

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
    """The checkpoint that a stage is trained from.

    Attributes:
        number: position in the cascade, from 1.
        name: name for people and folders.
        checkpoint: folder or hub name of a pre-trained encoder, or "linear".
        fingerprint: identity of the checkpoint.
        flops: floating point operations for a row of 32 tokens.
        layers: number of layers.
        width: width of the hidden states, 0 for a linear stage.
        max_length: maximum tokens per row.

    Examples:
        >>> (linear,) = checked_stages(["linear"], ["no", "yes"], 128)
        >>> linear.is_linear, linear.flops
        (True, 200.0)
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
        """Whether this is the linear stage."""
        return self.checkpoint == LINEAR


def checked_rows(train: Rows, validation: Rows, folds: int | None) -> list[str]:
    """The label names of all stages, sorted.

    Args:
        train: gives training rows with labels.
        validation: gives held-out rows with labels.
        folds: sets the number of folds for difficulty; None for no folds.

    Raises:
        InputError: there is only one class, a class with fewer rows than folds, a validation
            label without a training row, or second texts in only one of the two.

    Examples:
        >>> train = Rows(["a", "b"], None, ["yes", "no"])
        >>> checked_rows(train, Rows(["c"], None, ["no"]), None)
        ['no', 'yes']
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
            "add training rows with these labels, or remove the validation rows"
        )
    if folds is not None:
        refuse_small_classes(np.array(train.labels), folds, seeds=1)
    seen = set(train.both_texts())
    again = sum(row in seen for row in validation.both_texts())
    if again:
        warnings.warn(
            f"{again} of {len(validation)} validation rows are training rows too, which makes "
            "results on them too good; remove them from one of the two",
            CascadeWarning,
            stacklevel=4,
        )
    return names


def checked_stages(
    checkpoints: Sequence[str], labels: Sequence[str], max_length: int
) -> list[StageSource]:
    """Open every checkpoint once, and check that it can be a stage.

    Args:
        checkpoints: names folders or hub repositories, or "linear"; small to large.
        labels: gives the label names in the order of the logits.
        max_length: truncates rows to this many tokens.

    Raises:
        InputError: there is no stage, or the stages are not ordered by cost.
        ArtifactError: a checkpoint lacks weights or a tokenizer that fits.

    Examples:
        >>> [stage.name for stage in checked_stages(["linear"], ["no", "yes"], 128)]
        ['linear']
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
            f"{checkpoint}: its tokenizer has no padding token for batches; set pad_token and save "
            "it again"
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
