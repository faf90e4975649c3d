"""Outputs of a fine-tuned stage, for the stages that learn from it and for difficulty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from cascadebert.export.checkpoints import maximum_length, open_checkpoint
from cascadebert.rows.rows import Rows
from cascadebert.runtimes.torch import available_device
from cascadebert.stages.batching import token_batches
from cascadebert.training.distillation import first_token_states, matched_layers

_TOKENS_A_BATCH = 4096


@dataclass(frozen=True)
class Outputs:
    """Outputs of a stage.

    Attributes:
        logits: float32 of shape (rows, classes).
        states: first-token hidden states of some layers, float16 of shape (rows, layers, width);
            or None.

    Examples:
        >>> Outputs(np.zeros((2, 3), dtype=np.float32)).states is None
        True
    """

    logits: NDArray[np.float32]
    states: NDArray[np.float16] | None = None


def outputs_of(
    checkpoint: str | PathLike[str],
    rows: Rows,
    *,
    max_length: int = 128,
    state_layers: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Outputs:
    """Run a fine-tuned classifier on rows, in bfloat16 if that is fast here, else in fp32.

    Args:
        checkpoint: names the folder or hub repository of a fine-tuned classifier.
        rows: gives the rows.
        max_length: truncates rows to this many tokens, or fewer if the model has fewer positions.
        state_layers: counts the layers of a student; its matching states are returned too.
        progress: is called with the number of rows after each batch.

    Raises:
        ArtifactError: the checkpoint cannot be opened.

    Examples:
        ::

            teacher = outputs_of("large", rows, state_layers=6)
            teacher.logits.shape, teacher.states.shape  # (rows, classes), (rows, 6, width)
    """
    model, tokenizer = open_checkpoint(checkpoint, attention=None, max_length=max_length)
    max_length = maximum_length(model, tokenizer, None)
    device = available_device()
    model = cast(Any, model).to(device)
    layers = matched_layers(state_layers, model.config.num_hidden_layers)[1] if state_layers else []
    pairs = None if rows.pairs is None else list(rows.pairs)
    encoded = tokenizer(list(rows.texts), pairs, truncation=True, max_length=max_length)
    lengths = np.array([len(ids) for ids in encoded["input_ids"]])
    logits = np.empty((len(rows), model.config.num_labels), dtype=np.float32)
    states = np.empty((len(rows), len(layers), model.config.hidden_size), dtype=np.float16)
    for positions in token_batches(lengths, _TOKENS_A_BATCH):
        batch = tokenizer.pad(
            {name: [values[i] for i in positions] for name, values in encoded.items()},
            return_tensors="pt",
        ).to(device)
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16_is_fast()),
        ):
            out = model(**batch, output_hidden_states=bool(layers))
        logits[positions] = out.logits.float().cpu().numpy()
        if layers:
            states[positions] = first_token_states(out.hidden_states, layers).half().cpu().numpy()
        if progress:
            progress(len(positions))
    return Outputs(logits, states if layers else None)


def bf16_is_fast() -> bool:
    """Whether this machine multiplies bfloat16 matrices in hardware.

    Examples:
        >>> bf16_is_fast() in (True, False)
        True
    """
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
