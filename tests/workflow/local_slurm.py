"""A whole SLURM of one node on this machine: munged, slurmctld and slurmd on loopback, in a folder of their own.

    python tests/workflow/local_slurm.py -- .venv/bin/snakemake --profile workflow/profiles/slurm ...

runs a command that finds this SLURM by the variable SLURM_CONF, and stops the daemons when it has ended. It wants root
on Debian or its derivatives, and installs the packages slurm-wlm and munge where they are missing. There is no
accounting, as on many small clusters. Memory that a job did not ask for kills it, as cgroups do on real clusters; its
time limit does not at once, so that what leaves by itself has time to, however busy the machine.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
PACKAGES = ("slurm-wlm", "munge")
CPUS, MEMORY_MB = 8, 16_000  # said to SLURM, whatever the machine has
WAIT_S = 60
SYSTEM_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # where Debian has the daemons

CONFIGURATION = """
ClusterName=epivi
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=2,sched_min_interval=100000
ReturnToService=2
KillWait=2
OverTimeLimit=5
MinJobAge=600
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mb} State=UNKNOWN
PartitionName=main Nodes=node Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=node MaxTime=INFINITE State=UP
"""


def obstacle() -> str | None:
    """Why there can be no SLURM here, or None."""
    if os.geteuid() != 0:
        return "starting SLURM needs root"
    if not all(map(_which, DAEMONS)) and shutil.which("apt-get") is None:
        return "SLURM is not installed, and this is no Debian to install it on"
    return None


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *SYSTEM_PATH]))


def install() -> None:
    """Install the daemons where they are missing; raises CalledProcessError if that fails."""
    if not all(map(_which, DAEMONS)):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=True, env=environment)
        line = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
        subprocess.run(line, check=True, env=environment, stdout=subprocess.DEVNULL)


@contextmanager
def running() -> Iterator[dict[str, str]]:
    """A running SLURM; yields the environment variables by which its commands find it.

    Raises RuntimeError, with the end of the daemons' logs, if the node does not come up. Everything started is stopped.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)))
        environment = _configure(folder)
        _start_munge(stack, folder)
        for daemon in ("slurmctld", "slurmd"):
            stack.enter_context(_daemon([daemon, "-D", *(["-N", "node"] if daemon == "slurmd" else [])], environment))
        stack.callback(_cancel_jobs, environment)
        _wait_for(lambda: _node_state(environment) == "idle", "the node is not idle", folder)
        yield environment


def _configure(folder: Path) -> dict[str, str]:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    ports = {"controller_port": _free_port(), "node_port": _free_port()}
    text = CONFIGURATION.format(
        folder=folder, host=socket.gethostname().split(".")[0], cpus=CPUS, memory_mb=MEMORY_MB, **ports
    )
    configuration = folder / "slurm.conf"
    configuration.write_text(text)
    # Snakemake's plugin starts srun without any SLURM_ variable but the job's: this one knows where the file is.
    srun = folder / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={configuration} exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)
    path = os.pathsep.join([str(srun.parent), os.environ["PATH"], *SYSTEM_PATH])
    return {**os.environ, "SLURM_CONF": str(configuration), "PATH": path}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start_munge(stack: ExitStack, folder: Path) -> None:
    """Munge authenticates the daemons to one another; with a key and a socket of its own it meets no other munge."""
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    folder.chmod(0o755)
    names = {"key": "key-file", "socket": "socket", "pid": "pid-file", "log": "log-file", "seed": "seed-file"}
    options = [f"--{option}={folder}/munge.{suffix}" for suffix, option in names.items()]
    stack.enter_context(_daemon(["munged", "--foreground", *options], dict(os.environ)))
    _wait_for((folder / "munge.socket").exists, "munged has no socket", folder)


@contextmanager
def _daemon(line: list[str], environment: dict[str, str]) -> Iterator[None]:
    # However this process ends, the daemon does not outlive it.
    line = ["setpriv", "--pdeathsig", "TERM", _which(line[0]) or line[0], *line[1:]]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(line, env=environment, start_new_session=True, **quiet)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _node_state(environment: dict[str, str]) -> str:
    line = ["sinfo", "--noheader", "--partition=main", "--format=%T"]
    return subprocess.run(line, env=environment, capture_output=True, text=True).stdout.strip()


def _cancel_jobs(environment: dict[str, str]) -> None:
    """End what still runs, which would outlive the daemons."""
    subprocess.run(["scancel", "--partition=main,gpu"], env=environment, capture_output=True)
    deadline = time.monotonic() + WAIT_S
    listing = ["squeue", "--noheader"]
    while subprocess.run(listing, env=environment, capture_output=True).stdout and time.monotonic() < deadline:
        time.sleep(0.2)


def _wait_for(happened: Callable[[], bool], complaint: str, folder: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not happened():
        if time.monotonic() > deadline:
            logs = [f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(folder.glob("*.log"))]
            raise RuntimeError("\n".join([f"{complaint} after {WAIT_S} s", *logs]))
        time.sleep(0.1)


def main(arguments: list[str]) -> int:
    """Run a command beside a SLURM of its own; the command's exit status."""
    if reason := obstacle():
        raise SystemExit(f"local_slurm: {reason}")
    # Ended from outside, it still ends the jobs, which would outlive the daemons.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    install()
    with running() as environment:
        return subprocess.run(arguments, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:][sys.argv[1:2] == ["--"] :]))
