"""What all rivals have in common, and what they refuse."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForSequenceClassification

from cascadebert.errors import ArtifactError, CascadeError, InputError, TrainingError
from cascadebert.export.costs import count_flops
from cascadebert.rivals.berxit import BERxiT
from cascadebert.rivals.cost_eff import COSTEFF
from cascadebert.rivals.deebert import DeeBERT
from cascadebert.rivals.distilled import Distilled
from cascadebert.rivals.early_exit import EarlyExit
from cascadebert.rivals.first_layers import FirstLayers
from cascadebert.rivals.moebert import MoEBERT
from cascadebert.rivals.pabee import PABEE
from cascadebert.rivals.pruning import DPF
from cascadebert.rivals.rival import Rival, Static
from cascadebert.rivals.shallow_deep import ShallowDeep
from cascadebert.rows.rows import Rows
from cascadebert.training.fine_tuning import fine_tune
from conftest import CORPUS, LABELS, MAX_TOKENS, inputs_of, make_checkpoint

ROWS = Rows(CORPUS * 6, None, [LABELS[i % 3] for i in range(6 * len(CORPUS))])
TEXTS = CORPUS * 6
INPUTS = ("input_ids", "attention_mask")
SHORT = {"num_train_epochs": 1, "per_device_train_batch_size": 16}

Make = Callable[[Path], Rival]
MAKERS: dict[str, Make] = {
    "DeeBERT": lambda folder: DeeBERT(folder, exit_learning_rate=1e-3, **SHORT),
    "Shallow-Deep": lambda folder: ShallowDeep(folder, **SHORT),
    "PABEE": lambda folder: PABEE(folder, **SHORT),
    "BERxiT": lambda folder: BERxiT(folder, **SHORT),
    "COST-EFF": lambda folder: COSTEFF(folder, embedding_rank=8, prunes=1, **SHORT),
    "first layers": lambda folder: FirstLayers(folder, 1, **SHORT),
    "distilled": lambda folder: Distilled(folder, folder, layers=1, **SHORT),
    "DPF": lambda folder: DPF(folder, 0.5, every=1, **SHORT),
    "MoEBERT": lambda folder: MoEBERT(folder, experts=2, width=24, shared=16, **SHORT),
}


@pytest.fixture
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascadebert.rivals.rival.bf16_is_fast", lambda: False)


@pytest.mark.usefixtures("fp32")
@pytest.mark.parametrize("name", MAKERS)
def test_one_interface(name: str, checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["mpnet"]
    rival = MAKERS[name](folder)
    with pytest.raises(InputError, match="is not trained yet; call fit first"):
        rival.predict(TEXTS)
    with pytest.raises(InputError, match="labelled rows are needed"):
        rival.fit(TEXTS)
    assert rival.fit(ROWS) is rival
    # Those that begin with a classifier keep the order of its labels.
    taught = name in ("MoEBERT", "distilled")
    own = AutoConfig.from_pretrained(folder).id2label.values()
    assert rival.labels == (list(own) if taught else sorted(LABELS))
    slow = rival.predict(TEXTS)
    # The slowest setting is what the model for a stage answers.
    with torch.inference_mode():
        expected = rival.model(**inputs_of(folder, TEXTS)).logits.numpy()
    np.testing.assert_allclose(slow.logits, expected, rtol=1e-3, atol=1e-4)
    assert (slow.layer == rival.model.config.num_hidden_layers).all()
    # What it costs is what torch counts of a single row.
    assert rival.cost(slow).shape == (len(TEXTS),)
    with FlopCounterMode(display=False) as counter:
        rival.model(**inputs_of(folder, TEXTS[:1]))
    exits = 0 if isinstance(rival, Static) else counter.get_total_flops() * 0.1
    assert rival.cost(slow)[0] == pytest.approx(counter.get_total_flops(), abs=exits + 1)
    # Rows are answered each by itself, and none at all is no trouble.
    one = rival.predict(TEXTS[3:4])
    np.testing.assert_allclose(one.logits[0], slow.logits[3], rtol=1e-3, atol=1e-4)
    assert rival.predict([]).logits.shape == (0, 3)
    file = io.BytesIO()
    torch.save(rival, file)
    file.seek(0)
    again = torch.load(file, weights_only=False).predict(TEXTS)
    np.testing.assert_array_equal(again.logits, slow.logits)
    for knob in [*rival.knobs[::20], *rival.knobs[-1:]]:
        fast = rival.predict(TEXTS, knob)
        assert (rival.cost(fast) <= rival.cost(slow)).all()
    with pytest.raises(InputError, match="row 0: 'text' is null"):
        rival.predict([None])


@pytest.mark.parametrize(
    ("rival", "knobs"),
    [
        (DeeBERT, (-1, float("nan"))),
        (ShallowDeep, (-0.1,)),
        (PABEE, (0, -3)),
        (BERxiT, (1.5, float("nan"))),
    ],
)
def test_a_knob_that_means_nothing_is_refused(
    rival: type[EarlyExit], knobs: tuple[float, ...], checkpoints: dict[str, Path]
) -> None:
    trained = rival(checkpoints["bert"], **SHORT).fit(ROWS)
    for knob in knobs:
        with pytest.raises(InputError, match=f"knows no knob of {knob}; give"):
            trained.predict(TEXTS, knob)
        with pytest.raises(InputError, match=f"knows no knob of {knob}; give"):
            trained.replay(trained.record(TEXTS), knob)
    for speedup in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"a speed-up of {speedup} is not possible"):
            trained.knob_for(trained.record(TEXTS), speedup)
    with torch.no_grad():
        trained.fast.exits[0].out.bias[0] = float("nan")
        trained.fast.exits[1].out.bias[0] = float("nan")
    with pytest.raises(CascadeError, match="gave logits that are not finite for row 0"):
        trained.predict(TEXTS)


def test_rows_are_cut_at_what_the_encoder_reads(checkpoints: dict[str, Path]) -> None:
    rows = Rows([*CORPUS, "word " * 500], None, [LABELS[i % 3] for i in range(len(CORPUS) + 1)])
    folder = checkpoints["bert"]
    for rival, most in (
        (PABEE(folder, max_length=4096, **SHORT), 64),
        (FirstLayers(folder, 1, max_length=4096, **SHORT), 64),
        (Distilled(folder, folder, max_length=4096, **SHORT), 64),
        # A fine-tuned model's own tokenizer says how long its rows were.
        (MoEBERT(folder, experts=2, width=24, shared=16, max_length=4096, **SHORT), MAX_TOKENS),
    ):
        assert rival.fit(rows).predict(rows).tokens.max() == most


@pytest.mark.parametrize("name", ["PABEE", "first layers", "MoEBERT"])
def test_operations_of_attention_are_counted(name: str, checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["bert"]
    rival = MAKERS[name](folder).fit(ROWS)
    answers = rival.predict(TEXTS)
    rival.model.network.encoder.set_attn_implementation("eager") if name == "PABEE" else (
        rival.model.set_attn_implementation("eager")
    )
    with FlopCounterMode(display=False) as counter:
        rival.model(**inputs_of(folder, TEXTS[:1]))
    expected = counter.get_total_flops()
    assert rival.cost(answers)[0] == pytest.approx(expected, rel=0.1 if name == "PABEE" else 1e-6)
    assert count_flops(lambda example: rival.model(**example), INPUTS)[2] > 0


@pytest.mark.parametrize("name", ["PABEE", "MoEBERT"])
def test_a_training_that_failed_leaves_nothing_to_predict_with(
    name: str, checkpoints: dict[str, Path]
) -> None:
    rival = MAKERS[name](checkpoints["bert"]).fit(ROWS)
    rival._arguments["optim"] = "no such optimiser"
    with pytest.raises(ValueError, match="no such optimiser"):
        rival.fit(ROWS)
    with pytest.raises(InputError, match="is not trained yet"):
        rival.predict(TEXTS)


@pytest.mark.usefixtures("fp32")
@pytest.mark.parametrize("method", ["first", "distilled", "pruned"])
def test_a_classifier_to_begin_with_keeps_its_answers_and_its_order(
    method: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    labels = ("good", "bad", "fair")
    folder = make_checkpoint(tmp_path / "own", "mpnet", labels)
    settings = {**SHORT, "learning_rate": 1e-12, "output": tmp_path / "out"}
    makers: dict[str, Make] = {
        "first": lambda own: FirstLayers(own, 2, **settings),
        "distilled": lambda own: Distilled(own, checkpoints["bert"], **settings),
        "pruned": lambda own: DPF(own, 0, **settings),
    }
    rival = makers[method](folder).fit(ROWS)
    answers = rival.predict(TEXTS).logits
    own = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    kept = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        expected = own(**inputs_of(folder, TEXTS)).logits.numpy()
        again = kept(**inputs_of(folder, TEXTS)).logits.numpy()
    order = [labels.index(label) for label in rival.labels]
    assert order != sorted(order)
    np.testing.assert_allclose(answers, expected[:, order], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(answers, again, rtol=1e-3, atol=1e-4)


def test_a_static_rival_has_no_knob(checkpoints: dict[str, Path]) -> None:
    rival = FirstLayers(checkpoints["bert"], 1, **SHORT).fit(ROWS)
    assert list(rival.knobs) == []
    with pytest.raises(InputError, match="FirstLayers has only one setting; remove knob=2"):
        rival.predict(TEXTS, 2)


def test_what_cannot_be_trained_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = checkpoints["bert"]
    with pytest.raises(InputError, match="1 layer has no early exit"):
        PABEE(folder, layers=1).fit(ROWS)
    with pytest.raises(InputError, match="a rank of 99 is not possible"):
        COSTEFF(folder, embedding_rank=99).fit(ROWS)
    with pytest.raises(InputError, match="experts of 24 columns"):
        MoEBERT(folder, experts=0, width=24, shared=16).fit(ROWS)
    with pytest.raises(InputError, match="row 1: the label of a regression is nan"):
        PABEE(folder, regression=True).fit(Rows(CORPUS[:2], None, ["1", "nan"]))
    with pytest.raises(InputError, match="maximum length 2 is not possible: bert reads 3 to 64"):
        PABEE(folder, max_length=2).fit(ROWS)
    for length in (0, 2):
        with pytest.raises(InputError, match=f"maximum length {length} is not possible"):
            fine_tune(folder, ROWS, tmp_path / "tuned", max_length=length)
    with pytest.raises(InputError, match="maximum length 2 is not possible"):
        FirstLayers(folder, 1, max_length=2).fit(ROWS)
    with pytest.raises(InputError, match="maximum length 0 is not possible"):
        MoEBERT(folder, max_length=0).fit(ROWS)
    for tolerance in (0, -1, float("nan")):
        with pytest.raises(InputError, match=f"a tolerance of {tolerance} is not possible"):
            PABEE(folder, regression=True, tolerance=tolerance)
    with pytest.raises(InputError, match="a distillation weight of -5 and 512 rows"):
        MoEBERT(folder, distillation_weight=-5)
    with pytest.raises(InputError, match=r"weight of 5\.0 and 0 rows"):
        MoEBERT(folder, importance_rows=0)
    nowhere = tmp_path / "nowhere"
    for rival in (PABEE(nowhere), FirstLayers(nowhere, 1), DPF(nowhere, 0.5), MoEBERT(nowhere)):
        with pytest.raises(ArtifactError, match="nowhere: "):
            rival.fit(ROWS)
    with pytest.raises(InputError, match="masks every 0 steps"):
        DPF(folder, 0.5, every=0)
    with pytest.raises(InputError, match=r"a sparsity of 1\.5 is not"):
        DPF(folder, 1.5)


def test_a_loss_that_is_not_finite_stops_the_training(checkpoints: dict[str, Path]) -> None:
    rows = Rows(CORPUS, None, ["3e38"] * len(CORPUS))
    with pytest.raises(TrainingError, match="the loss is inf at step 1, in the batch with rows"):
        PABEE(checkpoints["bert"], regression=True, **SHORT).fit(rows)
