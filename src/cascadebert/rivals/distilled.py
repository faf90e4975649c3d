"""Vanilla distillation (Hinton et al., arXiv 1503.02531): a model learns a larger one's logits.

The smaller model is a complete one, or begins as the first layers of a larger one, as DistilBERT
(Sanh et al., arXiv 1910.01108) and patient distillation (Sun et al., arXiv 1908.09355) begin. The
loss is that of section 2 of Hinton et al.: the cross-entropy with the labels, and T² times the KL
divergence from the teacher's distribution at temperature T;
:class:`~cascadebert.training.losses.Objective` weighs the two.

Other than DistilBERT, nothing is distilled before the fine-tuning.
"""

from __future__ import annotations

import tempfile
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from cascadebert.data import Rows
from cascadebert.rivals.first_layers import first_layers
from cascadebert.rivals.rival import Static
from cascadebert.training.checkpoints import open_checkpoint, open_config, own_labels
from cascadebert.training.losses import Objective
from cascadebert.training.outputs import outputs_of


class Distilled(Static):
    """A smaller classifier that learnt from a larger one.

    Args:
        checkpoint: folder or hub name of the pre-trained encoder.
        teacher: folder or hub name of a fine-tuned classifier; its labels, in their order, are the
            smaller one's.
        layers: that are kept of the encoder, from the first; by default all.
        settings: those of :class:`~cascadebert.rivals.rival.Static`.
    """

    def __init__(
        self,
        checkpoint: str | PathLike[str],
        teacher: str | PathLike[str],
        *,
        layers: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(checkpoint, **settings)
        self._teacher = teacher
        self._layers = layers

    def _train(self, rows: Rows) -> tuple[Any, PreTrainedTokenizerBase]:
        labels = own_labels(open_config(fspath(self._teacher)))
        with tempfile.TemporaryDirectory() as scratch:
            encoder = self._checkpoint
            if self._layers is not None:
                encoder = first_layers(encoder, self._layers, Path(scratch) / "encoder")
            tuned = self._fine_tune(
                encoder,
                rows,
                Path(scratch) / "tuned",
                labels=labels,
                objective=Objective("distillation"),
                teacher=outputs_of(self._teacher, rows, max_length=self._max_length),
            )
            return open_checkpoint(tuned, attention=None)
