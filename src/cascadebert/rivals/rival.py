"""What all rivals have in common: ``fit``, ``predict`` at a knob, and what the answers cost."""

from __future__ import annotations

import copy
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from cascadebert.errors import CascadeError, InputError
from cascadebert.export.checkpoints import maximum_length, model_inputs, open_checkpoint, own_labels
from cascadebert.export.costs import model_cost
from cascadebert.persistence.record import StageCost
from cascadebert.rows.rows import Rows, as_rows
from cascadebert.runtimes.torch import ModelRuntime
from cascadebert.stages.batching import token_batches
from cascadebert.stages.transformer import TokenizedRows
from cascadebert.training.fine_tuning import fine_tune
from cascadebert.training.outputs import bf16_is_fast


@dataclass(frozen=True)
class RivalAnswers:
    """What a rival says of rows.

    Attributes:
        logits: float32 of shape (rows, outputs), in the order of the rival's labels.
        layer: how many layers each row went through, int64 of shape (rows,).
        tokens: how long each row was, cut at what is read, int64 of shape (rows,).
    """

    logits: NDArray[np.float32]
    layer: NDArray[np.int64]
    tokens: NDArray[np.int64]


class Rival(ABC):
    """An alternative to a cascade.

    Attributes:
        labels: names in the order of the logits, after :meth:`fit`; none of a regression.
    """

    labels: list[str]

    @property
    @abstractmethod
    def knobs(self) -> Sequence[float]:
        """Settings to try, from the slowest; none where there is one setting only."""

    @abstractmethod
    def fit(self, rows: Any) -> Self:
        """Train on labelled rows, as :func:`~cascadebert.rows.rows.as_rows` takes them.

        Raises:
            ArtifactError: a checkpoint that cannot be opened, or lacks weights.
            InputError: rows that cannot be used, fewer than two labels, or an encoder that the
                method cannot be built into.
            TrainingError: the loss was not finite.
        """

    @abstractmethod
    def predict(self, rows: Any, knob: float | None = None) -> RivalAnswers:
        """Answer rows, in bfloat16 where that is fast.

        Args:
            rows: as :func:`~cascadebert.rows.rows.as_rows` takes them.
            knob: one of :attr:`knobs` or what lies between; by default the slowest setting.

        Raises:
            InputError: rows that cannot be used, a knob that means nothing, or no :meth:`fit`.
            CascadeError: a logit that is not finite.
        """

    @abstractmethod
    def cost(self, answers: RivalAnswers) -> NDArray[np.float64]:
        """Floating point operations that each row took, by counting, (rows,)."""

    @property
    @abstractmethod
    def model(self) -> Any:
        """A classifier in fp32 that answers at the slowest setting, for
        :func:`~cascadebert.rivals.stage.as_stage`.
        """


class Static(Rival):
    """A single classifier, which does the same for every row.

    Args:
        checkpoint: folder or hub name of what it is made from.
        max_length: tokens a row is cut at, where the model has so many positions.
        arguments: ``TrainingArguments`` over those of
            :func:`~cascadebert.training.fine_tuning.default_arguments`.
    """

    _model: Any = None
    _runtime: ModelRuntime | None = None

    def __init__(
        self, checkpoint: str | PathLike[str], *, max_length: int = 128, **arguments: Any
    ) -> None:
        self._checkpoint = checkpoint
        self._max_length = max_length
        self._arguments = arguments

    @property
    def knobs(self) -> Sequence[float]:
        return ()

    @property
    def model(self) -> Any:
        refuse_unfitted(self, self._model is not None)
        return self._model

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_runtime": None}

    @property
    def _running(self) -> ModelRuntime:
        """The model as it answers: on the accelerator, in bfloat16 where that is fast."""
        if self._runtime is None:
            self._runtime = ModelRuntime(in_fast_precision(self._model))
        return self._runtime

    def fit(self, rows: Any) -> Self:
        checked = as_rows(rows, with_labels=True)
        self._model, self._runtime = None, None
        model, tokenizer = self._train(checked)
        model.eval().requires_grad_(False)
        self.labels = own_labels(model.config)
        self._reading = Reading(model, tokenizer, self._max_length)
        self._counted: StageCost = model_cost(model, self._reading.inputs)
        self._model = model
        return self

    @abstractmethod
    def _train(self, rows: Rows) -> tuple[Any, PreTrainedTokenizerBase]:
        """A classifier trained on checked rows with labels, on the CPU, and its tokenizer."""

    def predict(self, rows: Any, knob: float | None = None) -> RivalAnswers:
        model, checked = self.model, as_rows(rows)
        if knob is not None:
            raise InputError(f"{type(self).__name__} has one setting only; leave knob={knob} out")
        tokens = self._reading(checked)
        logits = np.empty((len(checked), model.config.num_labels), dtype=np.float32)
        budget = self._running.token_budgets[1]
        for positions in token_batches(tokens.lengths, budget, self._reading.most):
            batch = tokens.batch(positions, self._reading.padding, self._reading.most)
            logits[positions] = self._running(batch)()
        refuse_not_finite(self, logits)
        layer = np.full(len(checked), model.config.num_hidden_layers, dtype=np.int64)
        return RivalAnswers(logits, layer, tokens.lengths)

    def cost(self, answers: RivalAnswers) -> NDArray[np.float64]:
        refuse_unfitted(self, self._model is not None)
        return self._counted.row_flops(answers.tokens)


class FineTuned(Static):
    """A single classifier that ``fine_tune`` makes, with what it begins with or on the way changed.

    Args:
        checkpoint: folder or hub name of what it is made from.
        output: folder for the ordinary checkpoint, if that is to be kept.
        settings: those of :class:`Static`.
    """

    def __init__(
        self,
        checkpoint: str | PathLike[str],
        *,
        output: str | PathLike[str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(checkpoint, **settings)
        self._output = output

    def _train(self, rows: Rows) -> tuple[Any, PreTrainedTokenizerBase]:
        with tempfile.TemporaryDirectory() as scratch:
            tuned = fine_tune(
                self._start(Path(scratch) / "start"),
                rows,
                self._output or Path(scratch) / "tuned",
                max_length=self._max_length,
                **self._options(rows),
                **self._arguments,
            )
            return open_checkpoint(tuned, attention=None)

    def _start(self, folder: Path) -> str | PathLike[str]:  # noqa: ARG002
        """The checkpoint to begin with, made in ``folder`` if it has to be made."""
        return self._checkpoint

    def _options(self, rows: Rows) -> Mapping[str, Any]:  # noqa: ARG002
        """What :func:`~cascadebert.training.fine_tuning.fine_tune` is told besides."""
        return {}


class Reading:
    """How a model reads rows.

    Args:
        model: of transformers, on the tokenizer's words.
        tokenizer: its own.
        max_length: tokens that a row is cut at, where the model has so many positions.

    Raises:
        InputError: fewer than 3 tokens, which say nothing of a row.

    Attributes:
        inputs: names of what the model reads.
        padding: for each of them but the attention mask the id that fills rows up.
        most: tokens that a row is cut at.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        most = min(max_length, maximum_length(model, tokenizer, None))
        self.most = maximum_length(model, tokenizer, most)
        self.inputs = model_inputs(model, tokenizer)
        padding = {"input_ids": int(cast(Any, tokenizer).pad_token_id or 0), "token_type_ids": 0}
        self.padding = {name: padding[name] for name in self.inputs if name in padding}
        self._tokenizer = tokenizer

    def __call__(self, rows: Rows) -> TokenizedRows:
        """Token ids of checked rows."""
        if not len(rows):
            return tokenized({name: [] for name in self.padding})
        pairs = None if rows.pairs is None else list(rows.pairs)
        found = self._tokenizer(list(rows.texts), pairs, truncation=True, max_length=self.most)
        return tokenized({name: found[name] for name in self.padding})


def tokenized(ids: Mapping[str, Sequence[Sequence[int]]]) -> TokenizedRows:
    """Token ids as they are batched, out of one list a row for each input."""
    lengths = np.array([len(row) for row in ids["input_ids"]], dtype=np.int64)
    return TokenizedRows(
        {name: np.fromiter(chain.from_iterable(rows), np.int32) for name, rows in ids.items()},
        lengths.cumsum() - lengths,
        lengths,
        np.zeros(len(lengths), dtype=np.bool_),
    )


def in_fast_precision(model: torch.nn.Module) -> torch.nn.Module:
    """A copy for inference, in bfloat16 where that is fast."""
    dtype = torch.bfloat16 if bf16_is_fast() else torch.float32
    return copy.deepcopy(model).to(dtype).eval().requires_grad_(False)


def refuse_unfitted(rival: Rival, trained: bool) -> None:
    """Refuse a rival that has nothing trained yet."""
    if not trained:
        raise InputError(f"{type(rival).__name__} is not trained yet; call fit first")


def runtime_of(model: torch.nn.Module) -> str:
    """What the runtime of a model in memory is called."""
    return "torch-bf16" if next(model.parameters()).dtype == torch.bfloat16 else "torch"


def refuse_not_finite(rival: Rival, logits: NDArray[np.float32]) -> None:
    """Refuse answers that are none."""
    bad = ~np.isfinite(logits).all(axis=1)
    if bad.any():
        raise CascadeError(
            f"{type(rival).__name__} gave logits that are not finite for row {bad.argmax()}; "
            "its weights are broken, train it again with a smaller learning rate"
        )
