"""Every approximate method for a Gaussian field with binomial observations, against oracles that share no code with it.

The oracles: published figures of a twelve-hospital example; the trapezoid rule over one and two latents; direct
maximization of independently written bounds; the answer to a tilt of the density, for linear response; importance
sampling, itself held to the trapezoid rule, for pedigrees.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, gammaln, logsumexp
from scipy.stats import binom, multivariate_normal

from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.hypotheses import parse_hypotheses
from epivi.field.dense import cavi as cavi_module
from epivi.field.dense import expectation_propagation as ep
from epivi.field.dense import gaussian_vi
from epivi.field.dense import laplace as dense_laplace
from epivi.field.dense.cavi import coordinate_ascent
from epivi.field.dense.importance import ExactField, _pareto_shape, exact_field
from epivi.field.dense.laplace import laplace
from epivi.field.dense.lrvb import linear_response, lrvb
from epivi.field.dense.methods import FIELD_METHODS
from epivi.field.dense.problem import (
    FieldPosterior,
    FieldProblem,
    FieldVariances,
    build_field_problem,
    observation_derivatives,
    select_loci,
)

Array = NDArray[np.float64]


def sds(posterior: FieldPosterior) -> Array:
    return np.sqrt(np.diagonal(posterior.covariance, axis1=1, axis2=2))


# --- twelve hospitals ------------------------------------------------------------------------------------------------

# b_i = mu + 0.4 z_i with mu ~ N(-2.5, 1) summed out, so that the latents are the twelve logits themselves.
CASES = np.array([47, 148, 119, 810, 211, 196, 148, 215, 207, 97, 256, 360], dtype=np.float64)
DEATHS = np.array([0, 18, 8, 46, 8, 13, 9, 31, 14, 8, 29, 24], dtype=np.float64)
EXACT_MEANS = (-2.94795, -2.78566, -1.94489)  # of b1, b4, b8
EXACT_SDS = (0.35751, 0.14171, 0.18578)
SHOWN = [0, 3, 7]


def hospitals() -> FieldProblem:
    none = np.zeros(12)
    covariance = np.ones((1, 12, 12)) + 0.16 * np.eye(12)
    return FieldProblem(DEATHS[None], CASES[None], np.full((1, 12), -2.5), covariance, np.eye(12), none, none)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("laplace", -40.666398),
        ("ep", -40.666577),
        ("full_covariance", -40.682926),
        ("meanfield", -40.718161),
    ],
)
def test_evidence_of_the_hospitals(method: str, expected: float) -> None:
    posterior = FIELD_METHODS[method](hospitals())
    assert posterior.converged.all()
    np.testing.assert_allclose(posterior.log_evidence, expected, rtol=0, atol=1.5e-6)


def test_uncorrected_evidence_of_the_hospitals() -> None:
    np.testing.assert_allclose(laplace(hospitals(), second_order=False).log_evidence, -40.687483, rtol=0, atol=1.5e-6)


@pytest.mark.parametrize(
    ("method", "expected", "tolerance"),
    [
        ("ep", EXACT_SDS, 2e-5),
        ("lrvb", (0.35750, 0.14170, 0.18576), 1e-5),
        ("meanfield", (0.35222, 0.14091, 0.18440), 1e-5),
        ("full_covariance", EXACT_SDS, 1e-3),
        ("laplace", EXACT_SDS, 1e-3),
    ],
)
def test_standard_deviations_of_the_hospitals(method: str, expected: tuple[float, ...], tolerance: float) -> None:
    np.testing.assert_allclose(sds(FIELD_METHODS[method](hospitals()))[0, SHOWN], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("method", "tolerance"),
    [("ep", 2e-5), ("laplace", 3e-4), ("full_covariance", 1e-4), ("meanfield", 7e-4), ("lrvb", 7e-4)],
)
def test_means_of_the_hospitals(method: str, tolerance: float) -> None:
    np.testing.assert_allclose(FIELD_METHODS[method](hospitals()).mean[0, SHOWN], EXACT_MEANS, rtol=0, atol=tolerance)


def test_reference_of_the_hospitals() -> None:
    reference = exact_field(hospitals(), draws=40_000, seed=1)
    assert reference.log_evidence_se[0] < 2e-3
    assert abs(reference.log_evidence[0] + 40.666563) < 4 * reference.log_evidence_se[0]
    assert (np.abs(reference.mean[0, SHOWN] - EXACT_MEANS) < 4 * reference.mean_se[0, SHOWN] + 1e-5).all()
    assert (np.abs(reference.sd[0, SHOWN] - EXACT_SDS) < 4 * reference.sd_se[0, SHOWN] + 1e-5).all()


# --- one and two latents by the trapezoid rule -----------------------------------------------------------------------


class Moments(NamedTuple):
    log_evidence: float
    mean: Array  # [M]
    covariance: Array  # [M, M]


def log_observations(problem: FieldProblem, locus: int, eta: Array) -> Array:
    """Binomial log-probability summed over samples; eta: [..., S]."""
    gain = 1 - problem.false_methylated - problem.false_unmethylated
    p = problem.false_methylated + gain * expit(eta)
    return binom.logpmf(problem.meth[locus], problem.total[locus], p).sum(-1)


def by_quadrature(problem: FieldProblem, locus: int) -> Moments:
    """The trapezoid rule far into the tails of the prior, for one or two latents."""
    size = problem.loading.shape[1]
    axis = np.linspace(-14, 14, 2801) if size == 1 else np.linspace(-9, 9, 451)
    grid = np.stack(np.meshgrid(*(axis,) * size, indexing="ij"), -1).reshape(-1, size)
    u = problem.prior_mean[locus] + grid @ np.linalg.cholesky(problem.prior_covariance[locus]).T
    log_density = log_observations(problem, locus, u @ problem.loading.T) - 0.5 * (grid**2).sum(1)
    log_density += grid.shape[1] * np.log((axis[1] - axis[0]) / np.sqrt(2 * np.pi))
    log_total = logsumexp(log_density)
    weight = np.exp(log_density - log_total)
    mean = weight @ u
    return Moments(float(log_total), mean, (weight[:, None] * (u - mean)).T @ (u - mean))


SINGLE = {  # m, n, eps, delta, prior mean, prior SD
    "usual": (7, 20, 0.0, 0.0, -0.5, 1.0),
    "wide": (3, 4, 0.0, 0.0, 0.0, 3.0),
    "none methylated": (0, 30, 0.0, 0.0, 0.0, 2.0),
    "one read": (1, 1, 0.0, 0.0, -1.0, 2.5),
    "conversion error": (2, 25, 0.03, 0.05, 1.0, 1.5),
    "at the floor": (1, 30, 0.04, 0.0, 0.0, 2.0),
    "against the prior": (29, 30, 0.01, 0.02, -4.0, 0.8),
    "no reads": (0, 0, 0.01, 0.0, 0.7, 1.3),
}


def single(name: str) -> FieldProblem:
    m, n, eps, delta, mean, sd = SINGLE[name]
    return FieldProblem(
        np.array([[float(m)]]),
        np.array([[float(n)]]),
        np.array([[mean]]),
        np.array([[[sd**2]]]),
        np.eye(1),
        np.array([eps]),
        np.array([delta]),
    )


@pytest.mark.parametrize("name", list(SINGLE))
def test_expectation_propagation_is_exact_with_one_observation(name: str) -> None:
    problem = single(name)
    exact, found = by_quadrature(problem, 0), ep.ep(problem)
    assert found.converged.all()
    np.testing.assert_allclose(found.log_evidence[0], exact.log_evidence, rtol=0, atol=2e-7)
    np.testing.assert_allclose(found.mean[0], exact.mean, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.covariance[0], exact.covariance, rtol=1e-6)


@pytest.mark.parametrize("name", list(SINGLE))
def test_factorized_and_full_gaussians_agree_where_there_is_one_latent(name: str) -> None:
    problem = single(name)
    one, other = gaussian_vi.meanfield(problem), gaussian_vi.full_covariance(problem)
    np.testing.assert_allclose(one.log_evidence, other.log_evidence, rtol=0, atol=1e-9)
    np.testing.assert_allclose(one.mean, other.mean, rtol=0, atol=1e-6)
    np.testing.assert_allclose(one.covariance, other.covariance, rtol=1e-6)
    assert one.log_evidence[0] <= by_quadrature(problem, 0).log_evidence + 1e-9


def two_latents(with_errors: bool, scale: int = 1, loci: int = 3) -> FieldProblem:
    """Three observations that read mixtures of two correlated latents; `scale` multiplies the reads."""
    rng = np.random.default_rng(7)
    total = rng.integers(8, 30, (loci, 3)).astype(np.float64)
    meth = np.floor(total * rng.uniform(0.1, 0.9, (loci, 3)))
    return FieldProblem(
        meth=scale * meth,
        total=scale * total,
        prior_mean=np.tile([0.3, -0.4], (loci, 1)),
        prior_covariance=np.tile([[1.5, 0.5], [0.5, 0.8]], (loci, 1, 1)),
        loading=np.array([[1.0, 0.0], [1.0, 1.0], [0.5, -1.0]]),
        false_methylated=np.array([0.02, 0.0, 0.05]) * with_errors,
        false_unmethylated=np.array([0.01, 0.04, 0.0]) * with_errors,
    )


@pytest.mark.parametrize("with_errors", [False, True])
def test_two_latents_by_every_method(with_errors: bool) -> None:
    problem = two_latents(with_errors)
    exact = [by_quadrature(problem, locus) for locus in range(3)]
    log_evidence = np.array([one.log_evidence for one in exact])
    mean = np.array([one.mean for one in exact])
    covariance = np.array([one.covariance for one in exact])
    scale = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    tolerances = {"laplace": (0.01, 0.05, 0.08), "ep": (0.005, 0.005, 0.01), "full_covariance": (0.06, 0.03, 0.03)}
    tolerances |= {"lrvb": (np.inf, 0.06, 0.03)}
    for method, (evidence_off, mean_off, covariance_off) in tolerances.items():
        found = FIELD_METHODS[method](problem)
        assert found.converged.all(), method
        if np.isfinite(evidence_off):
            assert np.abs(found.log_evidence - log_evidence).max() < evidence_off, method
        assert np.abs((found.mean - mean) / scale).max() < mean_off, method
        relative = (found.covariance - covariance) / (scale[:, :, None] * scale[:, None, :])
        assert np.abs(relative).max() < covariance_off, method
    reference = exact_field(problem, draws=40_000, seed=2)
    assert (np.abs(reference.log_evidence - log_evidence) < 4 * reference.log_evidence_se).all()
    assert (np.abs(reference.mean - mean) < 4 * reference.mean_se).all()
    assert (np.abs(reference.sd - scale) < 4 * reference.sd_se).all()
    assert (reference.sd_se < 0.006 * scale).all()
    assert (reference.khat < 0.7).all()


@pytest.mark.parametrize("with_errors", [False, True])
def test_laplace_is_of_second_order(with_errors: bool) -> None:
    """Four times the reads: the plain method's error falls fourfold, the corrected one's sixteenfold."""
    plain, corrected, plain_mean, corrected_mean = [], [], [], []
    for scale in (8, 32):
        problem = two_latents(with_errors, scale, loci=1)
        exact = by_quadrature(problem, 0)
        for second_order, errors, mean_errors in ((False, plain, plain_mean), (True, corrected, corrected_mean)):
            found = laplace(problem, second_order)
            errors.append(abs(found.log_evidence[0] - exact.log_evidence))
            mean_errors.append(np.abs(found.mean[0] - exact.mean).max())
    assert 3.0 < plain[0] / plain[1] < 5.0
    assert corrected[0] / corrected[1] > 11.0
    assert 3.0 < plain_mean[0] / plain_mean[1] < 5.5
    assert corrected_mean[0] / corrected_mean[1] > 11.0


def test_standard_errors_of_the_reference_are_honest() -> None:
    """z-scores of thirty runs at three loci; the chance of a mean square outside is below 1e-3 for each quantity."""
    problem = two_latents(True)
    exact = [by_quadrature(problem, locus) for locus in range(3)]
    runs = [exact_field(problem, draws=4_000, seed=seed) for seed in range(30)]
    scores = {"log_evidence": [], "mean": [], "sd": []}  # type: dict[str, list[Array]]
    for run in runs:
        scores["log_evidence"].append((run.log_evidence - [one.log_evidence for one in exact]) / run.log_evidence_se)
        scores["mean"].append((run.mean - [one.mean for one in exact]) / run.mean_se)
        scores["sd"].append((run.sd - [np.sqrt(np.diag(one.covariance)) for one in exact]) / run.sd_se)
    for name, values in scores.items():
        assert 0.6 < np.mean(np.square(values)) < 1.6, name


def test_pareto_shape_is_that_of_the_large_weights() -> None:
    """Weights with a Pareto tail of shape 0.8; of shape 0.8 at their small end, which does not matter."""
    log_weight = 0.8 * np.random.default_rng(1).exponential(size=(2, 20_000))
    log_weight[1] *= -1
    khat = _pareto_shape(log_weight)
    assert abs(khat[0] - 0.8) < 0.15
    assert khat[1] < 0.2
    assert np.isnan(_pareto_shape(np.zeros((1, 5_000)))).all()


# --- the bounds ------------------------------------------------------------------------------------------------------


def independent_bound(problem: FieldProblem, locus: int, mean: Array, root: Array) -> float:
    """The bound of q(u) = N(mean, root root') by Gauss-Hermite quadrature and the textbook divergence."""
    node, weight = np.polynomial.hermite_e.hermegauss(60)
    covariance, prior = root @ root.T, problem.prior_covariance[locus]
    eta = problem.loading @ mean + node[:, None] * np.sqrt(np.diag(problem.loading @ covariance @ problem.loading.T))
    gain = 1 - problem.false_methylated - problem.false_unmethylated
    p = problem.false_methylated + gain * expit(eta)
    observations = (weight @ binom.logpmf(problem.meth[locus], problem.total[locus], p)).sum() / weight.sum()
    offset = mean - problem.prior_mean[locus]
    divergence = np.trace(np.linalg.solve(prior, covariance)) + offset @ np.linalg.solve(prior, offset) - len(mean)
    divergence += np.linalg.slogdet(prior)[1] - np.linalg.slogdet(covariance)[1]
    return float(observations - 0.5 * divergence)


@pytest.mark.parametrize("with_errors", [False, True])
@pytest.mark.parametrize("method", ["meanfield", "full_covariance"])
def test_gaussian_bounds_are_maximal(method: str, with_errors: bool) -> None:
    problem = two_latents(with_errors)
    found = FIELD_METHODS[method](problem)
    free = np.array([1.0, 1.0, 1.0, 1.0, float(method == "full_covariance")])

    def loss(x: Array, locus: int) -> float:
        x = x * free
        return -independent_bound(problem, locus, x[:2], np.array([[np.exp(x[2]), 0.0], [x[4], np.exp(x[3])]]))

    for locus in range(3):
        start = np.array([0.0, 0.0, -1.0, -1.0, 0.0])
        best = minimize(loss, start, args=(locus,), method="BFGS", options={"gtol": 1e-6})
        x = best.x * free
        root = np.array([[np.exp(x[2]), 0.0], [x[4], np.exp(x[3])]])
        np.testing.assert_allclose(found.log_evidence[locus], -best.fun, rtol=0, atol=1e-8)
        np.testing.assert_allclose(found.mean[locus], x[:2], rtol=0, atol=1e-4)
        np.testing.assert_allclose(found.covariance[locus], root @ root.T, rtol=0, atol=1e-4)
        stated = independent_bound(problem, locus, found.mean[locus], np.linalg.cholesky(found.covariance[locus]))
        np.testing.assert_allclose(found.log_evidence[locus], stated, rtol=0, atol=1e-8)


@pytest.mark.parametrize("factorized", [False, True])
def test_coordinate_ascent_rises_at_every_step(factorized: bool) -> None:
    problem = pedigree_problem(12, depth=15)
    found = coordinate_ascent(problem, factorized)
    assert found.posterior.converged.all()
    steps = np.diff(found.bound_trace, axis=0)
    assert steps.min() > -1e-10
    assert (steps[:4] > 1e-6).any(0).all(), "the first steps should gain something at every locus"
    np.testing.assert_array_equal(found.bound_trace[-1], found.posterior.log_evidence)


def quadratic_observation(m: float, n: float, c: float, eta: Array) -> Array:
    """The tangent of the log-likelihood in eta^2 at c^2 (Jaakkola and Jordan), with the binomial coefficient."""
    curvature = np.tanh(c / 2) / (4 * c)
    value = (m - n / 2) * eta + n * (np.log(expit(c)) - c / 2 - curvature * (eta**2 - c**2))
    return value + gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1)


@pytest.mark.parametrize(("m", "n"), [(7, 20), (0, 30), (1, 1)])
def test_coordinate_ascent_reaches_the_best_tangent(m: int, n: int) -> None:
    """With one observation the bound is the integral of prior times tangent, at the best point of contact."""
    mean, sd = -0.5, 1.4
    problem = FieldProblem(
        *(np.full((1, 1), x) for x in (float(m), float(n), mean)),
        np.full((1, 1, 1), sd**2),
        np.eye(1),
        *np.zeros((2, 1)),
    )
    u = mean + sd * np.linspace(-10, 10, 1001)
    log_prior = -0.5 * ((u - mean) / sd) ** 2 - 0.5 * np.log(2 * np.pi) + np.log(0.02)
    touch = np.linspace(0.01, 12, 2000)
    integrals = [logsumexp(log_prior + quadratic_observation(m, n, c, u)) for c in touch]
    found = cavi_module.cavi(problem)
    np.testing.assert_allclose(found.log_evidence[0], max(integrals), rtol=0, atol=1e-5)
    best = np.exp(log_prior + quadratic_observation(m, n, touch[np.argmax(integrals)], u) - max(integrals))
    np.testing.assert_allclose(found.mean[0, 0], best @ u, rtol=0, atol=2e-3)
    np.testing.assert_allclose(found.covariance[0, 0, 0], best @ (u - best @ u) ** 2, rtol=0, atol=2e-3)


@pytest.mark.parametrize("factorized", [False, True])
def test_bound_of_coordinate_ascent_is_that_of_its_posterior(factorized: bool) -> None:
    """The expected tangents less the textbook divergence, from the posterior's moments alone."""
    problem = pedigree_problem(12, depth=15)
    found = coordinate_ascent(problem, factorized).posterior
    for locus in range(len(problem.meth)):
        mean, covariance, prior = found.mean[locus], found.covariance[locus], problem.prior_covariance[locus]
        eta = problem.loading @ mean
        touch = np.sqrt(eta**2 + np.diag(problem.loading @ covariance @ problem.loading.T))
        # Where the tangent touches at the root of E eta^2 its quadratic part has no expectation.
        m, n = problem.meth[locus], problem.total[locus]
        observations = (m - n / 2) * eta + n * (np.log(expit(touch)) - touch / 2)
        observations += gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1)
        offset = mean - problem.prior_mean[locus]
        divergence = np.trace(np.linalg.solve(prior, covariance)) + offset @ np.linalg.solve(prior, offset) - len(mean)
        divergence += np.linalg.slogdet(prior)[1] - np.linalg.slogdet(covariance)[1]
        np.testing.assert_allclose(found.log_evidence[locus], observations.sum() - 0.5 * divergence, rtol=0, atol=1e-6)


def test_coordinate_ascent_refuses_conversion_error() -> None:
    for name in ("false_methylated", "false_unmethylated"):
        problem = hospitals()._replace(**{name: np.array([0.01, *(0.0,) * 11])})
        with pytest.raises(ValueError, match="cavi needs false_methylated and false_unmethylated to be 0"):
            cavi_module.cavi(problem)


def flat_observations(mean: float, sd: float, n: int, errors: tuple[float, float]) -> FieldProblem:
    """One observation a locus at sixteen counts from none to all, far from log-concave with conversion error."""
    loci = 16
    return FieldProblem(
        meth=np.round(np.linspace(0, n, loci))[:, None],
        total=np.full((loci, 1), float(n)),
        prior_mean=np.full((loci, 1), mean),
        prior_covariance=np.full((loci, 1, 1), sd**2),
        loading=np.eye(1),
        false_methylated=np.array([errors[0]]),
        false_unmethylated=np.array([errors[1]]),
    )


@pytest.mark.parametrize(("mean", "sd", "n"), [(-6.0, 0.5, 100), (-6.0, 5.0, 800), (4.0, 5.0, 100), (0.0, 5.0, 800)])
@pytest.mark.parametrize("errors", [(0.0, 0.0), (0.1, 0.05)])
def test_hostile_observations(mean: float, sd: float, n: int, errors: tuple[float, float]) -> None:
    problem = flat_observations(mean, sd, n, errors)
    found = {name: FIELD_METHODS[name](problem) for name in ("laplace", "ep", "meanfield", "full_covariance", "lrvb")}
    for name, posterior in found.items():
        assert posterior.converged.all(), name
    for locus in range(0, 16, 3):
        for name in ("meanfield", "full_covariance"):
            centre, spread = found[name].mean[locus, 0], sds(found[name])[locus, 0]
            best = independent_bound(problem, locus, np.array([centre]), np.array([[spread]]))
            for step in (-0.02, 0.02):
                moved = independent_bound(problem, locus, np.array([centre + step * spread]), np.array([[spread]]))
                wider = independent_bound(problem, locus, np.array([centre]), np.array([[spread * (1 + step)]]))
                assert max(moved, wider) < best, name
    plain = laplace(problem, second_order=False)
    for locus in range(0, 16, 3):
        at = plain.mean[locus, 0]
        u = at + np.array([-0.01, 0.0, 0.01]) * sd
        values = log_observations(problem, locus, u[:, None]) - 0.5 * ((u - mean) / sd) ** 2
        assert values[1] > max(values[0], values[2])


def test_a_natural_gradient_that_swings_is_damped() -> None:
    """All reads methylated and a wide prior of the baseline: whole steps circle the optimum for ever."""
    problem = pedigree_problem(12, depth=20)
    covariance = problem.prior_covariance.copy()
    covariance[:, 0, 0] = 36
    problem = problem._replace(meth=problem.total, prior_covariance=covariance)
    found = gaussian_vi.full_covariance(problem)
    assert found.converged.all()
    precision = np.linalg.inv(problem.prior_covariance)
    for locus in range(len(problem.meth)):  # the optimum's precision is the prior's plus a site along every loading row
        sites = np.linalg.inv(found.covariance[locus]) - precision[locus]
        own = np.diag(sites)[2:]
        np.testing.assert_allclose(sites[2:, 2:], np.diag(own), rtol=0, atol=1e-6)
        np.testing.assert_allclose(sites[0, 2:], own, rtol=0, atol=1e-6)


# --- linear response -------------------------------------------------------------------------------------------------


def tilted(problem: FieldProblem, tilt: Array) -> FieldProblem:
    """The density times exp(tilt' u): a Gaussian prior only moves."""
    return problem._replace(prior_mean=problem.prior_mean + problem.prior_covariance @ tilt)


@pytest.mark.parametrize("depth", [4, 25])
@pytest.mark.parametrize("errors", [(0.0, 0.0), (0.02, 0.04)])
def test_linear_response_is_the_answer_to_a_tilt(errors: tuple[float, float], depth: int) -> None:
    problem = pedigree_problem(12, depth=depth, errors=errors)
    found = lrvb(problem).covariance
    step = 1e-4
    for latent in (0, 1, 5, 13):
        tilt = step * np.eye(14)[latent]
        difference = (
            gaussian_vi.meanfield(tilted(problem, tilt)).mean - gaussian_vi.meanfield(tilted(problem, -tilt)).mean
        )
        np.testing.assert_allclose(found[:, :, latent], difference / (2 * step), rtol=1e-5, atol=1e-6)


def test_linear_response_in_closed_form_where_every_latent_has_its_observation() -> None:
    problem = hospitals()
    point = gaussian_vi.meanfield(problem)
    mean, variance = point.mean[0], np.diag(point.covariance[0])
    node, weight = np.polynomial.hermite_e.hermegauss(40)
    at = problem._replace(meth=DEATHS[None, None], total=CASES[None, None])
    expected = [
        -(weight[:, None] / weight.sum() * x[0]).sum(0)
        for x in observation_derivatives(at, mean + node[:, None] * np.sqrt(variance)[None])
    ]
    _, second, third, fourth = expected
    own = second - (third / 2) ** 2 / (1 / (2 * variance**2) + fourth / 4)
    closed = np.linalg.inv(np.linalg.inv(problem.prior_covariance[0]) + np.diag(own))
    np.testing.assert_allclose(linear_response(problem, point.mean, variance[None])[0], closed, rtol=1e-7)


def test_linear_response_refuses_what_is_no_optimum() -> None:
    problem = pedigree_problem(12, depth=15)
    point = gaussian_vi.meanfield(problem)
    variance = np.diagonal(point.covariance, axis1=1, axis2=2)
    linear_response(problem, point.mean, variance)
    moved = point.mean.copy()
    moved[1, 3] += 0.01
    with pytest.raises(ValueError, match="needs a mean-field optimum: at locus 1"):
        linear_response(problem, moved, variance)
    wider = variance.copy()
    wider[2, 0] *= 1.02
    with pytest.raises(ValueError, match="needs a mean-field optimum: at locus 2"):
        linear_response(problem, point.mean, wider)
    empty = problem._replace(meth=0 * problem.meth, total=0 * problem.total)  # here the variances leave the means alone
    wider = np.diagonal(gaussian_vi.meanfield(empty).covariance, axis1=1, axis2=2) * 1.02
    with pytest.raises(ValueError, match="needs a mean-field optimum: at locus 0"):
        linear_response(empty, problem.prior_mean, wider)


def test_linear_response_claims_nothing_without_a_mean_field_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaussian_vi, "MAX_ITERATIONS", 1)
    found = lrvb(pedigree_problem(12, depth=15))
    assert not found.converged.any()
    assert np.isnan(found.covariance).all()


# --- what holds of every method --------------------------------------------------------------------------------------


def test_names_of_the_methods() -> None:
    assert set(FIELD_METHODS) == {"laplace", "ep", "cavi", "meanfield", "full_covariance", "lrvb"}


@pytest.mark.parametrize("method", list(FIELD_METHODS))
def test_without_reads_the_posterior_is_the_prior(method: str) -> None:
    problem = pedigree_problem(12, depth=15)
    problem = problem._replace(meth=0 * problem.meth, total=0 * problem.total)
    found = FIELD_METHODS[method](problem)
    assert found.converged.all()
    np.testing.assert_allclose(found.mean, problem.prior_mean, rtol=0, atol=1e-7)
    if method == "meanfield":
        precision = np.linalg.inv(problem.prior_covariance)
        expected = 1 / np.diagonal(precision, axis1=1, axis2=2)
        np.testing.assert_allclose(sds(found) ** 2, expected, rtol=1e-7)
        divergence = 0.5 * (np.linalg.slogdet(problem.prior_covariance)[1] - np.log(expected).sum(1))
        np.testing.assert_allclose(found.log_evidence, -divergence, rtol=1e-7)
        return
    np.testing.assert_allclose(found.covariance, problem.prior_covariance, rtol=0, atol=1e-6)
    if method != "lrvb":
        np.testing.assert_allclose(found.log_evidence, 0.0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", list(FIELD_METHODS))
def test_loci_do_not_see_each_other(method: str) -> None:
    problem = pedigree_problem(12, depth=15)
    together = FIELD_METHODS[method](problem)
    for locus in (2, 0):
        alone = FIELD_METHODS[method](select_loci(problem, np.array([locus])))
        np.testing.assert_allclose(alone.mean[0], together.mean[locus], rtol=0, atol=1e-6)
        np.testing.assert_allclose(alone.covariance[0], together.covariance[locus], rtol=0, atol=1e-6)
        np.testing.assert_allclose(alone.log_evidence[0], together.log_evidence[locus], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("method", "module", "limit"),
    [
        ("laplace", dense_laplace, "MAX_ITERATIONS"),
        ("ep", ep, "MAX_SWEEPS"),
        ("cavi", cavi_module, "MAX_ITERATIONS"),
        ("meanfield", gaussian_vi, "MAX_ITERATIONS"),
        ("full_covariance", gaussian_vi, "MAX_ITERATIONS"),
    ],
)
def test_a_locus_that_is_not_done_says_so(
    method: str, module: object, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, limit, 1)
    assert not FIELD_METHODS[method](pedigree_problem(12, depth=15)).converged.any()


@pytest.mark.parametrize("errors", [(0.0, 0.0), (0.05, 0.02)])
def test_contradictory_counts_leave_no_method_astray(errors: tuple[float, float]) -> None:
    """Individuals all or nothing methylated, one at 800 reads, many missing, and a wide prior of the baseline."""
    problem = pedigree_problem(12, depth=30, errors=errors, loci=24)
    rng = np.random.default_rng(8)
    total = np.where(rng.random(problem.total.shape) < 0.2, 0.0, problem.total)
    total[:, 0] = 800
    covariance = problem.prior_covariance.copy()
    covariance[:, 0, 0] = 36
    problem = problem._replace(
        total=total, meth=np.where(rng.random(total.shape) < 0.5, 0.0, total), prior_covariance=covariance
    )
    bounds = {}
    for method, run in FIELD_METHODS.items():
        if method == "cavi" and any(errors):
            continue
        found = run(problem)
        assert found.converged.all(), method
        assert np.isfinite(found.mean).all(), method
        assert (np.linalg.eigvalsh(found.covariance) > 0).all(), method
        bounds[method] = found.log_evidence
    assert np.abs(bounds["laplace"] - bounds["ep"]).max() < 0.1
    assert (bounds["meanfield"] < bounds["full_covariance"]).all()
    assert (bounds["full_covariance"] < bounds["ep"]).all()


@pytest.mark.parametrize("method", ["laplace", "ep", "full_covariance", "cavi"])
def test_clones_count_as_one(method: str) -> None:
    """A prior that is singular but for the nugget: the same as one latent that all its observations share."""
    reads = np.array([[12.0, 30.0, 7.0, 20.0]]), np.array([[15.0, 31.0, 14.0, 24.0]])
    none, ones = np.zeros(4), np.ones((4, 4))
    mean = np.zeros((1, 5))
    covariance = np.zeros((1, 5, 5))
    covariance[0, 0, 0] = 4.0
    covariance[0, 1:, 1:] = 0.8 * (ones + 1e-10 * np.eye(4))
    clones = FieldProblem(*reads, mean, covariance, np.concatenate([ones[:, :1], np.eye(4)], axis=1), none, none)
    shared = FieldProblem(*reads, mean[:, :2], covariance[:, :2, :2], np.ones((4, 2)), none, none)
    found, expected = FIELD_METHODS[method](clones), FIELD_METHODS[method](shared)
    assert found.converged.all()
    np.testing.assert_allclose(found.log_evidence, expected.log_evidence, rtol=0, atol=1e-5)
    for latent in range(1, 5):
        np.testing.assert_allclose(found.mean[0, [0, latent]], expected.mean[0], rtol=0, atol=1e-4)
        part = found.covariance[0][np.ix_([0, latent], [0, latent])]
        np.testing.assert_allclose(part, expected.covariance[0], rtol=0, atol=1e-4)


# --- pedigrees -------------------------------------------------------------------------------------------------------


def families(count: int, grandchildren: int) -> Pedigree:
    """Families of four grandparents, two parents and grandchildren."""
    mother = [-1, -1, -1, -1, 0, 2, *(4,) * grandchildren]
    father = [-1, -1, -1, -1, 1, 3, *(5,) * grandchildren]
    size = len(mother)

    def repeat(parents: list[int]) -> NDArray[np.int32]:
        return np.array([p + k * size if p >= 0 else -1 for k in range(count) for p in parents], dtype=np.int32)

    total = count * size
    return Pedigree(
        individuals=tuple(f"i{number}" for number in range(total)),
        mother=repeat(mother),
        father=repeat(father),
        mode=("sexual",) * total,
        generations=np.ones(total, dtype=np.int32),
        sex=("unknown",) * total,
    )


@cache
def pedigree_problem(
    individuals: int, depth: int, errors: tuple[float, float] = (0.0, 0.0), loci: int = 4
) -> FieldProblem:
    """Baseline, an age effect and an epigenetic field over 12 or 28 individuals; counts drawn from the model."""
    pedigree = families(*{12: (2, 0), 28: (4, 1)}[individuals])
    rng = np.random.default_rng(individuals)
    sheet = SampleSheet(
        path="samples.tsv",
        samples=pedigree.individuals,
        individuals=pedigree.individuals,
        paths=pedigree.individuals,
        formats=("auto",) * individuals,
        haplotypes=("all",) * individuals,
        false_methylated=np.full(individuals, errors[0]),
        false_unmethylated=np.full(individuals, errors[1]),
        columns={"age": tuple(str(age) for age in rng.integers(20, 80, individuals))},
        lines=tuple(range(2, individuals + 2)),
    )
    hypotheses = parse_hypotheses({"epigenetic": {"heritable_share": "free", "maternal": "tau", "paternal": "tau"}})
    cohort = build_cohort(sheet, pedigree, ["age"], hypotheses)
    variances = FieldVariances(np.tile([0.4, 0.25], (loci, 1)), np.full(loci, 0.8))
    empty = np.zeros((loci, individuals))
    problem = build_field_problem(cohort.fields[0], cohort, variances, [0.0, 0.0], [4.0, 0.25], empty, empty)
    root = np.linalg.cholesky(problem.prior_covariance)
    u = problem.prior_mean + np.einsum("lij,lj->li", root, rng.standard_normal(problem.prior_mean.shape))
    total = rng.poisson(depth, empty.shape)
    p = errors[0] + (1 - errors[0] - errors[1]) * expit(u @ problem.loading.T)
    return problem._replace(total=total.astype(np.float64), meth=rng.binomial(total, p).astype(np.float64))


def test_expectation_propagation_of_a_pedigree_by_another_program() -> None:
    """Two families, baseline N(0, 4) summed out, heritable variance .4 with tau .8, residual .25.

    Expected: GLMMExpFam of glimix-core 3.1.14 with ("binomial", READS), no fixed effect and the same covariance; for
    the hospitals it gives -40.6665766 too.
    """
    meth = np.array([[3, 11, 7, 0, 14, 9, 22, 18, 5, 16, 8, 20]], dtype=np.float64)
    total = np.array([[12, 19, 16, 7, 15, 21, 23, 20, 9, 16, 25, 22]], dtype=np.float64)
    family = np.eye(6)
    family[[4, 4, 5, 5], [0, 1, 2, 3]] = family[[0, 1, 2, 3], [4, 4, 5, 5]] = 0.5 * 0.8
    covariance = 4.0 + 0.4 * np.kron(np.eye(2), family) + 0.25 * np.eye(12)
    problem = FieldProblem(meth, total, np.zeros((1, 12)), covariance[None], np.eye(12), np.zeros(12), np.zeros(12))
    np.testing.assert_allclose(ep.ep(problem).log_evidence, -40.725579916, rtol=0, atol=1e-7)


@cache
def pedigree_reference(individuals: int, errors: tuple[float, float]) -> ExactField:
    return exact_field(pedigree_problem(individuals, depth=20, errors=errors), draws=60_000, seed=3)


@pytest.mark.parametrize("errors", [(0.0, 0.0), (0.02, 0.01)])
@pytest.mark.parametrize("individuals", [12, 28])
def test_reference_of_a_pedigree_is_precise(individuals: int, errors: tuple[float, float]) -> None:
    reference = pedigree_reference(individuals, errors)
    assert (reference.khat < 0.7).all()
    assert reference.log_evidence_se.max() < 0.005
    assert (reference.sd_se / reference.sd).max() < 0.005


@pytest.mark.parametrize("errors", [(0.0, 0.0), (0.02, 0.01)])
@pytest.mark.parametrize("individuals", [12, 28])
def test_pedigree_by_every_method(individuals: int, errors: tuple[float, float]) -> None:
    problem, reference = pedigree_problem(individuals, depth=20, errors=errors), pedigree_reference(individuals, errors)
    found = {name: run(problem) for name, run in FIELD_METHODS.items() if name != "cavi" or not any(errors)}
    assert all(posterior.converged.all() for posterior in found.values())
    ratio = {name: sds(posterior) / reference.sd for name, posterior in found.items()}
    # With conversion error the observations near the floor and the ceiling are flat, and linear response feels it.
    for name, tolerance in (("ep", 0.02), ("lrvb", 0.04 if any(errors) else 0.02)):
        assert np.abs(ratio[name] - 1).max() < tolerance, name
    # What a factorization does to coefficients and field, and what it costs in evidence.
    assert (ratio["meanfield"][:, 0] < 0.75).all()
    assert (ratio["meanfield"] < 0.99).all()
    assert np.median(ratio["meanfield"][:, 2:]) < 0.95
    assert (reference.log_evidence - found["meanfield"].log_evidence > 0.3).all()
    for name, tolerance in (("ep", 0.02), ("full_covariance", 0.05), ("laplace", 0.1)):
        assert np.abs((found[name].mean - reference.mean) / reference.sd).max() < tolerance, name
    assert np.abs(found["ep"].log_evidence - reference.log_evidence).max() < 0.02
    assert np.abs(found["laplace"].log_evidence - reference.log_evidence).max() < 0.02
    assert np.abs(ratio["full_covariance"] - 1).max() < 0.05


@pytest.mark.parametrize("individuals", [12, 28])
def test_order_of_the_bounds(individuals: int) -> None:
    problem, reference = pedigree_problem(individuals, depth=20), pedigree_reference(individuals, (0.0, 0.0))
    ceiling = reference.log_evidence + 4 * reference.log_evidence_se
    factorized = coordinate_ascent(problem, factorized=True).posterior
    cavi, meanfield, full = (FIELD_METHODS[name](problem) for name in ("cavi", "meanfield", "full_covariance"))
    assert all(posterior.is_bound for posterior in (factorized, cavi, meanfield, full))
    assert not any(FIELD_METHODS[name](problem).is_bound for name in ("laplace", "ep", "lrvb"))
    assert (factorized.log_evidence < cavi.log_evidence).all()
    assert (factorized.log_evidence < meanfield.log_evidence).all()
    assert (cavi.log_evidence < full.log_evidence).all()
    assert (meanfield.log_evidence < full.log_evidence).all()
    assert (full.log_evidence < ceiling).all()


def test_a_skewed_posterior_is_within_reach_of_the_reference() -> None:
    """No read methylated anywhere: the baseline's posterior reaches far towards its prior. One latent, many samples."""
    loading = np.ones((10, 1))
    problem = FieldProblem(
        np.zeros((1, 10)),
        np.full((1, 10), 20.0),
        np.zeros((1, 1)),
        np.full((1, 1, 1), 16.0),
        loading,
        *np.zeros((2, 10)),
    )
    exact, reference = by_quadrature(problem, 0), exact_field(problem, draws=20_000, seed=4)
    assert abs(reference.log_evidence[0] - exact.log_evidence) < 4 * reference.log_evidence_se[0] < 0.1
    assert abs(reference.mean[0, 0] - exact.mean[0]) < 4 * reference.mean_se[0, 0] < 0.2
    sd = np.sqrt(exact.covariance[0, 0])
    assert abs(reference.sd[0, 0] - sd) < 4 * reference.sd_se[0, 0] < 0.03 * sd


def test_without_reads_the_reference_is_the_prior() -> None:
    problem = two_latents(False)
    problem = problem._replace(meth=0 * problem.meth, total=0 * problem.total)
    reference = exact_field(problem, draws=20_000, seed=5)
    sd = np.sqrt(np.diagonal(problem.prior_covariance, axis1=1, axis2=2))
    assert (np.abs(reference.log_evidence) < 4 * reference.log_evidence_se).all()
    assert (reference.log_evidence_se < 0.004).all()
    assert (np.abs(reference.mean - problem.prior_mean) < 4 * reference.mean_se).all()
    assert (np.abs(reference.sd - sd) < 4 * reference.sd_se).all()


def test_the_reference_needs_draws() -> None:
    with pytest.raises(ValueError, match="at least 4000 draws, got 100"):
        exact_field(two_latents(False), draws=100, seed=1)


def test_quadrature_knows_a_gaussian() -> None:
    """The oracle itself: without reads it returns the prior."""
    problem = two_latents(True)
    problem = problem._replace(meth=0 * problem.meth, total=0 * problem.total)
    exact = by_quadrature(problem, 1)
    np.testing.assert_allclose(exact.log_evidence, 0.0, atol=1e-9)
    np.testing.assert_allclose(exact.mean, problem.prior_mean[1], atol=1e-9)
    np.testing.assert_allclose(exact.covariance, problem.prior_covariance[1], atol=1e-9)
    sample = multivariate_normal(problem.prior_mean[1], exact.covariance)
    assert sample.dim == 2
