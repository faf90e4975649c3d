"""Comparing the files of a saved cascade with the SHA-256 in its record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cascadebert.disk import INT8_FILES, MODEL_FILE, WEIGHTS_FILE, file_hash
from cascadebert.errors import ArtifactError, DamagedError
from cascadebert.persistence.record import StageRecord
from cascadebert.runtimes import INT8, RUNTIMES


def check_files(folder: Path, stages: Sequence[StageRecord], runtimes: Sequence[str]) -> None:
    """Compare the SHA-256 of every stage's files with the record.

    Weights that the stage's runtime does not read are skipped, since they may be large.

    Args:
        folder: holds the cascade.
        stages: are the records of its stages.
        runtimes: name the runtime of each stage.

    Raises:
        DamagedError: a file is missing or differs; the message names it.
        ArtifactError: a stage is to run in int8 but was not quantised.
    """
    for stage, runtime in zip(stages, runtimes, strict=True):
        int8 = runtime in RUNTIMES and RUNTIMES[runtime][1] == INT8
        if int8 and not set(INT8_FILES) <= set(stage.files):
            raise ArtifactError(
                f"{folder / stage.folder}: this stage has not been quantised; build the cascade "
                "again with --data and a few hundred rows, or choose another runtime"
            )
        unread = (MODEL_FILE, WEIGHTS_FILE) if int8 else INT8_FILES
        name = first_fault(folder / stage.folder, stage, unread)
        if name is None:
            continue
        path = folder / stage.folder / name
        if not path.is_file():
            raise DamagedError(f"{path}: missing; copy the cascade again or rebuild it")
        raise DamagedError(
            f"{path}: damaged or changed (its SHA-256 is not the recorded "
            f"{stage.files[name][:12]}…); copy the cascade again or rebuild it"
        )


def first_fault(folder: Path, stage: StageRecord, unread: Sequence[str] = ()) -> str | None:
    """The name of the first file that is missing or differs from the record; None if all match.

    Args:
        folder: holds the files of the stage.
        stage: is the record of the stage.
        unread: names files to skip.
    """
    for name, expected in stage.files.items():
        if name in unread:
            continue
        if not (folder / name).is_file() or file_hash(folder / name) != expected:
            return name
    return None
