"""The README's Python runs as it stands, on tiny checkpoints under the names that it uses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from conftest import CORPUS, LABELS, Make

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_python_of_the_readme(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make("small", architecture="distilbert")
    make("large", seed=1)
    rows = [{"text": text, "label": LABELS[i % 3]} for i, text in enumerate(CORPUS * 4)]
    for number, name in enumerate(("train.jsonl", "validation.jsonl", "test.jsonl")):
        different = [row | {"text": f"{row['text']} {number} {i}"} for i, row in enumerate(rows)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in different))
    (tmp_path / "huge.txt").write_text("\n".join(CORPUS))
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    names = {
        "labels": random.integers(0, 3, 100),
        "small_probabilities": random.dirichlet(np.ones(3), 100),
        "large_probabilities": random.dirichlet(np.ones(3), 100),
    }
    assert len(BLOCKS) == 3
    for block in BLOCKS:
        exec(block, names)
    assert names["out"].labels.shape == (2,)
    assert len(names["part"]) == len(CORPUS)
    assert set(names["stage"]) <= {1, 2}
    assert set(names["classifier"].classes_) == set(LABELS)
    assert "speedup_measured" in capsys.readouterr().out


def test_commands_of_the_readme_exist() -> None:
    from cascadebert.cli.main import app

    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    named = set(re.findall(r"^cascadebert (\w+)", README, re.MULTILINE))
    assert named
    assert named <= known
