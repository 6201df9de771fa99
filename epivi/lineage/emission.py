"""Reads given the state of the individual: beta-binomial around three levels.

    meth ~ BetaBinomial(total, level[state], dispersion),   level = (eps0, 1/2, 1 - eps1)

`dispersion` is the correlation of two reads of a site; the reads are binomial where it goes to 0. Millions of sites
have some hundred different pairs of (methylated, total) reads, so probabilities are looked up in a table over the pairs
that occur (`CountPairs`).

# METHOD: a state is never less probable than e^-LARGEST_CONTRAST times the best one: reads of one sample do not speak
more clearly than that, and nothing underflows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LARGEST_CONTRAST = 230.0  # nats


class LineageEmission(NamedTuple):
    """Levels and dispersion, shared by all samples; each a tensor [...]."""

    false_methylated: Tensor  # eps0, methylated share of reads in UU
    false_unmethylated: Tensor  # eps1, unmethylated share of reads in MM
    dispersion: Tensor  # in (0, 1)


class CountPairs(NamedTuple):
    """The K pairs of methylated and total reads that occur, and where to find them."""

    meth: NDArray[np.int64]  # [K]
    total: NDArray[np.int64]  # [K]
    start: NDArray[np.int64]  # [largest total + 1], place of total's first entry in `number`; -1: does not occur
    number: NDArray[np.int32]  # number of the pair by start[total] + meth; -1: does not occur


def collect_pairs(chunks: Iterable[tuple[NDArray[np.uint16], NDArray[np.uint16]]]) -> CountPairs:
    """All pairs in chunks of (methylated, total) reads of any shapes; (0, 0) is always there."""
    codes = np.zeros(1, dtype=np.int64)
    for meth, total in chunks:
        codes = np.union1d(codes, (total.astype(np.int64) << 16) | meth)
    meth_reads, total_reads = codes & 0xFFFF, codes >> 16
    largest = int(total_reads.max())
    start = np.full(largest + 1, -1, dtype=np.int64)
    occurring = np.unique(total_reads)
    start[occurring] = np.concatenate([[0], np.cumsum(occurring + 1)[:-1]])
    number = np.full(int((occurring + 1).sum()), -1, dtype=np.int32)
    number[start[total_reads] + meth_reads] = np.arange(len(codes), dtype=np.int32)
    return CountPairs(meth_reads, total_reads, start, number)


def encode(pairs: CountPairs, meth: NDArray[np.uint16], total: NDArray[np.uint16]) -> NDArray[np.int32]:
    """Number of the pair of each sample and locus, [S, L] from reads [L, S]. Raises ValueError for a pair not there."""
    if total.max(initial=0) >= len(pairs.start):
        raise ValueError(f"{total.max()} reads: expected pairs collected from the same counts")
    place = pairs.start[total.T]
    codes: NDArray[np.int32] = pairs.number[np.where(place < 0, 0, place) + meth.T]
    if (place < 0).any() or (codes < 0).any():
        raise ValueError("a pair of methylated and total reads is not in the table: expected pairs of the same counts")
    return np.ascontiguousarray(codes)


def log_probability(emission: LineageEmission, meth: Tensor, total: Tensor) -> Tensor:
    """Log probability of methylated reads of total given each state, [..., K, 3] for reads [K].

    Differentiable in the emission, whose tensors have shape [...] that stands in front. No reads give zeros.

    With r = dispersion / (1 - dispersion) the beta-binomial is a product of one factor a read,

        choose(n, m) prod_{i<m} (level + i r) prod_{i<n-m} (1 - level + i r) / prod_{i<n} (1 + i r)

    which is the binomial at r = 0. Differences of log-gamma functions are the same in exact arithmetic and lose all
    digits where the dispersion is small.
    """
    eps0, eps1 = emission.false_methylated, emission.false_unmethylated
    half = torch.full_like(eps0, 0.5)
    level, complement = torch.stack([eps0, half, 1 - eps1], -1), torch.stack([1 - eps0, half, eps1], -1)
    ratio = (emission.dispersion / (1 - emission.dispersion))[..., None]
    one = torch.ones_like(ratio)
    factorial = _log_products(one, one, total)
    choices = factorial(total) - factorial(meth) - factorial(total - meth)
    methylated, unmethylated, all_reads = (_log_products(start, ratio, total) for start in (level, complement, one))
    value = choices + methylated(meth) + unmethylated(total - meth) - all_reads(total)
    return torch.maximum(value, value.amax(-1, keepdim=True).detach() - LARGEST_CONTRAST)


def _log_products(start: Tensor, step: Tensor, total: Tensor) -> Callable[[Tensor], Tensor]:
    """The function n [K] -> log prod_{i<n} (start + i step), [..., K, X], for n up to the largest total.

    start: [..., X]; step: [..., 1].
    """
    most = int(total.max()) if len(total) else 0
    steps = torch.arange(most, dtype=start.dtype, device=start.device)
    factors = start[..., None, :] + step[..., None, :] * steps[:, None]
    sums = torch.nn.functional.pad(factors.log().cumsum(-2), (0, 0, 1, 0))
    return lambda n: sums[..., n, :]


def log_emission(emission: LineageEmission, pairs: CountPairs, codes: NDArray[np.int32]) -> Tensor:
    """Log probability of each sample's reads given the state, [S, 3, L] (as `likelihood.sum_samples` takes), for
    encoded reads [S, L]; emission: scalars."""
    table = log_probability(emission, torch.as_tensor(pairs.meth), torch.as_tensor(pairs.total))  # [K, 3]
    device = table.device
    return table.T[:, torch.as_tensor(codes, dtype=torch.int64, device=device)].movedim(1, 0)
