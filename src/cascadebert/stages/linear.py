"""The linear stage: hashed n-grams of words and characters under logistic regression.

It needs numpy alone and answers tens of thousands of rows a second on one core, so that a
cascade can start with it. A row is lower-cased and its n-grams are hashed into buckets, all rows
of a batch at once. The features come in blocks (characters, words and, for pairs, what the two
texts share); an n-gram counts as much as it is rare, and each block of a row is divided by
the root of the sum of squares of all that occurs in it. :mod:`cascadebert.training.linear` fits
the weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascadebert.disk import CONFIG_FILE, WEIGHTS_FILE
from cascadebert.errors import ArtifactError, InputError
from cascadebert.persistence.record import StageRecord
from cascadebert.rows.rows import Rows
from cascadebert.stages.base import Stage
from cascadebert.stages.ngrams import (
    BLOCKS,
    BUCKET_BITS,
    NGRAMS_A_CHARACTER,
    NormalisedRows,
    Positions,
    bucket_of,
    feature_version,
    ngrams,
    normalise,
)

MODEL_TYPE = "cascadebert-linear"
RUNTIME = "numpy"

_CHARACTERS_A_CHUNK = 200_000
_CELLS_A_CHUNK = 2_000_000


class LinearModel:
    """Weights of the buckets that the training rows had, and what they give.

    Args:
        buckets: int (buckets,), ascending.
        rarity: inverse document frequency of each, float32 (buckets,).
        weights: float32 (buckets, outputs): one output for two classes, else one a class.
        bias: float32 (outputs,).
    """

    def __init__(
        self,
        buckets: NDArray[np.integer[Any]],
        rarity: NDArray[np.float32],
        weights: NDArray[np.float32],
        bias: NDArray[np.float32],
    ) -> None:
        # Line 0 stands for every bucket that training did not see: it adds nothing.
        self._line = np.zeros(2**BUCKET_BITS, dtype=np.int32)
        self._line[buckets] = np.arange(1, len(buckets) + 1)
        self._squares = np.concatenate([[0.0], rarity.astype(np.float64) ** 2])
        self._weights = np.vstack([np.zeros_like(weights[:1]), rarity[:, None] * weights])
        self._bias = bias

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None) -> NDArray[np.float32]:
        """Logits of normalised texts, float32 of shape (rows, classes)."""
        outputs = self._weights.shape[1]
        shape = (BLOCKS, len(texts))
        parts = list(ngrams(texts, pairs))
        # All at once: for a single row the time goes into the number of calls.
        lines = self._line[bucket_of(np.concatenate([part.keys for part in parts]))]
        places = np.concatenate([part.rows + part.block * len(texts) for part in parts])
        known = lines > 0
        places, lines = places[known], lines[known]
        squares = np.bincount(places, self._squares[lines], BLOCKS * len(texts)).reshape(shape)
        if outputs == 1:
            added = np.bincount(places, self._weights[lines, 0], BLOCKS * len(texts))
            sums = added.astype(np.float64)
        else:
            sums = np.zeros((BLOCKS * len(texts), outputs))
            # A run ends with its part too, or a row's sum would depend on who is beside it.
            part = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])[known]
            starts = np.flatnonzero(np.diff(part * len(sums) + places, prepend=-1))
            if len(starts):
                runs = np.add.reduceat(self._weights[lines], starts, axis=0, dtype=np.float64)
                np.add.at(sums, places[starts], runs)
        scales = 1 / np.sqrt(np.where(squares > 0, squares, 1.0))
        scores = (sums.reshape(*shape, outputs) * scales[:, :, None]).sum(axis=0) + self._bias
        if outputs == 1:
            scores = np.hstack([np.zeros_like(scores), scores])
        logits: NDArray[np.float32] = scores.astype(np.float32)
        return logits


class LinearStage(Stage):
    """A stage whose classifier is a :class:`LinearModel`."""

    def __init__(
        self,
        folder: Path,
        record: StageRecord,
        labels: Sequence[str],
        runtime: str = RUNTIME,
        *rest: Any,
    ) -> None:
        super().__init__(folder, record, labels, runtime, *rest)
        config = _read_config(folder / CONFIG_FILE)
        self._reads_pairs = bool(config["pairs"])
        tensors = read_tensors(folder / WEIGHTS_FILE)
        self._model = LinearModel(
            *(tensors[name] for name in ("buckets", "rarity", "weights", "bias"))
        )
        self._chunk = min(
            _CHARACTERS_A_CHUNK,
            _CELLS_A_CHUNK // (tensors["weights"].shape[1] * NGRAMS_A_CHARACTER),
        )

    @property
    def tokenization_key(self) -> object:
        return ("linear", self.record.max_length)

    def tokenize(self, rows: Rows) -> NormalisedRows:
        """Rows in lower case, cut at the stage's maximum length in characters.

        Raises:
            InputError: pairs for a stage that was trained on single texts, or the reverse.
        """
        if self._reads_pairs != (rows.pairs is not None):
            seen, given = ("pairs", "single texts")[:: 1 if self._reads_pairs else -1]
            raise InputError(
                f"stage '{self.name}' was trained on {seen} and these rows are {given}; "
                f"give it {seen}, or leave the linear stage out"
            )
        return normalise(rows, self.record.max_length)

    def run(
        self,
        tokens: Any,
        token_budget: int | None = None,  # noqa: ARG002
    ) -> Iterator[tuple[Positions, NDArray[np.float32]]]:
        """Run rows, some hundred thousand characters at a time; see :meth:`Stage.run`."""
        start, characters = 0, 0
        for i, length in enumerate(tokens.lengths.tolist()):
            if characters + length > self._chunk and i > start:
                yield self._answer(tokens, start, i)
                start, characters = i, 0
            characters += length
        if start < len(tokens.lengths):
            yield self._answer(tokens, start, len(tokens.lengths))

    def _answer(
        self, tokens: NormalisedRows, start: int, stop: int
    ) -> tuple[Positions, NDArray[np.float32]]:
        pairs = None if tokens.pairs is None else tokens.pairs[start:stop]
        logits = self._model(tokens.texts[start:stop], pairs)
        positions = np.arange(start, stop)
        return positions, self.finish(logits, positions)


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if config["model_type"] != MODEL_TYPE or "pairs" not in config:
            raise ValueError(f"model_type is {config['model_type']!r}")
        if config["bucket_bits"] != BUCKET_BITS or config["features"] != feature_version():
            raise ValueError("it was made with other features")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path}: not a linear stage that can be read ({error}); train it again"
        ) from None
    return config


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """The weights of a linear stage.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    from safetensors.numpy import load_file

    try:
        tensors: dict[str, NDArray[Any]] = load_file(path)
        missing = {"buckets", "rarity", "weights", "bias"} - set(tensors)
        if missing:
            raise KeyError(*sorted(missing))
    except Exception as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); train the stage again") from None
    return tensors
