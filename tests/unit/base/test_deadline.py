"""When a job must have ended, by the environment or by SLURM."""

from __future__ import annotations

import math
import os
from datetime import datetime
from pathlib import Path

import pytest

from epivi.base.deadline import MARGIN_S, job_deadline
from epivi.base.errors import UserError


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EPIVI_DEADLINE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def answer_of_squeue(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `squeue` that prints this, given the job 71."""
    path = folder / "squeue"
    path.write_text(f'#!/bin/sh\ncase "$*" in *--jobs=71*) echo "{text}";; *) exit 1;; esac\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_no_end_outside_of_a_job() -> None:
    assert job_deadline() == math.inf


def test_end_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPIVI_DEADLINE", "1800000000")
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    assert job_deadline() == 1_800_000_000 - MARGIN_S


def test_end_in_the_environment_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPIVI_DEADLINE", "tomorrow")
    with pytest.raises(UserError, match="EPIVI_DEADLINE is 'tomorrow'; expected seconds"):
        job_deadline()


def test_end_of_the_slurm_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer_of_squeue("2031-02-03T04:05:06", tmp_path, monkeypatch)
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    assert job_deadline() == datetime(2031, 2, 3, 4, 5, 6).timestamp() - MARGIN_S


@pytest.mark.parametrize(("job", "text"), [("71", "N/A"), ("72", "2031-02-03T04:05:06")])
def test_unknown_end_of_the_slurm_job_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, job: str, text: str
) -> None:
    answer_of_squeue(text, tmp_path, monkeypatch)
    monkeypatch.setenv("SLURM_JOB_ID", job)
    assert job_deadline() == math.inf
    assert f"the end of SLURM job {job} is not known" in caplog.text
