"""BERxiT (Xin et al., EACL 2021): alternating fine-tuning and learning to exit.

Section 3.2, alternating fine-tuning: every other step minimises the last exit's loss alone, the
steps between the sum of all exits' losses. Section 3.3, learning to exit: one linear layer, shared
by all layers, gives the certainty u_i = sigmoid(c . h_i + b) that exit i is right, trained with the
squared error to whether it is (of a regression: to 1 - tanh |error|), in which the exit's answer is
a constant. A row leaves at the first layer whose certainty is above a threshold. The authors' code
stores 1 - u and leaves below.

Other than in the code: h_i is the layer's state of the first token, as in the paper, or what else
the exits read, not that state after the pooler; the last exit, which answers whatever comes to it,
learns no certainty; rows that stay are batched anew after each layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerState

from cascadebert.rivals.early_exit import EarlyExit, Phase, exit_loss, exit_losses
from cascadebert.rivals.network import ExitNetwork
from cascadebert.rivals.regrouping import Leaves


class CertainNetwork(ExitNetwork):
    """A network with exits that says of each how certain it is; see :class:`ExitNetwork`."""

    def __init__(self, *made: Any) -> None:
        super().__init__(*made)
        self.certain = nn.Linear(self.width, 1)

    def certainty(self, states: Tensor) -> Tensor:
        """That the exit is right, 0 to 1, (..., rows).

        Args:
            states: that the exits read, (..., rows, width).
        """
        certainty: Tensor = self.certain(states)[..., 0].float().sigmoid()
        return certainty


class BERxiT(EarlyExit):
    """Exits where the learnt certainty is above the knob: 1 is never."""

    regressions = True
    network_class = CertainNetwork
    knob_range = (0.0, 1.0)
    knobs = (1.0, *(1 - np.geomspace(1e-6, 0.99, 80)).tolist())

    def phases(self) -> Sequence[Phase]:
        return (Phase(_alternating),)

    def leaves(self, network: ExitNetwork, knob: float, rows: int) -> Leaves:  # noqa: ARG002
        assert isinstance(network, CertainNetwork)
        return lambda _, __, states, ___: network.certainty(states) > knob


def _alternating(
    network: ExitNetwork, inputs: Mapping[str, Tensor], labels: Tensor, state: TrainerState
) -> Tensor:
    assert isinstance(network, CertainNetwork)
    states = network.states(inputs)
    if state.global_step % 2 == 0:
        return exit_loss(network.exits[-1](states[-1]), labels)
    logits = network.off_ramps(states)
    losses = exit_losses(logits, labels)
    certainty = network.certainty(states[:-1])
    apart = (certainty - rightness(logits[:-1], labels)).square().mean(dim=1)
    return losses.sum() + apart.sum()


def rightness(logits: Tensor, labels: Tensor) -> Tensor:
    """What the certainty learns, (layers, rows), without a gradient.

    Args:
        logits: (layers, rows, outputs).
        labels: class indices or float values, (rows,).
    """
    if logits.shape[2] == 1:
        return 1 - torch.tanh((logits.detach()[..., 0].float() - labels).abs())
    return (logits.argmax(dim=2) == labels).float()
