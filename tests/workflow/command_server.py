"""Forks `epivi` from a process that has imported the package with all that it needs, which takes most of a small job.

Bash finds `epivi` as a function (`epivi_function.sh`, by BASH_ENV) that starts `command_client.py`. That sends the
command line, the folder, the environment and its standard streams over a socket; what is forked runs `epivi.cli.main`
on them and ends as a script does, and the client ends with its status. A client that is killed takes it along.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

REQUEST_BYTES = 2**20
LATE = (
    "arviz_stats.base",
    "jsonschema",
    "matplotlib.backends.backend_svg",
    "matplotlib.pyplot",
    "mpmath",
    "pandas",
    "torch._dynamo",
)


def listening(path: str) -> socket.socket:
    """The socket is there at once; what comes before the package is imported waits."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    return listener


def prepare() -> None:
    """Import the package and what it imports late; load its machine code; read its versions."""
    import epivi
    from epivi.families import FAMILIES, family_step

    for module in pkgutil.walk_packages(epivi.__path__, "epivi."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)
    for family in FAMILIES:
        family_step(family, "compile").compile_kernel()
    importlib.import_module("package_versions").read_versions()


def serve(listener: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """A request and its streams, in a fork that is to do it; nothing in the server, when its parent is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    selector = selectors.DefaultSelector()
    for source in (listener, sys.stdin):
        selector.register(source, selectors.EVENT_READ)
    while True:
        if any(key.fileobj is sys.stdin for key, _ in selector.select()):
            return None
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            data, streams, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 3)
            pid = os.fork()
            if pid == 0:
                return json.loads(data), streams
            watch(connection, pid)
        connection.close()


def watch(connection: socket.socket, pid: int) -> None:
    """Send the status when the process ends; kill it when the client is gone."""
    process = os.pidfd_open(pid)
    selector = selectors.DefaultSelector()
    selector.register(process, selectors.EVENT_READ)
    selector.register(connection, selectors.EVENT_READ)
    ready = [key.fileobj for key, _ in selector.select()]
    if process not in ready:
        signal.pidfd_send_signal(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if process in ready:
        connection.sendall(str(status if status >= 0 else 128 - status).encode())
    os._exit(0)


def become(request: dict[str, Any], streams: list[int]) -> None:
    """Take the place that a process of its own would have."""
    os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0)  # noqa: SIM115  (the server's own is another)
    sys.path.remove(str(Path(__file__).parent))
    sys.argv = request["line"]


def run() -> int:
    """Exit status of the command."""
    from epivi.cli import main

    try:
        main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def end(status: int) -> None:
    """As an interpreter does, but for taking apart what it has imported, which takes long."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    # Not where processes that the command spawns import this module: they have its path no more.
    from killer.sitecustomize import kill_when_asked

    with listening(sys.argv[1]) as listener:
        prepare()
        gc.freeze()  # a fork's collections would copy all memory
        asked = serve(listener)
    if asked:
        become(*asked)
        kill_when_asked(sys.argv)
        end(run())
