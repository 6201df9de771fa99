"""Averages over hypotheses: the distribution function against the quantile, atoms included."""

from __future__ import annotations

import numpy as np
import pytest

from epivi.discovery.average import averaged_cdf, averaged_quantile

RANDOM = np.random.default_rng(4)
PROBABILITY = RANDOM.dirichlet((1, 1, 1), 40)


@pytest.mark.parametrize("parameter", ["baseline", "spread", "log_fitness"])
@pytest.mark.parametrize("level", [0.02, 0.3, 0.5, 0.97])
def test_the_distribution_function_is_the_inverse_of_the_quantile(parameter: str, level: float) -> None:
    middle = RANDOM.uniform(0.2, 0.8, (40, 3))
    low, high = middle * RANDOM.uniform(0.3, 0.9, (40, 3)), middle + (1 - middle) * RANDOM.uniform(0.1, 0.9, (40, 3))
    quantile = averaged_quantile(parameter, PROBABILITY, low, middle, high, level)
    below, up_to = averaged_cdf(parameter, PROBABILITY, low, middle, high, quantile)
    np.testing.assert_allclose(below, level, atol=1e-5)
    np.testing.assert_array_equal(below, up_to)


def test_an_atom_is_below_nothing_and_counts_at_its_place() -> None:
    """A hypothesis without transmission has transmissibility 0: its whole probability lies there."""
    low, middle, high = (np.tile([0.0, value, 1.0], (40, 1)) for value in (0.2, 0.5, 0.8))
    for value, atoms in ((0.0, PROBABILITY[:, 0]), (1.0, PROBABILITY[:, 2])):
        below, up_to = averaged_cdf("tau", PROBABILITY, low, middle, high, np.full(40, value))
        np.testing.assert_allclose(up_to - below, atoms, atol=1e-9)
    np.testing.assert_allclose(up_to, 1.0)
    half = averaged_cdf("tau", PROBABILITY, low, middle, high, np.full(40, 0.5))[0]
    np.testing.assert_allclose(half, PROBABILITY[:, 0] + 0.5 * PROBABILITY[:, 1], atol=1e-9)
