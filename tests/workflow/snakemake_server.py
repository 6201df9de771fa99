"""Snakemake in processes forked from one that has imported it, read the rules' modules and hashed the code of epivi.

A run of its own spends five of its six seconds on these. What is forked runs `snakemake.cli.main` with the arguments,
the environment and the folder of a command line; it differs in nothing that the rules see.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["snakemake_preload"])


class ForkedRun:
    """A Snakemake that was started by a fork, with the part of subprocess.Popen that the tests use."""

    def __init__(self, line: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.args = line
        self._texts = [Path(tempfile.mkstemp(prefix="snakemake-")[1]) for _ in ("stdout", "stderr")]
        self._process: Any = FORKS.Process(target=_main, args=(line, folder, dict(environment), self._texts))
        self._process.daemon = True  # is not waited for where a test fails
        # The server finds what it imports first where Python is told, and imports it with its first process.
        with patch.dict(os.environ, {"PYTHONPATH": str(Path(__file__).parent)}):
            self._process.start()
        self.pid = int(self._process.pid)

    @property
    def returncode(self) -> int | None:
        """Exit status, or the negative number of the signal that ended the process; None while it runs."""
        status: int | None = self._process.exitcode
        return status

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; stdout and stderr. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        out, error = (path.read_text() for path in self._texts)
        return out, error


def _main(line: list[str], folder: Path, environment: dict[str, str], texts: list[Path]) -> None:
    """What runs in the fork: no return."""
    from snakemake.cli import main

    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(texts, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[:] = [path for path in sys.path if path not in ("", str(Path(__file__).parent))]
    sys.argv = line
    sys.exit(main())
