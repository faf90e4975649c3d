"""Pruning with feedback: masks that come and go, and networks that are smaller in the end."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils import parametrize
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    TrainerCallback,
    TrainerControl,
)

from cascadebert.errors import InputError
from cascadebert.rivals.blocks import KINDS, blocks
from cascadebert.rivals.pruning import Pruning, PruningCallback, shrink
from cascadebert.rows.rows import Rows
from cascadebert.training.fine_tuning import default_arguments, fine_tune
from conftest import CORPUS, LABELS, inputs_of

NAMES = ("bert", "mpnet", "roberta")


def matrices_of(encoder: Any) -> list[Any]:
    """All linear layers of all blocks."""
    return [
        module
        for block in blocks(encoder)
        for module in (*(block.reader(kind) for kind in KINDS), *block.projections, block.up.dense)
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_masks_and_the_smaller_network_answer_alike(
    name: str, sparsity: float, checkpoints: dict[str, Path]
) -> None:
    encoder = AutoModel.from_pretrained(checkpoints[name]).eval()
    inputs = inputs_of(checkpoints[name])
    size = sum(own.numel() for own in encoder.parameters())
    pruning = Pruning(encoder, sparsity, structured=True)
    pruning.update(1.0)
    with torch.inference_mode():
        masked = encoder(**inputs).last_hidden_state
        pruning.finish()
        zeros = encoder(**inputs).last_hidden_state
        shrink(encoder)
        smaller = encoder(**inputs).last_hidden_state
    torch.testing.assert_close(zeros, masked)
    torch.testing.assert_close(smaller, masked, rtol=1e-4, atol=1e-4)
    left = sum(own.numel() for own in encoder.parameters())
    assert left < size if sparsity else left == size
    heads = sum(block.heads for block in blocks(encoder))
    columns = sum(block.columns for block in blocks(encoder))
    assert min(block.heads for block in blocks(encoder)) >= 1
    if sparsity == 0.5:
        assert heads in (2, 3)
        assert columns == encoder.config.intermediate_size


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_dense_weights_get_the_gradient_of_the_masked_network(
    name: str, structured: bool, checkpoints: dict[str, Path]
) -> None:
    inputs = inputs_of(checkpoints[name])
    encoder = AutoModel.from_pretrained(checkpoints[name]).eval()
    pruning = Pruning(encoder, 0.7, structured=structured)
    pruning.update(1.0)
    plain = AutoModel.from_pretrained(checkpoints[name]).eval()
    matrices = list(zip(matrices_of(plain), matrices_of(encoder), strict=True))
    with torch.no_grad():
        for own, masked in matrices:
            own.weight.copy_(masked.weight)
    torch.manual_seed(0)
    # Behind a layer norm, a plain sum would have no gradient.
    direction = torch.randn(plain(**inputs).last_hidden_state.shape)
    for model in (encoder, plain):
        (model(**inputs).last_hidden_state * direction).sum().backward()
    masks = 0
    for own, masked in matrices:
        assert own.weight.grad.abs().max() > 1e-3
        if not parametrize.is_parametrized(masked):
            torch.testing.assert_close(masked.weight.grad, own.weight.grad)
            continue
        masks += 1
        found = masked.parametrizations.weight.original.grad
        torch.testing.assert_close(found, own.weight.grad)
        pruned = masked.weight == 0
        assert pruned.any()
        assert found[pruned].abs().mean() > 0.1 * found.abs().mean()
    assert masks == len(matrices) / (3 if structured else 1)


@pytest.mark.parametrize("structured", [False, True])
def test_what_is_missed_comes_back(structured: bool, checkpoints: dict[str, Path]) -> None:
    encoder = AutoModel.from_pretrained(checkpoints["bert"]).eval()
    inputs = inputs_of(checkpoints["bert"])
    pruning = Pruning(encoder, 0.5, structured=structured)
    pruning.update(1.0)
    down = blocks(encoder)[-1].down.dense
    column = int((down.weight == 0).float().mean(dim=0).argmax())
    gone = down.weight[:, column] == 0
    dense = down.parametrizations.weight.original
    with torch.no_grad():
        wanted = copy.deepcopy(encoder)
        own = blocks(wanted)[-1].down.dense.parametrizations.weight
        own[0].mask[:, column] = 1
        own.original[:, column] += 2 * torch.randn(len(dense)).sign()
        target = wanted(**inputs).last_hidden_state
    here = torch.zeros_like(dense)
    here[gone, column] = 1
    # Other weights could learn the same, so they stay.
    dense.register_hook(lambda gradient: gradient * here)
    descent = torch.optim.Adam([dense], lr=0.02)
    for _ in range(100):
        descent.zero_grad()
        (encoder(**inputs).last_hidden_state - target).square().mean().backward()
        descent.step()
        pruning.update(1.0)
    assert (down.weight[gone, column] != 0).float().mean() > 0.5


@given(st.floats(0, 0.99), st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_the_sparsity_grows_to_what_is_asked_for(sparsity: float, times: list[float]) -> None:
    pruning = Pruning.__new__(Pruning)
    pruning._sparsity = sparsity
    shares = [pruning.sparsity_at(done) for done in sorted(times)]
    assert shares == sorted(shares)
    assert pruning.sparsity_at(0) == 0
    assert pruning.sparsity_at(1) == pruning.sparsity_at(2) == sparsity
    assert pruning.sparsity_at(0.5) == pytest.approx(sparsity * 0.875)


@pytest.mark.parametrize("structured", [False, True])
def test_training_gives_an_ordinary_checkpoint(
    structured: bool, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    rows = Rows(CORPUS * 6, None, [LABELS[i % 3] for i in range(6 * len(CORPUS))])
    callback = PruningCallback(0.5, structured=structured, every=1)
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 8}
    fine_tune(checkpoints["mpnet"], rows, tmp_path / "out", callbacks=[callback], **settings)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    masked = (
        [block.reader(kind) for block in blocks(model.base_model) for kind in KINDS]
        if structured
        else matrices_of(model.base_model)
    )
    weights = torch.cat([module.weight.flatten() for module in masked])
    assert (weights == 0).float().mean() == pytest.approx(0.5, abs=0.02)
    inputs = inputs_of(checkpoints["mpnet"])
    with torch.inference_mode():
        before = model(**inputs).logits
        shrink(model.base_model)
        after = model(**inputs).logits
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    if structured:
        assert sum(block.columns for block in blocks(model.base_model)) == 64


def test_a_pruned_training_that_was_cut_off_is_not_gone_on_with(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    rows = Rows(CORPUS * 6, None, [LABELS[i % 3] for i in range(6 * len(CORPUS))])

    class Stop(TrainerCallback):
        def on_save(self, *_: object, **__: object) -> TrainerControl:
            return TrainerControl(should_training_stop=True)

    args = default_arguments(tmp_path / "runs", save_steps=2, per_device_train_batch_size=8)
    prune = PruningCallback(0.5, structured=True, every=1)
    fine_tune(checkpoints["bert"], rows, tmp_path / "out", args=args, callbacks=[prune, Stop()])
    with pytest.raises(InputError, match="cannot go on from step 2"):
        fine_tune(
            checkpoints["bert"], rows, tmp_path / "out", args=args, callbacks=[prune], resume=True
        )


def test_what_cannot_be_pruned_is_refused(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="a sparsity of 1 is not possible"):
        Pruning(AutoModel.from_pretrained(checkpoints["bert"]), 1, structured=True)
    with pytest.raises(InputError, match="the layers of 'albert' are not known"):
        Pruning(AutoModel.from_pretrained(checkpoints["albert"]), 0.5, structured=True)
