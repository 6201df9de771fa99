"""The covariance of the latent field in torch: blocks of several sizes against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from inference_cases import make_pedigree, make_sheet, one_hypothesis, prior_of_b

from epivi.families.transmission.cohort import build_cohort
from epivi.field.torch.prior import Theta, field_tensors, latent_positions, prior_factor

PEDIGREE = make_pedigree(("m",), ("f",), ("c", "m", "f"), ("alone",), ("p",), ("q", "p", None, "selfing"))


@pytest.mark.parametrize("tau", [0.0, 0.7])
def test_factors_are_of_the_dense_covariance(tau: float) -> None:
    hypothesis = one_hypothesis(heritable_share="free", maternal="tau", paternal="tau")
    sheet = make_sheet(PEDIGREE.individuals)
    field = build_cohort(sheet, PEDIGREE, (), [hypothesis]).fields[0]
    tensors = field_tensors(field, torch.device("cpu"), torch.float64)
    theta = Theta(torch.tensor([[0.6, 0.4]], dtype=torch.float64), torch.tensor([tau], dtype=torch.float64))
    blocks = []
    for group in tensors.groups:
        factor = prior_factor(group, theta)[0].numpy()
        blocks += list(factor @ np.swapaxes(factor, 1, 2))
    found = np.zeros((6, 6))
    start = 0
    for block in blocks:
        found[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    prior, membership = prior_of_b(PEDIGREE, sheet, hypothesis, np.array([0.6, 0.4]), tau)
    where = tensors.latent_of_sample.numpy()
    np.testing.assert_allclose(found[np.ix_(where, where)], membership @ prior @ membership.T, atol=1e-9)
    assert sorted(latent_positions(field, tensors).tolist()) == list(range(6))
