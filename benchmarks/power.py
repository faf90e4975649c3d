"""The cost of a certificate: certified thresholds against the oracle's, by three methods.

    python benchmarks/power.py [--repeats 200]

All three promise the last stage's answer on a share of the rows, with confidence 0.95 and exact
binomial p-values, on the same draws:

- cascadebert: ``choose_thresholds``;
- one threshold: the same for all stages, a fixed-sequence test from the safest down;
- grid: every vector of ten thresholds a stage, Bonferroni over all of them, the cheapest.

The oracle's thresholds are the cheapest that keep the target on the whole population.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import numpy as np

import common
from cascadebert import MinAgreement, choose_thresholds
from cascadebert.deferral.certificates.fixed_sequence import fixed_sequence_test
from cascadebert.deferral.confidence import confidence_score, logit, sigmoid
from cascadebert.deferral.held_out import HeldOut
from cascadebert.deferral.pvalues import binomial_p_value
from cascadebert.deferral.routing import Thresholds
from cascadebert.deferral.search.replay import Replay
from worlds import World, world

LEVEL = 0.05
TARGET = MinAgreement(0.95)
ROWS = (500, 2_000, 10_000)
WORLDS = (
    ("synthetic", 2), ("synthetic", 3), ("synthetic", 4), ("sst2", 3), ("agnews", 3), ("snli", 3),
)  # fmt: skip
METHODS = ("cascadebert", "one threshold", "grid")
SHARED = sigmoid(np.linspace(12, -2, 281))
GRID = (*sigmoid(logit([0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999])).tolist(), 1.0)


def replay_of(here: World, probabilities: list[np.ndarray], labels: np.ndarray) -> Replay:
    answers = np.stack([p.argmax(axis=1) for p in probabilities])
    costs = np.broadcast_to(here.costs, (len(labels), len(here.costs)))
    rows = HeldOut(answers, labels, costs, [str(i) for i in range(probabilities[0].shape[1])])
    return Replay.of(rows, [np.log(p) for p in probabilities], confidence_score("max_probability"))


def figures(population: Replay, thresholds: Thresholds) -> tuple[float, float, bool]:
    """True cost, true share of rows that come to the last stage, whether the target is kept."""
    outcome = population.outcome(thresholds)
    deferred = float((outcome.end == population.rows.stages - 1).mean())
    return float(outcome.cost.mean()), deferred, TARGET.observed(outcome) >= TARGET.value


def p_value(replay: Replay, thresholds: Thresholds) -> float:
    picked, hits = TARGET.counts(replay.outcome(thresholds))
    return binomial_p_value(picked - hits, picked, 1 - TARGET.value)


def one_threshold(replay: Replay) -> Thresholds:
    stages = replay.rows.stages
    never = Thresholds.last_stage_alone(stages)
    path = [Thresholds((float(value),) * (stages - 1)) for value in SHARED]
    passed = fixed_sequence_test(path, lambda at: p_value(replay, at), LEVEL)
    return passed[-1] if passed else never


def grid(replay: Replay) -> Thresholds:
    stages = replay.rows.stages
    never = Thresholds.last_stage_alone(stages)
    vectors = [Thresholds(vector) for vector in itertools.product(GRID, repeat=stages - 1)]
    passed = [at for at in vectors if p_value(replay, at) <= LEVEL / len(vectors)]
    return min([never, *passed], key=lambda at: float(replay.routes(at).cost.mean()))


def compare(name: str, stages: int, rows: int, repeats: int) -> dict[str, Any]:
    """Costs of the methods over the oracle's, on the same draws."""
    here = world(name, stages)
    population = replay_of(here, here.probabilities, here.labels)
    oracle = choose_thresholds(here.probabilities, here.labels, here.costs, TARGET, None)
    best_cost, best_deferred, _ = figures(population, oracle.routing)
    found: dict[str, list[tuple[float, float, bool]]] = {method: [] for method in METHODS}
    for seed in range(repeats):
        probabilities, labels = here.draw(rows, seed)
        replay = replay_of(here, probabilities, labels)
        ours = choose_thresholds(probabilities, labels, here.costs, TARGET, 1 - LEVEL, seed)
        chosen = (ours.routing, one_threshold(replay), grid(replay))
        for method, thresholds in zip(METHODS, chosen, strict=True):
            found[method].append(figures(population, thresholds))
    result: dict[str, Any] = {
        "world": name, "stages": stages, "rows": rows, "repeats": repeats,
        "oracle_cost": best_cost, "oracle_deferred": best_deferred,
    }  # fmt: skip
    for method, values in found.items():
        costs, deferred, kept = (np.array(column) for column in zip(*values, strict=True))
        result[method] = {
            "cost_over_oracle": float(costs.mean() / best_cost),
            "standard_error": float(costs.std() / best_cost / np.sqrt(repeats)),
            "deferred_over_oracle": float(deferred.mean() / best_deferred),
            "broken": float(1 - kept.mean()),
        }
    return result


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| rows from | stages | held-out rows | oracle's cost | "
        + " | ".join(f"{method}: cost over the oracle's (deferral)" for method in METHODS)
        + " |",
        "|---" * (4 + len(METHODS)) + "|",
    ]
    for result in results:
        shown = [
            f"{result[method]['cost_over_oracle']:.3f} ± {result[method]['standard_error']:.3f} "
            f"({result[method]['deferred_over_oracle']:.2f})"
            for method in METHODS
        ]
        lines.append(
            f"| {result['world']} | {result['stages']} | {result['rows']:,} | "
            f"{result['oracle_cost']:.3f} | " + " | ".join(shown) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    repeats = parser.parse_args().repeats
    results = []
    for name, stages in WORLDS:
        for rows in ROWS:
            # A grid of a thousand vectors on many rows takes its time.
            results.append(compare(name, stages, rows, repeats if stages < 4 else repeats // 4))
            print(results[-1], flush=True)
    common.keep("power", {"level": LEVEL, "results": results}, table(results))


if __name__ == "__main__":
    main()
