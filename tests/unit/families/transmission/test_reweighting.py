"""The likelihood of what all loci share and its slopes, against brute-force quadrature and against new evidences."""

from __future__ import annotations

import numpy as np
import pytest
from shared_cases import EFFECT_SD, LOCATION, LOCI, SCALE, Brute, brute, model_at, related_model, unrelated

from epivi.families.transmission.reweighting import (
    SCALE_BOUNDS,
    SD_BOUNDS,
    Reweighting,
    is_at_bound,
    learned_at,
    maximum,
    scores,
    standard_errors,
    vector_of,
)
from epivi.families.transmission.shared import reweighting_of


@pytest.fixture(scope="module")
def exact() -> Brute:
    return brute(loci=6)


@pytest.fixture(scope="module")
def reweighting() -> Reweighting:
    return reweighting_of(model_at(EFFECT_SD, LOCATION, SCALE), unrelated(6), seed=1)


def test_slopes_are_those_of_the_likelihood_by_quadrature(exact: Brute, reweighting: Reweighting) -> None:
    """Of each locus, in the log of the effect's SD, the location and the log of the scale, at the values of the nodes.

    32 nodes and expectation propagation are off by up to .01 nats and .01 in a slope, against slopes of order 1.
    """
    at = np.array([np.log(EFFECT_SD), LOCATION, np.log(SCALE)])
    found = scores(reweighting, vector_of(reweighting.at))
    np.testing.assert_allclose(found.log_likelihood, exact.log_likelihood(at), atol=0.02)
    slopes = exact.slopes(at)
    assert np.abs(slopes).max() > 0.5
    np.testing.assert_allclose(found.derivative[:, :3], slopes, atol=0.03)


@pytest.mark.parametrize("away", [(0.3, 0.0, 0.0), (-0.4, 0.0, 0.0), (0.0, 0.1, 0.3), (0.2, -0.1, -0.3)])
def test_the_likelihood_holds_away_from_the_nodes(
    away: tuple[float, float, float], exact: Brute, reweighting: Reweighting
) -> None:
    vector = vector_of(reweighting.at)
    moved = vector + np.array([*away, 0.0])
    change = scores(reweighting, moved).log_likelihood - scores(reweighting, vector).log_likelihood
    expected = exact.log_likelihood(moved[:3]) - exact.log_likelihood(vector[:3])
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(change, expected, atol=0.02)
    np.testing.assert_allclose(scores(reweighting, moved).derivative[:, :3], exact.slopes(moved[:3]), atol=0.06)


def test_hypotheses_are_summed_out_with_their_weights() -> None:
    """With two hypotheses, one of which lacks the covariate: slopes are those of the log likelihood itself."""
    model, counts = related_model(), unrelated(5)
    reweighting = reweighting_of(model, counts, seed=1)
    vector = vector_of(model.learned)
    vector[-2:] = [0.0, -1.0]
    found = scores(reweighting, vector)
    np.testing.assert_allclose(found.probability.sum(1), 1)
    for parameter in range(len(vector)):
        step = np.where(np.arange(len(vector)) == parameter, 1e-4, 0.0)
        above, below = (scores(reweighting, vector + way * step).log_likelihood for way in (1, -1))
        np.testing.assert_allclose(found.derivative[:, parameter], (above - below) / 2e-4, atol=1e-5)


def test_a_step_stays_within_its_radius_and_the_bounds(reweighting: Reweighting) -> None:
    start = vector_of(reweighting.at)
    found = maximum(reweighting, 0.05)
    assert np.abs(found - start)[:3].max() <= 0.05 + 1e-12
    assert scores(reweighting, found).log_likelihood.mean() > scores(reweighting, start).log_likelihood.mean()
    extreme = reweighting.at._replace(effect_sds=np.array([1e-9]), spread_scale=99.0)
    np.testing.assert_allclose(np.exp(vector_of(extreme)[[0, 2]]), [SD_BOUNDS[0], SCALE_BOUNDS[1]])
    assert is_at_bound(reweighting, vector_of(extreme)).tolist() == [True, False, True, False]
    assert learned_at(vector_of(extreme), extreme).effect_sds.tolist() == pytest.approx([SD_BOUNDS[0]])


def test_standard_errors_are_those_of_the_information() -> None:
    """At the maximum, against slopes and second derivatives by quadrature. At a bound there is none."""
    reweighting = reweighting_of(model_at(EFFECT_SD, LOCATION, SCALE), unrelated(LOCI), seed=1)
    exact, vector = brute(LOCI), maximum(reweighting, 1.0)
    errors = standard_errors(reweighting, vector, blocks=LOCI)
    np.testing.assert_allclose(errors[:3], exact.standard_errors(vector[:3]), rtol=0.08)
    vector[0] = np.log(SD_BOUNDS[0])
    at_bound = standard_errors(reweighting, vector, blocks=LOCI)
    assert np.isnan(at_bound[0])
    assert np.isfinite(at_bound[1:3]).all()
    assert np.isnan(errors[3])
