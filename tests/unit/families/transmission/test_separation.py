"""Least divergences against a dense search, published-style design tables, and groups of what cannot be separated."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from design_cases import (
    DEFAULT,
    PEDIGREES,
    dense_covariance,
    divergence,
    families_of,
    haplotype_sheet,
    hypotheses_of,
    priors_around,
    searched_divergence,
    whole_sheet,
)
from inference_cases import make_pedigree, make_sheet
from scipy.special import expit, logit

from epivi.cohort.samples import design_matrix
from epivi.families.transmission.gaussian_cohort import BASELINE_SD, EFFECT_SD, gaussian_cohort, read_noise
from epivi.families.transmission.hypotheses import parse_hypotheses
from epivi.families.transmission.separation import (
    MIMIC_NATS,
    Point,
    _Target,
    least_divergence,
    merged_groups,
    mimicry,
    typical_theta,
)

READS_20 = 0.2  # variance of a logit that 20 reads show at half methylation
# Nats per family and locus between `epigenetic` (share .6, tau .5) and the closest `mendelian`: 5 over the families
# times loci that reach 5 nats. Kinship of whole samples of 20 reads, and both haplotypes of 10 reads each, where half
# of what is not heritable belongs to the individual.
TABLE = {
    "trio": (0.0, 5 / 522),
    "parents and 3 children": (5 / 1048, 5 / 118),
    "3 generations, 7": (5 / 778, 5 / 93),
    "4-generation line": (5 / 2213, 5 / 161),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_divergence_of_mendelian_and_epigenetic_inheritance(name: str) -> None:
    pedigree, (by_kinship, by_haplotypes) = PEDIGREES[name], TABLE[name]
    priors = priors_around()
    hypotheses = hypotheses_of()
    noise = np.full((1, len(pedigree.individuals)), READS_20)
    cohort = gaussian_cohort(whole_sheet(pedigree), pedigree, [], hypotheses, noise, baseline_sd=0.0)
    truth = Point(2, typical_theta(hypotheses[2], priors, 0.0), 0)
    (found,) = least_divergence(cohort, [truth], 1)
    if by_kinship:
        assert found == pytest.approx(by_kinship, rel=0.02)
    else:
        assert found < MIMIC_NATS
    own = {"environment": {"column": "person", "share": 0.5}}
    phased = hypotheses_of({name: terms | own for name, terms in DEFAULT.items() if name != "reset"})
    sheet = haplotype_sheet(pedigree)
    noise = np.full((1, len(sheet.samples)), 2 * READS_20)
    cohort = gaussian_cohort(sheet, pedigree, [], phased, noise, baseline_sd=0.0)
    (found,) = least_divergence(cohort, [Point(1, typical_theta(phased[1], priors, 0.0), 0)], 0)
    assert found == pytest.approx(by_haplotypes, rel=0.02)


def compared_with_a_search(seed: int, name: str, one: int, other: int, baseline_sd: float) -> float:
    """The divergence at a random truth by other code for the covariances and the search, which is found as well."""
    random = np.random.default_rng(seed)
    hypotheses, pedigree = hypotheses_of(), PEDIGREES[name]
    noise = random.choice([0.1, 0.3, 0.8], len(pedigree.individuals))
    cohort = gaussian_cohort(whole_sheet(pedigree), pedigree, [], hypotheses, noise[None], baseline_sd)
    typical = typical_theta(hypotheses[one], priors_around(), 0.2)
    theta = typical + 0.8 * random.normal(size=len(typical))
    (found,) = least_divergence(cohort, [Point(one, theta, 0)], other)
    truth = dense_covariance(pedigree, hypotheses[one], theta, noise, baseline_sd)
    expected = searched_divergence(truth, pedigree, hypotheses[other], noise, baseline_sd, (-1.5, 2.5))
    assert found <= expected + 1e-6
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    return expected


@pytest.mark.parametrize(
    ("name", "one", "other", "baseline_sd"),
    [("parents and 3 children", 2, 1, 2.0), ("3 generations, 7", 2, 1, 0.0), ("4-generation line", 2, 1, 2.0)],
)
def test_least_divergences_against_a_search(name: str, one: int, other: int, baseline_sd: float) -> None:
    assert compared_with_a_search(7, name, one, other, baseline_sd) > 1e-4


@pytest.mark.slow
def test_all_least_divergences_against_a_search() -> None:
    found = [
        compared_with_a_search(seed, name, one, other, baseline_sd)
        for seed, (name, one, other, baseline_sd) in enumerate(
            product(list(PEDIGREES)[1:], range(5), range(5), (0.0, 2.0)), start=100
        )
        if one != other
    ]
    assert np.mean(np.array(found) > 1e-4) > 0.6


def test_covariates_and_replicates_against_dense_matrices() -> None:
    """Woodbury's identity with prior variances of several sizes: the divergence, and its gradient by differences."""
    pedigree, hypotheses = PEDIGREES["parents and 3 children"], hypotheses_of()
    individuals = (*pedigree.individuals, "child1", "mother")
    size = len(individuals)
    random = np.random.default_rng(3)
    columns = {"age": tuple(f"{x:.2f}" for x in random.normal(size=size)), "batch": ("a", "b", "a", "c", "b", "c", "a")}
    sheet = make_sheet(individuals, columns=columns)
    noise = random.uniform(0.1, 0.6, size)
    cohort = gaussian_cohort(sheet, pedigree, ["age", "batch"], hypotheses, noise[None])
    design, _ = design_matrix(sheet, ["age", "batch"])
    effects = BASELINE_SD**2 + EFFECT_SD**2 * design @ design.T
    of_sample = [pedigree.individuals.index(name) for name in individuals]

    def dense(h: int, theta: np.ndarray) -> np.ndarray:
        own = dense_covariance(pedigree, hypotheses[h], theta, np.zeros(5), 0.0)
        return own[np.ix_(of_sample, of_sample)] + np.diag(noise) + effects

    truth, theta = np.array([0.1, 0.4, -0.3]), np.array([-0.2, 0.9, 0.5])
    target = _Target(cohort, [Point(2, truth, 0)], 3)
    found = target.expand(np.zeros(1, dtype=int), theta[None])
    assert found.value[0] == pytest.approx(divergence(dense(2, truth), dense(3, theta)), rel=1e-9)
    for d, step in enumerate(1e-5 * np.eye(3)):
        ends = [divergence(dense(2, truth), dense(3, theta + sign * step)) for sign in (1, -1)]
        assert found.gradient[0, d] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)
    # The information is the second derivative where the two are one.
    at_itself = _Target(cohort, [Point(3, theta, 0)], 3).expand(np.zeros(1, dtype=int), theta[None])
    second = [
        [
            sum(
                a * b * divergence(dense(3, theta), dense(3, theta + a * one + b * other))
                for a in (1, -1)
                for b in (1, -1)
            )
            / 4e-6
            for other in 1e-3 * np.eye(3)
        ]
        for one in 1e-3 * np.eye(3)
    ]
    np.testing.assert_allclose(at_itself.information[0], second, rtol=1e-3, atol=1e-5)


def test_families_add_up_and_replicates_and_missing_samples_count() -> None:
    """With a known baseline every family says as much again; equal families are computed once."""
    pedigree, hypotheses, priors = PEDIGREES["parents and 3 children"], hypotheses_of(), priors_around()
    truth = Point(2, typical_theta(hypotheses[2], priors, 0.0), 0)

    def least(families: int, sheet_changes: dict, noise: float) -> float:
        many = families_of(pedigree, families)
        sheet = whole_sheet(many, **sheet_changes)
        variance = np.full((1, len(sheet.samples)), noise)
        cohort = gaussian_cohort(sheet, many, [], hypotheses, variance, 0.0)
        assert [stack.times.tolist() for stack in cohort.stacks] == [[families]]
        return float(least_divergence(cohort, [truth], 1)[0])

    one = least(1, {}, 0.2)
    assert least(4, {}, 0.2) == pytest.approx(4 * one, rel=1e-6)
    doubled = make_sheet(pedigree.individuals * 2)
    cohort = gaussian_cohort(doubled, pedigree, [], hypotheses, np.full((1, 10), 0.4), 0.0)
    assert least_divergence(cohort, [truth], 1)[0] == pytest.approx(one, rel=1e-6)  # two halves of the reads
    noise = np.full((1, 10), 0.2)
    noise[:, 5:] = np.inf
    cohort = gaussian_cohort(doubled, pedigree, [], hypotheses, noise, 0.0)
    assert cohort.samples == 5
    assert least_divergence(cohort, [truth], 1)[0] == pytest.approx(one, rel=1e-6)


DYADS = make_pedigree(*((f"m{k}",) for k in range(4)), *((f"c{k}", f"m{k}", None) for k in range(4)))
LINE = make_pedigree(
    ("f",), *((f"{line}{k}", f"{line}{k - 1}" if k > 1 else "f", None, "selfing", 1) for line in "ab" for k in (1, 2))
)


@pytest.mark.parametrize(
    ("pedigree", "expected"),
    [
        (families_of(PEDIGREES["trio"], 3), ["reset", "mendelian|epigenetic", "maternal", "paternal"]),
        (PEDIGREES["parents and 3 children"], list(DEFAULT)),
        (DYADS, ["reset|paternal", "mendelian|epigenetic|maternal"]),
        (LINE, ["reset|mendelian", "epigenetic", "maternal|paternal"]),
        (families_of(LINE, 2), ["reset", "mendelian", "epigenetic", "maternal|paternal"]),
        (make_pedigree(("a",), ("b",), ("c",)), ["reset|mendelian|epigenetic|maternal|paternal"]),
    ],
    ids=["trios", "siblings", "mothers and children", "one selfed family", "selfed lines", "unrelated"],
)
def test_what_a_pedigree_can_never_separate(pedigree, expected: list[str]) -> None:
    hypotheses = hypotheses_of()
    noise = np.full((2, len(pedigree.individuals)), [[0.2], [0.6]])
    groups = merged_groups(mimicry(whole_sheet(pedigree), pedigree, [], hypotheses, noise, priors_around(), 0.0))
    assert ["|".join(hypotheses[h].name for h in group) for group in groups] == expected


def test_households_and_siblings() -> None:
    pedigree = families_of(PEDIGREES["parents and 3 children"], 2)
    declared = {
        "reset": {},
        "household": {"environment": {"column": "home"}},
        "half": {"environment": {"column": "home", "share": 0.5}},
        "mendelian": DEFAULT["mendelian"],
    }
    hypotheses = parse_hypotheses(declared)

    def groups(names: tuple[str, ...], homes: tuple[str, ...]) -> list[str]:
        sheet = make_sheet(names, columns={"home": homes})
        mimics = mimicry(sheet, pedigree, [], hypotheses, np.full((1, len(names)), 0.2), priors_around(), 0.0)
        found = merged_groups(mimics)
        return ["|".join(hypotheses[h].name for h in group) for group in found]

    everyone = pedigree.individuals
    children = tuple(name for name in everyone if name.startswith("child"))
    # What one sibship shares is no more than the baseline of the locus.
    assert groups(children[:3], ("x",) * 3) == ["reset|household|half|mendelian"]
    # Of several, full siblings are never more alike than by half, which a household can be.
    homes = ("x",) * 3 + ("y",) * 3
    assert groups(children, homes) == list(declared)
    assert groups(everyone, ("x",) * 5 + ("y",) * 5) == list(declared)
    # A household that is as free as its members' likeness is the same.
    declared["cage"] = {"environment": {"column": "cage"}}
    hypotheses = parse_hypotheses(declared)
    sheet = make_sheet(children, columns={"home": homes, "cage": ("1",) * 3 + ("2",) * 3})
    mimics = mimicry(sheet, pedigree, [], hypotheses, np.full((1, 6), 0.2), priors_around(), 0.0)
    assert merged_groups(mimics) == ((0,), (1, 4), (2,), (3,))


def test_noise_is_the_information_of_reads_about_a_logit() -> None:
    """The curvature of the expected log likelihood of binomial reads, by second differences."""
    reads, error, missed = np.array([20.0, 7.0, 0.0]), np.array([0.0, 0.01, 0.0]), np.array([0.0, 0.02, 0.0])
    level, step = 0.9, 1e-3

    def seen(y: float) -> np.ndarray:
        return error + (1 - error - missed) * expit(y)

    def expected(y: float) -> np.ndarray:
        return reads * (seen(logit(level)) * np.log(seen(y)) + (1 - seen(logit(level))) * np.log1p(-seen(y)))

    y = logit(level)
    curvature = -(expected(y + step) - 2 * expected(y) + expected(y - step)) / step**2
    found = read_noise(level, reads, error, missed)
    np.testing.assert_allclose(found[:2], 1 / curvature[:2], rtol=1e-4)
    assert found[0] == pytest.approx(1 / (20 * 0.9 * 0.1))
    assert np.isinf(found[2])


def test_groups_need_mimicry_both_ways() -> None:
    mimics = np.eye(4, dtype=bool)
    mimics[0, 1:] = True  # all can be like the first
    mimics[1, 2] = mimics[2, 1] = True
    assert merged_groups(mimics) == ((0,), (1, 2), (3,))
