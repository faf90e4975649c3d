"""Vanilla distillation (Hinton et al., arXiv 1503.02531): a model learns a larger one's logits.

The smaller model is a complete one, or begins as some layers of a larger one: as the first, as
patient distillation does (Sun et al., arXiv 1908.09355), or as every other, as DistilBERT does
(Sanh et al., arXiv 1910.01108, section 3). The loss is that of section 2 of Hinton et al.: the
cross-entropy with the labels, and T² times the KL divergence from the teacher's distribution at
temperature T; :class:`~cascadebert.Objective` weighs the two.

Other than DistilBERT, nothing is distilled before the fine-tuning; other than patient distillation,
only the logits are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from cascadebert.export.checkpoints import open_config, own_labels
from cascadebert.rivals.first_layers import some_layers
from cascadebert.rivals.rival import FineTuned
from cascadebert.rows.rows import Rows
from cascadebert.training.objective import Objective
from cascadebert.training.outputs import outputs_of


class Distilled(FineTuned):
    """A smaller classifier that learnt from a larger one.

    Args:
        checkpoint: folder or hub name of a pre-trained encoder, or of a classifier such as the
            teacher itself.
        teacher: folder or hub name of a fine-tuned classifier; its labels, in their order, are the
            smaller one's.
        layers: how many are kept of the checkpoint, from the first; or the numbers of those that
            are, from 1 on; by default all.
        settings: those of :class:`~cascadebert.rivals.rival.FineTuned`.
    """

    def __init__(
        self,
        checkpoint: str | PathLike[str],
        teacher: str | PathLike[str],
        *,
        layers: int | Sequence[int] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(checkpoint, **settings)
        self._teacher = teacher
        self._layers = layers

    def _start(self, folder: Path) -> str | PathLike[str]:
        if self._layers is None:
            return self._checkpoint
        return some_layers(self._checkpoint, self._layers, folder)

    def _options(self, rows: Rows) -> Mapping[str, Any]:
        return {
            "labels": own_labels(open_config(fspath(self._teacher))),
            "objective": Objective("distillation"),
            "teacher": outputs_of(self._teacher, rows, max_length=self._max_length),
        }
