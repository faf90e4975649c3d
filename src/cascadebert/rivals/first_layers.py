"""BERT-kL: the first k layers of an encoder, fine-tuned; the static baseline of arXiv 2012.14682.

Section 2 compares it with complete models of k layers, which were pre-trained as such. The result
is an ordinary checkpoint: it can be a stage.
"""

from __future__ import annotations

import tempfile
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from cascadebert.data import Rows
from cascadebert.errors import InputError
from cascadebert.rivals.rival import Static
from cascadebert.training.checkpoints import open_checkpoint
from cascadebert.training.logs import quiet


class FirstLayers(Static):
    """The first layers of an encoder, fine-tuned.

    Args:
        checkpoint: folder or hub name of the pre-trained encoder.
        layers: how many are kept.
        settings: those of :class:`~cascadebert.rivals.rival.Static`.
    """

    def __init__(self, checkpoint: str | PathLike[str], layers: int, **settings: Any) -> None:
        super().__init__(checkpoint, **settings)
        self._layers = layers

    def _train(self, rows: Rows) -> tuple[Any, PreTrainedTokenizerBase]:
        with tempfile.TemporaryDirectory() as scratch:
            encoder = first_layers(self._checkpoint, self._layers, Path(scratch) / "encoder")
            tuned = self._fine_tune(encoder, rows, Path(scratch) / "tuned")
            return open_checkpoint(tuned, attention=None)


def first_layers(checkpoint: str | PathLike[str], layers: int, output: str | PathLike[str]) -> Path:
    """Save the first layers of a pre-trained encoder, to be fine-tuned by ``fine_tune``.

    Args:
        checkpoint: folder or hub name of the encoder.
        layers: how many are kept.
        output: folder for the smaller encoder, with its tokenizer.

    Raises:
        InputError: the encoder has fewer layers.
    """
    with quiet():
        config = AutoConfig.from_pretrained(checkpoint)
        if not 1 <= layers <= config.num_hidden_layers:
            raise InputError(
                f"{layers} layers are asked for; {checkpoint} has {config.num_hidden_layers}"
            )
        config.num_hidden_layers = layers
        AutoModel.from_pretrained(checkpoint, config=config, use_safetensors=True).save_pretrained(
            output
        )
        AutoTokenizer.from_pretrained(checkpoint).save_pretrained(output)
    return Path(output)
