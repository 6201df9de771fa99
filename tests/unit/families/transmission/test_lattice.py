"""The generating vectors, by the definition of their error, by simulation, and against other vectors."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtri

from epivi.families.transmission.lattice import HALF_SHARE, RELATIVE_SDS, generating_vector

Array = NDArray[np.float64]


def ratio(u: Array, sd: Array) -> Array:
    """Density of N(0, diag(sd)^2) over that of a standard normal, at the normal scores of u [..., D]."""
    z = ndtri(u)
    return np.asarray(np.exp(-0.5 * z**2 * (1 / sd**2 - 1)) / sd).prod(-1)


def simulated_error(vector: tuple[int, ...], nodes: int, sd: Array, shifts: int = 400) -> float:
    """Root-mean-square error of the mean over shifted lattices; the integral is one."""
    shift = np.random.default_rng(1).random((shifts, 1, len(vector)))
    points = np.mod(np.outer(np.arange(nodes), vector) / nodes + shift, 1)
    return float(np.sqrt(((ratio(points, sd).mean(1) - 1) ** 2).mean()))


ORDER = 24  # of the frequencies that are summed


@cache
def mean_power() -> Array:
    """|f^(k)|^2 for k = -ORDER ... ORDER, averaged over RELATIVE_SDS, by a fine midpoint rule."""
    u = (np.arange(2**14) + 0.5) / 2**14
    waves = np.exp(-2j * np.pi * np.outer(np.arange(-ORDER, ORDER + 1), u))
    values = [ratio(u[:, None], np.array([sd])) for sd in RELATIVE_SDS]
    return np.asarray((np.abs(waves @ np.transpose(values) / len(u)) ** 2).mean(1))


def error_by_definition(vector: tuple[int, ...], nodes: int) -> float:
    """Mean variance over the product of RELATIVE_SDS, summed over the dual lattice frequency by frequency."""
    axis = np.arange(-ORDER, ORDER + 1)
    frequencies = np.stack(np.meshgrid(*(axis,) * len(vector), indexing="ij"), -1).reshape(-1, len(vector))
    dual = (frequencies @ np.array(vector) % nodes == 0) & (frequencies != 0).any(1)
    return float(mean_power()[frequencies[dual] + ORDER].prod(1).sum())


@pytest.mark.parametrize(("dimensions", "nodes"), [(2, 32), (2, 64), (3, 32), (3, 64)])
def test_no_vector_of_many_is_better(dimensions: int, nodes: int) -> None:
    """By the sum over the dual lattice, which the search does not form, against every vector or 100 random ones."""
    random = np.random.default_rng(2)
    others = (
        [(1, z) for z in range(1, nodes)]
        if dimensions == 2
        else [(1, *(int(z) for z in random.integers(1, nodes, 2))) for _ in range(100)]
    )

    def objective(vector: tuple[int, ...]) -> float:
        return error_by_definition(vector, nodes) + HALF_SHARE * error_by_definition(vector, nodes // 2)

    errors = [objective(vector) for vector in others]
    chosen = objective(generating_vector(dimensions, nodes))
    assert chosen <= min(errors) * (1 + 1e-6)
    assert np.median(errors) > 4 * chosen, "any vector would do, and nothing is tested"


@pytest.mark.parametrize(
    ("dimensions", "nodes", "sd", "largest"),
    [
        *((1, 32, 0.5, 1e-5), (2, 32, 0.5, 1e-3), (2, 32, 0.65, 4e-3), (3, 64, 0.5, 1e-3), (3, 64, 0.65, 5e-3)),
        *((5, 128, 0.5, 5e-3), (5, 128, 0.65, 0.02), (6, 256, 0.5, 0.03), (6, 256, 0.65, 0.02), (7, 512, 0.65, 0.02)),
    ],
)
def test_error_on_a_normal_posterior(dimensions: int, nodes: int, sd: float, largest: float) -> None:
    """Relative error of an evidence whose posterior is half as wide as the proposal, and wider."""
    assert simulated_error(generating_vector(dimensions, nodes), nodes, np.full(dimensions, sd)) < largest


@pytest.mark.parametrize(("dimensions", "nodes"), [(1, 32), (2, 32), (3, 64)])
def test_halves_tell_the_error(dimensions: int, nodes: int) -> None:
    """Every second point is a lattice that is itself good to a few hundredths: the two halves differ by little, but by
    more than the error of the whole."""
    vector = generating_vector(dimensions, nodes)
    half = simulated_error(vector, nodes // 2, np.full(dimensions, 0.65))
    assert 1.5 * simulated_error(vector, nodes, np.full(dimensions, 0.65)) < half < 0.03


def test_unequal_and_tilted_posteriors() -> None:
    """Different SDs in every direction: still several times better than random points, whose error is over 0.1."""
    sd = np.array([0.4, 0.6, 0.5])
    assert simulated_error(generating_vector(3, 64), 64, sd) < 0.01
    random = np.random.default_rng(3).random((400, 64, 3))
    assert np.sqrt(((ratio(random, sd).mean(1) - 1) ** 2).mean()) > 0.1


def test_every_point_is_used_once() -> None:
    """All points differ, also where a component shares a factor with their number; four dimensions build on three."""
    for nodes in (32, 36, 64, 100):
        vector = generating_vector(4, nodes)
        assert vector[:3] == generating_vector(3, nodes)
        points = np.outer(np.arange(nodes), vector) % nodes
        assert len(np.unique(points, axis=0)) == nodes
    assert generating_vector(1, 32) == (1,)
