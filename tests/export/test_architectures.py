"""Nine architectures in one cascade, each against transformers' own code."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cascadebert import Cascade, Rows
from cascadebert.deferral.confidence import logit, max_probability_log_odds
from conftest import ARCHITECTURES, CORPUS, LABELS

TEXTS = [*CORPUS, "good", "an unseen wörd 🎬 here", "a much longer row than any other " * 8]
PAIRS = [*CORPUS[::-1], "no", "yes", "short"]
NAMES = list(ARCHITECTURES)


@pytest.fixture(scope="module")
def folder(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = Cascade.from_stages([checkpoints[name] for name in NAMES])
    return built.save_pretrained(tmp_path_factory.mktemp("nine") / "cascade")


@pytest.fixture(scope="module", params=["onnx", "openvino", "torch"])
def nine(folder: Path, request: pytest.FixtureRequest) -> Cascade:
    return Cascade.from_pretrained(folder, runtime=request.param)


def transformers_logits(checkpoint: Path, rows: Rows, labels: tuple[str, ...]) -> np.ndarray:
    """All rows in one padded batch, as transformers' documentation does it."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32)
    batch = tokenizer(
        list(rows.texts),
        None if rows.pairs is None else list(rows.pairs),
        padding=True,
        truncation=True,
        return_tensors="pt",
    )
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        batch.pop("token_type_ids", None)
    with torch.inference_mode():
        logits = model.eval()(**batch).logits.numpy()
    order = [model.config.label2id[label] for label in labels]
    return logits[:, order]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [Rows(TEXTS), Rows(TEXTS, PAIRS)], ids=["single", "pair"])
def test_logits_are_those_of_transformers(
    name: str, rows: Rows, nine: Cascade, checkpoints: dict[str, Path]
) -> None:
    expected = transformers_logits(checkpoints[name], rows, nine.labels)
    logits = nine.stages[NAMES.index(name)].run_all(rows).logits
    # Rounding grows with the numbers that are rounded.
    np.testing.assert_allclose(
        logits, expected, atol=1e-4 * max(1.0, float(np.abs(expected).max()))
    )
    assert np.ptp(expected, axis=0).max() > 1e-2, "the rows should not all look alike"


def test_token_types_are_fed_to_the_models_that_have_them(nine: Cascade) -> None:
    fed = {s.name for s in nine.stages if "token_type_ids" in s.record.inputs}
    assert fed == {"bert", "electra", "albert"}


@pytest.mark.parametrize("name", NAMES)
def test_stage_folder_is_an_ordinary_checkpoint(
    name: str, folder: Path, checkpoints: dict[str, Path]
) -> None:
    place = folder / "stages" / f"{NAMES.index(name) + 1}-{name}"
    rows = Rows(TEXTS)
    np.testing.assert_allclose(
        transformers_logits(place, rows, LABELS),
        transformers_logits(checkpoints[name], rows, LABELS),
        atol=1e-6,
    )


def test_mixed_cascade_routes_as_a_replay_of_its_stages_says(nine: Cascade) -> None:
    rows = Rows(TEXTS)
    logits = [stage.run_all(rows).logits for stage in nine.stages]
    scores = np.stack([max_probability_log_odds(values) for values in logits[:-1]])
    # Between two neighbouring scores, so that rounding moves no row.
    middle = np.sort(scores, axis=1)[:, 6:8].mean(axis=1)
    thresholds = 1 / (1 + np.exp(-middle))
    out = nine.with_thresholds(thresholds).predict(rows)
    above = np.vstack([scores > logit(thresholds)[:, None], np.ones((1, len(rows)), dtype=bool)])
    stage = above.argmax(axis=0) + 1
    np.testing.assert_array_equal(out.stage, stage)
    answers = np.stack([values.argmax(axis=1) for values in logits])
    expected = np.array(nine.labels)[answers[stage - 1, np.arange(len(rows))]]
    np.testing.assert_array_equal(out.labels, expected)
    assert len(set(out.stage)) > 2


def test_costs_grow_with_the_row(nine: Cascade) -> None:
    for stage in nine.stages:
        cost = stage.record.cost
        assert cost.row_flops(20) > cost.row_flops(10) > 0
        assert cost.layers == ARCHITECTURES[stage.name][2]
