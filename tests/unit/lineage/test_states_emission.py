"""Probabilities of reads against scipy, and the table of pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import betabinom

from epivi.lineage.emission import LARGEST_CONTRAST, StateEmission, collect_pairs, encode, log_emission, log_probability

EMISSION = StateEmission(*torch.tensor([0.01, 0.04, 0.03], dtype=torch.float64))


def test_probabilities_are_beta_binomial() -> None:
    total = np.repeat([0, 1, 7, 40], [1, 2, 8, 41])
    meth = np.concatenate([np.arange(n + 1) for n in (0, 1, 7, 40)])
    value = log_probability(EMISSION, torch.as_tensor(meth), torch.as_tensor(total)).numpy()
    precision = (1 - 0.03) / 0.03
    for state, level in enumerate((0.01, 0.5, 0.96)):
        assert_allclose(
            value[:, state], betabinom.logpmf(meth, total, level * precision, (1 - level) * precision), atol=1e-10
        )
    assert (value[0] == 0).all()


def test_gradients_and_batches() -> None:
    batch = torch.rand(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).mul(0.2).add(0.01)
    meth, total = torch.tensor([0, 3, 9]), torch.tensor([4, 5, 9])
    inputs = tuple(value.clone().requires_grad_() for value in batch)
    assert torch.autograd.gradcheck(lambda *e: log_probability(StateEmission(*e), meth, total), inputs)
    assert log_probability(StateEmission(*batch), meth, total).shape == (2, 3, 3)


def test_contrast_has_a_limit() -> None:
    value = log_probability(
        EMISSION._replace(dispersion=torch.tensor(1e-5).double()), torch.tensor([0]), torch.tensor([500])
    )
    assert value[0, 0] - value[0, 2] == LARGEST_CONTRAST


def test_pairs_and_codes() -> None:
    random = np.random.default_rng(1)
    total = random.integers(0, 30, size=(50, 4)).astype(np.uint16)
    meth = random.integers(0, total + 1).astype(np.uint16)
    total[0, 0], meth[0, 0] = 65535, 65535
    pairs = collect_pairs([(meth[:20], total[:20]), (meth[20:], total[20:])])
    assert len(pairs.meth) == len({(0, 0), *zip(meth.ravel().tolist(), total.ravel().tolist(), strict=True)})
    codes = encode(pairs, meth, total)
    assert codes.shape == (4, 50)
    assert (pairs.meth[codes] == meth.T).all()
    assert (pairs.total[codes] == total.T).all()
    direct = log_probability(
        EMISSION, torch.as_tensor(meth.T.astype(int)).ravel(), torch.as_tensor(total.T.astype(int)).ravel()
    )
    assert_allclose(
        log_emission(EMISSION, pairs, codes).numpy(), direct.reshape(4, 50, 3).movedim(2, 1).numpy(), atol=0
    )
    for other in ((1, 31), (1, 65535)):
        with pytest.raises(ValueError, match="expected pairs"):
            encode(pairs, *(np.full((1, 1), reads, dtype=np.uint16) for reads in other))
    few = collect_pairs([(meth[1:], total[1:])])
    with pytest.raises(ValueError, match="expected pairs"):
        encode(few, meth, total)
