"""One state per operation: threads, forks, pickles, copies, and tuning that fails."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascadebert import (
    Cascade,
    CascadeClassifier,
    MaxDrop,
    MaxErrorWhenAnswering,
    MinAgreement,
    Prediction,
    Rows,
    Speedup,
)
from cascadebert.deferral.confidence import DEFAULT_SCORE, SCORE_NAMES
from cascadebert.errors import (
    ArtifactError,
    CascadeError,
    InputError,
    MissingDependencyError,
)
from cascadebert.machine import THREADS_VARIABLE
from conftest import CORPUS, Make

ROWS = [f"{text} {i}" for i in range(10) for text in CORPUS]


def same(one: Prediction, other: Prediction) -> None:
    for name, values in vars(one).items():
        np.testing.assert_array_equal(values, getattr(other, name), name)


@pytest.fixture(scope="module")
def tuned(saved: Path) -> Cascade:
    cascade = Cascade.from_pretrained(saved)
    cascade.tune(Rows(ROWS), MinAgreement(0.5), confidence=0.5, cost="flops")
    return cascade


# Threads


def test_threads_get_their_own_rows_under_one_routing_each(saved: Path) -> None:
    cascade = Cascade.from_pretrained(saved)
    routings = [(0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    own = [ROWS[i::8] for i in range(8)]
    expected = [[cascade.with_thresholds(t).predict(rows) for t in routings] for rows in own]
    done = threading.Event()

    def keep_setting() -> int:
        count = 0
        while not done.is_set():
            cascade.thresholds = routings[count % 3]
            count += 1
        return count

    def answer(i: int) -> list[Prediction]:
        # Windows of a few rows: all of one call are under one routing.
        parts = [[*cascade.predict_iter(own[i], window=3)] for _ in range(15)]
        return [Prediction.joined(part) for part in parts]

    cascade.thresholds = routings[0]
    with ThreadPoolExecutor(9) as pool:
        setting = pool.submit(keep_setting)
        answers = list(pool.map(answer, range(8)))
        done.set()
        assert setting.result() > 0
    for found, wanted in zip(answers, expected, strict=True):
        for out in found:
            assert len({*out.stage.tolist()}) == 1
            same(out, wanted[int(out.stage[0]) - 1])


def test_thresholds_set_from_progress_take_effect_with_the_next_call(saved: Path) -> None:
    cascade = Cascade.from_pretrained(saved)
    cascade.thresholds = (0.0, 1.0)

    def change(_: int) -> None:
        cascade.thresholds = (1.0, 1.0)

    assert set(cascade.predict(ROWS, progress=change).stage) == {1}
    assert set(cascade.predict(ROWS).stage) == {3}


# Tuning


@pytest.mark.parametrize(
    "target", [MaxDrop(np.float32(0.4)), Speedup(np.int64(1)), MinAgreement(np.float64(0.5))]
)
def test_numpy_numbers_in_targets(saved: Path, tmp_path: Path, target: Any) -> None:
    cascade = Cascade.from_pretrained(saved)
    labels = cascade.predict(ROWS).labels.tolist()
    certificate = cascade.tune(Rows(ROWS, None, labels), target, np.float32(0.5), cost="flops")
    assert certificate.artefact_fingerprint == cascade.fingerprint
    again = Cascade.from_pretrained(cascade.save_pretrained(tmp_path / "again"))
    assert again.certificate == certificate


@pytest.mark.parametrize(
    "settings",
    [
        {"target": Speedup(1e5), "confidence": None},
        {"target": MinAgreement(0.5), "progress": lambda _: 1 / 0},
        {"target": MinAgreement(0.5), "seed": -1},
        {"target": MinAgreement(0.5), "score": "none"},
    ],
)
def test_tuning_that_fails_changes_nothing(saved: Path, settings: dict[str, Any]) -> None:
    cascade = Cascade.from_pretrained(saved)
    before = (cascade.record, cascade.stages, cascade.policy)
    with pytest.raises((CascadeError, ZeroDivisionError)):
        cascade.tune(Rows(ROWS), cost="flops", **settings)
    assert (cascade.record, cascade.stages, cascade.policy) == before


# Pickles and copies


def through_pickle(cascade: Cascade) -> Cascade:
    return pickle.loads(pickle.dumps(cascade))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, through_pickle])
def test_copies_answer_alike_and_change_alone(
    tuned: Cascade, copied: Callable[[Cascade], Cascade]
) -> None:
    other = copied(tuned)
    same(other.predict(ROWS), tuned.predict(ROWS))
    assert other.certificate == tuned.certificate
    assert other.fingerprint == tuned.fingerprint
    before = tuned.thresholds
    other.thresholds = (0.123, 0.5)
    assert tuned.thresholds == before


@pytest.mark.parametrize("runtime", ["onnx", "openvino", "torch"])
def test_each_engine_pickles_into_another_process(saved: Path, runtime: str) -> None:
    cascade = Cascade.from_pretrained(saved, runtime=runtime, threads=1)
    expected = cascade.predict(ROWS[:8])
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawning) as pool:
        found = pool.submit(cascade.predict, ROWS[:8]).result()
    same(found, expected)


def test_a_cascade_that_was_never_saved_pickles_with_its_files(make: Make) -> None:
    with Cascade.from_stages([make("small"), make("large", seed=1)]) as cascade:
        cascade.thresholds = (0.5,)
        expected = cascade.predict(ROWS)
        pickled = pickle.dumps(cascade)
    other = pickle.loads(pickled)
    same(other.predict(ROWS), expected)
    again = pickle.loads(pickle.dumps(other))
    same(again.predict(ROWS), expected)


def test_a_pickle_whose_folder_is_gone_says_so(saved: Path, tmp_path: Path) -> None:
    cascade = Cascade.from_pretrained(
        Cascade.from_pretrained(saved).save_pretrained(tmp_path / "here")
    )
    pickled = pickle.dumps(cascade)
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(ArtifactError, match="missing"):
        pickle.loads(pickled)


@pytest.mark.parametrize("score", SCORE_NAMES)
def test_policies_pickle_with_each_score(saved: Path, score: str) -> None:
    cascade = Cascade.from_pretrained(saved)
    labels = cascade.alone(1).predict(ROWS).labels.tolist()
    rows = Rows(ROWS, None, labels)
    cascade.tune(rows, MaxErrorWhenAnswering(0.6), confidence=None, cost="flops", score=score)
    policy, again = cascade.policy, pickle.loads(pickle.dumps(cascade.policy))
    logits = [run.logits for run in cascade.run_stages(rows)]
    assert policy is not None
    for one, other in zip(
        policy.apply(logits, logits=True), again.apply(logits, logits=True), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert copy.deepcopy(policy).certificate == policy.certificate


def test_a_classifier_pickles() -> None:
    texts = [f"{words} {i}" for i in range(30) for words in ("win free cash", "lunch at home")]
    fitted = CascadeClassifier(stages=["linear"]).fit(texts, ["spam", "ham"] * 30)
    again = pickle.loads(pickle.dumps(fitted))
    assert again.predict(texts).tolist() == fitted.predict(texts).tolist()
    assert copy.deepcopy(fitted).predict(texts).tolist() == again.predict(texts).tolist()


def test_errors_pickle_and_are_what_callers_catch() -> None:
    missing = MissingDependencyError("torch", "training", "train")
    again = pickle.loads(pickle.dumps(missing))
    assert str(again) == str(missing)
    assert isinstance(again, ImportError)
    for error, builtin in ((InputError("a"), ValueError), (ArtifactError("b"), OSError)):
        assert isinstance(pickle.loads(pickle.dumps(error)), builtin)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


# Forks

FORK = """
import multiprocessing, sys, warnings
from cascadebert import Cascade
warnings.simplefilter("ignore")
cascade = Cascade.from_pretrained(sys.argv[1], runtime=sys.argv[2])
texts = ["a quiet film", "what a waste", "fast and funny"] * 5
before = cascade.predict(texts)

def child(queue):
    queue.put(cascade.predict(texts))

context = multiprocessing.get_context("fork")
queue = context.Queue()
process = context.Process(target=child, args=(queue,))
process.start()
after = queue.get(timeout=90)
process.join(timeout=30)
assert process.exitcode == 0, process.exitcode
assert (after.labels == before.labels).all()
assert abs(after.probabilities - before.probabilities).max() < 1e-5
print("answered")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks of threaded processes elsewhere")
@pytest.mark.parametrize("runtime", ["onnx", "openvino", "torch"])
def test_a_cascade_that_has_answered_answers_in_a_forked_child(saved: Path, runtime: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(saved), runtime],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.stdout == "answered\n", done.stderr


# Threads of the engines, models, folders


def test_threads_by_argument_and_variable(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {s.threads for s in Cascade.from_pretrained(saved, threads=3).stages} == {3}
    monkeypatch.setenv(THREADS_VARIABLE, "5")
    assert {s.threads for s in Cascade.from_pretrained(saved).stages} == {5}
    assert {s.threads for s in Cascade.from_pretrained(saved, threads=np.int64(2)).stages} == {2}
    monkeypatch.setenv(THREADS_VARIABLE, "many")
    with pytest.raises(InputError, match="CASCADEBERT_THREADS is 'many'"):
        Cascade.from_pretrained(saved)
    for threads in (0, -1, 1.5):
        with pytest.raises(InputError, match="threads is"):
            Cascade.from_pretrained(saved, threads=threads)  # type: ignore[arg-type]


def test_torch_keeps_the_threads_of_the_process(saved: Path) -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    cascade = Cascade.from_pretrained(saved, runtime="torch", threads=before + 1)
    cascade.predict(ROWS[:4])
    assert torch.get_num_threads() == before


def test_a_stage_is_compiled_when_its_first_row_comes(saved: Path) -> None:
    cascade = Cascade.from_pretrained(saved)
    cascade.thresholds = (0.0, 0.0)

    def opened(loaded: Cascade) -> list[bool]:
        return [stage.model._opened is not None for stage in loaded.stages]  # type: ignore[attr-defined]

    assert opened(cascade) == [False, False, False]
    cascade.predict(ROWS[:2])
    assert opened(cascade) == [True, False, False]
    assert opened(Cascade.from_pretrained(saved, preload=True)) == [True, True, True]


def test_closing_removes_the_temporary_folder(make: Make) -> None:
    with Cascade.from_stages([make("small")]) as cascade:
        folder = cascade.stages[0].folder
        assert folder.is_dir()
        assert Path(tempfile.gettempdir()) in folder.parents
    assert not folder.exists()
    cascade.close()
    with pytest.raises(CascadeError, match="was closed"):
        cascade.predict(["a"])


def test_closing_a_saved_cascade_leaves_its_folder(saved: Path) -> None:
    with Cascade.from_pretrained(saved):
        pass
    assert Cascade.from_pretrained(saved).predict(["a"]).stage.shape == (1,)


# Stages of other cascades


def test_stages_of_two_cascades_are_saved_together(make: Make, tmp_path: Path) -> None:
    first = Cascade.from_stages([make("small"), make("large", seed=1)])
    second = Cascade.from_stages([make("other", architecture="distilbert", seed=2)])
    mixed = first.with_stages([second.stages[0], first.stages[1]])
    mixed.thresholds = (0.4,)
    expected = mixed.predict(ROWS)
    again = Cascade.from_pretrained(mixed.save_pretrained(tmp_path / "mixed"))
    same(again.predict(ROWS), expected)


def test_a_learned_score_does_not_stay_with_other_stages(saved: Path) -> None:
    cascade = Cascade.from_pretrained(saved)
    labels = cascade.alone(1).predict(ROWS).labels.tolist()
    cascade.tune(Rows(ROWS, None, labels), Speedup(1.01), None, cost="flops", score="learned")
    fewer = cascade.with_stages(cascade.stages[1:])
    assert fewer.score.name == DEFAULT_SCORE
    fewer.thresholds = (0.5,)
    assert len(fewer.predict(ROWS)) == len(ROWS)


# Arguments that were silently taken


@pytest.mark.parametrize("number", [0, 4, 99, -1, 1.0, "1"])
def test_there_is_no_such_stage(cascade: Cascade, number: Any) -> None:
    with pytest.raises(InputError, match="there is no stage"):
        cascade.alone(number)


def test_second_texts_beside_rows_are_refused(cascade: Cascade) -> None:
    with pytest.raises(InputError, match="leave the argument 'pairs' out"):
        cascade.predict(Rows(["a"]), ["b"])


def test_streams(cascade: Cascade) -> None:
    for stream in ("text", b"text", {"text": "a"}):
        with pytest.raises(InputError, match="is not a stream of rows"):
            cascade.predict_iter(stream)  # type: ignore[arg-type]
    parts = [*cascade.predict_iter(Rows(ROWS), window=7)]  # type: ignore[arg-type]
    same(Prediction.joined(parts), cascade.predict(ROWS))


ODD: list[Any] = ["good", "", None, "fine \n", 3, " ", "\ud800", "last"]


@pytest.mark.parametrize(
    "rows",
    [
        ODD,
        [None, *ODD],
        [{"text": text} for text in ODD] + [{}, 7],
        [(text, "second") for text in ODD] + [("a",), ("a", None)],
    ],
)
def test_rows_that_cannot_be_classified(cascade: Cascade, rows: list[Any]) -> None:
    with pytest.raises(InputError):
        cascade.predict(rows)
    texts = [ODD[0], ODD[3], ODD[-1]]
    good = [*texts, *({"text": text} for text in texts), *((text, "second") for text in texts)]
    usable = [row for row in rows if row in good]
    places = [rows.index(row) for row in usable]
    expected = cascade.predict(usable)
    left_out = cascade.predict(rows, on_error="skip")
    same(left_out, expected.numbered(np.array(places)))
    nulls = cascade.predict(rows, on_error="null")
    assert nulls.row.tolist() == list(range(len(rows)))
    for name in ("labels", "probabilities", "stage", "confidence"):
        np.testing.assert_array_equal(getattr(nulls, name)[places], getattr(expected, name))
    others = np.setdiff1d(np.arange(len(rows)), places)
    assert (nulls.labels[others] == "").all()
    assert nulls.abstained[others].all()
    assert np.isnan(nulls.probabilities[others]).all()
    parts = [*cascade.predict_iter(rows, window=3, on_error="null")]
    assert Prediction.joined(parts).labels.tolist() == nulls.labels.tolist()
    assert Prediction.joined(parts).row.tolist() == nulls.row.tolist()


def test_no_row_at_all_can_be_classified(cascade: Cascade) -> None:
    assert len(cascade.predict(["", None], on_error="skip")) == 0
    assert cascade.predict(["", None], on_error="null").labels.tolist() == ["", ""]
    with pytest.raises(InputError, match="on_error is 'ignore'"):
        cascade.predict(["a"], on_error="ignore")


def test_a_classifier_gives_no_label_where_the_cascade_abstains() -> None:
    texts = [f"{words} {i}" for i in range(30) for words in ("win free cash", "lunch at home")]
    for labels in (["spam", "ham"] * 30, [1, 0] * 30):
        fitted = CascadeClassifier(stages=["linear"]).fit(texts, labels)
        routing = fitted.cascade_.routing
        assert routing is not None
        fitted.cascade_.routing = type(routing)((), (), abstain=0.99999)
        answers = fitted.predict([*texts[:2], "xyz"])
        assert answers[2] is None


def test_tuned_before_it_was_ever_saved(make: Make, tmp_path: Path) -> None:
    with Cascade.from_stages([make("small"), make("large", seed=1)]) as cascade:
        cascade.tune(Rows(ROWS), MinAgreement(0.2), confidence=0.5, cost="flops")
        assert cascade.certificate is not None
        again = Cascade.from_pretrained(cascade.save_pretrained(tmp_path / "saved"))
    assert again.certificate is not None
    assert again.fingerprint == again.certificate.artefact_fingerprint


def test_a_learned_score_does_not_depend_on_the_batch() -> None:
    cascade = Cascade.from_pretrained(Path(__file__).parent / "data" / "cascade-learned-score")
    whole = cascade.predict(ROWS)
    alone = Prediction.joined([cascade.predict([row]) for row in ROWS])
    same(whole, alone.numbered(whole.row))
