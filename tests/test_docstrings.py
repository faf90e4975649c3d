"""The examples in docstrings run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import shutil
from pathlib import Path

import pytest

import cascadebert

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(cascadebert.__path__, "cascadebert.")
    if not module.name.endswith("__main__")
)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(name)
    if not any(test.examples for test in doctest.DocTestFinder().find(module)):
        pytest.skip("no examples")
    # What examples call "my-cascade".
    shutil.copytree(saved, tmp_path / "my-cascade")
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testmod(module, optionflags=OPTIONS)
    assert not failed
