"""A working folder with a tiny simulated cohort, and Snakemake as a user calls it: by its path, nothing activated."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked_run import ForkedRun

from epivi.tables.parquet import read_table
from epivi.tables.parts import read_parts

REPOSITORY = Path(__file__).resolve().parents[2]
EXECUTABLES = Path(sys.executable).parent
PLAIN_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
COHORT = "tiny"
# Small enough for seconds; two shards on each of two contigs, one of whose names no file could have.
CONTIGS = ("chr1", "HLA*01:02/3")
SETTINGS = {
    "fit": {
        "max_steps": 20,
        "batch_loci": 32,
        "holdout_loci": 32,
        "check_every": 10,
        "hidden": 8,
        "device": "cpu",
        "shared_loci": 40,
    },
    "evidence": {"shard_loci": 100},
    "controls": {"loci": 40, "permutations": 2},
    "compare": {"draws": 20, "blocks": 10},
}
# Fewer than the default five, where a run is about something else.
HYPOTHESES = {
    "reset": {},
    "mendelian": {"heritable_share": "free", "maternal": 1, "paternal": 1},
    "epigenetic": {"heritable_share": "free", "maternal": "tau", "paternal": "tau"},
}


def planned(output: str) -> set[str]:
    """Rules that a dry run says it would run, or a run that it runs."""
    block = re.search(r"^Job stats:\n(.*?)^total", output, re.MULTILINE | re.DOTALL)
    lines = block.group(1).splitlines()[2:] if block else []
    return {line.split()[0] for line in lines}


@dataclass(frozen=True)
class Folder:
    """A working folder that holds a cohort, its configuration and its results."""

    path: Path

    @property
    def results(self) -> Path:
        return self.path / "results" / COHORT

    def snakemake(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run Snakemake to its end, with the options of `start`; its jobs are forked where it is."""
        process = self.start(*arguments, **{"has_own_jobs": False} | options)
        out, error = process.communicate(timeout=1800)  # a busy machine compiles the kernel for minutes
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)

    def start(
        self,
        *arguments: str,
        configfile: str | None = "config.yaml",
        snakefile: Path = REPOSITORY / "Snakefile",
        pythonpath: Path | None = None,
        cores: int | None = 2,
        environment: Mapping[str, str] = PLAIN_ENVIRONMENT,
        is_forked: bool = True,
        has_own_jobs: bool = True,
    ) -> subprocess.Popen[str] | ForkedRun:
        """Start Snakemake in the folder: no virtual environment on its PATH, a process group of its own.

        By its path as a user does, or, which is faster, forked where it runs this package as it stands; so are its
        jobs, which die with a client in the group, unless they are to be processes of the group and get other signals.
        """
        line = [str(EXECUTABLES / "snakemake"), "--snakefile", str(snakefile)]
        line += ["--cores", str(cores)] if cores else []
        line += ["--configfile", configfile] if configfile else []
        line += arguments
        if is_forked and pythonpath is None:
            return ForkedRun(line, self.path, environment, has_own_jobs)
        return subprocess.Popen(
            line,
            cwd=self.path,
            env=dict(environment) | ({"PYTHONPATH": str(pythonpath)} if pythonpath else {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def copy(self, target: Path) -> Folder:
        """The whole folder with its modification times, so that Snakemake sees the same state."""
        shutil.copytree(self.path, target, symlinks=True)
        return Folder(target)

    def edit_config(self, **sections: object) -> None:
        """Replace top-level keys of the configuration."""
        path = self.path / "config.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | sections, sort_keys=False))

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace text, which must occur, in one of the cohort's files."""
        path = self.path / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def tables(self, cohort: str = COHORT) -> dict[str, str]:
        """What a run found, as text, in which a missing value is equal to another."""
        results = self.results.with_name(cohort)
        weights = read_table(results / "compare" / "weights.parquet", "weights")
        found = {table: read_parts(results / table, table) for table in ("evidence", "posterior")}
        return {name: table.to_pandas().to_csv(index=False) for name, table in (found | {"weights": weights}).items()}

    def weights(self) -> str:
        """Shares of the hypotheses, as text."""
        return (self.results / "compare" / "weights.json").read_text()

    def files(self) -> dict[str, int]:
        """Results and Snakemake's records -> modification time in ns; logs and locks, which come and go, left out."""
        passing = (".snakemake/log", ".snakemake/locks", ".snakemake/iocache")
        return {
            name: path.stat().st_mtime_ns
            for path in self.path.rglob("*")
            if path.is_file() and not (name := str(path.relative_to(self.path))).startswith(passing)
        }


def tree(folder: Path) -> dict[Path, int]:
    """Files below a folder -> modification time in ns."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Folder:
    """A folder that the first to ask for it makes, also where the tests are spread over processes by pytest-xdist."""
    base = factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.with_suffix(".made").exists():
            shutil.rmtree(path, ignore_errors=True)
            make(path)
            path.with_suffix(".made").touch()
    return Folder(path)
