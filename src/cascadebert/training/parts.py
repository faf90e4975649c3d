"""Parts of a long training, each in a folder named by the fingerprint of its settings.

A finished part is found by its fingerprint and not run again, in this training or in another one
with the same folder. An interrupted part is run again with the same scratch folder.
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
    """The record of a finished part, ``part.json`` in its folder.

    Attributes:
        name: name for people.
        settings: everything that the result depends on.
        seconds: wall time of the run that finished it.
        resumed: whether that run continued an interrupted one.
    """

    name: str
    settings: Mapping[str, Any]
    seconds: float
    resumed: bool


class Parts:
    """The finished and unfinished parts in one folder.

    Args:
        folder: names the folder.

    Examples:
        >>> import tempfile
        >>> parts = Parts(Path(tempfile.mkdtemp()) / "parts")
        >>> settings = {"seed": 0}
        >>> done = parts.run("letters", settings, lambda result, _: (result / "a").touch())
        >>> parts.has("letters", settings), (done / "a").exists(), read_part(done).name
        (True, True, 'letters')
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str, settings: Mapping[str, Any]) -> Path:
        """Folder of the part, whether it exists or not."""
        return self.folder / f"{name}-{fingerprint(settings)[:16]}"

    def has(self, name: str, settings: Mapping[str, Any]) -> bool:
        """Whether the part is finished."""
        return (self.path(name, settings) / PART_FILE).is_file()

    def run(
        self, name: str, settings: Mapping[str, Any], make: Callable[[Path, Path], object]
    ) -> Path:
        """Run a part unless it is finished.

        Args:
            name: gives a short name that is valid in a file name.
            settings: lists everything that the result depends on, in JSON's types.
            make: is called with an empty folder for the result and a scratch folder, which an
                interrupted run leaves to the next one.

        Returns:
            The folder of the finished part.
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
            # Files for TensorBoard are kept when the checkpoints are removed.
            runs = self.folder.parent / "runs" / target.name
            shutil.copytree(scratch / "runs", runs, dirs_exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        result.rename(target)
        shutil.rmtree(scratch)
        return target

    def remove_weights(self) -> None:
        """Remove trained stages and unfinished parts; keep answers, which are small."""
        for path in self.folder.glob("*"):
            if path.suffix == ".unfinished" or (path / WEIGHTS_FILE).exists():
                shutil.rmtree(path)


def read_part(folder: Path) -> Part:
    """The record of a finished part."""
    return Part(**json.loads((folder / PART_FILE).read_text(encoding="utf-8")))


def fingerprint(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings in JSON's types, for any order of their keys.

    Examples:
        >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def checkpoint_fingerprint(checkpoint: str | PathLike[str]) -> str:
    """What identifies a checkpoint: the hash of its files, or its commit on the hub.

    Args:
        checkpoint: names a folder or a hub repository.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "config.json").write_text("{}")
        2
        >>> len(checkpoint_fingerprint(folder))
        64
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        config = AutoConfig.from_pretrained(fspath(checkpoint), trust_remote_code=False)
        return f"{fspath(checkpoint)}@{getattr(config, '_commit_hash', None)}"
    files = sorted(path for pattern in _WEIGHTS_AND_WORDS for path in folder.glob(pattern))
    return fingerprint({path.name: file_hash(path) for path in files})
