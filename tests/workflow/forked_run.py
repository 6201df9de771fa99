"""Snakemake as a process that was forked from one that is ready (`snakemake_server`)."""

from __future__ import annotations

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

SERVER = Path(__file__).parent / "snakemake_server.py"


@cache
def _server() -> subprocess.Popen[str]:
    """One for each process of the tests; it ends with its standard input."""
    return subprocess.Popen([sys.executable, str(SERVER)], stdin=subprocess.PIPE, text=True, start_new_session=True)


class ForkedRun:
    """A running Snakemake, with the part of subprocess.Popen that the tests use."""

    def __init__(self, line: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.args = line
        self._files = Path(tempfile.mkdtemp(prefix="snakemake-"))
        self._ended: tuple[int, str, str] | None = None  # status, stdout and stderr, when the files are gone
        names = {name: str(self._files / name) for name in ("pid", "status", "out", "error")}
        request = {"line": line, "folder": str(folder), "environment": dict(environment), **names}
        server = _server()
        assert server.stdin is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        while not (self._files / "pid").exists():
            assert server.poll() is None, "the server of Snakemake has ended"
            time.sleep(0.005)
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
