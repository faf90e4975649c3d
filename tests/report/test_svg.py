"""Pictures that live in a page with others, on light ground and dark."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest

from cascadebert.report.svg import STYLES, canvas, inline, shown, style

FAMILY = "good 😀👩‍👩‍👧"


@pytest.mark.parametrize("number", range(12))
def test_series_stand_out_from_both_grounds(number: int) -> None:
    look = style(number)
    for ground in ("#ffffff", "#14171b"):
        bright, dim = sorted((luminance(look.color), luminance(ground)), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) > 2.9
    assert len({(look.color, look.marker) for look in map(style, range(12))}) == 12
    assert len({(look.color, str(look.dash)) for look in map(style, range(len(STYLES)))}) == 5


def luminance(color: str) -> float:
    parts = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_pictures_do_not_share_ids() -> None:
    sources = []
    for name in ("a", "b"):
        with canvas(200) as figure:
            figure.add_subplot().plot([1, 2], marker="o", label="$5 & <b>")
            sources.append(inline(figure, name, 'says "this"'))
    ids = [set(re.findall(r' id="([^"]*)"', source)) for source in sources]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert "http" not in sources[0]
    assert 'aria-label="says &quot;this&quot;"' in sources[0]


def test_a_figure_is_the_same_file_whenever_it_is_drawn() -> None:
    files = []
    for _ in range(2):
        with canvas(200) as figure:
            figure.add_subplot().plot([1, 2], marker="o")
            files.append(io.BytesIO())
            figure.savefig(files[-1], format="svg", metadata={"Date": None})
    assert files[0].getvalue() == files[1].getvalue()


def test_shown() -> None:
    assert shown(" a\n\tb ", 10) == "a b"
    assert shown("a\x00b\x1b", 10) == "a\ufffdb\ufffd"
    assert shown("abcdef", 4) == "abc…"
    assert shown(FAMILY, 40) == FAMILY
