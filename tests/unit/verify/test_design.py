"""What a design is said to show: Bayes factors against other code, what to sequence next, and the sentences."""

from __future__ import annotations

import numpy as np
import pytest
from design_cases import DEFAULT, PEDIGREES, asked_of, dense_covariance, families_of, hypotheses_of, whole_sheet
from inference_cases import make_pedigree, make_sheet
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from epivi.cohort.samples import design_matrix
from epivi.families.transmission.gaussian_cohort import BASELINE_SD, EFFECT_SD
from epivi.families.transmission.separation import typical_theta
from epivi.verify.design import (
    DRAWS,
    REGION,
    SPREAD_SCALE,
    Assumed,
    best_shares,
    confusion_rows,
    drawn_marginals,
    least_matrix,
    log_marginal,
    measured_levels,
    outcomes,
    pair_rows,
    predicted,
    prior_nodes,
    regions_of,
    sentences,
    separation,
)
from epivi.verify.design_simulation import consecutive_regions
from epivi.verify.next_samples import next_rows, options


@pytest.fixture(scope="module")
def trios() -> Assumed:
    return asked_of(families_of(PEDIGREES["trio"], 4))


def test_bayes_factors_against_monte_carlo(trios: Assumed) -> None:
    """Of mendelian loci against reset: drawn and integrated with dense matrices, prior draws in place of nodes, other
    random numbers. Means agree within 4 standard errors (false alarm 6e-5) and .004 nats of integration."""
    pedigree, random = trios.pedigree, np.random.default_rng(5)
    noise = trios.noise[0]
    theta = typical_theta(trios.hypotheses[1], trios.typical, 0.0)
    covariance = dense_covariance(pedigree, trios.hypotheses[1], theta, noise, BASELINE_SD)
    loci = multivariate_normal.rvs(np.zeros(len(noise)), covariance, size=1500, random_state=random)

    def log_marginal(h: int) -> np.ndarray:
        hypothesis = trios.hypotheses[h]
        found = []
        for _ in range(300):
            values = [SPREAD_SCALE * random.normal()]
            values += [
                trios.priors[name].mean + trios.priors[name].sd * random.normal() for name in hypothesis.prior_names[1:]
            ]
            one = dense_covariance(pedigree, hypothesis, np.array(values), noise, BASELINE_SD)
            found.append(multivariate_normal.logpdf(loci, np.zeros(len(noise)), one))
        return logsumexp(found, axis=0) - np.log(len(found))

    expected = log_marginal(1) - log_marginal(0)
    marginals = drawn_marginals(trios, 1)
    found = marginals[1][:, 1] - marginals[1][:, 0]
    assert len(found) == DRAWS
    error = np.hypot(expected.std() / np.sqrt(len(expected)), found.std() / np.sqrt(len(found)))
    assert found.mean() == pytest.approx(expected.mean(), abs=4 * error + 0.004)
    assert found.std() == pytest.approx(expected.std(), rel=0.15)
    assert found.mean() > 6 * error  # the data could have shown otherwise


def test_marginal_likelihoods_with_covariates() -> None:
    """Of single nodes, against normal densities: a family that is one block, effects of several sizes."""
    pedigree = PEDIGREES["parents and 3 children"]
    sheet = make_sheet(pedigree.individuals, columns={"age": ("1", "2", "4", "3", "7"), "batch": tuple("ababc")})
    asked = asked_of(pedigree, sheet=sheet, covariates=("age", "batch"))
    cohort, theta = asked.cohort(), np.array([[0.2, 0.5, -0.4], [-0.3, -1.0, 1.0]])
    loci = np.random.default_rng(4).normal(size=(5, 1, 7))
    design, _ = design_matrix(sheet, asked.covariates)
    effects = BASELINE_SD**2 + EFFECT_SD**2 * design @ design.T
    densities = [
        multivariate_normal.logpdf(
            loci[:, 0].T,
            np.zeros(5),
            effects + dense_covariance(pedigree, asked.hypotheses[2], node, asked.noise[0], 0.0),
        )
        for node in theta
    ]
    np.testing.assert_allclose(log_marginal(cohort, 2, theta[:1], 0, [loci]), densities[0], rtol=1e-9)
    both = logsumexp(densities, axis=0) - np.log(2)
    np.testing.assert_allclose(log_marginal(cohort, 2, theta, 0, [loci]), both, rtol=1e-9)


def test_bayes_factors_are_calibrated(trios: Assumed) -> None:
    """Over loci of a hypothesis its inverse Bayes factor has mean 1; at typical parameters about so."""
    marginals = drawn_marginals(trios, 2)
    for h in range(1, 5):
        inverse = np.exp(marginals[h][:, 0] - marginals[h][:, h])
        assert inverse.mean() == pytest.approx(1.0, abs=0.15)


@pytest.mark.slow
def test_more_nodes_change_little(trios: Assumed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean log Bayes factors, by .005 nats at most, a quarter of what evidences are promised to be right to."""
    from epivi.verify import design

    few = drawn_marginals(trios, 1)
    monkeypatch.setattr(design, "prior_nodes", lambda *a: prior_nodes(*a, nodes=256))
    many = drawn_marginals(trios, 1)
    assert np.abs(((few - few[:, :, :1]) - (many - many[:, :, :1])).mean(1)).max() < 0.005


def test_regions_are_sums_of_loci() -> None:
    marginals = np.random.default_rng(1).normal(size=(2, 50, 3))
    found = regions_of(marginals, 4, 600, np.random.default_rng(2))
    assert found.shape == (2, 600, 3)
    np.testing.assert_allclose(found.mean(1), 4 * marginals.mean(1), atol=4 * 2 / np.sqrt(600))
    consecutive = consecutive_regions(marginals, 4)
    assert consecutive.shape == (2, 12, 3)
    np.testing.assert_allclose(consecutive[1, 2], marginals[1, 8:12].sum(0))


def test_outcomes_and_what_is_best() -> None:
    found = outcomes(np.array([3.0, 2.0, 0.0, -2.5]))
    assert found == {"expected_log_bf": 0.625, "p_right": 0.25, "p_misleading": 0.25, "p_weak": 0.5}
    log_evidence = np.array([[[0.0, 1.0, -9.0], [0.0, -1.0, -1.0]]])
    np.testing.assert_allclose(best_shares(log_evidence, ((0,), (1,), (2,))), [[0.5, 0.5, 0.0]])
    # Together with one that the data speak against, 1.0 becomes .31: the mean of the members.
    np.testing.assert_allclose(best_shares(log_evidence, ((0,), (1, 2))), [[0.5, 0.5]])


def test_rows_and_sentences_of_trios(trios: Assumed) -> None:
    found, expected = separation(trios), predicted(trios, 1)
    rows = pair_rows(trios, found, expected, None)
    by_pair = {(row["hypothesis"], row["alternative"]): row for row in rows}
    assert len(rows) == 20
    merged = by_pair["mendelian", "epigenetic"]
    assert merged["merged"] == "mendelian|epigenetic"
    assert (merged["loci"], merged["families_times_loci"]) == (np.inf, np.inf)
    nested = by_pair["reset", "mendelian"]
    assert (nested["merged"], nested["is_mimicked"], nested["least_nats"]) == ("", True, 0.0)
    assert nested["region_expected_log_bf"] > 0  # by the priors of what it is nested in
    other = by_pair["mendelian", "reset"]
    assert other["loci"] == pytest.approx(5 / other["least_nats"])
    assert other["families_times_loci"] == pytest.approx(5 / other["least_nats_family"])
    assert 3 * other["least_nats_family"] < other["least_nats"] < 4 * other["least_nats_family"]  # one mean is learned
    for row in rows:
        for unit in ("locus", "region"):
            outcome = [row[f"{unit}_p_{name}"] for name in ("right", "weak", "misleading")]
            assert sum(outcome) == pytest.approx(1.0)
            assert np.isnan(row[f"realized_{unit}_p_right"])
    confusion = confusion_rows(trios, found, expected, None)
    for name in DEFAULT:
        shares = [row["share"] for row in confusion if (row["unit"], row["hypothesis"]) == (REGION, name)]
        assert len(shares) == 4
        assert sum(shares) == pytest.approx(1.0)
    said = sentences(trios, found, rows, next_rows(trios, found.of_cohort))
    assert said[0].startswith("design: 12 samples, 4 families with sampled relatives; assumed are 20 reads")
    assert said[1] == (
        "these samples can never tell mendelian from epigenetic, whatever the loci and reads: reported as "
        "mendelian|epigenetic"
    )
    assert any("that would separate mendelian and epigenetic better: a further child" in line for line in said)


def test_without_relatives_nothing_can_be_separated() -> None:
    asked = asked_of(make_pedigree(("a",), ("b",), ("c",)))
    found = separation(asked)
    assert found.groups == ((0, 1, 2, 3, 4),)
    assert np.isnan(found.of_family).all()
    rows = pair_rows(asked, found, predicted(asked, 1), None)
    assert {row["loci"] for row in rows} == {np.inf}
    said = sentences(asked, found, rows, next_rows(asked, found.of_cohort))
    assert "can never tell reset, mendelian, epigenetic, maternal from paternal" in said[1]


def test_what_to_sequence_next() -> None:
    """Each option against the cohort written out by hand."""
    few = hypotheses_of({name: DEFAULT[name] for name in ("mendelian", "epigenetic")})
    trios = asked_of(families_of(PEDIGREES["trio"], 4), hypotheses=few)
    found = options(trios)
    assert list(found) == [
        "a further child of each couple",
        "a grandchild of each couple",
        "a half-sib of each couple's children",
        "another family like these",
        "twice the reads of each sample",
        "phased haplotypes of each sample",
    ]
    assert [option.samples for option in found.values()] == [4, 4, 4, 12, 12, 12]
    trio = [("mother",), ("father",), ("child", "mother", "father")]
    by_hand = {
        "a further child of each couple": [*trio, ("other", "mother", "father")],
        "a grandchild of each couple": [*trio, ("other", "child", None)],
        "a half-sib of each couple's children": [*trio, ("other", "mother", None)],
    }
    for name, rows in by_hand.items():
        expected = asked_of(families_of(make_pedigree(*rows), 4), hypotheses=few)
        changed = found[name].changed
        np.testing.assert_allclose(
            least_matrix(changed, changed.cohort()), least_matrix(expected, expected.cohort()), atol=1e-6
        )
    twice, more = found["twice the reads of each sample"].changed, found["another family like these"].changed
    expected = asked_of(trios.pedigree, reads=np.full(12, 40.0), hypotheses=few)
    np.testing.assert_allclose(
        least_matrix(twice, twice.cohort()), least_matrix(expected, expected.cohort()), atol=1e-7
    )
    expected = asked_of(families_of(PEDIGREES["trio"], 8), hypotheses=few)
    np.testing.assert_allclose(least_matrix(more, more.cohort()), least_matrix(expected, expected.cohort()), atol=1e-6)
    phased = found["phased haplotypes of each sample"].changed
    assert phased.cohort().samples == 24
    assert phased.reads.tolist() == [10.0] * 24
    pair = next_rows(trios, np.zeros((2, 2)))
    assert [row["rank"] for row in pair] == list(range(1, 7))
    assert pair[0]["option"] == "a further child of each couple"
    assert pair[0]["least_nats"] == 0.0 < pair[0]["least_nats_then"]
    gains = [row["gain_per_sample"] for row in pair]
    assert gains == sorted(gains, reverse=True)


def test_coverage_and_levels_of_loci() -> None:
    total = np.full((300, 4), 10, dtype=np.uint16)
    meth = np.repeat([[0], [5], [10]], 100, axis=0) * np.ones((1, 4), dtype=np.uint16)
    assert measured_levels(meth.astype(np.uint16), total) == pytest.approx((0.012, 0.5, 0.988), abs=0.003)


def test_missing_reads_and_errors_weaken_a_design(trios: Assumed) -> None:
    reads = trios.reads.copy()
    reads[2] = 0.0  # a child
    fewer = trios._replace(reads=reads)
    assert fewer.cohort().samples == 11
    errors = whole_sheet(trios.pedigree, false_methylated=np.full(12, 0.1), false_unmethylated=np.full(12, 0.1))
    worse = trios._replace(sheet=errors)
    for weaker in (fewer, worse):
        assert least_matrix(weaker, weaker.cohort())[1, 0] < 0.9 * least_matrix(trios, trios.cohort())[1, 0]
