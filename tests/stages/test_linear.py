"""The linear stage: features spelled out again in plain Python, and a stage like any other."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from cascadebert import Cascade, Rows, Speedup
from cascadebert.errors import ArtifactError, InputError, LabelMismatchError
from cascadebert.export.linear import linear_labels
from cascadebert.stages.ngrams import BUCKET_BITS, CHARACTERS, SHARED, WORDS, ngrams, normalise
from cascadebert.training.linear import fit_linear, linear_outputs
from conftest import CORPUS, LABELS, Make

TEXTS = CORPUS * 3
ROWS = Rows(TEXTS, None, [LABELS[i % 3] for i in range(len(TEXTS))])
PAIRS = Rows(TEXTS, TEXTS[::-1], ROWS.labels)


def plain_ngrams(text: str) -> tuple[Counter[str], Counter[str]]:
    """Character and word n-grams of a normalised text, one at a time."""
    characters = Counter(
        text[i : i + size] for size in (2, 3, 4) for i in range(len(text) - size + 1)
    )
    words: list[str] = []
    for i, character in enumerate(text):
        if character.isalnum():
            if i == 0 or not text[i - 1].isalnum():
                words.append("")
            words[-1] += character
    return characters, Counter(words + [" ".join(two) for two in itertools.pairwise(words)])


@given(st.lists(st.text(max_size=30), min_size=1, max_size=6))
@settings(deadline=None)
def test_same_ngrams_same_buckets(texts: list[str]) -> None:
    rows = normalise(Rows(texts))
    seen: dict[int, dict[int, Counter[int]]] = {
        block: defaultdict(Counter) for block in (CHARACTERS, WORDS)
    }
    for part in ngrams(rows.texts):
        assert (np.diff(part.rows) >= 0).all()
        assert ((part.buckets >= 0) & (part.buckets < 2**BUCKET_BITS)).all()
        for row, bucket in zip(part.rows.tolist(), part.buckets.tolist(), strict=True):
            seen[part.block][row][bucket] += 1
    for row, text in enumerate(rows.texts):
        for block, expected in zip((CHARACTERS, WORDS), plain_ngrams(text), strict=True):
            # The names of n-grams are lost, their numbers are not, but where two share a bucket.
            found = seen[block][row]
            assert found.total() == expected.total()
            shared = len(expected) - len(found)
            assert 0 <= shared <= 2
            same = Counter(found.values()) & Counter(expected.values())
            assert same.total() >= len(expected) - 2 * shared


def test_a_text_has_the_same_features_in_any_company() -> None:
    for pairs in (None, TEXTS[::-1]):
        rows = normalise(Rows(TEXTS, pairs))
        alone = [
            sorted(
                (part.block, bucket)
                for part in ngrams([text], rows.pairs and [rows.pairs[i]])
                for bucket in part.buckets.tolist()
            )
            for i, text in enumerate(rows.texts)
        ]
        together: list[list[tuple[int, int]]] = [[] for _ in TEXTS]
        for part in ngrams(rows.texts, rows.pairs):
            for row, bucket in zip(part.rows.tolist(), part.buckets.tolist(), strict=True):
                together[row].append((part.block, bucket))
        assert [sorted(row) for row in together] == alone


def test_pairs_tell_the_texts_apart_and_what_they_share() -> None:
    def buckets(first: str, second: str, block: int) -> set[int]:
        parts = ngrams([f" {first} "], [f" {second} "])
        return {b for p in parts if p.block == block for b in p.buckets.tolist()}

    assert buckets("a cat", "a dog", WORDS) != buckets("a dog", "a cat", WORDS)
    same, other = buckets("a cat", "a cat", SHARED), buckets("a dog", "a cat", SHARED)
    assert same != other
    assert buckets("a cat", "a cat", SHARED) == buckets("cat a", "cat a", SHARED)


def test_logits_by_their_formula(tmp_path: Path) -> None:
    """Blocks of length 1, n-grams by their rarity, logistic regression on top."""
    folder = fit_linear(ROWS, tmp_path / "linear")
    tensors = load_file(folder / "model.safetensors")
    place = {bucket: i for i, bucket in enumerate(tensors["buckets"].tolist())}
    found = linear_outputs(folder, Rows(TEXTS[:4])).logits
    for text, logits in zip(TEXTS[:4], found, strict=True):
        sums, squares = defaultdict(float), defaultdict(float)
        for part in ngrams(normalise(Rows([text])).texts):
            for bucket in part.buckets.tolist():
                if bucket in place:
                    rarity = tensors["rarity"][place[bucket]]
                    squares[part.block] += rarity**2
                    sums[part.block] = sums[part.block] + rarity * tensors["weights"][place[bucket]]
        wanted = tensors["bias"] + sum(sums[b] / math.sqrt(squares[b]) for b in sums)
        np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", [LABELS, LABELS[:2]])
def test_answers_are_scikit_learns(tmp_path: Path, names: tuple[str, ...]) -> None:
    from sklearn.linear_model import LogisticRegression

    from cascadebert.training.linear import _features

    rows = Rows(TEXTS, None, [names[i % len(names)] for i in range(24)])
    x, _, _ = _features(rows)
    theirs = LogisticRegression(C=3.0, max_iter=500).fit(x, rows.labels)
    folder = fit_linear(rows, tmp_path / "linear")
    logits = linear_outputs(folder, rows).logits
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    ours = powers / powers.sum(axis=1, keepdims=True)
    assert linear_labels(folder) == theirs.classes_.tolist()
    np.testing.assert_allclose(ours, theirs.predict_proba(x), atol=1e-4)


def test_a_stage_like_any_other(make: Make, tmp_path: Path) -> None:
    linear = fit_linear(ROWS, tmp_path / "linear", labels=["good", "bad", "fair"])
    large = make("large")
    cascade = Cascade.from_stages([linear, large], label_maps={1: {}})
    assert cascade.labels == LABELS
    assert cascade.stages[0].record.kind == "linear"
    held_out = Rows([f"{text} ." for text in ROWS.texts], None, ROWS.labels)
    policy = cascade.tune(
        held_out, Speedup(1.5), confidence=None, cost="flops", calibration="temperature"
    )
    again = Cascade.from_pretrained(cascade.save_pretrained(tmp_path / "cascade"))
    out = again.predict(TEXTS)
    assert set(out.stage) == {1, 2} or policy.exit_fractions[0] in (0, 1)
    np.testing.assert_array_equal(again.alone(1).predict(TEXTS).stage, 1)
    assert (again.alone(1).predict(TEXTS).labels == np.array(ROWS.labels)).mean() > 0.3
    assert not list((tmp_path / "cascade").rglob("*.pkl"))
    renamed = Cascade.from_stages([linear], label_maps={1: {"good": "fine"}})
    assert renamed.labels == ("fine", "bad", "fair")
    with pytest.raises(LabelMismatchError):
        Cascade.from_stages([linear, large], label_maps={1: {"good": "fine"}})


def test_long_texts_are_cut_and_said_so(make: Make, tmp_path: Path) -> None:
    cascade = Cascade.from_stages([fit_linear(ROWS, tmp_path / "linear"), make("large")])
    cascade.thresholds = (0.0,)
    out = cascade.predict(["good " * 10_000, "short"])
    assert out.truncated.tolist() == [True, False]


def test_pairs_need_a_stage_that_was_trained_on_them(make: Make, tmp_path: Path) -> None:
    single = Cascade.from_stages([fit_linear(ROWS, tmp_path / "s"), make("a")])
    double = Cascade.from_stages([fit_linear(PAIRS, tmp_path / "d"), make("b")])
    for cascade in (single, double):
        cascade.thresholds = (0.0,)
    assert len(double.predict(TEXTS, TEXTS[::-1])) == 24
    with pytest.raises(InputError, match="trained on single texts and these rows are pairs"):
        single.predict(TEXTS, TEXTS)
    with pytest.raises(InputError, match="trained on pairs and these rows are single texts"):
        double.predict(TEXTS)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = fit_linear(ROWS, tmp_path / "linear")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"features": "0"}))
    with pytest.raises(ArtifactError, match="made with other features"):
        linear_outputs(folder, ROWS)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b"{}      ")
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        linear_outputs(folder, ROWS)


def test_unusable_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two labels or more"):
        fit_linear(Rows(["a", "b"], None, ["x", "x"]), tmp_path)
    with pytest.raises(InputError, match=r"labels \['z'\] have no row"):
        fit_linear(ROWS, tmp_path, labels=[*LABELS, "z"])


def test_weights_that_are_not_finite_are_noticed(make: Make, tmp_path: Path) -> None:
    from cascadebert.errors import CascadeError

    folder = fit_linear(ROWS, tmp_path / "linear")
    tensors = load_file(folder / "model.safetensors")
    tensors["bias"][0] = np.nan
    save_file(tensors, folder / "model.safetensors")
    cascade = Cascade.from_stages([folder, make("large")])
    with pytest.raises(CascadeError, match="not finite"):
        cascade.alone(1).predict(["good"])


def test_runs_without_scikit_learn_torch_or_transformers(tmp_path: Path) -> None:
    folder = fit_linear(ROWS, tmp_path / "linear")
    Cascade.from_stages([folder]).save_pretrained(tmp_path / "cascade")
    script = (
        "import sys\n"
        "for name in ('sklearn', 'scipy', 'torch', 'transformers'): sys.modules[name] = None\n"
        "from cascadebert import Cascade\n"
        f"out = Cascade.from_pretrained({str(tmp_path / 'cascade')!r}).predict(['a good film'])\n"
        "print(out.labels[0])\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() in LABELS


def test_thousands_of_rows_a_second(tmp_path: Path) -> None:
    """A tenth of what an idle core does, so that only a slow path can fail it."""
    folder = fit_linear(ROWS, tmp_path / "linear")
    rows = Rows(TEXTS * 500)
    start = time.process_time()
    linear_outputs(folder, rows)
    assert len(rows) / (time.process_time() - start) > 5_000


def test_answers_are_the_same_bit_for_bit_whatever_the_batch(tmp_path: Path) -> None:
    for rows in (ROWS, PAIRS):
        told = [LABELS[len(text) % 3] for text in rows.texts]
        folder = fit_linear(Rows(rows.texts, rows.pairs, told), tmp_path / f"{rows is PAIRS}")
        (stage,) = Cascade.from_stages([folder]).stages
        together = stage.run_all(rows).logits
        assert np.ptp(together, axis=0).max() > 0.1
        for i in range(len(rows)):
            np.testing.assert_array_equal(stage.run_all(rows.take([i])).logits[0], together[i])
