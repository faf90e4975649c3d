"""What each way of training the small stages is worth, on five data sets.

    CASCADEBERT_DATA=... python benchmarks/training_scores.py [--tasks sst2 ...]

Reads the logits that ``train_small_stages.py`` kept. The temperature and the thresholds come from
the validation rows, the figures from the test rows.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path
from typing import Any

import numpy as np

import common
from cascadebert import Rows, Speedup, choose_thresholds, read_rows
from cascadebert.deferral.confidence import max_probability_log_odds, sigmoid, softmax
from cascadebert.deferral.fit_calibration import fit_calibration
from cascadebert.evaluation.metrics import aurc, dis, ece
from cascadebert.export.checkpoints import model_inputs
from cascadebert.export.costs import model_cost
from cascadebert.export.linear import linear_record
from cascadebert.stages.linear import LinearStage
from cascadebert.stages.ngrams import feature_version
from cascadebert.training.fine_tuning import label_order, open_encoder
from cascadebert.training.linear import fit_linear
from cascadebert.training.objective import Objective
from cascadebert.training.parts import read_part
from train_plain_stages import training_rows
from train_small_stages import (
    DIFFICULTY_SEEDS,
    ENCODERS,
    FOLDS,
    LOSSES,
    MAX_LENGTH,
    PARTS,
    RECIPES,
    SEEDS,
    cell_part,
    last_stage,
)

SPEEDUPS = (2, 3, 4)
WAYS = ("linear", *LOSSES)


def score(task: str) -> dict[str, Any]:
    """Every figure of a task, by way of training and seed, from the kept logits."""
    folder = common.data_folder(task)
    train = training_rows(task, RECIPES[task][0])
    names = label_order(train, None)
    truth, flops = {}, {}
    for split in ("validation", "test"):
        rows = read_rows(folder / f"{split}.jsonl", with_labels=True)
        truth[split] = np.array([names.index(label) for label in rows.labels or ()])
        flops[split] = {stage: row_flops(stage, rows, len(names)) for stage in (*ENCODERS, "MPNet")}
        flops[split]["linear"] = linear_stage(task, train)[f"{split}_flops"]
    large = last_stage(task)
    result: dict[str, Any] = {
        "rows": len(train),
        "large": own_figures(large, truth),
        "ways": {},
        "seconds": seconds(task),
    }
    for loss, seed in itertools.product(WAYS, SEEDS):
        small = small_stages(task, loss, seed, train)
        if small is None:
            continue
        figures: dict[str, Any] = {
            stage: own_figures(logits, truth) for stage, logits in small.items()
        }
        for names_of in cascades(small):
            stages = [*(small[name] for name in names_of), large]
            costs = {
                s: np.stack([flops[s][n] for n in (*names_of, "MPNet")], axis=1) for s in truth
            }
            for target in SPEEDUPS:
                key = f"{'+'.join((*names_of, 'MPNet'))} at {target}x"
                figures[key] = cascade_figures(stages, costs, truth, target)
        result["ways"].setdefault(loss, {})[str(seed)] = figures
    return result


def small_stages(
    task: str, loss: str, seed: int, train: Rows
) -> dict[str, dict[str, np.ndarray]] | None:
    """Logits of the small stages that were trained in one way, or None if not all are there."""
    if loss == "linear":
        # Under the plainly trained L6, so that three stages can be compared.
        rest = small_stages(task, "cross_entropy", seed, train)
        return (
            None
            if rest is None
            else {"linear": linear_stage(task, train), "MiniLM-L6": rest["MiniLM-L6"]}
        )
    found = {}
    for encoder in ENCODERS:
        name, settings = cell_part((task, encoder, loss, seed))
        if not PARTS.has(name, settings):
            return None
        found[encoder] = dict(np.load(PARTS.path(name, settings) / "logits.npz"))
    return found


def linear_stage(task: str, train: Rows) -> dict[str, np.ndarray]:
    """Logits and operations of the linear stage, which has no seed."""

    def make(result: Path, scratch: Path) -> None:
        folder = fit_linear(train, scratch / "linear")
        stage = LinearStage(folder, linear_record(folder, "linear"), label_order(train, None))
        values = {}
        for split in ("validation", "test"):
            run = stage.run_all(read_rows(common.data_folder(task) / f"{split}.jsonl"))
            values |= {split: run.logits, f"{split}_flops": run.cost.row_flops(run.lengths)}
        np.savez(result / "logits.npz", **values)

    settings = {"task": task, "rows": train.fingerprint(), "features": feature_version()}
    return dict(np.load(PARTS.run(f"{task}-linear", settings, make) / "logits.npz"))


def row_flops(encoder: str, rows: Rows, classes: int) -> np.ndarray:
    """Operations of each row in a fine-tuned encoder."""
    checkpoint = common.CHECKPOINTS / "pretrained" / encoder
    model, tokenizer = open_encoder(checkpoint, [str(i) for i in range(classes)], MAX_LENGTH)
    cost = model_cost(model.eval(), model_inputs(model, tokenizer))
    encoded = tokenizer(rows.texts, rows.pairs, truncation=True, max_length=MAX_LENGTH)
    return cost.row_flops([len(ids) for ids in encoded["input_ids"]])


def own_figures(logits: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> dict[str, float]:
    """One stage alone on the test rows, its temperature from the validation rows."""
    calibrated = calibrated_logits(logits, truth)
    right = calibrated.argmax(axis=1) == truth["test"]
    confidence = max_probability_log_odds(calibrated)
    return {
        "accuracy": float(right.mean()),
        "dis": dis(confidence, ~right),
        "ece": ece(sigmoid(confidence), right),
        "ece_uncalibrated": ece(softmax(logits["test"]).max(axis=1), right),
        "aurc": aurc(confidence, right),
    }


def calibrated_logits(
    logits: dict[str, np.ndarray], truth: dict[str, np.ndarray], split: str = "test"
) -> np.ndarray:
    calibration = fit_calibration("temperature", logits["validation"], truth["validation"])
    assert calibration is not None
    return calibration(logits[split])


def cascade_figures(
    stages: list[dict[str, np.ndarray]],
    costs: dict[str, np.ndarray],
    truth: dict[str, np.ndarray],
    target: float,
) -> dict[str, float]:
    """A cascade on the test rows, its thresholds from the validation rows."""
    probabilities = {
        split: [softmax(calibrated_logits(stage, truth, split)) for stage in stages]
        for split in truth
    }
    policy = choose_thresholds(
        probabilities["validation"], truth["validation"], costs["validation"], Speedup(target), None
    )
    classes, _ = policy.apply(probabilities["test"])
    spent = policy.costs(probabilities["test"], costs["test"])
    reference = probabilities["test"][-1].argmax(axis=1) == truth["test"]
    right = classes == truth["test"]
    return {
        "accuracy": float(right.mean()),
        "retained": float(right.mean() / reference.mean()),
        "speedup": float(costs["test"][:, -1].mean() / spent.mean()),
    }


def cascades(small: dict[str, Any]) -> list[tuple[str, ...]]:
    first, *_ = small
    return [(first,), tuple(small)]


def seconds(task: str) -> dict[str, dict[str, float]]:
    """Wall seconds of all folds of difficulty, and of one training with each loss.

    The shortest of its kind, as the others had to share the machine.
    """
    spent: dict[str, dict[str, float]] = {}
    _, epochs, rate = RECIPES[task]
    for encoder in ENCODERS:
        parts = [
            read_part(path.parent) for path in PARTS.folder.glob(f"{task}-{encoder}-*/part.json")
        ]
        parts = [p for p in parts if (p.settings["epochs"], p.settings["lr"]) == (epochs, rate)]
        folds = [p.seconds for p in parts if "fold" in p.settings]
        own = {"difficulty": len(folds) * min(folds)}
        for loss in LOSSES:
            name = Objective(loss).settings()["name"]
            times = [part.seconds for part in parts if part.settings.get("name") == name]
            if times:
                own[loss] = min(times)
        spent[encoder] = own
    return spent


def table(results: dict[str, Any]) -> str:
    """Three tables: the small stages, the cascades, the seconds."""
    parts = (stage_table(results), cascade_table(results), seconds_table(results))
    return "\n\n".join("\n".join(lines) for lines in parts)


def stage_table(results: dict[str, Any]) -> list[str]:
    lines = [
        "**Small stages** on the test rows: mean ± standard deviation over the seeds (how many). "
        "ECE after a temperature from the validation rows; without it in brackets. Accuracy, ECE "
        "and AURC in %.",
        "",
        "| task | stage | trained with | accuracy | DIS | ECE | AURC |",
        "|---|---|---|---|---|---|---|",
    ]
    for task, result in results.items():
        for way, seeds in result["ways"].items():
            for stage in ("linear",) if way == "linear" else ENCODERS:
                own = [figures[stage] for figures in seeds.values()]
                lines.append(stage_line(task, stage, f"{way} ({len(seeds)})", own))
        lines.append(stage_line(task, "MPNet", "cross_entropy (1)", [result["large"]]))
    for way in next(iter(results.values()))["ways"]:
        for stage in ("linear",) if way == "linear" else ENCODERS:
            each = [
                {name: mean_of([seed[stage] for seed in seeds], name) for name in seeds[0][stage]}
                for seeds in (list(result["ways"][way].values()) for result in results.values())
            ]
            mean = {name: mean_of(each, name) for name in each[0]}
            lines.append(stage_line(f"mean of {len(results)}", stage, way, [mean]))
    return lines


def stage_line(task: str, stage: str, way: str, figures: list[dict[str, float]]) -> str:
    return (
        f"| {task} | {stage} | {way} | {spread(figures, 'accuracy', 100)} "
        f"| {spread(figures, 'dis')} | {spread(figures, 'ece', 100)} "
        f"({spread(figures, 'ece_uncalibrated', 100)}) | {spread(figures, 'aurc', 100)} |"
    )


def cascade_table(results: dict[str, Any]) -> list[str]:
    columns = [f"{stages} stages, {target}x" for stages in (2, 3) for target in SPEEDUPS]
    lines = [
        "**Cascades** under MPNet on the test rows: % of MPNet's accuracy that is retained, with "
        "thresholds from the validation rows for 2, 3 and 4 times fewer operations; in brackets "
        "what came of that on the test rows. Two stages are L3 (or linear) and MPNet; three have "
        "L6 between them.",
        "",
        f"| task | trained with | {' | '.join(columns)} |",
        "|---|---|" + "---|" * len(columns),
    ]
    means: dict[str, list[list[float]]] = {}
    for task, result in results.items():
        for way, seeds in result["ways"].items():
            keys = sorted((k for k in next(iter(seeds.values())) if " at " in k), key=by_stages)
            own = [[figures[key] for figures in seeds.values()] for key in keys]
            means.setdefault(way, []).append([mean_of(figures, "retained") for figures in own])
            cells = " | ".join(
                f"{spread(figures, 'retained', 100)} ({mean_of(figures, 'speedup'):.1f})"
                for figures in own
            )
            lines.append(f"| {task} | {way} | {cells} |")
    for way, rows in means.items():
        cells = " | ".join(
            f"**{100 * statistics.mean(column):.2f}**" for column in zip(*rows, strict=True)
        )
        lines.append(f"| mean of {len(rows)} | {way} | {cells} |")
    return lines


def by_stages(key: str) -> int:
    return key.count("+")


def seconds_table(results: dict[str, Any]) -> list[str]:
    lines = [
        f"**Seconds** of training, one core each and two trainings at a time, the shortest of the "
        f"seeds; difficulty is {FOLDS} folds and {len(DIFFICULTY_SEEDS)} seed, each taken for as "
        "long as the shortest.",
        "",
        f"| task | stage | difficulty | {' | '.join(LOSSES)} |",
        "|---|---|---|" + "---|" * len(LOSSES),
    ]
    for task, result in results.items():
        for stage, spent in result["seconds"].items():
            values = [spent.get(name) for name in ("difficulty", *LOSSES)]
            shown = " | ".join("-" if value is None else f"{value:,.0f}" for value in values)
            lines.append(f"| {task} | {stage} | {shown} |")
    return lines


def mean_of(figures: list[dict[str, float]], name: str) -> float:
    return statistics.mean(figure[name] for figure in figures)


def spread(figures: list[dict[str, float]], name: str, scale: float = 1) -> str:
    values = [scale * figure[name] for figure in figures]
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=RECIPES, default=list(RECIPES))
    results = {task: score(task) for task in parser.parse_args().tasks}
    common.keep("training_scores", {"recipes": RECIPES, "results": results}, table(results))


if __name__ == "__main__":
    main()
