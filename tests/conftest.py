"""What all tests need before they start."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import epivi

# Threads of torch and of numpy's linear algebra that share a processor with another process of the tests wait for one
# another, busily: a fit of a small cohort by two of them then takes several times the processor time of one. Commands
# that tests start inherit it.
THREADS = os.environ.setdefault("OMP_NUM_THREADS", "1")

TESTS = Path(__file__).parent
COMPILED = ("field/compiled/*.py", "field/layout.py", "lineage/*.py")  # files of the package

# Tests import what they share by its name, whatever folder of tests/unit it lies in.
sys.path[:0] = sorted({str(path.parent) for path in (TESTS / "unit").rglob("*.py")})


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    """A command that a test has called may have asked for more, of torch and of its own commands."""
    yield
    os.environ["OMP_NUM_THREADS"] = THREADS
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(int(THREADS))


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
