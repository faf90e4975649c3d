"""What all early exits share: training in phases, answers at a knob, what they cost."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from cascadebert.data import Rows, evenly
from cascadebert.errors import InputError
from cascadebert.machine import usable_cores
from cascadebert.rivals.fitting import Loss, train
from cascadebert.rivals.network import ExitNetwork
from cascadebert.rivals.regrouping import ExitAnswers, Leaves, run_with_exits
from cascadebert.training.encoding import Collator, EncodedRows, Encoder
from cascadebert.training.fine_tuning import label_order, open_encoder
from cascadebert.training.outputs import bf16_is_fast


@dataclass(frozen=True)
class Phase:
    """A part of a training.

    Attributes:
        loss: what is minimised.
        trains: whether the parameter of this name changes.
        before: called with the training rows before it begins.
    """

    loss: Loss
    trains: Callable[[str], bool] = lambda _: True
    before: Callable[[Rows], object] = lambda _: None


@dataclass(frozen=True)
class Recording:
    """What every exit of a network says of rows.

    Attributes:
        logits: float32 of shape (layers, rows, outputs).
        states: of the first token after all layers but the last, float32 of shape
            (layers - 1, rows, width).
    """

    logits: NDArray[np.float32]
    states: NDArray[np.float32]


class EarlyExit(ABC):
    """One network in which rows leave after as many layers as they need.

    Args:
        checkpoint: folder or hub name of a pre-trained encoder.
        layers: that are kept, from the first; by default all.
        regression: whether labels are numbers.
        max_length: tokens a row is truncated at.
        arguments: ``TrainingArguments`` over those of
            :func:`~cascadebert.training.fine_tuning.default_arguments`, for each phase.

    Attributes:
        labels: names in the order of the logits, after :meth:`fit`; none of a regression.
        network: what is trained.

    Raises:
        InputError: an architecture that no exits can be built into.
    """

    knobs: Sequence[float]
    """Values to try for :meth:`predict`, from no exits to the most."""

    def __init__(
        self,
        checkpoint: str | PathLike[str],
        *,
        layers: int | None = None,
        regression: bool = False,
        max_length: int = 128,
        **arguments: Any,
    ) -> None:
        if regression and not self.regressions:
            raise InputError(f"{type(self).__name__} is for classes; use PABEE or BERxiT")
        self._checkpoint = checkpoint
        self._layers = layers
        self._regression = regression
        self._max_length = max_length
        self._arguments = arguments

    regressions = False
    """Whether the method is defined for regressions."""

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """The parts of the training, one after another."""

    @abstractmethod
    def leaves(self, network: ExitNetwork, knob: float, rows: int) -> Leaves:
        """The rule by which rows leave, for one pass over them.

        Args:
            network: that is run.
            knob: one of :attr:`knobs` or what lies between.
            rows: their number.
        """

    def build(self, outputs: int, encoder: Any) -> ExitNetwork:
        """The network before it is trained."""
        return ExitNetwork(encoder, outputs, self._layers)

    def fit(self, rows: Rows) -> Self:
        """Train on labelled rows.

        Raises:
            InputError: fewer than two labels, or one of a regression that is not a number.
        """
        self.labels = [] if self._regression else label_order(rows, None)
        torch.manual_seed(int(self._arguments.get("seed", 0)))
        # The head of the classifier is thrown away: each exit has its own.
        classifier, self._tokenizer = open_encoder(
            self._checkpoint, self.labels or ["0", "1"], self._max_length
        )
        self.network = self.build(max(len(self.labels), 1), classifier.base_model)
        for phase in self.phases():
            self._run(phase, rows)
        self.network.eval()
        dtype = torch.bfloat16 if bf16_is_fast() else torch.float32
        self._fast = copy.deepcopy(self.network).to(dtype).requires_grad_(False)
        return self

    def predict(self, rows: Rows, knob: float) -> ExitAnswers:
        """Answer rows, in bfloat16 where that is fast.

        Args:
            rows: labels are not used.
            knob: how readily rows leave; see the class.
        """
        return self.run(self._fast, rows, self.leaves(self._fast, knob, len(rows)))

    def run(self, network: ExitNetwork, rows: Rows, leaves: Leaves) -> ExitAnswers:
        """Rows through ``network`` with any rule."""
        if next(network.parameters()).device.type == "cpu":
            torch.set_num_threads(usable_cores())
        encoded = self._encode(rows)
        padding = {"input_ids": int(self._tokenizer.pad_token_id or 0)}
        return run_with_exits(network, encoded, padding, leaves, most=self._max_length)

    def record(self, rows: Rows) -> Recording:
        """What every exit says of every row."""
        network = self._fast
        logits = np.empty((network.depth, len(rows), network.outputs), np.float32)
        states = np.empty((network.depth - 1, len(rows), network.width), np.float32)

        def keep(number: int, own: Tensor, first: Tensor, positions: NDArray[np.int64]) -> Tensor:
            logits[number - 1, positions] = own.float().cpu().numpy()
            states[number - 1, positions] = first.float().cpu().numpy()
            return torch.zeros(len(own), dtype=torch.bool, device=own.device)

        logits[-1] = self.run(network, rows, keep).logits
        return Recording(logits, states)

    def replay(self, recording: Recording, knob: float) -> ExitAnswers:
        """What :meth:`predict` would answer, without running anything."""
        layers, rows, _ = recording.logits.shape
        leaves = self.leaves(self._fast, knob, rows)
        dtype = next(self._fast.parameters()).dtype
        layer = np.full(rows, layers, dtype=np.int64)
        here = np.arange(rows)
        with torch.inference_mode():
            for number in range(1, layers):
                logits, states = (
                    torch.from_numpy(values[number - 1, here]).to(dtype)
                    for values in (recording.logits, recording.states)
                )
                gone = leaves(number, logits, states, here).cpu().numpy()
                layer[here[gone]] = number
                here = here[~gone]
        return ExitAnswers(recording.logits[layer - 1, np.arange(rows)], layer)

    def _encode(self, rows: Rows) -> dict[str, list[list[int]]]:
        pairs = None if rows.pairs is None else list(rows.pairs)
        encoded = self._tokenizer(
            list(rows.texts), pairs, truncation=True, max_length=self._max_length
        )
        return {name: encoded[name] for name in encoded if name != "attention_mask"}

    def batches(self, rows: Rows, most: int, batch_size: int = 16) -> Iterator[dict[str, Tensor]]:
        """Some of the labelled rows, evenly drawn, as a loss takes them, with ``labels``."""
        data = self._dataset(rows.take(evenly(len(rows), most).tolist()))
        collate = Collator(self._tokenizer)
        for start in range(0, len(data), batch_size):
            part = [data[i] for i in range(start, min(start + batch_size, len(data)))]
            yield {name: ids for name, ids in collate(part).items() if name != "row"}

    def _dataset(self, rows: Rows) -> EncodedRows:
        encode = Encoder(self._tokenizer, self.labels, self._max_length)
        if self.labels:
            return encode(rows, {})
        data = encode(Rows(rows.texts, rows.pairs), {})
        data.columns = {**data.columns, "labels": _numbers(rows)}
        return data

    def _run(self, phase: Phase, rows: Rows) -> None:
        phase.before(rows)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(phase.trains(name))
        collate = Collator(self._tokenizer)
        train(self.network, self._dataset(rows), collate, phase.loss, self._arguments)


def exit_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of every exit, the mean over the rows, (layers,).

    Cross-entropy; of one output the squared error.

    Args:
        logits: (layers, rows, outputs).
        labels: class indices or float values, (rows,).
    """
    return torch.stack([exit_loss(own, labels) for own in logits])


def exit_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of one exit; see :func:`exit_losses`.

    Args:
        logits: (rows, outputs).
        labels: class indices or float values, (rows,).
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        return functional.mse_loss(logits[:, 0], labels.float())
    return functional.cross_entropy(logits, labels)


def layers_speedup(answers: ExitAnswers, depth: int) -> float:
    """Layers of the whole network over the mean of those that rows went through."""
    return float(depth / answers.layer.mean())


def _numbers(rows: Rows) -> list[np.float32]:
    try:
        return [np.float32(label) for label in rows.labels or ()]
    except ValueError as error:
        raise InputError(f"a label of a regression is not a number ({error})") from error
