"""DeeBERT (Xin et al., ACL 2020, arXiv 2004.12993): exits by entropy, trained in two stages.

Section 3.1: first the encoder and the last off-ramp are fine-tuned with L_n, then they are frozen,
and all off-ramps but the last are trained with the sum of L_i for i < n (equation 1 is L_i, the
cross-entropy of off-ramp i). Section 3.2: a row leaves by the first off-ramp whose distribution has
an entropy below S.

Other than in the paper: rows of a batch leave one by one and the rest is batched anew, where the
authors' code takes one row at a time; and the entropy is taken of log-probabilities, which never
gives a NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor
from transformers import TrainerState

from cascadebert.rivals.early_exit import EarlyExit, Phase, exit_loss, exit_losses, in_encoder
from cascadebert.rivals.network import ExitNetwork
from cascadebert.rivals.regrouping import Leaves


class DeeBERT(EarlyExit):
    """Exits where the entropy, in nats, is below the knob: 0 is never.

    Out of all layers of a fine-tuned classifier the first stage is left out: it fine-tuned that.
    """

    knobs = (0.0, *np.geomspace(1e-5, 20.0, 80).tolist())

    def phases(self) -> Sequence[Phase]:
        last = f"exits.{self.network.depth - 1}."

        def in_first(name: str) -> bool:
            return in_encoder(name) or name.startswith(last)

        done = self._fine_tuned and self._layers is None
        first = () if done else (Phase(_last_exit, in_first),)
        return (*first, Phase(_other_exits, lambda name: not in_first(name)))

    def leaves(self, network: ExitNetwork, knob: float, rows: int) -> Leaves:  # noqa: ARG002
        return entropy_below(knob)


def entropy_below(knob: float) -> Leaves:
    """Rows leave where the entropy of the exit, in nats, is below ``knob``."""
    return lambda _, logits, *__: entropy(logits) < knob


def entropy(logits: Tensor) -> Tensor:
    """Of the softmax, in nats, (rows,).

    Args:
        logits: (rows, classes).
    """
    log_p = logits.float().log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def _last_exit(
    network: ExitNetwork, inputs: Mapping[str, Tensor], labels: Tensor, _: TrainerState
) -> Tensor:
    return exit_loss(network.exits[-1](network.states(inputs)[-1]), labels)


def _other_exits(
    network: ExitNetwork, inputs: Mapping[str, Tensor], labels: Tensor, _: TrainerState
) -> Tensor:
    return exit_losses(network(**inputs)[:-1], labels).sum()
