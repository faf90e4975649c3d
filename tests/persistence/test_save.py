"""The folder on disk: whole, checked, and never half written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from cascadebert import Cascade
from cascadebert.disk import write_text
from cascadebert.errors import ArtifactError
from conftest import Make

TEXTS = ["a good film", "a bad one", "who knows"]


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "cascade.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_what_is_loaded_is_what_was_saved(cascade: Cascade, tmp_path: Path) -> None:
    tuned = cascade.with_thresholds((0.3, 0.123456789012345))
    again = Cascade.from_pretrained(tuned.save_pretrained(tmp_path / "again"))
    assert again.thresholds == tuned.thresholds
    assert again.labels == tuned.labels
    np.testing.assert_array_equal(again.predict_proba(TEXTS), tuned.predict_proba(TEXTS))


def test_record_has_the_keys_of_the_contract(saved: Path) -> None:
    values = json.loads((saved / "cascade.json").read_text())
    assert values.keys() >= {
        "schema_version",
        "labels",
        "stages",
        "cost",
        "score",
        "thresholds",
        "certificate",
        "versions",
        "data_fingerprint",
    }
    assert sorted(p.name for p in (saved / "stages").iterdir()) == [
        "1-distilbert",
        "2-roberta",
        "3-deberta-v2",
    ]


def test_weights_lie_on_disk_once_and_without_pickle(saved: Path) -> None:
    for stage in (saved / "stages").iterdir():
        # Each named tensor of the graph points into the one file of weights.
        assert (stage / "model.onnx").read_bytes().count(b"model.safetensors") > 5
        assert len(load_file(stage / "model.safetensors")) > 5
    assert not [p for p in saved.rglob("*") if p.suffix in (".bin", ".pt", ".pkl", ".pickle")]


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_file_is_named(copy: Path, name: str, damage: str) -> None:
    path = copy / "stages" / "2-roberta" / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"2-roberta/{name}: (damaged|missing)"):
        Cascade.from_pretrained(copy)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_unknown_schema_version(copy: Path, version: Any) -> None:
    edit(copy, lambda values: values.update(schema_version=version))
    with pytest.raises(ArtifactError, match=r"schema_version is .*, this cascadebert reads 1"):
        Cascade.from_pretrained(copy)


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "stages/../../x", "a\\..\\b", "", 7])
def test_paths_that_leave_the_folder(copy: Path, path: str) -> None:
    edit(copy, lambda values: values["stages"][0].update(folder=path))
    with pytest.raises(ArtifactError, match="leaves the folder"):
        Cascade.from_pretrained(copy)
    edit(copy, lambda values: values["stages"][0].update(folder="stages/1-distilbert"))
    edit(copy, lambda values: values["stages"][0]["files"].update({f"../{path}x": "0"}))
    with pytest.raises(ArtifactError, match="leaves the folder"):
        Cascade.from_pretrained(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("labels"),
        lambda values: values.update(stages=[]),
        lambda values: values.update(thresholds=[0.5]),
        lambda values: values["stages"][0].update(cost=None),
        lambda values: values["stages"][0].pop("inputs"),
        lambda values: values.update(thresholds=[float("nan"), 0.5]),
        lambda values: values.update(thresholds=[-3, 0.5]),
        lambda values: values.update(labels=["good", "bad"]),
        lambda values: values.update(labels=["good", "bad", "bad"]),
        lambda values: values["stages"][0].update(files={}),
        lambda values: values["stages"][0].update(max_length="x"),
        lambda values: values["stages"][0].update(inputs=["pixels"]),
        lambda values: values["stages"][0].update(truncation_side="up"),
        lambda values: values["stages"][0].update(folder="stages/deeper/1-distilbert"),
        lambda values: values["stages"][0].update(folder="distilbert"),
        lambda values: values["stages"][0]["files"].update({"config.json": 7}),
        lambda values: values.update(score="mood"),
    ],
)
def test_damaged_record(copy: Path, change: Callable[[dict[str, Any]], None]) -> None:
    edit(copy, change)
    with pytest.raises(ArtifactError, match=r"cascade.json: damaged"):
        Cascade.from_pretrained(copy)


def test_not_json_and_not_a_cascade(copy: Path, tmp_path: Path) -> None:
    (copy / "cascade.json").write_text("{ no")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        Cascade.from_pretrained(copy)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="not a cascade"):
        Cascade.from_pretrained(tmp_path / "empty")


def test_other_folders_are_not_overwritten(cascade: Cascade, tmp_path: Path) -> None:
    precious = tmp_path / "home" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(ArtifactError, match="is not a cascade"):
        cascade.save_pretrained(precious.parent)
    with pytest.raises(ArtifactError, match="is a file"):
        cascade.save_pretrained(precious)
    assert precious.read_text() == "years of work"


# Runs in a process of its own, which kills itself at the n-th call that changes the disk.
KILLED_SAVE = """
import os, pathlib, shutil, signal, sys
from cascadebert import Cascade
source, target, fatal = sys.argv[1], sys.argv[2], int(sys.argv[3])
cascade = Cascade.from_pretrained(source).with_thresholds((0.25, 0.25))
calls = 0
def deadly(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
for owner, name in [(pathlib.Path, "rename"), (pathlib.Path, "replace"), (pathlib.Path, "mkdir"),
                    (pathlib.Path, "write_text"), (shutil, "copyfile"), (shutil, "rmtree"),
                    (os, "fsync")]:
    setattr(owner, name, deadly(getattr(owner, name)))
cascade.save_pretrained(target)
print("saved")
"""


@pytest.fixture(scope="module")
def another(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("another") / "cascade"
    return Cascade.from_stages([checkpoints["bert"]]).save_pretrained(folder)


@pytest.mark.parametrize(("where", "step"), [("nothing", 4), ("itself", 1), ("another", 3)])
def test_save_killed_at_any_step_leaves_a_whole_cascade(
    saved: Path, another: Path, tmp_path: Path, where: str, step: int
) -> None:
    target = tmp_path / "target"
    old = {"nothing": None, "itself": saved, "another": another}[where]
    seen = set()
    for fatal in range(1, 200, step):
        shutil.rmtree(target, ignore_errors=True)
        if old:
            shutil.copytree(old, target)
        source = target if where == "itself" else saved
        arguments = [sys.executable, "-c", KILLED_SAVE, str(source), str(target), str(fatal)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        if target.exists():
            found = Cascade.from_pretrained(target)
            found.alone(len(found.stages)).predict(TEXTS)
            seen.add((len(found.stages), found.thresholds))
        else:
            seen.add((0, None))
        if done.returncode == 0:
            break
    before = {"nothing": (0, None), "itself": (3, (0.8, 0.8)), "another": (1, None)}[where]
    assert seen == {before, (3, (0.25, 0.25))}
    # What a killed run left behind is gone after the next good one.
    assert [p.name for p in tmp_path.iterdir()] == ["target"]
    assert sorted(p.name for p in target.iterdir()) == ["README.md", "cascade.json", "stages"]
    assert len(list((target / "stages").iterdir())) == 3


def test_saving_over_a_cascade_keeps_what_else_is_in_the_folder(
    cascade: Cascade, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    other = Cascade.from_stages([checkpoints["bert"]])
    target = other.save_pretrained(tmp_path / "target")
    (target / "report").mkdir()
    (target / "report" / "mine.txt").write_text("kept")
    link = tmp_path / "link"
    link.symlink_to(target)
    cascade.save_pretrained(link)
    assert link.is_symlink()
    assert (target / "report" / "mine.txt").read_text() == "kept"
    assert Cascade.from_pretrained(target).labels == cascade.labels
    assert sorted(p.name for p in (target / "stages").iterdir()) == [
        "1-distilbert",
        "2-roberta",
        "3-deberta-v2",
    ]


def test_stages_of_one_name_and_other_weights_replace_each_other(
    make: Make, tmp_path: Path
) -> None:
    first = Cascade.from_stages([make("model", seed=1)])
    second = Cascade.from_stages([make("model", seed=2)])
    target = tmp_path / "target"
    for cascade in (first, second, first):
        cascade.save_pretrained(target)
        np.testing.assert_array_equal(
            Cascade.from_pretrained(target).predict_proba(TEXTS), cascade.predict_proba(TEXTS)
        )
        assert len(list((target / "stages").iterdir())) == 1


def test_files_that_the_record_does_not_list_are_not_copied(copy: Path, tmp_path: Path) -> None:
    (copy / "stages" / "2-roberta" / "notes.pkl").write_bytes(b"not ours")
    (copy / "stages" / "2-roberta" / "more").mkdir()
    again = Cascade.from_pretrained(copy).save_pretrained(tmp_path / "again")
    for stage in json.loads((again / "cascade.json").read_text())["stages"]:
        folder = again / stage["folder"]
        files = {p.relative_to(folder).as_posix() for p in folder.rglob("*")}
        assert files == set(stage["files"])


def test_two_that_save_to_one_new_folder_leave_one_whole_cascade(
    cascade: Cascade, another: Path, tmp_path: Path
) -> None:
    savers = [cascade, Cascade.from_pretrained(another)]
    failed: list[BaseException] = []

    def save(saver: Cascade, target: Path, start: threading.Barrier) -> None:
        start.wait()
        try:
            saver.save_pretrained(target)
        except BaseException as error:
            failed.append(error)

    for name in ("first", "second", "third"):
        target, start = tmp_path / name / "target", threading.Barrier(len(savers))
        threads = [threading.Thread(target=save, args=(saver, target, start)) for saver in savers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(Cascade.from_pretrained(target).stages) in (1, 3)
        assert [path.name for path in target.parent.iterdir()] == ["target"]
    for error in failed:
        assert isinstance(error, ArtifactError)
        assert "at the same time" in str(error)


def test_stage_changed_after_loading_is_not_saved(copy: Path, tmp_path: Path) -> None:
    cascade = Cascade.from_pretrained(copy)
    (copy / "stages" / "2-roberta" / "config.json").write_text("{}")
    for target in (copy, tmp_path / "elsewhere"):
        with pytest.raises(ArtifactError, match=r"2-roberta: .* is missing or not"):
            cascade.save_pretrained(target)
    assert not (tmp_path / "elsewhere").exists()
    shutil.rmtree(copy)
    with pytest.raises(ArtifactError, match="is missing or not what"):
        cascade.save_pretrained(tmp_path / "elsewhere")


def test_saving_into_an_empty_folder_or_through_a_link_to_it(
    cascade: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    cascade.save_pretrained(tmp_path / "link")
    assert Cascade.from_pretrained(tmp_path / "empty").thresholds == cascade.thresholds
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    cascade.save_pretrained(".")
    assert Path("cascade.json").exists()


def test_files_are_written_through_links_and_into_pipes(tmp_path: Path) -> None:
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    write_text(Path("/dev/null"), "gone")
    assert not Path("/dev/null").is_file()


def test_relative_names(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    here = Cascade.from_pretrained(".")
    monkeypatch.chdir(copy.parent)
    again = Cascade.from_pretrained(here.save_pretrained("again"))
    np.testing.assert_array_equal(again.predict_proba(TEXTS), here.predict_proba(TEXTS))


def test_hub_cache_of_links_loads(copy: Path, tmp_path: Path) -> None:
    """The hub's cache keeps files elsewhere under their hashes and links to them."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    for i, path in enumerate(p for p in copy.rglob("*") if p.is_file()):
        link = snapshot / path.relative_to(copy)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blobs / str(i))
        link.symlink_to(os.path.relpath(blobs / str(i), link.parent))
    linked = Cascade.from_pretrained(snapshot)
    expected = Cascade.from_pretrained(copy).predict_proba(TEXTS)
    np.testing.assert_array_equal(linked.predict_proba(TEXTS), expected)
