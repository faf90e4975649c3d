"""COST-EFF (Shen et al., EMNLP 2022, arXiv 2210.15523): a slender network with exits.

Every layer is made narrower and none is left out, so that the network can exit early too:

1. a dense network with an exit a layer is fine-tuned jointly, the teaching assistant;
2. in several steps, the heads and feed-forward columns with the smallest first-order Taylor terms,
   summed over the losses of all exits, are cut out, and word embeddings are factorised by a
   truncated singular value decomposition; after each step the network learns the assistant's hidden
   states and the answers of its exits;
3. it learns from the assistant once more, and from the labels;
4. rows leave where the entropy of an exit is below a threshold.

Gradients of exit i of n are scaled by 1 / (n - i + 1) on their way into the layers, and those from
the layers above by (n - i) / (n - i + 1), so that exits pull alike at what they share
(:func:`balanced`, the gradient equilibrium).

What is learnt from the assistant is the mean squared distance of the hidden states, over the
embeddings and all layers, plus the KL divergence of the answers, over all exits.

Other than in the authors' code: the assistant learns from labels, where theirs learns from a
fine-tuned model (here it may begin as one); a Taylor term is |sum of w dL/dw| over a head or column
(:meth:`~cascadebert.rivals.blocks.Block.taylor`), of the exits' cross-entropies on some rows, batch
by batch, where theirs sums absolute values weight by weight; there are few steps of pruning, each
with a training of its own, and the embeddings are factorised once, at the first; distances are
averaged over the layers, not summed; learning hidden states and answers is one phase, not two; rows
that stay are batched anew after each layer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Self

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from transformers import TrainerState

from cascadebert.errors import InputError
from cascadebert.rivals.blocks import COLUMNS, HEADS, blocks
from cascadebert.rivals.deebert import DeeBERT, entropy_below
from cascadebert.rivals.early_exit import EarlyExit, Phase, exit_losses
from cascadebert.rivals.network import ExitNetwork, Head
from cascadebert.rivals.regrouping import Leaves
from cascadebert.rows.rows import Rows
from cascadebert.training.distillation import logit_loss

TAYLOR_ROWS = 512
TEMPERATURE = 1.0


class COSTEFF(EarlyExit):
    """Exits where the entropy, in nats, is below the knob: 0 is never.

    Args:
        checkpoint: folder or hub name of a pre-trained encoder.
        width: share of the heads and of the columns that stay.
        embedding_rank: of the word embeddings in the end; None leaves them whole.
        prunes: steps in which it gets there, each a phase of training.
        settings: those of :class:`EarlyExit`; ``TrainingArguments`` are for each phase, of which
            there are ``prunes + 2``.

    Raises:
        InputError: a width not above 0 and up to 1, or fewer than one step; of :meth:`fit` also a
            rank above the width of the embeddings.
    """

    knobs = DeeBERT.knobs

    def __init__(
        self,
        checkpoint: str | PathLike[str],
        *,
        width: float = 0.5,
        embedding_rank: int | None = 128,
        prunes: int = 2,
        **settings: Any,
    ) -> None:
        super().__init__(checkpoint, **settings)
        if not 0 < width <= 1:
            raise InputError(f"a width of {width} is not possible; give more than 0, at most 1")
        if prunes < 1:
            raise InputError(f"{prunes} steps of pruning are too few; give 1 or more")
        self._width = width
        self._rank = embedding_rank
        self._prunes = prunes

    def build(self, outputs: int, encoder: Any, head: Head | None) -> ExitNetwork:
        self._assistant: ExitNetwork | None = None
        if self._rank is not None:
            refuse_rank(self._rank, encoder.embeddings.word_embeddings.embedding_dim)
        return super().build(outputs, encoder, head)

    def fit(self, rows: Any) -> Self:
        super().fit(rows)
        self._assistant = None
        return self

    def phases(self) -> Sequence[Phase]:
        shares = [
            1 - (1 - self._width) * step / self._prunes for step in range(1, self._prunes + 1)
        ]
        return (
            Phase(_joint),
            *(Phase(self._taught, before=self._pruner(share)) for share in shares),
            Phase(self._taught_and_told),
        )

    def leaves(self, network: ExitNetwork, knob: float, rows: int) -> Leaves:  # noqa: ARG002
        return entropy_below(knob)

    def _pruner(self, share: float) -> Any:
        def prune(rows: Rows) -> None:
            if self._assistant is None:
                self._assistant = copy.deepcopy(self.network).eval().requires_grad_(False)
                if self._rank is not None:
                    factorise_embeddings(self.network.encoder, self._rank)
            cut(self, rows, share)

        return prune

    def _taught(
        self, network: ExitNetwork, inputs: Mapping[str, Tensor], labels: Tensor, _: TrainerState
    ) -> Tensor:
        return self._from_assistant(network, inputs, labels)[0]

    def _taught_and_told(
        self, network: ExitNetwork, inputs: Mapping[str, Tensor], labels: Tensor, _: TrainerState
    ) -> Tensor:
        taught, logits = self._from_assistant(network, inputs, labels)
        return taught + exit_losses(logits, labels).mean()

    def _from_assistant(
        self, network: ExitNetwork, inputs: Mapping[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the assistant teaches, and the logits of all exits."""
        assert self._assistant is not None
        with torch.no_grad():
            expected = self._assistant.to(labels.device).hidden_states(inputs)
            read = self._assistant.read_all(expected[1:], inputs["attention_mask"])
            answers = self._assistant.off_ramps(read)
        found, logits = balanced(network, inputs)
        tokens = inputs["attention_mask"].bool()
        apart = [
            functional.mse_loss(own.float()[tokens], other.float()[tokens])
            for own, other in zip(found, expected, strict=True)
        ]
        learnt = [
            logit_loss(own, other, TEMPERATURE) for own, other in zip(logits, answers, strict=True)
        ]
        return torch.stack(apart).mean() + torch.stack(learnt).mean(), logits


def _joint(
    network: ExitNetwork, inputs: Mapping[str, Tensor], labels: Tensor, _: TrainerState
) -> Tensor:
    return exit_losses(balanced(network, inputs)[1], labels).mean()


def balanced(network: ExitNetwork, inputs: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """Hidden states, embeddings first, and the logits of all exits, with gradients rescaled.

    Args:
        network: with exits.
        inputs: what the tokenizer made.

    Returns:
        A list of (rows, tokens, width), and (layers, rows, outputs).
    """
    hidden, surroundings = network.begin(inputs)
    states, logits = [hidden], []
    for number in range(1, network.depth + 1):
        hidden = network.layer(number, hidden, surroundings)
        states.append(hidden)
        above = network.depth - number
        read = network.read(number, hidden, inputs["attention_mask"])
        logits.append(network.exits[number - 1](scaled(read, 1 / (above + 1))))
        hidden = scaled(hidden, above / (above + 1))
    return states, torch.stack(logits)


def scaled(values: Tensor, by: float) -> Tensor:
    """The same values, whose gradient is ``by`` times what comes back to them."""
    return values.detach() + by * (values - values.detach())


def cut(rival: EarlyExit, rows: Rows, share: float) -> None:
    """Leave a share of the heads and columns that the pre-trained encoder had, in every layer.

    Args:
        rival: whose network is cut.
        rows: labelled, for the Taylor terms.
        share: of the width at first that stays.
    """
    network = rival.network.eval().cpu().requires_grad_(True)
    layers = blocks(network.encoder)
    scores = {kind: [torch.zeros(()) for _ in layers] for kind in (HEADS, COLUMNS)}
    for batch in rival.batches(rows, TAYLOR_ROWS):
        network.zero_grad()
        labels = batch.pop("labels")
        torch.autograd.backward(exit_losses(network(**batch), labels).sum())
        for kind, sums in scores.items():
            sums[:] = [own + block.taylor(kind) for own, block in zip(sums, layers, strict=True)]
    network.zero_grad()
    config = network.encoder.config
    for number, block in enumerate(layers):
        heads, columns = (
            max(round(share * count), 1)
            for count in (config.num_attention_heads, config.intermediate_size)
        )
        block.keep_heads(best(scores[HEADS][number], heads).tolist())
        block.keep_columns(best(scores[COLUMNS][number], columns))


def best(scores: Tensor, count: int) -> Tensor:
    """Places of the ``count`` largest scores, in their order; int64."""
    return scores.topk(min(count, len(scores))).indices.sort().values


def refuse_rank(rank: int, width: int) -> None:
    """Refuse a rank that embeddings of a width cannot have."""
    if not 1 <= rank <= width:
        raise InputError(f"a rank of {rank} is not possible: embeddings are {width} wide")


def factorise_embeddings(encoder: Any, rank: int) -> None:
    """Put a product of two matrices in the place of the word embeddings, by truncated SVD.

    Args:
        encoder: changed in place.
        rank: width between the two.

    Raises:
        InputError: a rank above the embeddings' width.
    """
    table = encoder.embeddings.word_embeddings
    refuse_rank(rank, table.embedding_dim)
    left, sizes, right = torch.linalg.svd(table.weight.detach(), full_matrices=False)
    narrow = nn.Embedding(table.num_embeddings, rank, padding_idx=table.padding_idx)
    widen = nn.Linear(rank, table.embedding_dim, bias=False)
    with torch.no_grad():
        narrow.weight.copy_(left[:, :rank] * sizes[:rank])
        widen.weight.copy_(right[:rank].T)
    encoder.embeddings.word_embeddings = nn.Sequential(narrow, widen)
