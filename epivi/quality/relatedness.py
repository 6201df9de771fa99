"""Samples against the pedigree: is a sample related to the others as its place in the pedigree says?

From methylation (or genotypes) at many loci comes a similarity C [S, S] of samples, and from the pedigree the
relatedness A of their individuals. If a pair of samples (s, t) were swapped, A with s and t exchanged would fit C
better by least squares, up to the positive heritable share h that scales A. The gain is 2 h D with

    D(s, t) = sum over u other than s, t of (A_tu - A_su) (C_su - C_tu),

which is expected to be -h Q if the pair is as declared and +h Q if it is swapped, Q(s, t) = sum_u (A_tu - A_su)^2.
Where Q = 0 (full siblings without descendants, parents of the same children without relatives of their own) the two
places in the pedigree are the same to everyone else, and no swap can be seen. Both matrices are those of samples less
their mean and covariates, without what independent noise of each sample adds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Array = NDArray[np.float64]

# METHOD: the chance of a warning about swaps in a cohort without one is at most this. D <= 0 in expectation for every
# pair that is as declared, with equality where nothing is heritable; its standard error is the jackknife's over blocks
# of neighbouring loci, and Student's quantile is divided among all pairs (Bonferroni).
FALSE_ALARM_RATE = 0.001
MAX_BLOCKS = 100
MIN_BLOCKS = 20
# Of three samples all likeness may be their own noise.
MIN_SAMPLES = 4
MIN_BLOCK_LOCI = 20
MAX_BLOCK_LOCI = 2000
# METHOD: a fraction of n reads counts n / (n + this), as the reads' own noise fades against that of samples.
HALF_WEIGHT_READS = 5.0
_NO_DIFFERENCE = 1e-9


class Products(NamedTuple):
    """Sums over the loci of each of B blocks, whose ratio is the similarity of two samples."""

    product: Array  # [B, S, S]
    scale: Array  # [B, S, S]


class PairComparison(NamedTuple):
    """Samples against the pedigree, every entry [S, S], symmetric; nan where it says nothing."""

    expected: Array  # relatedness by the pedigree
    observed: Array  # similarity in units of it, less what unrelated samples have
    standard_error: Array
    gain: Array  # D
    distance: Array  # Q
    score: Array  # D / (h Q): -1 expected as declared, 1 if swapped
    z: Array  # D by its standard error
    can_be_seen: NDArray[np.bool_]
    critical: float  # z above which a swap is reported
    share: float  # h; nan where the samples are no more alike for being related


class Swap(NamedTuple):
    """Two samples, by index, that fit each other's place better."""

    first: int
    second: int
    score: float
    z: float
    critical: float


def projector(design: Array) -> Array:
    """I - X (X'X)^- X' [S, S] for covariates [S, P] and an intercept; the intercept alone where they leave nothing."""
    samples = len(design)
    for columns in (np.column_stack([np.ones(samples), design]), np.ones((samples, 1))):
        left, singular, _ = np.linalg.svd(columns, full_matrices=False)
        basis = left[:, singular > 1e-9 * singular[0]]
        if samples - basis.shape[1] >= 2:
            break
    return np.eye(samples) - basis @ basis.T


def methylation_products(meth: NDArray, total: NDArray, centre: Array) -> tuple[Array, Array]:
    """Product and scale [S, S] of a block of loci, from methylated and total reads [L, S].

    # METHOD: fractions of reads less the locus's mean, weighted by n / (n + 5), less the covariates (`centre`); what
    # a sample deviates by at all loci of one level (its error rates, its global methylation) is regressed out over the
    # block's loci. A locus weighs by its variance between samples beyond that of reads, over the square of all its
    # variance: loci that do not vary add nothing.
    """
    reads = total.astype(np.float64)
    seen = reads > 0
    weight = reads / (reads + HALF_WEIGHT_READS)
    fraction = meth / np.maximum(reads, 1.0)
    sum_of_weights = np.maximum(weight.sum(1), 1e-12)
    mean = (weight * fraction).sum(1) / sum_of_weights
    deviation = np.where(seen, fraction - mean[:, None], 0.0)
    deviation = np.where(seen, _without_level(deviation, mean, weight) @ centre, 0.0)
    variance = (weight * deviation**2).sum(1) / sum_of_weights
    of_reads = (weight / np.maximum(reads, 1.0)).sum(1) / sum_of_weights * mean * (1 - mean)
    signal = np.maximum(variance - of_reads, 0.0)
    locus = np.divide(signal, variance**2, out=np.zeros_like(signal), where=variance > 1e-12)
    weighted = weight * deviation
    return (weighted * locus[:, None]).T @ weighted, (weight * (locus * variance)[:, None]).T @ weight


def _without_level(deviation: Array, mean: Array, weight: Array) -> Array:
    """Each sample's deviation [L, S] less its weighted regression on 1 and the locus's mean [L]."""
    basis = np.stack([np.ones_like(mean), mean - mean.mean()])  # [2, L]
    gram = np.einsum("al,bl,ls->sab", basis, basis, weight, optimize=True) + 1e-9 * np.eye(2)
    slopes = np.linalg.solve(gram, ((basis @ (weight * deviation)).T)[..., None])[..., 0]  # [S, 2]
    return deviation - (slopes @ basis).T


def genotype_products(dosage: NDArray, centre: Array) -> tuple[Array, Array]:
    """Product and scale [S, S] of a block of variants, from dosages [L, S] of 0, 1 and 2, below 0 where missing."""
    seen = dosage >= 0
    frequency = np.where(seen, dosage, 0).sum(1) / np.maximum(2 * seen.sum(1), 1)
    sd = np.sqrt(2 * frequency * (1 - frequency))[:, None]
    deviation = np.where(seen & (sd > 0), (dosage - 2 * frequency[:, None]) / np.where(sd > 0, sd, 1.0), 0.0)
    deviation = np.where(seen, deviation @ centre, 0.0)
    counted = (seen & (sd > 0)).astype(np.float64)
    return deviation.T @ deviation, counted.T @ counted


def stacked(blocks: Iterable[tuple[Array, Array]]) -> Products:
    """The products of all blocks."""
    product, scale = zip(*blocks, strict=True)
    return Products(np.stack(product), np.stack(scale))


def compare(products: Products, relatedness: Array, centre: Array, share: float | None = None) -> PairComparison:
    """Compare the samples' similarity with the relatedness [S, S] of the individuals that they are declared to be.

    share: h, where it is known better than from the samples as declared.
    """
    expected = _without_noise(centre @ relatedness @ centre, centre)
    product, scale = products.product.sum(0), products.scale.sum(0)
    similarity = _without_noise(_ratio(product, scale), centre)
    left_out = [
        _without_noise(_ratio(product - one, scale - other), centre)
        for one, other in zip(products.product, products.scale, strict=True)
    ]
    if share is None:
        slope = _slope(expected, similarity)
        share = slope if slope > 0 else np.nan
    gain, distance = _gain(expected, similarity), _distance(expected)
    error = _jackknife_error([_gain(expected, one) for one in left_out])
    can_be_seen = distance > _NO_DIFFERENCE
    pairs = max(1, int(np.count_nonzero(np.triu(can_be_seen, 1))))
    off = ~np.eye(len(expected), dtype=bool)
    offset = similarity[off].mean() - share * expected[off].mean()
    nan = np.full_like(gain, np.nan)
    return PairComparison(
        expected=relatedness,
        observed=np.where(off, (similarity - offset) / share + relatedness - expected, np.nan),
        standard_error=np.where(off, _jackknife_error(left_out) / share, np.nan),
        gain=gain,
        distance=distance,
        score=np.divide(gain, share * distance, out=nan.copy(), where=can_be_seen),
        z=np.divide(gain, error, out=nan.copy(), where=can_be_seen & (error > 0)),
        can_be_seen=can_be_seen,
        critical=float(stdtrit(len(left_out) - 1, 1 - FALSE_ALARM_RATE / pairs)),
        share=share,
    )


def find_swaps(products: Products, relatedness: Array, centre: Array) -> tuple[list[Swap], PairComparison]:
    """Pairs of samples that look swapped, and the comparison as declared, on the scale of h without these swaps.

    # METHOD: of the pairs whose gain is beyond doubt the one with the largest is taken, its samples change places, and
    # the rest are looked at anew: so one swap is not reported as several, and a cycle of samples as its exchanges.
    """
    place = np.arange(len(relatedness))
    comparison = compare(products, relatedness, centre)
    found: list[tuple[tuple[int, int], PairComparison]] = []
    while len(found) < len(place):
        doubtless = np.triu(np.nan_to_num(comparison.z, nan=-np.inf) > comparison.critical, 1)
        if not doubtless.any():
            break
        first, second = np.unravel_index(np.argmax(np.where(doubtless, comparison.gain, -np.inf)), doubtless.shape)
        pair = (int(first), int(second))
        found.append((pair, comparison))
        place[list(pair)] = place[list(reversed(pair))]
        comparison = compare(products, relatedness[np.ix_(place, place)], centre)
    share = comparison.share
    swaps = [
        Swap(*pair, float(at.gain[pair] / (share * at.distance[pair])), float(at.z[pair]), at.critical)
        for pair, at in found
    ]
    return swaps, compare(products, relatedness, centre, share)


def locus_blocks(lengths: Sequence[int]) -> Iterator[tuple[tuple[int, int, int], ...]]:
    """Loci of each block of the jackknife, as ranges (contig number, start, stop): one, or several of short contigs.

    Up to MAX_BLOCKS blocks of neighbouring loci, MIN_BLOCK_LOCI to MAX_BLOCK_LOCI each, spread evenly over the genome.
    """
    ends = np.cumsum([0, *lengths])
    n_loci = int(ends[-1])
    blocks = min(MAX_BLOCKS, max(1, n_loci // MIN_BLOCK_LOCI))
    for block in range(blocks):
        start = n_loci * block // blocks
        stop = min(n_loci * (block + 1) // blocks, start + MAX_BLOCK_LOCI)
        first, last = np.searchsorted(ends, [start, stop - 1], "right").tolist()
        bounds = enumerate(pairwise(ends[first - 1 : last + 1].tolist()), first - 1)
        parts = ((contig, max(start, low) - low, min(stop, high) - low) for contig, (low, high) in bounds)
        yield tuple(part for part in parts if part[1] < part[2])


def _ratio(product: Array, scale: Array) -> Array:
    return np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)


def _without_noise(matrix: Array, centre: Array) -> Array:
    """A matrix [S, S] of centred samples less what independent noise of each sample explains, and without diagonal.

    # METHOD: samples differ in coverage and so in noise. Less their mean, samples of noise variance v are alike by
    # -(v_s + v_t) / S and a constant: unlike pairs by unlike amounts, which in small cohorts passes for relatedness.
    # So the best fitting a_s + a_t is taken out, whatever the noise and the pattern of missing counts, and with
    # covariates a multiple of P = I - X (X'X)^- X' too. Of three samples nothing is left, of four two numbers.
    """
    rest = _without_sample_effects(_without_diagonal(matrix))
    pattern = _without_sample_effects(_without_diagonal(centre))
    size = (pattern**2).sum()
    return rest if size < _NO_DIFFERENCE else rest - (rest * pattern).sum() / size * pattern


def _without_sample_effects(matrix: Array) -> Array:
    """Off the diagonal, the residuals of the least-squares fit of a_s + a_t; the diagonal stays 0."""
    samples = len(matrix)
    if samples < 3:
        return np.zeros_like(matrix)
    sums = matrix.sum(1)
    effect = (sums - sums.sum() / (2 * samples - 2)) / (samples - 2)
    return _without_diagonal(matrix - effect[:, None] - effect[None, :])


def _without_diagonal(matrix: Array) -> Array:
    return matrix - np.diag(np.diag(matrix))


def _gain(expected: Array, similarity: Array) -> Array:
    """D(s, t) for all pairs at once; both arguments have a diagonal of zero."""
    cross = expected @ similarity
    own = np.einsum("su,su->s", expected, similarity)
    return cross + cross.T - own[:, None] - own[None, :] + 2 * expected * similarity


def _distance(expected: Array) -> Array:
    """Q(s, t) for all pairs at once, which is D of the expected similarity with the opposite sign."""
    return -_gain(expected, expected)


def _slope(expected: Array, similarity: Array) -> float:
    """h: least squares over all pairs, with an intercept, since means of fewer samples than all leave more likeness."""
    off = ~np.eye(len(expected), dtype=bool)
    x = expected[off] - expected[off].mean()
    return float(x @ similarity[off] / max(x @ x, _NO_DIFFERENCE))


def _jackknife_error(values: Sequence[Array]) -> Array:
    stack = np.stack(values)
    return np.sqrt((len(stack) - 1) * stack.var(axis=0))
