"""Fine-tuning of one stage, on transformers' own Trainer."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from cascadebert.errors import InputError, TrainingError
from cascadebert.export.checkpoints import maximum_length, open_to_train, read_config
from cascadebert.rows.rows import Rows, as_rows
from cascadebert.runtimes.quiet import quiet, quiet_transformers
from cascadebert.runtimes.torch import available_device
from cascadebert.training.distillation import first_token_states, refuse_other_width
from cascadebert.training.encoding import Collator, Encoder
from cascadebert.training.losses import Objective, stage_loss
from cascadebert.training.outputs import Outputs, bf16_is_fast
from cascadebert.training.sampling import RowTrainer

Progress = Callable[[int], object]

logger = logging.getLogger("cascadebert.training")

_LOGGED = ("loss", "eval_loss", "eval_accuracy")
_OWN_COLUMNS = ("row", "difficulty", "teacher_logits", "teacher_states")


def fine_tune(
    checkpoint: str | PathLike[str],
    rows: Rows,
    output: str | PathLike[str],
    *,
    labels: Sequence[str] | None = None,
    objective: Objective | None = None,
    difficulty: NDArray[np.float64] | None = None,
    teacher: Outputs | None = None,
    eval_rows: Rows | None = None,
    paired_batches: bool = False,
    max_length: int = 128,
    args: TrainingArguments | None = None,
    resume: bool = False,
    row_numbers: Sequence[int] | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> Path:
    """Fine-tune a pre-trained encoder and save the classifier.

    Args:
        checkpoint: folder or hub name of a pre-trained encoder; a classifier's head is kept if
            it has as many labels, put into their order if the names are the same, and replaced by
            a new one otherwise.
        rows: training rows with labels.
        output: folder for the fine-tuned checkpoint (safetensors, tokenizer, label names).
        labels: label names in the order of the logits; by default the sorted names in ``rows``.
        objective: the loss; by default cross-entropy.
        difficulty: of each row, larger is harder, for the loss "dar".
        teacher: what the last stage says of each row, for the loss "distillation".
        eval_rows: held-out rows for the evaluations that ``args`` ask for.
        paired_batches: whether every batch gets rows of two difficulties.
        max_length: tokens a row is truncated at, where the encoder has so many positions.
        args: all of the Trainer's settings. Its checkpoints go to ``args.output_dir``.
        resume: go on from the last whole checkpoint in ``args.output_dir``, if there is one.
        row_numbers: what messages call the rows; by default their places in ``rows``.
        progress: called with the number of rows after each step.
        callbacks: passed on to the Trainer.
        arguments: single ``TrainingArguments`` in place of ``args``, over the defaults of
            :func:`default_arguments`; no checkpoints are kept then.

    Returns:
        ``output``.

    Raises:
        ArtifactError: the checkpoint cannot be opened.
        InputError: rows without labels, fewer than two labels, a label not in ``labels``, fewer
            than 3 tokens a row, or an objective without what it needs.
        TrainingError: the loss was not finite.
    """
    rows = as_rows(rows, with_labels=True)
    names = label_order(rows, labels)
    objective = objective or Objective()
    if objective.needs_difficulty and difficulty is None:
        raise InputError("the loss 'dar' needs the difficulty of each row; see cross_fit")
    if objective.needs_teacher and teacher is None:
        raise InputError("the loss 'distillation' needs the last stage's outputs; see outputs_of")
    with tempfile.TemporaryDirectory() as scratch:
        if args is None:
            unsaved = {"save_strategy": "no", "logging_strategy": "no"}
            args = default_arguments(scratch, **unsaved | arguments)
        args = copy.copy(args)
        args.remove_unused_columns = False
        args.restore_callback_states_from_checkpoint = True
        if not objective.label_smoothing:
            smoothing = args.label_smoothing_factor
            objective = dataclasses.replace(objective, label_smoothing=smoothing)
        # The head is drawn when the model is made, before the Trainer sets its own seed.
        torch.manual_seed(args.seed)
        model, tokenizer = open_encoder(checkpoint, names, max_length)
        # The tokenizer knows what is asked for, the model how many positions it has.
        max_length = maximum_length(model, tokenizer, None)
        columns: dict[str, Any] = {}
        if objective.needs_difficulty:
            columns["difficulty"] = np.asarray(difficulty, dtype=np.float32)
        if objective.needs_teacher and teacher is not None:
            columns["teacher_logits"] = teacher.logits
            if objective.hidden_weight and teacher.states is not None:
                refuse_other_width(
                    model.config.hidden_size, teacher.states.shape[2], fspath(checkpoint)
                )
                columns["teacher_states"] = teacher.states
        encode = Encoder(tokenizer, names, max_length)
        trainer = _StageTrainer(
            model=model,
            args=args,
            train_dataset=encode(rows, columns, row_numbers),
            eval_dataset=None if eval_rows is None else encode(eval_rows, {}),
            data_collator=Collator(tokenizer),
            callbacks=[
                *callbacks,
                _Log(),
                *([_RowCount(progress, len(rows))] if progress else []),
            ],
            compute_metrics=_metrics,
        )
        trainer.objective = objective
        trainer.class_weights = _class_weights(objective, rows, names)
        trainer.paired = paired_batches
        # Without its progress bars the Trainer prints its statistics instead.
        trainer.remove_callback(PrinterCallback)
        last = _last_whole_checkpoint(Path(args.output_dir or "")) if resume else None
        with quiet_transformers() if args.disable_tqdm else contextlib.nullcontext():
            trainer.train(resume_from_checkpoint=last)
    model.config.trained_on = rows.texts_fingerprint()
    with quiet():
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    return Path(output)


def default_arguments(output_dir: str | PathLike[str], **arguments: Any) -> TrainingArguments:
    """``TrainingArguments`` as they suit the fine-tuning of a stage; ``arguments`` win."""
    defaults: dict[str, Any] = {
        "output_dir": fspath(output_dir),
        "num_train_epochs": 1.0,
        "learning_rate": 5e-5,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "warmup_steps": 0.06,
        "train_sampling_strategy": "group_by_length",
        "bf16": bf16_is_fast(),
        "use_cpu": available_device().type == "cpu",
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": 0.1,
        "save_total_limit": 1,
        "logging_steps": 0.1,
        "seed": 0,
    }
    if arguments.get("fp16"):
        defaults["bf16"] = False
    return TrainingArguments(**defaults | arguments)


def label_order(rows: Rows, labels: Sequence[str] | None) -> list[str]:
    """The label names in the order of the logits: as given, or sorted.

    Raises:
        InputError: fewer than two, or one in the rows that is not among the given.
    """
    found = sorted(set(rows.labels or ()))
    names = list(labels) if labels is not None else found
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise InputError(f"labels {unknown} are in the rows and not among the given {names}")
    if len(names) < 2:
        raise InputError(f"a classifier needs two labels or more, the rows have only {names}")
    return names


def open_encoder(
    checkpoint: str | PathLike[str], names: Sequence[str], max_length: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An encoder under a classification head for these labels, in fp32, and its tokenizer.

    A head that there is stays if it has as many outputs; if these have the same names in another
    order, they are put into this one.

    Raises:
        ArtifactError: it cannot be opened, or the encoder's own weights are missing or do not fit.
    """
    own = [name for _, name in sorted((read_config(fspath(checkpoint)).id2label or {}).items())]
    model, tokenizer, _ = open_to_train(
        checkpoint,
        max_length=max_length,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        problem_type="single_label_classification",
        ignore_mismatched_sizes=True,
    )
    if own != list(names) and sorted(own) == sorted(names):
        _reorder_outputs(model, [own.index(name) for name in names])
    return model, tokenizer


@torch.no_grad()
def _reorder_outputs(model: PreTrainedModel, order: Sequence[int]) -> None:
    """Put the outputs of a classifier's head into another order."""
    (*_, last) = (
        module
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and not path.startswith(f"{model.base_model_prefix}.")
    )
    for own in last.parameters():
        own.copy_(own[list(order)])


def _last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end: its state is the last file written."""
    found = sorted(
        folder.glob("checkpoint-*"),
        key=lambda path: int(path.name.rpartition("-")[2]),
        reverse=True,
    )
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def _class_weights(objective: Objective, rows: Rows, names: Sequence[str]) -> torch.Tensor | None:
    wanted = objective.class_weights
    if wanted is None:
        return None
    if isinstance(wanted, Mapping):
        objective.refuse_other_classes(names)
        return torch.tensor([float(wanted[name]) for name in names])
    labels = list(rows.labels or ())
    counts = [labels.count(name) for name in names]
    return torch.tensor([len(labels) / (len(names) * max(count, 1)) for count in counts])


def _metrics(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


class _StageTrainer(RowTrainer):
    """The Trainer with the objective of a stage."""

    objective = Objective()
    class_weights: torch.Tensor | None = None
    # The loss is the mean of a batch, so the Trainer divides by the accumulation steps.
    loss_is_scaled_for_ga = False

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002
    ) -> Any:
        own = {name: inputs.pop(name) for name in _OWN_COLUMNS if name in inputs}
        labels = inputs.pop("labels")
        wants_states = "teacher_states" in own and model.training
        outputs = model(**inputs, **({"output_hidden_states": True} if wants_states else {}))
        states = None
        if wants_states:
            layers = list(range(1, own["teacher_states"].shape[1] + 1))
            states = first_token_states(outputs.hidden_states, layers)
        weights = self.class_weights
        loss = stage_loss(
            self.objective if model.training else self.objective.plain(),
            outputs.logits,
            labels,
            class_weights=None if weights is None else weights.to(labels.device),
            difficulty=own.get("difficulty"),
            teacher_logits=own.get("teacher_logits"),
            student_states=states,
            teacher_states=own.get("teacher_states"),
            done=self.state.global_step / max(self.state.max_steps, 1),
            generator=self._pair_generator(own["row"]),
        )
        kind = "rows" if model.training else "validation rows"
        refuse_not_finite_loss(loss, self.state.global_step + 1, own["row"], kind)
        return (loss, outputs) if return_outputs else loss

    def _pair_generator(self, rows: torch.Tensor) -> torch.Generator:
        # A seed of its own for each batch: a training that was cut off draws the same pairs.
        seed = (self.args.seed * 1_000_003 + self.state.global_step) * 1_000_003 + int(rows[0])
        return torch.Generator().manual_seed(seed % 2**63)


def refuse_not_finite_loss(
    loss: torch.Tensor, step: int, rows: torch.Tensor, kind: str = "rows"
) -> None:
    """Refuse to go on with a loss that has become infinite or NaN.

    Args:
        loss: of a batch.
        step: its number, from 1.
        rows: numbers of its rows.
        kind: what messages call them.
    """
    if not torch.isfinite(loss):
        numbers = ", ".join(str(int(row)) for row in rows)
        raise TrainingError(
            f"the loss is {loss.item()} at step {step}, in the batch with {kind} {numbers}; use a "
            "smaller learning rate, or fp32 in place of 16 bits"
        )


class _RowCount(TrainerCallback):
    """Tells how many rows have been trained on since it last did."""

    def __init__(self, progress: Progress, rows: int) -> None:
        self._progress = progress
        self._rows = rows
        self._told = 0

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        done = round((state.epoch or 0) * self._rows)
        self._progress(done - self._told)
        self._told = done


class _Log(TrainerCallback):
    """Puts losses and evaluations into this package's log."""

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        told = {name: value for name, value in (logs or {}).items() if name in _LOGGED}
        if told:
            shown = ", ".join(f"{name} {float(value):.4f}" for name, value in told.items())
            logger.info("    step %d of %d: %s", state.global_step, state.max_steps, shown)
