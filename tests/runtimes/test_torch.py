"""The device that torch runs on, whatever accelerator the installed build was made for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cascadebert import CascadeTrainer, Rows
from cascadebert.errors import CascadeError
from cascadebert.rivals.pabee import PABEE
from cascadebert.rivals.rival import FineTuned
from cascadebert.runtimes import load_runtime
from cascadebert.training.outputs import outputs_of
from conftest import CORPUS, LABELS, inputs_of, make_checkpoint

TEXTS = CORPUS * 3
OTHER_TEXTS = [f"not {text}" for text in TEXTS]
NAMES = [LABELS[i % 3] for i in range(len(TEXTS))]
ROWS, OTHERS = Rows(TEXTS, None, NAMES), Rows(OTHER_TEXTS, None, NAMES)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def cuda_build_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch answer as its CUDA build does on a machine without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        torch.accelerator,
        "current_accelerator",
        lambda check_available=False: None if check_available else torch.device("cuda"),
    )


@pytest.mark.usefixtures("cuda_build_without_gpu")
def test_a_cuda_build_without_a_gpu_runs_on_the_cpu(checkpoint: Path) -> None:
    batch = {name: tensor.numpy() for name, tensor in inputs_of(checkpoint, TEXTS).items()}
    logits = load_runtime("torch", checkpoint)(batch)()
    outputs = outputs_of(checkpoint, ROWS).logits
    assert np.isfinite(logits).all()
    assert np.isfinite(outputs).all()

    for rival in (PABEE, FineTuned):
        answers = rival(checkpoint, num_train_epochs=1).fit(ROWS).predict(ROWS)
        assert np.isfinite(answers.logits).all()


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="the accelerator does not fail")
def test_training_refuses_an_accelerator_that_fails_before_it_begins(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("mps"))
    with pytest.raises(CascadeError, match="cannot use the accelerator 'mps'"):
        CascadeTrainer(
            ["linear", checkpoint],
            train_dataset=ROWS,
            eval_dataset=OTHERS,
            output_dir=tmp_path / "out",
        ).train()
    assert not (tmp_path / "out").exists()
