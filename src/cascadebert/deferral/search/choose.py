"""Choosing thresholds that meet a target, and certifying that they do.

Every stage has run on every held-out row, so any thresholds can be replayed exactly
(:mod:`~cascadebert.deferral.search.frontier`). Without a certificate the best thresholds on all
rows are set. With one, 20 % of the rows propose thresholds and the rest certify them
(:mod:`~cascadebert.deferral.certificates.fixed_sequence`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.certificates.certificate import (
    CERTIFIED,
    DO_NOT_CASCADE,
    ESTIMATED,
    NOT_CERTIFIED,
)
from cascadebert.deferral.certificates.fixed_sequence import (
    fixed_sequence_test,
    one_of_each,
    split_rows,
)
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
from cascadebert.deferral.search.candidates import Candidates
from cascadebert.deferral.search.frontier import Point, Search
from cascadebert.deferral.search.path import (
    certification_path,
    fixed_path,
    last_stage_path,
    threshold_family,
)
from cascadebert.deferral.search.policy import Policy, make_policy
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
    """Choose the best thresholds for a target, and certify them.

    It works with stages of any kind, given their probabilities. Of 100 cascades certified with a
    confidence of 0.95, at most about 5 break their promise ("Learn then Test", arXiv 2110.01052).

    Args:
        probabilities: holds one array (rows, classes) per stage, small to large.
        labels: holds the class index of each row, integers of shape (rows,); None is enough for
            targets that need no labels.
        costs: holds the cost per row of each stage, shape (stages,), or of each row in each stage,
            shape (rows, stages); in seconds or any other unit.
        target: is what is wanted, see :mod:`cascadebert.deferral.targets`; several targets hold at
            once.
        confidence: is 1 minus the probability of certifying a promise that is broken on rows from
            the same distribution. None asks for the best thresholds on these rows, uncertified.
        seed: seeds the draw of the proposing rows.
        groups: names the group of each row, shape (rows,), where rows depend on one another, as the
            sentences of one document do. A group is never split, and one random row per group
            certifies, so the promise is about one row per group.
        duplicates: numbers the text of each row, shape (rows,); rows of one text are never split.
        score: names the confidence score, see :mod:`cascadebert.deferral.confidence`.
        logits: says that the arrays hold logits instead of probabilities.
        names: names the classes, for targets about a label; by default they are 0, 1, ...

    Raises:
        InputError: an array is unusable, does not fit the others, or has too few rows.
        TargetError: without a certificate, no thresholds meet the target on these rows.

    >>> from cascadebert import MinAgreement
    >>> random = np.random.default_rng(0)
    >>> labels = random.integers(0, 2, 1000)
    >>> small, large = random.normal(0, 2, (2, 1000, 2))
    >>> small[np.arange(1000), labels] += 3
    >>> large[np.arange(1000), labels] += 6
    >>> target = MinAgreement(0.9)
    >>> policy = choose_thresholds([small, large], labels, [1, 10], target, logits=True)
    >>> policy.certificate.verdict
    'certified'
    """
    refuse_confidence(confidence)
    confidence = None if confidence is None else float(confidence)
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
        summary = search.replay.summary(best.thresholds, edges)
        shown = search.shown(points)
        return make_policy(search.replay, best.thresholds, targets, shown, summary, ESTIMATED)
    proposing, certifying = split_rows(len(rows), together, seed)
    # Betting tests take the rows one by one, in an order independent of their losses.
    everything = np.random.default_rng(seed).permutation(everything)
    if grouped and together is not None:
        certifying, everything = (one_of_each(part, together) for part in (certifying, everything))
    ordered = _are_ordered(rows, targets, score)
    search, whole = _search(
        rows, stages, everything if ordered else proposing, score, logits, seed, targets
    )
    points = search.frontier()
    # The proposing rows need only give a good direction.
    best = search.with_skips(search.best(points, thorough=False))
    path = (
        fixed_path(search)
        if ordered
        else certification_path(search, threshold_family(search, best), targets)
    )
    tested = Candidates(
        whole.take(everything if ordered else certifying), targets, search.secondary
    )
    fallback = last_stage_path(search, best, targets)
    chosen, passed = _certify(tested, path, fallback, best.thresholds, 1 - confidence)
    verdict = _verdict(chosen, best.thresholds, passed, targets)
    more = None
    if verdict == NOT_CERTIFIED:
        more = _more_rows(tested, path, best.thresholds, 1 - confidence, len(rows))
    edges = whole.take(proposing).confidence_edges(chosen)
    return make_policy(
        tested.replay,
        chosen,
        targets,
        search.shown(points),
        whole.take(certifying).summary(chosen, edges),
        verdict,
        chances=tested.p_values(chosen),
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
    """The search on the proposing rows, and all rows with their scores."""
    proposals, whole = _proposals(rows, stages, proposing, score, logits, seed)
    return Search(proposals, targets, _secondary_targets(proposals, targets)), whole


def _are_ordered(rows: HeldOut, targets: Sequence[Target], score: str) -> bool:
    """Whether the order of the path is known without proposing rows, so that all rows can certify.

    It is known for a single threshold: as it rises, ever more rows get the last stage's answer, and
    at its cost.
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
            raise InputError(f"{needing[0]} needs the labels of the rows; give labels")
        truth = checked_labels(labels, count, classes)
    if names is None:
        names = range(classes)
    if len(names) != classes:
        raise InputError(f"{len(names)} names for {classes} classes; give one per class")
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
    """The proposing rows and all rows, with their scores."""
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
            f"the score {score!r} needs more than probabilities; give logits and logits=True"
        )
    whole = Replay.of(rows, stages, chosen)
    return whole.take(proposing), whole


def _secondary_targets(proposals: Replay, targets: Sequence[Target]) -> list[Target]:
    """The coverage to aim for where the targets allow abstaining without limiting it."""
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
    observed = (f"{target.quantity} {target.observed(outcome):.4f}" for target in search.targets)
    smaller = any(target.on_cost for target in search.targets)
    raise TargetError(
        f"{' and '.join(map(str, search.targets))} is out of reach on these rows: the closest "
        f"thresholds have {' and '.join(observed)}, at {search.reference.cost / best.cost:.2f} "
        "times the speed of the last stage alone; ask for less, or "
        + ("add a smaller stage" if smaller else "use better stages")
    )


def _certify(
    tested: Candidates,
    path: Sequence[Thresholds],
    fallback: Sequence[Thresholds],
    best: Thresholds,
    level: float,
) -> tuple[Thresholds, bool]:
    """The thresholds to set, and whether they passed the test."""
    # Together the two tests have the level.
    shares = (1 - _FALLBACK_SHARE, _FALLBACK_SHARE) if fallback else (1.0, 0.0)
    passed = []
    for points, share in zip((path, fallback), shares, strict=True):
        certified = fixed_sequence_test(points, lambda at: max(tested.p_values(at)), share * level)
        if certified:
            # All of them keep the promise at once, so any of them may be chosen.
            passed.append(
                min(reversed(certified), key=lambda at: tested.figures(at).secondary_objective)
            )
    if passed:
        return min(passed, key=lambda at: tested.figures(at).cost_per_answer), True
    return _closest(tested, [best, *path, *fallback]), False


def _closest(tested: Candidates, tried: Sequence[Thresholds]) -> Thresholds:
    """The thresholds to set where nothing passes.

    They are the last stage alone if it keeps the targets by definition, or if a target's quantity
    is undefined on its answers; otherwise those that miss the targets least.
    """
    reference = tested.reference
    by_definition = all(target.reference_keeps_it for target in tested.targets)
    if by_definition or not tested.figures(reference).defined:
        return reference
    defined = [at for at in (reference, *tried) if tested.figures(at).defined]
    return min(defined, key=lambda at: tested.figures(at).rank)


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
    tested: Candidates,
    path: Sequence[Thresholds],
    best: Thresholds,
    level: float,
    rows: int,
) -> int | None:
    """About how many more rows like these would certify something worth having.

    That is the first of the path with at least half of the savings of the best thresholds, or, for
    targets on the cost, the first of the path. Only a part of the rows certifies.
    """
    half = (tested.figures(tested.reference).cost + tested.figures(best).cost) / 2
    useful = (at for at in path if not tested.minimises_cost or tested.figures(at).cost <= half)
    outcome = tested.replay.outcome(next(useful, best))
    for factor in _MORE:
        size = round(len(outcome.rows) * factor)
        if size > _MOST_ROWS_TO_TRY:
            break
        more = outcome.take(np.resize(np.arange(len(outcome.rows)), size))
        if max(target.p_value(more) for target in tested.targets) <= level:
            return max(math.ceil(rows * (float(factor) - 1)), 1)
    return None
