"""Rows per second and peak memory of ``cascadebert predict`` on a million rows.

    CASCADEBERT_DATA=... python benchmarks/million_rows.py [--rows N ...]

Parquet files are made of the sst2 texts, over and over. The cascade is MiniLM-L3 and MPNet
with a threshold that lets about 99 % of the rows exit at the first stage. Peak memory is the
resident set of the whole process, which must not grow with the number of rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

import common
from cascadebert import Cascade, read_rows

DEFERRED = 0.01
SIZES = (10_000, 100_000, 1_000_000)


def write_rows(texts: list[str], count: int, path: Path) -> None:
    """A Parquet file of ``count`` texts, written in pieces."""
    schema = pa.schema({"id": pa.int64(), "text": pa.string()})
    stream = enumerate(itertools.islice(itertools.cycle(texts), count))
    with parquet.ParquetWriter(path, schema) as writer:
        while part := list(itertools.islice(stream, 50_000)):
            ids, rows = zip(*part, strict=True)
            writer.write_table(pa.table({"id": ids, "text": rows}, schema=schema))


def measure(cascade: Path, source: Path, target: Path) -> dict[str, Any]:
    """Run the command, and read its own report and its peak memory."""
    report = target.with_suffix(".json")
    # ru_maxrss would start from the peak of this process; VmHWM is the child's own.
    code = (
        "import re, pathlib; from cascadebert.cli.main import main\n"
        "try: main()\n"
        "finally: print(*re.findall(r'VmHWM:\\s*(\\d+)', "
        "pathlib.Path('/proc/self/status').read_text()))"
    )
    arguments = ["predict", cascade, "--input", source, "--output", target, "--json", report]
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rows = parquet.ParquetFile(target).metadata.num_rows
    summary: dict[str, Any] = json.loads(report.read_text())
    assert rows == summary["rows"]
    return summary | {"peak_megabytes": int(done.stdout.split()[-1]) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES)
    sizes = parser.parse_args().rows
    data = common.data_folder("sst2")
    stages = [common.CHECKPOINTS / "sst2" / name for name in ("MiniLM-L3", "MPNet")]
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cascade = Cascade.from_stages(stages)
        held_out = read_rows(data / "validation.jsonl").slice(0, 2_000)
        confidence = cascade.alone(1).predict(held_out).confidence
        cascade.thresholds = (float(np.quantile(confidence, DEFERRED)),)
        cascade.save_pretrained(folder / "cascade")
        texts = list(read_rows(data / "train.jsonl").texts)
        for count in sizes:
            write_rows(texts, count, folder / "rows.parquet")
            results.append(
                measure(folder / "cascade", folder / "rows.parquet", folder / "answers.parquet")
            )
            print(results[-1], flush=True)
    lines = [
        "| rows | seconds | rows/s | exits at MiniLM-L3 | peak memory, MB |",
        "|---|---|---|---|---|",
        *(
            f"| {r['rows']:,} | {r['seconds']:.0f} | {r['rows_per_second']:,.0f} "
            f"| {r['exit_fractions'][0]:.1%} | {r['peak_megabytes']:,.0f} |"
            for r in results
        ),
    ]
    common.keep("million_rows", {"runs": results}, "\n".join(lines))


if __name__ == "__main__":
    main()
