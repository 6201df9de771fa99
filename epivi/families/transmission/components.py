"""Variance components of a hypothesis from its parameters."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from epivi.families.transmission.hypotheses import Hypothesis
from epivi.field.torch.prior import Theta


def share_at(hypothesis: Hypothesis, theta: NDArray[np.float64], declared: float | str | None, name: str) -> NDArray:
    """Value of a share at every node: free, fixed, or zero where the component is absent."""
    if declared == "free":
        return expit(theta[..., hypothesis.parameters.index(name)])
    return np.full(theta.shape[:-1], 0.0 if declared is None else float(declared))


def transmissibility_at(hypothesis: Hypothesis, theta: NDArray[np.float64]) -> NDArray[np.float64]:
    if hypothesis.has_free_transmissibility:
        return expit(theta[..., hypothesis.parameters.index("logit_transmissibility")])
    return np.zeros(theta.shape[:-1])


def variance_components_at(
    hypothesis: Hypothesis, theta: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Heritable, environment and residual variance [..., 3], and tau [...], at every node."""
    variance = np.exp(2 * theta[..., 0])
    rho = share_at(hypothesis, theta, hypothesis.heritable_share, "logit_heritable_share")
    eta = share_at(hypothesis, theta, hypothesis.environment_share, "logit_environment_share")
    parts = (variance * rho, variance * (1 - rho) * eta, variance * (1 - rho) * (1 - eta))
    return np.stack(parts, axis=-1), transmissibility_at(hypothesis, theta)


def variance_components(hypothesis: Hypothesis, parameters: Mapping[str, Tensor]) -> Theta:
    """Divide sigma^2 among the hypothesis's components; absent ones are zero, fixed ones as declared."""
    variance = torch.exp(2 * parameters["log_spread"])
    zero = torch.zeros_like(variance)

    def share(declared: float | str | None, name: str) -> Tensor:
        if declared is None:
            return zero
        return torch.sigmoid(parameters[name]) if declared == "free" else zero + float(declared)

    rho = share(hypothesis.heritable_share, "logit_heritable_share")
    eta = share(hypothesis.environment_share, "logit_environment_share")
    tau = torch.sigmoid(parameters["logit_transmissibility"]) if hypothesis.has_free_transmissibility else zero
    return Theta(variance * rho, variance * (1 - rho) * eta, variance * (1 - rho) * (1 - eta), tau)
