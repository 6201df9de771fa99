"""The workflow through a real SLURM on this machine: the same tables as locally, and what is tried again."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import local_slurm
import pytest
from workflow_folder import REPOSITORY, SETTINGS, Folder

pytest.importorskip("snakemake_executor_plugin_slurm", reason="pip install -e .[slurm]")
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(local_slurm.obstacle() is not None, reason=local_slurm.obstacle() or ""),
]

# What the profile leaves to a cluster without accounting, and less patience than a cluster deserves.
OPTIONS = {
    "profile": REPOSITORY / "workflow" / "profiles" / "slurm",
    "slurm-status-command": "squeue",
    "slurm-init-seconds-before-status-checks": 2,
    "seconds-between-status-checks": 2,
    "latency-wait": 10,
}


@pytest.fixture(scope="module")
def slurm() -> Iterator[Mapping[str, str]]:
    local_slurm.install()
    with local_slurm.running() as environment:
        yield environment


def start(folder: Folder, environment: Mapping[str, str], *further: str) -> subprocess.Popen[str]:
    options = [text for name, value in OPTIONS.items() for text in (f"--{name}", str(value))]
    return folder.start(*options, "--slurm-no-account", *further, cores=None, environment=environment, is_forked=False)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the workflow's end; what Snakemake printed."""
    out, error = process.communicate(timeout=1800)
    assert process.returncode == 0, out + error
    return out + error


def run(folder: Folder, environment: Mapping[str, str], *further: str) -> str:
    return finish(start(folder, environment, *further))


def submitted(output: str) -> int:
    return len(re.findall(r"has been submitted with SLURM jobid", output))


def retried(output: str) -> list[str]:
    """Rules of the jobs that failed, in the order of the alphabet."""
    return sorted(re.findall(r"^Error in rule (\w+):", output, re.MULTILINE))


def test_same_tables_as_locally(cohort: Folder, finished: Folder, tmp_path: Path, slurm: Mapping[str, str]) -> None:
    """Every step but the list of shards is a job of SLURM; the contigs have names that SLURM would misread."""
    folder = cohort.copy(tmp_path / "cohort")
    # As many threads as the local run has: sums in another order differ in their last digits.
    output = run(folder, slurm, "--set-threads", "fit=1", "assemble=2", "evidence=2", "summary=2")
    assert folder.tables() == finished.tables()
    jobs = len(json.loads((folder.results / "shards.json").read_text()))
    again = retried(output)
    print(f"{submitted(output)} jobs of SLURM, tried again: {again}")
    once = ("design", "assemble", "kernel", "fit", "controls", "compare", "quality", "relatives", "summary")
    expected = 4 + len(once) + 2 * jobs
    assert submitted(output) - len(again) == expected


def test_killed_for_memory_or_out_of_time_is_tried_again(
    cohort: Folder, finished: Folder, tmp_path: Path, slurm: Mapping[str, str]
) -> None:
    """Ingest is given too little memory at first, the fit too little time: it goes on from its own checkpoint."""
    folder = cohort.copy(tmp_path / "cohort")
    output = run(
        folder,
        slurm,
        *("--until", "fit", "--set-threads", "fit=1", "--set-resources"),
        *("ingest:mem_mb=20 * 40 ** (attempt - 1)", "fit:runtime=1 * 40 ** (attempt - 1)"),
    )
    assert retried(output) == ["fit", *["ingest"] * 4]
    assert submitted(output) == 2 * 4 + len(("assemble", "fit", "fit"))
    assert "continuing at step 1 from" in (folder.results / "logs" / "fit.log").read_text()
    fits = [json.loads((path.results / "fit" / "fit.json").read_text()) for path in (folder, finished)]
    assert fits[0]["hyperparameters"] == fits[1]["hyperparameters"]
    assert fits[0]["steps"] == SETTINGS["fit"]["max_steps"]


def test_evidence_that_is_killed_is_tried_again(
    cohort: Folder, finished: Folder, tmp_path: Path, slurm: Mapping[str, str]
) -> None:
    """One for memory, of which it has too little at first: only its process, not the shell and the tee around it."""
    folder = cohort.copy(tmp_path / "cohort")
    threads = ("--set-threads", "fit=1", "assemble=2", "evidence=2", "summary=2")
    output = run(folder, slurm, *threads, "--set-resources", "evidence:mem_mb=200 if attempt == 1 else 2000")
    jobs = len(json.loads((folder.results / "shards.json").read_text()))
    assert retried(output).count("evidence") == jobs
    assert folder.tables() == finished.tables()


def test_node_goes_down_while_jobs_run(cohort: Folder, tmp_path: Path, slurm: Mapping[str, str]) -> None:
    """SLURM ends them and queues them again; what they then write is what was to be written."""

    def ask(*line: str) -> list[str]:
        return subprocess.run(line, env=dict(slurm), capture_output=True, text=True).stdout.split()

    folder, undisturbed = cohort.copy(tmp_path / "cohort"), cohort.copy(tmp_path / "undisturbed")
    process = start(folder, slurm, "--until", "ingest")
    while len(ask("squeue", "--noheader", "--states=running", "--format=%i")) < 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    ask("scontrol", "update", "nodename=node", "state=down", "reason=test")
    assert not list(folder.results.glob("counts/*.parquet"))
    while ask("sinfo", "--noheader", "--partition=main", "--format=%T") not in (["idle"], ["mixed"]):
        ask("scontrol", "update", "nodename=node", "state=resume")
        time.sleep(0.5)
    finish(process)
    restarts = ask("squeue", "--noheader", "--states=all", "--Format=RestartCnt")
    assert restarts.count("1") == 4
    local = undisturbed.snakemake("--until", "ingest")
    assert local.returncode == 0, local.stderr
    for counts in undisturbed.results.glob("counts/*.parquet"):
        assert (folder.results / "counts" / counts.name).read_bytes() == counts.read_bytes()
