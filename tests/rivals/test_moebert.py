"""Experts in the place of feed-forward networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForSequenceClassification, TrainerState

from cascadebert.errors import InputError
from cascadebert.rivals.blocks import blocks
from cascadebert.rivals.moebert import (
    MoEBERT,
    Routes,
    distillation_loss,
    expert_columns,
    importances,
    with_experts,
)
from cascadebert.rows.rows import Rows
from conftest import CORPUS, LABELS, inputs_of

NAMES = ("bert", "mpnet", "roberta")


@pytest.mark.parametrize("name", NAMES)
def test_experts_that_are_all_the_dense_network_answer_as_it_does(
    name: str, checkpoints: dict[str, Path]
) -> None:
    encoder = AutoModel.from_pretrained(checkpoints[name]).eval()
    columns = blocks(encoder)[0].columns
    importance = [torch.rand(columns) for _ in blocks(encoder)]
    made = with_experts(encoder, importance, experts=4, width=columns, shared=columns)
    inputs = inputs_of(checkpoints[name])
    with torch.inference_mode():
        expected = encoder(**inputs).last_hidden_state
        found = made(**inputs).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_each_token_runs_through_the_columns_of_its_expert(checkpoints: dict[str, Path]) -> None:
    encoder = AutoModel.from_pretrained(checkpoints["bert"]).eval()
    (block, *_) = blocks(encoder)
    dense_up, dense_down = block.up.dense, block.down.dense
    importance = [torch.rand(block.columns) for _ in blocks(encoder)]
    made = with_experts(encoder, importance, experts=3, width=12, shared=6)
    columns = expert_columns(importance[0], experts=3, width=12, shared=6)
    ids = inputs_of(checkpoints["bert"])["input_ids"]
    routes = Routes(encoder.get_input_embeddings().num_embeddings, 3)
    routes.read(ids)
    module = blocks(made)[0].down.dense
    module._routes.read(ids)
    hidden = torch.randn(*ids.shape, encoder.config.hidden_size)
    found = module(hidden)
    assert routes.current is not None
    for row, token in ((0, 1), (2, 3), (5, 0)):
        own = columns[int(routes.current[row, token])]
        middle = torch.nn.functional.gelu(
            dense_up.weight[own] @ hidden[row, token] + dense_up.bias[own]
        )
        expected = dense_down.weight[:, own] @ middle + dense_down.bias
        torch.testing.assert_close(found[row, token], expected, rtol=1e-4, atol=1e-4)


@given(st.integers(1, 500), st.integers(1, 8))
def test_every_expert_gets_as_many_token_ids(vocabulary: int, experts: int) -> None:
    routes = Routes(vocabulary, experts)
    routes.read(torch.arange(vocabulary)[None])
    assert routes.current is not None
    counts = routes.current.flatten().bincount(minlength=experts)
    assert counts.max() - counts.min() <= 1
    again = Routes(vocabulary, experts)
    again.read(torch.arange(vocabulary)[None])
    assert again.current is not None
    assert torch.equal(again.current, routes.current)


def test_experts_share_the_most_important_columns_and_part_the_rest() -> None:
    importance = torch.tensor([5.0, 1.0, 9.0, 3.0, 8.0, 2.0, 7.0, 4.0])
    assert [own.tolist() for own in expert_columns(importance, experts=2, width=4, shared=2)] == [
        [2, 4, 6, 7],
        [2, 4, 0, 3],
    ]
    with pytest.raises(InputError, match="experts of 6 columns, 2 of them shared"):
        expert_columns(importance, experts=2, width=6, shared=2)


def test_importance_is_the_first_order_change_of_the_loss(checkpoints: dict[str, Path]) -> None:
    """Scaling a column's two vectors by 1 - e changes the loss by about e times its Taylor term."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["bert"])
    model = model.double().eval()
    batch = inputs_of(checkpoints["bert"]) | {"labels": torch.arange(len(CORPUS)) % 3}
    found = importances(model, [batch])
    block = blocks(model.base_model)[0]
    small = 1e-5
    with torch.no_grad():
        whole = model(**batch).loss
        for column in (0, 7, 20):
            before = (
                block.up.dense.weight[column].clone(),
                block.down.dense.weight[:, column].clone(),
            )
            block.up.dense.weight[column] *= 1 - small
            block.down.dense.weight[:, column] *= 1 - small
            change = (model(**batch).loss - whole).abs() / small
            block.up.dense.weight[column], block.down.dense.weight[:, column] = before
            assert float(change) == pytest.approx(float(found[0][column]), rel=1e-2, abs=1e-6)


def test_nothing_is_lost_on_oneself() -> None:
    logits, states = torch.randn(3, 2), [torch.randn(3, 4, 5)] * 2
    mask = torch.ones(3, 4, dtype=torch.int64)
    assert distillation_loss(logits, states, logits, states, mask) == pytest.approx(0, abs=1e-6)
    # Padding is no part of it.
    mask[0, 2:] = 0
    other = [own.clone() for own in states]
    other[0][0, 2:] += 100
    assert distillation_loss(logits, states, logits, other, mask) == pytest.approx(0, abs=1e-6)
    assert distillation_loss(logits, states, -logits, other, mask) > 0.1


def test_the_loss_weighs_the_dense_model_by_lambda(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["bert"]
    teacher, student = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval() for _ in range(2)
    )
    with torch.no_grad():
        for weight in student.parameters():
            weight += 0.1 * torch.randn(weight.shape)
    inputs, labels = inputs_of(folder), torch.arange(len(CORPUS)) % 3
    tokens = inputs["attention_mask"].bool()
    with torch.inference_mode():
        own, other = (model(**inputs, output_hidden_states=True) for model in (student, teacher))
        apart = sum(
            (a[tokens] - b[tokens]).square().mean()
            for a, b in zip(own.hidden_states, other.hidden_states, strict=True)
        )
        p, q = own.logits.softmax(dim=1), other.logits.softmax(dim=1)
        # Both divergences together, of which the symmetric one is the mean.
        apart += ((p - q) * (p.log() - q.log())).sum(dim=1).mean() / 2
        told = torch.nn.functional.cross_entropy(own.logits, labels)
        for weight in (0.0, 5.0):
            rival = MoEBERT(folder, distillation_weight=weight)
            found = rival._loss(teacher, student, inputs, labels, TrainerState())
            torch.testing.assert_close(found, told + weight * apart, rtol=1e-4, atol=1e-5)


def test_training(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["mpnet"]
    often = {"per_device_train_batch_size": 8, "learning_rate": 1e-3}
    rival = MoEBERT(folder, experts=2, width=24, shared=16, num_train_epochs=1, **often)
    rows = Rows(CORPUS * 4, None, [LABELS[i % 3] for i in range(4 * len(CORPUS))])
    rival.fit(rows)
    experts = blocks(rival.model.base_model)[0].down.dense
    assert experts.up_weight.shape == (2, 24, 32)
    # They began alike in the shared columns, and go their own ways.
    assert not torch.equal(experts.up_weight[0, :16], experts.up_weight[1, :16])
    with torch.inference_mode():
        logits = rival.model(**inputs_of(folder)).logits
    assert np.isfinite(logits.numpy()).all()
    with pytest.raises(InputError, match="are in the rows but not in"):
        MoEBERT(folder).fit(Rows(CORPUS[:1], None, ["unheard of"]))
