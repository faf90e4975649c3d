"""The matrices of an encoder's layers, whatever its architecture calls them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cascadebert.errors import InputError

ARCHITECTURES = ("bert", "electra", "mpnet", "roberta", "xlm-roberta")
KINDS = HEADS, COLUMNS = ("heads", "columns")
"""Of attention; of the feed-forward network."""


@dataclass(frozen=True)
class Block:
    """One layer: attention and feed-forward network.

    Attributes:
        layer: transformers' own module.
        attention: the module in it that has query, key and value.
        names: what it calls these three.
        out: (owner, name) of the projection of the heads' results.
    """

    layer: Any
    attention: Any
    names: tuple[str, str, str]
    out: tuple[Any, str]

    @property
    def up(self) -> Any:
        """Owner of the first matrix of the feed-forward network, called ``dense``."""
        return self.layer.intermediate

    @property
    def down(self) -> Any:
        """Owner of the second, called ``dense`` too."""
        return self.layer.output

    @property
    def projections(self) -> list[nn.Linear]:
        """Query, key and value, each with as many rows as all heads are wide."""
        return [getattr(self.attention, name) for name in self.names]

    @property
    def heads(self) -> int:
        return int(self.attention.num_attention_heads)

    @property
    def head_width(self) -> int:
        return int(self.attention.attention_head_size)

    @property
    def columns(self) -> int:
        """Width of the feed-forward network."""
        return int(self.up.dense.out_features)

    def reader(self, kind: str) -> Any:
        """The linear layer that reads the results of all heads or columns."""
        return getattr(*self.out) if kind == HEADS else self.down.dense

    def groups(self, kind: str, read: Callable[[Any], Tensor]) -> Tensor:
        """What belongs to each head or column, one row each.

        Args:
            kind: :data:`HEADS` or :data:`COLUMNS`.
            read: takes a linear layer, gives a tensor of the shape of its weights.
        """
        if kind == HEADS:
            inner, count = self.projections, self.heads
        else:
            inner, count = [self.up.dense], self.columns
        parts = [*(read(module) for module in inner), read(self.reader(kind)).T]
        return torch.cat([part.reshape(count, -1) for part in parts], dim=1)

    def taylor(self, kind: str) -> Tensor:
        """|sum of w dL/dw| over weights of each head or column, out of gradients that are there.

        Of a head these are the weights that read its result, so that it is the first-order change
        of the loss without the head. Of a column they are those before and after it, as MoEBERT has
        it.

        Returns:
            float32 of shape (groups,), on the CPU.
        """
        if kind == HEADS:
            terms = _weight_times_gradient(self.reader(kind)).T.reshape(self.heads, -1)
        else:
            terms = self.groups(kind, _weight_times_gradient)
        return terms.sum(dim=1).detach().abs().cpu()

    def keep_heads(self, kept: Sequence[int]) -> None:
        """Leave only these heads, in this order; the matrices are replaced by smaller ones."""
        width = self.head_width
        at = torch.tensor([head * width + i for head in kept for i in range(width)])
        for name in self.names:
            setattr(self.attention, name, _rows(getattr(self.attention, name), at))
        owner, name = self.out
        setattr(owner, name, _columns(getattr(owner, name), at))
        self.attention.num_attention_heads = len(kept)
        self.attention.all_head_size = len(at)
        if self.names[0] == "q":
            # MPNet adds a bias that every layer shares, one a head.
            heads = torch.tensor(kept)
            before = getattr(self.attention, "kept_heads", None)
            if before is None:
                self.attention.register_forward_pre_hook(_own_bias)
            own = heads if before is None else before[heads.to(before.device)]
            self.attention.register_buffer("kept_heads", own, persistent=False)

    def keep_columns(self, kept: Tensor) -> None:
        """Leave only these columns of the feed-forward network, int64 of shape (kept,)."""
        self.up.dense = _rows(self.up.dense, kept)
        self.down.dense = _columns(self.down.dense, kept)


def blocks(encoder: Any) -> list[Block]:
    """The layers of an encoder of one of :data:`ARCHITECTURES`, first to last.

    Raises:
        InputError: another architecture.
    """
    refuse_other_architecture(encoder.config.model_type)
    found = []
    for layer in encoder.encoder.layer:
        if encoder.config.model_type == "mpnet":
            attention = layer.attention.attn
            names, out = ("q", "k", "v"), (attention, "o")
        else:
            attention = layer.attention.self
            names, out = ("query", "key", "value"), (layer.attention.output, "dense")
        found.append(Block(layer, attention, names, out))
    return found


def refuse_other_architecture(name: str) -> None:
    """Refuse an encoder whose layers are not known here.

    Raises:
        InputError: see above.
    """
    if name not in ARCHITECTURES:
        raise InputError(
            f"the layers of {name!r} are not known; use one of {', '.join(ARCHITECTURES)}"
        )


def _own_bias(attention: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of MPNet's attention, with the bias of the heads that are left."""
    return (*given[:2], given[2][:, attention.kept_heads], *given[3:])


def _weight_times_gradient(linear: nn.Linear) -> Tensor:
    assert linear.weight.grad is not None
    return linear.weight * linear.weight.grad


def _rows(linear: nn.Linear, kept: Tensor) -> nn.Linear:
    return _linear(linear.weight[kept], linear.bias[kept])


def _columns(linear: nn.Linear, kept: Tensor) -> nn.Linear:
    return _linear(linear.weight[:, kept], linear.bias)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight = nn.Parameter(weight.detach().clone())
    made.bias = nn.Parameter(bias.detach().clone())
    return made
