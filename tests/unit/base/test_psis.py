"""The shape of the tail of importance weights, against weights drawn with a known one."""

from __future__ import annotations

import numpy as np
import pytest

from epivi.base.psis import EVEN_WEIGHTS, pareto_shapes


@pytest.mark.parametrize("shape", [1.2, 1.6])
def test_even_weights_have_no_tail_and_uneven_ones_the_shape_they_were_drawn_with(shape: float) -> None:
    """Weights of a generalized Pareto distribution have its shape as k-hat. Seed 1: of 20,000 weights the largest 424
    are the tail, and k-hat has a standard error of (1 + k) / sqrt(424) = 0.11 to 0.13, the mean of eight of at most
    0.045: 0.2 is missed with a probability below 1e-4, and shapes of 0.9 and 1.9 would be told from these."""
    random = np.random.default_rng(1)
    uneven = (random.random((8, 20_000)) ** -shape - 1) / shape
    weight = np.concatenate([uneven, 1 + 0.01 * random.random((2, 20_000))])
    weight /= weight.sum(1, keepdims=True)
    effective = 1 / (weight**2).sum(1) / weight.shape[1]
    assert (effective[:8] < EVEN_WEIGHTS).all()
    assert (effective[8:] > EVEN_WEIGHTS).all()
    khat = pareto_shapes(np.log(weight), weight)
    assert np.isnan(khat[8:]).all()
    assert khat[:8].mean() == pytest.approx(shape, abs=0.2)
