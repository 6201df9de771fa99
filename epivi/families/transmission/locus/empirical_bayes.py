"""Hyper-parameters by expectation-maximization on a sample of loci, with any method that has an evidence.

The E-step is the method's posterior of every locus under every hypothesis, with responsibilities

    r_lh prop. to pi_h p(D_l | h);

the M-step maximizes the expected log prior in closed form, where theta and the effects enter by their first two moments
and the baseline's mixture by Gauss-Hermite quadrature over its posterior. Against the fit by stochastic variational
inference, which it starts from, this shows what the variational bound does to what all loci share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from epivi.families.transmission.density import LearnedPriors
from epivi.families.transmission.locus.methods import LOCUS_METHODS_WITH_EVIDENCE, build_locus_problems
from epivi.families.transmission.locus.problem import LocusPosterior
from epivi.families.transmission.outer_integral import EvidenceModel, with_learned
from epivi.fit.bound import Guide
from epivi.loci.source import LocusSample

Array = NDArray[np.float64]

NODES = 64  # outer ones, for each locus and hypothesis
MAX_ITERATIONS = 30
TOLERANCE = 1e-4  # nats a locus that one iteration still gains
MIXTURE_STEPS = 50  # of the EM of a Gaussian mixture within an M-step
SMALLEST_SD = 0.05
SMALLEST_SHARE = 1e-6  # of a component of the mixture, which may explain nothing
QUADRATURE_NODES = 9
CHUNK_LOCI = 32


class Iteration(NamedTuple):
    """After one iteration: the hyper-parameters, and the mean log evidence, nats a locus, of those before."""

    learned: LearnedPriors
    log_evidence: float
    converged: bool


class _Moments(NamedTuple):
    """Of one hypothesis at L loci; C its covariate columns."""

    log_evidence: Array  # [L]
    baseline: tuple[Array, Array]  # mean and variance, [L] each
    effect_square: Array  # [L, C], E effect^2
    log_spread: tuple[Array, Array]


def iterate(
    model: EvidenceModel,
    guide: Guide,
    method: str,
    loci: LocusSample,
    seed: int,
    advance: Callable[[int], object],
) -> Iterator[Iteration]:
    """EM from the model's hyper-parameters; `advance` is called for every locus that is done.

    Raises ValueError for a method without an evidence.
    """
    if method not in LOCUS_METHODS_WITH_EVIDENCE:
        raise ValueError(
            f"{method} has no evidence to fit by; expected one of {', '.join(LOCUS_METHODS_WITH_EVIDENCE)}"
        )
    before = -np.inf
    for _ in range(MAX_ITERATIONS):
        moments = _expectation(model, guide, method, loci, seed, advance)
        log_joint = np.log(model.learned.hypothesis_weights) + np.stack([part.log_evidence for part in moments], axis=1)
        total = logsumexp(log_joint, axis=1)
        gained, before = float(total.mean()) - before, float(total.mean())
        learned = _maximization(model, moments, np.exp(log_joint - total[:, None]))
        model = with_learned(model, learned)
        yield Iteration(learned, before, gained < TOLERANCE)
        if gained < TOLERANCE:
            return


def _expectation(
    model: EvidenceModel,
    guide: Guide,
    method: str,
    loci: LocusSample,
    seed: int,
    advance: Callable[[int], object],
) -> list[_Moments]:
    parts: list[list[_Moments]] = []
    for start in range(0, len(loci.number), CHUNK_LOCI):
        some = loci.part(slice(start, start + CHUNK_LOCI))
        problems = build_locus_problems(model, guide, some.meth, some.total, some.number, NODES, seed)
        parts.append([_moments(LOCUS_METHODS_WITH_EVIDENCE[method](problem), problem.effects) for problem in problems])
        advance(len(some.number))
    return [_concatenate(list(of_hypothesis)) for of_hypothesis in zip(*parts, strict=True)]


def _moments(posterior: LocusPosterior, effects: int) -> _Moments:
    mean, variance = posterior.mean, np.diagonal(posterior.covariance, axis1=1, axis2=2)
    return _Moments(
        posterior.log_evidence,
        (mean[:, 0], variance[:, 0]),
        mean[:, 1:effects] ** 2 + variance[:, 1:effects],
        (mean[:, effects], variance[:, effects]),
    )


def _concatenate(parts: list[_Moments]) -> _Moments:
    def pair(name: str) -> tuple[Array, Array]:
        first, second = zip(*(getattr(part, name) for part in parts), strict=True)
        return np.concatenate(first), np.concatenate(second)

    return _Moments(
        np.concatenate([part.log_evidence for part in parts]),
        pair("baseline"),
        np.concatenate([part.effect_square for part in parts]),
        pair("log_spread"),
    )


def _maximization(model: EvidenceModel, moments: list[_Moments], responsibility: Array) -> LearnedPriors:
    """responsibility: [L, H]."""
    old = model.learned
    location = sum(r @ part.log_spread[0] for r, part in zip(responsibility.T, moments, strict=True))
    location /= responsibility.sum()
    square = sum(
        r @ (part.log_spread[1] + (part.log_spread[0] - location) ** 2)
        for r, part in zip(responsibility.T, moments, strict=True)
    )
    total, share = np.zeros(len(old.effect_sds)), np.zeros(len(old.effect_sds))
    for r, part, field in zip(responsibility.T, moments, model.cohort.fields, strict=True):
        total[field.design_column] += r @ part.effect_square
        share[field.design_column] += r.sum()
    node, weight = np.polynomial.hermite_e.hermegauss(QUADRATURE_NODES)
    points = [part.baseline[0][:, None] + np.sqrt(part.baseline[1])[:, None] * node for part in moments]
    weights = [r[:, None] * (weight / weight.sum()) for r in responsibility.T]
    mixture = fit_mixture(np.concatenate(points).ravel(), np.concatenate(weights).ravel(), old)
    return LearnedPriors(
        *mixture,
        spread_location=float(location),
        spread_scale=float(np.sqrt(square / responsibility.sum())),
        effect_sds=np.sqrt(np.where(share > 0, total / np.where(share > 0, share, 1.0), old.effect_sds**2)),
        hypothesis_weights=responsibility.mean(0),
    )


def fit_mixture(x: Array, weight: Array, start: LearnedPriors) -> tuple[Array, Array, Array]:
    """Weights, means and SDs [K] of a Gaussian mixture to weighted points, by EM from the mixture so far."""
    shares, means, sds = start.baseline_weights, start.baseline_means, start.baseline_sds
    for _ in range(MIXTURE_STEPS):
        log_density = np.log(shares / sds) - 0.5 * ((x[:, None] - means) / sds) ** 2
        member = weight[:, None] * np.exp(log_density - logsumexp(log_density, axis=1, keepdims=True))
        size = np.maximum(member.sum(0), SMALLEST_SHARE * weight.sum())
        shares, means = size / size.sum(), x @ member / size
        sds = np.maximum(np.sqrt((member * (x[:, None] - means) ** 2).sum(0) / size), SMALLEST_SD)
    return shares, means, sds
