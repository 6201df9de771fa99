"""Several processes of one fit on this machine, as torchrun starts them, without the seconds that it takes to start."""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed import TCPStore

TIMEOUT_S = 600.0
PROCESSES = mp.get_context("forkserver")
# What takes seconds to import, torch._dynamo by its optimizers; the modules of the tests bring pytest and pandas.
PROCESSES.set_forkserver_preload(
    [
        *("torch._dynamo", "pytest", "pandas", "pyarrow.compute", "pyarrow.csv", "jsonschema"),
        *("epivi.cli", "epivi.commands.fit", "epivi.families.inputs", "epivi.families.epimutation.fit"),
        *("epivi.families.transmission.fit", "epivi.families.transmission.guide"),
        *("epivi.families.transmission.simulate", "epivi.fit.svi", "epivi.fit.folder"),
    ]
)


class Ended(NamedTuple):
    """How a process ended: its status (minus the signal's number), what the function gave, what it said."""

    status: int
    value: Any
    said: str


def in_ranks(function: Callable[..., Any], size: int, *arguments: Any) -> list[Ended]:
    """Call function(*arguments) in each of `size` processes that `joined` finds to be of one fit."""
    work = pickle.dumps((function, arguments))  # by multiprocessing, tensors would go through shared memory
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for rank in range(size):
            receiver, sender = PROCESSES.Pipe(duplex=False)
            said = Path(folder) / str(rank)
            process = PROCESSES.Process(target=_run, args=(rank, size, store.port, said, sender, work))
            process.start()
            sender.close()
            started.append((process, receiver, said))
        return [_ended(*parts) for parts in started]


def _ended(process: Any, receiver: Connection, said: Path) -> Ended:
    """Waits for the end of the process; its value must be read before, for a pipe holds little."""
    try:
        value = pickle.loads(receiver.recv_bytes()) if receiver.poll(TIMEOUT_S) else None
    except EOFError:
        value = None
    process.join(TIMEOUT_S)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"a process did not end: {said.read_text()}")
    return Ended(process.exitcode, value, said.read_text())


def _run(rank: int, size: int, port: int, said: Path, sender: Connection, work: bytes) -> None:
    local = {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "RANK": rank, "WORLD_SIZE": size}
    launcher = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    machine = {"TORCHELASTIC_USE_AGENT_STORE": True, "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {name: str(value) for name, value in (local | launcher | machine).items()}
    torch.set_num_threads(1)
    with said.open("w") as stream:
        os.dup2(stream.fileno(), 2)
    function, arguments = pickle.loads(work)
    sender.send_bytes(pickle.dumps(function(*arguments)))
