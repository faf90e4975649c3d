"""What a model costs per row, by counting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cascadebert.persistence.record import StageCost

TYPICAL_TOKENS = 32


def example_batch(inputs: tuple[str, ...], rows: int, tokens: int) -> dict[str, torch.Tensor]:
    values = {"input_ids": 5, "attention_mask": 1, "token_type_ids": 0}
    return {name: torch.full((rows, tokens), values[name], dtype=torch.long) for name in inputs}


def model_cost(model: Any, inputs: tuple[str, ...]) -> StageCost:
    """What a model on the CPU costs, by counting."""
    return StageCost(
        layers=int(model.config.num_hidden_layers),
        parameters=sum(own.numel() for own in model.parameters()),
        flops=count_flops(lambda example: model(**example), inputs),
    )


def count_flops(
    run: Callable[[dict[str, torch.Tensor]], object], inputs: tuple[str, ...]
) -> tuple[int, int, int]:
    """Count operations at three lengths; they determine a + b·n + c·n² exactly.

    Args:
        run: takes a batch of one row.
        inputs: names of what is in it.
    """
    lengths = [8, 16, 24]
    counts = []
    for tokens in lengths:
        # Fused attention on the CPU is not counted.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run(example_batch(inputs, rows=1, tokens=tokens))
        counts.append(counter.get_total_flops())
    a, b, c = np.linalg.solve(np.vander(lengths, increasing=True), counts)
    return round(float(a)), round(float(b)), round(float(c))
