"""Hyper-parameters from the loci themselves: where they start, which loci are taken, and what they come to."""

from __future__ import annotations

import numpy as np
import pytest
from inference_cases import make_sheet
from scipy.special import expit

from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.estimate import estimated_hyperparameters, starting_hyperparameters
from epivi.families.transmission.hypotheses import parse_hypotheses
from epivi.loci.source import CountsBatch
from epivi.simulate.templates import template_pedigree

PEDIGREE = template_pedigree("trio", 2)
SHEET = make_sheet(PEDIGREE.individuals)


def test_a_fit_starts_with_baselines_evenly_placed() -> None:
    cohort = build_cohort(SHEET, PEDIGREE, (), parse_hypotheses({"reset": {}}))
    start = starting_hyperparameters(3, cohort)
    np.testing.assert_allclose(start.baseline_means, [-3, 0, 3], atol=1e-6)
    np.testing.assert_allclose(start.baseline_weights, 1 / 3, rtol=1e-6)


def test_estimates_come_near_what_the_loci_were_drawn_with() -> None:
    """Independent individuals, SD 0.8 between them, two baselines at -2 and 1; half of the loci have no reads and say
    nothing. Seed 3: 120 loci of 6 samples leave a baseline's mean a standard error of 0.1, and the log of the SD one of
    0.04; the limits are five of them."""
    random = np.random.default_rng(3)
    loci, size = 240, len(SHEET.samples)
    baseline = np.where(random.random((loci, 1)) < 0.5, -2.0, 1.0) + random.normal(0, 0.3, (loci, 1))
    total = random.poisson(40, (loci, size)) + 1
    total[::2] = 0
    meth = random.binomial(total, expit(baseline + random.normal(0, 0.8, (loci, size))))
    counts = CountsBatch(meth.astype(np.uint16), total.astype(np.uint16), np.arange(loci))
    found = estimated_hyperparameters(counts, SHEET, PEDIGREE, (), components=2, hypotheses=3, seed=1)
    np.testing.assert_allclose(np.sort(found.baseline_means), [-2, 1], atol=0.5)
    assert found.spread_location == pytest.approx(np.log(0.8), abs=0.2)
    assert found.hypothesis_weights.tolist() == [1 / 3] * 3
