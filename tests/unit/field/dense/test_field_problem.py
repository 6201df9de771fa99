"""The common problem of the approximate methods: observations, expectations, algebra, and how a cohort becomes one."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from inference_cases import make_pedigree, make_sheet, one_hypothesis, prior_of_b
from numpy.typing import NDArray
from scipy.stats import binom, multivariate_normal

from epivi.families.transmission.cohort import build_cohort
from epivi.field.dense import problem as field_problem
from epivi.field.dense.problem import (
    FieldProblem,
    FieldVariances,
    build_field_problem,
    combine_sites,
    expected_curvature,
    expected_observation,
    factor,
    log_binomials,
    log_determinant,
    log_observation,
    lower_inverse,
    observation_derivatives,
    select_loci,
    whiten,
)
from epivi.field.layout import field_covariance

Array = NDArray[np.float64]

ERRORS = {"none": (0.0, 0.0), "both": (0.02, 0.05), "false methylated": (0.03, 0.0), "false unmethylated": (0.0, 0.04)}
COUNTS = ((0, 7), (7, 7), (3, 20), (0, 0), (1, 1), (150, 400))


def observations(errors: str, loci: int = 1) -> FieldProblem:
    """One latent for each of COUNTS."""
    size = len(COUNTS)
    eps, delta = ERRORS[errors]
    counts = np.tile(np.array(COUNTS, dtype=np.float64), (loci, 1, 1))
    return FieldProblem(
        meth=counts[..., 0],
        total=counts[..., 1],
        prior_mean=np.zeros((loci, size)),
        prior_covariance=np.tile(np.eye(size), (loci, 1, 1)),
        loading=np.eye(size),
        false_methylated=np.full(size, eps),
        false_unmethylated=np.full(size, delta),
    )


def precise_observation(m: float, n: float, eps: float, delta: float) -> Callable[[mpmath.mpf], mpmath.mpf]:
    """The log-likelihood without its coefficient, in whatever precision mpmath has."""
    eps, delta = mpmath.mpf(eps), mpmath.mpf(delta)

    def value(y: mpmath.mpf) -> mpmath.mpf:
        gain = 1 - eps - delta
        p, q = eps + gain / (1 + mpmath.exp(-y)), delta + gain / (1 + mpmath.exp(y))
        return (m * mpmath.log(p) if m else 0) + ((n - m) * mpmath.log(q) if n > m else 0) + 0 * y

    return value


@pytest.mark.parametrize("errors", list(ERRORS))
@pytest.mark.parametrize("eta", [-25.0, -6.5, -1.3, 0.0, 0.4, 3.0, 25.0])
def test_observation_and_four_derivatives_match_high_precision(errors: str, eta: float) -> None:
    problem = observations(errors)
    at = np.full((1, len(COUNTS)), eta)
    found = np.stack([log_observation(problem, at), *observation_derivatives(problem, at)])[:, 0]
    with mpmath.workdps(60):
        for s, (m, n) in enumerate(COUNTS):
            expected = [float(x) for x in mpmath.diffs(precise_observation(m, n, *ERRORS[errors]), mpmath.mpf(eta), 4)]
            np.testing.assert_allclose(found[:, s], expected, rtol=1e-9, atol=1e-12 * max(n, 1))


@pytest.mark.parametrize("errors", list(ERRORS))
def test_coefficients_make_the_observation_a_binomial(errors: str) -> None:
    problem = observations(errors)
    eta = np.linspace(-3, 3, len(COUNTS))[None]
    eps, delta = ERRORS[errors]
    p = eps + (1 - eps - delta) / (1 + np.exp(-eta))
    expected = binom.logpmf(problem.meth, problem.total, p).sum(-1)
    np.testing.assert_allclose(log_observation(problem, eta).sum(-1) + log_binomials(problem), expected, rtol=1e-11)


@pytest.mark.parametrize("errors", list(ERRORS))
def test_expected_curvature_is_the_mean_of_the_observed(errors: str) -> None:
    n, eta = 9, np.array([[-2.1], [0.3], [4.0]])
    eps, delta = ERRORS[errors]
    p = eps + (1 - eps - delta) / (1 + np.exp(-eta))
    total = np.zeros((3, 1))
    for m in range(n + 1):
        problem = FieldProblem(
            np.full((3, 1), float(m)),
            np.full((3, 1), float(n)),
            np.zeros((3, 1)),
            np.ones((3, 1, 1)),
            np.eye(1),
            np.array([eps]),
            np.array([delta]),
        )
        total -= binom.pmf(m, n, p) * observation_derivatives(problem, eta)[1]
    np.testing.assert_allclose(expected_curvature(problem, eta), total, rtol=1e-10)


@pytest.mark.parametrize("errors", list(ERRORS))
@pytest.mark.parametrize("eta", [-900.0, 900.0])
def test_observations_stay_finite_at_any_logit(errors: str, eta: float) -> None:
    problem = observations(errors)
    at = np.full((1, len(COUNTS)), eta)
    values = np.stack(
        [log_observation(problem, at), *observation_derivatives(problem, at), expected_curvature(problem, at)]
    )
    assert np.isfinite(values).all()


@pytest.mark.parametrize("errors", ["none", "both"])
def test_expected_observations_match_a_fine_rule(errors: str) -> None:
    """The observation and its derivatives, checked above, on 4801 nodes out to twelve standard deviations."""
    problem = observations(errors)
    mean = np.array([[-2.0, 1.5, -1.0, 0.0, 0.5, -0.4]])
    variance = np.array([[4.0, 1.0, 0.3, 9.0, 6.0, 0.01]])
    z = np.linspace(-12, 12, 4801)[:, None, None]
    weight = np.exp(-0.5 * z**2) * 0.005 / np.sqrt(2 * np.pi)
    eta = mean + z * np.sqrt(variance)
    expected = [
        (weight * value).sum(0) for value in (log_observation(problem, eta), *observation_derivatives(problem, eta))
    ]
    np.testing.assert_allclose(expected_observation(problem, mean, variance), expected, rtol=1e-8, atol=1e-8)


def test_expectations_do_not_depend_on_how_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = observations("both", loci=3)
    mean, variance = np.random.default_rng(1).normal(size=(3, 6)), np.full((3, 6), 0.7)
    whole = expected_observation(problem, mean, variance)
    monkeypatch.setattr(field_problem, "LARGEST_SLAB", 100)
    np.testing.assert_allclose(expected_observation(problem, mean, variance), whole, rtol=1e-12, atol=1e-12)


def random_covariances(loci: int, size: int, seed: int) -> Array:
    root = np.random.default_rng(seed).normal(size=(loci, size, size + 2))
    return root @ np.swapaxes(root, 1, 2) / size


@pytest.mark.parametrize("size", [1, 2, 5, 13])
def test_factor_and_inverse(size: int) -> None:
    matrices = random_covariances(4, size, seed=size)
    lower, inverse = factor(matrices)
    np.testing.assert_allclose(lower, np.linalg.cholesky(matrices), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(inverse @ lower, np.broadcast_to(np.eye(size), lower.shape), atol=1e-9)
    np.testing.assert_allclose(lower_inverse(lower), inverse, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(log_determinant(lower), np.linalg.slogdet(matrices)[1], rtol=1e-9, atol=1e-12)


def test_a_matrix_without_factor_leaves_the_others_alone() -> None:
    matrices = random_covariances(3, 4, seed=1)
    matrices[1] -= 50 * np.eye(4)
    lower, inverse = factor(matrices)
    assert np.isnan(lower[1]).any()
    assert np.isfinite(lower[[0, 2]]).all()
    assert np.isfinite(inverse[[0, 2]]).all()


def test_singular_prior_is_refused() -> None:
    problem = observations("none", loci=2)
    problem.prior_covariance[1] = np.ones((6, 6)) - np.eye(6)
    with pytest.raises(ValueError, match="locus 1 of the problem is not positive definite"):
        whiten(problem)


def test_sites_against_a_dense_gaussian() -> None:
    """The product of prior and sites has the moments of a regression with known noise, and its integral the density."""
    rng = np.random.default_rng(3)
    covariance, loading = random_covariances(2, 3, seed=4), rng.normal(size=(5, 3))
    mean, noise, observed = rng.normal(size=(2, 3)), rng.uniform(0.2, 2.0, (2, 5)), rng.normal(size=(2, 5))
    empty = np.zeros((2, 5))
    problem = FieldProblem(empty, empty, mean, covariance, loading, np.zeros(5), np.zeros(5))
    white = whiten(problem)
    sites = combine_sites(white, 1 / noise, (observed - mean @ loading.T) / noise)
    for locus in range(2):
        marginal = loading @ covariance[locus] @ loading.T
        total = marginal + np.diag(noise[locus])
        gain = marginal @ np.linalg.inv(total)
        offset = observed[locus] - loading @ mean[locus]
        np.testing.assert_allclose(sites.level_mean[locus], gain @ offset, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(sites.level_variance[locus], np.diag(marginal - gain @ marginal), rtol=1e-8)
        log_density = multivariate_normal(np.zeros(5), total).logpdf(offset)
        constant = (-0.5 * offset**2 / noise[locus] - 0.5 * np.log(2 * np.pi * noise[locus])).sum()
        np.testing.assert_allclose(sites.log_integral[locus], log_density - constant, rtol=1e-9)


# Parents, two children and a cousin-less stranger; one replicate, a cage, a covariate.
PARENTS_AND_CHILDREN = make_pedigree(("m",), ("f",), ("a", "m", "f"), ("b", "m", "f"), ("x",))
SHEET = make_sheet(
    ("x", "a", "m", "b", "a", "f"),
    columns={"cage": ("2", "1", "1", "2", "1", "2"), "age": ("3", "1", "4", "1", "5", "9")},
    false_methylated=np.linspace(0.0, 0.05, 6),
    false_unmethylated=np.linspace(0.02, 0.0, 6),
)
HYPOTHESIS = one_hypothesis(
    heritable_share="free", maternal="tau", paternal=0.5, environment={"column": "cage"}, covariates=["age"]
)


def family_problem() -> tuple[FieldProblem, FieldVariances, object]:
    """Three loci of them."""
    cohort = build_cohort(SHEET, PARENTS_AND_CHILDREN, [], (HYPOTHESIS,))
    parts = np.array([[0.5, 0.2, 0.3], [1.0, 0.0, 0.6], [0.0, 0.3, 1.1]])
    variances = FieldVariances(parts, np.array([0.0, 0.7, 1.0]))
    rng = np.random.default_rng(5)
    total = rng.integers(0, 20, (3, 6))
    problem = build_field_problem(
        cohort.fields[0], cohort, variances, [-1.0, 0.0], [[4.0, 0.1], [3.0, 0.2], [2.0, 0.3]], total // 3, total
    )
    return problem, variances, cohort


def test_covariance_of_the_field_at_every_locus() -> None:
    problem, variances, cohort = family_problem()
    field = cohort.fields[0]  # type: ignore[attr-defined]
    found = field_covariance(field, *variances)
    for locus in range(3):
        expected, _ = prior_of_b(PARENTS_AND_CHILDREN, SHEET, HYPOTHESIS, *(part[locus] for part in variances))
        expected = expected[np.ix_(field.individual, field.individual)]
        np.testing.assert_allclose(found[locus], expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(problem.prior_covariance[:, 2:, 2:], found)


def test_clones_without_deviations_of_their_own_can_be_factored() -> None:
    pedigree = make_pedigree(("a",), ("b", "a", None, "clonal", 1), ("c", "a", None, "clonal", 2))
    hypothesis = one_hypothesis(heritable_share="free", maternal=1, paternal=1)
    cohort = build_cohort(make_sheet(("a", "b", "c")), pedigree, [], (hypothesis,))
    none, counts = np.zeros(1), np.zeros((1, 3))
    problem = build_field_problem(
        cohort.fields[0], cohort, FieldVariances(np.array([[1.0, 0.0]]), none), [0.0], [1.0], counts, counts
    )
    np.testing.assert_allclose(problem.prior_covariance[0, 1:, 1:], np.ones((3, 3)), atol=1e-9)
    assert np.isfinite(whiten(problem).inverse_root).all()


def test_layout_of_a_cohort_s_problem() -> None:
    problem, _, cohort = family_problem()
    field = cohort.fields[0]  # type: ignore[attr-defined]
    u = np.random.default_rng(6).normal(size=7)
    np.testing.assert_allclose(problem.loading @ u, field.design @ u[:2] + u[2:][field.latent_of_sample])
    replicates = problem.loading[[1, 4], 2:]
    np.testing.assert_array_equal(replicates[0], replicates[1])
    np.testing.assert_array_equal(problem.prior_mean, [[-1.0, *(0.0,) * 6]] * 3)
    np.testing.assert_array_equal(problem.prior_covariance[1, :2, :2], np.diag([3.0, 0.2]))
    assert not problem.prior_covariance[:, :2, 2:].any()
    np.testing.assert_array_equal(problem.false_methylated, np.linspace(0.0, 0.05, 6))
    np.testing.assert_array_equal(problem.false_unmethylated, np.linspace(0.02, 0.0, 6))
    assert problem.meth.dtype == problem.total.dtype == np.float64


def test_selected_loci() -> None:
    problem, _, _ = family_problem()
    part = select_loci(problem, np.array([2, 0]))
    np.testing.assert_array_equal(part.total, problem.total[[2, 0]])
    np.testing.assert_array_equal(part.meth, problem.meth[[2, 0]])
    np.testing.assert_array_equal(part.prior_covariance, problem.prior_covariance[[2, 0]])
    np.testing.assert_array_equal(part.prior_mean, problem.prior_mean[[2, 0]])
