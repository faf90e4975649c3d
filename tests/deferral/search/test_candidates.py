"""Each candidate is replayed once, whatever is asked of it."""

from __future__ import annotations

import numpy as np
import pytest

from cascadebert import MaxErrorWhenAnswering, MinAccuracy, MinCoverage
from cascadebert.deferral.confidence import confidence_score
from cascadebert.deferral.held_out import HeldOut, Outcome
from cascadebert.deferral.routing import Thresholds
from cascadebert.deferral.search.candidates import Candidates
from cascadebert.deferral.search.policy import p_values
from cascadebert.deferral.search.replay import Replay
from simulated import synthetic

COSTS = np.array([1.0, 3.0, 10.0])
TRIED = [Thresholds((a, b), abstain=c) for a in (0.5, 0.7) for b in (0.6, 1.0) for c in (0.0, 0.9)]


class Counting(Replay):
    """A replay that records what it replays."""

    replayed: list[Thresholds]

    def outcome(self, thresholds: Thresholds) -> Outcome:
        self.replayed.append(thresholds)
        return super().outcome(thresholds)


@pytest.fixture
def replay() -> Counting:
    probabilities, labels = synthetic(0, 300, 3)
    answers = np.stack([p.argmax(axis=1) for p in probabilities])
    rows = HeldOut(answers, labels, np.tile(COSTS, (300, 1)), ["0", "1", "2"])
    logits = [np.log(p) for p in probabilities]
    made = Counting.of(rows, logits, confidence_score("margin"))
    assert isinstance(made, Counting)
    made.replayed = []
    return made


def test_each_candidate_is_replayed_once(replay: Counting) -> None:
    candidates = Candidates(replay, [MinAccuracy(0.7)])
    for _ in range(3):
        for thresholds in TRIED:
            candidates.p_values(thresholds)
            candidates.figures(thresholds)
    assert replay.replayed == TRIED


def test_figures_are_those_of_the_outcome(replay: Counting) -> None:
    targets, wanted = [MaxErrorWhenAnswering(0.1), MinAccuracy(0.7)], MinCoverage(0.99)
    candidates = Candidates(replay, targets, [wanted])
    for thresholds in TRIED:
        found, outcome = candidates.figures(thresholds), replay.outcome(thresholds)
        missed = [0.0, targets[0].observed(outcome) - 0.1, 0.7 - targets[1].observed(outcome)]
        assert found.cost == pytest.approx(outcome.cost.mean())
        assert found.cost_per_answer == pytest.approx(outcome.cost.sum() / outcome.answered.sum())
        assert (found.rank[0] > 0) == (max(missed) > 0)
        coverage = wanted.observed(outcome)
        expected = (max(0.99 - coverage, 0), outcome.cost.mean(), 1 - outcome.right.mean())
        assert found.secondary_objective == pytest.approx(expected)
        assert found.defined
        assert candidates.p_values(thresholds) == p_values(outcome, thresholds, targets)
    nothing = Thresholds((1.0, 1.0), abstain=1.0)
    assert not candidates.figures(nothing).defined
    assert candidates.figures(nothing).cost_per_answer == np.inf
