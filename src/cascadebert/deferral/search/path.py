"""Paths of thresholds for the fixed-sequence test, from the safest to the most useful."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from cascadebert.deferral.held_out import Outcome
from cascadebert.deferral.routing import ALWAYS_EXIT, Thresholds
from cascadebert.deferral.search.frontier import Point, Search
from cascadebert.deferral.search.policy import p_values
from cascadebert.deferral.targets import Target

_SHIFTS = np.linspace(10, -10, 201)
_SAFE_Z = -5.0
_STRIDE = 5
# Log-odds beyond these are 0 and 1 for a float64.
_SINGLE_THRESHOLDS = np.unique([*np.linspace(-4, 14, 361), *np.linspace(-36, 36, 145)])


def fixed_path(search: Search) -> list[Thresholds]:
    """A fixed grid of a single threshold, which needs no proposing rows.

    Args:
        search: gives the score and the direction of the path.
    """
    score = search.replay.score
    values = np.unique(score.shown(_SINGLE_THRESHOLDS))
    path = [Thresholds((float(value),)) for value in values[(values > 0) & (values < 1)]]
    path = [Thresholds((ALWAYS_EXIT,)), *path, search.reference.thresholds]
    return path[::-1] if search.minimises_cost else path


def threshold_family(search: Search, best: Point) -> list[Thresholds]:
    """Thresholds from the most rows deferred or unanswered to the fewest.

    Exit and abstention thresholds move together and keep their distances from one another, so every
    row that exits under one choice also exits under the next. Neighbours differ on few rows, which
    leaves chance few occasions to stop the test early. It would have many if each choice were the
    best of its kind on the few proposing rows.

    Args:
        search: holds the proposing rows.
        best: is the best point on them.
    """
    replay = search.replay
    return [*replay.shifted(best.thresholds, _SHIFTS), replay.always_exiting(best.thresholds)]


def last_stage_path(search: Search, best: Point, targets: Sequence[Target]) -> list[Thresholds]:
    """The last stage alone, with ever fewer rows unanswered.

    Args:
        search: holds the proposing rows.
        best: is the best point on them.
        targets: are to be promised.

    Returns:
        A path, empty where the best point does not abstain or is the last stage alone.
    """
    alone, replay = search.reference.thresholds, search.replay
    if not best.thresholds.abstain or best.thresholds.only_stage == len(alone.exits):
        return []
    middle = float(replay.score.shown(np.median(replay.scores(alone)[-1])))
    alone = dataclasses.replace(alone, abstain=middle)
    return certification_path(search, replay.shifted(alone, _SHIFTS), targets)


def certification_path(
    search: Search, family: Sequence[Thresholds], targets: Sequence[Target]
) -> list[Thresholds]:
    """Thresholds from the safest to the most useful.

    Args:
        search: holds the proposing rows.
        family: lists thresholds, from the most rows deferred or unanswered to the fewest.
        targets: are to be promised.
    """
    family = list(dict.fromkeys(family))
    from_reference = all(target.reference_keeps_it for target in targets)
    z_scores, chances = [], []
    for at in family:
        outcome = search.replay.outcome(at)
        z_scores.append(z_score(outcome, targets))
        chances.append(0.0 if from_reference else max(p_values(outcome, at, targets)))
    # Both ends may be unsafe: one with too few answers to test, the other with too many.
    safest = int(np.argmin(chances))
    order = range(safest, len(family)) if search.minimises_cost else range(safest, -1, -1)
    # Far from the limit most steps are left out, to save time.
    stride = [order[0], order[-1], *order[::_STRIDE]]
    path = [family[i] for i in order if z_scores[i] > _SAFE_Z or i in stride]
    return [search.reference.thresholds, *path] if from_reference else path


def z_score(outcome: Outcome, targets: Sequence[Target]) -> float:
    """The standard errors by which the worst target is missed; below 0 where all are met.

    Args:
        outcome: is that of the proposing rows.
        targets: are to be promised.
    """
    worst = -math.inf
    for target in targets:
        losses = target.losses(outcome)
        # One more row with the worst loss: without any loss the spread would be 0.
        spread = math.sqrt(float(((losses - losses.mean()) ** 2).sum() + np.abs(losses).max() ** 2))
        worst = max(worst, float(losses.sum()) / spread if spread else 0.0)
    return worst
