"""Averages over hypotheses: quantiles and distribution functions of mixtures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr, ndtri

Array = NDArray[np.float64]
BISECTIONS = 28  # of a range of 52: to 2e-7
UNCONSTRAINED_BOUND = 25.0  # of logits and logs that a quantile may take
NARROWEST = 1e-9  # distance of a quantile from the median; an atom has it on both sides
ATOM_TOLERANCE = 1e-6  # between an atom and a value that is to lie on it

# To and from the unconstrained scale of parameters that are no fractions.
FORWARD: Mapping[str, Callable[[Array], Array]] = {
    "spread": np.log,
    "log_fitness": np.asarray,
    "effect": np.asarray,
}
BACKWARD: Mapping[str, Callable[[Array], Array]] = {
    "spread": np.exp,
    "log_fitness": np.asarray,
    "effect": np.asarray,
}


def averaged_quantile(
    parameter: str, probability: Array, low: Array, middle: Array, high: Array, level: float
) -> Array:
    """Quantile [L] of the mixture over hypotheses of a parameter, from each one's 5, 50 and 95 % quantiles [L, H].

    On the unconstrained scale (of FORWARD, else logit) a hypothesis's posterior is taken as two half-normals
    that meet at the median and fit the outer quantiles; a fixed or absent parameter is an atom.
    """
    backward = BACKWARD.get(parameter, expit)
    halves = _half_normals(parameter, low, middle, high)
    lower = np.full(len(probability), -UNCONSTRAINED_BOUND - 1.0)
    upper = -lower
    for _ in range(BISECTIONS):
        x = 0.5 * (lower + upper)
        is_below = (probability * _half_normal_cdf(halves, x)).sum(1) < level
        lower, upper = np.where(is_below, x, lower), np.where(is_below, upper, x)
    quantile = backward(upper)
    # An atom at 0 or 1 lies at the bound of the unconstrained scale.
    if parameter not in BACKWARD:
        quantile = np.where(upper <= -UNCONSTRAINED_BOUND + 1e-6, 0.0, quantile)
        quantile = np.where(upper >= UNCONSTRAINED_BOUND - 1e-6, 1.0, quantile)
    return quantile


def averaged_effect(probability: Array, low: Array, middle: Array, high: Array, level: float) -> Array:
    """The same of a covariate's effect, in whatever units: exactly 0 where the quantile falls on the atom of
    hypotheses that lack the covariate."""
    largest = np.max(np.abs([low, middle, high]), axis=(0, 2))
    scale = np.where(largest > 0.0, largest, 1.0)
    has_atom = ((low == 0.0) & (high == 0.0)).any(1)
    low, middle, high = (x / scale[:, None] for x in (low, middle, high))
    quantile = averaged_quantile("effect", probability, low, middle, high, level)
    return np.where(has_atom & (np.abs(quantile) < ATOM_TOLERANCE), 0.0, scale * quantile)


def averaged_cdf(
    parameter: str, probability: Array, low: Array, middle: Array, high: Array, value: Array
) -> tuple[Array, Array]:
    """P(parameter < value) and P(parameter <= value), [L], under the mixture that averaged_quantile describes.

    low, middle, high, probability: [L, H]; value: [L]. The two differ where the value is an atom of a hypothesis.
    """
    halves = _half_normals(parameter, low, middle, high)
    x = unconstrained(parameter, value)
    is_atom = halves.above + halves.below < 4 * NARROWEST
    at_atom = is_atom & (np.abs(x[:, None] - halves.middle) < ATOM_TOLERANCE)
    distribution = np.where(is_atom, (x[:, None] > halves.middle).astype(float), _half_normal_cdf(halves, x))
    return (
        (probability * np.where(at_atom, 0.0, distribution)).sum(1),
        (probability * np.where(at_atom, 1.0, distribution)).sum(1),
    )


class _HalfNormals(NamedTuple):
    """Two half-normals that meet at the median, on the unconstrained scale, [L, H]; an atom where they are narrow."""

    middle: Array
    below: Array  # SD
    above: Array  # SD


def unconstrained(parameter: str, value: Array) -> Array:
    """Values of a parameter on the scale of its quantiles: as in FORWARD, else logit; within the bound."""
    with np.errstate(divide="ignore"):
        scaled = FORWARD.get(parameter, logit)(value)
    return np.clip(scaled, -UNCONSTRAINED_BOUND, UNCONSTRAINED_BOUND)


def _half_normals(parameter: str, low: Array, middle: Array, high: Array) -> _HalfNormals:
    low, middle, high = (unconstrained(parameter, x) for x in (low, middle, high))
    z95 = float(ndtri(0.95))
    return _HalfNormals(middle, np.maximum(middle - low, NARROWEST) / z95, np.maximum(high - middle, NARROWEST) / z95)


def _half_normal_cdf(halves: _HalfNormals, x: Array) -> Array:
    """[L, H] at x [L]."""
    offset = x[:, None] - halves.middle
    return ndtr(offset / np.where(offset < 0, halves.below, halves.above))
