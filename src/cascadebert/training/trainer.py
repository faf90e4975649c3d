"""Fine-tuning of one stage, on transformers' own Trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from cascadebert.data import Rows, as_rows
from cascadebert.errors import InputError
from cascadebert.training.logs import quiet


def fine_tune(
    checkpoint: str | PathLike[str],
    rows: Rows,
    output: str | PathLike[str],
    *,
    labels: Sequence[str] | None = None,
    epochs: float = 1.0,
    learning_rate: float = 5e-5,
    batch_size: int = 32,
    max_length: int = 128,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> Path:
    """Fine-tune a pre-trained encoder with cross-entropy and save the classifier.

    Args:
        checkpoint: folder or hub name of a pre-trained encoder; a classifier's head is kept if
            it has as many labels, else a new one takes its place.
        rows: training rows with labels.
        output: folder for the fine-tuned checkpoint (safetensors, tokenizer, label names).
        labels: label names in the order of the logits; by default the sorted names in ``rows``.
        epochs: passes over the rows, may be fractional.
        learning_rate: peak of the linear schedule (6 % of the steps are warm-up).
        batch_size: rows a step.
        max_length: tokens a row is truncated at.
        seed: of initialisation, order and dropout.
        progress: called with the number of rows after each step.
        callbacks: passed on to the Trainer.
        arguments: any other ``transformers.TrainingArguments``; they win over the defaults.

    Returns:
        ``output``.

    Raises:
        InputError: rows without labels, fewer than two labels, or a label not in ``labels``.
    """
    rows = as_rows(rows, with_labels=True)
    names = _label_order(rows, labels)
    ids = {name: i for i, name in enumerate(names)}
    # The head is drawn when the model is made, before the Trainer sets its own seed.
    torch.manual_seed(seed)
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(
            checkpoint,
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id=ids,
            ignore_mismatched_sizes=True,
        )
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, model_max_length=max_length)
    with tempfile.TemporaryDirectory() as scratch:
        defaults: dict[str, Any] = {
            "output_dir": scratch,
            "num_train_epochs": epochs,
            "learning_rate": learning_rate,
            "per_device_train_batch_size": batch_size,
            "warmup_steps": 0.06,
            "train_sampling_strategy": "group_by_length",
            "bf16": bf16_is_fast(),
            "use_cpu": not torch.accelerator.is_available(),
            "seed": seed,
            "save_strategy": "no",
            "report_to": "none",
            "logging_strategy": "no",
            "disable_tqdm": True,
        }
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**defaults | arguments),
            train_dataset=_TokenizedRows(rows, ids, tokenizer, max_length),
            data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8),
            callbacks=[*callbacks, *([_Progress(progress, len(rows))] if progress else [])],
        )
        # Without its progress bars the Trainer prints its statistics instead.
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    with quiet():
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    return Path(output)


def bf16_is_fast() -> bool:
    """Whether this machine multiplies bfloat16 matrices in hardware."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _label_order(rows: Rows, labels: Sequence[str] | None) -> list[str]:
    found = sorted(set(rows.labels or ()))
    names = list(labels) if labels is not None else found
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise InputError(f"labels {unknown} are in the rows and not among the given {names}")
    if len(names) < 2:
        raise InputError(f"a classifier needs two labels or more, the rows have only {names}")
    return names


class _Progress(TrainerCallback):
    """Tells how many rows have been trained on since it last did."""

    def __init__(self, progress: Callable[[int], object], rows: int) -> None:
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


class _TokenizedRows(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(
        self,
        rows: Rows,
        ids: dict[str, int],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> None:
        assert rows.labels is not None
        pairs = None if rows.pairs is None else list(rows.pairs)
        self._encoded = tokenizer(list(rows.texts), pairs, truncation=True, max_length=max_length)
        self._labels = [ids[name] for name in rows.labels]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in self._encoded.items()} | {
            "labels": self._labels[index]
        }
