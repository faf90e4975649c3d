"""Hashed n-grams of words and characters, the features of the linear stage, on numpy alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from cascadebert.rows.rows import Rows

Keys = NDArray[np.uint64]
Positions = NDArray[np.int64]
MAX_CHARACTERS = 20_000
BUCKET_BITS = 20
CHARACTER_NGRAMS = (2, 3, 4)
CHARACTERS, WORDS, SHARED = range(3)
BLOCKS = 3
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
        return bucket_of(self.keys)


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


def bucket_of(keys: Keys) -> Positions:
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


def feature_version() -> str:
    """Changes whenever a text gets other features than before."""
    return f"1-{'-'.join(map(str, CHARACTER_NGRAMS))}"
