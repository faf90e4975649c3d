"""How often promises are broken, by repetition.

    python benchmarks/coverage.py run [--jobs 2]     # goes on where it was cut off
    python benchmarks/coverage.py table

Held-out rows are drawn, thresholds are tuned on them with confidence 0.95, and the promise is
checked on the whole population that the rows were drawn from; see ``worlds.py``.
"""

from __future__ import annotations

import argparse
import itertools
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

import common
from cascadebert import MaxDrop, MinAccuracy, MinAgreement, Speedup, choose_thresholds
from cascadebert.deferral.certificates.certificate import NOT_CERTIFIED
from cascadebert.deferral.targets import Target
from cascadebert.errors import TargetError
from worlds import REAL, STAGES, World, world

LEVEL = 0.05
REPEATS, NAIVE_REPEATS = 1_000, 50
ROWS = (200, 500, 2_000, 10_000)
TARGETS = ("MaxDrop", "MinAgreement", "MinAccuracy", "Speedup")
KEPT = common.CHECKPOINTS / "coverage"
Cell = tuple[str, str, int, int]


def cells() -> list[Cell]:
    """World, target, stages and rows: every target and world with three stages, every number of
    stages with the first target.
    """
    series = [
        *(("synthetic", target, 3) for target in TARGETS),
        *(("synthetic", TARGETS[0], stages) for stages in STAGES if stages != 3),
        *((name, TARGETS[0], 3) for name in REAL),
    ]
    return [(*one, rows) for rows, one in itertools.product(ROWS, series)]


def target_for(name: str, here: World) -> Target:
    """A target that the cascade can meet, and not without trying."""
    last = here.probabilities[-1].argmax(axis=1)
    reference = float((last == here.labels).mean())
    return {
        "MaxDrop": MaxDrop(0.02),
        "MinAgreement": MinAgreement(0.95),
        "MinAccuracy": MinAccuracy(round(reference - 0.02, 3)),
        "Speedup": Speedup(6.0),
    }[name]


def run_cell(
    cell: Cell, repeats: int = REPEATS, naive_repeats: int = NAIVE_REPEATS
) -> dict[str, Any]:
    """Shares of broken promises of ours and of the naive rule, and what was certified."""
    name, kind, stages, rows = cell
    here = world(name, stages)
    target = target_for(kind, here)
    broken = certified = naive_broken = 0
    speedups = []
    for seed in range(repeats):
        probabilities, labels = here.draw(rows, seed)
        policy = choose_thresholds(probabilities, labels, here.costs, target, 1 - LEVEL, seed)
        if policy.certificate.verdict != NOT_CERTIFIED:
            kept, cost, _ = here.truth(policy, target)
            certified += 1
            broken += not kept
            speedups.append(float(here.costs[-1]) / cost)
        if seed < naive_repeats:
            try:
                naive = choose_thresholds(probabilities, labels, here.costs, target, None)
            except TargetError:
                continue
            naive_broken += not here.truth(naive, target)[0]
    return {
        "target": str(target),
        "repeats": repeats,
        "broken": broken / repeats,
        "certified": certified / repeats,
        "speedup": float(np.mean(speedups)) if speedups else None,
        "naive_broken": naive_broken / naive_repeats,
    }


def kept_file(cell: Cell) -> Path:
    return KEPT / ("-".join(map(str, cell)) + ".json")


def run(jobs: int) -> None:
    """Do the cells that are not done."""
    KEPT.mkdir(parents=True, exist_ok=True)
    todo = [cell for cell in cells() if not kept_file(cell).exists()]
    with ProcessPoolExecutor(jobs) as pool:
        waiting = {pool.submit(run_cell, cell): cell for cell in todo}
        for done in as_completed(waiting):
            cell, result = waiting[done], done.result()
            temporary = kept_file(cell).with_suffix(".tmp")
            temporary.write_text(json.dumps(result), encoding="utf-8")
            temporary.rename(kept_file(cell))
            print(*cell, result, flush=True)


def allowed(repeats: int) -> float:
    """The level and two standard errors of a share over the repeats."""
    return LEVEL + 2 * float(np.sqrt(LEVEL * (1 - LEVEL) / repeats))


def table(found: dict[Cell, dict[str, Any]]) -> str:
    """A line a world, target and number of stages; a column a number of rows."""
    lines = [
        "| rows from | promise | stages | "
        + " | ".join(f"{rows:,} rows: broken / made, speed-up; naive broken" for rows in ROWS)
        + " |",
        "|---" * (3 + len(ROWS)) + "|",
    ]
    groups = dict.fromkeys((name, kind, stages) for name, kind, stages, _ in found)
    for name, kind, stages in sorted(groups):
        shown = []
        for rows in ROWS:
            cell = found.get((name, kind, stages, rows))
            if cell is None:
                shown.append("–")
                continue
            speedup = "" if cell["speedup"] is None else f", {cell['speedup']:.2f}x"
            shown.append(
                f"{cell['broken']:.1%} / {cell['certified']:.0%}{speedup}; "
                f"{cell['naive_broken']:.0%}"
            )
        words = next(v["target"] for k, v in found.items() if k[:3] == (name, kind, stages))
        lines.append(f"| {name} | {words} | {stages} | " + " | ".join(shown) + " |")
    worst = max(found.values(), key=lambda cell: cell["broken"])
    naive = [cell["naive_broken"] for cell in found.values()]
    lines += [
        "",
        f"The most broken promises in any cell: {worst['broken']:.1%} of {worst['repeats']:,} "
        f"repeats; a level of {LEVEL:.0%} allows {allowed(worst['repeats']):.1%} with two standard "
        f"errors. The naive rule breaks {np.mean(naive):.0%} on average over the cells, from "
        f"{min(naive):.0%} to {max(naive):.0%}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--jobs", type=int, default=2)
    wanted = parser.parse_args()
    if wanted.what == "run":
        run(wanted.jobs)
        return
    found = {
        cell: json.loads(kept_file(cell).read_text(encoding="utf-8"))
        for cell in cells()
        if kept_file(cell).exists()
    }
    cells_kept = [{"cell": cell, **result} for cell, result in found.items()]
    common.keep("coverage", {"level": LEVEL, "cells": cells_kept}, table(found))


if __name__ == "__main__":
    main()
