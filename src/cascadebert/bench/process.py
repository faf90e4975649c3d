"""Start and control a contender's process, which runs :mod:`cascadebert.bench.worker`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, TextIO, cast

from cascadebert.errors import CascadeError, CascadeWarning, InputError

_LAST_BYTES = 4096
_MOST_CHARACTERS = 200


class Run(NamedTuple):
    """One run of a contender.

    Attributes:
        seconds: wall time for all rows.
        labels: label names in the order of the rows; empty for no answer.
        compute_seconds: seconds within the stages of a cascade.
        predicted_seconds: prediction by the measured speeds of a cascade's stages.
        predicted_on: machine on which these speeds were measured.
    """

    seconds: float
    labels: list[str]
    compute_seconds: float | None = None
    predicted_seconds: float | None = None
    predicted_on: str | None = None


class Worker:
    """A separate process for one contender; a context manager that ends it.

    Attributes:
        name: name of the contender, for messages.
        process: the process.
        startup_seconds: seconds from nothing loaded to the first answer; None before :meth:`load`.
        peak_memory_mb: peak memory of the process so far; None before :meth:`load`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.startup_seconds: float | None = None
        self.peak_memory_mb: float | None = None
        self._errors: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
        # It imports what this process imports, and nothing from the current folder.
        path = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cascadebert.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            encoding="utf-8",
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self._errors):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def load(self, **request: Any) -> None:
        """Load the contender and the rows.

        Raises:
            CascadeError: the contender cannot be loaded, or the process ended.
        """
        self.startup_seconds = float(self._ask(**request)["seconds"])

    def run(self, rows: int, predict: bool = False) -> Run:
        """Classify this many evenly drawn rows.

        Args:
            rows: is the number of rows.
            predict: asks for predicted seconds too.

        Raises:
            CascadeError: the contender cannot classify them, or the process ended.
        """
        return Run(**self._ask(do="run", rows=rows, predict=predict))

    def latency(self, seconds: float) -> list[float]:
        """Seconds of single rows, as many as fit into about this time."""
        return list(self._ask(do="latency", seconds=seconds)["seconds"])

    def _ask(self, **request: Any) -> dict[str, Any]:
        requests, replies = cast(TextIO, self.process.stdin), cast(TextIO, self.process.stdout)
        line = ""
        with contextlib.suppress(BrokenPipeError):
            requests.write(json.dumps(request) + "\n")
            requests.flush()
            line = replies.readline()
        if not line.endswith("\n"):
            raise self._died()
        reply: dict[str, Any] = json.loads(line)
        self.peak_memory_mb = reply.pop("peak_memory_mb")
        for message in reply.pop("warnings"):
            warnings.warn(message, CascadeWarning, stacklevel=2)
        if "error" in reply:
            kind = InputError if reply["input"] else CascadeError
            raise kind(f"{self.name}: {reply['error']}")
        return reply

    def _died(self) -> CascadeError:
        how = ended(self.process.wait())
        return CascadeError(
            f"the process that timed '{self.name}' {how} ({last_words(self._errors)}); fix that, "
            "or leave this contender out with --skip"
        )


def ended(code: int) -> str:
    """How a process ended, by its exit code."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by the signal {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by the signal {-code}"


def last_words(errors: BinaryIO) -> str:
    """The last line in the file that a process wrote its standard error to."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(size - _LAST_BYTES, 0))
    lines = errors.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if not last:
        return "its standard error is empty"
    return f"last line of its standard error: {last[:_MOST_CHARACTERS]}"
