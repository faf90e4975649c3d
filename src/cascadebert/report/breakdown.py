"""A survey taken apart: by confidence, by label, by length, and row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.deferral.held_out import Outcome
from cascadebert.report.survey import Survey

BINS = 15
MOST_LABELS = 20
_LENGTH_BINS = 8
_SHOWN_ROWS = 15
_MOST_STEPS = 300
_LEAST_COVERAGE = 0.02


class Reliability(NamedTuple):
    """Rows by the probability of a stage's answer, in bins of equal width; empty ones left out.

    Attributes:
        edges: of all bins, shape (BINS + 1,).
        counts: rows in every bin, shape (BINS,).
        probability: mean in each bin that is not empty.
        accuracy: share of right answers in each of these.
    """

    edges: Floats
    counts: NDArray[np.int64]
    probability: Floats
    accuracy: Floats


def reliability(survey: Survey, stage: int) -> Reliability:
    """Of a stage, from 0, on all rows."""
    edges = np.linspace(0, 1, BINS + 1)
    which = np.digitize(survey.probability[stage], edges[1:-1], right=True)
    counts = np.bincount(which, minlength=BINS)
    filled = counts > 0

    def means(values: NDArray[np.generic]) -> Floats:
        sums = np.bincount(which, weights=values.astype(np.float64), minlength=BINS)
        result: Floats = sums[filled] / counts[filled]
        return result

    return Reliability(edges, counts, means(survey.probability[stage]), means(survey.right[stage]))


def risk_coverage(scores: Floats, right: NDArray[np.bool_], rows: int) -> tuple[Floats, Floats]:
    """Share of wrong answers among the rows of the highest scores, by how many these are.

    Args:
        scores: of the rows that have an answer.
        right: whether it is right.
        rows: number of all rows.

    Returns:
        Coverage as a share of all rows, and the share of wrong answers; rows of one score come
        together. The first few rows are left out, as a single one decides there.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    wrong = np.cumsum(~right[order])
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)])
    kept = ends[ends + 1 >= min(_LEAST_COVERAGE * rows, len(order))]
    kept = kept[np.unique(np.linspace(0, len(kept) - 1, min(len(kept), _MOST_STEPS)).astype(int))]
    return (kept + 1) / rows, wrong[kept] / (kept + 1)


def cascade_risk_coverage(survey: Survey) -> tuple[Floats, Floats]:
    """The same of the cascade, each row with the confidence of the stage that answers."""
    outcome = survey.outcome
    answered = np.flatnonzero(outcome.answered)
    scores = survey.scores[outcome.end[answered], answered]
    return risk_coverage(scores, outcome.right[answered], len(survey))


def oracle(survey: Survey) -> Outcome:
    """Each row exits at the first stage that is right, at the first of all where none is."""
    end = survey.right.argmax(axis=0)
    spent = survey.held_out.costs.cumsum(axis=1)
    return Outcome(survey.held_out, end, np.take_along_axis(spent, end[:, None], axis=1)[:, 0])


@dataclass(frozen=True)
class Group:
    """Some of the rows, and where they end.

    Attributes:
        name: what they have in common.
        rows: their number.
        shares: of them that end at each stage, and without an answer; shape (stages + 1,).
    """

    name: str
    rows: int
    shares: tuple[float, ...]


def by_label(survey: Survey) -> list[Group]:
    """The labels of most rows first; where there are many, the rest together."""
    counts = np.bincount(survey.truth, minlength=len(survey.labels))
    present = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]
    own = present if len(present) <= MOST_LABELS + 1 else present[:MOST_LABELS]
    groups = [_group(survey, survey.labels[label], survey.truth == label) for label in own]
    if len(own) < len(present):
        rest = np.isin(survey.truth, present[MOST_LABELS:])
        groups.append(_group(survey, f"{len(present) - MOST_LABELS} others", rest))
    return groups


def by_length(survey: Survey) -> list[Group]:
    """Rows from short to long, in groups of about as many each."""
    lengths = survey.lengths
    # Each group ends with a length that rows have, so that its name tells which it holds.
    steps = np.linspace(0, 1, _LENGTH_BINS + 1)[1:]
    tops = np.unique(np.quantile(lengths, steps, method="inverted_cdf").astype(np.int64))
    which = np.searchsorted(tops, lengths)
    groups = []
    for k in range(len(tops)):
        inside = which == k
        shortest, longest = int(lengths[inside].min()), int(tops[k])
        name = str(longest) if shortest == longest else f"{shortest}–{longest}"
        groups.append(_group(survey, name, inside))
    return groups


def _group(survey: Survey, name: str, inside: NDArray[np.bool_]) -> Group:
    ends = np.bincount(survey.outcome.end[inside], minlength=len(survey.stages) + 1)
    return Group(name, int(inside.sum()), tuple((ends / ends.sum()).tolist()))


def hardest(survey: Survey) -> NDArray[np.int64]:
    """Positions of the rows that the last stage is least sure of."""
    return np.argsort(survey.scores[-1], kind="stable")[:_SHOWN_ROWS]


def surest_errors(survey: Survey) -> NDArray[np.int64]:
    """Positions of the rows that the first stage which is run is surest of, and wrong."""
    stage = survey.first_stage
    order = np.argsort(-survey.scores[stage], kind="stable")
    wrong: NDArray[np.int64] = order[~survey.right[stage, order]]
    return wrong[:_SHOWN_ROWS]
