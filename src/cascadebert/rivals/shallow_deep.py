"""BranchyNet and Shallow-Deep Networks: all exits trained at once, exits by probability.

BranchyNet (Teerapittayanon et al., ICPR 2016, arXiv 1709.01686) trains all exits jointly with a
weighted sum of their losses. Shallow-Deep Networks (Kaya et al., ICML 2019, arXiv 1810.07052) do so
too, and give what is here: weights tau_i of the inner exits that grow in the course of the training
from 0.01 to their share of the network's depth, with 1 for the last (section 3, trained jointly),
and a row leaves by the first exit whose largest probability is q or more (section 5.1).

Other than there: exits sit after every layer of an encoder, not at chosen places of a convolutional
network; a row that no exit is sure of is answered by the last one, where the authors' code takes
the surest of all; rows that stay are batched anew after each layer. BranchyNet has fixed weights
and exits by entropy, which is :func:`~cascadebert.rivals.deebert.entropy_below`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerState

from cascadebert.rivals.early_exit import EarlyExit, Phase, exit_losses
from cascadebert.rivals.network import ExitNetwork
from cascadebert.rivals.regrouping import Leaves
from cascadebert.training.losses import confidence

FIRST_WEIGHT = 0.01


class ShallowDeep(EarlyExit):
    """Exits where the largest probability is the knob or more: above 1 is never."""

    knobs = (1.1, *(1 - np.geomspace(1e-6, 0.99, 80)).tolist())

    def phases(self) -> Sequence[Phase]:
        return (Phase(_joint),)

    def leaves(self, network: ExitNetwork, knob: float, rows: int) -> Leaves:  # noqa: ARG002
        return lambda _, logits, *__: confidence(logits.float()) >= knob


def _joint(
    network: ExitNetwork, inputs: Mapping[str, Tensor], labels: Tensor, state: TrainerState
) -> Tensor:
    losses = exit_losses(network(**inputs), labels)
    weights = exit_weights(network.depth, state.global_step / max(state.max_steps, 1))
    return (weights.to(losses.device) * losses).sum()


def exit_weights(depth: int, done: float) -> Tensor:
    """Weights tau_i of the exits' losses, (depth,).

    Args:
        depth: number of layers.
        done: share of the training that lies behind, 0 to 1.
    """
    share = torch.arange(1, depth + 1) / depth
    weights = FIRST_WEIGHT + min(max(done, 0.0), 1.0) * (share - FIRST_WEIGHT)
    weights[-1] = 1.0
    return weights
