"""Whole files or none, and one writer at a time."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from epivi.base.errors import UserError
from epivi.base.files import atomic_path, exclusive


def test_what_a_killed_process_left_is_removed_by_the_next_writer(tmp_path: Path) -> None:
    (tmp_path / ".a[1].json.77.tmp").write_text("half")
    (tmp_path / ".folder.78.tmp").mkdir()
    (tmp_path / ".folder.78.tmp" / "half").touch()
    (tmp_path / ".a1.json.79.tmp").write_text("of another file")
    with atomic_path(tmp_path / "a[1].json") as temporary:
        temporary.write_text("whole")
    with atomic_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
    assert {path.name for path in tmp_path.iterdir()} == {"a[1].json", "folder", ".a1.json.79.tmp"}


def test_a_clean_up_that_fails_does_not_hide_why_nothing_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that became read-only."""

    def refused(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "here")

    def write() -> None:
        with atomic_path(tmp_path / "a") as temporary:
            temporary.touch()
            monkeypatch.setattr(Path, "unlink", refused)
            raise OSError(errno.ENOSPC, "no more space")

    with pytest.raises(OSError, match="no more space"):
        write()


def hold(path: Path, connection: Any) -> None:
    with exclusive(path):
        connection.send(os.getpid())
        connection.recv()


def start(path: Path) -> tuple[Any, Any]:
    """A process that holds the lock until it is sent something."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(path, theirs))
    process.start()
    assert ours.recv() == process.pid
    return process, ours


def test_second_process_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "fit" / "fit.lock"
    process, connection = start(path)
    with pytest.raises(UserError) as refused, exclusive(path):
        pass
    assert f"{path.parent}: process {process.pid} on " in str(refused.value)
    assert "\n" not in str(refused.value)
    connection.send("end")
    process.join()
    assert not path.exists()
    with exclusive(path):
        assert path.exists()
    assert not path.exists()


def test_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "fit.lock"
    process, _ = start(path)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert path.exists()
    with exclusive(path):
        assert str(os.getpid()) in path.read_text()
    assert not path.exists()


def test_file_system_without_locks_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*arguments: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with exclusive(tmp_path / "fit.lock"):
        pass
    assert "cannot be locked" in caplog.text
