"""PABEE (Zhou et al., NeurIPS 2020, arXiv 2006.04152): exits when enough layers in a row agree.

Section 3.2, inference: a counter goes up by one where an exit agrees with the one before (of a
regression: differs by less than a threshold) and back to 0 where it does not; a row leaves when the
counter reaches the patience t. Section 3.3, training: all exits jointly, with the mean of their
losses weighted by layer, sum_j j L_j / sum_j j.

Other than in the authors' code: it answers one row at a time, and here every row of a batch has its
own counter and leaves when it is reached; and its exits share one pooler under a linear layer each,
where here every exit has a pooler of its own, as DeeBERT's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import TrainerState

from cascadebert.errors import InputError
from cascadebert.rivals.early_exit import EarlyExit, Phase, Recording, exit_losses, refuse_speedup
from cascadebert.rivals.network import ExitNetwork
from cascadebert.rivals.regrouping import Leaves
from cascadebert.rivals.rival import refuse_unfitted


class PABEE(EarlyExit):
    """Exits when the answer has stayed the same over as many layers more as the knob says.

    Args:
        checkpoint: folder or hub name of a pre-trained encoder.
        tolerance: of a regression, how little two answers may differ and still agree.
        settings: those of :class:`EarlyExit`. Of a network of 2 layers no row leaves early, as two
            answers are there only after the last.

    Raises:
        InputError: a tolerance that is not above 0.
    """

    regressions = True

    def __init__(
        self, checkpoint: str | PathLike[str], *, tolerance: float = 0.1, **settings: Any
    ) -> None:
        super().__init__(checkpoint, **settings)
        if not tolerance > 0:
            raise InputError(f"a tolerance of {tolerance} is not possible; give more than 0")
        self._tolerance = tolerance

    knob_range = (1.0, float("inf"))

    @property
    def knobs(self) -> Sequence[float]:
        refuse_unfitted(self, self._trained)
        return range(self.network.depth, 0, -1)

    def knob_for(self, recording: Recording, speedup: float) -> float:
        """The patience that comes nearest; see :meth:`EarlyExit.knob_for`."""
        refuse_speedup(speedup)
        return min(self.knobs, key=lambda knob: abs(self.layers_speedup(recording, knob) - speedup))

    def phases(self) -> Sequence[Phase]:
        return (Phase(_weighted),)

    def leaves(self, network: ExitNetwork, knob: float, rows: int) -> Leaves:  # noqa: ARG002
        agreed = np.zeros(rows, dtype=np.int64)
        before = np.full(rows, np.nan)
        apart = self._tolerance if self._regression else 0.5

        def leaves(_: int, logits: Tensor, __: Tensor, here: NDArray[np.int64]) -> Tensor:
            answers = logits[:, 0] if self._regression else logits.argmax(dim=1)
            now = answers.double().cpu().numpy()
            agreed[here] = np.where(np.abs(now - before[here]) < apart, agreed[here] + 1, 0)
            before[here] = now
            return torch.from_numpy(agreed[here] >= knob).to(logits.device)

        return leaves


def _weighted(
    network: ExitNetwork, inputs: Mapping[str, Tensor], labels: Tensor, _: TrainerState
) -> Tensor:
    losses = exit_losses(network(**inputs), labels)
    weights = torch.arange(1, network.depth + 1, device=losses.device)
    return (weights * losses).sum() / weights.sum()
