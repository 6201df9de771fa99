"""What real cohorts share at all loci, drawn without any transmission: nothing is called, or the run cannot tell.

Six families of a couple and four children, 400 loci a cohort (1,500 with a signal), 20 reads. What is drawn by code of
its own here, not by the simulator of the model: batches that coincide with families, composition of cells that differs
between individuals (a factor of the samples with a loading at each locus), the same by household, a trend over
generations, and C/T variants at a twentieth of the loci. A cohort of the simulator with a true signal is still told.

One cohort of each kind; 19 exchanges: without any signal a test speaks falsely in 5 %, and three must speak together.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, logit
from test_calibration import BASELINE, SHARES, TRANSMITS, _sheet, _trained_encoder, prior_of, report

from epivi.cohort.pedigree import Pedigree
from epivi.config.load import load_config
from epivi.discovery.controls import ControlEvidence, Verdict, control_qvalues, judge
from epivi.discovery.probabilities import local_fdr, mixture_probabilities, qvalue_table, rates
from epivi.discovery.weights import Weights, weight_posterior
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.controls import log_evidences, variants
from epivi.families.transmission.density import LearnedPriors
from epivi.families.transmission.hypotheses import parse_hypotheses
from epivi.families.transmission.prepare import TransmissionProblem
from epivi.families.transmission.simulate import SimulatedCohort, SimulationSettings, simulate_cohort
from epivi.fit.folder import Fitted
from epivi.loci.source import CountsBatch
from epivi.simulate.positions import Contig

pytestmark = pytest.mark.slow

Array = NDArray[np.float64]
FAMILIES, CHILDREN, LOCI = 6, 4, 400
MEMBERS = 2 + CHILDREN
DECLARED: dict[str, dict[str, Any]] = {
    "reset": {},
    "mendelian": TRANSMITS | {"maternal": 1, "paternal": 1},
    "epigenetic": TRANSMITS | {"maternal": "tau", "paternal": "tau"},
    "maternal": TRANSMITS | {"maternal": "tau", "paternal": 0},
    "paternal": TRANSMITS | {"maternal": 0, "paternal": "tau"},
}
HYPOTHESES = parse_hypotheses(DECLARED)
IS_NULL = np.array([True, False, False, False, False])
LOCATION, SCALE = -0.3, 0.35  # of log sigma
SHARED_SD = 0.6  # logits, of what all loci share


def nuclear_families() -> Pedigree:
    names: list[str] = []
    mothers: list[int] = []
    fathers: list[int] = []
    sexes: list[str] = []
    for family in range(FAMILIES):
        first = len(names)
        names += [f"F{family}_mother", f"F{family}_father", *(f"F{family}_child{k}" for k in range(CHILDREN))]
        mothers += [-1, -1, *[first] * CHILDREN]
        fathers += [-1, -1, *[first + 1] * CHILDREN]
        sexes += ["female", "male"] * (MEMBERS // 2)
    size = len(names)
    mother, father = (np.array(column, dtype=np.int32) for column in (mothers, fathers))
    return Pedigree(tuple(names), mother, father, ("sexual",) * size, np.ones(size, dtype=np.int32), tuple(sexes))


PEDIGREE = nuclear_families()
SHEET = _sheet(PEDIGREE.individuals)
FAMILY = np.repeat(np.arange(FAMILIES), MEMBERS)


def simulated(weights: tuple[float, ...], seed: int, loci: int) -> SimulatedCohort:
    settings = SimulationSettings(
        seed=seed,
        hypotheses=HYPOTHESES,
        weights=weights,
        contigs=(Contig("chr1", loci),),
        share_priors=SHARES,
        baseline=BASELINE,
        log_spread_location=LOCATION,
        log_spread_scale=SCALE,
    )
    return simulate_cohort(settings, PEDIGREE, SHEET)


def genotypes(random: np.random.Generator) -> Array:
    """Copies of an allele of a random frequency at each locus, [L, S]: parents by chance, children by Mendel."""
    frequency = random.uniform(0.1, 0.9, (LOCI, 1, 1))
    haplotypes = random.random((LOCI, FAMILIES, 4)) < frequency  # two of the mother, two of the father
    copies = np.zeros((LOCI, FAMILIES, MEMBERS))
    copies[:, :, 0], copies[:, :, 1] = haplotypes[:, :, :2].sum(2), haplotypes[:, :, 2:].sum(2)
    for child in range(2, MEMBERS):
        of_mother, of_father = random.integers(2, size=(2, LOCI, FAMILIES, 1))
        passed = [np.take_along_axis(haplotypes, pick, axis=2)[:, :, 0] for pick in (of_mother, 2 + of_father)]
        copies[:, :, child] = passed[0].astype(float) + passed[1]
    return copies.reshape(LOCI, -1)


def without_transmission(kind: str, seed: int) -> CountsBatch:
    """Counts in which individuals vary independently of one another, but for what the kind adds."""
    random = np.random.default_rng(seed)
    samples = len(SHEET.samples)
    weights, means, sds = (np.array(column) for column in zip(*BASELINE, strict=True))
    component = random.choice(len(weights), LOCI, p=weights)
    spread = np.exp(random.normal(LOCATION, SCALE, (LOCI, 1)))
    level = random.normal(means[component], sds[component])[:, None] + spread * random.normal(size=(LOCI, samples))
    loading = random.normal(0, SHARED_SD, (LOCI, 1))
    if kind == "batch is family":
        level += SHARED_SD * random.normal(size=(LOCI, FAMILIES))[:, FAMILY]
    if kind == "cells":
        level += loading * random.normal(size=samples)
    if kind == "cells by household":
        level += loading * np.sqrt(0.5) * (random.normal(size=FAMILIES)[FAMILY] + random.normal(size=samples))
    if kind == "generation":
        level += loading * np.tile([0.0, 0.0, *[1.0] * CHILDREN], FAMILIES)
    if kind == "variants":
        at = np.arange(LOCI) % 20 == 0
        share = np.clip(expit(level) * genotypes(random) / 2, 1e-6, 1 - 1e-6)
        level[at] = logit(share[at])
    total = random.negative_binomial(10, 1 / 3, (LOCI, samples))
    meth = random.binomial(total, expit(level))
    return CountsBatch(meth.astype(np.uint16), total.astype(np.uint16), np.arange(LOCI))


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    cohort = build_cohort(SHEET, PEDIGREE, (), HYPOTHESES)
    weight, mean, sd = (np.array(column) for column in zip(*BASELINE, strict=True))
    learned = LearnedPriors(weight, mean, sd, LOCATION, SCALE, np.zeros(0), np.full(5, 0.2))
    training = simulated((0.5, 0.15, 0.15, 0.1, 0.1), 18, 8000)
    return Fitted(learned, learned, _trained_encoder(cohort, HYPOTHESES, learned, training), "", 64, "structured")


class Outcome(NamedTuple):
    weights: Weights
    verdict: Verdict
    called_by_model: NDArray[np.bool_]  # [L], at a false discovery rate of 5 %
    called: NDArray[np.bool_]  # [L], also by the controls


def outcome_of(kind: str, counts: CountsBatch, fitted: Fitted) -> Outcome:
    nowhere: Any = None  # no store: the counts are given
    problem = TransmissionProblem(
        nowhere, build_cohort(SHEET, PEDIGREE, (), HYPOTHESES), HYPOTHESES, SHARES, "", "", SHEET, PEDIGREE
    )
    config = load_config(json.dumps({"model": {"hypotheses": DECLARED}}))
    found: list[ControlEvidence] = []
    for variant in variants(problem, config, 1):
        is_new = variant.is_changed
        values = log_evidences(variant, fitted, config, counts, 2) if is_new else found[1].log_evidence
        found.append(ControlEvidence(variant.control, variant.number, variant.detail, values))
    true = found[0].log_evidence
    weights = weight_posterior(lambda: iter([true]), len(true), prior_of(IS_NULL), 100, 200, 1)
    table = qvalue_table(lambda: iter([true]), weights.tilted, IS_NULL)
    table = table._replace(control_qvalue=control_qvalues(table, found, prior_of(IS_NULL), weights.tilted, IS_NULL))
    verdict = judge(found, prior_of(IS_NULL), weights.tilted, IS_NULL, table.largest_lfdr(0.05))
    lfdr = local_fdr(mixture_probabilities(true, weights.tilted), IS_NULL)
    by_locus = rates(lfdr, table)
    report(f"{kind}: reset {weights.weight[0]:.2f} ({weights.lower[0]:.2f} to {weights.upper[0]:.2f}), over families "
           f"{verdict.family_lower[0]:.2f} to {verdict.family_upper[0]:.2f}; the model alone calls "
           f"{(by_locus.qvalue <= 0.05).sum()}")  # fmt: skip
    for test in verdict.tests:
        report("   ", test)
    report("   ", verdict.cannot_tell or "tells")
    called = by_locus.called(0.05) & (verdict.cannot_tell == "")
    return Outcome(weights, verdict, by_locus.qvalue <= 0.05, called)


@pytest.mark.parametrize(
    "kind", ["nothing", "batch is family", "cells", "cells by household", "generation", "variants"]
)
def test_what_all_loci_share_is_not_called(kind: str, fitted: Fitted) -> None:
    """No lfdr of a called locus rests on it. Of the batch the model alone calls nearly all loci."""
    found = outcome_of(kind, without_transmission(kind, 2), fitted)
    if kind == "batch is family":
        assert found.called_by_model.mean() > 0.5
        assert "within families" in found.verdict.cannot_tell
    # A C/T variant is passed on, though not as methylation: a twentieth of the loci have one.
    assert found.called.sum() <= (LOCI // 20 if kind == "variants" else 0)


def test_a_true_signal_is_told(fitted: Fitted) -> None:
    """Exchanges within these families keep most pairs related, so that it takes loci to tell them apart."""
    drawn = simulated((0.6, 0.1, 0.1, 0.1, 0.1), 3, 1500)
    counts = CountsBatch(drawn.meth.astype(np.uint16), drawn.total.astype(np.uint16), np.arange(1500))
    found = outcome_of("signal", counts, fitted)
    assert found.verdict.cannot_tell == ""
    assert found.called.sum() >= 3
    assert (drawn.truth["hypothesis"][found.called] == 0).mean() <= 0.34
