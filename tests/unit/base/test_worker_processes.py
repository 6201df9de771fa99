"""Worker processes end with the command that has them, also where that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from epivi.base.worker_processes import worker_processes

# The workers have this program's standard output in common, as those of a command have the log.
PROGRAM = """
import time
from epivi.base.worker_processes import worker_processes

if __name__ == "__main__":
    with worker_processes(2) as pool:
        print(sum(pool.map(abs, [-1, -2])), flush=True)
        {then}
"""


def test_work_is_done_in_other_processes() -> None:
    with worker_processes(2) as pool:
        assert os.getpid() not in set(pool.map(_process, range(4)))


def _process(_: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("then", ["time.sleep(600)", "list(pool.map(time.sleep, [600, 600]))"], ids=["idle", "at work"])
def test_workers_of_a_killed_command_end(tmp_path: Path, then: str) -> None:
    """They waited for ever, and the output of the command never came to its end."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(then=then))
    command = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    assert command.stdout.readline() == "3\n"
    os.kill(command.pid, signal.SIGKILL)
    rest, _ = command.communicate(timeout=60)
    assert rest == ""
