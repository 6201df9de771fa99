"""Covariates whose values differ between loci: a column that is the same at all loci is a covariate of the sheet, and
one that is not is checked against dense matrices, locus by locus."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from inference_cases import dense_laplace, make_pedigree, make_sheet, prior_of_b
from scipy.stats import binom
from test_effects import CASES as COHORTS
from test_effects import LEARNED, MENDELIAN, SHARES, draw, make_model, wide_proposal
from test_laplace import CASES, Case, Inputs, counts_of, draw_inputs

from epivi.base.errors import UserError
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.columns import PARAMETERS
from epivi.families.transmission.density import Hyperparameters, build_transmission, to_batch, transmission
from epivi.families.transmission.hypotheses import parse_hypotheses
from epivi.families.transmission.outer_integral import EvidenceModel, LocusEffects, hypothesis_evidence
from epivi.families.transmission.refinement import evaluate_batch, sample_field
from epivi.families.transmission.simulate import (
    BaselineComponent,
    LocusCovariates,
    SimulationSettings,
    simulate_cohort,
)
from epivi.field.compiled.nodes import evaluate_nodes
from epivi.field.dense.expectation_propagation import ep
from epivi.field.dense.importance import exact_field
from epivi.field.dense.methods import FIELD_METHODS
from epivi.field.dense.problem import FieldProblem, FieldVariances, build_field_problem
from epivi.field.torch.nodes import evaluate_nodes_torch
from epivi.loci.source import CountsBatch
from epivi.simulate.positions import Contig

CPU = torch.device("cpu")
MIXTURE: dict[str, Any] = {
    "mixture_weight": np.array([0.3, 0.2, 0.5]),
    "mixture_mean": np.array([-2.0, 0.0, 2.0]),
    "mixture_sd": np.array([0.4, 1.0, 0.4]),
}


def with_columns(name: str, columns: int, loci: int = 5, nodes: int = 3) -> tuple[Case, Inputs, np.ndarray]:
    """A case of the inner integral with so many columns of single loci, dosages of 0, 1 and 2, and their SDs."""
    case = CASES[name]
    inputs = draw_inputs(case, loci, nodes)
    design = np.random.default_rng(3).integers(0, 3, (*inputs.meth.shape, columns)).astype(float)
    return case, inputs._replace(effect_sd=np.append(inputs.effect_sd, np.linspace(0.5, 0.9, columns))), design


# --- the inner integral ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("name", ["covariates", "everything", "replicates"])
def test_laplace_against_dense_matrices(name: str, columns: int) -> None:
    """Evidence, correction and every effect's moments at the central nodes, to 1e-7, as without such columns."""
    case, inputs, own = with_columns(name, columns)
    found = evaluate_nodes(*inputs, tolerance=1e-13, locus_design=own)
    design = build_cohort(case.sheet, case.pedigree, case.covariates, [case.hypothesis]).fields[0].design
    mean = np.array([inputs.mixture_mean[0], *0 * inputs.effect_sd])
    variance = np.array([inputs.mixture_sd[0], *inputs.effect_sd]) ** 2
    assert found.effect_mean.shape[2] == design.shape[1] + columns
    for locus in range(len(own)):
        prior, membership = prior_of_b(
            case.pedigree, case.sheet, case.hypothesis, inputs.variances[locus, 0], inputs.tau[locus, 0]
        )
        whole = np.concatenate([design, own[locus]], axis=1)
        expected = dense_laplace(counts_of(inputs, case.sheet, locus), prior, membership, whole, mean, variance)
        for part, value in zip(found[:5], expected, strict=True):
            np.testing.assert_allclose(part[locus, 0], value, rtol=1e-6, atol=1e-7)


def test_propagation_against_the_dense_algorithm() -> None:
    """Evidence to 3e-4 nats, means to 2e-3 SDs and variances to 0.2 %: the kernel stops at a mismatch of 1e-3 SDs."""
    case, inputs, own = with_columns("conversion errors", 2)
    found = evaluate_nodes(*inputs, method="ep", locus_design=own)
    cohort = build_cohort(case.sheet, case.pedigree, case.covariates, [case.hypothesis])
    problem = build_field_problem(
        cohort.fields[0],
        cohort,
        FieldVariances(inputs.variances[:, 1], inputs.tau[:, 1]),
        np.array([inputs.mixture_mean[0], *0 * inputs.effect_sd]),
        np.array([inputs.mixture_sd[0], *inputs.effect_sd]) ** 2,
        inputs.meth,
        inputs.total,
        own,
    )
    expected = ep(problem)
    np.testing.assert_allclose(found.log_evidence[:, 1], expected.log_evidence, atol=3e-4)
    effects = found.effect_mean.shape[2]
    variance = np.diagonal(expected.covariance, axis1=1, axis2=2)[:, 1:effects]
    np.testing.assert_allclose(found.effect_variance[:, 1, 1:], variance, rtol=2e-3)
    error = np.abs(found.effect_mean[:, 1] - expected.mean[:, :effects])[:, 1:] / np.sqrt(variance)
    assert error.max() < 2e-3


@pytest.mark.parametrize("method", ["laplace", "ep"])
def test_torch_agrees_with_the_compiled_kernel(method: str) -> None:
    for name in ("covariates", "replicates"):
        _, inputs, own = with_columns(name, 2, loci=6, nodes=4)
        for prior in ({}, MIXTURE):
            asked = inputs._replace(**prior)
            expected = evaluate_nodes(*asked, method=method, locus_design=own)
            found = evaluate_nodes_torch(*asked, CPU, method=method, locus_design=own)
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-9)


def test_each_locus_has_its_own_values() -> None:
    """Loci in other lanes, with other values, are of no consequence; the values of a locus are."""
    _, inputs, own = with_columns("replicates", 1, loci=40)
    together = evaluate_nodes(*inputs, locus_design=own)
    some = slice(33, 35)
    alone = evaluate_nodes(
        *inputs._replace(
            meth=inputs.meth[some], total=inputs.total[some], variances=inputs.variances[some], tau=inputs.tau[some]
        ),
        locus_design=own[some],
    )
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one[some], other, rtol=1e-10, atol=1e-12)
    exchanged = evaluate_nodes(*inputs, locus_design=own[::-1])
    assert (np.abs(exchanged.log_evidence - together.log_evidence).max(1) > 1e-3).mean() > 0.8


# --- the same column once for all loci and once for each -------------------------------------------------------------


def test_dense_methods() -> None:
    """Every reference method, and sampling, have the same answer whichever way a column is given."""
    case = CASES["covariates"]
    cohort = build_cohort(case.sheet, case.pedigree, case.covariates, [case.hypothesis])
    inputs, field = draw_inputs(case, 3, 1), cohort.fields[0]
    variances = FieldVariances(inputs.variances[:, 0], inputs.tau[:, 0])
    prior = np.array([0.5, 0, 0, 0]), np.array([1.3, *inputs.effect_sd]) ** 2
    counts = inputs.meth, inputs.total
    common = build_field_problem(field, cohort, variances, *prior, *counts)
    fewer, own = field._replace(design=field.design[:, :2]), np.repeat(field.design[None, :, 2:], 3, axis=0)
    of_loci = build_field_problem(fewer, cohort, variances, *prior, *counts, own)
    assert (common.loading.ndim, of_loci.loading.ndim) == (2, 3)

    def moments(problem: FieldProblem) -> list[np.ndarray]:
        found = [FIELD_METHODS[name](problem) for name in FIELD_METHODS]
        sampled = exact_field(problem, 4000, 1)
        return [*(x.mean for x in found), *(x.covariance for x in found), sampled.mean, sampled.log_evidence]

    for one, other in zip(moments(common), moments(of_loci), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def both_ways() -> tuple[EvidenceModel, EvidenceModel, tuple[np.ndarray, np.ndarray], np.ndarray]:
    """A cohort whose last covariate is the sheet's, or one of each locus; counts; the values at each locus."""
    case, loci = COHORTS["three generations"], 6
    common = make_model(case, LEARNED, {"mendelian": MENDELIAN})
    meth, total, _ = draw(case, common, loci, 15, seed=4)
    own = np.repeat(common.cohort.fields[0].design[None, :, 2:], loci, axis=0)
    fewer = make_model(case._replace(covariates=case.covariates[:1]), LEARNED, {"mendelian": MENDELIAN})
    return common, fewer._replace(locus_effects=LocusEffects((0.6,))), (meth, total), own


@pytest.mark.parametrize("method", ["laplace", "ep"])
def test_evidence_of_a_covariate_of_the_sheet(method: str) -> None:
    common, of_loci, counts, own = both_ways()
    loci = np.arange(len(own))
    one, other = (
        hypothesis_evidence(model, 0, wide_proposal(model, len(own)), *counts, loci, 64, 1, method, design)
        for model, design in ((common, None), (of_loci, own))
    )
    np.testing.assert_allclose(one.log_evidence, other.log_evidence, rtol=1e-10)
    first, scale = len(PARAMETERS), common.cohort.covariates[1].scale
    for name in ("mean", "q05", "q50", "q95"):
        by_unit, by_sd = getattr(one, name), getattr(other, name)
        np.testing.assert_allclose(by_unit[:, : first + 1], by_sd[:, : first + 1], rtol=1e-8)
        np.testing.assert_allclose(by_unit[:, first + 1] * scale, by_sd[:, first + 1], rtol=1e-7)
    sampled = [
        sample_field(model, 0, *counts, evidence, 1, design)
        for model, evidence, design in ((common, one, None), (of_loci, other, own))
    ]
    np.testing.assert_allclose(sampled[0].log_evidence, sampled[1].log_evidence, atol=1e-7)


def test_density_of_a_covariate_of_the_sheet() -> None:
    """The Pyro model's log density of the same latents."""
    common, of_loci, counts, own = both_ways()
    batch = to_batch(CountsBatch(*counts, np.arange(len(own))), len(own), CPU, torch.float64)
    random = torch.Generator().manual_seed(2)
    effects = torch.randn(len(own), 2, dtype=torch.float64, generator=random)
    sites: dict[str, Any] = {"baseline": effects[:, 0] * 0.3, "log_spread": effects[:, 1] * 0.2}
    sites["logit_heritable_share"] = effects[:, 0]
    fields = [7]
    sites["field_0"] = torch.randn(len(own), 1, *fields, dtype=torch.float64, generator=random)

    def log_density(model: EvidenceModel, given: dict[str, Any], batch: Any) -> float:
        family = build_transmission(model.cohort, model.hypotheses, SHARES, CPU, torch.float64)
        conditioned = poutine.condition(transmission, data={**sites, **given})
        traced = poutine.trace(conditioned).get_trace(family, Hyperparameters.restored(model.learned), 0, batch)
        return float(traced.log_prob_sum().detach())

    pyro.clear_param_store()
    expected = log_density(common, {"effects": effects}, batch)
    with_own = batch._replace(
        locus_design=torch.as_tensor(own), locus_effect_sds=torch.tensor([0.6], dtype=torch.float64)
    )
    found = log_density(of_loci, {"effects": effects[:, :1], "locus_effects": effects[:, 1:]}, with_own)
    assert found == pytest.approx(expected, rel=1e-12)


# --- the evidence on arrays ------------------------------------------------------------------------------------------


def test_hypotheses_with_and_without_a_column() -> None:
    """A column that only one of two hypotheses has: as if the other's model had none; through all levels."""
    case = COHORTS["three generations"]
    model = make_model(case, LEARNED, {"without": MENDELIAN, "with": MENDELIAN})
    meth, total, _ = draw(case, model, 8, 15, seed=6)
    design = np.random.default_rng(1).integers(0, 3, (*meth.shape, 2)).astype(float)
    own = model._replace(locus_effects=LocusEffects((0.7, 0.4), ((), (1,))))
    loci = np.arange(len(meth))
    plain, (without, having) = (
        evaluate_batch(model, meth, total, loci, 64, 3),
        evaluate_batch(own, meth, total, loci, 64, 3, locus_design=design),
    )
    np.testing.assert_array_equal(without.log_evidence, plain[0].log_evidence)
    first = len(PARAMETERS) + len(model.cohort.covariates)
    assert (without.mean[:, first:] == 0).all()
    assert (having.mean[:, first] == 0).all()
    assert (having.q05[:, first + 1] < having.q95[:, first + 1]).all()
    assert (np.abs(having.log_evidence - plain[1].log_evidence) > 1e-3).all()


def test_the_baseline_is_of_the_average_sample() -> None:
    """Only differences between samples count: the same evidence and moments with another constant at every locus."""
    _, of_loci, counts, own = both_ways()
    given = (0, wide_proposal(of_loci, len(own)), *counts, np.arange(len(own)), 64, 1, "laplace")
    moved = own + np.arange(len(own), dtype=float)[:, None, None]
    for one, other in zip(*(hypothesis_evidence(of_loci, *given, design) for design in (own, moved)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10)


def test_missing_values_and_wrong_shapes_are_refused() -> None:
    _, of_loci, counts, own = both_ways()
    given = (0, wide_proposal(of_loci, len(own)), *counts, np.arange(len(own)), 64, 1, "laplace")
    missing = own.copy()
    missing[2, 3, 0] = np.nan
    with pytest.raises(UserError, match="locus_design is nan at locus 2, sample 3, column 0: expected a number"):
        hypothesis_evidence(of_loci, *given, missing)
    for wrong in (None, own[:, :, :0], own[:3], own[0]):
        with pytest.raises(UserError, match="expected loci, samples and effects"):
            hypothesis_evidence(of_loci, *given, wrong)


def test_intervals_hold_simulated_effects_of_single_loci() -> None:
    """The 5 to 95 % interval of a dosage's effect holds the truth at 90 % of 600 loci, within 4 %: by chance beyond in
    0.1 %; and the effects drawn are those of the reads."""
    pedigree = make_pedigree(*((f"i{n}",) for n in range(12)))
    sheet, loci = make_sheet(pedigree.individuals), 600
    design = np.random.default_rng(5).integers(0, 3, (loci, 12, 1)).astype(float)
    hypotheses = parse_hypotheses({"reset": {}})
    mixture = zip(LEARNED.baseline_weights, LEARNED.baseline_means, LEARNED.baseline_sds, strict=True)
    settings = SimulationSettings(
        seed=2,
        hypotheses=hypotheses,
        weights=(1.0,),
        contigs=(Contig("chr1", 400), Contig("chr2", 200)),
        share_priors=SHARES,
        baseline=tuple(BaselineComponent(*component) for component in mixture),
        log_spread_location=LEARNED.spread_location,
        log_spread_scale=LEARNED.spread_scale,
        coverage_mean=15,
    )
    drawn = simulate_cohort(settings, pedigree, sheet, LocusCovariates(design, np.array([0.8])))
    truth = drawn.truth["locus_effects"][:, 0]
    without = simulate_cohort(settings, pedigree, sheet)
    of_average = design[:, :, 0] - design[:, :, 0].mean(1, keepdims=True)
    np.testing.assert_allclose(drawn.logit - without.logit, of_average * truth[:, None], atol=1e-12)
    model = make_model(COHORTS["trio"]._replace(pedigree=pedigree, sheet=sheet, covariates=()), LEARNED, {"reset": {}})
    model = model._replace(locus_effects=LocusEffects((0.8,)))
    meth, total = drawn.meth.astype(np.uint16), drawn.total.astype(np.uint16)
    (found,) = evaluate_batch(model, meth, total, np.arange(loci), 64, 1, locus_design=design)
    low, mean, high = (getattr(found, name)[:, len(PARAMETERS)] for name in ("q05", "mean", "q95"))
    outside = int(((truth < low) | (truth > high)).sum())
    assert binom.cdf(0.14 * loci, loci, 0.1) - binom.cdf(0.06 * loci, loci, 0.1) > 0.998
    assert 0.06 * loci < outside < 0.14 * loci
    assert np.corrcoef(mean, truth)[0, 1] > 0.7
