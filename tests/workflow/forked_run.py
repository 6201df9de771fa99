"""Snakemake, and the jobs that it starts, as processes that were forked from ones that are ready.

See `snakemake_server` and `command_server`.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


@cache
def _server(name: str, *arguments: str) -> subprocess.Popen[str]:
    """One for each process of the tests; it ends with its standard input."""
    line = [sys.executable, str(HERE / name), *arguments]
    return subprocess.Popen(line, stdin=subprocess.PIPE, text=True, start_new_session=True)


@cache
def _forked_commands() -> dict[str, str]:
    """The environment in which bash lets `command_server` fork what is called `epivi`."""
    folder = Path(tempfile.mkdtemp(prefix="epivi-"))
    atexit.register(shutil.rmtree, folder)
    path = folder / "socket"
    server = _server("command_server.py", str(path))
    _wait_for(path, server)
    return {
        "BASH_ENV": str(HERE / "epivi_function.sh"),
        "EPIVI_PYTHON": sys.executable,
        "EPIVI_CLIENT": str(HERE / "command_client.py"),
        "EPIVI_SOCKET": str(path),
    }


def _wait_for(path: Path, server: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert server.poll() is None, f"{server.args} has ended"
        time.sleep(0.005)


class ForkedRun:
    """A running Snakemake, with the part of subprocess.Popen that the tests use."""

    def __init__(self, line: list[str], folder: Path, environment: Mapping[str, str], has_own_jobs: bool) -> None:
        """has_own_jobs: commands are processes of their own, as they are for a user, not forked ones."""
        self.args = line
        self._files = Path(tempfile.mkdtemp(prefix="snakemake-"))
        self._ended: tuple[int, str, str] | None = None  # status, stdout and stderr, when the files are gone
        names = {name: str(self._files / name) for name in ("pid", "status", "out", "error")}
        forked = {} if has_own_jobs else _forked_commands()
        request = {"line": line, "folder": str(folder), "environment": {**environment, **forked}, **names}
        server = _server("snakemake_server.py")
        assert server.stdin is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        _wait_for(self._files / "pid", server)
        self.pid = int((self._files / "pid").read_text())

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        """Exit status, or the negative number of the signal that ended the process; None while it runs."""
        if self._ended:
            return self._ended[0]
        status = self._files / "status"
        return int(status.read_text()) if status.exists() else None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float = 1800.0) -> tuple[str, str]:
        """Wait for the end; stdout and stderr. Raises subprocess.TimeoutExpired."""
        last = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > last:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.02)
        if self._ended is None:
            self._ended = (status, *((self._files / name).read_text() for name in ("out", "error")))
            shutil.rmtree(self._files)
        return self._ended[1:]
