"""Rows in files: what a file must have, and which of its rows can be used.

A bad row stops nothing here: it is yielded as a :class:`BadRow` with its place and the reason,
and the caller decides.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cascadebert.errors import InputError
from cascadebert.rows import readers as formats
from cascadebert.rows.readers import STANDARD_STREAM, Record, Unreadable
from cascadebert.rows.rows import Rows, encoding_fault, label_name, listed, text_fault


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read.

    ``text_pair`` and ``group`` may be None, for the column of that name if there is one. Rows of
    one group depend on one another.
    """

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    group: str | None = None


@dataclass(frozen=True)
class GoodRow:
    """One usable row; ``number`` counts the file's rows from 0."""

    number: int
    text: str
    pair: str | None
    label: str | None
    group: str | None
    record: Record


@dataclass(frozen=True)
class BadRow:
    """One row that cannot be used, where it stands and why."""

    number: int
    place: str
    reason: str


@dataclass(frozen=True)
class RowFile:
    """A source of rows, opened anew each time it is iterated.

    Args:
        source: path of a CSV, TSV, JSONL or Parquet file, a folder or ``NAME``, ``NAME:SPLIT``
            or ``NAME:CONFIG:SPLIT`` of the ``datasets`` package. For "-", standard input, see
            :func:`spooled`.
        columns: names of the columns.
        with_labels: whether each row must have a label; without it labels are not looked at.
        known_labels: the only labels allowed, if given.
        with_groups: whether groups are read, where there are any.
        keep: further columns that the caller wants of each record.
        format: one of "csv", "tsv", "jsonl", "parquet"; by default the file's suffix tells.
        path: where the rows really lie, if ``source`` is only their name for messages.

    Raises:
        InputError: no such file, unknown format, or a column that the whole file lacks.
    """

    source: str
    columns: Columns = field(default_factory=Columns)
    with_labels: bool = False
    known_labels: Sequence[str] | None = None
    with_groups: bool = True
    keep: Sequence[str] = ()
    format: str | None = None
    path: Path | None = None

    @property
    def resolved_format(self) -> str | None:
        """The format of the file; None for a data set."""
        if self.path is None and not Path(self.source).is_file():
            if self.format is not None:
                raise InputError(f"{self.source}: no such file; check the path")
            return None
        return formats.checked_format(self.source, self.format)

    def __iter__(self) -> Iterator[GoodRow | BadRow]:
        first: GoodRow | None = None
        for number, (place, record) in enumerate(self._records()):
            row = self._check(number, record)
            if isinstance(row, GoodRow):
                first = first or row
                fault = _unlike(row, first)
                if fault is None:
                    yield row
                    continue
                row = fault
            yield BadRow(number, f"{self.source}, {place}", row)

    def _records(self) -> Iterator[tuple[str, Record | Unreadable]]:
        path = self.path or Path(self.source)
        match self.resolved_format:
            case None:
                return formats.read_dataset(self.source, self._used)
            case "parquet":
                return formats.read_parquet(path, self._used)
            case "jsonl":
                return formats.read_jsonl(path)
            case file_format:
                return formats.read_separated(path, file_format, self._used)

    def _used(self, names: Sequence[str]) -> list[str]:
        """The columns that are read out of those that a table has."""
        pair = self.columns.text_pair or ("text_pair" if "text_pair" in names else None)
        wanted = [("--text-column", self.columns.text), *(("--keep", name) for name in self.keep)]
        if pair:
            wanted.append(("--text-pair-column", pair))
        if self.with_labels:
            wanted.append(("--label-column", self.columns.label))
        group = self._group_column(names)
        if group:
            wanted.append(("--group-column", group))
        for option, name in wanted:
            if name not in names:
                raise InputError(
                    f"{self.source}: no column '{name}', it has {list(names)}; "
                    f"name the right one with {option}"
                )
        return list(dict.fromkeys(name for _, name in wanted))

    def _group_column(self, names: Collection[str]) -> str | None:
        if not self.with_groups:
            return None
        return self.columns.group or ("group" if "group" in names else None)

    def _check(self, number: int, record: Record | Unreadable) -> GoodRow | str:
        """The row if it is good, or else the reason why it is not."""
        if isinstance(record, Unreadable):
            return record.reason
        columns = self.columns
        pair_name = columns.text_pair or "text_pair"
        has_pair = bool(columns.text_pair) or pair_name in record
        wanted = [("--text-column", columns.text), ("--text-pair-column", pair_name)]
        for option, name in wanted if has_pair else wanted[:1]:
            fault = _missing(name, record, option) or text_fault(record[name])
            if fault:
                return f"'{name}' {fault}"
        for name in self.keep:
            value = record.get(name)
            shown = (
                value
                if isinstance(value, str)
                else json.dumps(value, ensure_ascii=False, default=str)
            )
            fault = encoding_fault(shown)
            if fault:
                return f"'{name}' {fault}"
        label = None
        if self.with_labels:
            name = columns.label
            fault = _missing(name, record, "--label-column") or self._label_fault(record[name])
            if fault:
                return f"'{name}' {fault}"
            label = label_name(record[name])
        group = None
        if group_name := self._group_column(record):
            name = group_name
            fault = _missing(name, record, "--group-column")
            group = None if fault else label_name(record[name])
            if group is None:
                fault = fault or f"is {record[name]!r:.40}, not the name or number of a group"
                return f"'{name}' {fault}"
        pair = record[pair_name] if has_pair else None
        return GoodRow(number, record[columns.text], pair, label, group, record)

    def _label_fault(self, value: object) -> str | None:
        label = label_name(value)
        if label is None:
            return f"is {value!r:.40}, not a label name"
        if self.known_labels is None or label in self.known_labels:
            return None
        return f"is {label!r}, not one that the cascade knows ({listed(self.known_labels)})"


def _unlike(row: GoodRow, first: GoodRow) -> str | None:
    """Why a row does not belong in one file with the first good one, or None if it does."""
    # A model reads a text and a pair of texts differently, and groups are of all rows or of none.
    for what, own, other in (
        ("second text", row.pair, first.pair),
        ("group", row.group, first.group),
    ):
        if (own is None) != (other is None):
            return f"has {'no' if own is None else 'a'} {what}, unlike the first row"
    return None


def _missing(name: str, record: Record, option: str) -> str | None:
    if name in record:
        return None
    return f"is missing, the row has {list(record)[:8]} (name the right field with {option})"


def read_rows(
    source: str | Path,
    columns: Columns | None = None,
    *,
    with_labels: bool = False,
    known_labels: Sequence[str] | None = None,
) -> Rows:
    """Read a whole file; one bad row is enough to refuse it.

    Args:
        source: see :class:`RowFile`; "-" is standard input, as JSONL.
        columns: names of the columns.
        with_labels: whether each row must have a label.
        known_labels: the only labels allowed, if given.

    Raises:
        InputError: the file cannot be read, is empty or has a bad row; the message names the
            first one and says how many there are.
    """
    good: list[GoodRow] = []
    bad: list[BadRow] = []
    wanted = RowFile(str(source), columns or Columns(), with_labels, known_labels)
    with spooled(wanted) as file:
        for row in file:
            good.append(row) if isinstance(row, GoodRow) else bad.append(row)
    refuse_bad_rows(file, len(good), len(bad), bad, "mend or remove them")
    return rows_of(good)


def rows_of(good: Sequence[GoodRow]) -> Rows:
    """Rows for the cascade out of checked rows of one file."""
    pairs = [row.pair for row in good if row.pair is not None]
    labels = [row.label for row in good if row.label is not None]
    groups = [row.group for row in good if row.group is not None]
    return Rows([row.text for row in good], pairs or None, labels or None, groups or None)


def refuse_bad_rows(
    file: RowFile, good: int, bad: int, first_bad: Sequence[BadRow], remedy: str
) -> None:
    """Raise for an empty file or for the first bad row.

    Raises:
        InputError: there is no row at all, or any bad one.
    """
    if not good and not bad:
        raise InputError(f"{file.source}: has no rows; give a file with at least one")
    if bad:
        raise InputError(
            f"{first_bad[0].place}: {first_bad[0].reason} "
            f"({bad} of {good + bad} rows cannot be used); {remedy}"
        )


@contextmanager
def spooled(file: RowFile) -> Iterator[RowFile]:
    """The same rows, readable more than once.

    Standard input and pipes are copied to a temporary file first.
    """
    path = Path(file.source)
    is_pipe = path.exists() and not path.is_file() and not path.is_dir()
    if file.source != STANDARD_STREAM and not is_pipe:
        yield file
        return
    with tempfile.NamedTemporaryFile(prefix="cascadebert-") as copy:
        if is_pipe:
            with path.open("rb") as pipe:
                shutil.copyfileobj(pipe, copy)
        else:
            shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        name = file.source if is_pipe else "standard input"
        file_format = file.format or (None if is_pipe else "jsonl")
        yield dataclasses.replace(file, source=name, format=file_format, path=Path(copy.name))
