"""The price of confidence: certified thresholds by number of rows and confidence level."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadebert.deferral.certificates.certificate import NOT_CERTIFIED
from cascadebert.deferral.certificates.fixed_sequence import FEWEST_ROWS
from cascadebert.deferral.confidence import DEFAULT_SCORE, LEARNED, SCORES
from cascadebert.deferral.search.choose import choose_thresholds
from cascadebert.deferral.search.replay import Replay
from cascadebert.deferral.targets import Target
from cascadebert.errors import TargetError
from cascadebert.report.evaluated_rows import EvaluatedRows, cost_share

LEVELS = (0.8, 0.9, 0.95, 0.99)
LEAST_ROWS = 100
_SIZES = 5
_SMALLEST_PART = 32
_DRAWS = 5
_SECONDS = 15.0
_MOST_ROWS = 5_000


@dataclass(frozen=True)
class Price:
    """Cost and accuracy of certified thresholds on all rows.

    Attributes:
        sizes: numbers of held-out rows.
        costs: cost as a share of the last stage's, by size and level; one value per draw.
        accuracies: accuracy, by size and level; one value per draw.
        certified: share of the draws that were certified, by size and level.
        without: cost and accuracy of the best thresholds on all rows without a certificate; None
            where none meet the targets.
        draws: number of draws of each size.
        score: name of the confidence score.
    """

    sizes: tuple[int, ...]
    costs: dict[tuple[int, float], tuple[float, ...]]
    accuracies: dict[tuple[int, float], tuple[float, ...]]
    certified: dict[tuple[int, float], float]
    without: tuple[float, float] | None
    draws: int
    score: str


def too_few(evaluated: EvaluatedRows) -> str | None:
    """The reason, as a sentence, why these rows give no price; None where they do."""
    if len(evaluated.stages) < 2:
        return "A single stage has no thresholds to choose."
    distinct = len(np.unique(evaluated.groups))
    if distinct < LEAST_ROWS:
        return (
            f"Left out: choosing and certifying thresholds on parts of the rows takes {LEAST_ROWS} "
            f"different rows, and here there are {distinct}."
        )
    return None


def price_of_confidence(
    evaluated: EvaluatedRows, targets: Sequence[Target], seconds: float = _SECONDS
) -> Price:
    """Choose certified thresholds on random parts of the rows, repeatedly.

    Args:
        evaluated: has enough rows, see :func:`too_few`.
        targets: are met together.
        seconds: ends the draws after this time, but not before every size and level has one.
    """
    # Learning a score anew for each draw would take an extra package, and most of the time.
    name = DEFAULT_SCORE if evaluated.replay.score.name == LEARNED else evaluated.replay.score.name
    replay = Replay.of(
        evaluated.held_out, [run.logits.astype(np.float64) for run in evaluated.runs], SCORES[name]
    )
    groups = evaluated.groups
    sizes = _sizes(len(evaluated))
    found: dict[tuple[int, float], list[tuple[float, float, bool]]] = {}
    begun = time.monotonic()
    draws = 0
    while draws < _DRAWS and (not draws or time.monotonic() - begun < seconds):
        order = _in_random_order(groups, draws)
        for size in sizes:
            if len(np.unique(groups[order[:size]])) < FEWEST_ROWS:
                continue
            for level in LEVELS:
                once = _once(evaluated, replay, targets, order[:size], level, draws)
                found.setdefault((size, level), []).append(once)
        draws += 1
    return Price(
        sizes=tuple(size for size in sizes if (size, LEVELS[0]) in found),
        costs={at: tuple(cost for cost, _, _ in runs) for at, runs in found.items()},
        accuracies={at: tuple(share for _, share, _ in runs) for at, runs in found.items()},
        certified={at: sum(sure for _, _, sure in runs) / len(runs) for at, runs in found.items()},
        without=_without_promise(evaluated, replay, targets),
        draws=draws,
        score=name,
    )


def _once(
    evaluated: EvaluatedRows,
    replay: Replay,
    targets: Sequence[Target],
    rows: NDArray[np.int64],
    level: float | None,
    seed: int,
) -> tuple[float, float, bool]:
    """Cost, accuracy on all rows and whether certified, of thresholds chosen on some rows."""
    policy = choose_thresholds(
        [run.logits[rows] for run in evaluated.runs],
        evaluated.truth[rows],
        replay.rows.costs[rows],
        targets,
        level,
        seed,
        groups=evaluated.groups[rows],
        score=replay.score.name,
        logits=True,
        names=evaluated.labels,
    )
    outcome = replay.outcome(policy.routing)
    certified = policy.certificate.verdict != NOT_CERTIFIED
    reference = not certified and not all(target.on_cost for target in targets)
    cost = 1.0 if reference else cost_share(outcome)
    right = outcome.reference_right if reference else outcome.right
    return cost, float(right.mean()), certified


def _without_promise(
    evaluated: EvaluatedRows, replay: Replay, targets: Sequence[Target]
) -> tuple[float, float] | None:
    with contextlib.suppress(TargetError):
        cost, accuracy, _ = _once(evaluated, replay, targets, np.arange(len(evaluated)), None, 0)
        return cost, accuracy
    return None


def _sizes(rows: int) -> list[int]:
    most = min(rows, _MOST_ROWS)
    least = max(most // _SMALLEST_PART, LEAST_ROWS // 2)
    return sorted({round(size) for size in np.geomspace(least, most, _SIZES)})


def _in_random_order(groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Positions of the rows in random order, each group together."""
    ranks = np.random.default_rng(seed).permutation(int(groups.max()) + 1)
    return np.argsort(ranks[groups], kind="stable")
