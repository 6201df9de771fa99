"""The prior of the latent field in torch: blocks of relatives and the factor of their covariance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from epivi.field.layout import NUGGET, NUGGET_SINGLE, Entries, LatentField


class BlockCovariance(NamedTuple):
    """The covariance of F blocks of one size n: a sum over T terms, each of one component and one power of tau."""

    component: Tensor  # [T]
    exponent: Tensor  # [T]
    coefficient: Tensor  # [T, F, n, n]

    @property
    def blocks(self) -> int:
        return self.coefficient.shape[1]

    @property
    def size(self) -> int:
        return self.coefficient.shape[-1]

    def at(self, variances: Tensor, tau: Tensor) -> Tensor:
        """The covariance [B, F, n, n] at variances [B, C + 1], the residual last, and tau [B]."""
        terms, blocks, n, _ = self.coefficient.shape
        weight = variances[:, self.component] * tau[:, None] ** self.exponent
        shared = (weight @ self.coefficient.reshape(terms, blocks * n * n)).reshape(len(tau), blocks, n, n)
        nugget = NUGGET if tau.dtype == torch.float64 else NUGGET_SINGLE
        own = variances[:, -1] + nugget * variances.sum(1)
        return shared + own[:, None, None, None] * torch.eye(n, dtype=tau.dtype, device=tau.device)


def block_covariance(
    entries: Entries, blocks: NDArray[np.intp], device: torch.device, dtype: torch.dtype
) -> BlockCovariance:
    """Lay out the entries of some blocks [F], all of one size."""
    n = int(entries.block_start[blocks[0] + 1] - entries.block_start[blocks[0]])
    stop = entries.entry_start[blocks + 1]
    count = stop - entries.entry_start[blocks]
    of_block = np.repeat(np.arange(len(blocks)), count)
    entry = np.arange(count.sum()) + np.repeat(stop - np.cumsum(count), count)
    row, column = entries.entry_row[entry], entries.entry_column[entry]
    kind = np.stack([entries.entry_component[entry], entries.entry_exponent[entry]])
    terms, term = np.unique(kind, axis=1, return_inverse=True)
    coefficient = np.zeros((terms.shape[1], len(blocks), n, n))
    coefficient[term.ravel(), of_block, row, column] = entries.entry_coefficient[entry]
    coefficient[term.ravel(), of_block, column, row] = entries.entry_coefficient[entry]
    component, exponent = (torch.as_tensor(index.astype(np.int64), device=device) for index in terms)
    return BlockCovariance(component, exponent, torch.as_tensor(coefficient, dtype=dtype, device=device))


class FieldTensors(NamedTuple):
    """A LatentField as tensors; latents are ordered group by group of blocks of one size, block by block."""

    groups: tuple[BlockCovariance, ...]
    latent_of_sample: Tensor  # [S]
    design: Tensor  # [S, P]
    design_column: Tensor  # [P - 1]


class Theta(NamedTuple):
    """Variance components at each of B loci."""

    variances: Tensor  # [B, C + 1], the residual last
    tau: Tensor  # [B]


def field_tensors(field: LatentField, device: torch.device, dtype: torch.dtype) -> FieldTensors:
    """Group the blocks of a field by size, so that each group is one batched factorization."""
    sizes = np.diff(field.block_start)
    new_latent = np.empty(len(field.individual), dtype=np.int64)
    groups, offset = [], 0
    for n in np.unique(sizes):
        blocks = np.flatnonzero(sizes == n)
        groups.append(block_covariance(field, blocks, device, dtype))
        members = field.block_start[blocks][:, None] + np.arange(n)
        new_latent[members.ravel()] = offset + np.arange(members.size)
        offset += members.size
    return FieldTensors(
        tuple(groups),
        torch.as_tensor(new_latent[field.latent_of_sample], device=device),
        torch.as_tensor(field.design, dtype=dtype, device=device),
        torch.as_tensor(field.design_column.astype(np.int64), device=device),
    )


def latent_positions(field: LatentField, tensors: FieldTensors) -> np.ndarray:
    """Where each latent of the field, in its order, stands among its tensors' latents, [N]; each has a sample."""
    position = np.empty(len(field.individual), dtype=np.int64)
    position[field.latent_of_sample] = tensors.latent_of_sample.cpu().numpy()
    return position


def prior_factor(group: BlockCovariance, theta: Theta) -> Tensor:
    """Lower Cholesky factor [B, F, n, n] of the covariance of b in one group of blocks."""
    covariance = group.at(theta.variances, theta.tau)
    return torch.linalg.cholesky(covariance) if group.size > 1 else covariance.sqrt()
