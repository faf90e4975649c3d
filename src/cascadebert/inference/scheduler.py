"""A window of rows through the stages of a cascade.

Rows are read a part at a time while the part before is running, and what a stage defers is pooled
and batched anew for the next. Stages with the same tokenizer read a row once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from cascadebert.data import Rows
from cascadebert.deferral.confidence import ConfidenceScore, softmax
from cascadebert.deferral.routing import ABSTAIN, EXIT, SKIP, STAY, Thresholds
from cascadebert.stage import ReadRows, Stage

# Few enough that the first part is soon read, enough to fill batches of each width.
_ROWS_A_PART = 2_048


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Answers for a number of rows, every array in input order.

    Attributes:
        labels: label names, str of shape (rows,); empty where the cascade abstained.
        probabilities: softmax of the last stage that the row came to, float64 of shape
            (rows, classes), columns in the order of ``Cascade.labels``.
        stage: that stage, counted from 1, int64 of shape (rows,).
        confidence: that stage's confidence score on a scale from 0 to 1, float64 (rows,).
        truncated: rows that were longer than that stage reads and were cut, bool (rows,).
        abstained: rows that even the last stage was too unsure of to answer, bool (rows,).
        passed: the stages that each row went through, bool of shape (rows, stages).
    """

    labels: NDArray[np.str_]
    probabilities: NDArray[np.float64]
    stage: NDArray[np.int64]
    confidence: NDArray[np.float64]
    truncated: NDArray[np.bool_]
    abstained: NDArray[np.bool_]
    passed: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.stage)

    @classmethod
    def joined(cls, parts: Sequence[Prediction]) -> Prediction:
        """Predictions one after another as one; there must be one at least."""
        if len(parts) == 1:
            return parts[0]
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclasses.dataclass
class _Answers:
    """What is known of the rows so far; of each row from its latest stage."""

    logits: NDArray[np.float32]
    confidence: NDArray[np.float64]
    truncated: NDArray[np.bool_]
    abstained: NDArray[np.bool_]
    passed: NDArray[np.bool_]

    @classmethod
    def none(cls, rows: int, classes: int, stages: int) -> _Answers:
        return cls(
            logits=np.zeros((rows, classes), dtype=np.float32),
            confidence=np.zeros(rows),
            truncated=np.zeros(rows, dtype=np.bool_),
            abstained=np.zeros(rows, dtype=np.bool_),
            passed=np.zeros((rows, stages), dtype=np.bool_),
        )


def classify(
    rows: Rows,
    stages: Sequence[Stage],
    labels: Sequence[str],
    routing: Thresholds,
    score: ConfidenceScore,
    progress: Callable[[int], object] | None = None,
) -> Prediction:
    """Take a window of rows through the stages.

    Args:
        rows: checked rows.
        stages: small to large.
        labels: names of the classes, in the order of the stages' logits.
        routing: when rows exit, skip stages or get no answer.
        score: what the thresholds are compared with.
        progress: called with the number of rows that have got their answer, as they get it.
    """
    last = len(stages) - 1
    answers = _Answers.none(len(rows), len(labels), len(stages))
    reader = _Reader(rows, stages)
    skipped: list[NDArray[np.int64]] = []
    pending = np.arange(len(rows))
    for k in np.flatnonzero(routing.runs).tolist():
        if k == last:
            pending = np.concatenate([pending, *skipped])
        if not len(pending):
            continue
        # Of the stage right before, which these rows have come through if it was run.
        neighbour = score.uses_previous and 0 < k < last and routing.runs[k - 1]
        staying = []
        for part, tokens in reader.parts(stages[k], pending):
            for positions, logits in stages[k].run(tokens):
                here = part[positions]
                confidence = score.score(logits, k, answers.logits[here] if neighbour else None)
                answers.logits[here] = logits
                answers.confidence[here] = confidence
                answers.truncated[here] = tokens.truncated[positions]
                answers.passed[here, k] = True
                where = routing.decide(confidence, k, score)
                staying.append(here[where == STAY])
                skipped.append(here[where == SKIP])
                answers.abstained[here[where == ABSTAIN]] = True
                if progress:
                    progress(int(((where == EXIT) | (where == ABSTAIN)).sum()))
        pending = np.concatenate(staying)
    names = np.array([*labels, ""])
    best = np.where(answers.abstained, len(labels), answers.logits.argmax(axis=1))
    return Prediction(
        labels=names[best],
        probabilities=softmax(answers.logits),
        stage=len(stages) - answers.passed[:, ::-1].argmax(axis=1),
        confidence=score.shown(answers.confidence),
        truncated=answers.truncated,
        abstained=answers.abstained,
        passed=answers.passed,
    )


class _Reader:
    """Reads rows for the stages, a part ahead of the one that is running."""

    def __init__(self, rows: Rows, stages: Sequence[Stage]) -> None:
        self._rows = rows
        readings = [stage.reading for stage in stages]
        self._shared = {reading for reading in readings if readings.count(reading) > 1}
        self._kept: dict[object, ReadRows] = {}

    def parts(
        self, stage: Stage, pending: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], ReadRows]]:
        """Rows as the stage reads them, and their positions in the window."""
        if stage.reading in self._kept:
            yield pending, self._kept[stage.reading].take(pending)
            return
        if len(pending) <= _ROWS_A_PART:
            # A thread costs more than it saves where there is nothing to run beside it.
            parts = iter([(pending, self._read(stage, pending))])
        else:
            parts = self._read_ahead(stage, pending)
        keep = stage.reading in self._shared and len(pending) == len(self._rows)
        read, places = [], []
        for part, tokens in parts:
            if keep:
                read.append(tokens)
                places.append(part)
            yield part, tokens
        if keep:
            whole = read[0].joined(read)
            self._kept[stage.reading] = whole.take(np.argsort(np.concatenate(places)))

    def _read(self, stage: Stage, positions: NDArray[np.int64]) -> ReadRows:
        whole = len(self._rows) == 1
        return stage.tokenize(self._rows if whole else self._rows.take(positions.tolist()))

    def _read_ahead(
        self, stage: Stage, pending: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], ReadRows]]:
        """Parts of rows of like length, the longest first."""
        order = pending[np.argsort(-self._rows.sizes()[pending], kind="stable")]
        parts = [order[i : i + _ROWS_A_PART] for i in range(0, len(order), _ROWS_A_PART)]
        with ThreadPoolExecutor(1, "cascadebert-reader") as thread:
            waiting = thread.submit(self._read, stage, parts[0])
            for number, part in enumerate(parts, start=1):
                tokens = waiting.result()
                if number < len(parts):
                    waiting = thread.submit(self._read, stage, parts[number])
                yield part, tokens
