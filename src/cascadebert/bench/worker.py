"""The process in which one contender of a benchmark runs, so that its memory is its own.

    python -m cascadebert.bench.worker

reads requests from standard input and answers each on standard output, one JSON object a line:

- first the arguments of a :class:`Session`, which loads the rows and the contender:
  ``{"seconds": to the first answer}``;
- ``{"do": "run", "rows": N}`` classifies N of the rows: ``seconds``, ``labels`` and
  ``compute_seconds``, and where ``"predict": true`` is asked, ``predicted_seconds`` and
  ``predicted_on``;
- ``{"do": "latency", "seconds": S}`` classifies rows one by one:
  ``{"seconds": [one per row]}``.

Every answer has ``peak_memory_mb`` and the ``warnings`` for the user; after an error also its
message as ``error``, and as ``input`` whether the input caused it. What libraries print goes to
standard error.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from cascadebert.cascade import Cascade
from cascadebert.deferral.confidence import DEFAULT_SCORE
from cascadebert.deferral.routing import Thresholds
from cascadebert.errors import CascadeError, CascadeWarning, InputError
from cascadebert.machine import usable_cores
from cascadebert.persistence.integrity import check_files
from cascadebert.persistence.record import read_record
from cascadebert.rows.rows import Rows, evenly
from cascadebert.stages.base import Stage

_STATUS = Path("/proc/self/status")
_MOST_SINGLE_ROWS, _LEAST_SINGLE_ROWS = 200, 10


def peak_memory_mb() -> float:
    """Peak memory of this process so far, in 10**6 bytes."""
    # On Linux ru_maxrss starts at the memory of the parent process.
    status = _STATUS.read_text() if _STATUS.exists() else ""
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    if found:
        return int(found[1]) * 1024 / 1e6
    # There is none on Windows, where the rest of the command line works.
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


class ContenderAnswers(NamedTuple):
    """A contender's answers to some rows.

    Attributes:
        labels: label names; empty for no answer.
        passed: the stages of a cascade that each row passed, bool of shape (rows, stages).
        compute_seconds: seconds within these stages.
    """

    labels: list[str]
    passed: NDArray[np.bool_] | None = None
    compute_seconds: float | None = None


class Subject(Protocol):
    """The object that is timed."""

    def answer(self, rows: Rows) -> ContenderAnswers: ...


class _Stopwatch:
    """Adds up the seconds within stages."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on(self, stage: Stage) -> Stage:
        """The same stage, its runs timed."""
        timed = copy.copy(stage)
        timed.run = functools.partial(self._steps, stage.run)  # type: ignore[method-assign]
        return timed

    def _steps(self, run: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
        steps = run(*arguments)
        while True:
            start = time.perf_counter()
            step = next(steps, None)
            self.seconds += time.perf_counter() - start
            if step is None:
                return
            yield step


class CascadeSubject:
    """A saved cascade, or one of its stages alone with no other loaded.

    Args:
        folder: has the cascade.
        stages: are the numbers of all stages, or of one, from 1.
        runtimes: names the runtime of each of them.
    """

    def __init__(self, folder: Path, stages: Sequence[int], runtimes: Sequence[str]) -> None:
        record = read_record(folder)
        wanted = tuple(
            dataclasses.replace(record.stages[number - 1], runtime=runtime)
            for number, runtime in zip(stages, runtimes, strict=True)
        )
        chosen = dataclasses.replace(record, stages=wanted)
        if len(wanted) < len(record.stages):
            plain = dataclasses.replace(chosen, score=DEFAULT_SCORE, score_parameters=None)
            chosen = plain.with_routing(Thresholds.last_stage_alone(len(wanted)))
        cascade = Cascade(folder, chosen)
        self._stopwatch = _Stopwatch()
        self._cascade = cascade.with_own_stages([*map(self._stopwatch.on, cascade.stages)])

    def answer(self, rows: Rows) -> ContenderAnswers:
        self._stopwatch.seconds = 0.0
        out = self._cascade.predict(rows)
        return ContenderAnswers(out.labels.tolist(), out.passed, self._stopwatch.seconds)

    def predicted(self, rows: Rows, passed: NDArray[np.bool_]) -> dict[str, Any]:
        """Predict seconds for these rows by the stages' measured speeds, and name the machine.

        Both are None where a stage has not been measured with its runtime.
        """
        total = 0.0
        machines = []
        for k, stage in enumerate(self._cascade.stages):
            if stage.speed is None:
                return {"predicted_seconds": None, "predicted_on": None}
            lengths = stage.tokenize(rows).lengths[passed[:, k]]
            total += float(stage.speed.row_seconds(lengths).sum())
            machines.append(stage.speed.machine)
        return {
            "predicted_seconds": total,
            "predicted_on": " and ".join(dict.fromkeys(machines)),
        }


class PipelineSubject:
    """A stage's checkpoint in transformers' own pipeline for text classification, in fp32.

    Args:
        folder: has the cascade.
        number: is the number of the stage, from 1.
        batch_size: is the number of rows per batch.
    """

    def __init__(self, folder: Path, number: int, batch_size: int) -> None:
        import torch
        from transformers import pipeline

        torch.set_num_threads(usable_cores())
        record = read_record(folder).stages[number - 1]
        check_files(folder, [record], ["torch"])
        made = pipeline(
            "text-classification",
            model=str(folder / record.folder),
            dtype=torch.float32,
            trust_remote_code=False,
        )
        self._pipeline = cast(Any, made)
        self._pipeline.tokenizer.truncation_side = record.truncation_side
        own = self._pipeline.model.config.id2label
        self._names = {own[i]: name for i, name in enumerate(record.labels)}
        self._settings = {
            "batch_size": batch_size,
            "truncation": True,
            "max_length": record.max_length,
        }

    def answer(self, rows: Rows) -> ContenderAnswers:
        inputs: list[Any] = list(rows.texts)
        if rows.pairs is not None:
            both = zip(inputs, rows.pairs, strict=True)
            inputs = [{"text": text, "text_pair": pair} for text, pair in both]
        answers = self._pipeline(inputs, **self._settings)
        return ContenderAnswers([self._names[answer["label"]] for answer in answers])


def load(folder: Path, recipe: Mapping[str, Any]) -> Subject:
    """Load a contender.

    Args:
        folder: has a saved cascade.
        recipe: has the arguments of a :class:`PipelineSubject` or of a :class:`CascadeSubject`.
    """
    if "batch_size" in recipe:
        return PipelineSubject(folder, **recipe)
    return CascadeSubject(folder, **recipe)


class Session:
    """A contender and its rows.

    Args:
        folder: has the cascade.
        rows: names a file with the arguments of :class:`~cascadebert.Rows`, as JSON.
        recipe: is passed to :func:`load`.
    """

    def __init__(self, folder: str, rows: str, **recipe: Any) -> None:
        self._rows = Rows(**json.loads(Path(rows).read_text(encoding="utf-8")))
        start = time.perf_counter()
        self._subject = load(Path(folder), recipe)
        self._subject.answer(self._rows.slice(0, 1))
        self.startup_seconds = time.perf_counter() - start

    def run(self, rows: int, predict: bool = False) -> dict[str, Any]:
        """Classify this many rows at once."""
        some = self._rows.take(evenly(len(self._rows), rows))
        start = time.perf_counter()
        answers = self._subject.answer(some)
        reply: dict[str, Any] = {
            "seconds": time.perf_counter() - start,
            "labels": answers.labels,
            "compute_seconds": answers.compute_seconds,
        }
        if predict and isinstance(self._subject, CascadeSubject) and answers.passed is not None:
            reply |= self._subject.predicted(some, answers.passed)
        return reply

    def latency(self, seconds: float) -> dict[str, Any]:
        """Classify rows one by one, for about this many seconds."""
        took = float(np.median(self._each(3)))
        # All run twice: engines prepare for each new shape, and a service is past that.
        count = min(max(int(seconds / took / 2), _LEAST_SINGLE_ROWS), _MOST_SINGLE_ROWS)
        self._each(count)
        return {"seconds": self._each(count)}

    def _each(self, count: int) -> list[float]:
        """Seconds of each of this many rows."""
        seconds = []
        for i in evenly(len(self._rows), count).tolist():
            row = self._rows.slice(i, i + 1)
            start = time.perf_counter()
            self._subject.answer(row)
            seconds.append(time.perf_counter() - start)
        return seconds


def main() -> None:
    """Answer requests until standard input ends."""
    # The parent process ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    session: Session | None = None
    reply: dict[str, Any]
    for line in sys.stdin:
        request = json.loads(line)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            try:
                if session is None:
                    session = Session(**request)
                    reply = {"seconds": session.startup_seconds}
                else:
                    reply = _answer(session, **request)
            except CascadeError as error:
                reply = {"error": str(error), "input": isinstance(error, InputError)}
        messages = [str(w.message) for w in caught if issubclass(w.category, CascadeWarning)]
        reply |= {"peak_memory_mb": peak_memory_mb(), "warnings": messages}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _answer(session: Session, do: str, **values: Any) -> dict[str, Any]:
    return session.run(**values) if do == "run" else session.latency(**values)


if __name__ == "__main__":
    main()
