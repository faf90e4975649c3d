"""A pruned model and one with experts, as the middle stage of a cascade."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cascadebert import Cascade, MinAgreement, Rows
from cascadebert.errors import ArtifactError, InputError, LabelMismatchError
from cascadebert.rivals.cost_eff import COSTEFF
from cascadebert.rivals.moebert import with_experts
from cascadebert.rivals.pabee import PABEE
from cascadebert.rivals.pruning import Pruning, shrink
from cascadebert.rivals.stage import as_stage
from conftest import CORPUS, LABELS

ROWS = Rows([f"{line} {word}" for line in CORPUS for word in CORPUS[0].split()])


def smaller(folder: Path, way: str) -> torch.nn.Module:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    if way == "pruned":
        pruning = Pruning(model.base_model, 0.5, structured=True)
        pruning.update(1.0)
        pruning.finish()
        shrink(model.base_model)
    else:
        importance = [torch.arange(64.0)] * model.config.num_hidden_layers
        model.mpnet = with_experts(model.base_model, importance, experts=2, width=32, shared=16)
    return model.eval()


@pytest.mark.parametrize("way", ["pruned", "experts"])
def test_a_rival_in_the_middle(
    way: str, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cascadebert.rivals.rival.bf16_is_fast", lambda: False)
    folder = checkpoints["mpnet"]
    cascade = Cascade.from_stages([checkpoints["distilbert"], folder, folder])
    first, second, last = cascade.stages
    model = smaller(folder, way)
    middle = as_stage(second, model, way)
    cascade = cascade.with_stages([first, middle, last])
    found = middle.run_all(ROWS).logits
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(ROWS.texts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**tokens).logits.numpy()
    own = [second.record.labels.index(label) for label in cascade.labels]
    np.testing.assert_allclose(found, expected[:, own], rtol=1e-3, atol=1e-4)
    assert middle.record.cost.flops[1] < second.record.cost.flops[1]
    assert middle.runtime == "torch"
    assert cascade.thresholds is None
    assert cascade.fingerprint != cascade.with_stages([first, second, last]).fingerprint
    cascade.tune(ROWS, MinAgreement(0.5), None)
    cascade.thresholds = (0.5, 0.5)
    out = cascade.predict(ROWS)
    assert set(out.labels) <= set(LABELS)
    assert cascade.alone(2).predict(ROWS).stage.tolist() == [2] * len(ROWS)
    with pytest.raises(ArtifactError, match=f"stage '{way}' has a model in memory"):
        cascade.save_pretrained(tmp_path / "cascade")
    assert not (tmp_path / "cascade").exists()


def test_a_slender_network_with_exits_in_the_middle(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["mpnet"]
    labels = [LABELS[i % 3] for i in range(len(ROWS))]
    rival = COSTEFF(folder, embedding_rank=8, prunes=1, num_train_epochs=1)
    rival.fit(Rows([f"{text} indeed" for text in ROWS.texts], None, labels))
    cascade = Cascade.from_stages([checkpoints["distilbert"], folder, folder])
    first, second, last = cascade.stages
    middle = as_stage(second, rival.model, "slender")
    assert middle.record.cost.flops[1] < second.record.cost.flops[1]
    cascade = cascade.with_stages([first, middle, last])
    cascade.tune(ROWS, MinAgreement(0.5), None)
    out = cascade.alone(2).predict(ROWS)
    found = rival.predict(ROWS).logits.argmax(axis=1)
    assert (np.array(rival.labels)[found] == out.labels).mean() > 0.9


def test_labels_are_read_in_the_order_of_the_model(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["mpnet"]
    (stage,) = Cascade.from_stages([folder]).stages
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    turned = copy.deepcopy(model)
    turned.config.id2label = {2 - i: name for i, name in model.config.id2label.items()}
    for own in (turned.classifier.out_proj.weight, turned.classifier.out_proj.bias):
        own.data = own.data.flip(0)
    expected = as_stage(stage, model, "as it is").run_all(ROWS).logits
    found = as_stage(stage, turned, "turned").run_all(ROWS).logits
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    turned.config.id2label = {0: "other", 1: "names", 2: "here"}
    with pytest.raises(LabelMismatchError, match="train the model on the labels of the stage"):
        as_stage(stage, turned, "other")


def test_a_model_that_is_not_for_the_stage_is_refused(checkpoints: dict[str, Path]) -> None:
    labels = ("0", "1")
    numbers = Rows(ROWS.texts, None, [str(len(text) % 2) for text in ROWS.texts])
    (stage,) = Cascade.from_stages([checkpoints["mpnet"]]).stages
    stage.record = dataclasses.replace(stage.record, labels=labels)
    regression = PABEE(checkpoints["mpnet"], regression=True, num_train_epochs=1).fit(numbers)
    with pytest.raises(LabelMismatchError, match="train the model on the labels of the stage"):
        as_stage(stage, regression.model, "regression")
    (stage,) = Cascade.from_stages([checkpoints["roberta"]]).stages
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["mpnet"])
    with pytest.raises(ArtifactError, match=r"has the id \d+, the model only \d+ embeddings; give"):
        as_stage(stage, model, "of other words")


def test_a_stage_of_another_cascade_is_refused(checkpoints: dict[str, Path]) -> None:
    cascade = Cascade.from_stages([checkpoints["mpnet"]])
    (other,) = cascade.stages
    turned = copy.copy(other)
    turned._columns = turned._columns[::-1]
    with pytest.raises(LabelMismatchError, match="take a stage of this cascade"):
        cascade.with_stages([turned])
    with pytest.raises(InputError, match="a cascade needs at least one stage"):
        cascade.with_stages([])


def test_rows_that_a_rival_was_trained_on_certify_nothing(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["mpnet"]
    rows = Rows(ROWS.texts, None, [LABELS[i % 3] for i in range(len(ROWS))])
    rival = PABEE(folder, num_train_epochs=1).fit(rows)
    cascade = Cascade.from_stages([folder, folder])
    first, last = cascade.stages
    cascade = cascade.with_stages([as_stage(first, rival.model, "rival"), last])
    with pytest.raises(InputError, match="trained on"):
        cascade.tune(rows, MinAgreement(0.5))
