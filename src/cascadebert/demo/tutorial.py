"""The demo: train, tune and measure a cascade with the public API alone.

Two pre-trained encoders are fine-tuned on news sentences, made a cascade, tuned on held-out
rows and measured on others. The same calls work with your own rows and checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from cascadebert import (
    Cascade,
    Evaluation,
    MaxDrop,
    Policy,
    Rows,
    evaluate,
    fine_tune,
    plot_frontier,
)
from cascadebert.demo.assets import minilm_l3, minilm_l6
from cascadebert.demo.corpus import news_sentences

# Opens a progress bar, given a title and a number of rows.
ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

TRAINING_ROWS = 6_000


@dataclass(frozen=True)
class DemoResult:
    """The files and results of the demo."""

    cascade: Path
    validation: Path
    test: Path
    picture: Path
    policy: Policy
    evaluation: Evaluation


def run_demo(folder: Path, progress_bar: ProgressBar) -> DemoResult:
    """Run the demo; all files go below ``folder``."""
    # Rows: one text and one label each, in three parts that share no article.
    train, validation, test = news_sentences()
    train = train.slice(0, TRAINING_ROWS)

    # Two complete pre-trained encoders. With a hub at hand their names would do.
    pretrained = {
        "MiniLM-L3": minilm_l3(folder / "pretrained" / "MiniLM-L3"),
        "MiniLM-L6": minilm_l6(folder / "pretrained" / "MiniLM-L6"),
    }

    # Fine-tune each on the same rows.
    checkpoints = []
    for name, encoder in pretrained.items():
        with progress_bar(f"fine-tuning {name}", len(train)) as progress:
            checkpoint = fine_tune(
                encoder,
                train,
                folder / "fine-tuned" / name,
                num_train_epochs=1,
                learning_rate=1e-4,
                max_length=64,
                progress=progress,
            )
        checkpoints.append(checkpoint)

    # Build a cascade, small to large, in int8 where that is faster and as accurate.
    with progress_bar("exporting the stages", len(checkpoints)) as progress:
        cascade = Cascade.from_stages(checkpoints, rows=train, on_stage=progress)

    # Held-out rows choose the threshold: lose at most one point of accuracy.
    with progress_bar("tuning", len(validation) * len(checkpoints)) as progress:
        cascade.tune(validation, MaxDrop(0.01), confidence=None, progress=progress)
    policy = cascade.policy
    assert policy is not None
    cascade.save_pretrained(folder / "cascade")

    # Measure on other rows. Three timings in turn: twice three passes, and L3 alone.
    with progress_bar("evaluating", len(test) * 7) as progress:
        evaluation = evaluate(cascade, test, repeats=3, progress=progress)

    return DemoResult(
        cascade=folder / "cascade",
        validation=write_rows(validation, folder / "validation.jsonl"),
        test=write_rows(test, folder / "test.jsonl"),
        picture=plot_frontier(policy, evaluation, folder / "frontier.png"),
        policy=policy,
        evaluation=evaluation,
    )


def write_rows(rows: Rows, path: Path) -> Path:
    """Write labelled rows as JSONL."""
    with path.open("w", encoding="utf-8") as file:
        for text, label in zip(rows.texts, rows.labels or (), strict=True):
            file.write(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n")
    return path
