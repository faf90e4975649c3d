"""Choosing one threshold a stage, so that a target is met, and promising that it is.

Every stage has run on every held-out row, so any thresholds can be replayed exactly
(:mod:`cascadebert.deferral.search`). Without a promise they are those that serve the target best
on these rows. With one, some of the rows propose and the others certify
(:mod:`cascadebert.deferral.certificate`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.certificate import (
    CERTIFIED,
    DO_NOT_CASCADE,
    ESTIMATED,
    NOT_CERTIFIED,
    rows_needed,
    split_rows,
    walk,
)
from cascadebert.deferral.confidence import (
    DEFAULT_SCORE,
    LEARNED,
    ConfidenceScore,
    Floats,
    confidence_score,
)
from cascadebert.deferral.held_out import HeldOut, Outcome
from cascadebert.deferral.inputs import checked_costs, checked_labels, checked_logits
from cascadebert.deferral.policy import Policy, make_policy, p_values
from cascadebert.deferral.replay import Replay
from cascadebert.deferral.routing import Thresholds
from cascadebert.deferral.search import Point, Search
from cascadebert.deferral.targets import MaxErrorWhenAnswering, MinCoverage, Target
from cascadebert.errors import InputError, TargetError

_MOST_PROPOSALS = 60
_APPROACH = 20


def choose_thresholds(
    probabilities: Sequence[ArrayLike],
    labels: ArrayLike | None,
    costs: ArrayLike,
    target: Target | Sequence[Target],
    confidence: float | None = 0.95,
    seed: int = 0,
    *,
    groups: ArrayLike | None = None,
    score: str = DEFAULT_SCORE,
    logits: bool = False,
    names: Sequence[str] | None = None,
) -> Policy:
    """The thresholds that serve a target best, and the promise that can be made of them.

    Bring your own stages: nothing is asked of them but their probabilities.

    Args:
        probabilities: one array (rows, classes) a stage, small to large.
        labels: class index of each row, integers of shape (rows,); None for targets that need no
            labels.
        costs: seconds (or any other cost) of one row in each stage, shape (stages,), or of
            each row in each stage, shape (rows, stages).
        target: what is wanted, see :mod:`cascadebert.deferral.targets`; several are to hold at
            once.
        confidence: 1 minus the chance that a promise is made which does not hold for rows drawn
            as these were. None asks for no promise, and for the best thresholds on these rows.
        seed: of the draw of the rows that propose.
        groups: group of each row, shape (rows,), if some belong together; a group is not parted.
        score: name of the confidence score, see :mod:`cascadebert.deferral.confidence`.
        logits: whether the arrays are logits instead of probabilities.
        names: of the classes, for targets about a label; by default their indices.

    Raises:
        InputError: arrays that do not fit together or are not finite, or too few rows.
        TargetError: no promise is asked for, and no thresholds meet the target on these rows.
        MissingDependencyError: a score is to be learned without scikit-learn.
    """
    if confidence is not None and not 0 < confidence < 1:
        raise InputError(f"a confidence of {confidence} is not between 0 and 1; 0.95 means 95 %")
    targets = tuple(target) if isinstance(target, Sequence) else (target,)
    if not targets:
        raise InputError("no target: name at least one")
    stages = checked_logits(probabilities, logits)
    rows = _held_out(stages, labels, costs, targets, names)
    if confidence is None:
        proposing, certifying = np.arange(len(rows)), np.arange(0)
    else:
        proposing, certifying = split_rows(len(rows), groups, seed)
    proposals, chosen_score = _proposals(rows, stages, proposing, score, logits, seed)
    sought = _sought(proposals, targets)
    search = Search(proposals, [*targets, *sought])
    points = search.frontier()
    # Rows that only propose need no more than a good direction.
    best = search.with_skips(search.best(points, thorough=confidence is None))
    if confidence is None:
        _refuse_out_of_reach(search, best, points)
        return make_policy(
            proposals, proposals, best.thresholds, targets, search.shown(points), ESTIMATED
        )
    path = _path(search, best, points, targets, sought)
    whole = Replay.of(rows, stages, chosen_score)
    rest = whole.take(certifying)
    passed = walk(path, lambda at: _p_value(rest, at, targets), 1 - confidence)
    chosen = path[len(passed) - 1] if passed else _fallback(search, path)
    verdict = _verdict(chosen, best.thresholds, passed)
    more = None
    if verdict == NOT_CERTIFIED:
        more = _more_rows(rest.outcome(best.thresholds), targets, 1 - confidence, len(rows))
    shown = search.shown(points)
    return make_policy(
        rest, proposals, chosen, targets, shown, verdict, confidence=confidence, more_rows=more
    )


def _held_out(
    stages: Sequence[Floats],
    labels: ArrayLike | None,
    costs: ArrayLike,
    targets: Sequence[Target],
    names: Sequence[str] | None,
) -> HeldOut:
    count, classes = stages[0].shape
    answers = np.stack([values.argmax(axis=1) for values in stages])
    truth = answers[-1]
    needing = [type(target).__name__ for target in targets if target.needs_labels]
    if needing:
        if labels is None:
            raise InputError(f"{needing[0]} needs the labels of the rows; give them")
        truth = checked_labels(labels, count, classes)
    if names is None:
        names = [str(i) for i in range(classes)]
    if len(names) != classes:
        raise InputError(f"{len(names)} names for {classes} classes; give one a class")
    rows = HeldOut(answers, truth, checked_costs(costs, count, len(stages)), names)
    for target in targets:
        # Refuses a label or a number of classes that it cannot be about.
        target.tables(rows.take(np.arange(1)))
    return rows


def _proposals(
    rows: HeldOut,
    stages: Sequence[Floats],
    proposing: NDArray[np.int64],
    score: str,
    logits: bool,
    seed: int,
) -> tuple[Replay, ConfidenceScore]:
    """The rows that propose with their scores, and the score for other rows."""
    if score == LEARNED:
        from cascadebert.deferral.learned import fit_learned_score

        own = rows.take(proposing)
        fitted, scores = fit_learned_score(
            [values[proposing] for values in stages], own.right[:-1], seed
        )
        return Replay(own, scores, None, fitted), fitted
    chosen = confidence_score(score)
    if chosen.needs_logits and not logits:
        raise InputError(
            f"the score {score!r} cannot be told from probabilities; give logits, with logits=True"
        )
    return Replay.of(rows, stages, chosen).take(proposing), chosen


def _sought(proposals: Replay, targets: Sequence[Target]) -> list[Target]:
    """How many rows to answer, where leave is given to abstain and nobody says how often."""
    limits = [target for target in targets if isinstance(target, MaxErrorWhenAnswering)]
    if not limits or any(isinstance(target, MinCoverage) for target in targets):
        return []
    coverage = Search(proposals, targets).coverage_of_last_stage()
    least = coverage - max(limit.coverage_drop for limit in limits)
    return [MinCoverage(least)] if 0 < least < 1 else []


def _refuse_out_of_reach(search: Search, best: Point, points: Sequence[Point]) -> None:
    if not search.misses(best):
        return
    reference = search.reference
    cheapest = min(points, key=lambda point: point.cost)
    raise TargetError(
        f"{' and '.join(map(str, search.targets))} is out of reach on these rows: the cheapest way "
        f"through the stages has a speed-up of {reference.cost / cheapest.cost:.2f}, with accuracy "
        f"{cheapest.means[0]:.4f} against {reference.means[0]:.4f}; "
        "ask for less or add a smaller stage"
    )


def _path(
    search: Search,
    best: Point,
    points: Sequence[Point],
    targets: Sequence[Target],
    sought: Sequence[Target],
) -> list[Thresholds]:
    """Thresholds from those that keep the promise best to those that serve the user best.

    Each is better than all before it in what is left to the user, and more of a strain on the
    promise. The frontier may begin far from the last stage alone, where the cascade is the more
    accurate of the two; a walk in such a stride would fall at its first step, so smaller steps
    lead there.
    """
    replay = search.replay
    candidates = {point.thresholds: point for point in [*points, best]}
    for point in list(candidates.values()):
        # What helps the best point may help its neighbours.
        skipping = Thresholds(
            point.thresholds.exits, best.thresholds.skips, point.thresholds.abstain
        )
        if skipping not in candidates:
            candidates[skipping] = search.point(skipping)
    strain = {at: _strain(replay.outcome(at), targets) for at in candidates}
    safest = min(strain, key=strain.__getitem__)
    if search.minimises_cost:
        for step in range(1, _APPROACH):
            at = replay.part_way(safest, step / _APPROACH)
            candidates[at] = search.point(at)
            strain[at] = _strain(replay.outcome(at), targets)
    ordered = sorted(candidates.values(), key=lambda point: strain[point.thresholds])
    path, aim = [], (math.inf, math.inf)
    for point in ordered:
        outcome = replay.outcome(point.thresholds)
        short = [max(float(target.losses(outcome).mean()), 0.0) for target in sought]
        left = (sum(short), point.cost if search.minimises_cost else -float(point.means[0]))
        if left < aim or point.thresholds == best.thresholds:
            aim = min(aim, left)
            path.append(point.thresholds)
    kept = {round(step) for step in np.linspace(0, len(path) - 1, min(_MOST_PROPOSALS, len(path)))}
    path = [at for i, at in enumerate(path) if i in kept or at == best.thresholds]
    never = Thresholds.last_stage_alone(replay.rows.stages)
    if all(target.reference_keeps_it for target in targets):
        path = [never, *(at for at in path if at != never)]
    return path


def _fallback(search: Search, path: Sequence[Thresholds]) -> Thresholds:
    """What to set where nothing can be promised."""
    if search.minimises_cost and not any(target.abstains for target in search.targets):
        return search.reference.thresholds
    return path[0]


def _strain(outcome: Outcome, targets: Sequence[Target]) -> float:
    """By how many standard errors the targets are missed; below 0 where they are met."""
    worst = -math.inf
    for target in targets:
        losses = target.losses(outcome)
        # As if one more row had been at the worst: without a loss nothing is known of the spread.
        spread = math.sqrt(float(((losses - losses.mean()) ** 2).sum() + np.abs(losses).max() ** 2))
        worst = max(worst, float(losses.sum()) / spread if spread else 0.0)
    return worst


def _p_value(replay: Replay, thresholds: Thresholds, targets: Sequence[Target]) -> float:
    """Of the null hypothesis that one of the promises does not hold: the largest of theirs."""
    return max(p_values(replay, thresholds, targets))


def _verdict(chosen: Thresholds, best: Thresholds, passed: Sequence[float]) -> str:
    if not passed or (passed[-1] == 0 and len(passed) == 1 and not best.is_single_stage):
        return NOT_CERTIFIED
    return DO_NOT_CASCADE if chosen.is_single_stage and best.is_single_stage else CERTIFIED


def _more_rows(outcome: Outcome, targets: Sequence[Target], level: float, rows: int) -> int | None:
    """About how many more rows would have certified this outcome; only a part of them certifies."""
    needed = [rows_needed(target.losses(outcome), 0.0, level) for target in targets]
    known = [number for number in needed if number is not None]
    if len(known) < len(needed):
        return None
    return max(math.ceil(max(known) * rows / len(outcome.rows)) - rows, 1)
