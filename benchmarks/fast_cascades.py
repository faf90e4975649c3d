"""What a cascade saves on the clock, on five data sets.

    CASCADEBERT_DATA=... python benchmarks/fast_cascades.py train [--tasks sst2 ...]
    CASCADEBERT_DATA=... python benchmarks/fast_cascades.py build [--tasks sst2 ...]
    CASCADEBERT_DATA=... python benchmarks/fast_cascades.py run [--tasks sst2 ...]
    python benchmarks/fast_cascades.py table

``train`` distils MPNet (made by ``train_plain_stages.py``) into the small stages, as
``train_small_stages.py`` does.
``build`` makes cascades of these, a linear stage and MPNet, quantised on training rows as
``cascadebert build --data`` does it, in ``checkpoints/<task>/fast``. ``run`` tunes them on
validation rows (of sst2 on those unlike any training row), and times them on the test rows with
what ``cascadebert bench`` times.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import common
from cascadebert import Cascade, MaxDrop, Rows, read_rows
from cascadebert.bench.bench import bench
from cascadebert.bench.contenders import contenders
from cascadebert.bench.result import BenchResult
from cascadebert.bench.worker import CascadeSubject
from cascadebert.persistence.record import read_record
from cascadebert.rows.rows import evenly
from cascadebert.training.linear import fit_linear
from train_plain_stages import training_rows
from train_small_stages import ENCODERS, RECIPES, teaching, train_stage

TASKS = ("sst2", "clinc150", "agnews", "mrpc", "snli")
STAGES = ("linear", *ENCODERS, "MPNet")
TRAININGS_AT_ONCE = 2
CALIBRATION_ROWS = 4_000
RETAINED = (0.995, 0.99)
TEST_ROWS = 4_000
MANY_ROWS = 10_000
VALIDATION_ROWS = 2_000
LEAST_WORDS = 8
SHARED_WORDS = 5
MOST_TRAINING_ROWS = 16_000
ROUNDS = 3
SECONDS = 6.0
CACHE = common.CHECKPOINTS / "speed"


def train(tasks: list[str]) -> None:
    """The small stages, all on the same rows.

    sst2's validation rows have near duplicates among the training rows: a stage that has seen more
    of these than the last one looks too good on them.
    """
    for task in tasks:
        teaching(task, training_rows(task, RECIPES[task][0]))
    jobs = list(itertools.product(tasks, STAGES[:-1]))
    with common.side_by_side(TRAININGS_AT_ONCE) as pool:
        for path in pool.map(small_stage, *zip(*jobs, strict=True)):
            print(path, flush=True)


def small_stage(task: str, name: str) -> Path:
    """One small stage; one that is there already is kept."""
    output = common.CHECKPOINTS / task / "small" / name
    if (output / "training.json").exists():
        return output
    start = common.core_seconds()
    if name == "linear":
        fit_linear(training_rows(task, RECIPES[task][0]), output)
    else:
        train_stage((task, name, "distillation", 0), output)
    spent = {"core_seconds": round(common.core_seconds() - start, 1)}
    (output / "training.json").write_text(json.dumps(spent) + "\n")
    return output


def build(task: str) -> None:
    """Export, quantise and time the stages of one cascade."""
    folder = common.CHECKPOINTS / task
    if (folder / "fast").exists():
        return
    rows = training_rows(task, CALIBRATION_ROWS)
    cascade = Cascade.from_stages(
        [*(folder / "small" / name for name in STAGES[:-1]), folder / "MPNet"],
        rows=Rows(rows.texts, rows.pairs),
    )
    cascade.save_pretrained(folder / "fast")


def run(task: str) -> dict[str, Any]:
    """Tune one cascade for what is to be retained, and time it."""
    folder, data = common.CHECKPOINTS / task / "fast", common.data_folder(task)
    validation = validation_rows(task)
    validation = validation.take(evenly(len(validation), VALIDATION_ROWS).tolist())
    cascade = Cascade.from_pretrained(folder)
    cascade.measure_speed(training_rows(task, CALIBRATION_ROWS))
    runs = cascade.run_stages(validation)
    truth = cascade.label_ids(validation)
    reference = float((runs[-1].logits.argmax(axis=1) == truth).mean())
    test = read_rows(data / "test.jsonl", with_labels=True, known_labels=cascade.labels)
    test = test.take(evenly(len(test), TEST_ROWS).tolist())
    found: dict[str, Any] = {"stages": [dataclasses.asdict(s.record) for s in cascade.stages]}
    for number, retained in enumerate(RETAINED):
        certificate = cascade.tune(validation, MaxDrop((1 - retained) * reference), None)
        cascade.save_pretrained(folder)
        loaded = Cascade.from_pretrained(folder)
        # The others are the same for every target.
        skip = [c.name for c in contenders(loaded)[2:]] if number else []
        result = bench(loaded, test, rounds=ROUNDS, seconds=SECONDS, skip=skip)
        found[f"{retained:.1%}"] = {
            "thresholds": certificate.thresholds,
            "validation_speedup": certificate.speedup,
            "exit_fractions": shares(loaded, test),
            "bench": result.to_dict(),
        }
        print(task, retained, summary(result), flush=True)
    return found


def validation_rows(task: str) -> Rows:
    """Held-out rows; of sst2 those that are unlike the training rows."""
    rows = read_rows(common.data_folder(task) / "validation.jsonl", with_labels=True)
    return unlike_training(rows) if task == "sst2" else rows


def unlike_training(validation: Rows) -> Rows:
    """Of sst2's validation rows, phrases cut out of training sentences, those that are new.

    These are long enough to be like sentences, and no :data:`SHARED_WORDS` words of them stand in
    a row in what any stage was trained on.
    """
    n = SHARED_WORDS

    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    seen = set().union(*map(runs, training_rows("sst2", MOST_TRAINING_ROWS).texts))
    new = [
        i
        for i, text in enumerate(validation.texts)
        if len(text.split()) >= LEAST_WORDS and not runs(text) & seen
    ]
    return validation.take(new)


def many_rows(task: str) -> dict[str, float]:
    """A cascade on many rows, of all splits: what no stage computes in, and what was predicted."""
    folder, data = common.CHECKPOINTS / task / "fast", common.data_folder(task)
    parts = [read_rows(data / f"{name}.jsonl") for name in ("test", "validation", "train")]
    rows = Rows(
        [text for part in parts for text in part.texts],
        parts[0].pairs and [pair for part in parts for pair in part.pairs or ()],
    ).slice(0, MANY_ROWS)
    runtimes = [stage.runtime for stage in read_record(folder).stages]
    subject = CascadeSubject(folder, range(1, len(runtimes) + 1), runtimes)
    passed = subject.answer(rows).passed
    assert passed is not None
    shares, walls = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        compute = subject.answer(rows).compute_seconds
        walls.append(time.perf_counter() - start)
        shares.append(1 - (compute or 0.0) / walls[-1])
    return {
        "rows": len(rows),
        "seconds": statistics.median(walls),
        "predicted": subject.predicted(rows, passed)["predicted_seconds"],
        "share": statistics.median(shares),
        "least": min(shares),
        "most": max(shares),
    }


def shares(cascade: Cascade, rows: Rows) -> list[float]:
    """Of the rows that each stage answers."""
    answered = np.bincount(cascade.predict(rows).stage - 1, minlength=len(cascade.stages))
    return (answered / len(rows)).tolist()


def summary(result: BenchResult) -> str:
    """The cascade in a line."""
    (own,) = (c for c in result.contenders if c.kind == "cascade")
    return f"{own.ratio:.2f} times, {own.accuracy_retained:.4f} retained"


def table(results: dict[str, Any]) -> str:
    """One line a task and target, then one a contender."""
    lines = [
        "| task | to retain | retained on test | × last stage, same engine (range) | oracle "
        "| answered by linear, L3, L6, MPNet | of the time in each | × pipeline, batch 1 "
        "| predicted / measured |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task, found in results.items():
        for retained in (f"{share:.1%}" for share in RETAINED):
            lines.append(_line(task, retained, found))
    lines += [
        "",
        "| task | | rows/s | × last stage (range) | accuracy | single row, ms: p50, p95, p99 "
        "| start-up, s | memory, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task, found in results.items():
        for own in found[f"{RETAINED[0]:.1%}"]["bench"]["contenders"]:
            lines.append(_contender(task, own))
    lines += [
        "",
        "| task | rows | seconds of the cascade | predicted / measured "
        "| share of the seconds in no stage (range) |",
        "|---|---|---|---|---|",
    ]
    for task, found in results.items():
        spent = found["many_rows"]
        lines.append(
            f"| {task} | {spent['rows']:,} | {spent['seconds']:.2f} "
            f"| {spent['predicted'] / spent['seconds']:.2f} "
            f"| {spent['share']:.1%} ({spent['least']:.1%}–{spent['most']:.1%}) |"
        )
    return "\n".join(lines)


def _line(task: str, retained: str, found: dict[str, Any]) -> str:
    result = found[retained]["bench"]
    by_name = {own["name"]: own for own in result["contenders"]}
    own = by_name["cascade"]
    others = found[f"{RETAINED[0]:.1%}"]["bench"]["contenders"]
    pipeline = next(c for c in others if c["kind"] == "pipeline" and c["name"].endswith(" 1"))
    oracle = found[f"{RETAINED[0]:.1%}"]["bench"]["oracle"]
    low, high = own["ratio_range"]
    shares = ", ".join(f"{share:.0%}" for share in found[retained]["exit_fractions"])
    spent = ", ".join(f"{share:.0%}" for share in time_shares(found[retained], others))
    return (
        f"| {task} | {retained} | {own['accuracy_retained']:.2%} "
        f"| **{own['ratio']:.2f}** ({low:.2f}–{high:.2f}) | {oracle['speedup']:.1f} "
        f"| {shares} | {spent} | {own['ratio'] / pipeline['ratio']:.0f} "
        f"| {result['predicted_ratio']:.2f} |"
    )


def time_shares(found: dict[str, Any], contenders: list[dict[str, Any]]) -> list[float]:
    """Of the seconds of all stages, from the rows that reach each and what it does alone."""
    rates = {c["name"].removesuffix(" alone"): c["rows_per_second"] for c in contenders}
    left, seconds = 1.0, []
    runs = [threshold < 1 for threshold in found["thresholds"]] + [True]
    for name, is_run, answered in zip(STAGES, runs, found["exit_fractions"], strict=True):
        seconds.append(is_run * left / rates[name])
        left -= answered
    return [spent / sum(seconds) for spent in seconds]


def _contender(task: str, own: dict[str, Any]) -> str:
    low, high = own["ratio_range"]
    latency = own["latency_ms"]
    return (
        f"| {task} | {own['name']} | {own['rows_per_second']:,.0f} "
        f"| {own['ratio']:.2f} ({low:.2f}–{high:.2f}) | {own['accuracy']:.4f} "
        f"| {latency['p50']:.2f}, {latency['p95']:.2f}, {latency['p99']:.2f} "
        f"| {own['startup_seconds']:.1f} | {own['peak_memory_mb']:,.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("train", "build", "run", "table"))
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    options = parser.parse_args()
    if options.step == "train":
        train(options.tasks)
        return
    if options.step == "build":
        for task in options.tasks:
            build(task)
        return
    logging.disable(logging.WARNING)
    CACHE.mkdir(parents=True, exist_ok=True)
    for task in options.tasks if options.step == "run" else ():
        (CACHE / f"{task}.json").write_text(json.dumps(run(task) | {"many_rows": many_rows(task)}))
    results = {
        path.stem: json.loads(path.read_text())
        for path in (CACHE / f"{task}.json" for task in TASKS)
        if path.exists()
    }
    common.keep("fast_cascades", {"tasks": results}, table(results))


if __name__ == "__main__":
    main()
