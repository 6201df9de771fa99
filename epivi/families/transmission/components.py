"""Variance components of a hypothesis from its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from epivi.families.transmission.hypotheses import TRANSMISSIBILITY, Hypothesis

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value", NDArray[np.float64], "Tensor")


def divide(hypothesis: Hypothesis, parameters: Mapping[str, Value], sigmoid: Callable[[Value], Value]) -> list[Value]:
    """Parts of a variance of one: of each component as declared, and of the residual, which has what they leave.

    The share of a component is a share of what those before it leave.
    """
    left: Any = 1.0 + 0.0 * parameters["log_spread"]
    parts: list[Value] = []
    for component in hypothesis.components:
        share: Any = sigmoid(parameters[component.parameter]) if component.share == "free" else float(component.share)
        parts.append(left * share)
        left = left * (1.0 - share)
    return [*parts, left]


def _named(hypothesis: Hypothesis, theta: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    return {name: theta[..., d] for d, name in enumerate(hypothesis.parameters)}


def shares_at(hypothesis: Hypothesis, theta: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Share [...] of the whole variance that each component has at every node, by the component's name."""
    parts = divide(hypothesis, _named(hypothesis, theta), expit)
    return {component.name: part for component, part in zip(hypothesis.components, parts[:-1], strict=True)}


def transmissibility_at(hypothesis: Hypothesis, theta: NDArray[np.float64]) -> NDArray[np.float64]:
    if hypothesis.has_free_transmissibility:
        return expit(theta[..., hypothesis.parameters.index(TRANSMISSIBILITY)])
    return np.zeros(theta.shape[:-1])


def variance_components_at(
    hypothesis: Hypothesis, theta: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variance of each component and of the residual [..., C + 1], and tau [...], at every node."""
    variance = np.exp(2 * theta[..., 0])
    parts: Sequence[NDArray[np.float64]] = divide(hypothesis, _named(hypothesis, theta), expit)
    return np.stack([variance * part for part in parts], axis=-1), transmissibility_at(hypothesis, theta)
