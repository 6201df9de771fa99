"""How alike relatives are at all loci: the mean correlation of their logits by kind of relative.

A locus's levels, less its mean, in units of logits there, are z_s = y_s + reads' noise. With the sample's weight a_s,
the deviations from mean and covariates are d = (I - H) z, and under a correlation rho_k of pairs of kind k (matrices
J_k, J_0 the identity with rho_0 = 1) and a variance v,

    E[d d'] = v sum_k rho_k (I - H) J_k (I - H)' + (I - H) D (I - H)'    with the noise D on the diagonal.

Sums of products over the pairs of each kind, with weights a_s a_t, are thus linear in v rho_k: as many equations as
kinds, summed over the loci and solved once (Haseman and Elston's regression, as a method of moments). Centring a locus
over n samples makes all pairs negatively correlated, and relatives make others look unrelated: both are in the
equations. No correlation that all pairs share can be seen, so one kind is the reference, whose correlation is 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Array = NDArray[np.float64]

# METHOD: an SD between individuals, in logits, that is no more than a guess: samples weigh by the share of their
# variance that would then not be of reads, so that loci and samples without information weigh nothing. Correlations are
# right whatever it is.
ASSUMED_SD = 0.5
# METHOD: a locus counts as if its deviations were at most this many times the mean of all loci, so that a few loci (a
# variant that makes or breaks the CpG) do not decide.
MOST_TIMES_MEAN = 4.0
CHUNK_VALUES = 4_000_000  # held at once, of loci x samples x kinds x columns of the design
NO_INFORMATION = 1e-9  # relative size of eigenvalues that count as 0


class Levels(NamedTuple):
    """Counts of L loci for S samples as deviations; reads of a sample without two reads at a locus do not count."""

    deviation: Array  # [L, S], of the level from the locus's mean, in logits there
    noise: Array  # [L, S], an unbiased estimate of its variance by reads
    weight: Array  # [L, S], share of a sample's variance that is not of reads, by ASSUMED_SD; 0 without reads

    def of(self, loci: slice, samples: NDArray[np.int64]) -> Levels:
        return Levels(*(values[loci][:, samples] for values in self))


class Moments(NamedTuple):
    """Sums over the loci of B blocks of what the correlations follow from; the first of K kinds is the identity."""

    gram: Array  # [B, K, K], what the products of the pairs of one kind owe to the correlation of another
    product: Array  # [B, K], products of the pairs of a kind, less the noise of reads


class Estimate(NamedTuple):
    """Variance between samples beyond reads, in squared logits, and the correlation of each further kind, [K - 1]."""

    variance: float
    correlation: Array  # nan where the pairs do not determine it


def levels(meth: NDArray, total: NDArray, false_methylated: Array, false_unmethylated: Array) -> Levels:
    """Levels of counts [L, S], given the samples' error rates [S].

    # METHOD: a logit of few reads is biased and its noise is not known; the level less the locus's mean, divided by the
    # slope of the logistic function there, has the logit's deviation to first order, and noise whose variance has an
    # unbiased estimate from two reads on. So reads do not attenuate a correlation, nor do errors of conversion.
    """
    reads = total.astype(np.float64)
    seen = reads >= 2
    fraction = meth / np.maximum(reads, 1.0)
    slope = 1.0 - false_methylated - false_unmethylated
    level = (fraction - false_methylated) / slope
    counted = np.where(seen, reads, 0.0)
    sums = counted.sum(1, keepdims=True)
    mean = ((counted * level).sum(1, keepdims=True) + 0.5) / (sums + 1.0)
    mean = np.clip(mean, 0.5 / (sums + 1.0), 1.0 - 0.5 / (sums + 1.0))
    information = mean * (1.0 - mean)
    deviation = np.where(seen, (level - mean) / information, 0.0)
    noise = fraction * (1.0 - fraction) / np.maximum(reads - 1.0, 1.0) / (slope * information) ** 2
    weight = reads / (reads + 1.0 / (ASSUMED_SD**2 * information))
    return Levels(deviation, np.where(seen, noise, 0.0), np.where(seen, weight, 0.0))


def locus_weights(values: Levels, design: Array) -> Array:
    """Weight of each locus, [L]: 1, or less where it deviates far more than the mean of all."""
    size = np.empty(len(values.weight))
    for loci in chunks(len(size), values.weight.shape[1] * design.shape[1]):
        part = Levels(*(each[loci] for each in values))
        deviation, _ = residuals(part, design)
        spread = part.weight.sum(1)
        size[loci] = np.divide((part.weight * deviation**2).sum(1), spread, out=np.zeros_like(spread), where=spread > 0)
    most = MOST_TIMES_MEAN * float(size.mean()) if len(size) else 0.0
    return np.minimum(1.0, np.divide(most, size, out=np.ones_like(size), where=size > 0))


def moments(
    values: Levels, design: Array, locus_weight: Array, kinds: Sequence[csr_array], blocks: Sequence[slice]
) -> Moments:
    """Sums over each of the blocks of loci, which follow one another and are all of them.

    design: [S, P] with an intercept. kinds: K - 1 symmetric matrices [S, S] without diagonal, 1 for a pair of the kind,
    or what its correlation is to be multiplied by.
    """
    number = len(kinds) + 1
    gram, product = np.zeros((len(blocks), number, number)), np.zeros((len(blocks), number))
    overlap = _overlaps(kinds)
    block_of = np.repeat(np.arange(len(blocks)), [block.stop - block.start for block in blocks])
    for loci in chunks(len(locus_weight), number * design.size):
        part = Levels(*(each[loci] for each in values))
        of_locus = _of_loci(part, design, kinds, overlap)
        for sums, added in zip((gram, product), of_locus, strict=True):
            weighted = added * locus_weight[loci].reshape(-1, *[1] * (added.ndim - 1))
            np.add.at(sums, block_of[loci], weighted)
    return Moments(gram, product)


def solve(gram: Array, product: Array) -> Estimate:
    """The correlations from sums over loci, [K, K] and [K]; all nan without any variance between samples."""
    scale = np.sqrt(np.maximum(np.diag(gram), 0.0))
    scale[scale == 0] = 1.0
    value, vector = np.linalg.eigh(gram / np.outer(scale, scale))
    used = value > NO_INFORMATION * max(float(value.max(initial=0.0)), NO_INFORMATION)
    solution = (vector[:, used] @ ((vector[:, used].T @ (product / scale)) / value[used])) / scale
    # What lies partly in the directions that the pairs say nothing of is not determined.
    is_open = (vector[:, ~used] ** 2).sum(1) > np.sqrt(NO_INFORMATION)
    variance = float(solution[0])
    if is_open[0] or not variance > NO_INFORMATION:
        return Estimate(np.nan if is_open[0] else variance, np.full(len(product) - 1, np.nan))
    return Estimate(variance, np.where(is_open, np.nan, solution / variance)[1:])


def _overlaps(kinds: Sequence[csr_array]) -> dict[tuple[int, int], csr_array]:
    """Pairs that two kinds have in common, by their numbers from 1."""
    if not kinds or sum((kind != 0).astype(np.int64) for kind in kinds).max() <= 1:
        return {(k, k): kind.multiply(kind).tocsr() for k, kind in enumerate(kinds, 1)}
    common = {
        (j, k): first.multiply(second).tocsr()
        for j, first in enumerate(kinds, 1)
        for k, second in enumerate(kinds, 1)
        if j <= k
    }
    return {numbers: matrix for numbers, matrix in common.items() if matrix.nnz}


def _of_loci(
    part: Levels, design: Array, kinds: Sequence[csr_array], overlap: dict[tuple[int, int], csr_array]
) -> tuple[Array, Array]:
    """Gram [L, K, K] and products [L, K] of single loci.

    With H = Q Q' W, W = diag(a), Q' W Q = I and G = W Q, the sum over the pairs of J_j of a_s a_t [(I - H) M (I - H)']
    is a' (J_j o M) a - 2 sum_p (J_j G_p)' W (M G_p) + <G' J_j G, G' M G> for any symmetric M.
    """
    deviation, basis = residuals(part, design)
    weight, loci, number = part.weight, len(deviation), len(kinds) + 1
    value = weight * deviation  # [L, S]
    scaled = weight[:, :, None] * basis  # G, [L, S, P]
    spread = np.stack([scaled, *(_times(kind, scaled) for kind in kinds)], axis=1)  # J_k G, [L, K, S, P]
    within = scaled.transpose(0, 2, 1)[:, None] @ spread  # G' J_k G, [L, K, P, P]
    flat, flat_within = spread.reshape(loci, number, -1), within.reshape(loci, number, -1)
    weighted = (spread * weight[:, None, :, None]).reshape(loci, number, -1)
    gram = flat_within @ flat_within.transpose(0, 2, 1) - 2.0 * (weighted @ flat.transpose(0, 2, 1))
    gram[:, 0, 0] += (weight**2).sum(1)
    for (j, k), common in overlap.items():
        shared = (weight * _times(common, weight[:, :, None])[:, :, 0]).sum(1)
        gram[:, j, k] += shared
        if j != k:
            gram[:, k, j] += shared
    alike = np.stack([value, *(_times(kind, value[:, :, None])[:, :, 0] for kind in kinds)], axis=1)
    product = (alike @ value[:, :, None])[:, :, 0]
    noisy = scaled.transpose(0, 2, 1) @ (part.noise[:, :, None] * scaled)  # G' D G
    of_noise = (flat_within @ noisy.reshape(loci, -1, 1))[:, :, 0]
    of_noise -= 2.0 * (flat @ ((weight * part.noise)[:, :, None] * scaled).reshape(loci, -1, 1))[:, :, 0]
    of_noise[:, 0] += (weight**2 * part.noise).sum(1)
    return gram, product - of_noise


def residuals(part: Levels, design: Array) -> tuple[Array, Array]:
    """Deviations [L, S] less the weighted fit of the design, and a basis [L, S, P] of it, orthonormal by weight.

    Where the samples with reads leave columns dependent, the basis has columns of zeros.
    """
    samples, columns = design.shape
    squares = (design[:, :, None] * design[:, None, :]).reshape(samples, -1)
    cross = (part.weight @ squares).reshape(-1, columns, columns)
    value, vector = np.linalg.eigh(cross)
    used = value > NO_INFORMATION * np.maximum(value[:, -1:], NO_INFORMATION)
    inverse = np.where(used, 1.0 / np.sqrt(np.where(used, value, 1.0)), 0.0)
    basis = design @ (vector * inverse[:, None, :])
    fitted = basis.transpose(0, 2, 1) @ (part.weight * part.deviation)[:, :, None]
    return part.deviation - (basis @ fitted)[:, :, 0], basis


def _times(kind: csr_array, values: Array) -> Array:
    """A matrix [S, S] times values [L, S, P] over the samples."""
    loci, samples, columns = values.shape
    flat = values.transpose(1, 0, 2).reshape(samples, loci * columns)
    return np.asarray(kind @ flat).reshape(samples, loci, columns).transpose(1, 0, 2)


def chunks(loci: int, values: int) -> Iterator[slice]:
    """Ranges of the loci, so that so many values a locus are held for each."""
    size = max(1, CHUNK_VALUES // max(values, 1))
    for start in range(0, loci, size):
        yield slice(start, min(start + size, loci))
