"""A program: epivi assemble on copies of a folder, killed before each change that it makes to the file system in turn.

    killed_assembly.py <folder to copy> <folder of the copies> <counts file>...

Leaves the copies 1, 2, ... as the kills left them; the last one was let run to its end.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from epivi.loci.assemble import AssembleSettings, assemble
from epivi.tables.parquet import Provenance

CHANGES = ("replace", "rename", "unlink", "remove", "rmdir")


def killing(change: Callable[..., Any], countdown: list[int]) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        countdown[0] -= 1
        if countdown[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return change(*arguments, **options)

    return counted


def main() -> None:
    before, copies, counts = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    for number in itertools.count(1):
        folder = copies / str(number)
        shutil.copytree(before, folder)
        child = os.fork()  # nothing of Arrow runs in this process, which may so fork
        if child == 0:
            countdown = [number]
            for name in CHANGES:
                setattr(os, name, killing(getattr(os, name), countdown))
            settings, provenance = AssembleSettings("cpg", True, 1), Provenance("loci", 3, "config", "")
            assemble(counts, folder, settings, provenance, threads=1, on_joined=lambda n_loci: None)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return


if __name__ == "__main__":
    main()
