"""Steps of the fit a second by one process and by several: `torchrun --standalone --nproc-per-node 2` before this file.

    python tests/benchmarks/bench_ranks.py --batch-loci 128
    torchrun --standalone --nproc-per-node 2 tests/benchmarks/bench_ranks.py --batch-loci 128

On the loci of the demo, after `snakemake --cores 2`; each process has one thread. Time on the clock is of use where
each has a core to itself; the time of the processor, which includes no waiting for others, says what a machine with as
many idle cores would do.
"""

from __future__ import annotations

import json
import time
from itertools import islice

import click
import numpy as np
import pyro
import torch

from epivi.config.load import load_config
from epivi.families import family_step
from epivi.families.inputs import read_inputs
from epivi.fit.ranks import joined

WARM_UP = 5  # steps


@click.command()
@click.option("--loci", default="results/demo/loci", show_default=True)
@click.option("--samples", default="config/samples.tsv", show_default=True)
@click.option("--pedigree", default="config/pedigree.tsv", show_default=True)
@click.option("--batch-loci", default=128, show_default=True, type=click.IntRange(min=1), help="Of all processes.")
@click.option("--steps", default=40, show_default=True, type=click.IntRange(min=1))
def command(loci: str, samples: str, pedigree: str, batch_loci: int, steps: int) -> None:
    """Median time of a step."""
    fit = {"batch_loci": batch_loci, "max_steps": steps + WARM_UP, "check_every": steps + WARM_UP, "device": "cpu"}
    config = load_config(json.dumps({"fit": fit}))
    torch.set_num_threads(1)
    with joined() as ranks:
        pyro.set_rng_seed(1)
        problem = family_step(config.family, "prepare").prepare(read_inputs(loci, samples, pedigree), config)
        run = family_step(config.family, "fit").start(problem, config, torch.device("cpu"), ranks)
        run.initialize()
        clock, processor = [time.perf_counter()], [time.thread_time()]
        for _ in islice(run.steps(), WARM_UP + steps - 1):  # the last one is checked on the held-out loci
            clock.append(time.perf_counter())
            processor.append(time.thread_time())
        of_step = np.median([np.diff(times)[WARM_UP:] for times in (clock, processor)], axis=1)
        found = ranks.gather(of_step.tolist())
    if ranks.is_first:
        on_clock, on_processor = np.max(found, axis=0)
        click.echo(
            f"processes: {ranks.size}, loci: {batch_loci}; a step takes {1e3 * on_clock:.0f} ms on the clock and "
            f"{1e3 * on_processor:.0f} ms of the processor, in the slowest"
        )


if __name__ == "__main__":
    command()
