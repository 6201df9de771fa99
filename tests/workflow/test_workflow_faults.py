"""Jobs cut off, damaged or too small: at last the same tables as of an undisturbed run, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_run import ForkedRun
from workflow_folder import Folder, tree

MOMENTS = ("counts/*.parquet", "fit/fit.json", "evidence/*.parquet")  # a file of each is there when the kill comes


def kill_when(results: Path, process: subprocess.Popen[str] | ForkedRun, pattern: str, after_s: float) -> None:
    """SIGKILL to Snakemake and all its jobs, some time after the first file of that name."""
    while not any(results.glob(pattern)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    "kills", [[("evidence/*.parquet", 0.0)], pytest.param("random", marks=pytest.mark.slow)], ids=["one", "random"]
)
def test_killed_run_ends_in_the_same_tables(finished: Folder, tmp_path: Path, kills: Any) -> None:
    """Snakemake and its jobs killed at once, as by a node that goes down; then --unlock and --rerun-incomplete.

    It is a second cohort of a folder whose first is left as it was.
    """
    folder = finished.copy(tmp_path / "killed")
    first, second = tree(folder.results), folder.results.with_name("second")
    folder.edit_config(cohort="second")
    if kills == "random":
        random = np.random.default_rng(8)
        kills = [(pattern, seconds) for pattern in MOMENTS for seconds in random.uniform(0, 1, 2)]
    for pattern, seconds in kills:
        kill_when(second, folder.start("--rerun-incomplete", has_own_jobs=False), pattern, seconds)
        unlocked = folder.snakemake("--unlock")
        assert unlocked.returncode == 0, unlocked.stderr
    assert not (second / "manifest.json").exists()
    run = folder.snakemake("--rerun-incomplete")
    assert run.returncode == 0, run.stdout + run.stderr
    assert folder.tables("second") == finished.tables()
    assert json.loads((second / "manifest.json").read_text())["summary"]["cohort"] == "second"
    left_over = (".tmp", ".lock", ".pieces", ".whole")
    assert not [path for path in second.rglob("*") if path.name.endswith(left_over)]
    assert tree(folder.results) == first


def test_truncated_input_is_tried_again_with_more_and_read_when_whole(
    cohort: Folder, finished: Folder, tmp_path: Path
) -> None:
    """A retry gets twice the memory and minutes of the attempt before; what could not be read is not there in part."""
    folder = cohort.copy(tmp_path / "truncated")
    path = next(path for path in sorted((folder.path / "cohort" / "counts").iterdir()) if path.suffix == ".gz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    run = folder.snakemake("--until", "ingest", "--retries", "2", "--keep-going")
    assert run.returncode == 1
    output = run.stdout + run.stderr
    sample = path.name.split(".")[0]
    # What is said as a job starts, not what is said of it as it fails.
    block = rf"^(?:local)?rule ingest:\n.*\n    output: \S+{sample}\.parquet.*\n(?:    .*\n)*?    resources: (.*)$"
    started = re.findall(block, output, re.MULTILINE)
    asked = [re.search(r"runtime=(\d+).*?mem_mb=(\d+)", resources).groups() for resources in started]
    minutes, megabytes = (np.array([int(value) for value in values]) for values in zip(*asked, strict=True))
    assert (minutes / minutes[0]).tolist() == (megabytes / megabytes[0]).tolist() == [1, 2, 4]
    assert len(list(folder.results.glob("counts/*.parquet"))) == 3
    assert not list(folder.results.rglob("*.tmp"))
    path.write_bytes(whole)
    run = folder.snakemake("--until", "ingest")
    assert run.returncode == 0, run.stdout + run.stderr
    for counts in finished.results.glob("counts/*.parquet"):
        assert (folder.results / "counts" / counts.name).read_bytes() == counts.read_bytes()
