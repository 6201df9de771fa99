"""On the PYTHONPATH of a workflow under test: kills the first process of one command, as the system does out of memory.

`command_server` asks for the same in the processes that it forks.

KILL_COMMAND: the command of epivi. KILL_AFTER_S: seconds after its start. KILL_MARK: a file that is made by the process
that is killed, so that no later one is.
"""

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path


def kill_when_asked(words: Sequence[str]) -> None:
    """words: the command line of this process."""
    is_epivi = any(Path(word).name == "epivi" for word in words[:4])
    if not is_epivi or os.environ.get("KILL_COMMAND") not in words[:6]:
        return
    try:
        Path(os.environ["KILL_MARK"]).touch(exist_ok=False)
    except FileExistsError:
        return
    delay_s = float(os.environ.get("KILL_AFTER_S", "0"))
    if delay_s == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


kill_when_asked(Path("/proc/self/cmdline").read_bytes().decode().split("\0"))
