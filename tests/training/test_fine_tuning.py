"""Fine-tuning gives a checkpoint that is a stage; how good it is is not a matter for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from cascadebert import Cascade, Objective, Rows, fine_tune
from cascadebert.errors import InputError
from cascadebert.training.fine_tuning import default_arguments
from cascadebert.training.outputs import Outputs
from conftest import CORPUS, Make

ROWS = Rows(CORPUS, None, ["yes", "no"] * 4)


def test_fine_tuned_checkpoint_is_a_stage(make: Make, tmp_path: Path) -> None:
    done: list[int] = []
    checkpoint = fine_tune(
        make("encoder"),
        ROWS,
        tmp_path / "tuned",
        num_train_epochs=2,
        per_device_train_batch_size=4,
        progress=done.append,
    )
    cascade = Cascade.from_stages([checkpoint])
    assert cascade.labels == ("no", "yes")
    assert set(cascade.predict(CORPUS).labels) <= {"no", "yes"}
    assert sum(done) == 16


def test_same_seed_same_weights(make: Make, tmp_path: Path) -> None:
    encoder = make("encoder")
    weights = [
        load_file(fine_tune(encoder, ROWS, tmp_path / str(i), seed=seed) / "model.safetensors")
        for i, seed in enumerate((3, 3, 4))
    ]
    for name, tensor in weights[0].items():
        np.testing.assert_array_equal(tensor, weights[1][name])
    assert any((weights[0][name] != weights[2][name]).any() for name in weights[0])


def test_training_lowers_the_loss(make: Make, tmp_path: Path) -> None:
    encoder = make("encoder", spread=0.05)
    few = fine_tune(encoder, ROWS, tmp_path / "few", num_train_epochs=1, learning_rate=1e-6)
    many = fine_tune(encoder, ROWS, tmp_path / "many", num_train_epochs=60, learning_rate=3e-3)
    truth = np.array([["no", "yes"].index(label) for label in ROWS.labels or ()])

    def loss(checkpoint: Path) -> float:
        probabilities = Cascade.from_stages([checkpoint]).predict_proba(CORPUS)
        return float(-np.log(probabilities[np.arange(len(truth)), truth]).mean())

    assert loss(many) < loss(few)


def test_labels_in_a_given_order(make: Make, tmp_path: Path) -> None:
    checkpoint = fine_tune(make("encoder"), ROWS, tmp_path / "tuned", labels=["yes", "no", "maybe"])
    assert Cascade.from_stages([checkpoint]).labels == ("yes", "no", "maybe")


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (Rows(CORPUS), None, "labelled rows are needed"),
        (Rows(["a"], None, ["x"]), None, "two labels or more"),
        (ROWS, ["yes", "maybe"], r"labels \['no'\] are in the rows"),
    ],
)
def test_unusable_rows(
    make: Make, tmp_path: Path, rows: Rows, labels: list[str] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fine_tune(make("encoder"), rows, tmp_path / "tuned", labels=labels)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"name": "dar"}, "needs the difficulty of each row"),
        ({"name": "distillation", "hidden_weight": 1.0}, "needs the last stage's hidden states"),
    ],
)
def test_a_loss_without_what_it_needs(tmp_path: Path, loss: dict[str, Any], message: str) -> None:
    teacher = Outputs(np.zeros((8, 2), dtype=np.float32))
    with pytest.raises(InputError, match=message):
        fine_tune("none", ROWS, tmp_path / "out", objective=Objective(**loss), teacher=teacher)


def test_other_rows_are_not_taken_for_a_training_to_go_on_with(make: Make, tmp_path: Path) -> None:
    args = default_arguments(tmp_path / "args", num_train_epochs=2, learning_rate=1e-3)
    turned = Rows(CORPUS, None, ["no", "yes"] * 4)
    made = [
        load_file(fine_tune(make(name), rows, tmp_path / name, args=args) / "model.safetensors")
        for name, rows in (("first", ROWS), ("second", turned))
    ]
    assert any((made[0][name] != made[1][name]).any() for name in made[0])


def test_arguments_of_the_trainer_take_effect(make: Make, tmp_path: Path) -> None:
    encoder = make("encoder")
    plain, smooth, ordered = (
        load_file(
            fine_tune(
                encoder,
                ROWS,
                tmp_path / str(i),
                num_train_epochs=4,
                learning_rate=1e-3,
                **settings,
            )
            / "model.safetensors"
        )
        for i, settings in enumerate(
            (
                {},
                {"label_smoothing_factor": 0.5},
                {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 2},
            )
        )
    )
    for other in (smooth, ordered):
        assert any((plain[name] != other[name]).any() for name in plain)


def test_accumulated_batches_are_one_batch(make: Make, tmp_path: Path) -> None:
    encoder = make("encoder")
    settings = {"train_sampling_strategy": "sequential", "optim": "sgd", "learning_rate": 0.1}
    once, twice = (
        load_file(
            fine_tune(
                encoder,
                ROWS,
                tmp_path / str(size),
                per_device_train_batch_size=size,
                gradient_accumulation_steps=8 // size,
                bf16=False,
                **settings,
            )
            / "model.safetensors"
        )
        for size in (8, 4)
    )
    for name in once:
        np.testing.assert_allclose(once[name], twice[name], atol=1e-5)
