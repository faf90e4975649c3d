"""Confidence scores against scipy, and where float32 would have rounded."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from cascadebert.deferral.confidence import (
    SCORES,
    ConfidenceScore,
    agreement,
    confidence_score,
    learned_score,
    logit,
    margin,
    max_probability_log_odds,
    negative_energy,
    negative_log_entropy,
    output_features,
    sigmoid,
    softmax,
    stage_scores,
)
from cascadebert.deferral.search.learned import (
    _stratified_folds,
    fit_learned_score,
    logistic_regression,
)
from cascadebert.errors import InputError
from cascadebert.evaluation.metrics import auroc

logit_tables = arrays(
    np.float64, st.tuples(st.integers(1, 8), st.integers(2, 6)), elements=st.floats(-15, 15)
)


@given(logit_tables)
def test_log_odds_of_the_largest_probability(logits: np.ndarray) -> None:
    probabilities = special.softmax(logits, axis=1)
    np.testing.assert_allclose(softmax(logits), probabilities, atol=1e-12)
    rest = np.sort(probabilities, axis=1)[:, :-1].sum(axis=1)
    expected = np.log(probabilities.max(axis=1)) - np.log(rest)
    np.testing.assert_allclose(max_probability_log_odds(logits), expected, atol=1e-9)
    np.testing.assert_allclose(max_probability_log_odds(np.log(probabilities)), expected, atol=1e-6)


@given(arrays(np.float64, st.integers(1, 20), elements=st.floats(-30, 30)))
def test_sigmoid_and_logit(values: np.ndarray) -> None:
    np.testing.assert_allclose(sigmoid(values), special.expit(values), rtol=1e-12)
    np.testing.assert_allclose(logit(special.expit(values)), special.logit(special.expit(values)))


def test_ends_of_the_scale() -> None:
    assert logit([0, 1, 1.5]).tolist() == [-np.inf, np.inf, np.inf]


def test_rows_that_a_float32_softmax_ties_keep_their_order() -> None:
    logits = np.array([[20, 0], [25, 0], [30, 0]], dtype=np.float32)
    assert (special.softmax(logits, axis=1)[:, 0] == 1).all()
    assert (np.diff(max_probability_log_odds(logits)) > 4).all()


def test_certain_probabilities_are_infinitely_sure() -> None:
    with np.errstate(divide="ignore"):
        assert max_probability_log_odds(np.log([[1.0, 0.0]])).tolist() == [np.inf]


def test_unknown_score() -> None:
    with pytest.raises(InputError, match=r"unknown confidence score 'mood'"):
        confidence_score("mood")


@given(logit_tables)
def test_margin_entropy_and_energy(logits: np.ndarray) -> None:
    probabilities = special.softmax(logits, axis=1)
    top = np.sort(probabilities, axis=1)[:, -2:]
    np.testing.assert_allclose(margin(logits), np.log(top[:, 1] / top[:, 0]), atol=1e-9)
    np.testing.assert_allclose(
        -np.log(special.entr(probabilities).sum(axis=1)),
        negative_log_entropy(logits),
        rtol=1e-6,
        atol=1e-6,
    )
    np.testing.assert_allclose(negative_energy(logits), special.logsumexp(logits, axis=1))


@given(logit_tables, st.integers(0, 2**32 - 1))
def test_agreement_is_the_mean_of_two_stages(logits: np.ndarray, seed: int) -> None:
    previous = np.random.default_rng(seed).normal(size=logits.shape) * 3
    best = logits.argmax(axis=1)[:, None]
    both = (special.softmax(logits, axis=1) + special.softmax(previous, axis=1)) / 2
    mean = np.take_along_axis(both, best, axis=1)[:, 0]
    np.testing.assert_allclose(special.expit(agreement(logits, previous)), mean, atol=1e-9)
    np.testing.assert_array_equal(agreement(logits, None), max_probability_log_odds(logits))


def test_entropy_keeps_the_order_where_probabilities_round_to_one() -> None:
    sure = negative_log_entropy([[40.0, 0.0], [60.0, 0.0], [90.0, 0.0]])
    assert (np.diff(sure) > 10).all()


@pytest.mark.parametrize("name", list(SCORES))
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=20, unique=True))
def test_shown_and_compared_are_inverse(name: str, values: list[float]) -> None:
    score = SCORES[name]
    scores = np.sort(values) if name != "margin" else np.sort(np.abs(values)) + 0.01
    shown = score.shown(scores)
    assert ((shown >= 0) & (shown <= 1)).all()
    np.testing.assert_allclose(score.compared(shown), scores, atol=1e-6)
    assert score.compared([0.0])[0] == -np.inf
    assert score.compared([1.0])[0] == np.inf


def test_learned_score_finds_what_the_log_odds_do_not_show() -> None:
    """A stage that is right for one class and wrong for the other, whatever its confidence."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(600, 2))
    right = (logits.argmax(axis=1) == 0)[None]
    right = np.where(random.random(right.shape) < 0.1, ~right, right)
    score, held_out = fit_learned_score([logits], right)
    fitted = score.score(logits, 0, None)
    assert auroc(max_probability_log_odds(logits), right[0]) < 0.6
    assert auroc(fitted, right[0]) > 0.85
    assert auroc(held_out[0], right[0]) > 0.85
    again = confidence_score("learned", score.parameters)
    np.testing.assert_allclose(again.score(logits, 0, None), fitted)
    # Logits and their log-softmax say the same.
    np.testing.assert_allclose(again.score(special.log_softmax(logits, 1), 0, None), fitted)


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_learned_score_is_scikit_learns(classes: int) -> None:
    random = np.random.default_rng(classes)
    logits = random.normal(size=(400, classes)) * 2
    right = random.random((1, 400)) < special.expit(max_probability_log_odds(logits) + 0.5)
    score, _ = fit_learned_score([logits], right)
    features = output_features(logits)
    scale = np.concatenate([features[:, :3].std(axis=0), np.ones(classes)])
    model = LogisticRegression(tol=1e-10, max_iter=10_000).fit(features / scale, right[0])
    assert score.parameters is not None
    expected = [*(model.coef_[0] / scale), model.intercept_[0]]
    np.testing.assert_allclose(score.parameters[0], expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_logistic_regression_is_scikit_learns(seed: int) -> None:
    """Also on features that tell the classes apart, and on copies of one another."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(60, 4)) * random.choice([0.1, 1, 20], size=4)
    features[:, 3] = features[:, seed % 4]
    target = features[:, 0] + (seed % 3) * random.normal(size=60) > 0
    weights, bias = logistic_regression(features, target)
    model = LogisticRegression(solver="newton-cholesky", tol=1e-12, max_iter=1000)
    model.fit(features, target)
    np.testing.assert_allclose(weights, model.coef_[0], atol=1e-5)
    assert bias == pytest.approx(model.intercept_[0], abs=1e-5)


def test_cross_fitted_scores_are_scikit_learns() -> None:
    """Each row's comes from a model fitted on the other folds."""
    random = np.random.default_rng(3)
    logits = random.normal(size=(203, 3))
    right = random.random((1, 203)) < 0.2
    _, scores = fit_learned_score([logits], right, seed=5)
    features = output_features(logits)
    features[:, :3] /= features[:, :3].std(axis=0)
    expected = cross_val_predict(
        LogisticRegression(tol=1e-10, max_iter=10_000),
        features,
        right[0],
        cv=PredefinedSplit(_stratified_folds(right[0], seed=5)),
        method="decision_function",
    )
    np.testing.assert_allclose(scores[0], expected, atol=1e-5)
    assert not np.array_equal(scores, fit_learned_score([logits], right, seed=6)[1])


def test_folds_have_their_share_of_right_and_wrong_rows() -> None:
    right = np.arange(123) % 11 == 0
    fold = _stratified_folds(right, seed=0)
    for rows in (right, ~right):
        sizes = np.bincount(fold[rows], minlength=5)
        assert sizes.max() - sizes.min() <= 1


def test_learned_score_without_enough_to_learn_from() -> None:
    logits = np.random.default_rng(2).normal(size=(50, 2))
    score, held_out = fit_learned_score([logits], np.ones((1, 50), dtype=bool))
    np.testing.assert_allclose(score.score(logits, 0, None), max_probability_log_odds(logits))
    np.testing.assert_allclose(held_out[0], max_probability_log_odds(logits))
    with pytest.raises(InputError, match="no parameters"):
        confidence_score("learned")


@pytest.mark.parametrize(
    "score", [*SCORES.values(), learned_score([[1.0, 0.0, 0.5, 0.0, 0.1, 2.0]] * 2)], ids=str
)
def test_every_score_survives_pickling_and_copying(score: ConfidenceScore) -> None:
    logits = np.random.default_rng(0).normal(size=(2, 20, 2))
    for again in (pickle.loads(pickle.dumps(score)), copy.deepcopy(score)):
        assert again == score
        assert hash(again) == hash(score)
        np.testing.assert_array_equal(stage_scores(again, logits), stage_scores(score, logits))
        np.testing.assert_array_equal(again.shown(logits), score.shown(logits))
        np.testing.assert_array_equal(again.compared([0.3]), score.compared([0.3]))
    assert score != learned_score([[0.0] * 6] * 2)
