"""Files on disk are the old ones or the new ones, however many write them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cascadebert.disk import replacing, sync, write_text

# Writes one letter again and again, in two halves.
WRITER = """
import pathlib, sys, time
from cascadebert import disk
target, letter, pid = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
# In containers that share a folder, processes have the same id.
disk.os.getpid = lambda: pid
for _ in range(50):
    with disk.replacing(target) as temporary, temporary.open("w") as file:
        file.write(letter * 5_000)
        file.flush()
        time.sleep(0.001)
        file.write(letter * 5_000)
"""


def test_two_threads_that_write_one_file_never_mix_it(tmp_path: Path) -> None:
    target = tmp_path / "file"
    half = threading.Barrier(2, timeout=30)
    failed: list[BaseException] = []

    def write(letter: str) -> None:
        try:
            with replacing(target) as temporary, temporary.open("w") as file:
                file.write(letter * 5_000)
                half.wait()
                file.write(letter * 5_000)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert target.read_text() in ("a" * 10_000, "b" * 10_000)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_processes_of_one_id_that_write_one_file_never_mix_it(tmp_path: Path) -> None:
    target = tmp_path / "file"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(target), letter, "7"], stderr=subprocess.PIPE
        )
        for letter in "ab"
    ]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if target.exists():
            seen.add(target.read_text())
    for writer in writers:
        assert writer.communicate()[1] == b""
        assert writer.returncode == 0
    assert seen | {target.read_text()} <= {"a" * 10_000, "b" * 10_000}
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_files_get_the_permissions_that_the_umask_gives(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    write_text(tmp_path / "replaced", "x")
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_files_are_synced_through_a_handle_that_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows refuses to sync any other."""

    def on_windows(handle: int) -> None:
        os.write(handle, b"")
        os.pwrite(handle, b"x", 0)

    monkeypatch.setattr(os, "fsync", on_windows)
    (tmp_path / "file").write_text("x")
    sync(tmp_path / "file")
