"""Names and paths of the user's, which must neither style nor steer the terminal."""

from __future__ import annotations

import dataclasses
import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from cascadebert import Cascade, Rows, evaluate
from cascadebert.cli.console import escaped
from cascadebert.cli.evaluate import evaluation_table
from conftest import CORPUS, Run

MARKUP, CONTROL = r"\[/b] [/x] [red]name", "\x1b[31m"


def test_control_characters_are_shown_and_letters_left() -> None:
    assert escaped(CONTROL + "\n\r\x00\x9b") == r"\x1b[31m\n\r\x00\x9b"
    assert escaped("a\u202eb\u2028") == r"a\u202eb\u2028"
    for text in ("שלום", "añb 中", "👩‍👩‍👧", r"C:\x1b [/b]"):
        assert escaped(text) == text


def test_stage_names_in_the_table_of_evaluate(cascade: Cascade) -> None:
    found = evaluate(cascade, Rows(CORPUS, None, ["good", "bad"] * 4))
    stages = [
        dataclasses.replace(stage, name=name)
        for stage, name in zip(found.stages, (MARKUP, CONTROL, "plain"), strict=True)
    ]
    printed = io.StringIO()
    table = evaluation_table(dataclasses.replace(found, stages=tuple(stages)))
    Console(file=printed, width=200, force_terminal=True, color_system=None).print(table)
    assert f"{MARKUP} alone" in printed.getvalue()
    assert r"\x1b[31m alone" in printed.getvalue()
    assert CONTROL not in printed.getvalue()


@pytest.mark.parametrize("name", ["x[/b]", r"y\[/b]", "z" + CONTROL])
def test_paths_that_are_printed(run: Run, saved: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / name))
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\na film,good\na dull cast,bad\n")
    done = run("report", folder, "--data", rows, "--output", tmp_path / name / "page.html")
    assert done.code == 0, done.err
    assert f"wrote {escaped(folder)}/page.html" in done.out
    model = next((folder / "stages").iterdir()) / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    done = run("check", folder)
    assert done.code == 1
    assert f"FAILED files: {escaped(folder)}" in done.out
    assert CONTROL not in done.out
