"""The cascade against early exits and static models, on one engine, at the same measured cost.

    CASCADEBERT_DATA=... python benchmarks/rivals.py train [--tasks mrpc ...] [--seeds 0] [--jobs 2]
    CASCADEBERT_DATA=... python benchmarks/rivals.py run [--tasks mrpc ...] [--seeds 0]
    CASCADEBERT_DATA=... python benchmarks/rivals.py table

Needs MPNet (``train_plain_stages.py``) and the small stages (``fast_cascades.py train``). There is
one of each and of the cascades for all seeds of the rivals. Rivals see the rows that MPNet saw, on
sst2 4,000 more than the small stages. The first layers, and every other layer, are trained for as
many epochs and at the same rate as the small stages. What is made of MPNet begins with the
fine-tuned one, as who has that would, and gets one more epoch, with an accelerator three: DeeBERT
for its second stage, as the first is what fine-tuned it; COST-EFF half as much for each of its four
phases. Learning rates are those that were better on sst2's validation rows; nothing else was tried.

All run in torch, in bfloat16 where that is fast. A method's settings are chosen on the validation
rows (of sst2 on those unlike any training row), for 1.5, 2, 3, 4 and 6 times fewer layers, of a
cascade fewer seconds. Accuracy is that on the test rows, of which every exit and every stage
answers each once; some of the rows are answered again, as a user would have it, and timed in turn
with the whole model. That is carried to all test rows by the operations that both take: how many
rows go how far differs from sample to sample, how long an operation takes does not. What stands in
the table at 2, 3 and 4 times is what two neighbouring settings reach if each gets so many rows that
the time is right. What training took is told in seconds of one core, or of the accelerator.

What is finished is kept in ``checkpoints/rivals``; ``run`` trains what is not, one after the other.
``table`` puts what is there in its place in the results, and leaves what is not.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import common
from cascadebert import Cascade, Policy, Rows, Speedup, choose_thresholds, read_rows
from cascadebert.deferral.confidence import max_probability_log_odds
from cascadebert.errors import CascadeWarning, TargetError
from cascadebert.evaluation.metrics import dis
from cascadebert.evaluation.oracle import oracle
from cascadebert.machine import machine_name
from cascadebert.rivals.berxit import BERxiT
from cascadebert.rivals.cost_eff import COSTEFF
from cascadebert.rivals.deebert import DeeBERT
from cascadebert.rivals.distilled import Distilled
from cascadebert.rivals.early_exit import EarlyExit, Recording
from cascadebert.rivals.first_layers import FirstLayers
from cascadebert.rivals.moebert import MoEBERT
from cascadebert.rivals.pabee import PABEE
from cascadebert.rivals.pruning import DPF
from cascadebert.rivals.rival import Rival
from cascadebert.rivals.shallow_deep import ShallowDeep
from cascadebert.rivals.stage import as_stage
from cascadebert.rows.rows import evenly
from cascadebert.stages.base import Stage
from cascadebert.stages.costs import StageRun, row_costs
from cascadebert.stages.transformer import TransformerStage
from cascadebert.training.outputs import bf16_is_fast
from cascadebert.training.parts import Parts
from fast_cascades import STAGES, validation_rows
from train_plain_stages import RECIPES, training_rows
from train_small_stages import ENCODERS, MAX_LENGTH, known, teaching, whole_of
from train_small_stages import RECIPES as SMALL_RECIPES

PARTS = Parts(common.CHECKPOINTS / "rivals")
TASKS = ("sst2", "mrpc", "snli")
WHOLE = "MPNet"
PRETRAINED = common.CHECKPOINTS / "pretrained" / "MPNet"
RIVALS: dict[str, Callable[..., Rival]] = {
    "first 3 layers": lambda _, **own: FirstLayers(PRETRAINED, 3, **own),
    "first 4 layers": lambda _, **own: FirstLayers(PRETRAINED, 4, **own),
    "first 6 layers": lambda _, **own: FirstLayers(PRETRAINED, 6, **own),
    "first 3 layers, distilled": lambda whole, **own: Distilled(PRETRAINED, whole, layers=3, **own),
    "every other layer, distilled": lambda whole, **own: Distilled(
        whole, whole, layers=EVERY_OTHER, **own
    ),
    "DPF, 50% of heads and columns": lambda whole, **own: DPF(whole, 0.5, **own),
    "DPF, 75% of heads and columns": lambda whole, **own: DPF(whole, 0.75, **own),
    "MoEBERT": MoEBERT,
    "DeeBERT": DeeBERT,
    "Shallow-Deep": ShallowDeep,
    "PABEE": PABEE,
    "BERxiT": BERxiT,
    "COST-EFF": COSTEFF,
    "DPF, 75% of single weights": lambda whole, **own: DPF(whole, 0.75, structured=False, **own),
}
"""Called with the folder of the fine-tuned MPNet and the settings of the training."""
EPOCHS = 3.0 if torch.accelerator.is_available() else 1.0
# MPNet's own 3e-5 did worse on sst2's validation rows, but for MoEBERT.
LEARNING_RATE, EXIT_LEARNING_RATE = 1e-4, 1e-3
# As DistilBERT's authors choose them.
EVERY_OTHER = (1, 3, 5, 8, 10, 12)
FIRST_LAYERS = ("first 3 layers", "first 4 layers", "first 6 layers")
EXITS = ("DeeBERT", "Shallow-Deep", "PABEE", "BERxiT", "COST-EFF")
CASCADES = {
    "cascade: L3, L6, MPNet": ("MiniLM-L3", "MiniLM-L6"),
    "cascade: linear, L3, L6, MPNet": ("linear", "MiniLM-L3", "MiniLM-L6"),
    "cascade: linear, L3, first 3, MPNet": ("linear", "MiniLM-L3", "first 3 layers, distilled"),
    "cascade: L3, pruned MPNet, MPNet": ("MiniLM-L3", "DPF, 75% of heads and columns"),
}
"""What goes before MPNet: small stages, and rivals as stages."""
SPEEDUPS = (1.5, 2.0, 3.0, 4.0, 6.0)
VALIDATION_ROWS, TEST_ROWS, TIMED_ROWS = 1_500, 2_000, 250
WARM_UP_ROWS = 32
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
class Setting:
    """A method as it is set once.

    Attributes:
        run: answers rows; this is timed.
        accuracy: on the test rows.
        flops, layers: that each of these takes, by counting, (rows,).
    """

    run: Callable[[Rows], object]
    accuracy: float
    flops: np.ndarray
    layers: np.ndarray


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
            some(validation, VALIDATION_ROWS),
            some(test, TEST_ROWS),
            sorted(set(train.labels or ())),
        )

    def truth(self, rows: Rows) -> np.ndarray:
        return np.array([self.labels.index(label) for label in rows.labels or ()])

    def right(self, classes: np.ndarray) -> np.ndarray:
        """Of answers to the test rows."""
        return classes == self.truth(self.test)


def some(rows: Rows, most: int) -> Rows:
    return rows.take(evenly(len(rows), most).tolist())


def arguments_of(task: str, method: str, seed: int) -> dict[str, Any]:
    """The settings of a rival's training; see the top of this file."""
    epochs, rate = EPOCHS, LEARNING_RATE
    if method.startswith(("first", "every")):
        _, epochs, rate = SMALL_RECIPES[task]
    elif method == "MoEBERT":
        _, _, rate = RECIPES[task]["MPNet"]
    exits = {"fine_tuned": True, "pooling": "mean", "exit_learning_rate": EXIT_LEARNING_RATE}
    return {
        "max_length": MAX_LENGTH,
        # Of each of four phases.
        "num_train_epochs": epochs / 2 if method == "COST-EFF" else epochs,
        "learning_rate": rate,
        "seed": seed,
        **(exits if method in EXITS else {}),
    }


def measure(task: Task, settings: dict[str, Setting]) -> list[dict[str, Any]]:
    """Time every setting on some test rows, in turn with the whole model.

    Returns:
        What :class:`Point` has, of the whole model and of every setting.
    """
    runs = {"whole": alone(task, WHOLE, 0), **settings}
    whole, positions = runs["whole"], evenly(len(task.test), TIMED_ROWS)
    timed = task.test.take(positions.tolist())
    for setting in runs.values():
        setting.run(some(timed, WARM_UP_ROWS))
    rounds = []
    for turn in range(ROUNDS):
        names = list(runs)[turn:] + list(runs)[:turn]
        rounds.append({name: seconds_of(runs[name], timed) for name in names})
    points = []
    for name, setting in runs.items():
        counted = whole.flops.sum() / setting.flops.sum()
        carried = counted / (whole.flops[positions].sum() / setting.flops[positions].sum())
        ratios = [carried * once["whole"] / once[name] for once in rounds]
        points.append(
            Point(
                name,
                setting.accuracy,
                float(statistics.median(ratios)),
                float(min(ratios)),
                float(max(ratios)),
                float(counted),
                float(whole.layers.sum() / setting.layers.sum()),
            )
        )
    return [asdict(point) for point in points]


def seconds_of(setting: Setting, rows: Rows) -> float:
    start = time.perf_counter()
    setting.run(rows)
    return time.perf_counter() - start


def trained(task: Task, method: str, seed: int) -> tuple[Rival, float]:
    """A rival, trained now if it is not there, and the seconds of one core that took."""

    def make(result: Path, _: Path) -> None:
        rival = RIVALS[method](whole_of(task.name), **arguments_of(task.name, method, seed))
        start = common.core_seconds()
        rival.fit(task.train)
        torch.save((rival, common.core_seconds() - start), result / "rival.pt")

    name, settings = name_of(task, method, seed), training_of(task, method, seed)
    part = PARTS.run(f"{name}-trained", settings, make)
    rival, spent = torch.load(part / "rival.pt", weights_only=False)
    return rival, spent


def early_exit(task: Task, method: str, seed: int) -> dict[str, Any]:
    """Choose knobs on the validation rows, and time them."""
    rival, spent = trained(task, method, seed)
    assert isinstance(rival, EarlyExit)
    recording = recorded(task, method, seed, "validation")
    knobs = [rival.knobs[0], *(rival.knob_for(recording, target) for target in SPEEDUPS)]
    recording = recorded(task, method, seed, "test")

    def setting(knob: float) -> Setting:
        answers = rival.replay(recording, knob)
        return Setting(
            functools.partial(rival.predict, knob=knob),
            float(task.right(answers.logits.argmax(axis=1)).mean()),
            rival.cost(answers),
            answers.layer,
        )

    return {
        "points": measure(task, {str(knob): setting(knob) for knob in dict.fromkeys(knobs)}),
        "dis": {str(k + 1): inversion(task, ramp) for k, ramp in enumerate(recording.logits)},
        "seconds": spent,
    }


def recorded(task: Task, method: str, seed: int, split: str) -> Recording:
    """What every exit of a rival says of a split."""
    rows: Rows = getattr(task, split)

    def make(result: Path, _: Path) -> None:
        rival, _ = trained(task, method, seed)
        assert isinstance(rival, EarlyExit)
        np.savez(result / "recording.npz", **vars(rival.record(rows)))

    settings = training_of(task, method, seed) | {"answered": rows.fingerprint()}
    part = PARTS.run(f"{name_of(task, method, seed)}-{split}", settings, make)
    return Recording(**np.load(part / "recording.npz"))


def inversion(task: Task, logits: np.ndarray) -> float:
    right = task.right(logits.argmax(axis=1))
    return dis(max_probability_log_odds(logits), ~right)


def single(task: Task, method: str, seed: int) -> dict[str, Any]:
    """A small stage or a rival that answers every row alike."""
    logits = answers_of(task.name, method, seed, "test").logits
    layers = stage_of(task.name, method, seed).record.cost.layers
    return {
        "points": measure(task, {"alone": alone(task, method, seed)}),
        "dis": {str(layers): inversion(task, logits)},
        **({"seconds": trained(task, method, seed)[1]} if method in RIVALS else {}),
    }


def alone(task: Task, name: str, seed: int) -> Setting:
    """One stage for all rows."""
    run = answers_of(task.name, name, seed, "test")
    return Setting(
        whole_cascade(task.name).with_stages([stage_of(task.name, name, seed)]).predict,
        float(task.right(run.logits.argmax(axis=1)).mean()),
        row_costs([run], "flops")[:, 0],
        row_costs([run], "layers")[:, 0],
    )


def cascade(task: Task, method: str, seed: int) -> dict[str, Any]:
    """Small stages and the whole model, thresholds from the validation rows."""
    names = (*CASCADES[method], WHOLE)
    stages = [stage_of(task.name, name, seed) for name in names]
    made = whole_cascade(task.name).with_stages(stages)
    held_out, runs = (
        [answers_of(task.name, name, seed, split) for name in names]
        for split in ("validation", "test")
    )
    settings = {}
    for target in SPEEDUPS:
        try:
            policy = choose_thresholds(
                [run.logits for run in held_out],
                task.truth(task.validation),
                row_costs(held_out, "seconds"),
                Speedup(target),
                None,
                logits=True,
            )
        except TargetError:
            settings["first stage alone"] = alone(task, names[0], seed)
            break
        settings[f"{target:g}x"] = under(task, made, policy, runs)
    right = np.stack([task.right(run.logits.argmax(axis=1)) for run in runs])
    bound = oracle(right, np.array([run.seconds / len(task.test) for run in runs]))
    return {"points": measure(task, settings), "dis": {}, "oracle": asdict(bound)}


def under(task: Task, made: Cascade, policy: Policy, runs: Sequence[StageRun]) -> Setting:
    """A cascade under chosen thresholds, whose stages have all answered the test rows."""
    tuned, logits = copy.copy(made), [run.logits for run in runs]
    tuned.routing = policy.routing
    classes, _ = policy.apply(logits, logits=True)
    flops, layers = (
        policy.costs(logits, row_costs(runs, kind), logits=True) for kind in ("flops", "layers")
    )
    return Setting(tuned.predict, float(task.right(classes).mean()), flops, layers)


@functools.cache
def answers_of(task: str, name: str, seed: int, split: str) -> StageRun:
    """Of a stage, to all rows of a split."""
    return stage_of(task, name, seed).run_all(getattr(Task.read(task), split))


@functools.cache
def stage_of(task: str, name: str, seed: int) -> Stage:
    """The whole model, a small stage or a rival, in torch."""
    (whole,) = whole_cascade(task).stages
    if name == WHOLE:
        return whole
    if name in RIVALS:
        assert isinstance(whole, TransformerStage)
        return as_stage(whole, trained(Task.read(task), name, seed)[0].model, name)
    return in_torch(small(task, name)).stages[0]


@functools.cache
def whole_cascade(task: str) -> Cascade:
    """The whole model, as a cascade of one stage."""
    made = in_torch(whole_of(task))
    # Label names are sorted here as everywhere in this benchmark.
    assert list(made.labels) == Task.read(task).labels
    return made


def in_torch(checkpoint: Path) -> Cascade:
    """A checkpoint as a cascade in torch."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "cascade"
        Cascade.from_stages([checkpoint]).save_pretrained(target)
        return Cascade.from_pretrained(target, runtime=RUNTIME)


def small(task: str, name: str) -> Path:
    return common.CHECKPOINTS / task / "small" / name


METHODS: dict[str, Callable[[Task, str, int], dict[str, Any]]] = {
    **dict.fromkeys(ENCODERS, single),
    **dict.fromkeys(RIVALS, single),
    **dict.fromkeys(EXITS, early_exit),
    # Last, as some have stages that are made before.
    **dict.fromkeys(CASCADES, cascade),
}
SEEDLESS = (*ENCODERS, *CASCADES)


def run(tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> None:
    """Train and time all that is not there yet."""
    for name in tasks:
        task = Task.read(name)
        for method, seed in seeded(methods, seeds):
            PARTS.run(*part_of(task, method, seed), functools.partial(find, task, method, seed))
            print(name, method, seed, flush=True)


def seeded(methods: Iterable[str], seeds: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Methods with their seeds; what is trained elsewhere has one."""
    for seed, method in itertools.product(seeds, methods):
        if not (seed and method in SEEDLESS):
            yield method, seed


def find(task: Task, method: str, seed: int, result: Path, _: Path) -> None:
    """Measure a method, and keep what was found."""
    figures = METHODS[method](task, method, seed)
    figures["seconds"] = figures.get("seconds", 0) + seconds_before(task, method)
    figures["setting"] = common.setting()
    (result / "result.json").write_text(json.dumps(figures))


def train(tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int], jobs: int) -> None:
    """Train all that is not there yet, ``jobs`` at a time, and time nothing."""
    wanted = [
        (task, method, seed)
        for task, seed, method in itertools.product(tasks, seeds, methods)
        if method in RIVALS
    ]
    with common.side_by_side(jobs, quieten) as pool:
        for done in pool.map(train_one, wanted):
            print(*done, flush=True)


def train_one(wanted: tuple[str, str, int]) -> tuple[str, str, int]:
    """Train a method on a task with a seed, in a process of its own."""
    task, method, seed = wanted
    trained(Task.read(task), method, seed)
    if method in EXITS:
        for split in ("validation", "test"):
            recorded(Task.read(task), method, seed, split)
    return wanted


def quieten() -> None:
    """What is warned of is known here."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore", CascadeWarning)


def name_of(task: Task, method: str, seed: int) -> str:
    return f"{task.name}-{re.sub(r'[^A-Za-z0-9]+', '-', method)}-{seed}"


def part_of(task: Task, method: str, seed: int) -> tuple[str, dict[str, Any]]:
    """Name and settings of the part that a method's figures are kept as."""
    settings = {
        "method": method,
        "made_of": [
            training_of(task, name, seed) if name in RIVALS else known(place_of(task.name, name))
            for name in (*CASCADES.get(method, (method,)), WHOLE)
        ],
        "answered": [task.validation.fingerprint(), task.test.fingerprint()],
        "timed": (TIMED_ROWS, ROUNDS),
        "speedups": SPEEDUPS,
        "machine": machine_name(),
        "runtime": RUNTIME,
    }
    return name_of(task, method, seed), settings


def training_of(task: Task, method: str, seed: int) -> dict[str, Any]:
    """What a rival's weights depend on, but for the code: remove what has been made when that
    changes.
    """
    places = [PRETRAINED] if method.startswith("first") else []
    if method not in FIRST_LAYERS:
        places.append(whole_of(task.name))
    return {
        "method": method,
        "rows": task.train.fingerprint(),
        "arguments": arguments_of(task.name, method, seed),
        "made_of": [known(place) for place in places],
        **({"layers": EVERY_OTHER} if method.startswith("every") else {}),
    }


def place_of(task: str, name: str) -> Path:
    """Where the whole model or a small stage lies."""
    return whole_of(task) if name == WHOLE else small(task, name)


def put_in_place(results: dict[str, Any], seeds: Sequence[int]) -> None:
    """Put all that is there into the results, by task, method and seed."""
    for name in RECIPES:
        if not all(place_of(name, stage).exists() for stage in STAGES):
            continue
        task = Task.read(name)
        for method, seed in seeded(METHODS, seeds):
            part = part_of(task, method, seed)
            if PARTS.has(*part):
                own = json.loads((PARTS.path(*part) / "result.json").read_text())
                results.setdefault(name, {}).setdefault(method, {})[str(seed)] = own


def seconds_before(task: Task, method: str) -> float:
    """Seconds of one core for the other scripts' trainings that a method needs."""
    if method in FIRST_LAYERS:
        return 0.0
    # The last stage is a cascade's own, and what others begin with or learn from; it counts once.
    spent, names = trained_in(whole_of(task.name)), CASCADES.get(method, (method,))
    if set(names) & set(ENCODERS):
        spent += teaching(task.name, training_rows(task.name, SMALL_RECIPES[task.name][0]))[1]
    for name in names:
        if name in RIVALS and name != method:
            spent += trained(task, name, 0)[1]
        elif name not in RIVALS:
            spent += trained_in(small(task.name, name))
    return spent


def trained_in(checkpoint: Path) -> float:
    """Seconds of one core."""
    return float(json.loads((checkpoint / "training.json").read_text())["core_seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("train", "run", "table"))
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=RECIPES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    options = parser.parse_args()
    quieten()
    if options.jobs > 1 and torch.accelerator.is_available():
        parser.error("trainings side by side cannot be timed on an accelerator; leave --jobs out")
    if options.action == "train":
        train(options.tasks, options.methods, options.seeds, options.jobs)
        return
    if options.action == "run":
        run(options.tasks, options.methods, options.seeds)
        return
    from rivals_report import picture, table

    results = json.loads((common.RESULTS / "rivals.json").read_text())["results"]
    put_in_place(results, options.seeds)
    common.keep("rivals", {"results": results}, table(results))
    picture(results, common.PAGE.parent / "rivals.svg")


if __name__ == "__main__":
    main()
