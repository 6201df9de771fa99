"""The Gaussian field of the inner integral in torch: many points at once on any device, in double precision.

A point is a locus at given variance components. The algebra is that of epivi.field.compiled.field: observations m_s ~
Binomial(n_s, eps_s + (1 - eps_s - delta_s) sigmoid(eta_s)), eta_s = x_s' beta + b_i(s), with beta ~ N(mu, diag(v)) and
b ~ N(0, K), K = L L' block by block. With W the curvatures of the observations and R R' = I + L' W L, T = (K^-1 + W)^-1
= Y' Y, Y = R^-1 L'; the effects come last, through their Schur complement. Blocks with equal numbers of latents and of
samples lie side by side in one tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from epivi.field.compiled.field import FieldArrays
from epivi.field.torch.prior import BlockCovariance, block_covariance

LARGEST_EXPONENT = 700.0
LARGEST_BATCH = 2**18  # matrices in one call: CUDA's batched routines are not known to take any number


class BlockGroup(NamedTuple):
    """F blocks of n latents and s samples each."""

    latents: slice  # of the N latents, block by block
    samples: slice  # of the S samples, block by block and within a block by latent
    covariance: BlockCovariance
    owner: Tensor | None  # [F, s], the latent of its block that a sample belongs to; None where each has one sample
    membership: Tensor | None  # [F, s, n], the same as indicators

    def by_block(self, value: Tensor) -> Tensor:
        """[B, samples of the group, ...] as [B, F, s, ...]."""
        return value.unflatten(1, (self.covariance.blocks, -1))

    def sum_by_latent(self, value: Tensor) -> Tensor:
        """Sum over the replicate samples of a latent: [B, F, s, C] to [B, F, n, C]."""
        return value if self.membership is None else self.membership.mT @ value

    def between_samples(self, matrix: Tensor) -> Tensor:
        """A matrix between latents [B, F, n, n] as one between samples [B, F, s, s]."""
        if self.owner is None:
            return matrix
        block = torch.arange(len(self.owner), device=matrix.device)[:, None, None]
        return matrix[:, block, self.owner[:, :, None], self.owner[:, None, :]]


class TorchField(NamedTuple):
    """One hypothesis' field of S samples and N latents; samples and latents in the order of the groups.

    Of the P effects the last G are of columns whose values differ between loci: they stand in Points.design alone.
    """

    groups: tuple[BlockGroup, ...]
    sample_order: NDArray[np.int64]  # [S], each sample's place in the cohort
    latent: Tensor  # [S]
    design: Tensor  # [S, P - G]
    false_methylated: Tensor  # [S]
    false_unmethylated: Tensor  # [S]
    has_errors: bool  # whether any sample has conversion errors

    @property
    def latents(self) -> int:
        return self.groups[-1].latents.stop


class Points(NamedTuple):
    """What stays fixed at B points."""

    meth: Tensor  # [B, S]
    total: Tensor  # [B, S]
    factors: tuple[Tensor, ...]  # [B, F, n, n] of each group: L
    prior_mean: Tensor  # [B, P]
    prior_variance: Tensor  # [B, P]
    design: Tensor  # [1 or B, S, P], one for all points where G is 0


class Solution(NamedTuple):
    """The Gaussian of prior and sites: its maximum, and its covariance in factors."""

    b: Tensor  # [B, N]
    dual: Tensor  # [B, N], K^-1 b
    beta: Tensor  # [B, P]
    log_determinant: Tensor  # [B], log|I + K W| + log|Schur| + sum log v; nan where not positive definite
    roots: tuple[Tensor, ...]  # [B, F, n, n] of each group: Y, T = Y' Y
    solved_cross: Tensor  # [B, N, P], T Z' W X
    schur: Tensor  # [B, P, P], lower Cholesky factor


def torch_field(arrays: FieldArrays, device: torch.device) -> TorchField:
    """Lay out the kernel's field in groups of like blocks."""
    sizes, samples = np.diff(arrays.block_start), np.diff(arrays.block_sample_start)
    shapes = np.unique(np.stack([sizes, samples], axis=1), axis=0)
    members = [np.flatnonzero((sizes == n) & (samples == s)) for n, s in shapes]
    groups: list[BlockGroup] = []
    latent: list[int] = []
    order: list[int] = []
    latents = 0
    for blocks in members:
        group, owner, rows = _group(arrays, blocks, latents, len(order), device)
        groups.append(group)
        n = group.covariance.size
        latent += (latents + owner + n * np.arange(len(blocks))[:, None]).ravel().tolist()
        order += rows.ravel().tolist()
        latents = group.latents.stop

    def tensor(array: NDArray[np.float64]) -> Tensor:
        return torch.as_tensor(array[order], dtype=torch.float64, device=device)

    return TorchField(
        tuple(groups),
        arrays.sample_order[order].astype(np.int64),
        torch.as_tensor(latent, device=device),
        tensor(arrays.design),
        tensor(arrays.false_methylated),
        tensor(arrays.false_unmethylated),
        bool(arrays.false_methylated.any() or arrays.false_unmethylated.any()),
    )


def _group(
    arrays: FieldArrays, blocks: NDArray[np.intp], first_latent: int, first_sample: int, device: torch.device
) -> tuple[BlockGroup, NDArray[np.int64], NDArray[np.int64]]:
    """Some like blocks; which latent of its block owns each sample, and the samples' rows in `arrays`, [F, s] both."""
    start = arrays.block_start[blocks].astype(np.int64)
    n = int(arrays.block_start[blocks[0] + 1] - start[0])
    s = int(arrays.block_sample_start[blocks[0] + 1] - arrays.block_sample_start[blocks[0]])
    rows = arrays.block_sample_start[blocks].astype(np.int64)[:, None] + np.arange(s)
    owner = arrays.latent[rows] - start[:, None]
    is_whole = s == n and (owner == np.arange(n)).all()  # samples are sorted by latent
    group = BlockGroup(
        slice(first_latent, first_latent + len(blocks) * n),
        slice(first_sample, first_sample + len(blocks) * s),
        block_covariance(arrays, blocks, device, torch.float64),
        None if is_whole else torch.as_tensor(owner, device=device),
        None if is_whole else torch.as_tensor(np.eye(n)[owner], device=device),
    )
    return group, owner, rows


# --- linear algebra --------------------------------------------------------------------------------------------------


def cholesky(matrix: Tensor) -> Tensor:
    """Lower factors [..., n, n], not a number where a matrix is not positive definite; the device is not waited for."""
    if matrix.shape[-1] == 1:
        return torch.where(matrix > 0, matrix, torch.nan).sqrt()
    return _in_batches(_cholesky, matrix)


def _cholesky(matrix: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return factor.masked_fill_((failed != 0)[..., None, None], torch.nan)


def _in_batches(operation: Callable[..., Tensor], *matrices: Tensor) -> Tensor:
    """An operation on matrices [..., n, k], on no more than LARGEST_BATCH at once."""
    first, *_ = flat = [matrix.flatten(0, -3) for matrix in matrices]
    if len(first) <= LARGEST_BATCH:
        return operation(*matrices)
    parts = zip(*(matrix.split(LARGEST_BATCH) for matrix in flat), strict=True)
    return torch.cat([operation(*part) for part in parts]).unflatten(0, matrices[0].shape[:-2])


def solve_lower(factor: Tensor, right: Tensor) -> Tensor:
    """factor^-1 right, [..., n, k]."""
    if factor.shape[-1] == 1:
        return right / factor
    return _in_batches(_solve_lower, factor, right)


def _solve_lower(factor: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, right, upper=False)


def solve_upper(factor: Tensor, right: Tensor) -> Tensor:
    """factor'^-1 right, [..., n, k], with the transpose of a lower factor."""
    if factor.shape[-1] == 1:
        return right / factor
    return _in_batches(_solve_upper, factor, right)


def _solve_upper(factor: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor.mT, right, upper=True)


def log_determinant(factor: Tensor) -> Tensor:
    """Of the matrix whose lower factor [..., n, n] is given."""
    return 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def prior_factors(field: TorchField, variances: Tensor, tau: Tensor) -> tuple[Tensor, ...]:
    """L of every group of blocks, [B, F, n, n], at variances [B, C + 1], the residual last, and tau [B]."""
    return tuple(cholesky(group.covariance.at(variances, tau)) for group in field.groups)


def designs(field: TorchField, locus_design: Tensor) -> Tensor:
    """The whole design [L, S, P] of loci whose own columns are [L, S, G], or [1, S, P] where G is 0."""
    if not locus_design.shape[2]:
        return field.design[None]
    return torch.cat([field.design.expand(len(locus_design), -1, -1), locus_design], dim=2)


def of_design(design: Tensor, beta: Tensor) -> Tensor:
    """x' beta of every sample, [B, S]."""
    return beta @ design[0].T if len(design) == 1 else (design @ beta[:, :, None])[:, :, 0]


def predictor(field: TorchField, points: Points, b: Tensor, beta: Tensor) -> Tensor:
    """Linear predictors [B, S]."""
    return b[:, field.latent] + of_design(points.design, beta)


def solve_field(field: TorchField, points: Points, curvature: Tensor, target: Tensor) -> Solution:
    """The Gaussian of the prior and of sites exp(target eta - curvature eta^2 / 2); both [B, S]."""
    weighted = curvature[:, :, None] * points.design
    columns = torch.cat([target[:, :, None], weighted], dim=2)
    schur = torch.diag_embed(1.0 / points.prior_variance) + points.design.mT @ weighted
    right = points.prior_mean / points.prior_variance + (target[:, None] @ points.design)[:, 0]
    log_det = points.prior_variance.log().sum(1)
    roots, weights, sums, solved = [], [], [], []
    for group, factor in zip(field.groups, points.factors, strict=True):
        weight = group.sum_by_latent(group.by_block(curvature[:, group.samples])[..., None])
        by_latent = group.sum_by_latent(group.by_block(columns[:, group.samples]))  # [B, F, n, 1 + P]
        inner = factor.mT @ (weight * factor)
        inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
        lower = cholesky(inner)
        root = solve_lower(lower, factor.mT)
        half = root @ by_latent
        flat = half.flatten(1, 2)
        gram = flat.mT @ flat
        schur = schur - gram[:, 1:, 1:]
        right = right - gram[:, 1:, 0]
        log_det = log_det + log_determinant(lower).sum(1)
        roots.append(root)
        weights.append(weight.flatten(1))
        sums.append(by_latent.flatten(1, 2))
        solved.append((root.mT @ half).flatten(1, 2))
    lower = cholesky(schur)
    half = solve_lower(lower, right[:, :, None])
    beta = solve_upper(lower, half)
    target_and_cross, solution = torch.cat(sums, dim=1), torch.cat(solved, dim=1)
    b = solution[:, :, 0] - (solution[:, :, 1:] @ beta)[:, :, 0]
    dual = target_and_cross[:, :, 0] - (target_and_cross[:, :, 1:] @ beta)[:, :, 0] - torch.cat(weights, dim=1) * b
    return Solution(b, dual, beta[:, :, 0], log_det + log_determinant(lower), tuple(roots), solution[:, :, 1:], lower)


def scaled_design(field: TorchField, points: Points, solution: Solution) -> Tensor:
    """Schur^-1/2 (x_s - (T Z' W X)_i(s)), [B, P, S]: what the effects bring to the covariance of eta, in factors."""
    return solve_lower(solution.schur, (points.design - solution.solved_cross[:, field.latent]).mT)


def latent_variance(field: TorchField, solution: Solution) -> Tensor:
    """The part of the variance of eta [B, S] that the latents bring: the diagonal of T."""
    return torch.cat([(root**2).sum(-2).flatten(1) for root in solution.roots], dim=1)[:, field.latent]


def effect_root(schur: Tensor) -> Tensor:
    """Transposed inverse [B, P, P] of the Schur factor: the products of its rows are the effects' covariances."""
    eye = torch.eye(schur.shape[-1], dtype=schur.dtype, device=schur.device)
    return solve_lower(schur, eye.expand_as(schur)).mT


# --- the observation -------------------------------------------------------------------------------------------------


def exponential(x: Tensor) -> Tensor:
    """exp(x), x clipped as in the compiled kernel."""
    return x.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).exp()


def _sigmoids(y: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid(y) and sigmoid(-y), each to full relative precision."""
    e = exponential(-y.abs())
    large = 1.0 / (1.0 + e)
    small = e * large
    return torch.where(y < 0, small, large), torch.where(y < 0, large, small)


def log_observation(field: TorchField, points: Points, y: Tensor) -> Tensor:
    """Log-likelihood of every observation without its binomial coefficient; y: [..., B, S]."""
    m, n = points.meth, points.total
    if not field.has_errors:
        return m * y - n * torch.logaddexp(y, y.new_zeros(()))
    s, c = _sigmoids(y)
    eps, delta = field.false_methylated, field.false_unmethylated
    gain = 1.0 - eps - delta
    return m * (eps + gain * s).log() + (n - m) * (delta + gain * c).log()


def observation_slopes(field: TorchField, points: Points, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slope of the log-likelihood, and its observed and expected curvature (negated second derivatives), [B, S]."""
    m, n = points.meth, points.total
    s, c = _sigmoids(y)
    s1 = s * c
    if not field.has_errors:
        return m - n * s, n * s1, n * s1
    eps, delta = field.false_methylated, field.false_unmethylated
    first = (1.0 - eps - delta) * s1
    per_p, per_q = first / (eps + (1.0 - eps - delta) * s), first / (delta + (1.0 - eps - delta) * c)
    slope = m * per_p - (n - m) * per_q
    return slope, m * per_p**2 + (n - m) * per_q**2 - slope * (c - s), n * per_p * per_q


def observation_third_fourth(field: TorchField, points: Points, y: Tensor) -> tuple[Tensor, Tensor]:
    """Third and fourth derivative of the log-likelihood, [B, S]."""
    m, n = points.meth, points.total
    s, c = _sigmoids(y)
    s1 = s * c
    if not field.has_errors:
        return n * s1 * (s - c), n * s1 * (6.0 * s1 - 1.0)
    eps, delta = field.false_methylated, field.false_unmethylated
    gain = 1.0 - eps - delta
    first = gain * s1
    third, fourth = _log_derivatives(first / (eps + gain * s), s, c)
    third_q, fourth_q = _log_derivatives(-first / (delta + gain * c), s, c)
    return m * third + (n - m) * third_q, m * fourth + (n - m) * fourth_q


def _log_derivatives(r1: Tensor, s: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Third and fourth derivative of the logarithm of a function whose slope over its value is r1, and whose slope is
    a multiple of s c."""
    s1 = s * c
    r2 = r1 * (c - s)
    r3 = r1 * (1.0 - 6.0 * s1)
    r4 = r2 * (1.0 - 12.0 * s1)
    square = r1 * r1
    third = r3 - 3.0 * r1 * r2 + 2.0 * r1 * square
    return third, r4 - 4.0 * r1 * r3 - 3.0 * r2 * r2 + 12.0 * square * r2 - 6.0 * square * square
