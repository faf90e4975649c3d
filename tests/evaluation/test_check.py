"""A certificate that no longer fits, in each of the ways that it can."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cascadebert import Cascade, MinAccuracy, MinAgreement, Rows, Speedup
from cascadebert.errors import CascadeWarning, InputError
from cascadebert.evaluation.check import check_cascade, check_rows
from conftest import CORPUS, Run, with_record

WORDS = sorted({word for line in CORPUS for word in line.split()})


def texts(seed: int, count: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, size=random.integers(3, 15))) for _ in range(count)]


@pytest.fixture(scope="module")
def certified(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cascade = Cascade.from_pretrained(saved)
    cascade.tune(Rows(texts(0, 400)), MinAgreement(0.3), 0.9, cost="flops")
    return cascade.save_pretrained(tmp_path_factory.mktemp("certified") / "cascade")


@pytest.fixture
def folder(certified: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(certified, tmp_path / "cascade"))


def failed(cascade: Cascade) -> list[str]:
    return [finding.what for finding in check_cascade(cascade) if not finding.passed]


def test_untouched(certified: Path) -> None:
    assert failed(Cascade.from_pretrained(certified)) == []


def test_moved_and_saved_again(certified: Path, tmp_path: Path) -> None:
    cascade = Cascade.from_pretrained(certified)
    again = Cascade.from_pretrained(cascade.save_pretrained(tmp_path / "elsewhere"))
    assert failed(again) == []


def test_nothing_promised(certified: Path) -> None:
    cascade = Cascade.from_pretrained(certified)
    rows = Rows(texts(1, 50))
    labelled = Rows(rows.texts, None, cascade.alone(3).predict(rows).labels.tolist())
    cascade.tune(labelled, Speedup(1.1), None, cost="flops")
    assert failed(cascade) == ["certificate"]
    cascade.thresholds = (0.5, 0.5)
    assert failed(cascade) == ["certificate"]
    with pytest.raises(InputError, match="no certificate to test"):
        check_rows(cascade, rows)


def test_other_versions(certified: Path) -> None:
    cascade = Cascade.from_pretrained(certified)
    certificate = cascade.certificate
    assert certificate is not None
    older = {**cascade.versions, "onnxruntime": "1.0"}
    cascade = with_record(cascade, certificate=dataclasses.replace(certificate, versions=older))
    assert failed(cascade) == ["onnxruntime"]
    with pytest.warns(CascadeWarning, match="runtime 'onnx' and this is 'torch', which may round"):
        other = Cascade.from_pretrained(certified, runtime="torch")
    assert failed(other) == ["onnxruntime", "runtime", "torch"]


def test_another_processor(certified: Path, tmp_path: Path) -> None:
    cascade = Cascade.from_pretrained(certified)
    certificate = cascade.certificate
    assert certificate is not None
    elsewhere = {**cascade.versions, "processor": "a mainframe"}
    moved = with_record(cascade, certificate=dataclasses.replace(certificate, versions=elsewhere))
    assert failed(moved) == ["processor"]
    with pytest.warns(CascadeWarning, match="processor 'a mainframe' and this is"):
        Cascade.from_pretrained(moved.save_pretrained(tmp_path / "moved"))


def test_a_certificate_from_before_processors_were_recorded(certified: Path) -> None:
    cascade = Cascade.from_pretrained(certified)
    certificate = cascade.certificate
    assert certificate is not None
    older = {name: v for name, v in cascade.versions.items() if name != "processor"}
    assert not failed(
        with_record(cascade, certificate=dataclasses.replace(certificate, versions=older))
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("thresholds", [0.1, 0.1]), ("abstain_threshold", 0.5), ("score", "margin")],
)
def test_a_record_that_was_edited(run: Run, folder: Path, key: str, value: object) -> None:
    path = folder / "cascade.json"
    values = json.loads(path.read_text())
    values[key] = value
    path.write_text(json.dumps(values))
    done = run("check", folder)
    assert done.code == 1
    assert "FAILED artefact" in done.out


def test_a_file_that_was_exchanged(run: Run, folder: Path, tmp_path: Path) -> None:
    path = next((folder / "stages").iterdir()) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    report = tmp_path / "check.json"
    done = run("check", folder, "--json", report)
    assert done.code == 1
    assert "FAILED files" in done.out
    assert json.loads(report.read_text())["passed"] is False


def test_fresh_rows_alike_and_otherwise(certified: Path) -> None:
    cascade = Cascade.from_pretrained(certified)
    fine = check_rows(cascade, Rows(texts(2, 300)), level=0.01)
    assert [finding.passed for finding in fine.findings()] == [True, True]
    assert fine.promises[0].observed is not None
    assert fine.promises[0].observed > 0.2
    other = check_rows(cascade, Rows([f"zzz qqq {i}" for i in range(300)]), level=0.01)
    assert [finding.passed for finding in other.findings()][-1] is False
    with pytest.raises(InputError, match="rows that the certificate was made from"):
        check_rows(cascade, Rows(texts(0, 400)))


def test_a_broken_promise_is_found(certified: Path) -> None:
    """Labels that are the first stage's in the held-out rows and others' in fresh ones."""
    cascade = Cascade.from_pretrained(certified)
    rows = texts(3, 600)
    says = cascade.alone(1).predict(rows).labels.tolist()
    other = dict(zip(cascade.labels, cascade.labels[1:] + cascade.labels[:1], strict=True))
    found = cascade.tune(Rows(rows[:300], None, says[:300]), MinAccuracy(0.9), cost="flops")
    assert found.exit_fractions == (1, 0, 0)
    fresh = Rows(rows[300:], None, [other[label] for label in says[300:]])
    findings = check_rows(cascade, fresh).findings()
    assert [finding.passed for finding in findings] == [False, True]
    assert "the accuracy is 0.0000 in a sample of 300 rows: broken" in findings[0].detail


def test_groups_count_once(saved: Path) -> None:
    cascade = Cascade.from_pretrained(saved)
    rows = texts(5, 200)
    grouped = Rows(rows, group=[str(i // 2) for i in range(200)])
    cascade.tune(grouped, MinAgreement(0.3), 0.9, cost="flops")
    with pytest.raises(InputError, match="these rows have no groups"):
        check_rows(cascade, Rows(texts(6, 100)))
    fresh = Rows(texts(6, 100) * 3, group=[str(i % 100) for i in range(300)])
    assert check_rows(cascade, fresh).rows == 100
    with pytest.raises(InputError, match="a seed of -1"):
        check_rows(cascade, fresh, seed=-1)


def test_command(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run("check", folder).code == 0
    rows = tmp_path / "fresh.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(4, 300)))
    report = tmp_path / "check.json"
    done = run("check", folder, "--data", rows, "--level", 0.002, "--json", report)
    values = json.loads(report.read_text())
    assert done.code == 0, done.out
    assert values["passed"] is True
    assert values["fresh"]["rows"] == 300
    assert {finding["what"] for finding in values["findings"]} >= {"artefact", "onnxruntime"}
