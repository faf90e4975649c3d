"""How long the search for thresholds takes.

python benchmarks/search.py
"""

from __future__ import annotations

import statistics
import time

import numpy as np

import common
from cascadebert import MaxDrop, choose_thresholds
from worlds import synthetic_stages

SIZES = ((2, 1_000), (3, 1_000), (3, 10_000), (5, 10_000), (3, 100_000), (5, 100_000))
REPEATS = 3
TARGET = MaxDrop(0.02)


def main() -> None:
    lines = [
        "| stages | rows | certified: seconds (range of 3) | best on these rows, no promise |",
        "|---|---|---|---|",
    ]
    results = []
    for stages, rows in SIZES:
        costs = np.geomspace(1, 20, stages)
        times: dict[float | None, list[float]] = {0.95: [], None: []}
        for seed in range(REPEATS):
            probabilities, labels = synthetic_stages(stages, rows, seed)
            for confidence, spent in times.items():
                start = time.perf_counter()
                choose_thresholds(probabilities, labels, costs, TARGET, confidence, seed)
                spent.append(time.perf_counter() - start)
        shown = [f"{statistics.median(t):.1f} ({min(t):.1f}–{max(t):.1f})" for t in times.values()]
        lines.append(f"| {stages} | {rows:,} | {shown[0]} | {shown[1]} |")
        results.append({"stages": stages, "rows": rows, "certified": times[0.95],
                        "estimated": times[None]})  # fmt: skip
        print(lines[-1], flush=True)
    common.keep("search", {"target": str(TARGET), "sizes": results}, "\n".join(lines))


if __name__ == "__main__":
    main()
