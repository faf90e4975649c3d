"""Evaluated rows by confidence, label and length, and the hardest ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.report.evaluated_rows import EvaluatedRows

BINS = 15
MOST_LABELS = 20
_LENGTH_BINS = 8
_SHOWN_ROWS = 15
_MOST_STEPS = 300
_LEAST_COVERAGE = 0.02


class Reliability(NamedTuple):
    """Rows in bins of equal width by the probability of a stage's answer.

    Attributes:
        edges: edges of all bins, shape (BINS + 1,).
        counts: number of rows in each bin, shape (BINS,).
        probability: mean probability in each non-empty bin.
        accuracy: share of right answers in each non-empty bin.
    """

    edges: Floats
    counts: NDArray[np.int64]
    probability: Floats
    accuracy: Floats


def reliability(evaluated: EvaluatedRows, stage: int) -> Reliability:
    """Bin all rows by the probability from a stage, counted from 0."""
    edges = np.linspace(0, 1, BINS + 1)
    probability = evaluated.probabilities[stage].max(axis=1)
    which = np.digitize(probability, edges[1:-1], right=True)
    counts = np.bincount(which, minlength=BINS)
    filled = counts > 0

    def means(values: NDArray[np.generic]) -> Floats:
        sums = np.bincount(which, weights=values.astype(np.float64), minlength=BINS)
        result: Floats = sums[filled] / counts[filled]
        return result

    return Reliability(edges, counts, means(probability), means(evaluated.right[stage]))


def risk_coverage(scores: Floats, right: NDArray[np.bool_], rows: int) -> tuple[Floats, Floats]:
    """Risk-coverage curve: the share of wrong answers among the rows with the highest scores.

    Args:
        scores: confidence scores of the answered rows.
        right: whether each of these answers is right.
        rows: number of all rows, answered or not.

    Returns:
        Coverage as a share of all rows, and the share of wrong answers. Rows with equal scores form
        one step. The first few rows are left out, as the curve is noise there.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    wrong = np.cumsum(~right[order])
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)])
    kept = ends[ends + 1 >= min(_LEAST_COVERAGE * rows, len(order))]
    kept = kept[np.unique(np.linspace(0, len(kept) - 1, min(len(kept), _MOST_STEPS)).astype(int))]
    return (kept + 1) / rows, wrong[kept] / (kept + 1)


def cascade_risk_coverage(evaluated: EvaluatedRows) -> tuple[Floats, Floats]:
    """Risk-coverage curve of the cascade, by the confidence of the stage that answers."""
    outcome = evaluated.outcome
    answered = np.flatnonzero(outcome.answered)
    scores = evaluated.scores[outcome.end[answered], answered]
    return risk_coverage(scores, outcome.right[answered], len(evaluated))


@dataclass(frozen=True)
class Group:
    """A group of rows, and where they end.

    Attributes:
        name: the label or lengths that the rows share.
        rows: number of rows.
        shares: share of the rows that end at each stage, and without an answer; shape
            (stages + 1,).
    """

    name: str
    rows: int
    shares: tuple[float, ...]


def by_label(evaluated: EvaluatedRows) -> list[Group]:
    """One group per label, the most frequent first; rare labels form one group."""
    counts = np.bincount(evaluated.truth, minlength=len(evaluated.labels))
    present = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]
    own = present if len(present) <= MOST_LABELS + 1 else present[:MOST_LABELS]
    groups = [_group(evaluated, evaluated.labels[label], evaluated.truth == label) for label in own]
    if len(own) < len(present):
        rest = np.isin(evaluated.truth, present[MOST_LABELS:])
        groups.append(_group(evaluated, f"{len(present) - MOST_LABELS} others", rest))
    return groups


def by_length(evaluated: EvaluatedRows) -> list[Group]:
    """Groups of about equal size from short rows to long ones."""
    lengths = evaluated.lengths
    # Each group ends with a length that rows have, so that its name tells which it holds.
    steps = np.linspace(0, 1, _LENGTH_BINS + 1)[1:]
    tops = np.unique(np.quantile(lengths, steps, method="inverted_cdf").astype(np.int64))
    which = np.searchsorted(tops, lengths)
    groups = []
    for k in range(len(tops)):
        inside = which == k
        shortest, longest = int(lengths[inside].min()), int(tops[k])
        name = str(longest) if shortest == longest else f"{shortest}–{longest}"
        groups.append(_group(evaluated, name, inside))
    return groups


def _group(evaluated: EvaluatedRows, name: str, inside: NDArray[np.bool_]) -> Group:
    ends = np.bincount(evaluated.outcome.end[inside], minlength=len(evaluated.stages) + 1)
    return Group(name, int(inside.sum()), tuple((ends / ends.sum()).tolist()))


def hardest(evaluated: EvaluatedRows) -> NDArray[np.int64]:
    """Positions of the rows with the lowest confidence in the last stage."""
    return np.argsort(evaluated.scores[-1], kind="stable")[:_SHOWN_ROWS]


def surest_errors(evaluated: EvaluatedRows) -> NDArray[np.int64]:
    """Positions of the first run stage's wrong answers, the most confident first."""
    stage = evaluated.first_stage
    order = np.argsort(-evaluated.scores[stage], kind="stable")
    wrong: NDArray[np.int64] = order[~evaluated.right[stage, order]]
    return wrong[:_SHOWN_ROWS]
