"""Errors of libraries, quoted in our own."""

from __future__ import annotations

import pytest

from cascadebert.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n first \r\nsecond"), "first"),
        (MemoryError(), "MemoryError"),
        (ValueError(" \n "), "ValueError"),
        (ValueError("x" * 500), "x" * 200),
    ],
)
def test_an_error_of_a_library_is_cut_to_one_line(error: BaseException, line: str) -> None:
    assert first_line(error) == line
