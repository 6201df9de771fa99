"""The guides against brute-force optima in plain NumPy, and the encoder's symmetries."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyro
import pytest
import torch
from inference_cases import make_pedigree, make_sheet
from scipy import stats
from scipy.optimize import minimize
from scipy.special import expit
from torch.distributions import MultivariateNormal, kl_divergence
from transmission_cases import (
    CASES,
    CPU,
    DECLARED,
    DEFAULT_HYPOTHESES,
    DOUBLE,
    HYPOTHESES,
    PEDIGREES,
    Array,
    Case,
    Components,
    TransmissionProblem,
    components_of,
    dense_prior,
    draw_counts,
    full_problem,
    make_batch,
    make_hyper,
    make_problem,
    owner_of_sample,
)

from epivi.families.transmission import guide as structured
from epivi.families.transmission.density import Batch, variance_components
from epivi.families.transmission.encoder import Encoder, SummaryStatistics
from epivi.families.transmission.guide import (
    GUIDES,
    GroupPosterior,
    Sites,
    factorized_variance,
    field_posterior,
    fit_sites,
    marginal_variance,
    meanfield_guide,
    structured_guide,
)
from epivi.families.transmission.hypotheses import Hypothesis, parse_hypotheses
from epivi.families.transmission.likelihood import log_read_probabilities
from epivi.field.layout import field_covariance
from epivi.field.torch.prior import Theta, prior_factor
from epivi.fit.bound import locus_elbos
from epivi.fit.gaussian import GaussianTheta

EPIGENETIC = parse_hypotheses({"h": {"heritable_share": "free", "maternal": "tau", "paternal": "tau"}})
TRIO = make_pedigree(("m",), ("f",), ("c", "m", "f"))
SHARES = {"logit_heritable_share": 0.8, "logit_transmissibility": 1.0}


class Gaussian(NamedTuple):
    """A Gaussian over b, individuals in the order of their first sample."""

    mean: Array  # [N]
    covariance: Array  # [N, N]


def trio(error: float = 0.0) -> TransmissionProblem:
    """Mother, father and child, the child in two replicates."""
    errors = np.full(4, error)
    sheet = make_sheet(("m", "f", "c", "c"), false_methylated=errors, false_unmethylated=errors)
    return make_problem(Case(TRIO, sheet), EPIGENETIC, ())


def parts_of(hypothesis: Hypothesis, parameters: dict[str, float]) -> Theta:
    return variance_components(hypothesis, {k: torch.full((1,), v, dtype=DOUBLE) for k, v in parameters.items()})


def gaussian_of(problem: TransmissionProblem, index: int, posterior: list[GroupPosterior], row: int) -> Gaussian:
    """Assemble the blocks of one locus."""
    size = len(problem.cohort.individuals)
    individual = np.empty(size, dtype=int)
    individual[problem.family.fields[index].latent_of_sample] = problem.cohort.individual_of_sample
    out = Gaussian(np.zeros(size), np.zeros((size, size)))
    offset = 0
    for group in posterior:
        n = group.mean.shape[-1]
        for mean, covariance in zip(group.mean[row], group.covariance[row], strict=True):
            here = individual[offset : offset + n]
            out.mean[here] = mean.numpy()
            out.covariance[np.ix_(here, here)] = covariance.numpy()
            offset += n
    return out


def bound_over_b(case: Case, prior: Array, fixed: float, meth: Array, total: Array, q: Gaussian) -> float:
    """E_q[log p(counts | b)] - KL(q || prior) without binomial coefficients, the expectation by quadrature."""
    node, weight = np.polynomial.hermite_e.hermegauss(40)
    owner = owner_of_sample(case)
    logit = fixed + q.mean[owner] + np.sqrt(q.covariance.diagonal()[owner]) * node[:, None]
    eps, delta = case.sheet.false_methylated, case.sheet.false_unmethylated
    gain = 1 - eps - delta
    with np.errstate(divide="ignore", invalid="ignore"):
        yes, no = np.log(eps + gain * expit(logit)), np.log(delta + gain * expit(-logit))
        likelihood = meth * yes + (total - meth) * no
    precision = np.linalg.inv(prior)
    divergence = 0.5 * (
        np.trace(precision @ q.covariance)
        + q.mean @ precision @ q.mean
        - len(q.mean)
        + np.linalg.slogdet(prior)[1]
        - np.linalg.slogdet(q.covariance)[1]
    )
    return float((weight / weight.sum() @ likelihood).sum() - divergence)


def best_gaussian(case: Case, prior: Array, fixed: float, meth: Array, total: Array) -> Gaussian:
    """The optimum of `bound_over_b` over all means and covariances, by brute force from the prior."""
    n = len(prior)
    lower, diagonal = np.tril_indices(n), np.diag_indices(n)

    def unpack(values: Array) -> Gaussian:
        factor = np.zeros((n, n))
        factor[lower] = values[n:]
        factor[diagonal] = np.exp(factor[diagonal])
        return Gaussian(values[:n], factor @ factor.T)

    start = np.linalg.cholesky(prior) * 0.5
    start[diagonal] = np.log(start[diagonal])
    result = minimize(
        lambda values: -bound_over_b(case, prior, fixed, meth, total, unpack(values)),
        np.concatenate([np.zeros(n), start[lower]]),
        method="BFGS",
        options={"gtol": 1e-6},
    )
    return unpack(result.x)


class Fitted(NamedTuple):
    """The guide's q(b | theta) at one locus and the brute-force optimum, with their bounds."""

    q: Gaussian
    best: Gaussian
    gap: float


def fit_and_optimum(problem: TransmissionProblem, log_spread: float, reads: int, seed: int) -> Fitted:
    """One locus drawn from the model."""
    hypothesis = EPIGENETIC[0]
    parameters = {"log_spread": log_spread, **SHARES}
    prior = dense_prior(problem.case, hypothesis, components_of(hypothesis, parameters))
    random = np.random.default_rng([seed, reads])
    owner = owner_of_sample(problem.case)
    logit = 0.7 + random.multivariate_normal(np.zeros(len(prior)), prior)[owner]
    eps, delta = problem.case.sheet.false_methylated, problem.case.sheet.false_unmethylated
    total = random.poisson(reads, len(owner)).astype(float)
    total[1] *= seed > 0
    meth = random.binomial(total.astype(int), eps + (1 - eps - delta) * expit(logit)).astype(float)
    q = site_posterior(problem, parameters, 0.7, make_batch(meth[None], total[None]))
    best = best_gaussian(problem.case, prior, 0.7, meth, total)
    bounds = [bound_over_b(problem.case, prior, 0.7, meth, total, x) for x in (best, q)]
    return Fitted(q, best, bounds[0] - bounds[1])


def site_posterior(
    problem: TransmissionProblem, parameters: dict[str, float], baseline: float, batch: Batch
) -> Gaussian:
    field = problem.family.fields[0]
    parts = parts_of(EPIGENETIC[0], parameters)
    factors = [prior_factor(group, parts) for group in field.groups]
    beta = [torch.full((1,), baseline, dtype=DOUBLE)]
    sites = fit_sites(problem.family, field, beta, factors, batch)
    return gaussian_of(problem, 0, field_posterior(field, beta, factors, sites), 0)


# --- q(b | theta) -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(DECLARED))
@pytest.mark.parametrize("mode", list(CASES))
def test_field_posterior_is_the_dense_gaussian_conditional(mode: str, name: str) -> None:
    """(K^-1 + J' Lambda J)^-1 and its mean, with replicates, covariates, and missing samples (precision 0)."""
    problem, index = full_problem(mode), list(DECLARED).index(name)
    hypothesis, field = HYPOTHESES[index], problem.family.fields[index]
    random = np.random.default_rng(index)
    parameters = {parameter: random.normal(0, 0.7) for parameter in hypothesis.parameters}
    samples = len(problem.cohort.samples)
    precision = random.gamma(2.0, 1.0, samples) * (random.random(samples) < 0.7)
    shift = precision * random.normal(size=samples)
    coefficients = random.normal(size=1 + len(field.design_column))
    beta = [torch.as_tensor(coefficients[:1]), torch.as_tensor(coefficients[None, 1:])]
    factors = [prior_factor(group, parts_of(hypothesis, parameters)) for group in field.groups]
    sites = Sites(torch.as_tensor(precision[None]), torch.as_tensor(shift[None]))
    q = gaussian_of(problem, index, field_posterior(field, beta, factors, sites), 0)

    prior = dense_prior(problem.case, hypothesis, components_of(hypothesis, parameters))
    owner = np.eye(len(prior))[owner_of_sample(problem.case)]
    covariance = np.linalg.inv(np.linalg.inv(prior) + owner.T @ np.diag(precision) @ owner)
    fixed = problem.cohort.fields[index].design @ coefficients
    np.testing.assert_allclose(q.covariance, covariance, rtol=0, atol=1e-8)
    np.testing.assert_allclose(q.mean, covariance @ owner.T @ (shift - precision * fixed), rtol=0, atol=1e-7)


@pytest.mark.parametrize("reads", [3, 20, 200])
@pytest.mark.parametrize("log_spread", [-1.0, 0.0])
def test_three_iterations_reach_the_optimum_of_the_bound(log_spread: float, reads: int) -> None:
    """At spreads of up to one logit, without read errors."""
    for seed in range(2):
        fitted = fit_and_optimum(trio(), log_spread, reads, seed)
        assert -1e-7 < fitted.gap < 1e-4
        np.testing.assert_allclose(fitted.q.mean, fitted.best.mean, rtol=0, atol=0.02)
        np.testing.assert_allclose(fitted.q.covariance, fitted.best.covariance, rtol=0, atol=0.01)


def test_one_iteration_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structured, "SITE_ITERATIONS", 1)
    assert max(fit_and_optimum(trio(), 0.0, 20, seed).gap for seed in range(3)) > 1e-3


def test_wide_spreads_and_read_errors_leave_a_stated_gap() -> None:
    """Spread 2 logits: 0.02 nats; read errors of 2 %: 0.01 nats."""
    for seed in range(3):
        assert -1e-7 < fit_and_optimum(trio(), 0.7, 20, seed).gap < 0.02
        assert -1e-7 < fit_and_optimum(trio(error=0.02), 0.0, 20, seed).gap < 0.01


def test_further_iterations_converge_to_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structured, "SITE_ITERATIONS", 25)
    monkeypatch.setattr(structured, "QUADRATURE_NODES", 40)
    for seed in range(3):
        fitted = fit_and_optimum(trio(), 0.0, 20, seed)
        assert abs(fitted.gap) < 1e-8
        np.testing.assert_allclose(fitted.q.mean, fitted.best.mean, rtol=0, atol=1e-4)
        np.testing.assert_allclose(fitted.q.covariance, fitted.best.covariance, rtol=0, atol=1e-4)


def torch_bound(problem: TransmissionProblem, theta: torch.Tensor, batch: Batch, sites: Sites | None) -> torch.Tensor:
    """The bound over b summed over loci, differentiable in theta = (baseline, parameters); sites refitted if None."""
    field = problem.family.fields[0]
    parameters = dict(zip(EPIGENETIC[0].parameters, theta[1:, None].expand(-1, len(batch.meth)), strict=True))
    beta = [theta[0].expand(len(batch.meth))]
    factors = [prior_factor(group, variance_components(EPIGENETIC[0], parameters)) for group in field.groups]
    if sites is None:
        with torch.no_grad():
            sites = fit_sites(problem.family, field, beta, factors, batch)
    posterior = field_posterior(field, beta, factors, sites)
    divergence = sum(
        kl_divergence(
            MultivariateNormal(group.mean, group.covariance),
            MultivariateNormal(torch.zeros_like(group.mean), scale_tril=factor),
        ).sum()
        for group, factor in zip(posterior, factors, strict=True)
    )
    mean, variance = (
        torch.cat([part.flatten(1) for part in parts], 1)[:, field.latent_of_sample]
        for parts in ([g.mean for g in posterior], [marginal_variance(g.covariance) for g in posterior])
    )
    node, weight = (torch.as_tensor(x) for x in np.polynomial.hermite_e.hermegauss(40))
    logit = theta[0] + mean + variance.sqrt() * node[:, None, None]
    yes, no = log_read_probabilities(logit, problem.family.false_methylated, problem.family.false_unmethylated)
    likelihood = torch.einsum("q,qbs->", weight / weight.sum(), batch.meth * yes + (batch.total - batch.meth) * no)
    return likelihood - divergence


@pytest.mark.parametrize(("iterations", "tolerance"), [(3, 0.02), (25, 1e-6)])
def test_gradient_with_fixed_sites_is_the_total_one(
    iterations: int, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The envelope theorem, which lets the sites be found without gradient; tolerance relative to the largest slope."""
    monkeypatch.setattr(structured, "SITE_ITERATIONS", iterations)
    monkeypatch.setattr(structured, "QUADRATURE_NODES", 40)
    problem = trio()
    meth, total = draw_counts(20, 4, seed=1)
    batch = make_batch(meth, total)
    theta = torch.tensor([0.3, -0.1, *SHARES.values()], dtype=DOUBLE, requires_grad=True)
    (partial,) = torch.autograd.grad(torch_bound(problem, theta, batch, None), theta)
    step = 1e-5
    total_slope = torch.stack(
        [
            (
                torch_bound(problem, theta.detach() + step * unit, batch, None)
                - torch_bound(problem, theta.detach() - step * unit, batch, None)
            )
            / (2 * step)
            for unit in torch.eye(len(theta), dtype=DOUBLE)
        ]
    )
    assert partial.abs().min() > 0.1
    torch.testing.assert_close(partial, total_slope, rtol=0, atol=tolerance * partial.abs().max().item())


# --- mean field -------------------------------------------------------------------------------------------------------


def test_factorized_variance_is_the_optimum_over_diagonal_gaussians() -> None:
    random = np.random.default_rng(1)
    root = random.normal(size=(4, 4))
    covariance = root @ root.T + 0.3 * np.eye(4)
    variance = factorized_variance(torch.as_tensor(covariance)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(
        marginal_variance(torch.as_tensor(covariance)[None, None])[0, 0].numpy(), covariance.diagonal()
    )

    def divergence(log_variance: Array) -> float:
        """KL of a diagonal Gaussian to the full one, without constants."""
        return 0.5 * float(np.linalg.inv(covariance).diagonal() @ np.exp(log_variance) - log_variance.sum())

    found = minimize(divergence, np.zeros(4), method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(variance, np.exp(found.x), rtol=1e-6)
    assert (variance < covariance.diagonal()).all()


def test_factorized_bound_is_below_the_structured_one_at_the_same_theta() -> None:
    problem, parameters = trio(), {"log_spread": 0.0, **SHARES}
    hypothesis, field = EPIGENETIC[0], problem.family.fields[0]
    prior = dense_prior(problem.case, hypothesis, components_of(hypothesis, parameters))
    meth, total = draw_counts(40, 4, seed=3)
    parts = Theta(*(value.expand(40, *value.shape[1:]) for value in parts_of(hypothesis, parameters)))
    factors = [prior_factor(group, parts) for group in field.groups]
    beta, batch = [torch.zeros(40, dtype=DOUBLE)], make_batch(meth, total)
    bounds = {}
    for variance_of in (marginal_variance, factorized_variance):
        posterior = field_posterior(
            field, beta, factors, fit_sites(problem.family, field, beta, factors, batch, variance_of)
        )
        if variance_of is factorized_variance:
            posterior = [
                GroupPosterior(group.mean, torch.diag_embed(factorized_variance(group.covariance)))
                for group in posterior
            ]
        bounds[variance_of] = [
            bound_over_b(problem.case, prior, 0.0, meth[row], total[row], gaussian_of(problem, 0, posterior, row))
            for row in range(40)
        ]
    loss = np.subtract(bounds[marginal_variance], bounds[factorized_variance])
    assert loss.min() > -1e-4
    assert loss.mean() > 0.005


def test_factorized_guide_costs_bound_at_the_same_theta() -> None:
    """Paired over loci and draws: the mean loss is above zero by more than 5 standard errors for every hypothesis."""
    hypotheses = parse_hypotheses({**DEFAULT_HYPOTHESES, "household": DECLARED["household"]})
    problem = make_problem(CASES["sexual"], hypotheses, ())
    hyper = make_hyper(0, len(hypotheses))
    meth, total = draw_counts(200, len(problem.cohort.samples), seed=4)
    batch = make_batch(meth, total)

    def fixed_theta(batch: Batch, _: object) -> tuple[GaussianTheta, ...]:
        pooled = torch.log((batch.meth.sum(1) + 0.5) / ((batch.total - batch.meth).sum(1) + 0.5))
        out = []
        for hypothesis in hypotheses:
            d = 1 + len(hypothesis.parameters)
            mean = torch.cat([pooled[:, None], pooled.new_zeros(len(pooled), d - 1)], 1)
            out.append(GaussianTheta(mean, torch.diag_embed(torch.full_like(mean, 0.3))))
        return tuple(out)

    mean = {}
    for name, guide in GUIDES.items():
        torch.manual_seed(5)
        draws = [locus_elbos(problem.family, hyper, guide, fixed_theta, batch) for _ in range(4)]  # type: ignore[arg-type]
        mean[name] = torch.stack(draws).mean(0).detach()
    loss = mean["structured"] - mean["meanfield"]
    z = loss.mean(1) / (loss.std(1) / np.sqrt(loss.shape[1]))
    assert z.min() > 5, z


def test_only_the_structured_guide_lets_b_know_theta() -> None:
    problem = full_problem("sexual")
    index = list(DECLARED).index("epigenetic")
    meth, total = draw_counts(5, len(problem.cohort.samples), seed=6)
    batch = make_batch(meth, total)
    d = 1 + len(problem.family.fields[index].design_column) + len(HYPOTHESES[index].parameters)
    theta = GaussianTheta(torch.zeros(5, d, dtype=DOUBLE), 0.3 * torch.eye(d, dtype=DOUBLE).expand(5, d, d))
    means = {}
    for guide in (structured_guide, meanfield_guide):
        traces = []
        for seed in (1, 2):
            pyro.set_rng_seed(seed)
            traces.append(pyro.poutine.trace(guide).get_trace(problem.family, index, theta, batch))
        assert (traces[0].nodes["log_spread"]["value"] != traces[1].nodes["log_spread"]["value"]).all()
        means[guide] = [trace.nodes["field_1"]["fn"].mean for trace in traces]
    assert (means[structured_guide][0] != means[structured_guide][1]).all()
    torch.testing.assert_close(*means[meanfield_guide], rtol=0, atol=0)


@pytest.mark.parametrize("name", list(DECLARED))
def test_log_density_of_the_structured_guide_is_a_product_of_gaussians(name: str) -> None:
    """q(theta) q(b | theta) of a draw by SciPy, with the sites of that draw."""
    problem, index = full_problem("mixed"), list(DECLARED).index(name)
    hypothesis, field = HYPOTHESES[index], problem.family.fields[index]
    meth, total = draw_counts(3, len(problem.cohort.samples), seed=7)
    batch = make_batch(meth, total)
    effects = 1 + len(field.design_column)
    d = effects + len(hypothesis.parameters)
    random = torch.Generator().manual_seed(8)
    root = torch.tril(0.2 * torch.randn(3, d, d, generator=random, dtype=DOUBLE), -1) + 0.5 * torch.eye(d, dtype=DOUBLE)
    theta = GaussianTheta(torch.randn(3, d, generator=random, dtype=DOUBLE), root)
    pyro.set_rng_seed(9)
    trace = pyro.poutine.trace(structured_guide).get_trace(problem.family, index, theta, batch)
    trace.compute_log_prob()
    drawn = trace.nodes["theta"]["value"]
    assert_handed_over(trace, drawn, effects, hypothesis)
    beta = [drawn[:, 0], drawn[:, 1:effects]]
    parameters = {key: drawn[:, effects + k] for k, key in enumerate(hypothesis.parameters)}
    factors = [prior_factor(group, variance_components(hypothesis, parameters)) for group in field.groups]
    posterior = field_posterior(field, beta, factors, fit_sites(problem.family, field, beta, factors, batch))
    total_log = log_density(trace)
    for row in range(3):
        q = gaussian_of(problem, index, posterior, row)
        expected = stats.multivariate_normal.logpdf(drawn[row], theta.mean[row], (root @ root.mT)[row])
        expected += stats.multivariate_normal.logpdf(b_of_individual(problem, index, trace, row), q.mean, q.covariance)
        assert total_log[row].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", list(DECLARED))
def test_log_density_of_the_meanfield_guide_is_a_product_of_marginals(name: str) -> None:
    """Sites at the mean of q(theta); the variances are the inverse diagonal of the precision of b."""
    problem, index = full_problem("mixed"), list(DECLARED).index(name)
    hypothesis, field = HYPOTHESES[index], problem.family.fields[index]
    meth, total = draw_counts(3, len(problem.cohort.samples), seed=7)
    batch = make_batch(meth, total)
    effects = 1 + len(field.design_column)
    d = effects + len(hypothesis.parameters)
    random = torch.Generator().manual_seed(8)
    root = torch.tril(0.2 * torch.randn(3, d, d, generator=random, dtype=DOUBLE), -1) + 0.5 * torch.eye(d, dtype=DOUBLE)
    theta = GaussianTheta(torch.randn(3, d, generator=random, dtype=DOUBLE), root)
    pyro.set_rng_seed(9)
    trace = pyro.poutine.trace(meanfield_guide).get_trace(problem.family, index, theta, batch)
    trace.compute_log_prob()
    drawn = trace.nodes["theta"]["value"]
    assert_handed_over(trace, drawn, effects, hypothesis)
    beta = [theta.mean[:, 0], theta.mean[:, 1:effects]]
    parameters = {key: theta.mean[:, effects + k] for k, key in enumerate(hypothesis.parameters)}
    factors = [prior_factor(group, variance_components(hypothesis, parameters)) for group in field.groups]
    sites = fit_sites(problem.family, field, beta, factors, batch, factorized_variance)
    posterior = field_posterior(field, beta, factors, sites)
    total_log = log_density(trace)
    for row in range(3):
        q = gaussian_of(problem, index, posterior, row)
        variance = 1 / np.linalg.inv(q.covariance).diagonal()
        expected = stats.norm.logpdf(drawn[row], theta.mean[row], 0.5).sum()
        expected += stats.norm.logpdf(b_of_individual(problem, index, trace, row), q.mean, np.sqrt(variance)).sum()
        assert total_log[row].item() == pytest.approx(expected, rel=1e-8)


def log_density(trace: pyro.poutine.Trace) -> torch.Tensor:
    return sum(
        site["unscaled_log_prob"] for key, site in trace.nodes.items() if site["type"] == "sample" and key != "loci"
    )


def b_of_individual(problem: TransmissionProblem, index: int, trace: pyro.poutine.Trace, row: int) -> Array:
    """The drawn b at one locus, individuals in the order of their first sample."""
    field = problem.family.fields[index]
    b = torch.cat([trace.nodes[f"field_{k}"]["value"].flatten(1) for k in range(len(field.groups))], 1)
    owner = owner_of_sample(problem.case).tolist()
    first = [owner.index(individual) for individual in range(len(problem.cohort.individuals))]
    return b[row, field.latent_of_sample].numpy()[first]


def assert_handed_over(trace: pyro.poutine.Trace, drawn: torch.Tensor, effects: int, hypothesis: Hypothesis) -> None:
    """Every coordinate of the drawn theta reaches the model's site of that name."""
    torch.testing.assert_close(trace.nodes["baseline"]["value"], drawn[:, 0])
    if effects > 1:
        torch.testing.assert_close(trace.nodes["effects"]["value"], drawn[:, 1:effects])
    for k, name in enumerate(hypothesis.parameters):
        torch.testing.assert_close(trace.nodes[name]["value"], drawn[:, effects + k])


# --- the encoder ------------------------------------------------------------------------------------------------------

QUARTET = (("m",), ("f",), ("c", "m", "f"), ("d", "m", "f"))


def families_of_four(n: int) -> Case:
    rows = [tuple(f"{k}{cell}" for cell in row) for k in range(n) for row in QUARTET]
    pedigree = make_pedigree(*rows)
    return Case(pedigree, make_sheet(pedigree.individuals))


def trained_encoder(problem: TransmissionProblem, batch: Batch, seed: int = 1) -> Encoder:
    """Standardized, with weights that make every output matter."""
    torch.manual_seed(seed)
    encoder = Encoder(problem.cohort, problem.family, 16).double()
    encoder.summary.standardize(batch)
    with torch.no_grad():
        for parameter in encoder.heads.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return encoder


def outputs(encoder: Encoder, batch: Batch) -> torch.Tensor:
    hyper = make_hyper(encoder.summary.covariates.shape[1], len(encoder.heads))
    return torch.cat([torch.cat([x.mean, x.scale_tril.flatten(1)], 1) for x in encoder(batch, hyper)], 1).detach()


def test_encoder_does_not_see_which_family_or_which_sib() -> None:
    problem = make_problem(families_of_four(3), parse_hypotheses(DEFAULT_HYPOTHESES), ())
    meth, total = draw_counts(50, 12, seed=1)
    encoder = trained_encoder(problem, make_batch(meth, total))
    plain = outputs(encoder, make_batch(meth, total))
    same = {
        "families": [8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7],
        "sibs": [0, 1, 3, 2, 4, 5, 7, 6, 8, 9, 10, 11],
    }
    for order in same.values():
        moved = outputs(encoder, make_batch(meth[:, order], total[:, order]))
        torch.testing.assert_close(moved, plain, rtol=1e-9, atol=1e-9)
    other = {"mother and child": [2, 1, 0, *range(3, 12)], "sibs of two families": [0, 1, 6, 3, 4, 5, 2, *range(7, 12)]}
    for order in other.values():
        moved = outputs(encoder, make_batch(meth[:, order], total[:, order]))
        assert ((moved - plain).abs().amax(1) > 1e-3).double().mean() > 0.8


def test_encoder_tells_mothers_from_fathers_where_a_hypothesis_does() -> None:
    meth, total = draw_counts(50, 12, seed=2)
    order = [1, 0, 2, 3, 5, 4, 6, 7, 9, 8, 10, 11]
    for declared, sees in ((("reset", "mendelian", "epigenetic"), False), (("reset", "maternal"), True)):
        hypotheses = parse_hypotheses({name: DEFAULT_HYPOTHESES[name] for name in declared})
        problem = make_problem(families_of_four(3), hypotheses, ())
        encoder = trained_encoder(problem, make_batch(meth, total))
        change = outputs(encoder, make_batch(meth[:, order], total[:, order])) - outputs(
            encoder, make_batch(meth, total)
        )
        assert (change.abs().max() > 1e-3) == sees


def test_replicates_count_as_one_individual() -> None:
    """Two replicates carry the features of their sum."""
    hypotheses = parse_hypotheses(DEFAULT_HYPOTHESES)
    merged = make_problem(Case(TRIO, make_sheet(("m", "f", "c"))), hypotheses, ())
    split = make_problem(Case(TRIO, make_sheet(("m", "f", "c", "c"))), hypotheses, ())
    meth, total = draw_counts(20, 4, seed=3)
    features = SummaryStatistics(split.cohort, hypotheses)(make_batch(meth, total)).features
    sums = (np.column_stack([x[:, :2], x[:, 2] + x[:, 3]]) for x in (meth, total))
    torch.testing.assert_close(features, SummaryStatistics(merged.cohort, hypotheses)(make_batch(*sums)).features)


EXTREMES = {
    "nothing": lambda total: (total * 0, total * 0),
    "never": lambda total: (total * 0, total),
    "always": lambda total: (total, total),
    "deepest": lambda total: (total * 0 + 32_000, total * 0 + 65_535),
    "one sample": lambda total: (total * [[1.0] + [0.0] * 11], total * [[1.0] + [0.0] * 11]),
    "one read": lambda total: (total * 0 + [[1.0] + [0.0] * 11], total * 0 + [[1.0] + [0.0] * 11]),
    "apart": lambda total: (65_535.0 * (np.arange(12) % 2) * np.ones_like(total), total * 0 + 65_535),
}


@pytest.mark.parametrize("guide", list(GUIDES))
@pytest.mark.parametrize("counts", list(EXTREMES))
def test_bound_and_gradients_are_finite_for_extreme_counts(counts: str, guide: str) -> None:
    """In single precision, as the fit runs."""
    hypotheses = parse_hypotheses(DEFAULT_HYPOTHESES)
    problem = make_problem(families_of_four(3), hypotheses, (), dtype=torch.float32)
    usual = make_batch(*draw_counts(50, 12, seed=4), dtype=torch.float32)
    torch.manual_seed(1)
    encoder = Encoder(problem.cohort, problem.family, 16).float()
    encoder.summary.standardize(usual)
    hyper = make_hyper(0, len(hypotheses)).float()
    batch = make_batch(*EXTREMES[counts](np.full((3, 12), 25.0)), dtype=torch.float32)
    for theta in encoder(batch, hyper):
        assert torch.isfinite(theta.mean).all()
        assert (torch.diagonal(theta.scale_tril, dim1=1, dim2=2) > 0).all()
    elbos = locus_elbos(problem.family, hyper, GUIDES[guide], encoder, batch)
    assert torch.isfinite(elbos).all()
    for gradient in torch.autograd.grad(elbos.sum(), [*encoder.parameters(), hyper.spread_location]):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("guide", list(GUIDES))
def test_every_parameter_of_the_encoder_gets_a_gradient(guide: str) -> None:
    problem = full_problem("sexual")
    batch = make_batch(*draw_counts(30, len(problem.cohort.samples), seed=5))
    encoder = trained_encoder(problem, batch)
    hyper = make_hyper(len(problem.cohort.covariates), len(HYPOTHESES))
    elbos = locus_elbos(problem.family, hyper, GUIDES[guide], encoder, batch)
    names, parameters = zip(*encoder.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(elbos.sum(), parameters), strict=True))
    for name, gradient in gradients.items():
        if guide == "structured" and name.endswith("bias"):
            assert (gradient != 0).all(), name
        assert (gradient != 0).any(), name


def test_predictions_start_at_moments_of_effects_and_priors_of_the_rest() -> None:
    """A fresh encoder predicts close to its starting point, at one prior SD."""
    problem = full_problem("sexual")
    batch = make_batch(*draw_counts(30, len(problem.cohort.samples), seed=6))
    torch.manual_seed(1)
    encoder = Encoder(problem.cohort, problem.family, 16).double()
    encoder.summary.standardize(batch)
    hyper = make_hyper(len(problem.cohort.covariates), len(HYPOTHESES))
    summary = encoder.summary(batch)
    for hypothesis, field, theta in zip(HYPOTHESES, problem.cohort.fields, encoder(batch, hyper), strict=True):
        effects = 1 + len(field.design_column)
        sd = torch.diagonal(theta.scale_tril, dim1=1, dim2=2)
        columns = torch.as_tensor(field.design_column.astype(int))
        starts = torch.cat([summary.pooled_logit[:, None], summary.effects[:, columns]], 1)
        assert ((theta.mean[:, :effects] - starts) / sd[:, :effects]).abs().max() < 1
        for k, name in enumerate(hypothesis.parameters):
            prior = (
                (hyper.spread_location.item(), hyper.spread_log_scale.exp().item())
                if name == "log_spread"
                else problem.family.priors[name]
            )
            assert ((theta.mean[:, effects + k] - prior[0]) / prior[1]).abs().max() < 1
            assert (sd[:, effects + k] / prior[1]).log().abs().max() < 1


def test_probes_are_the_distinct_covariances_between_individuals() -> None:
    hypotheses = parse_hypotheses(DEFAULT_HYPOTHESES | {"household": DECLARED["household"]})
    problem = make_problem(CASES["sexual"], hypotheses, ())
    probes = SummaryStatistics(problem.cohort, hypotheses).probes.numpy()
    ones = {"mendelian": [1.0], "epigenetic": [0.5], "maternal": [1.0, 0.5], "paternal": [1.0, 0.5], "household": [0]}
    expected = []
    for hypothesis in hypotheses:
        for tau in ones.get(hypothesis.name, []):
            parts = Components(np.array([1.0, 0.0]), tau)
            matrix = dense_prior(problem.case, hypothesis, parts)
            np.fill_diagonal(matrix, 0)
            expected.append(matrix)
    assert len(probes) == len(expected) == 7  # epigenetic at tau = 1 is mendelian
    for matrix in expected:
        assert min(np.abs(probes - matrix).max((1, 2))) < 1e-12
    assert PEDIGREES["sexual"] is problem.case.pedigree


def test_scores_are_derivatives_of_the_gaussian_density() -> None:
    """Of log N(r; 0, W^-1 + t spread P) at t = 0, over the root of its Fisher information."""
    problem = full_problem("sexual")
    summary = SummaryStatistics(problem.cohort, HYPOTHESES)
    random = torch.Generator().manual_seed(1)
    size = len(problem.cohort.individuals)
    residual = torch.randn(1, size, generator=random, dtype=DOUBLE)
    weight = torch.rand(1, size, generator=random, dtype=DOUBLE) + 0.2
    spread = torch.tensor([0.7], dtype=DOUBLE)
    score, information = summary._scores(residual * weight, weight, spread)
    noise = torch.diag(1 / weight[0])
    for k, probe in enumerate(summary.probes):

        def log_density(t: torch.Tensor, probe: torch.Tensor = probe) -> torch.Tensor:
            covariance = noise + t * spread * probe
            return -0.5 * (torch.logdet(covariance) + residual[0] @ torch.linalg.solve(covariance, residual[0]))

        zero = torch.zeros((), dtype=DOUBLE, requires_grad=True)
        (slope,) = torch.autograd.grad(log_density(zero), zero)
        fisher = 0.5 * torch.trace(torch.linalg.matrix_power(torch.diag(weight[0]) @ probe * spread, 2))
        assert information[0, k].item() == pytest.approx(fisher.item(), rel=1e-9)
        assert score[0, k].item() == pytest.approx((slope / fisher.sqrt()).item(), rel=1e-9)


def test_covariate_effects_are_found_by_regression() -> None:
    """Deep reads, logits linear in the covariates: the moment estimates come close; the features depend on them."""
    case = CASES["sexual"]
    problem = make_problem(case, parse_hypotheses({"reset": {}}), ("age",))
    design = problem.cohort.fields[0].design
    random = np.random.default_rng(2)
    slopes = random.normal(0, 0.8, 40)
    individual = problem.cohort.individual_of_sample
    logit = slopes[:, None] * design[:, 1] + 0.1 * random.normal(size=(40, len(case.sheet.samples)))
    total = np.full(logit.shape, 2000.0)
    meth = random.binomial(2000, expit(logit)).astype(float)
    summary = SummaryStatistics(problem.cohort, problem.family.hypotheses)(make_batch(meth, total))
    assert np.corrcoef(summary.effects[:, 0].numpy(), slopes)[0, 1] > 0.97
    assert len(set(individual)) < len(individual)


def test_encoder_state_restores_the_predictions() -> None:
    """The same cohort, built anew, with the saved weights and standardization."""
    problem = full_problem("clonal")
    batch = make_batch(*draw_counts(10, len(problem.cohort.samples), seed=8))
    encoder = trained_encoder(problem, batch)
    again = Encoder(problem.cohort, problem.family, 16).double()
    assert not torch.allclose(outputs(again, batch), outputs(encoder, batch))
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(outputs(again, batch), outputs(encoder, batch), rtol=0, atol=0)


def test_probe_matrices_follow_the_order_of_individuals_not_of_blocks() -> None:
    """Blocks reorder individuals; the probes must not."""
    problem = full_problem("sexual")
    index = list(DECLARED).index("mendelian")
    field = problem.cohort.fields[index]
    assert (field.individual != np.arange(len(field.individual))).any()
    by_block = field_covariance(field, np.array([[1.0, 0.0]]), np.ones(1))[0]
    matrix = np.empty_like(by_block)
    matrix[np.ix_(field.individual, field.individual)] = by_block
    np.fill_diagonal(matrix, 0)
    probes = SummaryStatistics(problem.cohort, HYPOTHESES).probes.numpy()
    assert min(np.abs(probes - matrix).max((1, 2))) < 1e-12
    assert torch.device("cpu") == CPU
