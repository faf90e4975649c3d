"""Calibrations against scikit-learn's, and where they are put to use."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression

from cascadebert import Cascade, Rows, Speedup
from cascadebert.deferral.calibration import (
    Isotonic,
    Temperature,
    VectorScaling,
    read_calibration,
)
from cascadebert.deferral.confidence import Floats, max_probability_log_odds, softmax
from cascadebert.deferral.fit_calibration import CALIBRATIONS, fit_calibration
from cascadebert.errors import InputError
from cascadebert.evaluation.metrics import nll
from conftest import CORPUS

KINDS = [kind for kind in CALIBRATIONS if kind != "none"]


class GivenLogits(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A fitted classifier whose inputs are its logits."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.classes_ = np.arange(classes)

    def fit(self, _logits: Floats, _labels: Floats) -> GivenLogits:
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def decision_function(self, logits: Floats) -> Floats:
        return logits

    def predict_proba(self, logits: Floats) -> Floats:
        return softmax(logits)

    def predict(self, logits: Floats) -> Floats:
        return logits.argmax(axis=1)


class GivenProbabilities(GivenLogits):
    """The same, without the decision function that scikit-learn would prefer."""

    decision_function = property()  # type: ignore[assignment]


def overconfident(classes: int, rows: int = 600, seed: int = 0) -> tuple[Floats, np.ndarray]:
    random = np.random.default_rng(seed)
    true = random.normal(size=(rows, classes)) * 1.5
    labels = np.array([random.choice(classes, p=p) for p in softmax(true)])
    return 3 * true + 0.4 * np.arange(classes), labels


@pytest.mark.parametrize("classes", [3, 5])
def test_temperature_is_scikit_learns(classes: int) -> None:
    logits, labels = overconfident(classes)
    theirs = CalibratedClassifierCV(FrozenEstimator(GivenLogits(classes)), method="temperature")
    theirs.fit(logits, labels)
    other = overconfident(classes, seed=1)[0]
    ours = fit_calibration("temperature", logits, labels)
    assert isinstance(ours, Temperature)
    assert 2 < ours.temperature < 4.5
    np.testing.assert_allclose(softmax(ours(other)), theirs.predict_proba(other), atol=1e-4)


@pytest.mark.parametrize("classes", [2, 4])
def test_isotonic_is_scikit_learns(classes: int) -> None:
    logits, labels = overconfident(classes)
    theirs = CalibratedClassifierCV(
        FrozenEstimator(GivenProbabilities(classes)), method="isotonic"
    ).fit(logits, labels)
    other = overconfident(classes, seed=1)[0]
    ours = fit_calibration("isotonic", logits, labels)
    assert ours is not None
    np.testing.assert_allclose(softmax(ours(other)), theirs.predict_proba(other), atol=1e-6)


@given(
    st.lists(
        st.tuples(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0, 7.0, 30.0]), st.booleans()),
        min_size=1,
        max_size=60,
    )
)
def test_isotonic_lines_are_scikit_learns(rows: list[tuple[float, bool]]) -> None:
    logits = np.array([[0.0, value] for value, _ in rows])
    labels = np.array([int(hit) for _, hit in rows])
    theirs = IsotonicRegression(y_min=0, y_max=1).fit(softmax(logits)[:, 1], labels)
    ours = fit_calibration("isotonic", logits, labels)
    assert isinstance(ours, Isotonic)
    np.testing.assert_allclose(ours.before[0], theirs.X_thresholds_)
    np.testing.assert_allclose(ours.after[0], theirs.y_thresholds_, atol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_temperature_is_scipys(seed: int) -> None:
    logits, labels = overconfident(2 + seed, rows=200, seed=seed)
    logits *= 10.0 ** (seed - 4)
    found = minimize_scalar(
        lambda at: nll(logits / np.exp(at), labels),
        bounds=(-3, 3),
        method="bounded",
        options={"xatol": 1e-8},
    )
    ours = fit_calibration("temperature", logits, labels)
    assert isinstance(ours, Temperature)
    assert np.log(ours.temperature) == pytest.approx(found.x, abs=1e-4)


@pytest.mark.parametrize(("classes", "rows"), [(2, 100), (3, 400), (6, 400)])
def test_vector_scaling_is_scipys(classes: int, rows: int) -> None:
    logits, labels = overconfident(classes, rows)

    def loss(parameters: Floats) -> float:
        return nll(logits * parameters[:classes] + parameters[classes:], labels)

    start = np.concatenate([np.ones(classes), np.zeros(classes)])
    theirs = minimize(loss, start, method="BFGS", options={"gtol": 1e-7}).x
    ours = fit_calibration("vector", logits, labels)
    assert isinstance(ours, VectorScaling)
    assert nll(ours(logits), labels) <= loss(theirs) + 1e-9
    expected = softmax(logits * theirs[:classes] + theirs[classes:])
    np.testing.assert_allclose(softmax(ours(logits)), expected, atol=1e-4)
    assert sum(ours.shift) == pytest.approx(0)


@pytest.mark.parametrize("missing", [0, 1])
def test_vector_scaling_without_a_best_answer_is_finite(missing: int) -> None:
    """Where every row is right, or a class has no row, the likelihood rises for ever."""
    logits, _ = overconfident(4, rows=80)
    labels = logits[:, missing:].argmax(axis=1) + missing
    ours = fit_calibration("vector", logits, labels)
    assert isinstance(ours, VectorScaling)
    assert np.abs([*ours.scale, *ours.shift]).max() < 1e4
    assert nll(ours(logits), labels) < 1e-3
    assert len(np.unique(max_probability_log_odds(ours(logits)))) == len(labels)


def test_vector_scaling_of_many_classes() -> None:
    logits, labels = overconfident(150, rows=1500)
    ours = fit_calibration("vector", logits, labels)
    temperature = fit_calibration("temperature", logits, labels)
    assert isinstance(ours, VectorScaling)
    assert temperature is not None
    assert nll(ours(logits), labels) < nll(temperature(logits), labels)


def test_vector_scaling_where_all_probabilities_are_0_or_1() -> None:
    logits = 1e6 * np.eye(3)[np.arange(30) % 3]
    right, wrong = logits.argmax(axis=1), (logits.argmax(axis=1) + 1) % 3
    for labels, most in ((right, 1e-6), (wrong, np.log(3) + 1e-3)):
        ours = fit_calibration("vector", logits, labels)
        assert isinstance(ours, VectorScaling)
        assert nll(ours(logits), labels) <= most


def test_all_is_fitted_without_scipy_and_scikit_learn() -> None:
    code = """
import sys
sys.modules["scipy"] = sys.modules["sklearn"] = None
import numpy as np
from cascadebert.deferral.search.learned import fit_learned_score
from cascadebert.deferral.fit_calibration import CALIBRATIONS, fit_calibration
logits, labels = np.eye(3)[np.arange(60) % 3], np.arange(60) // 20
for kind in CALIBRATIONS:
    fit_calibration(kind, logits, labels)
fit_learned_score([logits], (labels == logits.argmax(axis=1))[None])
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_vector_scaling_is_where_the_loss_is_flat() -> None:
    logits, labels = overconfident(4)
    ours = fit_calibration("vector", logits, labels)
    assert ours is not None
    best = nll(ours(logits), labels)
    temperature = fit_calibration("temperature", logits, labels)
    assert temperature is not None
    assert best < nll(temperature(logits), labels) < nll(logits, labels)
    random = np.random.default_rng(0)
    for _ in range(20):
        moved = np.asarray(ours(logits)) * (1 + 0.02 * random.normal(size=4))
        assert nll(moved + 0.02 * random.normal(size=4), labels) >= best - 1e-9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 3])
def test_calibration_survives_json_and_lowers_the_loss_on_other_rows(
    kind: str, classes: int
) -> None:
    made = fit_calibration(kind, *overconfident(classes, rows=3000))
    assert made is not None
    again = read_calibration(json.loads(json.dumps(asdict(made))))
    other, labels = overconfident(classes, rows=3000, seed=1)
    assert again is not None
    np.testing.assert_array_equal(again(other), made(other))
    assert np.isfinite(again(other)).all()
    assert nll(again(other), labels) < nll(other, labels)


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "magic"},
        {"kind": "temperature", "temperature": -1.0},
        {"kind": "temperature", "temperature": float("nan")},
        {"kind": "vector", "scale": [1.0], "shift": [1.0, 2.0]},
        {"kind": "isotonic", "before": [[0.0, 1.0]], "after": [[1.0, 0.0]]},
        {"kind": "isotonic", "before": [], "after": []},
        {"temperature": 2.0},
    ],
)
def test_damaged_values_are_refused(values: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        read_calibration(values)


def test_rows_that_are_all_right_stay_apart() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 3))
    made = fit_calibration("temperature", logits, logits.argmax(axis=1))
    assert made is not None
    assert len(np.unique(softmax(made(logits)).max(axis=1))) > 40


def test_unusable_arrays() -> None:
    with pytest.raises(InputError, match="no calibration is called 'platt'"):
        fit_calibration("platt", np.zeros((2, 2)), [0, 1])
    with pytest.raises(InputError, match=r"shape \(2, 2\) and labels \(3,\)"):
        fit_calibration("temperature", np.zeros((2, 2)), [0, 1, 1])
    with pytest.raises(InputError, match="not all finite"):
        fit_calibration("isotonic", [[0.0, np.nan]], [0])
    with pytest.raises(InputError, match="labels run from -1 to 2 for 2 classes"):
        fit_calibration("vector", np.zeros((2, 2)), [-1, 2])


@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_tuned_saved_and_loaded_with_its_calibration(
    saved: Path, tmp_path: Path, kind: str
) -> None:
    rows = Rows(CORPUS * 3, None, ["bad", "fair", "good", "good"] * 6)
    cascade = Cascade.from_pretrained(saved)
    raw = [stage.run_all(rows).logits for stage in cascade.stages]
    cascade.tune(rows, Speedup(1.5), confidence=None, cost="flops", calibration=kind)
    again = Cascade.from_pretrained(cascade.save_pretrained(tmp_path / "cascade"))
    truth = again.label_ids(rows)
    for stage, logits in zip(again.stages, raw, strict=True):
        made = fit_calibration(kind, logits, truth)
        expected = logits if made is None else made(logits)
        np.testing.assert_allclose(
            softmax(stage.run_all(rows).logits), softmax(expected), atol=1e-5
        )
    out, before = again.predict(rows), cascade.predict(rows)
    np.testing.assert_array_equal(out.labels, before.labels)
    np.testing.assert_array_equal(out.stage, before.stage)


def test_a_failed_tuning_leaves_calibrations_as_they_were(saved: Path) -> None:
    from cascadebert.errors import TargetError

    cascade = Cascade.from_pretrained(saved)
    rows = Rows(CORPUS, None, ["bad", "fair", "good", "good"] * 2)
    with pytest.raises(TargetError):
        cascade.tune(rows, Speedup(1e6), confidence=None, cost="flops", calibration="temperature")
    assert all(stage.record.calibration is None for stage in cascade.stages)
    with pytest.raises(InputError, match="no calibration is called"):
        cascade.tune(rows, Speedup(1.1), confidence=None, calibration="platt")
    with pytest.raises(InputError, match="rows that shaped a stage cannot certify it"):
        cascade.tune(rows, Speedup(1.1), calibration="temperature")
