"""File names of a saved cascade, hashes, and writing files so that a crash leaves old or new."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cascadebert.errors import ArtifactError, InputError

RECORD_FILE = "cascade.json"
CARD_FILE = "README.md"
STAGES = "stages"
TRAINING = "training"
REPORT = "report"
REPORT_FILE = "report.html"
MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
INT8_FILES = ("openvino/model.xml", "openvino/model.bin")
CONFIG_FILE = "config.json"


def refuse_unsafe_name(name: str, what: str) -> None:
    """Refuse a name that cannot be a part of a path.

    Args:
        name: to be used as the name of a file or folder.
        what: is called by that name, for the message.

    Raises:
        InputError: ``name`` has other characters than letters, digits, '.', '_' and '-', or begins
            with a '.'.
    """
    if not isinstance(name, str) or not re.fullmatch(r"(?!\.)[\w.-]{1,100}", name):
        raise InputError(
            f"{what} {name!r} cannot name a folder; use up to 100 letters, digits, '_', '-' and "
            "'.', and no '.' at the start"
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


def refuse_read_only(target: Path) -> None:
    """Refuse a folder, there already or to be made, that may not be written to.

    Raises:
        ArtifactError: see above.
    """
    above = next(path for path in (target, *target.absolute().parents) if path.exists())
    if not os.access(above, os.W_OK):
        raise ArtifactError(f"{target}: {above} may not be written to; name another folder")


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: a reader sees the old content or the new."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place if the block ends without error.

    Links are followed.
    """
    if path.exists() and not path.is_file():
        # A pipe or a device is written to as it is.
        yield path
        return
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
