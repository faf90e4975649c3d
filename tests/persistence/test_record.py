"""Records of this version, of later ones and damaged ones, and the model card made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascadebert.errors import ArtifactError
from cascadebert.persistence.model_card import model_card
from cascadebert.persistence.record import read_record, write_record

LINEAR: dict[str, Any] = {
    "name": "words",
    "folder": "stages/1-words",
    "labels": ["good", "bad"],
    "inputs": [],
    "max_length": 1000,
    "pad_token_id": 0,
    "truncation_side": "right",
    "cost": {"layers": 0, "parameters": 40, "flops": [0.0, 1.5, 0.0]},
    "runtime": "numpy",
    "speed": {
        "machine": "some CPU, 2 cores",
        "runtime": "numpy",
        "token_budget": None,
        "seconds": [1e-06, 1e-08, 0.0],
    },
    "files": {"config.json": "00", "model.safetensors": "11"},
    "kind": "linear",
    "calibration": {"temperature": 1.25, "kind": "temperature"},
    "trained_on": "22",
}
TRANSFORMER: dict[str, Any] = LINEAR | {
    "name": "bert",
    "folder": "stages/2-bert",
    "labels": ["bad", "good"],
    "inputs": ["input_ids", "attention_mask"],
    "runtime": "onnx",
    "trials": [
        {"runtime": "onnx", "rows_per_second": 9.5, "agreement": 1.0, "logit_error": 0.0},
    ],
    "files": dict.fromkeys(
        ("config.json", "model.onnx", "model.safetensors", "tokenizer.json"), "00"
    ),
    "kind": "transformer",
    "calibration": None,
}
# As the release before this one wrote it.
RECORD: dict[str, Any] = {
    "labels": ["bad", "good"],
    "stages": [LINEAR, TRANSFORMER],
    "score": "max_probability",
    "thresholds": [0.75],
    "cost": {"kind": "flops", "per_row": [1.0, 100.0], "machine": None},
    "certificate": {
        "verdict": "certified",
        "confidence": 0.95,
        "promises": [
            {
                "target": "MaxDrop",
                "value": 0.01,
                "label": None,
                "words": "accuracy within 0.01 of the last stage",
                "observed": 0.001,
                "p_value": 0.01,
            }
        ],
        "rows_proposing": 100,
        "rows_certifying": 400,
        "more_rows": None,
        "score": "max_probability",
        "thresholds": [0.75],
        "skip_thresholds": [],
        "abstain_threshold": 0.0,
        "accuracy": 0.9,
        "reference_accuracy": 0.901,
        "cost": 40.0,
        "reference_cost": 100.0,
        "exit_fractions": [0.6, 0.4],
        "abstained": 0.0,
        "grouped": False,
        "unranked_stages": [],
        "cost_unit": "flops",
        "paired": False,
        "rows_fingerprint": "33",
        "artefact_fingerprint": "44",
        "versions": {"runtime": "onnx"},
        "seen": {"ends": [240, 160, 0], "stages": [1], "edges": [[0.5]], "confidences": [[1, 2]]},
    },
    "versions": {"cascadebert": "0.1.0"},
    "data_fingerprint": "55",
    "schema_version": 1,
    "skip_thresholds": [],
    "abstain_threshold": 0.0,
    "score_parameters": None,
}
FINGERPRINT = "1e77a38b8db350ea879159725c2869d0f32428d6618084ced5f6e55f355e4267"


def read(folder: Path, change: Callable[[dict[str, Any]], object] = dict) -> Any:
    values = json.loads(json.dumps(RECORD))
    change(values)
    (folder / "cascade.json").write_text(json.dumps(values))
    return read_record(folder)


def refusal(folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    with pytest.raises(ArtifactError) as caught:
        read(folder, change)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value).removeprefix(f"{folder / 'cascade.json'}: ")


def test_records_of_the_release_before_keep_their_fingerprint(tmp_path: Path) -> None:
    record = read(tmp_path)
    assert record.fingerprint() == FINGERPRINT
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record


def test_a_later_schema_version_asks_for_an_upgrade(tmp_path: Path) -> None:
    def newer(values: dict[str, Any]) -> None:
        values.update(schema_version=2, surprise=1)
        del values["labels"]

    error = refusal(tmp_path, newer)
    assert error.startswith("written by a newer version of cascadebert (schema_version is 2, ")
    assert error.endswith("upgrade cascadebert")
    for version in (0, "1", None, 1.5):
        error = refusal(tmp_path, lambda v, version=version: v.update(schema_version=version))
        assert error.startswith(f"damaged (schema_version is {version!r}, ")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: v.update(surprise=1), "unknown key 'surprise' in the cascade"),
        (lambda v: v.update(b=1, a=2), "unknown keys 'a', 'b' in the cascade"),
        (lambda v: v["stages"][1].update(surprise=1), "unknown key 'surprise' in stage 2"),
        (lambda v: v["stages"][0]["cost"].update(x=1), "unknown key 'x' in the cost of stage 1"),
        (lambda v: v["stages"][0]["speed"].update(x=1), "unknown key 'x' in the speed of stage 1"),
        (
            lambda v: v["stages"][1]["trials"][0].update(x=1),
            "unknown key 'x' in a trial of stage 2",
        ),
        (lambda v: v["certificate"].update(x=1), "unknown key 'x' in the certificate"),
        (lambda v: v["certificate"]["promises"][0].update(x=1), "unknown key 'x' in a promise of"),
    ],
)
def test_unknown_keys_are_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    assert refusal(tmp_path, change).startswith(named)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: v.pop("score"), "it lacks the key 'score'"),
        (lambda v: v["stages"][1].pop("pad_token_id"), "it lacks the key 'pad_token_id'"),
        (lambda v: v["stages"][0]["cost"].pop("layers"), "it lacks the key 'layers'"),
        (lambda v: v["stages"][0]["speed"].pop("machine"), "it lacks the key 'machine'"),
        (lambda v: v["certificate"].pop("accuracy"), "it lacks the key 'accuracy'"),
        (lambda v: v["certificate"]["promises"][0].pop("words"), "it lacks the key 'words'"),
        (lambda v: v["stages"].append(3), "stage 3 is 3, not an object"),
        (lambda v: v["stages"][0].update(cost=None), "the cost of stage 1 is None, not an object"),
    ],
)
def test_missing_keys_are_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    assert refusal(tmp_path, change) == f"damaged ({named}); build the cascade again"


@pytest.mark.parametrize("text", ["", "{ no", "[" * 100_000, "\ud800", "[1]"])
def test_what_is_no_record_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "cascade.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ArtifactError, match=r"cascade.json: (not valid JSON|damaged)") as caught:
        read_record(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_the_model_card_says_what_the_last_stage_does(tmp_path: Path) -> None:
    plain = model_card(read(tmp_path))
    assert "The last stage answers every row that reaches it." in plain
    assert "| 1 words | 0 | 0.0 M | 1000 characters | numpy | 0.75 |" in plain
    abstaining = model_card(read(tmp_path, lambda v: v.update(abstain_threshold=0.6)))
    assert "gets no answer if its confidence there is not above 0.6" in abstaining
    assert "answers" not in abstaining.split("## Use")[0].split("Labels:")[0]
    untuned = model_card(read(tmp_path, lambda v: v.update(thresholds=None, certificate=None)))
    assert "until it is, the last stage answers every row" in untuned

    def third(values: dict[str, Any]) -> None:
        values["stages"].insert(1, LINEAR)
        values.update(thresholds=[0.75, 1.0], skip_thresholds=[0.25], certificate=None)

    skipping = model_card(read(tmp_path, third))
    assert "at or below 0.25 in stage 1 sends it to the last stage" in skipping
    assert "| numpy | not run |" in skipping
