"""Trainings of whole cascades, on tiny encoders: what they leave, refuse and reuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import StratifiedKFold

from cascadebert import (
    Cascade,
    CascadeClassifier,
    CascadeTrainer,
    MaxDrop,
    Objective,
    Recipe,
    Rows,
    Speedup,
)
from cascadebert.errors import ArtifactError, CascadeWarning, InputError, TrainingError
from cascadebert.training.difficulty import Difficulty
from cascadebert.training.fine_tuning import default_arguments
from conftest import CORPUS, LABELS, Make, make_checkpoint

Trained = Callable[..., CascadeTrainer]


def rows(count: int, first: int = 0) -> Rows:
    """Rows that differ, of three classes."""
    texts = [f"{CORPUS[i % len(CORPUS)]} {i}" for i in range(first, first + count)]
    return Rows(texts, None, [LABELS[i % 3] for i in range(count)])


TRAIN, VALIDATION = rows(48), rows(24, first=100)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    made = {name: make_checkpoint(root / name, name) for name in ("distilbert", "bert", "mpnet")}
    # As wide as the last stage, so that hidden states can be matched.
    made["modernbert"] = make_checkpoint(root / "modernbert", "modernbert")
    made["deberta-v2"] = make_checkpoint(root / "deberta-v2", "deberta-v2")
    return made


@pytest.fixture
def trainer(encoders: dict[str, Path], tmp_path: Path) -> Trained:
    """Make a trainer of the named stages; its folder is "work" below the test's own."""

    def make(*names: str, **settings: Any) -> CascadeTrainer:
        stages = [encoders.get(name, name) for name in names]
        values = {
            "train_dataset": TRAIN,
            "eval_dataset": VALIDATION,
            "output_dir": tmp_path / "work",
            "cost": "flops",
            "target": MaxDrop(0.5),
        }
        return CascadeTrainer(stages, **values | settings)

    return make


def quick(name: str = "cross_entropy", stages: int = 2, **settings: Any) -> Recipe:
    """A recipe of one epoch a stage."""
    more = settings.pop("recipe", {})
    one_epoch = {number: {"num_train_epochs": 1} for number in range(1, stages + 1)}
    return Recipe(Objective(name, **settings), folds=2, stage_arguments=one_epoch, **more)


@pytest.mark.parametrize("name", ["distillation+dar", "gatekeeper"])
def test_every_loss_leaves_a_tuned_cascade(trainer: Trained, tmp_path: Path, name: str) -> None:
    told: list[tuple[str, float]] = []
    job = trainer(
        "linear",
        "distilbert",
        "mpnet",
        recipe=quick(name, stages=3),
        progress=lambda what, share: told.append((what, share)),
    )
    cascade = job.train()
    assert cascade.labels == tuple(sorted(LABELS))
    assert [stage.name for stage in cascade.stages] == ["linear", "distilbert", "mpnet"]
    assert cascade.thresholds is not None
    assert all(stage.record.calibration for stage in cascade.stages)
    again = Cascade.from_pretrained(cascade.save_pretrained(tmp_path / "cascade"))
    assert len(again.predict(CORPUS)) == len(CORPUS)
    shares = [share for _, share in told]
    assert np.diff(shares).min() > -1e-9
    assert shares[0] == 0
    assert shares[-1] == 1
    log = (tmp_path / "work" / "log.txt").read_text(encoding="utf-8")
    assert "stage 2 distilbert: training" in log
    assert json.loads(json.dumps(job.report))["tuning"]["rows"] == 24


def test_difficulty_of_every_stage_but_the_last(trainer: Trained, tmp_path: Path) -> None:
    recipe = quick("dar", 3, recipe={"difficulty_seeds": 2, "difficulty": "majority"})
    job = trainer("linear", "distilbert", "mpnet", recipe=recipe)
    job.train()
    assert set(job.difficulties) == {1, 2}
    for number, name in ((1, "linear"), (2, "distilbert")):
        difficulty = job.difficulties[number]
        assert difficulty.wrong.shape == (48, 2)
        (folder,) = (tmp_path / "work" / "difficulty").glob(f"{name}-*")
        kept = Difficulty.load(folder)
        np.testing.assert_array_equal(kept.values, difficulty.values)
        assert kept.fingerprint == difficulty.fingerprint
    # Of the linear stage it can be had again by hand.
    from cascadebert.training.linear import fit_linear, linear_outputs

    labels = np.array(TRAIN.labels)
    for column in range(2):
        folds = StratifiedKFold(2, shuffle=True, random_state=column)
        for seen, unseen in folds.split(labels, [job.labels.index(x) for x in labels]):
            fitted = fit_linear(TRAIN.take(seen), tmp_path / "by-hand")
            found = linear_outputs(fitted, TRAIN.take(unseen)).logits.argmax(axis=1)
            wrong = np.array(job.labels)[found] != labels[unseen]
            np.testing.assert_array_equal(job.difficulties[1].wrong[unseen, column], wrong)


def test_finished_parts_are_found_again(trainer: Trained, tmp_path: Path) -> None:
    def parts() -> dict[str, float]:
        made = (tmp_path / "work" / "parts").glob("*/part.json")
        return {path.parent.name: path.stat().st_mtime_ns for path in made}

    trainer("distilbert", "mpnet", recipe=quick("dar")).train()
    first = parts()
    assert len(first) == 4
    trainer("distilbert", "mpnet", recipe=quick("dar")).train()
    assert parts() == first
    # Another lambda asks for one more training; the last stage and the folds are the same.
    trainer("distilbert", "mpnet", recipe=quick("dar", dar_weight=0.1)).train()
    now = parts()
    assert len(now) == 5
    assert {name: now[name] for name in first} == first


def test_what_a_training_depends_on(trainer: Trained, tmp_path: Path) -> None:
    from transformers import EarlyStoppingCallback

    def of(**settings: Any) -> str:
        values = {"recipe": quick("dar")} | settings
        return trainer("distilbert", "mpnet", **values).fingerprint()

    assert of() == of() == of(output_dir=tmp_path / "elsewhere")
    # What "dar" does not read does not count.
    assert of() == of(recipe=quick("dar", gatekeeper_alpha=0.1))
    changed = [
        of(),
        of(recipe=quick("dar", dar_margin=0.1)),
        of(recipe=quick("dar", recipe={"difficulty": "all"})),
        of(recipe=quick("dar", recipe={"calibration": "none"})),
        of(recipe=quick("dar", recipe={"max_length": 16})),
        of(recipe=quick("distillation")),
        of(train_dataset=rows(45)),
        of(eval_dataset=rows(21, first=200)),
        of(target=MaxDrop(0.1)),
        of(callbacks=[EarlyStoppingCallback(1)]),
        of(callbacks=[EarlyStoppingCallback(2)]),
    ]
    assert len(set(changed)) == len(changed)


def test_parts_are_found_in_another_cascade(trainer: Trained, tmp_path: Path) -> None:
    trainer("distilbert", "mpnet", recipe=quick()).train()
    before = {path.name for path in (tmp_path / "work" / "parts").iterdir()}
    longer = {2: {"num_train_epochs": 1}, 3: {"num_train_epochs": 1}}
    plain = Recipe(Objective("cross_entropy"), stage_arguments=longer)
    trainer("linear", "distilbert", "mpnet", recipe=plain).train()
    after = {path.name for path in (tmp_path / "work" / "parts").iterdir()}
    assert before < after
    assert len(after) == 3


def test_hidden_states_where_widths_allow(trainer: Trained) -> None:
    recipe = quick("distillation", hidden_weight=1.0)
    trainer("deberta-v2", "modernbert", recipe=recipe).train()
    with pytest.raises(InputError, match="16 wide, those of the last stage 32"):
        trainer("distilbert", "mpnet", recipe=recipe)


def test_arguments_of_the_trainer_are_put_to_use(trainer: Trained, tmp_path: Path) -> None:
    from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

    class Seen(TrainerCallback):
        rates: list[tuple[float, int]] = []  # noqa: RUF012

        def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
            self.rates.append((args.learning_rate, args.gradient_accumulation_steps))

    args = TrainingArguments(
        output_dir=str(tmp_path / "own"),
        num_train_epochs=2,
        learning_rate=1e-3,
        gradient_accumulation_steps=2,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        logging_strategy="epoch",
        use_cpu=True,
        report_to="none",
    )
    job = trainer(
        "distilbert",
        "mpnet",
        args=args,
        output_dir=None,
        recipe=Recipe(stage_arguments={2: {"learning_rate": 5e-4}}),
        callbacks=[Seen(), EarlyStoppingCallback(1)],
    )
    job.train()
    assert Seen.rates == [(5e-4, 2), (1e-3, 2)]
    assert args.output_dir == str(tmp_path / "own")
    assert (tmp_path / "own" / "log.txt").exists()


def test_a_loss_that_is_not_finite_names_its_step_and_rows(trainer: Trained) -> None:
    recipe = Recipe(stage_arguments={2: {"learning_rate": 1e30, "max_grad_norm": 0.0}})
    with pytest.raises(TrainingError, match=r"at step \d+, in the batch with rows \d+, "):
        trainer("distilbert", "mpnet", recipe=recipe).train()


CLASHING = Rows(TRAIN.texts, None, ["x"] * 48)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_dataset": CLASHING}, r"two labels or more, the rows have only \['x'\]"),
        ({"train_dataset": None}, "give train_dataset and eval_dataset"),
        ({"train_dataset": Rows(TRAIN.texts)}, "labelled rows are needed"),
        (
            {"train_dataset": Rows([*TRAIN.texts, " "], None, [*(TRAIN.labels or ()), "bad"])},
            "row 48: 'text' is empty or only white space",
        ),
        (
            {"train_dataset": Rows([*TRAIN.texts, "t"], None, [*(TRAIN.labels or ()), "rare"])},
            "class 'rare' has 1 rows, fewer than the 2 folds",
        ),
        (
            {"eval_dataset": Rows(["a", "b"], None, ["good", "great"])},
            "1 validation rows have labels that no training row has: 'great'",
        ),
        (
            {"eval_dataset": Rows(["a", "b"], ["c", "d"], ["good", "bad"])},
            "only one of training and validation rows has second texts",
        ),
        ({"cost": "dollars"}, "unknown cost 'dollars'"),
        (
            {"recipe": Recipe(stage_arguments={3: {"learning_rate": 1.0}})},
            "for stage 3; give stages 1 to 2",
        ),
        (
            {"recipe": Recipe(stage_arguments={1: {"learnig_rate": 1.0}})},
            "names as in transformers.TrainingArguments",
        ),
        (
            {"recipe": Recipe(stage_arguments={1: {"eval_strategy": "sometimes"}})},
            "stage 1 distilbert: TrainingArguments rejects",
        ),
        (
            {"recipe": Recipe(Objective(class_weights={"good": 1.0}))},
            r"class_weights names \['good'\], the labels are",
        ),
    ],
)
def test_what_is_refused_before_anything_is_trained(
    trainer: Trained, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        trainer("distilbert", "mpnet", **{"recipe": quick("dar")} | settings)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": "abc"}, "learning_rate is 'abc'; give a number above 0"),
        ({"max_grad_norm": "x"}, "max_grad_norm is 'x'; give 0 or more"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0; give 1 or more"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size is 0"),
        ({"seed": -1}, "seed is -1; give 0 or more"),
        ({"train_sampling_strategy": "batch_rebalance"}, "give one of group_by_length, random"),
        ({"lr_scheduler_type": "nonsense"}, "TrainingArguments rejects"),
        ({"report_to": "comet_ml"}, "TrainingArguments rejects"),
        ({"per_device_train_batch_size": 1}, "a batch of 1 row has no pair"),
    ],
)
def test_arguments_that_are_refused(
    trainer: Trained, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    recipe = Recipe(Objective("dar"), folds=2, paired_batches=True, stage_arguments={2: arguments})
    args = default_arguments(tmp_path / "args")
    for given in (None, args):
        with pytest.raises(InputError, match=message):
            trainer("linear", "distilbert", recipe=recipe, args=given)


def test_a_launcher_of_many_processes_is_refused(
    trainer: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="trained by one process"):
        trainer("distilbert", "mpnet")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"paired_batches": True}, "paired_batches needs the loss 'dar', not 'distillation'"),
        ({"max_length": 2}, "max_length is 2"),
        ({"difficulty": "mean"}, "unknown difficulty 'mean'"),
        ({"calibration": "platt"}, "no calibration is called 'platt'"),
        ({"folds": 1}, "1 folds and 1 seeds"),
    ],
)
def test_recipes_that_there_are_not(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe(**settings)


def test_numpy_numbers_in_a_recipe(trainer: Trained) -> None:
    def of(number: Callable[[float], Any], whole: Callable[[int], Any]) -> str:
        recipe = Recipe(
            Objective("dar", dar_weight=number(0.25)),
            folds=whole(2),
            difficulty_seeds=whole(1),
            paired_batches=np.bool_(True),
            max_length=whole(16),
            stage_arguments={whole(1): {"learning_rate": number(0.125), "seed": whole(3)}},
        )
        return trainer("distilbert", "mpnet", recipe=recipe).fingerprint()

    assert of(np.float32, np.int64) == of(float, int)
    with pytest.raises(InputError, match=r"folds is 2\.5; give a whole number"):
        Recipe(folds=2.5)  # type: ignore[arg-type]


def test_answers_to_other_rows_are_refused(trainer: Trained, tmp_path: Path) -> None:
    trainer("linear", "distilbert", recipe=quick("dar")).train()
    (answers,) = (tmp_path / "work" / "parts").glob("linear-fold-0-0-*/answers.npy")
    np.save(answers, np.load(answers)[:, ::-1])
    again = trainer("linear", "distilbert", recipe=quick("dar"))
    with pytest.raises(ArtifactError, match="holds answers to other rows; remove this folder"):
        again.train()


def test_stages_that_are_refused(trainer: Trained, make: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stage 1 'mpnet' costs .* from small to large"):
        trainer("mpnet", "distilbert")
    with pytest.raises(InputError, match="each once"):
        trainer("bert", "bert")
    with pytest.raises(InputError, match="stage 2 'linear' only"):
        trainer("distilbert", "linear")
    with pytest.raises(InputError, match="at least one stage"):
        trainer()
    with pytest.raises(ArtifactError, match="no-such-checkpoint"):
        trainer(str(tmp_path / "no-such-checkpoint"), "mpnet")
    mute = make("mute", architecture="distilbert")
    for path in mute.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ArtifactError, match="mute"):
        trainer(str(mute), "mpnet")


def test_encoders_that_are_refused(
    trainer: Trained, encoders: dict[str, Path], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(encoders["distilbert"], tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    save_file(
        {f"foo.{name}": tensor for name, tensor in tensors.items()},
        other / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ArtifactError, match=r"has no fitting weights for .* would be random"):
        trainer(str(other), "mpnet")
    mute = Path(shutil.copytree(encoders["distilbert"], tmp_path / "mute"))
    settings = json.loads((mute / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (mute / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ArtifactError, match="no padding token"):
        trainer(str(mute), "mpnet")


def test_a_multi_label_checkpoint_becomes_a_classifier(
    trainer: Trained, encoders: dict[str, Path], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(encoders["distilbert"], tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    config["problem_type"] = "multi_label_classification"
    (other / "config.json").write_text(json.dumps(config))
    assert trainer("linear", str(other), recipe=quick()).train().labels == tuple(sorted(LABELS))


def test_rows_in_both_splits_are_counted(trainer: Trained) -> None:
    both = Rows(
        [*VALIDATION.texts, *TRAIN.texts[:3]],
        None,
        [*(VALIDATION.labels or ()), *(TRAIN.labels or ())[:3]],
    )
    with pytest.warns(CascadeWarning, match="3 of 27 validation rows are training rows too"):
        trainer("distilbert", "mpnet", eval_dataset=both)


def test_pairs(trainer: Trained) -> None:
    def paired(single: Rows) -> Rows:
        return Rows(single.texts, single.texts[::-1], single.labels)

    cascade = trainer(
        "linear",
        "distilbert",
        "mpnet",
        recipe=quick("dar", stages=3),
        train_dataset=paired(TRAIN),
        eval_dataset=paired(VALIDATION),
    ).train()
    assert len(cascade.predict(CORPUS, CORPUS[::-1])) == len(CORPUS)


def test_classifier_with_scikit_learns_manners(encoders: dict[str, Path]) -> None:
    model = CascadeClassifier(
        stages=["linear", encoders["distilbert"]], recipe=quick(), target=Speedup(1.0)
    )
    again = clone(model)
    with pytest.raises(NotFittedError):
        again.predict(CORPUS)
    assert again.get_params()["recipe"] == model.recipe
    labels = np.array([10, 9, 100])[np.arange(48) % 3]
    assert model.fit(np.array(TRAIN.texts), labels) is model
    assert model.classes_.tolist() == [9, 10, 100]
    answers, probabilities = model.predict(CORPUS), model.predict_proba(CORPUS)
    assert answers.dtype == labels.dtype
    assert probabilities.shape == (len(CORPUS), 3)
    np.testing.assert_array_equal(model.classes_[probabilities.argmax(axis=1)], answers)
    names = model.cascade_.predict(CORPUS).labels
    np.testing.assert_array_equal(answers.astype(str), names)
    assert 0 <= model.score(TRAIN.texts, labels) <= 1
    with pytest.raises(InputError, match=r"labels have the shape \(2,\) for 48 rows"):
        model.fit(TRAIN.texts, [1, 2])
    with pytest.raises(InputError, match="cannot be held out with rows of every class"):
        clone(model).fit(TRAIN.texts[:4], ["a", "a", "a", "b"])
