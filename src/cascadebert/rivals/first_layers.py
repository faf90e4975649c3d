"""BERT-kL: the first k layers of an encoder, fine-tuned; the static baseline of arXiv 2012.14682.

Section 2 compares it with complete models of k layers, which were pre-trained as such. The result
is an ordinary checkpoint: it can be a stage.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoTokenizer

from cascadebert.errors import InputError
from cascadebert.training.logs import quiet


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
