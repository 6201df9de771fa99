"""Forks Snakemake from a process that has imported it and read the code of the package, which takes most of a dry run.

What is forked runs `snakemake.cli.main` with the arguments, the environment and the folder of a command line, and ends
as a script does. Requests are lines of JSON on the standard input, as `forked_run` writes them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jsonschema  # noqa: F401  (this and the next ones are what the rules and Snakemake import in time)
import smart_open  # noqa: F401
from package_versions import read_versions
from snakemake.cli import get_argument_parser, main

import epivi.cohort.contig_patterns
import epivi.cohort.haplotypes
import epivi.cohort.sameness
import epivi.cohort.samples
import epivi.config.load
import epivi.ingest.read
import epivi.loci.classes
import epivi.tables.parts  # noqa: F401


def prepare() -> None:
    """Import plugins, and read what the rules ask of the package."""
    get_argument_parser()
    read_versions()


def serve() -> dict[str, Any] | None:
    """The request, in a fork that is to do it; nothing in the server, when no more can come."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            request: dict[str, Any] = json.loads(line)
            pid = os.fork()
            if pid == 0:
                return request
            write(Path(request["pid"]), pid)
            write(Path(request["status"]), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            os._exit(0)
    return None


def write(path: Path, number: int) -> None:
    """The file is there when it is whole."""
    part = path.with_suffix(".part")
    part.write_text(str(number))
    part.rename(path)


def become(request: dict[str, Any]) -> None:
    """Take the place that a process of its own would have."""
    os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, path in enumerate((os.devnull, request["out"], request["error"])):
        os.dup2(os.open(path, os.O_RDONLY if number == 0 else flags), number)
    sys.path.remove(str(Path(__file__).parent))
    sys.argv = request["line"]


if __name__ == "__main__":
    prepare()
    asked = serve()
    if asked:
        become(asked)
        sys.exit(main())
