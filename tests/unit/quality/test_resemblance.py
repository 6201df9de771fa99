"""Correlations of kinds of relatives against dense sums locus by locus, and against a known truth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import expit

from epivi.quality.resemblance import ASSUMED_SD, Levels, levels, locus_weights, moments, solve

Array = NDArray[np.float64]
FAMILIES, MEMBERS = 5, 4
SAMPLES = FAMILIES * MEMBERS


def kinds() -> dict[str, Array]:
    """Of families of two parents and two children: mates, parent and child, siblings."""
    family = np.kron(np.eye(FAMILIES), np.ones((MEMBERS, MEMBERS)))
    role = np.tile([0, 0, 1, 1], FAMILIES)
    alike = {"mates": (0, 0), "parents": (0, 1), "sibs": (1, 1)}
    found = {}
    for name, (first, second) in alike.items():
        pairs = (role[:, None] == first) & (role[None, :] == second)
        found[name] = family * (pairs | pairs.T) * (1 - np.eye(SAMPLES))
    return found


def counts(correlation: dict[str, float], loci: int, seed: int, reads: float = 15.0, sd: float = 0.6) -> tuple:
    """Methylated and total reads, a twentieth of the samples without any."""
    random = np.random.default_rng(seed)
    covariance = np.eye(SAMPLES) + sum(correlation.get(name, 0.0) * matrix for name, matrix in kinds().items())
    latent = sd * random.normal(size=(loci, SAMPLES)) @ np.linalg.cholesky(covariance).T
    total = random.poisson(reads, (loci, SAMPLES)) * (random.random((loci, SAMPLES)) > 0.05)
    return random.binomial(total, expit(random.normal(0, 1, (loci, 1)) + latent)), total


def slow(values: Levels, design: Array, locus_weight: Array, matrices: list[Array]) -> tuple[Array, Array]:
    """The sums by their definition: projections as dense matrices, one locus and one pair of kinds after the other."""
    number = len(matrices)
    gram, product = np.zeros((number, number)), np.zeros(number)
    for deviation, noise, weight, of_locus in zip(*values, locus_weight, strict=True):
        hat = design @ np.linalg.pinv(design.T @ np.diag(weight) @ design) @ design.T @ np.diag(weight)
        centre = np.eye(SAMPLES) - hat
        residual = centre @ deviation
        pair_weight = np.outer(weight, weight)
        for j, of_pairs in enumerate(matrices):
            observed = np.outer(residual, residual) - centre @ np.diag(noise) @ centre.T
            product[j] += of_locus * (of_pairs * pair_weight * observed).sum()
            for k, other in enumerate(matrices):
                gram[j, k] += of_locus * (of_pairs * pair_weight * (centre @ other @ centre.T)).sum()
    return gram, product


def test_sums_are_those_of_dense_matrices() -> None:
    """With a covariate that some loci cannot tell from the mean, kinds that overlap, a factor, and two blocks."""
    meth, total = counts({"mates": 0.2}, 30, 1, reads=4.0)
    total[:3, 1:] = 0
    values = levels(np.minimum(meth, total), total, np.linspace(0, 0.1, SAMPLES), np.full(SAMPLES, 0.02))
    random = np.random.default_rng(2)
    design = np.column_stack([np.ones(SAMPLES), random.normal(size=SAMPLES), np.arange(SAMPLES) < 3])
    level = random.integers(2, size=SAMPLES)
    same_level = (level[:, None] == level[None, :]) * (1.0 - np.eye(SAMPLES))
    value = random.normal(size=SAMPLES)
    factor = np.outer(value, value) * (1.0 - np.eye(SAMPLES))
    matrices = [*kinds().values(), same_level, factor]
    weight = random.uniform(0.2, 1, 30)
    found = moments(values, design, weight, [csr_array(one) for one in matrices], [slice(0, 11), slice(11, 30)])
    gram, product = slow(values, design, weight, [np.eye(SAMPLES), *matrices])
    np.testing.assert_allclose(found.gram.sum(0), gram, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.product.sum(0), product, rtol=1e-9, atol=1e-9)
    first, _ = slow(Levels(*(each[:11] for each in values)), design, weight[:11], [np.eye(SAMPLES), *matrices])
    np.testing.assert_allclose(found.gram[0], first, rtol=1e-9, atol=1e-9)


def estimate(meth: NDArray, total: NDArray, design: Array | None = None) -> tuple[float, dict[str, float]]:
    design = np.ones((SAMPLES, 1)) if design is None else design
    values = levels(meth, total, np.zeros(SAMPLES), np.zeros(SAMPLES))
    matrices = [csr_array(one) for one in kinds().values()]
    sums = moments(values, design, locus_weights(values, design), matrices, [slice(0, len(meth))])
    found = solve(sums.gram.sum(0), sums.product.sum(0))
    return found.variance, dict(zip(kinds(), found.correlation.tolist(), strict=True))


@pytest.mark.parametrize("reads", [4.0, 30.0])
def test_known_correlations_come_out(reads: float) -> None:
    """4,000 loci of 20 samples: SD of a correlation about .01 at 30 reads, .03 at 4, so limits of about 4 SDs.

    Uncorrected, centring would take .1 off that of mates and reads two thirds of all.
    """
    truth = {"mates": 0.0, "parents": 0.3, "sibs": 0.5}
    variance, found = estimate(*counts(truth, 4000, 3, reads))
    limit = 0.04 if reads > 10 else 0.12
    assert found == pytest.approx(truth, abs=limit)
    # Deviations are those of levels, which a curved logit makes a little less.
    assert 0.25 < variance < 0.4


def test_error_rates_that_differ_between_families_are_no_resemblance() -> None:
    """Conversion that fails at 10 % in two of the families, known: without them known mates correlate."""
    random = np.random.default_rng(5)
    errors = np.repeat([0.0, 0.1, 0.0, 0.1, 0.0], MEMBERS)
    total = random.poisson(30, (3000, SAMPLES))
    level = expit(-1.0 + 0.3 * random.normal(size=total.shape))
    meth = random.binomial(total, errors + (1 - errors) * level)
    matrices = [csr_array(kinds()["mates"])]
    design = np.ones((SAMPLES, 1))
    found = []
    for known in (errors, np.zeros(SAMPLES)):
        values = levels(meth, total, known, np.zeros(SAMPLES))
        sums = moments(values, design, locus_weights(values, design), matrices, [slice(0, 3000)])
        found.append(float(solve(sums.gram.sum(0), sums.product.sum(0)).correlation[0]))
    assert abs(found[0]) < 0.05
    assert found[1] > 0.1


def test_covariates_are_taken_out() -> None:
    """A treatment of whole families looks like resemblance until it is a covariate."""
    meth, total = counts({}, 1500, 6)
    random = np.random.default_rng(7)
    treated = np.repeat([1.0, 0.0, 1.0, 0.0, 0.0], MEMBERS)
    shift = random.normal(0, 1.0, (1500, 1)) * treated
    meth = random.binomial(total, expit(random.normal(0, 0.5, meth.shape) + shift))
    without = estimate(meth, total)[1]["mates"]
    known = estimate(meth, total, np.column_stack([np.ones(SAMPLES), treated]))[1]["mates"]
    assert without > 0.2
    assert abs(known) < 0.06


def test_few_loci_that_vary_much_do_not_decide() -> None:
    """One locus in a hundred at which two families of five are methylated and the others are not."""
    meth, total = counts({}, 2000, 8)
    family = np.repeat([1, 1, 0, 0, 0], MEMBERS)
    at = np.arange(0, 2000, 100)
    meth[at] = np.where(family, total[at], 0)
    assert abs(estimate(meth, total)[1]["mates"]) < 0.12


def test_loci_that_do_not_vary_say_nothing() -> None:
    """No variance of the levels: its estimate is 0 within its error, and fully methylated loci weigh nothing."""
    random = np.random.default_rng(9)
    total = random.poisson(10, (2000, SAMPLES))
    variance, _ = estimate(random.binomial(total, 0.3), total)
    assert abs(variance) < 0.01
    variance, found = estimate(total, total)
    assert abs(variance) < 1e-12
    assert np.isnan(list(found.values())).all()


def test_what_the_pairs_do_not_determine_is_nan() -> None:
    """Of one family, whose pairs are of one kind: a correlation of all pairs is no deviation."""
    random = np.random.default_rng(10)
    total = np.full((200, 4), 20)
    values = levels(random.binomial(total, 0.5), total, np.zeros(4), np.zeros(4))
    pairs = csr_array(np.ones((4, 4)) - np.eye(4))
    sums = moments(values, np.ones((4, 1)), np.ones(200), [pairs], [slice(0, 200)])
    assert np.isnan(solve(sums.gram.sum(0), sums.product.sum(0)).correlation).all()


def test_a_sample_with_one_read_does_not_count() -> None:
    """One read has no estimate of its noise."""
    found = levels(np.array([[1, 1, 3]]), np.array([[1, 2, 4]]), np.zeros(3), np.zeros(3))
    assert found.weight[0, 0] == found.deviation[0, 0] == found.noise[0, 0] == 0
    mean = (1 + 3 + 0.5) / 7
    information = mean * (1 - mean)
    assert found.deviation[0, 1] == pytest.approx((0.5 - mean) / information)
    assert found.noise[0, 2] == pytest.approx(0.75 * 0.25 / 3 / information**2)
    assert found.weight[0, 2] == pytest.approx(4 / (4 + 1 / (ASSUMED_SD**2 * information)))
