"""A cohort on the Gaussian scale: what the reads of a locus would be if they were measured logits with known error.

    y ~ N(0, B + U D U'),    B = sum_j w_j(theta) T_j + N

with T_j what the samples share by each covariance component and power of tau, w_j the variance that it has at the
parameters theta of a hypothesis (epivi.families.transmission.hypotheses), N the variance of the reads around the logit,
and U the intercept and the covariates, whose effects have the prior variances D. B is block-diagonal: samples of
different blocks have nothing in common under any hypothesis, so that equal blocks are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from epivi.base.errors import UserError
from epivi.cohort.haplotypes import sampled_units
from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet
from epivi.families.transmission.cohort import COVARIANCES, Sampled, build_cohort
from epivi.families.transmission.components import variance_components_at
from epivi.families.transmission.hypotheses import TRANSMISSIBILITY, Hypothesis
from epivi.field.layout import Cohort, independent_blocks

Array = NDArray[np.float64]

# METHOD: prior SDs, in logits, of a locus's baseline around the level that is looked at, about what mixtures learned
# from whole genomes have, and of the effects of covariates, as `epivi simulate` draws them.
BASELINE_SD = 2.0
EFFECT_SD = 0.3
SAME = 12  # decimals to which blocks are compared


class Terms(NamedTuple):
    """The J terms T_j of a hypothesis: which variance each has, the residual last, and which power of tau."""

    component: NDArray[np.intp]  # [J]
    exponent: NDArray[np.intp]  # [J]


class BlockStack(NamedTuple):
    """C different blocks of n samples each, under H hypotheses and V levels of noise."""

    times: Array  # [C], how many blocks are alike
    noise: Array  # [V, C, n], variances of the reads around the logit
    design: Array  # [C, n, P], intercept and covariates
    shared: tuple[Array, ...]  # [H] of [C, J, n, n]


class GaussianCohort(NamedTuple):
    """S samples under H hypotheses; see the module's formula."""

    hypotheses: tuple[Hypothesis, ...]
    terms: tuple[Terms, ...]  # [H]
    stacks: tuple[BlockStack, ...]  # one for each size of block
    effect_variance: Array  # [H, P], the diagonal of D; 0 of covariates that a hypothesis lacks
    samples: int

    @property
    def levels(self) -> int:
        """V, the levels of noise."""
        return len(self.stacks[0].noise)


def read_noise(level: float, reads: Array, false_methylated: Array, false_unmethylated: Array) -> Array:
    """Variance [S] of the logit as so many reads [S] show it, at a level of methylation; inf without reads.

    # METHOD: the inverse of the Fisher information of a binomial proportion about its logit, at the level itself:
    # 1 / (n p (1 - p)) without errors of reading.
    """
    gain = 1.0 - false_methylated - false_unmethylated
    seen = false_methylated + gain * level
    with np.errstate(divide="ignore"):
        noise: Array = seen * (1.0 - seen) / (reads * (gain * level * (1.0 - level)) ** 2)
    return noise


def gaussian_cohort(
    sheet: SampleSheet,
    pedigree: Pedigree,
    covariates: Sequence[str],
    hypotheses: Sequence[Hypothesis],
    noise: Array,
    baseline_sd: float = BASELINE_SD,
) -> GaussianCohort:
    """Join sample sheet, pedigree and hypotheses; noise: [V, S]. Samples without reads (noise inf) are left out.

    baseline_sd: 0 where the baseline is known, as with any number of families. Raises UserError as `build_cohort`, and
    where no sample has reads.
    """
    cohort = build_cohort(sheet, pedigree, covariates, hypotheses)
    units, of_sample = sampled_units(sheet)
    sampled = Sampled(sheet, pedigree, units, of_sample)
    shared = [
        [COVARIANCES[component.kind](component, hypothesis, sampled) for component in hypothesis.components]
        for hypothesis in hypotheses
    ]
    terms, matrices = zip(*(_terms(components, len(units)) for components in shared), strict=True)
    order, start = independent_blocks([covariance for components in shared for covariance in components], len(units))
    seen = np.isfinite(noise).all(0)
    if not seen.any():
        raise UserError(f"{sheet.path}: no sample has reads: expected some")
    members = [np.flatnonzero(seen & np.isin(of_sample, order[first:last])) for first, last in pairwise(start)]
    design = _design(cohort)
    variance = np.zeros((len(hypotheses), design.shape[1]))
    variance[:, 0] = baseline_sd**2
    for h, field in enumerate(cohort.fields):
        variance[h, 1 + field.design_column] = EFFECT_SD**2
    blocks = [_block(rows, of_sample, noise, design, matrices) for rows in members if len(rows)]
    return GaussianCohort(tuple(hypotheses), terms, _stacked(blocks), variance, int(seen.sum()))


def _terms(components: Sequence[Array], units: int) -> tuple[Terms, Array]:
    """Terms of the components [N, N, E] and of the residual, and their matrices [J, N, N] among the units."""
    which, power, matrices = list[int](), list[int](), list[Array]()
    for number, polynomials in enumerate(components):
        for exponent in np.flatnonzero(polynomials.any((0, 1))):
            which.append(number)
            power.append(int(exponent))
            matrices.append(polynomials[:, :, exponent])
    which.append(len(components))
    power.append(0)
    matrices.append(np.eye(units))
    return Terms(np.array(which), np.array(power)), np.stack(matrices)


def _design(cohort: Cohort) -> Array:
    """Intercept and all covariates that any hypothesis has, [S, 1 + C]."""
    design = np.ones((len(cohort.samples), 1 + len(cohort.covariates)))
    for field in cohort.fields:
        design[:, 1 + field.design_column] = field.design[:, 1:]
    return design


class _Block(NamedTuple):
    """One block of n samples."""

    noise: Array  # [V, n]
    design: Array  # [n, P]
    shared: tuple[Array, ...]  # [H] of [J, n, n]

    @property
    def key(self) -> tuple[bytes, ...]:
        """The same for blocks that are alike."""
        return tuple((np.round(part, SAME) + 0.0).tobytes() for part in (self.noise, self.design, *self.shared))


def _block(
    rows: NDArray[np.intp], of_sample: NDArray[np.int32], noise: Array, design: Array, matrices: Sequence[Array]
) -> _Block:
    unit = of_sample[rows]
    shared = tuple(matrix[:, unit[:, None], unit] for matrix in matrices)
    return _Block(noise[:, rows], design[rows], shared)


def _stacked(blocks: Sequence[_Block]) -> tuple[BlockStack, ...]:
    alike: dict[int, dict[tuple[bytes, ...], list[_Block]]] = {}
    for block in blocks:
        alike.setdefault(len(block.design), {}).setdefault(block.key, []).append(block)
    return tuple(
        BlockStack(
            times=np.array([len(same) for same in of_size.values()], dtype=float),
            noise=np.stack([same[0].noise for same in of_size.values()], axis=1),
            design=np.stack([same[0].design for same in of_size.values()]),
            shared=tuple(np.stack(parts) for parts in zip(*(same[0].shared for same in of_size.values()), strict=True)),
        )
        for _, of_size in sorted(alike.items())
    )


class Weighted(NamedTuple):
    """Variances of the J terms of a hypothesis at nodes of its D parameters."""

    weight: Array  # [..., J]
    slope: Array  # [..., J, D], derivatives


def weights_at(hypothesis: Hypothesis, terms: Terms, theta: Array) -> Weighted:
    """Variances of the terms at parameters theta [..., D] on their unconstrained scale, and their derivatives."""
    variances, tau = variance_components_at(hypothesis, theta)
    weight = variances[..., terms.component] * tau[..., None] ** terms.exponent
    slope = np.zeros((*weight.shape, len(hypothesis.parameters)))
    slope[..., 0] = 2.0 * weight
    for number, component in enumerate(hypothesis.components):
        if component.share == "free":
            d = hypothesis.parameters.index(component.parameter)
            share = expit(theta[..., d])[..., None]
            change = np.where(terms.component == number, 1.0 - share, np.where(terms.component > number, -share, 0.0))
            slope[..., d] = weight * change
    if hypothesis.has_free_transmissibility:
        d = hypothesis.parameters.index(TRANSMISSIBILITY)
        slope[..., d] = weight * terms.exponent * (1.0 - tau)[..., None]
    return Weighted(weight, slope)


def block_covariances(stack: BlockStack, h: int, weight: Array, level: NDArray[np.intp]) -> Array:
    """B of Q parameter sets, [Q, C, n, n]: weight [Q, J] of hypothesis h; level [Q], which noise each has."""
    shared = stack.shared[h]
    c, j, n, _ = shared.shape
    blocks = (weight @ shared.swapaxes(0, 1).reshape(j, -1)).reshape(-1, c, n, n)
    diagonal = np.arange(blocks.shape[-1])
    blocks[..., diagonal, diagonal] += stack.noise[level]
    return blocks
