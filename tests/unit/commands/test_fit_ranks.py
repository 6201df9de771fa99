"""`epivi fit` by several processes: who writes and speaks, how all stop and continue, what the loss of one does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_cases import STEPS, command_line, configuration, results, run, write_cohort
from ranks_cases import Ended, in_ranks

from epivi.base.files import exclusive
from epivi.cli import main
from epivi.families.transmission import fit as fit_step
from epivi.fit import svi
from epivi.fit.folder import CHECKPOINT, FIT, GUIDE, LOCK, LOSS

EVERY_STEP = 1e-7  # minutes between checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort"))


def fit(line: list[str], struck: tuple[int, int, signal.Signals] | None = None, **other: list[str]) -> None:
    """The command in one of its processes.

    struck: a process, the step that it takes when a signal reaches it, and the signal; other: lines of processes whose
    line is another, by "rank<number>".
    """
    rank = os.environ["RANK"]
    plain = fit_step.fit_steps

    def interrupted(*arguments: Any) -> Iterator[svi.LossRow]:
        for row in plain(*arguments):
            if struck is not None and (int(rank), row.step) == struck[:2]:
                os.kill(os.getpid(), struck[2])
            yield row

    fit_step.fit_steps = interrupted  # type: ignore[assignment]
    main(other.get(f"rank{rank}", line))


def statuses(ended: list[Ended]) -> list[int]:
    return [process.status for process in ended]


def errors(ended: list[Ended]) -> list[str]:
    """Lines that say why a process ended, of all processes."""
    return re.findall(r"^epivi: error: (.*)$", "".join(process.said for process in ended), re.MULTILINE)


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit by two processes."""
    output = tmp_path_factory.mktemp("fit") / "fit"
    first, second = in_ranks(fit, 2, command_line(folder, output, configuration()))
    assert statuses([first, second]) == [0, 0]
    assert "processes: 2" in first.said
    assert second.said == "", "only the first process speaks"
    return output


def test_first_process_alone_writes(undisturbed: Path) -> None:
    assert {path.name for path in undisturbed.iterdir()} == {FIT, GUIDE, LOSS, CHECKPOINT}
    record = json.loads((undisturbed / FIT).read_text())
    assert record["settings"]["processes"] == 2
    assert record["steps"] == STEPS


@pytest.mark.parametrize(("rank", "step"), [(0, 2), (1, 4)])
def test_signal_to_one_stops_all_at_the_same_step(
    rank: int, step: int, folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "fit"
    line = command_line(folder, output, configuration())
    first, second = in_ranks(fit, 2, line, (rank, step, signal.SIGTERM))
    assert statuses([first, second]) == [130, 130]
    assert f"stopped at step {step}" in first.said
    assert second.said == ""
    assert {path.name for path in output.iterdir()} == {CHECKPOINT}
    assert statuses(in_ranks(fit, 2, line)) == [0, 0]
    assert results(output) == results(undisturbed)


def fit_until_the_deadline_of_the_second(line: list[str]) -> None:
    if os.environ["RANK"] == "1":
        os.environ["EPIVI_DEADLINE"] = "0"
    fit(line)


def test_deadline_of_one_stops_all(folder: Path, tmp_path: Path) -> None:
    ended = in_ranks(fit_until_the_deadline_of_the_second, 2, command_line(folder, tmp_path / "fit", configuration()))
    assert statuses(ended) == [130, 130]
    assert "stopped at step 1" in ended[0].said


@pytest.mark.parametrize("rank", [0, 1])
def test_lost_process_ends_all_and_the_next_start_continues(
    rank: int, folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "fit"
    line = command_line(folder, output, configuration(checkpoint_minutes=EVERY_STEP))
    ended = in_ranks(fit, 2, line, (rank, 5, signal.SIGKILL))
    assert statuses(ended) == ([-9, 2] if rank == 0 else [2, -9])
    said = ["a process of the fit was lost"] if rank == 1 else []
    assert [error[:29] for error in errors(ended)] == said
    assert not (output / FIT).exists()
    first, second = in_ranks(fit, 2, line)
    assert statuses([first, second]) == [0, 0]
    assert "continuing at step 4" in first.said
    assert results(output)[1:] == results(undisturbed)[1:], "the record differs in checkpoint_minutes"


def test_one_process_continues_what_two_began(folder: Path, tmp_path: Path) -> None:
    """The number is torchrun's: the key, which is the workflow's, makes a checkpoint no other."""
    output = tmp_path / "fit"
    assert (
        statuses(in_ranks(fit, 2, command_line(folder, output, configuration()), (0, 3, signal.SIGTERM))) == [130] * 2
    )
    assert run(folder, output, configuration(processes=5)) == 0
    record = json.loads((output / FIT).read_text())
    assert (record["steps"], record["settings"]["processes"]) == (STEPS, 1)


# --- errors


def test_error_that_all_have_is_said_once(folder: Path, tmp_path: Path) -> None:
    ended = in_ranks(fit, 2, command_line(folder, tmp_path / "fit", configuration(batch_loci=16)))
    assert statuses(ended) == [2, 2]
    (error,) = errors(ended)
    assert "fit.batch_loci comes to 1 runs of 16 loci; expected at least as many as processes, 2" in error


def fit_with_other_files(line: list[str], of_second: list[str]) -> None:
    fit(line, rank1=of_second)


def test_error_of_one_process_is_said_once_and_ends_all(folder: Path, tmp_path: Path) -> None:
    line = command_line(folder, tmp_path / "fit", configuration())
    elsewhere = command_line(folder, tmp_path / "fit", configuration(), samples=tmp_path / "nowhere.tsv")
    ended = in_ranks(fit_with_other_files, 2, line, elsewhere)
    assert statuses(ended) == [2, 2]
    (error,) = errors(ended)
    assert "nowhere.tsv" in error
    assert ended[1].said == ""


def test_folder_of_another_fit_is_refused_once(folder: Path, tmp_path: Path) -> None:
    with exclusive(tmp_path / "fit" / LOCK):
        ended = in_ranks(fit, 2, command_line(folder, tmp_path / "fit", configuration()))
    assert statuses(ended) == [2, 2]
    (error,) = errors(ended)
    assert "one process at a time" in error


# --- under torchrun itself


def torchrun(folder: Path, output: Path, config: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line = [*launcher, "-m", "epivi", "--quiet", *command_line(folder, output, config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def workers(process: subprocess.Popen[str]) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of a process's children")
@pytest.mark.parametrize("disturbances", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_torchrun_disturbed_at_random_moments_ends_the_same(disturbances: int, folder: Path, tmp_path: Path) -> None:
    """SIGTERM to torchrun and SIGKILL to one of its processes, in turn; the same end as undisturbed, bit for bit."""
    config = configuration(max_steps=40 + 20 * disturbances, tolerance=1e-12, checkpoint_minutes=EVERY_STEP)
    assert statuses(in_ranks(fit, 2, command_line(folder, tmp_path / "whole", config))) == [0, 0]
    output, steps, random = tmp_path / "fit", [], np.random.default_rng(5)
    for number in range(disturbances):
        process = torchrun(folder, output, config)
        before = modified(output / CHECKPOINT)
        while process.poll() is None and modified(output / CHECKPOINT) == before:
            time.sleep(0.005)
        time.sleep(random.uniform(0.0, 0.2))
        assert process.poll() is None, process.stderr and process.stderr.read()
        if number % 2 == 0:
            process.terminate()
        else:
            os.kill(workers(process)[random.integers(2)], signal.SIGKILL)
        _, said = process.communicate(timeout=120)
        assert process.returncode != 0
        assert ("epivi: interrupted" in said) == (number % 2 == 0), said
        steps.append(torch.load(output / CHECKPOINT, weights_only=True)["state"]["step"])
        assert not (output / FIT).exists()
    assert (np.diff([0, *steps]) > 0).all()
    assert statuses(in_ranks(fit, 2, command_line(folder, output, config))) == [0, 0]
    assert {path.name for path in output.iterdir()} == {FIT, GUIDE, LOSS, CHECKPOINT}
    assert results(output) == results(tmp_path / "whole")


def modified(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


# --- on GPUs


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_fit_as_two_processors_do(folder: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Other noise, the same start: after some steps the held-out bounds are near each other."""
    line = command_line(folder, tmp_path / "fit", configuration(device="cuda"))
    assert statuses(in_ranks(fit, 2, line)) == [0, 0]
    bounds = [
        json.loads((path / FIT).read_text())["holdout_elbo_nats_per_locus"] for path in (undisturbed, tmp_path / "fit")
    ]
    assert bounds[0] == pytest.approx(bounds[1], abs=1.0)
