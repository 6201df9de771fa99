"""The inner integral against high-precision derivatives, dense matrices, published oracles and brute-force integrals.

The compiled kernel stops as soon as the next Newton step would gain less than DECREMENT_TOLERANCE and adds the rest to
first order. Where a test asks for more digits it runs the same kernel with a tolerance of nearly zero nats.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mpmath
import numpy as np
import pytest
from inference_cases import (
    Array,
    ExactIntegral,
    dense_laplace,
    exact_integral,
    log_observation,
    make_pedigree,
    make_sheet,
    one_hypothesis,
    prior_of_b,
)
from numba import njit
from numpy.typing import NDArray
from scipy.special import expit, gammaln, logsumexp

from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.hypotheses import Hypothesis
from epivi.field.compiled import field as kernel_field
from epivi.field.compiled import observation as kernel_observation
from epivi.field.compiled.field import FieldArrays, field_arrays
from epivi.field.compiled.laplace import NOT_CONVERGED
from epivi.field.compiled.nodes import DECREMENT_TOLERANCE, SEPARATE_MODES, NodeResults, _entry_point, evaluate_nodes
from epivi.field.compiled.simd import WIDTH, load, store
from epivi.field.layout import LatentField

# What stopping early may leave. A step that gains DECREMENT_TOLERANCE nats is 0.014 posterior SDs long; the correction,
# the variance and the third moment are those at its start. Of 3600 errors 99 % were below 4e-4 nats, all below 2e-3.
STOPPING_NATS = 5 * DECREMENT_TOLERANCE
STOPPING_MOMENT = 5e-3

TRIO = make_pedigree(("m",), ("f",), ("c", "m", "f"))
QUARTETS = make_pedigree(
    *(("m1",), ("f1",), ("a1", "m1", "f1"), ("b1", "m1", "f1")),
    *(("m2",), ("f2",), ("a2", "m2", "f2"), ("b2", "m2", "f2")),
)
SELFING = make_pedigree(
    ("p0",), ("p1", "p0", None, "selfing"), ("p3", "p1", None, "selfing", 2), ("q1", "p0", None, "selfing")
)
INBRED = make_pedigree(("m",), ("f",), ("a", "m", "f"), ("b", "m", "f"), ("x", "a", "b"), ("y", "a", "b"))
MENDELIAN = one_hypothesis(heritable_share="free", maternal=1, paternal=1)
EPIGENETIC = one_hypothesis(heritable_share="free", maternal="tau", paternal="tau")
MATERNAL = one_hypothesis(heritable_share="free", maternal="tau", paternal=0)
RESET = one_hypothesis()


class Case(NamedTuple):
    pedigree: Pedigree
    sheet: SampleSheet
    hypothesis: Hypothesis
    covariates: tuple[str, ...] = ()


def _case(pedigree: Pedigree, hypothesis: Hypothesis, *individuals: str, **changes: Any) -> Case:
    covariates = changes.pop("covariates", ())
    return Case(pedigree, make_sheet(individuals or pedigree.individuals, **changes), hypothesis, covariates)


def _errors(size: int) -> dict[str, Array]:
    return {"false_methylated": np.linspace(0.02, 0.0, size), "false_unmethylated": np.linspace(0.0, 0.05, size)}


_BATCH = {"batch": ("x", "y", "z", "x", "y", "z", "x", "y"), "age": ("1", "2", "4", "3", "5", "9", "7", "8")}
_CAGES = {"cage": ("1", "2", "2", "1", "1", "3", "3", "3")}

CASES = {
    "trio": _case(TRIO, MENDELIAN),
    "sib pairs with parents": _case(QUARTETS, EPIGENETIC),
    "unsampled parents": _case(QUARTETS, MENDELIAN, "a1", "b1", "m1", "b2", "a2"),
    "selfed line": _case(SELFING, MATERNAL),
    "inbred": _case(INBRED, EPIGENETIC),
    "replicates": _case(TRIO, MATERNAL, "c", "m", "c", "m", "c"),
    "no relation": _case(TRIO, RESET),
    "cages": _case(QUARTETS, one_hypothesis(environment={"column": "cage", "share": "free"}), columns=_CAGES),
    "cages and transmission": _case(
        QUARTETS,
        one_hypothesis(heritable_share="free", maternal=0, paternal="tau", environment={"column": "cage"}),
        columns=_CAGES,
    ),
    "covariates": _case(QUARTETS, EPIGENETIC, columns=_BATCH, covariates=("age", "batch")),
    "conversion errors": _case(QUARTETS, EPIGENETIC, **_errors(8)),
    "everything": _case(
        QUARTETS,
        one_hypothesis(heritable_share="free", maternal="tau", paternal="tau", environment={"column": "cage"}),
        *("m1", "f1", "a1", "b1", "m2", "a2", "b2", "m1", "a1"),
        columns={
            "cage": ("1", "2", "2", "1", "1", "3", "3", "1", "2"),
            "age": ("1", "2", "4", "3", "5", "9", "7", "8", "2"),
        },
        covariates=("age",),
        **_errors(9),
    ),
}


class Inputs(NamedTuple):
    """Arguments of evaluate_nodes."""

    arrays: FieldArrays
    meth: Array
    total: Array
    variances: Array
    tau: Array
    mixture_weight: Array
    mixture_mean: Array
    mixture_sd: Array
    effect_sd: Array


def draw_inputs(case: Case, loci: int, nodes: int, seed: int = 1) -> Inputs:
    """Counts of which a fifth are missing, variance components over a wide range, a prior of one component."""
    random = np.random.default_rng([seed, len(case.sheet.samples)])
    cohort = build_cohort(case.sheet, case.pedigree, case.covariates, [case.hypothesis])
    shape = (loci, len(case.sheet.samples))
    total = random.integers(1, 25, shape) * (random.random(shape) > 0.2)
    total[:, 0] = np.maximum(total[:, 0], 3)
    level = expit(random.normal(0, 2, (loci, 1)) + random.normal(0, 0.7, shape))
    gain = 1 - case.sheet.false_methylated - case.sheet.false_unmethylated
    meth = random.binomial(total, case.sheet.false_methylated + gain * level)
    shares = random.dirichlet((2, 2, 2), (loci, nodes))
    kinds = {component.kind for component in case.hypothesis.components}
    shares = shares[..., ["heritable" in kinds, "environment" in kinds, True]]
    variances = random.uniform(0.2, 2.0, (loci, nodes, 1)) * shares / shares.sum(2, keepdims=True)
    return Inputs(
        field_arrays(cohort.fields[0], cohort.false_methylated, cohort.false_unmethylated),
        meth.astype(np.uint16),
        total.astype(np.uint16),
        variances,
        random.uniform(0.1, 0.95, (loci, nodes)),
        np.ones(1),
        np.array([0.5]),
        np.array([1.3]),
        np.linspace(0.4, 0.8, len(cohort.covariates)),
    )


def counts_of(inputs: Inputs, sheet: SampleSheet, locus: int) -> tuple[Array, Array, Array, Array]:
    meth, total = (x[locus].astype(float) for x in (inputs.meth, inputs.total))
    return meth, total, sheet.false_methylated, sheet.false_unmethylated


def dense_results(case: Case, inputs: Inputs) -> NodeResults:
    design = build_cohort(case.sheet, case.pedigree, case.covariates, [case.hypothesis]).fields[0].design
    prior_mean = np.array([inputs.mixture_mean[0], *np.zeros(design.shape[1] - 1)])
    prior_variance = np.array([inputs.mixture_sd[0], *inputs.effect_sd]) ** 2
    scalars, effects = np.empty((2, *inputs.tau.shape)), np.empty((3, *inputs.tau.shape, design.shape[1]))
    for locus, node in np.ndindex(inputs.tau.shape):
        prior, membership = prior_of_b(
            case.pedigree, case.sheet, case.hypothesis, inputs.variances[locus, node], inputs.tau[locus, node]
        )
        counts = counts_of(inputs, case.sheet, locus)
        found = dense_laplace(counts, prior, membership, design, prior_mean, prior_variance)
        scalars[:, locus, node], effects[:, locus, node] = found[:2], found[2:]
    return NodeResults(*scalars, *effects, central_step=np.full(len(inputs.tau), np.nan))


def exact_mode(inputs: Inputs) -> NodeResults:
    """Iterated until the mode is exact to rounding."""
    return evaluate_nodes(*inputs, tolerance=1e-13)


# --- the observation -------------------------------------------------------------------------------------------------

OBSERVATIONS = [(0, 9), (9, 9), (3, 9), (1, 1), (0, 1), (240, 500), (500, 500), (1, 500)]


@njit
def observation_rows(arguments: NDArray[np.float64], eps: float, delta: float, rows: NDArray[np.float64]) -> None:
    """Value, slope, observed curvature, third and fourth derivative, expected curvature of observations (m, n, y)."""
    m, n, y = load(arguments, 0), load(arguments, 1), load(arguments, 2)
    slope, observed, expected = kernel_observation.observation(m, n, eps, delta, y)
    third, fourth = kernel_observation.observation_third_fourth(m, n, eps, delta, y)
    store(rows, 0, kernel_observation.log_observation(m, n, eps, delta, y))
    store(rows, 1, slope)
    store(rows, 2, observed)
    store(rows, 3, third)
    store(rows, 4, fourth)
    store(rows, 5, expected)


@pytest.mark.parametrize(("eps", "delta"), [(0.0, 0.0), (0.02, 0.0), (0.0, 0.03), (0.01, 0.2)])
def test_observation_derivatives_against_mpmath(eps: float, delta: float) -> None:
    """Slope, curvatures, third and fourth derivatives, in both tails, by numerical Taylor series with 60 digits."""
    with mpmath.workdps(60):
        for m, n in OBSERVATIONS:
            for y in (-30.0, -7.0, -1.3, 0.0, 0.4, 3.0, 12.0):

                def level(t: Any) -> Any:
                    return eps + (1 - mpmath.mpf(eps) - mpmath.mpf(delta)) / (1 + mpmath.exp(-t))

                def value(t: Any, m: int = m, n: int = n) -> Any:
                    p = level(t)
                    methylated = m * mpmath.log(p) if m else 0
                    return methylated + ((n - m) * mpmath.log(1 - p) if n > m else 0)

                log_value, *expected = (
                    float(c * mpmath.factorial(k)) for k, c in enumerate(mpmath.taylor(value, mpmath.mpf(y), 4))
                )
                slope_of_level, p = mpmath.diff(level, mpmath.mpf(y)), level(mpmath.mpf(y))
                fisher = float(n * slope_of_level**2 / (p * (1 - p)))
                arguments = np.repeat(np.array([[m], [n], [y]], dtype=float), WIDTH, axis=1)
                rows = np.empty((6, WIDTH))
                observation_rows(arguments, eps, delta, rows)
                np.testing.assert_array_equal(rows, rows[:, :1].repeat(WIDTH, axis=1))
                found_value, slope, observed, third, fourth, expected_curvature = rows[:, 0]
                found = [found_value, slope, -observed, third, fourth, expected_curvature]
                # Terms of size n may cancel: absolute errors of n rounding units are the best that can be asked.
                np.testing.assert_allclose(
                    found, [log_value, *expected, fisher], rtol=1e-9, atol=3e-14 * n, err_msg=f"{m}/{n} at {y}"
                )


def test_reference_observation_against_mpmath() -> None:
    """The references of the other tests rest on their own observation; it is checked too, with its coefficient."""
    from inference_cases import observation_derivatives

    with mpmath.workdps(50):
        for m, n, eps, delta, y in [(3, 9, 0.0, 0.0, -1.0), (0, 7, 0.02, 0.1, -4.0), (6, 6, 0.01, 0.0, 2.5)]:

            def value(t: Any, m: int = m, n: int = n, eps: float = eps, delta: float = delta) -> Any:
                p = eps + (1 - mpmath.mpf(eps) - mpmath.mpf(delta)) / (1 + mpmath.exp(-t))
                return mpmath.log(mpmath.binomial(n, m) * p**m * (1 - p) ** (n - m))

            series = [float(c * mpmath.factorial(k)) for k, c in enumerate(mpmath.taylor(value, mpmath.mpf(y), 4))]
            arguments = [np.array(float(x)) for x in (m, n, eps, delta, y)]
            np.testing.assert_allclose(log_observation(*arguments), series[0], rtol=1e-12)
            np.testing.assert_allclose(observation_derivatives(*arguments), series[1:], rtol=1e-9, atol=1e-13)


# --- against dense matrices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_term_against_dense_matrices(name: str) -> None:
    """Evidence, correction and moments with all samples at once, terms between families included, to 1e-7."""
    inputs = draw_inputs(CASES[name], loci=4, nodes=2)
    found, expected = exact_mode(inputs), dense_results(CASES[name], inputs)
    assert np.abs(expected.correction).max() > 0.02, "data without a correction would not test it"
    # Beyond the central node the baseline's moments pass through the skewed Gaussian that stands for the merged
    # components; with skewness g its variance is larger by g^2 / 18 and its third moment by g^2 / 27, relatively.
    squared = expected.effect_third**2 / expected.effect_variance**3
    squared[:, 0] = squared[..., 1:] = 0
    expected = expected._replace(
        effect_variance=expected.effect_variance * (1 + squared / 18),
        effect_third=expected.effect_third * (1 + squared / 27),
    )
    for field in NodeResults._fields[:-1]:  # the last is of expectation propagation
        np.testing.assert_allclose(getattr(found, field), getattr(expected, field), rtol=1e-6, atol=1e-7, err_msg=field)


@pytest.mark.parametrize("name", CASES)
def test_compiled_kernel_against_dense_matrices(name: str) -> None:
    """More loci, at what stopping early leaves."""
    inputs = draw_inputs(CASES[name], loci=25, nodes=3, seed=2)
    found, expected = evaluate_nodes(*inputs), dense_results(CASES[name], inputs)
    for field in ("log_evidence", "correction"):
        error = np.abs(getattr(found, field) - getattr(expected, field))
        assert np.quantile(error, 0.9) < STOPPING_NATS, field
        assert error.max() < 4 * STOPPING_NATS, field
    sd = np.sqrt(expected.effect_variance)
    assert (np.abs(found.effect_mean - expected.effect_mean) / sd).max() < STOPPING_MOMENT
    np.testing.assert_allclose(found.effect_variance, expected.effect_variance, rtol=3 * STOPPING_MOMENT)
    assert (np.abs(found.effect_third - expected.effect_third) / sd**3).max() < STOPPING_MOMENT


def test_huge_counts_are_a_gaussian_observation() -> None:
    """With n so large that a binomial is Gaussian in the logit, the evidence is that of a linear Gaussian model."""
    case = CASES["covariates"]
    inputs = draw_inputs(case, loci=6, nodes=2)
    random = np.random.default_rng(4)
    total = np.full(inputs.total.shape, 1e6)
    meth = np.round(total * expit(random.normal(0, 1, total.shape)))
    found = evaluate_nodes(*inputs._replace(meth=meth, total=total))
    level = meth / total
    noise = 1 / (total * level * (1 - level))
    observed = np.log(level / (1 - level))
    log_peak = gammaln(total + 1) - gammaln(meth + 1) - gammaln(total - meth + 1)
    log_peak += meth * np.log(level) + (total - meth) * np.log(1 - level) + 0.5 * np.log(2 * np.pi * noise)
    design = build_cohort(case.sheet, case.pedigree, case.covariates, [case.hypothesis]).fields[0].design
    effects = design @ np.diag([inputs.mixture_sd[0], *inputs.effect_sd]) ** 2 @ design.T
    first = inputs.mixture_sd[0] ** 2 * design[:, 0]
    for locus, node in np.ndindex(found.log_evidence.shape):
        prior, membership = prior_of_b(
            case.pedigree, case.sheet, case.hypothesis, inputs.variances[locus, node], inputs.tau[locus, node]
        )
        covariance = membership @ prior @ membership.T + effects + np.diag(noise[locus])
        offset = observed[locus] - inputs.mixture_mean[0]
        solved = np.linalg.solve(covariance, offset)
        log_density = -0.5 * (offset @ solved + np.linalg.slogdet(2 * np.pi * covariance)[1])
        expected = log_peak[locus].sum() + log_density
        np.testing.assert_allclose(found.log_evidence[locus, node], expected, atol=2e-4)
        np.testing.assert_allclose(found.correction[locus, node], 0, atol=2e-4)
        np.testing.assert_allclose(
            found.effect_mean[locus, node, 0], inputs.mixture_mean[0] + first @ solved, atol=2e-4
        )
        expected = inputs.mixture_sd[0] ** 2 - first @ np.linalg.solve(covariance, first)
        np.testing.assert_allclose(found.effect_variance[locus, node, 0], expected, rtol=1e-4)


# --- published oracles -----------------------------------------------------------------------------------------------

HOSPITAL_PATIENTS = np.array([47, 148, 119, 810, 211, 196, 148, 215, 207, 97, 256, 360])
HOSPITAL_DEATHS = np.array([0, 18, 8, 46, 8, 13, 9, 31, 14, 8, 29, 24])
SEEDS_TOTAL = np.array([39, 62, 81, 51, 39, 6, 74, 72, 51, 79, 13, 16, 30, 28, 45, 4, 12, 41, 30, 51, 7])
SEEDS_GERMINATED = np.array([10, 23, 23, 26, 17, 5, 53, 55, 32, 46, 10, 8, 10, 8, 23, 0, 3, 22, 15, 32, 3])


def independent_arrays(design: Array) -> FieldArrays:
    """Unrelated individuals with one sample each."""
    size = len(design)
    counting, none = np.arange(size + 1, dtype=np.int32), np.zeros(0, dtype=np.int32)
    field = LatentField(
        latent_of_sample=counting[:-1],
        block_start=counting,
        entry_start=counting * 0,
        entry_component=none,
        entry_row=none,
        entry_column=none,
        entry_exponent=none,
        entry_coefficient=np.zeros(0),
        components=0,
        design=design,
        design_column=np.arange(design.shape[1] - 1, dtype=np.int32),
        individual=counting[:-1],
    )
    return field_arrays(field, np.zeros(size), np.zeros(size))


def residual_grid(sigma: Array) -> tuple[Array, Array]:
    """Variances [1, J, 1] and tau [1, J] for a grid of residual SDs."""
    return (sigma**2)[None, :, None], np.zeros((1, len(sigma)))


def test_coupled_gaussian_field_oracle() -> None:
    """T1: Surgical's counts, b_i = mu + 0.4 z_i, mu ~ N(-2.5, 1); values computed outside this project.

    Exact log evidence -40.666563 by nested quadrature; Laplace -40.687483, with its second-order correction -40.666398.
    """
    found = evaluate_nodes(
        independent_arrays(np.ones((12, 1))),
        HOSPITAL_DEATHS[None],
        HOSPITAL_PATIENTS[None],
        *residual_grid(np.array([0.4])),
        *(np.array([x]) for x in (1.0, -2.5, 1.0)),
        np.zeros(0),
    )
    corrected, correction = found.log_evidence[0, 0], found.correction[0, 0]
    assert corrected == pytest.approx(-40.666398, abs=5e-5)
    assert corrected - correction == pytest.approx(-40.687483, abs=5e-5)
    assert corrected == pytest.approx(-40.666563, abs=5e-4)
    assert correction > 0.02  # without it the oracle would be missed by fifty times the last tolerance


def test_surgical_against_published_posterior() -> None:
    """Surgical with its BUGS priors: exact mu -2.5538 (SD .1536), sigma .4035 (.1583)."""
    log_sigma = np.linspace(-5, 1.5, 200)
    sigma = np.exp(log_sigma)
    precision = sigma**-2
    log_prior = 0.001 * np.log(0.001) - gammaln(0.001) + (0.001 - 1) * np.log(precision) - 0.001 * precision
    log_prior += np.log(2 * precision)
    found = evaluate_nodes(
        independent_arrays(np.ones((12, 1))),
        HOSPITAL_DEATHS[None],
        HOSPITAL_PATIENTS[None],
        *residual_grid(sigma),
        *(np.array([x]) for x in (1.0, 0.0, 1000.0)),
        np.zeros(0),
    )
    log_weight = found.log_evidence[0] + log_prior
    weight = np.exp(log_weight - logsumexp(log_weight))
    mean = weight @ found.effect_mean[0, :, 0]
    second = weight @ (found.effect_variance[0, :, 0] + (found.effect_mean[0, :, 0] - mean) ** 2)
    assert mean == pytest.approx(-2.5538, abs=0.002)
    assert np.sqrt(second) == pytest.approx(0.1536, abs=0.003)
    assert weight @ sigma == pytest.approx(0.4035, abs=0.004)
    assert np.sqrt(weight @ sigma**2 - (weight @ sigma) ** 2) == pytest.approx(0.1583, abs=0.004)


def test_seeds_with_covariates() -> None:
    """Seeds: two factors and their interaction, effects ~ N(0, 1), sigma ~ half-Cauchy(1); log evidence -63.2095,
    a0 -.4603 (SD .1933), sigma .3311 (.1417)."""
    x1 = np.repeat([0.0, 1.0], (11, 10))
    x2 = np.repeat([0.0, 1.0, 0.0, 1.0], (5, 6, 5, 5))
    sigma = np.exp(np.linspace(-7, 1.5, 200))
    found = evaluate_nodes(
        independent_arrays(np.stack([np.ones(21), x1, x2, x1 * x2], axis=1)),
        SEEDS_GERMINATED[None],
        SEEDS_TOTAL[None],
        *residual_grid(sigma),
        *(np.array([x]) for x in (1.0, 0.0, 1.0)),
        np.ones(3),
    )
    log_weight = found.log_evidence[0] + np.log(2 / np.pi / (1 + sigma**2) * sigma)
    # Below the grid the likelihood no longer depends on sigma, whose prior has the mass 2 / pi atan(e^-7) there.
    log_step = np.log(8.5 / 199)
    below = found.log_evidence[0, 0] + np.log(2 / np.pi * np.arctan(sigma[0] * np.exp(-0.5 * 8.5 / 199)))
    assert np.logaddexp(logsumexp(log_weight) + log_step, below) == pytest.approx(-63.2095, abs=0.01)
    weight = np.exp(log_weight - logsumexp(log_weight))
    mean = weight @ found.effect_mean[0, :, 0]
    second = weight @ (found.effect_variance[0, :, 0] + (found.effect_mean[0, :, 0] - mean) ** 2)
    assert mean == pytest.approx(-0.4603, abs=0.003)
    assert np.sqrt(second) == pytest.approx(0.1933, abs=0.004)
    assert weight @ sigma == pytest.approx(0.3311, abs=0.004)


# --- against integration ---------------------------------------------------------------------------------------------


INTEGRABLE = {name: CASES[name] for name in ("trio", "replicates", "no relation")} | {
    "selfed line": _case(SELFING, MATERNAL, "p1", "p3", "q1"),
    "treated replicate": _case(
        TRIO, MENDELIAN, "m", "f", "c", "c", columns={"treatment": ("none", "drug", "none", "drug")},
        covariates=("treatment",), **_errors(4),
    ),
}  # fmt: skip
# Largest error of the log evidence (nats), of a mean (SDs), of a variance (relative) and of a third moment (cubed SDs).
# An effect that two samples of four decide is corrected by up to .17 nats, where the others are by .06: the baseline's
# moments err with it, the effect's own by less than in the other cases.
LARGEST_ERRORS = dict.fromkeys(INTEGRABLE, (0.01, 0.03, 0.08, 0.05)) | {"treated replicate": (0.015, 0.05, 0.13, 0.11)}


@pytest.mark.parametrize("name", INTEGRABLE)
def test_corrected_evidence_and_moments_against_integration(name: str) -> None:
    """Loci by the trapezoid rule in three dimensions: the correction removes most of Laplace's error."""
    case = INTEGRABLE[name]
    loci = 25 if name != "treated replicate" else 10  # its integrals have four dimensions
    evidence_error, mean_error, variance_error, third_error = LARGEST_ERRORS[name]
    inputs = draw_inputs(case, loci=loci, nodes=1, seed=5)
    found = evaluate_nodes(*inputs)
    exact = [
        np.stack(part) for part in zip(*(_integrate(case, inputs, locus, 0) for locus in range(loci)), strict=True)
    ]
    error = found.log_evidence[:, 0] - exact[0]
    uncorrected = error - found.correction[:, 0]
    assert np.abs(error).max() < evidence_error
    assert np.abs(uncorrected).max() > 0.03, "data that need no correction would not test it"
    assert np.sqrt((error**2).mean()) < 0.15 * np.sqrt((uncorrected**2).mean())
    sd = np.sqrt(exact[2])
    assert (np.abs(found.effect_mean[:, 0] - exact[1]) / sd).max() < mean_error
    np.testing.assert_allclose(found.effect_variance[:, 0], exact[2], rtol=variance_error)
    assert (np.abs(found.effect_third[:, 0] - exact[3]) / sd**3).max() < third_error


def _integrate(case: Case, inputs: Inputs, locus: int, component: int) -> ExactIntegral:
    """Exact log evidence and moments at node 0 with one component of the baseline's prior."""
    prior, membership = prior_of_b(
        case.pedigree, case.sheet, case.hypothesis, inputs.variances[locus, 0], inputs.tau[locus, 0]
    )
    design = build_cohort(case.sheet, case.pedigree, case.covariates, [case.hypothesis]).fields[0].design
    mean = np.array([inputs.mixture_mean[component], *0 * inputs.effect_sd])
    variance = np.array([inputs.mixture_sd[component], *inputs.effect_sd]) ** 2
    return exact_integral(counts_of(inputs, case.sheet, locus), prior, membership, design, mean, variance)


def _single_components(inputs: Inputs) -> list[NodeResults]:
    """The kernel's results with each component as the only one."""
    return [
        evaluate_nodes(
            *inputs._replace(
                mixture_weight=np.ones(1),
                mixture_mean=inputs.mixture_mean[k, None],
                mixture_sd=inputs.mixture_sd[k, None],
            )
        )
        for k in range(len(inputs.mixture_weight))
    ]


def _mixed(inputs: Inputs, parts: list[NodeResults]) -> tuple[Array, Array, Array, Array, Array]:
    """Log evidence [L, J], the effects' central moments [L, J, P], and the variance of the baseline between components
    over that within, [L, J]."""
    log_evidence = np.stack([part.log_evidence for part in parts]) + np.log(inputs.mixture_weight)[:, None, None]
    share = np.exp(log_evidence - logsumexp(log_evidence, axis=0))
    means, variances, thirds = (
        np.stack([getattr(part, f"effect_{moment}") for part in parts]) for moment in ("mean", "variance", "third")
    )
    share = share[..., None]
    mean = (share * means).sum(0)
    offset = means - mean
    within, between = (share * variances).sum(0), (share * offset**2).sum(0)
    third = (share * (thirds + 3 * offset * variances + offset**3)).sum(0)
    return logsumexp(log_evidence, axis=0), mean, within + between, third, (between / within)[..., 0]


MIXTURE = {
    "mixture_weight": np.array([0.3, 0.2, 0.5]),
    "mixture_mean": np.array([-2.0, 0.0, 2.0]),
    "mixture_sd": np.array([0.8, 1.0, 0.8]),
}


@pytest.mark.parametrize("name", ["trio", "unsampled parents", "everything"])
def test_merged_components_against_their_sum(name: str) -> None:
    """Where the components' posteriors coincide they are replaced by one Gaussian and put right by quadrature.

    The error of that belongs to the baseline's prior and is nearly the same under every hypothesis, so that it leaves
    the Bayes factors alone: within 2e-3 nats at 99 % of loci.
    """
    inputs = draw_inputs(CASES[name], loci=300, nodes=4, seed=6)._replace(**MIXTURE)
    # Nodes like those around a posterior: the variance components differ by a third.
    jitter = np.random.default_rng(1).normal(0, 0.3, inputs.variances.shape)
    inputs = inputs._replace(variances=inputs.variances[:, :1] * np.exp(jitter))
    without = inputs.variances.copy()
    without[..., -1] += without[..., 0]
    without[..., 0] = 0
    errors = []
    for under in (inputs, inputs._replace(variances=without)):
        found = evaluate_nodes(*under)
        evidence, mean, variance, third, separation = _mixed(under, _single_components(under))
        merged = separation[:, 0] < 0.999 * SEPARATE_MODES
        assert (merged & (separation[:, 0] > 0.02)).sum() > 50, "components that differ, and yet are merged"
        errors.append(np.where(merged[:, None], found.log_evidence - evidence, np.nan)[:, 1:])
        sd = np.sqrt(variance)
        assert np.nanquantile(np.abs(errors[-1]), 0.99) < 8e-3
        assert np.quantile((np.abs(found.effect_mean - mean) / sd)[merged], 0.99) < 0.02
        assert np.quantile(np.abs(found.effect_variance / variance - 1)[merged], 0.99) < 0.05
        assert np.quantile((np.abs(found.effect_third - third) / sd**3)[merged], 0.99) < 0.1
    assert np.nanquantile(np.abs(errors[0] - errors[1]), 0.99) < 2e-3


def test_separate_components_are_summed() -> None:
    """At low coverage between two far components the posterior of the baseline has two modes; both must count."""
    case = CASES["trio"]
    inputs = draw_inputs(case, loci=30, nodes=3, seed=7)._replace(
        mixture_weight=np.array([0.7, 0.3]), mixture_mean=np.array([-3.0, 3.0]), mixture_sd=np.array([0.5, 0.5])
    )
    random = np.random.default_rng(8)
    total = random.integers(1, 4, inputs.total.shape)
    inputs = inputs._replace(total=total, meth=random.binomial(total, 0.5), variances=3 * inputs.variances)
    found = evaluate_nodes(*inputs)
    evidence, mean, variance, third, separation = _mixed(inputs, _single_components(inputs))
    far = separation[:, 0] > 2 * SEPARATE_MODES
    assert far.sum() >= 15
    # Another node than the first starts from the first one's mode instead of its own, hence not the last digit.
    np.testing.assert_allclose(found.log_evidence[far], evidence[far], atol=STOPPING_NATS)
    np.testing.assert_allclose(found.effect_mean[far], mean[far], atol=0.01)
    np.testing.assert_allclose(found.effect_variance[far], variance[far], rtol=0.01)
    np.testing.assert_allclose(found.effect_third[far], third[far], atol=0.05)
    for locus in np.flatnonzero(far)[:5]:
        parts = [_integrate(case, inputs, int(locus), k) for k in range(2)]
        exact = logsumexp([part[0] for part in parts], b=inputs.mixture_weight)
        assert found.log_evidence[locus, 0] == pytest.approx(exact, abs=0.03)


# --- hard likelihoods, missing data ----------------------------------------------------------------------------------


def test_conversion_error_at_a_low_baseline() -> None:
    """Methylated reads of an unmethylated locus may be errors: the likelihood is then not log-concave.

    Exact integrals again. The asymptotic correction still helps, and stays within 0.1 nats of the truth (the largest of
    these 40 errors is 0.03 for eps = delta = 0.01; without the correction 0.11).
    """
    size = len(TRIO.individuals)
    case = _case(TRIO, MENDELIAN, false_methylated=np.full(size, 0.01), false_unmethylated=np.full(size, 0.01))
    random = np.random.default_rng(2)
    total = random.poisson(20, (40, size)) + 1
    logit = -4 + random.normal(0, 0.8, (40, 1)) + random.normal(0, 1, (40, size))
    inputs = draw_inputs(case, loci=40, nodes=1)._replace(
        total=total,
        meth=random.binomial(total, 0.01 + 0.98 * expit(logit)),
        mixture_mean=np.array([-4.0]),
        mixture_sd=np.array([0.8]),
        variances=np.tile([0.5, 0.5], (40, 1, 1)),
    )
    found, expected = evaluate_nodes(*inputs), dense_results(case, inputs)
    np.testing.assert_allclose(found.log_evidence, expected.log_evidence, atol=3e-3)
    exact = np.array([_integrate(case, inputs, locus, 0)[0] for locus in range(40)])
    error = found.log_evidence[:, 0] - exact
    uncorrected = error - found.correction[:, 0]
    assert np.abs(error).max() < 0.1
    assert np.median(np.abs(error)) < 0.4 * np.median(np.abs(uncorrected))


@pytest.mark.parametrize("eps", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("baseline", [-7.0, 0.0, 7.0])
def test_newton_finds_the_mode_of_extreme_counts(eps: float, baseline: float) -> None:
    """Relatives at 0 and 100 %, hundreds of reads, a prior far away, observed curvature of the wrong sign."""
    size = len(QUARTETS.individuals)
    case = _case(QUARTETS, EPIGENETIC, false_methylated=np.full(size, eps), false_unmethylated=np.full(size, eps))
    random = np.random.default_rng(4)
    total = random.integers(1, 200, (15, size))
    level = random.choice([0, 0.01, 0.02, 0.5, 0.98, 1], (15, size))
    inputs = draw_inputs(case, loci=15, nodes=3, seed=4)
    inputs = inputs._replace(
        total=total,
        meth=random.binomial(total, eps + (1 - 2 * eps) * level),
        mixture_mean=np.array([baseline]),
        variances=6 * inputs.variances,
    )
    found, expected = evaluate_nodes(*inputs), dense_results(case, inputs)
    # Whatever the correction is worth here, the mode and the determinant must be right.
    np.testing.assert_allclose(
        found.log_evidence - found.correction, expected.log_evidence - expected.correction, atol=2e-3
    )


def test_no_layout_of_the_arguments_compiles_the_kernel_again() -> None:
    """Views of larger arrays, transposed and read-only ones are taken over into the layout that is compiled."""
    inputs = draw_inputs(CASES["trio"], loci=5, nodes=3, seed=10)._replace(**MIXTURE)
    expected = evaluate_nodes(*inputs)
    compiled_before = len(_entry_point().signatures)
    transposed = inputs._replace(
        variances=np.asfortranarray(inputs.variances),
        tau=np.repeat(inputs.tau, 2, axis=1)[:, ::2],
        mixture_mean=inputs.mixture_mean.copy(),
    )
    transposed.mixture_mean.flags.writeable = False
    for found, known in zip(evaluate_nodes(*transposed), expected, strict=True):
        np.testing.assert_array_equal(found, known)
    assert len(_entry_point().signatures) == compiled_before


def test_one_covered_sample_is_a_one_dimensional_integral() -> None:
    """With all samples but one missing, b + baseline is one Gaussian variable: any hypothesis gives that integral."""
    case = CASES["sib pairs with parents"]
    inputs = draw_inputs(case, loci=8, nodes=1)
    total, meth = np.zeros_like(inputs.total), np.zeros_like(inputs.meth)
    total[:, 2], meth[:, 2] = [1, 1, 5, 5, 40, 40, 40, 7], [0, 1, 0, 2, 0, 13, 40, 7]
    found = evaluate_nodes(*inputs._replace(total=total, meth=meth))
    for locus in range(8):
        variance = inputs.variances[locus, 0].sum() + inputs.mixture_sd[0] ** 2
        sd = np.sqrt(variance)
        y = inputs.mixture_mean[0] + sd * np.linspace(-12, 12, 20001)
        counts = (meth[locus, 2].astype(float), total[locus, 2].astype(float), np.zeros(1), np.zeros(1))
        log_density = log_observation(*(np.asarray(x, dtype=float) for x in counts), y)
        log_density -= 0.5 * ((y - inputs.mixture_mean[0]) / sd) ** 2 + np.log(sd * np.sqrt(2 * np.pi))
        exact = logsumexp(log_density) + np.log(y[1] - y[0])
        assert found.log_evidence[locus, 0] == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("name", ["sib pairs with parents", "everything"])
def test_samples_without_coverage_contribute_nothing(name: str) -> None:
    """The evidence is that of a cohort which never had them, relatives in between included."""
    case = CASES[name]
    inputs = draw_inputs(case, loci=20, nodes=2, seed=9)._replace(**MIXTURE)
    missing = [1, 5]
    total, meth = inputs.total.copy(), inputs.meth.copy()
    total[:, missing], meth[:, missing] = 0, 0
    kept = np.delete(np.arange(len(case.sheet.samples)), missing)
    smaller = make_sheet(
        tuple(case.sheet.individuals[s] for s in kept),
        false_methylated=case.sheet.false_methylated[kept],
        false_unmethylated=case.sheet.false_unmethylated[kept],
        columns={name: tuple(values[s] for s in kept) for name, values in case.sheet.columns.items()},
    )
    # Covariates are standardized over all samples of a sheet: take the larger cohort's columns for the comparison.
    design = build_cohort(case.sheet, case.pedigree, case.covariates, [case.hypothesis]).fields[0].design[kept]
    cohort = build_cohort(smaller, case.pedigree, case.covariates, [case.hypothesis])
    arrays = field_arrays(
        cohort.fields[0]._replace(design=design), smaller.false_methylated, smaller.false_unmethylated
    )
    one = evaluate_nodes(*inputs._replace(total=total, meth=meth))
    other = evaluate_nodes(*inputs._replace(arrays=arrays, total=total[:, kept], meth=meth[:, kept]))
    for found, expected in zip(one, other, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-8)


def test_perfect_transmission_between_clones_is_one_latent() -> None:
    """Without residual and with tau = 1 clones are one individual; the singular covariance must not break anything."""
    clones = make_pedigree(("a",), ("b", "a", None, "clonal"), ("c", "b", None, "clonal", 3))
    inputs = draw_inputs(_case(clones, EPIGENETIC), loci=10, nodes=2)
    inputs = inputs._replace(variances=np.tile([0.8, 0.0], (10, 2, 1)), tau=np.ones((10, 2)))
    replicates = draw_inputs(_case(clones, RESET, "a", "a", "a"), loci=10, nodes=2)
    replicates = replicates._replace(meth=inputs.meth, total=inputs.total, variances=np.full((10, 2, 1), 0.8))
    for found, expected in zip(evaluate_nodes(*inputs), evaluate_nodes(*replicates), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("plants", "reads"), [(100, 60_000), (150, 500)])
def test_large_families_with_many_reads(plants: int, reads: int) -> None:
    """A determinant of a hundred pivots of ten thousand is larger than any double."""
    star = make_pedigree(("p",), *((f"c{i}", "p", None, "selfing", 1 + i % 3) for i in range(plants)))
    case = _case(star, EPIGENETIC, *star.individuals[1:])
    inputs = draw_inputs(case, loci=1, nodes=1)
    total = np.full((1, plants), reads)
    meth = np.random.default_rng(3).binomial(total, 0.4)
    inputs = inputs._replace(total=total, meth=meth, variances=np.array([[[0.5, 0.5]]]), tau=np.array([[0.9]]))
    found, expected = evaluate_nodes(*inputs), dense_results(case, inputs)
    np.testing.assert_allclose(found.log_evidence, expected.log_evidence, atol=1e-3)


# --- matrices --------------------------------------------------------------------------------------------------------


@njit
def factor_rows(rows: NDArray[np.float64], size: int, results: NDArray[np.float64]) -> None:
    """From a lower triangle to that of its inverse, in place; row 0 of `results` becomes the log determinant."""
    kernel_field.clear_determinant(results)
    kernel_field.cholesky(rows, 0, size, results)
    kernel_field.invert(rows, 0, size)
    store(results, 0, kernel_field.log_determinant(results))


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 21])
def test_inverse_and_determinant_against_numpy(size: int) -> None:
    """Another matrix in each lane, from entries of 1e-30 to 1e+30: the larger determinants are beyond a double."""
    random = np.random.default_rng(size)
    root = random.normal(size=(WIDTH, size, size)) + 2 * np.eye(size)
    matrix = root @ np.swapaxes(root, 1, 2) * 10.0 ** np.linspace(-30, 30, WIDTH)[:, None, None]
    rows, results = np.ascontiguousarray(np.tril(matrix).reshape(WIDTH, -1).T), np.empty((2, WIDTH))
    factor_rows(rows, size, results)
    log_determinant = size * np.log(10.0) * np.linspace(-30, 30, WIDTH) + 2 * np.linalg.slogdet(root)[1]
    assert size < 21 or (np.abs(log_determinant) > np.log(np.finfo(float).max)).any()
    np.testing.assert_allclose(results[0], log_determinant, rtol=1e-12, atol=1e-10)
    found, expected = rows.T.reshape(WIDTH, size, size), np.linalg.inv(matrix)
    lower = np.tril_indices(size)
    scale = np.abs(expected).max(axis=(1, 2))[:, None]
    np.testing.assert_allclose(found[:, *lower] / scale, expected[:, *lower] / scale, atol=1e-9)


def test_no_determinant_where_a_matrix_is_not_definite() -> None:
    """In the lanes concerned, and in no others."""
    rows = np.ones((9, WIDTH))
    rows[[0, 4, 8]] = 2.0
    rows[4, 5], rows[0, 7] = 0.5, -1.0
    results = np.empty((2, WIDTH))
    factor_rows(rows, 3, results)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(results[0])), [5, 7])
    np.testing.assert_allclose(np.delete(results[0], [5, 7]), np.log(4.0))


# --- bookkeeping -----------------------------------------------------------------------------------------------------


def test_order_of_loci_does_not_matter() -> None:
    inputs = draw_inputs(CASES["everything"], loci=37, nodes=3, seed=10)._replace(**MIXTURE)
    alone = evaluate_nodes(*inputs)
    order = np.random.default_rng(1).permutation(37)
    shuffled = evaluate_nodes(
        *inputs._replace(**{name: getattr(inputs, name)[order] for name in ("meth", "total", "variances", "tau")})
    )
    for one, other in zip(alone, shuffled, strict=True):
        np.testing.assert_array_equal(one[order], other)


def test_order_of_samples_does_not_matter() -> None:
    """Samples and individuals in another order of the sheet: the same locus."""
    case = CASES["everything"]
    inputs = draw_inputs(case, loci=10, nodes=2, seed=11)
    order = np.random.default_rng(2).permutation(len(case.sheet.samples))
    sheet = make_sheet(
        tuple(case.sheet.individuals[s] for s in order),
        false_methylated=case.sheet.false_methylated[order],
        false_unmethylated=case.sheet.false_unmethylated[order],
        columns={name: tuple(values[s] for s in order) for name, values in case.sheet.columns.items()},
    )
    cohort = build_cohort(sheet, case.pedigree, case.covariates, [case.hypothesis])
    arrays = field_arrays(cohort.fields[0], cohort.false_methylated, cohort.false_unmethylated)
    found = evaluate_nodes(*inputs._replace(arrays=arrays, meth=inputs.meth[:, order], total=inputs.total[:, order]))
    for one, other in zip(found, evaluate_nodes(*inputs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-9)


def test_a_point_without_a_mode_is_flagged() -> None:
    """Not converged is recorded, not hidden: no evidence, a correction that no threshold lets pass, finite moments."""
    inputs = draw_inputs(CASES["trio"], loci=2, nodes=2)._replace(**MIXTURE)
    found = evaluate_nodes(*inputs, tolerance=0.0)  # which no step can meet
    assert (found.correction == NOT_CONVERGED).all()
    assert np.isneginf(found.log_evidence).all()
    assert all(np.isfinite(part).all() for part in found[2:5])


@pytest.mark.parametrize(
    ("eps", "delta", "meth", "total", "variances", "tau"),
    [
        (0.2, 0.0, (1, 1, 0), (1, 2, 2), (12.212, 12.363), 0.4544),
        (0.05, 0.2, (0, 0, 0), (2, 0, 0), (3.071, 0.347), 0.5126),
        (0.01, 0.01, (0, 0, 106), (26406, 57054, 4962), (0.067, 0.104), 0.7957),
    ],
)
def test_flat_modes_cannot_win(
    eps: float, delta: float, meth: tuple[int, ...], total: tuple[int, ...], variances: tuple[float, ...], tau: float
) -> None:
    """Points near the edge of concavity, found by a random search over 128,000: the second-order term was 46 to 4413
    nats there, or everything was infinite. One point must not decide a locus, nor a nan spoil a genome."""
    case = _case(TRIO, EPIGENETIC, false_methylated=np.full(3, eps), false_unmethylated=np.full(3, delta))
    around = np.exp(np.linspace(-0.2, 0.2, 401))
    inputs = draw_inputs(case, loci=1, nodes=1)._replace(
        meth=np.array([meth]),
        total=np.array([total]),
        variances=np.array(variances) * around[None, :, None],
        tau=np.full((1, 401), tau),
        mixture_weight=np.array([0.3, 0.2, 0.5]),
        mixture_mean=np.array([-5.0, 0.0, 4.0]),
        mixture_sd=np.array([0.4, 1.0, 0.5]),
    )
    found = evaluate_nodes(*inputs)
    usable = np.isfinite(found.log_evidence)
    assert usable.mean() > 0.8
    assert (found.correction[~usable] == NOT_CONVERGED).all()
    assert np.ptp(found.log_evidence[usable]) < 15
    assert all(np.isfinite(part).all() for part in found[1:])
