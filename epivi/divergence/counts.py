"""State weights from read counts, unbiased whatever the coverage.

The methylated reads m of n at a site in state UU, UM or MM are beta-binomial around the levels eps0, 1/2 and 1 - eps1,
with one dispersion (`epivi.lineage.emission`). Weights phi_s(m, n) with

    sum_m phi_s(m, n) P(m | n, state t) = 1 if s = t else 0

have, given the state, the expectation of a hard call without error. Given the states, reads of two samples are
independent, so that products of weights are unbiased for pairs of states, and their sums over sites for the divergence.
Of all such weights those with the least variance over the sites of the cohort are taken: with P the matrix of
probabilities and V those of m in the mixture of states, phi = (P' V^-1 P)^-1 P' V^-1. Two reads are the least that
distinguish three states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp

from epivi.divergence.pairs import BlockSums, block_sums, stack_blocks
from epivi.lineage.emission import LineageEmission, log_probability

LEAST_READS = 2  # that distinguish three states
# METHOD: error rates are shared by all samples, between these bounds; a sample with more errors than the others keeps
# some bias, the same in all its pairs, of which the intercept of the fit takes up the mean.
ERROR_BOUNDS = (1e-5, 0.25)
DISPERSION_BOUNDS = (1e-5, 0.5)
# METHOD: weights are chosen for a mixture with at least this share of each state, so that they stay finite.
LEAST_SHARE = 1e-4


class ReadMixture(NamedTuple):
    """Distribution of methylated reads given the state, and the cohort's mixture of states."""

    false_methylated: float  # eps0, share of methylated reads at an unmethylated site
    false_unmethylated: float  # eps1, share of unmethylated reads at a methylated site
    dispersion: float  # correlation of two reads of a site, in (0, 1)
    shares: np.ndarray  # of UU, UM and MM over sites and samples, float64 [3]


class CountTable:
    """How often each pair of methylated and total reads occurs; grows by `add`."""

    def __init__(self) -> None:
        self._number: dict[int, int] = {}

    def add(self, meth: np.ndarray, total: np.ndarray) -> None:
        """Count reads uint16 or int of any one shape; sites with fewer than LEAST_READS reads are left out."""
        enough = total >= LEAST_READS
        code = (total[enough].astype(np.int64) << 32) | meth[enough].astype(np.int64)
        values, number = np.unique(code, return_counts=True)
        for value, more in zip(values.tolist(), number.tolist(), strict=True):
            self._number[value] = self._number.get(value, 0) + more

    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Methylated reads, total reads and how many sites of samples have them, int64 [K] each."""
        code = np.array(sorted(self._number), dtype=np.int64)
        number = np.array([self._number[value] for value in code.tolist()], dtype=np.int64)
        return code & 0xFFFFFFFF, code >> 32, number


def fit_emission(counts: CountTable) -> ReadMixture:
    """Error rates, dispersion and shares of states by maximum likelihood over all sites of all samples.

    Raises ValueError where no site has LEAST_READS reads, RuntimeError where the search does not converge.
    """
    meth, total, number = counts.columns()
    if not len(number):
        raise ValueError(f"no site has {LEAST_READS} reads or more")

    reads, weight = (torch.as_tensor(meth), torch.as_tensor(total)), torch.as_tensor(number / number.sum())

    def objective(unknowns: np.ndarray) -> tuple[float, np.ndarray]:
        variable = torch.tensor(unknowns, requires_grad=True)
        emission, log_shares = _unpacked(variable)
        value = -(weight @ torch.logsumexp(log_probability(emission, *reads) + log_shares, 1))
        (slope,) = torch.autograd.grad(value, variable)
        return value.item(), slope.numpy()

    share = np.average(np.digitize(meth / total, [0.25, 0.75])[:, None] == np.arange(3), axis=0, weights=number)
    share = np.maximum(share, 1e-3)
    # Unknowns are on the scale of the logistic function; -3 is a twentieth of the way between two bounds.
    start = np.array([-3.0, -3.0, -3.0, *(np.log(share[1:]) - np.log(share[0]))])
    found = minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-6, "maxiter": 500})
    if not found.success and np.max(np.abs(found.jac)) > 1e-4:
        raise RuntimeError(f"the search for error rates did not converge: {found.message}")
    emission, log_shares = _unpacked(torch.as_tensor(found.x))
    error_rates = (emission.false_methylated.item(), emission.false_unmethylated.item(), emission.dispersion.item())
    return ReadMixture(*error_rates, log_shares.exp().numpy())


def _unpacked(unknowns: torch.Tensor) -> tuple[LineageEmission, torch.Tensor]:
    """Error rates and dispersion between their bounds, and the log shares of the states [3], from unknowns [5]."""
    lower, upper = torch.tensor([ERROR_BOUNDS, ERROR_BOUNDS, DISPERSION_BOUNDS], dtype=torch.float64).T
    values = lower + (upper - lower) * torch.sigmoid(unknowns[:3])
    return LineageEmission(*values), torch.log_softmax(torch.nn.functional.pad(unknowns[3:], (1, 0)), 0)


class StateWeights:
    """Weights of the three states given the reads; tables are made for each coverage when it is first met."""

    def __init__(self, emission: ReadMixture, least_reads: int = LEAST_READS) -> None:
        self._emission = emission
        self._least_reads = max(least_reads, LEAST_READS)
        self._tables: dict[int, np.ndarray] = {}

    def __call__(self, meth: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Weights [L, S, 3] for reads [L, S]; nan where there are too few reads."""
        result = np.full((*total.shape, 3), np.nan)
        for reads in np.unique(total).tolist():
            if reads >= self._least_reads:
                at = total == reads
                result[at] = self.table(reads)[meth[at]]
        return result

    def table(self, reads: int) -> np.ndarray:
        """Weights for 0 to `reads` methylated of `reads` reads, float64 [reads + 1, 3]."""
        if reads not in self._tables:
            self._tables[reads] = _least_variance(self._emission, reads)
        return self._tables[reads]


def _least_variance(emission: ReadMixture, reads: int) -> np.ndarray:
    meth = torch.arange(reads + 1)
    errors = LineageEmission(*torch.tensor(emission[:3], dtype=torch.float64))
    log_p = log_probability(errors, meth, torch.full_like(meth, reads)).numpy()
    probability = np.exp(log_p - logsumexp(log_p, axis=0))
    shares = np.maximum(emission.shares, LEAST_SHARE)
    mixture = np.maximum(probability @ (shares / shares.sum()), np.finfo(float).tiny)
    scaled = probability / mixture[:, None]
    result: np.ndarray = np.linalg.solve(probability.T @ scaled, scaled.T).T
    return result


def sums_of_counts(
    chunks: Callable[[int], Iterable[tuple[np.ndarray, np.ndarray]]],
    n_blocks: int,
    n_samples: int,
    least_reads: int,
    done: Callable[[], object] = lambda: None,
) -> tuple[BlockSums, ReadMixture]:
    """Sums of the state weights in two passes over the loci: error rates, then weights; and the error rates.

    chunks: methylated and total reads [L, S] of a block, in pieces, given its number; done: called 2 * n_blocks times.
    A site with fewer than `least_reads` reads is missing for the sample. Raises as `fit_emission`.
    """
    table = CountTable()
    for number in range(n_blocks):
        for meth, total in chunks(number):
            table.add(meth, total)
        done()
    emission = fit_emission(table)
    weights = StateWeights(emission, least_reads)
    sums = []
    for number in range(n_blocks):
        sums.append(block_sums((weights(*reads) for reads in chunks(number)), n_samples))
        done()
    return stack_blocks(sums), emission
