"""The cascade against early exits and static models, on one engine, at the same measured cost.

    CASCADEBERT_DATA=... python benchmarks/rivals.py run [--tasks mrpc ...] [--seeds 0]
    CASCADEBERT_DATA=... python benchmarks/rivals.py table

Needs MPNet (``stages.py``) and the small stages (``speed.py train``). All start from the same
pre-trained MPNet, or the same small encoders, and see the same rows for as many epochs as MPNet.
All run in torch, in bfloat16 where that is fast. A method's settings are chosen on the validation
rows, for 1.5, 2, 3, 4 and 6 times fewer layers (of the cascade: seconds), and timed on the test
rows in turn with the whole model; what stands in the table at 2, 3 and 4 times is read off the
line through these points. What is finished is kept in ``checkpoints/rivals``.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import logging
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

import common
from cascadebert import Cascade, Rows, Speedup, read_rows
from cascadebert.data import evenly
from cascadebert.deferral.confidence import max_probability_log_odds
from cascadebert.errors import CascadeWarning
from cascadebert.evaluation.metrics import dis
from cascadebert.rivals.berxit import BERxiT
from cascadebert.rivals.cost_eff import COSTEFF
from cascadebert.rivals.deebert import DeeBERT
from cascadebert.rivals.early_exit import EarlyExit, layers_speedup
from cascadebert.rivals.first_layers import first_layers
from cascadebert.rivals.moebert import MoEBERT
from cascadebert.rivals.network import ExitNetwork
from cascadebert.rivals.pabee import PABEE
from cascadebert.rivals.pruning import PruningCallback, shrink
from cascadebert.rivals.regrouping import ExitAnswers
from cascadebert.rivals.shallow_deep import ShallowDeep
from cascadebert.rivals.stage import as_stage
from cascadebert.scheduler import Prediction
from cascadebert.stage import Stage, StageRun, TransformerStage
from cascadebert.training.fine_tuning import fine_tune
from cascadebert.training.losses import Objective
from cascadebert.training.outputs import Outputs
from cascadebert.training.parts import Parts
from stages import RECIPES, training_rows
from training import MAX_LENGTH, last_stage

PARTS = Parts(common.CHECKPOINTS / "rivals")
TASKS = ("mrpc", "snli", "sst2")
ROWS = {"sst2": 12_000}
EXITS: dict[str, type[EarlyExit]] = {
    "DeeBERT": DeeBERT,
    "Shallow-Deep": ShallowDeep,
    "PABEE": PABEE,
    "BERxiT": BERxiT,
    "COST-EFF": COSTEFF,
}
# Of those trained in phases, the share of the epochs that each phase gets.
PHASE_EPOCHS = {"COST-EFF": 0.5}
CASCADES = {
    "cascade: L3, L6, MPNet": ("MiniLM-L3", "MiniLM-L6"),
    "cascade: linear, L3, L6, MPNet": ("linear", "MiniLM-L3", "MiniLM-L6"),
}
STATIC = ("first 3 layers", "first 4 layers", "first 6 layers", "first 3 layers, distilled")
PRUNED = ("DPF, 50% of heads and columns", "DPF, 75% of heads and columns")
SPEEDUPS = (1.5, 2.0, 3.0, 4.0, 6.0)
SHOWN = (2.0, 3.0, 4.0)
VALIDATION_ROWS, TEST_ROWS = 1_500, 2_000
ROUNDS = 3
RUNTIME = "torch-bf16"


@dataclass(frozen=True)
class Point:
    """One setting of a method, on the test rows.

    Attributes:
        setting: its knob, or what it was asked for.
        accuracy: of its answers.
        speedup: measured, against the whole model: the median over the rounds.
        least, most: the range of that.
        flops_speedup, layers_speedup: by counting operations, and layers whatever their width.
    """

    setting: str
    accuracy: float
    speedup: float
    least: float
    most: float
    flops_speedup: float
    layers_speedup: float


@dataclass(frozen=True)
class Ran:
    """What one run over the test rows gave: their classes, and what was spent by counting."""

    classes: np.ndarray
    flops: float
    layers: float


@dataclass(frozen=True)
class Task:
    """What every method gets."""

    name: str
    train: Rows
    validation: Rows
    test: Rows
    labels: list[str]

    @classmethod
    def read(cls, name: str) -> Task:
        folder = common.data_folder(name)
        validation, test = (
            read_rows(folder / f"{split}.jsonl", with_labels=True)
            for split in ("validation", "test")
        )
        train = training_rows(name, ROWS.get(name, RECIPES[name]["MPNet"][0]))
        return cls(
            name,
            train,
            validation.take(evenly(len(validation), VALIDATION_ROWS).tolist()),
            test.take(evenly(len(test), TEST_ROWS).tolist()),
            sorted(set(train.labels or ())),
        )

    def right(self, classes: np.ndarray) -> np.ndarray:
        truth = np.array([self.labels.index(label) for label in self.test.labels or ()])
        return classes == truth


Setting = tuple[Callable[[], Any], Callable[[Any], Ran]]
"""What is timed, and how its result is read."""


def measure(task: Task, settings: dict[str, Setting], whole: Stage) -> list[Point]:
    """Run every setting and the whole model in turn, on the test rows.

    Args:
        task: whose test rows are run.
        settings: by name.
        whole: the reference.
    """
    runs = {"whole": stage_setting(task, whole), **settings}
    answers = {name: read(run()) for name, (run, read) in runs.items()}
    rounds = [{name: seconds_of(run) for name, (run, _) in runs.items()} for _ in range(ROUNDS)]
    points = []
    whole_run = answers["whole"]
    for name, ran in answers.items():
        ratios = [once["whole"] / once[name] for once in rounds]
        points.append(
            Point(
                name,
                float(task.right(ran.classes).mean()),
                statistics.median(ratios),
                min(ratios),
                max(ratios),
                whole_run.flops / ran.flops,
                whole_run.layers / ran.layers,
            )
        )
    return points


def stage_setting(task: Task, stage: Stage) -> Setting:
    """One model on every row."""

    def read(run: StageRun) -> Ran:
        layers = float(len(task.test) * layers_of(stage))
        return Ran(run.logits.argmax(axis=1), float(run.cost.row_flops(run.lengths).sum()), layers)

    return lambda: stage.run_all(task.test), read


def layers_of(stage: Stage) -> int:
    return stage.record.cost.layers


def seconds_of(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def early_exit(task: Task, name: str, seed: int, whole: Stage) -> dict[str, Any]:
    """Train one network with exits, choose knobs on the validation rows, time them."""
    _, epochs, rate = RECIPES[task.name]["MPNet"]
    start = time.perf_counter()
    rival = EXITS[name](
        common.CHECKPOINTS / "pretrained" / "MPNet",
        max_length=MAX_LENGTH,
        num_train_epochs=epochs * PHASE_EPOCHS.get(name, 1),
        learning_rate=rate,
        seed=seed,
    ).fit(task.train)
    spent = time.perf_counter() - start
    depth = rival.network.depth
    recording = rival.record(task.validation)
    counted = {knob: layers_speedup(rival.replay(recording, knob), depth) for knob in rival.knobs}
    chosen = {min(counted, key=lambda knob: abs(counted[knob] - target)) for target in SPEEDUPS}

    flops_of_all = network_flops(rival.network, whole.run_all(task.test).lengths)

    def read(answers: ExitAnswers) -> Ran:
        # The exits' own classifiers are next to nothing beside a layer.
        flops = float((flops_of_all * answers.layer / depth).sum())
        return Ran(answers.logits.argmax(axis=1), flops, float(answers.layer.sum()))

    settings: dict[str, Setting] = {
        f"{knob:g}": (functools.partial(rival.predict, task.test, knob), read)
        for knob in (rival.knobs[0], *sorted(chosen, key=lambda knob: counted[knob]))
    }
    ramps = rival.record(task.test).logits
    return {
        "points": [asdict(point) for point in measure(task, settings, whole)],
        "dis": {str(k + 1): inversion(task, ramps[k]) for k in range(depth)},
        "seconds": spent,
    }


def network_flops(network: ExitNetwork, lengths: np.ndarray) -> np.ndarray:
    """Operations of each row in all layers."""
    tokens = [8, 16, 24]
    counts = []
    for length in tokens:
        ids = torch.ones((1, length), dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            network(input_ids=ids, attention_mask=ids)
        counts.append(counter.get_total_flops())
    found = np.linalg.solve(np.vander(tokens, increasing=True), counts)
    return np.vander(lengths, 3, increasing=True) @ found


def inversion(task: Task, logits: np.ndarray) -> float:
    right = task.right(logits.argmax(axis=1))
    return dis(max_probability_log_odds(logits), ~right)


def static(task: Task, name: str, seed: int, whole: Stage) -> dict[str, Any]:
    """The first layers, fine-tuned, and run as a stage."""
    _, epochs, rate = RECIPES[task.name]["MPNet"]
    layers = int(name.split()[1])
    distilled = name.endswith("distilled")
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        encoder = first_layers(
            common.CHECKPOINTS / "pretrained" / "MPNet", layers, Path(scratch) / "encoder"
        )
        teacher = Outputs(last_stage(task.name, task.train)["train"]) if distilled else None
        checkpoint = fine_tune(
            encoder,
            task.train,
            Path(scratch) / "tuned",
            objective=Objective("distillation" if distilled else "cross_entropy"),
            teacher=teacher,
            max_length=MAX_LENGTH,
            num_train_epochs=epochs,
            learning_rate=rate,
            seed=seed,
        )
        spent = time.perf_counter() - start
        return alone(task, checkpoint, whole) | {"seconds": spent}


def pruned(task: Task, name: str, seed: int, whole: Stage) -> dict[str, Any]:
    """Heads and columns pruned while it is fine-tuned, then cut out."""
    _, epochs, rate = RECIPES[task.name]["MPNet"]
    share = int(name.split()[1].rstrip("%")) / 100
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        checkpoint = fine_tune(
            common.CHECKPOINTS / "pretrained" / "MPNet",
            task.train,
            Path(scratch) / "tuned",
            callbacks=[PruningCallback(share, structured=True)],
            max_length=MAX_LENGTH,
            num_train_epochs=epochs,
            learning_rate=rate,
            seed=seed,
        )
        spent = time.perf_counter() - start
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    shrink(model.base_model)
    return in_its_place(task, model, whole) | {"seconds": spent}


def experts(task: Task, name: str, seed: int, whole: Stage) -> dict[str, Any]:  # noqa: ARG001
    """The fine-tuned model cut into experts, and trained for as long again."""
    _, epochs, rate = RECIPES[task.name]["MPNet"]
    start = time.perf_counter()
    rival = MoEBERT(
        common.CHECKPOINTS / task.name / "MPNet",
        max_length=MAX_LENGTH,
        num_train_epochs=epochs,
        learning_rate=rate,
        seed=seed,
    ).fit(task.train)
    spent = time.perf_counter() - start
    return in_its_place(task, rival.model, whole) | {"seconds": spent}


def in_its_place(task: Task, model: Any, whole: Stage) -> dict[str, Any]:
    """A model made from the whole one, on the test rows."""
    assert isinstance(whole, TransformerStage)
    stage = as_stage(whole, model, "rival")
    points = measure(task, {"alone": stage_setting(task, stage)}, whole)
    return {"points": [asdict(point) for point in points], "dis": {}}


def complete(task: Task, name: str, seed: int, whole: Stage) -> dict[str, Any]:  # noqa: ARG001
    """A small stage by itself."""
    return alone(task, common.CHECKPOINTS / task.name / "small" / name, whole)


def alone(task: Task, checkpoint: Path, whole: Stage) -> dict[str, Any]:
    """One model on the test rows."""
    (stage,) = in_torch([checkpoint]).stages
    points = measure(task, {"alone": stage_setting(task, stage)}, whole)
    logits = stage.run_all(task.test).logits
    return {
        "points": [asdict(point) for point in points],
        "dis": {str(layers_of(stage)): inversion(task, logits)},
    }


def cascade(task: Task, name: str, seed: int, whole: Stage) -> dict[str, Any]:  # noqa: ARG001
    """Small stages and the whole model, thresholds from the validation rows."""
    small = common.CHECKPOINTS / task.name / "small"
    # Its label names are sorted, as those of every other method here.
    made = in_torch(
        [*(small / stage for stage in CASCADES[name]), common.CHECKPOINTS / task.name / "MPNet"]
    )
    assert list(made.labels) == task.labels
    flops = np.array(
        [stage.record.cost.row_flops(stage.tokenize(task.test).lengths) for stage in made.stages]
    )
    layers = np.array([layers_of(stage) for stage in made.stages])

    def run(thresholds: Sequence[float]) -> Prediction:
        made.thresholds = thresholds
        return made.predict(task.test)

    def read(out: Prediction) -> Ran:
        classes = np.array([task.labels.index(label) for label in out.labels])
        return Ran(classes, float((out.passed * flops.T).sum()), float((out.passed @ layers).sum()))

    settings: dict[str, Setting] = {}
    for target in SPEEDUPS:
        made.tune(task.validation, Speedup(target), None)
        settings[f"{target:g}x"] = functools.partial(run, made.thresholds or ()), read
    return {"points": [asdict(point) for point in measure(task, settings, whole)], "dis": {}}


def in_torch(checkpoints: Sequence[Path]) -> Cascade:
    """Checkpoints as a cascade in torch."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "cascade"
        Cascade.from_stages(checkpoints).save_pretrained(target)
        return Cascade.from_pretrained(target, runtime=RUNTIME)


METHODS: dict[str, Callable[[Task, str, int, Stage], dict[str, Any]]] = {
    **dict.fromkeys(CASCADES, cascade),
    **dict.fromkeys(("MiniLM-L3", "MiniLM-L6"), complete),
    **dict.fromkeys(STATIC, static),
    **dict.fromkeys(PRUNED, pruned),
    "MoEBERT": experts,
    **dict.fromkeys(EXITS, early_exit),
}
SEEDLESS = (cascade, complete)


def run(tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> None:
    """Train and time all that is not there yet."""
    for name in tasks:
        task = Task.read(name)
        (whole,) = in_torch([common.CHECKPOINTS / name / "MPNet"]).stages
        for seed, method in itertools.product(seeds, methods):
            make = METHODS[method]
            if make in SEEDLESS and seed != seeds[0]:
                continue

            def found(result: Path, _: Path, make: Any = make, method: str = method) -> None:
                figures = make(task, method, seed, whole)  # noqa: B023
                (result / "result.json").write_text(json.dumps(figures))

            PARTS.run(*part_of(name, method, seed), found)
            print(name, method, seed, flush=True)


def part_of(task: str, method: str, seed: int) -> tuple[str, dict[str, Any]]:
    """Name and settings of the part that a method's figures are kept as."""
    seed = 0 if METHODS[method] in SEEDLESS else seed
    rows = ROWS.get(task, RECIPES[task]["MPNet"][0])
    settings = {"task": task, "method": method, "seed": seed, "rows": rows, "test": TEST_ROWS}
    return f"{task}-{re.sub(r'[^A-Za-z0-9]+', '-', method)}-{seed}", settings


def read_results(tasks: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """All that is there, by task, method and seed."""
    found: dict[str, Any] = {}
    for task, method, seed in itertools.product(tasks, METHODS, seeds):
        part = part_of(task, method, seed)
        if PARTS.has(*part):
            text = (PARTS.path(*part) / "result.json").read_text()
            found.setdefault(task, {}).setdefault(method, {})[str(seed)] = json.loads(text)
    return found


def accuracy_at(points: list[dict[str, Any]], speedup: float) -> float | None:
    """Read off the line through the points; None where it does not reach so far."""
    at = sorted((point["speedup"], point["accuracy"]) for point in points)
    speeds, accuracies = zip(*at, strict=True)
    if not speeds[0] <= speedup <= speeds[-1]:
        return None
    return float(np.interp(speedup, speeds, accuracies))


def table(results: dict[str, Any]) -> str:
    """Accuracy at the same measured speed-up, then every point, then DIS by depth."""
    return "\n\n".join("\n".join(part(results)) for part in (matched, all_points, inversions))


def matched(results: dict[str, Any]) -> list[str]:
    columns = [f"{task}, {speed:g}x" for task in results for speed in SHOWN]
    means = [f"mean, {speed:g}x" for speed in SHOWN]
    lines = [
        f"| | {' | '.join(columns + means)} |",
        "|---|" + "---|" * (len(columns) + len(means)),
    ]
    for method in METHODS:
        cells: dict[str, float | None] = {}
        for task, speed in itertools.product(results, SHOWN):
            seeds = results[task].get(method, {}).values()
            values = [accuracy_at(seed["points"], speed) for seed in seeds]
            known = [value for value in values if value is not None]
            whole = bool(known) and len(known) == len(values)
            cells[f"{task}, {speed:g}x"] = statistics.mean(known) if whole else None
        shown = [told(cells[column]) for column in columns]
        for speed in SHOWN:
            own = [cells[f"{task}, {speed:g}x"] for task in results]
            full = [value for value in own if value is not None]
            shown.append(told(statistics.mean(full) if len(full) == len(own) else None))
        lines.append(f"| {method} | {' | '.join(shown)} |")
    return lines


def told(accuracy: float | None) -> str:
    return "–" if accuracy is None else f"{100 * accuracy:.1f}"


def all_points(results: dict[str, Any]) -> list[str]:
    lines = [
        "| task | method | seed | setting | accuracy | × whole model, measured (range) "
        "| × by operations | × by layers | seconds of training |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task, methods in results.items():
        for method, seeds in methods.items():
            for seed, own in seeds.items():
                spent = f"{own['seconds']:,.0f}" if "seconds" in own else ""
                for point in own["points"]:
                    lines.append(
                        f"| {task} | {method} | {seed} | {point['setting']} "
                        f"| {100 * point['accuracy']:.1f} | {point['speedup']:.2f} "
                        f"({point['least']:.2f}–{point['most']:.2f}) "
                        f"| {point['flops_speedup']:.2f} | {point['layers_speedup']:.2f} "
                        f"| {spent} |"
                    )
    return lines


def inversions(results: dict[str, Any]) -> list[str]:
    lines = [
        "| task | method | seed | DIS by layer |",
        "|---|---|---|---|",
    ]
    for task, methods in results.items():
        for method, seeds in methods.items():
            for seed, own in seeds.items():
                shown = ", ".join(f"{layer}: {value:.1f}" for layer, value in own["dis"].items())
                if shown:
                    lines.append(f"| {task} | {method} | {seed} | {shown} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=RECIPES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore", CascadeWarning)
    if options.action == "run":
        run(options.tasks, options.methods, options.seeds)
        return
    results = read_results(options.tasks, options.seeds)
    common.keep("rivals", {"results": results}, table(results))


if __name__ == "__main__":
    main()
