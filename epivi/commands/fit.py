"""`epivi fit`: loci, samples and pedigree -> learned hyper-parameters and the amortized guide."""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from epivi.commands.problem import Problem
    from epivi.models.transmission import LearnedPriors

log = logging.getLogger(__name__)

FEWEST_FAMILIES = 3  # below which the fit warns that hypotheses are hardly told apart


@click.command("fit")
@click.option("--loci", required=True, type=click.Path(), help="Folder written by epivi assemble.")
@click.option("--samples", required=True, type=click.Path(), help="Sample sheet.")
@click.option("--pedigree", required=True, help='Pedigree file, or {"nodes": ..., "edges": ...} as JSON.')
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of the fit.")
@click.option("--config", "config_source", required=True, help="Configuration file, or inline JSON.")
@click.option("--method", help="Inference method, in place of fit.method of the configuration.")
@click.option("--resume/--no-resume", default=True, show_default=True, help="Continue an interrupted fit.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Processor threads.")
def command(
    loci: str,
    samples: str,
    pedigree: str,
    output: Path,
    config_source: str,
    method: str | None,
    resume: bool,
    threads: int,
) -> None:
    """Fit the model over random minibatches of loci.

    With another method than svi, what all loci share is then learned anew by expectation-maximization with that
    method, at fit.method_loci random loci: slow, and for showing what the variational bound does to the result.

    Writes fit.json (hyper-parameters), guide.pt and loss.parquet. While it runs, checkpoint.pt is renewed every
    fit.checkpoint_minutes and when the process is asked to stop; the same command then continues from it.
    """
    import pyro
    import torch
    from tqdm import tqdm

    from epivi.commands.problem import read_problem
    from epivi.config import load_config
    from epivi.errors import UserError
    from epivi.field import has_exact_reads
    from epivi.files import content_hash
    from epivi.fitted import (
        FitOutcome,
        device_of,
        load_checkpoint,
        remove_checkpoint,
        save_checkpoint,
        save_fit,
        use_threads,
    )
    from epivi.guides import GUIDES
    from epivi.infer.svi import FIT_DTYPE, FitSettings, FitState, fit_steps, initialize, new_state, to_batch
    from epivi.minibatch import Minibatches
    from epivi.models.transmission import LearnedPriors, build_transmission
    from epivi.store import Provenance

    config = load_config(config_source)
    if method is not None:
        config = load_config(json.dumps({"fit": {"method": method}}), base=config.resolved)
    problem = read_problem(loci, samples, pedigree, config)
    section = config.section("fit")
    seed = config.seed("fit")
    if section["method"] == "cavi" and not has_exact_reads(problem.cohort):
        raise UserError(
            f"{samples}: fit.method cavi needs false_methylated and false_unmethylated to be 0 for every sample; "
            "expected another method"
        )
    device = device_of(section["device"], "fit")
    use_threads(threads)
    pyro.set_rng_seed(seed)
    settings = FitSettings(
        section["max_steps"], section["learning_rate"], section["check_every"], section["tolerance"], seed
    )
    family = build_transmission(problem.cohort, problem.hypotheses, problem.priors, device, FIT_DTYPE)
    minibatches = Minibatches(problem.store, section["batch_loci"], section["holdout_loci"], seed)
    components = config.section("model")["baseline_components"]
    state: FitState = new_state(problem.cohort, family, components, section["hidden"], settings, device)
    stamp = content_hash([problem.stamp, section, seed, problem.store.n_loci, problem.store.provenance.config_hash])

    saved = load_checkpoint(output, stamp) if resume else None
    elapsed_before = 0.0
    if saved is None:
        initialize(state, to_batch(minibatches.holdout(), minibatches.n_loci, device))
    else:
        state.load_state_dict(saved[0], minibatches)
        elapsed_before = saved[1]
        log.info("continuing at step %d from %s", state.step, output / "checkpoint.pt")

    started = saved_at = time.monotonic()
    stop = _StopRequest()
    log.info(
        "fit: %d loci, %d samples, %d hypotheses, %s guide on %s",
        problem.store.n_loci, len(problem.cohort.samples), len(problem.hypotheses), section["guide"], device,
    )  # fmt: skip

    families = min(
        (len(f.block_start) - 1 for h, f in zip(problem.hypotheses, problem.cohort.fields, strict=True) if h.transmits),
        default=FEWEST_FAMILIES,
    )
    if families < FEWEST_FAMILIES:
        log.warning(
            "unrelated families: %d. What a whole family shares cannot be told from the baseline of the locus, so that "
            "the weights of the hypotheses rest on the priors; look at the posteriors within a hypothesis",
            families,
        )  # fmt: skip

    def elapsed() -> float:
        return elapsed_before + time.monotonic() - started

    with tqdm(total=settings.max_steps, initial=state.step, desc="fit", unit=" steps", disable=None) as bar, stop:
        for row in fit_steps(state, family, GUIDES[section["guide"]], minibatches, settings, device):
            state.elapsed[row.step] = elapsed()
            bar.update()
            if not math.isnan(row.holdout_elbo):
                log.info("step %d: held-out bound %.4f nats per locus", row.step, row.holdout_elbo)
            if stop.requested or time.monotonic() - saved_at > 60 * section["checkpoint_minutes"]:
                save_checkpoint(output, state.state_dict(minibatches), stamp, elapsed())
                saved_at = time.monotonic()
            if stop.requested:
                log.warning("stopped at step %d; the same command continues from %s", row.step, output)
                raise KeyboardInterrupt
    if not state.converged:
        log.warning("not converged after %d steps: raise fit.max_steps or look at loss.parquet", state.step)
    loss = [(row.step, state.elapsed[row.step], row.batch_elbo, row.holdout_elbo) for row in state.loss]
    outcome = FitOutcome(state.step, state.converged, elapsed(), loss)
    learned = LearnedPriors.of(state.averaged)
    encoder = {name: tensor.cpu() for name, tensor in state.encoder.state_dict().items()}
    if section["method"] != "svi":
        # The next start of the same command goes on from here.
        save_checkpoint(output, state.state_dict(minibatches), stamp, elapsed())
        learned = _learn_anew(problem, learned, encoder, section, seed)
    provenance = Provenance("loss", seed, config.hash("model", "fit"), problem.pedigree_hash)
    save_fit(output, learned, encoder, outcome, {**section, "seed": seed}, problem.stamp, provenance)
    remove_checkpoint(output)
    torch.set_num_threads(threads)
    log.info("%s: %d steps in %.0f s, converged: %s", output, state.step, elapsed(), state.converged)


def _learn_anew(
    problem: Problem,
    learned: LearnedPriors,
    encoder: dict[str, Any],
    section: dict[str, Any],
    seed: int,
) -> LearnedPriors:
    """What all loci share, by the method of the configuration at some of them."""
    import numpy as np
    from tqdm import tqdm

    from epivi.errors import UserError
    from epivi.evidence import build_evidence_model
    from epivi.guides import GUIDES
    from epivi.infer.empirical_bayes import iterate
    from epivi.minibatch import sample_loci

    method, cohort = section["method"], problem.cohort
    model = build_evidence_model(cohort, problem.hypotheses, learned, problem.priors, encoder, section["hidden"])
    loci = sample_loci(problem.store, section["method_loci"], seed)
    with tqdm(desc=f"fit by {method}", unit=" loci", disable=None) as bar:
        for step in iterate(model, GUIDES[section["guide"]], method, loci, seed, bar.update):
            log.info("%s: log evidence %.4f nats per locus", method, step.log_evidence)
    if not step.converged:
        log.warning("%s: not converged", method)
    weights = zip(problem.hypotheses, learned.hypothesis_weights, step.learned.hypothesis_weights, strict=True)
    for hypothesis, before, after in weights:
        log.info("weight of %s: %.3f by svi, %.3f by %s", hypothesis.name, before, after, method)
    if not all(np.isfinite(value).all() for value in step.learned):
        raise UserError(f"fit.method: {method} found no hyper-parameters; expected another method, or more loci")
    return step.learned


class _StopRequest:
    """Turns SIGTERM and SIGINT into a flag, so that a step ends and is saved before the process does."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> _StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
