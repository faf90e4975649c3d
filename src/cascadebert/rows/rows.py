"""Rows in memory, and what makes a text or a label usable."""

from __future__ import annotations

import hashlib
import json
import numbers
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascadebert.errors import CascadeWarning, InputError

COLUMNS = ("text", "text_pair", "label", "group")
_GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Rows:
    """Texts, with second texts, label names and group names where there are any.

    All are of one length. Any sequences will do; they are kept as lists, and integer labels as
    their names. Rows of one group belong together, as the sentences of one document do.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None = None
    labels: Sequence[str] | None = None
    group: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.texts, (str, bytes)):
            raise InputError("the texts of rows are one string; give a list of strings")
        object.__setattr__(self, "texts", list(self.texts))
        for name in ("pairs", "labels", "group"):
            column = getattr(self, name)
            if column is None:
                continue
            column = list(column)
            if len(column) != len(self.texts):
                raise InputError(
                    f"{len(self.texts)} texts and {len(column)} {name}: give one for each row"
                )
            if name != "pairs":
                kind = "label" if name == "labels" else "group"
                column = [_checked_name(kind, row, value) for row, value in enumerate(column)]
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, positions: Iterable[int]) -> Rows:
        """The rows at ``positions``, in that order."""
        index = list(positions)

        def pick(column: Sequence[str] | None) -> list[str] | None:
            return None if column is None else [column[i] for i in index]

        return Rows(
            [self.texts[i] for i in index], pick(self.pairs), pick(self.labels), pick(self.group)
        )

    def slice(self, start: int, stop: int) -> Rows:
        """The rows from ``start`` up to ``stop``."""
        return self.take(range(start, min(stop, len(self))))

    def group_ids(self) -> list[int]:
        """A number for each row, the same for rows of the same texts or of the same group.

        Groups that share a text are one.
        """
        numbers: dict[tuple[str, str | None], int] = {}
        same_text = [numbers.setdefault(row, len(numbers)) for row in self.both_texts()]
        if self.group is None:
            return same_text
        parent: dict[object, object] = {}

        def root(node: object) -> object:
            while (above := parent.setdefault(node, node)) != node:
                parent[node] = parent[above]
                node = above
            return node

        for number, name in zip(same_text, self.group, strict=True):
            parent[root(number)] = root((name,))
        roots: dict[object, int] = {}
        return [roots.setdefault(root(number), len(roots)) for number in same_text]

    def both_texts(self) -> Iterator[tuple[str, str | None]]:
        """Each row's text and second text; None where there are no second texts."""
        second: Sequence[str | None] = self.pairs or [None] * len(self)
        return zip(self.texts, second, strict=True)

    def sizes(self) -> NDArray[np.int64]:
        """Characters of each row, of both texts together, int64 of shape (rows,)."""
        sizes = np.fromiter(map(len, self.texts), np.int64, len(self))
        if self.pairs is not None:
            sizes += np.fromiter(map(len, self.pairs), np.int64, len(self))
        return sizes

    def fingerprint(self) -> str:
        """SHA-256 of all texts, second texts and labels in their order."""
        digest = hashlib.sha256()
        for column in (self.texts, self.pairs, self.labels):
            digest.update(json.dumps(column).encode())
        return digest.hexdigest()

    def texts_fingerprint(self) -> str:
        """SHA-256 of all texts and second texts, whatever their order and labels."""
        digest = hashlib.sha256()
        for row in sorted(map(json.dumps, self.both_texts())):
            digest.update(row.encode())
        return digest.hexdigest()


def evenly(rows: int, count: int) -> NDArray[np.int64]:
    """Positions of ``count`` rows drawn evenly, ascending.

    Those of a smaller count are among those of a larger one. Multiples of the golden ratio keep
    clear of whatever period the rows may have, such as labels in turn.
    """
    places = np.arange(rows) * _GOLDEN_RATIO % 1
    return np.sort(np.argsort(places, kind="stable")[:count])


def text_fault(text: object) -> str | None:
    """Why a text cannot be classified, or None if it can."""
    if text is None:
        return "is null"
    if not isinstance(text, str):
        return f"is {type(text).__name__} {text!r:.40}, not a string"
    if not text or text.isspace():
        return "is empty or only white space"
    return encoding_fault(text)


def encoding_fault(text: str) -> str | None:
    """Why a text cannot be written as UTF-8, or None if it can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"is not valid UTF-8 (at character {error.start})"
    return None


def label_name(value: object) -> str | None:
    """The name of a label; integers are names too, anything else but a string is none."""
    if isinstance(value, bool) or not isinstance(value, (str, numbers.Integral)) or value == "":
        return None
    return str(value)


def listed(names: Sequence[str], most: int = 6) -> str:
    """Names as messages show them, the first few of many."""
    return ", ".join(map(repr, names[:most])) + (", …" if len(names) > most else "")


def _checked_name(kind: str, row: int, value: object) -> str:
    name = label_name(value)
    if name is None:
        raise InputError(f"row {row}: '{kind}' is {value!r:.40}; give a name or an integer")
    return name


def as_rows(
    rows: Any,
    pairs: Sequence[str] | None = None,
    *,
    with_labels: bool = False,
    first: int = 0,
) -> Rows:
    """Rows out of what people have at hand, checked.

    Args:
        rows: :class:`Rows`; one string; a sequence of strings, of (text, text_pair) tuples or
            of mappings with the keys text, text_pair, label and group; or a ``datasets.Dataset``
            with such columns.
        pairs: second texts for a sequence of strings.
        with_labels: whether each row must have a label.
        first: number of the first row, for messages.

    Raises:
        InputError: a row that cannot be used; the message gives its number.
    """
    checked = _collect(rows, pairs, with_labels, first)
    if with_labels and (checked.labels is None or not len(checked)):
        raise InputError("labelled rows are needed: give at least one, each with a 'label'")
    for name, column in (("text", checked.texts), ("text_pair", checked.pairs or ())):
        for number, text in enumerate(column, start=first):
            fault = text_fault(text)
            if fault:
                raise InputError(f"row {number}: '{name}' {fault}; fix or remove it")
    return checked


def usable_rows(
    rows: Any, pairs: Sequence[str] | None = None
) -> tuple[Rows, NDArray[np.int64], int]:
    """The rows that can be classified, out of what :func:`as_rows` takes.

    Args:
        rows: may have rows that are no texts, or of another kind than the others.
        pairs: holds second texts for a sequence of strings.

    Returns:
        The usable rows, their positions, int64 of shape (usable rows,), and the number of all rows.

    Raises:
        InputError: ``rows`` is no sequence of rows.
    """
    everything = _collect(rows, pairs, False, 0, drop_odd=True)
    columns = [everything.texts, *([] if everything.pairs is None else [everything.pairs])]
    usable = [all(text_fault(text) is None for text in row) for row in zip(*columns, strict=True)]
    kept = np.flatnonzero(usable)
    return everything.take(kept.tolist()), kept, len(everything)


def _without_odd(rows: Sequence[Any]) -> list[Any]:
    """The same rows, with an empty one of the usual kind for each of another kind."""
    usual = next((row for row in rows if isinstance(row, (str, Mapping, tuple, list))), "")
    if isinstance(usual, Mapping):
        given = [row if isinstance(row, Mapping) else {} for row in rows]
        names = [name for name in COLUMNS if any(name in row for row in given)]
        return [{name: row.get(name) for name in ("text", *names)} for row in given]
    if isinstance(usual, str):
        return [row if isinstance(row, str) else None for row in rows]
    return [row if isinstance(row, (tuple, list)) and len(row) == 2 else (None, "") for row in rows]


def _collect(
    rows: Any,
    pairs: Sequence[str] | None,
    with_labels: bool,
    first: int,
    drop_odd: bool = False,
) -> Rows:
    if isinstance(rows, Rows):
        if pairs is not None:
            raise InputError("second texts come with the rows here; leave the argument 'pairs' out")
        return rows
    if isinstance(rows, str):
        rows = [rows]
    if hasattr(rows, "column_names") and hasattr(rows, "features"):
        rows = dataset_records(rows)
    elif isinstance(rows, (Mapping, bytes)) or hasattr(rows, "columns"):
        raise InputError(
            f"a {type(rows).__name__} is not a sequence of rows; give a list of texts or of "
            "mappings (of a pandas table: table.to_dict('records'))"
        )
    rows = _without_odd(list(rows)) if drop_odd else list(rows)
    if not rows or not isinstance(rows[0], (Mapping, tuple, list)):
        return Rows(rows, pairs)
    kind = Mapping if isinstance(rows[0], Mapping) else (tuple, list)
    for number, row in enumerate(rows, start=first):
        if not isinstance(row, kind) or (kind is not Mapping and len(row) != 2):
            raise InputError(
                f"row {number}: {row!r:.60} is not of the kind of row {first}; give texts, "
                "(text, text_pair) tuples or mappings, all alike"
            )
    if pairs is not None:
        raise InputError("second texts come with the rows here; leave the argument 'pairs' out")
    if kind is Mapping:
        texts = _column(rows, "text", first)
        if texts is None:
            keys = list(rows[0])[:8]
            raise InputError(f"row {first}: no key 'text', only {keys}; name the text so")
        _warn_of_unread(rows)
        labels = _column(rows, "label", first) if with_labels else None
        groups = None if drop_odd else _column(rows, "group", first)
        return Rows(texts, _column(rows, "text_pair", first), labels, groups)
    return Rows([text for text, _ in rows], [pair for _, pair in rows])


def _warn_of_unread(rows: Sequence[Mapping[str, Any]]) -> None:
    unread = {name: None for row in rows for name in row if name not in COLUMNS}
    if unread:
        warnings.warn(
            f"rows have the keys {listed(list(unread))}, which are not read (only "
            f"{', '.join(COLUMNS)} are); rename them if they mean one of these, or leave them out",
            CascadeWarning,
            stacklevel=5,
        )


def _column(rows: Sequence[Mapping[str, Any]], name: str, first: int) -> list[Any] | None:
    present = [name in row for row in rows]
    if any(present) and not all(present):
        number = first + present.index(False)
        raise InputError(
            f"row {number}: no key '{name}', which other rows have; give it to all or none"
        )
    return [row[name] for row in rows] if any(present) else None


def dataset_records(dataset: Any) -> Iterator[dict[str, Any]]:
    """The rows of a ``datasets.Dataset``, class numbers turned into class names."""
    classes = {
        name: feature.names
        for name, feature in (dataset.features or {}).items()
        if hasattr(feature, "names")
    }
    for record in dataset:
        yield name_classes(record, classes)


def name_classes(record: dict[str, Any], classes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The record with class numbers turned into names in the columns of ``classes``."""
    for column, names in classes.items():
        value = record.get(column)
        if isinstance(value, int) and 0 <= value < len(names):
            record[column] = names[value]
    return record
