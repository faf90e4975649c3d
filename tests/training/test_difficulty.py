"""Difficulty: every row answered by copies that have not seen it, put together and kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from cascadebert import Rows
from cascadebert.errors import ArtifactError, InputError
from cascadebert.training.difficulty import Difficulty, aggregate, cross_fit

Positions = NDArray[np.int64]


def test_every_row_is_answered_once_a_seed_by_one_that_has_not_seen_it() -> None:
    labels = np.array([0, 1, 1] * 11)
    answered = {seed: np.zeros(33, dtype=int) for seed in (4, 5, 6)}
    folds: dict[int, list[frozenset[int]]] = {4: [], 5: [], 6: []}

    def answers(seen: Positions, unseen: Positions, seed: int, fold: int) -> Positions:
        assert not set(seen) & set(unseen)
        assert len(seen) + len(unseen) == 33
        assert fold == len(folds[seed])
        # Like shares of every class in each fold.
        assert abs((labels[unseen] == 0).sum() - 11 / 4) < 1
        answered[seed][unseen] += 1
        folds[seed].append(frozenset(unseen.tolist()))
        return labels[unseen]

    wrong = cross_fit(labels, answers, folds=4, seeds=[4, 5, 6])
    assert wrong.shape == (33, 3)
    assert not wrong.any()
    assert all((counts == 1).all() for counts in answered.values())
    # Shuffled, and otherwise for each seed.
    assert folds[4] != folds[5]
    assert sorted(folds[4][0]) != list(range(len(folds[4][0])))


def test_agrees_with_cross_val_predict() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 3))
    y = (x[:, 0] + random.normal(size=200) > 0).astype(np.int64)
    model = LogisticRegression()

    def answers(seen: Positions, unseen: Positions, _seed: int, _fold: int) -> Positions:
        found: Positions = model.fit(x[seen], y[seen]).predict(x[unseen])
        return found

    folds = StratifiedKFold(5, shuffle=True, random_state=2)
    expected = cross_val_predict(model, x, y, cv=folds) != y
    np.testing.assert_array_equal(cross_fit(y, answers, folds=5, seeds=[2])[:, 0], expected)


def test_aggregates() -> None:
    wrong = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], bool)
    assert aggregate(wrong, "all").tolist() == [0, 1, 1, 1, 1]
    assert aggregate(wrong, "majority").tolist() == [0, 0, 1, 1, 1]
    assert aggregate(wrong, "graded").tolist() == [0, 0.25, 0.5, 0.75, 1]
    with pytest.raises(InputError, match="unknown difficulty 'mean'"):
        aggregate(wrong, "mean")


@pytest.mark.parametrize(
    ("labels", "folds", "seeds", "message"),
    [
        (["a", "a", "b"], 2, [0], "class 'b' has 1 rows, fewer than the 2 folds"),
        (["a", "b"], 1, [0], "1 folds and 1 seeds"),
        (["a", "b"], 2, [], "2 folds and 0 seeds"),
    ],
)
def test_what_cannot_be_cut(labels: list[str], folds: int, seeds: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cross_fit(np.array(labels), lambda *_: np.array([0]), folds=folds, seeds=seeds)


def test_saved_as_a_column_and_loaded(tmp_path: Path) -> None:
    wrong = np.array([[False, True], [True, True], [False, False]])
    made = Difficulty(wrong, "graded", "f" * 64)
    made.save(tmp_path / "d", Rows(["x", "y", "z"], None, ["é", "b", "b"]))
    again = Difficulty.load(tmp_path / "d")
    np.testing.assert_array_equal(again.wrong, wrong)
    assert (again.aggregate, again.fingerprint) == ("graded", "f" * 64)
    first = (tmp_path / "d" / "difficulty.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert first == '{"row": 0, "label": "é", "difficulty": 0.5, "wrong": [false, true]}'
    (tmp_path / "d" / "difficulty.jsonl").write_text('{"wrong": [true]}\n')
    with pytest.raises(ArtifactError, match="unreadable difficulty"):
        Difficulty.load(tmp_path / "d")
