"""Early exits on many rows: what has not left after a layer goes on in full batches.

All rows of a window go through a layer before any goes through the next. Rows of one width are
batched together, and after each layer those of a width that stay are put together anew, so that
late layers run on as few batches as there are widths and not on many small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cascadebert.rivals.network import ExitNetwork, Surroundings
from cascadebert.rivals.rival import RivalAnswers
from cascadebert.stages.batching import widths
from cascadebert.stages.transformer import TokenizedRows

Leaves = Callable[[int, Tensor, Tensor, NDArray[np.int64]], Tensor]
"""Which rows leave after a layer: called with its number from 1, the logits of its exit, the
states that this reads and the positions of the rows; returns bool of shape (rows,)."""

# Of which hidden states are held at a time: 100 MB in bfloat16 for a width of 768.
_WINDOW_TOKENS = 65_536


@dataclass
class _Group:
    """Rows of one width between two layers."""

    positions: NDArray[np.int64]
    hidden: Tensor
    surroundings: Surroundings

    def take(self, kept: Tensor) -> _Group:
        return _Group(
            self.positions[kept.cpu().numpy()],
            self.hidden[kept],
            self.surroundings.take(kept),
        )


def run_with_exits(
    network: ExitNetwork,
    tokens: TokenizedRows,
    padding: Mapping[str, int],
    leaves: Leaves,
    *,
    token_budget: int = 1_024,
    most: int | None = None,
) -> RivalAnswers:
    """Take rows through a network until they leave it; the last layer answers what is left.

    Args:
        network: in evaluation mode.
        tokens: rows as the network reads them.
        padding: for each input the id that fills rows up.
        leaves: see :data:`Leaves`; not asked after the last layer.
        token_budget: tokens in a batch.
        most: tokens that the network reads.

    Returns:
        The logits of the exit that each row left by, and its layer.
    """
    lengths = tokens.lengths
    logits = np.empty((len(lengths), network.outputs), dtype=np.float32)
    layer = np.full(len(lengths), network.depth, dtype=np.int64)
    order = np.argsort(lengths, kind="stable")
    filled = widths(lengths[order], most).cumsum() // _WINDOW_TOKENS
    with torch.inference_mode():
        for window in (order[filled == part] for part in np.unique(filled)):
            groups = list(_groups(network, tokens, padding, window, most))
            for number in range(1, network.depth + 1):
                staying = []
                for group in groups:
                    group.hidden = _layer(network, number, group, token_budget)
                    states = network.read(number, group.hidden, group.surroundings.tokens)
                    ramp = network.exits[number - 1](states)
                    gone = torch.ones(len(ramp), dtype=torch.bool, device=ramp.device)
                    if number < network.depth:
                        gone = leaves(number, ramp, states, group.positions)
                    out = gone.cpu().numpy()
                    logits[group.positions[out]] = ramp[gone].float().cpu().numpy()
                    layer[group.positions[out]] = number
                    if not out.any():
                        staying.append(group)
                    elif not out.all():
                        staying.append(group.take(~gone))
                groups = staying
    return RivalAnswers(logits, layer, lengths)


def _groups(
    network: ExitNetwork,
    tokens: TokenizedRows,
    padding: Mapping[str, int],
    window: NDArray[np.int64],
    most: int | None,
) -> Iterator[_Group]:
    """The rows of each width, embedded."""
    device = next(network.parameters()).device
    wide = widths(tokens.lengths[window], most)
    for width in np.unique(wide):
        positions = window[wide == width]
        batch = tokens.batch(positions, padding, most)
        inputs = {name: torch.from_numpy(ids).to(device) for name, ids in batch.items()}
        hidden, surroundings = network.begin(inputs)
        yield _Group(positions, hidden, surroundings)


def _layer(network: ExitNetwork, number: int, group: _Group, token_budget: int) -> Tensor:
    """Hidden states after a layer, batch by batch."""
    rows_a_batch = max(token_budget // group.hidden.shape[1], 1)
    batches = -(-len(group.hidden) // rows_a_batch)
    parts = []
    for part in torch.tensor_split(torch.arange(len(group.hidden)), batches):
        span = slice(int(part[0]), int(part[-1]) + 1)
        parts.append(network.layer(number, group.hidden[span], group.surroundings.take(span)))
    return torch.cat(parts)
