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
from transformers import EarlyStoppingCallback, TrainerCallback

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

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._left[0] -= 1
        if self._left[0] == 0:
            raise Killed


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("encoders")
    return [make_checkpoint(root / name, name) for name in ("distilbert", "mpnet")]


def train(
    encoders: list[Path], work: Path, *callbacks: TrainerCallback, **settings: Any
) -> CascadeTrainer:
    trainer = CascadeTrainer(
        encoders,
        train_dataset=TRAIN,
        eval_dataset=VALIDATION,
        recipe=Recipe(
            Objective("dar+distillation"),
            folds=2,
            paired_batches=True,
            stage_arguments=dict.fromkeys((1, 2), SETTINGS | settings),
        ),
        target=MaxDrop(0.5),
        cost="flops",
        output_dir=work,
        callbacks=callbacks,
    )
    trainer.train()
    return trainer


def weights(work: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for name in ("distilbert", "mpnet"):
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


def test_early_stopping_counts_on(encoders: list[Path], tmp_path: Path) -> None:
    settings = {
        "num_train_epochs": 12,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "learning_rate": 1e-9,
    }
    # Nothing gets better, so that each training ends after its second epoch.
    train(encoders, tmp_path / "whole", EarlyStoppingCallback(1), **settings)
    with pytest.raises(Killed):
        train(encoders, tmp_path / "killed", EarlyStoppingCallback(1), KillAt(15), **settings)
    train(encoders, tmp_path / "killed", EarlyStoppingCallback(1), **settings)
    for (_, expected), (_, found) in zip(
        weights(tmp_path / "whole"), weights(tmp_path / "killed"), strict=True
    ):
        for tensor in expected:
            np.testing.assert_array_equal(found[tensor], expected[tensor])


def test_leftovers_of_a_kill_do_not_stand_in_the_way(encoders: list[Path], tmp_path: Path) -> None:
    work = tmp_path / "work"
    with pytest.raises(Killed):
        train(encoders, work, KillAt(8))
    (scratch,) = (work / "parts").glob("*.unfinished")
    (scratch / "runs").mkdir()
    (scratch / "runs" / "events").write_text("new")
    copied = work / "runs" / scratch.name.removesuffix(".unfinished")
    copied.mkdir(parents=True)
    (copied / "events").write_text("old")
    trainer = train(encoders, work)
    assert (copied / "events").read_text() == "new"
    out = tmp_path / "out"
    (out / "training").mkdir(parents=True)
    (out / ".cascade.json.123.tmp").write_text("{")
    cascade = trainer.train()
    cascade.save_pretrained(out)
    assert not list(out.glob(".*"))


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
    assert not list(work.rglob("*.safetensors"))
    stamp = (tmp_path / "out" / "cascade.json").stat().st_mtime_ns
    third = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "already done" in third.stdout
    assert (tmp_path / "out" / "cascade.json").stat().st_mtime_ns == stamp
    other = subprocess.run(
        [*command, "--seed", "1"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert other.returncode == 2
    assert "name a new or empty folder" in other.stderr
