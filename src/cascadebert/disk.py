"""File names of a saved cascade, hashes, and writing that leaves the old file or the new one."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
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
    """Refuse a name that cannot be one part of a path.

    >>> refuse_unsafe_name("../escaped", "stage")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    cascadebert.errors.InputError: stage '../escaped' cannot name a folder; use up to 100 ...

    Args:
        name: is to become the name of a file or folder.
        what: says in the message what has that name.

    Raises:
        InputError: ``name`` has characters other than letters, digits, '.', '_' and '-', begins
            with a '.', or is longer than 100.
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
    """Refuse a folder that cannot be written to, or cannot be made.

    Raises:
        ArtifactError: the folder, or the nearest one above it that exists, is read-only.
    """
    above = next(path for path in (target, *target.absolute().parents) if path.exists())
    if not os.access(above, os.W_OK):
        raise ArtifactError(f"{target}: {above} is read-only; name another folder")


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: a reader sees the old content or the new."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def temporary_path(path: Path, suffix: str) -> Path:
    """A path beside ``path`` that no other thread, process or machine uses."""
    # Unlike tempfile, which makes files for their owner alone, what is made here gets the
    # permissions that the umask gives.
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{suffix}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` for a file that replaces it if the block ends without error.

    Links are followed. Of several writers at a time, the last to finish wins.
    """
    if path.exists() and not path.is_file():
        # Nothing can replace a pipe or a device.
        yield path
        return
    path = path.resolve()
    temporary = temporary_path(path, ".tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    # Windows syncs only what is open for writing.
    with path.open("rb+") as file:
        os.fsync(file.fileno())
