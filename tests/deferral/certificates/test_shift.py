"""The test for shift keeps its level on rows drawn alike, and finds rows that are not."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from cascadebert import MaxDrop, choose_thresholds
from cascadebert.deferral.certificates.shift import (
    RoutingSummary,
    bin_edges,
    count_bins,
    counts_p_value,
    shift_p_value,
    shifts,
)
from cascadebert.deferral.confidence import confidence_score
from cascadebert.deferral.held_out import HeldOut
from cascadebert.deferral.search.replay import Replay
from simulated import synthetic


def replay_of(seed: int, rows: int, harder: float = 0.0) -> Replay:
    probabilities, labels = synthetic(seed, rows, 3)
    if harder:
        flat = np.full_like(probabilities[0], 1 / 3)
        probabilities = [(1 - harder) * p + harder * flat for p in probabilities]
    answers = np.stack([p.argmax(axis=1) for p in probabilities])
    held_out = HeldOut(answers, labels, np.ones((rows, 3)), ["0", "1", "2"])
    return Replay.of(held_out, [np.log(p) for p in probabilities], confidence_score("margin"))


def test_p_value_is_that_of_the_chi_square_test_on_many_rows() -> None:
    first, second = [300, 500, 200], [330, 480, 160]
    expected = chi2_contingency([first, second]).pvalue
    assert counts_p_value(first, second) == pytest.approx(expected, abs=0.02)
    assert counts_p_value([5, 0], [0, 0]) == 1
    assert counts_p_value([50, 0], [0, 50]) == 1e-4


def test_false_alarms_are_as_rare_as_the_level_says() -> None:
    level, repeats, alarms = 0.1, 150, 0
    for seed in range(repeats):
        probabilities, labels = synthetic(seed, 300, 3)
        policy = choose_thresholds(probabilities, labels, [1, 3, 10], MaxDrop(0.1), 0.8, seed,
                                   score="margin")  # fmt: skip
        recorded = policy.certificate.seen
        assert recorded is not None
        fresh = replay_of(10_000 + seed, 150).summary(policy.routing, recorded.edges)
        alarms += shift_p_value(shifts(recorded, fresh, seed)) <= level
    assert alarms / repeats <= level + 3 * np.sqrt(level * (1 - level) / repeats)


def test_harder_rows_are_found() -> None:
    probabilities, labels = synthetic(1, 2_000, 3)
    policy = choose_thresholds(probabilities, labels, [1, 3, 10], MaxDrop(0.1), score="margin")
    recorded = policy.certificate.seen
    assert recorded is not None
    alike = replay_of(2, 1_000).summary(policy.routing, recorded.edges)
    harder = replay_of(2, 1_000, harder=0.3).summary(policy.routing, recorded.edges)
    assert shift_p_value(shifts(recorded, alike)) > 0.001
    assert shift_p_value(shifts(recorded, harder)) < 0.001
    assert RoutingSummary.from_dict(json.loads(json.dumps(asdict(recorded)))) == recorded


def test_bins_hold_about_as_many_rows_each() -> None:
    values = np.random.default_rng(0).random(1_000)
    edges = bin_edges(values)
    assert len(edges) == 9
    assert set(count_bins(values, edges)) <= set(range(95, 106))
    assert bin_edges(np.ones(5)) == (1.0,)
    assert count_bins(np.ones(5), (1.0,)) == (5, 0)
    assert bin_edges(np.empty(0)) == ()
