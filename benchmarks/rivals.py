"""The cascade against early exits and static models, on one engine, at the same measured cost.

    CASCADEBERT_DATA=... python benchmarks/rivals.py train [--tasks mrpc ...] [--seeds 0] [--jobs 2]
    CASCADEBERT_DATA=... python benchmarks/rivals.py run [--tasks mrpc ...] [--seeds 0]
    CASCADEBERT_DATA=... python benchmarks/rivals.py table

Needs MPNet (``stages.py``) and the small stages (``training.py run``, ``speed.py train``). Rivals
start from the pre-trained MPNet, MoEBERT from the fine-tuned one, and see the rows that MPNet saw.
Those of the first layers are trained as the small stages are, the others for as many epochs as
MPNet, DeeBERT in each of its two stages, COST-EFF for half as many in each of its four phases; at
learning rates that are better on sst2's validation rows than MPNet's, but for MoEBERT, where they
are not. Nothing else was tried.

All run in torch, in bfloat16 where that is fast. A method's settings are chosen on the validation
rows (of sst2 on those unlike any training row), for 1.5, 2, 3, 4 and 6 times fewer layers, of a
cascade fewer seconds. They answer the test rows, and are timed on some of these in turn with the
whole model. What stands in the table at 2, 3 and 4 times is what two neighbouring settings reach
if each gets so many rows that the time is right. What training took is told in seconds of one core,
or of the accelerator. What is finished is kept in ``checkpoints/rivals``; ``run`` trains what is
not, one after the other.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import logging
import os
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

import common
from cascadebert import Cascade, Rows, Speedup, read_rows
from cascadebert.data import evenly
from cascadebert.deferral.confidence import max_probability_log_odds
from cascadebert.errors import CascadeWarning, TargetError
from cascadebert.evaluation.bench_result import oracle
from cascadebert.evaluation.metrics import dis
from cascadebert.machine import machine_name
from cascadebert.rivals.berxit import BERxiT
from cascadebert.rivals.cost_eff import COSTEFF
from cascadebert.rivals.deebert import DeeBERT
from cascadebert.rivals.distilled import Distilled
from cascadebert.rivals.early_exit import EarlyExit
from cascadebert.rivals.first_layers import FirstLayers
from cascadebert.rivals.moebert import MoEBERT
from cascadebert.rivals.pabee import PABEE
from cascadebert.rivals.pruning import DPF
from cascadebert.rivals.rival import Answers, Rival
from cascadebert.rivals.shallow_deep import ShallowDeep
from cascadebert.rivals.stage import as_stage
from cascadebert.scheduler import Prediction
from cascadebert.stage import Stage, TransformerStage
from cascadebert.training.outputs import bf16_is_fast
from cascadebert.training.parts import Parts, read_part
from speed import validation_rows
from stages import RECIPES, training_rows
from training import ENCODERS, MAX_LENGTH, cell_part
from training import PARTS as SMALL_PARTS
from training import RECIPES as SMALL_RECIPES

PARTS = Parts(common.CHECKPOINTS / "rivals")
TASKS = ("sst2", "mrpc", "snli")
PRETRAINED = common.CHECKPOINTS / "pretrained" / "MPNet"
RIVALS: dict[str, Callable[..., Rival]] = {
    "first 3 layers": functools.partial(FirstLayers, PRETRAINED, 3),
    "first 4 layers": functools.partial(FirstLayers, PRETRAINED, 4),
    "first 6 layers": functools.partial(FirstLayers, PRETRAINED, 6),
    "first 3 layers, distilled": functools.partial(Distilled, PRETRAINED, layers=3),
    "DPF, 50% of heads and columns": functools.partial(DPF, PRETRAINED, 0.5),
    "DPF, 75% of heads and columns": functools.partial(DPF, PRETRAINED, 0.75),
    "MoEBERT": MoEBERT,
    "DeeBERT": functools.partial(DeeBERT, PRETRAINED),
    "Shallow-Deep": functools.partial(ShallowDeep, PRETRAINED),
    "PABEE": functools.partial(PABEE, PRETRAINED),
    "BERxiT": functools.partial(BERxiT, PRETRAINED),
    "COST-EFF": functools.partial(COSTEFF, PRETRAINED),
    "DPF, 75% of single weights": functools.partial(DPF, PRETRAINED, 0.75, structured=False),
}
# What those that the fine-tuned MPNet teaches call it.
TAUGHT = {"first 3 layers, distilled": "teacher", "MoEBERT": "checkpoint"}
# Did better on sst2's validation rows than MPNet's own 3e-5.
LEARNING_RATE, EXIT_LEARNING_RATE = 1e-4, 1e-3
EXITS = ("DeeBERT", "Shallow-Deep", "PABEE", "BERxiT", "COST-EFF")
CASCADES = {
    "cascade: L3, L6, MPNet": ("MiniLM-L3", "MiniLM-L6"),
    "cascade: linear, L3, L6, MPNet": ("linear", "MiniLM-L3", "MiniLM-L6"),
    "cascade: linear, L3, first 3, MPNet": ("linear", "MiniLM-L3", "first 3 layers, distilled"),
    "cascade: L3, pruned MPNet, MPNet": ("MiniLM-L3", "DPF, 75% of heads and columns"),
}
"""What goes before MPNet: small stages, and rivals as stages."""
COMPLETE = ENCODERS
TRAINING_SETTINGS = ("task", "method", "rows", "arguments")
SPEEDUPS = (1.5, 2.0, 3.0, 4.0, 6.0)
VALIDATION_ROWS, TEST_ROWS, TIMED_ROWS = 1_500, 2_000, 500
ROUNDS = 3
RUNTIME = "torch-bf16" if bf16_is_fast() else "torch"


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
    @functools.cache
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
    """

    task: Task
    method: str
    seed: int
    whole: Cascade


def arguments_of(task: str, method: str, seed: int) -> dict[str, Any]:
    """The settings of a rival's training; see the top of this file."""
    _, epochs, rate = RECIPES[task]["MPNet"]
    if method.startswith("first"):
        _, epochs, rate = SMALL_RECIPES[task]
    elif method != "MoEBERT":
        rate = LEARNING_RATE
    return {
        "max_length": MAX_LENGTH,
        # Of each of four phases.
        "num_train_epochs": epochs / 2 if method == "COST-EFF" else epochs,
        "learning_rate": rate,
        "seed": seed,
        **({"exit_learning_rate": EXIT_LEARNING_RATE} if method in EXITS else {}),
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
    rounds = []
    for turn in range(ROUNDS):
        names = list(runs)[turn:] + list(runs)[:turn]
        rounds.append({name: seconds_of(functools.partial(runs[name][0], timed)) for name in names})
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


def trained(task: Task, method: str, seed: int) -> tuple[Rival, float]:
    """A rival, trained now if it is not there, and the seconds of one core that took."""

    def make(result: Path, _: Path) -> None:
        own = {TAUGHT[method]: whole_of(task.name)} if method in TAUGHT else {}
        rival = RIVALS[method](**own, **arguments_of(task.name, method, seed))
        # Other work on the machine does not count, where the processor does the work.
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        start = clock()
        rival.fit(task.train)
        spent = clock() - start
        torch.save((rival, spent), result / "rival.pt")

    name, settings = part_of(task.name, method, seed)
    part = PARTS.run(f"{name}-trained", {key: settings[key] for key in TRAINING_SETTINGS}, make)
    rival, spent = torch.load(part / "rival.pt", weights_only=False)
    return rival, spent


def early_exit(job: Job) -> dict[str, Any]:
    """Choose knobs on the validation rows, and time them."""
    rival, spent = trained(job.task, job.method, job.seed)
    assert isinstance(rival, EarlyExit)
    recording = rival.record(job.task.validation)
    chosen = [rival.knobs[0], *(rival.knob_for(recording, target) for target in SPEEDUPS)]

    def read(answers: Answers) -> Ran:
        classes = answers.logits.argmax(axis=1)
        return Ran(classes, float(rival.cost(answers).sum()), float(answers.layer.sum()))

    settings: dict[str, Setting] = {
        f"{knob:.6g}": (functools.partial(rival.predict, knob=knob), read)
        for knob in dict.fromkeys(chosen)
    }
    ramps = rival.record(job.task.test).logits
    return {
        "points": measure(job, settings),
        "dis": {str(k + 1): inversion(job.task, ramp) for k, ramp in enumerate(ramps)},
        "seconds": spent,
    }


def inversion(task: Task, logits: np.ndarray) -> float:
    right = task.right(logits.argmax(axis=1))
    return dis(max_probability_log_odds(logits), ~right)


def static(job: Job) -> dict[str, Any]:
    """A single smaller model."""
    rival, spent = trained(job.task, job.method, job.seed)
    (whole,) = job.whole.stages
    assert isinstance(whole, TransformerStage)
    stage = as_stage(whole, rival.model, job.method)
    return alone(job, job.whole.with_stages([stage])) | {"seconds": spent}


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
    made = in_torch([*(whole if n in RIVALS else small(task.name, n) for n in names), whole])
    stages = list(made.stages)
    for number, name in enumerate(names):
        if name in RIVALS:
            rival, _ = trained(task, name, job.seed)
            stages[number] = as_stage(cast(TransformerStage, stages[number]), rival.model, name)
    made = made.with_stages(stages)
    settings: dict[str, Setting] = {}
    for target in SPEEDUPS:
        try:
            made.tune(task.validation, Speedup(target), None)
        except TargetError:
            settings["first stage alone"] = model_setting(task, made.alone(1))
            break
        settings[f"{target:g}x"] = model_setting(task, copy.copy(made))
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


def whole_of(task: str) -> Path:
    return common.CHECKPOINTS / task / "MPNet"


def small(task: str, name: str) -> Path:
    return common.CHECKPOINTS / task / "small" / name


METHODS: dict[str, Callable[[Job], dict[str, Any]]] = {
    **dict.fromkeys(COMPLETE, complete),
    **dict.fromkeys(RIVALS, static),
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
                own_seed = 0 if make in SEEDLESS else seed
                figures = make(Job(task, method, own_seed, whole))  # noqa: B023
                (result / "result.json").write_text(json.dumps(figures))

            PARTS.run(*part_of(name, method, seed), found)
            print(name, method, seed, flush=True)


def train(tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int], jobs: int) -> None:
    """Train all that is not there yet, ``jobs`` at a time, and time nothing."""
    wanted = [
        (task, method, seed)
        for task, seed, method in itertools.product(tasks, seeds, methods)
        if method in RIVALS and not PARTS.has(*part_of(task, method, seed))
    ]
    with common.side_by_side(jobs, quieten) as pool:
        for done in pool.map(train_one, wanted):
            print(*done, flush=True)


def train_one(wanted: tuple[str, str, int]) -> tuple[str, str, int]:
    """Train a method on a task with a seed, in a process of its own."""
    task, method, seed = wanted
    trained(Task.read(task), method, seed)
    return wanted


def quieten() -> None:
    """What is warned of is known here."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore", CascadeWarning)


def part_of(task: str, method: str, seed: int) -> tuple[str, dict[str, Any]]:
    """Name and settings of the part that a method's figures are kept as."""
    seed = 0 if METHODS[method] in SEEDLESS else seed
    if method in RIVALS:
        arguments = arguments_of(task, method, seed)
    else:
        names = [name for name in CASCADES.get(method, ()) if name in RIVALS]
        arguments = {name: arguments_of(task, name, seed) for name in names}
    settings = {
        "task": task,
        "method": method,
        "rows": RECIPES[task]["MPNet"][0],
        "arguments": arguments,
        "machine": machine_name(),
        "speedups": SPEEDUPS,
        "validation_test_timed": (VALIDATION_ROWS, TEST_ROWS, TIMED_ROWS),
    }
    return f"{task}-{re.sub(r'[^A-Za-z0-9]+', '-', method)}-{seed}", settings


def read_results(tasks: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """All that is there, by task, method and seed."""
    found: dict[str, Any] = {}
    for task, method, seed in itertools.product(tasks, METHODS, seeds):
        part = part_of(task, method, seed)
        if PARTS.has(*part) and (METHODS[method] not in SEEDLESS or seed == seeds[0]):
            own = json.loads((PARTS.path(*part) / "result.json").read_text())
            own["seconds"] = own.get("seconds", 0) + seconds_before(task, method)
            found.setdefault(task, {}).setdefault(method, {})[str(seed)] = own
    return found


def seconds_before(task: str, method: str) -> float:
    """Of one core, for the trainings by ``stages.py``, on all cores, and ``training.py``, two at a
    time, that a method needs; linear ones take next to no time.
    """
    if method not in (*CASCADES, *COMPLETE, *TAUGHT):
        return 0.0
    # The last stage is a cascade's own, and the teacher of the others; it counts once.
    whole = json.loads((whole_of(task) / "training.json").read_text())
    machine = 1 if torch.cuda.is_available() else os.cpu_count() or 1
    spent = float(whole["seconds"]) * machine
    for name in CASCADES.get(method, (method,)):
        if name in RIVALS and name != method:
            spent += trained(Task.read(task), name, 0)[1]
        elif name in ENCODERS:
            cell = cell_part((task, name, "distillation", 0))
            spent += read_part(SMALL_PARTS.path(*cell)).seconds * max(machine // 2, 1)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("train", "run", "table"))
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=RECIPES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    options = parser.parse_args()
    quieten()
    if options.action == "train":
        train(options.tasks, options.methods, options.seeds, options.jobs)
        return
    if options.action == "run":
        run(options.tasks, options.methods, options.seeds)
        return
    from rivals_report import picture, table

    results = read_results(options.tasks, options.seeds)
    common.keep("rivals", {"results": results}, table(results))
    picture(results, common.PAGE.parent / "rivals.svg")


if __name__ == "__main__":
    main()
