"""Factors that all loci share, beyond what the pedigree explains: against dense sums, a known truth, and no factor.

Levels are drawn as logits without reads' noise: six families of two parents and three children.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from epivi.cohort.kinship import covariance
from epivi.cohort.pedigree import Pedigree
from epivi.cohort.relatives import relatives
from epivi.cohort.samples import SampleSheet
from epivi.quality.columns import FAMILY_FACTOR
from epivi.quality.factor_relations import FAMILY, GENERATION, KINSHIP, factor_findings, relations
from epivi.quality.factors import (
    FALSE_ALARM_RATE,
    FEWEST_LOCI,
    MOST_KINDS,
    Factor,
    _products,
    factor_rows,
    find_factors,
    pedigree_kinds,
    value_rows,
    within_level,
)
from epivi.quality.findings import Finding
from epivi.quality.resemblance import Levels, levels

Array = NDArray[np.float64]
FAMILIES, MEMBERS = 6, 5
SAMPLES = FAMILIES * MEMBERS
OF_FAMILY = np.repeat(np.arange(FAMILIES), MEMBERS)
LOCI = 600


def nuclear() -> Pedigree:
    first = OF_FAMILY * MEMBERS
    is_child = np.tile([False, False, True, True, True], FAMILIES)
    return Pedigree(
        tuple(f"F{number // MEMBERS}_{number % MEMBERS}" for number in range(SAMPLES)),
        np.where(is_child, first, -1).astype(np.int32),
        np.where(is_child, first + 1, -1).astype(np.int32),
        ("sexual",) * SAMPLES,
        np.ones(SAMPLES, dtype=np.int32),
        ("female", "male", "female", "male", "male") * FAMILIES,
    )


PEDIGREE = nuclear()
KINDS = pedigree_kinds(PEDIGREE, PEDIGREE.individuals)
PLAIN = np.ones((SAMPLES, 1))


def sheet(**columns: list[str]) -> SampleSheet:
    names, zero = PEDIGREE.individuals, np.zeros(SAMPLES)
    texts = {name: tuple(values) for name, values in columns.items()}
    return SampleSheet("samples.tsv", names, names, names, ("auto",) * SAMPLES, ("all",) * SAMPLES, zero, zero, texts,
                       tuple(range(2, SAMPLES + 2)))  # fmt: skip


def levels_of(deviation: Array) -> Levels:
    return Levels(deviation, np.zeros_like(deviation), np.ones_like(deviation))


def drawn(seed: int, factor: Array | None = None, loci: int = LOCI) -> Array:
    """A signal by mothers alone at a third of the loci, by both parents at a third; and a factor."""
    random = np.random.default_rng(seed)
    likeness = [0.5 * np.eye(SAMPLES) + 0.5 * covariance(PEDIGREE, *passed) for passed in ((0, 0), (0.9, 0), (1, 1))]
    own = random.normal(size=(3, loci // 3, SAMPLES))
    deviation = np.concatenate([part @ np.linalg.cholesky(one).T for part, one in zip(own, likeness, strict=True)])
    deviation = random.permutation(deviation)
    return deviation if factor is None else deviation + random.normal(size=(len(deviation), 1)) * factor


def scaled(value: Array, sd: float) -> Array:
    """Values of mean 0 and this SD."""
    return sd * (value - value.mean()) / value.std()


def told(factors: list[Factor], **columns: list[str]) -> list[Finding]:
    found = relations(factors, sheet(**columns), range(SAMPLES), PEDIGREE, relatives(PEDIGREE, PEDIGREE.individuals))
    return list(factor_findings(factors, found, ()))


def test_kinds_hold_every_likeness_that_the_hypotheses_allow() -> None:
    """Mother and child, father and child, siblings: in a family of two generations no more."""
    assert len(KINDS) == 3
    for passed in ((1, 1), (0.4, 0.4), (0.7, 0), (0, 0.2)):
        likeness = covariance(PEDIGREE, *passed) - np.eye(SAMPLES)
        found = np.linalg.lstsq(
            np.stack([kind.toarray().ravel() for kind in KINDS], axis=1), likeness.ravel(), rcond=None
        )
        assert found[1].sum() < 1e-20


def test_lines_of_many_generations_have_likenesses_in_place_of_kinds() -> None:
    size = 60
    mother, father = np.arange(-1, size - 1, dtype=np.int32), np.full(size, -1, dtype=np.int32)
    names, modes = tuple(f"g{number}" for number in range(size)), ("sexual", *["selfing"] * (size - 1))
    line = Pedigree(names, mother, father, modes, np.ones(size, dtype=np.int32), ("unknown",) * size)
    found = pedigree_kinds(line, line.individuals)
    assert len(found) < MOST_KINDS
    half = covariance(line, 0.5, 0.5) - np.eye(size)
    assert any(np.allclose(kind.toarray(), half) for kind in found)


def test_what_is_left_is_that_of_dense_matrices() -> None:
    random = np.random.default_rng(1)
    total = random.poisson(3, (12, SAMPLES))
    values = levels(random.binomial(total, 0.4), total, np.zeros(SAMPLES), np.zeros(SAMPLES))
    design = np.column_stack([np.ones(SAMPLES), random.normal(size=SAMPLES)])
    weight = random.uniform(0.2, 1, 12)
    alike = 0.3 * (np.eye(SAMPLES) + 0.4 * KINDS[0].toarray())
    expected, scale = np.zeros((2, SAMPLES, SAMPLES))
    for deviation, noise, of_sample, of_locus in zip(*values, weight, strict=True):
        hat = design @ np.linalg.pinv(design.T @ np.diag(of_sample) @ design) @ design.T @ np.diag(of_sample)
        centre = np.eye(SAMPLES) - hat
        left = np.outer(centre @ deviation, centre @ deviation) - centre @ (alike + np.diag(noise)) @ centre.T
        expected += of_locus * np.outer(of_sample, of_sample) * left
        scale += of_locus * np.outer(of_sample, of_sample)
    off = ~np.eye(SAMPLES, dtype=bool)
    found, weights = _products(values, design, weight, alike)
    np.testing.assert_allclose(found[off], expected[off], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(weights[off], scale[off])


@pytest.mark.parametrize("cohorts", [6, pytest.param(150, marks=pytest.mark.slow)])
def test_what_is_passed_on_is_no_factor(cohorts: int) -> None:
    """False alarms of 1 %: of 6 cohorts more than one has a chance of .15 %, of 150 more than 7 one of .03 %."""
    found = [find_factors(levels_of(drawn(seed)), PLAIN, KINDS) for seed in range(cohorts)]
    assert FALSE_ALARM_RATE == 0.01
    assert sum(one[0].is_significant for one in found) <= (1 if cohorts == 6 else 7)
    assert all(len(one) == 1 for one in found if not one[0].is_significant)


def test_a_factor_of_families_forbids_calls() -> None:
    """A sixth of the variance, the same for all members: values and share come out, and no second factor."""
    truth = scaled(np.random.default_rng(2).normal(size=FAMILIES)[OF_FAMILY], np.sqrt(0.2))
    factor, rest = find_factors(levels_of(drawn(3, truth)), PLAIN, KINDS)
    assert (factor.is_significant, rest.is_significant) == (True, False)
    assert abs(np.corrcoef(factor.value, truth)[0, 1]) > 0.98
    # Of the variance with what relatives share, half of two thirds of 1, which is not common to all.
    assert factor.share == pytest.approx(0.2 / 1.2, abs=0.03)
    (finding,) = told([factor, rest], cage=[f"c{number}" for number in OF_FAMILY])
    assert finding.check == FAMILY_FACTOR
    assert finding.text.startswith("cannot tell family from factor")
    assert "of one factor at all loci, of which" in finding.text
    assert "also goes with cage" in finding.text
    (both,) = told([factor, factor, rest])
    assert "of 2 factors at all loci" in both.text
    assert both.check == FAMILY_FACTOR


def test_a_factor_of_single_samples_is_named_after_its_column() -> None:
    random = np.random.default_rng(4)
    age = random.uniform(20, 60, SAMPLES).round(1)
    plate = random.permutation(np.repeat(["one", "two", "three"], SAMPLES // 3))
    columns = {"age": [str(value) for value in age], "plate": plate.tolist(), "note": ["none"] * SAMPLES}
    by_age = find_factors(levels_of(drawn(5, scaled(age, 0.5))), PLAIN, KINDS)
    (finding,) = told(by_age, **columns)
    assert "goes with age (correlation" in finding.text
    assert "name 'age' in model.covariates" in finding.text
    by_plate = find_factors(levels_of(drawn(6, scaled((plate == "one").astype(float), 0.5))), PLAIN, KINDS)
    (finding,) = told(by_plate, **columns)
    assert "goes with plate (correlation" in finding.text
    known = np.column_stack([PLAIN, scaled(age, 1.0)])
    assert not find_factors(levels_of(drawn(5, scaled(age, 0.5))), known, KINDS)[0].is_significant
    by_nothing = find_factors(levels_of(drawn(7, scaled(random.normal(size=SAMPLES), 0.5))), PLAIN, KINDS)
    (finding,) = told(by_nothing, **columns)
    assert "no column of the sheet explains" in finding.text


def test_a_trend_over_generations_is_named() -> None:
    trend = scaled(np.tile([0.0, 0.0, 1.0, 1.0, 1.0], FAMILIES), 0.5)
    found = find_factors(levels_of(drawn(8, trend)), PLAIN, KINDS)
    (finding,) = told(found)
    assert "goes with generation (correlation 1.00" in finding.text
    related = relations(found, sheet(), range(SAMPLES), PEDIGREE, relatives(PEDIGREE, PEDIGREE.individuals))
    names = {one.name for one in related if one.factor == 1}
    assert {FAMILY, GENERATION, KINSHIP} <= names
    assert not any(one.is_named for one in related if one.factor == 2)


def test_a_sample_that_varies_more_is_no_factor() -> None:
    """Its variance, spread over all pairs by centring, would be one."""
    deviation = drawn(9)
    deviation[:, 7] *= 2.5
    assert not find_factors(levels_of(deviation), PLAIN, KINDS)[0].is_significant


def test_an_environment_that_a_hypothesis_names_is_no_factor() -> None:
    """Cages of their own variance at every locus, across families."""
    cage = np.tile(np.arange(MEMBERS), FAMILIES).astype(np.int32)
    deviation = drawn(10) + 0.7 * np.random.default_rng(10).normal(size=(LOCI, MEMBERS))[:, cage]
    assert find_factors(levels_of(deviation), PLAIN, KINDS)[0].is_significant
    assert not find_factors(levels_of(deviation), PLAIN, [*KINDS, within_level(cage)])[0].is_significant


def test_too_few_loci_or_samples_are_not_tested() -> None:
    values = levels_of(drawn(11))
    assert find_factors(Levels(*(each[: FEWEST_LOCI - 1] for each in values)), PLAIN, KINDS) == []
    few = [kind[:5][:, :5] for kind in KINDS]
    assert find_factors(Levels(*(each[:, :5] for each in values)), PLAIN[:5], few) == []


def test_rows_of_the_tables() -> None:
    value = np.array([1.0, -1.0])
    factors = [Factor(value, 0.5, 0.1, 1e-9, 0.9, True), Factor(value, -0.1, 0.1, 0.8, 0.1, False)]
    first, second = factor_rows(factors)
    assert (first["singular_value"], second["singular_value"]) == (1.0, 0.0)
    assert list(value_rows(factors, ("a", "b"))) == [
        {"factor": 1, "sample": "a", "value": 1.0},
        {"factor": 1, "sample": "b", "value": -1.0},
    ]
