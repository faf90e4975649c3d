"""``cascadebert train``: one line for what cannot be trained, before anything is."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from cascadebert.cli.train import DarScore, LossOptions, RecipeOptions, TrainerOptions, train
from cascadebert.training.recipe import Recipe
from conftest import CORPUS, LABELS, Run, make_checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two encoders and rows; tests write only below folders of their own."""
    folder = tmp_path_factory.mktemp("train")
    make_checkpoint(folder / "small", "distilbert")
    make_checkpoint(folder / "large", "mpnet")
    for name, first in (("train", 0), ("dev", 100), ("test", 200)):
        rows = [{"text": f"{CORPUS[i % 8]} {first + i}", "label": LABELS[i % 3]} for i in range(30)]
        write(folder / f"{name}.jsonl", rows)
    return folder


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(place: Path, **other: object) -> list[object]:
    values: dict[str, object] = {
        "train": place / "train.jsonl",
        "validation": place / "dev.jsonl",
    }
    return [part for name, value in (values | other).items() for part in (f"--{name}", value)]


def test_trains_measures_and_reports(run: Run, place: Path, tmp_path: Path) -> None:
    done = run(
        "train", *options(place, test=place / "test.jsonl", output=tmp_path / "out"),
        "--stage", "linear", "--stage", place / "small", "--epochs", "1", "--json",
        tmp_path / "result.json", "--work", tmp_path / "work", "--calibration", "vector",
        "--arg", "gradient_accumulation_steps=2", "--class-weights", "bad=1,fair=2,good=3",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "last stage alone" in done.out
    report = json.loads((tmp_path / "result.json").read_text())
    assert report == json.loads((tmp_path / "out" / "report" / "training.json").read_text())
    assert report["test"]["rows"] == 30
    assert report["loss"]["class_weights"] == {"bad": 1.0, "fair": 2.0, "good": 3.0}
    assert [c["kind"] for c in report["calibration"]] == ["vector", "vector"]
    page = (tmp_path / "out" / "report" / "training.md").read_text()
    assert "stage 2 small: training" in page
    assert (tmp_path / "out" / "report" / "frontier.png").stat().st_size > 10_000
    assert run("predict", tmp_path / "out", "--input", place / "test.jsonl", "--output",
               tmp_path / "answers.csv").code == 0  # fmt: skip
    # Measured on other rows, nothing is trained again.
    again = run(
        "train", *options(place, test=place / "dev.jsonl", output=tmp_path / "out"),
        "--stage", "linear", "--stage", place / "small", "--epochs", "1", "--json",
        tmp_path / "again.json", "--work", tmp_path / "work", "--calibration", "vector",
        "--arg", "gradient_accumulation_steps=2", "--class-weights", "bad=1,fair=2,good=3",
    )  # fmt: skip
    assert "already done" in again.out
    other = json.loads((tmp_path / "again.json").read_text())
    assert other["test_rows"] != report["test_rows"]
    assert other["parts"] == report["parts"]
    # The parts stay where they were asked for.
    assert len(list((tmp_path / "work" / "parts").iterdir())) == 2
    assert not (tmp_path / "out" / "training").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--loss", "dar+focal"], "unknown loss 'focal'"),
        (["--epochs", "1,2,3"], "--epochs '1,2,3': 3 numbers for 2 stages"),
        (["--epochs", "0"], "num_train_epochs is 0.0; give a number above 0"),
        (["--learning-rate", "fast"], "--learning-rate 'fast': give one number"),
        (["--batch-size", "-1"], "per_device_train_batch_size is -1"),
        (["--arg", "bf16"], "--arg 'bf16' is invalid; give name=value"),
        (["--arg", "no_such=1"], "names as in transformers.TrainingArguments"),
        (["--class-weights", "good=1,bad"], "or name=weight"),
        (["--class-weights", "good=1"], "class_weights names"),
        (["--max-length", "2"], "max_length is 2"),
        (["--folds", "1"], "1 folds and 1 seeds"),
        (["--cost", "euros"], "unknown cost 'euros'"),
        (["--hidden-weight", "1", "--loss", "distillation"], "are 16 wide, those of the last"),
        (["--json", "/no/such/folder/x.json"], "does not exist"),
    ],
)
def test_settings_that_cannot_be(
    run: Run,
    place: Path,
    tmp_path: Path,
    more: list[str],
    message: str,
) -> None:
    output = tmp_path / "out"
    stages = ["--stage", place / "small", "--stage", place / "large"]
    done = run("train", *options(place, output=output), *stages, *more)
    assert done.code == 2
    assert message in done.error
    assert not output.exists()


@pytest.mark.parametrize(
    ("which", "row", "message"),
    [
        ("train", {"text": "", "label": "good"}, "is empty"),
        ("validation", {"text": "x", "label": "great"}, "labels that no training row has: 'great'"),
        ("test", {"text": "x", "label": "great"}, "'great'"),
        ("train", {"text": "x"}, "label"),
    ],
)
def test_rows_that_cannot_be(
    run: Run,
    place: Path,
    tmp_path: Path,
    which: str,
    row: dict[str, str],
    message: str,
) -> None:
    name = {"validation": "dev"}.get(which, which)
    rows = [json.loads(line) for line in (place / f"{name}.jsonl").read_text().splitlines()]
    bad = write(tmp_path / "bad.jsonl", [*rows, row])
    output = tmp_path / "out"
    done = run("train", *options(place, **{"output": output, which: bad}), "--stage",
               place / "small", "--stage", place / "large")  # fmt: skip
    assert done.code == 2
    assert message in done.error
    assert not output.exists()


def test_an_output_folder_with_something_else_in_it(
    run: Run,
    place: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    stages = ["--stage", place / "small", "--stage", place / "large"]
    done = run("train", *options(place, output=tmp_path / "out"), *stages)
    assert done.code == 2
    assert "has other files in it" in done.error
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_defaults_are_those_of_the_recipe() -> None:
    recipe = Recipe()
    assert LossOptions().objective() == recipe.objective
    for name, value in asdict(RecipeOptions()).items():
        assert value == getattr(recipe, name)
    assert inspect.signature(train).parameters["loss"].default == recipe.objective.name


def test_options_reach_the_objective() -> None:
    options = LossOptions(
        loss="dar+gatekeeper",
        dar_weight=0.1,
        dar_margin=0.2,
        dar_score=DarScore.log_odds,
        gatekeeper_alpha=0.3,
        label_smoothing=0.4,
        class_weights="no=1,yes=2.5",
    )
    settings = options.objective().settings()
    assert settings == {
        "name": "dar+gatekeeper",
        "label_smoothing": 0.4,
        "class_weights": {"no": 1.0, "yes": 2.5},
        "dar_weight": 0.1,
        "dar_margin": 0.2,
        "dar_score": "log_odds",
        "gatekeeper_alpha": 0.3,
        "gatekeeper_start": 0.5,
    }
    assert type(settings["dar_score"]) is str


def test_arguments_of_each_stage() -> None:
    options = TrainerOptions(epochs="4,2", batch_size="8", seed=3, arg=["bf16=false", "optim=sgd"])
    common = {"seed": 3, "bf16": False, "optim": "sgd", "per_device_train_batch_size": 8}
    assert options.stage_arguments(2) == {
        1: common | {"num_train_epochs": 4.0},
        2: common | {"num_train_epochs": 2.0},
    }
    assert options.callbacks() == []
    stopping = TrainerOptions(early_stopping=2)
    assert stopping.stage_arguments(1)[1]["load_best_model_at_end"]
    assert [callback.early_stopping_patience for callback in stopping.callbacks()] == [2]
