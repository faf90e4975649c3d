"""Training with a loss of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import TrainerState

from cascadebert.rivals.fitting import train
from cascadebert.rows.rows import Rows
from cascadebert.training.encoding import Collator, Encoder
from cascadebert.training.fine_tuning import open_encoder
from conftest import CORPUS, LABELS, inputs_of


@pytest.mark.parametrize("bf16", [True, False])
def test_all_of_the_loss_is_in_the_precision_asked_for(
    bf16: bool, checkpoints: dict[str, Path]
) -> None:
    folder = checkpoints["bert"]
    model, tokenizer = open_encoder(folder, LABELS, 24)
    rows = Rows(CORPUS, None, [LABELS[i % 3] for i in range(len(CORPUS))])
    inner: list[torch.dtype] = []

    def loss(
        model: torch.nn.Module,
        inputs: Mapping[str, torch.Tensor],
        labels: torch.Tensor,
        state: TrainerState,
    ) -> torch.Tensor:
        assert isinstance(state, TrainerState)
        layer = model.bert.encoder.layer[0].intermediate.dense
        inner.append(layer(model.bert.embeddings(inputs["input_ids"])).dtype)
        return torch.nn.functional.cross_entropy(model(**inputs).logits.float(), labels)

    data = Encoder(tokenizer, LABELS, 24)(rows, {})
    train(model, data, Collator(tokenizer), loss, {"bf16": bf16, "num_train_epochs": 1})
    assert set(inner) == {torch.bfloat16 if bf16 else torch.float32}
    # What was trained is an ordinary model again.
    assert model.forward.__func__ is type(model).forward
    with torch.inference_mode():
        logits = model.eval()(**inputs_of(folder)).logits
    assert (logits != logits.bfloat16().float()).any()
