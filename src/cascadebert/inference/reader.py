"""Reading rows for the stages, a part ahead of the one that is running."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from cascadebert.rows.rows import Rows
from cascadebert.stages.base import ReadRows, Stage

# Few enough that the first part is soon read, enough to fill batches of each width.
_ROWS_A_PART = 2_048


class Reader:
    """Reads rows for the stages, a part ahead of the one that is running."""

    def __init__(self, rows: Rows, stages: Sequence[Stage]) -> None:
        self._rows = rows
        keys = [stage.tokenization_key for stage in stages]
        self._shared = {key for key in keys if keys.count(key) > 1}
        self._kept: dict[object, ReadRows] = {}

    def parts(
        self, stage: Stage, pending: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], ReadRows]]:
        """Rows as the stage reads them, and their positions in the window."""
        if stage.tokenization_key in self._kept:
            yield pending, self._kept[stage.tokenization_key].take(pending)
            return
        if len(pending) <= _ROWS_A_PART:
            # A thread costs more than it saves where there is nothing to run beside it.
            parts = iter([(pending, self._read(stage, pending))])
        else:
            parts = self._read_ahead(stage, pending)
        keep = stage.tokenization_key in self._shared and len(pending) == len(self._rows)
        read, places = [], []
        for part, tokens in parts:
            if keep:
                read.append(tokens)
                places.append(part)
            yield part, tokens
        if keep:
            whole = read[0].joined(read)
            self._kept[stage.tokenization_key] = whole.take(np.argsort(np.concatenate(places)))

    def _read(self, stage: Stage, positions: NDArray[np.int64]) -> ReadRows:
        whole = len(self._rows) == 1
        return stage.tokenize(self._rows if whole else self._rows.take(positions.tolist()))

    def _read_ahead(
        self, stage: Stage, pending: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], ReadRows]]:
        """Parts of rows of like length, the longest first."""
        order = pending[np.argsort(-self._rows.sizes()[pending], kind="stable")]
        parts = [order[i : i + _ROWS_A_PART] for i in range(0, len(order), _ROWS_A_PART)]
        with ThreadPoolExecutor(1, "cascadebert-reader") as thread:
            waiting = thread.submit(self._read, stage, parts[0])
            for number, part in enumerate(parts, start=1):
                tokens = waiting.result()
                if number < len(parts):
                    waiting = thread.submit(self._read, stage, parts[number])
                yield part, tokens
