"""Checkpoints that cannot become a stage, and exports that must not pass."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from cascadebert import Cascade, Rows, fine_tune
from cascadebert.errors import ArtifactError, CascadeWarning, ExportError, InputError
from cascadebert.export import onnx as export
from cascadebert.training.outputs import outputs_of
from conftest import LABELS, Make, make_tokenizer


def test_large_to_small_is_warned_with_the_costs(checkpoints: dict[str, Path]) -> None:
    with pytest.warns(CascadeWarning, match=r"not ordered small to large .*roberta .*bert"):
        Cascade.from_stages([checkpoints["xlm-roberta"], checkpoints["distilbert"]])


def test_flops_are_those_of_the_matrices(make: Make) -> None:
    """Counted by hand for BERT: q, k, v, o and the two feed-forward products, and attention."""
    stage = Cascade.from_stages([make("a")]).stages[0]
    hidden, layers, inner, classes = 16, 2, 32, len(LABELS)
    a, b, c = stage.record.cost.flops
    assert b == 2 * layers * (4 * hidden * hidden + 2 * hidden * inner)
    assert c == 2 * layers * 2 * hidden
    assert a == 2 * (hidden * hidden + hidden * classes)


def test_a_graph_that_disagrees_is_not_used(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    write = export._write_onnx

    def with_other_weights(model: torch.nn.Module, *rest: object) -> None:
        # The graph reads its weights from the file; bake one that differs into the graph.
        with torch.no_grad():
            model.classifier.bias += 0.01
        monkeypatch.setattr(export, "_point_at_safetensors", lambda *_: None)
        write(model, *rest)

    monkeypatch.setattr(export, "_write_onnx", with_other_weights)
    with pytest.raises(ExportError, match=r"ONNX Runtime and torch differ by 1.0e-02"):
        Cascade.from_stages([make("a")])


def test_given_rows_are_checked_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    check = export._check_same_logits
    monkeypatch.setattr(
        export, "_check_same_logits", lambda *args: (seen.append(args[2]), check(*args))
    )
    rows = Rows(["a text of my own"], ["and its pair"])
    Cascade.from_stages([make("a")], rows=rows, quantise=False)
    assert seen[-1] == rows
    assert len(seen) == 3


def test_maximum_length(make: Make) -> None:
    checkpoint = make("a")
    assert Cascade.from_stages([checkpoint]).stages[0].record.max_length == 24
    shorter = Cascade.from_stages([checkpoint], max_length=8)
    assert shorter.predict(["one two three four five six seven eight nine"]).truncated[0]
    for impossible in (2, 65):
        with pytest.raises(InputError, match=f"maximum length {impossible} is not possible"):
            Cascade.from_stages([checkpoint], max_length=impossible)


def test_positions_counted_from_the_padding_id(checkpoints: dict[str, Path]) -> None:
    """RoBERTa has 64 positions and uses 62; one more would read past its table."""
    assert Cascade.from_stages([checkpoints["roberta"]], max_length=62)
    with pytest.raises(InputError, match="reads 3 to 62 tokens"):
        Cascade.from_stages([checkpoints["roberta"]], max_length=63)


def test_encoder_without_a_head(make: Make, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    AutoModel.from_pretrained(make("a")).save_pretrained(encoder)
    make_tokenizer("wordpiece").save_pretrained(encoder)
    with pytest.raises(ArtifactError, match=r"has no weights for classifier.*fine-tune it"):
        Cascade.from_stages([encoder])


def test_multi_label_is_refused(make: Make) -> None:
    checkpoint = make("a")
    config = json.loads((checkpoint / "config.json").read_text())
    config["problem_type"] = "multi_label_classification"
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="multi-label"):
        Cascade.from_stages([checkpoint])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_damaged_checkpoint_is_named_in_one_line(make: Make, name: str) -> None:
    checkpoint = make("a")
    path = checkpoint / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ArtifactError) as caught:
        Cascade.from_stages([checkpoint])
    assert str(checkpoint) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_checkpoint_without_a_tokenizer(make: Make) -> None:
    """transformers would make one up that knows no word."""
    checkpoint = make("a")
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"has no tokenizer|cannot be read"):
        Cascade.from_stages([checkpoint])
    (checkpoint / "tokenizer_config.json").unlink()
    with pytest.raises(ArtifactError, match=r"has no tokenizer|cannot be read"):
        Cascade.from_stages([checkpoint])


def test_tokenizer_with_more_ids_than_the_model(make: Make) -> None:
    checkpoint = make("a")
    tokenizer = make_tokenizer("bpe")
    tokenizer.save_pretrained(checkpoint)
    with pytest.raises(ArtifactError, match="embeddings; use the tokenizer"):
        Cascade.from_stages([checkpoint])


def test_a_graph_that_ignores_token_types_is_not_used(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = export._LogitsOnly.forward

    def without_types(self: torch.nn.Module, input_ids, attention_mask, token_type_ids):
        return forward(self, input_ids, attention_mask, token_type_ids * 0)

    monkeypatch.setattr(export._LogitsOnly, "forward", without_types)
    with pytest.raises(ExportError, match="differ"):
        Cascade.from_stages([make("a")])


def test_no_such_checkpoint(tmp_path: Path, make: Make) -> None:
    folder = make("from one")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(i + 1): name for i, name in enumerate(LABELS)}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"has the numbers \[1, 2, 3\], so which logit"):
        Cascade.from_stages([folder])
    with pytest.raises(ArtifactError, match="not a checkpoint that transformers can open"):
        Cascade.from_stages([tmp_path / "nowhere"])


def test_no_stages() -> None:
    with pytest.raises(InputError, match="at least one stage"):
        Cascade.from_stages([])


def test_stages_with_broken_weights_say_so(make: Make) -> None:
    cascade = Cascade.from_stages([make("a")])

    class Broken:
        token_budgets = (512, 1024)

        def __call__(self, batch: Any) -> Any:
            return lambda: np.full((len(batch["input_ids"]), 3), np.nan, dtype=np.float32)

    cascade.stages[0].model = Broken()
    with pytest.raises(Exception, match="logits that are not finite for row 0"):
        cascade.predict(["a"])


def test_code_of_a_checkpoint_is_never_run(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 10))
    checkpoint, ran = make("own-code"), tmp_path / "RAN"
    (checkpoint / "own.py").write_text(f"open({str(ran)!r}, 'w')\n", encoding="utf-8")
    for file, own in (
        ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}),
    ):
        values = json.loads((checkpoint / file).read_text(encoding="utf-8"))
        (checkpoint / file).write_text(json.dumps(values | own), encoding="utf-8")
    rows = Rows(["a", "b"], labels=["bad", "good"])
    for open_it in (
        lambda: Cascade.from_stages([checkpoint]),
        lambda: fine_tune(checkpoint, rows, tmp_path / "out"),
        lambda: outputs_of(checkpoint, rows),
    ):
        with pytest.raises(ArtifactError, match="which is never run") as refused:
            open_it()
        assert "\n" not in str(refused.value)
    assert not ran.exists()


@pytest.mark.parametrize(
    "name",
    ["x/../../../../escaped", "org/a", "..", ".hidden", "a\\b", "", "a b", "a\n", "x" * 101, 3],
)
def test_names_that_would_be_other_paths_are_refused(make: Make, name: Any) -> None:
    with pytest.raises(InputError, match=r"a stage.s name .* cannot name a folder"):
        Cascade.from_stages([make("ordinary")], names=[name])


def test_named_stages_are_saved_and_loaded(make: Make, tmp_path: Path) -> None:
    fresh = Cascade.from_stages([make("ordinary")], names=["Größe_1.0-a"])
    again = Cascade.from_pretrained(fresh.save_pretrained(tmp_path / "saved"))
    assert [stage.name for stage in again.stages] == ["Größe_1.0-a"]


def test_a_checkpoint_with_an_odd_name_gets_a_usable_one(make: Make) -> None:
    assert Cascade.from_stages([make("..a b" + "c" * 120)]).stages[0].name == "c" * 100
