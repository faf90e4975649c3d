"""Tiny random checkpoints of real architectures, made here, so that no test needs a hub."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from cascadebert import Cascade
from cascadebert.cli.main import main

CORPUS = [
    "the film is a quiet , moving story about two sisters and their father",
    "a dull and lifeless remake that nobody asked for",
    "funny , fast and never afraid to look silly",
    "the plot makes no sense at all , but the songs are great",
    "what a waste of a wonderful cast",
    "one of the best pictures of the year",
    "you will laugh , you will cry , you will check your watch",
    "it looks good and says nothing",
]
LABELS = ("bad", "fair", "good")
MAX_TOKENS = 24

Make = Callable[..., Path]


def with_record(cascade: Cascade, **changes: Any) -> Cascade:
    """The same cascade, of which something else is recorded."""
    other = cascade.with_own_stages(cascade.stages)
    record = dataclasses.replace(cascade.record, **changes)
    other._held = dataclasses.replace(other._state, record=record)
    return other


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    special = (
        ["<s>", "<pad>", "</s>", "<unk>"] if kind == "bpe" else ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    )
    first, last, unknown, padding = (
        ("<s>", "</s>", "<unk>", "<pad>") if kind == "bpe" else ("[CLS]", "[SEP]", "[UNK]", "[PAD]")
    )
    trainer: Any
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=180, special_tokens=special)
    elif kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=290,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token=unknown)
    tokenizer.train_from_iterator(CORPUS, trainer)
    types = (0, 0) if kind == "bpe" else (0, 1)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:{types[1]} {last}:{types[1]}",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (first, last)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=padding,
        unk_token=unknown,
        cls_token=first,
        sep_token=last,
        model_max_length=MAX_TOKENS,
        model_input_names=[
            "input_ids",
            "attention_mask",
            *([] if kind == "bpe" else ["token_type_ids"]),
        ],
    )


# Tokenizer kind, hidden size, layers, and what the architecture needs besides.
ARCHITECTURES: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "distilbert": ("wordpiece", 16, 1, {}),
    "bert": ("wordpiece", 16, 2, {}),
    "electra": ("wordpiece", 24, 2, {"embedding_size": 8}),
    "albert": ("unigram", 24, 2, {"embedding_size": 8}),
    "mpnet": ("wordpiece", 32, 2, {"pad_token_id": 0}),
    "roberta": ("bpe", 32, 2, {"type_vocab_size": 1}),
    "xlm-roberta": ("bpe", 32, 3, {"type_vocab_size": 1}),
    "deberta-v2": (
        "unigram",
        48,
        2,
        {
            "relative_attention": True,
            "position_biased_input": False,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "type_vocab_size": 0,
            "pooler_hidden_size": 48,
        },
    ),
    "modernbert": ("bpe", 48, 3, {"local_attention": 8, "global_attn_every_n_layers": 2}),
}


def inputs_of(folder: Path, texts: list[str] | None = None) -> dict[str, torch.Tensor]:
    """Texts, by default the corpus, as the model in a folder takes them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return dict(tokenizer(texts or CORPUS, padding=True, return_tensors="pt"))


def make_checkpoint(
    folder: Path,
    architecture: str = "bert",
    labels: tuple[str, ...] = LABELS,
    seed: int = 0,
    spread: float = 0.5,
) -> Path:
    """A classifier with random weights, wide enough that different rows get different logits."""
    kind, hidden, layers, extra = ARCHITECTURES[architecture]
    tokenizer = make_tokenizer(kind)
    settings = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 64,
        "pad_token_id": tokenizer.pad_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    if architecture == "distilbert":
        settings |= {"dim": hidden, "n_layers": layers, "n_heads": 2, "hidden_dim": 2 * hidden}
    else:
        settings |= {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "intermediate_size": 2 * hidden,
        }
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **settings | extra)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=spread)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny checkpoint of each architecture, label orders turned from one to the next."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {}
    for i, name in enumerate(ARCHITECTURES):
        turned = LABELS[i % 3 :] + LABELS[: i % 3]
        made[name] = make_checkpoint(root / name, name, turned, seed=i)
    return made


@pytest.fixture(scope="session")
def saved(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved cascade of three stages: other architectures, widths, tokenizers, label orders."""
    names = ("distilbert", "roberta", "deberta-v2")
    folder = tmp_path_factory.mktemp("saved") / "cascade"
    cascade = Cascade.from_stages([checkpoints[name] for name in names])
    cascade.thresholds = (0.8, 0.8)
    cascade.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cascade(saved: Path) -> Cascade:
    """The cascade of ``saved``, loaded; tests must not change it."""
    return Cascade.from_pretrained(saved)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make a checkpoint by name below the test's own folder."""

    def build(name: str, **settings: Any) -> Path:
        return make_checkpoint(tmp_path / name, **settings)

    return build


class Run:
    """Runs a command in this process and keeps what it printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object, stdin: bytes = b"") -> Run:
        self._monkeypatch.setattr(sys, "argv", ["cascadebert", *map(str, arguments)])
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as stopped:
            main()
        self.code = stopped.value.code or 0
        self.out, self.err = self._capsys.readouterr()
        return self

    @property
    def error(self) -> str:
        lines = [line for line in self.err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, self.err
        return lines[0]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(monkeypatch, capsys)
