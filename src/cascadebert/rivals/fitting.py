"""Train a rival with transformers' Trainer and the rival's own loss."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerState

from cascadebert.training.encoding import Collator, EncodedRows
from cascadebert.training.fine_tuning import default_arguments, refuse_not_finite_loss
from cascadebert.training.sampling import RowTrainer

Loss = Callable[[Any, Mapping[str, Tensor], Tensor, TrainerState], Tensor]
"""The mean over a batch: called with the model, what the tokenizer made, the labels (class
indices, or float32 values of a regression) and how far the training is."""


def train(
    model: torch.nn.Module,
    data: EncodedRows,
    collate: Collator,
    loss: Loss,
    arguments: Mapping[str, Any],
    *,
    apart: Iterable[Tensor] = (),
    rate_apart: float | None = None,
) -> None:
    """Train a model in place; it ends on the CPU.

    Args:
        model: anything.
        data: rows with labels.
        collate: makes batches of them.
        loss: what is minimised.
        arguments: ``TrainingArguments`` over those of
            :func:`~cascadebert.training.fine_tuning.default_arguments`.
        apart: parameters with a learning rate of their own.
        rate_apart: that rate; by default that of the others.

    Raises:
        TrainingError: the loss was not finite.
    """
    with tempfile.TemporaryDirectory() as scratch:
        unsaved = {"save_strategy": "no", "logging_strategy": "no", "remove_unused_columns": False}
        trainer = _LossTrainer(
            model=model,
            args=default_arguments(scratch, **unsaved | dict(arguments)),
            train_dataset=data,
            data_collator=collate,
        )
        trainer.own_loss = loss
        if rate_apart is not None:
            _set_rate(trainer.create_optimizer(), {id(one) for one in apart}, rate_apart)
        # Without its progress bars the Trainer prints its statistics instead.
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        finally:
            # Training in 16 bits leaves a forward of its own before that of the class.
            for name in ("forward", "_original_forward"):
                vars(model).pop(name, None)
            model.cpu()


def _set_rate(optimizer: torch.optim.Optimizer, apart: set[int], rate: float) -> None:
    """Give some parameters another learning rate, before there is a schedule."""
    for group in list(optimizer.param_groups):
        own = [one for one in group["params"] if id(one) in apart]
        group["params"] = [one for one in group["params"] if id(one) not in apart]
        if own:
            optimizer.add_param_group({**group, "params": own, "lr": rate})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


class _LossTrainer(RowTrainer):
    own_loss: Loss
    # The loss is the mean of a batch, so the Trainer divides by the accumulation steps.
    loss_is_scaled_for_ga = False

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: ARG002
        num_items_in_batch: Any = None,  # noqa: ARG002
    ) -> Tensor:
        labels = inputs.pop("labels")
        rows = inputs.pop("row")
        # The Trainer itself sees to 16 bits in the forward of the model alone.
        with self.accelerator.autocast():
            loss = self.own_loss(model, inputs, labels, self.state)
        refuse_not_finite_loss(loss, self.state.global_step + 1, rows)
        return loss
