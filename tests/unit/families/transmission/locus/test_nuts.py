"""The sampler: its density against dense NumPy, its draws where the posterior is known, and the family's posterior
against nested quadrature.

Statistical tests fix their seeds. A z-score is an estimate's distance from the truth in its own Monte Carlo errors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from inference_cases import make_sheet
from numpy.typing import NDArray
from pyro.ops.integrator import potential_grad
from scipy.special import expit
from transmission_cases import (
    CASES,
    COVARIATES,
    CPU,
    DECLARED,
    DOUBLE,
    HYPOTHESES,
    Latents,
    TransmissionProblem,
    components_of,
    dense_prior,
    draw_counts,
    full_problem,
    log_joint,
    make_batch,
    make_hyper,
)

from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.density import (
    Batch,
    Hyperparameters,
    LearnedPriors,
    build_transmission,
    to_batch,
    transmission,
)
from epivi.families.transmission.encoder import Encoder
from epivi.families.transmission.hypotheses import parse_hypotheses, share_priors
from epivi.families.transmission.locus import nuts
from epivi.families.transmission.locus.nuts import (
    Chains,
    NonCentred,
    NutsSettings,
    draw_covariance,
    run_nuts,
    sampled_density,
    summarize_draws,
    transmission_nuts,
)
from epivi.families.transmission.outer_integral import OuterProposal, build_evidence_model, hypothesis_evidence
from epivi.families.transmission.simulate import BaselineComponent, SimulationSettings, simulate_cohort
from epivi.loci.source import CountsBatch
from epivi.simulate.positions import Contig
from epivi.simulate.templates import template_pedigree

torch.set_num_threads(1)

Array = NDArray[np.float64]
LOCI = 3


# --- the density -----------------------------------------------------------------------------------------------------


def random_point(density: nuts.Density, seed: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {name: 0.7 * torch.randn(shape, generator=random, dtype=DOUBLE) for name, shape in density.shapes.items()}


def arguments(problem: TransmissionProblem, index: int) -> tuple[Any, ...]:
    hyper = make_hyper(len(problem.cohort.covariates), len(HYPOTHESES))
    counts = draw_counts(LOCI, len(problem.cohort.samples), seed=index)
    return problem.family, hyper.requires_grad_(False), index, make_batch(*counts)


def density_gap(mode: str, name: str) -> float:
    """How far the sampled log density of all loci is from the dense model's at the point that the draw stands for.

    log p(z, theta) = log p(b, theta) + log|det L|, with b = L z and L L' the covariance of b.
    """
    problem, index = full_problem(mode), list(DECLARED).index(name)
    args = arguments(problem, index)
    density = sampled_density(transmission, args)
    point = random_point(density, seed=index)
    sites = {site: value[None] for site, value in nuts._model_sites(transmission, args, density, [point]).items()}
    field = problem.cohort.fields[index]
    parameters, latents = (array[0, 0] for array in nuts._arranged(problem.family, index, field, sites))
    effects = field.design.shape[1]
    expected = 0.0
    for locus in range(LOCI):
        b = np.empty(len(field.individual))
        b[field.individual] = latents[locus]
        theta = dict(zip(HYPOTHESES[index].parameters, parameters[locus, effects:], strict=True))
        given = Latents(parameters[locus, 0], parameters[locus, 1:effects], theta, b)
        meth, total = (counts[locus].numpy() for counts in (args[3].meth, args[3].total))
        expected += log_joint(problem.case, HYPOTHESES[index], args[1], COVARIATES, given, meth, total)
        prior = dense_prior(problem.case, HYPOTHESES[index], components_of(HYPOTHESES[index], theta))
        expected += 0.5 * np.linalg.slogdet(prior)[1]
    return abs(-density.potential(point).item() - expected) / abs(expected)


@pytest.mark.parametrize("name", ["reset", "own_covariate", "epigenetic+household"])
@pytest.mark.parametrize("mode", list(CASES))
def test_non_centred_density_is_that_of_the_dense_model(mode: str, name: str) -> None:
    """Also shows that latents come back in the order of the field: the dense model looks every individual up."""
    assert density_gap(mode, name) < 1e-8


class Transposed(NonCentred):
    """A wrong one: L' in place of L, whose determinant is right."""

    def apply(self, msg: Any) -> Any:
        normal, event_dim = self._unwrap(msg["fn"])
        wrong = dist.MultivariateNormal(normal.loc, scale_tril=normal.scale_tril)
        wrong.scale_tril = normal.scale_tril.transpose(-1, -2)
        return super().apply({**msg, "fn": self._wrap(wrong, event_dim)})


class Unscaled(NonCentred):
    """A wrong one: the standard normal keeps the weight of the centred site."""

    def apply(self, msg: Any) -> Any:
        out = super().apply(msg)
        return {**out, "fn": msg["fn"]}


@pytest.mark.parametrize("wrong", [Transposed, Unscaled])
def test_density_check_sees_a_wrong_factor(wrong: type[NonCentred], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nuts, "NonCentred", wrong)
    assert density_gap("sexual", "epigenetic+household") > 1e-4


@pytest.mark.parametrize("name", ["reset", "own_covariate", "epigenetic+household"])
def test_gradient_against_finite_differences(name: str) -> None:
    problem, index = full_problem("mixed"), list(DECLARED).index(name)
    density = sampled_density(transmission, arguments(problem, index))
    point = random_point(density, seed=5)
    gradients, _ = potential_grad(density.potential, point)
    for seed, site in enumerate(point):
        direction = torch.randn(point[site].shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
        step = 1e-5
        ahead, behind = (
            density.potential(point | {site: point[site] + sign * step * direction}).item() for sign in (1, -1)
        )
        slope = (gradients[site] * direction).sum().item()
        assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-6, abs=1e-6), site
        assert abs(slope) > 1e-3, site


def constrained_model(scale: torch.Tensor) -> None:
    with pyro.plate("rows", len(scale)):
        pyro.sample("rate", dist.Gamma(3.0 * scale, scale))
        pyro.sample("share", dist.Beta(2.0 * scale, 3.0 * scale))


def test_constrained_sites_carry_their_jacobian() -> None:
    """log rate and logit share, their densities by hand."""
    scale = torch.tensor([1.0, 2.5], dtype=DOUBLE)
    density = sampled_density(constrained_model, (scale,))
    point = {"rate": torch.tensor([0.3, -0.8], dtype=DOUBLE), "share": torch.tensor([0.4, 1.1], dtype=DOUBLE)}
    rate, share = point["rate"].exp(), torch.sigmoid(point["share"])
    a, b = 2 * scale, 3 * scale
    expected = (b * rate.log() - scale * rate + b * scale.log() - torch.lgamma(b)).sum()
    expected += (
        a * share.log() + b * (1 - share).log() + torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
    ).sum()
    assert density.potential(point).item() == pytest.approx(-expected.item(), rel=1e-6)


def test_single_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="double precision"):
        sampled_density(constrained_model, (torch.ones(2),))


def test_part_of_a_plate_is_refused() -> None:
    family, hyper, index, batch = arguments(full_problem("clonal"), 0)
    with pytest.raises(ValueError, match="whole plates"):
        sampled_density(transmission, (family, hyper, index, batch._replace(n_loci=100)))


# --- draws -----------------------------------------------------------------------------------------------------------

PRIOR_SD, NOISE_SD = 2.0, 0.7
FIELD = np.array([[1.0, 0.6, 0.2], [0.6, 1.5, -0.3], [0.2, -0.3, 0.8]])
READINGS = np.random.default_rng(1).normal(0, 2, (6, 3))


def gaussian_model(readings: torch.Tensor) -> None:
    """y = mu + b + noise at every locus, b a correlated field: the posterior is Gaussian."""
    factor = torch.linalg.cholesky(torch.as_tensor(FIELD))
    with pyro.plate("loci", len(readings)):
        mu = pyro.sample("mu", dist.Normal(readings.new_zeros(len(readings)), PRIOR_SD))
        b = pyro.sample("b", dist.MultivariateNormal(readings.new_zeros(3), scale_tril=factor))
        pyro.sample("y", dist.Normal(mu[:, None] + b, NOISE_SD).to_event(1), obs=readings)


def gaussian_chains(settings: NutsSettings, seed: int) -> Chains:
    return run_nuts(gaussian_model, (torch.as_tensor(READINGS),), settings, seed)


@pytest.mark.slow
def test_gaussian_posterior() -> None:
    """Mean, SD and covariance of (mu, b) at six loci. Of 24 means, 24 SDs and 60 covariances the largest |z| stays
    below 4.5 but in one run of 500; a mean that is off by .3 SD at every locus is four standard errors and more."""
    chains = gaussian_chains(NutsSettings(2, 80, 120), seed=1)
    draws = np.concatenate([chains.sites["mu"][..., None], chains.sites["b"]], axis=-1)
    loading = np.concatenate([np.ones((3, 1)), np.eye(3)], axis=1)
    precision = np.linalg.inv(np.block([[np.full((1, 1), PRIOR_SD**2), np.zeros((1, 3))], [np.zeros((3, 1)), FIELD]]))
    covariance = np.linalg.inv(precision + loading.T @ loading / NOISE_SD**2)
    mean = READINGS @ loading @ covariance / NOISE_SD**2
    summary, found = summarize_draws(draws), draw_covariance(draws)
    scale = np.sqrt(np.diag(covariance))
    z = (summary.mean - mean) / summary.mean_se
    assert np.abs(z).max() < 4.5
    assert np.abs(z.mean(0)).max() * np.sqrt(6) < 4.0
    assert np.abs((summary.sd - scale) / summary.sd_se).max() < 4.5
    assert np.abs((found[0] - covariance) / found[1]).max() < 4.5
    assert (summary.mean_se < 0.2 * scale).all(), "draws too few to see anything"
    assert np.median(found[1] / (scale[:, None] * scale)) < 0.2
    assert summary.rhat.max() < 1.1
    assert chains.divergences.tolist() == [0, 0]


def test_draws_follow_the_seed_and_leave_the_random_state_alone() -> None:
    settings = NutsSettings(2, 5, 4)
    state = torch.get_rng_state()
    first, again, other = (gaussian_chains(settings, seed).sites for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert set(first) == {"mu", "b"}
    assert first["mu"].shape == (2, 4, 6)
    assert first["b"].shape == (2, 4, 6, 3)
    np.testing.assert_array_equal(first["b"], again["b"])
    assert not np.isclose(first["b"], other["b"]).any()
    assert not np.isclose(first["b"][0], first["b"][1]).any()


def walled(zero: torch.Tensor, wall: float) -> None:
    """A standard normal that ends at `wall`: energy is infinite beyond."""
    x = pyro.sample("x", dist.Normal(zero, 1.0))
    pyro.factor("wall", torch.where(x < wall, zero, -torch.inf))


def test_divergences_are_counted() -> None:
    """Also that a start beyond the wall is thrown away, and that none at all is an error."""
    zero, settings = torch.zeros((), dtype=DOUBLE), NutsSettings(2, 30, 60)
    assert (run_nuts(walled, (zero, np.inf), settings, seed=2).divergences == 0).all()
    found = run_nuts(walled, (zero, -1.0), settings, seed=2)
    assert (found.divergences > 0).all()
    assert found.sites["x"].max() < -1.0
    with pytest.raises(RuntimeError, match="no start"):
        run_nuts(walled, (zero, -np.inf), settings, seed=2)


def test_monte_carlo_errors_are_those_of_a_known_chain() -> None:
    """Autoregressive draws: the mean's standard error is sqrt((1 + r) / (1 - r) / T) SDs, and the errors cover."""
    random, correlation, size = np.random.default_rng(5), 0.7, 1000
    draws = random.normal(size=(4, size, 100, 2))
    draws[..., 1] = 0.6 * draws[..., 0] + 0.8 * draws[..., 1]
    for t in range(1, size):
        draws[:, t] = correlation * draws[:, t - 1] + np.sqrt(1 - correlation**2) * draws[:, t]
    summary, (covariance, error) = summarize_draws(draws), draw_covariance(draws)
    expected = np.sqrt((1 + correlation) / (1 - correlation) / (4 * size))
    assert np.median(summary.mean_se) == pytest.approx(expected, rel=0.05)
    truth = np.array([[1.0, 0.6], [0.6, 1.0]])
    # Of 200 and 400 scores, in pairs: false alarm below 1e-3. The error of an SD is taken from the draws' own
    # autocorrelation, (1 + r) / (1 - r), where that of their squares, (1 + r^2) / (1 - r^2), would be enough.
    for z in (summary.mean / summary.mean_se, (covariance - truth) / error):
        assert 0.65 < (z**2).mean() < 1.4
    cautious = (1 - correlation) * (1 + correlation**2) / ((1 + correlation) * (1 - correlation**2))
    assert (((summary.sd - 1) / summary.sd_se) ** 2).mean() == pytest.approx(cautious, rel=0.35)
    assert np.quantile(summary.rhat, 0.99) < 1.02
    apart = draws + np.array([0.0, 0.0, 0.0, 1.0])[:, None, None, None]
    assert summarize_draws(apart).rhat.min() > 1.05


def test_loci_are_sampled_in_batches() -> None:
    """A batch's draws depend on its own loci and the seed; the plate's size is that of the batch, not of the genome."""
    problem, settings = full_problem("clonal"), NutsSettings(1, 4, 4, loci_together=2)
    family, hyper, index, batch = arguments(problem, list(DECLARED).index("own_covariate"))
    field = problem.cohort.fields[index]
    whole = transmission_nuts(family, hyper, index, field, batch._replace(n_loci=5000), settings, seed=1)
    first = Batch(*(array[:2] for array in batch[:4]), 2)
    part = transmission_nuts(family, hyper, index, field, first, settings, seed=1)
    effects, individuals = field.design.shape[1], len(field.individual)
    assert whole.parameters.shape == (1, 4, LOCI, effects + len(HYPOTHESES[index].parameters))
    assert whole.field.shape == (1, 4, LOCI, individuals)
    assert whole.parameter_summary.mean.shape == whole.parameters.shape[2:]
    assert whole.covariance.shape == whole.covariance_se.shape == (*whole.parameters.shape[2:], effects + 3)
    assert whole.divergences.shape == (LOCI,)
    np.testing.assert_array_equal(whole.parameters[:, :, :2], part.parameters)
    np.testing.assert_array_equal(whole.field[:, :, :2], part.field)


# --- the family against nested quadrature ----------------------------------------------------------------------------

SHARES = share_priors(
    {
        "heritable_share": {"alpha": 2, "beta": 2},
        "tau": {"alpha": 3, "beta": 2},
        "environment_share": {"alpha": 2, "beta": 3},
    }
)
LEARNED = LearnedPriors(
    baseline_weights=np.array([0.3, 0.2, 0.5]),
    baseline_means=np.array([-2.0, 0.0, 2.0]),
    baseline_sds=np.array([0.8, 1.0, 0.8]),
    spread_location=0.1,
    spread_scale=0.4,
    effect_sds=np.zeros(0),
    hypothesis_weights=np.ones(1),
)
TRANSMITTED = {"heritable_share": "free", "maternal": "tau", "paternal": "tau"}


def z_scores(template: str, families: int, loci: int, settings: NutsSettings) -> tuple[Array, Array]:
    """NUTS against hypothesis_evidence by expectation propagation at 1,024 nodes: z-scores [L, 4] of the posterior
    means of spread, heritable share, transmissibility and slope, and those of expit(baseline) [L, 1]; the nodes lie
    around the draws' own moments, which importance weights put right."""
    pedigree, hypotheses = template_pedigree(template, families), parse_hypotheses({"epigenetic": TRANSMITTED})
    sheet = make_sheet(pedigree.individuals)
    mixture = zip(LEARNED.baseline_weights, LEARNED.baseline_means, LEARNED.baseline_sds, strict=True)
    simulation = SimulationSettings(
        seed=4, hypotheses=hypotheses, weights=(1.0,), contigs=(Contig("chr1", loci),), share_priors=SHARES,
        covariates=(), baseline=tuple(BaselineComponent(*component) for component in mixture),
        log_spread_location=0.1, log_spread_scale=0.4, coverage_mean=15.0, missing_loci=0.1,
    )  # fmt: skip
    drawn = simulate_cohort(simulation, pedigree, sheet)
    meth, total = drawn.meth.astype(np.uint16), drawn.total.astype(np.uint16)
    cohort = build_cohort(sheet, pedigree, (), hypotheses)
    family = build_transmission(cohort, hypotheses, SHARES, CPU, DOUBLE)
    batch = to_batch(CountsBatch(meth, total, np.arange(loci)), 1000, CPU, DOUBLE)
    found = transmission_nuts(family, Hyperparameters.restored(LEARNED), 0, cohort.fields[0], batch, settings, seed=7)
    assert found.parameters.shape == (settings.chains, settings.draws, loci, 4)
    assert found.field.shape == (settings.chains, settings.draws, loci, len(cohort.individuals))
    assert found.divergences.sum() <= 0.01 * settings.chains * settings.draws * loci
    state = Encoder(cohort, family, 4).state_dict()
    model = build_evidence_model(cohort, hypotheses, LEARNED, SHARES, state, 4)
    proposal = OuterProposal(
        found.parameter_summary.mean[:, 1:], np.linalg.cholesky(found.covariance[:, 1:, 1:]).astype(np.float64)
    )
    reference = hypothesis_evidence(model, 0, proposal, meth, total, np.arange(loci), 1024, 1, method="ep")
    assert not (reference.khat > 0.7).any()
    theta = found.parameters
    natural = [expit(theta[..., 0]), np.exp(theta[..., 1]), expit(theta[..., 2]), expit(theta[..., 3])]
    summary = summarize_draws(np.stack([*natural, natural[2] * natural[3]], axis=-1))
    assert np.median(summary.mean_se / summary.sd) < 0.2, "draws too few to see anything"
    return (summary.mean - reference.mean) / summary.mean_se, summary.mean_se / summary.sd


def check_scores(z: Array) -> None:
    """Of every score |z| < 4.5, and of each parameter's mean score over L loci |mean| sqrt(L) < 4: both together are
    exceeded by chance in fewer than one run of 500 at up to 48 loci."""
    assert np.abs(z).max() < 4.5
    assert (np.abs(z.mean(0)) * np.sqrt(len(z)) < 4.0).all()


@pytest.mark.slow
def test_posterior_means_of_trios() -> None:
    """Eight loci of a trio."""
    z, _ = z_scores("trio", 1, loci=8, settings=NutsSettings(1, 60, 80))
    check_scores(z)


@pytest.mark.slow
def test_posterior_means_of_three_generations() -> None:
    """Thirty-two loci of twelve individuals in two families, by two chains."""
    z, error = z_scores("three_generations", 2, loci=32, settings=NutsSettings(2, 150, 200))
    check_scores(z)
    assert np.median(error) < 0.08
    assert 0.5 < (z**2).mean() < 1.8
