"""Cascades on a hub: a small one that speaks the part of the protocol that is needed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from cascadebert.disk import hash_files
from cascadebert.errors import ArtifactError, InputError
from cascadebert.persistence.hub import files_to_download, resolve
from cascadebert.persistence.record import CascadeRecord, StageCost, StageRecord, write_record

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories of one commit each, with what was asked of them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, body: Any, status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _missing(self, what: str) -> None:
        self._answer(b"", 404, X_Error_Code=what, X_Error_Message="not here")

    def do_GET(self) -> None:
        path = self.path.split("?")[0].removeprefix("/api/models").strip("/").split("/")
        name, rest = "/".join(path[:2]), path[2:]
        files = self.server.repositories.get(name)
        if self.command == "GET":
            self.server.asked.append(self.path)
        if files is None:
            self._missing("RepoNotFound")
        elif rest[1:2] not in ([], ["main"], [COMMIT]):
            self._missing("RevisionNotFound")
        elif rest[:1] == ["tree"]:
            self._answer(
                [{"type": "file", "path": p, "size": len(c), "oid": p} for p, c in files.items()]
            )
        elif rest[:1] != ["resolve"]:
            self._answer({"id": name, "sha": COMMIT, "siblings": []})
        elif (file := "/".join(rest[2:])) not in files:
            self._missing("EntryNotFound")
        else:
            etag = hashlib.sha1(files[file]).hexdigest()
            self._answer(files[file], ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.split("?")[0].removeprefix("/api/").split("/")
        if path == ["repos", "create"]:
            name = f"someone/{json.loads(body)['name']}"
            self.server.repositories[name] = {}
            self._answer({"url": f"{self.server.address}/{name}", "name": name})
        elif path == ["validate-yaml"]:
            self._answer({"errors": [], "warnings": []})
        elif path[3] == "preupload":
            self._answer(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for f in json.loads(body)["files"]
                    ]
                }
            )
        else:
            name = "/".join(path[1:3])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    content = base64.b64decode(value["content"])
                    self.server.repositories[name][value["path"]] = content
            url = f"{self.server.address}/{name}/commit/{COMMIT}"
            self._answer({"commitUrl": url, "commitOid": COMMIT})


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved cascade, as far as a download looks into it, and files that are none of it."""
    folder = tmp_path / "original"
    stage = folder / "stages" / "1-words"
    stage.mkdir(parents=True)
    (stage / "config.json").write_text("{}")
    (stage / "model.safetensors").write_bytes(b"weights")
    record = StageRecord(
        name="words",
        folder="stages/1-words",
        labels=("bad", "good"),
        inputs=(),
        max_length=100,
        pad_token_id=0,
        truncation_side="right",
        cost=StageCost(layers=0, parameters=4, flops=(0.0, 1.0, 0.0)),
        kind="linear",
        files=hash_files(stage),
    )
    write_record(
        folder,
        CascadeRecord(
            labels=("bad", "good"),
            stages=(record,),
            score="max_probability",
            thresholds=None,
            cost=None,
            certificate=None,
            versions={},
            data_fingerprint=None,
        ),
    )
    (folder / "README.md").write_text("---\nlibrary_name: cascadebert\n---\n# a card\n")
    (stage / "pytorch_model.bin").write_bytes(b"not listed")
    (folder / "report").mkdir()
    (folder / "report" / "report.html").write_text("not listed")
    return folder


LISTED = {
    "README.md",
    "cascade.json",
    "stages/1-words/config.json",
    "stages/1-words/model.safetensors",
}


def asked(hub: Hub, tmp_path: Path, code: str) -> list[Any]:
    """What some Python code puts into ``out``, in a process that takes ``hub`` for the hub."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }
    script = f"""
import json, pathlib
from cascadebert.errors import ArtifactError
from cascadebert.persistence.hub import resolve, upload
out = []
def attempt(*arguments, **options):
    try:
        out.append(str(resolve(*arguments, **options)))
    except ArtifactError as error:
        out.append(f"ArtifactError: {{error}}")
{code}
print(json.dumps(out))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_only_the_files_of_the_cascade_are_downloaded(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    files = {path: (folder / path).read_bytes() for path in hash_files(folder)}
    hub.repositories["user/name"] = files
    hub.repositories["user/deep"] = {f"a/b/{path}": content for path, content in files.items()}
    code = """
attempt("user/name", cache_dir="kept")
attempt("user/name", cache_dir="kept", local_files_only=True)
attempt("user/name", cache_dir="elsewhere", local_files_only=True)
attempt("user/deep", subfolder="a/b", revision="main")
"""
    plain, again, elsewhere, deep = asked(hub, tmp_path, code)
    assert plain == again
    assert Path(plain).is_relative_to(tmp_path / "kept")
    assert "not wholly in the cache of downloads" in elsewhere
    for found in (plain, deep):
        assert set(hash_files(Path(found))) == LISTED
    assert not [path for path in hub.asked if "pytorch_model.bin" in path or "report" in path]


def test_why_the_hub_has_no_cascade_is_said_in_one_line(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    record = json.loads((folder / "cascade.json").read_text())
    newer = json.dumps(record | {"schema_version": 99}).encode()
    hub.repositories["user/model"] = {"config.json": b"{}"}
    hub.repositories["user/newer"] = {"cascade.json": newer}
    code = """
attempt("user/none")
attempt("user/model")
attempt("user/model", revision="v9")
attempt("user/newer")
"""
    errors = asked(hub, tmp_path, code)
    for error, expected in zip(
        errors,
        (
            "user/none: no folder here, and no repository on the hub",
            "user/model: the repository on the hub is not a cascade (no cascade.json in it)",
            "user/model: the repository on the hub has no revision 'v9'",
            "written by a newer version of cascadebert",
        ),
        strict=True,
    ):
        assert error.startswith("ArtifactError: ")
        assert expected in error
        assert len(error.splitlines()) == 1


def test_what_is_uploaded_can_be_downloaded(hub: Hub, folder: Path, tmp_path: Path) -> None:
    code = """
out.append(upload(pathlib.Path("original"), "mine", private=True, token="hf_secret"))
attempt("someone/mine")
"""
    address, found = asked(hub, tmp_path, code)
    assert address == f"{hub.address}/someone/mine/commit/{COMMIT}"
    for file in LISTED:
        assert (Path(found) / file).read_bytes() == (folder / file).read_bytes()


def test_names_of_folders_never_reach_the_hub(hub: Hub, tmp_path: Path) -> None:
    names = ["./x", "../x", "x", "x/", "x/y/z", "/x/y", "~/x", "a\\b", "C:\\x", "x//y", ".x/y"]
    errors = asked(hub, tmp_path, f"for name in {names}: attempt(name)")
    for name, error in zip(names, errors, strict=True):
        assert error.startswith(f"ArtifactError: {name}: no such folder; ")
    assert not hub.asked


def test_a_missing_folder_beside_others_never_reaches_the_hub(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    hub.repositories["original/cascade"] = {"cascade.json": (folder / "cascade.json").read_bytes()}
    code = """
attempt("original/cascade")
attempt("original/cascade", revision="main")
"""
    refused, _ = asked(hub, tmp_path, code)
    assert "there is no 'cascade' in the local folder 'original'" in refused
    assert hub.asked


def test_a_local_folder_wins(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("original") == folder
    assert resolve(folder) == folder
    assert resolve(".", subfolder="original") == folder
    shutil.copytree(folder, tmp_path / "user" / "name")
    assert resolve("user/name") == tmp_path / "user" / "name"
    with pytest.raises(InputError, match="is a local folder and has no revision 'v1'"):
        resolve("user/name", revision="v1")
    for subfolder in ("../x", "/x", "a/../../x"):
        with pytest.raises(InputError, match="leads out of"):
            resolve("user/name", subfolder=subfolder)


def test_a_pattern_matches_its_file_alone() -> None:
    stage = StageRecord(
        name="s",
        folder="stages/1-s",
        labels=("a", "b"),
        inputs=(),
        max_length=1,
        pad_token_id=0,
        truncation_side="right",
        cost=StageCost(0, 1, (0.0, 0.0, 0.0)),
        files={"*": "0"},
    )
    record = CascadeRecord(("a", "b"), (stage,), "margin", None, None, None, {}, None)
    assert files_to_download(record, PurePosixPath("in")) == [
        "in/cascade.json",
        "in/README.md",
        "in/stages/1-s/[*]",
    ]
    with pytest.raises(ArtifactError):
        resolve("no/such/folder")
