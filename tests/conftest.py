"""What all tests need before they start."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

import epivi

TESTS = Path(__file__).parent
COMPILED = ("field/compiled/*.py", "field/layout.py", "lineage/*.py")  # files of the package

# Tests import what they share by its name, whatever folder of tests/unit it lies in.
sys.path[:0] = sorted({str(path.parent) for path in (TESTS / "unit").rglob("*.py")})


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile the kernels once, side by side: the processes of the tests and all commands that these start would
    compile them at the same time, each for itself. The machine code is kept until its source changes."""
    config = session.config
    if hasattr(config, "workerinput") or config.option.collectonly or not getattr(config.option, "numprocesses", 0):
        return
    package = Path(epivi.__file__).parent
    sources = sorted(path for files in COMPILED for path in package.glob(files))
    version = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    cache = getattr(config, "cache", None)
    if cache and cache.get("epivi/compiled", None) == version:
        return
    line = [sys.executable, "-m", "epivi", "compile", "--family"]
    processes = [subprocess.Popen([*line, family]) for family in ("transmission", "epimutation")]
    statuses = [process.wait() for process in processes]
    if any(statuses):
        pytest.exit("the kernels could not be compiled", returncode=1)
    if cache:
        cache.set("epivi/compiled", version)
