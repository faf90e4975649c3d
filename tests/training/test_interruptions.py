"""A training that is killed goes on where it was, and ends as if it had not been."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import TrainerCallback

from cascadebert import CascadeTrainer, MaxDrop, Objective, Recipe, Rows
from conftest import CORPUS, LABELS, make_checkpoint

TRAIN, VALIDATION = (
    Rows(
        [f"{CORPUS[i % len(CORPUS)]} {i}" for i in range(first, first + count)],
        None,
        [LABELS[i % 3] for i in range(count)],
    )
    for first, count in ((0, 40), (100, 21))
)
SETTINGS = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "save_steps": 3,
    "use_cpu": True,
}


class Killed(BaseException):
    """In the place of a kill, where the process is the test's own."""


class KillAt(TrainerCallback):
    """Ends the training at a step, counted over all of its parts."""

    def __init__(self, step: int) -> None:
        self._left = [step]

    def __deepcopy__(self, _memo: Any) -> KillAt:
        return self

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._left[0] -= 1
        if self._left[0] == 0:
            raise Killed


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("encoders")
    return [make_checkpoint(root / name, name) for name in ("distilbert", "mpnet")]


def train(encoders: list[Path], work: Path, *callbacks: TrainerCallback) -> CascadeTrainer:
    trainer = CascadeTrainer(
        encoders,
        train_dataset=TRAIN,
        eval_dataset=VALIDATION,
        recipe=Recipe(
            Objective("dar+distillation"),
            folds=2,
            paired_batches=True,
            stage_arguments={1: SETTINGS, 2: SETTINGS},
        ),
        target=MaxDrop(0.5),
        cost="flops",
        output_dir=work,
        callbacks=callbacks,
    )
    trainer.train()
    return trainer


def weights(work: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for name in ("1-distilbert", "2-mpnet"):
        (part,) = (p for p in (work / "parts").glob(f"{name}-*") if len(p.name) == len(name) + 17)
        yield name, load_file(part / "model.safetensors")


def test_ends_as_if_it_had_not_been_killed(encoders: list[Path], tmp_path: Path) -> None:
    whole = train(encoders, tmp_path / "whole")
    # 20 steps of the last stage, twice 10 of folds, 20 or more of the first stage.
    work, kills = tmp_path / "killed", 0
    for step in (1, 8, 9, 17, 11, 9, 2):
        try:
            again = train(encoders, work, KillAt(step))
        except Killed:
            kills += 1
    again = train(encoders, work)
    assert kills >= 5
    assert any(part["resumed"] for part in again.report["parts"])
    assert not list((work / "parts").glob("*.unfinished"))
    for (name, expected), (_, found) in zip(
        weights(tmp_path / "whole"), weights(work), strict=True
    ):
        for tensor in expected:
            np.testing.assert_array_equal(found[tensor], expected[tensor], err_msg=name)
    np.testing.assert_array_equal(again.difficulties[1].wrong, whole.difficulties[1].wrong)


def test_half_written_checkpoints_are_passed_over(encoders: list[Path], tmp_path: Path) -> None:
    work = tmp_path / "work"
    with pytest.raises(Killed):
        train(encoders, work, KillAt(8))
    (scratch,) = (work / "parts").glob("*.unfinished")
    assert (scratch / "checkpoint-6").is_dir()
    (scratch / "checkpoint-9").mkdir()
    (scratch / "checkpoint-9" / "model.safetensors").write_bytes(b"half")
    (scratch / "checkpoint-12").mkdir()
    (scratch / "checkpoint-12" / "trainer_state.json").write_text('{"epoch": 1.')
    (scratch / "result").mkdir(exist_ok=True)
    (scratch / "result" / "model.safetensors").write_bytes(b"half")
    assert train(encoders, work).report["parts"][0]["resumed"]


def test_killed_command_goes_on(encoders: list[Path], tmp_path: Path) -> None:
    for name, rows in (("train", TRAIN), ("dev", VALIDATION)):
        lines = [
            json.dumps({"text": text, "label": label})
            for text, label in zip(rows.texts, rows.labels or (), strict=True)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "cascadebert", "train", "--train", "train.jsonl"]
    command += ["--validation", "dev.jsonl", "--stage", "linear", "--stage", encoders[1]]
    command += ["--output", "out", "--epochs", "40", "--arg", "save_steps=5", "--cost", "flops"]
    command += ["--max-drop", "0.9", "--loss", "dar"]
    work = tmp_path / "out" / "training" / "parts"

    first = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    patience = time.monotonic() + 120
    while not list(work.glob("*.unfinished/checkpoint-*/trainer_state.json")):
        assert first.poll() is None
        assert time.monotonic() < patience
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "out" / "cascade.json").exists()

    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    report = json.loads((tmp_path / "out" / "report" / "training.json").read_text())
    assert report["parts"][0]["resumed"]
    # It is done: nothing is run a third time, and the weights of parts are gone.
    assert not work.exists()
    stamp = (tmp_path / "out" / "cascade.json").stat().st_mtime_ns
    third = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "done already" in third.stdout
    assert (tmp_path / "out" / "cascade.json").stat().st_mtime_ns == stamp
    other = subprocess.run(
        [*command, "--seed", "1"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert other.returncode == 2
    assert "name a new or empty folder" in other.stderr
