"""Misfit p-values through the real evidence: uniform over loci of the model, and low where misfit is planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from inference_cases import make_sheet
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import kstest

import epivi
from epivi.config.load import load_config
from epivi.discovery.misfit import CountStatistics, count_statistics, usual_statistic
from epivi.families.transmission.hypotheses import parse_hypotheses, share_priors
from epivi.families.transmission.simulate import (
    BaselineComponent,
    SimulatedCohort,
    SimulationSettings,
    simulate_cohort,
)
from epivi.simulate.positions import Contig
from epivi.simulate.templates import template_pedigree

pytestmark = pytest.mark.slow

MODEL = load_config("{}").section("model")
HYPOTHESES = parse_hypotheses(MODEL["hypotheses"])
WEIGHT = np.array([0.6, *np.full(len(HYPOTHESES) - 1, 0.4 / (len(HYPOTHESES) - 1))])
BASELINE = (BaselineComponent(0.3, -2.0, 0.8), BaselineComponent(0.2, 0.0, 1.0), BaselineComponent(0.5, 2.0, 0.8))
PEDIGREE = template_pedigree("trio", 8)
LOCATION, SCALE = float(np.log(0.5)), 0.35


def drawn(loci: int, seed: int) -> SimulatedCohort:
    settings = SimulationSettings(
        seed=seed,
        hypotheses=HYPOTHESES,
        weights=tuple(WEIGHT),
        contigs=(Contig("chr1", loci),),
        share_priors=share_priors(MODEL["priors"]),
        baseline=BASELINE,
        log_spread_location=LOCATION,
        log_spread_scale=SCALE,
    )
    return simulate_cohort(settings, PEDIGREE, make_sheet(PEDIGREE.individuals))


def log_evidence(meth: NDArray[np.int64], total: NDArray[np.int64]) -> NDArray[np.float64]:
    weights, means, sds = zip(*BASELINE, strict=True)
    given: dict[str, Any] = {"baseline_weights": weights, "baseline_means": means, "baseline_sds": sds}
    given |= {"spread_location": LOCATION, "spread_scale": SCALE}
    names = PEDIGREE.individuals
    return epivi.evidence(meth, total, PEDIGREE, individuals=names, hyperparameters=given, threads=2).log_evidence


def statistics(meth: NDArray[np.int64], total: NDArray[np.int64]) -> CountStatistics:
    return count_statistics(meth.astype(np.uint16), total.astype(np.uint16))


def test_pvalues_are_uniform_and_planted_misfit_is_found() -> None:
    """False alarm rate 0.001; power at 1 % of levels by genotype, a contrary sample and beta-binomial reads."""
    first = drawn(1500, 1)
    usual = usual_statistic(log_evidence(first.meth, first.total), WEIGHT, statistics(first.meth, first.total))

    def pvalues(meth: NDArray[np.int64], total: NDArray[np.int64]) -> NDArray[np.float64]:
        return usual.pvalues(log_evidence(meth, total), statistics(meth, total))

    other = drawn(1500, 2)
    assert kstest(pvalues(other.meth, other.total), "uniform").pvalue > 0.001
    planted = drawn(300, 3)
    random, level = np.random.default_rng(4), expit(planted.logit)
    contrary = planted.logit.copy()
    contrary[:, 4] *= -1
    methylated, high = planted.logit.mean(1) > 0.5, np.abs(planted.logit.mean(1)) > 1
    variant = random.binomial(planted.total, level * (1 - random.binomial(2, 0.3, level.shape) / 2))
    assert (pvalues(variant, planted.total)[methylated] <= 0.01).mean() > 0.5
    assert (pvalues(random.binomial(planted.total, expit(contrary)), planted.total)[high] <= 0.01).mean() > 0.4
    overdispersed = random.binomial(planted.total, random.beta(level * 4, (1 - level) * 4))
    assert (pvalues(overdispersed, planted.total) <= 0.01).mean() > 0.5
