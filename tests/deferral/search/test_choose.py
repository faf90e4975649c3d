"""Threshold search, against brute force over every vector of thresholds."""

from __future__ import annotations

import copy
import itertools
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from cascadebert import (
    MaxDrop,
    MinAgreement,
    OperatingPoint,
    Policy,
    Speedup,
    choose_thresholds,
)
from cascadebert.deferral.confidence import max_probability_log_odds
from cascadebert.deferral.targets import Target
from cascadebert.errors import InputError, TargetError
from simulated import synthetic

TARGETS = [MaxDrop(0.0), MaxDrop(0.02), MaxDrop(0.1), Speedup(1.3), Speedup(2.0)]


def replay(
    probabilities: list[np.ndarray],
    labels: np.ndarray,
    costs: np.ndarray,
    limits: tuple[float, ...],
    skips: tuple[float, ...] = (),
) -> OperatingPoint:
    """One row after the other, as the definition says."""
    right, spent, last = 0, 0.0, len(probabilities) - 1
    for i, label in enumerate(labels):
        straight = False
        for k, p in enumerate(probabilities):
            if k < last and (straight or limits[k] >= 1):
                continue
            spent += costs[k]
            if k == last or p[i].max() > limits[k]:
                right += p[i].argmax() == label
                break
            straight = k < len(skips) and p[i].max() <= skips[k]
    return OperatingPoint(limits, right / len(labels), spent / len(labels))


def every_vector(probabilities: list[np.ndarray]) -> list[tuple[float, ...]]:
    cuts = []
    for p in probabilities[:-1]:
        scores = np.sort(max_probability_log_odds(np.log(p)))
        cuts.append([0.0, 1.0, *expit((scores[1:] + scores[:-1]) / 2)])
    return list(itertools.product(*cuts))


def best_of(points: list[OperatingPoint], target: Target, reference: OperatingPoint) -> tuple:
    """(accuracy, cost) of the best point for a target, in the order that the target asks for."""
    if isinstance(target, MaxDrop):
        kept = [p for p in points if p.accuracy >= reference.accuracy - target.value - 1e-12]
        best = min(kept, key=lambda p: (p.cost, -p.accuracy))
    else:
        kept = [p for p in points if p.cost * target.value <= reference.cost + 1e-12]
        best = min(kept, key=lambda p: (-p.accuracy, p.cost))
    return best.accuracy, best.cost


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stages", [2, 3])
def test_never_worse_than_brute_force(seed: int, stages: int) -> None:
    probabilities, labels = synthetic(seed, rows=25, stages=stages)
    costs = np.array([1.0, 2.5, 8.0])[-stages:]
    points = [replay(probabilities, labels, costs, v) for v in every_vector(probabilities)]
    reference = replay(probabilities, labels, costs, (1.0,) * (stages - 1))
    for target in TARGETS:
        accuracy, cost = best_of(points, target, reference)
        found = choose_thresholds(probabilities, labels, costs, target, None).certificate
        if isinstance(target, MaxDrop):
            assert found.cost <= cost * 1.001
        else:
            assert found.accuracy >= accuracy - 1e-12


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 60),
    stages=st.integers(1, 5),
    classes=st.integers(2, 5),
    target=st.sampled_from(TARGETS[:3]),
)
def test_policy_keeps_its_word_on_its_rows(
    seed: int, rows: int, stages: int, classes: int, target: MaxDrop
) -> None:
    probabilities, labels = synthetic(seed, rows, stages, classes)
    costs = np.cumsum(np.random.default_rng(seed).uniform(0.5, 3, stages))
    policy = choose_thresholds(probabilities, labels, costs, target, None)
    answers, stage = policy.apply(probabilities)
    skips, figures = policy.routing.skips, policy.certificate
    point = replay(probabilities, labels, costs, policy.thresholds, skips)
    assert (answers == labels).mean() == pytest.approx(figures.accuracy)
    assert point.accuracy == pytest.approx(figures.accuracy)
    assert point.cost == pytest.approx(figures.cost)
    assert policy.costs(probabilities, costs).mean() == pytest.approx(figures.cost)
    assert figures.accuracy >= figures.reference_accuracy - target.value - 1e-12
    assert figures.cost <= figures.reference_cost * (1 + 1e-12)
    np.testing.assert_allclose(
        figures.exit_fractions, np.bincount(stage - 1, minlength=stages) / rows
    )


def test_frontier_rises() -> None:
    probabilities, labels = synthetic(0, 200, 3)
    policy = choose_thresholds(probabilities, labels, [1, 3, 10], MaxDrop(0.01), None)
    costs = [point.cost for point in policy.frontier]
    accuracies = [point.accuracy for point in policy.frontier]
    assert costs == sorted(costs)
    assert accuracies == sorted(accuracies)
    assert len(set(accuracies)) == len(accuracies)
    for point in policy.frontier[:: len(policy.frontier) // 7]:
        again = replay(probabilities, labels, np.array([1, 3, 10]), point.thresholds)
        assert again.accuracy == pytest.approx(point.accuracy)
        assert again.cost == pytest.approx(point.cost)


def test_stage_that_does_not_pay_is_left_out() -> None:
    probabilities, labels = synthetic(1, 300, 3)
    useless = np.full_like(probabilities[0], 1 / 3)
    policy = choose_thresholds(
        [probabilities[0], useless, probabilities[2]], labels, [1, 9, 10], MaxDrop(0.02)
    )
    assert policy.thresholds[1] == 1.0


def test_constant_confidence_has_nothing_to_part() -> None:
    flat = np.tile([0.4, 0.6], (50, 1))
    sharp = np.tile([0.9, 0.1], (50, 1))
    labels = np.zeros(50, dtype=int)
    policy: Policy = choose_thresholds([flat, sharp], labels, [1, 10], MaxDrop(0.01), None)
    assert policy.thresholds == (1.0,)
    assert policy.certificate.exit_fractions == (0.0, 1.0)


def test_saturated_probabilities_can_be_parted_from_the_rest() -> None:
    first = np.array([[1.0, 0.0]] * 5 + [[0.45, 0.55]] * 5)
    last = np.tile([0.9, 0.1], (10, 1))
    policy = choose_thresholds([first, last], np.zeros(10, dtype=int), [1, 10], MaxDrop(0.0), None)
    assert policy.certificate.exit_fractions == (0.5, 0.5)


def test_costs_of_each_row_count() -> None:
    """Two rows equally sure, one of which is far more expensive in the last stage."""
    first = np.array([[0.9, 0.1], [0.8, 0.2]])
    last = np.array([[0.9, 0.1], [0.9, 0.1]])
    costs = [[1.0, 100.0], [1.0, 5.0]]
    policy = choose_thresholds([first, last], [0, 0], costs, MaxDrop(0.0), None)
    assert policy.certificate.reference_cost == pytest.approx(52.5)
    assert policy.certificate.cost == 1.0


@pytest.mark.parametrize(
    ("probabilities", "labels", "costs", "message"),
    [
        ([], [0], [1], "no stages"),
        ([np.ones((0, 2))], [], [1], "shape"),
        ([np.ones((2, 2)) / 2, np.ones((3, 2)) / 2], [0, 0], [1, 2], "stage 2: .* have shape"),
        ([np.full((2, 2), np.nan)], [0, 0], [1], "stage 1, row 0"),
        ([np.ones((2, 2)) / 2], [0], [1], "give 2 integers"),
        ([np.ones((2, 2)) / 2], ["a", "b"], [1], "give 2 integers"),
        ([np.ones((2, 2)) / 2], [0.0, 1.0], [1], "give 2 integers"),
        ([np.ones((2, 2)) / 2], 0, [1], "give 2 integers"),
        ([np.ones((2, 2)) / 2], [1, 2], [1], "labels run from 1 to 2; give class indices, 0 to 1"),
        ([np.ones((2, 2))], [0, 1], [1], "are not probabilities"),
        ([np.zeros((2, 2))], [0, 1], [1], "are not probabilities"),
        ([np.ones((2, 2)) / 2], [0, 1], [1, 2], "costs have shape"),
        ([np.ones((2, 2)) / 2], [0, 1], [0], "stage 1: a cost of 0.0 is not positive"),
    ],
)
def test_arrays_that_do_not_fit(
    probabilities: list[np.ndarray], labels: list[int], costs: list[float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        choose_thresholds(probabilities, labels, costs, MaxDrop(0.1), None)


@pytest.mark.parametrize("value", [-0.1, 1.0, 5.0, float("nan")])
def test_impossible_drops(value: float) -> None:
    with pytest.raises(InputError, match="drop in accuracy"):
        MaxDrop(value)


@pytest.mark.parametrize("value", [0.0, -2.0, float("inf"), float("nan")])
def test_impossible_speedups(value: float) -> None:
    with pytest.raises(InputError, match="speed-up"):
        Speedup(value)


def test_policy_for_other_stages() -> None:
    probabilities, labels = synthetic(0, 30, 3)
    policy = choose_thresholds(probabilities, labels, [1, 2, 4], MaxDrop(0.1), None)
    with pytest.raises(InputError, match="2 arrays for a policy of 3 stages"):
        policy.apply(probabilities[:2])


def test_unreachable_speedup_says_what_can_be_had() -> None:
    probabilities, labels = synthetic(0, 50, 2)
    with pytest.raises(TargetError, match=r"closest thresholds have the speed-up 4\.0000"):
        choose_thresholds(probabilities, labels, [1, 4], Speedup(5), None)


@pytest.mark.parametrize("score", ["max_probability", "entropy", "agreement"])
def test_a_policy_survives_pickling_and_copying(score: str) -> None:
    probabilities, labels = synthetic(3, 200, 3)
    policy = choose_thresholds(probabilities, labels, [1, 3, 10], MinAgreement(0.7), score=score)
    for again in (pickle.loads(pickle.dumps(policy)), copy.deepcopy(policy)):
        assert again == policy
        assert again.certificate == policy.certificate
        np.testing.assert_array_equal(again.apply(probabilities), policy.apply(probabilities))


def test_numpy_scalars_give_a_certificate_that_is_json() -> None:
    probabilities, labels = synthetic(4, 100, 3)
    targets = [MaxDrop(np.float32(0.25)), Speedup(np.int64(1))]
    made, plain = (
        choose_thresholds(probabilities, labels, [1, 3, 10], wanted, confidence, np.int64(1))
        for wanted, confidence in (
            (targets, np.float32(0.75)),
            ([MaxDrop(0.25), Speedup(1)], 0.75),
        )
    )
    assert json.dumps(made.summary(), sort_keys=True) == json.dumps(plain.summary(), sort_keys=True)


@pytest.mark.parametrize("confidence", ["0.9", True])
def test_a_confidence_that_is_no_number(confidence: object) -> None:
    probabilities, labels = synthetic(4, 30, 2)
    with pytest.raises(InputError, match="the confidence is"):
        choose_thresholds(probabilities, labels, [1, 3], MaxDrop(0.1), confidence)  # type: ignore[arg-type]
