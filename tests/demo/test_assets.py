"""What the demo takes out of packages."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModel

from cascadebert.demo import assets
from cascadebert.demo.corpus import news_sentences
from cascadebert.errors import ExportError, MissingDependencyError


def test_encoders_are_complete_models(tmp_path: Path) -> None:
    for make, layers in ((assets.minilm_l3, 3), (assets.minilm_l6, 6)):
        model = AutoModel.from_pretrained(make(tmp_path / str(layers)), add_pooling_layer=False)
        assert model.config.num_hidden_layers == layers
        assert model.config.hidden_size == 384


def test_a_rebuilt_encoder_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = assets._linear_weights

    def wrong(*arguments: object) -> object:
        return ((name, 1.01 * tensor) for name, tensor in right(*arguments))

    monkeypatch.setattr(assets, "_linear_weights", wrong)
    with pytest.raises(ExportError, match="hidden states differ"):
        assets.minilm_l3(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_package_is_named() -> None:
    with pytest.raises(MissingDependencyError, match=r"cascadebert\[demo\]"):
        assets.installed_file("no-such-package-here", "file")


def test_no_article_is_on_two_sides() -> None:
    parts = news_sentences()
    texts = [set(part.texts) for part in parts]
    assert all(len(part) > 2_500 for part in parts)
    assert all(set(part.labels or ()) == set(parts[0].labels or ()) for part in parts)
    assert not texts[0] & texts[1]
    assert not (texts[0] | texts[1]) & texts[2]
