"""`epivi fit`: loci, samples and pedigree -> learned hyper-parameters and the amortized guide."""

from __future__ import annotations

import json
import logging
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from epivi.fit.ranks import Ranks

log = logging.getLogger(__name__)

# Settings of a fit with which an earlier one of the same inputs goes on.
ADJUSTABLE = ("processes", "checkpoint_minutes", "max_steps")


@click.command("fit")
@click.option("--loci", required=True, type=click.Path(), help="Folder written by epivi assemble.")
@click.option("--samples", required=True, type=click.Path(), help="Sample sheet.")
@click.option("--pedigree", required=True, help='Pedigree file, or {"nodes": ..., "edges": ...} as JSON.')
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of the fit.")
@click.option("--config", "config_source", required=True, help="Configuration file, or inline JSON.")
@click.option("--method", help="Inference method, in place of fit.method of the configuration.")
@click.option(
    "--checkpoint-minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Minutes between checkpoints, in place of fit.checkpoint_minutes of the configuration.",
)
@click.option("--resume/--no-resume", default=True, show_default=True, help="Continue an interrupted fit.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Processor threads.")
def command(
    loci: str,
    samples: str,
    pedigree: str,
    output: Path,
    config_source: str,
    method: str | None,
    checkpoint_minutes: float | None,
    resume: bool,
    threads: int,
) -> None:
    """Fit the model over random minibatches of loci.

    At the end what all loci share is learned anew by the evidence of fit.shared_loci random loci, as the variational
    bound makes standard deviations too small. With another method than svi it is learned anew by
    expectation-maximization with that method instead, at fit.method_loci random loci: slow, and for showing what the
    bound does to the result.

    Writes fit.json (hyper-parameters, their standard errors and warnings), guide.pt and loss.parquet. While it runs,
    checkpoint.pt is renewed every fit.checkpoint_minutes and when the process is asked to stop, or a minute before the
    time limit of its SLURM job (or before the end in EPIVI_DEADLINE, seconds since 1970); the same command then
    continues from it. It stays where the fit ended without having converged: with a larger fit.max_steps the same
    command goes on. The learning rate then falls towards the new end, so that the result is close to that of a fit of
    as many steps, but not the same digits.

    Started by torchrun, as `torchrun --standalone --nproc-per-node 2 -m epivi fit ...`, several processes share every
    minibatch, each with --threads threads, or with a GPU of its own.
    """
    from epivi.fit.ranks import joined

    with ExitStack() as stack:
        ranks = stack.enter_context(joined())
        stack.enter_context(_reported_by_rank_0(ranks))
        _fit(stack, ranks, loci, samples, pedigree, output, config_source, method, checkpoint_minutes, resume, threads)


@contextmanager
def _reported_by_rank_0(ranks: Ranks) -> Iterator[None]:
    """The first process says why all end; each ends with the status that the command has alone."""
    from epivi.fit.ranks import OthersEnded

    if not ranks.is_first:
        logging.getLogger().setLevel(logging.ERROR)
    try:
        yield
    except (OthersEnded, KeyboardInterrupt) as reason:
        if ranks.is_first:
            raise
        sys.exit(2 if isinstance(reason, OthersEnded) else 130)


def _fit(
    stack: ExitStack,
    ranks: Ranks,
    loci: str,
    samples: str,
    pedigree: str,
    output: Path,
    config_source: str,
    method: str | None,
    checkpoint_minutes: float | None,
    resume: bool,
    threads: int,
) -> None:
    """The command in one of its processes; the lock is held until the stack is left."""
    import pyro
    import torch
    from tqdm import tqdm

    from epivi.base.code_version import code_version
    from epivi.base.deadline import job_deadline
    from epivi.base.files import content_hash, exclusive
    from epivi.config.load import load_config
    from epivi.families import family_step
    from epivi.families.inputs import read_inputs
    from epivi.fit.folder import (
        LOCK,
        NOT_CONVERGED,
        FitOutcome,
        device_of,
        load_checkpoint,
        remove_checkpoint,
        save_checkpoint,
        save_fit,
        save_tables,
        use_threads,
    )
    from epivi.tables.parquet import Provenance

    with ranks.together():
        config = load_config(config_source)
        given = {"method": method, "checkpoint_minutes": checkpoint_minutes}
        own = {key: value for key, value in given.items() if value is not None}
        config = load_config(json.dumps({"fit": own}), base=config.resolved)
        problem = family_step(config.family, "prepare").prepare(read_inputs(loci, samples, pedigree), config)
        section, seed, store = config.section("fit"), config.seed("fit"), problem.store
        device = ranks.own_device(device_of(section["device"], "fit"))
        use_threads(threads)
        pyro.set_rng_seed(seed)
        run = family_step(config.family, "fit").start(problem, config, device, ranks)
        # Whatever the number of processes, of checkpoints and of steps, it is the same optimization.
        fixed = {key: value for key, value in section.items() if key not in ADJUSTABLE}
        counts = [panel.name for panel in store.panels]  # which are hashes of the counts in them
        parts = [
            code_version("fit", config.family),
            problem.stamp,
            fixed,
            seed,
            counts,
            store.n_loci,
            store.provenance.config_hash,
        ]
        stamp = content_hash(parts)
        if ranks.is_first:
            stack.enter_context(exclusive(output / LOCK))
        saved = load_checkpoint(output, stamp, section["max_steps"]) if resume and ranks.is_first else None
        stop = _StopRequest(job_deadline())
    log.info(
        "fit: %d loci, %d samples, %d hypotheses, %s guide on %s, processes: %d",
        store.n_loci, len(store.samples), len(problem.hypothesis_names), section["guide"], device, ranks.size,
    )  # fmt: skip
    saved = ranks.from_first(lambda: saved)
    elapsed_before = 0.0
    started = saved_at = time.monotonic()
    if saved is None:
        run.initialize()
    else:
        run.load_state_dict(saved[0])
        elapsed_before = saved[1]
        log.info("continuing at step %d from %s", run.step, output / "checkpoint.pt")

    def elapsed() -> float:
        return elapsed_before + time.monotonic() - started

    def save() -> None:
        state = run.state_dict()  # of all processes together
        if ranks.is_first:
            save_checkpoint(output, state, stamp, run.step, elapsed())

    silent = None if ranks.is_first else True
    with tqdm(total=section["max_steps"], initial=run.step, desc="fit", unit=" steps", disable=silent) as bar, stop:
        for row in run.steps():
            run.elapsed[row.step] = elapsed()
            bar.update()
            if not math.isnan(row.holdout_elbo):
                log.info("step %d: held-out bound %.4f nats per locus", row.step, row.holdout_elbo)
            due = time.monotonic() - saved_at > 60 * section["checkpoint_minutes"]
            ending, due = ranks.any_of(stop.requested, due)
            if ending or due:
                save()
                saved_at = time.monotonic()
            if ending:
                log.warning("stopped at step %d; the same command continues from %s", row.step, output)
                raise KeyboardInterrupt
    if not run.converged:
        log.warning("%s", NOT_CONVERGED.format(run.step))
    if run.finishes_slowly or not run.converged:
        # The next start of the same command goes on from here, also one of more steps.
        save()

    def provenance(kind: str) -> Provenance:
        return Provenance(kind, seed, config.hash("model", "fit"), problem.pedigree_hash)

    def finish() -> None:
        loss = [(row.step, run.elapsed[row.step], row.batch_elbo, row.holdout_elbo) for row in run.loss]
        outcome = FitOutcome(run.step, run.converged, elapsed(), loss)
        result = run.finish()
        save_tables(output, result.tables, provenance)
        settings = {**section, "processes": ranks.size, "seed": seed}
        save_fit(output, result, outcome, settings, problem.stamp, provenance("loss"))
        if run.converged:
            remove_checkpoint(output)

    ranks.from_first(finish)
    torch.set_num_threads(threads)
    log.info("%s: %d steps in %.0f s, converged: %s", output, run.step, elapsed(), run.converged)


class _StopRequest:
    """Asks for an end by SIGTERM, SIGINT or the clock, so that a step ends and is saved before the process does."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline  # Unix time, s
        self._asked = False
        self._previous: dict[signal.Signals, object] = {}

    @property
    def requested(self) -> bool:
        return self._asked or time.time() > self._deadline

    def __enter__(self) -> _StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
