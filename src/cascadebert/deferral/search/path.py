"""Paths of thresholds for the fixed-sequence test, from the safest to the cheapest."""

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
_AT_EASE = -5.0
_STRIDE = 5
# Log-odds beyond these are 0 and 1 for a float64.
_SINGLE_THRESHOLDS = np.unique([*np.linspace(-4, 14, 361), *np.linspace(-36, 36, 145)])


def fixed_path(search: Search) -> list[Thresholds]:
    """All values of a single threshold that may matter, whatever the rows."""
    score = search.replay.score
    values = np.unique(score.shown(_SINGLE_THRESHOLDS))
    path = [Thresholds((float(value),)) for value in values[(values > 0) & (values < 1)]]
    path = [Thresholds((ALWAYS_EXIT,)), *path, search.reference.thresholds]
    return path[::-1] if search.minimises_cost else path


def threshold_family(search: Search, best: Point) -> list[Thresholds]:
    """From the most rows deferred or unanswered to the fewest.

    All thresholds that rows must be above move together, at the distances from one another that
    the best ones have. So each choice lets all rows exit that the one before it did: what it does
    to the rows differs little from one to the next, and chance has few occasions to end the walk
    early, which it had if every choice were the best of its kind on the few rows that propose.
    """
    replay = search.replay
    return [*replay.shifted(best.thresholds, _SHIFTS), replay.always_exiting(best.thresholds)]


def last_stage_path(search: Search, best: Point, targets: Sequence[Target]) -> list[Thresholds]:
    """The last stage alone, leaving fewer and fewer rows unanswered; empty where none may be, or
    where the other path is this one.
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
    """Thresholds from those that keep the promise best to those that serve the user best.

    Args:
        search: on the rows that propose.
        family: from the most rows deferred or unanswered to the fewest.
        targets: what is to be promised.
    """
    replay, family = search.replay, list(dict.fromkeys(family))
    strains = [_strain(replay.outcome(at), targets) for at in family]
    from_reference = all(target.reference_keeps_it for target in targets)
    # Otherwise both ends may be bad: too few answers to judge by at one, too many at the other.
    safest = (
        0
        if from_reference
        else int(np.argmin([max(p_values(replay, at, targets)) for at in family]))
    )
    order = range(safest, len(family)) if search.minimises_cost else range(safest, -1, -1)
    # Far from the limit small steps only take time.
    stride = [order[0], order[-1], *order[::_STRIDE]]
    path = [family[i] for i in order if strains[i] > _AT_EASE or i in stride]
    return [search.reference.thresholds, *path] if from_reference else path


def _strain(outcome: Outcome, targets: Sequence[Target]) -> float:
    """By how many standard errors the targets are missed; below 0 where they are met."""
    worst = -math.inf
    for target in targets:
        losses = target.losses(outcome)
        # As if one more row had been at the worst: without a loss nothing is known of the spread.
        spread = math.sqrt(float(((losses - losses.mean()) ** 2).sum() + np.abs(losses).max() ** 2))
        worst = max(worst, float(losses.sum()) / spread if spread else 0.0)
    return worst
