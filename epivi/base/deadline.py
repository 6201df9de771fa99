"""When a cluster will end the process: it gives no notice, so that long steps must leave by themselves before."""

from __future__ import annotations

import logging
import math
import os
import subprocess
from datetime import datetime

from epivi.base.errors import UserError

log = logging.getLogger(__name__)

VARIABLE = "EPIVI_DEADLINE"
MARGIN_S = 60.0  # for the step in hand, the checkpoint, and leaving


def job_deadline() -> float:
    """Unix time, in seconds, after which no new work should begin; infinite where no end is known.

    That is a minute before the end in the variable EPIVI_DEADLINE (seconds since 1970), for any scheduler, or before
    the end that SLURM names for the job that the process is part of. Raises UserError if the variable holds no number.
    """
    text = os.environ.get(VARIABLE)
    if text is not None:
        try:
            return float(text) - MARGIN_S
        except ValueError:
            raise UserError(f"{VARIABLE} is {text!r}; expected seconds since 1970, as `date +%s` prints") from None
    job = os.environ.get("SLURM_JOB_ID")
    return math.inf if job is None else _slurm_end(job) - MARGIN_S


def _slurm_end(job: str) -> float:
    """End of a SLURM job by its time limit; asked for, since not every version puts it into the environment."""
    line = ["squeue", "--noheader", "--format=%e", f"--jobs={job}"]
    try:
        answer = subprocess.run(line, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
        return datetime.fromisoformat(answer).timestamp()
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.warning(
            "the end of SLURM job %s is not known (%s): a time-out would cost a checkpoint's minutes", job, error
        )
        return math.inf
