"""Promises about rows that nobody has seen yet, and how sure they are.

Some of the held-out rows propose: they order vectors of thresholds from the one that keeps the
promise best to the one that the user would like best. The others certify: they test the
vectors in that order, each at the full level, and stop at the first that fails (a fixed-sequence
test, as in "Learn then Test", arXiv 2110.01052). Whatever passed before, the chance that any
vector passes which does not keep the promise is at most the level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.errors import InputError

CERTIFIED, NOT_CERTIFIED, DO_NOT_CASCADE = "certified", "not certified", "do not cascade"
FEWEST_ROWS = 20
PROPOSING_SHARE = 0.3

_MOST_ROWS_TO_ASK_FOR = 10_000_000

T = TypeVar("T")


@dataclass(frozen=True)
class Certificate:
    """What is promised of a cascade, and on what grounds.

    Attributes:
        target: kind of the target.
        value: the number in it.
        promise: both in words.
        confidence: 1 minus the chance that a promise is made and does not hold.
        verdict: "certified"; "not certified", then the thresholds are the safe ones; or "do not
            cascade", where no thresholds that keep the promise are cheaper than a single stage.
        rows_proposing, rows_certifying: held-out rows for either.
        observed: what the target is about, as seen in the certifying rows under the chosen
            thresholds.
        p_value: of the chosen thresholds; 0 where they keep the promise by what they are.
        more_rows: about how many more held-out rows would have certified the thresholds that the
            proposing rows found best; None where there is no need, or where no number would do.
    """

    target: str
    value: float
    promise: str
    confidence: float
    verdict: str
    rows_proposing: int
    rows_certifying: int
    observed: float
    p_value: float
    more_rows: int | None

    @property
    def certified(self) -> bool:
        return self.verdict == CERTIFIED

    def words(self) -> str:
        """The certificate as prose: what is promised, on what grounds, and for what rows."""
        level = f"{self.confidence:.4g}"
        seen = (
            f"On the {self.rows_certifying} rows that did not choose them it was "
            f"{self.observed:.4f} (p = {self.p_value:.2g})."
        )
        grounds = (
            "This holds for rows drawn as the held-out rows were, and for the stages as they are "
            "saved; it does not hold when the rows that come in change."
        )
        if self.verdict == CERTIFIED:
            return (
                f"Certified with confidence {level}: these thresholds keep {self.promise}. {seen} "
                f"{grounds}"
            )
        if self.verdict == DO_NOT_CASCADE:
            return (
                f"Do not cascade: a single stage is the better buy for {self.promise}, and these "
                f"thresholds use it alone. {seen}"
            )
        if self.more_rows is None:
            hope = "More rows like these would hardly change that; ask for less"
        else:
            hope = f"About {self.more_rows} more held-out rows would do, if they are like these"
        return (
            f"Not certified with confidence {level}: no thresholds but the safest could be shown "
            f"to keep {self.promise}, so the safest are set. {hope}."
        )


def walk(path: Sequence[T], p_value: Callable[[T], float], level: float) -> list[float]:
    """Fixed-sequence test: p-values of the points that pass, in their order, up to the first that
    does not.

    Args:
        path: from the point that keeps the promise best.
        p_value: of the null hypothesis that a point does not keep it.
        level: chance of a wrong promise, over all points together.
    """
    passed = []
    for point in path:
        value = p_value(point)
        if value > level:
            break
        passed.append(value)
    return passed


def split_rows(
    rows: int, groups: ArrayLike | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions that propose and positions that certify, drawn at random.

    Args:
        rows: number of rows.
        groups: group of each row, shape (rows,); rows of a group stay on one side.
        seed: of the draw.

    Raises:
        InputError: too few rows or groups to have both sides.
    """
    names = np.arange(rows) if groups is None else np.asarray(groups)
    if names.shape != (rows,):
        raise InputError(f"groups have the shape {names.shape} for {rows} rows; give one a row")
    _, group = np.unique(names, return_inverse=True)
    count = int(group.max()) + 1 if rows else 0
    if count < FEWEST_ROWS:
        kind = "rows" if groups is None else "groups of rows"
        raise InputError(
            f"{count} {kind} are too few to certify anything; give {FEWEST_ROWS} at the very least "
            "(hundreds, for a promise of a few per cent), or confidence=None for an estimate"
        )
    order = np.random.default_rng(seed).permutation(count)
    place = np.empty(count, dtype=np.int64)
    place[order] = np.arange(count)
    proposing = place[group] < round(count * PROPOSING_SHARE)
    return np.flatnonzero(proposing), np.flatnonzero(~proposing)


def rows_needed(losses: NDArray[np.float64], limit: float, level: float) -> int | None:
    """About how many rows like these would show that the expected loss is below a limit.

    Args:
        losses: shape (rows,).
        limit: to stay below.
        level: chance of being wrong.

    Returns:
        None where these rows are not below the limit themselves, or ten million would not do.
    """
    room = limit - float(losses.mean())
    if room <= 0:
        return None
    normal = (NormalDist().inv_cdf(1 - level) * float(losses.std()) / room) ** 2
    # Even without a single loss it takes so many.
    least = math.log(level) / math.log1p(-limit) if 0 < limit < 1 else 0.0
    needed = math.ceil(max(normal, least))
    return needed if needed <= _MOST_ROWS_TO_ASK_FOR else None
