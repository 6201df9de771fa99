"""Fit of what all loci share, and of the guide, under the family `transmission`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from epivi.base.errors import UserError
from epivi.config.load import Config
from epivi.discovery.replicates import warning_of_few_families
from epivi.families.family import FitResult, FitRun
from epivi.families.transmission.density import (
    FIT_DTYPE,
    Batch,
    Hyperparameters,
    LearnedPriors,
    TransmissionModel,
    build_transmission,
    to_batch,
)
from epivi.families.transmission.encoder import Encoder
from epivi.families.transmission.guide import GUIDES
from epivi.families.transmission.locus.empirical_bayes import iterate
from epivi.families.transmission.outer_integral import build_evidence_model
from epivi.families.transmission.prepare import TransmissionProblem, families
from epivi.families.transmission.shared import MOST_STEPS, SharedFit, learn_shared
from epivi.field.layout import Cohort, has_exact_reads
from epivi.fit.bound import LossRow
from epivi.fit.minibatch import Minibatches
from epivi.fit.ranks import ALONE, Ranks
from epivi.fit.svi import FitSettings, FitState, fit_steps
from epivi.loci.source import CountsBatch, sample_loci

log = logging.getLogger(__name__)


def start(problem: TransmissionProblem, config: Config, device: torch.device, ranks: Ranks = ALONE) -> FitRun:
    """A fit that has not begun; ranks: the processes that work on it, this one alone where it is left out.

    Raises UserError where fit and data do not go together. Nothing is exchanged with other processes yet.
    """
    if config.section("fit")["method"] == "cavi" and not has_exact_reads(problem.cohort):
        raise UserError(
            f"{problem.sheet.path}: fit.method cavi needs false_methylated and false_unmethylated to be 0 for "
            "every sample; expected another method"
        )
    _warn_of_few_families(problem)
    return TransmissionFit(problem, config, device, ranks)


class TransmissionFit:
    """The stochastic fit, after which the evidence, or another method, learns anew what all loci share."""

    def __init__(self, problem: TransmissionProblem, config: Config, device: torch.device, ranks: Ranks) -> None:
        section, seed = config.section("fit"), config.seed("fit")
        self._problem, self._section, self._seed, self._device = problem, section, seed, device
        self._settings = FitSettings(
            section["max_steps"], section["learning_rate"], section["check_every"], section["tolerance"], seed
        )
        self._family = build_transmission(problem.cohort, problem.hypotheses, problem.priors, device, FIT_DTYPE)
        self._minibatches = Minibatches(problem.store, section["batch_loci"], section["holdout_loci"], seed, ranks)
        components = config.section("model")["baseline_components"]
        self._state: FitState = new_state(
            problem.cohort, self._family, components, section["hidden"], self._settings, device, ranks
        )

    @property
    def elapsed(self) -> dict[int, float]:
        return self._state.elapsed

    @property
    def step(self) -> int:
        return self._state.step

    @property
    def converged(self) -> bool:
        return self._state.converged

    @property
    def loss(self) -> Sequence[LossRow]:
        return self._state.loss

    @property
    def finishes_slowly(self) -> bool:
        return bool(self._section["method"] != "svi" or self._section["shared"] != "variational")

    def initialize(self) -> None:
        initialize(self._state, to_batch(self._minibatches.all_held_out(), self._minibatches.n_loci, self._device))

    def steps(self) -> Iterator[LossRow]:
        guide = GUIDES[self._section["guide"]]
        return fit_steps(self._state, self._family, guide, self._minibatches, self._settings, self._device, to_batch)

    def state_dict(self) -> dict[str, Any]:
        return self._state.state_dict(self._minibatches)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state.load_state_dict(state, self._minibatches)

    def finish(self) -> FitResult:
        bound = LearnedPriors.of(self._state.averaged)
        encoder = {name: tensor.cpu() for name, tensor in self._state.encoder.state_dict().items()}
        section, problem = self._section, self._problem
        if section["method"] != "svi":
            learned = _learn_anew(problem, bound, encoder, section, self._seed)
            return FitResult(learned, encoder, {}, trained_at=bound)
        if section["shared"] == "variational":
            return FitResult(bound, encoder, {}, trained_at=bound)
        found = _learn_by_evidence(problem, bound, encoder, section, self._seed, self._device)
        return FitResult(found.learned, encoder, {}, bound, found.record(), found.warnings)


def _warn_of_few_families(problem: TransmissionProblem) -> None:
    warning = warning_of_few_families(families(problem))
    if warning:
        log.warning("%s", warning)


def _learn_anew(
    problem: TransmissionProblem,
    learned: LearnedPriors,
    encoder: dict[str, Any],
    section: dict[str, Any],
    seed: int,
) -> LearnedPriors:
    """What all loci share, by the method of the configuration at some of them."""
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


def _learn_by_evidence(
    problem: TransmissionProblem,
    bound: LearnedPriors,
    encoder: dict[str, Any],
    section: dict[str, Any],
    seed: int,
    device: torch.device,
) -> SharedFit:
    """What all loci share, from the evidence of some of them, starting where the bound has its maximum."""
    cohort, hidden = problem.cohort, section["hidden"]
    model = build_evidence_model(cohort, problem.hypotheses, bound, problem.priors, encoder, hidden, device)
    loci = sample_loci(problem.store, section["shared_loci"], seed)
    counts = CountsBatch(loci.meth, loci.total, loci.number)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the threads take chunks of loci each
    try:
        with tqdm(total=MOST_STEPS * len(loci.number), desc="fit by evidence", unit=" loci", disable=None) as bar:
            found = learn_shared(model, counts, seed, threads, bar.update)
    finally:
        torch.set_num_threads(threads)
    log.info(
        "shared values by the evidence of %d loci: log evidence %.4f nats per locus, %.4f by those of the bound",
        found.loci, *reversed(found.log_evidences),
    )  # fmt: skip
    for warning in found.warnings:
        log.warning("%s", warning)
    return found


def new_state(
    cohort: Cohort,
    family: TransmissionModel,
    baseline_components: int,
    hidden: int,
    settings: FitSettings,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> FitState:
    """Fresh networks and hyper-parameters; draws from torch's random state."""
    encoder = Encoder(cohort, family, hidden).to(device, FIT_DTYPE)
    hyper = Hyperparameters(baseline_components, len(cohort.covariates), len(family.hypotheses))
    return FitState(encoder, hyper.to(device, FIT_DTYPE), settings, ranks)


def initialize(state: FitState, batch: Batch) -> None:
    """Standardize the features and place the baseline components at quantiles of the pooled logits of some loci."""
    state.encoder.summary.standardize(batch)
    summary = state.encoder.summary(batch)
    k = len(state.hyper.baseline_means)
    quantiles = torch.linspace(0.5 / k, 1 - 0.5 / k, k).to(batch.meth)
    with torch.no_grad():
        state.hyper.baseline_means.copy_(torch.quantile(summary.pooled_logit, quantiles))
        state.averaged.load_state_dict(state.hyper.state_dict())
