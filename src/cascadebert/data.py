"""Rows in memory, and what makes a text or a label usable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cascadebert.errors import InputError


@dataclass(frozen=True)
class Rows:
    """Texts, with second texts and label names where there are any; all of one length."""

    texts: Sequence[str]
    pairs: Sequence[str] | None = None
    labels: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("pairs", "labels"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.texts):
                raise InputError(
                    f"{len(self.texts)} texts and {len(column)} {name}: give one for each row"
                )

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, positions: Iterable[int]) -> Rows:
        """The rows at ``positions``, in that order."""
        index = list(positions)

        def pick(column: Sequence[str] | None) -> list[str] | None:
            return None if column is None else [column[i] for i in index]

        return Rows([self.texts[i] for i in index], pick(self.pairs), pick(self.labels))

    def slice(self, start: int, stop: int) -> Rows:
        """The rows from ``start`` up to ``stop``."""
        return self.take(range(start, min(stop, len(self))))

    def fingerprint(self) -> str:
        """SHA-256 of all texts, second texts and labels in their order."""
        digest = hashlib.sha256()
        for column in (self.texts, self.pairs, self.labels):
            digest.update(json.dumps(None if column is None else list(column)).encode())
        return digest.hexdigest()


def text_fault(text: object) -> str | None:
    """Why a text cannot be classified, or None if it can."""
    if text is None:
        return "is null"
    if not isinstance(text, str):
        return f"is {type(text).__name__} {text!r:.40}, not a string"
    if not text or text.isspace():
        return "is empty or only white space"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"is not valid UTF-8 (at character {error.start})"
    return None


def label_name(value: object) -> str | None:
    """The name of a label; integers are names too, anything else but a string is none."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        return None
    return str(value)


def as_rows(rows: Any, pairs: Sequence[str] | None = None, *, with_labels: bool = False) -> Rows:
    """Rows out of what people have at hand, checked.

    Args:
        rows: :class:`Rows`; one string; a sequence of strings, of (text, text_pair) tuples or
            of mappings with the keys text, text_pair and label; or a ``datasets.Dataset``.
        pairs: second texts for a sequence of strings.
        with_labels: whether each row must have a label.

    Raises:
        InputError: a row that cannot be used; the message gives its position.
    """
    checked = rows if isinstance(rows, Rows) else _collect(rows, pairs)
    if with_labels and (checked.labels is None or not len(checked)):
        raise InputError("labelled rows are needed: give at least one, each with a 'label'")
    for name, column in (("text", checked.texts), ("text_pair", checked.pairs or ())):
        for i, text in enumerate(column):
            fault = text_fault(text)
            if fault:
                raise InputError(f"row {i}: '{name}' {fault}; mend or remove it")
    return checked


def _collect(rows: Any, pairs: Sequence[str] | None) -> Rows:
    if isinstance(rows, str):
        rows = [rows]
    if hasattr(rows, "column_names") and hasattr(rows, "features"):
        rows = dataset_records(rows)
    rows = list(rows)
    if rows and all(isinstance(row, Mapping) for row in rows):
        for i, row in enumerate(rows):
            if "text" not in row:
                raise InputError(f"row {i}: no key 'text', only {list(row)[:8]}")

        def column(name: str) -> list[Any] | None:
            present = [row[name] for row in rows if name in row]
            if present and len(present) != len(rows):
                raise InputError(f"'{name}' is in {len(present)} of {len(rows)} rows; all or none")
            return present or None

        labels = column("label")
        return Rows(
            [row["text"] for row in rows],
            column("text_pair"),
            None if labels is None else [str(label) for label in labels],
        )
    if rows and all(isinstance(row, (tuple, list)) and len(row) == 2 for row in rows):
        return Rows([text for text, _ in rows], [pair for _, pair in rows])
    return Rows(rows, pairs)


def dataset_records(dataset: Any) -> Iterator[dict[str, Any]]:
    """The rows of a ``datasets.Dataset``, class numbers turned into class names."""
    classes = {
        name: feature.names
        for name, feature in (dataset.features or {}).items()
        if hasattr(feature, "names")
    }
    for record in dataset:
        for name, class_names in classes.items():
            value = record[name]
            if isinstance(value, int) and 0 <= value < len(class_names):
                record[name] = class_names[value]
        yield record
