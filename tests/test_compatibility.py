"""Cascades saved by version 0.1.0, before modules moved: they load unchanged and answer alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cascadebert import Cascade
from cascadebert.evaluation.check import check_cascade

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("name", ["cascade-before-layout", "cascade-learned-score"])
@pytest.mark.filterwarnings("ignore:the thresholds were chosen with the processor")
def test_a_saved_cascade_loads_and_answers_as_before(name: str) -> None:
    before = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    cascade = Cascade.from_pretrained(DATA / name)
    assert cascade.fingerprint == before["fingerprint"]
    assert list(cascade.labels) == before["labels"]
    assert [float.hex(value) for value in cascade.thresholds or ()] == before["thresholds"]
    out = cascade.predict([row["text"] for row in before["rows"]])
    assert out.labels.tolist() == [row["label"] for row in before["rows"]]
    assert out.stage.tolist() == [row["stage"] for row in before["rows"]]
    probabilities = [[*map(float.fromhex, row["probabilities"])] for row in before["rows"]]
    # Kernels of engines round as the processor has them do.
    np.testing.assert_allclose(out.probabilities, probabilities, atol=1e-6)


@pytest.mark.parametrize("name", ["cascade-before-layout", "cascade-learned-score"])
def test_its_certificate_still_passes(name: str) -> None:
    before = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    cascade = Cascade.from_pretrained(DATA / name)
    same_engine = {k: v for k, v in before["versions"].items() if cascade.versions.get(k) == v}
    for finding in check_cascade(cascade):
        if finding.what in before["versions"] and finding.what not in same_engine:
            assert not finding.passed
        else:
            assert finding.passed, finding
