"""Evaluation: a cascade against its last stage alone, in accuracy and seconds."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascadebert.cascade import Cascade
from cascadebert.deferral.confidence import logit
from cascadebert.deferral.routing import speedup
from cascadebert.errors import InputError
from cascadebert.evaluation.metrics import (
    aurc,
    brier,
    dis,
    ece,
    macro_f1,
    matthews_correlation,
    nll,
)
from cascadebert.prediction import Prediction
from cascadebert.rows.rows import Rows, as_rows

_WARM_UP_ROWS = 8
# A probability of 0 would make the mean log-likelihood infinite, which JSON cannot hold.
_LEAST_LOG_PROBABILITY = -700.0


@dataclass(frozen=True)
class Quality:
    """Quality of answers and confidence scores; see :mod:`cascadebert.evaluation.metrics`.

    Attributes:
        accuracy: share of right answers.
        dis: difficulty inversion score, with wrong answers as the harder rows; None where all
            answers are right or all wrong.
        ece, ece_equal_mass: expected calibration error, with bins of equal width and of equal
            numbers of rows.
        aurc: area under the risk-coverage curve.
        brier, nll: Brier score and negative log-likelihood of the labels.
    """

    accuracy: float
    dis: float | None
    ece: float
    ece_equal_mass: float
    aurc: float
    brier: float
    nll: float


def quality(
    probabilities: NDArray[np.float64],
    truth: NDArray[np.int64],
    scores: NDArray[np.float64],
    answered: NDArray[np.bool_] | None = None,
) -> Quality:
    """Measure how good answers and their confidence scores are.

    Args:
        probabilities: float64 of shape (rows, classes).
        truth: class index of each row's label, shape (rows,).
        scores: confidence score of each row; only their order counts, shape (rows,).
        answered: rows with an answer, bool of shape (rows,); all by default. A row without an
            answer counts as wrong.

    >>> found = quality(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 0]), np.array([2.2, 0.4]))
    >>> found.accuracy, found.dis, round(found.brier, 2)
    (0.5, 100.0, 0.37)
    """
    right = probabilities.argmax(axis=1) == truth
    if answered is not None:
        right &= answered
    probability = probabilities.max(axis=1)
    order = dis(scores, ~right)
    with np.errstate(divide="ignore"):
        log_probabilities = np.log(probabilities)
    return Quality(
        accuracy=float(right.mean()),
        dis=None if np.isnan(order) else order,
        ece=ece(probability, right),
        ece_equal_mass=ece(probability, right, equal_mass=True),
        aurc=aurc(scores, right),
        brier=brier(probabilities, truth),
        nll=nll(np.maximum(log_probabilities, _LEAST_LOG_PROBABILITY), truth),
    )


@dataclass(frozen=True)
class StageEvaluation(Quality):
    """One stage alone on every row."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Evaluation(Quality):
    """A cascade on labelled rows, compared with the reference: its last stage alone.

    Attributes:
        rows: number of rows.
        reference_accuracy: share of the reference's right answers.
        accuracy_drop: ``reference_accuracy - accuracy``; negative where the cascade is better.
        agreement: share of rows with the same answer as the reference.
        exit_fractions: share of rows answered by each stage.
        abstained: share of rows without an answer, which counts as wrong.
        error_when_answering: share of wrong answers among the answered rows; None where there are
            none.
        macro_f1: F1 averaged over the labels.
        matthews: Matthews correlation of answers and labels.
        speedup_measured: wall seconds of the reference over those of the cascade, the median of
            the repeats; speedup_measured_range: its smallest and largest.
        speedup_flops, speedup_layers: the same ratio of counted operations and of layers.
        seconds, reference_seconds: wall seconds for all rows, tokenising included; medians.
        truncated: number of rows cut to the maximum length of the stage that answered.
        stages: each stage alone on every row.
    """

    rows: int
    reference_accuracy: float
    accuracy_drop: float
    agreement: float
    exit_fractions: tuple[float, ...]
    abstained: float
    error_when_answering: float | None
    macro_f1: float
    matthews: float
    speedup_measured: float
    speedup_measured_range: tuple[float, float]
    speedup_flops: float
    speedup_layers: float
    seconds: float
    reference_seconds: float
    truncated: int
    stages: tuple[StageEvaluation, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``evaluate --json`` writes them."""
        return dataclasses.asdict(self)


def evaluate(
    cascade: Cascade,
    rows: Any,
    *,
    repeats: int = 1,
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Compare a cascade with its last stage alone.

    Args:
        cascade: was tuned on other rows than these.
        rows: have labels.
        repeats: sets how often cascade and reference are timed, in turn.
        progress: is called with the number of rows as they are answered; each row counts
            ``2 * repeats + len(cascade.stages) - 1`` times.

    Raises:
        InputError: the rows are unusable, or have labels that the cascade does not know.
    """
    if repeats < 1:
        raise InputError(f"{repeats} repeats measure nothing; give 1 or more")
    checked = as_rows(rows, with_labels=True)
    truth = cascade.label_ids(checked)
    names = np.array(cascade.labels)[truth]
    last = len(cascade.stages)
    for number in range(1, last + 1):
        cascade.alone(number).predict(checked.slice(0, _WARM_UP_ROWS))
    timings = []
    for _ in range(repeats):
        out, seconds = _timed(cascade, checked, progress)
        reference, reference_seconds = _timed(cascade.alone(last), checked, progress)
        timings.append((seconds, reference_seconds))
    alone = [_timed(cascade.alone(number), checked, progress) for number in range(1, last)]
    alone.append((reference, statistics.median(t for _, t in timings)))
    ratios = [reference_seconds / seconds for seconds, reference_seconds in timings]
    flops, layers = _costs(cascade, checked)
    return Evaluation(
        **vars(_quality(out, truth)),
        rows=len(checked),
        reference_accuracy=float((reference.labels == names).mean()),
        accuracy_drop=float((reference.labels == names).mean() - (out.labels == names).mean()),
        agreement=float((out.labels == reference.labels).mean()),
        exit_fractions=tuple(
            float(share)
            for share in np.bincount(out.stage[~out.abstained] - 1, minlength=last) / len(checked)
        ),
        abstained=float(out.abstained.mean()),
        error_when_answering=_error_when_answering(out, names),
        macro_f1=macro_f1(names, out.labels, cascade.labels),
        matthews=matthews_correlation(names, out.labels),
        speedup_measured=statistics.median(ratios),
        speedup_measured_range=(min(ratios), max(ratios)),
        speedup_flops=speedup(out.passed, flops),
        speedup_layers=speedup(out.passed, layers),
        seconds=statistics.median(seconds for seconds, _ in timings),
        reference_seconds=statistics.median(seconds for _, seconds in timings),
        truncated=int(out.truncated.sum()),
        stages=tuple(
            StageEvaluation(**vars(_quality(own, truth)), name=stage.name, seconds=seconds)
            for stage, (own, seconds) in zip(cascade.stages, alone, strict=True)
        ),
    )


def _error_when_answering(out: Prediction, names: NDArray[np.str_]) -> float | None:
    answered = ~out.abstained
    return float((out.labels != names)[answered].mean()) if answered.any() else None


def _timed(
    cascade: Cascade, rows: Rows, progress: Callable[[int], object] | None
) -> tuple[Prediction, float]:
    start = time.perf_counter()
    out = cascade.predict(rows, progress=progress)
    return out, time.perf_counter() - start


def _costs(cascade: Cascade, rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Operations of each row in each stage (rows, stages), and layers (stages,)."""
    flops = [s.record.cost.row_flops(s.tokenize(rows).lengths) for s in cascade.stages]
    layers = [float(stage.record.cost.layers) for stage in cascade.stages]
    return np.stack(flops, axis=1), np.array(layers)


def _quality(out: Prediction, truth: NDArray[np.int64]) -> Quality:
    return quality(out.probabilities, truth, logit(out.confidence), ~out.abstained)
