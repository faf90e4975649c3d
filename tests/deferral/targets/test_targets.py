"""Each target: what it means, that its tests keep their level, and several at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import f1_score, matthews_corrcoef, precision_score, recall_score

from cascadebert import (
    MaxDrop,
    MaxErrorWhenAnswering,
    MaxSecondsPerRow,
    MinAccuracy,
    MinAgreement,
    MinCoverage,
    MinF1,
    MinMatthews,
    MinPrecision,
    MinRecall,
    Speedup,
    choose_thresholds,
)
from cascadebert.deferral.certificates.certificate import CERTIFIED, NOT_CERTIFIED
from cascadebert.deferral.held_out import HeldOut, Outcome
from cascadebert.deferral.targets import Target, target_of
from cascadebert.deferral.targets.matthews import matthews
from cascadebert.errors import InputError
from simulated import synthetic

COSTS = [1.0, 3.0, 10.0]
EVERY_TARGET = [
    MaxDrop(0.05), MinAccuracy(0.8), MinAgreement(0.8), MinRecall(1, 0.7), MinPrecision("1", 0.7),
    MinF1(0, 0.7), MinMatthews(0.5), MaxErrorWhenAnswering(0.2), MinCoverage(0.6), Speedup(1.3),
    MaxSecondsPerRow(8.0),
]  # fmt: skip


def outcome_of(seed: int, rows: int = 80, classes: int = 2) -> Outcome:
    """Rows that end anywhere."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, rows)
    answers = np.where(random.random((3, rows)) < 0.7, truth, random.integers(0, classes, rows))
    costs = np.tile([1.0, 3.0, 10.0], (rows, 1))
    held_out = HeldOut(answers, truth, costs, [str(i) for i in range(classes)])
    end = random.integers(0, 4, rows)
    return Outcome(held_out, end, np.append(costs[0].cumsum(), costs[0].sum())[end])


def answered(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """Labels and answers; an abstained row says a class of its own."""
    ways = np.vstack([outcome.rows.answers, np.full((1, len(outcome.rows)), 9)])
    return outcome.rows.truth, outcome.of(ways)


@pytest.mark.parametrize("seed", range(3))
def test_observed_is_what_scikit_learn_says(seed: int) -> None:
    outcome = outcome_of(seed)
    truth, said = answered(outcome)
    assert MinAccuracy(0.5).observed(outcome) == (truth == said).mean()
    for target, metric in (
        (MinRecall(1, 0.5), recall_score),
        (MinPrecision(1, 0.5), precision_score),
        (MinF1(1, 0.5), f1_score),
    ):
        expected = metric(truth, said, labels=[1], average=None, zero_division=0)[0]
        assert target.observed(outcome) == pytest.approx(expected)
    full = Outcome(outcome.rows, np.minimum(outcome.end, 2), outcome.cost)
    expected = matthews_corrcoef(*answered(full))
    assert MinMatthews(0.5).observed(full) == pytest.approx(expected)
    where = said != 9
    assert MinCoverage(0.5).observed(outcome) == where.mean()
    expected = (truth != said)[where].mean()
    assert MaxErrorWhenAnswering(0.5).observed(outcome) == pytest.approx(expected)


@pytest.mark.parametrize("target", EVERY_TARGET, ids=lambda target: type(target).__name__)
def test_risk_and_losses_say_the_same_as_observed(target: Target) -> None:
    for seed in range(6):
        outcome = outcome_of(seed)
        tables = target.tables(outcome.rows)
        means = np.array([outcome.of(table).mean() for table in tables]).reshape(len(tables), 1)
        risk = target.risk(means, np.array([outcome.cost.mean()]), outcome.rows)[0]
        observed, value = target.observed(outcome), target.value
        if isinstance(target, (MaxDrop, MaxErrorWhenAnswering, MaxSecondsPerRow)):
            missed = observed > value
        else:
            missed = observed < value
        if abs(observed - value) > 1e-9:
            assert (risk > 0) == missed
            assert (target.losses(outcome).mean() > 0) == missed
            # Both tests at once: at most one side can be shown.
            assert max(target.p_value(outcome), target.broken_p_value(outcome)) > 0.3


@pytest.mark.parametrize("target", EVERY_TARGET, ids=lambda target: type(target).__name__)
def test_target_of_a_certificate(target: Target) -> None:
    label = getattr(target, "label", None)
    again = target_of(type(target).__name__, target.value, None if label is None else str(label))
    assert str(again).replace("'", "") == str(target).replace("'", "")


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.floats(0.02, 0.98), st.floats(0, 0.3))
def test_matthews_rises_with_the_hits_of_either_class(
    first: float, second: float, share: float, more: float
) -> None:
    """What its bounds rest on, where it is above 0."""
    here = float(matthews(first, second, share))
    if first + second <= 1:
        assert here <= 1e-12
        return
    assert float(matthews(min(first + more, 1.0), second, share)) >= here - 1e-12
    assert float(matthews(first, min(second + more, 1.0), share)) >= here - 1e-12


@pytest.mark.parametrize(
    ("target", "truth"),
    [(MinRecall(1, 0.8), 0.8), (MinPrecision(1, 0.8), 0.8), (MinF1(1, 0.8), 0.8)],
    ids=lambda value: type(value).__name__,
)
def test_p_values_keep_their_level_at_the_edge(target: Target, truth: float) -> None:
    """Rows whose expectation is just the target: rejected as often as the level says, or less."""
    random = np.random.default_rng(3)
    level, repeats, rejected = 0.1, 1_500, 0
    share = truth / (2 - truth) if isinstance(target, MinF1) else truth
    for _ in range(repeats):
        rows = 120
        label = np.zeros(rows, dtype=int)
        label[: rows // 2] = 1
        hit = random.random(rows // 2) < share
        said = np.zeros(rows, dtype=int)
        if isinstance(target, MinPrecision):
            # All of one half get the label; it is wrong on the misses.
            said[: rows // 2] = 1
            label[: rows // 2] = hit
        else:
            said[: rows // 2] = hit
        held_out = HeldOut(said[None], label, np.ones((rows, 1)), ["0", "1"])
        outcome = Outcome(held_out, np.zeros(rows, dtype=int), np.ones(rows))
        rejected += target.p_value(outcome) <= level
    assert rejected <= binom.ppf(0.9999, repeats, level)
    assert rejected > repeats * level / 4


def test_matthews_p_value_keeps_its_level() -> None:
    random = np.random.default_rng(4)
    first, hits = 0.3, (0.8, 0.9)
    edge = float(matthews(*hits, first))
    rejected = broken = 0
    for _ in range(200):
        label = (random.random(300) > first).astype(int)
        right = random.random(300) < np.array(hits)[label]
        said = np.where(right, label, 1 - label)
        held_out = HeldOut(said[None], label, np.ones((300, 1)), ["0", "1"])
        outcome = Outcome(held_out, np.zeros(300, dtype=int), np.ones(300))
        rejected += MinMatthews(edge).p_value(outcome) <= 0.2
        broken += MinMatthews(edge).broken_p_value(outcome) <= 0.2
    assert rejected <= binom.ppf(0.9999, 200, 0.2)
    assert broken <= binom.ppf(0.9999, 200, 0.2)
    assert MinMatthews(edge - 0.25).p_value(outcome) < 0.05
    assert MinMatthews(edge + 0.25).broken_p_value(outcome) < 0.05


def test_several_targets_hold_at_once() -> None:
    probabilities, labels = synthetic(5, 4_000, 3, classes=2)
    alone = choose_thresholds(probabilities, labels, COSTS, MaxDrop(0.03), None).certificate
    recall = MinRecall(1, 0.87)
    both = choose_thresholds(probabilities, labels, COSTS, [MaxDrop(0.03), recall], None)
    drop, found = both.certificate.promises
    assert drop.observed is not None
    assert drop.observed <= 0.03 + 1e-9
    assert found.observed is not None
    assert found.observed >= 0.87 - 1e-9
    assert both.certificate.cost >= alone.cost - 1e-9
    certified = choose_thresholds(probabilities, labels, COSTS, [MaxDrop(0.04), MinRecall(1, 0.8)])
    assert certified.certificate.verdict == CERTIFIED
    assert all(p.p_value is not None and p.p_value <= 0.05 for p in certified.certificate.promises)
    assert " and a recall of at least 0.8 for label 1" in certified.certificate.words()


def test_a_drop_and_a_speedup_at_once() -> None:
    probabilities, labels = synthetic(6, 3_000, 3)
    wanted = [MaxDrop(0.1), Speedup(1.4)]
    found = choose_thresholds(probabilities, labels, COSTS, wanted).certificate
    assert found.verdict == CERTIFIED
    assert found.speedup > 1.4
    too_much = choose_thresholds(probabilities, labels, COSTS, [MaxDrop(0.0), Speedup(5)])
    assert too_much.certificate.verdict == NOT_CERTIFIED


def test_abstention_keeps_errors_low_and_coverage_high() -> None:
    probabilities, labels = synthetic(7, 6_000, 3)
    target = MaxErrorWhenAnswering(0.05, coverage_drop=0.1)
    policy = choose_thresholds(probabilities, labels, COSTS, target)
    found = policy.certificate
    assert found.verdict == CERTIFIED
    assert 0 < found.abstained < 0.9
    (promise,) = found.promises
    assert promise.observed is not None
    assert promise.observed <= 0.05
    assert f"{found.abstained:.1%} get no answer" in found.words()
    # The last stage alone, at the same error, answers hardly more.
    last = probabilities[-1]
    order = np.argsort(-last.max(axis=1))
    errors = (last.argmax(axis=1) != labels)[order].cumsum() / np.arange(1, len(labels) + 1)
    coverage = (np.flatnonzero(errors <= 0.05).max() + 1) / len(labels)
    assert 1 - found.abstained > coverage - 0.12
    assert found.cost < 10
    classes, _ = policy.apply(probabilities)
    assert ((classes == -1).mean()) == pytest.approx(found.abstained, abs=0.02)
    fresh, truth = synthetic(8, 20_000, 3)
    classes, _ = policy.apply(fresh)
    assert (classes != truth)[classes >= 0].mean() <= 0.055


def test_abstention_with_poor_small_stages_is_that_of_the_last() -> None:
    """What is learned of small stages that are seldom right must not cost answers."""
    abstained = []
    for seed in range(8):
        probabilities, labels = synthetic(seed, 1_200, 3)
        noise = np.random.default_rng(seed).permutation(len(labels))
        stages = [probabilities[0][noise], probabilities[1][noise], probabilities[2]]
        settings = (MaxErrorWhenAnswering(0.05), 0.95, seed)
        found = choose_thresholds(stages, labels, COSTS, *settings).certificate
        alone = choose_thresholds(stages[2:], labels, COSTS[2:], *settings).certificate
        abstained.append((found.abstained, alone.abstained))
        if found.verdict == CERTIFIED:
            assert found.cost < 10 or found.abstained < alone.abstained
    ours, last = np.mean(abstained, axis=0)
    assert ours < last + 0.06


@pytest.mark.parametrize("target", [Speedup(1_000), MinAccuracy(0.999), MinF1(0, 0.999)], ids=str)
def test_out_of_reach_is_missed_by_as_little_as_can_be(target: Any) -> None:
    probabilities, labels = synthetic(3, 600, 3)
    policy = choose_thresholds(probabilities, labels, COSTS, target)
    found = policy.certificate
    assert found.verdict == NOT_CERTIFIED
    assert "those that come closest are set" in found.words()
    seen = found.promises[0].observed
    assert seen is not None
    for alone in ((1.0, 1.0), (1.0, 0.0), (0.0, 0.0)):
        classes = probabilities[int(sum(alone))].argmax(axis=1)
        if isinstance(target, Speedup):
            assert seen >= 10 / COSTS[int(sum(alone))] - 1e-9
        elif isinstance(target, MinAccuracy):
            assert seen >= (classes == labels).mean() - 0.03
        else:
            assert seen >= f1_score(labels == 0, classes == 0) - 0.03


def test_a_label_that_no_row_has() -> None:
    probabilities, labels = synthetic(3, 300, 3, classes=3)
    found = choose_thresholds(probabilities, labels % 2, COSTS, MinRecall(2, 0.5)).certificate
    assert found.verdict == NOT_CERTIFIED
    assert (
        "None of the rows says anything about a recall of at least 0.5 for label 2" in found.words()
    )


def test_skipping_ahead_where_it_pays() -> None:
    """Rows that the first stage finds hopeless gain nothing from the second."""
    random = np.random.default_rng(9)
    rows = 3_000
    labels = random.integers(0, 2, rows)
    hard = random.random(rows) < 0.4
    middling = ~hard & (random.random(rows) < 0.5)
    sure = np.where(hard, 0.51, np.where(middling, 0.7, 0.99)) + random.random(rows) * 0.005

    def says(right: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        one = np.where(right == (labels == 1), confidence, 1 - confidence)
        return np.stack([1 - one, one], axis=1)

    coin = random.random(rows) < 0.5
    stages = [
        says(np.where(hard | middling, coin, True), sure),
        says(np.where(hard, coin, True), np.where(hard, 0.55, 0.95)),
        says(np.ones(rows, dtype=bool), np.full(rows, 0.9)),
    ]
    policy = choose_thresholds(stages, labels, [1.0, 4.0, 10.0], MaxDrop(0.01), None)
    assert policy.routing.skips[0] > 0.5
    expected = 1 + 4 * middling.mean() + 10 * hard.mean()
    assert policy.certificate.cost == pytest.approx(expected, rel=0.05)
    classes, stage = policy.apply(stages)
    assert (stage[hard] == 3).mean() > 0.95
    assert policy.costs(stages, [1.0, 4.0, 10.0]).mean() == pytest.approx(policy.certificate.cost)
    assert (classes == labels).mean() > 0.98


@pytest.mark.parametrize("score", ["margin", "entropy", "agreement", "learned"])
def test_other_scores(score: str) -> None:
    probabilities, labels = synthetic(10, 2_000, 3)
    policy = choose_thresholds(probabilities, labels, COSTS, MaxDrop(0.04), score=score)
    assert policy.certificate.verdict == CERTIFIED
    assert policy.certificate.speedup > 1.05
    fresh, truth = synthetic(11, 20_000, 3)
    classes, _ = policy.apply(fresh)
    drop = (fresh[-1].argmax(axis=1) == truth).mean() - (classes == truth).mean()
    assert drop <= 0.045


def test_agreement_knows_which_stages_ran() -> None:
    """A stage left out has no say in the next one's score."""
    probabilities, labels = synthetic(12, 400, 3)
    useless = np.full_like(probabilities[0], 1 / 3)
    stages = [useless, *probabilities[1:]]
    policy = choose_thresholds(stages, labels, COSTS, MaxDrop(0.05), None, score="agreement")
    assert policy.thresholds[0] >= 1
    without = choose_thresholds(stages[1:], labels, COSTS[1:], MaxDrop(0.05), None)
    assert policy.certificate.cost == pytest.approx(without.certificate.cost)


def test_energy_needs_logits() -> None:
    probabilities, labels = synthetic(13, 500, 2)
    with pytest.raises(InputError, match="give logits"):
        choose_thresholds(probabilities, labels, [1, 9], MaxDrop(0.1), score="energy")
    logits = [np.log(p) + 3 for p in probabilities]
    policy = choose_thresholds(
        logits, labels, [1, 9], MaxDrop(0.2), None, score="energy", logits=True
    )
    assert policy.certificate.cost <= 9
    policy.apply(logits, logits=True)


def test_a_score_that_does_not_rank_is_named() -> None:
    random = np.random.default_rng(14)
    labels = random.integers(0, 2, 600)
    right = random.random(600) < 0.8
    sure = random.uniform(0.5, 1, 600)
    one = np.where(right == (labels == 1), sure, 1 - sure)
    blind = np.stack([1 - one, one], axis=1)
    flat = np.where(right[:, None] == (labels[:, None] == np.arange(2)), 0.7, 0.3)
    good, _ = synthetic(15, 600, 1, classes=2)
    found = choose_thresholds([blind, flat, good[0]], labels, COSTS, MaxDrop(0.1), None)
    assert found.certificate.unranked_stages == (1, 2)
    assert "stages 1, 2 does not significantly rank" in found.certificate.words()


BAD: list[tuple[Any, dict[str, Any], str]] = [
    (MinRecall("2", 0.5), {}, "label '2' is not one of '0', '1'"),
    (MinRecall("no", 0.5), {"names": ["yes", "maybe"]}, "'no' is not one of 'yes', 'maybe'"),
    (MaxDrop(0.1), {"names": ["yes"]}, "1 names for 2 classes"),
    ([], {}, "no target"),
    (MaxDrop(0.1), {"score": "mood"}, "'mood'"),
]


@pytest.mark.parametrize(("target", "settings", "message"), BAD)
def test_what_cannot_be_asked(target: Any, settings: dict[str, Any], message: str) -> None:
    probabilities, labels = synthetic(16, 60, 2, classes=2)
    with pytest.raises(InputError, match=message):
        choose_thresholds(probabilities, labels, [1, 5], target, None, **settings)


def test_matthews_is_for_two_classes() -> None:
    probabilities, labels = synthetic(16, 60, 2, classes=3)
    with pytest.raises(InputError, match="MinMatthews is for two classes, these rows have 3"):
        choose_thresholds(probabilities, labels, [1, 5], MinMatthews(0.5))


def test_nan_logits_are_refused() -> None:
    logits = [np.zeros((30, 2)), np.full((30, 2), np.nan)]
    with pytest.raises(InputError, match=r"stage 2, row 0: \[nan nan\] are not logits"):
        choose_thresholds(logits, np.zeros(30, dtype=int), [1, 5], MaxDrop(0.1), logits=True)


def test_one_label_only() -> None:
    """Nothing to tell apart is no error: any stage will do."""
    probabilities, _ = synthetic(17, 200, 2)
    same = probabilities[0].argmax(axis=1) * 0
    policy = choose_thresholds(probabilities, same, [1, 5], MaxDrop(0.2))
    assert policy.certificate.verdict in ("certified", "not certified", "do not cascade")
