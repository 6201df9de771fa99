"""Reads given the state of the individual: beta-binomial around three levels.

    meth ~ BetaBinomial(total, level[state], dispersion),   level = (eps0, 1/2, 1 - eps1)

`dispersion` is the correlation of two reads of a site; the reads are binomial where it goes to 0. Millions of sites
have some hundred different pairs of (methylated, total) reads, so probabilities are looked up in a table over the pairs
that occur (`CountPairs`).

# METHOD: a state is never less probable than e^-LARGEST_CONTRAST times the best one: reads of one sample do not speak
more clearly than that, and nothing underflows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LARGEST_CONTRAST = 230.0  # nats


class StateEmission(NamedTuple):
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


def log_probability(emission: StateEmission, meth: Tensor, total: Tensor) -> Tensor:
    """Log probability of methylated reads of total given each state, [..., K, 3] for reads [K].

    Differentiable in the emission, whose tensors have shape [...] that stands in front. No reads give zeros.
    """
    half = torch.full_like(emission.false_methylated, 0.5)
    level = torch.stack([emission.false_methylated, half, 1 - emission.false_unmethylated], -1)[..., None, :]
    precision = ((1 - emission.dispersion) / emission.dispersion)[..., None, None]
    meth, total = (reads.to(level.dtype)[:, None] for reads in (meth, total))
    choices = torch.lgamma(total + 1) - torch.lgamma(meth + 1) - torch.lgamma(total - meth + 1)
    a, b = level * precision, (1 - level) * precision
    value = choices + _log_rising(a, meth) + _log_rising(b, total - meth) - _log_rising(a + b, total)
    return torch.maximum(value, value.amax(-1, keepdim=True).detach() - LARGEST_CONTRAST)


def _log_rising(a: Tensor, n: Tensor) -> Tensor:
    """log Gamma(a + n) - log Gamma(a)."""
    return torch.lgamma(a + n) - torch.lgamma(a)


def log_emission(emission: StateEmission, pairs: CountPairs, codes: NDArray[np.int32]) -> Tensor:
    """Log probability of each sample's reads given the state, [S, 3, L] (as `likelihood.sum_samples` takes), for
    encoded reads [S, L]; emission: scalars."""
    table = log_probability(emission, torch.as_tensor(pairs.meth), torch.as_tensor(pairs.total))  # [K, 3]
    device = table.device
    return table.T[:, torch.as_tensor(codes, dtype=torch.int64, device=device)].movedim(1, 0)
