"""The latent Gaussian field of one hypothesis: who shares what, as polynomials in the transmissibility.

Under a hypothesis with C covariance components the logit of sample s of individual i(s) is

    y_s = x_s' beta + b_i(s),     b ~ N(0, v_1 A_1(tau) + ... + v_C A_C(tau) + v_residual I)

with A_c what component c makes individuals share (transmission along the pedigree, membership in a group, a matrix) and
I the individual's own deviation. Every entry of an A_c is a polynomial in the one free transmissibility tau, a constant
for all but transmission, so the pedigree is walked once, here, and neither the compiled kernel nor the Pyro model ever
sees it again. Individuals without a sample vanish exactly, because A is only needed among sampled individuals.

# METHOD: the deviation e belongs to the individual, not to the sample: replicate samples of one individual share b, so
# that the likeness of replicates never counts as transmission.

A sample may be one haplotype of its individual. With h_m and h_p the effects of the chromosomes from mother and father,

    h_m = tau_m a_mother + s_m,    h_p = tau_p a_father + s_p,    a = (h_m + h_p) / 2,    Var(a) = 1

    Cov(h_m, h_p) = c = tau_m tau_p Cov(a_mother, a_father),    Var(h_m) = Var(h_p) = 2 - c

which gives the individual the same a as above. A haplotype depends on one parent only: whatever the mother lacks or
does not transmit, h_m is not like anything of the father's.

# METHOD: which of the mother's two chromosomes is handed on is not known, so that h_m follows their mean a_mother: the
# Gaussian with the mean and covariance of the mixture over this choice.
# METHOD: of a haplotype whose parent of origin is unknown the field has the mean and covariance of the mixture of both
# labellings, with probability 1/2 each, at every locus anew: its covariance with every other individual is that of a,
# with the other haplotype of the same file c. The label HP is only used at one locus, hence within a phase set. What
# the Gaussian costs does not show in the probabilities of 20,000 loci (tests/slow/test_haplotype_calibration.py).
# METHOD: on the logit scale a haplotype deviates as much as an individual: b takes h / sqrt(2), and a deviation e of
# its own. If alleles were independent, the mean of two would vary half as much; then only sigma differs between the
# two, not the shares of its parts, which the hypotheses are about.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from epivi.field.covariate import Covariate

# Share of the variance of b that is added to it, so that a covariance can be factored where fixed shares leave nothing
# of one's own; in single precision it must stay visible next to one.
NUGGET = 1e-10
NUGGET_SINGLE = 1e-5


class Entries(Protocol):
    """The covariance of b: F blocks, E entries of their lower triangles."""

    @property
    def block_start(self) -> NDArray[np.int32]: ...  # [F + 1], first latent of each block

    @property
    def entry_start(self) -> NDArray[np.int32]: ...  # [F + 1], first entry of each block

    @property
    def entry_component(self) -> NDArray[np.int32]: ...  # [E]

    @property
    def entry_row(self) -> NDArray[np.int32]: ...  # [E]

    @property
    def entry_column(self) -> NDArray[np.int32]: ...  # [E]

    @property
    def entry_exponent(self) -> NDArray[np.int32]: ...  # [E]

    @property
    def entry_coefficient(self) -> NDArray[np.float64]: ...  # [E]


class LatentField(NamedTuple):
    """Structure of b and of the mean under one hypothesis; S samples, P effects with the intercept, C components.

    N latents: the sampled individuals, or their haplotypes.

    The N latents are ordered block by block; b is independent between blocks. Within a block the covariance of the pair
    (row, column <= row) is the sum over its entries of variance[component] * coefficient * tau^exponent; rows and
    columns count within the block.
    """

    latent_of_sample: NDArray[np.int32]  # [S]
    block_start: NDArray[np.int32]  # [F + 1], first latent of each block
    entry_start: NDArray[np.int32]  # [F + 1], first entry of each block
    entry_component: NDArray[np.int32]  # [E]
    entry_row: NDArray[np.int32]  # [E]
    entry_column: NDArray[np.int32]  # [E]
    entry_exponent: NDArray[np.int32]  # [E]
    entry_coefficient: NDArray[np.float64]  # [E]
    components: int  # C
    design: NDArray[np.float64]  # [S, P], first column the intercept
    design_column: NDArray[np.int32]  # [P - 1], which cohort covariate each further column is
    individual: NDArray[np.int32]  # [N], index into the cohort's sampled individuals and haplotypes


class Cohort(NamedTuple):
    """What the model needs to know of samples and pedigree, without any path or file."""

    samples: tuple[str, ...]
    individuals: tuple[str, ...]  # sampled individuals and haplotypes, in the order of their first sample
    individual_of_sample: NDArray[np.int32]  # [S]
    false_methylated: NDArray[np.float64]  # [S], eps
    false_unmethylated: NDArray[np.float64]  # [S], delta
    covariates: tuple[Covariate, ...]  # the columns of the covariate matrix
    fields: tuple[LatentField, ...]  # one for each hypothesis


def has_exact_reads(cohort: Cohort) -> bool:
    """Whether no sample has a conversion or call error."""
    return not (cohort.false_methylated.any() or cohort.false_unmethylated.any())


class BlockEntries(NamedTuple):
    """The entries of LatentField, block by block."""

    start: NDArray[np.int32]  # [F + 1]
    component: NDArray[np.int32]  # [E]
    row: NDArray[np.int32]  # [E]
    column: NDArray[np.int32]  # [E]
    exponent: NDArray[np.int32]  # [E]
    coefficient: NDArray[np.float64]  # [E]


def independent_blocks(
    covariances: Sequence[NDArray[np.float64]], n: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """n individuals in the order of their independent blocks [n], and the first of each block [F + 1].

    covariances: of each component, [n, n, exponents].
    """
    linked = np.eye(n, dtype=bool)
    for polynomials in covariances:
        linked |= (polynomials != 0).any(axis=-1)
    _, block = connected_components(coo_array(linked), directed=False)
    order = np.argsort(block, kind="stable").astype(np.int32)
    return order, np.searchsorted(block[order], np.arange(block.max() + 2)).astype(np.int32)


def block_entries(
    covariances: Sequence[NDArray[np.float64]], order: NDArray[np.int32], block_start: NDArray[np.int32]
) -> BlockEntries:
    """What is not zero in the lower triangles of the blocks."""
    counts, coefficients = [0], [np.zeros(0)]
    places = [np.zeros((4, 0), dtype=np.int32)]
    for start, stop in pairwise(block_start):
        members = np.ix_(order[start:stop], order[start:stop])
        counts.append(0)
        for component, polynomials in enumerate(covariances):
            of_block = polynomials[members]
            row, column, exponent = (index.astype(np.int32) for index in np.nonzero(of_block))
            lower = column <= row
            places.append(np.stack([np.full_like(row, component), row, column, exponent])[:, lower])
            coefficients.append(of_block[row, column, exponent][lower])
            counts[-1] += int(np.count_nonzero(lower))
    entries = np.concatenate(places, axis=1)
    return BlockEntries(
        start=np.cumsum(counts).astype(np.int32),
        component=entries[0].copy(),
        row=entries[1].copy(),
        column=entries[2].copy(),
        exponent=entries[3].copy(),
        coefficient=np.concatenate(coefficients),
    )


def field_covariance(
    field: LatentField, variances: NDArray[np.float64], tau: NDArray[np.float64], nugget: float = NUGGET
) -> NDArray[np.float64]:
    """Covariance of b, [L, N, N], at variances [L, C + 1], the residual last, and tau [L]. Dense and simple.

    nugget: share of the variance that is added to the residual.
    """
    n = len(field.individual)
    block = np.repeat(field.block_start[:-1], np.diff(field.entry_start))
    row, column = field.entry_row + block, field.entry_column + block
    terms, term = np.unique(np.stack([field.entry_component, field.entry_exponent]), axis=1, return_inverse=True)
    coefficient = np.zeros((terms.shape[1], n, n))
    coefficient[term.ravel(), row, column] = coefficient[term.ravel(), column, row] = field.entry_coefficient
    weight = variances[:, terms[0]] * np.asarray(tau)[:, None] ** terms[1]
    shared = (weight @ coefficient.reshape(len(coefficient), n * n)).reshape(-1, n, n)
    own = variances[:, -1] + nugget * variances.sum(1)
    return np.asarray(shared + own[:, None, None] * np.eye(n))
