"""A pruned model and one with experts, as the middle stage of a cascade."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cascadebert import Cascade, MinAgreement, Rows
from cascadebert.errors import LabelMismatchError
from cascadebert.rivals.moebert import with_experts
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
    way: str, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cascadebert.rivals.stage.bf16_is_fast", lambda: False)
    folder = checkpoints["mpnet"]
    cascade = Cascade.from_stages([checkpoints["distilbert"], folder, folder])
    first, second, last = cascade.stages
    model = smaller(folder, way)
    middle = as_stage(second, model, way)
    cascade.stages = (first, middle, last)
    found = middle.run_all(ROWS).logits
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(ROWS.texts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**tokens).logits.numpy()
    own = [second.record.labels.index(label) for label in cascade.labels]
    np.testing.assert_allclose(found, expected[:, own], rtol=1e-3, atol=1e-4)
    assert middle.record.cost.flops[1] < second.record.cost.flops[1]
    cascade.tune(ROWS, MinAgreement(0.5), None)
    cascade.thresholds = (0.5, 0.5)
    out = cascade.predict(ROWS)
    assert set(out.labels) <= set(LABELS)
    assert cascade.alone(2).predict(ROWS).stage.tolist() == [2] * len(ROWS)


def test_a_model_with_other_labels_is_refused(checkpoints: dict[str, Path]) -> None:
    stage = Cascade.from_stages([checkpoints["mpnet"]]).stages[0]
    other = AutoModelForSequenceClassification.from_pretrained(checkpoints["roberta"])
    with pytest.raises(LabelMismatchError, match="must be the same, in one order"):
        as_stage(stage, other, "other")
