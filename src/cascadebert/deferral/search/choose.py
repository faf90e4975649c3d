"""Choosing one threshold a stage, so that a target is met, and promising that it is.

Every stage has run on every held-out row, so any thresholds can be replayed exactly
(:mod:`~cascadebert.deferral.search.frontier`). Without a promise they are the thresholds that serve
the target best on these rows. With one, some of the rows propose and the others certify
(:mod:`~cascadebert.deferral.certificates.fixed_sequence`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.certificates.certificate import (
    CERTIFIED,
    DO_NOT_CASCADE,
    ESTIMATED,
    NOT_CERTIFIED,
)
from cascadebert.deferral.certificates.fixed_sequence import one_of_each, split_rows, walk
from cascadebert.deferral.confidence import DEFAULT_SCORE, LEARNED, Floats, confidence_score
from cascadebert.deferral.held_out import HeldOut
from cascadebert.deferral.routing import Thresholds
from cascadebert.deferral.search.arguments import (
    checked_costs,
    checked_groups,
    checked_labels,
    checked_logits,
    checked_seed,
    checked_targets,
    refuse_confidence,
    refuse_unfit,
)
from cascadebert.deferral.search.frontier import Point, Search
from cascadebert.deferral.search.path import (
    certification_path,
    fixed_path,
    last_stage_path,
    threshold_family,
)
from cascadebert.deferral.search.policy import Policy, make_policy, p_values
from cascadebert.deferral.search.replay import Replay
from cascadebert.deferral.targets import MaxErrorWhenAnswering, MinCoverage, Target
from cascadebert.errors import InputError, TargetError

_MORE = 1.25 ** np.arange(1, 40)
_MOST_ROWS_TO_TRY = 50_000
_FALLBACK_SHARE = 0.25


def choose_thresholds(
    probabilities: Sequence[ArrayLike],
    labels: ArrayLike | None,
    costs: ArrayLike,
    target: Target | Sequence[Target],
    confidence: float | None = 0.95,
    seed: int = 0,
    *,
    groups: ArrayLike | None = None,
    duplicates: ArrayLike | None = None,
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
        groups: group of each row, shape (rows,), if some depend on one another, as the sentences
            of one document do. A group is not parted, and one row of each certifies, drawn at
            random: the promise is about a row of a group drawn as these were.
        duplicates: number of each row's text, shape (rows,); rows of one text are not parted.
        score: name of the confidence score, see :mod:`cascadebert.deferral.confidence`.
        logits: whether the arrays are logits instead of probabilities.
        names: of the classes, for targets about a label; by default their indices.

    Raises:
        InputError: arrays that do not fit together or are not finite, or too few rows.
        TargetError: no promise is asked for, and no thresholds meet the target on these rows.
        MissingDependencyError: a score is to be learned without scikit-learn.
    """
    refuse_confidence(confidence)
    seed = checked_seed(seed)
    targets = checked_targets(target)
    stages = checked_logits(probabilities, logits)
    rows = _held_out(stages, labels, costs, targets, names)
    everything = np.arange(len(rows))
    grouped = groups is not None
    together = groups if grouped else duplicates
    together = None if together is None else checked_groups(together, len(rows))
    if confidence is None:
        search, _ = _search(rows, stages, everything, score, logits, seed, targets)
        points = search.frontier()
        best = search.with_skips(search.best(points))
        _refuse_out_of_reach(search, best)
        edges = search.replay.confidence_edges(best.thresholds)
        seen = search.replay.seen(best.thresholds, edges)
        shown = search.shown(points)
        return make_policy(search.replay, best.thresholds, targets, shown, seen, ESTIMATED)
    proposing, certifying = split_rows(len(rows), together, seed)
    # In random order, for tests that bet on one row after the other.
    everything = np.random.default_rng(seed).permutation(everything)
    if grouped and together is not None:
        certifying, everything = (one_of_each(part, together) for part in (certifying, everything))
    ordered = _are_ordered(rows, targets, score)
    search, whole = _search(
        rows, stages, everything if ordered else proposing, score, logits, seed, targets
    )
    points = search.frontier()
    # Rows that only propose need no more than a good direction.
    best = search.with_skips(search.best(points, thorough=False))
    path = (
        fixed_path(search)
        if ordered
        else certification_path(search, threshold_family(search, best), targets)
    )
    rest = whole.take(everything if ordered else certifying)
    chosen, passed = _tested(search, best, path, rest, targets, 1 - confidence)
    verdict = _verdict(chosen, best.thresholds, passed, targets)
    more = None
    if verdict == NOT_CERTIFIED:
        more = _more_rows(Search(rest, targets), path, best.thresholds, 1 - confidence, len(rows))
    return make_policy(
        rest,
        chosen,
        targets,
        search.shown(points),
        whole.take(certifying).seen(chosen, whole.take(proposing).confidence_edges(chosen)),
        verdict,
        confidence=confidence,
        rows_proposing=0 if ordered else len(proposing),
        grouped=grouped,
        more_rows=more,
    )


def _search(
    rows: HeldOut,
    stages: Sequence[Floats],
    proposing: NDArray[np.int64],
    score: str,
    logits: bool,
    seed: int,
    targets: Sequence[Target],
) -> tuple[Search, Replay]:
    """The search on the rows that propose, and all rows with their scores."""
    proposals, whole = _proposals(rows, stages, proposing, score, logits, seed)
    return Search(proposals, targets, _sought(proposals, targets)), whole


def _are_ordered(rows: HeldOut, targets: Sequence[Target], score: str) -> bool:
    """Whether it is known without any row which thresholds keep the promise best.

    So it is with a single threshold, where the answers become the last stage's one after the other
    as it rises, and the cost does. Then all rows can certify.
    """
    alike = all(target.reference_keeps_it for target in targets) or all(
        target.on_cost for target in targets
    )
    return rows.stages == 2 and alike and score != LEARNED


def _held_out(
    stages: Sequence[Floats],
    labels: ArrayLike | None,
    costs: ArrayLike,
    targets: Sequence[Target],
    names: Sequence[object] | None,
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
        names = range(classes)
    if len(names) != classes:
        raise InputError(f"{len(names)} names for {classes} classes; give one a class")
    rows = HeldOut(answers, truth, checked_costs(costs, count, len(stages)), list(map(str, names)))
    refuse_unfit(targets, rows.stages, rows.names)
    return rows


def _proposals(
    rows: HeldOut,
    stages: Sequence[Floats],
    proposing: NDArray[np.int64],
    score: str,
    logits: bool,
    seed: int,
) -> tuple[Replay, Replay]:
    """The rows that propose, and all rows, with their scores."""
    if score == LEARNED:
        from cascadebert.deferral.search.learned import fit_learned_score

        own = rows.take(proposing)
        fitted, scores = fit_learned_score(
            [values[proposing] for values in stages], own.right[:-1], seed
        )
        return Replay(own, scores, None, fitted), Replay.of(rows, stages, fitted)
    chosen = confidence_score(score)
    if chosen.needs_logits and not logits:
        raise InputError(
            f"the score {score!r} cannot be told from probabilities; give logits, with logits=True"
        )
    whole = Replay.of(rows, stages, chosen)
    return whole.take(proposing), whole


def _sought(proposals: Replay, targets: Sequence[Target]) -> list[Target]:
    """How many rows to answer, where leave is given to abstain and nobody says how often."""
    limits = [target for target in targets if isinstance(target, MaxErrorWhenAnswering)]
    if not limits or any(isinstance(target, MinCoverage) for target in targets):
        return []
    coverage = Search(proposals, targets).coverage_of_last_stage()
    least = coverage - max(limit.coverage_drop for limit in limits)
    return [MinCoverage(least)] if 0 < least < 1 else []


def _refuse_out_of_reach(search: Search, best: Point) -> None:
    if not search.misses(best):
        return
    outcome = search.replay.outcome(best.thresholds)
    seen = (f"{target.quantity} {target.observed(outcome):.4f}" for target in search.targets)
    smaller = any(target.on_cost for target in search.targets)
    raise TargetError(
        f"{' and '.join(map(str, search.targets))} is out of reach on these rows: the thresholds "
        f"that come closest have {' and '.join(seen)}, at {search.reference.cost / best.cost:.2f} "
        "times the speed of the last stage alone; ask for less, or "
        + ("add a smaller stage" if smaller else "for better stages")
    )


def _tested(
    search: Search,
    best: Point,
    path: Sequence[Thresholds],
    rest: Replay,
    targets: Sequence[Target],
    level: float,
) -> tuple[Thresholds, bool]:
    """The thresholds to set, and whether they passed the test."""
    fallback = last_stage_path(search, best, targets)
    # Together they are at most the level.
    shares = (1 - _FALLBACK_SHARE, _FALLBACK_SHARE) if fallback else (1.0, 0.0)
    p_value, final = _p_values_once(rest, targets), Search(rest, targets, search.sought)
    passed = []
    for points, share in zip((path, fallback), shares, strict=True):
        certified = points[: len(walk(points, p_value, share * level))]
        if certified:
            # All of them keep the promise together, so any may be taken.
            passed.append(min(certified[::-1], key=final.left))
    if passed:
        return min(passed, key=final.cost_per_answer), True
    return _closest(rest, targets, [best.thresholds, *path, *fallback]), False


def _closest(rest: Replay, targets: Sequence[Target], tried: Sequence[Thresholds]) -> Thresholds:
    """What to set where nothing can be promised: the last stage alone, if it keeps the targets by
    what it is or no row tells how far they are missed, or else whatever misses them least.
    """
    search = Search(rest, targets)
    reference = search.reference

    def told(thresholds: Thresholds) -> bool:
        outcome = rest.outcome(thresholds)
        return not any(math.isnan(target.observed(outcome)) for target in targets)

    if all(target.reference_keeps_it for target in targets) or not told(reference.thresholds):
        return reference.thresholds
    points = [reference, *map(search.point, dict.fromkeys(tried))]
    ranked = (point.thresholds for point in sorted(points, key=search.rank_of))
    return next(filter(told, ranked))


def _p_values_once(replay: Replay, targets: Sequence[Target]) -> Callable[[Thresholds], float]:
    """The p-value of the null hypothesis that one of the promises does not hold.

    It is the largest of theirs, and is not computed again for thresholds that do the same to
    all rows.
    """
    known: dict[tuple[bytes, bytes], float] = {}

    def p_value(thresholds: Thresholds) -> float:
        key = (thresholds.runs.tobytes(), replay.routes(thresholds).end.tobytes())
        if key not in known:
            known[key] = max(p_values(replay, thresholds, targets))
        return known[key]

    return p_value


def _verdict(chosen: Thresholds, best: Thresholds, passed: bool, targets: Sequence[Target]) -> str:
    last = len(chosen.exits)
    untested = chosen.only_stage == last and all(target.reference_keeps_it for target in targets)
    if not passed or (untested and best.only_stage != last):
        return NOT_CERTIFIED
    single = chosen.only_stage
    smaller = single != last and not all(target.on_cost for target in targets)
    fallback = chosen.abstain > 0
    alone = single is not None and (single == best.only_stage or smaller or fallback)
    return DO_NOT_CASCADE if alone else CERTIFIED


def _more_rows(
    rest: Search, path: Sequence[Thresholds], best: Thresholds, level: float, rows: int
) -> int | None:
    """About how many more rows would have certified something worth having.

    That is the safest of the path with half of what the best thresholds save, or for targets on
    the cost the path's first; and rows enough are those with which, if they are like these, it
    would pass. Only a part of the rows certifies.
    """
    replay, targets = rest.replay, rest.targets
    half = (rest.reference.cost + rest.point(best).cost) / 2
    worth = [at for at in path if not rest.minimises_cost or rest.point(at).cost <= half]
    outcome = replay.outcome(worth[0] if worth else best)
    for factor in _MORE:
        size = round(len(outcome.rows) * factor)
        if size > _MOST_ROWS_TO_TRY:
            break
        more = outcome.take(np.resize(np.arange(len(outcome.rows)), size))
        if max(target.p_value(more) for target in targets) <= level:
            return max(math.ceil(rows * (float(factor) - 1)), 1)
    return None
