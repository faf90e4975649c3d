"""Populations to draw held-out rows from, on which every promise can be checked exactly.

A population is finite and rows are drawn from it with replacement, so that its own shares are the
truth: synthetic stages, or real predictions of the stages that ``train_small_stages.py`` trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

import common
from cascadebert import Policy, read_rows
from cascadebert.deferral.confidence import softmax
from cascadebert.deferral.targets import Target
from cascadebert.training.fine_tuning import label_order

SYNTHETIC_ROWS = 20_000
REAL = ("sst2", "agnews", "snli")
STAGES = (2, 3, 4)
# Of one row, by counting: the linear stage, MiniLM-L3, MiniLM-L6 and MPNet.
COSTS = {2: (0.063, 1.0), 3: (0.063, 0.125, 1.0), 4: (0.001, 0.063, 0.125, 1.0)}


@dataclass(frozen=True)
class World:
    """Probabilities of every stage (rows, classes), labels (rows,) and costs (stages,)."""

    name: str
    probabilities: list[np.ndarray]
    labels: np.ndarray
    costs: np.ndarray

    def draw(self, rows: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Rows drawn with replacement."""
        chosen = np.random.default_rng([seed, rows]).integers(0, len(self.labels), rows)
        return [p[chosen] for p in self.probabilities], self.labels[chosen]

    def truth(self, policy: Policy, target: Target) -> tuple[bool, float, float]:
        """Whether a promise holds, the mean cost of a row, and the share that comes to the end."""
        classes, stage = policy.apply(self.probabilities)
        last = self.probabilities[-1].argmax(axis=1)
        cost = float(policy.costs(self.probabilities, self.costs).mean())
        right, reference = (classes == self.labels).mean(), (last == self.labels).mean()
        kept = {
            "MaxDrop": reference - right <= target.value + 1e-12,
            "MinAccuracy": right >= target.value - 1e-12,
            "MinAgreement": (classes == last).mean() >= target.value - 1e-12,
            "Speedup": self.costs[-1] / cost >= target.value - 1e-12,
        }
        deferred = float((stage == len(self.probabilities)).mean())
        return bool(kept[type(target).__name__]), cost, deferred


def synthetic_stages(stages: int, rows: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Three classes; stages of growing accuracy that find the same rows hard."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, rows)
    difficulty = random.normal(size=rows)
    probabilities = []
    for strength in np.linspace(2, 4, stages):
        logits = random.normal(size=(rows, 3))
        logits[np.arange(rows), labels] += strength - difficulty
        probabilities.append(softmax(2 * logits))
    return probabilities, labels


@cache
def synthetic(stages: int) -> World:
    """Synthetic stages on so many rows."""
    probabilities, labels = synthetic_stages(stages, SYNTHETIC_ROWS, 0)
    return World("synthetic", probabilities, labels, np.array(COSTS[stages]))


@cache
def real(task: str, stages: int) -> World:
    """What the plainly trained stages say of the validation and the test rows."""
    from stages import training_rows
    from training import RECIPES, last_stage
    from training_scores import linear_stage, small_stages

    train = training_rows(task, RECIPES[task][0])
    names = label_order(train, None)
    small = small_stages(task, "cross_entropy", 0, train)
    if small is None:
        raise SystemExit(f"{task}: run 'train_small_stages.py --tasks {task}' first")
    logits = [small["MiniLM-L3"], small["MiniLM-L6"], last_stage(task)]
    logits = {2: logits[::2], 3: logits, 4: [linear_stage(task, train), *logits]}[stages]
    splits = ("validation", "test")
    rows = [read_rows(common.data_folder(task) / f"{s}.jsonl", with_labels=True) for s in splits]
    labels = np.array([names.index(name) for part in rows for name in part.labels or ()])
    probabilities = [softmax(np.concatenate([own[s] for s in splits])) for own in logits]
    return World(task, probabilities, labels, np.array(COSTS[stages]))


def world(name: str, stages: int) -> World:
    return synthetic(stages) if name == "synthetic" else real(name, stages)
