"""Compiled models that are kept between processes, and models that cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from cascadebert.errors import ArtifactError, CascadeWarning
from cascadebert.runtimes import load_runtime

BATCH = {"input_ids": np.array([[1, 2, 3]], dtype=np.int64)}


def save_model(folder: Path, scale: float) -> None:
    """A model as it lies in a quantised stage; it adds up weights of the ids."""
    ids = ops.parameter([-1, -1], dtype=np.int64, name="input_ids")
    weights = ops.constant(scale * np.arange(400, dtype=np.float32).reshape(100, 4))
    logits = ops.reduce_sum(ops.gather(weights, ids, 0), [1])
    openvino.save_model(openvino.Model([logits], [ids]), folder / "openvino" / "model.xml")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "stage" / "openvino").mkdir(parents=True)
    save_model(tmp_path / "stage", 1)
    return tmp_path / "stage"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CASCADEBERT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def logits_of(model: Path) -> np.ndarray:
    return load_runtime("openvino-int8", model)(BATCH)()


def test_a_kept_model_is_checked_before_it_is_read(model: Path, cache: Path) -> None:
    expected = logits_of(model)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    np.testing.assert_array_equal(logits_of(model), expected)
    for place in (0, 40, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        kept.write_bytes(damaged)
        with pytest.warns(CascadeWarning, match="SHA-256 differs"):
            np.testing.assert_array_equal(logits_of(model), expected)
        assert kept.read_bytes()[32:] != damaged[32:] or place < 32
        np.testing.assert_array_equal(logits_of(model), expected)
    kept.write_bytes(b"")
    with pytest.warns(CascadeWarning, match="SHA-256 differs"):
        np.testing.assert_array_equal(logits_of(model), expected)


def test_another_model_is_not_answered_from_the_cache(model: Path, cache: Path) -> None:
    before = logits_of(model)
    save_model(model, 2)
    assert (logits_of(model) != before).any()
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("runtime", ["openvino", "onnx"])
def test_running_out_of_memory_is_not_blamed_on_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    import onnxruntime

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(openvino, "Core", fail)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(MemoryError):
        load_runtime(runtime, tmp_path)


@pytest.mark.parametrize("runtime", ["openvino", "onnx"])
def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path: Path, runtime: str) -> None:
    (tmp_path / "model.onnx").write_text("no graph")
    with pytest.raises(ArtifactError, match=r"model\.onnx: O.* cannot load it \(.+\); ") as caught:
        load_runtime(runtime, tmp_path)
    assert "Exception from" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
