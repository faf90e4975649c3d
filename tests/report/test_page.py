"""The report: one file, whole, safe to open, whatever the rows and the cascade are."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cascadebert import Cascade, MaxDrop, MaxErrorWhenAnswering, Rows, Speedup, choose_thresholds
from cascadebert.deferral.confidence import Floats
from cascadebert.deferral.routing import Thresholds
from cascadebert.errors import InputError, MissingDependencyError
from cascadebert.evaluation.oracle import oracle
from cascadebert.report import breakdown
from cascadebert.report import price as pricing
from cascadebert.report.evaluated_rows import EvaluatedRows
from cascadebert.report.page import write_report
from cascadebert.report.svg import INK
from cascadebert.stages.costs import StageRun
from conftest import CORPUS, Run, with_record

SECTIONS = (
    "certificate", "figures", "frontier", "price", "reliability", "risk", "where", "hardest",
    "errors",
)  # fmt: skip
NASTY = "<script>alert('x')</script> & <img src=http://a.b/c onerror=alert(1)>"
HEBREW, EMOJI = "שלום עולם", "good 😀👩‍👩‍👧"


class Page(HTMLParser):
    """A page's tags, ids and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    @property
    def ids(self) -> list[str]:
        return [found for _, attributes in self.tags if (found := attributes.get("id"))]

    def check(self) -> None:
        """What holds of every report."""
        assert set(SECTIONS) <= set(self.ids)
        assert len(set(self.ids)) == len(self.ids)
        assert not {"script", "link", "iframe", "object", "img", "base"} & {t for t, _ in self.tags}
        for _, attributes in self.tags:
            assert not {"src", "srcset", "onerror", "onload", "action"} & attributes.keys()
            links = [attributes.get("href") or ""]
            links += re.findall(r"url\(([^)]*)\)", attributes.get("style") or "")
            links += re.findall(r"url\(([^)]*)\)", attributes.get("clip-path") or "")
            for link in filter(None, links):
                assert link[0] == "#"
                assert link[1:] in self.ids
            for name, value in attributes.items():
                assert "//" not in (value or ""), (name, value)
        style_sheet = self.source.partition("<style>")[2].partition("</style>")[0]
        assert "url(" not in style_sheet
        assert "@import" not in style_sheet
        assert INK not in self.source
        assert self.count("figure") == self.count("figcaption") == self.count("svg")
        for tag, attributes in self.tags:
            if tag == "svg":
                assert attributes["role"] == "img"
                assert attributes["aria-label"]


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pricing, "_DRAWS", 1)
    monkeypatch.setattr(pricing, "_SIZES", 2)


def fake(
    cascade: Cascade,
    logits: Sequence[Floats],
    labels: Sequence[str] | None = None,
    routing: Thresholds | None = None,
) -> Cascade:
    """A cascade of so many stages that say this, whatever they read."""
    other = copy.copy(cascade)
    names = tuple(labels or [f"label {i}" for i in range(logits[0].shape[1])])
    stages = []
    for k in range(len(logits)):
        stage = copy.copy(cascade.stages[0])
        cost = dataclasses.replace(stage.record.cost, flops=(1e3, 1e4 * 4**k, 1.0))
        stage.record = dataclasses.replace(
            stage.record, name=f"stage {k} <i>$x$</i>", labels=names, cost=cost
        )
        stages.append(stage)
    other = with_record(
        cascade.with_own_stages(stages),
        labels=names,
        thresholds=None,
    )
    if routing is not None:
        other.routing = routing
    lengths = np.random.default_rng(0).integers(3, 40, len(logits[0]))
    runs = [
        StageRun(values.astype(np.float32), lengths, 4.0**k, stages[k].record.cost)
        for k, values in enumerate(logits)
    ]
    other.run_stages = lambda *_, **__: runs  # type: ignore[method-assign]
    return other


def world(rows: int, classes: int, stages: int, seed: int = 0) -> tuple[list[Floats], list[int]]:
    """Logits that are the more often right the later the stage, and the truth."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, rows)
    ease = random.normal(size=rows)
    logits = []
    for k in range(stages):
        values = random.normal(size=(rows, classes))
        values[np.arange(rows), truth] += 1.5 + k + ease
        logits.append(2 * values)
    return logits, truth.tolist()


def rows_of(truth: Sequence[int], cascade: Cascade, **more: Sequence[str]) -> Rows:
    texts = [f"row {i}" for i in range(len(truth))]
    return Rows(texts, labels=[cascade.labels[i] for i in truth], **more)


def test_a_certified_cascade(saved: Path, tmp_path: Path) -> None:
    cascade = Cascade.from_pretrained(saved)
    texts = [f"{line[:i]} {NASTY} {HEBREW} {EMOJI}" for line in CORPUS for i in range(30)]
    labels = cascade.alone(3).predict(texts).labels.tolist()
    rows = Rows(texts, [f"{NASTY} pair {i}" for i in range(240)], labels)
    cascade.tune(rows, MaxDrop(0.3), 0.9, cost="flops")
    assert cascade.certificate is not None
    path = write_report(cascade, rows, tmp_path / "own.html", title=NASTY)
    page = Page(path)
    page.check()
    assert cascade.certificate.words() in page.words
    assert "certificate's own rows" in page.words
    assert NASTY[:40] in page.words
    assert HEBREW in page.words
    assert EMOJI in page.words
    assert "<script" not in page.source
    assert "speed-up, FLOPs" in page.words
    assert "random draw" in page.words
    # Three stages: as many panels, and the five other pictures.
    assert page.count("svg") == 3 + 5
    assert {"light dark"} == {
        a["content"] for t, a in page.tags if t == "meta" and a.get("name") == "color-scheme"
    }
    write_report(cascade, rows.slice(0, 200), path)
    others = Page(path)
    assert "certificate's own rows" not in others.words
    assert "not shown to be broken" in others.words


def test_a_broken_promise_and_changed_thresholds(cascade: Cascade, tmp_path: Path) -> None:
    """Thresholds that were certified where the last stage is always right, and then lowered."""
    logits, _ = world(400, 3, 2)
    truth = logits[-1].argmax(axis=1)
    certificate = choose_thresholds(
        logits, truth, [1.0, 8.0], MaxDrop(0.1), 0.9, logits=True
    ).certificate
    assert certificate.certified
    says = fake(cascade, logits)
    says.routing = Thresholds((0.0,))
    other = with_record(
        says, certificate=dataclasses.replace(certificate, artefact_fingerprint="another")
    )
    other.run_stages = says.run_stages  # type: ignore[method-assign]
    page = Page(write_report(other, rows_of(truth.tolist(), other), tmp_path / "r.html"))
    page.check()
    assert "broken for rows like these" in page.words
    assert "have changed since the certificate was made" in page.words


def test_not_tuned(cascade: Cascade, tmp_path: Path) -> None:
    logits, truth = world(120, 3, 3)
    says = fake(cascade, logits)
    page = Page(write_report(says, rows_of(truth, says), tmp_path / "r.html"))
    page.check()
    assert "no certificate" in page.words
    assert "is not tuned" in page.words
    assert "not run" in page.words
    assert "speed-up, measured 1.00×" in page.words
    assert "below the last stage's, as there is no certificate" in page.words


def test_one_stage(cascade: Cascade, tmp_path: Path) -> None:
    logits, truth = world(120, 3, 1)
    says = fake(cascade, logits)
    page = Page(write_report(says, rows_of(truth, says), tmp_path / "r.html"))
    page.check()
    assert "a single stage answers every row" in page.words
    assert "nothing to choose between" in page.words
    assert "A single stage has no thresholds" in page.words


def test_many_labels_and_abstention(cascade: Cascade, tmp_path: Path) -> None:
    names = [NASTY, HEBREW, "$x^2$ & $y", "\x01\x02", *(f"intent {i}" for i in range(146))]
    logits, truth = world(400, 150, 3)
    says = fake(cascade, logits, names, Thresholds((0.9, 0.9), (0.05,), 0.5))
    page = Page(write_report(says, rows_of(truth, says), tmp_path / "r.html"))
    page.check()
    assert "set by hand" in page.words
    assert re.search(r"\d+ others \(", page.words)
    assert "no answer" in page.words
    assert "straight to the last" in page.words
    assert "no answer is not a right one" in page.words


def test_rows_of_one_label_always_right(cascade: Cascade, tmp_path: Path) -> None:
    right = np.full((150, 3), -4.0) + np.random.default_rng(0).normal(size=(150, 3)) / 10
    right[:, 1] = 4
    says = fake(cascade, [right, right + 0.01], routing=Thresholds((0.5,)))
    page = Page(write_report(says, rows_of([1] * 150, says), tmp_path / "r.html"))
    page.check()
    assert "is right on every row" in page.words
    assert "accuracy 100.00 %" in page.words


def test_few_rows(cascade: Cascade, tmp_path: Path) -> None:
    logits, truth = world(25, 3, 2)
    says = fake(cascade, logits, routing=Thresholds((0.8,)))
    page = Page(write_report(says, rows_of(truth, says), tmp_path / "r.html"))
    page.check()
    assert "here there are 25" in page.words
    assert "random draw" not in page.words
    single = fake(cascade, [values[:1] for values in logits], routing=Thresholds((0.8,)))
    Page(write_report(single, rows_of(truth[:1], single), tmp_path / "r.html")).check()


def test_no_row_is_answered(cascade: Cascade, tmp_path: Path) -> None:
    logits, truth = world(120, 3, 2)
    says = fake(cascade, logits, routing=Thresholds((1.0,), (), 1.0))
    page = Page(write_report(says, rows_of(truth, says), tmp_path / "r.html"))
    page.check()
    assert "error when answering –" in page.words


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_missing_dependency(
    package: str, cascade: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    says = copy.copy(cascade)
    says.run_stages = lambda *_, **__: pytest.fail("a stage has run")  # type: ignore[method-assign]
    with pytest.raises(MissingDependencyError, match=rf"'{package}'.*cascadebert\[report\]"):
        write_report(says, Rows(["a film"], labels=["good"]), tmp_path / "r.html")


def test_no_torch(saved: Path, tmp_path: Path) -> None:
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "onnx", "sklearn", "scipy", "pyarrow"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocker())
from cascadebert import Cascade, Rows
from cascadebert.report.page import write_report
cascade = Cascade.from_pretrained(sys.argv[1])
write_report(cascade, Rows(["a film", "a dull cast"], None, ["good", "bad"]), sys.argv[2])
"""
    target = tmp_path / "r.html"
    done = subprocess.run(
        [sys.executable, "-c", code, str(saved), str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    Page(target).check()


def test_no_such_folder(cascade: Cascade, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        write_report(cascade, Rows(["a film"], labels=["good"]), tmp_path / "none" / "r.html")


def write_rows(path: Path, count: int = 30) -> Path:
    rows = [{"text": f"film {i}", "label": ("bad", "good")[i % 2]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_command(run: Run, saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "cascade"))
    data, page = write_rows(tmp_path / "rows.jsonl"), tmp_path / "page.html"
    done = run("report", folder, "--data", data, "--output", page)
    assert done.code == 0, done.err
    assert f"wrote {page}" in done.out
    Page(page).check()
    assert folder.name in Page(page).words
    done = run("report", folder, "--data", data)
    own = folder / "report" / "report.html"
    assert f"wrote {own}" in done.out
    Page(own).check()
    # The folder is still a cascade, and may be written to as one.
    Cascade.from_pretrained(folder).save_pretrained(folder)
    assert own.is_file()


def test_command_refuses(run: Run, saved: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl")
    before = data.read_text()
    done = run("report", saved, "--data", data, "--output", tmp_path / "none" / "page.html")
    assert done.code == 2
    assert "does not exist" in done.error
    assert run("report", saved, "--data", data, "--output", data).code == 2
    assert data.read_text() == before
    done = run("report", "somebody/cascade", "--data", data)
    assert done.code == 2
    assert "--output" in done.error
    assert run("report", tmp_path, "--data", data).code == 2
    assert not (tmp_path / "report").exists()


def evaluated(cascade: Cascade, rows: int = 300, **settings: Thresholds) -> EvaluatedRows:
    logits, truth = world(rows, 3, 2)
    says = fake(cascade, logits, **settings)
    return EvaluatedRows.of(says, rows_of(truth, says))


def test_breakdown_adds_up(cascade: Cascade) -> None:
    found = evaluated(cascade, routing=Thresholds((0.8,), (), 0.4))
    for groups in (breakdown.by_label(found), breakdown.by_length(found)):
        assert sum(group.rows for group in groups) == 300
        ends = sum(group.rows * np.array(group.shares) for group in groups)
        np.testing.assert_allclose(ends, np.bincount(found.outcome.end, minlength=3))
    costs = found.held_out.costs
    best = oracle(found.right, costs)
    assert best.accuracy == found.right.any(axis=0).mean()
    second = ~found.right[0] & found.right[1]
    assert best.exit_fractions == (1 - second.mean(), second.mean())
    spent = np.where(second, costs.sum(axis=1), costs[:, 0])
    assert best.speedup == pytest.approx(costs[:, 1].sum() / spent.sum())
    coverage, risk = breakdown.risk_coverage(found.scores[0], found.right[0], 300)
    assert coverage[-1] == 1
    assert risk[-1] == pytest.approx(1 - found.right[0].mean())
    assert breakdown.cascade_risk_coverage(found)[0][-1] == pytest.approx(
        found.outcome.answered.mean()
    )
    bins = breakdown.reliability(found, 0)
    assert bins.counts.sum() == 300
    gaps = np.abs(bins.accuracy - bins.probability) @ bins.counts[bins.counts > 0] / 300
    assert gaps == pytest.approx(found.qualities[0].ece)
    wrong = breakdown.surest_errors(found)
    assert not found.right[0, wrong].any()
    assert (np.diff(found.scores[0, wrong]) <= 0).all()


def test_equal_scores_come_together() -> None:
    right = np.array([True, False, True, False])
    coverage, risk = breakdown.risk_coverage(np.array([2.0, 1.0, 1.0, 0.0]), right, 8)
    np.testing.assert_allclose(coverage, [1 / 8, 3 / 8, 4 / 8])
    np.testing.assert_allclose(risk, [0, 1 / 3, 1 / 2])


def test_price_of_confidence(cascade: Cascade) -> None:
    found = evaluated(cascade, 600)
    price = pricing.price_of_confidence(found, [MaxDrop(0.05)])
    assert price.sizes == (50, 600)
    for at, costs in price.costs.items():
        assert len(costs) == price.draws == 1
        if not price.certified[at]:
            assert costs == (1.0,)
    assert not price.certified[price.sizes[0], 0.99]
    assert price.costs[price.sizes[0], 0.99] == (1.0,)
    assert price.costs[600, 0.8][0] < 1
    assert price.without is not None
    assert price.without[0] <= price.costs[600, 0.8][0]
    for target in (Speedup(2), MaxErrorWhenAnswering(0.2)):
        assert pricing.price_of_confidence(found, [target]).sizes == price.sizes
