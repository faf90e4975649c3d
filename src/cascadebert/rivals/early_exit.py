"""What all early exits share: training in phases, answers at a knob, what they cost."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from cascadebert.errors import InputError
from cascadebert.export.checkpoints import open_checkpoint, own_labels
from cascadebert.export.costs import count_flops
from cascadebert.machine import thread_count
from cascadebert.persistence.record import polynomial
from cascadebert.rivals.fitting import Loss, train
from cascadebert.rivals.network import FIRST, ExitNetwork, Head, LastExit, head_of
from cascadebert.rivals.regrouping import Leaves, run_with_exits
from cascadebert.rivals.rival import (
    Rival,
    RivalAnswers,
    RowTokenizer,
    in_fast_precision,
    refuse_not_finite,
    refuse_unfitted,
)
from cascadebert.rows.rows import Rows, as_rows, evenly
from cascadebert.runtimes import ACCELERATOR_TOKEN_BUDGETS, CPU_TOKEN_BUDGETS
from cascadebert.runtimes.torch import available_device, limited_threads
from cascadebert.training.encoding import Collator, EncodedRows, Encoder
from cascadebert.training.fine_tuning import label_order, open_encoder

# From any knob to its neighbour in float64, nearly.
_HALVINGS = 50


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
    """The answers of every exit of a network to rows.

    Attributes:
        logits: float32 of shape (layers, rows, outputs).
        states: that all exits but the last read, float32 of shape (layers - 1, rows, width).
        tokens: of each row, int64 (rows,).
    """

    logits: NDArray[np.float32]
    states: NDArray[np.float32]
    tokens: NDArray[np.int64]


class EarlyExit(Rival):
    """One network in which rows leave after as many layers as they need.

    Args:
        checkpoint: folder or hub name of a pre-trained encoder, or of a fine-tuned classifier.
        fine_tuned: whether it is a classifier that was fine-tuned already, on these labels: then
            every exit begins with its head. Not of ELECTRA, whose head is another.
        pooling: what all exits but the last read of a row, of
            :data:`~cascadebert.rivals.network.POOLINGS`.
        layers: that are kept, from the first; by default all.
        regression: whether labels are numbers, written as strings.
        max_length: tokens a row is cut at, where the encoder has so many positions; a fine-tuned
            classifier's own tokenizer may cut it earlier.
        exit_learning_rate: of the exits; by default the encoder's.
        arguments: ``TrainingArguments`` over those of
            :func:`~cascadebert.training.fine_tuning.default_arguments`, for each phase.

    Attributes:
        network: what is trained, on the CPU.

    Raises:
        InputError: a regression by a method that is for classes, or out of a classifier.
    """

    regressions = False
    """Whether the method is defined for regressions."""

    network_class: type[ExitNetwork] = ExitNetwork
    """What the network is."""

    knob_range = (0.0, float("inf"))
    """The least and the largest knob that mean something."""

    _trained = False
    _fast: Any = None

    def __init__(
        self,
        checkpoint: str | PathLike[str],
        *,
        fine_tuned: bool = False,
        pooling: str = FIRST,
        layers: int | None = None,
        regression: bool = False,
        max_length: int = 128,
        exit_learning_rate: float | None = None,
        **arguments: Any,
    ) -> None:
        if regression and not self.regressions:
            raise InputError(f"{type(self).__name__} is for classes; use PABEE or BERxiT")
        if regression and fine_tuned:
            raise InputError("a regression begins with a pre-trained encoder; leave fine_tuned out")
        self._checkpoint = checkpoint
        self._fine_tuned = fine_tuned
        self._pooling = pooling
        self._layers = layers
        self._regression = regression
        self._max_length = max_length
        self._exit_rate = exit_learning_rate
        self._arguments = arguments

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

    def build(self, outputs: int, encoder: Any, head: Head | None) -> ExitNetwork:
        """The network before it is trained; see :class:`ExitNetwork`."""
        return self.network_class(encoder, outputs, self._layers, head, self._pooling)

    def fit(self, rows: Any) -> Self:
        rows = as_rows(rows, with_labels=True)
        self._trained, self._fast = False, None
        torch.manual_seed(int(self._arguments.get("seed", 0)))
        classifier, self._tokenizer, head = self._open(rows)
        self._row_tokenizer = RowTokenizer(classifier, self._tokenizer, self._max_length)
        self.network = self.build(len(self.labels) or 1, classifier.base_model, head)
        if self.network.depth < 2:
            raise InputError("a network of 1 layer has no early exit; keep 2 layers or more")
        for phase in self.phases():
            self._run(phase, rows)
        self.network.eval().requires_grad_(False)
        self._before, self._whole = (
            count_flops(run, self._row_tokenizer.inputs)
            for run in (self.network.begin, lambda example: self.network(**example))
        )
        self.network.encoder.config.trained_on = rows.texts_fingerprint()
        self._trained = True
        return self

    def _open(self, rows: Rows) -> tuple[Any, Any, Head | None]:
        """What the network is made from, its tokenizer and its head; and settle the labels."""
        if self._fine_tuned:
            classifier, tokenizer = open_checkpoint(self._checkpoint, attention=None)
            self.labels = label_order(rows, own_labels(classifier.config))
            return classifier, tokenizer, head_of(classifier)
        self.labels = [] if self._regression else label_order(rows, None)
        # The head of the classifier is thrown away, whatever its labels: each exit has its own.
        names = self.labels or ["0", "1"]
        classifier, tokenizer = open_encoder(self._checkpoint, names, self._max_length)
        # Nor are the two outputs there that a regression was opened with.
        classifier.config.num_labels = len(self.labels) or 1
        return classifier, tokenizer, None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_fast": None}

    @property
    def fast(self) -> Any:
        """The network as it answers: on the accelerator, in bfloat16 where that is fast."""
        refuse_unfitted(self, self._trained)
        if self._fast is None:
            self._fast = in_fast_precision(self.network).to(available_device())
        return self._fast

    @property
    def model(self) -> LastExit:
        refuse_unfitted(self, self._trained)
        return LastExit(self.network)

    def predict(self, rows: Any, knob: float | None = None) -> RivalAnswers:
        checked = as_rows(rows)
        rule = self._rule(self.knobs[0] if knob is None else knob, len(checked))
        return self._through(checked, rule)

    def _rule(self, knob: float, rows: int) -> Leaves:
        """The rule of a knob; one that means nothing is refused."""
        network = self.fast
        least, most = self.knob_range
        if not least <= knob <= most:
            raise InputError(
                f"{type(self).__name__} knows no knob of {knob}; give {least:g} to {most:g}, "
                f"of which {self.knobs[0]:g} is slow and {self.knobs[-1]:g} fast"
            )
        return self.leaves(network, knob, rows)

    def cost(self, answers: RivalAnswers) -> NDArray[np.float64]:
        """See :meth:`Rival.cost`; an exit belongs to its layer."""
        refuse_unfitted(self, self._trained)
        before, whole = (
            polynomial(counted, answers.tokens) for counted in (self._before, self._whole)
        )
        spent: NDArray[np.float64] = before + (whole - before) * answers.layer / self.network.depth
        return spent

    def _through(self, rows: Rows, leaves: Leaves) -> RivalAnswers:
        """Checked rows through the network with any rule."""
        on_cpu = next(self.fast.parameters()).device.type == "cpu"
        with limited_threads(thread_count() if on_cpu else None):
            answers = run_with_exits(
                self.fast,
                self._row_tokenizer(rows),
                self._row_tokenizer.padding,
                leaves,
                token_budget=(CPU_TOKEN_BUDGETS if on_cpu else ACCELERATOR_TOKEN_BUDGETS)[1],
                most=self._row_tokenizer.most,
            )
        refuse_not_finite(self, answers.logits)
        return answers

    def record(self, rows: Any) -> Recording:
        """Run every layer and every exit on every row."""
        network, rows = self.fast, as_rows(rows)
        logits = np.empty((network.depth, len(rows), network.outputs), np.float32)
        states = np.empty((network.depth - 1, len(rows), network.width), np.float32)

        def keep(number: int, own: Tensor, read: Tensor, positions: NDArray[np.int64]) -> Tensor:
            logits[number - 1, positions] = own.float().cpu().numpy()
            states[number - 1, positions] = read.float().cpu().numpy()
            return torch.zeros(len(own), dtype=torch.bool, device=own.device)

        answers = self._through(rows, keep)
        logits[-1] = answers.logits
        return Recording(logits, states, answers.tokens)

    def replay(self, recording: Recording, knob: float) -> RivalAnswers:
        """What :meth:`predict` would answer but for rounding, without running anything."""
        layers, rows, _ = recording.logits.shape
        leaves = self._rule(knob, rows)
        like = next(self.fast.parameters())
        layer = np.full(rows, layers, dtype=np.int64)
        here = np.arange(rows)
        with torch.inference_mode():
            for number in range(1, layers):
                ramp, states = (
                    torch.from_numpy(values[number - 1, here]).to(like)
                    for values in (recording.logits, recording.states)
                )
                gone = leaves(number, ramp, states, here).cpu().numpy()
                layer[here[gone]] = number
                here = here[~gone]
        logits = recording.logits[layer - 1, np.arange(rows)]
        return RivalAnswers(logits, layer, recording.tokens)

    def knob_for(self, recording: Recording, speedup: float) -> float:
        """The knob with which rows go through so many times fewer layers, or nearest to it.

        Args:
            recording: of rows like those to come.
            speedup: layers of the network over the mean of those that a row goes through.

        Raises:
            InputError: a speed-up that is no number above 0.
        """
        refuse_speedup(speedup)
        slow, fast = float(self.knobs[0]), float(self.knobs[-1])
        for _ in range(_HALVINGS):
            middle = (slow + fast) / 2
            if self.layers_speedup(recording, middle) < speedup:
                slow = middle
            else:
                fast = middle
        return min(
            (slow, fast), key=lambda knob: abs(self.layers_speedup(recording, knob) - speedup)
        )

    def layers_speedup(self, recording: Recording, knob: float) -> float:
        """Layers of the network over the mean of those that recorded rows go through."""
        return float(self.network.depth / self.replay(recording, knob).layer.mean())

    def batches(self, rows: Rows, most: int, batch_size: int = 16) -> Iterator[dict[str, Tensor]]:
        """Some of the labelled rows, evenly drawn, as a loss takes them, with ``labels``."""
        data = self._dataset(rows.take(evenly(len(rows), most).tolist()))
        collate = Collator(self._tokenizer)
        for start in range(0, len(data), batch_size):
            part = [data[i] for i in range(start, min(start + batch_size, len(data)))]
            yield {name: ids for name, ids in collate(part).items() if name != "row"}

    def _dataset(self, rows: Rows) -> EncodedRows:
        encode = Encoder(self._tokenizer, self.labels, self._row_tokenizer.most)
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
        exits = [own for name, own in self.network.named_parameters() if not in_encoder(name)]
        train(
            self.network,
            self._dataset(rows),
            collate,
            phase.loss,
            self._arguments,
            apart=exits,
            rate_apart=self._exit_rate,
        )


def refuse_speedup(speedup: float) -> None:
    """Refuse a speed-up that is not a positive number."""
    if not 0 < speedup < float("inf"):
        raise InputError(f"a speed-up of {speedup} is not possible; give a number above 0")


def in_encoder(name: str) -> bool:
    """Whether a parameter of an exit network, by its name, is not of an exit."""
    return name.startswith("encoder.")


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


def _numbers(rows: Rows) -> list[np.float32]:
    try:
        numbers = [np.float32(label) for label in rows.labels or ()]
    except ValueError as error:
        raise InputError(f"a label of a regression is not a number ({error})") from error
    for row, number in enumerate(numbers):
        if not np.isfinite(number):
            raise InputError(f"row {row}: the label of a regression is {number}; fix or remove it")
    return numbers
