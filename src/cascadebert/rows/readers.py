"""File formats: CSV, TSV, JSONL, Parquet and ``datasets`` to records, and records to files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from cascadebert.errors import InputError, MissingDependencyError, first_line
from cascadebert.rows.rows import dataset_records, name_classes

Record: TypeAlias = Mapping[str, Any]

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
class Unreadable:
    """What a reader yields in place of a record that it could not parse."""

    reason: str


# Each reader yields where a record stands, and the record. Tables call the function that they
# are given with the names of their columns, and read those that it returns.
Records: TypeAlias = Iterator[tuple[str, Record | Unreadable]]
Used: TypeAlias = Callable[[Sequence[str]], list[str]]


def checked_format(target: str, name: str | None = None) -> str:
    """The format called ``name``, or else the one that the suffix of ``target`` stands for.

    Raises:
        InputError: there is no such format.
    """
    known = dict.fromkeys(SUFFIXES.values())
    if name is not None:
        if name not in known:
            raise InputError(f"no format is called {name!r}; there are {', '.join(known)}")
        return name
    if target == STANDARD_STREAM:
        return "jsonl"
    suffix = Path(target).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"{target}: cannot tell the format from the suffix '{suffix}'; "
            f"use one of {', '.join(SUFFIXES)}, or name the format"
        )
    return SUFFIXES[suffix]


def _open(path: Path) -> IO[str]:
    # Bytes that are not UTF-8 become lone surrogates, so that one bad row costs only itself.
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def read_jsonl(path: Path) -> Records:
    """One JSON object a line."""
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"line {number}", Unreadable(f"not JSON ({error})")
                continue
            if not isinstance(record, dict):
                record = Unreadable(f"a JSON object is expected, not {record!r:.40}")
            yield f"line {number}", record


def read_separated(path: Path, file_format: str, used: Used) -> Records:
    """CSV as RFC 4180 has it; TSV without quotes, one line a row."""
    csv.field_size_limit(_WHOLE_FIELD)
    with _open(path) as lines:
        if file_format == "csv":
            reader = csv.reader(lines, strict=True)
        else:
            # A quote that opens a field would swallow the lines up to the next one.
            reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        header: list[str] | None = None
        while True:
            place = f"line {reader.line_num + 1}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                reason = f"not {file_format.upper()} up to line {reader.line_num} ({error})"
                if header is None:
                    raise InputError(f"{path}, header: {reason}; mend it") from None
                yield place, Unreadable(reason)
                continue
            if header is None:
                header = fields
                if len(set(header)) != len(header):
                    raise InputError(f"{path}: the header {header} names a column twice; mend it")
                used(header)
            elif len(fields) == len(header):
                yield place, dict(zip(header, fields, strict=True))
            elif fields or len(header) == 1:
                reason = f"has {len(fields)} fields, the header has {len(header)}"
                yield place, Unreadable(reason)


def read_parquet(path: Path, used: Used) -> Records:
    """The used columns of a Parquet file, a few thousand rows in memory at a time."""
    pyarrow = import_pyarrow(f"{path}: reading Parquet")
    try:
        # Buffering ahead would keep the whole file in memory by its end.
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            if len(set(names)) != len(names):
                raise InputError(f"{path}: the columns {names} have a name twice; rename one")
            columns = used(names)
            classes = _class_names(file.schema_arrow.metadata)
            number = 0
            for batch in file.iter_batches(batch_size=4096, columns=columns):
                for record in _batch_records(batch):
                    if isinstance(record, dict):
                        record = name_classes(record, classes)
                    yield f"row {number}", record
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file that can be read ({error})") from None


def parquet_types(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """The pyarrow types of some columns of a Parquet file, as :func:`read_parquet` gives them."""
    pyarrow = import_pyarrow("reading Parquet")
    schema = pyarrow.parquet.read_schema(path)
    classes = _class_names(schema.metadata)
    return {
        name: pyarrow.string() if name in classes else schema.field(name).type for name in names
    }


def import_pyarrow(purpose: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise MissingDependencyError("pyarrow", purpose, "parquet") from None
    return pyarrow


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """The label names that ``datasets`` leaves in the files that it writes."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _batch_records(batch: Any) -> Iterator[dict[str, Any] | Unreadable]:
    try:
        yield from batch.to_pylist()
    except ValueError:
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except ValueError as error:
                what = "is not valid UTF-8" if isinstance(error, UnicodeError) else str(error)
                yield Unreadable(f"a field {what}")


def read_dataset(source: str, used: Used) -> Records:
    """A folder or hub name, read by the ``datasets`` package."""
    name, *rest = source.split(":")
    if Path(name).suffix.lower() in SUFFIXES:
        raise InputError(f"{source}: no such file; check the path")
    try:
        import datasets
    except ModuleNotFoundError:
        if Path(name).is_dir():
            raise MissingDependencyError(
                "datasets", f"reading the folder {name}", "datasets"
            ) from None
        raise InputError(
            f"{source}: no such file; check the path, or install 'datasets' if it is a data set"
        ) from None
    config = rest[0] if len(rest) == 2 else None
    split = rest[-1] if rest else "train"
    try:
        dataset = datasets.load_dataset(name, config, split=split, streaming=True)
        if dataset.column_names is not None:
            used(dataset.column_names)
        for number, record in enumerate(dataset_records(dataset)):
            yield f"row {number}", record
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{source}: neither a file nor a data set that can be read ({first_line(error)}); "
            "give a path, NAME:SPLIT or NAME:CONFIG:SPLIT"
        ) from None
