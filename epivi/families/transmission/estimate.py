"""What all loci share, from some loci alone: for evidences of loci in memory, where no fit was run.

The baseline's mixture, the spread's prior and the SDs of effects, by expectation-maximization under one hypothesis:
that no two individuals have anything in common. How much individuals differ hardly depends on who resembles whom. The
E-step is the posterior of each locus as the evidence integrates it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.columns import PARAMETERS
from epivi.families.transmission.density import Hyperparameters, LearnedPriors
from epivi.families.transmission.hypotheses import parse_hypotheses
from epivi.families.transmission.locus.empirical_bayes import QUADRATURE_NODES, fit_mixture
from epivi.families.transmission.outer_integral import EvidenceModel, HypothesisEvidence, OuterProposal
from epivi.families.transmission.proposal import WeightedTheta, adapted_proposal, adapting_model, weighted_theta
from epivi.field.layout import Cohort
from epivi.loci.source import CountsBatch

Array = NDArray[np.float64]

MOST_LOCI = 500
MOST_ITERATIONS = 30
TOLERANCE = 1e-3  # nats a locus that one iteration still gains
SMALLEST_SPREAD_SCALE = 0.1
SMALLEST_EFFECT_SD = 0.05
STEP = 0.1  # of the log of an effect's SD, either way
Z_95 = 1.6448536269514722
EDGE = 1e-6  # of a fraction, so that its logit is finite


def starting_hyperparameters(components: int, cohort: Cohort) -> LearnedPriors:
    """Where a fit starts: baselines evenly placed from -3 to 3 on the logit scale, SDs between individuals about 1."""
    return LearnedPriors.of(Hyperparameters(components, len(cohort.covariates), len(cohort.fields)))


def estimated_hyperparameters(
    counts: CountsBatch,
    sheet: SampleSheet,
    pedigree: Pedigree,
    covariates: Sequence[str],
    components: int,
    hypotheses: int,
    seed: int,
) -> LearnedPriors:
    """Estimates from at most MOST_LOCI of the loci, drawn at random among those with reads.

    covariates: sheet columns that have an effect under some hypothesis. components: of the baseline's mixture.
    hypotheses: how many there are, all with the same weight.
    """
    some = _drawn(counts, seed)
    independent = parse_hypotheses({"independent": {}})
    cohort = build_cohort(sheet, pedigree, covariates, independent)
    learned = starting_hyperparameters(components, cohort)
    pooled = np.log((some.meth.sum(1) + 0.5) / ((some.total - some.meth).sum(1) + 0.5))
    learned = learned._replace(baseline_means=np.quantile(pooled, (np.arange(components) + 0.5) / components))
    before = -np.inf
    for _ in range(MOST_ITERATIONS):
        model = adapting_model(cohort, independent, learned, {}, seed)
        proposal = adapted_proposal(model, 0, some.meth, some.total, some.locus, seed)
        nodes, found = weighted_theta(model, 0, proposal, some.meth, some.total, some.locus, seed)
        gained, before = found.log_evidence.mean() - before, found.log_evidence.mean()
        if gained < TOLERANCE:
            break
        effect_sds = _effect_sds(model, proposal, some, seed)
        learned = _maximized(learned, nodes, found)._replace(effect_sds=effect_sds)
    return learned._replace(hypothesis_weights=np.full(hypotheses, 1 / hypotheses))


def _drawn(counts: CountsBatch, seed: int) -> CountsBatch:
    covered = np.flatnonzero(counts.total.any(1))
    size = min(MOST_LOCI, len(covered))
    rows = np.sort(np.random.default_rng([seed, 7]).choice(covered, size, replace=False))
    return CountsBatch(counts.meth[rows], counts.total[rows], counts.locus[rows])


def _effect_sds(model: EvidenceModel, proposal: OuterProposal, counts: CountsBatch, seed: int) -> Array:
    """SD of the effects [C] of each covariate column that the M-step takes: the root of the mean of E[effect^2].

    By Fisher's identity, of the normal prior of an effect: d log p(D) / d log sd = E[effect^2 | D] / sd^2 - 1.
    """
    (sds,) = model.effect_sds
    square = np.empty(len(sds))
    for column, sd in enumerate(sds):
        log_evidence = []
        for step in (STEP, -STEP):
            changed = sds.copy()
            changed[column] *= np.exp(step)
            at_these = model._replace(effect_sds=(changed,))
            found = weighted_theta(at_these, 0, proposal, counts.meth, counts.total, counts.locus, seed)[1]
            log_evidence.append(found.log_evidence.mean())
        square[column] = sd**2 * (1 + (log_evidence[0] - log_evidence[1]) / (2 * STEP))
    return np.sqrt(np.maximum(square, SMALLEST_EFFECT_SD**2))


def _maximized(old: LearnedPriors, nodes: WeightedTheta, found: HypothesisEvidence) -> LearnedPriors:
    mean, covariance = nodes.moments()
    location = float(mean[:, 0].mean())
    scale = float(np.sqrt(covariance[:, 0, 0].mean() + mean[:, 0].var()))
    baseline = list(PARAMETERS).index("baseline")
    low, middle, high = (
        logit(np.clip(quantile[:, baseline], EDGE, 1 - EDGE)) for quantile in (found.q05, found.q50, found.q95)
    )
    node, weight = np.polynomial.hermite_e.hermegauss(QUADRATURE_NODES)
    points = middle[:, None] + ((high - low) / (2 * Z_95))[:, None] * node
    weights = np.broadcast_to(weight / weight.sum(), points.shape)
    shares, means, sds = fit_mixture(points.ravel(), weights.ravel(), old)
    return old._replace(
        baseline_weights=shares,
        baseline_means=means,
        baseline_sds=sds,
        spread_location=location,
        spread_scale=max(scale, SMALLEST_SPREAD_SCALE),
    )
