"""Calibration arithmetic against exactly known posteriors, brute force and formulas that share no code with it.

Statistical tests fix their seed, state their false-alarm rate, and show that a small error would have been seen.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import binom, binomtest, lognorm, norm

from epivi.base.errors import UserError
from epivi.cohort.kinship import covariance
from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet
from epivi.discovery.average import averaged_cdf, averaged_quantile
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.columns import PARAMETERS
from epivi.families.transmission.density import LearnedPriors
from epivi.families.transmission.hypotheses import parse_hypotheses, share_priors
from epivi.families.transmission.outer_integral import HypothesisEvidence
from epivi.families.transmission.simulate import draw_methylated
from epivi.simulate.templates import template_pedigree
from epivi.tables.columns import arrow_schema
from epivi.tables.parquet import conform
from epivi.verify import calibrate
from epivi.verify.calibrate import (
    AVERAGED,
    LEVELS,
    SCENARIOS,
    TRUE,
    CalibrationPlan,
    Drawn,
    Judged,
    bayes_factor_rows,
    build_plan,
    conditional_cdf,
    coverage_rows,
    draw,
    ecdf_band,
    ecdf_rows,
    fdr_rows,
    is_free,
    judge,
    lfdr_rows,
    relabelled,
    share_columns,
    strata,
    tables,
    transforms,
    true_parameters,
)
from epivi.verify.columns import CALIBRATE_TABLES
from epivi.verify.figures import calibration_figures

Array = NDArray[np.float64]
Z95 = norm.ppf(0.95)
WORST = 5.0  # standard errors; a right statistic exceeds them with probability 6e-7
DECLARED: dict[str, dict[str, Any]] = {
    "reset": {},
    "mendelian": {"heritable_share": "free", "maternal": 1, "paternal": 1},
    "maternal": {"heritable_share": "free", "maternal": "tau", "paternal": 0},
}
HYPOTHESES = parse_hypotheses(DECLARED)
SHARES = share_priors({name: {"alpha": 2, "beta": 2} for name in ("heritable_share", "tau", "environment_share")})
IS_NULL = np.array([True, False, False])

COMPARISON = {"blocks": 10, "draws": 20, "prior": {"untransmitted": 5, "transmitted": 1}, "tilt_nats": 0.02}


def make_plan(
    families: int = 4, weight: tuple[float, ...] = (0.5, 0.3, 0.2), seed: int = 3, **sheet: Any
) -> CalibrationPlan:
    pedigree = template_pedigree("quartet", families)
    size = len(pedigree.individuals)
    samples = SampleSheet(
        path="samples.tsv",
        samples=pedigree.individuals,
        individuals=pedigree.individuals,
        paths=("",) * size,
        formats=("bismark_cov",) * size,
        haplotypes=("all",) * size,
        false_methylated=np.zeros(size),
        false_unmethylated=np.zeros(size),
        columns={},
        lines=tuple(range(2, size + 2)),
    )
    samples = replace(samples, **sheet)
    effects = np.full(1 if "age" in samples.columns else 0, 0.4)
    learned = LearnedPriors(
        np.array([0.4, 0.6]), np.array([-1.0, 1.0]), np.array([0.5, 0.7]), 0.1, 0.3, effects, np.array(weight)
    )
    covariates = ("age",) if len(effects) else ()
    cohort = build_cohort(samples, pedigree, covariates, HYPOTHESES)
    return build_plan(
        HYPOTHESES, ("reset",), np.array(weight), learned, SHARES, cohort, covariates, pedigree, samples, seed
    )


# --- transforms ------------------------------------------------------------------------------------------------------


def conjugate(number: int, seed: int) -> tuple[Array, Array, float]:
    """Truths theta ~ N(0, 1), and mean and SD of their posterior given theta + N(0, 1/4)."""
    random = np.random.default_rng(seed)
    theta = random.normal(size=number)
    observed = theta + 0.5 * random.normal(size=number)
    return theta, observed / 1.25, float(np.sqrt(0.2))


def is_within_band(values: Array) -> bool:
    return all(row["lower"] <= row["ecdf"] <= row["upper"] for row in ecdf_rows(values, 1))


@pytest.mark.parametrize(("parameter", "backward"), [("spread", np.exp), ("baseline", expit)])
def test_known_posteriors_are_uniform_and_narrow_or_shifted_ones_are_not(parameter: str, backward: Any) -> None:
    """False alarms of the band: 5 %; 20,000 loci see SDs that are 10 % and means that are a tenth of an SD off."""
    theta, mean, sd = conjugate(20_000, 1)

    def transformed(mean: Array, sd: float) -> Array:
        quantiles = (backward(mean + z * sd) for z in (-Z95, 0.0, Z95))
        return conditional_cdf(parameter, *quantiles, backward(theta))

    np.testing.assert_allclose(transformed(mean, sd), norm.cdf(theta, mean, sd), atol=1e-5)
    assert is_within_band(transformed(mean, sd))
    assert not is_within_band(transformed(mean, 0.9 * sd))
    assert not is_within_band(transformed(mean, 1.1 * sd))
    assert not is_within_band(transformed(mean + 0.1 * sd, sd))


@pytest.mark.parametrize("sign", [1, -1])
def test_skewed_posteriors_by_their_quantiles(sign: int) -> None:
    """A shifted log-normal, or its mirror image, is found exactly; beyond its end there is nothing."""
    x = np.linspace(-0.99, 6.0, 200)
    exact = lognorm(0.7, loc=-1.0)
    low, middle, high = (np.full(200, sign * exact.ppf(p)) for p in (0.05, 0.5, 0.95)[::sign])
    found = conditional_cdf("heritable_share", expit(low), expit(middle), expit(high), expit(sign * x))
    np.testing.assert_allclose(found, exact.cdf(x) if sign > 0 else exact.sf(x), atol=1e-9)
    beyond = conditional_cdf(
        "heritable_share", expit(low), expit(middle), expit(high), expit(np.full(200, sign * -1.5))
    )
    assert (beyond == (0.0 if sign > 0 else 1.0)).all()


@pytest.mark.parametrize("parameter", list(PARAMETERS))
def test_averaged_distribution_inverts_the_quantiles_of_the_table(parameter: str) -> None:
    random = np.random.default_rng(2)
    backward = np.exp if parameter == "spread" else expit
    middle, half = random.normal(size=(40, 3)), random.uniform(0.2, 1.0, (2, 40, 3))
    columns = [backward(values) for values in (middle - half[0], middle, middle + half[1])]
    probability = random.dirichlet((1, 1, 1), 40)
    for level in (0.05, 0.3, 0.5, 0.95):
        value = averaged_quantile(parameter, probability, *columns, level)
        before, after = averaged_cdf(parameter, probability, *columns, value)
        np.testing.assert_allclose(before, level, atol=1e-6)
        np.testing.assert_allclose(after, level, atol=1e-6)


@pytest.mark.parametrize("atom", [0.0, 0.3, 1.0])
def test_averaged_distribution_jumps_at_fixed_values(atom: float) -> None:
    """Hypotheses: fixed at the atom; Gaussian on the logit scale, median 0.5."""
    columns = [np.array([[atom, expit(q)]]) for q in (-Z95, 0.0, Z95)]
    probability = np.array([[0.25, 0.75]])
    for value in (0.0, 0.1, 0.3, 0.6, 1.0):
        before, after = averaged_cdf("heritable_share", probability, *columns, np.array([value]))
        below = 0.75 * norm.cdf(logit(value))
        assert before[0] == pytest.approx(below + 0.25 * (value > atom), abs=1e-9)
        assert after[0] == pytest.approx(below + 0.25 * (value >= atom), abs=1e-9)
    # A truth that rounding has moved off its atom still lies on it.
    for nudge in (1 - 1e-9, 1 + 1e-9) if atom == 0.3 else ():
        before, after = averaged_cdf("heritable_share", probability, *columns, np.array([atom * nudge]))
        assert after[0] - before[0] == pytest.approx(0.25, abs=1e-6)


def two_hypotheses(number: int, seed: int, factor: float = 1.0) -> tuple[CalibrationPlan, Judged]:
    """Loci of reset, share fixed at 0, and of mendelian, share observed with noise; exact evidences and quantiles.

    Under reset an observation is N(0, 0.5), under mendelian N(0, 1.25). factor: scales the interval of the share.
    """
    random = np.random.default_rng(seed)
    plan = make_plan(weight=(0.4, 0.6, 0.0))
    hypothesis = (random.random(number) < 0.6).astype(np.int64)
    theta = random.normal(size=number)
    observed = np.where(hypothesis == 1, theta + 0.5 * random.normal(size=number), 0.5 * random.normal(size=number))
    log_evidence = np.stack(
        [norm.logpdf(observed, 0, 0.5), norm.logpdf(observed, 0, np.sqrt(1.25)), np.full(number, -50.0)], axis=1
    )
    zero = np.zeros(number)
    sd = factor * np.sqrt(0.2)
    columns = [
        np.stack([zero, expit(observed / 1.25 + z * sd), 0.2 + 0.1 * z + zero], axis=1) for z in (-Z95, 0.0, Z95)
    ]
    truth = {"heritable_share": np.where(hypothesis == 1, expit(theta), 0.0)}
    drawn = Drawn(*(np.ones((number, 2), np.uint16),) * 2, hypothesis, truth)
    return plan, Judged(drawn, log_evidence, *({"heritable_share": column} for column in columns))


def test_transforms_of_each_kind_are_uniform_and_belong_to_the_right_loci() -> None:
    """Exact evidences and posteriors; three bands, false alarms at most 15 %; intervals 10 % narrower do not fit."""
    plan, judged = two_hypotheses(20_000, 5)
    found = transforms(plan, judged, np.random.default_rng(1))
    assert set(found) == {(name, "heritable_share") for name in ("mendelian", TRUE, AVERAGED)}
    at = np.flatnonzero(judged.drawn.hypothesis == 1)
    for name in ("mendelian", TRUE):
        np.testing.assert_array_equal(found[name, "heritable_share"][0], at)
    assert len(found[AVERAGED, "heritable_share"][1]) == 20_000
    assert all(is_within_band(values) for _, values in found.values())
    narrow = transforms(*two_hypotheses(20_000, 5, factor=0.9), np.random.default_rng(1))
    assert not any(is_within_band(values) for _, values in narrow.values())


def test_average_with_wrong_weights_is_not_uniform() -> None:
    plan, judged = two_hypotheses(20_000, 6)
    wrong = plan._replace(weight=np.array([0.5, 0.5, 0.0]))
    found = transforms(wrong, judged, np.random.default_rng(1))
    assert not is_within_band(found[AVERAGED, "heritable_share"][1])
    assert is_within_band(found[TRUE, "heritable_share"][1])


@pytest.mark.parametrize("number", [30, 1000])
def test_band_holds_all_of_a_uniform_ecdf_in_95_of_100_cases(number: int) -> None:
    """Over 4000 fresh samples; the error of both simulations together is 0.006."""
    lower, upper = ecdf_band(number, 50, 0.95, 4000, seed=7)
    points = np.arange(1, 50) / 50
    assert np.isfinite([lower, upper]).all()
    random = np.random.default_rng(8)
    values = random.random((4000, number))
    ecdf = (values[:, :, None] <= points).mean(1) if number < 100 else np.stack(
        [np.searchsorted(np.sort(row), points, side="right") / number for row in values]
    )  # fmt: skip
    share = ((lower <= ecdf) & (ecdf <= upper)).all(1).mean()
    assert 0.95 - 0.02 < share < 0.95 + 0.03  # counts are whole numbers: the band may hold a little more
    # Wider than pointwise intervals, and symmetric.
    assert (upper * number >= binom.ppf(0.975, number, points)).all()
    assert (lower * number <= binom.ppf(0.025, number, points)).all()
    np.testing.assert_allclose(upper, 1 - lower[::-1], atol=1.01 / number)


def test_ecdf_counts_values_up_to_each_point() -> None:
    values = np.array([0.005, 0.01, 0.5, 0.991])
    rows = {round(row["point"], 2): row["ecdf"] for row in ecdf_rows(values, 1)}
    assert (rows[0.01], rows[0.02], rows[0.49], rows[0.5], rows[0.99]) == (0.5, 0.5, 0.5, 0.75, 0.75)
    assert len(rows) == calibrate.POINTS - 1


# --- counting --------------------------------------------------------------------------------------------------------


def test_shares_have_exact_intervals() -> None:
    for count, number in ((0, 7), (3, 7), (7, 7), (450, 500)):
        found = share_columns(count, number, "covered")
        exact = binomtest(count, number).proportion_ci(0.95, method="exact")
        assert (found["covered"], found["n_loci"], found["share"]) == (count, number, count / number)
        assert (found["lower"], found["upper"]) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert np.isnan(share_columns(0, 0, "covered")["share"])


def test_coverage_is_that_of_a_loop_over_loci() -> None:
    random = np.random.default_rng(9)
    total = random.integers(0, 60, (300, 5)).astype(np.uint16)
    total[:, 0] += 1
    meth = (total * random.random((300, 5))).astype(np.uint16)
    drawn = Drawn(meth, total, np.zeros(300, np.int64), {})
    loci = np.sort(random.choice(300, 200, replace=False))
    values = random.random(200)
    rows = coverage_rows({(TRUE, "baseline"): (loci, values), ("reset", "baseline"): (loci, values)}, strata(drawn))
    seen = 0
    for row in rows:
        n = covered = 0
        for locus, value in zip(loci, values, strict=True):
            reads = [int(x) for x in total[locus] if x]
            depth, share = sum(reads) / len(reads), int(meth[locus].sum()) / sum(reads)
            property_ = {"overall": 0.0, "depth": depth, "baseline": share}[row["stratum"]]
            is_last = row["stratum_high"] in (1.0, max(r["stratum_high"] for r in rows if r["stratum"] == "depth"))
            is_in = row["stratum_low"] <= property_ and (property_ < row["stratum_high"] or is_last)
            if row["stratum"] == "overall" or is_in:
                n += 1
                covered += (1 - row["level"]) / 2 <= value <= (1 + row["level"]) / 2
        assert (row["n_loci"], row["covered"]) == (n, covered), row
        seen += 1
    # Overall, three depths and three baselines, each at three levels; single hypotheses overall.
    assert seen == 3 * 7 + 3
    for kind in ("depth", "baseline"):
        of_kind = [r for r in rows if (r["stratum"], r["level"], r["hypothesis"]) == (kind, 0.9, TRUE)]
        assert sum(row["n_loci"] for row in of_kind) == 200
        assert all(row["n_loci"] for row in of_kind)


def test_coverage_of_known_posteriors_and_of_narrow_ones() -> None:
    """Within five standard errors of nominal at every level; a 10 % narrower interval is far outside at every level."""
    theta, mean, sd = conjugate(20_000, 10)
    everything = [calibrate.Stratum("overall", 0, 0, np.ones(20_000, dtype=bool))]
    for factor in (1.0, 0.9):
        values = conditional_cdf("spread", *(np.exp(mean + z * factor * sd) for z in (-Z95, 0, Z95)), np.exp(theta))
        rows = coverage_rows({(TRUE, "spread"): (np.arange(20_000), values)}, everything)
        assert [row["level"] for row in rows] == list(LEVELS)
        for row in rows:
            error = abs(row["share"] - row["level"]) / np.sqrt(row["level"] * (1 - row["level"]) / 20_000)
            assert error < WORST if factor == 1.0 else error > WORST


def test_bins_of_lfdr_and_calls_are_those_of_a_loop() -> None:
    random = np.random.default_rng(11)
    lfdr = np.concatenate([random.random(500), [0.0, 0.05, 1.0]])
    is_null = random.random(503) < lfdr
    rows = lfdr_rows(lfdr, is_null)
    assert sum(row["n_loci"] for row in rows) == 503
    for row in rows:
        chosen = [
            i for i in range(503) if row["bin_low"] <= lfdr[i] < row["bin_high"] or lfdr[i] == row["bin_high"] == 1
        ]
        assert (row["n_loci"], row["null"]) == (len(chosen), int(is_null[chosen].sum()))
        assert row["mean_lfdr"] == pytest.approx(lfdr[chosen].mean())
    for row in fdr_rows(lfdr, 2 * lfdr, is_null):
        chosen = [i for i in range(503) if lfdr[i] <= row["nominal"]]
        false = sum(bool(is_null[i]) for i in chosen)
        assert (row["n_loci"], row["false_calls"], row["share"]) == (len(chosen), false, false / len(chosen))
        assert row["announced"] == pytest.approx(2 * lfdr[chosen].mean())
        assert row["power"] == pytest.approx((len(chosen) - false) / (503 - is_null.sum()))


def test_calls_where_there_are_none() -> None:
    (row, *_) = fdr_rows(np.ones(4), np.ones(4), np.ones(4, dtype=bool))
    assert (row["n_loci"], row["false_calls"]) == (0, 0)
    assert np.isnan([row["share"], row["announced"], row["power"]]).all()


def gaussian_evidences(number: int, seed: int) -> tuple[Array, NDArray[np.int64]]:
    """Log evidences [L, 3] of one observation, N(0, sd) under hypotheses with SDs 1, 1.2 and 1.2; and the truth."""
    random = np.random.default_rng(seed)
    hypothesis = random.integers(3, size=number)
    sd = np.array([1.0, 1.2, 1.2])
    observed = sd[hypothesis] * random.normal(size=number)
    return np.stack([norm.logpdf(observed, 0, s) for s in sd], axis=1), hypothesis


def test_bayes_factors_of_gaussians_have_mean_one() -> None:
    """Four means within four standard errors of one, false-alarm rate 3e-4; evidences 5 % too large do not pass."""
    evidence, hypothesis = gaussian_evidences(200_000, 12)
    rows = bayes_factor_rows(evidence, hypothesis, ["reset", "a", "b"], IS_NULL)
    pairs = [(row["hypothesis"], row["null"], row["drawn_from"]) for row in rows]
    assert pairs == [("a", "reset", "reset"), ("a", "reset", "a"), ("b", "reset", "reset"), ("b", "reset", "b")]
    for row in rows:
        assert abs(row["mean"] - 1) < 4 * row["standard_error"], row
        assert row["standard_error"] < 0.01
        assert 0 < row["largest_share"] < 0.001
    for shift in (np.log(1.05), -np.log(1.05)):
        wrong = evidence + shift * np.array([0, 1, 1])
        for row in bayes_factor_rows(wrong, hypothesis, ["reset", "a", "b"], IS_NULL):
            assert abs(row["mean"] - 1) > 4 * row["standard_error"], row


def test_bayes_factors_by_hand() -> None:
    evidence = np.log(np.array([[1.0, 2.0], [1.0, 6.0], [4.0, 1.0]]))
    (row,) = bayes_factor_rows(evidence, np.array([0, 0, 1]), ["null", "other"], np.array([True, False]))
    assert (row["n_loci"], row["mean"], row["largest_share"]) == pytest.approx((2, 4.0, 0.75))
    assert row["standard_error"] == pytest.approx(np.std([2, 6], ddof=1) / np.sqrt(2))


# --- drawing ---------------------------------------------------------------------------------------------------------


def related_pairs(pedigree: Pedigree) -> set[frozenset[str]]:
    related = covariance(pedigree, 1.0, 1.0) != 0
    names = pedigree.individuals
    return {frozenset((names[i], names[j])) for i in range(len(names)) for j in range(i) if related[i, j]}


@pytest.mark.parametrize("template", ["quartet", "three_generations", "half_sibs", "clones"])
def test_relabelled_individuals_are_related_to_none_of_their_family(template: str) -> None:
    pedigree = template_pedigree(template, 8)
    found = relabelled(pedigree, pedigree.individuals, seed=1)
    assert sorted(found.individuals) == sorted(pedigree.individuals)
    np.testing.assert_array_equal(found.mother, pedigree.mother)
    assert len(related_pairs(found)) == len(related_pairs(pedigree)) > 0
    assert not related_pairs(found) & related_pairs(pedigree)


def test_relabelling_leaves_the_unsampled_and_small_pedigrees() -> None:
    pedigree = template_pedigree("trio", 4)
    sampled = [name for name in pedigree.individuals if "father" not in name]
    found = relabelled(pedigree, sampled, seed=1)
    assert all(
        (one == other) == ("father" in one)
        for one, other in zip(pedigree.individuals, found.individuals, strict=True)
        if "father" in one
    )
    two = template_pedigree("trio", 2)
    assert len(related_pairs(relabelled(two, two.individuals, 1)) & related_pairs(two)) < len(related_pairs(two))
    with pytest.raises(UserError, match="one family"):
        relabelled(template_pedigree("trio", 1), ("F1_mother",), seed=1)


def drawn_with(name: str, plan: CalibrationPlan, loci: int = 4000, reads: int = 30) -> Drawn:
    total = np.full((loci, len(plan.sheet.samples)), reads, dtype=np.uint16)
    total[:, 0] = np.arange(loci) % reads
    return draw(plan, SCENARIOS[name], total)


def test_scenarios_draw_what_they_name() -> None:
    plan = make_plan()
    found = {name: drawn_with(name, plan) for name in SCENARIOS}
    model = found["model"]
    share = np.bincount(model.hypothesis, minlength=3) / 4000
    assert (np.abs(share - plan.weight) < WORST * np.sqrt(plan.weight * (1 - plan.weight) / 4000)).all()
    for name, drawn in found.items():
        assert (drawn.total[:, 0] == np.arange(4000) % 30).all()
        assert (drawn.meth <= drawn.total).all()
        assert drawn.meth.dtype == drawn.total.dtype == np.uint16
        assert drawn.meth.any(0).all()
        if name in ("overdispersed", "conversion", "pedigree"):  # the same loci otherwise
            np.testing.assert_array_equal(drawn.truth["baseline"], model.truth["baseline"])
    assert (found["null"].hypothesis == 0).all()
    assert not found["null"].truth["heritable_share"].any()
    assert (found["pedigree"].hypothesis == 0).all()
    assert set(found["pedigree"].truth) == {"baseline", "spread"}
    # Conversion: every second family, of four, has 3 % of its unmethylated reads turned.
    added = (found["conversion"].meth.astype(float) - model.meth).reshape(4000, 4, 4)[:, :, 1:].mean((0, 2)) / 30
    unmethylated = 1 - model.meth[:, 1:].mean() / 30
    np.testing.assert_allclose(added[[0, 2]], 0.03 * unmethylated, atol=0.006)
    np.testing.assert_allclose(added[[1, 3]], 0.0, atol=0.004)
    # Overdispersion: at null loci only, and there the relatives' reads scatter more.
    at = model.hypothesis == 0
    scatter = {name: found[name].meth[:, 1:].astype(float).var(1) for name in ("model", "overdispersed")}
    assert scatter["overdispersed"][at].mean() > 1.15 * scatter["model"][at].mean()
    assert scatter["overdispersed"][~at].mean() == pytest.approx(scatter["model"][~at].mean(), rel=0.05)


def test_pedigree_scenario_correlates_none_of_a_family() -> None:
    """Correlation of logits of mother and child over loci: that of the model is seen, that of the scenario is not."""
    plan = make_plan(weight=(0.01, 0.99, 0.0))
    for name in ("model", "pedigree"):
        drawn = drawn_with(name, plan, 6000, 200)
        level = logit((drawn.meth + 0.5) / (drawn.total + 1.0)) - logit(drawn.truth["baseline"])[:, None]
        family = level.reshape(6000, 4, 4)
        z = [np.corrcoef(family[:, f, 1], family[:, f, 2])[0, 1] * np.sqrt(6000) for f in range(4)]
        assert (np.abs(z) < WORST).all() if name == "pedigree" else (np.array(z) > 2 * WORST).all(), (name, z)


def test_effects_of_covariates_have_the_fitted_scale() -> None:
    pedigree = template_pedigree("quartet", 4)
    ages = tuple(str(number % 5) for number in range(len(pedigree.individuals)))
    plan = make_plan(columns={"age": ages})
    assert plan.settings.covariate_scale == {"age": 0.4}
    assert plan.settings.covariates == ("age",)


def test_null_hypothesis_needs_a_weight() -> None:
    with pytest.raises(UserError, match="without transmission"):
        make_plan(weight=(0.0, 0.5, 0.5))


def test_beta_binomial_reads_have_their_variance() -> None:
    """Var = n p (1 - p) (1 + (n - 1) rho); 200,000 draws know it to a hundredth."""
    random = np.random.default_rng(13)
    total, rho = np.full((200_000, 2), 20), np.array([[0.0, 0.2]])
    level = np.full((200_000, 2), logit(0.3))
    meth = draw_methylated(random, total, level, np.zeros(2), np.zeros(2), np.broadcast_to(rho, total.shape))
    variance = 20 * 0.3 * 0.7 * (1 + 19 * rho[0])
    np.testing.assert_allclose(meth.mean(0), 6.0, rtol=0.01)
    np.testing.assert_allclose(meth.var(0), variance, rtol=0.02)


def test_true_parameters_are_those_of_the_hypothesis() -> None:
    declared = {
        "reset": {},
        "mendelian": DECLARED["mendelian"],
        "maternal": DECLARED["maternal"],
        "epigenetic": {"heritable_share": "free", "maternal": "tau", "paternal": "tau"},
        "mixed": {"heritable_share": 0.5, "maternal": "tau", "paternal": 0.6},
    }
    drawn = {
        "baseline": np.full(5, 0.2),
        "spread": np.full(5, 1.5),
        "heritable_share": np.array([0, 0.8, 0.8, 0.8, 0.5]),
        "transmissibility": np.array([0, 1, 0.4, 0.4, 0.4]),
    }
    hypotheses = parse_hypotheses(declared)
    found = true_parameters(hypotheses, np.arange(5), drawn)
    assert list(found) == list(PARAMETERS)
    np.testing.assert_allclose(found["transmissibility"], [0, 1, 0.4, 0.4, 0.6])
    np.testing.assert_allclose(found["slope"], [0, 0.8, 0.16, 0.32, 0.25])
    free = {h.name: [name for name in PARAMETERS if is_free(h, name)] for h in hypotheses}
    assert free["reset"] == ["baseline", "spread"]
    assert free["mendelian"] == ["baseline", "spread", "heritable_share", "slope"]
    assert free["maternal"] == free["epigenetic"] == list(PARAMETERS)
    assert free["mixed"] == ["baseline", "spread", "transmissibility", "slope"]


# --- the whole -------------------------------------------------------------------------------------------------------


def pretended_evidence(meth: Array, total: Array, loci: NDArray[np.int64]) -> list[HypothesisEvidence]:
    """Quantiles and evidences that depend on the locus alone, to follow them through the tables."""
    number = len(loci)
    fixed = np.zeros((number, len(PARAMETERS)))
    found = []
    for h in range(3):
        middle = np.full_like(fixed, 0.5) + 1e-4 * loci[:, None] + 0.01 * h
        values = dict.fromkeys(HypothesisEvidence._fields, np.zeros(number))
        values |= {"log_evidence": -0.1 * h * (loci % 7), "mean": middle}
        values |= {"q05": middle - 0.2, "q50": middle, "q95": middle + 0.2}
        found.append(HypothesisEvidence(**values))
    return found


def test_loci_are_judged_in_order_whatever_the_chunks() -> None:
    plan = make_plan()
    drawn = drawn_with("model", plan, 50)
    *steps, whole = judge(plan, drawn, pretended_evidence, 1000)
    assert steps == [50]
    *steps, pieces = judge(plan, drawn, pretended_evidence, 8)
    assert steps == [8, 8, 8, 8, 8, 8, 2]
    assert isinstance(whole, Judged)
    assert isinstance(pieces, Judged)
    np.testing.assert_array_equal(whole.log_evidence, pieces.log_evidence)
    np.testing.assert_array_equal(whole.log_evidence[:, 2], -0.2 * (np.arange(50) % 7))
    for name in PARAMETERS:
        for offset, found in ((-0.2, "low"), (0.0, "middle"), (0.2, "high")):
            columns = [getattr(judged, found)[name] for judged in (whole, pieces)]
            np.testing.assert_array_equal(*columns)
            np.testing.assert_allclose(columns[0][:, 1], 0.51 + offset + 1e-4 * np.arange(50))


def test_tables_of_every_scenario_have_the_columns_of_the_schema_and_figures() -> None:
    plan = make_plan()
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in ("null", "pedigree"):
        drawn = drawn_with(name, plan, 300)
        *_, judged = judge(plan, drawn, pretended_evidence, 300)
        assert isinstance(judged, Judged)
        for table, more in tables(plan, judged, name, COMPARISON).items():
            rows.setdefault(table, []).extend(more)
    assert {f"calibration_{table}" for table in rows} == set(CALIBRATE_TABLES)
    for table, found in rows.items():
        columns = CALIBRATE_TABLES[f"calibration_{table}"]
        assert all(list(row) and set(row) == {column.name for column in columns} for row in found)
        conform(pa.Table.from_pylist(found), arrow_schema(columns))
        assert {row["scenario"] for row in found} == {"null", "pedigree"}
    weights = [row for row in rows["weights"] if row["scenario"] == "null"]
    assert sum(row["drawn"] for row in weights) == pytest.approx(1)
    assert sum(row["weight"] for row in weights) == pytest.approx(1)
    # Averaged over loci, probabilities at the estimated weights are near these weights; at the given ones they are not.
    for kind in ("given", "estimated"):
        bins = [row for row in rows["lfdr"] if (row["scenario"], row["weights"]) == ("null", kind)]
        mean_lfdr = sum(row["mean_lfdr"] * row["n_loci"] for row in bins) / 300
        assert (mean_lfdr == pytest.approx(weights[0]["weight"], abs=0.02)) == (kind == "estimated")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = dict(calibration_figures(rows))
        for figure in figures.values():
            picture = io.BytesIO()
            figure.savefig(picture, format="png", dpi=40)
            assert picture.getvalue().startswith(b"\x89PNG")
    names = {"coverage", "coverage_averaged", "lfdr", "fdr", "bayes_factors", "weights", "sbc_null", "sbc_pedigree"}
    assert set(figures) == names
