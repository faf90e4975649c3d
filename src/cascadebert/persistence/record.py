"""The records in ``cascade.json``: what a saved cascade is, and how they are read and checked.

A cascade is one folder::

    cascade.json                the records of this module
    stages/<n>-<name>/          an ordinary Hugging Face checkpoint with model.onnx beside it,
                                or a linear stage
      openvino/                 the stage in int8, if it was quantised
    README.md                   the model card
    report/                     evaluation
    training/                   logs and difficulties of its training

``model.onnx`` holds the graph alone and points into ``model.safetensors`` for its weights.
``cascade.json`` lists every file of a stage with its SHA-256, which is checked when the cascade is
loaded. No pickle is ever read.
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
from cascadebert.deferral.certificates.certificate import Certificate, Promise
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
from cascadebert.errors import ArtifactError, InputError, first_line
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
    """The size of a stage, counted.

    >>> StageCost(layers=1, parameters=10, flops=(1.0, 2.0, 3.0)).row_flops([0, 10])
    array([  1., 321.])

    Attributes:
        layers: counts transformer layers; 0 in a linear stage.
        parameters: counts weights.
        flops: has the coefficients (a, b, c) of a + b·n + c·n² floating point operations for a row
            of n tokens. One multiplication and one addition count as two.
    """

    layers: int
    parameters: int
    flops: tuple[float, float, float]

    def __post_init__(self) -> None:
        # The fingerprint tells 576 from 576.0, which is what a saved record is read as.
        object.__setattr__(self, "flops", tuple(map(float, self.flops)))

    def row_flops(self, tokens: ArrayLike) -> NDArray[np.float64]:
        """Floating point operations for rows of ``tokens`` tokens each."""
        return polynomial(self.flops, tokens)


@dataclass(frozen=True)
class RuntimeTrial:
    """How one runtime did on a stage when it was exported; the first trial of a stage is in fp32.

    Attributes:
        runtime: names the runtime.
        rows_per_second: was measured side by side with the other trials on one machine.
        agreement: is the share of rows with the label that fp32 gives.
        logit_error: is the root mean square difference from the logits of fp32, over their
            standard deviation.
    """

    runtime: str
    rows_per_second: float
    agreement: float
    logit_error: float


@dataclass(frozen=True)
class StageSpeed:
    """Seconds per row in a stage, measured on one machine with one runtime.

    >>> StageSpeed("some CPU", "onnx", 1024, (0.0, 1e-5, 0.0)).row_seconds([100, 200])
    array([0.001, 0.002])

    Attributes:
        machine: names the processor and its cores.
        runtime: names the runtime.
        token_budget: is the batch size in tokens at which a transformer was fastest.
        seconds: has the coefficients (a, b, c) of a + b·n + c·n² seconds for a row of n tokens (in
            a linear stage, characters) in a large batch, tokenising included.
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

    Attributes:
        name: is shown to users.
        folder: is the path of the stage in the folder of the cascade.
        labels: are in the order of the stage's own logits.
        inputs: are the names of the arrays that the model takes.
        max_length: is the number of tokens (in a linear stage, characters) at which a row is
            truncated.
        pad_token_id: fills the rows of a batch up to one length.
        truncation_side: is "left" or "right".
        cost: counts layers, parameters and operations.
        runtime: names the best runtime for the stage.
        trials: compare the runtimes; empty if none were tried.
        speed: is how fast the stage runs; None if it was not measured.
        files: maps the paths of the stage's files to their SHA-256.
        kind: is "transformer" or "linear".
        calibration: maps logits, in the cascade's label order, to calibrated ones; None leaves
            them as they are.
        trained_on: is the fingerprint of the training texts, if known.
        quantised_on: is the fingerprint of the texts used to quantise the stage, if any.
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
        """The unit of ``max_length``."""
        return "characters" if self.kind == "linear" else "tokens"


@dataclass(frozen=True)
class CascadeRecord:
    """The whole of ``cascade.json``.

    Attributes:
        labels: are in the order of the columns of ``predict_proba``.
        stages: are in the order in which rows go through them.
        score: names the confidence score.
        thresholds: has one number per stage but the last, on the scale of the score; None before
            tuning.
        cost: has the kind of cost and the cost per row in each stage; None before tuning.
        certificate: is what tuning found; None where thresholds were set by hand.
        versions: are those of the packages that built the cascade.
        data_fingerprint: identifies the rows that the thresholds were chosen on; None before
            tuning.
        schema_version: counts the changes of this format.
        skip_thresholds: see :class:`~cascadebert.deferral.routing.Thresholds`.
        abstain_threshold: see :class:`~cascadebert.deferral.routing.Thresholds`.
        score_parameters: are those of a learned score; None for the others.
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
        """The same cascade under other thresholds, without a certificate.

        Raises:
            InputError: the thresholds do not fit the number of stages.
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
        """SHA-256 of everything that decides the answers, and of what is promised of them."""
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
    """Read and check ``cascade.json``; the files that it lists are not opened.

    Raises:
        ArtifactError: no such folder or file, not JSON, a ``schema_version`` that this version
            cannot read, a missing or unknown key, an invalid value, or a path that leaves the
            folder.
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
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path}: not valid JSON ({first_line(error)}); build the cascade again"
        ) from None
    _refuse_other_schema(path, values.get("schema_version") if isinstance(values, dict) else None)
    try:
        record = _parse_record(values)
    except _UnknownKeysError as error:
        raise ArtifactError(
            f"{path}: {error}; remove it, or use the version of cascadebert that wrote it"
        ) from None
    except KeyError as error:
        raise ArtifactError(
            f"{path}: damaged (it lacks the key {error}); build the cascade again"
        ) from None
    except (TypeError, ValueError, AttributeError, InputError) as error:
        raise ArtifactError(
            f"{path}: damaged ({first_line(error)}); build the cascade again"
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


def _refuse_other_schema(path: Path, version: object) -> None:
    if version == SCHEMA_VERSION:
        return
    seen = f"schema_version is {version!r}, this cascadebert reads {SCHEMA_VERSION}"
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: written by a newer version of cascadebert ({seen}); upgrade cascadebert"
        )
    raise ArtifactError(f"{path}: damaged ({seen}); build the cascade again")


class _UnknownKeysError(Exception):
    """A record with keys that this version does not know."""


def _checked_keys(values: Any, kind: type, where: str) -> dict[str, Any]:
    """A JSON object that has the keys of a dataclass.

    Args:
        values: were read from JSON.
        kind: has a field per key; those with a default may be missing.
        where: says in messages which object this is.

    Raises:
        TypeError: not an object.
        _UnknownKeysError: a key that is no field.
        KeyError: a missing key.
    """
    if not isinstance(values, dict):
        raise TypeError(f"{where} is {values!r:.60}, not an object")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(values.keys() - fields.keys()):
        names = ", ".join(map(repr, unknown))
        raise _UnknownKeysError(f"unknown key{'s' * (len(unknown) > 1)} {names} in {where}")
    for name, one in fields.items():
        required = one.default is one.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise KeyError(name)
    return values


def _parse_record(values: dict[str, Any]) -> CascadeRecord:
    _checked_keys(values, CascadeRecord, "the cascade")
    thresholds = values["thresholds"]
    record = CascadeRecord(
        **{
            **values,
            "labels": tuple(values["labels"]),
            "stages": tuple(
                _parse_stage(stage, f"stage {number}")
                for number, stage in enumerate(values["stages"], start=1)
            ),
            "certificate": _parse_certificate(values["certificate"]),
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
        raise ValueError("score_parameters do not fit the number of stages and labels")
    for stage in record.stages:
        if sorted(stage.labels) != sorted(record.labels):
            raise ValueError(f"stage {stage.name!r} has other labels than the cascade")
    if record.routing is not None:
        record.routing.check(len(record.stages))
    return record


def _parse_certificate(values: Any) -> Certificate | None:
    if not values:
        return None
    for promise in _checked_keys(values, Certificate, "the certificate")["promises"]:
        _checked_keys(promise, Promise, "a promise of the certificate")
    return Certificate.from_dict(values)


def _parse_parameters(values: list[list[float]] | None) -> tuple[tuple[float, ...], ...] | None:
    """Parameters of a learned score; their number is checked with the stages."""
    return None if values is None else tuple(tuple(map(float, model)) for model in values)


def _parse_stage(values: Any, where: str) -> StageRecord:
    _checked_keys(values, StageRecord, where)
    cost = _checked_keys(values["cost"], StageCost, f"the cost of {where}")
    speed = values.get("speed") and _checked_keys(
        values["speed"], StageSpeed, f"the speed of {where}"
    )
    stage = StageRecord(
        **{
            **values,
            "labels": tuple(values["labels"]),
            "inputs": tuple(values["inputs"]),
            "cost": StageCost(**{**cost, "flops": tuple(map(float, cost["flops"]))}),
            "trials": tuple(
                RuntimeTrial(**_checked_keys(trial, RuntimeTrial, f"a trial of {where}"))
                for trial in values.get("trials", ())
            ),
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
            "use this file only if you trust who wrote it"
        )


def write_record(folder: Path, record: CascadeRecord) -> None:
    text = json.dumps(dataclasses.asdict(record), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / RECORD_FILE, text + "\n")
