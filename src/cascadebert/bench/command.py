"""A shell command as a contender: rows in, labels out, by pipes or by files."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from cascadebert.bench.process import Run, ended, last_words
from cascadebert.errors import InputError
from cascadebert.rows.rows import Rows, evenly, label_name, listed

INPUT, OUTPUT = "{input}", "{output}"
_FEW_ROWS = 8
_MOST_CHARACTERS = 60


class Command:
    """A shell command that reads rows as JSONL and writes one answer per row as JSONL.

    Rows have the key text and, for pairs, text_pair; answers have the key label. They go through
    standard input and output, or through files in place of ``{input}`` and ``{output}``.

    Args:
        command: is run by the shell in the current folder.
        rows: are checked.
        scratch: is an empty folder for the command's files.
    """

    startup_seconds: float | None = None
    peak_memory_mb: float | None = None

    def __init__(self, command: str, rows: Rows, scratch: Path) -> None:
        self._command = command
        self._rows = rows
        self._scratch = scratch

    def check(self, labels: Sequence[str]) -> None:
        """Try the command on the first few rows.

        Raises:
            InputError: the command fails, or answers with none of the labels.
        """
        answers = self.run(min(_FEW_ROWS, len(self._rows))).labels
        if not set(answers) & set(labels):
            raise InputError(
                f"the command {self._command!r} answers {listed(sorted(set(answers)))}, which are "
                f"none of the labels of the rows ({listed(labels)}); make it answer with these"
            )

    def run(self, rows: int, predict: bool = False) -> Run:  # noqa: ARG002
        """Run the command on this many evenly drawn rows, and time it with its start.

        Raises:
            InputError: the command fails, or does not write one answer per row.
        """
        source, target = self._scratch / f"{rows}.jsonl", self._scratch / "answers.jsonl"
        if not source.exists():
            self._write(source, rows)
        target.unlink(missing_ok=True)
        line = self._command.replace(INPUT, shlex.quote(str(source)))
        line = line.replace(OUTPUT, shlex.quote(str(target)))
        printed = target if OUTPUT not in self._command else self._scratch / "printed"
        with (
            source.open("rb") as stdin,
            printed.open("wb") as stdout,
            (self._scratch / "errors").open("w+b") as stderr,
        ):
            seconds, code = _timed(line, stdin, stdout, stderr)
            words = last_words(stderr)
        if code:
            raise self._failure(ended(code), words)
        if not target.exists():
            raise self._failure(f"wrote no file in place of {OUTPUT}", words)
        return Run(seconds, self._labels(target, rows, words))

    def latency(self, seconds: float) -> list[float]:  # noqa: ARG002
        """No times: those of single rows would be those of the command's start."""
        return []

    def _write(self, path: Path, rows: int) -> None:
        some = self._rows.take(evenly(len(self._rows), rows))
        with path.open("w", encoding="utf-8") as file:
            for text, pair in some.both_texts():
                record = {"text": text} if pair is None else {"text": text, "text_pair": pair}
                file.write(json.dumps(record) + "\n")

    def _labels(self, path: Path, rows: int, words: str) -> list[str]:
        lines = path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
        count = len(lines) if lines != [""] else 0
        if count != rows:
            raise self._failure(f"wrote {count} lines for {rows} rows", words)
        labels = []
        for number, line in enumerate(lines, start=1):
            label = _label(line)
            if label is None:
                shown = line[:_MOST_CHARACTERS]
                raise self._failure(
                    f"wrote {shown!r} as line {number}, no JSON object with a label", words
                )
            labels.append(label)
        return labels

    def _failure(self, what: str, words: str) -> InputError:
        return InputError(
            f"the command {self._command!r} {what} ({words}); it must write one line "
            '{"label": "..."} for each row that it reads as JSONL, and exit with code 0'
        )


def try_commands(commands: Sequence[str], rows: Rows, labels: Sequence[str]) -> None:
    """Try commands on the first few rows.

    Raises:
        InputError: a command fails or answers with unknown labels.
    """
    for command in commands:
        with tempfile.TemporaryDirectory(prefix="cascadebert-") as scratch:
            Command(command, rows, Path(scratch)).check(labels)


def _timed(line: str, stdin: BinaryIO, stdout: BinaryIO, stderr: BinaryIO) -> tuple[float, int]:
    """Seconds and exit code of a shell command; all that it started ends if this is broken off."""
    start = time.perf_counter()
    process = subprocess.Popen(
        line, shell=True, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
    )
    try:
        code = process.wait()
        return time.perf_counter() - start, code
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _label(line: str) -> str | None:
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return label_name(answer.get("label")) if isinstance(answer, dict) else None
