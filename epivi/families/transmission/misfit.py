"""Loci drawn from the fitted model at the coverage of real ones, and their log evidences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from epivi.config.load import Config
from epivi.families.transmission.controls import Variant, log_evidences
from epivi.families.transmission.prepare import TransmissionProblem
from epivi.families.transmission.simulate import draw_methylated, fitted_settings, simulate
from epivi.fit.folder import Fitted
from epivi.loci.source import CountsBatch
from epivi.simulate.positions import Contig


def drawn_counts(
    problem: TransmissionProblem, fitted: Fitted, config: Config, total: NDArray[np.uint16], seed: int
) -> CountsBatch:
    """Methylated reads of R loci with the reads `total` [R, S], under hypotheses by the weights of the fit."""
    learned, covariates = fitted.learned, config.section("model")["covariates"]
    settings = fitted_settings(
        problem.hypotheses, learned.hypothesis_weights, learned, problem.priors, problem.cohort.covariates, covariates,
        seed,
    )  # fmt: skip
    settings = replace(settings, contigs=(Contig("drawn", len(total)),), block_loci=len(total))
    (block,) = simulate(settings, problem.pedigree, problem.sheet)
    random = np.random.default_rng([seed, 7])
    errors = (problem.sheet.false_methylated, problem.sheet.false_unmethylated)
    meth = draw_methylated(random, total.astype(np.int64), block.logit, *errors).astype(np.uint16)
    return CountsBatch(meth, total, np.arange(len(total)))


def drawn_evidences(
    problem: TransmissionProblem, fitted: Fitted, config: Config, counts: CountsBatch, threads: int
) -> NDArray[np.float64]:
    """Log evidences [R, H] of drawn loci, by the same integrals as those of real ones."""
    everyone = np.ones(counts.meth.shape[1], dtype=bool)
    return log_evidences(Variant("drawn", 0, "", problem, everyone, True, True), fitted, config, counts, threads)
