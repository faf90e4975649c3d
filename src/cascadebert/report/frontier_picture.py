"""The picture of the frontier: accuracy against cost."""

from __future__ import annotations

from pathlib import Path

from cascadebert.deferral.search.policy import Policy
from cascadebert.errors import MissingDependencyError
from cascadebert.evaluation.evaluate import Evaluation


def plot_frontier(policy: Policy, evaluation: Evaluation, path: str | Path) -> Path:
    """Draw the frontier on the tuning rows, and the cascade as measured on other rows.

    Args:
        policy: comes from ``tune``.
        evaluation: was made on other rows than those of the tuning.
        path: names the picture; its suffix gives the format.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingDependencyError("matplotlib", "drawing the frontier", "report") from None
    tuned = policy.certificate
    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(
        [point.cost / tuned.reference_cost for point in policy.frontier],
        [100 * point.accuracy for point in policy.frontier],
        color="tab:blue",
        label=f"frontier on the {policy.rows:,} tuning rows",
    )
    axes.plot(
        tuned.cost / tuned.reference_cost,
        100 * tuned.accuracy,
        "o",
        color="tab:blue",
        label="thresholds chosen there",
    )
    for stage in evaluation.stages:
        place = (stage.seconds / evaluation.reference_seconds, 100 * stage.accuracy)
        axes.plot(*place, "s", color="tab:gray")
        axes.annotate(
            f"{stage.name} alone", place, xytext=(0, -14), textcoords="offset points", ha="center"
        )
    axes.plot(
        1 / evaluation.speedup_measured,
        100 * evaluation.accuracy,
        "*",
        markersize=14,
        color="tab:red",
        label=f"cascade on {evaluation.rows:,} other rows",
    )
    axes.set_xlabel("time per row, as a share of the last stage alone")
    axes.set_ylabel("accuracy, %")
    axes.set_xlim(0, 1.15)
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path)
    return Path(path)
