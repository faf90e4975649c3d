"""What a saved cascade is on disk: the records in ``cascade.json``, and how the folder is
read, checked and moved into place.

A cascade is one folder::

    cascade.json                what this module reads and writes
    stages/<n>-<name>/          an ordinary Hugging Face checkpoint, and model.onnx beside it
    README.md                   the model card

``model.onnx`` holds the graph alone and points into ``model.safetensors`` for its weights.
Every file of a stage is listed in ``cascade.json`` with its SHA-256, and is checked when the
cascade is loaded. No pickle is ever read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.errors import ArtifactError

SCHEMA_VERSION = 1
RECORD_FILE = "cascade.json"
CARD_FILE = "README.md"
MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"


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
        a, b, c = self.flops
        n = np.asarray(tokens, dtype=np.float64)
        return a + b * n + c * n * n


@dataclass(frozen=True)
class StageRecord:
    """One stage in ``cascade.json``. ``labels`` are in the order of the stage's own logits."""

    name: str
    folder: str
    labels: tuple[str, ...]
    inputs: tuple[str, ...]
    max_length: int
    pad_token_id: int
    truncation_side: str
    precision: str
    cost: StageCost
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CascadeRecord:
    """The whole of ``cascade.json``.

    ``labels`` are in the order of the columns of ``predict_proba``; ``thresholds`` has one
    number a stage but the last, on the probability scale, or is None before tuning. ``cost``
    has the measured seconds a row of each stage and ``data_fingerprint`` the rows on which the
    thresholds were chosen, both None before tuning.
    """

    labels: tuple[str, ...]
    stages: tuple[StageRecord, ...]
    score: str
    thresholds: tuple[float, ...] | None
    cost: Mapping[str, Any] | None
    certificate: Mapping[str, Any] | None
    versions: Mapping[str, str]
    data_fingerprint: str | None
    schema_version: int = SCHEMA_VERSION


def read_record(folder: Path) -> CascadeRecord:
    """Read and check ``cascade.json``; the files that it names are not opened.

    Raises:
        ArtifactError: no such folder or file, not JSON, another schema version, a missing
            or unknown key, or a path that leaves the folder.
    """
    path = folder / RECORD_FILE
    _recover(folder)
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
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: damaged ({type(error).__name__}: {error}); build the cascade again"
        ) from None
    for stage in record.stages:
        for name in (stage.folder, *stage.files):
            _refuse_escape(path, name)
    return record


def _parse_record(values: dict[str, Any]) -> CascadeRecord:
    def parse_stage(stage: dict[str, Any]) -> StageRecord:
        cost = stage["cost"]
        return StageRecord(
            **{
                **stage,
                "labels": tuple(stage["labels"]),
                "inputs": tuple(stage["inputs"]),
                "cost": StageCost(**{**cost, "flops": tuple(cost["flops"])}),
                "files": dict(stage["files"]),
            }
        )

    thresholds = values["thresholds"]
    stages = tuple(parse_stage(stage) for stage in values["stages"])
    record = CascadeRecord(
        **{
            **values,
            "labels": tuple(values["labels"]),
            "stages": stages,
            "thresholds": None if thresholds is None else tuple(float(t) for t in thresholds),
        }
    )
    if not stages:
        raise ValueError("it has no stages")
    if record.thresholds is not None and len(record.thresholds) != len(stages) - 1:
        raise ValueError(f"{len(record.thresholds)} thresholds for {len(stages)} stages")
    return record


def _refuse_escape(record_path: Path, name: str) -> None:
    parts = PurePosixPath(name).parts
    # Links are not resolved: the hub's cache is made of them, and hashes guard the content.
    if not parts or ".." in parts or "\\" in name or PurePosixPath(name).is_absolute():
        raise ArtifactError(
            f"{record_path}: the path {name!r} leaves the folder of the cascade; "
            "do not use this file unless you know who wrote it"
        )


def write_record(folder: Path, record: CascadeRecord) -> None:
    """Replace ``cascade.json`` in one step: a reader sees the old file or the new one."""
    text = json.dumps(dataclasses.asdict(record), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / RECORD_FILE, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: a crash leaves the old content whole."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place if the block ends without error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_files(folder: Path, stages: Sequence[StageRecord]) -> None:
    """Compare the SHA-256 of every file of every stage with the record.

    Raises:
        ArtifactError: a file is missing or differs; the message names it.
    """
    for stage in stages:
        for name, expected in stage.files.items():
            path = folder / stage.folder / name
            if not path.is_file():
                raise ArtifactError(f"{path}: missing; copy the cascade again or rebuild it")
            if file_hash(path) != expected:
                raise ArtifactError(
                    f"{path}: damaged or changed (its SHA-256 is not the recorded "
                    f"{expected[:12]}…); copy the cascade again or rebuild it"
                )


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below ``folder``, by relative path."""
    return {
        path.relative_to(folder).as_posix(): file_hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``target`` if the block ends without error.

    A crash before the end leaves ``target`` as it was. Between the two renames that swap an
    old cascade for the new one the old lies beside ``target`` under another name, from
    which the next read or write brings it back.

    Raises:
        ArtifactError: see :func:`refuse_other_folder`.
    """
    _recover(target)
    refuse_other_folder(target)
    temporary = target.with_name(f".{target.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                _sync(path)
        old = _old_folder(target)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_other_folder(target: Path) -> None:
    """Refuse to replace what is not a cascade.

    Raises:
        ArtifactError: ``target`` is a file, or a folder with something else in it.
    """
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target}: is a file; name a folder for the cascade")
    if target.is_dir() and any(target.iterdir()) and not (target / RECORD_FILE).exists():
        raise ArtifactError(
            f"{target}: has other files in it and is not a cascade; name a new or empty folder"
        )


def _old_folder(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _recover(target: Path) -> None:
    """Finish or undo a swap of folders that was interrupted."""
    old = _old_folder(target)
    if not old.is_dir():
        return
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(target)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
