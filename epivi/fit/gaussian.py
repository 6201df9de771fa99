"""The Gaussian that an amortized guide gives to the free parameters of a locus."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

OUTPUT_BOUND = 4.0  # predictions stay within this many prior or standard deviations of their starting value


class GaussianTheta(NamedTuple):
    """q(theta) of one hypothesis: mean [B, D], lower factor [B, D, D]; D = P effects, then the free parameters."""

    mean: Tensor
    scale_tril: Tensor


def bounded_gaussian(output: Tensor, centre: Tensor, width: Tensor) -> GaussianTheta:
    """The Gaussian that a network's output [B, D + D (D + 1) / 2] moves away from its start: centre, width [B, D]."""
    d = centre.shape[1]
    mean = centre + width * OUTPUT_BOUND * torch.tanh(output[:, :d] / OUTPUT_BOUND)
    factor = output.new_zeros(len(output), d, d)
    row, column = torch.tril_indices(d, d)
    factor[:, row, column] = OUTPUT_BOUND * torch.tanh(output[:, d:] / OUTPUT_BOUND)
    diagonal = torch.diagonal(factor, dim1=1, dim2=2)
    scale = width * torch.exp(diagonal)
    return GaussianTheta(mean, torch.tril(factor, -1) * width[:, :, None] + torch.diag_embed(scale))


def quiet_linear(inputs: int, outputs: int) -> nn.Linear:
    """A layer that starts near zero, so that predictions start at their starting values."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=1e-2)
    nn.init.zeros_(layer.bias)
    return layer
