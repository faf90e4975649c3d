"""The near side of a contender's process; :mod:`cascadebert.bench.worker` is the other."""

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
    """One contender on some rows.

    Attributes:
        seconds: wall time for all of them.
        labels: names, in the order of the rows; empty for no answer.
        compute_seconds: those within the stages of a cascade.
        predicted_seconds: by the speeds that were measured before, of a cascade that has them.
        predicted_on: the machine that they were measured on.
    """

    seconds: float
    labels: list[str]
    compute_seconds: float | None = None
    predicted_seconds: float | None = None
    predicted_on: str | None = None


class Worker:
    """A process of its own for one contender; ends with the block that it is the context of.

    Attributes:
        name: of the contender, for messages.
        process: for as long as it runs.
        startup_seconds: from nothing loaded to the first answer; None before :meth:`load`.
        peak_memory_mb: the most that the process has held so far; None before :meth:`load`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.startup_seconds: float | None = None
        self.peak_memory_mb: float | None = None
        self._errors: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
        # It finds what this process finds, and nothing that lies about in the current folder.
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
            CascadeError: it cannot be loaded, or the process ended.
        """
        self.startup_seconds = float(self._ask(**request)["seconds"])

    def run(self, rows: int, predict: bool = False) -> Run:
        """Classify so many of the rows, evenly drawn.

        Args:
            rows: their number.
            predict: whether to predict the seconds too.

        Raises:
            CascadeError: the contender cannot classify them, or the process ended.
        """
        return Run(**self._ask(do="run", rows=rows, predict=predict))

    def latency(self, seconds: float) -> list[float]:
        """Seconds of single rows, as many as fit in about so many seconds."""
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
            f"the process that timed '{self.name}' {how} ({last_words(self._errors)}); mend that, "
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
