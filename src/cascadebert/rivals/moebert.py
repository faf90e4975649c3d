"""MoEBERT (Zuo et al., NAACL 2022, arXiv 2204.07675): feed-forward networks cut into experts.

- Importance score (:func:`importances`): of column j of a feed-forward network the sum over rows
  (x, y) of |w1_j . dL(x, y)/dw1_j + w2_j . dL(x, y)/dw2_j|.
- Adaptation (:func:`expert_columns`): every expert gets the s most important columns, and expert e
  of N the columns e, e + N, e + 2N ... of the rest, by falling importance.
- Routing (:class:`Routes`): a token goes to one expert, fixed by a random hash of its id.
- Layer-wise distillation (:func:`distillation_loss`): the cross-entropy plus lambda times the sum
  over the embeddings and all layers of the mean squared distance from the dense model's hidden
  states, and the symmetric KL divergence of the answers.

As in the authors' code, shared columns are copied into each expert and go their own ways after,
where the paper shares them.

Other than in the code: the hash gives every expert as many ids; experts share the output bias and
the layer norm; padding takes no part in the distances; the importance is taken over some rows.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerState

from cascadebert.errors import InputError
from cascadebert.export.checkpoints import open_checkpoint, own_labels
from cascadebert.rivals.blocks import COLUMNS, Block, blocks
from cascadebert.rivals.fitting import train
from cascadebert.rivals.rival import RowTokenizer, Static
from cascadebert.rows.rows import Rows, evenly
from cascadebert.training.encoding import Collator, Encoder
from cascadebert.training.fine_tuning import label_order

HASH_SEED = 0


class Routes(nn.Module):
    """Which expert each token of the batch at hand goes to.

    Args:
        vocabulary: number of token ids.
        experts: number of experts.
    """

    of_token: Tensor

    def __init__(self, vocabulary: int, experts: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(HASH_SEED)
        # Every expert gets as many ids as any other, give or take one.
        order = torch.randperm(vocabulary, generator=generator)
        of_token = torch.empty(vocabulary, dtype=torch.int64)
        of_token[order] = torch.arange(vocabulary) % experts
        self.register_buffer("of_token", of_token, persistent=False)
        self.current: Tensor | None = None

    def read(self, input_ids: Tensor) -> None:
        """Take up a batch, int64 of shape (rows, tokens)."""
        self.current = self.of_token[input_ids]


class Experts(nn.Module):
    """A feed-forward network of which each token runs through one expert.

    Args:
        block: the dense layer.
        columns: of each expert, int64 of shape (columns,).
        routes: shared by all layers.
    """

    def __init__(self, block: Block, columns: Sequence[Tensor], routes: Routes) -> None:
        super().__init__()
        up, down = block.up.dense, block.down.dense
        self._activation = block.up.intermediate_act_fn
        self._routes = routes
        self.up_weight = nn.Parameter(torch.stack([up.weight[own] for own in columns]).detach())
        self.up_bias = nn.Parameter(torch.stack([up.bias[own] for own in columns]).detach())
        self.down_weight = nn.Parameter(
            torch.stack([down.weight[:, own] for own in columns]).detach()
        )
        self.down_bias = nn.Parameter(down.bias.detach().clone())

    def forward(self, hidden: Tensor) -> Tensor:
        """What the dense layer's two matrices would give, (rows, tokens, width)."""
        routes = self._routes.current
        assert routes is not None
        tokens = hidden.flatten(0, 1)
        chosen = routes.flatten()
        order = chosen.argsort(stable=True)
        counts = chosen.bincount(minlength=len(self.up_weight)).tolist()
        parts = [
            functional.linear(
                self._activation(
                    functional.linear(part, self.up_weight[expert], self.up_bias[expert])
                ),
                self.down_weight[expert],
                self.down_bias,
            )
            for expert, part in enumerate(torch.split(tokens[order], counts))
        ]
        out = torch.cat(parts)
        return torch.empty_like(out).index_copy(0, order, out).view_as(hidden)


def with_experts(
    encoder: Any,
    importance: Sequence[Tensor],
    *,
    experts: int = 4,
    width: int = 768,
    shared: int = 512,
) -> Any:
    """A copy of an encoder with experts in the place of its feed-forward networks.

    Args:
        encoder: of one of :data:`~cascadebert.rivals.blocks.ARCHITECTURES`, without a head.
        importance: of the columns of each layer, (columns,); see :func:`importances`.
        experts: how many a layer gets.
        width: columns of each.
        shared: columns that each begins with, the most important.

    Raises:
        InputError: more columns than there are.
    """
    chosen = [
        expert_columns(own, experts=experts, width=width, shared=shared) for own in importance
    ]
    made = copy.deepcopy(encoder)
    routes = Routes(made.get_input_embeddings().num_embeddings, experts)
    for block, columns in zip(blocks(made), chosen, strict=True):
        block.down.dense = Experts(block, columns, routes)
        block.layer.intermediate = nn.Identity()
    made.token_routes = routes
    made.register_forward_pre_hook(_read_routes, with_kwargs=True)
    return made


def _read_routes(encoder: Any, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Take up the tokens that an encoder is about to read.

    By way of the encoder, so that a copy of it has routes of its own.
    """
    encoder.token_routes.read(named["input_ids"] if "input_ids" in named else given[0])


def expert_columns(importance: Tensor, *, experts: int, width: int, shared: int) -> list[Tensor]:
    """Columns of each expert: the most important ones, then every N-th of the rest.

    Raises:
        InputError: no expert, fewer columns than one is to have, or more shared than it has.
    """
    if experts < 1 or not 1 <= shared <= width <= shared + (len(importance) - shared) // experts:
        raise InputError(
            f"experts of {width} columns, {shared} of them shared, are not possible: there are "
            f"{len(importance)} columns for {experts} experts"
        )
    order = importance.argsort(descending=True, stable=True)
    rest = order[shared:]
    return [
        torch.cat([order[:shared], rest[expert::experts][: width - shared]])
        for expert in range(experts)
    ]


def distillation_loss(
    logits: Tensor,
    states: Sequence[Tensor],
    teacher_logits: Tensor,
    teacher_states: Sequence[Tensor],
    attention_mask: Tensor,
) -> Tensor:
    """What is added to the cross-entropy, without its weight.

    Args:
        logits: (rows, classes).
        states: after the embeddings and after each layer, (rows, tokens, width) each.
        teacher_logits: of the dense model.
        teacher_states: of the dense model.
        attention_mask: 1 where there is a token, (rows, tokens).
    """
    tokens = attention_mask.bool()
    apart = [
        functional.mse_loss(own.float()[tokens], other.detach().float()[tokens])
        for own, other in zip(states, teacher_states, strict=True)
    ]
    own = logits.float().log_softmax(dim=1)
    other = teacher_logits.detach().float().log_softmax(dim=1)
    forth, back = (
        functional.kl_div(first, second, reduction="batchmean", log_target=True)
        for first, second in ((own, other), (other, own))
    )
    return torch.stack(apart).sum() + (forth + back) / 2


def importances(model: Any, batches: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """Of every feed-forward column of a fine-tuned classifier, a tensor (columns,) a layer.

    Args:
        model: a classifier whose encoder has a known architecture.
        batches: what it takes, with ``labels``; the paper has one sum over all rows, and a row a
            batch is nearest to it.
    """
    layers = blocks(model.base_model)
    found = [torch.zeros(block.columns) for block in layers]
    model.eval()
    for batch in batches:
        model.zero_grad()
        model(**batch).loss.backward()
        for own, block in zip(found, layers, strict=True):
            own += block.taylor(COLUMNS)
    model.zero_grad()
    return found


class MoEBERT(Static):
    """A fine-tuned classifier whose feed-forward networks become experts, and learn from it.

    Args:
        checkpoint: a fine-tuned classifier, the dense model.
        experts, width, shared: see :func:`with_experts`.
        distillation_weight: lambda, of :func:`distillation_loss` beside the cross-entropy.
        importance_rows: training rows that the importance is taken over.
        settings: those of :class:`~cascadebert.rivals.rival.Static`.

    Raises:
        InputError: a weight that is negative or no number, no rows for the importance; of
            :meth:`fit` also experts that are not possible.
    """

    def __init__(
        self,
        checkpoint: str | PathLike[str],
        *,
        experts: int = 4,
        width: int = 768,
        shared: int = 512,
        distillation_weight: float = 5.0,
        importance_rows: int = 512,
        **settings: Any,
    ) -> None:
        super().__init__(checkpoint, **settings)
        if not 0 <= distillation_weight < float("inf") or importance_rows < 1:
            raise InputError(
                f"a distillation weight of {distillation_weight} and {importance_rows} rows for "
                "the importance are not possible; give 0 or more and 1 or more"
            )
        self._shape = {"experts": experts, "width": width, "shared": shared}
        self._weight = distillation_weight
        self._importance_rows = importance_rows

    def _train(self, rows: Rows) -> tuple[Any, PreTrainedTokenizerBase]:
        teacher: Any
        teacher, tokenizer = open_checkpoint(self._checkpoint, attention=None)
        names = label_order(rows, own_labels(teacher.config))
        most = RowTokenizer(teacher, tokenizer, self._max_length).most
        data = Encoder(tokenizer, names, most)(rows, {})
        collate = Collator(tokenizer)
        some = evenly(len(data), self._importance_rows).tolist()
        batches = [
            {name: ids for name, ids in collate([data[i]]).items() if name != "row"} for i in some
        ]
        dense = copy.deepcopy(teacher).requires_grad_(True)
        found = importances(dense, batches)
        setattr(
            dense,
            dense.base_model_prefix,
            with_experts(dense.base_model, found, **self._shape),
        )
        train(dense, data, collate, partial(self._loss, teacher), self._arguments)
        dense.config.trained_on = rows.texts_fingerprint()
        return dense, tokenizer

    def _loss(
        self,
        teacher: Any,
        model: Any,
        inputs: Mapping[str, Tensor],
        labels: Tensor,
        _: TrainerState,
    ) -> Tensor:
        with torch.no_grad():
            taught = teacher.to(labels.device)(**inputs, output_hidden_states=True)
        own = model(**inputs, output_hidden_states=True)
        apart = distillation_loss(
            own.logits,
            own.hidden_states,
            taught.logits,
            taught.hidden_states,
            inputs["attention_mask"],
        )
        return functional.cross_entropy(own.logits.float(), labels) + self._weight * apart
