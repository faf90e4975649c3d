"""Networks with exits: the same answers however rows are batched, and exits as their papers say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.stats import entropy as scipy_entropy
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerState,
)

from cascadebert.errors import ArtifactError, InputError
from cascadebert.rivals import pabee, shallow_deep
from cascadebert.rivals.berxit import BERxiT, CertainNetwork, _alternating, rightness
from cascadebert.rivals.blocks import ARCHITECTURES
from cascadebert.rivals.deebert import DeeBERT, entropy
from cascadebert.rivals.early_exit import EarlyExit, exit_losses
from cascadebert.rivals.first_layers import some_layers
from cascadebert.rivals.network import FIRST, MEAN, POOLINGS, ExitNetwork
from cascadebert.rivals.pabee import PABEE
from cascadebert.rivals.regrouping import run_with_exits
from cascadebert.rivals.rival import tokenized
from cascadebert.rivals.shallow_deep import ShallowDeep, exit_weights
from cascadebert.rows.rows import Rows
from cascadebert.stages.transformer import TokenizedRows
from cascadebert.training.fine_tuning import fine_tune
from conftest import CORPUS, LABELS, inputs_of, make_checkpoint

TEXTS = [" ".join(text.split()[: 1 + i % 9]) for i, text in enumerate(CORPUS * 6)]
ROWS = Rows(TEXTS, None, [LABELS[i % 3] for i in range(len(TEXTS))])
SHORT = {"num_train_epochs": 1, "per_device_train_batch_size": 16}
METHODS = (DeeBERT, ShallowDeep, PABEE, BERxiT)


def network_of(folder: Path, pooling: str = FIRST) -> ExitNetwork:
    torch.manual_seed(0)
    network = CertainNetwork(AutoModel.from_pretrained(folder), 3, None, None, pooling)
    with torch.no_grad():
        for ramp in network.exits:
            ramp.out.weight.normal_(std=1.0)
    return network.eval()


def tokens_of(folder: Path) -> TokenizedRows:
    encoded = AutoTokenizer.from_pretrained(folder)(TEXTS)
    return tokenized({name: encoded[name] for name in encoded if name != "attention_mask"})


NO_PADDING = {"input_ids": 0, "token_type_ids": 0}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layer_by_layer_gives_the_hidden_states_of_transformers(
    name: str, checkpoints: dict[str, Path]
) -> None:
    folder = checkpoints[name]
    inputs = inputs_of(folder, TEXTS)
    network = network_of(folder)
    with torch.inference_mode():
        theirs = AutoModel.from_pretrained(folder).eval()(**inputs, output_hidden_states=True)
        expected = torch.stack([states[:, 0] for states in theirs.hidden_states[1:]])
        torch.testing.assert_close(network.states(inputs), expected, rtol=1e-4, atol=1e-4)
        # The mean of each row's tokens, but for the last exit.
        found = network_of(folder, MEAN).states(inputs)
        lengths = inputs["attention_mask"].sum(dim=1)
        for row, length in enumerate(lengths):
            kept = torch.stack([own[row, :length] for own in theirs.hidden_states[1:-1]])
            torch.testing.assert_close(found[:-1, row], kept.mean(dim=1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[-1], expected[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "mpnet", "roberta"])
@pytest.mark.parametrize("budget", [8, 64, 4096])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_regrouped_rows_get_the_answers_of_single_rows(
    name: str, budget: int, pooling: str, checkpoints: dict[str, Path]
) -> None:
    folder = checkpoints[name]
    network, tokens = network_of(folder, pooling), tokens_of(folder)
    with torch.inference_mode():
        first = network(**inputs_of(folder, TEXTS))[0].softmax(dim=1).amax(dim=1)
    # In the widest gap between the surest and the least sure quarter, so that rounding decides
    # nothing.
    sure = first.sort().values[len(TEXTS) // 4 : -len(TEXTS) // 4]
    gap = int(sure.diff().argmax())
    middle = sure[gap : gap + 2].mean()

    def leaves(_: int, logits: torch.Tensor, *__: object) -> torch.Tensor:
        return logits.softmax(dim=1).amax(dim=1) > middle

    together = run_with_exits(network, tokens, NO_PADDING, leaves, token_budget=budget)
    for i in range(len(TEXTS)):
        alone = run_with_exits(network, tokens.take(np.array([i])), NO_PADDING, leaves)
        assert alone.layer[0] == together.layer[i]
        np.testing.assert_allclose(alone.logits[0], together.logits[i], rtol=1e-4, atol=1e-4)
    assert 0 < (together.layer == 1).sum() < len(TEXTS)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", ["bert", "mpnet", "xlm-roberta"])
def test_all_that_leave_after_a_layer_get_its_off_ramp(
    name: str, pooling: str, checkpoints: dict[str, Path]
) -> None:
    folder = checkpoints[name]
    network = network_of(folder, pooling)
    with torch.inference_mode():
        ramps = network(**inputs_of(folder, TEXTS)).numpy()
    for layer in range(1, network.depth + 1):
        found = run_with_exits(
            network,
            tokens_of(folder),
            NO_PADDING,
            lambda number, logits, *_, own=layer: torch.full((len(logits),), number == own),
        )
        assert (found.layer == layer).all()
        np.testing.assert_allclose(found.logits, ramps[layer - 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_training_then_no_exits_then_all_of_them(
    method: type[EarlyExit], checkpoints: dict[str, Path]
) -> None:
    rival = method(checkpoints["xlm-roberta"], **SHORT).fit(ROWS)
    slow, fast = rival.knobs[0], rival.knobs[-1]
    never = rival.predict(ROWS, slow)
    assert (never.layer == rival.network.depth).all()
    recording = rival.record(ROWS)
    np.testing.assert_array_equal(never.logits, recording.logits[-1])
    assert rival.layers_speedup(recording, slow) == 1
    knobs = [*rival.knobs[::13], fast]
    depths = [rival.predict(ROWS, knob).layer.mean() for knob in knobs]
    assert depths == sorted(depths, reverse=True)
    assert depths[-1] < rival.network.depth
    for knob in knobs:
        answers, replayed = rival.predict(ROWS, knob), rival.replay(recording, knob)
        # Rows that stay are batched otherwise, and bfloat16 rounds otherwise then.
        alike = answers.layer == replayed.layer
        assert alike.mean() > 0.9
        np.testing.assert_allclose(
            answers.logits[alike], replayed.logits[alike], rtol=0.05, atol=0.05
        )


@pytest.mark.parametrize("method", METHODS)
def test_the_knob_for_a_speed(method: type[EarlyExit], checkpoints: dict[str, Path]) -> None:
    rival = method(checkpoints["xlm-roberta"], **SHORT).fit(ROWS)
    recording = rival.record(ROWS)
    tried = np.unique([rival.layers_speedup(recording, knob) for knob in rival.knobs])
    for target in (0.5, *tried, 99.0):
        found = rival.layers_speedup(recording, rival.knob_for(recording, target))
        # At least as near as any knob of the grid.
        assert abs(found - target) <= np.abs(tried - target).min() + 1e-9


def test_deebert_trains_the_encoder_first_and_then_the_other_exits(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: list[set[str]] = []
    run = DeeBERT._run

    def watched(self: DeeBERT, phase: object, rows: Rows) -> None:
        before = {name: value.clone() for name, value in self.network.named_parameters()}
        run(self, phase, rows)  # type: ignore[arg-type]
        changed.append(
            {
                name.rpartition("exits.")[2].split(".")[0] if "exits." in name else "encoder"
                for name, value in self.network.named_parameters()
                if not torch.equal(value, before[name])
            }
        )

    monkeypatch.setattr(DeeBERT, "_run", watched)
    DeeBERT(checkpoints["xlm-roberta"], **SHORT).fit(ROWS)
    assert changed == [{"encoder", "2"}, {"0", "1"}]


@pytest.mark.parametrize("name", ["bert", "mpnet", "roberta"])
@pytest.mark.parametrize("method", METHODS)
def test_out_of_a_fine_tuned_classifier(
    method: type[EarlyExit], name: str, checkpoints: dict[str, Path]
) -> None:
    """Its labels keep their order, its head is every exit, and not to exit is what it answers."""
    folder = checkpoints[name]
    settings = {"fine_tuned": True, "pooling": MEAN, "learning_rate": 1e-12}
    rival = method(folder, **settings, **SHORT).fit(ROWS)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert rival.labels == list(classifier.config.id2label.values())
    inputs = inputs_of(folder, TEXTS)
    with torch.inference_mode():
        expected = classifier(**inputs).logits
        torch.testing.assert_close(rival.model(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    heads = [dict(ramp.state_dict()) for ramp in rival.network.exits]
    for own in heads[:-1]:
        for weight, last in zip(own.values(), heads[-1].values(), strict=True):
            torch.testing.assert_close(weight, last)


def test_deebert_leaves_a_fine_tuned_classifier_as_it_is(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["mpnet"]
    network = DeeBERT(folder, fine_tuned=True, learning_rate=1e-2, **SHORT).fit(ROWS).network
    before = dict(AutoModel.from_pretrained(folder).named_parameters())
    for name, value in network.encoder.named_parameters():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    moved = network.exits[0].out.weight - network.exits[-1].out.weight
    assert moved.abs().max() > 1e-3
    # Of fewer layers the last exit has yet to be trained.
    fewer = DeeBERT(checkpoints["xlm-roberta"], fine_tuned=True, layers=2)
    whole = DeeBERT(checkpoints["xlm-roberta"], fine_tuned=True)
    fewer.network = whole.network = network
    assert [len(rival.phases()) for rival in (fewer, whole)] == [2, 1]


@pytest.mark.parametrize("method", METHODS)
def test_exits_learn_at_a_rate_of_their_own(
    method: type[EarlyExit], checkpoints: dict[str, Path]
) -> None:
    def fitted(rate: float) -> dict[str, torch.Tensor]:
        rival = method(
            checkpoints["mpnet"], learning_rate=1e-4, exit_learning_rate=rate, seed=0, **SHORT
        )
        return dict(rival.fit(ROWS).network.named_parameters())

    slow, fast = fitted(1e-12), fitted(1e-2)
    before = dict(AutoModel.from_pretrained(checkpoints["mpnet"]).named_parameters())
    for found in (slow, fast):
        name = "encoder.layer.0.output.dense.weight"
        moved = (found[f"encoder.{name}"] - before[name]).abs().max()
        # As far as so many steps of Adam at 1e-4 can go, not ten times as far.
        assert 0 < moved < 2e-4 * len(ROWS) / 16
    for name in slow:
        if not name.startswith("encoder."):
            assert (fast[name] - slow[name]).abs().max() > 1e-3


def test_berxit_alternates_between_the_last_exit_and_all(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["bert"]
    network = network_of(folder)
    labels = torch.arange(len(TEXTS)) % 3
    inputs = inputs_of(folder, TEXTS)
    for step, reached in ((0, [False, True]), (1, [True, True])):
        network.zero_grad()
        _alternating(network, inputs, labels, TrainerState(global_step=step)).backward()
        assert [ramp.out.weight.grad is not None for ramp in network.exits] == reached
        assert (network.certain.weight.grad is not None) == (step == 1)


def test_certainty_of_the_right_sign(checkpoints: dict[str, Path]) -> None:
    """It learns to be high where the exit is right, and rows leave where it is high."""
    network, inputs = network_of(checkpoints["bert"]), inputs_of(checkpoints["bert"], TEXTS)
    with torch.no_grad():
        answers = network(**inputs)[0].argmax(dim=1)
    # With two layers the certainty is learnt at the first one alone.
    for right in (True, False):
        labels = answers if right else (answers + 1) % 3
        network.zero_grad()
        _alternating(network, inputs, labels, TrainerState(global_step=1)).backward()
        assert (network.certain.bias.grad.item() < 0) == right
    rival = BERxiT(checkpoints["bert"], **SHORT).fit(ROWS)
    for bias, layer in ((20.0, 1), (-20.0, 2)):
        torch.nn.init.constant_(rival.fast.certain.bias, bias)
        assert (rival.predict(ROWS, 0.5).layer == layer).all()
    logits = torch.tensor([[[3.0, 0.0], [0.0, 3.0]]])
    assert rightness(logits, torch.tensor([0, 0])).tolist() == [[1.0, 0.0]]
    values = rightness(torch.tensor([[[1.0], [1.0]]]), torch.tensor([1.0, 3.0]))
    assert values[0, 0] == 1
    assert values[0, 1] < 0.1


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=5, max_size=5), min_size=1, max_size=6),
    st.integers(1, 4),
)
def test_patience_counts_answers_in_a_row(answers: list[list[int]], patience: int) -> None:
    rival = PABEE("unused")
    rule = rival.leaves(None, patience, len(answers))  # type: ignore[arg-type]
    left: dict[int, int] = {}
    for layer in range(1, 6):
        here = np.array([row for row in range(len(answers)) if row not in left], dtype=np.int64)
        if not len(here):
            break
        logits = torch.nn.functional.one_hot(
            torch.tensor([answers[row][layer - 1] for row in here]), 3
        )
        out = rule(layer, logits, torch.empty(0), here)
        left |= {int(row): layer for row in here[out.numpy()]}
    for row, own in enumerate(answers):
        expected, agreed = None, 0
        for layer in range(2, 6):
            agreed = agreed + 1 if own[layer - 1] == own[layer - 2] else 0
            if agreed >= patience:
                expected = layer
                break
        assert left.get(row) == expected


@pytest.mark.parametrize("method", [PABEE, BERxiT])
def test_regression(method: type[EarlyExit], checkpoints: dict[str, Path]) -> None:
    numbers = Rows(TEXTS, None, [str(len(text) / 10) for text in TEXTS])
    rival = method(checkpoints["xlm-roberta"], regression=True, **SHORT).fit(numbers)
    assert rival.labels == []
    for knob in (rival.knobs[0], rival.knobs[-1]):
        assert rival.predict(numbers, knob).logits.shape == (len(TEXTS), 1)


def test_patience_of_a_regression_wants_answers_that_are_near() -> None:
    rule = PABEE("unused", regression=True, tolerance=0.5).leaves(None, 1, 2)  # type: ignore[arg-type]
    here = np.arange(2)
    assert rule(1, torch.tensor([[1.0], [1.0]]), torch.empty(0), here).tolist() == [False, False]
    assert rule(2, torch.tensor([[1.4], [1.6]]), torch.empty(0), here).tolist() == [True, False]


@given(st.lists(st.floats(-500, 500), min_size=2, max_size=6))
def test_entropy_as_scipy_has_it(logits: list[float]) -> None:
    row = torch.tensor([logits])
    expected = scipy_entropy(row[0].double().softmax(dim=0).numpy())
    assert entropy(row)[0].item() == pytest.approx(expected, abs=1e-4)


def test_weights_of_the_exits_grow_to_their_depth() -> None:
    assert exit_weights(4, 0.0).tolist() == pytest.approx([0.01, 0.01, 0.01, 1.0])
    assert exit_weights(4, 1.0).tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_losses_weighted_by_layer(checkpoints: dict[str, Path]) -> None:
    network = network_of(checkpoints["xlm-roberta"])
    inputs, labels = inputs_of(checkpoints["xlm-roberta"], TEXTS), torch.arange(len(TEXTS)) % 3
    half = TrainerState(global_step=5, max_steps=10)
    with torch.inference_mode():
        one, two, three = (
            torch.nn.functional.cross_entropy(ramp, labels) for ramp in network(**inputs)
        )
        patient = pabee._weighted(network, inputs, labels, half)
        torch.testing.assert_close(patient, (one + 2 * two + 3 * three) / 6)
        joint = shallow_deep._joint(network, inputs, labels, half)
        weights = [0.01 + (share - 0.01) / 2 for share in (1 / 3, 2 / 3)]
        torch.testing.assert_close(joint, weights[0] * one + weights[1] * two + three)
        certain = CertainNetwork(AutoModel.from_pretrained(checkpoints["xlm-roberta"]), 3).eval()
        both = _alternating(certain, inputs, labels, TrainerState(global_step=1))
        states, logits = certain.states(inputs), certain(**inputs)
        expected = exit_losses(logits, labels).sum()
        for own, ramp in zip(states[:-1], logits[:-1], strict=True):
            certainty = certain.certain(own)[:, 0].sigmoid()
            expected += (certainty - (ramp.argmax(dim=1) == labels).float()).square().mean()
        torch.testing.assert_close(both, expected)


def test_losses_of_exits() -> None:
    logits, labels = torch.randn(3, 5, 2), torch.tensor([0, 1, 1, 0, 1])
    expected = [torch.nn.functional.cross_entropy(own, labels) for own in logits]
    torch.testing.assert_close(exit_losses(logits, labels), torch.stack(expected))
    values = torch.randn(5)
    expected = [(own[:, 0] - values).square().mean() for own in logits[..., :1]]
    torch.testing.assert_close(exit_losses(logits[..., :1], values), torch.stack(expected))


def test_first_layers_are_a_checkpoint_of_their_own(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = some_layers(checkpoints["xlm-roberta"], 2, tmp_path / "first")
    inputs = inputs_of(folder, TEXTS)
    with torch.inference_mode():
        whole = AutoModel.from_pretrained(checkpoints["xlm-roberta"]).eval()
        expected = whole(**inputs, output_hidden_states=True).hidden_states[2]
        found = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
    torch.testing.assert_close(found, expected)
    fine_tune(folder, ROWS, tmp_path / "tuned", **SHORT)
    for layers in (4, 0, (2, 1), (1, 1), (3, 4)):
        with pytest.raises(InputError, match=r"cannot be kept: it has layers 1 to 3; give how"):
            some_layers(checkpoints["xlm-roberta"], layers, tmp_path / "more")
    with pytest.raises(ArtifactError, match="not a checkpoint that transformers can open"):
        some_layers(tmp_path / "nowhere", 1, tmp_path / "more")


def test_some_layers_are_those_that_are_there(tmp_path: Path) -> None:
    # Of a regression as of any other encoder.
    make_checkpoint(tmp_path / "whole", "bert", ("score",))
    fine_tune(some_layers(tmp_path / "whole", 1, tmp_path / "one"), ROWS, tmp_path / "tuned")
    # What the checkpoint lacks is left to the training, whose seed decides, or is refused.
    file = tmp_path / "whole" / "model.safetensors"

    def remove(start: str) -> None:
        kept = {name: own for name, own in load_file(file).items() if not name.startswith(start)}
        save_file(kept, file, metadata={"format": "pt"})

    remove("bert.pooler")
    some_layers(tmp_path / "whole", 1, tmp_path / "one")
    found = load_file(tmp_path / "one" / "model.safetensors")
    assert not [name for name in found if "pooler" in name]
    assert "bert.encoder.layer.0.output.dense.weight" in found
    remove("bert.encoder.layer.0")
    with pytest.raises(ArtifactError, match=r"has no fitting weights for bert\.encoder\.layer\.0"):
        some_layers(tmp_path / "whole", 1, tmp_path / "one")


def test_every_other_layer_under_the_head_of_a_classifier(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = some_layers(checkpoints["xlm-roberta"], (1, 3), tmp_path / "some")
    inputs = inputs_of(folder, TEXTS)
    whole = AutoModelForSequenceClassification.from_pretrained(checkpoints["xlm-roberta"]).eval()
    del whole.base_model.encoder.layer[1]
    with torch.inference_mode():
        found = AutoModelForSequenceClassification.from_pretrained(folder).eval()(**inputs)
        torch.testing.assert_close(found.logits, whole(**inputs).logits)
    # The first layer of ModernBERT has no norm before its attention, and others have another reach.
    two = some_layers(checkpoints["modernbert"], 2, tmp_path / "two")
    assert AutoModel.from_pretrained(two).config.num_hidden_layers == 2
    with pytest.raises(InputError, match="layer 2 of a 'modernbert' cannot take the place"):
        some_layers(checkpoints["modernbert"], (2, 3), tmp_path / "other")
    with pytest.raises(InputError, match="which weights are a layer of 'albert' is not known"):
        some_layers(checkpoints["albert"], (2,), tmp_path / "other")


def test_what_cannot_be_built_is_refused(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="the layers of 'distilbert' are not known"):
        PABEE(checkpoints["distilbert"]).fit(ROWS)
    with pytest.raises(InputError, match="9 layers are asked for; the encoder has 2"):
        PABEE(checkpoints["bert"], layers=9).fit(ROWS)
    with pytest.raises(InputError, match="the head of an 'electra' classifier is not that of"):
        PABEE(checkpoints["electra"], fine_tuned=True).fit(ROWS)
    with pytest.raises(InputError, match="the layers of 'distilbert' are not known"):
        PABEE(checkpoints["distilbert"], fine_tuned=True).fit(ROWS)
    with pytest.raises(InputError, match=r"labels \['none'\] are in the rows but not in"):
        PABEE(checkpoints["bert"], fine_tuned=True).fit(Rows(["a"], None, ["none"]))
    with pytest.raises(InputError, match="exits cannot read 'max'; give one of first, mean"):
        PABEE(checkpoints["bert"], pooling="max").fit(ROWS)
    with pytest.raises(InputError, match="a regression begins with a pre-trained encoder"):
        PABEE(checkpoints["bert"], regression=True, fine_tuned=True)
    with pytest.raises(InputError, match="DeeBERT is for classes"):
        DeeBERT(checkpoints["bert"], regression=True)
    with pytest.raises(InputError, match="not a number"):
        PABEE(checkpoints["bert"], regression=True).fit(ROWS)
