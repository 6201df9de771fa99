"""Expectation-maximization of what all loci share: its M-step against direct maximization, its gain for each method."""

from __future__ import annotations

import numpy as np
import pytest
from locus_cases import make_learned, make_model
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from epivi.families.transmission.density import LearnedPriors
from epivi.families.transmission.guide import GUIDES
from epivi.families.transmission.locus.empirical_bayes import (
    _expectation,
    _maximization,
    _Moments,
    iterate,
)
from epivi.families.transmission.outer_integral import EvidenceModel, with_learned
from epivi.loci.source import LocusSample

Array = NDArray[np.float64]


def sample(meth: np.ndarray, total: np.ndarray) -> LocusSample:
    size = len(meth)
    return LocusSample(np.full(size, "chr1"), np.arange(size, dtype=np.int32), np.arange(size), meth, total)


def total_evidence(model: EvidenceModel, loci: LocusSample, method: str) -> float:
    moments = _expectation(model, GUIDES["structured"], method, loci, 5, lambda _: None)
    log_evidence = np.stack([part.log_evidence for part in moments], axis=1)
    return float(logsumexp(np.log(model.learned.hypothesis_weights) + log_evidence, axis=1).mean())


def test_maximization_maximizes_the_expected_log_prior() -> None:
    """The closed form against a search over all hyper-parameters of an objective written anew."""
    model, _, _ = make_model(make_learned())
    rng = np.random.default_rng(1)
    loci, hypotheses = 40, 2
    responsibility = rng.dirichlet((2.0, 1.0), loci)
    moments = [
        _Moments(
            np.zeros(loci),
            (rng.choice([-1.5, 1.5], loci) + rng.normal(0, 0.5, loci), rng.uniform(0.01, 0.3, loci)),
            rng.uniform(0, 0.5, (loci, 1)),
            (rng.normal(-0.2, 0.3, loci), rng.uniform(0.01, 0.2, loci)),
        )
        for _ in range(hypotheses)
    ]
    found = _maximization(model, moments, responsibility)
    node, weight = np.polynomial.hermite_e.hermegauss(40)
    weight = weight / weight.sum()

    def objective(x: Array) -> float:
        share = np.array([1 / (1 + np.exp(-x[0])), 1 / (1 + np.exp(x[0]))])
        means, sds, location, scale, effect = x[1:3], np.exp(x[3:5]), x[5], np.exp(x[6]), np.exp(x[7])
        pi = np.array([1 / (1 + np.exp(-x[8])), 1 / (1 + np.exp(x[8]))])
        value = (responsibility * np.log(pi)).sum()
        for r, part in zip(responsibility.T, moments, strict=True):
            point = part.baseline[0][:, None] + np.sqrt(part.baseline[1])[:, None] * node
            log_density = logsumexp(np.log(share / sds) - 0.5 * ((point[..., None] - means) / sds) ** 2, axis=2)
            value += r @ (log_density @ weight)
            value -= r @ ((part.log_spread[1] + (part.log_spread[0] - location) ** 2) / (2 * scale**2) + np.log(scale))
            value -= r @ (part.effect_square[:, 0] / (2 * effect**2) + np.log(effect))
        return -float(value)

    def packed(learned: LearnedPriors) -> Array:
        shares, pi = learned.baseline_weights, learned.hypothesis_weights
        return np.concatenate(
            [
                [np.log(shares[0] / shares[1])],
                learned.baseline_means,
                np.log(learned.baseline_sds),
                [learned.spread_location, np.log(learned.spread_scale), np.log(learned.effect_sds[0])],
                [np.log(pi[0] / pi[1])],
            ]
        )

    best = minimize(objective, packed(model.learned), method="BFGS", options={"gtol": 1e-8})
    np.testing.assert_allclose(packed(found), best.x, atol=0.01)
    assert objective(packed(found)) == pytest.approx(best.fun, abs=1e-3)


@pytest.mark.parametrize("method", ["meanfield", "cavi", "laplace", pytest.param("ep", marks=pytest.mark.slow)])
def test_one_iteration_raises_what_the_method_calls_the_evidence(method: str) -> None:
    """From hyper-parameters that are off in everything; the gain is large against what nodes that move leave."""
    truth = make_learned()
    model, meth, total = make_model(truth, loci=10)
    off = truth._replace(baseline_means=np.array([-0.3, 0.5]), spread_location=0.6, effect_sds=np.array([1.5]))
    model, loci = with_learned(model, off), sample(meth, total)
    before = total_evidence(model, loci, method)
    steps = iterate(model, GUIDES["structured"], method, loci, 5, lambda _: None)
    first = next(steps)
    assert first.log_evidence == pytest.approx(before, abs=1e-9)
    assert total_evidence(with_learned(model, first.learned), loci, method) > before + 0.05


def test_methods_without_an_evidence_are_refused() -> None:
    model, meth, total = make_model(make_learned(), loci=2)
    with pytest.raises(ValueError, match="lrvb has no evidence"):
        next(iterate(model, GUIDES["structured"], "lrvb", sample(meth, total), 5, lambda _: None))
