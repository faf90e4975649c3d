"""BERT-kL: the first k layers of an encoder, fine-tuned; the static baseline of arXiv 2012.14682.

Section 2 compares it with complete models of k layers, which were pre-trained as such. The result
is an ordinary checkpoint: it can be a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from torch import nn

from cascadebert.errors import InputError, first_line
from cascadebert.export.checkpoints import open_to_train, read_config
from cascadebert.rivals.rival import FineTuned
from cascadebert.runtimes.quiet import quiet


class FirstLayers(FineTuned):
    """The first layers of an encoder, fine-tuned.

    Args:
        checkpoint: folder or hub name of the pre-trained encoder.
        layers: how many are kept.
        settings: those of :class:`~cascadebert.rivals.rival.FineTuned`.
    """

    def __init__(self, checkpoint: str | PathLike[str], layers: int, **settings: Any) -> None:
        super().__init__(checkpoint, **settings)
        self._layers = layers

    def _start(self, folder: Path) -> Path:
        return some_layers(self._checkpoint, self._layers, folder)


def some_layers(
    checkpoint: str | PathLike[str], layers: int | Sequence[int], output: str | PathLike[str]
) -> Path:
    """Save some layers of an encoder or a classifier, to be fine-tuned by ``fine_tune``.

    Args:
        checkpoint: folder or hub name.
        layers: how many are kept, from the first; or the numbers of those that are, from 1 on, in
            their order.
        output: folder for the smaller checkpoint, with its tokenizer. The head of a classifier
            stays.

    Raises:
        ArtifactError: it cannot be opened, or lacks weights.
        InputError: there are no such layers, or they cannot change their place.
    """
    config: Any = read_config(fspath(checkpoint))
    depth = config.num_hidden_layers
    kept = list(layers) if isinstance(layers, Sequence) else list(range(1, layers + 1))
    if not kept or kept != sorted(set(kept) & set(range(1, depth + 1))):
        raise InputError(
            f"layers {layers} of {fspath(checkpoint)} cannot be kept: it has layers 1 to {depth}; "
            "give how many of the first, or numbers that ascend"
        )
    types = getattr(config, "layer_types", None)
    if types:
        config.layer_types = [types[number - 1] for number in kept]
    config.num_hidden_layers = len(kept)
    model, tokenizer, fresh = open_to_train(checkpoint, config=config)
    if kept != list(range(1, len(kept) + 1)):
        _take_layers(model, open_to_train(checkpoint)[0], kept)
    # What is random is drawn when the training begins, by its seed.
    known = {name: own for name, own in model.state_dict().items() if name not in fresh}
    with quiet():
        model.save_pretrained(output, state_dict=known)
        tokenizer.save_pretrained(output)
    return Path(output)


def _take_layers(model: Any, whole: Any, kept: Sequence[int]) -> None:
    """Give a model of fewer layers the weights of some layers of the whole one."""
    every = _layers_of(whole)
    for own, number in zip(_layers_of(model), kept, strict=True):
        try:
            own.load_state_dict(every[number - 1].state_dict())
        except RuntimeError as error:
            raise InputError(
                f"layer {number} of a '{model.config.model_type}' cannot take the place of "
                f"another, which has other weights; keep the first layers ({first_line(error)})"
            ) from error


def _layers_of(model: Any) -> nn.ModuleList:
    found = [
        module
        for module in model.base_model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers
    ]
    if len(found) != 1:
        raise InputError(
            f"which weights are a layer of '{model.config.model_type}' is not known; keep the "
            "first layers, by their number"
        )
    return found[0]
