"""Expectation propagation in lanes against the dense one, which shares no code with it, and against outside values."""

from __future__ import annotations

import numpy as np
import pytest
from test_laplace import (
    CASES,
    HOSPITAL_DEATHS,
    HOSPITAL_PATIENTS,
    MIXTURE,
    Case,
    Inputs,
    draw_inputs,
    independent_arrays,
    residual_grid,
)

from epivi.families.transmission.cohort import build_cohort
from epivi.field.compiled.expectation_propagation import LARGEST_MISMATCH
from epivi.field.compiled.laplace import NOT_CONVERGED
from epivi.field.compiled.nodes import evaluate_nodes
from epivi.field.dense.expectation_propagation import ep
from epivi.field.dense.problem import FieldPosterior, FieldVariances, build_field_problem


def dense(case: Case, inputs: Inputs, node: int) -> FieldPosterior:
    cohort = build_cohort(case.sheet, case.pedigree, case.covariates, [case.hypothesis])
    problem = build_field_problem(
        cohort.fields[0],
        cohort,
        FieldVariances(inputs.variances[:, node], inputs.tau[:, node]),
        np.array([inputs.mixture_mean[0], *np.zeros(len(inputs.effect_sd))]),
        np.array([inputs.mixture_sd[0], *inputs.effect_sd]) ** 2,
        inputs.meth,
        inputs.total,
    )
    return ep(problem)


@pytest.mark.parametrize("name", CASES)
def test_against_the_dense_algorithm(name: str) -> None:
    """Evidence to 1e-4 nats, the effects' means to 2e-3 SDs and variances to 0.2 %, at every node but the central.

    The kernel stops at a mismatch of 1e-3 SDs, and passes the baseline's moments through the skewed Gaussian that
    stands for the merged components: with skewness g that adds g^2 / 18 to the variance, relatively.
    """
    case = CASES[name]
    inputs = draw_inputs(case, loci=6, nodes=4)
    found, start = evaluate_nodes(*inputs, method="ep"), evaluate_nodes(*inputs)
    np.testing.assert_array_equal(found.log_evidence[:, 0], start.log_evidence[:, 0])
    assert np.abs(found.log_evidence - start.log_evidence)[:, 1:].max() > 1e-3, "equal to Laplace: nothing is tested"
    for node in range(1, 4):
        expected = dense(case, inputs, node)
        assert expected.converged.all()
        np.testing.assert_allclose(found.log_evidence[:, node], expected.log_evidence, atol=1e-4)
        effects = found.effect_mean.shape[2]
        sd = np.sqrt(np.diagonal(expected.covariance, axis1=1, axis2=2)[:, :effects])
        assert (np.abs(found.effect_mean[:, node] - expected.mean[:, :effects]) / sd).max() < 2 * np.sqrt(
            LARGEST_MISMATCH
        )
        skewness = found.effect_third[:, node] / sd**3
        skewness[:, 1:] = 0
        np.testing.assert_allclose(found.effect_variance[:, node], sd**2 * (1 + skewness**2 / 18), rtol=2e-3)


@pytest.mark.parametrize("method", ["laplace", "ep"])
@pytest.mark.parametrize("name", ["trio", "everything"])
def test_step_at_the_central_node(name: str, method: str) -> None:
    """What propagation changes at the central node is what it changes at another node of the same variances, to 1e-6
    with one component of the baseline's prior, and to 5e-4 with three, of which those without weight are left out.

    Forty loci, in two batches of lanes.
    """
    inputs = draw_inputs(CASES[name], loci=40, nodes=2)
    inputs.variances[:, 1], inputs.tau[:, 1] = inputs.variances[:, 0], inputs.tau[:, 0]
    for prior, nats in (({}, 1e-6), (MIXTURE, 5e-4)):
        asked = inputs._replace(**prior)
        by_laplace, propagated = (evaluate_nodes(*asked, method=each) for each in ("laplace", "ep"))
        expected = propagated.log_evidence[:, 1] - by_laplace.log_evidence[:, 1]
        np.testing.assert_allclose(evaluate_nodes(*asked, method=method).central_step, expected, rtol=0, atol=nats)
        assert np.ptp(expected) > 5e-3


def test_coupled_gaussian_field_oracle() -> None:
    """T1: the exact log evidence is -40.666563, expectation propagation outside this project gave -40.666577."""
    variances, tau = residual_grid(np.array([0.4, 0.4]))
    found = evaluate_nodes(
        independent_arrays(np.ones((12, 1))),
        HOSPITAL_DEATHS[None],
        HOSPITAL_PATIENTS[None],
        variances,
        tau,
        *(np.array([x]) for x in (1.0, -2.5, 1.0)),
        np.zeros(0),
        method="ep",
    )
    assert found.log_evidence[0, 1] == pytest.approx(-40.666577, abs=2e-6)


def test_neighbours_in_other_lanes_do_not_matter() -> None:
    """A locus has the same evidence alone as among others, which take other numbers of sweeps."""
    inputs = draw_inputs(CASES["conversion errors"], loci=5, nodes=40)
    together = evaluate_nodes(*inputs, method="ep")
    alone = evaluate_nodes(
        *inputs._replace(
            meth=inputs.meth[3:4], total=inputs.total[3:4], variances=inputs.variances[3:4], tau=inputs.tau[3:4]
        ),
        method="ep",
    )
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one[3:4], other, rtol=1e-12)


def test_what_does_not_converge_is_flagged() -> None:
    """All reads of thousands alike, and a spread of thousands: no tilted distribution is near a Gaussian."""
    inputs = draw_inputs(CASES["conversion errors"], loci=2, nodes=3)
    total = np.full(inputs.total.shape, 20_000, dtype=np.uint16)
    found = evaluate_nodes(
        *inputs._replace(
            meth=total, total=total, variances=np.full_like(inputs.variances, 1e6), mixture_sd=np.array([1e3])
        ),
        method="ep",
    )
    assert (found.correction[:, 1:] == NOT_CONVERGED).all()
    assert np.isinf(found.central_step).all()
    assert not np.isnan(found.log_evidence).any()
