"""Fine-tuning of one stage, on transformers' own Trainer."""

from __future__ import annotations

import contextlib
import copy
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
from cascadebert.training.losses import Batch
from cascadebert.training.objective import Objective
from cascadebert.training.outputs import Outputs, bf16_is_fast
from cascadebert.training.sampling import RowTrainer

Progress = Callable[[int], object]

logger = logging.getLogger("cascadebert.training")

_LOGGED = ("loss", "eval_loss", "eval_accuracy")
_OWN_COLUMNS = ("difficulty", "teacher_logits", "teacher_states")


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
        checkpoint: names the folder or hub repository of a pre-trained encoder. The head of a
            classifier with as many labels is kept, and reordered if the names are the same; any
            other head is replaced by a new one.
        rows: gives training rows with labels.
        output: names the folder for the fine-tuned checkpoint (safetensors, tokenizer, label
            names).
        labels: gives the label names in the order of the logits; by default the sorted names in
            ``rows``.
        objective: sets the loss; by default cross-entropy.
        difficulty: gives the difficulty of each row, larger is harder, float of shape (rows,);
            needed by the loss "dar".
        teacher: gives the last stage's outputs on ``rows``; needed by the loss "distillation".
        eval_rows: gives held-out rows for the evaluations that ``args`` ask for.
        paired_batches: puts rows of two difficulties into every batch.
        max_length: truncates rows to this many tokens, or fewer if the encoder has fewer
            positions.
        args: sets everything in the Trainer. Its checkpoints go to ``args.output_dir``.
        resume: continues from the last complete checkpoint in ``args.output_dir``, if any.
        row_numbers: numbers the rows in messages; by default by their positions in ``rows``.
        progress: is called with the number of rows after each step.
        callbacks: are passed on to the Trainer.
        arguments: set single ``TrainingArguments`` instead of ``args``, over the defaults of
            :func:`default_arguments`; no checkpoints are kept then.

    Returns:
        ``output``.

    Raises:
        ArtifactError: the checkpoint cannot be opened.
        InputError: rows without labels, fewer than two labels, a label not in ``labels``, fewer
            than 3 tokens per row, or an objective without the values that it needs.
        TrainingError: the loss is not finite.

    Examples:
        Fine-tune two checkpoints, the smaller one on the outputs of the larger one::

            large = fine_tune("microsoft/mpnet-base", rows, "large", num_train_epochs=3)
            fine_tune(
                "nreimers/MiniLM-L6-H384-uncased",
                rows,
                "small",
                objective=Objective("distillation"),
                teacher=outputs_of(large, rows),
            )
    """
    rows = as_rows(rows, with_labels=True)
    names = label_order(rows, labels)
    objective = objective or Objective()
    columns = _needed_columns(objective, difficulty, teacher)
    with tempfile.TemporaryDirectory() as scratch:
        args = _prepared_arguments(args, scratch, arguments)
        if not objective.cross_entropy.label_smoothing:
            smoothing = {"label_smoothing": args.label_smoothing_factor}
            objective = Objective(**objective.settings() | smoothing)
        # The head is drawn when the model is made, before the Trainer sets its own seed.
        torch.manual_seed(args.seed)
        model, tokenizer = open_encoder(checkpoint, names, max_length)
        if "teacher_states" in columns:
            width = columns["teacher_states"].shape[2]
            refuse_other_width(model.config.hidden_size, width, fspath(checkpoint))
        # The tokenizer knows the requested length, the model its number of positions.
        encode = Encoder(tokenizer, names, maximum_length(model, tokenizer, None))
        trainer = _StageTrainer(
            model=model,
            args=args,
            train_dataset=encode(rows, columns, row_numbers),
            eval_dataset=None if eval_rows is None else encode(eval_rows, {}),
            data_collator=Collator(tokenizer),
            callbacks=[*callbacks, _Log(), *([_RowCount(progress, len(rows))] if progress else [])],
            compute_metrics=_metrics,
        )
        trainer.objective = objective
        trainer.class_weights = objective.cross_entropy.weights(rows.labels or (), names)
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


def _needed_columns(
    objective: Objective, difficulty: NDArray[np.float64] | None, teacher: Outputs | None
) -> dict[str, Any]:
    """The columns beside the tokens that the objective reads."""
    given = {
        "difficulty": None if difficulty is None else np.asarray(difficulty, dtype=np.float32),
        "teacher_logits": teacher and teacher.logits,
        "teacher_states": teacher and teacher.states,
    }
    objective.refuse_missing(given)
    return {name: given[name] for name in objective.needs}


def _prepared_arguments(
    args: TrainingArguments | None, scratch: str, single: Mapping[str, Any]
) -> TrainingArguments:
    """A copy of ``args``, or the defaults with single arguments, as a stage needs them."""
    if args is None:
        unsaved = {"save_strategy": "no", "logging_strategy": "no"}
        args = default_arguments(scratch, **unsaved | dict(single))
    args = copy.copy(args)
    args.remove_unused_columns = False
    args.restore_callback_states_from_checkpoint = True
    return args


def default_arguments(output_dir: str | PathLike[str], **arguments: Any) -> TrainingArguments:
    """``TrainingArguments`` for the fine-tuning of a stage.

    Args:
        output_dir: names the folder for the Trainer's checkpoints.
        arguments: override the defaults, by their names in ``TrainingArguments``.

    Examples:
        >>> default_arguments("work", learning_rate=1e-4).num_train_epochs
        1.0
    """
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
    """The label names in the order of the logits.

    Args:
        rows: gives the labels.
        labels: gives the order; None sorts the labels of ``rows``.

    Raises:
        InputError: there are fewer than two labels, or a label of a row is not in ``labels``.

    Examples:
        >>> label_order(Rows(["a", "b"], None, ["yes", "no"]), None)
        ['no', 'yes']
    """
    found = sorted(set(rows.labels or ()))
    names = list(labels) if labels is not None else found
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise InputError(f"labels {unknown} are in the rows but not in {names}; add them")
    if len(names) < 2:
        raise InputError(
            f"a classifier needs two labels or more, the rows have only {names}; add rows"
        )
    return names


def open_encoder(
    checkpoint: str | PathLike[str], names: Sequence[str], max_length: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An encoder with a classification head for these labels, in fp32, and its tokenizer.

    An existing head is kept if it has as many outputs, and reordered if these have the same names
    in another order.

    Args:
        checkpoint: names a folder or hub repository.
        names: gives the label names in the order of the logits.
        max_length: truncates rows to this many tokens.

    Raises:
        ArtifactError: the checkpoint cannot be opened, or weights of the encoder are missing or
            do not fit.

    Examples:
        ::

            model, tokenizer = open_encoder("microsoft/mpnet-base", ["no", "yes"], 128)
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
        labels, rows = inputs.pop("labels"), inputs.pop("row")
        if model.training and "teacher_states" in own:
            outputs = model(**inputs, output_hidden_states=True)
            layers = list(range(1, own["teacher_states"].shape[1] + 1))
            own["student_states"] = first_token_states(outputs.hidden_states, layers)
        else:
            outputs = model(**inputs)
        weights = self.class_weights
        batch = Batch(
            outputs.logits,
            labels,
            class_weights=None if weights is None else weights.to(labels.device),
            done=self.state.global_step / max(self.state.max_steps, 1),
            generator=self._pair_generator(rows),
            **own,
        )
        loss = (self.objective if model.training else self.objective.plain()).loss(batch)
        kind = "rows" if model.training else "validation rows"
        refuse_not_finite_loss(loss, self.state.global_step + 1, rows, kind)
        return (loss, outputs) if return_outputs else loss

    def _pair_generator(self, rows: torch.Tensor) -> torch.Generator:
        # One seed per batch, so that a resumed training draws the same pairs.
        seed = (self.args.seed * 1_000_003 + self.state.global_step) * 1_000_003 + int(rows[0])
        return torch.Generator().manual_seed(seed % 2**63)


def refuse_not_finite_loss(
    loss: torch.Tensor, step: int, rows: torch.Tensor, kind: str = "rows"
) -> None:
    """Stop a training whose loss is infinite or NaN.

    Args:
        loss: holds the scalar loss of a batch.
        step: counts the steps, from 1.
        rows: holds the numbers of the batch's rows.
        kind: names the rows in the error.

    Raises:
        TrainingError: the loss is not finite.

    Examples:
        >>> refuse_not_finite_loss(torch.tensor(0.5), 1, torch.tensor([3, 7]))
    """
    if not torch.isfinite(loss):
        numbers = ", ".join(str(int(row)) for row in rows)
        raise TrainingError(
            f"the loss is {loss.item()} at step {step}, in the batch with {kind} {numbers}; use a "
            "smaller learning rate, or fp32 instead of 16 bits"
        )


class _RowCount(TrainerCallback):
    """Reports the rows trained on since its last report."""

    def __init__(self, progress: Progress, rows: int) -> None:
        self._progress = progress
        self._rows = rows
        self._reported = 0

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        done = round((state.epoch or 0) * self._rows)
        self._progress(done - self._reported)
        self._reported = done


class _Log(TrainerCallback):
    """Writes losses and evaluations to this package's log."""

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        values = {name: value for name, value in (logs or {}).items() if name in _LOGGED}
        if values:
            shown = ", ".join(f"{name} {float(value):.4f}" for name, value in values.items())
            logger.info("    step %d of %d: %s", state.global_step, state.max_steps, shown)
