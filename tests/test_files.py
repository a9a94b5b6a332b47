"""Files of a run: whole or not there, also after a power cut."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from repa_eval.runtime import files


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is synced and renamed, in order: ("sync" or "rename", name)."""
    events: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def watched_sync(handle: int) -> None:
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        fsync(handle)

    def watched_replace(self: Path, target: Path) -> Path:
        events.append(("rename", Path(target).name))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    return events


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_return(
    tmp_path: Path, seen: list[tuple[str, str]]
) -> None:
    files.write_atomic(tmp_path / "a.pt", b"1")
    temporary = f".a.pt.{os.getpid()}.tmp"
    assert seen == [("sync", temporary), ("rename", "a.pt"), ("sync", tmp_path.name)]


def test_folders_that_are_made_for_a_file_are_on_the_disk_too(tmp_path: Path, seen: list[tuple[str, str]]) -> None:
    files.write_atomic(tmp_path / "run" / "checkpoints" / "a.pt", b"1")
    assert [name for what, name in seen if what == "sync"][1:] == ["checkpoints", "run", tmp_path.name]


def test_files_that_are_many_are_not_waited_for(tmp_path: Path, seen: list[tuple[str, str]]) -> None:
    files.write_atomic(tmp_path / "a.png", b"1", durable=False)
    assert seen == [("rename", "a.png")]
    assert (tmp_path / "a.png").read_bytes() == b"1"


def test_a_disk_that_cannot_sync_is_an_error_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.pt").write_bytes(b"old")

    def fails(_handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output error"):
        files.write_atomic(tmp_path / "a.pt", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.pt", b"old")]


def test_a_file_system_that_cannot_sync_folders_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_handle: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuses)
    files.write_atomic(tmp_path / "a.pt", b"new")
    assert (tmp_path / "a.pt").read_bytes() == b"new"
