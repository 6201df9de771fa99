"""Pareto-smoothed importance sampling: the shape of the tail of weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EVEN_WEIGHTS = 0.1  # relative effective sample size below which k-hat is estimated


def pareto_shapes(log_weight: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """k-hat where the relative effective sample size is below EVEN_WEIGHTS, else nan."""
    khat = np.full(len(weight), np.nan)
    uneven = np.flatnonzero(1.0 / (weight**2).sum(1) < EVEN_WEIGHTS * weight.shape[1])
    if len(uneven):
        from arviz_stats.base import array_stats  # imported where needed: most shards have no uneven locus

        khat[uneven] = array_stats.psislw(-log_weight[uneven], axis=-1)[1]  # it negates what it is given
    return khat
