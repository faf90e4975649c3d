"""Writing a cascade so that a crash at any moment leaves the old one whole, or the new one."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
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
    temporary_path,
    write_text,
)
from cascadebert.errors import ArtifactError
from cascadebert.persistence.integrity import first_fault
from cascadebert.persistence.record import CascadeRecord, StageRecord, read_record, write_record


def refuse_other_folder(target: Path) -> None:
    """Refuse to write a cascade over anything else.

    Raises:
        ArtifactError: ``target`` is a file, a folder with other files in it, or read-only.
    """
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target}: is a file; name a folder for the cascade")
    refuse_read_only(target)
    if not target.is_dir() or (target / RECORD_FILE).exists():
        return
    # An interrupted training, or an interrupted first save into an empty folder, leaves these.
    ours = (STAGES, TRAINING, REPORT)
    if any(path.name not in ours and not _is_temporary(path) for path in target.iterdir()):
        raise ArtifactError(
            f"{target}: has other files in it and is not a cascade; name a new or empty folder"
        )


def write_cascade(target: Path, sources: Sequence[Path], record: CascadeRecord, card: str) -> None:
    """Write a cascade so that a crash at any moment leaves the old one whole, or the new one.

    A new folder is made under a temporary name and moved into place. In a folder that exists, new
    stages are put beside the old ones and take effect when ``cascade.json`` is replaced, which is
    one step. The folder ``stages`` belongs to the cascade: what the record does not name is
    removed from it. Everything else in the folder stays. Of two that write the same new folder at
    a time, one wins and the other raises; an existing folder must have one writer at a time.

    Args:
        target: names the folder to write; a link is followed.
        sources: hold the files of each stage in ``record``, a folder each; only the files that it
            lists are copied.
        record: becomes ``cascade.json``.
        card: becomes the model card.

    Raises:
        ArtifactError: see :func:`refuse_other_folder`; or a stage in ``sources`` is not, or no
            longer, what ``record`` says; or another process has saved a cascade to ``target``
            at the same time.
    """
    target = target.resolve()
    refuse_other_folder(target)
    if target.is_dir():
        _update(target, sources, record, card)
    else:
        _create(target, sources, record, card)
    # Left by killed processes. One that still writes to such a folder cannot move it here.
    for unique in ("", "[0-9a-f]" * 16 + "."):
        for path in target.parent.glob(f".{glob.escape(target.name)}.{unique}new"):
            shutil.rmtree(path, ignore_errors=True)


def _create(target: Path, sources: Sequence[Path], record: CascadeRecord, card: str) -> None:
    temporary = temporary_path(target, ".new")
    temporary.mkdir(parents=True)
    try:
        _update(temporary, sources, record, card)
        temporary.rename(target)
    except OSError:
        if not target.exists():
            raise
        raise ArtifactError(
            f"{target}: another process saved a cascade here at the same time; save to another "
            "folder, or save again to replace it"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_temporary(path: Path) -> bool:
    """Whether :func:`replacing` left this file of a cascade when its process was killed."""
    return re.fullmatch(r"\.(cascade\.json|README\.md)\.\w+\.tmp", path.name) is not None


def _update(target: Path, sources: Sequence[Path], record: CascadeRecord, card: str) -> None:
    (target / STAGES).mkdir(exist_ok=True)
    for path in filter(_is_temporary, target.iterdir()):
        path.unlink(missing_ok=True)
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
    """Copy the files that the record of the stage lists, and no others."""
    temporary = temporary_path(target, ".new")
    temporary.mkdir()
    try:
        for name in stage.files:
            copy = temporary / name
            if (source / name).is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, copy)
                sync(copy)
        if fault := first_fault(temporary, stage):
            raise ArtifactError(
                f"{source}: {fault} is missing or not what {RECORD_FILE} says; copy the cascade "
                "again or rebuild it"
            )
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
