"""Losses against hand-computed cases, torch's own and their formulas spelled out."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cascadebert.errors import InputError
from cascadebert.training.distillation import (
    hidden_state_loss,
    logit_loss,
    matched_layers,
    refuse_other_width,
)
from cascadebert.training.losses import (
    DAR,
    Batch,
    CrossEntropy,
    Distillation,
    Gatekeeper,
    confidence,
    draw_pairs,
)
from cascadebert.training.objective import DEFAULT_LOSS, Objective


def logits_for(*probabilities: float) -> Tensor:
    """Two-class rows whose predicted class has these probabilities."""
    return torch.tensor([[0.0, math.log(p / (1 - p))] for p in probabilities])


def test_dar_by_hand() -> None:
    # Easy rows at 0.9 and 0.6, one hard row at 0.8: max(0, 0.3 - 0.1) and max(0, 0.3 + 0.2).
    logits = logits_for(0.9, 0.6, 0.8)
    loss = DAR(margin=0.3).penalty(logits, torch.tensor([0.0, 0.0, 1.0]))
    assert loss.item() == pytest.approx((0.2 + 0.5) / 2)


def test_dar_on_log_odds_by_hand() -> None:
    logits = logits_for(0.9, 0.8)
    apart = math.log(0.9 / 0.1) - math.log(0.8 / 0.2)
    loss = DAR(margin=2.0, score="log_odds").penalty(logits, torch.tensor([0.0, 1.0]))
    assert loss.item() == pytest.approx(2 - apart, rel=1e-5)


def test_dar_is_slack_where_the_margin_is_kept() -> None:
    logits = logits_for(0.95, 0.55).requires_grad_()
    loss = DAR(margin=0.3).penalty(logits, torch.tensor([0.0, 1.0]))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_dar_is_the_margin_ranking_loss() -> None:
    torch.manual_seed(0)
    logits = torch.randn(40, 5)
    difficulty = (torch.rand(40) < 0.3).float()
    easier, harder = draw_pairs(difficulty, torch.Generator().manual_seed(7))
    sure = logits.softmax(dim=1).max(dim=1).values
    wanted = torch.nn.MarginRankingLoss(margin=0.5)(
        sure[easier], sure[harder], torch.ones(len(easier))
    )
    found = DAR().penalty(logits, difficulty, torch.Generator().manual_seed(7))
    torch.testing.assert_close(found, wanted)


def test_gradient_raises_the_easy_row_and_lowers_the_hard_one() -> None:
    logits = logits_for(0.7, 0.7).requires_grad_()
    DAR().penalty(logits, torch.tensor([0.0, 1.0])).backward()
    assert logits.grad is not None
    easy, hard = -logits.grad[0], -logits.grad[1]
    assert easy[1] > 0 > easy[0]
    assert hard[1] < 0 < hard[0]


@given(st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0]), min_size=1, max_size=24), st.integers(0, 99))
def test_pairs_are_of_an_easier_and_a_harder_row(levels: list[float], seed: int) -> None:
    difficulty = torch.tensor(levels)
    easier, harder = draw_pairs(difficulty, torch.Generator().manual_seed(seed))
    assert bool((difficulty[easier] < difficulty[harder]).all())
    # Every row that has a harder one is paired once.
    assert easier.tolist() == [i for i, level in enumerate(levels) if level < max(levels)]


def test_every_harder_row_is_drawn_equally_often() -> None:
    difficulty = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.5])
    generator = torch.Generator().manual_seed(0)
    drawn = np.zeros(5)
    for _ in range(3000):
        easier, harder = draw_pairs(difficulty, generator)
        drawn[harder[easier == 0]] += 1
    # Four candidates for the first row: 750 each, with a standard deviation of 24.
    assert drawn[0] == 0
    assert abs(drawn[1:] - 750).max() < 120


@pytest.mark.parametrize("levels", [[0.0, 0.0, 0.0], [1.0], [0.4, 0.4]])
def test_a_batch_without_a_pair_costs_nothing(levels: list[float]) -> None:
    logits = torch.randn(len(levels), 3, requires_grad=True)
    labels = torch.zeros(len(levels), dtype=torch.long)
    batch = Batch(logits, labels, difficulty=torch.tensor(levels))
    plain, with_dar = Objective().loss(batch), Objective("dar").loss(batch)
    torch.testing.assert_close(with_dar, plain)
    with_dar.backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("score", ["probability", "log_odds"])
def test_confidence_of_saturated_rows_stays_finite(score: str) -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    loss = DAR(score=score).penalty(logits, torch.tensor([0.0, 1.0]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_confidence_as_the_cascade_has_it() -> None:
    from cascadebert.deferral.confidence import max_probability_log_odds, sigmoid

    logits = torch.randn(50, 4)
    wanted = max_probability_log_odds(logits.numpy())
    np.testing.assert_allclose(confidence(logits, "log_odds").numpy(), wanted, atol=1e-5)
    np.testing.assert_allclose(confidence(logits).numpy(), sigmoid(wanted), atol=1e-6)


def test_gatekeeper_by_its_formula() -> None:
    torch.manual_seed(1)
    logits, labels, alpha = torch.randn(30, 4), torch.randint(0, 4, (30,)), 0.3
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        p = row.softmax(dim=0)
        if row.argmax() == label:
            total += alpha * -math.log(p[label])
        else:
            total += (1 - alpha) * sum(float(x) * math.log(float(x) * 4) for x in p)
    assert Gatekeeper(alpha).loss(logits, labels).item() == pytest.approx(total / 30, rel=1e-4)


def test_gatekeeper_takes_over_after_its_start() -> None:
    logits, labels = torch.randn(8, 3), torch.randint(0, 3, (8,))
    objective = Objective("gatekeeper", gatekeeper_start=0.5)
    early = objective.loss(Batch(logits, labels, done=0.49))
    late = objective.loss(Batch(logits, labels, done=0.5))
    torch.testing.assert_close(early, torch.nn.functional.cross_entropy(logits, labels))
    torch.testing.assert_close(late, Gatekeeper().loss(logits, labels))


def test_distillation_by_its_formula() -> None:
    student, teacher, t = torch.randn(12, 3), torch.randn(12, 3), 2.5
    p, q = (teacher / t).softmax(dim=1), (student / t).softmax(dim=1)
    wanted = t * t * (p * (p / q).log()).sum(dim=1).mean()
    torch.testing.assert_close(logit_loss(student, teacher, t), wanted)
    assert logit_loss(teacher, teacher, t).item() == pytest.approx(0, abs=1e-6)


def test_shares_of_distillation_and_regularisation() -> None:
    logits, teacher = torch.randn(10, 3), torch.randn(10, 3)
    labels, difficulty = torch.randint(0, 3, (10,)), torch.arange(10) % 2.0
    objective = Objective("distillation+dar", distillation_weight=0.25, dar_weight=2.0)
    batch = Batch(
        logits,
        labels,
        difficulty=difficulty,
        teacher_logits=teacher,
        generator=torch.Generator().manual_seed(3),
    )
    wanted = (
        0.75 * torch.nn.functional.cross_entropy(logits, labels)
        + 0.25 * logit_loss(logits, teacher, 2.0)
        + 2.0 * DAR().penalty(logits, difficulty, torch.Generator().manual_seed(3))
    )
    torch.testing.assert_close(objective.loss(batch), wanted)


def test_hidden_states_are_added_to_distillation() -> None:
    logits, labels, states = torch.randn(4, 3), torch.arange(4) % 3, torch.randn(4, 2, 8)
    batch = Batch(
        logits,
        labels,
        teacher_logits=torch.randn(4, 3),
        student_states=-states,
        teacher_states=states,
    )
    apart = Objective("distillation", hidden_weight=3.0).loss(batch)
    torch.testing.assert_close(apart, Objective("distillation").loss(batch) + 3 * 4)


def test_hidden_states_are_compared_by_direction() -> None:
    states = torch.randn(5, 2, 8)
    assert hidden_state_loss(3 * states, states).item() == pytest.approx(0, abs=1e-6)
    assert hidden_state_loss(-states, states).item() == pytest.approx(4)
    assert matched_layers(3, 12) == ([1, 2, 3], [4, 8, 12])
    with pytest.raises(InputError, match="384 wide, those of the last stage 768"):
        refuse_other_width(384, 768, "small")


def test_class_weights_and_smoothing_are_those_of_torch() -> None:
    logits, labels, weights = torch.randn(9, 3), torch.arange(9) % 3, torch.tensor([1.0, 2.0, 5.0])
    found = Objective(label_smoothing=0.1).loss(Batch(logits, labels, class_weights=weights))
    wanted = torch.nn.CrossEntropyLoss(weights, label_smoothing=0.1)(logits, labels)
    torch.testing.assert_close(found, wanted)


def test_class_weights_by_label() -> None:
    labels = ["b", "a", "b", "b"]
    balanced = CrossEntropy(class_weights="balanced").weights(labels, ["a", "b", "c"])
    torch.testing.assert_close(balanced, torch.tensor([4 / 3, 4 / 9, 4 / 3]))
    given = CrossEntropy(class_weights={"b": 2, "a": 0.5})
    torch.testing.assert_close(given.weights(labels, ["a", "b"]), torch.tensor([0.5, 2.0]))
    with pytest.raises(InputError, match="one weight per label"):
        given.weights(labels, ["a", "b", "c"])
    assert CrossEntropy().weights(labels, ["a", "b"]) is None


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        (
            Objective(),
            {"name": "cross_entropy", "label_smoothing": 0.0, "class_weights": None},
        ),
        (
            Objective("dar", dar_score="log_odds", gatekeeper_alpha=0.1, class_weights="balanced"),
            {
                "name": "dar",
                "label_smoothing": 0.0,
                "class_weights": "balanced",
                "dar_weight": 0.5,
                "dar_margin": 0.5,
                "dar_score": "log_odds",
            },
        ),
        (
            Objective("gatekeeper", label_smoothing=0.1, class_weights={"a": 1, "b": 2.5}),
            {
                "name": "gatekeeper",
                "label_smoothing": 0.1,
                "class_weights": {"a": 1, "b": 2.5},
                "gatekeeper_alpha": 0.5,
                "gatekeeper_start": 0.5,
            },
        ),
        (
            Objective("distillation+dar", dar_weight=1, temperature=3.0),
            {
                "name": "dar+distillation",
                "label_smoothing": 0.0,
                "class_weights": None,
                "dar_weight": 1,
                "dar_margin": 0.5,
                "dar_score": "probability",
                "distillation_weight": 0.5,
                "temperature": 3.0,
                "hidden_weight": 0.0,
            },
        ),
        (
            Objective("cross_entropy+dar").plain(),
            {"name": "cross_entropy", "label_smoothing": 0.0, "class_weights": None},
        ),
    ],
)
def test_settings_identify_finished_parts(
    objective: Objective, settings: dict[str, object]
) -> None:
    """Finished parts are found by the JSON of these, so types and names must stay."""
    assert json.dumps(objective.settings(), sort_keys=True) == json.dumps(settings, sort_keys=True)
    assert Objective(**objective.settings()) == objective


def test_terms_by_name_and_as_objects() -> None:
    by_name = Objective("distillation+dar", dar_weight=0.3, label_smoothing=0.1)
    as_objects = Objective(DAR(weight=0.3), CrossEntropy(label_smoothing=0.1), Distillation())
    assert by_name == as_objects
    assert Objective("dar+distillation") == Objective("distillation+dar")
    assert Objective(CrossEntropy()) == Objective()
    assert (by_name.needs_difficulty, by_name.needs_teacher, by_name.needs_states) == (1, 1, 0)
    assert Objective(Distillation(hidden_weight=1.0)).needs_states
    assert Objective(DEFAULT_LOSS).name == "distillation"
    for same in (pickle.loads(pickle.dumps(by_name)), copy.deepcopy(by_name)):
        assert same == by_name
    with pytest.raises(InputError, match="give each kind once"):
        Objective(DAR(), DAR(weight=0.1))
    for wrong in (
        lambda: Objective("dar", Distillation()),
        lambda: Objective(DAR(), dar_weight=0.1),
        lambda: Objective("dar", dar_wieght=0.1),
    ):
        with pytest.raises(TypeError):
            wrong()


def test_numpy_numbers_become_python_numbers() -> None:
    objective = Objective(
        "dar+distillation+gatekeeper",
        dar_weight=np.float32(0.5),
        dar_margin=np.int64(1),
        temperature=np.array(4.0),
        hidden_weight=torch.tensor(0.25),
        gatekeeper_alpha=np.float16(0.5),
        label_smoothing=np.float64(0.25),
        class_weights={"a": np.float32(1.5), "b": np.int32(2)},
    )
    assert json.loads(json.dumps(objective.settings())) == {
        "name": "dar+distillation+gatekeeper",
        "label_smoothing": 0.25,
        "class_weights": {"a": 1.5, "b": 2},
        "dar_weight": 0.5,
        "dar_margin": 1,
        "dar_score": "probability",
        "distillation_weight": 0.5,
        "temperature": 4.0,
        "hidden_weight": 0.25,
        "gatekeeper_alpha": 0.5,
        "gatekeeper_start": 0.5,
    }
    weight = DAR(weight=np.float64(0.5)).weight
    assert type(weight) is float


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dar", {}, "the loss 'dar' needs the difficulty of each row"),
        ("distillation", {}, "the loss 'distillation' needs the last stage's outputs"),
        ("distillation", {"hidden_weight": 1.0}, "needs the last stage's hidden states"),
    ],
)
def test_a_batch_without_what_a_term_needs(
    name: str, settings: dict[str, Any], message: str
) -> None:
    teacher = torch.zeros(2, 2) if settings else None
    batch = Batch(torch.zeros(2, 2), torch.tensor([0, 1]), teacher_logits=teacher)
    with pytest.raises(InputError, match=message):
        Objective(name, **settings).loss(batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "dar+focal"}, "unknown loss 'focal'; join any of cross_entropy, gatekeeper"),
        ({"dar_score": "entropy"}, "dar_score is 'entropy'"),
        ({"class_weights": {"a": -1.0, "b": 1.0}}, r"class_weights\['a'\] is -1.0"),
        ({"class_weights": [1.0, 2.0]}, r"class_weights is \[1.0, 2.0\]"),
        ({"hidden_weight": 1.0}, "part of the loss 'distillation'"),
        ({"class_weights": "even"}, "class_weights is 'even'"),
        ({"distillation_weight": 1.5}, "distillation_weight is 1.5"),
        ({"gatekeeper_start": -0.1}, "gatekeeper_start is -0.1; give a number from 0 to 1"),
        ({"dar_margin": -0.1}, "dar_margin is -0.1"),
        ({"dar_weight": float("nan")}, "dar_weight is nan"),
        ({"dar_weight": "0.5"}, "dar_weight is '0.5'; give a finite number"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Objective(**settings)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (lambda: DAR(weight=-1), "dar_weight is -1"),
        (lambda: Distillation(weight=2), "distillation_weight is 2"),
        (lambda: Gatekeeper(alpha=True), "gatekeeper_alpha is True"),
        (lambda: CrossEntropy(label_smoothing=-0.1), "label_smoothing is -0.1"),
    ],
)
def test_terms_validate_their_own_values(term: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        term()
