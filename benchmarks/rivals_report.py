"""What ``rivals.py`` found, as tables and as a picture."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cascadebert.report.svg import canvas, style

SHOWN = (2.0, 3.0, 4.0)
# What reaches this share of a speed stands in its column, in brackets.
NEAR = 0.95
FAMILIES = {
    "cascade: L3, L6, MPNet": ("cascade: L3, L6, MPNet",),
    "cascade: linear, L3, L6, MPNet": ("cascade: linear, L3, L6, MPNet",),
    "cascade: linear, L3, first 3, MPNet": ("cascade: linear, L3, first 3, MPNet",),
    "cascade: L3, pruned MPNet, MPNet": ("cascade: L3, pruned MPNet, MPNet",),
    "one of L6 and L3, distilled": ("MiniLM-L6", "MiniLM-L3"),
    "first 6, 4 or 3 layers": ("first 6 layers", "first 4 layers", "first 3 layers"),
    "every other or first 3 layers, distilled": (
        "every other layer, distilled",
        "first 3 layers, distilled",
    ),
    "DPF, heads and columns": ("DPF, 50% of heads and columns", "DPF, 75% of heads and columns"),
    "DPF, single weights": ("DPF, 75% of single weights",),
    "MoEBERT": ("MoEBERT",),
    "DeeBERT": ("DeeBERT",),
    "Shallow-Deep": ("Shallow-Deep",),
    "PABEE": ("PABEE",),
    "BERxiT": ("BERxiT",),
    "COST-EFF": ("COST-EFF",),
}
"""Methods that are one choice to a user: their settings make one line."""

Results = dict[str, dict[str, dict[str, Any]]]
"""By task, method and seed."""

_PANEL, _HEIGHT, _LEGEND_LINE = 330, 360, 25
_FASTEST = 20
# Points under the whole model's accuracy that are shown.
_DEPTH = 16


def table(results: Results) -> str:
    """Accuracy at the same measured speed-up, oracles, every point, DIS by depth; and when."""
    parts = (matched, oracles, all_points, inversions)
    shown = ["\n".join(part(results)) for part in parts]
    return "\n\n".join([*shown, f"Measured: {days(results)}."])


def days(results: Results) -> str:
    """When each task was measured, and on what."""
    found: dict[str, set[str]] = {}
    for task, _, _, own in each(results):
        setting = own["setting"]
        found.setdefault(task, set()).add(f"{setting['date']} on {setting['cpu']}")
    return "; ".join(f"{task} on {' and '.join(sorted(when))}" for task, when in found.items())


def seeds_of(methods: dict[str, dict[str, Any]], family: str) -> list[str]:
    """Seeds that any method of a family was trained with."""
    return sorted({seed for method in FAMILIES[family] for seed in methods.get(method, {})})


def line_of(methods: dict[str, dict[str, Any]], family: str, seed: str) -> dict[float, float]:
    """Accuracy by measured speed-up, the slowest first.

    The whole model belongs to the line of what has no setting of its own that is as slow.
    """
    own = [methods[method][seed] for method in FAMILIES[family] if seed in methods.get(method, {})]
    found = {
        point["speedup"]: point["accuracy"]
        for measured in own
        for point in measured["points"]
        if point["setting"] != "whole"
    }
    if min(found) > 1:
        found[1.0] = whole_accuracy(own)
    return dict(sorted(found.items()))


def mixed(line: dict[float, float], speedup: float) -> float:
    """Accuracy of the two neighbouring settings, each on so many rows that the time is right."""
    speeds, accuracies = np.array(list(line)), np.array(list(line.values()))
    return float(np.interp(1 / speedup, 1 / speeds[::-1], accuracies[::-1]))


def accuracies_at(
    methods: dict[str, dict[str, Any]], family: str, speedup: float
) -> list[float] | None:
    """Of every seed, read off its line; None where one does not come near such a speed."""
    found = []
    for seed in seeds_of(methods, family):
        line = line_of(methods, family, seed)
        if not min(line) <= speedup <= max(line) / NEAR:
            return None
        found.append(mixed(line, speedup))
    return found or None


def fastest(methods: dict[str, dict[str, Any]], family: str) -> float:
    """Of the family's settings, in times the whole model's speed."""
    return min(max(line_of(methods, family, seed)) for seed in seeds_of(methods, family))


def matched(results: Results) -> list[str]:
    columns = [f"{task}, {speed:g}×" for task in results for speed in SHOWN]
    columns += [f"mean, {speed:g}×" for speed in SHOWN]
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for family in FAMILIES:
        cells = {
            (task, speed): accuracies_at(methods, family, speed)
            for (task, methods), speed in itertools.product(results.items(), SHOWN)
        }
        if not any(cells.values()):
            continue
        shown = [
            f"({told(values)})"
            if values and fastest(results[task], family) < speed
            else told(values)
            for (task, speed), values in cells.items()
        ]
        for speed in SHOWN:
            own = [cells[task, speed] for task in results]
            means = [statistics.mean(values) for values in own if values]
            shown.append(told([statistics.mean(means)] if len(means) == len(own) else None))
        lines.append(f"| {family} | {' | '.join(shown)} |")
    whole = [whole_accuracy(all_of(methods)) for methods in results.values()]
    all_cells = [told([own]) for own in whole for _ in SHOWN]
    all_cells += [told([statistics.mean(whole)])] * len(SHOWN)
    lines.append(f"| MPNet, 1× | {' | '.join(all_cells)} |")
    return lines


def whole_accuracy(measured: Iterable[dict[str, Any]]) -> float:
    """Of the whole model, which was timed in turn with all that was measured.

    The median, as it may have been trained anew between two measurements.
    """
    return statistics.median(
        point["accuracy"]
        for own in measured
        for point in own["points"]
        if point["setting"] == "whole"
    )


def all_of(methods: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Everything that was measured on a task."""
    for seeds in methods.values():
        yield from seeds.values()


def told(accuracies: list[float] | None) -> str:
    if not accuracies:
        return "–"
    mean = f"{100 * statistics.mean(accuracies):.1f}"
    return f"{mean} ± {100 * statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else mean


def each(results: Results) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Task, method and seed of everything that was run, and what was found."""
    for task, methods in results.items():
        for method, seeds in methods.items():
            for seed, own in seeds.items():
                yield task, method, seed, own


def oracles(results: Results) -> list[str]:
    lines = ["| task | oracle of | accuracy | × whole model |", "|---|---|---|---|"]
    for task, method, _, own in each(results):
        if bound := own.get("oracle"):
            lines.append(
                f"| {task} | {method} | {100 * bound['accuracy']:.1f} | {bound['speedup']:.2f} |"
            )
    return lines


def all_points(results: Results) -> list[str]:
    lines = [
        "| task | method | seed | setting | accuracy | × whole model, measured (range) "
        "| × by operations | × by layers | core-seconds of training |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task, method, seed, own in each(results):
        for point in own["points"]:
            if point["setting"] == "whole":
                continue
            lines.append(
                f"| {task} | {method} | {seed} | {digits(point['setting'])} "
                f"| {100 * point['accuracy']:.1f} | {point['speedup']:.2f} "
                f"({point['least']:.2f}–{point['most']:.2f}) "
                f"| {point['flops_speedup']:.2f} | {point['layers_speedup']:.2f} "
                f"| {own['seconds']:,.0f} |"
            )
    return lines


def digits(setting: str) -> str:
    """A knob with as many digits as tell, anything else as it is."""
    try:
        return f"{float(setting):.6g}"
    except ValueError:
        return setting


def inversions(results: Results) -> list[str]:
    lines = ["| task | method | seed | DIS by layer |", "|---|---|---|---|"]
    for task, method, seed, own in each(results):
        shown = ", ".join(f"{layer}: {value:.1f}" for layer, value in own["dis"].items())
        if shown:
            lines.append(f"| {task} | {method} | {seed} | {shown} |")
    return lines


def picture(results: Results, path: Path) -> None:
    """Accuracy against measured speed-up, a panel a task; seed by seed where there are several."""
    columns = len(results)
    legend = _LEGEND_LINE * math.ceil((len(FAMILIES) + 1) / columns)
    with canvas(_HEIGHT + legend, _PANEL * len(results)) as figure:
        panels = figure.subplots(1, len(results), squeeze=False)[0]
        for axes, (task, methods) in zip(panels, results.items(), strict=True):
            for number, family in enumerate(FAMILIES):
                _draw(axes, methods, family, number)
            for oracle in {
                (own["oracle"]["speedup"], own["oracle"]["accuracy"])
                for own in all_of(methods)
                if "oracle" in own
            }:
                axes.plot(oracle[0], 100 * oracle[1], "P", color="black", label="oracle")
            axes.set_title(task)
            axes.set_xscale("log", base=2)
            axes.set_xlim(0.9, _FASTEST)
            axes.set_ylim(bottom=100 * whole_accuracy(all_of(methods)) - _DEPTH)
            axes.set_xticks([1, 2, 3, 4, 6, 8, 16], ["1", "2", "3", "4", "6", "8", "16"])
            axes.set_xlabel("times the whole model's speed, measured")
        panels[0].set_ylabel("accuracy, %")
        known = {
            label: handle
            for axes in panels
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=columns)
        figure.savefig(path, facecolor="white", metadata={"Date": None})


def _draw(axes: Any, methods: dict[str, dict[str, Any]], family: str, number: int) -> None:
    look = style(number)
    for seed in seeds_of(methods, family):
        line = line_of(methods, family, seed)
        axes.plot(
            list(line),
            [100 * accuracy for accuracy in line.values()],
            color=look.color,
            marker=look.marker,
            linestyle=look.dash,
            linewidth=2.6 if family.startswith("cascade") else 1.2,
            label=family,
        )
