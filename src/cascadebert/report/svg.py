"""Matplotlib figures as inline SVG that takes text colour and font from the page."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from xml.etree import ElementTree

from cascadebert.errors import MissingDependencyError

INK = "#010203"
"""A placeholder for the page's text colour."""

WIDTH = 440
FONT_SIZE = 12
# An inch of matplotlib's is as many units of an SVG.
POINTS = 72


class Style(NamedTuple):
    """The look of one series; series differ in more than colour."""

    color: str
    marker: str
    dash: Any


# Okabe and Ito's colours with enough contrast to both white and near black.
STYLES = (
    Style("#0072b2", "o", "-"),
    Style("#d55e00", "s", (0, (5, 2))),
    Style("#009e73", "^", (0, (1.5, 1.5))),
    Style("#cc79a7", "D", (0, (7, 2, 1.5, 2))),
    Style("#808080", "v", (0, (3, 1, 1, 1, 1, 1))),
)

_SETTINGS = {
    "svg.fonttype": "none",
    # The same figure is the same file, whenever it is drawn.
    "svg.hashsalt": "cascadebert",
    # A dollar sign in a user's name does not begin a formula.
    "text.parse_math": False,
    "font.size": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "legend.fontsize": FONT_SIZE,
    "xtick.labelsize": FONT_SIZE - 0.5,
    "ytick.labelsize": FONT_SIZE - 0.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
}
_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_FONT = re.compile(r" font-family: [^;]*;")
_REFERENCE = re.compile(r"#([A-Za-z_][\w.-]*)")


def style(number: int) -> Style:
    """The style of a series, by its number from 0."""
    if number < len(STYLES):
        return STYLES[number]
    # Colours come around again, with other markers and dashes.
    place, turn = number % len(STYLES), number // len(STYLES)
    return Style(
        STYLES[place].color,
        STYLES[(place + turn) % len(STYLES)].marker,
        STYLES[(place + 2 * turn) % len(STYLES)].dash,
    )


def shown(text: str, most: int) -> str:
    """A user's text in one line of at most so many characters, without control characters."""
    line = " ".join(text.split())
    line = "".join(char if _is_visible(char) else "\ufffd" for char in line)
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def _is_visible(char: str) -> bool:
    return unicodedata.category(char) not in ("Cc", "Cs") and char not in "\ufffe\uffff"


@contextmanager
def canvas(height: float, width: float = WIDTH) -> Iterator[Any]:
    """An empty figure of a size in points, to be drawn on and made SVG within the block.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib.style
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingDependencyError("matplotlib", "the report", "report") from None
    with matplotlib.style.context(["default", _SETTINGS]), warnings.catch_warnings():
        # The page has the fonts for what matplotlib's own lacks.
        warnings.filterwarnings("ignore", message="Glyph")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield Figure(figsize=(width / POINTS, height / POINTS), layout="constrained")


def inline(figure: Any, name: str, label: str) -> str:
    """A figure as an ``<svg>`` element, with no address in it, for a page with others like it.

    Args:
        figure: of :func:`canvas`, within its block.
        name: prefix of the ids within, other than any other's on the page.
        label: describes the picture to screen readers.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(file.getvalue())
    _drop_the_unneeded(root)
    wanted = {
        found
        for element in root.iter()
        for value in element.attrib.values()
        for found in _REFERENCE.findall(value)
        if value.startswith("#") or "url(#" in value
    }
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = _attributes(element, name, wanted)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")


def _drop_the_unneeded(root: ElementTree.Element) -> None:
    """Addresses, and style sheets, which would be the whole page's."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)


def _attributes(element: ElementTree.Element, name: str, wanted: set[str]) -> dict[str, str]:
    kept = {}
    for key, value in element.attrib.items():
        if key == "id":
            if value in wanted:
                kept["id"] = f"{name}-{value}"
        elif key == f"{_LINK}href":
            kept["href"] = _REFERENCE.sub(rf"#{name}-\1", value)
        else:
            value = value.replace("url(#", f"url(#{name}-").replace(INK, "currentColor")
            kept[key] = _FONT.sub("", value)
    return kept
