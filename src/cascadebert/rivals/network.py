"""An encoder with an exit after every layer, which can be run one layer at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from cascadebert.errors import InputError
from cascadebert.rivals.blocks import refuse_other_architecture


@dataclass(frozen=True)
class Surroundings:
    """What every layer reads beside the hidden states.

    Attributes:
        mask: 0 where there is a token and very negative where there is padding, of shape
            (rows, 1, 1, tokens).
        position_bias: what MPNet adds to its attention scores, (1, heads, tokens, tokens).
    """

    mask: Tensor
    position_bias: Tensor | None

    @property
    def tokens(self) -> Tensor:
        """Where there is a token and no padding, bool of shape (rows, tokens)."""
        return self.mask[:, 0, 0] == 0

    def take(self, rows: Tensor | slice) -> Surroundings:
        """The same for some of the rows."""
        return Surroundings(self.mask[rows], self.position_bias)


class Exit(nn.Module):
    """A classifier on one state a row: a layer with tanh as BERT's pooler, then logits."""

    def __init__(self, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, outputs)

    def forward(self, states: Tensor) -> Tensor:
        """Logits (rows, outputs) of states (rows, width)."""
        logits: Tensor = self.out(self.dropout(torch.tanh(self.dense(states))))
        return logits


FIRST, MEAN = POOLINGS = ("first", "mean")
"""What an exit reads of a row: the state of its first token, as in the papers, or the mean of all,
where the encoder was pre-trained with that and the first token says little before the end."""

Head = tuple[nn.Linear, nn.Linear]
"""What an exit consists of, but for the tanh between the two layers."""


def head_of(classifier: Any) -> Head:
    """The head of a fine-tuned classifier.

    Raises:
        InputError: another architecture, or a head of another shape.
    """
    refuse_other_architecture(classifier.config.model_type)
    head = classifier.classifier
    if isinstance(head, nn.Linear):
        return classifier.base_model.pooler.dense, head
    if classifier.config.model_type == "electra":
        raise InputError(
            "the head of an 'electra' classifier is not that of an exit, which has a tanh; give "
            "the pre-trained encoder, with fine_tuned=False"
        )
    return head.dense, head.out_proj


class ExitNetwork(nn.Module):
    """An encoder under one :class:`Exit` a layer.

    Args:
        encoder: of one of :data:`~cascadebert.rivals.blocks.ARCHITECTURES`, without a head.
        outputs: classes, or 1 for a regression.
        layers: that are kept, from the first; by default all.
        head: of a fine-tuned classifier, which every exit begins with. By default exits are
            random, but for a pre-trained pooler.
        pooling: what inner exits read, of :data:`POOLINGS`; the last one reads the first token.

    Raises:
        InputError: another architecture or pooling, or more layers than there are.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        outputs: int,
        layers: int | None = None,
        head: Head | None = None,
        pooling: str = FIRST,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise InputError(f"exits cannot read {pooling!r}; give one of {', '.join(POOLINGS)}")
        config: Any = encoder.config
        refuse_other_architecture(config.model_type)
        kept = config.num_hidden_layers if layers is None else layers
        if not 1 <= kept <= config.num_hidden_layers:
            raise InputError(
                f"{kept} layers are asked for; the encoder has {config.num_hidden_layers}"
            )
        self.encoder = cast(Any, encoder)
        self.encoder.encoder.layer = self.encoder.encoder.layer[:kept]
        config.num_hidden_layers = kept
        self.outputs = outputs
        self.pooling = pooling
        self.width = int(config.hidden_size)
        self.exits = nn.ModuleList(
            Exit(config.hidden_size, outputs, config.hidden_dropout_prob) for _ in range(kept)
        )
        for one in cast(list[Exit], self.exits):
            for module in (one.dense, one.out):
                nn.init.normal_(module.weight, std=config.initializer_range)
                nn.init.zeros_(module.bias)
            # Where the encoder was pre-trained with one, every exit begins with its pooler.
            pooler = getattr(self.encoder, "pooler", None)
            if pooler is not None:
                one.dense.load_state_dict(pooler.dense.state_dict())
            if head is not None:
                one.dense.load_state_dict(head[0].state_dict())
                one.out.load_state_dict(head[1].state_dict())

    @property
    def depth(self) -> int:
        """Number of layers, each with an exit."""
        return len(self.exits)

    def begin(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Surroundings]:
        """The embeddings, (rows, tokens, width), and what the layers read beside them.

        Args:
            inputs: ``input_ids``, ``attention_mask`` and what else the tokenizer made, each int64
                of shape (rows, tokens).
        """
        read = {name: ids for name, ids in inputs.items() if name != "attention_mask"}
        hidden = self.encoder.embeddings(**read)
        if hasattr(self.encoder, "embeddings_project"):
            hidden = self.encoder.embeddings_project(hidden)
        padding = inputs["attention_mask"][:, None, None, :] == 0
        mask = torch.zeros(padding.shape, dtype=hidden.dtype, device=hidden.device)
        mask = mask.masked_fill(padding, torch.finfo(hidden.dtype).min)
        inner = self.encoder.encoder
        bias = (
            inner.compute_position_bias(hidden[:1])
            if hasattr(inner, "compute_position_bias")
            else None
        )
        return hidden, Surroundings(mask, bias)

    def layer(self, number: int, hidden: Tensor, surroundings: Surroundings) -> Tensor:
        """Hidden states after a layer, of the shape of those before it.

        Args:
            number: of the layer, from 1.
            hidden: (rows, tokens, width).
            surroundings: of the same rows.
        """
        module = self.encoder.encoder.layer[number - 1]
        bias = surroundings.position_bias
        more = () if bias is None else (bias,)
        out = module(hidden, surroundings.mask, *more)
        states: Tensor = out[0] if isinstance(out, tuple) else out
        return states

    def hidden_states(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The embeddings and what comes after every layer, each (rows, tokens, width)."""
        hidden, surroundings = self.begin(inputs)
        found = [hidden]
        for number in range(1, self.depth + 1):
            found.append(self.layer(number, found[-1], surroundings))
        return found

    def read(self, number: int, hidden: Tensor, tokens: Tensor) -> Tensor:
        """What the exit after a layer reads, (rows, width).

        Args:
            number: of the layer, from 1.
            hidden: after that layer, (rows, tokens, width).
            tokens: nonzero where there is a token and no padding, (rows, tokens).
        """
        if self.pooling == FIRST or number == self.depth:
            return hidden[:, 0]
        kept = tokens.to(hidden.dtype)
        return (kept[:, None] @ hidden)[:, 0] / kept.sum(dim=1, keepdim=True)

    def read_all(self, hidden: Sequence[Tensor], tokens: Tensor) -> Tensor:
        """What every exit reads, (layers, rows, width), of the states after every layer."""
        return torch.stack(
            [self.read(number, own, tokens) for number, own in enumerate(hidden, start=1)]
        )

    def states(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What every exit reads, (layers, rows, width), of what the tokenizer made."""
        return self.read_all(self.hidden_states(inputs)[1:], inputs["attention_mask"])

    def off_ramps(self, states: Tensor) -> Tensor:
        """Logits of every exit, (layers, rows, outputs), out of :meth:`states`."""
        return torch.stack([ramp(own) for ramp, own in zip(self.exits, states, strict=True)])

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits of every exit, (layers, rows, outputs)."""
        return self.off_ramps(self.states(inputs))


class LastExit(nn.Module):
    """A network with exits as a classifier of transformers' kind, whose every row goes to the end.

    Attributes:
        config: of the encoder, with the names of the labels.
    """

    def __init__(self, network: ExitNetwork) -> None:
        super().__init__()
        self.network = network
        self.config: Any = network.encoder.config

    def forward(self, **inputs: Tensor) -> SequenceClassifierOutput:
        """Logits (rows, outputs) of what the tokenizer made."""
        depth, hidden = self.network.depth, self.network.hidden_states(inputs)[-1]
        read = self.network.read(depth, hidden, inputs["attention_mask"])
        return SequenceClassifierOutput(logits=self.network.exits[-1](read))
