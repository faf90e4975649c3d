"""Rows in files: CSV, TSV, JSONL, Parquet and ``datasets``, read and written.

Readers never stop at a bad row: they yield it as a :class:`BadRow` with its place and the
reason, and the caller decides.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias

from cascadebert.artifact import replacing
from cascadebert.data import Rows, dataset_records, label_name, text_fault
from cascadebert.errors import InputError, MissingDependencyError

Record: TypeAlias = Mapping[str, Any]
Require: TypeAlias = Callable[[Sequence[str]], None]

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
STANDARD_STREAM = "-"
_WHOLE_FIELD = 2**31 - 1


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read. ``text_pair`` None means: 'text_pair' if it is there."""

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"


@dataclass(frozen=True)
class GoodRow:
    """One usable row; ``number`` counts the file's rows from 0."""

    number: int
    text: str
    pair: str | None
    label: str | None
    record: Record


@dataclass(frozen=True)
class BadRow:
    """One row that cannot be used, where it stands and why."""

    number: int
    place: str
    reason: str


@dataclass(frozen=True)
class _Unreadable:
    """What a format's reader yields in place of a record that it could not parse."""

    reason: str


@dataclass(frozen=True)
class RowFile:
    """A source of rows, opened anew each time it is iterated.

    Args:
        source: path of a CSV, TSV, JSONL or Parquet file, "-" for standard input, a folder or
            ``NAME``, ``NAME:SPLIT`` or ``NAME:CONFIG:SPLIT`` of the ``datasets`` package.
        columns: names of the columns.
        with_labels: whether each row must have a label; without it labels are not looked at.
        known_labels: the only labels allowed, if given.
        format: one of "csv", "tsv", "jsonl", "parquet"; by default the file's suffix tells.
        path: where the rows really lie, if ``source`` is only their name for messages.

    Raises:
        InputError: no such file, unknown format, or a column that the whole file lacks.
    """

    source: str
    columns: Columns = field(default_factory=Columns)
    with_labels: bool = False
    known_labels: Sequence[str] | None = None
    format: str | None = None
    path: Path | None = None

    def __iter__(self) -> Iterator[GoodRow | BadRow]:
        for number, (place, record) in enumerate(self._records()):
            row = self._check(number, record)
            if isinstance(row, GoodRow):
                yield row
            else:
                yield BadRow(number, f"{self.source}, {place}", row)

    def _records(self) -> Iterator[tuple[str, Record | _Unreadable]]:
        path = self.path or Path(self.source)
        if self.path is None and not path.is_file():
            yield from _read_dataset(self.source, self._require)
            return
        file_format = self.format or guess_format(self.source)
        if file_format == "parquet":
            yield from _read_parquet(path, self._require)
            return
        # Bytes that are not UTF-8 become lone surrogates, so that one bad row costs only itself.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            if file_format == "jsonl":
                yield from _read_jsonl(lines)
            else:
                yield from _read_separated(lines, file_format, self._require)

    def _require(self, names: Sequence[str]) -> None:
        """Refuse a table that lacks a column by name."""
        wanted = {"--text-column": self.columns.text}
        if self.columns.text_pair:
            wanted["--text-pair-column"] = self.columns.text_pair
        if self.with_labels:
            wanted["--label-column"] = self.columns.label
        for option, name in wanted.items():
            if name not in names:
                raise InputError(
                    f"{self.source}: no column '{name}', it has {list(names)}; "
                    f"name the right one with {option}"
                )

    def _check(self, number: int, record: Record | _Unreadable) -> GoodRow | str:
        """The row if it is good, or else the reason why it is not."""
        if isinstance(record, _Unreadable):
            return record.reason
        columns = self.columns
        pair_name = columns.text_pair or "text_pair"
        texts = [columns.text]
        if columns.text_pair or pair_name in record:
            texts.append(pair_name)
        for name in texts:
            reason = _text_fault(name, record)
            if reason:
                return reason
        label = None
        if self.with_labels:
            fault, label = _label_of(columns.label, record, self.known_labels)
            if fault:
                return fault
        pair = record[pair_name] if len(texts) == 2 else None
        return GoodRow(number, record[columns.text], pair, label, record)


def guess_format(source: str) -> str:
    """The format that a file's suffix stands for; JSONL on standard input and output."""
    if source in (STANDARD_STREAM, "standard input"):
        return "jsonl"
    suffix = Path(source).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"{source}: cannot tell the format from the suffix '{suffix}'; "
            f"use one of {', '.join(SUFFIXES)}, or name the format"
        )
    return SUFFIXES[suffix]


def _text_fault(name: str, record: Record) -> str | None:
    if name not in record:
        return f"no field '{name}', only {list(record)[:8]} (name it with --text-column)"
    fault = text_fault(record[name])
    return None if fault is None else f"'{name}' {fault}"


def _label_of(
    name: str, record: Record, known: Sequence[str] | None
) -> tuple[str | None, str | None]:
    if name not in record:
        return f"no field '{name}', only {list(record)[:8]} (name it with --label-column)", None
    label = label_name(record[name])
    if label is None:
        return f"'{name}' is {record[name]!r:.40}, not a label name", None
    if known is not None and label not in known:
        shown = ", ".join(map(repr, known[:6])) + (", …" if len(known) > 6 else "")
        return f"label {label!r} is not one that the cascade knows ({shown})", None
    return None, label


def read_rows(
    source: str | Path,
    columns: Columns | None = None,
    *,
    with_labels: bool = False,
    known_labels: Sequence[str] | None = None,
) -> Rows:
    """Read a whole file; one bad row is enough to refuse it.

    Args:
        source: see :class:`RowFile`, as the other arguments.
        columns: names of the columns.
        with_labels: whether each row must have a label.
        known_labels: the only labels allowed, if given.

    Raises:
        InputError: the file cannot be read, is empty or has a bad row; the message names the
            first one and says how many there are.
    """
    file = RowFile(str(source), columns or Columns(), with_labels, known_labels)
    good: list[GoodRow] = []
    bad: list[BadRow] = []
    for row in file:
        good.append(row) if isinstance(row, GoodRow) else bad.append(row)
    refuse_bad_rows(file, len(good), len(bad), bad, "mend or remove them")
    return rows_of(good)


def rows_of(good: Sequence[GoodRow]) -> Rows:
    """Rows for the cascade out of checked rows of one file."""
    pairs = [row.pair for row in good if row.pair is not None]
    labels = [row.label for row in good if row.label is not None]
    if pairs and len(pairs) != len(good):
        lonely = next(row.number for row in good if row.pair is None)
        raise InputError(f"row {lonely} has no second text and others have one; give all or none")
    return Rows([row.text for row in good], pairs or None, labels or None)


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
def spooled_input(file: RowFile) -> Iterator[RowFile]:
    """The same rows, readable more than once: standard input is copied to a temporary file."""
    if file.source != STANDARD_STREAM:
        yield file
        return
    with tempfile.NamedTemporaryFile(prefix="cascadebert-") as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        yield dataclasses.replace(file, source="standard input", path=Path(copy.name))


def _read_jsonl(lines: IO[str]) -> Iterator[tuple[str, Record | _Unreadable]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            yield f"line {number}", _Unreadable(f"not JSON ({error})")
            continue
        except RecursionError:
            yield f"line {number}", _Unreadable("JSON nested too deeply")
            continue
        if isinstance(record, dict):
            yield f"line {number}", record
        else:
            yield f"line {number}", _Unreadable(f"a JSON object is expected, not {record!r:.40}")


def _read_separated(
    lines: IO[str], file_format: str, require: Require
) -> Iterator[tuple[str, Record | _Unreadable]]:
    csv.field_size_limit(_WHOLE_FIELD)
    if file_format == "csv":
        reader = csv.reader(lines, strict=True)
    else:
        # Tab separated values have no quotes: one that opens a field would swallow lines.
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    header = next(reader, None)
    if header is None:
        return
    if len(set(header)) != len(header):
        raise InputError(f"the header {header} names a column twice; give each its own name")
    require(header)
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = f"not {file_format.upper()} up to line {reader.line_num} ({error})"
            yield place, _Unreadable(reason)
            continue
        if len(fields) == len(header):
            yield place, dict(zip(header, fields, strict=True))
        elif fields:
            reason = f"has {len(fields)} fields, the header has {len(header)}"
            yield place, _Unreadable(reason)


def _read_parquet(path: Path, require: Require) -> Iterator[tuple[str, Record | _Unreadable]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingDependencyError("pyarrow", f"{path}: reading Parquet", "parquet") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            require(file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(batch_size=4096):
                for record in _batch_records(batch):
                    yield f"row {number}", record
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file that can be read ({error})") from None


def _batch_records(batch: Any) -> Iterator[Record | _Unreadable]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield _Unreadable("a field is not valid UTF-8")


def _read_dataset(source: str, require: Require) -> Iterator[tuple[str, Record | _Unreadable]]:
    name, *rest = source.split(":")
    looks_like_file = Path(name).suffix.lower() in SUFFIXES
    try:
        import datasets
    except ImportError:
        datasets = None
    if looks_like_file or (datasets is None and not Path(name).is_dir()):
        raise InputError(f"{source}: no such file; check the path")
    if datasets is None:
        raise MissingDependencyError(
            "datasets", f"{source}: reading a folder or a hub name", "datasets"
        )
    config = rest[0] if len(rest) == 2 else None
    split = rest[-1] if rest else "train"
    try:
        dataset = datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{source}: neither a file nor a dataset that can be loaded ({reason}); "
            "give a path, NAME:SPLIT or NAME:CONFIG:SPLIT"
        ) from None
    if dataset.column_names is not None:
        require(dataset.column_names)
    for number, record in enumerate(dataset_records(dataset)):
        yield f"row {number}", record


class RowWriter:
    """Writes rows of plain values, all with the same keys, in the format of a file's suffix.

    A file appears only when the block ends without error; standard output is written as rows
    come. Use as a context manager.

    Raises:
        InputError: a value that the format cannot hold.
    """

    def __init__(self, target: str, file_format: str | None = None) -> None:
        self._target = target
        self._format = file_format or guess_format(target)
        if self._format == "parquet" and target == STANDARD_STREAM:
            raise InputError("Parquet cannot be written to standard output; give a file's path")
        self._cleanup = contextlib.ExitStack()
        self._parquet: Any = None
        self._header_written = False

    def __enter__(self) -> RowWriter:
        with self._cleanup:
            if self._target == STANDARD_STREAM:
                self._lines: IO[str] = sys.stdout
            else:
                path = Path(self._target)
                if not path.parent.is_dir():
                    raise InputError(f"{path}: the folder {path.parent} does not exist; make it")
                self._path = self._cleanup.enter_context(replacing(path))
                if self._format != "parquet":
                    self._lines = self._cleanup.enter_context(
                        self._path.open("w", encoding="utf-8", newline="")
                    )
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._parquet is not None:
            self._parquet.close()
        self._cleanup.__exit__(*error)

    def write(self, records: Sequence[Record]) -> None:
        if self._format == "jsonl":
            self._lines.writelines(
                json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in records
            )
        elif self._format == "parquet":
            self._write_parquet(records)
        else:
            self._write_separated(records)

    def _write_separated(self, records: Sequence[Record]) -> None:
        if self._format == "csv":
            writer = csv.writer(self._lines)
        else:
            writer = csv.writer(
                self._lines, delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n"
            )
        if records and not self._header_written:
            writer.writerow(records[0])
            self._header_written = True
        try:
            writer.writerows(record.values() for record in records)
        except csv.Error as error:
            raise InputError(
                f"{self._target}: {self._format.upper()} cannot hold a value ({error}); "
                "write CSV, JSONL or Parquet"
            ) from None

    def _write_parquet(self, records: Sequence[Record]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise MissingDependencyError("pyarrow", "writing Parquet", "parquet") from None
        if self._parquet is None:
            table = pyarrow.Table.from_pylist(list(records))
            self._parquet = pyarrow.parquet.ParquetWriter(self._path, table.schema)
        else:
            table = pyarrow.Table.from_pylist(list(records), schema=self._parquet.schema)
        self._parquet.write_table(table)
