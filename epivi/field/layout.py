"""The latent Gaussian field of one hypothesis: who shares what, as polynomials in the transmissibility.

Under a hypothesis the logit of sample s of individual i(s) is

    y_s = x_s' beta + b_i(s),     b ~ N(0, sigma^2 [rho A(tau) + (1 - rho) eta G + (1 - rho)(1 - eta) I])

with A the covariance that transmission induces along the pedigree, G the co-membership of a sample-sheet column and I
the individual's own deviation. Every entry of A is a polynomial in the one free transmissibility tau, so the pedigree
is walked once, here, and neither the compiled kernel nor the Pyro model ever sees it again. Individuals without a
sample vanish exactly, because A is only needed among sampled individuals.

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

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


class LatentField(NamedTuple):
    """Structure of b and of the mean under one hypothesis; S samples, P effects with the intercept.

    N latents: the sampled individuals, or their haplotypes.

    The N latents are ordered block by block; b is independent between blocks. Within a block the pair (row, column <=
    row) has A = sum over its entries of coefficient * tau^exponent; rows and columns count within the block.
    """

    latent_of_sample: NDArray[np.int32]  # [S]
    block_start: NDArray[np.int32]  # [F + 1], first latent of each block
    entry_start: NDArray[np.int32]  # [F + 1], first entry of each block
    entry_row: NDArray[np.int32]  # [E]
    entry_column: NDArray[np.int32]  # [E]
    entry_exponent: NDArray[np.int32]  # [E]
    entry_coefficient: NDArray[np.float64]  # [E]
    group: NDArray[np.int32]  # [N], level of the environment column, -1 where there is none
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
    covariates: tuple[str, ...]  # names of the columns of the covariate matrix
    fields: tuple[LatentField, ...]  # one for each hypothesis


def has_exact_reads(cohort: Cohort) -> bool:
    """Whether no sample has a conversion or call error."""
    return not (cohort.false_methylated.any() or cohort.false_unmethylated.any())


def independent_blocks(
    polynomials: NDArray[np.float64], group: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Individuals in the order of their independent blocks [N], and the first of each block [F + 1]."""
    linked = (polynomials != 0).any(axis=-1) | ((group[:, None] == group[None, :]) & (group[:, None] >= 0))
    np.fill_diagonal(linked, True)
    _, block = connected_components(coo_array(linked), directed=False)
    order = np.argsort(block, kind="stable").astype(np.int32)
    return order, np.searchsorted(block[order], np.arange(block.max() + 2)).astype(np.int32)


def block_entries(
    polynomials: NDArray[np.float64], order: NDArray[np.int32], block_start: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]:
    """First entry of each block [F + 1]; (row, column, exponent) of every term [E, 3]; coefficients [E]."""
    rows: list[tuple[int, int, int]] = []
    coefficients: list[float] = []
    entry_start = [0]
    for start, stop in pairwise(block_start):
        members = order[start:stop]
        for row in range(stop - start):
            for column in range(row + 1):
                polynomial = polynomials[members[row], members[column]]
                exponents = np.flatnonzero(polynomial)
                rows += [(row, column, int(exponent)) for exponent in exponents]
                coefficients += polynomial[exponents].tolist()
        entry_start.append(len(rows))
    entries = np.array(rows, dtype=np.int32).reshape(-1, 3)
    return np.array(entry_start, dtype=np.int32), entries, np.array(coefficients)


def dense_covariance(
    field: LatentField, spread: float, heritable: float, environment: float, residual: float, tau: float
) -> NDArray[np.float64]:
    """Covariance [N, N] of b for one value of every parameter; shares sum to one. Slow, for tests and simulation."""
    n = len(field.group)
    transmitted = np.zeros((n, n))
    for f, start in enumerate(field.block_start[:-1]):
        entries = slice(field.entry_start[f], field.entry_start[f + 1])
        rows, columns = field.entry_row[entries] + start, field.entry_column[entries] + start
        values = field.entry_coefficient[entries] * tau ** field.entry_exponent[entries].astype(float)
        np.add.at(transmitted, (rows, columns), values)
    transmitted = transmitted + np.tril(transmitted, -1).T
    together = ((field.group[:, None] == field.group[None, :]) & (field.group[:, None] >= 0)).astype(float)
    return spread**2 * (heritable * transmitted + environment * together + residual * np.eye(n))
