"""A row's answer is its own: not that of its batch, its window, or the order of the rows."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from cascadebert import Cascade, Rows, read_rows
from cascadebert.deferral.routing import Thresholds
from cascadebert.inference import reader
from cascadebert.prediction import Prediction
from conftest import CORPUS, Make

WORDS = sorted({word for line in CORPUS for word in line.split()})
MANY = [" ".join([line, *WORDS[i : i + i % 19]]) for i in range(40) for line in CORPUS]
RUNTIMES = ("onnx", "openvino", "openvino-bf16", "openvino-int8")
# Layers as narrow as these get other kernels for few rows than for many there; see docs/speed.md.
KERNELS_BY_ROWS = bool(torch.cpu.get_capabilities().get("amx_bf16"))


@pytest.fixture(scope="module")
def folder(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("distilbert", "bert", "mpnet")
    built = Cascade.from_stages([checkpoints[name] for name in names], rows=Rows(MANY))
    return built.save_pretrained(tmp_path_factory.mktemp("scheduler") / "cascade")


@pytest.fixture(params=RUNTIMES)
def cascade(folder: Path, request: pytest.FixtureRequest) -> Cascade:
    return halved(Cascade.from_pretrained(folder, runtime=request.param), MANY)


def halved(cascade: Cascade, texts: list[str]) -> Cascade:
    """Under thresholds that half of the rows of each stage pass."""
    limits = [
        float(np.median(cascade.alone(number).predict(texts).confidence))
        for number in range(1, len(cascade.stages))
    ]
    return cascade.with_thresholds(limits)


def same(found: Prediction, expected: Prediction) -> None:
    for name in ("labels", "stage", "probabilities", "confidence", "passed"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_answers_are_bit_for_bit_the_same_whatever_the_batch(
    cascade: Cascade, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if KERNELS_BY_ROWS and "openvino-bf16" in request.node.name:
        request.applymarker(pytest.mark.xfail(reason="AMX and narrow layers", strict=False))
    expected = cascade.predict(MANY)
    assert len(set(expected.stage)) > 1
    order = np.random.default_rng(0).permutation(len(MANY))
    shuffled = cascade.predict([MANY[i] for i in order])
    back = np.argsort(order)
    np.testing.assert_array_equal(shuffled.probabilities[back], expected.probabilities)
    single = [cascade.predict([text]) for text in MANY[:60]]
    same(Prediction.joined(single), Prediction.joined([cascade.predict(MANY[:60])]))
    np.testing.assert_array_equal(
        Prediction.joined(single).probabilities, expected.probabilities[:60]
    )
    windows = Prediction.joined(list(cascade.predict_iter(MANY, window=37)))
    same(windows, expected)
    for stage in cascade.stages:
        tokens = stage.tokenize(Rows(MANY))
        logits = {}
        for budget in (1, 64, 5_000):
            logits[budget] = np.empty((len(MANY), 3), dtype=np.float32)
            for positions, values in stage.run(tokens, budget):
                logits[budget][positions] = values
        np.testing.assert_array_equal(logits[1], logits[64])
        np.testing.assert_array_equal(logits[1], logits[5_000])
    monkeypatch.setattr(reader, "_ROWS_A_PART", 50)
    same(cascade.predict(MANY), expected)


@pytest.mark.skipif("CASCADEBERT_CASCADE" not in os.environ, reason="needs a real cascade")
@pytest.mark.parametrize("runtime", ["auto", "onnx"])
def test_real_rows_in_real_batches(runtime: str) -> None:
    """CASCADEBERT_CASCADE names a cascade, CASCADEBERT_ROWS a file of a thousand rows or more."""
    rows = read_rows(os.environ["CASCADEBERT_ROWS"])
    loaded = Cascade.from_pretrained(os.environ["CASCADEBERT_CASCADE"], runtime=runtime)
    for stage in loaded.stages:
        expected = stage.run_all(rows).logits
        order = np.random.default_rng(1).permutation(len(rows))
        parts = np.array_split(order, 40)
        for part in parts:
            found = stage.run_all(rows.take(part.tolist())).logits
            np.testing.assert_array_equal(found, expected[part])


def test_stages_with_one_tokenizer_read_a_row_once(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = Cascade.from_stages([make("a")] * 2, names=["first", "second"])
    cascade = halved(built, MANY)
    expected = cascade.predict(MANY)
    first, second = cascade.stages
    assert first.tokenization_key == second.tokenization_key
    monkeypatch.setattr(second, "tokenize", lambda _: pytest.fail("read again"))
    same(cascade.predict(MANY), expected)


def test_what_goes_wrong_while_reading_ahead_comes_through(
    cascade: Cascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_ROWS_A_PART", 50)
    stage = cascade.stages[0]
    read, calls = stage.tokenize, []

    def fail_at_the_third(rows: Rows) -> object:
        calls.append(len(rows))
        if len(calls) == 3:
            raise MemoryError("no more")
        return read(rows)

    monkeypatch.setattr(stage, "tokenize", fail_at_the_third)
    with pytest.raises(MemoryError, match="no more"):
        cascade.predict(MANY)


def test_threads_share_a_cascade(cascade: Cascade) -> None:
    expected = cascade.predict(MANY)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(cascade.predict, [MANY] * 8):
            same(found, expected)


def test_rows_as_long_as_the_model_reads(make: Make) -> None:
    (stage,) = Cascade.from_stages([make("a")], max_length=17).stages
    tokens = stage.tokenize(Rows(MANY))
    assert tokens.lengths.max() == 17
    ((_, logits),) = stage.run(tokens.take(np.array([int(tokens.lengths.argmax())])))
    assert np.isfinite(logits).all()
    widest = int(tokens.lengths.argmax())
    assert tokens.batch(np.array([widest]), stage.padding, 17)["input_ids"].shape == (1, 17)


def test_rows_that_skip_a_stage_are_read_for_the_last(make: Make) -> None:
    cascade = Cascade.from_stages([make(name, seed=i) for i, name in enumerate("abc")])
    confidence = cascade.alone(1).predict(MANY).confidence
    low, high = np.quantile(confidence, [0.3, 0.7]).tolist()
    cascade.routing = Thresholds((high, 0.5), (low,))
    out = cascade.predict(MANY)
    skipped = ~out.passed[:, 1] & out.passed[:, 2]
    assert skipped.any()
    alone = cascade.alone(3).predict(MANY)
    np.testing.assert_array_equal(out.probabilities[skipped], alone.probabilities[skipped])
