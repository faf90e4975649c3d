"""Records to CSV, TSV, JSONL and Parquet files."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from cascadebert.disk import replacing
from cascadebert.errors import InputError
from cascadebert.rows.readers import STANDARD_STREAM, Record, checked_format, import_pyarrow


class RowWriter:
    """Writes rows of plain values, all with the same keys, in the format of a file's suffix.

    A file appears only when the block ends without error; pipes and standard output are
    written as rows come. Use as a context manager.

    Args:
        target: path, or "-" for standard output.
        file_format: as in :func:`checked_format`.
        types: for Parquet, pyarrow types of columns that are not to be guessed.

    Raises:
        InputError: a folder that does not exist, or a value that the format cannot hold.
    """

    def __init__(
        self, target: str, file_format: str | None = None, types: Mapping[str, Any] | None = None
    ) -> None:
        self._target = target
        self._format = checked_format(target, file_format)
        self._types = types or {}
        self._cleanup = contextlib.ExitStack()
        self._parquet: Any = None
        self._header_written = False
        if self._format == "parquet":
            import_pyarrow(f"{target}: writing Parquet")
            if target == STANDARD_STREAM:
                raise InputError("Parquet cannot go to standard output; give a file's path")

    def __enter__(self) -> RowWriter:
        with self._cleanup:
            if self._target == STANDARD_STREAM:
                self._lines: IO[str] = sys.stdout
            else:
                self._path = self._cleanup.enter_context(replacing(Path(self._target)))
                if self._format != "parquet":
                    self._lines = self._cleanup.enter_context(
                        self._path.open("w", encoding="utf-8", newline="")
                    )
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._cleanup.__exit__(*error)

    def write(self, records: Sequence[Record]) -> None:
        """Write some rows."""
        if self._format == "jsonl":
            self._lines.writelines(
                json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in records
            )
        elif self._format == "parquet":
            self._write_parquet(records)
        else:
            self._write_separated(records)

    def _write_separated(self, records: Sequence[Record]) -> None:
        lines = [list(record.values()) for record in records]
        if records and not self._header_written:
            lines.insert(0, list(records[0]))
            self._header_written = True
        if self._format == "csv":
            csv.writer(self._lines).writerows(lines)
            return
        for line in lines:
            values = ["" if value is None else str(value) for value in line]
            for value in values:
                if any(separator in value for separator in "\t\r\n"):
                    raise InputError(
                        f"{self._target}: TSV cannot hold {value!r:.60}, with a tab or a line "
                        "break; write CSV, JSONL or Parquet"
                    )
            self._lines.write("\t".join(values) + "\n")

    def _write_parquet(self, records: Sequence[Record]) -> None:
        pyarrow = import_pyarrow("writing Parquet")
        try:
            if self._parquet is None:
                guess = [
                    {name: v for name, v in r.items() if name not in self._types} for r in records
                ]
                guessed = pyarrow.Table.from_pylist(guess).schema
                schema = self._schema(list(records[0]), guessed)
                self._parquet = pyarrow.parquet.ParquetWriter(self._path, schema)
                self._cleanup.callback(self._parquet.close)
            table = pyarrow.Table.from_pylist(list(records), schema=self._parquet.schema)
            self._parquet.write_table(table)
        except (pyarrow.ArrowException, OverflowError, UnicodeError) as error:
            raise InputError(
                f"{self._target}: Parquet needs one type a column ({error}); write JSONL"
            ) from None

    def _schema(self, names: Sequence[str], guessed: Any) -> Any:
        pyarrow = import_pyarrow("writing Parquet")

        def column_type(name: str) -> Any:
            if name in self._types:
                return self._types[name]
            found = guessed.field(name).type
            # A column without any value yet may have some later, most likely text.
            return pyarrow.string() if pyarrow.types.is_null(found) else found

        return pyarrow.schema([(name, column_type(name)) for name in names])
