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
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from cascadebert.artifact import CONFIG_FILE, WEIGHTS_FILE, StageRecord
from cascadebert.data import Rows
from cascadebert.errors import ArtifactError, InputError
from cascadebert.stage import Stage

Keys = NDArray[np.uint64]
Positions = NDArray[np.int64]

MODEL_TYPE = "cascadebert-linear"
RUNTIME = "numpy"
MAX_CHARACTERS = 20_000
BUCKET_BITS = 20
CHARACTER_NGRAMS = (2, 3, 4)
CHARACTERS, WORDS, SHARED = range(3)
BLOCKS = 3

_CHARACTERS_A_CHUNK = 200_000
_CELLS_A_CHUNK = 2_000_000
NGRAMS_A_CHARACTER = len(CHARACTER_NGRAMS) + 1
_MOST_NEW_WORDS = 15

_BASE, _MIX, _PAIR, _IN_ROW = (
    np.uint64(odd)
    for odd in (
        0x9E3779B97F4A7C15,
        0xD6E8FEB86659FD93,
        0xC2B2AE3D27D4EB4F,
        0xA24BAED4963EE407,
    )
)
# What keeps n-grams of different kinds apart in the buckets.
_SALT = {
    name: np.uint64(1000 * number)
    for number, name in enumerate(
        (
            "characters",
            "word",
            "word pair",
            "shared",
            "new",
            "dropped",
            "new count",
            "dropped count",
        )
    )
}


@dataclass(frozen=True)
class NormalisedRows:
    """Rows as the linear stage reads them: lower case, single spaces, a space at both ends.

    Attributes:
        texts: one a row.
        pairs: second texts, or None.
        lengths: characters of each row, int64 of shape (rows,).
        truncated: rows that were longer than the stage reads, bool of shape (rows,).
    """

    texts: list[str]
    pairs: list[str] | None
    lengths: NDArray[np.int64]
    truncated: NDArray[np.bool_]

    def take(self, positions: Positions) -> NormalisedRows:
        """Some of the rows."""
        index = positions.tolist()
        return NormalisedRows(
            [self.texts[i] for i in index],
            self.pairs and [self.pairs[i] for i in index],
            self.lengths[positions],
            self.truncated[positions],
        )

    @classmethod
    def joined(cls, parts: Sequence[NormalisedRows]) -> NormalisedRows:
        """All rows of several such as one; there must be one at least."""
        pairs = [pair for part in parts for pair in part.pairs or ()]
        return NormalisedRows(
            [text for part in parts for text in part.texts],
            None if parts[0].pairs is None else pairs,
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.truncated for part in parts]),
        )


@dataclass(frozen=True)
class NGrams:
    """Occurrences of n-grams; of one block, in the order of the rows.

    Attributes:
        block: CHARACTERS, WORDS or SHARED.
        rows: the row of each, int64.
        keys: what each is, before hashing, uint64.
    """

    block: int
    rows: Positions
    keys: Keys

    @property
    def buckets(self) -> Positions:
        """The bucket of each, int64, under 2 ** BUCKET_BITS."""
        return _bucket(self.keys)


def normalise(rows: Rows, max_length: int = MAX_CHARACTERS) -> NormalisedRows:
    """Texts made ready for hashing, cut at ``max_length`` characters a text."""
    columns = [rows.texts] if rows.pairs is None else [rows.texts, rows.pairs]
    truncated = np.zeros(len(rows), dtype=np.bool_)
    lengths = np.zeros(len(rows), dtype=np.int64)
    made = []
    for column in columns:
        truncated |= np.fromiter((len(text) > max_length for text in column), np.bool_, len(rows))
        texts = [f" {' '.join(text[:max_length].lower().split())} " for text in column]
        lengths += np.fromiter(map(len, texts), np.int64, len(rows))
        made.append(texts)
    return NormalisedRows(made[0], made[1] if len(made) > 1 else None, lengths, truncated)


def ngrams(texts: Sequence[str], pairs: Sequence[str] | None = None) -> Iterator[NGrams]:
    """Every n-gram of normalised texts.

    Of a pair the n-grams of each text are kept apart, and the block SHARED has which words the
    second text adds to the first, keeps of it and drops, and how many.
    """
    first = _Characters(texts)
    yield from first.ngrams(side=0)
    if pairs is None:
        return
    second = _Characters(pairs)
    yield from second.ngrams(side=1)
    yield from _shared(first, second, len(texts))


class _Characters:
    """The characters of many texts in one array."""

    def __init__(self, texts: Sequence[str]) -> None:
        joined = "".join(texts)
        points = np.frombuffer(joined.encode("utf-32-le"), dtype=np.uint32)
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        self._points = points.astype(np.uint64)
        self._rows = np.repeat(np.arange(len(texts)), sizes)
        self._left = np.repeat(sizes.cumsum(), sizes) - np.arange(len(points))
        is_word = _word_characters()[points]
        edges = np.diff(is_word.astype(np.int8), prepend=0, append=0)
        starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        self.word_rows = self._rows[starts]
        self.words = self._word_hashes(starts, stops)

    def ngrams(self, side: int) -> Iterator[NGrams]:
        apart = np.uint64(side) * _PAIR
        hashes = self._points
        for size in range(2, max(CHARACTER_NGRAMS) + 1):
            count = max(len(self._points) - size + 1, 0)
            hashes = hashes[:count] * _BASE + self._points[len(self._points) - count :]
            if size in CHARACTER_NGRAMS:
                inside = self._left[:count] >= size
                salt = _SALT["characters"] + np.uint64(size) + apart
                yield NGrams(CHARACTERS, self._rows[:count][inside], hashes[inside] + salt)
        yield NGrams(WORDS, self.word_rows, self.words + _SALT["word"] + apart)
        neighbours = self.word_rows[1:] == self.word_rows[:-1]
        both = self.words[:-1] * _PAIR + self.words[1:]
        yield NGrams(
            WORDS,
            self.word_rows[1:][neighbours],
            both[neighbours] + _SALT["word pair"] + apart,
        )

    def _word_hashes(self, starts: Positions, stops: Positions) -> Keys:
        """Polynomial hash of each word, from sums over the whole text."""
        powers, inverses = _powers(len(self._points) + 1)
        sums = np.zeros(len(self._points) + 1, dtype=np.uint64)
        np.cumsum(self._points * powers[:-1], out=sums[1:])
        hashes: Keys = (sums[stops] - sums[starts]) * inverses[starts]
        return hashes


def _shared(first: _Characters, second: _Characters, rows: int) -> Iterator[NGrams]:
    own = _mix(first.words + first.word_rows.astype(np.uint64) * _IN_ROW)
    other = _mix(second.words + second.word_rows.astype(np.uint64) * _IN_ROW)
    dropped, new = ~np.isin(own, other), ~np.isin(other, own)
    salts = np.where(new, _SALT["new"], _SALT["shared"])
    yield NGrams(SHARED, second.word_rows, second.words + salts)
    yield NGrams(SHARED, first.word_rows[dropped], first.words[dropped] + _SALT["dropped"])
    for name, where in (
        ("new count", second.word_rows[new]),
        ("dropped count", first.word_rows[dropped]),
    ):
        counts = np.bincount(where, minlength=rows).clip(max=_MOST_NEW_WORDS)
        yield NGrams(SHARED, np.arange(rows), counts.astype(np.uint64) + _SALT[name])


def _mix(keys: Keys) -> Keys:
    keys = (keys ^ (keys >> np.uint64(32))) * _MIX
    return keys ^ (keys >> np.uint64(32))


def _bucket(keys: Keys) -> Positions:
    return (_mix(_mix(keys)) >> np.uint64(64 - BUCKET_BITS)).astype(np.int64)


@cache
def _word_characters() -> NDArray[np.bool_]:
    """For every code point whether it is a letter or a digit."""
    return np.fromiter((chr(point).isalnum() for point in range(0x110000)), np.bool_, 0x110000)


def _powers(count: int) -> tuple[Keys, Keys]:
    """The first powers of the base, modulo 2 ** 64, and their inverses."""
    size = 1 << max(count - 1, 1).bit_length()
    powers, inverses = _power_tables(size)
    return powers[:count], inverses[:count]


@cache
def _power_tables(size: int) -> tuple[Keys, Keys]:
    inverse = np.uint64(pow(int(_BASE), -1, 2**64))
    tables = []
    for base in (_BASE, inverse):
        table = np.full(size, base, dtype=np.uint64)
        table[0] = 1
        tables.append(np.cumprod(table))
    return tables[0], tables[1]


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
        lines = self._line[_bucket(np.concatenate([part.keys for part in parts]))]
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

    runtime = RUNTIME

    def __init__(
        self,
        folder: Path,
        record: StageRecord,
        labels: Sequence[str],
        runtime: str = RUNTIME,  # noqa: ARG002
    ) -> None:
        super().__init__(folder, record, labels)
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
    def reading(self) -> object:
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


def feature_version() -> str:
    """Changes whenever a text gets other features than before."""
    return f"1-{'-'.join(map(str, CHARACTER_NGRAMS))}"


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """The weights of a linear stage.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        tensors: dict[str, NDArray[Any]] = load_file(path)
        missing = {"buckets", "rarity", "weights", "bias"} - set(tensors)
        if missing:
            raise KeyError(*sorted(missing))
    except Exception as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); train the stage again") from None
    return tensors
