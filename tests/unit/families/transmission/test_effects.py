"""Effects of covariates: against importance sampling of the whole posterior, against simulated truth, and in units.

The oracle shares no approximation with the evidence: draws of variance parameters, effects and field together, weighted
by the model's density. Statistical tests fix their seeds and say what they could have missed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from inference_cases import Array, log_observation, make_pedigree, make_sheet, prior_of_b
from scipy.special import expit, logsumexp
from scipy.stats import binom

from epivi.base.errors import UserError
from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet
from epivi.families.transmission import outer_integral
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.columns import PARAMETERS
from epivi.families.transmission.density import LearnedPriors, build_transmission
from epivi.families.transmission.encoder import Encoder
from epivi.families.transmission.hypotheses import parse_hypotheses, share_priors
from epivi.families.transmission.outer_integral import (
    EvidenceModel,
    HypothesisEvidence,
    OuterProposal,
    build_evidence_model,
    hypothesis_evidence,
)
from epivi.field.dense.expectation_propagation import ep
from epivi.field.dense.problem import FieldVariances, build_field_problem
from epivi.field.torch import nodes as torch_nodes
from epivi.field.torch.field import Solution, cholesky
from epivi.field.torch.nodes import evaluate_nodes_torch

SHARES = share_priors(
    {
        "heritable_share": {"alpha": 2, "beta": 2},
        "tau": {"alpha": 3, "beta": 2},
        "environment_share": {"alpha": 2, "beta": 3},
    }
)
TRIO = make_pedigree(("m",), ("f",), ("c", "m", "f"))
THREE_GENERATIONS = make_pedigree(
    *(("gm",), ("gf",), ("m", "gm", "gf"), ("f",), ("a", "m", "f"), ("b", "m", "f"), ("d", "m", "f"))
)
MENDELIAN = {"heritable_share": "free", "maternal": 1, "paternal": 1}


class Case(NamedTuple):
    pedigree: Pedigree
    sheet: SampleSheet
    covariates: tuple[str, ...]


def _case(pedigree: Pedigree, *individuals: str, errors: bool = False, **columns: tuple[str, ...]) -> Case:
    sampled = individuals or pedigree.individuals
    rates = 0.03 * np.ones(len(sampled)) * errors
    sheet = make_sheet(sampled, columns=columns, false_methylated=rates, false_unmethylated=rates / 2)
    return Case(pedigree, sheet, tuple(columns))


CASES = {
    "trio": _case(TRIO, treatment=("none", "drug", "none")),
    "trio with errors": _case(TRIO, errors=True, treatment=("none", "drug", "none")),
    "three generations": _case(
        THREE_GENERATIONS,
        treatment=("none", "none", "drug", "none", "drug", "none", "drug"),
        age=("70", "72", "41", "44", "9", "12", "15"),
    ),
    "replicates with errors": _case(
        TRIO, "m", "m", "f", "c", "c", errors=True, treatment=("none", "drug", "none", "none", "drug")
    ),
}
# Two components of the baseline's prior, one narrow: where it has a share of the posterior it moves the effects.
LEARNED = LearnedPriors(
    baseline_weights=np.array([0.4, 0.6]),
    baseline_means=np.array([-1.0, 0.8]),
    baseline_sds=np.array([0.5, 1.2]),
    spread_location=-0.2,
    spread_scale=0.4,
    effect_sds=np.array([1.0, 0.6]),
    hypothesis_weights=np.ones(1),
)


class Study(NamedTuple):
    case: Case
    model: EvidenceModel
    meth: np.ndarray  # [L, S]
    total: np.ndarray  # [L, S]
    effects: Array  # [L, C], of the design's columns
    found: HypothesisEvidence


def make_model(case: Case, learned: LearnedPriors, declared: dict[str, Any]) -> EvidenceModel:
    hypotheses = parse_hypotheses(declared)
    cohort = build_cohort(case.sheet, case.pedigree, case.covariates, hypotheses)
    learned = learned._replace(effect_sds=learned.effect_sds[: len(cohort.covariates)])
    torch.manual_seed(0)
    family = build_transmission(cohort, hypotheses, SHARES, torch.device("cpu"), torch.float64)
    state = Encoder(cohort, family, 4).state_dict()
    return build_evidence_model(cohort, hypotheses, learned, SHARES, state, 4)


def draw(case: Case, model: EvidenceModel, loci: int, coverage: float, seed: int) -> tuple[Array, Array, Array]:
    """Counts [L, S] twice and effects [L, C] from the model of its only hypothesis, with dense matrices."""
    random, learned = np.random.default_rng(seed), model.learned
    design = model.cohort.fields[0].design
    effects = random.normal(0, learned.effect_sds, (loci, len(learned.effect_sds)))
    k = random.choice(len(learned.baseline_weights), loci, p=learned.baseline_weights)
    baseline = random.normal(learned.baseline_means[k], learned.baseline_sds[k])
    variance = np.exp(2 * random.normal(learned.spread_location, learned.spread_scale, loci))
    prior = SHARES["logit_heritable_share"]
    share = expit(random.normal(prior.mean, prior.sd, loci))
    total = random.poisson(coverage, (loci, len(design))) * (random.random((loci, len(design))) > 0.1)
    meth = np.empty_like(total)
    eps, delta = case.sheet.false_methylated, case.sheet.false_unmethylated
    for locus in range(loci):
        parts = variance[locus] * np.array([share[locus], 1 - share[locus]])
        covariance, membership = prior_of_b(case.pedigree, case.sheet, model.hypotheses[0], parts, 0.0)
        b = membership @ random.multivariate_normal(np.zeros(len(covariance)), covariance)
        level = expit(baseline[locus] + design[:, 1:] @ effects[locus] + b)
        meth[locus] = random.binomial(total[locus], eps + (1 - eps - delta) * level)
    return meth.astype(np.uint16), total.astype(np.uint16), effects


def wide_proposal(model: EvidenceModel, loci: int) -> OuterProposal:
    """Around the prior of theta: with some hundred nodes that is exact enough for anything here."""
    prior = [(model.learned.spread_location, model.learned.spread_scale), tuple(SHARES["logit_heritable_share"])]
    mean, sd = np.array(prior).T
    return OuterProposal(np.tile(mean, (loci, 1)), np.tile(np.diag(sd / 2), (loci, 1, 1)))


def evaluate(model: EvidenceModel, meth: np.ndarray, total: np.ndarray, method: str = "ep") -> HypothesisEvidence:
    loci = len(meth)
    return hypothesis_evidence(model, 0, wide_proposal(model, loci), meth, total, np.arange(loci), 512, 1, method)


def make_study(name: str, coverage: float, loci: int = 6) -> Study:
    model = make_model(CASES[name], LEARNED, {"mendelian": MENDELIAN})
    meth, total, effects = draw(CASES[name], model, loci, coverage, seed=5)
    return Study(CASES[name], model, meth, total, effects, evaluate(model, meth, total))


# --- the oracle ------------------------------------------------------------------------------------------------------


class Draws(NamedTuple):
    effect: Array  # [L, draws, C]
    weight: Array  # [L, draws], normalized


def sample_posterior(study: Study, per_node: int = 800, seed: int = 3) -> Draws:
    """Effects of the posterior of everything, by draws around each node of a quadrature over the variance parameters.

    The node is a part of what is drawn: nodes carry the prior's quadrature weights, and every component of the
    baseline's prior has draws of its own around the Gaussian that dense expectation propagation gives, a quarter
    wider in variance.
    """
    model, learned, random = study.model, study.model.learned, np.random.default_rng(seed)
    field, loci = model.cohort.fields[0], len(study.meth)
    z, w = np.polynomial.hermite_e.hermegauss(7)
    prior = SHARES["logit_heritable_share"]
    variance = np.exp(2 * (learned.spread_location + learned.spread_scale * z))
    share = expit(prior.mean + prior.sd * z)
    log_weight, effects = [], []
    eps, delta = study.case.sheet.false_methylated, study.case.sheet.false_unmethylated
    counts = study.meth[:, None].astype(float), study.total[:, None].astype(float)
    for i, j, k in np.ndindex(7, 7, len(learned.baseline_weights)):
        parts = variance[i] * np.array([share[j], 1 - share[j]])
        variances = FieldVariances(np.tile(parts, (loci, 1)), np.zeros(loci))
        mean = np.array([learned.baseline_means[k], *0 * learned.effect_sds])
        sds = np.array([learned.baseline_sds[k], *learned.effect_sds])
        problem = build_field_problem(field, model.cohort, variances, mean, sds**2, study.meth, study.total)
        gaussian = ep(problem)
        root = np.linalg.cholesky(1.25 * gaussian.covariance)
        normal = random.normal(size=(loci, per_node, root.shape[1]))
        u = gaussian.mean[:, None] + normal @ np.swapaxes(root, 1, 2)
        log_proposal = -0.5 * (normal**2).sum(2) - np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1)[:, None]
        offset = u - problem.prior_mean[:, None]
        precision = np.linalg.inv(problem.prior_covariance)
        log_prior = -0.5 * np.einsum("lra,lab,lrb->lr", offset, precision, offset)
        log_prior += 0.5 * np.linalg.slogdet(precision)[1][:, None]
        log_likelihood = log_observation(*counts, eps, delta, u @ problem.loading.T).sum(2)
        of_node = np.log(w[i] * w[j] * learned.baseline_weights[k])
        log_weight.append(of_node + log_prior + log_likelihood - log_proposal)
        effects.append(u[:, :, 1 : 1 + len(learned.effect_sds)])
    log_all = np.concatenate(log_weight, axis=1)
    weight = np.exp(log_all - logsumexp(log_all, axis=1, keepdims=True))
    return Draws(np.concatenate(effects, axis=1), weight)


@cache
def sampled_study(name: str, coverage: float) -> tuple[Study, Draws]:
    study = make_study(name, coverage)
    return study, sample_posterior(study)


MEAN_TOLERANCE = 0.05  # posterior SDs
MASS_TOLERANCE = 0.02  # of the posterior below a reported quantile


def check_against(draws: Draws, found: HypothesisEvidence, scales: Array) -> None:
    """Means to MEAN_TOLERANCE and the mass below every quantile to MASS_TOLERANCE, at all loci; the draws' own errors
    are a fifth of that."""
    assert (1 / (draws.weight**2).sum(1)).min() > 4000
    first = len(PARAMETERS)
    for c, scale in enumerate(scales):
        effect = draws.effect[..., c] / scale
        mean = (draws.weight * effect).sum(1)
        sd = np.sqrt((draws.weight * (effect - mean[:, None]) ** 2).sum(1))
        np.testing.assert_array_less(np.abs(found.mean[:, first + c] - mean) / sd, MEAN_TOLERANCE)
        for quantile, level in (("q05", 0.05), ("q50", 0.5), ("q95", 0.95)):
            below = effect < getattr(found, quantile)[:, first + c, None]
            np.testing.assert_array_less(np.abs((draws.weight * below).sum(1) - level), MASS_TOLERANCE)


# Each cohort at one coverage; the other one, and the rest of them, in the slow tests.
USUAL = {("trio with errors", 4), ("three generations", 4), ("replicates with errors", 40)}


@pytest.mark.parametrize(
    ("name", "coverage"),
    [
        pytest.param(name, coverage, marks=() if (name, coverage) in USUAL else pytest.mark.slow)
        for name in CASES
        for coverage in (4, 40)
    ],
)
def test_effects_against_sampling_of_the_whole_posterior(name: str, coverage: float) -> None:
    study, draws = sampled_study(name, coverage)
    scales = np.array([covariate.scale for covariate in study.model.cohort.covariates])
    check_against(draws, study.found, scales)


# --- what the check above would have seen ----------------------------------------------------------------------------


def without_field(solve: Callable[..., Solution]) -> Callable[..., Solution]:
    """The effects as if the field were known: their covariance with it is dropped."""

    def solved(field: Any, points: Any, curvature: Any, target: Any) -> Solution:
        weighted = curvature[:, :, None] * points.design
        schur = torch.diag_embed(1.0 / points.prior_variance) + points.design.mT @ weighted
        return solve(field, points, curvature, target)._replace(schur=cholesky(schur))

    return solved


def without_mixture(reweight: Callable[..., Any]) -> Callable[..., Any]:
    """The covariates' effects left as they are under the merged prior of the baseline."""

    def reweighted(results: Any, *arguments: Any) -> Any:
        out, effects = reweight(results, *arguments), torch_nodes.effects_of(results)
        for part, old in zip(torch_nodes.effects_of(out)[:3], effects, strict=False):
            part[..., 1:] = old[..., 1:]
        return out

    return reweighted


def by_torch(model: EvidenceModel, index: int, *arguments: Any) -> Any:
    learned = model.learned
    prior = (learned.baseline_weights, learned.baseline_means, learned.baseline_sds, model.effect_sds[index])
    *given, method, _ = arguments  # the last is the design of single loci, of which there is none
    return evaluate_nodes_torch(model.arrays[index], *given, *prior, torch.device("cpu"), method=method)


@pytest.mark.parametrize(("name", "mutant"), [("solve_field", without_field), ("_reweight", without_mixture)])
def test_a_dropped_term_would_be_seen(name: str, mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The covariance of effects and field, or what the mixture of baselines does to the effects, left out in torch: the
    same comparison fails, and without the change it holds there too."""
    monkeypatch.setattr(outer_integral, "inner_integral", by_torch)
    study, draws = sampled_study("trio", 40)
    scales = np.array([covariate.scale for covariate in study.model.cohort.covariates])
    check_against(draws, evaluate(study.model, study.meth, study.total), scales)
    monkeypatch.setattr(torch_nodes, name, mutant(getattr(torch_nodes, name)))
    with pytest.raises(AssertionError):
        check_against(draws, evaluate(study.model, study.meth, study.total), scales)


# --- simulated effects -----------------------------------------------------------------------------------------------


def test_intervals_hold_simulated_effects_of_a_treatment() -> None:
    """The 5 to 95 % interval holds the truth at 90 % of 1,500 loci, within 2.5 %: a count outside has a probability of
    0.2 % by chance. Both tails by themselves, too; and the posterior means follow the effects that were drawn."""
    columns = {"treatment": tuple("ab" * 6)}
    pedigree = make_pedigree(*(row for n in range(4) for row in ((f"m{n}",), (f"f{n}",), (f"c{n}", f"m{n}", f"f{n}"))))
    case = Case(pedigree, make_sheet(pedigree.individuals, columns=columns), ("treatment",))
    model = make_model(case, LEARNED, {"mendelian": MENDELIAN})
    loci = 1500
    meth, total, effects = draw(case, model, loci, 12, seed=8)
    proposal = wide_proposal(model, loci)
    found = hypothesis_evidence(model, 0, proposal, meth, total, np.arange(loci), 128, 1)
    low, mean, high = (getattr(found, name)[:, len(PARAMETERS)] for name in ("q05", "mean", "q95"))
    truth = effects[:, 0]
    below, above = int((truth < low).sum()), int((truth > high).sum())
    assert binom.cdf(0.125 * loci, loci, 0.1) - binom.cdf(0.075 * loci, loci, 0.1) > 0.998
    assert 0.075 * loci < below + above < 0.125 * loci
    for tail in (below, above):
        assert 0.035 * loci < tail < 0.065 * loci
    assert np.corrcoef(mean, truth)[0, 1] > 0.6
    assert np.polyfit(mean, truth, 1)[0] == pytest.approx(1.0, abs=0.1)  # shrunken as the model says
    assert (high - low).mean() < 0.75 * 2 * 1.645, "intervals of the prior alone would hold the truth as often"


# --- units, names, absent covariates ---------------------------------------------------------------------------------


def test_units_of_a_number_do_not_matter() -> None:
    """Age in months in place of years: the same evidence, effects a twelfth; intercept and order of levels aside."""
    years = CASES["three generations"]
    months = tuple(str(12 * int(age)) for age in years.sheet.columns["age"])
    sheet = replace(years.sheet, columns={**years.sheet.columns, "age": months})
    models = [make_model(case, LEARNED, {"mendelian": MENDELIAN}) for case in (years, years._replace(sheet=sheet))]
    meth, total, _ = draw(years, models[0], 5, 20, seed=2)
    by_year, by_month = (evaluate(model, meth, total) for model in models)
    np.testing.assert_allclose(by_year.log_evidence, by_month.log_evidence, rtol=1e-10)
    age = len(PARAMETERS) + [covariate.column for covariate in models[0].cohort.covariates].index("age")
    for name in ("mean", "q05", "q50", "q95"):
        one, other = getattr(by_year, name), getattr(by_month, name)
        np.testing.assert_allclose(one[:, age], 12 * other[:, age], rtol=1e-8)
        np.testing.assert_allclose(np.delete(one, age, axis=1), np.delete(other, age, axis=1), rtol=1e-8, atol=1e-12)
    assert (np.abs(by_year.mean[:, age]) > 1e-4).all()


def test_an_effect_is_a_difference_of_logits() -> None:
    """Thousands of reads and a broad prior: the effect is the observed difference to the reference level, and for each
    year of age the observed slope."""
    pedigree = make_pedigree(*((f"i{n}",) for n in range(8)))
    columns = {"batch": tuple("xyzxyzxy"), "age": tuple("31527648")}
    case = Case(pedigree, make_sheet(pedigree.individuals, columns=columns), ("batch", "age"))
    learned = LEARNED._replace(effect_sds=np.full(3, 10.0), spread_location=-5.0, spread_scale=0.01)
    model = make_model(case, learned, {"reset": {}})
    level = {"x": 0.0, "y": 0.7, "z": -0.4}
    logits = np.array([level[b] + 0.1 * int(a) for b, a in zip(columns["batch"], columns["age"], strict=True)])
    total = np.full((1, 8), 60_000, dtype=np.uint16)
    meth = np.round(total * expit(logits - 0.5)).astype(np.uint16)
    narrow = OuterProposal(np.full((1, 1), -5.0), np.full((1, 1, 1), 0.01))
    found = hypothesis_evidence(model, 0, narrow, meth, total, np.arange(1), 64, 1)
    assert [covariate.name for covariate in model.cohort.covariates] == ["batch[y]", "batch[z]", "age"]
    np.testing.assert_allclose(found.mean[0, len(PARAMETERS) :], [0.7, -0.4, 0.1], atol=0.005)


def test_a_hypothesis_without_the_covariate_has_no_effect() -> None:
    """Covariates of single hypotheses: each reports its own, and 0 for those of the other."""
    columns = {"age": ("1", "2", "3", "5", "4", "9"), "batch": ("x", "y", "y", "x", "y", "x")}
    pedigree = make_pedigree(*((f"i{n}",) for n in range(6)))
    case = Case(pedigree, make_sheet(pedigree.individuals, columns=columns), ())
    model = make_model(case, LEARNED, {"first": {"covariates": ["age"]}, "second": {"covariates": ["batch"]}})
    random = np.random.default_rng(1)
    total = random.poisson(20, (4, 6)).astype(np.uint16)
    meth = random.binomial(total, 0.6).astype(np.uint16)
    wide = OuterProposal(np.full((4, 1), -0.2), np.full((4, 1, 1), 0.2))
    for index, absent in ((0, 1), (1, 0)):
        found = hypothesis_evidence(model, index, wide, meth, total, np.arange(4), 64, 1)
        for name in ("mean", "q05", "q50", "q95"):
            effect = getattr(found, name)[:, len(PARAMETERS) :]
            assert (effect[:, absent] == 0).all()
            assert (effect[:, 1 - absent] != 0).all()


def test_levels_that_sql_cannot_tell_apart() -> None:
    pedigree = make_pedigree(*((f"i{n}",) for n in range(4)))
    sheet = make_sheet(pedigree.individuals, columns={"diet": ("A", "low fat", "Low fat", "A")})
    with pytest.raises(UserError) as caught:
        build_cohort(sheet, pedigree, ("diet",), parse_hypotheses({"reset": {}}))
    assert str(caught.value) == (
        "samples.tsv: the covariates 'diet[Low fat]' and 'diet[low fat]' give the columns of their effects one name, "
        "'effect_diet_low fat': expected columns and levels that differ in more than case"
    )
