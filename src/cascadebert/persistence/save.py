"""Writing a cascade so that a crash at any moment leaves the old one whole, or the new one."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from cascadebert.disk import (
    CARD_FILE,
    RECORD_FILE,
    REPORT,
    STAGES,
    TRAINING,
    refuse_read_only,
    sync,
    write_text,
)
from cascadebert.errors import ArtifactError
from cascadebert.persistence.integrity import first_fault
from cascadebert.persistence.record import CascadeRecord, StageRecord, read_record, write_record


def refuse_other_folder(target: Path) -> None:
    """Refuse to write a cascade where something else is.

    Raises:
        ArtifactError: ``target`` is a file, a folder with something else in it, or read-only.
    """
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target}: is a file; name a folder for the cascade")
    refuse_read_only(target)
    if not target.is_dir() or (target / RECORD_FILE).exists():
        return
    # What a first save, or a training, that was interrupted leaves.
    ours = (STAGES, TRAINING, REPORT)
    if any(path.name not in ours and not _is_temporary(path) for path in target.iterdir()):
        raise ArtifactError(
            f"{target}: has other files in it and is not a cascade; name a new or empty folder"
        )


def write_cascade(target: Path, sources: Sequence[Path], record: CascadeRecord, card: str) -> None:
    """Write a cascade so that a crash at any moment leaves the old one whole, or the new one.

    A new folder is made under a temporary name and moved into place. In a folder that exists
    new stages are put beside the old ones and take effect when ``cascade.json`` is replaced,
    which is one step. The folder ``stages`` belongs to the cascade, and what the record does not
    name is removed from it; whatever else is in the folder stays. Two writers at a time are not
    provided for.

    Args:
        target: the folder to write; a link is followed.
        sources: hold the files of each stage in ``record``, a folder each.
        record: what to write.
        card: text of the model card.

    Raises:
        ArtifactError: see :func:`refuse_other_folder`; or a stage in ``sources`` is not, or no
            longer, what ``record`` says.
    """
    target = target.resolve()
    refuse_other_folder(target)
    if target.is_dir():
        _update(target, sources, record, card)
        return
    temporary = target.with_name(f".{target.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _update(temporary, sources, record, card)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_temporary(path: Path) -> bool:
    """Whether this is what :func:`replacing` left of our files when it was killed."""
    return re.fullmatch(r"\.(cascade\.json|README\.md)\.\d+\.tmp", path.name) is not None


def _update(target: Path, sources: Sequence[Path], record: CascadeRecord, card: str) -> None:
    (target / STAGES).mkdir(exist_ok=True)
    for path in filter(_is_temporary, target.iterdir()):
        path.unlink()
    with contextlib.suppress(ArtifactError):
        _sweep(target, read_record(target))
    stages = []
    for source, stage in zip(sources, record.stages, strict=True):
        place = stage.folder
        if first_fault(target / place, stage):
            place = _free_name(target, place)
            _copy_stage(source, target / place, stage)
        stages.append(dataclasses.replace(stage, folder=place))
    new = dataclasses.replace(record, stages=tuple(stages))
    write_record(target, new)
    write_text(target / CARD_FILE, card)
    _sweep(target, new)


def _sweep(target: Path, record: CascadeRecord) -> None:
    """Remove the stages that the record does not name."""
    in_use = {target / stage.folder for stage in record.stages}
    for path in (target / STAGES).iterdir():
        if path not in in_use:
            shutil.rmtree(path, ignore_errors=True)


def _free_name(target: Path, place: str) -> str:
    names = (f"{place}-{i}" if i else place for i in itertools.count())
    return next(name for name in names if not (target / name).exists())


def _copy_stage(source: Path, target: Path, stage: StageRecord) -> None:
    temporary = target.with_name(".new")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        if source.is_dir():
            shutil.copytree(source, temporary)
        if fault := first_fault(temporary, stage):
            raise ArtifactError(
                f"{source}: {fault} is missing or not what {RECORD_FILE} says; copy the cascade "
                "again or rebuild it"
            )
        for path in temporary.rglob("*"):
            if path.is_file():
                sync(path)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
