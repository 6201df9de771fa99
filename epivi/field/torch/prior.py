"""The prior of the latent field in torch: blocks of relatives and the factor of their covariance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from epivi.field.layout import LatentField

# Share of the variance of b added to it, so that a covariance that fixed shares leave singular can be factored; in
# single precision it must stay visible next to one.
NUGGET = {torch.float64: 1e-10, torch.float32: 1e-5}


class BlockGroup(NamedTuple):
    """All blocks of one size n of a field."""

    polynomial: Tensor  # [E, F, n, n], A(tau) = sum_e polynomial[e] tau^e
    together: Tensor  # [F, n, n], 1 where two individuals share the environment column's level


class FieldTensors(NamedTuple):
    """A LatentField as tensors; latents are ordered group by group, block by block."""

    groups: tuple[BlockGroup, ...]
    latent_of_sample: Tensor  # [S]
    design: Tensor  # [S, P]
    design_column: Tensor  # [P - 1]


class Theta(NamedTuple):
    """Variance components at each locus, [B]."""

    heritable: Tensor
    environment: Tensor
    residual: Tensor
    tau: Tensor


def field_tensors(field: LatentField, device: torch.device, dtype: torch.dtype) -> FieldTensors:
    """Group the blocks of a field by size, so that each group is one batched factorization."""
    sizes = np.diff(field.block_start)
    degree = int(field.entry_exponent.max(initial=0)) + 1
    new_latent = np.empty(len(field.group), dtype=np.int64)
    groups, offset = [], 0
    for n in np.unique(sizes):
        blocks = np.flatnonzero(sizes == n)
        polynomial = np.zeros((degree, len(blocks), n, n))
        together = np.zeros((len(blocks), n, n))
        for f, block in enumerate(blocks):
            start = field.block_start[block]
            entries = slice(field.entry_start[block], field.entry_start[block + 1])
            row, column = field.entry_row[entries], field.entry_column[entries]
            polynomial[field.entry_exponent[entries], f, row, column] = field.entry_coefficient[entries]
            polynomial[field.entry_exponent[entries], f, column, row] = field.entry_coefficient[entries]
            level = field.group[start : start + n]
            together[f] = (level[:, None] == level[None, :]) & (level[:, None] >= 0)
            new_latent[start : start + n] = offset + np.arange(n)
            offset += int(n)
        groups.append(
            BlockGroup(
                torch.as_tensor(polynomial, dtype=dtype, device=device),
                torch.as_tensor(together, dtype=dtype, device=device),
            )
        )
    return FieldTensors(
        tuple(groups),
        torch.as_tensor(new_latent[field.latent_of_sample], device=device),
        torch.as_tensor(field.design, dtype=dtype, device=device),
        torch.as_tensor(field.design_column.astype(np.int64), device=device),
    )


def latent_positions(field: LatentField, tensors: FieldTensors) -> np.ndarray:
    """Where each latent of the field, in its order, stands among its tensors' latents, [N]; each has a sample."""
    position = np.empty(len(field.group), dtype=np.int64)
    position[field.latent_of_sample] = tensors.latent_of_sample.cpu().numpy()
    return position


def prior_factor(group: BlockGroup, theta: Theta) -> Tensor:
    """Lower Cholesky factor [B, F, n, n] of the covariance of b in one group of blocks."""
    degree, _, n, _ = group.polynomial.shape
    powers = theta.tau[:, None] ** torch.arange(degree, device=theta.tau.device)
    eye = torch.eye(n, dtype=theta.tau.dtype, device=theta.tau.device)

    def each(value: Tensor) -> Tensor:
        return value[:, None, None, None]

    nugget = NUGGET[theta.tau.dtype] * (theta.heritable + theta.environment + theta.residual)
    covariance = (
        each(theta.heritable) * torch.einsum("be,efij->bfij", powers, group.polynomial)
        + each(theta.environment) * group.together
        + each(theta.residual + nugget) * eye
    )
    return torch.linalg.cholesky(covariance) if n > 1 else covariance.sqrt()
