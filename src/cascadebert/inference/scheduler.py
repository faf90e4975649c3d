"""A window of rows through the stages of a cascade.

Rows are read a part at a time while the part before is running, and what a stage defers is pooled
and batched anew for the next. Stages with the same tokenizer read a row once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.confidence import ConfidenceScore, softmax
from cascadebert.deferral.routing import ABSTAIN, EXIT, SKIP, STAY, Thresholds
from cascadebert.inference.reader import Reader
from cascadebert.prediction import Prediction
from cascadebert.rows.rows import Rows
from cascadebert.stages.base import Stage


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
    reader = Reader(rows, stages)
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
        row=np.arange(len(rows)),
    )
