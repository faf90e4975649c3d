"""Cascades on the Hugging Face hub."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from cascadebert.errors import ArtifactError


def resolve(
    name: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
) -> Path:
    """The folder of a cascade."""
    folder = Path(name).absolute()
    try:
        validate_repo_id(fspath(name))
    except HFValidationError:
        return folder
    if folder.exists():
        return folder
    try:
        return Path(huggingface_hub.snapshot_download(fspath(name)))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtifactError(
            f"{name}: neither a folder here nor a cascade that the hub gives ({reason}); "
            "check the path or the name"
        ) from None


def upload(folder: Path, name: str, private: bool | None) -> str:
    """Upload a saved cascade."""
    api = huggingface_hub.HfApi()
    repository = api.create_repo(name, private=private, exist_ok=True).repo_id
    commit = api.upload_folder(
        repo_id=repository, folder_path=folder, commit_message="Upload cascade"
    )
    return str(commit.commit_url)
