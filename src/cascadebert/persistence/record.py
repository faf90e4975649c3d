"""What a saved cascade is on disk: the records in ``cascade.json``, and how the folder is
read, checked and moved into place.

A cascade is one folder::

    cascade.json                what this module reads and writes
    stages/<n>-<name>/          an ordinary Hugging Face checkpoint, and model.onnx beside it;
                                or a linear stage
      openvino/                 the stage in int8, where it was quantised
    README.md                   the model card
    report/                     what was measured
    training/                   logs and difficulties of its training

``model.onnx`` holds the graph alone and points into ``model.safetensors`` for its weights.
Every file of a stage is listed in ``cascade.json`` with its SHA-256, and is checked when the
cascade is loaded. No pickle is ever read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.calibration import Calibration, read_calibration
from cascadebert.deferral.certificates.certificate import Certificate
from cascadebert.deferral.confidence import ConfidenceScore, confidence_score
from cascadebert.deferral.routing import Thresholds
from cascadebert.disk import (
    CONFIG_FILE,
    MODEL_FILE,
    RECORD_FILE,
    STAGES,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    write_text,
)
from cascadebert.errors import ArtifactError, InputError
from cascadebert.runtimes import RUNTIMES

SCHEMA_VERSION = 1
STAGE_FILES = {
    "transformer": (CONFIG_FILE, MODEL_FILE, WEIGHTS_FILE, TOKENIZER_FILE),
    "linear": (CONFIG_FILE, WEIGHTS_FILE),
}


def polynomial(coefficients: tuple[float, float, float], of: ArrayLike) -> NDArray[np.float64]:
    a, b, c = coefficients
    n = np.asarray(of, dtype=np.float64)
    return a + b * n + c * n * n


@dataclass(frozen=True)
class StageCost:
    """What one row costs in a stage, by counting.

    ``flops`` are the coefficients (a, b, c) of a + b·n + c·n² floating point operations for a
    row of n tokens: one multiplication and one addition count as two.
    """

    layers: int
    parameters: int
    flops: tuple[float, float, float]

    def row_flops(self, tokens: ArrayLike) -> NDArray[np.float64]:
        """Floating point operations for rows of ``tokens`` tokens each."""
        return polynomial(self.flops, tokens)


@dataclass(frozen=True)
class RuntimeTrial:
    """What one runtime did with a stage when it was exported; the first of a stage is in fp32.

    ``rows_per_second`` were measured side by side on one machine. ``agreement`` is the share of
    rows with the label of fp32, and ``logit_error`` the root mean square by which the logits move,
    over the standard deviation of the logits.
    """

    runtime: str
    rows_per_second: float
    agreement: float
    logit_error: float


@dataclass(frozen=True)
class StageSpeed:
    """Seconds that rows take in a stage, as measured on one machine with one runtime.

    ``seconds`` are the coefficients (a, b, c) of a + b·n + c·n² seconds for a row of n tokens (of a
    linear stage, characters) among many, reading it included; ``token_budget`` is the size of
    batches at which a transformer was fastest.
    """

    machine: str
    runtime: str
    token_budget: int | None
    seconds: tuple[float, float, float]

    def row_seconds(self, lengths: ArrayLike) -> NDArray[np.float64]:
        """Seconds for rows of these lengths."""
        return polynomial(self.seconds, lengths)


@dataclass(frozen=True)
class StageRecord:
    """One stage in ``cascade.json``.

    ``kind`` is "transformer" or "linear". ``labels`` are in the order of the stage's own logits.
    ``max_length`` counts tokens, of a linear stage characters. ``calibration`` turns the logits,
    in the cascade's label order, into ones whose softmax can be trusted; None leaves them.
    ``trained_on`` is the fingerprint of the texts that it was trained on, where that is known.
    ``quantised_on`` is the same of those that it was quantised on.
    ``runtime`` is what runs it best, ``trials`` how that was found, and ``speed`` how fast it is.
    """

    name: str
    folder: str
    labels: tuple[str, ...]
    inputs: tuple[str, ...]
    max_length: int
    pad_token_id: int
    truncation_side: str
    cost: StageCost
    runtime: str = "onnx"
    trials: tuple[RuntimeTrial, ...] = ()
    speed: StageSpeed | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    kind: str = "transformer"
    calibration: Calibration | None = None
    trained_on: str | None = None
    quantised_on: str | None = None

    @property
    def length_unit(self) -> str:
        """What ``max_length`` counts."""
        return "characters" if self.kind == "linear" else "tokens"


@dataclass(frozen=True)
class CascadeRecord:
    """The whole of ``cascade.json``.

    ``labels`` are in the order of the columns of ``predict_proba``. ``score`` is the name of the
    confidence score, ``score_parameters`` what it has learned, if it learns. ``thresholds`` has
    one number a stage but the last, on the scale of the score, or is None before tuning; for the
    other thresholds see :class:`~cascadebert.deferral.routing.Thresholds`. ``cost`` has the
    kind of cost and what a row costs in each stage, and ``data_fingerprint`` the rows on which the
    thresholds were chosen, both None before tuning.
    """

    labels: tuple[str, ...]
    stages: tuple[StageRecord, ...]
    score: str
    thresholds: tuple[float, ...] | None
    cost: Mapping[str, Any] | None
    certificate: Certificate | None
    versions: Mapping[str, str]
    data_fingerprint: str | None
    schema_version: int = SCHEMA_VERSION
    skip_thresholds: tuple[float, ...] = ()
    abstain_threshold: float = 0.0
    score_parameters: tuple[tuple[float, ...], ...] | None = None

    @property
    def routing(self) -> Thresholds | None:
        """All thresholds together; None before tuning."""
        if self.thresholds is None:
            return None
        return Thresholds(self.thresholds, self.skip_thresholds, self.abstain_threshold)

    def with_routing(self, routing: Thresholds) -> CascadeRecord:
        """The same cascade under other thresholds, of which nothing is known yet.

        Raises:
            InputError: the thresholds are not those of so many stages.
        """
        routing.check(len(self.stages))
        return dataclasses.replace(
            self.untuned(),
            thresholds=routing.exits,
            skip_thresholds=routing.skips,
            abstain_threshold=routing.abstain,
        )

    def untuned(self) -> CascadeRecord:
        """The same cascade without thresholds."""
        return dataclasses.replace(
            self,
            thresholds=None,
            skip_thresholds=(),
            abstain_threshold=0.0,
            cost=None,
            certificate=None,
            data_fingerprint=None,
        )

    def confidence_score(self) -> ConfidenceScore:
        return confidence_score(self.score, self.score_parameters)

    def fingerprint(self) -> str:
        """SHA-256 of all that decides the answers, and of what is promised of them."""
        values = {
            "labels": self.labels,
            "stages": [
                {
                    name: value
                    for name, value in dataclasses.asdict(stage).items()
                    if name not in ("folder", "name", "trials", "speed")
                }
                for stage in self.stages
            ],
            "score": [self.score, self.score_parameters],
            "routing": self.routing and dataclasses.asdict(self.routing),
            "promised": self.certificate
            and {
                **dataclasses.asdict(self.certificate),
                "artefact_fingerprint": None,
                "versions": None,
            },
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_record(folder: Path) -> CascadeRecord:
    """Read and check ``cascade.json``; the files that it names are not opened.

    Raises:
        ArtifactError: no such folder or file, not JSON, another schema version, a missing
            or unknown key, or a path that leaves the folder.
    """
    path = folder / RECORD_FILE
    if not folder.exists():
        raise ArtifactError(f"{folder}: no such folder; check the path")
    if not path.is_file():
        raise ArtifactError(
            f"{folder}: not a cascade (no {RECORD_FILE} in it); "
            "give the folder that 'cascadebert build' wrote, or a hub name"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path}: not valid JSON ({error}); build the cascade again") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: schema_version is {version!r}, this cascadebert reads {SCHEMA_VERSION}; "
            "use the version that wrote it, or build the cascade again"
        )
    try:
        record = _parse_record(values)
    except (TypeError, KeyError, ValueError, AttributeError, InputError) as error:
        raise ArtifactError(
            f"{path}: damaged ({type(error).__name__}: {error}); build the cascade again"
        ) from None
    for stage in record.stages:
        for name in (stage.folder, *stage.files):
            _refuse_escape(path, name)
        if PurePosixPath(stage.folder).parent != PurePosixPath(STAGES):
            raise ArtifactError(
                f"{path}: damaged (stage folder {stage.folder!r} is not {STAGES}/NAME); "
                "build the cascade again"
            )
    return record


def _parse_record(values: dict[str, Any]) -> CascadeRecord:
    thresholds = values["thresholds"]
    record = CascadeRecord(
        **{
            **values,
            "labels": tuple(values["labels"]),
            "stages": tuple(_parse_stage(stage) for stage in values["stages"]),
            "certificate": values["certificate"] and Certificate.from_dict(values["certificate"]),
            "thresholds": None if thresholds is None else tuple(float(t) for t in thresholds),
            "skip_thresholds": tuple(map(float, values.get("skip_thresholds", ()))),
            "score_parameters": _parse_parameters(values.get("score_parameters")),
        }
    )
    if not record.stages:
        raise ValueError("it has no stages")
    if len(set(record.labels)) != len(record.labels):
        raise ValueError(f"labels {record.labels} are not all different")
    record.confidence_score()
    shape = [3 + len(record.labels) + 1] * len(record.stages)
    if record.score_parameters and [len(model) for model in record.score_parameters] != shape:
        raise ValueError("score_parameters are not those of so many stages and labels")
    for stage in record.stages:
        if sorted(stage.labels) != sorted(record.labels):
            raise ValueError(f"stage {stage.name!r} has other labels than the cascade")
    if record.routing is not None:
        record.routing.check(len(record.stages))
    return record


def _parse_parameters(values: list[list[float]] | None) -> tuple[tuple[float, ...], ...] | None:
    """Parameters of a learned score; their number is checked with the stages."""
    return None if values is None else tuple(tuple(map(float, model)) for model in values)


def _parse_stage(values: dict[str, Any]) -> StageRecord:
    cost, speed = values["cost"], values.get("speed")
    stage = StageRecord(
        **{
            **values,
            "labels": tuple(values["labels"]),
            "inputs": tuple(values["inputs"]),
            "cost": StageCost(**{**cost, "flops": tuple(map(float, cost["flops"]))}),
            "trials": tuple(RuntimeTrial(**trial) for trial in values.get("trials", ())),
            "speed": speed
            and StageSpeed(**{**speed, "seconds": tuple(map(float, speed["seconds"]))}),
            "files": dict(values["files"]),
            "calibration": read_calibration(values.get("calibration")),
        }
    )
    if not all(isinstance(value, str) for value in stage.files.values()):
        raise TypeError("'files' has a hash that is not a string")
    if stage.kind not in STAGE_FILES:
        raise ValueError(f"kind is {stage.kind!r}")
    if not set(STAGE_FILES[stage.kind]) <= set(stage.files):
        raise ValueError(f"'files' lacks one of {STAGE_FILES[stage.kind]}")
    if stage.kind == "transformer" and stage.runtime not in RUNTIMES:
        raise ValueError(f"runtime is {stage.runtime!r}")
    if stage.speed and stage.speed.token_budget is not None and stage.speed.token_budget < 1:
        raise ValueError(f"token_budget is {stage.speed.token_budget!r}")
    if not (isinstance(stage.max_length, int) and stage.max_length > 0):
        raise ValueError(f"max_length is {stage.max_length!r}")
    if stage.truncation_side not in ("left", "right"):
        raise ValueError(f"truncation_side is {stage.truncation_side!r}")
    if not set(stage.inputs) <= {"input_ids", "attention_mask", "token_type_ids"}:
        raise ValueError(f"inputs are {stage.inputs!r}")
    return stage


def _refuse_escape(record_path: Path, name: object) -> None:
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    # Links are not resolved: the hub's cache is made of them, and hashes guard the content.
    if not parts or ".." in parts or "\\" in str(name) or parts[0] == "/":
        raise ArtifactError(
            f"{record_path}: the path {name!r} leaves the folder of the cascade; "
            "do not use this file unless you know who wrote it"
        )


def write_record(folder: Path, record: CascadeRecord) -> None:
    text = json.dumps(dataclasses.asdict(record), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / RECORD_FILE, text + "\n")
