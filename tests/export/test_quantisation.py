"""Stages in int8, and which runtime is taken for them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cascadebert import Cascade, MinAgreement, Rows
from cascadebert.disk import INT8_FILES
from cascadebert.errors import ArtifactError, CascadeWarning, InputError
from cascadebert.export import quantisation
from cascadebert.export.quantisation import MOST_LOGIT_ERROR, logit_error
from cascadebert.runtimes import RUNTIMES
from conftest import CORPUS, Make

WORDS = sorted({word for line in CORPUS for word in line.split()})
ROWS = Rows([f"{line} {word}" for line in CORPUS for word in WORDS[::4]])
INT8 = "openvino-int8"


@pytest.fixture(scope="module")
def quantised(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = Cascade.from_stages([checkpoints["distilbert"], checkpoints["mpnet"]], rows=ROWS)
    return built.save_pretrained(tmp_path_factory.mktemp("int8") / "cascade")


def test_the_fastest_runtime_that_keeps_to_fp32_is_recorded(quantised: Path) -> None:
    for stage in Cascade.from_pretrained(quantised).stages:
        trials = {trial.runtime: trial for trial in stage.record.trials}
        assert set(trials) == {"onnx", "openvino", "openvino-bf16", INT8}
        assert trials["onnx"].logit_error == 0
        assert trials["onnx"].agreement == 1
        alike = [t for t in trials.values() if t.logit_error <= MOST_LOGIT_ERROR]
        assert stage.runtime == max(alike, key=lambda t: t.rows_per_second).runtime
        assert set(INT8_FILES) <= set(stage.record.files)


def test_int8_stays_near_fp32_and_is_smaller(quantised: Path) -> None:
    fp32 = Cascade.from_pretrained(quantised, runtime="onnx")
    int8 = Cascade.from_pretrained(quantised, runtime=INT8)
    rows = Rows(ROWS.texts[::3])
    for exact, rounded in zip(fp32.stages, int8.stages, strict=True):
        expected, found = exact.run_all(rows).logits, rounded.run_all(rows).logits
        assert 0 < logit_error(found, expected) < 0.7
        weights = (exact.folder / "model.safetensors").stat().st_size
        assert (exact.folder / INT8_FILES[1]).stat().st_size < weights / 2


def test_logit_error_is_relative_to_the_spread() -> None:
    reference = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert logit_error(reference, reference) == 0
    assert logit_error(reference + 0.1, reference) == pytest.approx(0.1)
    assert logit_error(10 * reference + 1, 10 * reference) == pytest.approx(0.1)
    assert logit_error(np.ones((2, 2)), np.zeros((2, 2))) == np.inf
    assert logit_error(np.zeros((2, 2)), np.zeros((2, 2))) == 0


def test_the_choice_can_be_overridden(quantised: Path) -> None:
    for name in RUNTIMES:
        cascade = Cascade.from_pretrained(quantised, runtime=name)
        assert {stage.runtime for stage in cascade.stages} == {name}
        assert cascade.versions["runtime"] == name
        assert cascade.alone(2).predict(CORPUS).labels.shape == (len(CORPUS),)
    with pytest.raises(InputError, match="no runtime is called 'fast'; there are auto, onnx"):
        Cascade.from_pretrained(quantised, runtime="fast")


def test_int8_of_a_stage_that_was_not_quantised(saved: Path) -> None:
    with pytest.raises(ArtifactError, match="not been quantised; build the cascade again with"):
        Cascade.from_pretrained(saved, runtime=INT8)


def test_tuning_fixes_the_runtime(quantised: Path, tmp_path: Path) -> None:
    other = Cascade.from_pretrained(quantised, runtime="torch")
    other.tune(Rows([f"{text}, you" for text in ROWS.texts]), MinAgreement(0.3), 0.9, cost="flops")
    saved = other.save_pretrained(tmp_path / "cascade")
    again = Cascade.from_pretrained(saved)
    assert {stage.runtime for stage in again.stages} == {"torch"}
    with pytest.warns(CascadeWarning, match="runtime 'torch' and this is 'onnx'"):
        Cascade.from_pretrained(saved, runtime="onnx")


def test_rows_that_quantised_a_stage_do_not_certify_it(quantised: Path) -> None:
    cascade = Cascade.from_pretrained(quantised)
    with pytest.raises(InputError, match="quantised on these very rows"):
        cascade.tune(ROWS, MinAgreement(0.3), 0.9)
    assert cascade.tune(ROWS, MinAgreement(0.3), None)


def test_a_runtime_that_fails_is_left_out(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such operation\nand more")

    monkeypatch.setattr(quantisation, "_write_int8", fail)
    with pytest.warns(CascadeWarning, match=r"does not run on openvino-int8.*no such operation"):
        cascade = Cascade.from_stages([make("a")], rows=ROWS)
    (record,) = [stage.record for stage in cascade.stages]
    assert {trial.runtime for trial in record.trials} == {"onnx", "openvino", "openvino-bf16"}
    assert not set(INT8_FILES) & set(record.files)


def test_int8_files_that_the_record_does_not_name_are_not_run(
    saved: Path, quantised: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved, tmp_path / "cascade")
    for stage in (tmp_path / "cascade" / "stages").iterdir():
        shutil.copytree(quantised / "stages" / "1-distilbert" / "openvino", stage / "openvino")
    with pytest.raises(ArtifactError, match="has not been quantised"):
        Cascade.from_pretrained(tmp_path / "cascade", runtime=INT8)


def test_few_rows_leave_fp32_and_say_so(make: Make) -> None:
    with pytest.warns(CascadeWarning, match="takes 100 rows to quantise it, and 8 were given"):
        cascade = Cascade.from_stages([make("a")], rows=Rows(CORPUS))
    assert cascade.stages[0].runtime == "onnx"


def test_a_missing_engine_is_not_passed_over_in_silence(quantised: Path, tmp_path: Path) -> None:
    forced = tmp_path / "forced"
    shutil.copytree(quantised, forced)
    record = json.loads((forced / "cascade.json").read_text())
    for stage in record["stages"]:
        stage["runtime"] = INT8
    (forced / "cascade.json").write_text(json.dumps(record))
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "openvino":
            raise ModuleNotFoundError("blocked", name=name)
sys.meta_path.insert(0, Blocker())
from cascadebert import Cascade
cascade = Cascade.from_pretrained(sys.argv[1])
print(cascade.versions["runtime"], cascade.alone(2).predict(["a film"]).labels)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(forced)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("onnx")
    assert "was measured best with openvino-" in done.stderr
    assert "it runs in fp32 on ONNX Runtime" in done.stderr
    assert 'pip install "cascadebert[openvino]"' in done.stderr


def logits_of(cascade: Cascade) -> np.ndarray:
    return np.stack([run.logits for run in cascade.run_stages(Rows(CORPUS))])


def test_compiled_models_are_kept_where_that_is_asked_for(
    quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits_of(Cascade.from_pretrained(quantised, runtime=INT8))
    kept = tmp_path / "kept"
    monkeypatch.setenv("CASCADEBERT_CACHE", str(kept))
    for _ in range(2):
        loaded = Cascade.from_pretrained(quantised, runtime=INT8, preload=True)
        np.testing.assert_array_equal(logits_of(loaded), expected)
        blobs = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
        assert len(blobs) == 2
    assert {path: path.stat().st_mtime_ns for path in kept.iterdir()} == blobs
    for path in blobs:
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(CascadeWarning, match="made again|SHA-256 differs"):
        loaded = Cascade.from_pretrained(quantised, runtime=INT8, preload=True)
    np.testing.assert_array_equal(logits_of(loaded), expected)
    assert all(path.stat().st_size > 1000 for path in blobs)


def test_a_cache_that_cannot_be_written_to_stops_nothing(
    quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CASCADEBERT_CACHE", str(tmp_path / "file"))
    with pytest.warns(CascadeWarning, match="set CASCADEBERT_CACHE to a folder to write to"):
        loaded = Cascade.from_pretrained(quantised, runtime=INT8, preload=True)
    assert np.isfinite(logits_of(loaded)).all()
