"""The latent field against the tabular covariance of the whole pedigree, at values of the transmissibility."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from inference_cases import make_pedigree, make_sheet, one_hypothesis
from transmission_cases import (
    CASES,
    COVARIATES,
    DECLARED,
    HYPOTHESES,
    PEDIGREES,
    Components,
    dense_prior,
    full_problem,
    owner_of_sample,
)

from epivi.base.errors import UserError
from epivi.cohort.kinship import covariance, transmission_polynomials
from epivi.cohort.samples import design_matrix
from epivi.families.transmission.cohort import build_cohort
from epivi.field.layout import LatentField, field_covariance

TAUS = (0.0, 0.2, 0.5, 0.83, 1.0)
PATHS = [("tau", "tau"), (1, 1), ("tau", 0), (0, "tau"), (0.3, "tau"), (1, "tau"), ("tau", 0.6), (0.2, 0.9)]
# A value of tau at which no two terms of a polynomial cancel.
GENERIC_TAU = 0.7310585786300049


def covariance_at(field: LatentField, variances: np.ndarray, tau: float) -> np.ndarray:
    return field_covariance(field, variances[None], np.array([tau]), nugget=0.0)[0]


def evaluate(polynomials: np.ndarray, tau: float) -> np.ndarray:
    return polynomials @ tau ** np.arange(polynomials.shape[-1])


@pytest.mark.parametrize("paths", PATHS)
@pytest.mark.parametrize("mode", list(PEDIGREES))
def test_polynomials_take_the_values_of_the_covariance(mode: str, paths: tuple) -> None:
    pedigree = PEDIGREES[mode]
    hypothesis = one_hypothesis(heritable_share="free", maternal=paths[0], paternal=paths[1])
    keep = np.random.default_rng(1).permutation(len(pedigree.individuals))[: len(pedigree.individuals) - 2]
    polynomials = transmission_polynomials(pedigree, hypothesis, keep.astype(np.int32))
    for tau in TAUS:
        maternal, paternal = (tau if path == "tau" else path for path in paths)
        expected = covariance(pedigree, maternal, paternal)[np.ix_(keep, keep)]
        np.testing.assert_allclose(evaluate(polynomials, tau), expected, rtol=0, atol=1e-14)


def test_polynomial_of_a_selfed_edge_by_hand() -> None:
    """From mother and child three generations on: ((0.4 + tau) / 2)^3 has four terms."""
    pedigree = make_pedigree(("a",), ("b", "a", None, "selfing", 3))
    hypothesis = one_hypothesis(heritable_share="free", maternal=0.4, paternal="tau")
    polynomials = transmission_polynomials(pedigree, hypothesis, np.array([0, 1], dtype=np.int32))
    np.testing.assert_allclose(polynomials[0, 1], [0.064 / 8, 3 * 0.16 / 8, 3 * 0.4 / 8, 1 / 8], atol=1e-15)
    np.testing.assert_array_equal(polynomials[1, 1], [1, 0, 0, 0])


@pytest.mark.parametrize("name", list(DECLARED))
@pytest.mark.parametrize("mode", list(CASES))
def test_dense_covariance_is_that_of_the_pedigree_and_the_groups(mode: str, name: str) -> None:
    case, index = CASES[mode], list(DECLARED).index(name)
    field = full_problem(mode).cohort.fields[index]
    hypothesis = HYPOTHESES[index]
    variances = np.array([1.45, 0.9, 0.4])[-1 - len(hypothesis.components) :]
    for tau in (0.0, 0.4, 1.0):
        expected = dense_prior(case, hypothesis, Components(variances, tau))[np.ix_(field.individual, field.individual)]
        result = covariance_at(field, variances, tau)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-13)


def components_by_search(linked: np.ndarray) -> set[frozenset[int]]:
    """Connected components by walking the graph."""
    left, found = set(range(len(linked))), set()
    while left:
        front = {left.pop()}
        component = set(front)
        while front:
            front = {j for i in front for j in np.flatnonzero(linked[i]).tolist()} - component
            component |= front
        left -= component
        found.add(frozenset(component))
    return found


@pytest.mark.parametrize("mode", list(CASES))
def test_blocks_are_the_connected_components(mode: str) -> None:
    case, cohort = CASES[mode], full_problem(mode).cohort
    sizes = set()
    for hypothesis, field in zip(HYPOTHESES, cohort.fields, strict=True):
        parts = Components(np.ones(len(hypothesis.components) + 1), GENERIC_TAU)
        expected = components_by_search(dense_prior(case, hypothesis, parts) != 0)
        edges = zip(field.block_start[:-1], field.block_start[1:], strict=True)
        blocks = [field.individual[start:stop].tolist() for start, stop in edges]
        assert {frozenset(block) for block in blocks} == expected
        assert len(blocks) == len(expected)
        assert field.block_start[0] == 0
        assert field.block_start[-1] == len(cohort.individuals)
        assert len(field.entry_start) == len(field.block_start)
        sizes |= {len(block) for block in blocks}
    assert len(sizes) > 2, "the case would not show a wrong block"


def test_nothing_passed_by_the_father_leaves_him_alone() -> None:
    pedigree = make_pedigree(("m",), ("f",), ("c", "m", "f"))
    sheet = make_sheet(("m", "f", "c"))
    maternal = one_hypothesis(heritable_share="free", maternal="tau", paternal=0)
    field = build_cohort(sheet, pedigree, [], [maternal]).fields[0]
    blocks = [set(field.individual[a:b]) for a, b in zip(field.block_start[:-1], field.block_start[1:], strict=True)]
    assert {0, 2} in blocks
    assert {1} in blocks


def test_relatives_through_an_unsampled_parent_stay_linked() -> None:
    pedigree = make_pedigree(("m",), ("f",), ("c", "m", "f"), ("d", "m", None))
    sheet = make_sheet(("d", "c"))
    epigenetic = one_hypothesis(heritable_share="free", maternal="tau", paternal="tau")
    field = build_cohort(sheet, pedigree, [], [epigenetic]).fields[0]
    np.testing.assert_allclose(covariance_at(field, np.array([1.0, 0.0]), 0.6), [[1, 0.09], [0.09, 1]], atol=1e-15)


@pytest.mark.parametrize("mode", list(CASES))
def test_replicates_share_the_latent_of_their_individual(mode: str) -> None:
    case, cohort = CASES[mode], full_problem(mode).cohort
    owner = owner_of_sample(case)
    np.testing.assert_array_equal(cohort.individual_of_sample, owner)
    assert len(cohort.individuals) < len(cohort.samples), "no replicate among the samples"
    for field in cohort.fields:
        np.testing.assert_array_equal(field.individual[field.latent_of_sample], owner)
        assert sorted(field.individual) == list(range(len(cohort.individuals)))


@pytest.mark.parametrize("mode", list(CASES))
def test_groups_are_the_levels_of_the_column(mode: str) -> None:
    case, cohort = CASES[mode], full_problem(mode).cohort
    cage = dict(zip(case.sheet.individuals, case.sheet.columns["cage"], strict=True))
    for hypothesis, field in zip(HYPOTHESES, cohort.fields, strict=True):
        kinds = [component.kind for component in hypothesis.components]
        assert field.components == len(kinds)
        if "environment" not in kinds:
            continue
        names = [cohort.individuals[index] for index in field.individual]
        alone = np.array([kind == "environment" for kind in [*kinds, "residual"]], dtype=float)
        together = [[float(cage[one] == cage[other]) for one in names] for other in names]
        np.testing.assert_allclose(covariance_at(field, alone, GENERIC_TAU), together, atol=1e-15)


def test_replicates_in_two_groups_are_refused_with_the_line_of_the_second() -> None:
    pedigree = make_pedigree(("a",), ("b",))
    sheet = make_sheet(("a", "b", "a"), columns={"cage": ("one", "two", "two")})
    household = one_hypothesis(environment={"column": "cage"})
    with pytest.raises(UserError, match=r"samples\.tsv, line 4, column cage.*individual 'a'.*different groups"):
        build_cohort(sheet, pedigree, [], [household])
    same = replace(sheet, columns={"cage": ("one", "two", "one")})
    assert build_cohort(same, pedigree, [], [household]).fields[0].block_start.tolist() == [0, 1, 2]


@pytest.mark.parametrize("terms", [{"environment": {"column": "den"}}, {"covariates": ["den"]}])
def test_unknown_column_is_refused(terms: dict) -> None:
    sheet = make_sheet(("a", "b"), columns={"cage": ("one", "two")})
    with pytest.raises(UserError, match=r"samples\.tsv.*no column 'den'"):
        build_cohort(sheet, make_pedigree(("a",), ("b",)), [], [one_hypothesis(**terms)])


def test_designs_hold_the_shared_and_the_own_covariates() -> None:
    case, cohort = CASES["sexual"], full_problem("sexual").cohort
    names = [covariate.name for covariate in cohort.covariates]
    assert names == ["age", "batch[y]", "batch[z]", "site[south]", "dose"]
    for hypothesis, field in zip(HYPOTHESES, cohort.fields, strict=True):
        matrix, names = design_matrix(case.sheet, [*COVARIATES, *hypothesis.covariates])
        np.testing.assert_array_equal(field.design, np.column_stack([np.ones(len(matrix)), matrix]))
        assert tuple(cohort.covariates[column] for column in field.design_column) == names


def test_cohort_keeps_samples_and_errors_of_the_sheet() -> None:
    case, cohort = CASES["mixed"], full_problem("mixed").cohort
    assert cohort.samples == case.sheet.samples
    assert cohort.individuals == tuple(dict.fromkeys(case.sheet.individuals))
    np.testing.assert_array_equal(cohort.false_methylated, case.sheet.false_methylated)
    np.testing.assert_array_equal(cohort.false_unmethylated, case.sheet.false_unmethylated)


def test_hundred_lines_of_descent_stay_a_hundred_blocks() -> None:
    """Blocks come from the samples, so a pedigree of many families costs what its families cost."""
    rows = [row for k in range(100) for row in ((f"a{k}",), (f"b{k}", f"a{k}", None, "clonal", 2))]
    pedigree = make_pedigree(*rows)
    sheet = make_sheet(pedigree.individuals)
    hypothesis = one_hypothesis(heritable_share="free", maternal="tau", paternal="tau")
    field = build_cohort(sheet, pedigree, [], [hypothesis]).fields[0]
    np.testing.assert_array_equal(np.diff(field.block_start), np.full(100, 2))
    np.testing.assert_array_equal(np.diff(field.entry_start), np.full(100, 3))


def test_case_has_an_individual_in_every_kind_of_relation() -> None:
    """The cases would not show a wrong formula if they lacked half-sibs, inbreeding or long edges."""
    relation = covariance(PEDIGREES["sexual"], 1.0, 1.0)
    name = PEDIGREES["sexual"].individuals.index
    assert relation[name("c1"), name("h")] == pytest.approx(0.25)
    assert relation[name("i"), name("j")] > 0.5
    assert max(PEDIGREES["selfing"].generations) == 5
    assert {"sexual", "selfing", "clonal"} == set(PEDIGREES["mixed"].mode)
