"""The common interface of rivals: ``fit``, ``predict`` at a knob, and the cost of the answers."""

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
    """A rival's answers to rows.

    Attributes:
        logits: float32 of shape (rows, outputs), in the order of the rival's labels.
        layer: number of layers that each row went through, int64 of shape (rows,).
        tokens: length of each row after truncation, int64 of shape (rows,).
    """

    logits: NDArray[np.float32]
    layer: NDArray[np.int64]
    tokens: NDArray[np.int64]


class Rival(ABC):
    """An alternative to a cascade.

    Attributes:
        labels: names in the order of the logits, after :meth:`fit`; empty for a regression.
    """

    labels: list[str]

    @property
    @abstractmethod
    def knobs(self) -> Sequence[float]:
        """Settings to try, from the slowest; empty where there is only one."""

    @abstractmethod
    def fit(self, rows: Any) -> Self:
        """Train on labelled rows, as :func:`~cascadebert.rows.rows.as_rows` takes them.

        Raises:
            ArtifactError: the checkpoint cannot be opened, or lacks weights.
            InputError: the rows are unusable, have fewer than two labels, or the method does not
                support the encoder.
            TrainingError: the loss was not finite.
        """

    @abstractmethod
    def predict(self, rows: Any, knob: float | None = None) -> RivalAnswers:
        """Answer rows, in bfloat16 where that is fast.

        Args:
            rows: are accepted as by :func:`~cascadebert.rows.rows.as_rows`.
            knob: is one of :attr:`knobs` or a value between two; by default the slowest setting.

        Raises:
            InputError: the rows are unusable, the knob is invalid, or :meth:`fit` was not called.
            CascadeError: a logit is not finite.
        """

    @abstractmethod
    def cost(self, answers: RivalAnswers) -> NDArray[np.float64]:
        """Counted floating point operations of each row, shape (rows,)."""

    @property
    @abstractmethod
    def model(self) -> Any:
        """A classifier in fp32 that answers at the slowest setting, for
        :func:`~cascadebert.rivals.stage.as_stage`.
        """


class Static(Rival):
    """A single classifier without early exits.

    Args:
        checkpoint: is the folder or hub name to start from.
        max_length: truncates rows to this many tokens, or to the positions of the model.
        arguments: override the ``TrainingArguments`` of
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
        self._row_tokenizer = RowTokenizer(model, tokenizer, self._max_length)
        self._counted: StageCost = model_cost(model, self._row_tokenizer.inputs)
        self._model = model
        return self

    @abstractmethod
    def _train(self, rows: Rows) -> tuple[Any, PreTrainedTokenizerBase]:
        """A classifier trained on checked rows with labels, on the CPU, and its tokenizer."""

    def predict(self, rows: Any, knob: float | None = None) -> RivalAnswers:
        model, checked = self.model, as_rows(rows)
        if knob is not None:
            raise InputError(f"{type(self).__name__} has only one setting; remove knob={knob}")
        tokens = self._row_tokenizer(checked)
        logits = np.empty((len(checked), model.config.num_labels), dtype=np.float32)
        budget = self._running.token_budgets[1]
        for positions in token_batches(tokens.lengths, budget, self._row_tokenizer.most):
            batch = tokens.batch(positions, self._row_tokenizer.padding, self._row_tokenizer.most)
            logits[positions] = self._running(batch)()
        refuse_not_finite(self, logits)
        layer = np.full(len(checked), model.config.num_hidden_layers, dtype=np.int64)
        return RivalAnswers(logits, layer, tokens.lengths)

    def cost(self, answers: RivalAnswers) -> NDArray[np.float64]:
        refuse_unfitted(self, self._model is not None)
        return self._counted.row_flops(answers.tokens)


class FineTuned(Static):
    """A single classifier from ``fine_tune``, with another start or other options.

    Args:
        checkpoint: is the folder or hub name to start from.
        output: is a folder to keep the ordinary checkpoint in.
        settings: are those of :class:`Static`.
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
        """The checkpoint to start from; created in ``folder`` if needed."""
        return self._checkpoint

    def _options(self, rows: Rows) -> Mapping[str, Any]:  # noqa: ARG002
        """Further arguments of :func:`~cascadebert.training.fine_tuning.fine_tune`."""
        return {}


class RowTokenizer:
    """Tokenizes rows for a model.

    Args:
        model: is a model of transformers.
        tokenizer: is the model's tokenizer.
        max_length: truncates rows to this many tokens, or to the positions of the model.

    Raises:
        InputError: ``max_length`` is less than 3.

    Attributes:
        inputs: names of the model's inputs.
        padding: padding id of each input but the attention mask.
        most: number of tokens that rows are truncated to.
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
    """Rows ready for batching, from one list of token ids per row for each input."""
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
    """Refuse a rival that is not trained."""
    if not trained:
        raise InputError(f"{type(rival).__name__} is not trained yet; call fit first")


def runtime_of(model: torch.nn.Module) -> str:
    """Name of the runtime of a model in memory."""
    return "torch-bf16" if next(model.parameters()).dtype == torch.bfloat16 else "torch"


def refuse_not_finite(rival: Rival, logits: NDArray[np.float32]) -> None:
    """Refuse logits that are not finite."""
    bad = ~np.isfinite(logits).all(axis=1)
    if bad.any():
        raise CascadeError(
            f"{type(rival).__name__} gave logits that are not finite for row {bad.argmax()}; "
            "its weights are broken, train it again with a smaller learning rate"
        )
