"""Label orders are matched by name, and a mismatch is never guessed away."""

from __future__ import annotations

import numpy as np
import pytest

from cascadebert import Cascade
from cascadebert.errors import ArtifactError, CascadeWarning, InputError, LabelMismatchError
from conftest import Make

TEXTS = ["a good film", "a bad one", "who knows what it is", "great songs"]
NAMES = ("negative", "neutral", "positive")
PLACEHOLDERS = ("LABEL_0", "LABEL_1", "LABEL_2")


def test_orders_may_differ(make: Make) -> None:
    straight = make("a", labels=NAMES, seed=1)
    turned = make("b", labels=NAMES[::-1], seed=2)
    cascade = Cascade.from_stages([straight, turned])
    assert cascade.labels == NAMES[::-1]
    alone = Cascade.from_stages([straight])
    np.testing.assert_allclose(
        cascade.alone(1).predict_proba(TEXTS)[:, ::-1], alone.predict_proba(TEXTS), atol=1e-6
    )
    assert cascade.alone(1).predict(TEXTS).labels.tolist() == alone.predict(TEXTS).labels.tolist()


@pytest.mark.parametrize(
    "others", [("negative", "neutral"), ("NEG", "NEU", "POS"), PLACEHOLDERS, (*NAMES, "mixed")]
)
def test_mismatch_shows_both_lists_and_the_option(make: Make, others: tuple[str, ...]) -> None:
    with pytest.raises(LabelMismatchError) as caught:
        Cascade.from_stages([make("a", labels=others), make("b", labels=NAMES)])
    message = str(caught.value)
    assert str(list(others)) in message
    assert str(list(NAMES)) in message
    assert f"--map-labels '1:{others[0]}=" in message


def test_the_hint_names_the_stage_with_placeholders(make: Make) -> None:
    with pytest.raises(LabelMismatchError, match=r"--map-labels '2:LABEL_0=NAME"):
        Cascade.from_stages([make("a", labels=NAMES), make("b", labels=PLACEHOLDERS)])


def test_mapped_labels_match(make: Make) -> None:
    first, second = make("a", labels=PLACEHOLDERS, seed=1), make("b", labels=NAMES, seed=2)
    label_map = dict(zip(PLACEHOLDERS, NAMES[::-1], strict=True))
    cascade = Cascade.from_stages([first, second], label_maps={1: label_map})
    assert cascade.labels == NAMES
    own = Cascade.from_stages([first]).predict(TEXTS).labels
    assert cascade.alone(1).predict(TEXTS).labels.tolist() == [label_map[label] for label in own]


def test_placeholders_alone_are_taken_with_a_warning(make: Make) -> None:
    stages = [make("a", labels=PLACEHOLDERS, seed=1), make("b", labels=PLACEHOLDERS, seed=2)]
    with pytest.warns(CascadeWarning, match="nobody named the labels"):
        assert Cascade.from_stages(stages).labels == PLACEHOLDERS


@pytest.mark.parametrize(
    ("label_maps", "message"),
    [
        ({3: {"a": "b"}}, "names stage 3; there are stages 1 to 1"),
        ({1: {"nope": "b"}}, r"the label map names \['nope'\]"),
        ({1: {"negative": "positive"}}, "two of its labels have one name"),
    ],
)
def test_maps_that_do_not_fit(make: Make, label_maps: dict, message: str) -> None:
    with pytest.raises((InputError, LabelMismatchError), match=message):
        Cascade.from_stages([make("a", labels=NAMES)], label_maps=label_maps)


def test_regressions_are_refused(make: Make) -> None:
    with pytest.raises(ArtifactError, match="a regression"):
        Cascade.from_stages([make("a", labels=("score",))])
