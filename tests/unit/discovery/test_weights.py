"""Weights of hypotheses: maxima against long EM runs and a general optimizer, posteriors against quadrature.

Statistical tests fix their seeds and state how often a correct program would fail them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from epivi.discovery import weights
from epivi.discovery.probabilities import EvidencePass
from epivi.discovery.weights import WeightPrior, maximum_likelihood, prior_weights, weight_posterior, weight_prior

Array = NDArray[np.float64]


def passes(log_evidence: Array, *cuts: int) -> EvidencePass:
    """The loci in pieces, anew at every call."""

    def one_pass() -> Iterator[Array]:
        yield from np.split(log_evidence, list(cuts))

    return one_pass


def draw(weight: list[float], loci: int, separation: float, seed: int, run: int = 1) -> Array:
    """Log evidences [L, H] of a known mixture: hypothesis h shifts coordinate h of a normal vector.

    run: consecutive loci with the same hypothesis and nearly the same data.
    """
    random = np.random.default_rng(seed)
    h = len(weight)
    runs = -(-loci // run)
    truth = np.repeat(random.choice(h, size=runs, p=weight), run)[:loci]
    shared = np.repeat(random.normal(size=(runs, h)), run, axis=0)[:loci]
    own = random.normal(size=(loci, h))
    x = (np.sqrt(0.9) * shared + np.sqrt(0.1) * own if run > 1 else own) + separation * np.eye(h)[truth]
    return -0.5 * ((x[:, None, :] - separation * np.eye(h)) ** 2).sum(2) - 300 * random.random((loci, 1))


def long_em(log_evidence: Array, count: Array | None = None, steps: int = 20_000) -> Array:
    """The weights by nothing but EM, with a weight for each locus."""
    likelihood = np.exp(log_evidence - log_evidence.max(1, keepdims=True))
    count = np.ones(len(likelihood)) if count is None else count
    weight = np.full(likelihood.shape[1], 1 / likelihood.shape[1])
    for _ in range(steps):
        new = weight * ((count / (likelihood @ weight)) @ likelihood) / count.sum()
        if np.abs(new - weight).max() < 1e-12:
            return new
        weight = new
    return weight


def mean_log_likelihood(log_evidence: Array, weight: Array) -> float:
    with np.errstate(divide="ignore"):
        return float(logsumexp(log_evidence + np.log(weight), axis=1).mean())


FLAT = WeightPrior(np.ones(3), 0.0)

# --- the weights -----------------------------------------------------------------------------------------------------

MIXTURES = {
    "inside": ([0.6, 0.3, 0.1], 1.5),
    "on the boundary": ([0.7, 0.3, 0.0, 0.0], 1.0),
    "at a corner": ([1.0, 0.0, 0.0], 2.0),
    "hard to tell apart": ([0.5, 0.2, 0.2, 0.1], 0.4),
    "two": ([0.95, 0.05], 2.0),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_weights_maximize_the_likelihood(name: str) -> None:
    """Against EM run to its fixed point, a general optimizer, and the conditions of an optimum on the simplex."""
    weight, separation = MIXTURES[name]
    log_evidence = draw(weight, 3000, separation, seed=1)
    found, value = maximum_likelihood(passes(log_evidence, 1000), 3000, len(weight))
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert (found >= 0).all()
    assert value == pytest.approx(3000 * mean_log_likelihood(log_evidence, found), rel=1e-12)
    assert value / 3000 >= mean_log_likelihood(log_evidence, long_em(log_evidence)) - 1e-9
    likelihood = np.exp(log_evidence - log_evidence.max(1, keepdims=True))
    general = minimize(
        lambda w: -np.log(likelihood @ w).mean(),
        np.full(len(weight), 1 / len(weight)),
        jac=lambda w: -(likelihood / (likelihood @ w)[:, None]).mean(0),
        bounds=[(0, 1)] * len(weight),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(found, general.x, atol=2e-4)
    gradient = (likelihood / (likelihood @ found)[:, None]).mean(0)
    assert gradient.max() < 1 + 1e-6
    assert gradient[found > 1e-6] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("start", [[0.98, 0.01, 0.01], [1e-9, 0.5, 0.5], [0.2, 0.2, 0.6], [1.0, 1e-12, 1e-12]])
def test_start_does_not_matter(start: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The problem is concave: from any start, next to corners included, the same weights and the same draws."""
    log_evidence = draw([0.6, 0.3, 0.1], 2000, 1.0, seed=2)
    expected, _ = maximum_likelihood(passes(log_evidence), 2000, 3)
    drawn = weight_posterior(passes(log_evidence), 2000, FLAT, 50, 20, seed=1)
    monkeypatch.setattr(weights, "_em_start", lambda *_: np.array(start))
    found, _ = maximum_likelihood(passes(log_evidence), 2000, 3)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    again = weight_posterior(passes(log_evidence), 2000, FLAT, 50, 20, seed=1)
    np.testing.assert_allclose(again.draws, drawn.draws, atol=2e-3)


def test_steps_that_overshoot_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """With targets far beyond the best point in every step, the likelihood still rises to its maximum."""
    log_evidence = draw([0.6, 0.4], 1000, 2.0, seed=2)
    newton = weights._expansion_maximum

    def overshooting(weight: Array, expansion: weights._Expansion) -> Array:
        target = newton(weight, expansion)
        return np.where(target > weight, 1.0 - 1e-9, 1e-9)

    expected, _ = maximum_likelihood(passes(log_evidence), 1000, 2)
    monkeypatch.setattr(weights, "_expansion_maximum", overshooting)
    monkeypatch.setattr(weights, "_em_start", lambda *_: np.array([0.05, 0.95]))
    found, _ = maximum_likelihood(passes(log_evidence), 1000, 2)
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_pieces_do_not_matter() -> None:
    """However the loci come in files: the same draws."""
    log_evidence = draw([0.6, 0.3, 0.1], 1037, 1.0, seed=3)
    whole, pieces = passes(log_evidence), passes(log_evidence, 1, 2, 100, 900, 1036)
    one, other = (weight_posterior(each, 1037, FLAT, 40, 50, seed=4) for each in (whole, pieces))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_scale_of_the_evidence_does_not_matter() -> None:
    """A constant of a locus cancels, however large: counts of deep loci have log evidences of minus thousands."""
    log_evidence = draw([0.6, 0.4], 500, 1.0, seed=5)
    shift = np.random.default_rng(1).normal(0, 1e5, (500, 1))
    flat = WeightPrior(np.ones(2), 0.0)
    one, other = (weight_posterior(passes(e), 500, flat, 20, 30, seed=1) for e in (log_evidence, log_evidence + shift))
    np.testing.assert_allclose(one.draws, other.draws, atol=1e-6)


def test_a_single_hypothesis() -> None:
    found = weight_posterior(passes(draw([1.0], 50, 1.0, seed=1)), 50, WeightPrior(np.ones(1), 0.02), 100, 20, seed=1)
    assert (found.weight, found.lower, found.upper) == (1.0, 1.0, 1.0)


def test_more_blocks_than_loci() -> None:
    log_evidence = draw([0.5, 0.5], 7, 1.0, seed=1)
    found = weight_posterior(passes(log_evidence, 3), 7, WeightPrior(np.ones(2), 0.0), 100, 50, seed=1)
    assert (found.lower < found.weight).all()
    assert (found.weight < found.upper).all()


# --- the posterior ---------------------------------------------------------------------------------------------------


def exact_posterior(log_evidence: Array, alpha: Array) -> tuple[float, float, float, float]:
    """Mean, SD, 2.5 and 97.5 % of the second of two weights, by quadrature on the logit scale."""
    grid = np.linspace(-25, 25, 20_001)
    weight = 1 / (1 + np.exp(-grid))
    odds = np.exp(log_evidence[:, 1] - log_evidence[:, 0])
    likelihood = np.array([np.log1p(w * (odds - 1)).sum() for w in weight])
    log_density = likelihood + alpha[1] * np.log(weight) + alpha[0] * np.log1p(-weight)
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    mean = float((density * weight).sum())
    ends = weight[np.searchsorted(np.cumsum(density), [0.025, 0.975])]
    return mean, float(np.sqrt((density * (weight - mean) ** 2).sum())), float(ends[0]), float(ends[1])


@pytest.mark.parametrize(
    ("weight", "separation"),
    [
        ([0.6, 0.4], 1.5),
        ([0.6, 0.4], 0.3),
        ([1.0, 0.0], 2.0),
        ([0.98, 0.02], 2.0),
        ([1.0, 0.0], 0.1),
        ([0.5, 0.5], 0.02),
    ],
)
def test_posterior_against_quadrature(weight: list[float], separation: float) -> None:
    """Loci that tell much, little and nothing, inside and at the corner.

    The mean within .2 posterior SDs, the SD within 15 %, ends of the interval within .35 SDs; 2,000 draws leave .02,
    2 % and .05.
    """
    log_evidence, alpha = draw(weight, 400, separation, seed=1), np.array([5.0, 1.0])
    found = weight_posterior(passes(log_evidence), 400, WeightPrior(alpha, 0.0), 400, 2000, seed=1)
    mean, sd, lower, upper = exact_posterior(log_evidence, alpha)
    assert abs(found.weight[1] - mean) < 0.2 * sd
    assert found.draws[:, 1].std() == pytest.approx(sd, rel=0.15)
    assert abs(found.lower[1] - lower) < 0.35 * sd
    assert abs(found.upper[1] - upper) < 0.35 * sd


def test_limits_are_exact() -> None:
    """Loci that show their hypothesis leave a Dirichlet distribution, loci that show nothing the prior."""
    alpha = np.array([2.0, 1.0, 0.5])
    shown = np.repeat(np.array([[0, -1e3, -1e3], [-1e3, 0, -1e3]]), [30, 10], axis=0)
    expected = alpha + np.array([30, 10, 0])
    found = weight_posterior(passes(shown), 40, WeightPrior(alpha, 0.0), 40, 4000, seed=2)
    np.testing.assert_allclose(found.draws.mean(0), expected / expected.sum(), atol=0.006)
    exact_sd = np.sqrt(expected * (expected.sum() - expected) / expected.sum() ** 2 / (expected.sum() + 1))
    np.testing.assert_allclose(found.draws.std(0), exact_sd, rtol=0.06)
    nothing = weight_posterior(passes(np.zeros((40, 3))), 40, WeightPrior(alpha, 0.0), 40, 4000, seed=3)
    without = prior_weights(WeightPrior(alpha, 0.0), 4000, 4, 40)
    np.testing.assert_allclose(nothing.weight, alpha / alpha.sum(), atol=0.02)
    np.testing.assert_allclose(nothing.upper, without.upper, atol=0.03)
    np.testing.assert_allclose(without.weight, alpha / alpha.sum(), atol=0.02)


def test_no_weight_is_exactly_nothing() -> None:
    """The corner that the maximum lies on is not certain: every draw leaves every hypothesis a weight."""
    log_evidence = draw([1.0, 0.0], 2000, 2.0, seed=1)
    found = weight_posterior(passes(log_evidence), 2000, WeightPrior(np.array([5.0, 1.0]), 0.02), 50, 200, seed=1)
    assert (found.draws > 0).all()
    assert 0 < found.lower[1] < found.weight[1] < 0.02


def test_a_tilt_that_all_loci_share_is_not_taken_for_a_signal() -> None:
    """Evidences that favour one hypothesis by .01 nats at all of 20,000 loci: certain without a tilt, open with one."""
    log_evidence = np.array([0.0, 0.01]) + np.random.default_rng(1).normal(0, 0.02, (20_000, 2))
    alpha = np.array([5.0, 1.0])
    without, with_tilt = (
        weight_posterior(passes(log_evidence), 20_000, WeightPrior(alpha, sd), 100, 200, seed=1) for sd in (0.0, 0.02)
    )
    assert without.lower[1] > 0.9
    assert with_tilt.lower[1] < 0.1 < 0.9 < with_tilt.upper[1]
    # A signal is nats at some loci, and stays.
    signal = draw([0.9, 0.1], 20_000, 3.0, seed=2)
    found = weight_posterior(passes(signal), 20_000, WeightPrior(alpha, 0.02), 100, 200, seed=1)
    assert found.lower[1] < 0.1 < found.upper[1]
    assert found.upper[1] - found.lower[1] < 0.03


@pytest.mark.parametrize("run", [1, 20])
def test_intervals_cover_the_truth(run: int) -> None:
    """120 cohorts of 1000 loci: 95 % intervals of the first weight cover it in 104 or more.

    At a true coverage of 95 % fewer hits have probability 2e-4, at 93 %, as 50 blocks may give, 1 %. With runs of 20
    alike loci, intervals that took each locus for itself would be several times too narrow.
    """
    hits = 0
    for seed in range(120):
        log_evidence = draw([0.7, 0.3], 1000, 1.5, seed=1000 + seed, run=run)
        found = weight_posterior(passes(log_evidence), 1000, WeightPrior(np.ones(2), 0.0), 50, 100, seed=seed)
        hits += bool(found.lower[0] <= 0.7 <= found.upper[0])
    assert hits >= 104, hits


def test_blocks_are_wider_than_single_loci_where_loci_are_alike() -> None:
    log_evidence = draw([0.7, 0.3], 4000, 1.5, seed=8, run=40)
    flat = WeightPrior(np.ones(2), 0.0)
    by_block, by_locus = (weight_posterior(passes(log_evidence), 4000, flat, b, 200, seed=1) for b in (50, 4000))
    assert by_block.upper[0] - by_block.lower[0] > 2 * (by_locus.upper[0] - by_locus.lower[0])


def test_seed_decides_the_draws() -> None:
    log_evidence = draw([0.7, 0.3], 500, 1.0, seed=9)
    flat = WeightPrior(np.ones(2), 0.02)
    one, same, other = (weight_posterior(passes(log_evidence), 500, flat, 20, 50, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.draws, same.draws)
    assert (one.draws != other.draws).any()


def test_prior_of_the_configuration() -> None:
    settings = {"prior": {"untransmitted": 5, "transmitted": 1}, "tilt_nats": 0.02}
    found = weight_prior(settings, np.array([True, False, False]))
    assert found.alpha.tolist() == [5, 1, 1]
    assert found.tilt_nats == 0.02
