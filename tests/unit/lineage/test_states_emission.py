"""Probabilities of reads against scipy, and the table of pairs."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import betabinom, binom

from epivi.lineage.emission import (
    LARGEST_CONTRAST,
    LineageEmission,
    collect_pairs,
    encode,
    log_emission,
    log_probability,
)

READS = torch.tensor([0, 3, 9]), torch.tensor([4, 5, 9])
EMISSION = LineageEmission(*torch.tensor([0.01, 0.04, 0.03], dtype=torch.float64))


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


def exact(meth: int, total: int, level: mpmath.mpf, dispersion: float) -> float:
    """Log of the beta-binomial from its Beta functions, in as many digits as it takes."""
    with mpmath.workdps(400):
        precision = (1 - mpmath.mpf(dispersion)) / mpmath.mpf(dispersion)
        a, b = level * precision, (1 - level) * precision
        ways = mpmath.binomial(total, meth)
        return float(mpmath.log(ways * mpmath.beta(a + meth, b + total - meth) / mpmath.beta(a, b)))


@pytest.mark.parametrize("dispersion", [1e-300, 1e-14, 1e-10, 1e-6, 5e-4, 0.03, 0.9])
def test_probabilities_keep_their_digits(dispersion: float) -> None:
    """For any dispersion, and for error rates of which one minus the rate is one; no read is too many."""
    errors = (1e-20, 1e-5, 0.02)
    reads = [(0, 0), (0, 10), (10, 10), (3, 500), (0, 500), (4990, 5000)]
    meth, total = (torch.tensor(column) for column in zip(*reads, strict=True))
    for error in errors:
        emission = LineageEmission(*torch.tensor([error, error, dispersion], dtype=torch.float64))
        value = log_probability(emission, meth, total)
        with mpmath.workdps(400):
            levels = mpmath.mpf(error), mpmath.mpf("0.5"), 1 - mpmath.mpf(error)
        expected = np.array([[exact(m, n, level, dispersion) for level in levels] for m, n in reads])
        expected = np.maximum(expected, expected.max(1, keepdims=True) - LARGEST_CONTRAST)
        assert_allclose(value.numpy(), expected, rtol=1e-11, atol=1e-9)


def test_no_dispersion_is_the_binomial() -> None:
    value = log_probability(EMISSION._replace(dispersion=torch.zeros((), dtype=torch.float64)), *READS)
    for state, level in enumerate((0.01, 0.5, 0.96)):
        assert_allclose(value[:, state], binom.logpmf(*(reads.numpy() for reads in READS), level), rtol=1e-12)


def test_gradients_and_batches() -> None:
    batch = torch.rand(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).mul(0.2).add(0.01)
    meth, total = READS
    inputs = tuple(value.clone().requires_grad_() for value in batch)
    assert torch.autograd.gradcheck(lambda *e: log_probability(LineageEmission(*e), meth, total), inputs)
    assert log_probability(LineageEmission(*batch), meth, total).shape == (2, 3, 3)


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
