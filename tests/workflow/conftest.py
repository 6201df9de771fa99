"""Fixtures: the cohort before and after a run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from workflow_folder import COHORT, CONTIGS, EXECUTABLES, SETTINGS, Folder, made_once


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The cohort's inputs and configuration, nothing run yet; tests that change it take a copy."""

    def make(path: Path) -> None:
        path.mkdir()
        line = "simulate --output cohort --seed 11 --template trio --families 2 --unsampled F1_father,F2_father"
        line += f" --loci 300 --contigs {','.join(CONTIGS)} --formats bismark_cov:0.5,bedmethyl:0.5 --cohort {COHORT}"
        subprocess.run([EXECUTABLES / "epivi", *line.split()], cwd=path, check=True, capture_output=True)
        config = yaml.safe_load((path / "cohort" / "config.yaml").read_text())
        for section, values in SETTINGS.items():
            config[section] = config.get(section, {}) | values
        (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        # What is read when no --configfile is given; nothing of it may show when one is.
        (path / "config").mkdir()
        (path / "config" / "config.yaml").write_text(yaml.safe_dump(config | {"cohort": "demo"}, sort_keys=False))

    return made_once(tmp_path_factory, "inputs", make)


@pytest.fixture(scope="session")
def finished(cohort: Folder, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A cohort that the workflow has run to its end; its output is in run.out. Tests that change it take a copy."""

    def make(path: Path) -> None:
        folder = cohort.copy(path)
        run = folder.snakemake()
        assert run.returncode == 0, run.stdout + run.stderr
        (path / "run.out").write_text(run.stdout + run.stderr)

    return made_once(tmp_path_factory, "finished", make)
