"""Samples that hold the same reads, wholly or in part: a copy, a library aligned twice, a downsampled file, a part.

Reads of two samples are drawn separately, also where the samples are twins, clones, selfed lines or replicates whose
levels are the same: it is coverage that differs. Let a sample t have f times the reads of s, and n_t and n_s of them
at a locus. Drawn separately, n_t - f n_s has at least the variance f (1 + f) n of Poisson counts, which unequal
profiles of coverage and overdispersion only raise. Where the reads of t are some of those of s, it has (1 - f) / (1 +
f) of that, and 0 in a copy, whatever the depth and the methylation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Array = NDArray[np.float64]

# METHOD: the chance that a cohort without shared reads gets a warning is at most this: the ratio of variances is 1 or
# more in expectation, its standard error is the jackknife's over blocks of loci, and Student's quantile is divided
# among the pairs.
FALSE_ALARM_RATE = 0.001
# METHOD: above this ratio, that of reads of which a fifth are shared, other causes of too even counts than shared reads
# are not excluded.
MOST_RATIO = 0.7
# METHOD: coverage of real reads scatters at least as Poisson counts; where it does not, as of arrays and of depths made
# equal, nothing is said.
LEAST_DISPERSION = 0.5


class ReadProducts(NamedTuple):
    """Sums over the loci of each of B blocks."""

    product: Array  # [B, S, S], of the reads of two samples
    reads: Array  # [B, S]
    covered: Array  # [B, S], loci with reads


class SameReads(NamedTuple):
    """Two samples, by index: the reads of `part` seem to be among those of `whole`."""

    part: int
    whole: int
    ratio: float  # of variances: 1 or more where the reads are separate, 0 of a copy
    critical: float  # ratio below which they are named, at this pair's precision
    share: float  # reads of the part over those of the whole


def read_products(total: NDArray) -> tuple[Array, Array, Array]:
    """Sums of a block of loci, from all reads [L, S]."""
    reads = total.astype(np.float64)
    return reads.T @ reads, reads.sum(0), (reads > 0).sum(0).astype(np.float64)


def stacked_reads(blocks: Iterable[tuple[Array, Array, Array]]) -> ReadProducts:
    """The sums of all blocks."""
    return ReadProducts(*map(np.stack, zip(*blocks, strict=True)))


def find_same_reads(products: ReadProducts) -> list[SameReads]:
    """Pairs of samples that share reads beyond doubt, from 20 blocks of loci or more."""
    total = ReadProducts(*(values.sum(0, keepdims=True) for values in products))
    ratio = _variance_ratio(total)[0]
    blocks = len(products.reads)
    left_out = np.stack([_variance_ratio(_without(total, products, block))[0] for block in range(blocks)])
    error = np.sqrt((blocks - 1) * left_out.var(axis=0))
    usable = _is_of_reads(total)
    samples = int(usable.sum())
    pairs = max(1, samples * (samples - 1) // 2)
    critical = np.minimum(MOST_RATIO, 1 - stdtrit(blocks - 1, 1 - FALSE_ALARM_RATE / pairs) * error)
    reads = total.reads[0]
    is_part = (reads[:, None] < reads[None, :]) | (
        (reads[:, None] == reads[None, :]) & ~np.tri(len(reads), dtype=bool).T
    )
    found = is_part & usable[:, None] & usable[None, :] & (ratio < critical)
    return [
        SameReads(int(t), int(s), float(ratio[t, s]), float(critical[t, s]), float(reads[t] / reads[s]))
        for t, s in zip(*np.nonzero(found), strict=True)
    ]


def _without(total: ReadProducts, products: ReadProducts, block: int) -> ReadProducts:
    return ReadProducts(*(whole - part[block] for whole, part in zip(total, products, strict=True)))


def _variance_ratio(sums: ReadProducts) -> Array:
    """Variance of n_t - f n_s over f (1 + f) n, [1, S, S] with t in rows; infinite without reads."""
    product, reads = sums.product, sums.reads
    own = np.einsum("bss->bs", product)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = reads[:, :, None] / reads[:, None, :]
        squares = own[:, :, None] - 2 * share * product + share**2 * own[:, None, :]
        ratio = squares / ((1 + share) * reads[:, :, None])
    return np.where(np.isfinite(ratio), ratio, np.inf)


def _is_of_reads(total: ReadProducts) -> NDArray[np.bool_]:
    """Samples [S] whose coverage, where there is any, scatters about as zero-truncated Poisson counts or more."""
    covered = np.maximum(total.covered[0], 1)
    mean = total.reads[0] / covered
    variance = np.diag(total.product[0]) / covered - mean**2
    rate = mean.copy()
    for _ in range(50):
        rate = mean * -np.expm1(-rate)
    expected = mean * (1 + rate - mean)
    return (total.covered[0] > 0) & (variance > 0) & (variance >= LEAST_DISPERSION * expected)
