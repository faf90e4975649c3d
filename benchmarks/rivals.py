"""The cascade against early exits and static models, on one engine, at the same measured cost.

    CASCADEBERT_DATA=... python benchmarks/rivals.py run [--tasks mrpc ...] [--seeds 0]
    CASCADEBERT_DATA=... python benchmarks/rivals.py table

Needs MPNet (``stages.py``) and the small stages (``speed.py train``). All start from the same
pre-trained MPNet, or the same small encoders, and see the same rows for as many epochs as MPNet.
All run in torch, in bfloat16 where that is fast. A method's settings are chosen on the validation
rows (of sst2 on those unlike any training row), for 1.5, 2, 3, 4 and 6 times fewer layers (of the
cascade: seconds). They answer the test rows, and are timed on some of these in turn with the whole
model; what stands in the table at 2, 3 and 4 times is read off the line through these points. What
is finished is kept in ``checkpoints/rivals``.
"""

from __future__ import annotations

import argparse
import copy
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
from cascadebert.evaluation.bench_result import oracle
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
from cascadebert.stage import Stage
from cascadebert.training.fine_tuning import fine_tune
from cascadebert.training.losses import Objective
from cascadebert.training.outputs import Outputs
from cascadebert.training.parts import Parts
from speed import validation_rows
from stages import RECIPES, training_rows
from training import MAX_LENGTH, last_stage

PARTS = Parts(common.CHECKPOINTS / "rivals")
TASKS = ("sst2", "mrpc", "snli")
EXITS: dict[str, type[EarlyExit]] = {
    "DeeBERT": DeeBERT,
    "Shallow-Deep": ShallowDeep,
    "PABEE": PABEE,
    "BERxiT": BERxiT,
    "COST-EFF": COSTEFF,
}
# Of those trained in phases, the share of the epochs that each phase gets.
PHASE_EPOCHS = {"COST-EFF": 0.5}
STATIC = ("first 3 layers", "first 4 layers", "first 6 layers", "first 3 layers, distilled")
PRUNED = ("DPF, 50% of heads and columns", "DPF, 75% of heads and columns")
MIDDLE = PRUNED[1]
CASCADES = {
    "cascade: L3, L6, MPNet": ("MiniLM-L3", "MiniLM-L6"),
    "cascade: linear, L3, L6, MPNet": ("linear", "MiniLM-L3", "MiniLM-L6"),
    "cascade: L3, pruned MPNet, MPNet": ("MiniLM-L3", MIDDLE),
}
CHECKPOINT = "checkpoint"
PRETRAINED = common.CHECKPOINTS / "pretrained" / "MPNet"
SPEEDUPS = (1.5, 2.0, 3.0, 4.0, 6.0)
SHOWN = (2.0, 3.0, 4.0)
VALIDATION_ROWS, TEST_ROWS, TIMED_ROWS = 1_500, 2_000, 500
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
        train = training_rows(name, RECIPES[name]["MPNet"][0])
        validation = validation_rows(name)
        test = read_rows(common.data_folder(name) / "test.jsonl", with_labels=True)
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


@dataclass(frozen=True)
class Job:
    """One method on one task.

    Attributes:
        task: its rows.
        method: its name.
        seed: of the training.
        whole: the model that it is measured against, as a cascade of one stage.
        folder: what is to be kept beside the figures goes here.
    """

    task: Task
    method: str
    seed: int
    whole: Cascade
    folder: Path

    @property
    def arguments(self) -> dict[str, Any]:
        """The same settings of training as MPNet's."""
        _, epochs, rate = RECIPES[self.task.name]["MPNet"]
        return {
            "max_length": MAX_LENGTH,
            "num_train_epochs": epochs,
            "learning_rate": rate,
            "seed": self.seed,
        }


Setting = tuple[Callable[[Rows], Any], Callable[[Any], Ran]]
"""What is timed, and how what it gives of the test rows is read."""


def measure(job: Job, settings: dict[str, Setting]) -> list[dict[str, Any]]:
    """Run every setting on the test rows, and time it on some in turn with the whole model.

    Returns:
        What :class:`Point` has, of the whole model and of every setting.
    """
    runs = {"whole": model_setting(job.task, job.whole), **settings}
    answers = {name: read(run(job.task.test)) for name, (run, read) in runs.items()}
    timed = job.task.test.take(evenly(len(job.task.test), TIMED_ROWS).tolist())
    rounds = [
        {name: seconds_of(functools.partial(run, timed)) for name, (run, _) in runs.items()}
        for _ in range(ROUNDS)
    ]
    points = []
    for name, ran in answers.items():
        ratios = [once["whole"] / once[name] for once in rounds]
        points.append(
            Point(
                name,
                float(job.task.right(ran.classes).mean()),
                statistics.median(ratios),
                min(ratios),
                max(ratios),
                answers["whole"].flops / ran.flops,
                answers["whole"].layers / ran.layers,
            )
        )
    return [asdict(point) for point in points]


def model_setting(task: Task, made: Cascade) -> Setting:
    """A cascade, also one of a single model, under the thresholds that it has."""
    flops = np.stack([s.record.cost.row_flops(s.tokenize(task.test).lengths) for s in made.stages])
    layers = np.array([layers_of(stage) for stage in made.stages])
    # Label names are sorted here as everywhere in this benchmark.
    assert list(made.labels) == task.labels

    def read(out: Prediction) -> Ran:
        flops_spent = float((out.passed * flops.T).sum())
        return Ran(classes_of(out), flops_spent, float((out.passed @ layers).sum()))

    return made.predict, read


def classes_of(out: Prediction) -> np.ndarray:
    return out.probabilities.argmax(axis=1)


def layers_of(stage: Stage) -> int:
    return stage.record.cost.layers


def seconds_of(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def early_exit(job: Job) -> dict[str, Any]:
    """Train one network with exits, choose knobs on the validation rows, time them."""
    task, arguments = job.task, job.arguments
    arguments["num_train_epochs"] *= PHASE_EPOCHS.get(job.method, 1)
    start = time.perf_counter()
    rival = EXITS[job.method](PRETRAINED, **arguments).fit(task.train)
    spent = time.perf_counter() - start
    depth = rival.network.depth
    recording = rival.record(task.validation)
    counted = {knob: layers_speedup(rival.replay(recording, knob), depth) for knob in rival.knobs}
    chosen = {min(counted, key=lambda knob: abs(counted[knob] - target)) for target in SPEEDUPS}
    lengths = job.whole.stages[0].tokenize(task.test).lengths
    flops_of_all = network_flops(rival.network, lengths)

    def read(answers: ExitAnswers) -> Ran:
        # The exits' own classifiers are next to nothing beside a layer.
        flops = float((flops_of_all * answers.layer / depth).sum())
        return Ran(answers.logits.argmax(axis=1), flops, float(answers.layer.sum()))

    settings: dict[str, Setting] = {
        f"{knob:g}": (functools.partial(rival.predict, knob=knob), read)
        for knob in (rival.knobs[0], *sorted(chosen, key=lambda knob: counted[knob]))
    }
    ramps = rival.record(task.test).logits
    return {
        "points": measure(job, settings),
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


def static(job: Job) -> dict[str, Any]:
    """The first layers, fine-tuned."""
    layers, distilled = int(job.method.split()[1]), job.method.endswith("distilled")
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        encoder = first_layers(PRETRAINED, layers, Path(scratch) / "encoder")
        teacher = None
        if distilled:
            teacher = Outputs(last_stage(job.task.name, job.task.train)["train"])
        checkpoint = fine_tune(
            encoder,
            job.task.train,
            Path(scratch) / "tuned",
            objective=Objective("distillation" if distilled else "cross_entropy"),
            teacher=teacher,
            **job.arguments,
        )
        spent = time.perf_counter() - start
        return alone(job, in_torch([checkpoint])) | {"seconds": spent}


def pruned(job: Job) -> dict[str, Any]:
    """Heads and columns pruned while it is fine-tuned, then cut out."""
    share = int(job.method.split()[1].rstrip("%")) / 100
    start = time.perf_counter()
    fine_tune(
        PRETRAINED,
        job.task.train,
        job.folder / CHECKPOINT,
        callbacks=[PruningCallback(share, structured=True)],
        **job.arguments,
    )
    spent = time.perf_counter() - start
    stage = as_stage(job.whole.stages[0], shrunk(job.folder), "pruned")
    return alone(job, of_one(job.whole, stage)) | {"seconds": spent}


def shrunk(part: Path) -> Any:
    """The pruned model of a finished part, without what was pruned."""
    model = AutoModelForSequenceClassification.from_pretrained(part / CHECKPOINT)
    shrink(model.base_model)
    return model


def experts(job: Job) -> dict[str, Any]:
    """The fine-tuned model cut into experts, and trained for as long again."""
    start = time.perf_counter()
    rival = MoEBERT(whole_of(job.task.name), **job.arguments).fit(job.task.train)
    spent = time.perf_counter() - start
    stage = as_stage(job.whole.stages[0], rival.model, "experts")
    return alone(job, of_one(job.whole, stage)) | {"seconds": spent}


def complete(job: Job) -> dict[str, Any]:
    """A small stage by itself."""
    return alone(job, in_torch([small(job.task.name, job.method)]))


def alone(job: Job, made: Cascade) -> dict[str, Any]:
    """One model, as a cascade of one stage, on the test rows."""
    logits = np.log(made.predict(job.task.test).probabilities)
    return {
        "points": measure(job, {"alone": model_setting(job.task, made)}),
        "dis": {str(layers_of(made.stages[0])): inversion(job.task, logits)},
    }


def cascade(job: Job) -> dict[str, Any]:
    """Small stages and the whole model, thresholds from the validation rows."""
    task, names = job.task, CASCADES[job.method]
    whole = whole_of(task.name)
    made = in_torch([*(whole if n == MIDDLE else small(task.name, n) for n in names), whole])
    if MIDDLE in names:
        stages, number = list(made.stages), names.index(MIDDLE)
        part = PARTS.path(*part_of(task.name, MIDDLE, job.seed))
        stages[number] = as_stage(stages[number], shrunk(part), "pruned")
        made.stages = tuple(stages)
    settings: dict[str, Setting] = {}
    for target in SPEEDUPS:
        made.tune(task.validation, Speedup(target), None)
        settings[f"{target:g}x"] = model_setting(task, made.with_thresholds(made.thresholds or ()))
    runs = made.run_stages(task.test)
    right = np.stack([task.right(run.logits.argmax(axis=1)) for run in runs])
    bound = oracle(right, np.array([run.seconds / len(task.test) for run in runs]))
    return {"points": measure(job, settings), "dis": {}, "oracle": asdict(bound)}


def in_torch(checkpoints: Sequence[Path]) -> Cascade:
    """Checkpoints as a cascade in torch."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "cascade"
        Cascade.from_stages(checkpoints).save_pretrained(target)
        return Cascade.from_pretrained(target, runtime=RUNTIME)


def of_one(like: Cascade, stage: Stage) -> Cascade:
    """A cascade of a single stage."""
    made = copy.copy(like)
    made.stages = (stage,)
    return made


def whole_of(task: str) -> Path:
    return common.CHECKPOINTS / task / "MPNet"


def small(task: str, name: str) -> Path:
    return common.CHECKPOINTS / task / "small" / name


METHODS: dict[str, Callable[[Job], dict[str, Any]]] = {
    **dict.fromkeys(("MiniLM-L3", "MiniLM-L6"), complete),
    **dict.fromkeys(STATIC, static),
    **dict.fromkeys(PRUNED, pruned),
    "MoEBERT": experts,
    **dict.fromkeys(EXITS, early_exit),
    # Last, as one has a stage that is made before.
    **dict.fromkeys(CASCADES, cascade),
}
SEEDLESS = (cascade, complete)


def run(tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> None:
    """Train and time all that is not there yet."""
    for name in tasks:
        task = Task.read(name)
        whole = in_torch([whole_of(name)])
        for seed, method in itertools.product(seeds, methods):
            make = METHODS[method]
            if make in SEEDLESS and seed != seeds[0]:
                continue

            def found(
                result: Path, _: Path, make: Any = make, method: str = method, seed: int = seed
            ) -> None:
                figures = make(Job(task, method, seed, whole, result))  # noqa: B023
                (result / "result.json").write_text(json.dumps(figures))

            PARTS.run(*part_of(name, method, seed), found)
            print(name, method, seed, flush=True)


def part_of(task: str, method: str, seed: int) -> tuple[str, dict[str, Any]]:
    """Name and settings of the part that a method's figures are kept as."""
    seed = 0 if METHODS[method] in SEEDLESS else seed
    rows = RECIPES[task]["MPNet"][0]
    settings = {"task": task, "method": method, "seed": seed, "rows": rows}
    settings |= {"test": TEST_ROWS, "timed": TIMED_ROWS}
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
