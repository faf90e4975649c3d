"""Cascades on the Hugging Face hub: where a name leads, what is downloaded, and uploads."""

from __future__ import annotations

import glob
import re
from os import PathLike, fspath
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from cascadebert.disk import CARD_FILE, RECORD_FILE
from cascadebert.errors import ArtifactError, InputError, first_line
from cascadebert.persistence.record import CascadeRecord, read_record

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def resolve(
    name: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
) -> Path:
    """The folder of a cascade: a local one, or else one that is downloaded from the hub.

    From the hub come ``cascade.json``, the files that it lists and the model card, nothing else.

    >>> resolve("./no-such-folder")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    cascadebert.errors.ArtifactError: ./no-such-folder: no such folder; check the path ...

    Args:
        name: names a folder, or a repository on the hub as ``USER/NAME``. A folder wins.
        revision: selects a branch, tag or commit on the hub; by default the newest on ``main``.
        token: authorises the download; by default the one that ``hf auth login`` saved.
        cache_dir: keeps the downloads; by default the cache of ``huggingface_hub``.
        local_files_only: reads the cache and does not touch the network.
        subfolder: holds the cascade inside the folder or repository.

    Raises:
        InputError: a revision of a local folder, or a subfolder that leads out of it.
        ArtifactError: neither a folder nor a cascade on the hub. A name that looks like a path
            is refused without asking the hub.
    """
    text = fspath(name)
    inside = PurePosixPath(subfolder or "")
    if inside.is_absolute() or ".." in inside.parts:
        raise InputError(f"subfolder {subfolder!r} leads out of {text}; name a folder inside it")
    folder = Path(text).absolute()
    if folder.exists():
        if revision is not None:
            raise InputError(
                f"{text}: is a local folder and has no revision {revision!r}; leave revision out, "
                "or rename the folder to get the cascade from the hub"
            )
        return folder / inside
    _refuse_path(text, asked_hub=revision is not None)
    options: dict[str, Any] = {
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
    }
    try:
        record_file = Path(
            huggingface_hub.hf_hub_download(
                text, (inside / RECORD_FILE).as_posix(), revision=revision, **options
            )
        )
        # Not the revision, which may have moved on since.
        commit = record_file.parents[len(inside.parts)].name
        patterns = files_to_download(read_record(record_file.parent), inside)
        huggingface_hub.snapshot_download(text, revision=commit, allow_patterns=patterns, **options)
    except (ArtifactError, MemoryError):
        raise
    except Exception as error:
        raise ArtifactError(f"{text}: {_cause(error, revision, inside)}") from error
    return record_file.parent


def files_to_download(record: CascadeRecord, inside: PurePosixPath) -> list[str]:
    """What to download of a repository, as patterns for ``huggingface_hub``.

    Args:
        record: lists the files of the stages.
        inside: leads from the root of the repository to the cascade.
    """
    listed = [PurePosixPath(stage.folder, file) for stage in record.stages for file in stage.files]
    files = [PurePosixPath(RECORD_FILE), PurePosixPath(CARD_FILE), *listed]
    return [glob.escape((inside / file).as_posix()) for file in files]


def upload(
    folder: Path,
    name: str,
    private: bool | None = None,
    *,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload cascade",
) -> str:
    """Upload a saved cascade to the hub.

    Args:
        folder: holds the cascade.
        name: names the repository as ``USER/NAME``, or ``NAME`` for one of the token's user; it
            is created if it does not exist.
        private: makes a new repository private; by default the account's setting decides.
        token: authorises the upload; by default the one that ``hf auth login`` saved.
        revision: names the branch to commit to; by default ``main``.
        commit_message: describes the commit.

    Returns:
        The address of the commit.

    Raises:
        ArtifactError: the hub refuses, or cannot be reached.
    """
    try:
        api = huggingface_hub.HfApi(token=token)
        repository = api.create_repo(name, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
        )
    except MemoryError:
        raise
    except Exception as error:
        raise ArtifactError(
            f"{name}: cannot be uploaded to the hub ({first_line(error)}); check the name, and "
            "that 'hf auth login' or token gives a token that may write"
        ) from error
    return str(commit.commit_url)


def _refuse_path(name: str, *, asked_hub: bool) -> None:
    """Refuse a name that is meant as a path.

    Args:
        name: is not the name of anything on this machine.
        asked_hub: says that only the hub can be meant.

    Raises:
        ArtifactError: the name is not USER/NAME, or there is a local folder USER.
    """
    if name.startswith("~"):
        raise ArtifactError(f"{name}: no such folder; write out the home folder in place of '~'")
    if not _HUB_NAME.fullmatch(name):
        raise ArtifactError(
            f"{name}: no such folder; check the path (a cascade on the hub is called USER/NAME)"
        )
    user, _, own = name.partition("/")
    if Path(user).exists() and not asked_hub:
        raise ArtifactError(
            f"{name}: there is no {own!r} in the local folder {user!r}; check the path, or give "
            "revision='main' to get it from the hub"
        )


def _cause(error: Exception, revision: str | None, inside: PurePosixPath) -> str:
    """Why a cascade cannot be downloaded, and what to do."""
    if isinstance(error, GatedRepoError):
        return "no folder here, and a gated repository on the hub; ask for access and give a token"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "no folder here, and no repository on the hub that this token may read; check the "
            "name, or give a token"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"the repository on the hub has no revision {revision!r}; give another"
    if isinstance(error, LocalEntryNotFoundError):
        return (
            "no folder here, and not wholly in the cache of downloads, while the hub is not "
            "reached; check the name and the connection, or leave out local_files_only"
        )
    if isinstance(error, EntryNotFoundError):
        file = (inside / RECORD_FILE).as_posix()
        return f"the repository on the hub is not a cascade (no {file} in it); give another"
    return (
        f"no folder here, and the hub does not give it ({first_line(error)}); check the name and "
        "the connection"
    )
