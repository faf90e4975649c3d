"""Dynamic model pruning with feedback, DPF (Lin et al., ICLR 2020, arXiv 2006.07253).

The paper's algorithm 1: the dense weights w stay; every p steps the mask m is made anew from the
magnitudes of w, with a sparsity that grows as s_t = s - s (1 - t/T)^3
(:meth:`Pruning.sparsity_at`); the gradient is taken at m * w and applied to w,
w <- w - lr g(m * w), so that what was pruned may come back (:class:`_Masked`). Training ends with
m * w, without a phase of retraining.

Two forms: of single weights, as in the paper, which saves no time without sparse kernels; and of
whole heads and feed-forward columns, ranked by the root mean square of their weights among all
heads or columns of the network, of which every layer keeps one at least. Of these only the weights
that read their results are masked: were those that make the results masked too, both would get a
gradient of 0, and nothing would come back. The paper is about convolutional networks; here it is
the matrices of an encoder's layers, and the embeddings and the classifier are left alone.

:class:`DPF` does all of it. :class:`PruningCallback` prunes in any training by ``fine_tune``; what
comes of it is an ordinary checkpoint with zeros in it, and :func:`shrink` cuts the heads and
columns that are zero out of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from cascadebert.errors import InputError
from cascadebert.rivals.blocks import COLUMNS, HEADS, KINDS, Block, blocks
from cascadebert.rivals.rival import FineTuned
from cascadebert.rows.rows import Rows


class _Masked(nn.Module):
    """Gives m * w forward, and passes the gradient on to w as it is."""

    mask: Tensor

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(shape))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (weight * self.mask - weight).detach()


class Pruning:
    """Masks on the layers of an encoder in training.

    Args:
        encoder: of one of :data:`~cascadebert.rivals.blocks.ARCHITECTURES`, without a head; it is
            changed in place.
        sparsity: share that is pruned in the end, 0 or more and under 1.
        structured: whether whole heads and columns go, or single weights.

    Raises:
        InputError: a sparsity out of its range, or another architecture.
    """

    def __init__(self, encoder: Any, sparsity: float, *, structured: bool) -> None:
        refuse_sparsity(sparsity)
        self._blocks = blocks(encoder)
        self._sparsity = sparsity
        self._structured = structured
        for module in self._masked():
            parametrize.register_parametrization(module, "weight", _Masked(module.weight.shape))

    def sparsity_at(self, done: float) -> float:
        """The share that is pruned when ``done`` of the training lies behind, 0 to 1."""
        return self._sparsity - self._sparsity * (1 - min(max(done, 0.0), 1.0)) ** 3

    @torch.no_grad()
    def update(self, done: float) -> None:
        """Make the masks anew from the dense weights."""
        share = self.sparsity_at(done)
        if not self._structured:
            weights = [_mask_of(module) for module in self._masked()]
            sizes = torch.cat([dense.abs().flatten() for dense, _ in weights])
            least = _cut(sizes, share)
            for dense, mask in weights:
                mask.mask.copy_(dense.abs() >= least)
            return
        for kind in KINDS:
            for block, kept in zip(self._blocks, self._kept(share, kind), strict=True):
                across = _mask_of(block.reader(kind))[1].mask
                across.copy_(kept.repeat_interleave(across.shape[1] // len(kept)))

    def finish(self) -> None:
        """Put m * w in the place of the weights, and take the masks away."""
        for module in self._masked():
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)

    def _masked(self) -> Iterator[Any]:
        """The matrices that are masked."""
        for block in self._blocks:
            yield from (block.reader(kind) for kind in KINDS)
            if not self._structured:
                yield from (*block.projections, block.up.dense)

    def _kept(self, share: float, kind: str) -> list[Tensor]:
        """For each layer which heads or columns stay, bool."""
        scores = [_scores(block, kind) for block in self._blocks]
        least = _cut(torch.cat(scores), share)
        return [(own >= least) | (own == own.max()) for own in scores]


def refuse_sparsity(sparsity: float) -> None:
    """Refuse a share outside the valid range."""
    if not 0 <= sparsity < 1:
        raise InputError(f"a sparsity of {sparsity} is not possible; give 0 or more, under 1")


class PruningCallback(TrainerCallback):
    """Prunes the model that is trained, and makes the masks anew every few steps.

    Args:
        sparsity: share that is pruned in the end, 0 or more and under 1.
        structured: whether whole heads and columns go, or single weights.
        every: steps between two masks, the paper's p.
        until: share of the training after which the sparsity no longer grows.

    Raises:
        InputError: a setting out of its range; and in training, that it goes on from a checkpoint,
            in which the dense weights are not found again.
    """

    def __init__(
        self, sparsity: float, *, structured: bool, every: int = 16, until: float = 0.75
    ) -> None:
        refuse_sparsity(sparsity)
        if every < 1 or not 0 < until <= 1:
            raise InputError(
                f"masks every {every} steps until {until} of the training are not possible; give 1 "
                "step or more, and a share above 0 and up to 1"
            )
        self._sparsity = sparsity
        self._structured = structured
        self._every = every
        self._until = until

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        model: Any = None,
        **_: Any,
    ) -> None:
        if state.global_step:
            raise InputError(
                f"a training that prunes cannot go on from step {state.global_step}: what its "
                "checkpoints hold is not found again; start it anew"
            )
        # The parameters stay the same objects, so the optimiser goes on with the dense weights.
        self._pruning = Pruning(model.base_model, self._sparsity, structured=self._structured)

    def on_step_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        if state.global_step % self._every == 0:
            self._pruning.update(state.global_step / max(state.max_steps * self._until, 1))

    def on_train_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        self._pruning.update(1.0)
        self._pruning.finish()
        del self._pruning


class DPF(FineTuned):
    """A classifier pruned while it is fine-tuned.

    Args:
        checkpoint: folder or hub name of a pre-trained encoder, or of a classifier to go on with.
        sparsity, structured, every, until: see :class:`PruningCallback`. Only what is pruned in a
            structured way gets smaller and faster.
        settings: those of :class:`~cascadebert.rivals.rival.FineTuned`; the checkpoint in
            ``output`` has zeros in it, see :func:`shrink`.
    """

    def __init__(
        self,
        checkpoint: str | PathLike[str],
        sparsity: float,
        *,
        structured: bool = True,
        every: int = 16,
        until: float = 0.75,
        **settings: Any,
    ) -> None:
        super().__init__(checkpoint, **settings)
        self._callback = PruningCallback(sparsity, structured=structured, every=every, until=until)

    def _options(self, rows: Rows) -> Mapping[str, Any]:  # noqa: ARG002
        return {"callbacks": [self._callback]}

    def _train(self, rows: Rows) -> tuple[Any, PreTrainedTokenizerBase]:
        model, tokenizer = super()._train(rows)
        shrink(model.base_model)
        return model, tokenizer


@torch.no_grad()
def shrink(encoder: Any) -> None:
    """Cut out heads and feed-forward columns that nothing is read from; answers stay the same.

    Args:
        encoder: of one of :data:`~cascadebert.rivals.blocks.ARCHITECTURES`, changed in place. It
            can no longer be saved as an ordinary checkpoint.
    """
    for block in blocks(encoder):
        read = block.reader(HEADS).weight.abs().amax(dim=0).view(block.heads, -1).amax(dim=1) > 0
        # A layer needs one of each, also where it reads nothing.
        block.keep_heads(read.nonzero()[:, 0].tolist() or [0])
        columns = (block.reader(COLUMNS).weight.abs().amax(dim=0) > 0).nonzero()[:, 0]
        block.keep_columns(columns if len(columns) else torch.tensor([0]))


def _mask_of(module: Any) -> tuple[Tensor, _Masked]:
    """The dense weights and the mask of a matrix."""
    own = module.parametrizations.weight
    return own.original, own[0]


def _scores(block: Block, kind: str) -> Tensor:
    """Root mean square of the dense weights of each head or column."""
    return block.groups(kind, _dense).square().mean(dim=1).sqrt()


def _dense(module: Any) -> Tensor:
    own: Tensor = _mask_of(module)[0] if parametrize.is_parametrized(module) else module.weight
    return own


def _cut(scores: Tensor, share: float) -> Tensor:
    """What a score must reach so that ``share`` of them does not."""
    gone = int(share * len(scores))
    return scores.kthvalue(gone + 1).values
