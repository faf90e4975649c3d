"""A slender network with exits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from transformers import AutoModel, TrainerState

from cascadebert.errors import InputError
from cascadebert.rivals.blocks import COLUMNS, HEADS, blocks
from cascadebert.rivals.cost_eff import COSTEFF, balanced, best, cut, factorise_embeddings, scaled
from cascadebert.rivals.network import MEAN, POOLINGS, ExitNetwork
from cascadebert.rows.rows import Rows
from conftest import CORPUS, LABELS, inputs_of

ROWS = Rows(CORPUS * 6, None, [LABELS[i % 3] for i in range(6 * len(CORPUS))])


@pytest.mark.parametrize("name", ["mpnet", "roberta"])
@pytest.mark.parametrize("begun", [{}, {"fine_tuned": True, "pooling": MEAN}], ids=["", "tuned"])
def test_training_gives_a_slender_network(
    name: str, begun: dict[str, Any], checkpoints: dict[str, Path]
) -> None:
    settings = {"embedding_rank": 8, "prunes": 2, "num_train_epochs": 1, **begun}
    rival = COSTEFF(checkpoints[name], **settings).fit(ROWS)
    encoder = rival.network.encoder
    assert [block.heads for block in blocks(encoder)] == [1, 1]
    assert [block.columns for block in blocks(encoder)] == [32, 32]
    assert encoder.embeddings.word_embeddings[0].embedding_dim == 8
    never = rival.predict(ROWS, rival.knobs[0])
    assert (never.layer == 2).all()
    always = rival.predict(ROWS, rival.knobs[-1])
    assert (always.layer == 1).all()
    assert np.isfinite(always.logits).all()


def test_no_pruning_and_a_full_rank_leave_the_network_as_it_is(
    checkpoints: dict[str, Path],
) -> None:
    encoder = AutoModel.from_pretrained(checkpoints["bert"]).eval()
    inputs = inputs_of(checkpoints["bert"])
    with torch.inference_mode():
        expected = encoder(**inputs).last_hidden_state
        factorise_embeddings(encoder, encoder.config.hidden_size)
        for block in blocks(encoder):
            block.keep_heads(range(block.heads))
            block.keep_columns(torch.arange(block.columns))
        found = encoder(**inputs).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_exit_pulls_alike_at_the_embeddings(
    pooling: str, checkpoints: dict[str, Path]
) -> None:
    """The weights of the paths of exit i come to 1 / n at the bottom, whatever i is."""
    folder = checkpoints["xlm-roberta"]
    network = ExitNetwork(AutoModel.from_pretrained(folder), 3, pooling=pooling).eval()
    inputs = inputs_of(folder)
    torch.testing.assert_close(balanced(network, inputs)[1], network(**inputs))
    grads = []
    for rescaled in (False, True):
        own = copy.deepcopy(network)
        logits = balanced(own, inputs)[1] if rescaled else own(**inputs)
        logits.square().sum().backward()
        grads.append(own.encoder.embeddings.word_embeddings.weight.grad)
    torch.testing.assert_close(grads[1], grads[0] / network.depth, rtol=1e-3, atol=1e-4)


def test_the_heads_and_columns_that_matter_stay(checkpoints: dict[str, Path]) -> None:
    rival = COSTEFF(checkpoints["bert"], embedding_rank=None, num_train_epochs=1).fit(ROWS)
    rival.network = ExitNetwork(AutoModel.from_pretrained(checkpoints["bert"]), 3)
    before = copy.deepcopy(rival.network)
    wanted = [(1, 5), (0, 20)]
    with torch.no_grad():
        for block, (head, column) in zip(blocks(rival.network.encoder), wanted, strict=True):
            # Of the others little is read, so the loss would be nearly the same without them.
            heads = torch.arange(block.heads * block.head_width) // block.head_width
            block.reader(HEADS).weight[:, heads != head] *= 1e-3
            block.reader(COLUMNS).weight[:, torch.arange(block.columns) != column] *= 1e-3
    cut(rival, ROWS, 1 / blocks(before.encoder)[0].columns)
    for block, old, (head, column) in zip(
        blocks(rival.network.encoder), blocks(before.encoder), wanted, strict=True
    ):
        assert (block.heads, block.columns) == (1, 1)
        at = slice(head * old.head_width, (head + 1) * old.head_width)
        assert torch.equal(block.projections[0].weight, old.projections[0].weight[at])
        assert torch.equal(block.up.dense.weight[0], old.up.dense.weight[column])


def test_what_the_assistant_teaches(checkpoints: dict[str, Path]) -> None:
    """The mean over states of the squared distance, and over exits of the divergence."""
    rival = COSTEFF(checkpoints["bert"], embedding_rank=None)
    own, assistant = (
        ExitNetwork(AutoModel.from_pretrained(checkpoints["bert"]), 3).eval() for _ in range(2)
    )
    with torch.no_grad():
        for weight in own.encoder.parameters():
            weight += 0.1 * torch.randn(weight.shape)
    rival._assistant = assistant
    inputs = inputs_of(checkpoints["bert"])
    labels = torch.arange(len(CORPUS)) % 3
    with torch.inference_mode():
        taught, logits = rival._from_assistant(own, inputs, labels)
        apart, learnt = [], []
        for a, b in zip(own.hidden_states(inputs), assistant.hidden_states(inputs), strict=True):
            rows = zip(a, b, inputs["attention_mask"].sum(dim=1).tolist(), strict=True)
            apart.append(torch.cat([(x[:n] - y[:n]).flatten() for x, y, n in rows]))
        for a, b in zip(own(**inputs), assistant(**inputs), strict=True):
            p = b.softmax(dim=1)
            learnt.append((p * (p.log() - a.log_softmax(dim=1))).sum(dim=1).mean())
        torch.testing.assert_close(logits, own(**inputs))
        expected = sum(own.square().mean() for own in apart) / 3 + sum(learnt) / 2
        torch.testing.assert_close(taught, expected, rtol=1e-4, atol=1e-5)
        both = rival._taught_and_told(own, inputs, labels, TrainerState())
        told = torch.stack([functional.cross_entropy(ramp, labels) for ramp in logits]).mean()
        torch.testing.assert_close(both, expected + told, rtol=1e-4, atol=1e-5)


def test_scaling_changes_the_gradient_alone() -> None:
    values = torch.randn(4, requires_grad=True)
    out = scaled(values, 0.25)
    torch.testing.assert_close(out, values)
    out.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.25] * 4


def test_the_best_in_their_order() -> None:
    assert best(torch.tensor([3.0, 9.0, 1.0, 5.0]), 3).tolist() == [0, 1, 3]


def test_what_is_not_possible_is_refused(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="a width of 0 is not possible"):
        COSTEFF("unused", width=0)
    with pytest.raises(InputError, match="0 steps of pruning"):
        COSTEFF("unused", prunes=0)
    with pytest.raises(InputError, match="COSTEFF is for classes"):
        COSTEFF("unused", regression=True)
    with pytest.raises(InputError, match="a rank of 99 is not possible: embeddings are 16 wide"):
        factorise_embeddings(AutoModel.from_pretrained(checkpoints["bert"]), 99)
