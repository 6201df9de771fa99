"""Factors of the samples that all loci share, beyond what the pedigree explains: batches, cells, ages without a name.

After covariates, and after the correlations that the pedigree's hypotheses allow between relatives, what is left of the
covariance of the samples over the loci should be noise. A factor of the samples with a loading at each locus leaves the
product of its values. Its values are the leading eigenvector of what is left, and it is tested on other loci than those
that it was found at, so that a test needs no distribution of eigenvalues and holds with the pedigree's likeness kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import stdtr

from epivi.cohort.kinship import covariance
from epivi.cohort.pedigree import Pedigree
from epivi.quality.resemblance import Levels, chunks, locus_weights, moments, residuals, solve

Array = NDArray[np.float64]

BLOCKS = 20  # of neighbouring loci: every second one is looked at with the values found at the others
FEWEST_LOCI = 10 * BLOCKS
FEWEST_SAMPLES = 5  # of fewer, the kinds of pairs and the samples' own variances leave nothing
# METHOD: a factor is looked for only where all before it are beyond doubt, so that this is the chance that a cohort
# without any is said to have one.
FALSE_ALARM_RATE = 0.01
MOST_FACTORS = 5
MOST_TURNS = 3
SETTLED = 0.999  # correlation of a factor's values with those of the turn before
# METHOD: what is passed on makes relatives alike by polynomials in the two transmissibilities. Pairs with the same
# polynomial are equally alike under every hypothesis, whatever the share of the loci for which it holds; values at two
# points without relation tell polynomials from each other.
POINTS = ((0.8314, 0.6172), (0.3519, 0.9127))
MOST_KINDS = 30
# Where there are more polynomials, the likenesses at these transmissibilities stand for them.
GRID = ((1.0, 1.0), (0.75, 0.75), (0.5, 0.5), (0.25, 0.25), (1.0, 0.0), (0.5, 0.0), (0.0, 1.0), (0.0, 0.5))


class Factor(NamedTuple):
    """A factor of S samples."""

    value: Array  # [S], mean square 1; the sign is such that the largest is positive
    share: float  # of the variance between samples beyond reads, as found at other loci than the values
    standard_error: float  # of the share, over blocks of loci
    p_value: float
    agreement: float  # absolute correlation of the values found at the two halves of the loci
    is_significant: bool


class _Rest(NamedTuple):
    """What pedigree, reads and the samples' own variances leave of the products of each two samples."""

    product: Array  # [B, S, S], without diagonal
    scale: Array  # [B, S, S], what these are of, if all had the variance that the correlations are shares of


def find_factors(values: Levels, design: Array, kinds: Sequence[csr_array]) -> list[Factor]:
    """Factors in the order of their shares, the last of them not significant; nothing where nothing can be tested.

    design: [S, P], intercept and covariates. kinds: matrices [S, S] of `pedigree_kinds` and, for environments, of
    `within_level`.
    """
    found: list[Factor] = []
    while len(found) < MOST_FACTORS:
        taken = np.column_stack([design, *(factor.value for factor in found)])
        if len(values.weight) < FEWEST_LOCI or len(design) < FEWEST_SAMPLES + taken.shape[1]:
            break
        rest = _rest(values, taken, kinds)
        if rest is None:
            break
        factor = _leading(rest)
        found.append(_refined(factor, values, taken, kinds) if factor.is_significant else factor)
        if not factor.is_significant:
            break
    return found


def _refined(factor: Factor, values: Levels, design: Array, kinds: Sequence[csr_array]) -> Factor:
    """A significant factor with values and share as they are beside what relatives share.

    # METHOD: fitted without it, the likeness of relatives takes up the part of a factor that they have in common, so
    # that what is left of it looks less like families than it is. Both are fitted together, in turns.
    """
    value = factor.value
    for _ in range(MOST_TURNS):
        rest = _rest(values, design, kinds, value)
        if rest is None:
            return factor
        beside = _leading(rest)
        is_settled = abs(beside.value @ value) > SETTLED * len(value)
        value = beside.value
        if is_settled:
            break
    return beside._replace(p_value=factor.p_value, is_significant=True)


def pedigree_kinds(pedigree: Pedigree, individuals: Sequence[str]) -> list[csr_array]:
    """Matrices [S, S], without diagonal, whose sums hold every likeness of S samples that the hypotheses allow."""
    position = {name: index for index, name in enumerate(pedigree.individuals)}
    members = [position[name] for name in individuals]

    def among(maternal: float, paternal: float) -> Array:
        likeness = covariance(pedigree, maternal, paternal)[np.ix_(members, members)]
        np.fill_diagonal(likeness, 0.0)
        return likeness

    labels = np.stack([among(*point).round(9) for point in POINTS], axis=-1).reshape(-1, len(POINTS))
    distinct, of_pair = np.unique(labels, axis=0, return_inverse=True)
    if len(distinct) > MOST_KINDS:
        likenesses = [among(*point) for point in GRID]
        return [csr_array(likeness) for likeness in likenesses if likeness.any()]
    kind = of_pair.reshape(len(members), len(members))
    return [csr_array((kind == number).astype(float)) for number, label in enumerate(distinct) if label.any()]


def within_level(level: NDArray[np.int32]) -> csr_array:
    """Pairs of samples with one level, [S, S]."""
    return _without_diagonal((level[:, None] == level[None, :]).astype(np.float64))


def _without_diagonal(matrix: Array) -> csr_array:
    return csr_array(matrix - np.diag(np.diag(matrix)))


def _rest(values: Levels, design: Array, kinds: Sequence[csr_array], factor: Array | None = None) -> _Rest | None:
    """None where the samples do not vary. What is left holds the factor, where one is fitted beside the kinds.

    # METHOD: samples differ in variance for reasons of their own, and centring spreads a variance to all pairs: each
    # sample's own is solved for, so that it is no factor of one sample.
    """
    among = [*kinds, *([] if factor is None else [_without_diagonal(np.outer(factor, factor))])]
    weight = locus_weights(values, design)
    whole = [slice(0, len(weight))]
    own = np.zeros(len(design))
    for _ in range(2):
        seen = values.weight > 0
        noisy = values._replace(noise=np.where(seen, values.noise + own, 0.0))
        sums = moments(noisy, design, weight, among, whole)
        found = solve(sums.gram[0], sums.product[0])
        if not found.variance > 0:
            return None
        # A kind that cannot be distinguished from others adds nothing to them.
        shares = np.nan_to_num(found.correlation)
        alike = found.variance * (np.eye(len(own)) + sum(s * k.toarray() for s, k in zip(shares, kinds, strict=False)))
        of_factor = 0.0 if factor is None else found.variance * shares[-1] * np.outer(factor, factor)
        own = own + _own_variances(noisy, design, weight, alike + of_factor)
    noisy = values._replace(noise=np.where(seen, values.noise + own, 0.0))
    return _left(noisy, design, weight, alike, found.variance)


def _own_variances(values: Levels, design: Array, locus_weight: Array, alike: Array) -> Array:
    """What the variance of each sample has beyond that of all, [S], of mean 0."""
    samples = len(design)
    spread, excess = np.zeros((samples, samples)), np.zeros(samples)
    for loci in chunks(len(locus_weight), samples * (samples + 3 * design.shape[1])):
        part, weight = Levels(*(each[loci] for each in values)), locus_weight[loci]
        deviation, basis = residuals(part, design)
        scaled = part.weight[:, :, None] * basis  # W Q, so that W H = scaled scaled'
        hat = scaled @ scaled.transpose(0, 2, 1)
        kept = part.weight[:, :, None] * np.eye(samples) - hat
        spread += np.einsum("l,lst->st", weight, kept**2)
        excess += weight @ ((part.weight * deviation) ** 2 - np.einsum("lst,lt->ls", kept**2, part.noise))
        excess -= weight @ ((kept @ alike) * kept).sum(2)
    solved = np.linalg.lstsq(spread, excess, rcond=None)[0]
    return solved - solved.mean()


def _left(values: Levels, design: Array, locus_weight: Array, alike: Array, variance: float) -> _Rest:
    samples = len(design)
    product, scale = np.zeros((2, BLOCKS, samples, samples))
    bounds = np.linspace(0, len(locus_weight), BLOCKS + 1).astype(int).tolist()
    for block in range(BLOCKS):
        start, stop = bounds[block], bounds[block + 1]
        for loci in chunks(stop - start, 4 * samples * design.shape[1]):
            here = slice(start + loci.start, start + loci.stop)
            part = Levels(*(each[here] for each in values))
            added = _products(part, design, locus_weight[here], alike)
            product[block] += added[0]
            scale[block] += variance * added[1]
    product[:, range(samples), range(samples)] = scale[:, range(samples), range(samples)] = 0.0
    return _Rest(product, scale)


def _products(part: Levels, design: Array, locus_weight: Array, alike: Array) -> tuple[Array, Array]:
    """Products of deviations less what is expected of them, and the products of the weights, [S, S] each.

    Expected, times the weights, is W (I - H) (alike + noise) (I - H)' W with W H = G G'.
    """
    deviation, basis = residuals(part, design)
    loci, samples, columns = basis.shape
    root = np.sqrt(locus_weight)
    value = root[:, None] * part.weight * deviation
    weight = root[:, None] * part.weight
    scaled = part.weight[:, :, None] * basis  # G
    moved = np.einsum("st,ltp->lsp", alike, scaled) + part.noise[:, :, None] * scaled

    def over_loci(first: Array, second: Array) -> Array:
        """sum over loci and columns of first second', of [L, S, P] each."""
        flat = [each.transpose(1, 0, 2).reshape(samples, loci * columns) for each in (first, second)]
        return flat[0] @ flat[1].T

    crossed = over_loci(locus_weight[:, None, None] * scaled, part.weight[:, :, None] * moved)
    twice = over_loci(locus_weight[:, None, None] * scaled @ (scaled.transpose(0, 2, 1) @ moved), scaled)
    weights = weight.T @ weight
    return value.T @ value - weights * alike + crossed + crossed.T - twice, weights


def _leading(rest: _Rest) -> Factor:
    """The leading eigenvector of what is left, and its share by the values found at one half in the other."""
    half = np.arange(BLOCKS) % 2
    found = [_eigenvector(rest.product[half == number].sum(0), rest.scale[half == number].sum(0)) for number in (0, 1)]
    whole = _eigenvector(rest.product.sum(0), rest.scale.sum(0))
    pairs = [np.outer(one, one) for one in reversed(found)]  # values found at the other half
    along = np.array([(pairs[half[block]] * rest.product[block]).sum() for block in range(BLOCKS)])
    size = np.array([(pairs[half[block]] ** 2 * rest.scale[block]).sum() for block in range(BLOCKS)])
    share = float(along.sum() / size.sum())
    error = float(np.sqrt(BLOCKS / (BLOCKS - 1)) * np.sqrt(((along - share * size) ** 2).sum()) / size.sum())
    p_value = float(stdtr(BLOCKS - 1, -share / error)) if error > 0 else 1.0
    value = whole * np.sqrt(len(whole)) * np.sign(whole[np.argmax(np.abs(whole))])
    agreement = float(abs(found[0] @ found[1]))
    return Factor(value, share / len(whole), error / len(whole), p_value, agreement, p_value < FALSE_ALARM_RATE)


def _eigenvector(product: Array, scale: Array) -> Array:
    correlation = np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)
    return np.linalg.eigh((correlation + correlation.T) / 2)[1][:, -1]


def factor_rows(factors: Sequence[Factor]) -> Iterator[dict[str, object]]:
    """Rows of the table `factors`."""
    for number, factor in enumerate(factors, 1):
        yield {
            "factor": number,
            "singular_value": float(np.sqrt(max(factor.share, 0.0) * len(factor.value))),
            "share": factor.share,
            "standard_error": factor.standard_error,
            "p_value": factor.p_value,
            "agreement": factor.agreement,
            "is_significant": factor.is_significant,
        }


def value_rows(factors: Sequence[Factor], samples: Sequence[str]) -> Iterator[dict[str, object]]:
    """Rows of the table `factor_values`: of the significant factors, the value of each sample."""
    for number, factor in enumerate(factors, 1):
        for sample, value in zip(samples, factor.value.tolist(), strict=True):
            if factor.is_significant:
                yield {"factor": number, "sample": sample, "value": value}
