"""Loci drawn from a fitted model: reads of real ones, levels as the fit says."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
from fit_cases import MODEL, write_cohort
from scipy.special import logit

from epivi.config.load import load_config
from epivi.families.inputs import read_inputs
from epivi.families.transmission.density import LearnedPriors
from epivi.families.transmission.misfit import drawn_counts
from epivi.families.transmission.prepare import prepare


def test_drawn_loci_have_the_reads_that_are_given_and_the_levels_of_the_fit(tmp_path):
    """Baselines at a logit of -1 (SD .5), individuals .4 apart: within 4 standard errors, and by 400 reads."""
    folder = write_cohort(tmp_path)
    config = load_config(json.dumps({"model": MODEL}))
    problem = prepare(read_inputs(*(str(folder / name) for name in ("loci", "samples.tsv", "pedigree.tsv"))), config)
    learned = LearnedPriors(
        baseline_weights=np.ones(1),
        baseline_means=np.full(1, -1.0),
        baseline_sds=np.full(1, 0.5),
        spread_location=np.log(0.4),
        spread_scale=0.01,
        effect_sds=np.full(len(problem.cohort.covariates), 0.01),
        hypothesis_weights=np.full(len(problem.hypotheses), 1 / len(problem.hypotheses)),
    )
    total = np.full((3000, len(problem.sheet.samples)), 400, dtype=np.uint16)
    total[::2, 0] = 0
    drawn = drawn_counts(problem, SimpleNamespace(learned=learned), config, total, 3)
    assert drawn.total is total
    assert (drawn.meth <= total).all()
    levels = logit((drawn.meth[1::2] + 0.5) / 401)
    assert abs(levels.mean() + 1) < 4 * 0.6 / np.sqrt(1500)
    assert abs(levels.std(axis=1, ddof=1).mean() - 0.4) < 0.05
    again = drawn_counts(problem, SimpleNamespace(learned=learned), config, total, 3)
    np.testing.assert_array_equal(again.meth, drawn.meth)
