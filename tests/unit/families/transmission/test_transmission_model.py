"""The Pyro model's log density, conditioned on every site, against dense NumPy and SciPy."""

from __future__ import annotations

from typing import NamedTuple

import mpmath
import numpy as np
import pyro
import pytest
import torch
from inference_cases import make_pedigree, make_sheet
from scipy import stats
from scipy.special import expit, softmax
from transmission_cases import (
    CASES,
    COVARIATES,
    DECLARED,
    DOUBLE,
    HYPOTHESES,
    Array,
    Case,
    Latents,
    TransmissionProblem,
    components_of,
    dense_prior,
    draw_counts,
    full_problem,
    log_joint,
    log_likelihood,
    make_batch,
    make_hyper,
    make_problem,
    owner_of_sample,
)

from epivi.families.transmission.density import (
    Batch,
    Hyperparameters,
    LearnedPriors,
    TransmissionModel,
    transmission,
    variance_components,
)
from epivi.families.transmission.hypotheses import parse_hypotheses
from epivi.families.transmission.likelihood import MethylationCounts, read_slope
from epivi.field.torch.prior import prior_factor

LOCI = 4


class Conditioned(NamedTuple):
    """Values of every latent at LOCI loci, and what Pyro calls them."""

    latents: list[Latents]
    sites: dict[str, torch.Tensor]


def condition(problem: TransmissionProblem, index: int, seed: int) -> Conditioned:
    """Random values, b drawn from nothing like its prior."""
    random = np.random.default_rng(seed)
    hypothesis, field = HYPOTHESES[index], problem.family.fields[index]
    individuals = len(problem.cohort.individuals)
    latents = [
        Latents(
            random.normal(0, 2),
            random.normal(size=len(field.design_column)),
            {name: random.normal(-0.2, 0.8) for name in hypothesis.parameters},
            random.normal(0, 1.2, individuals),
        )
        for _ in range(LOCI)
    ]
    sites = {"baseline": torch.tensor([x.baseline for x in latents], dtype=DOUBLE)}
    if len(field.design_column):
        sites["effects"] = torch.as_tensor(np.array([x.effects for x in latents]))
    for name in hypothesis.parameters:
        sites[name] = torch.tensor([x.parameters[name] for x in latents], dtype=DOUBLE)
    flat = torch.zeros(LOCI, individuals, dtype=DOUBLE)
    owner = owner_of_sample(problem.case)
    for row, x in enumerate(latents):
        flat[row, field.latent_of_sample] = torch.as_tensor(x.b[owner])
    offset = 0
    for k, group in enumerate(field.groups):
        blocks, n = group.blocks, group.size
        sites[f"field_{k}"] = flat[:, offset : offset + blocks * n].reshape(LOCI, blocks, n)
        offset += blocks * n
    assert offset == individuals
    return Conditioned(latents, sites)


def trace_of(
    family: TransmissionModel, hyper: Hyperparameters, index: int, batch: Batch, sites: dict[str, torch.Tensor]
) -> pyro.poutine.Trace:
    model = pyro.poutine.condition(transmission, data=sites)
    trace = pyro.poutine.trace(model).get_trace(family, hyper, index, batch)
    trace.compute_log_prob()
    return trace


def per_locus(trace: pyro.poutine.Trace) -> Array:
    """Sum over the sites of what Pyro holds before the plate's scaling, [L]."""
    terms = [site["unscaled_log_prob"] for name, site in trace.nodes.items() if is_stochastic(name, site)]
    assert {tuple(term.shape) for term in terms} == {(LOCI,)}
    return torch.stack(terms).sum(0).detach().numpy()


def is_stochastic(name: str, site: dict) -> bool:
    return site["type"] == "sample" and name != "loci"


@pytest.mark.parametrize("name", list(DECLARED))
@pytest.mark.parametrize("mode", list(CASES))
def test_log_density_is_that_of_the_dense_model(mode: str, name: str) -> None:
    problem, index = full_problem(mode), list(DECLARED).index(name)
    hyper = make_hyper(len(problem.cohort.covariates), len(HYPOTHESES))
    samples = len(problem.cohort.samples)
    meth, total = draw_counts(LOCI, samples, seed=index)
    assert (total == 0).any()
    meth[0], total[0] = 0, 0
    given = condition(problem, index, seed=100 + index)
    trace = trace_of(problem.family, hyper, index, make_batch(meth, total, n_loci=1000), given.sites)
    expected = [
        log_joint(problem.case, HYPOTHESES[index], hyper, COVARIATES, latents, meth[row], total[row])
        for row, latents in enumerate(given.latents)
    ]
    np.testing.assert_allclose(per_locus(trace), expected, rtol=1e-9)
    assert trace.log_prob_sum().item() == pytest.approx(1000 / LOCI * sum(expected), rel=1e-9)
    assert {key for key, site in trace.nodes.items() if is_stochastic(key, site)} == {*given.sites, "meth"}


def test_density_of_the_counts_alone_is_that_of_the_read_errors() -> None:
    """Missing samples add nothing; conversion errors shift the probabilities of the rest."""
    problem, index = full_problem("mixed"), list(DECLARED).index("own_covariate")
    hyper = make_hyper(len(problem.cohort.covariates), len(HYPOTHESES))
    meth, total = draw_counts(LOCI, len(problem.cohort.samples), seed=3)
    given = condition(problem, index, seed=4)
    trace = trace_of(problem.family, hyper, index, make_batch(meth, total), given.sites)
    design = problem.cohort.fields[index].design
    for row, latents in enumerate(given.latents):
        logit = design @ [latents.baseline, *latents.effects] + latents.b[owner_of_sample(problem.case)]
        expected = log_likelihood(problem.case, meth[row], total[row], logit)
        covered = total[row] > 0
        same = log_likelihood(_subset(problem.case, covered), meth[row][covered], total[row][covered], logit[covered])
        assert expected == pytest.approx(same, rel=1e-12)
        assert trace.nodes["meth"]["unscaled_log_prob"][row].item() == pytest.approx(expected, rel=1e-10)


def _subset(case: Case, keep: Array) -> Case:
    errors = (case.sheet.false_methylated[keep], case.sheet.false_unmethylated[keep])
    names = tuple(name for name, kept in zip(case.sheet.individuals, keep, strict=True) if kept)
    return Case(case.pedigree, make_sheet(names, false_methylated=errors[0], false_unmethylated=errors[1]))


@pytest.mark.parametrize("mode", list(CASES))
def test_single_precision_is_close(mode: str) -> None:
    double, single = full_problem(mode), make_problem(CASES[mode], dtype=torch.float32)
    hyper = make_hyper(len(double.cohort.covariates), len(HYPOTHESES))
    meth, total = draw_counts(LOCI, len(double.cohort.samples), seed=5)
    for index in range(len(HYPOTHESES)):
        given = condition(double, index, seed=index)
        exact = per_locus(trace_of(double.family, hyper, index, make_batch(meth, total), given.sites))
        rounded = {name: value.float() for name, value in given.sites.items()}
        batch = make_batch(meth, total, dtype=torch.float32)
        close = per_locus(trace_of(single.family, make_single(hyper), index, batch, rounded))
        np.testing.assert_allclose(close, exact, rtol=1e-3)


def make_single(hyper: Hyperparameters) -> Hyperparameters:
    single = Hyperparameters(len(hyper.baseline_means), len(hyper.effect_log_sds), len(hyper.hypothesis_logits))
    single.load_state_dict(hyper.state_dict())
    return single


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clones_that_share_everything_can_still_be_factored(dtype: torch.dtype) -> None:
    """All of the variance heritable and nothing lost: the covariance is singular but for the nugget."""
    pedigree = make_pedigree(("a",), ("b", "a", None, "clonal", 1), ("c", "b", None, "clonal", 2))
    hypotheses = parse_hypotheses({"h": {"heritable_share": 1, "maternal": 1, "paternal": 1}})
    problem = make_problem(Case(pedigree, make_sheet(("a", "b", "c"))), hypotheses, (), dtype=dtype)
    parts = variance_components(hypotheses[0], {"log_spread": torch.tensor([-2.0, 0.0, 3.0], dtype=dtype)})
    factor = prior_factor(problem.family.fields[0].groups[0], parts)
    product = (factor @ factor.mT)[:, 0] / parts.variances[:, 0, None, None]
    assert torch.isfinite(factor).all()
    torch.testing.assert_close(product, torch.ones(3, 3, 3, dtype=dtype), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", list(DECLARED))
def test_factors_multiply_to_the_prior_of_each_block(name: str) -> None:
    problem, index = full_problem("mixed"), list(DECLARED).index(name)
    hypothesis, field = HYPOTHESES[index], problem.family.fields[index]
    random = np.random.default_rng(index)
    values = {parameter: random.normal(size=LOCI) for parameter in hypothesis.parameters}
    parts = variance_components(hypothesis, {key: torch.as_tensor(value) for key, value in values.items()})
    individual_of_latent = np.empty(len(problem.cohort.individuals), dtype=int)
    individual_of_latent[field.latent_of_sample] = problem.cohort.individual_of_sample
    for row in range(LOCI):
        here = components_of(hypothesis, {key: float(value[row]) for key, value in values.items()})
        expected = dense_prior(problem.case, hypothesis, here)[np.ix_(individual_of_latent, individual_of_latent)]
        offset = 0
        for group in field.groups:
            for block in prior_factor(group, parts)[row].numpy():
                inside = slice(offset, offset + len(block))
                np.testing.assert_allclose(block @ block.T, expected[inside, inside], rtol=1e-8, atol=1e-9)
                expected[inside, inside] = 0
                offset += len(block)
        np.testing.assert_array_equal(expected, 0)


def test_prior_draws_have_the_prior_moments() -> None:
    """The model run forward: moments of b and of the counts at fixed parameters; |z| below 5, false alarm < 1e-4."""
    problem, index = full_problem("sexual"), list(DECLARED).index("epigenetic+household")
    hypothesis, field = HYPOTHESES[index], problem.family.fields[index]
    parameters = dict.fromkeys(hypothesis.parameters, 0.3)
    draws = 20_000
    sites = {name: torch.full((draws,), value, dtype=DOUBLE) for name, value in parameters.items()}
    sites["baseline"] = torch.zeros(draws, dtype=DOUBLE)
    sites["effects"] = torch.zeros(draws, len(field.design_column), dtype=DOUBLE)
    total = np.full((draws, len(problem.cohort.samples)), 30.0)
    hyper = make_hyper(len(problem.cohort.covariates), len(HYPOTHESES))
    pyro.set_rng_seed(1)
    model = pyro.poutine.condition(pyro.poutine.uncondition(transmission), data=sites)
    trace = pyro.poutine.trace(model).get_trace(problem.family, hyper, index, make_batch(total * 0, total))
    b = torch.cat([trace.nodes[f"field_{k}"]["value"].flatten(1) for k in range(len(field.groups))], 1)
    b = b[:, field.latent_of_sample].numpy()
    owner = owner_of_sample(problem.case)
    expected = dense_prior(problem.case, hypothesis, components_of(hypothesis, parameters))[np.ix_(owner, owner)]
    error = np.sqrt((np.outer(expected.diagonal(), expected.diagonal()) + expected**2) / draws)
    assert np.abs((b.T @ b / draws - expected) / error).max() < 5
    assert np.abs(expected / error).max() > 50, "draws too few to show a missing component"
    meth = trace.nodes["meth"]["value"].numpy()
    eps, delta = problem.case.sheet.false_methylated, problem.case.sheet.false_unmethylated
    p = eps + (1 - eps - delta) * expit(b)
    z = (meth - total * p).sum(0) / np.sqrt((total * p * (1 - p)).sum(0))
    assert np.abs(z).max() < 5


def test_hyperparameters_survive_the_way_to_arrays_and_back() -> None:
    hyper = make_hyper(5, 4)
    learned = LearnedPriors.of(hyper)
    np.testing.assert_allclose(learned.baseline_weights, softmax(hyper.baseline_logits.detach().numpy()))
    np.testing.assert_allclose(learned.baseline_sds, np.exp(hyper.baseline_log_sds.detach().numpy()))
    np.testing.assert_allclose(learned.effect_sds, np.exp(hyper.effect_log_sds.detach().numpy()))
    np.testing.assert_allclose(learned.hypothesis_weights, softmax(hyper.hypothesis_logits.detach().numpy()))
    assert learned.spread_scale == pytest.approx(np.exp(hyper.spread_log_scale.item()))
    again = Hyperparameters.restored(learned)
    for before, after in zip(learned, LearnedPriors.of(again), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-12)
    value = torch.linspace(-5, 5, 11, dtype=DOUBLE)
    torch.testing.assert_close(again.baseline().log_prob(value), hyper.baseline().log_prob(value))


# --- the counts -------------------------------------------------------------------------------------------------------

ERRORS = [(0.0, 0.0), (0.01, 0.0), (0.0, 0.02), (0.013, 0.04)]
LOGITS = (-12.0, -3.0, -0.4, 0.0, 1.0, 5.0, 20.0)


def counts_of(logit: torch.Tensor, total: torch.Tensor, eps: float, delta: float) -> MethylationCounts:
    errors = (logit.new_tensor(eps), logit.new_tensor(delta))
    coefficient = torch.lgamma(total + 1)
    return MethylationCounts(total, logit, *errors, coefficient)


@pytest.mark.parametrize(("eps", "delta"), ERRORS)
def test_log_prob_is_the_binomial(eps: float, delta: float) -> None:
    n, m = (x.ravel() for x in np.meshgrid([0, 1, 7, 150], np.arange(151)))
    n, m = n[m <= n], m[m <= n]
    for y in LOGITS:
        p = eps + (1 - eps - delta) * expit(y)
        batch = make_batch(m[None].astype(float), n[None].astype(float))
        errors = (torch.tensor(eps, dtype=DOUBLE), torch.tensor(delta, dtype=DOUBLE))
        counts = MethylationCounts(
            batch.total, torch.full_like(batch.total, y), *errors, log_binomial=batch.log_binomial
        )
        expected = stats.binom.logpmf(m, n, p)
        np.testing.assert_allclose(counts.log_prob(batch.meth)[0].numpy(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("eps", "delta"), ERRORS)
def test_density_and_gradient_are_finite_at_extreme_logits(eps: float, delta: float, dtype: torch.dtype) -> None:
    for y in (-1e4, -800.0, -95.0, 95.0, 800.0, 1e4):
        for m, n in ((0.0, 0.0), (0.0, 9.0), (9.0, 9.0), (4.0, 9.0)):
            logit = torch.tensor(y, dtype=dtype, requires_grad=True)
            counts = counts_of(logit, torch.tensor(n, dtype=dtype), eps, delta)
            value = counts.log_prob(torch.tensor(m, dtype=dtype)) - counts.log_binomial
            (slope,) = torch.autograd.grad(value, logit)
            gain = 1 - mpmath.mpf(eps) - mpmath.mpf(delta)
            p, q = eps + gain / (1 + mpmath.exp(-y)), delta + gain / (1 + mpmath.exp(y))
            density = gain / (1 + mpmath.exp(-y)) / (1 + mpmath.exp(y))
            expected = m * mpmath.log(p) + (n - m) * mpmath.log(q)
            assert value.item() == pytest.approx(float(expected), rel=1e-5, abs=1e-5)
            assert slope.item() == pytest.approx(float(density * (m / p - (n - m) / q)), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("eps", "delta"), ERRORS)
def test_slope_is_the_derivative_of_the_log_density(eps: float, delta: float, dtype: torch.dtype) -> None:
    m = torch.tensor([0.0, 9.0, 4.0, 0.0, 60_000.0], dtype=dtype)
    n = torch.tensor([9.0, 9.0, 9.0, 0.0, 65_535.0], dtype=dtype)
    for y in (-1e4, -800.0, -95.0, -30.0, *LOGITS, 95.0, 800.0, 1e4):
        logit = torch.full_like(n, y).requires_grad_()
        (expected,) = torch.autograd.grad(counts_of(logit, n, eps, delta).log_prob(m).sum(), logit)
        slope = read_slope(m, n, logit.detach(), logit.new_tensor(eps), logit.new_tensor(delta))
        torch.testing.assert_close(slope, expected, rtol=1e-4 if dtype is torch.float32 else 1e-11, atol=1e-4)


def test_samples_have_the_binomial_moments() -> None:
    """|z| below 5 for twelve statistics: false alarm below 1e-5."""
    torch.manual_seed(2)
    logit = torch.tensor([-2.0, 0.0, 3.0], dtype=DOUBLE)
    total = torch.tensor([40.0, 0.0, 25.0], dtype=DOUBLE)
    counts = counts_of(logit, total, 0.05, 0.1)
    draws = counts.sample((40_000,)).numpy()
    assert draws.shape == (40_000, 3)
    p = 0.05 + 0.85 * expit(logit.numpy())
    variance = total.numpy() * p * (1 - p)
    assert (draws[:, 1] == 0).all()
    for column in (0, 2):
        centred = draws[:, column] - total.numpy()[column] * p[column]
        assert abs(centred.mean()) < 5 * np.sqrt(variance[column] / len(draws))
        spread = centred**2
        assert abs(spread.mean() - variance[column]) < 5 * spread.std() / np.sqrt(len(draws))


def test_counts_expand_over_loci() -> None:
    counts = counts_of(torch.zeros(3, dtype=DOUBLE), torch.full((3,), 5.0, dtype=DOUBLE), 0.0, 0.0).expand((7, 3))
    assert counts.batch_shape == (7, 3)
    assert counts.log_prob(torch.ones(7, 3, dtype=DOUBLE)).shape == (7, 3)
