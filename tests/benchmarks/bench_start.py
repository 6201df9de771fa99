"""Processor seconds until each command has printed its help: `python tests/benchmarks/bench_start.py`.

User and system time of a process of its own, the median of REPEATS, after one run that fills the caches. At most .3 s.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

from epivi.cli import COMMANDS

REPEATS = 7


def seconds(arguments: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "epivi", *arguments], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    for arguments in (["--help"], *([command, "--help"] for command in COMMANDS)):
        seconds(arguments)
        print(f"{' '.join(arguments):<20} {statistics.median(seconds(arguments) for _ in range(REPEATS)):.2f} s")


if __name__ == "__main__":
    main()
