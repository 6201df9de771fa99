"""The simulator's draws against the model, by formulas that share no code with it.

Every statistical test fixes its seed and bounds |z| of its worst statistic; with the bound 5 a correct simulator fails
one of K statistics with probability below K * 6e-7, and each test also shows that its data could have failed it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import digamma, expit, logit, polygamma

from epivi.base.errors import UserError
from epivi.cohort.kinship import covariance
from epivi.cohort.pedigree import Pedigree, families
from epivi.cohort.samples import SampleSheet
from epivi.families.transmission.hypotheses import parse_hypotheses, share_priors
from epivi.families.transmission.simulate import (
    BaselineComponent,
    SimulationSettings,
    parent_pairs,
    simulate,
    simulate_cohort,
    transmitted_effects,
)
from epivi.simulate.positions import Contig
from epivi.simulate.templates import TEMPLATES, choose_unsampled, template_pedigree

WORST = 5.0
PRIORS = {
    "heritable_share": {"alpha": 2, "beta": 2},
    "tau": {"alpha": 3, "beta": 2},
    "environment_share": {"alpha": 2, "beta": 4},
}
RESET: dict[str, Any] = {"reset": {}}
MENDELIAN = {"heritable_share": "free", "maternal": 1, "paternal": 1}


def make_sheet(individuals: tuple[str, ...], **changes: Any) -> SampleSheet:
    """One sample for each of `individuals`, without conversion errors."""
    size = len(individuals)
    sheet = SampleSheet(
        path="samples.tsv",
        samples=tuple(f"s{number}" for number in range(size)),
        individuals=individuals,
        paths=tuple(f"s{number}.cov.gz" for number in range(size)),
        formats=("bismark_cov",) * size,
        haplotypes=("all",) * size,
        false_methylated=np.zeros(size),
        false_unmethylated=np.zeros(size),
        columns={},
        lines=tuple(range(2, size + 2)),
    )
    return replace(sheet, **changes)


def make_settings(declared: dict[str, Any], n_loci: int = 20_000, **changes: Any) -> SimulationSettings:
    """Spread exactly 1 and baseline exactly 0 unless changed."""
    settings = SimulationSettings(
        seed=11,
        hypotheses=parse_hypotheses(declared),
        weights=(1 / len(declared),) * len(declared),
        contigs=(Contig("chr1", n_loci),),
        share_priors=share_priors(PRIORS),
        baseline=(BaselineComponent(1.0, 0.0, 0.0),),
        log_spread_scale=0.0,
    )
    return replace(settings, **changes)


def inbred_pedigree() -> Pedigree:
    """Full-sib mating over three generations, a backcross, a selfed and a cloned line below, a half-known parentage."""
    rows = [
        ("a", -1, -1, "sexual", 1),
        ("b", -1, -1, "sexual", 1),
        ("c", 0, 1, "sexual", 1),
        ("d", 0, 1, "sexual", 1),
        ("e", 2, 3, "sexual", 1),
        ("f", 2, 3, "sexual", 1),
        ("g", 4, 5, "sexual", 1),
        ("h", 6, 0, "sexual", 1),
        ("i", 7, -1, "selfing", 3),
        ("j", 8, -1, "clonal", 2),
        ("k", 9, 6, "sexual", 1),
        ("l", -1, 10, "sexual", 1),
        ("m", 10, 10, "sexual", 1),
    ]
    return Pedigree(
        individuals=tuple(row[0] for row in rows),
        mother=np.array([row[1] for row in rows], dtype=np.int32),
        father=np.array([row[2] for row in rows], dtype=np.int32),
        mode=tuple(row[3] for row in rows),
        generations=np.array([row[4] for row in rows], dtype=np.int32),
        sex=("unknown",) * len(rows),
    )


def worst_covariance_z(values: np.ndarray, expected: np.ndarray) -> float:
    """Largest |z| of the sample covariances (known mean 0) of Gaussian values [L, S] against `expected` [S, S]."""
    estimate = values.T @ values / len(values)
    variance = np.outer(np.diag(expected), np.diag(expected)) + expected**2
    return float(np.abs((estimate - expected) / np.sqrt(variance / len(values))).max())


# --- the pedigree's effect, exactly


@pytest.mark.parametrize("taus", [(1.0, 1.0), (0.6, 0.6), (0.9, 0.0), (0.2, 0.7), (0.0, 0.0)])
@pytest.mark.parametrize("name", [*TEMPLATES, "inbred"])
def test_effects_of_unit_normals_factorize_the_covariance(name: str, taus: tuple[float, float]) -> None:
    pedigree = inbred_pedigree() if name == "inbred" else template_pedigree(name, 2)
    size = len(pedigree.individuals)
    maternal, paternal = (np.full(size, tau) for tau in taus)
    factor = transmitted_effects(pedigree, parent_pairs(pedigree), maternal, paternal, np.eye(size))
    np.testing.assert_allclose(factor @ factor.T, covariance(pedigree, *taus), atol=1e-12)


def test_effects_take_the_taus_of_each_locus() -> None:
    pedigree = inbred_pedigree()
    random = np.random.default_rng(1)
    maternal, paternal = random.uniform(size=(2, 4))
    normal = random.normal(size=(len(pedigree.individuals), 4))
    together = transmitted_effects(pedigree, parent_pairs(pedigree), maternal, paternal, normal)
    for locus in range(4):
        one = slice(locus, locus + 1)
        alone = transmitted_effects(
            pedigree, parent_pairs(pedigree), maternal[one], paternal[one], np.ascontiguousarray(normal[:, one])
        )
        np.testing.assert_allclose(together[:, one], alone, rtol=1e-12)


def test_outbred_pedigrees_need_no_covariance_of_parents() -> None:
    assert parent_pairs(template_pedigree("three_generations", 3)) == ()
    assert (2, 3) in parent_pairs(inbred_pedigree())


# --- covariance among samples


@pytest.mark.parametrize(
    ("declared", "taus", "rho"),
    [
        ({"mendelian": {"heritable_share": 0.8, "maternal": 1, "paternal": 1}}, (1.0, 1.0), 0.8),
        ({"maternal": {"heritable_share": 0.9, "maternal": 0.8, "paternal": 0}}, (0.8, 0.0), 0.9),
        ({"paternal": {"heritable_share": 1, "maternal": 0, "paternal": 1}}, (0.0, 1.0), 1.0),
        ({"both": {"heritable_share": 0.6, "maternal": 0.9, "paternal": 0.5}}, (0.9, 0.5), 0.6),
    ],
    ids=["mendelian", "maternal", "paternal", "both"],
)
@pytest.mark.parametrize("template", ["three_generations", "half_sibs", "selfing_lines"])
def test_relatives_covary_as_declared(
    template: str, declared: dict[str, Any], taus: tuple[float, float], rho: float
) -> None:
    pedigree = template_pedigree(template, 2)
    cohort = simulate_cohort(make_settings(declared), pedigree, make_sheet(pedigree.individuals))
    size = len(pedigree.individuals)
    expected = rho * covariance(pedigree, *taus) + (1 - rho) * np.eye(size)
    assert worst_covariance_z(cohort.logit, expected) < WORST
    assert worst_covariance_z(cohort.logit, np.eye(size)) > 4 * WORST  # power: independence is refused


def test_reset_transmits_nothing() -> None:
    pedigree = template_pedigree("three_generations", 2)
    settings = make_settings(RESET | {"mendelian": MENDELIAN}, weights=(1.0, 0.0))
    cohort = simulate_cohort(settings, pedigree, make_sheet(pedigree.individuals))
    assert worst_covariance_z(cohort.logit, np.eye(len(pedigree.individuals))) < WORST
    for name in ("hypothesis", "heritable_share", "transmissibility"):
        assert not cohort.truth[name].any()


def test_free_shares_give_the_covariance_of_their_truth() -> None:
    """Standardizing each locus by the Cholesky factor of its own true covariance must give unit normals."""
    pedigree = template_pedigree("three_generations", 1)
    declared = {"epigenetic": {"heritable_share": "free", "maternal": "tau", "paternal": "tau"}}
    settings = make_settings(declared, n_loci=6_000, log_spread_location=0.3, log_spread_scale=0.4)
    settings = replace(settings, baseline=(BaselineComponent(1.0, 0.7, 1.0),))
    cohort = simulate_cohort(settings, pedigree, make_sheet(pedigree.individuals))
    size, truth = len(pedigree.individuals), cohort.truth
    centred = (cohort.logit - logit(truth["baseline"])[:, None]) / truth["spread"][:, None]
    rho, tau = truth["heritable_share"], truth["transmissibility"]
    matrices = np.array(
        [r * covariance(pedigree, t, t) + (1 - r) * np.eye(size) for r, t in zip(rho, tau, strict=True)]
    )
    white = np.linalg.solve(np.linalg.cholesky(matrices), centred[..., None])[..., 0]
    assert worst_covariance_z(white, np.eye(size)) < WORST
    assert worst_covariance_z(centred, np.eye(size)) > 2 * WORST  # power


def test_environment_is_shared_within_a_level_and_replicates_within_an_individual() -> None:
    pedigree = template_pedigree("quartet", 2)
    individuals = tuple(name for name in pedigree.individuals for _ in range(2))
    levels = tuple("xxxxyyyyyyzzzzxx")
    sheet = make_sheet(individuals, columns={"cage": levels})
    declared = {
        "both": {
            "heritable_share": 0.5,
            "maternal": 1,
            "paternal": 1,
            "environment": {"column": "cage", "share": 0.6},
        }
    }
    cohort = simulate_cohort(make_settings(declared), pedigree, sheet)
    index = np.repeat(np.arange(8), 2)
    is_same_level = np.equal.outer(np.array(levels), np.array(levels))
    expected = (
        0.5 * covariance(pedigree, 1, 1)[np.ix_(index, index)]
        + 0.5 * 0.6 * is_same_level
        + 0.5 * 0.4 * np.equal.outer(index, index)
    )
    assert worst_covariance_z(cohort.logit, expected) < WORST
    assert np.all(cohort.truth["environment_share"] == 0.3)  # of the whole: 0.6 of what is not heritable
    same = cohort.logit[:, 0] - cohort.logit[:, 1]
    np.testing.assert_allclose(same, 0, atol=1e-12)  # METHOD: replicates of an individual in one level are alike


def test_environment_alone_acts_only_under_its_hypothesis() -> None:
    pedigree = template_pedigree("trio", 2)
    sheet = make_sheet(pedigree.individuals, columns={"cage": tuple("xxyyzz")})
    declared = RESET | {"cage": {"environment": {"column": "cage", "share": 0.7}}}
    cohort = simulate_cohort(make_settings(declared), pedigree, sheet)
    is_cage = cohort.truth["hypothesis"] == 1
    expected = 0.3 * np.eye(6) + 0.7 * np.kron(np.eye(3), np.ones((2, 2)))
    assert worst_covariance_z(cohort.logit[is_cage], expected) < WORST
    assert worst_covariance_z(cohort.logit[~is_cage], np.eye(6)) < WORST


@pytest.mark.parametrize(("scale", "batch_variance"), [(0.5, 0.25), ({"age": 0.5, "batch[q]": 1.0}, 1.0)])
def test_covariates_shift_samples_by_their_columns(scale: Any, batch_variance: float) -> None:
    """With spread 0 what is left are the effects: standardized age (SD 1), of variance 0.25, and centred batch."""
    pedigree = template_pedigree("quartet", 1)
    ages = (1.0, 2.0, 5.0, 9.0)
    columns = {"age": tuple(map(str, ages)), "batch": ("p", "q", "q", "p")}
    sheet = make_sheet(pedigree.individuals, columns=columns)
    declared = RESET | {"other": {"covariates": ["batch"]}}
    settings = make_settings(declared, covariates=("age",), covariate_scale=scale, log_spread_location=-40.0)
    cohort = simulate_cohort(settings, pedigree, sheet)
    standard = (np.array(ages) - np.mean(ages)) / np.std(ages)
    batch = np.array([-0.5, 0.5, 0.5, -0.5])
    is_other = cohort.truth["hypothesis"] == 1
    ages_only = 0.25 * np.outer(standard, standard)
    assert worst_covariance_z(cohort.logit[~is_other], ages_only) < WORST
    assert worst_covariance_z(cohort.logit[is_other], ages_only + batch_variance * np.outer(batch, batch)) < WORST
    assert worst_covariance_z(cohort.logit[is_other], ages_only) > 4 * WORST  # power


# --- what is drawn for each locus


def test_hypotheses_follow_the_weights() -> None:
    weights = (0.5, 0.3, 0.2)
    declared = RESET | {"mendelian": MENDELIAN, "half": {"heritable_share": 0.5, "maternal": 1, "paternal": 1}}
    pedigree = template_pedigree("trio", 1)
    cohort = simulate_cohort(make_settings(declared, weights=weights), pedigree, make_sheet(pedigree.individuals))
    share = np.bincount(cohort.truth["hypothesis"], minlength=3) / 20_000
    error = np.sqrt(np.array(weights) * (1 - np.array(weights)) / 20_000)
    assert np.abs((share - weights) / error).max() < WORST
    assert np.abs((share - 1 / 3) / error).min() > WORST  # power: equal weights are refused


def test_shares_spread_and_baseline_follow_their_priors() -> None:
    declared = {
        "all": {
            "heritable_share": "free",
            "maternal": "tau",
            "paternal": 0,
            "environment": {"column": "cage", "share": "free"},
        }
    }
    pedigree = template_pedigree("trio", 1)
    sheet = make_sheet(pedigree.individuals, columns={"cage": ("x", "y", "y")})
    baseline = (BaselineComponent(1.0, -2.0, 0.5), BaselineComponent(3.0, 1.0, 1.5))
    settings = make_settings(declared, baseline=baseline, log_spread_location=0.2, log_spread_scale=0.3, weights=(1.0,))
    truth = simulate_cohort(settings, pedigree, sheet).truth
    drawn = {
        "heritable_share": (logit(truth["heritable_share"]), 2, 2),
        "tau": (logit(truth["transmissibility"]), 3, 2),
        "environment_share": (logit(truth["environment_share"] / (1 - truth["heritable_share"])), 2, 4),
    }
    checks = [(values, digamma(a) - digamma(b), polygamma(1, a) + polygamma(1, b)) for values, a, b in drawn.values()]
    checks.append((np.log(truth["spread"]), 0.2, 0.09))
    for values, mean, variance in checks:
        assert abs(values.mean() - mean) / np.sqrt(variance / len(values)) < WORST
        assert abs(values.var() / variance - 1) / np.sqrt(2 / len(values)) < WORST
    centre = logit(truth["baseline"])
    mean = 0.25 * -2.0 + 0.75 * 1.0
    variance = 0.25 * (0.25 + 4.0) + 0.75 * (2.25 + 1.0) - mean**2
    assert abs(centre.mean() - mean) / np.sqrt(variance / len(centre)) < WORST
    assert abs(centre.var() / variance - 1) < 0.05


def test_fixed_transmission_is_recorded_as_the_larger_tau() -> None:
    declared = {"m": MENDELIAN, "p": {"heritable_share": 0.5, "maternal": 0.2, "paternal": 0.4}}
    pedigree = template_pedigree("trio", 1)
    truth = simulate_cohort(make_settings(declared, n_loci=200), pedigree, make_sheet(pedigree.individuals)).truth
    np.testing.assert_array_equal(truth["transmissibility"], np.where(truth["hypothesis"] == 0, 1.0, 0.4))


def test_positions_are_sorted_and_gaps_have_their_mean() -> None:
    pedigree = template_pedigree("trio", 1)
    settings = make_settings(RESET, n_loci=20_000, mean_gap_bp=50.0, block_loci=999)
    pos0 = simulate_cohort(settings, pedigree, make_sheet(pedigree.individuals)).pos0.astype(int)
    gaps = np.diff(pos0)
    assert gaps.min() >= 2
    # 1 + geometric of mean 49: variance 49 * 48
    assert abs(gaps.mean() - 50) / np.sqrt(49 * 48 / len(gaps)) < WORST


def test_clustered_hypotheses_are_kept_along_the_contig_across_blocks() -> None:
    """P(neighbours alike | gap d) = k + (1 - k) sum w^2 with k = exp(-d / length), also across block boundaries."""
    pedigree = template_pedigree("trio", 1)
    declared = RESET | {"mendelian": MENDELIAN}
    settings = make_settings(declared, weights=(0.7, 0.3), cluster_bp=500.0, mean_gap_bp=100.0, block_loci=7)
    cohort = simulate_cohort(settings, pedigree, make_sheet(pedigree.individuals))
    hypothesis, gaps = cohort.truth["hypothesis"], np.diff(cohort.pos0.astype(float))
    is_alike = hypothesis[1:] == hypothesis[:-1]
    kept = np.exp(-gaps / 500)
    expected = kept + (1 - kept) * (0.7**2 + 0.3**2)
    error = np.sqrt((expected * (1 - expected)).sum())
    assert abs((is_alike - expected).sum()) / error < WORST
    at_boundary = np.arange(len(gaps)) % 7 == 6
    excess = (is_alike - expected)[at_boundary].sum()
    assert abs(excess) / np.sqrt((expected * (1 - expected))[at_boundary].sum()) < WORST
    assert abs((is_alike - 0.58).sum()) / error > 4 * WORST  # power: independent loci are refused
    share = (hypothesis == 1).mean()
    assert abs(share - 0.3) < 0.03  # about 2,000 independent runs: SD 0.006


# --- reads


def test_coverage_is_negative_binomial_with_missing_loci() -> None:
    pedigree = template_pedigree("quartet", 1)
    settings = make_settings(RESET, coverage_mean=12.0, coverage_size=4.0, missing_loci=0.2)
    total = simulate_cohort(settings, pedigree, make_sheet(pedigree.individuals)).total.ravel().astype(float)
    none = (4 / 16) ** 4  # P(0) of the negative binomial
    missing = 0.2 + 0.8 * none
    assert abs((total == 0).mean() - missing) / np.sqrt(missing * (1 - missing) / total.size) < WORST
    variance = 12 + 12**2 / 4
    mean, second = 0.8 * 12, 0.8 * (variance + 144)
    assert abs(total.mean() - mean) / np.sqrt((second - mean**2) / total.size) < WORST
    covered = total[total > 0]
    expected_mean = 12 / (1 - none)
    expected_variance = (variance + 144) / (1 - none) - expected_mean**2
    assert abs(covered.var() / expected_variance - 1) < 0.03  # SE about 0.007; Poisson would be off by 0.75


def test_infinite_size_is_poisson() -> None:
    pedigree = template_pedigree("quartet", 1)
    settings = make_settings(RESET, coverage_mean=12.0, coverage_size=np.inf)
    total = simulate_cohort(settings, pedigree, make_sheet(pedigree.individuals)).total.ravel()
    assert abs(total.mean() - 12) / np.sqrt(12 / total.size) < WORST
    assert abs(total.var() / 12 - 1) / np.sqrt((2 + 1 / 12) / total.size) < WORST


@pytest.mark.parametrize("level", [-60.0, -1.0, 0.5, 60.0])
def test_reads_err_at_each_samples_rates(level: float) -> None:
    pedigree = template_pedigree("trio", 1)
    false_methylated, false_unmethylated = np.array([0.0, 0.01, 0.08]), np.array([0.02, 0.0, 0.05])
    sheet = make_sheet(pedigree.individuals, false_methylated=false_methylated, false_unmethylated=false_unmethylated)
    settings = make_settings(RESET, baseline=(BaselineComponent(1.0, level, 0.0),), log_spread_location=-40.0)
    cohort = simulate_cohort(settings, pedigree, sheet)
    expected = false_methylated + (1 - false_methylated - false_unmethylated) * expit(level)
    reads, methylated = cohort.total.sum(axis=0), cohort.meth.sum(axis=0)
    error = np.sqrt(np.maximum(expected * (1 - expected) / reads, 1e-30))
    assert np.all(np.abs(methylated / reads - expected) < WORST * error + 1e-12)
    assert np.all((cohort.meth >= 0) & (cohort.meth <= cohort.total))


# --- blocks, seeds, settings


def test_same_seed_same_draws_and_another_seed_others() -> None:
    pedigree = template_pedigree("trio", 2)
    sheet = make_sheet(pedigree.individuals)
    settings = make_settings(RESET | {"mendelian": MENDELIAN}, n_loci=500, missing_loci=0.1)
    one, same = (simulate_cohort(settings, pedigree, sheet) for _ in range(2))
    other = simulate_cohort(replace(settings, seed=12), pedigree, sheet)
    for name in ("pos0", "logit", "meth", "total"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
        assert not np.array_equal(getattr(one, name), getattr(other, name))


def test_blocks_are_independent_and_contigs_start_anew() -> None:
    pedigree = template_pedigree("trio", 2)
    sheet = make_sheet(pedigree.individuals)
    contigs = (Contig("chr1", 25), Contig("chrX", 12))
    settings = make_settings(RESET, contigs=contigs, block_loci=10)
    blocks = list(simulate(settings, pedigree, sheet))
    assert [(block.contig, len(block.pos0)) for block in blocks] == [
        ("chr1", 10),
        ("chr1", 10),
        ("chr1", 5),
        ("chrX", 10),
        ("chrX", 2),
    ]
    assert blocks[0].pos0[-1] < blocks[1].pos0[0]
    assert blocks[3].pos0[0] < blocks[2].pos0[-1]
    assert not np.array_equal(blocks[0].logit, blocks[1].logit)
    assert not np.array_equal(blocks[0].logit, blocks[3].logit)
    cohort = simulate_cohort(settings, pedigree, sheet)
    assert cohort.contig.tolist() == [0] * 25 + [1] * 12
    assert cohort.meth.shape == cohort.total.shape == cohort.logit.shape == (37, 6)


def test_relatives_without_sample_still_pass_on() -> None:
    """Half-sibs through an unsampled father covary by rho / 4."""
    pedigree = template_pedigree("half_sibs", 1)
    sheet = make_sheet(("F1_child1", "F1_child3"))
    declared = {"mendelian": {"heritable_share": 1, "maternal": 1, "paternal": 1}}
    values = simulate_cohort(make_settings(declared), pedigree, sheet).logit
    assert worst_covariance_z(values, np.array([[1, 0.25], [0.25, 1]])) < WORST
    assert worst_covariance_z(values, np.eye(2)) > 4 * WORST  # power


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed = -1"),
        ({"weights": (0.5, 0.2)}, "summing to 1"),
        ({"weights": (1.0,)}, "one >= 0 for each hypothesis"),
        ({"contigs": (Contig("a", 3), Contig("a", 3))}, "different names"),
        ({"coverage_mean": 0.0}, "coverage_mean = 0.0"),
        ({"coverage_size": -2.0}, "coverage_size = -2.0"),
        ({"missing_loci": 1.0}, "missing_loci = 1.0"),
        ({"mean_gap_bp": 1.5}, "mean_gap_bp = 1.5"),
        ({"cluster_bp": 0.0}, "cluster_bp = 0.0"),
        ({"baseline": (BaselineComponent(0.0, 0.0, 1.0),)}, "weights > 0"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_settings(RESET | {"mendelian": MENDELIAN}, **change)


def test_what_does_not_fit_together_is_refused() -> None:
    pedigree = template_pedigree("trio", 1)
    with pytest.raises(UserError, match="'nobody'"):
        next(simulate(make_settings(RESET), pedigree, make_sheet(("F1_child", "nobody"))))
    settings = make_settings({"cage": {"environment": {"column": "cage", "share": "free"}}})
    with pytest.raises(UserError, match="'cage'"):
        next(simulate(settings, pedigree, make_sheet(pedigree.individuals)))
    settings = make_settings(RESET, contigs=(Contig("chr1", 30_000_000),))
    with pytest.raises(UserError, match=r"chr1: 30000000 loci 100.0 bp apart exceed 2\^31"):
        next(simulate(settings, pedigree, make_sheet(pedigree.individuals)))


# --- pedigrees to draw on


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_templates_are_separate_families_with_parents_first(template: str) -> None:
    pedigree = template_pedigree(template, 12)
    members = families(pedigree)
    assert len(members) == 12
    assert len({len(family) for family in members}) == 1
    assert pedigree.individuals[0].startswith("F01_")
    for child, parents in enumerate(zip(pedigree.mother, pedigree.father, strict=True)):
        assert max(parents) < child
        for parent, sex in zip(parents, ("female", "male"), strict=True):
            assert parent < 0 or pedigree.mode[child] != "sexual" or pedigree.sex[parent] == sex


def test_templates_have_the_relatives_they_are_named_for() -> None:
    half_sibs = covariance(template_pedigree("half_sibs", 2), 1, 1)
    assert half_sibs[3, 4] == 0.5  # full sibs of family 1
    assert half_sibs[3, 5] == half_sibs[9, 11] == 0.25
    maternal = covariance(template_pedigree("half_sibs", 2), 1, 0)
    assert maternal[3, 5] == 0  # family 1 shares the father,
    assert maternal[9, 11] == 0.25  # family 2 the mother
    generations = template_pedigree("three_generations", 2)
    through_mother = covariance(generations, 1, 0)
    assert through_mother[0, 4] == 0.25  # grandmother and grandchild of family 1
    assert through_mother[6, 10] == 0  # in family 2 she is the father's mother
    for template, mode in (("selfing_lines", "selfing"), ("clones", "clonal")):
        lines = template_pedigree(template, 1)
        assert set(lines.mode[1:]) == {mode}
        assert max(lines.generations) == 4
        assert covariance(lines, 0.5, 0.5)[0, 3] == pytest.approx(0.5**7)


@pytest.mark.parametrize("number", [0, 5, 12])
def test_every_family_keeps_a_sample(number: int) -> None:
    """Over 20 seeds; 12 of 16 chosen blindly would empty a family in 6 of 7."""
    pedigree = template_pedigree("quartet", 4)
    for seed in range(20):
        chosen = choose_unsampled(pedigree, number, seed)
        assert len(set(chosen)) == number
        for family in families(pedigree):
            assert any(pedigree.individuals[member] not in chosen for member in family)


def test_unsampled_are_drawn_at_random_and_not_all_can_be() -> None:
    pedigree = template_pedigree("trio", 30)
    chosen = [choose_unsampled(pedigree, 20, seed) for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    roles = {name.split("_")[1] for name in chosen[0]}
    assert roles == {"mother", "father", "child"}
    with pytest.raises(UserError, match="expected 0 to 60"):
        choose_unsampled(pedigree, 61, seed=1)


def test_unknown_templates_are_refused() -> None:
    with pytest.raises(UserError, match=r"template 'trios': expected one of trio, quartet"):
        template_pedigree("trios", 1)
