"""What the benchmarks share: where data lies, what machine this is, how results are kept."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "checkpoints"
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
PACKAGES = ("cascadebert", "numpy", "onnxruntime", "tokenizers", "torch", "transformers")


def data_folder(task: str) -> Path:
    """``$CASCADEBERT_DATA/<task>``, with train, validation and test as JSONL."""
    folder = Path(os.environ.get("CASCADEBERT_DATA", ROOT / "data")) / task
    if not (folder / "test.jsonl").exists():
        sys.exit(f"{folder}: no data; set CASCADEBERT_DATA to the folder that holds {task}/")
    return folder


def side_by_side(jobs: int, initializer: Callable[[], object] | None = None) -> ProcessPoolExecutor:
    """So many processes at a time, one a job, that share the cores: one training of a small stage
    does not fill them.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // jobs, 1)))
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, context, initializer, max_tasks_per_child=1)


def core_seconds() -> float:
    """A clock for trainings: seconds of one core, or of the accelerator.

    Other work on the machine does not count, where the processor does the work.
    """
    import torch

    return time.perf_counter() if torch.accelerator.is_available() else time.process_time()


def setting() -> dict[str, Any]:
    """The machine and the versions that a result was made with."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu.group(1) if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def keep(name: str, result: dict[str, Any], table: str) -> None:
    """Save a result as JSON, and its table in the section ``name`` of docs/results.md."""
    RESULTS.mkdir(exist_ok=True)
    made_with = setting()
    text = json.dumps({"setting": made_with, **result}, indent=1, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    versions = ", ".join(f"{package} {made_with[package]}" for package in PACKAGES[1:])
    caption = (
        f"*{made_with['date']}, {made_with['cores']} cores of {made_with['cpu']}, "
        f"Python {made_with['python']}, {versions}. Made by `benchmarks/{name}.py`.*"
    )
    page = PAGE.read_text(encoding="utf-8")
    section = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not section.search(page):
        sys.exit(f"{PAGE}: no section <!-- {name} --> … <!-- /{name} --> to write to")
    filled = section.sub(lambda match: f"{match[1]}{table}\n\n{caption}\n{match[2]}", page)
    PAGE.write_text(filled, encoding="utf-8")
    print(table)
