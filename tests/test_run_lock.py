"""One trainer in a run folder: the lock ends with the process, names its holder, and leaves no trace of a refusal."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from helpers import ROOT, run, tiny
from repa_eval.errors import Failure, UserError
from repa_eval.runtime.run_lock import LOCK, RunLock, holder_of
from repa_eval.runtime.run_record import read_record, status_of, write_record

ME = f"process {os.getpid()} on {socket.gethostname()}"


def test_a_second_trainer_is_told_who_the_first_is(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        assert holder_of(tmp_path) == ME
        with pytest.raises(Failure, match=f"another repa-train is writing this run .{ME}."):
            RunLock(tmp_path)
        assert holder_of(tmp_path) == ME
    assert holder_of(tmp_path) is None
    RunLock(tmp_path).release()


def test_nobody_holds_a_lock_that_is_not_there(tmp_path: Path) -> None:
    assert holder_of(tmp_path) is None
    assert holder_of(tmp_path / "absent") is None
    (tmp_path / LOCK).write_text("1 elsewhere\n")  # of a trainer that is gone
    assert holder_of(tmp_path) is None


def test_a_forked_reader_of_images_does_not_hold_it_on(tmp_path: Path) -> None:
    code = f"""
import multiprocessing, sys, time
from pathlib import Path
from repa_eval.runtime.run_lock import RunLock
lock = RunLock(Path({str(tmp_path / "run")!r}))
reader = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
reader.start()
print(reader.pid, flush=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert trainer.stdout is not None
    reader = int(trainer.stdout.readline())
    try:
        assert holder_of(tmp_path / "run") == f"process {trainer.pid} on {socket.gethostname()}"
        time.sleep(0.2)
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
        os.kill(reader, 0)  # it lives on
        assert holder_of(tmp_path / "run") is None
    finally:
        trainer.kill()
        os.kill(reader, signal.SIGKILL)


def test_a_look_keeps_no_trainer_out(tmp_path: Path) -> None:
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            holder_of(tmp_path)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(50):
            RunLock(tmp_path).release()
            (tmp_path / "kept").touch()
    finally:
        ended.set()
        for looker in lookers:
            looker.join()


def test_a_start_that_is_refused_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such"), RunLock(tmp_path / "runs" / "a"):
        raise UserError("no such data")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with RunLock(tmp_path / "mine"):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]
    with RunLock(tmp_path / "runs" / "b"):
        (tmp_path / "runs" / "b" / "run.json").write_text("{}")
    assert (tmp_path / "runs" / "b" / LOCK).is_file()


def test_a_recipe_that_cannot_start_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        run(tiny(data="folder:/no/such/images"), tmp_path / "runs" / "a")
    with pytest.raises(UserError, match="encoder_depth"):
        run(tiny("repa", encoder_depth=9), tmp_path / "runs" / "a")
    assert list(tmp_path.iterdir()) == []


def test_where_the_file_system_has_no_locks_the_named_process_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*_given: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    caplog.set_level(logging.WARNING)
    with RunLock(tmp_path):
        (tmp_path / "run.json").touch()
        assert holder_of(tmp_path) == ME
    [told] = caplog.messages
    assert told.endswith("no locks on this file system (Operation not supported); start one trainer only")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for content, expected in {
        f"{dead.pid} {socket.gethostname()}\n": None,
        "12 another-host\n": "process 12 on another-host",
        "": None,
        "\xff\x00": None,
    }.items():
        (tmp_path / LOCK).write_text(content)
        assert holder_of(tmp_path) == expected, content


# --- run.json


@pytest.mark.parametrize("content", [None, "", "{", "[]", "\x00" * 40])
def test_the_copy_of_a_lost_record_is_read(tmp_path: Path, content: str | None) -> None:
    write_record(tmp_path, {"run": "a", "status": "done"})
    if content is None:
        (tmp_path / "run.json").unlink()
    else:
        (tmp_path / "run.json").write_text(content)
    assert read_record(tmp_path) == {"run": "a", "status": "done"}


def test_a_damaged_record_without_a_copy_is_named(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(Failure, match=r"run\.json is damaged"):
        read_record(tmp_path)


def test_a_run_that_nobody_writes_has_stopped(tmp_path: Path) -> None:
    assert status_of(tmp_path) is None
    write_record(tmp_path, {"status": "running"})
    assert status_of(tmp_path) == "stopped"
    with RunLock(tmp_path):
        assert status_of(tmp_path) == "running"
    for status in ("done", "interrupted", "failed"):
        write_record(tmp_path, {"status": status})
        assert status_of(tmp_path) == status


def test_a_run_that_ends_between_two_looks_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(tmp_path, {"status": "running"})

    def ends(_run: Path) -> None:
        write_record(tmp_path, {"status": "done"})

    monkeypatch.setattr("repa_eval.runtime.run_record.holder_of", ends)
    assert status_of(tmp_path) == "done"
