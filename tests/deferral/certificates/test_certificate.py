"""Promises are kept as often as they say; what can't be promised is said."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapie.risk_control import control_fwer

from cascadebert import (
    Certificate,
    MaxDrop,
    MinAccuracy,
    MinAgreement,
    Policy,
    Speedup,
    choose_thresholds,
)
from cascadebert.deferral.certificates.certificate import CERTIFIED, DO_NOT_CASCADE, NOT_CERTIFIED
from cascadebert.deferral.certificates.fixed_sequence import fixed_sequence_test, split_rows
from cascadebert.deferral.targets import Target
from cascadebert.errors import InputError
from simulated import synthetic

COSTS = [1.0, 3.0, 10.0]
POPULATION = 100_000


@pytest.fixture(scope="module")
def population() -> tuple[list[np.ndarray], np.ndarray]:
    """Three stages on so many rows that their shares are taken for the truth."""
    return synthetic(99, POPULATION, 3)


def draw(
    population: tuple[list[np.ndarray], np.ndarray], rows: int, seed: int
) -> tuple[list[np.ndarray], np.ndarray]:
    chosen = np.random.default_rng(seed).integers(0, POPULATION, rows)
    return [p[chosen] for p in population[0]], population[1][chosen]


def holds(policy: Policy, target: Target, population: tuple[list[np.ndarray], np.ndarray]) -> bool:
    probabilities, labels = population
    classes, _ = policy.apply(probabilities)
    last = probabilities[-1].argmax(axis=1)
    if isinstance(target, MaxDrop):
        return bool((last == labels).mean() - (classes == labels).mean() <= target.value)
    if isinstance(target, MinAgreement):
        return bool((classes == last).mean() >= target.value)
    if isinstance(target, MinAccuracy):
        return bool((classes == labels).mean() >= target.value)
    return bool(COSTS[-1] / policy.costs(probabilities, COSTS).mean() >= target.value)


@pytest.mark.parametrize(
    "target", [MaxDrop(0.03), MinAgreement(0.9), MinAccuracy(0.9), Speedup(1.6)], ids=str
)
def test_promises_are_broken_no_more_often_than_said(
    population: tuple[list[np.ndarray], np.ndarray], target: Target
) -> None:
    repeats, level = 50, 0.2
    broken, naive, certified = 0, 0, 0
    for seed in range(repeats):
        probabilities, labels = draw(population, 400, seed)
        policy = choose_thresholds(probabilities, labels, COSTS, target, 1 - level, seed)
        if policy.certificate.verdict != NOT_CERTIFIED:
            certified += 1
            broken += not holds(policy, target, population)
        if seed < 25:
            best = choose_thresholds(probabilities, labels, COSTS, target, None)
            naive += not holds(best, target, population)
    # The level, and three standard errors of a share over the repeats.
    assert broken / repeats <= level + 3 * np.sqrt(level * (1 - level) / repeats)
    assert certified > repeats / 2
    # What meets the target on the rows that chose it breaks it about every other time.
    assert naive / 25 > broken / repeats
    assert naive / 25 > 0.2


def test_certificate_tells_what_it_rests_on(
    population: tuple[list[np.ndarray], np.ndarray],
) -> None:
    probabilities, labels = draw(population, 3_000, 1)
    policy = choose_thresholds(probabilities, labels, COSTS, MaxDrop(0.03))
    certificate = policy.certificate
    assert certificate.certified
    assert (certificate.rows_proposing, certificate.rows_certifying) == (600, 2_400)
    assert policy.rows == 2_400
    (promise,) = certificate.promises
    assert (promise.target, promise.value, promise.label) == ("MaxDrop", 0.03, None)
    assert promise.p_value is not None
    assert promise.p_value <= 0.05
    assert promise.observed == pytest.approx(certificate.accuracy_drop)
    assert certificate.speedup > 1.1
    assert "with confidence 0.95" in certificate.words()
    assert "at most 0.03 below the last stage's" in certificate.words()
    assert Certificate.from_dict(json.loads(json.dumps(asdict(certificate)))) == certificate
    again = choose_thresholds(probabilities, labels, COSTS, MaxDrop(0.03), 0.95, 0)
    assert again.thresholds == policy.thresholds


def test_more_confidence_costs_more(population: tuple[list[np.ndarray], np.ndarray]) -> None:
    probabilities, labels = draw(population, 2_000, 2)
    costs = [
        choose_thresholds(probabilities, labels, COSTS, MinAgreement(0.9), level).certificate.cost
        for level in (0.6, 0.9, 0.999)
    ]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


def test_too_few_rows_say_how_many_more(population: tuple[list[np.ndarray], np.ndarray]) -> None:
    probabilities, labels = draw(population, 60, 3)
    policy = choose_thresholds(probabilities, labels, COSTS, MinAgreement(0.97))
    certificate = policy.certificate
    assert certificate.verdict == NOT_CERTIFIED
    assert policy.thresholds == (1.0, 1.0)
    assert "Not certified" in certificate.words()
    if certificate.more_rows is not None:
        assert certificate.more_rows > 20
        assert f"About {certificate.more_rows} more" in certificate.words()


def test_a_target_above_the_last_stage_is_never_certified(
    population: tuple[list[np.ndarray], np.ndarray],
) -> None:
    probabilities, labels = draw(population, 500, 4)
    certificate = choose_thresholds(probabilities, labels, COSTS, MinAccuracy(0.999)).certificate
    assert certificate.verdict == NOT_CERTIFIED
    assert certificate.more_rows is None
    assert "ask for less" in certificate.words()


def test_a_single_stage_that_is_the_better_buy() -> None:
    random = np.random.default_rng(5)
    labels = random.integers(0, 2, 400)
    good = np.where(labels[:, None] == np.arange(2), 0.9, 0.1)
    for stages, thresholds in (([good, good], (0.0,)), ([good[:, ::-1], good], (1.0,))):
        policy = choose_thresholds(stages, labels, [1, 10], MaxDrop(0.02))
        assert policy.certificate.verdict == DO_NOT_CASCADE
        assert policy.thresholds == thresholds
        assert "single stage is the better buy" in policy.certificate.words()


def test_agreement_needs_no_labels(population: tuple[list[np.ndarray], np.ndarray]) -> None:
    probabilities, labels = draw(population, 1_000, 6)
    without = choose_thresholds(probabilities, None, COSTS, MinAgreement(0.9))
    assert without == choose_thresholds(probabilities, labels, COSTS, MinAgreement(0.9))
    assert without.certificate.verdict == CERTIFIED
    with pytest.raises(InputError, match="MaxDrop needs the labels"):
        choose_thresholds(probabilities, None, COSTS, MaxDrop(0.1))


def test_groups_are_not_parted() -> None:
    groups = np.random.default_rng(0).integers(0, 50, 600)
    proposing, certifying = split_rows(600, groups, seed=3)
    assert sorted([*proposing, *certifying]) == list(range(600))
    assert not set(groups[proposing]) & set(groups[certifying])
    assert 100 < len(proposing) < 260


def test_the_fixed_sequence_stops_at_the_first_failure() -> None:
    values = {"a": 0.01, "b": 0.049, "c": 0.2, "d": 0.001}
    assert fixed_sequence_test(list(values), values.__getitem__, 0.05) == ["a", "b"]
    assert fixed_sequence_test(["c"], values.__getitem__, 0.05) == []
    assert fixed_sequence_test(["a", "b"], values.__getitem__, 0.05) == ["a", "b"]


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=20), st.sampled_from([0.01, 0.05, 0.1]))
def test_the_fixed_sequence_is_mapies(values: list[float], level: float) -> None:
    theirs = control_fwer(np.array(values), level, fwer_method="fixed_sequence")
    assert len(fixed_sequence_test(values, lambda value: value, level)) == len(theirs)


def test_so_many_more_rows_do_certify(
    population: tuple[list[np.ndarray], np.ndarray],
) -> None:
    """Where a number is told, three times as many rows mostly certify."""
    told = certified = 0
    for seed in range(12):
        probabilities, labels = draw(population, 80, seed)
        first = choose_thresholds(probabilities, labels, COSTS, MaxDrop(0.03), seed=seed)
        more = first.certificate.more_rows
        if first.certificate.verdict != NOT_CERTIFIED or more is None:
            continue
        told += 1
        assert more >= 5
        probabilities, labels = draw(population, 80 + 3 * more, seed)
        second = choose_thresholds(probabilities, labels, COSTS, MaxDrop(0.03), seed=seed)
        certified += second.certificate.verdict != NOT_CERTIFIED
    assert told >= 4
    assert certified >= told / 2


def test_no_miss_does_not_mean_that_one_more_row_would_do() -> None:
    """149 rows without a miss are needed for a share of 0.98 with confidence 0.95."""
    labels = np.zeros(25, dtype=int)
    sure = np.tile([0.9, 0.1], (25, 1))
    found = choose_thresholds([sure, sure], labels, [1, 10], MinAccuracy(0.98)).certificate
    assert found.verdict == NOT_CERTIFIED
    assert found.more_rows is not None
    assert 120 < 25 + found.more_rows < 260


def test_rows_that_depend_on_one_another_count_once(
    population: tuple[list[np.ndarray], np.ndarray],
) -> None:
    broken = 0
    for seed in range(40):
        probabilities, labels = draw(population, 60, seed)
        probabilities, labels = (
            [np.repeat(p, 10, axis=0) for p in probabilities],
            np.repeat(labels, 10),
        )
        policy = choose_thresholds(
            probabilities, labels, COSTS, MaxDrop(0.03), 0.9, seed, groups=np.arange(600) // 10
        )
        certificate = policy.certificate
        assert certificate.rows_certifying == 48
        assert certificate.grouped
        if certificate.verdict != NOT_CERTIFIED:
            broken += not holds(policy, MaxDrop(0.03), population)
    assert broken <= 40 * 0.1 + 3 * np.sqrt(40 * 0.1 * 0.9)


def test_a_small_stage_that_is_as_good_but_not_shown_to_be() -> None:
    """The last stage alone is set then, and that is no verdict on the small one."""
    random = np.random.default_rng(0)
    for _ in range(10):
        labels = random.integers(0, 2, 60)
        stages = [
            np.where(
                (random.random(60) < 0.9)[:, None] == (labels[:, None] == np.arange(2)), 0.8, 0.2
            )
            for _ in range(2)
        ]
        certificate = choose_thresholds(stages, labels, [1, 10], MaxDrop(0.01)).certificate
        if certificate.verdict == DO_NOT_CASCADE:
            # Said of the stage that is set, so the other must have looked no better a buy.
            small, large = (stage.argmax(axis=1) == labels for stage in stages)
            assert certificate.thresholds == (1.0,)
            assert small.mean() < large.mean() - 0.01


def test_a_small_stage_alone_that_is_certified() -> None:
    for seed in range(6):
        probabilities, labels = synthetic(seed, 1_000, 1)
        stages = probabilities * 3
        for target in (MaxDrop(0.2), MinAgreement(0.2), MinAccuracy(0.3)):
            found = choose_thresholds(stages, labels, COSTS, target).certificate
            assert found.verdict == DO_NOT_CASCADE
            assert found.exit_fractions == (1, 0, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"confidence": 1.0}, r"a confidence of 1\.0"),
        ({"confidence": 0.0}, r"a confidence of 0\.0"),
        ({"groups": [1, 2]}, r"groups have the shape \(2,\)"),
        ({"groups": [7] * 100}, "100 rows, 1 of them independent, are too few"),
        ({"groups": [1.0, *[float("nan")] * 99]}, "row 1: its group is nan"),
        ({"groups": [*"ab" * 49, "a", None]}, "row 99: its group is None"),
        ({"seed": -1}, "a seed of -1 is not an integer from 0 up"),
        ({"seed": 1.5}, r"a seed of 1\.5"),
    ],
)
def test_what_cannot_be_asked(
    population: tuple[list[np.ndarray], np.ndarray], settings: dict[str, object], message: str
) -> None:
    probabilities, labels = draw(population, 100, 7)
    with pytest.raises(InputError, match=message):
        choose_thresholds(probabilities, labels, COSTS, MaxDrop(0.1), **settings)  # type: ignore[arg-type]


def test_a_handful_of_rows_is_refused(
    population: tuple[list[np.ndarray], np.ndarray],
) -> None:
    probabilities, labels = draw(population, 19, 8)
    with pytest.raises(InputError, match="19 rows are too few to certify anything"):
        choose_thresholds(probabilities, labels, COSTS, MaxDrop(0.1))
