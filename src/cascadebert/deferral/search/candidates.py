"""Candidate thresholds on the certifying rows: each is replayed once, and its figures are kept."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cascadebert.deferral.held_out import Outcome
from cascadebert.deferral.routing import Thresholds
from cascadebert.deferral.search.frontier import Search
from cascadebert.deferral.search.policy import p_values
from cascadebert.deferral.search.replay import Replay
from cascadebert.deferral.targets import Target


@dataclass(frozen=True)
class Figures:
    """What thresholds give on the certifying rows.

    Attributes:
        rank: sort key; the first number is how far the targets are missed.
        cost: mean per row.
        cost_per_answer: mean per row that gets an answer.
        secondary_objective: sort key of thresholds that pass the test: how far the secondary
            targets are missed, then the cost and the share of rows without a right answer.
        defined: whether every target's quantity is defined on these rows.
    """

    rank: tuple[float, ...]
    cost: float
    cost_per_answer: float
    secondary_objective: tuple[float, float, float]
    defined: bool


class Candidates:
    """Figures and p-values of thresholds, at a few numbers of memory for each.

    Args:
        replay: holds the certifying rows.
        targets: are what is to be promised.
        secondary: are targets that are wanted but not promised.
    """

    def __init__(
        self, replay: Replay, targets: Sequence[Target], secondary: Sequence[Target] = ()
    ) -> None:
        self.replay = replay
        self.targets = targets
        self._secondary = secondary
        self._search = Search(replay, targets)
        self._figures: dict[Thresholds, Figures] = {}
        self._p_values: dict[Thresholds, list[float]] = {}
        self._p_values_by_effect: dict[bytes, list[float]] = {}
        self.minimises_cost = self._search.minimises_cost
        self.reference = Thresholds.last_stage_alone(replay.rows.stages)

    def figures(self, thresholds: Thresholds) -> Figures:
        """What the thresholds give."""
        if thresholds not in self._figures:
            self._measure(thresholds)
        return self._figures[thresholds]

    def p_values(self, thresholds: Thresholds) -> list[float]:
        """Per target, for the null hypothesis that its promise is broken."""
        if thresholds not in self._p_values:
            outcome = self._measure(thresholds)
            # Neighbours on a path often do the same to every row.
            effect = hashlib.blake2b(outcome.end.tobytes() + outcome.cost.tobytes()).digest()
            if effect not in self._p_values_by_effect:
                self._p_values_by_effect[effect] = p_values(outcome, thresholds, self.targets)
            self._p_values[thresholds] = self._p_values_by_effect[effect]
        return self._p_values[thresholds]

    def _measure(self, thresholds: Thresholds) -> Outcome:
        outcome = self.replay.outcome(thresholds)
        cost, answers = float(outcome.cost.mean()), int(outcome.answered.sum())
        missed = sum(max(float(target.losses(outcome).mean()), 0.0) for target in self._secondary)
        wrong = 1 - float(outcome.right.mean())
        objective = (cost, wrong) if self.minimises_cost else (wrong, cost)
        self._figures[thresholds] = Figures(
            rank=self._search.rank_of(self._search.point_of(thresholds, outcome)),
            cost=cost,
            cost_per_answer=float(outcome.cost.sum()) / answers if answers else math.inf,
            secondary_objective=(missed, *objective),
            defined=not any(np.isnan(target.observed(outcome)) for target in self.targets),
        )
        return outcome
