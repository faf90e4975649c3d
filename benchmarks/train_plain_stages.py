"""Fine-tune plain stages (cross-entropy, no tuning of anything) for the benchmarks.

    python benchmarks/train_plain_stages.py sst2 MiniLM-L3 MiniLM-L6 MPNet

Reads ``$CASCADEBERT_DATA/<task>/train.jsonl`` and the encoders that
``fetch_checkpoints.py`` brought; writes ``checkpoints/<task>/<encoder>``. A stage that is
there already is kept.
"""

from __future__ import annotations

import argparse
import json
import random

import common
from cascadebert.rows.rows import Rows
from cascadebert.training.fine_tuning import fine_tune

CHECKPOINTS = common.CHECKPOINTS
SEED = 0

# (rows at most, epochs, learning rate): what fits an afternoon on two cores.
RECIPES = {
    "sst2": {
        "MiniLM-L3": (60_614, 1, 1e-4),
        "MiniLM-L6": (30_000, 1, 1e-4),
        "MPNet": (16_000, 1, 3e-5),
    },
    "snli": {
        "MiniLM-L3": (8_341, 4, 1e-4),
        "MiniLM-L6": (8_341, 3, 1e-4),
        "MPNet": (8_341, 2, 3e-5),
    },
    "clinc150": {
        "MiniLM-L3": (15_000, 5, 3e-4),
        "MiniLM-L6": (15_000, 4, 3e-4),
        "MPNet": (15_000, 2, 1e-4),
    },
    "mrpc": {
        "MiniLM-L3": (3_668, 4, 1e-4),
        "MiniLM-L6": (3_668, 3, 1e-4),
        "MPNet": (3_668, 3, 3e-5),
    },
    "agnews": {
        "MiniLM-L3": (8_500, 2, 1e-4),
        "MiniLM-L6": (8_500, 2, 1e-4),
        "MPNet": (8_500, 1, 3e-5),
    },
}


def training_rows(task: str, limit: int) -> Rows:
    folder = common.data_folder(task)
    records = [json.loads(line) for line in (folder / "train.jsonl").open(encoding="utf-8")]
    random.Random(SEED).shuffle(records)
    records = records[:limit]
    pairs = [r["text_pair"] for r in records] if "text_pair" in records[0] else None
    return Rows([r["text"] for r in records], pairs, [r["label"] for r in records])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=RECIPES)
    parser.add_argument("encoders", nargs="+", choices=RECIPES["sst2"])
    arguments = parser.parse_args()
    for encoder in arguments.encoders:
        output = CHECKPOINTS / arguments.task / encoder
        if (output / "training.json").exists():
            continue
        limit, epochs, learning_rate = RECIPES[arguments.task][encoder]
        rows = training_rows(arguments.task, limit)
        start = common.core_seconds()
        fine_tune(
            CHECKPOINTS / "pretrained" / encoder,
            rows,
            output,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            seed=SEED,
            disable_tqdm=False,
        )
        recipe = {
            "rows": len(rows),
            "epochs": epochs,
            "learning_rate": learning_rate,
            "seed": SEED,
            "core_seconds": round(common.core_seconds() - start, 1),
        }
        (output / "training.json").write_text(json.dumps(recipe, indent=1) + "\n")
        print(arguments.task, encoder, recipe, flush=True)


if __name__ == "__main__":
    main()
