"""How many loci are called, and how many of them falsely, by the model and the controls together.

Cohorts like the demo (eight families of three generations, 36 samples, 25 reads), drawn by the simulator, the shared
values at the truth: 5,000 loci, 2,000 of them with individuals exchanged ten times. Beside them the calls by the most
likely weights alone, which know no doubt about the weights and nothing of the controls.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from test_calibration import SHARES, _sheet, _trained_encoder, prior_of, report
from test_confounded_cohorts import DECLARED, HYPOTHESES, IS_NULL

from epivi.cohort.pedigree_files import read_pedigree
from epivi.config.load import load_config
from epivi.discovery.controls import ControlEvidence, control_qvalues
from epivi.discovery.probabilities import local_fdr, mixture_probabilities, qvalue_table, rates
from epivi.discovery.weights import maximum_likelihood, weight_posterior
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.controls import log_evidences, variants
from epivi.families.transmission.density import LearnedPriors
from epivi.families.transmission.prepare import TransmissionProblem
from epivi.families.transmission.simulate import (
    BaselineComponent,
    SimulatedCohort,
    SimulationSettings,
    simulate_cohort,
)
from epivi.fit.folder import Fitted
from epivi.loci.source import CountsBatch
from epivi.simulate.positions import Contig

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[1] / "data" / "demo"
PEDIGREE = read_pedigree(DEMO / "pedigree.tsv")
SHEET = _sheet(tuple(pd.read_csv(DEMO / "samples.tsv", sep="\t")["individual"]))
BASELINE = (BaselineComponent(0.45, -0.9, 0.7), BaselineComponent(0.55, 1.1, 0.7))
LOCATION, SCALE = 0.1823, 0.3
WEIGHTS = (0.55, 0.15, 0.12, 0.1, 0.08)
LOCI, SAMPLED, EXCHANGES = 5000, 2000, 10
COHORTS = range(106, 116)  # the tilt and the share of null loci were chosen on 101 to 105
FDR = 0.05


class Calls(NamedTuple):
    """Of one cohort: numbers of calls, and of those that transmit nothing."""

    both: int
    both_false: int
    model: int
    model_false: int
    likely: int  # by the most likely weights
    likely_false: int
    holds: bool  # whether the interval of the weight of `reset` holds the truth


def simulated(seed: int, loci: int) -> SimulatedCohort:
    settings = SimulationSettings(
        seed=seed,
        hypotheses=HYPOTHESES,
        weights=WEIGHTS,
        contigs=(Contig("chr1", loci),),
        share_priors=SHARES,
        baseline=BASELINE,
        log_spread_location=LOCATION,
        log_spread_scale=SCALE,
        coverage_mean=25.0,
        coverage_size=20.0,
    )
    return simulate_cohort(settings, PEDIGREE, SHEET)


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    cohort = build_cohort(SHEET, PEDIGREE, (), HYPOTHESES)
    weight, mean, sd = (np.array(column) for column in zip(*BASELINE, strict=True))
    learned = LearnedPriors(weight, mean, sd, LOCATION, SCALE, np.zeros(0), np.full(5, 0.2))
    encoder = _trained_encoder(cohort, HYPOTHESES, learned, simulated(18, 8000))
    return Fitted(learned, learned, encoder, "", 64, "structured")


def calls_of(seed: int, fitted: Fitted) -> Calls:
    nowhere: Any = None  # no store: the counts are given
    cohort = build_cohort(SHEET, PEDIGREE, (), HYPOTHESES)
    problem = TransmissionProblem(nowhere, cohort, HYPOTHESES, SHARES, "", "", SHEET, PEDIGREE)
    config = load_config(json.dumps({"model": {"hypotheses": DECLARED}, "controls": {"permutations": EXCHANGES}}))
    drawn = simulated(seed, LOCI)
    counts = CountsBatch(drawn.meth.astype(np.uint16), drawn.total.astype(np.uint16), np.arange(LOCI))
    sampled = CountsBatch(counts.meth[:SAMPLED], counts.total[:SAMPLED], counts.locus[:SAMPLED])
    refined, true, *others = variants(problem, config, seed)
    log_evidence = log_evidences(refined, fitted, config, counts, 2)
    found = [ControlEvidence("true", 1, "", log_evidences(true, fitted, config, sampled, 2))]
    for variant in others:
        if variant.control == "across":
            found.append(
                ControlEvidence("across", variant.number, "", log_evidences(variant, fitted, config, sampled, 2))
            )
    is_false = drawn.truth["hypothesis"] == 0
    prior = prior_of(IS_NULL)
    weights = weight_posterior(lambda: iter([log_evidence]), LOCI, prior, 100, 200, 1)
    table = qvalue_table(lambda: iter([log_evidence]), weights.tilted, IS_NULL)
    table = table._replace(control_qvalue=control_qvalues(table, found, prior, weights.tilted, IS_NULL))
    by_locus = rates(local_fdr(mixture_probabilities(log_evidence, weights.tilted), IS_NULL), table)
    both, model = by_locus.called(FDR), by_locus.qvalue <= FDR
    likely = called_by_likely_weights(log_evidence)
    numbers = [int(which.sum()) for called in (both, model, likely) for which in (called, called & is_false)]
    return Calls._make([*numbers, weights.lower[0] <= WEIGHTS[0] <= weights.upper[0]])


def called_by_likely_weights(log_evidence: NDArray[np.float64]) -> NDArray[np.bool_]:
    weight = maximum_likelihood(lambda: [log_evidence], LOCI, len(IS_NULL))[0][None]
    table = qvalue_table(lambda: iter([log_evidence]), weight, IS_NULL)
    lfdr = local_fdr(mixture_probabilities(log_evidence, weight), IS_NULL)
    return rates(lfdr, table).qvalue <= FDR


def test_calls_are_nearly_as_many_as_by_the_most_likely_weights(fitted: Fitted) -> None:
    """At least .85 of them over ten cohorts; false ones within 5 % and three standard errors of a pooled share."""
    found = [calls_of(seed, fitted) for seed in COHORTS]
    for seed, calls in zip(COHORTS, found, strict=True):
        report(seed, calls)
    total = Calls._make(sum(column) for column in zip(*found, strict=True))
    report(
        "in all",
        total,
        f"false {total.both_false / total.both:.3f}, of the model {total.model_false / total.model:.3f}",
    )
    assert total.both >= 0.85 * total.likely
    assert total.both_false / total.both <= FDR + 3 * np.sqrt(FDR * (1 - FDR) / total.both)
    assert total.holds >= 8  # of ten; below with a probability of .01 where they hold in 95 %
