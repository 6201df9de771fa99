"""Processes that work for a command and end with it, whatever ends it."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


@contextmanager
def worker_processes(number: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of so many processes. They are spawned: fork is not safe once Arrow has started its threads."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(number, mp_context=context, initializer=_end_with_the_command) as pool:
        yield pool


def _end_with_the_command() -> None:
    """Of a command that is killed, as out of memory, nothing tells its workers. They would wait for work for ever, and
    with them whoever reads the output that they have in common, such as the shell and the job around it."""
    threading.Thread(target=_end_after_the_command, daemon=True).start()


def _end_after_the_command() -> None:
    command = multiprocessing.parent_process()
    if command is not None:
        command.join()
    os._exit(1)
