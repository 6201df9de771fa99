"""The examples of README.md run as they stand there, on the results of the tiny cohort in place of the demo's."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from workflow_folder import COHORT, EXECUTABLES, REPOSITORY, Folder

README = (REPOSITORY / "README.md").read_text()
COMMANDS = re.findall(r"^(?:\.venv/bin/)?(epivi (?:query|summary) .*)$", README, re.MULTILINE)
COMMANDS += re.findall(r"`(epivi (?:query|summary) [^`]*)`", README)
# Asked of a cohort with a treatment, in tests/unit/results/test_query.py.
COMMANDS = [line for line in COMMANDS if "effect_treatment" not in line]
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def demo(finished: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which results/demo is the finished cohort."""
    folder = finished.copy(tmp_path_factory.mktemp("readme") / "demo")
    (folder.path / "results" / COHORT).rename(folder.path / "results" / "demo")
    return folder.path


def test_there_are_examples() -> None:
    assert len(COMMANDS) >= 4
    assert len(PROGRAMS) >= 3


@pytest.mark.parametrize("line", COMMANDS)
def test_command_runs(demo: Path, line: str) -> None:
    _, *arguments = shlex.split(line)
    run = subprocess.run([EXECUTABLES / "epivi", *arguments], cwd=demo, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    if "--output" in arguments:
        assert (demo / arguments[arguments.index("--output") + 1]).is_file()
    else:
        assert run.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_python_runs(demo: Path, program: str) -> None:
    subprocess.run([sys.executable, "-c", program], cwd=demo, check=True, capture_output=True)
