"""The pictures of the report; each is an ``<svg>`` element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cascadebert.deferral.search.frontier import Search
from cascadebert.deferral.targets import MaxDrop
from cascadebert.evaluation.oracle import oracle
from cascadebert.report.breakdown import (
    Group,
    cascade_risk_coverage,
    reliability,
    risk_coverage,
)
from cascadebert.report.evaluated_rows import EvaluatedRows, cost_share
from cascadebert.report.price import LEVELS, Price
from cascadebert.report.svg import INK, POINTS, canvas, inline, shown, style

_NAME = 24
# Longer names do not fit beside one another.
_WIDE = 27
_LINE = 18
_LABEL = 22
_BAR = 19
_PANEL = 300
# Narrower parts of a bar have no room for a number.
_LEAST_NUMBERED = 0.06
_DARK = "#0072b2"


def _legend(figure: Any) -> None:
    """A legend below the plot, for which the figure grows."""
    _, labels = figure.axes[0].get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) <= _WIDE else 1
    width, height = figure.get_size_inches()
    lines = -(-len(labels) // columns)
    figure.set_size_inches(width, height + lines * _LINE / POINTS)
    figure.legend(loc="outside lower center", ncols=columns)


def _stage_name(evaluated: EvaluatedRows, stage: int) -> str:
    return f"{stage + 1} {shown(evaluated.stages[stage], _NAME)}"


def frontier(evaluated: EvaluatedRows) -> str:
    """Accuracy against cost on these rows."""
    # The target only picks from the frontier; the frontier is the same for any.
    search = Search(evaluated.replay, [MaxDrop(0.01)])
    points = search.shown(search.frontier())
    best = oracle(evaluated.right, evaluated.held_out.costs)
    with canvas(290) as figure:
        axes = figure.add_subplot()
        axes.plot(
            [100 * point.cost / evaluated.reference_cost for point in points],
            [100 * point.accuracy for point in points],
            color=INK,
            alpha=0.6,
            drawstyle="steps-post",
            label="best on these rows",
        )
        for k in range(len(evaluated.stages)):
            look = style(k)
            axes.plot(
                100 * evaluated.cost_shares[k],
                100 * evaluated.right[k].mean(),
                look.marker,
                color=look.color,
                markersize=9,
                linestyle="none",
                label=f"{_stage_name(evaluated, k)} alone",
            )
        axes.plot(
            100 * cost_share(evaluated.outcome),
            100 * evaluated.outcome.right.mean(),
            "*",
            color=INK,
            markersize=15,
            linestyle="none",
            label="the cascade as it is set" if evaluated.tuned else "not tuned: the last stage",
        )
        axes.plot(
            100 / best.speedup,
            100 * best.accuracy,
            "P",
            markerfacecolor="none",
            color=INK,
            markersize=10,
            linestyle="none",
            label="oracle",
        )
        axes.set_xlabel(f"{evaluated.unit} per row, % of the last stage alone")
        axes.set_ylabel("accuracy, %")
        axes.set_xlim(left=0)
        axes.margins(y=0.08)
        _legend(figure)
        return inline(
            figure,
            "frontier",
            "Accuracy against cost: the frontier of thresholds, the cascade, each stage alone and "
            "the oracle",
        )


def price(found: Price, on_cost: bool) -> str:
    """Cost, or accuracy, of certified thresholds against the number of rows, one line per level."""
    values = found.accuracies if on_cost else found.costs
    with canvas(280) as figure:
        axes = figure.add_subplot()
        for number, level in enumerate(LEVELS):
            look = style(number)
            runs = [100 * np.array(values[size, level]) for size in found.sizes]
            middle = np.array([np.median(run) for run in runs])
            spread = np.abs([[run.min(), run.max()] for run in runs] - middle[:, None]).T
            # A little apart, so that the spreads do not hide one another.
            axes.errorbar(
                np.array(found.sizes) * 1.025 ** (number - 1.5),
                middle,
                yerr=spread,
                color=look.color,
                marker=look.marker,
                linestyle=look.dash,
                elinewidth=1,
                capsize=2.5,
                label=f"confidence {level:g}",
            )
        if found.without is not None:
            axes.axhline(
                100 * found.without[on_cost],
                color=INK,
                alpha=0.6,
                linewidth=1.2,
                label="no promise",
            )
        axes.set_xscale("log")
        axes.set_xticks(found.sizes, [f"{size:,}" for size in found.sizes])
        axes.minorticks_off()
        axes.set_xlabel("held-out rows")
        axes.set_ylabel("accuracy, %" if on_cost else "cost, % of the last stage alone")
        if not on_cost:
            axes.set_ylim(0, max(axes.get_ylim()[1], 108))
        _legend(figure)
        return inline(
            figure, "price", "What certified thresholds come to against the number of held-out rows"
        )


def reliability_panel(evaluated: EvaluatedRows, stage: int) -> str:
    """Share of right answers against probability, with the number of rows below."""
    found, look = reliability(evaluated, stage), style(stage)
    with canvas(_PANEL, _PANEL) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3.2, 1]})
        upper.plot([0, 1], [0, 1], color=INK, alpha=0.5, linewidth=1, linestyle=":")
        upper.plot(
            found.probability, found.accuracy, color=look.color, marker=look.marker, linewidth=1.2
        )
        upper.set_ylim(-0.03, 1.03)
        upper.set_ylabel("share right")
        width = 1 / len(found.counts)
        lower.bar(found.edges[:-1] + width / 2, found.counts, width * 0.9, color=look.color)
        lower.set_xlim(0, 1)
        lower.set_ylabel("rows")
        lower.set_xlabel("probability of the answer")
        lower.locator_params(axis="y", nbins=3, integer=True)
        figure.align_ylabels()
        name = shown(evaluated.stages[stage], _NAME)
        return inline(figure, f"reliability-{stage}", f"Reliability of stage {stage + 1} {name}")


def risk(evaluated: EvaluatedRows) -> str:
    """Risk-coverage curves of each stage and of the cascade."""
    with canvas(280) as figure:
        axes = figure.add_subplot()
        for k in range(len(evaluated.stages)):
            coverage, wrong = risk_coverage(evaluated.scores[k], evaluated.right[k], len(evaluated))
            label = f"{_stage_name(evaluated, k)} ({evaluated.qualities[k].aurc:.3f})"
            look = style(k)
            axes.plot(
                100 * coverage, 100 * wrong, color=look.color, linestyle=look.dash, label=label
            )
        coverage, wrong = cascade_risk_coverage(evaluated)
        axes.plot(
            100 * coverage, 100 * wrong, color=INK, linewidth=2.6, alpha=0.75, label="the cascade"
        )
        axes.set_xlabel("most confident rows, %")
        axes.set_ylabel("wrong among them, %")
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        _legend(figure)
        return inline(figure, "risk", "Share of wrong answers against coverage, by stage")


def stacks(evaluated: EvaluatedRows, groups: Sequence[Group], name: str, what: str) -> str:
    """Where rows end, one bar per group."""
    count = len(evaluated.stages)
    with canvas(60 + _BAR * len(groups)) as figure:
        axes = figure.add_subplot()
        start = np.zeros(len(groups))
        for k in range(count + 1):
            shares = np.array([100 * group.shares[k] for group in groups])
            if not shares.any():
                continue
            color = style(k).color if k < count else "none"
            edge = "none" if k < count else INK
            label = _stage_name(evaluated, k) if k < count else "no answer"
            axes.barh(
                range(len(groups)),
                shares,
                0.8,
                left=start,
                color=color,
                edgecolor=edge,
                label=label,
            )
            for row in np.flatnonzero(shares >= 100 * _LEAST_NUMBERED) if k < count else ():
                axes.text(
                    start[row] + shares[row] / 2,
                    row,
                    str(k + 1),
                    ha="center",
                    va="center_baseline",
                    color="white" if color == _DARK else "black",
                )
            start += shares
        names = [f"{shown(group.name, _LABEL)} ({group.rows:,})" for group in groups]
        axes.set_yticks(range(len(groups)), names)
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of the rows")
        axes.grid(visible=False)
        _legend(figure)
        return inline(figure, name, f"Shares of the rows that end at each stage, by {what}")
