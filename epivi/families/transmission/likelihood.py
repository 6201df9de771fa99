"""Binomial counts read through conversion and call errors."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid


class MethylationCounts(TorchDistribution):
    """m ~ Binomial(n, eps + (1 - eps - delta) sigmoid(y)); a missing sample has n = 0 and contributes nothing.

    total, logit: [..., S]; false_methylated (eps) and false_unmethylated (delta): [S]; log_binomial: [..., S], the
    constant log(n choose m), precomputed because it is the same at every step.
    """

    arg_constraints = {"logit": constraints.real}  # noqa: RUF012
    support = constraints.nonnegative_integer

    def __init__(
        self, total: Tensor, logit: Tensor, false_methylated: Tensor, false_unmethylated: Tensor, log_binomial: Tensor
    ) -> None:
        self.total = total
        self.logit = logit
        self.false_methylated = false_methylated
        self.false_unmethylated = false_unmethylated
        self.log_binomial = log_binomial
        super().__init__(logit.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MethylationCounts:
        return MethylationCounts(
            self.total.expand(batch_shape),
            self.logit.expand(batch_shape),
            self.false_methylated,
            self.false_unmethylated,
            self.log_binomial.expand(batch_shape),
        )

    def log_prob(self, value: Tensor) -> Tensor:
        log_methylated, log_unmethylated = log_read_probabilities(
            self.logit, self.false_methylated, self.false_unmethylated
        )
        return self.log_binomial + value * log_methylated + (self.total - value) * log_unmethylated

    def sample(self, sample_shape: Any = ()) -> Tensor:
        log_methylated, _ = log_read_probabilities(self.logit, self.false_methylated, self.false_unmethylated)
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            return torch.binomial(self.total.expand(shape), log_methylated.exp().expand(shape))


def log_read_probabilities(
    logit: Tensor, false_methylated: Tensor, false_unmethylated: Tensor
) -> tuple[Tensor, Tensor]:
    """log P(read methylated) and log P(read unmethylated), finite in value and gradient at any logit."""
    log_gain = torch.log1p(-false_methylated - false_unmethylated)
    return (
        torch.logaddexp(torch.log(false_methylated), log_gain + logsigmoid(logit)),
        torch.logaddexp(torch.log(false_unmethylated), log_gain + logsigmoid(-logit)),
    )


def read_slope(
    meth: Tensor, total: Tensor, logit: Tensor, false_methylated: Tensor, false_unmethylated: Tensor
) -> Tensor:
    """Derivative of the log-likelihood in the logit."""
    # Beyond the limit the slope no longer changes, and the probabilities would underflow.
    limit = -0.9 * math.log(torch.finfo(logit.dtype).tiny)
    logit = logit.clamp(-limit, limit)
    sigmoid = torch.sigmoid(logit)
    gain = 1 - false_methylated - false_unmethylated
    methylated = false_methylated + gain * sigmoid
    unmethylated = false_unmethylated + gain * torch.sigmoid(-logit)
    density = gain * sigmoid * torch.sigmoid(-logit)
    return meth * (density / methylated) - (total - meth) * (density / unmethylated)
