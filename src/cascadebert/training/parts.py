"""The parts of a long training, each done once: a folder a part, named by what went into it.

A part that is finished is found by its fingerprint and not run again, in this training or in
another one that keeps its parts in the same folder. One that was cut off is run again with the
same scratch folder, where it finds what it had.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from cascadebert.disk import WEIGHTS_FILE, file_hash, write_text

PART_FILE = "part.json"
_WEIGHTS_AND_WORDS = ("*.safetensors", "*.json", "*.txt", "*.model")


@dataclass(frozen=True)
class Part:
    """A finished part: ``part.json`` in its folder.

    Attributes:
        name: what it is, for people.
        settings: all that its result depends on.
        seconds: wall time of the run that finished it.
        resumed: whether that run went on from an earlier one that was cut off.
    """

    name: str
    settings: Mapping[str, Any]
    seconds: float
    resumed: bool


class Parts:
    """The finished and unfinished parts in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str, settings: Mapping[str, Any]) -> Path:
        """Where the part lies, or would lie."""
        return self.folder / f"{name}-{fingerprint(settings)[:16]}"

    def has(self, name: str, settings: Mapping[str, Any]) -> bool:
        return (self.path(name, settings) / PART_FILE).is_file()

    def run(
        self, name: str, settings: Mapping[str, Any], make: Callable[[Path, Path], object]
    ) -> Path:
        """The folder of a finished part, made now if it is not there.

        Args:
            name: short, fit for a file name.
            settings: all that the result depends on, in JSON's types.
            make: called with the folder for the result, empty, and a scratch folder that a run
                which is cut off leaves to the next.
        """
        target = self.path(name, settings)
        if self.has(name, settings):
            return target
        scratch = target.with_name(target.name + ".unfinished")
        resumed = scratch.is_dir()
        result = scratch / "result"
        shutil.rmtree(result, ignore_errors=True)
        result.mkdir(parents=True)
        start = time.perf_counter()
        make(result, scratch)
        part = Part(name, settings, round(time.perf_counter() - start, 2), resumed)
        write_text(result / PART_FILE, json.dumps(asdict(part), indent=1) + "\n")
        if (scratch / "runs").is_dir():
            # What TensorBoard reads outlives the checkpoints.
            runs = self.folder.parent / "runs" / target.name
            shutil.copytree(scratch / "runs", runs, dirs_exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        result.rename(target)
        shutil.rmtree(scratch)
        return target

    def remove_weights(self) -> None:
        """Remove trained stages and whatever is unfinished; answers, which are small, stay."""
        for path in self.folder.glob("*"):
            if path.suffix == ".unfinished" or (path / WEIGHTS_FILE).exists():
                shutil.rmtree(path)


def read_part(folder: Path) -> Part:
    """The record of a finished part."""
    return Part(**json.loads((folder / PART_FILE).read_text(encoding="utf-8")))


def fingerprint(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def checkpoint_fingerprint(checkpoint: str | PathLike[str]) -> str:
    """What identifies a checkpoint: its files' content, or its commit on the hub."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        config = AutoConfig.from_pretrained(fspath(checkpoint), trust_remote_code=False)
        return f"{fspath(checkpoint)}@{getattr(config, '_commit_hash', None)}"
    files = sorted(path for pattern in _WEIGHTS_AND_WORDS for path in folder.glob(pattern))
    return fingerprint({path.name: file_hash(path) for path in files})
