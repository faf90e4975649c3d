"""The picture of a benchmark: accuracy against rows per second."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from cascadebert.bench.result import CASCADE, BenchResult
from cascadebert.errors import InputError, MissingDependencyError
from cascadebert.report.svg import INK, POINTS, Style, canvas, shown, style

SUFFIXES = (".svg", ".png")

_HEIGHT, _WIDTH, _LINE = 300, 520, 18
_NAME = 70
_DOTS_PER_INCH = 160


def refuse_picture(path: Path) -> None:
    """Refuse a picture that cannot be drawn, before any work.

    Raises:
        InputError: the suffix is unknown.
        MissingDependencyError: matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"{path}: unknown picture format; use a name that ends in {' or '.join(SUFFIXES)}"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError("matplotlib", "drawing a benchmark", "report")


def plot_bench(result: BenchResult, path: str | Path) -> Path:
    """Draw one point per contender and one for the oracle; lines are the range over rounds.

    Args:
        result: comes from :func:`~cascadebert.bench.bench.bench`.
        path: names the picture, SVG or PNG by its suffix.

    Raises:
        InputError: the suffix is unknown.
        MissingDependencyError: matplotlib is not installed.
    """
    target = Path(path)
    refuse_picture(target)
    looks = [style(k) for k in range(len(result.contenders))]
    with canvas(_HEIGHT, _WIDTH) as figure:
        axes = figure.add_subplot()
        for one, look in zip(result.contenders, looks, strict=True):
            low, high = one.rows_per_second_range
            spread = [[one.rows_per_second - low], [high - one.rows_per_second]]
            label = f"{shown(one.name, _NAME)}: {one.ratio:.2f}×"
            look = Style(INK, "*", "-") if one.kind == CASCADE else look
            _point(axes, look, one.rows_per_second, one.accuracy, label, xerr=spread)
        if result.oracle is not None:
            rate = result.contender(result.reference).rows_per_second * result.oracle.speedup
            label = f"oracle: {result.oracle.speedup:.2f}×"
            _point(axes, Style(INK, "P", "-"), rate, result.oracle.accuracy, label)
        _make_logarithmic(axes)
        axes.set_xlabel("rows per second")
        axes.set_ylabel("accuracy, %")
        axes.margins(0.08)
        figure.set_size_inches(_WIDTH / POINTS, (_HEIGHT + (len(looks) + 1) * _LINE) / POINTS)
        figure.legend(
            loc="outside lower center", title=f"rows per second over {result.reference}", ncols=1
        )
        metadata = {"Date": None} if target.suffix == ".svg" else None
        figure.savefig(target, dpi=_DOTS_PER_INCH, facecolor="white", metadata=metadata)
    return target


def _make_logarithmic(axes: Any) -> None:
    """Scale rows per second logarithmically, with ticks at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import EngFormatter, LogLocator

    axes.set_xscale("log", subs=[])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _point(
    axes: Any, look: Style, rate: float, accuracy: float, label: str, xerr: Any = None
) -> None:
    axes.errorbar(
        rate,
        100 * accuracy,
        xerr=xerr,
        color=look.color,
        marker=look.marker,
        markersize=14 if look.marker == "*" else 9,
        markerfacecolor="none" if look.marker == "P" else look.color,
        elinewidth=1,
        linestyle="none",
        label=label,
    )
