"""How long a process takes until its first answer, and what memory it holds then.

    CASCADEBERT_DATA=... python benchmarks/start_up.py

Needs sst2's cascade of ``fast_cascades.py build``, of which L3 and MPNet are taken. Every run is a
process of its own, with and without compiled models that an earlier one kept
(``CASCADEBERT_CACHE``), in turn; files are in the page cache.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import common
from cascadebert import Cascade
from cascadebert.deferral.confidence import DEFAULT_SCORE
from cascadebert.deferral.routing import Thresholds
from cascadebert.persistence.record import read_record

STAGES = ("MiniLM-L3", "MPNet")
ROUNDS = 7
FIRST_ANSWER = """
import time
start = time.perf_counter()
import sys
from pathlib import Path
from cascadebert import Cascade
cascade = Cascade.from_pretrained(sys.argv[1])
cascade.alone(2).predict(["a quiet , moving story"])
took = time.perf_counter() - start
held = next(l for l in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in l)
assert "torch" not in sys.modules
print(took, int(held.split()[1]) / 1024)
"""


def main() -> None:
    whole = common.CHECKPOINTS / "sst2" / "fast"
    record = read_record(whole)
    chosen = tuple(stage for stage in record.stages if stage.name in STAGES)
    plain = dataclasses.replace(record, stages=chosen, score=DEFAULT_SCORE, score_parameters=None)
    plain = plain.with_routing(Thresholds.last_stage_alone(len(chosen)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Cascade(whole, plain).save_pretrained(Path(scratch) / "two")
        stored = sum(
            path.stat().st_size for path in folder.glob("stages/*/openvino/*") if path.is_file()
        )
        kept = {"CASCADEBERT_CACHE": str(Path(scratch) / "kept")}
        found: dict[str, list[list[float]]] = {"compiled each time": [], "kept": []}
        first_answer(folder, kept)
        for _ in range(ROUNDS):
            found["compiled each time"].append(first_answer(folder, {}))
            found["kept"].append(first_answer(folder, kept))
    lines = [
        "| L3 and MPNet, int8 | seconds to the first answer (range) | MB held then |",
        "|---|---|---|",
    ]
    for name, runs in found.items():
        seconds, held = zip(*runs, strict=True)
        lines.append(
            f"| {name} | {statistics.median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f}) "
            f"| {statistics.median(held):,.0f} |"
        )
    lines.append(f"| int8 models as stored | | {stored / 2**20:,.0f} |")
    common.keep("start_up", {"runs": found, "stored_bytes": stored}, "\n".join(lines))


def first_answer(folder: Path, more: dict[str, str]) -> list[float]:
    """Seconds and megabytes of one process."""
    environment = {name: value for name, value in os.environ.items() if name != "CASCADEBERT_CACHE"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FIRST_ANSWER, str(folder)],
        env=environment | more,
        check=True,
        capture_output=True,
        text=True,
    )
    return [float(value) for value in done.stdout.split()]


if __name__ == "__main__":
    main()
