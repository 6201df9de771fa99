"""The statement of a design confirmed: loci drawn as `epivi simulate` draws them, evaluated as data are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import logit

from epivi.families.family import NormalPrior
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.density import LearnedPriors
from epivi.families.transmission.gaussian_cohort import BASELINE_SD, EFFECT_SD
from epivi.families.transmission.proposal import adapting_model
from epivi.families.transmission.refinement import evaluate_batch
from epivi.families.transmission.simulate import BaselineComponent, SimulationSettings, draw_methylated, simulate
from epivi.simulate.positions import Contig
from epivi.verify.design import SPREAD_SCALE, Array, Assumed, Evaluated


def realized(asked: Assumed, loci: int, nodes: int, seed: int, threads: int) -> Iterator[int | Evaluated]:
    """Evidences of so many loci of each hypothesis at its typical parameters: yields loci done, last what was found.

    Reads are Poisson around `asked.reads`, baselines lie at the levels of methylation in turn, and what all loci share
    is known: the priors are those of the Gaussian scale. A region is made of consecutive loci.
    """
    cohort = build_cohort(asked.sheet, asked.pedigree, asked.covariates, asked.hypotheses)
    weights = np.full(len(asked.levels), 1 / len(asked.levels))
    learned = LearnedPriors(
        baseline_weights=weights,
        baseline_means=logit(np.array(asked.levels)),
        baseline_sds=np.full(len(weights), BASELINE_SD),
        spread_location=asked.log_spread,
        spread_scale=SPREAD_SCALE,
        effect_sds=np.full(len(cohort.covariates), EFFECT_SD),
        hypothesis_weights=np.full(len(asked.hypotheses), 1 / len(asked.hypotheses)),
    )
    model = adapting_model(cohort, asked.hypotheses, learned, dict(asked.priors), seed)
    found = []
    for h in range(len(asked.hypotheses)):
        meth, total = _drawn(asked, h, loci, seed)
        numbers = np.arange(h * loci, (h + 1) * loci)
        evidences = evaluate_batch(model, meth, total, numbers, nodes, seed, threads)
        found.append(np.stack([one.log_evidence for one in evidences], axis=1))
        yield loci
    at_loci = np.stack(found)
    yield Evaluated(at_loci, consecutive_regions(at_loci, asked.region_loci))


def consecutive_regions(at_loci: Array, loci: int) -> Array:
    """Sums over runs of so many loci, [H, regions, H] from [H, M, H]; what is left over at the end is no region."""
    hypotheses, size, _ = at_loci.shape
    whole = size // loci
    regions: Array = at_loci[:, : whole * loci].reshape(hypotheses, whole, loci, -1).sum(2)
    return regions


def _drawn(asked: Assumed, h: int, loci: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Methylated and all reads [L, S] of loci of hypothesis h."""
    exact = {name: NormalPrior(prior.mean, 0.0) for name, prior in asked.typical.items()}
    parts = []
    for number, level in enumerate(asked.levels):
        size = len(range(number, loci, len(asked.levels)))
        settings = SimulationSettings(
            seed=1000 * seed + 10 * number + h,
            hypotheses=(asked.hypotheses[h],),
            weights=(1.0,),
            contigs=(Contig("design", size),),
            share_priors=exact,
            covariates=asked.covariates,
            covariate_scale=EFFECT_SD,
            baseline=(BaselineComponent(1.0, float(logit(level)), 0.0),),
            log_spread_location=asked.log_spread,
            log_spread_scale=0.0,
            block_loci=size,
        )
        (block,) = simulate(settings, asked.pedigree, asked.sheet)
        random = np.random.default_rng([seed, 10, number, h])
        total = np.minimum(random.poisson(asked.reads, block.logit.shape), 65_535)
        errors = (asked.sheet.false_methylated, asked.sheet.false_unmethylated)
        parts.append((draw_methylated(random, total, block.logit, *errors), total))
    # In turn, so that every region has loci of all levels.
    order = np.argsort(np.concatenate([np.arange(len(total)) for _, total in parts]), kind="stable")
    meth, total = (np.concatenate([part[k] for part in parts])[order].astype(np.uint16) for k in (0, 1))
    return meth, total
