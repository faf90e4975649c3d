"""docs/results.md: measured numbers stand in the tables that scripts write, nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
SECTION = re.compile(r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->", re.DOTALL)
MEASURED = re.compile(r"\d(?:[\d.,]*\d)? ?(?:%|points?\b|times\b|m?s\b|MB\b|seconds\b|hours?\b)")


def test_every_table_names_its_script_and_has_its_data() -> None:
    names = [name for name, _ in SECTION.findall(PAGE)]
    kept = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert sorted(names) == sorted(kept)
    for name, text in SECTION.findall(PAGE):
        assert f"Made by `benchmarks/{name}.py`" in text
        script = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
        assert f'common.keep("{name}"' in script


def test_readings_of_the_tables_have_no_measured_number() -> None:
    typed = re.sub(r"\(aim[^)]*\)", "", SECTION.sub("", PAGE))
    # A list item with the lines that belong to it.
    items = re.findall(r"^- .*(?:\n  .*)*", typed, re.MULTILINE)
    assert len(items) > 20
    assert [found for item in items if (found := MEASURED.findall(item))] == []
