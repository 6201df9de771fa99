"""The per-locus table: quantiles of mixtures by root finding on their distribution, and every flag by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm

from epivi.discovery.average import averaged_effect, averaged_quantile
from epivi.discovery.probabilities import QvalueTable, kinds
from epivi.families.transmission import posterior
from epivi.families.transmission.columns import (
    PARAMETERS,
    components_in,
    effect_parameters,
    effects_in,
    evidence_columns,
    posterior_columns,
)
from epivi.families.transmission.posterior import EvidenceColumns, posterior_table
from epivi.field.covariate import Covariate
from epivi.loci.loci_file import LocusBlock
from epivi.loci.store import LocusSpan
from epivi.tables.columns import EVIDENCE_GOAL, arrow_schema, schema_columns

Array = NDArray[np.float64]
Z95 = norm.ppf(0.95)
# What the command adds.
OF_COMMAND = {"flag_cannot_tell", "misfit_pvalue", "flag_misfit"}
HYPOTHESES = ("reset", "mendelian", "epigenetic")


# --- quantiles averaged over hypotheses ------------------------------------------------------------------------------


def gaussians(mean: Array, sd: Array, backward: Any = expit) -> tuple[Array, Array, Array]:
    """5, 50 and 95 % quantiles of parameters that are Gaussian on the unconstrained scale."""
    return backward(mean - Z95 * sd), backward(mean), backward(mean + Z95 * sd)


@pytest.mark.parametrize("level", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("parameter", ["baseline", "spread"])
def test_mixtures_of_gaussians(parameter: str, level: float) -> None:
    """Where every hypothesis's posterior is Gaussian on the unconstrained scale the quantile is exact."""
    forward, backward = (np.log, np.exp) if parameter == "spread" else (logit, expit)
    random = np.random.default_rng(1)
    mean, sd = random.normal(0, 1.5, (50, 3)), random.uniform(0.1, 1.5, (50, 3))
    probability = random.dirichlet((1, 1, 1), 50)
    probability[:5] = np.eye(3)[[0, 1, 2, 0, 1]]
    found = averaged_quantile(parameter, probability, *gaussians(mean, sd, backward), level)
    for locus in range(50):
        p, m, s = probability[locus], mean[locus], sd[locus]
        exact = brentq(lambda x, p=p, m=m, s=s: p @ norm.cdf(x, m, s) - level, -20, 20, xtol=1e-12)
        assert forward(found[locus]) == pytest.approx(exact, abs=1e-5)


def test_skewed_posteriors_keep_their_quantiles() -> None:
    """A single hypothesis gives its own 5, 50 and 95 % quantiles back, however skewed."""
    low, middle, high = np.array([[0.2, 0.01]]), np.array([[0.25, 0.02]]), np.array([[0.6, 0.9]])
    for level, expected in ((0.05, low), (0.5, middle), (0.95, high)):
        for h in range(2):
            only = np.eye(2)[h][None]
            found = averaged_quantile("heritable_share", only, low, middle, high, level)
            assert found[0] == pytest.approx(expected[0, h], rel=1e-5)


def atom_and_gaussian(atom: float, mean: float, sd: float) -> tuple[Array, Array, Array]:
    """Columns of two hypotheses: a fixed parameter and a free one."""
    return tuple(np.array([[atom, float(q)]]) for q in gaussians(np.array(mean), np.array(sd)))  # type: ignore[return-value]


@pytest.mark.parametrize("weight", [0.02, 0.3, 0.7, 0.97])
def test_atom_at_zero(weight: float) -> None:
    """What nothing transmits is exactly 0: quantiles up to its probability are 0, the rest those of the others."""
    columns = atom_and_gaussian(0.0, 0.3, 0.8)
    probability = np.array([[weight, 1 - weight]])
    for level in (0.05, 0.5, 0.95):
        found = averaged_quantile("heritable_share", probability, *columns, level)[0]
        if level < weight:
            assert found == 0.0
        else:
            exact = expit(norm.ppf((level - weight) / (1 - weight), 0.3, 0.8))
            assert found == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("weight", [0.02, 0.3, 0.7, 0.97])
def test_atom_at_one(weight: float) -> None:
    columns = atom_and_gaussian(1.0, -0.5, 0.6)
    probability = np.array([[weight, 1 - weight]])
    for level in (0.05, 0.5, 0.95):
        found = averaged_quantile("transmissibility", probability, *columns, level)[0]
        if level > 1 - weight:
            assert found == 1.0
        else:
            assert found == pytest.approx(expit(norm.ppf(level / (1 - weight), -0.5, 0.6)), abs=1e-6)


def test_atom_in_the_middle() -> None:
    """A fixed share of 0.4: quantiles that fall on it are it."""
    columns = atom_and_gaussian(0.4, 1.5, 0.3)
    for level in (0.05, 0.5):
        found = averaged_quantile("heritable_share", np.array([[0.8, 0.2]]), *columns, level)[0]
        assert found == pytest.approx(0.4, abs=1e-6)
    beyond = averaged_quantile("heritable_share", np.array([[0.8, 0.2]]), *columns, 0.95)[0]
    assert beyond == pytest.approx(expit(norm.ppf(0.75, 1.5, 0.3)), abs=1e-4)


def test_only_atoms() -> None:
    """reset and mendelian alone: transmissibility is 0 or 1."""
    low = middle = high = np.array([[0.0, 1.0]])
    for weight, level, expected in ((0.9, 0.05, 0.0), (0.9, 0.95, 1.0), (0.99, 0.95, 0.0), (0.01, 0.05, 1.0)):
        found = averaged_quantile("transmissibility", np.array([[weight, 1 - weight]]), low, middle, high, level)
        assert found[0] == expected


def test_effect_of_hypotheses_that_have_it_and_one_that_lacks_it() -> None:
    """An atom at 0 and a Gaussian, in any units: exactly 0 on the atom, and the Gaussian's own quantile beyond."""
    for unit in (1e-7, 1.0, 1e7):
        for sign in (1.0, -1.0):
            mean, sd, level = sign * 0.8 * unit, 0.3 * unit, 0.05 if sign > 0 else 0.95
            columns = [np.array([[0.0, x]]) for x in (mean - Z95 * sd, mean, mean + Z95 * sd)]
            for weight, is_atom in ((0.02, False), (0.3, True), (0.97, True)):
                found = averaged_effect(np.array([[weight, 1 - weight]]), *columns, level)[0]
                below = norm.cdf(0, mean, sd)  # of the Gaussian, on the other side of the atom where sign > 0
                mass_below = (1 - weight) * below
                if is_atom:
                    assert mass_below < level < mass_below + weight
                    assert found == 0.0
                else:
                    rest = level / 0.98 if level < mass_below else (level - weight) / 0.98
                    assert found == pytest.approx(norm.ppf(rest, mean, sd), abs=1e-5 * unit)
            nothing = np.zeros((1, 2))
            assert averaged_effect(np.array([[0.5, 0.5]]), nothing, nothing, nothing, level)[0] == 0.0


# --- the table -------------------------------------------------------------------------------------------------------


def make_span(total: list[list[int]], meth: list[list[int]] | None = None) -> LocusSpan:
    counts = np.array(total, dtype=np.uint16)
    loci = len(counts)
    block = LocusBlock(
        contig="chr1",
        start=0,
        pos0=np.arange(100, 100 + 10 * loci, 10, dtype=np.int32),
        end0=np.arange(102, 102 + 10 * loci, 10, dtype=np.int32),
        strand_code=np.zeros(loci, dtype=np.int8),
        context_code=np.zeros(loci, dtype=np.int8),
        meth=np.array(meth, dtype=np.uint16) if meth else counts // 2,
        total=counts,
    )
    return LocusSpan((block,), *block[1:])


def make_evidence(loci: int, **changes: Array) -> EvidenceColumns:
    """Unremarkable evidence: every parameter with a posterior of its own under every hypothesis."""
    random = np.random.default_rng(2)
    statistics = {}
    for parameter in PARAMETERS:
        backward = np.exp if parameter == "spread" else expit
        mean, sd = random.normal(0, 1, (loci, 3)), random.uniform(0.1, 0.5, (loci, 3))
        low, middle, high = gaussians(mean, sd, backward)
        statistics |= {f"{parameter}_mean": middle, f"{parameter}_q05": low}
        statistics |= {f"{parameter}_q50": middle, f"{parameter}_q95": high}
    values = {
        "log_evidence": random.normal(-40, 1, (loci, 3)),
        "log_evidence_se": np.full((loci, 3), 0.02),
        "khat": np.full((loci, 3), np.nan),
        "inner_error": np.full((loci, 3), 0.001),
        "statistics": statistics,
    }
    return EvidenceColumns(**(values | changes))  # type: ignore[arg-type]


CONTROL = np.array([0.001, 0.3, 1.0])
TABLE = QvalueTable(np.array([0.1, 0.5, 1.0]), np.array([0.01, 0.2, 0.6]), np.array([5, 20, 100]), CONTROL)
WEIGHT = np.array([0.6, 0.3, 0.1])
NULL = np.array([True, False, False])


def make_table(span: LocusSpan, evidence: EvidenceColumns, is_null: NDArray[np.bool_] = NULL) -> dict[str, Any]:
    return posterior_table(span, evidence, HYPOTHESES, is_null, WEIGHT[None], TABLE, 0.05)


def test_columns_are_those_of_the_schema() -> None:
    table = make_table(make_span([[10, 10], [10, 10]]), make_evidence(2))
    # Whether the cohort can tell is for the command to add: it is the same at every locus.
    names = [column.name for column in posterior_columns(HYPOTHESES) if column.name not in OF_COMMAND]
    assert sorted(table) == sorted(names)  # the writer puts them in the order of the schema
    assert all(len(values) == 2 for values in table.values())


def test_values() -> None:
    """Coordinates, coverage, probabilities by Bayes' rule, averages weighted by them."""
    block = make_span([[10, 0, 7], [4, 5, 65_000], [3, 3, 3]])
    evidence = make_evidence(3)
    table = make_table(block, evidence)
    np.testing.assert_array_equal(table["pos"], [100, 110, 120])
    np.testing.assert_array_equal(table["end"], [102, 112, 122])
    assert table["strand"].tolist() == ["+"] * 3
    assert table["context"].tolist() == ["CG"] * 3
    np.testing.assert_array_equal(table["covered_samples"], [2, 3, 3])
    np.testing.assert_array_equal(table["coverage_reads"], [17, 65_009, 9])
    joint = np.exp(evidence.log_evidence + 40) * WEIGHT
    probability = joint / joint.sum(1, keepdims=True)
    for h, name in enumerate(HYPOTHESES):
        np.testing.assert_allclose(table[f"prob_{name}"], probability[:, h])
        np.testing.assert_array_equal(table[f"log_evidence_{name}"], evidence.log_evidence[:, h])
    np.testing.assert_allclose(table["lfdr"], probability[:, 0])
    np.testing.assert_allclose(table["transmitted"], 1 - probability[:, 0])
    expected = kinds(probability, HYPOTHESES, np.array([True, False, False]))
    assert table["kind_set"].tolist() == expected.kind_set.tolist()
    assert table["best"].tolist() == expected.best.tolist()
    steps = [0 if value <= 0.1 else (1 if value <= 0.5 else 2) for value in probability[:, 0]]
    np.testing.assert_allclose(table["qvalue"], TABLE.qvalue[steps])
    np.testing.assert_allclose(table["control_qvalue"], CONTROL[steps])
    assert table["called"].tolist() == [step == 0 for step in steps]
    for parameter in PARAMETERS:
        statistics = {s: evidence.statistics[f"{parameter}_{s}"] for s in ("mean", "q05", "q50", "q95")}
        np.testing.assert_allclose(table[f"{parameter}_mean"], (probability * statistics["mean"]).sum(1))
        for statistic, level in (("q05", 0.05), ("q95", 0.95)):
            expected = averaged_quantile(
                parameter, probability, statistics["q05"], statistics["q50"], statistics["q95"], level
            )
            np.testing.assert_array_equal(table[f"{parameter}_{statistic}"], expected)
        assert (table[f"{parameter}_q05"] < table[f"{parameter}_q95"]).all()
        for statistic in ("mean", "q05", "q95"):
            for h, name in enumerate(HYPOTHESES):
                np.testing.assert_array_equal(table[f"{parameter}_{statistic}_{name}"], statistics[statistic][:, h])


def test_effects_follow_the_parameters() -> None:
    """Averaged over the hypotheses, those without the covariate at 0, and not repeated for each hypothesis."""
    covariates = (Covariate("treatment", "10 mg/kg", "none"), Covariate("age", scale=3.0))
    effects = effect_parameters(covariates)
    evidence = make_evidence(2)
    statistics = dict(evidence.statistics)
    for name, value in zip(effects, (0.8, -0.1), strict=True):
        for statistic, step in (("mean", 0.0), ("q05", -0.3), ("q50", 0.0), ("q95", 0.3)):
            statistics[f"{name}_{statistic}"] = np.array([[0.0, value + step, value + step]] * 2)
    table = make_table(make_span([[10, 10]] * 2), evidence._replace(statistics=statistics, effects=tuple(effects)))
    names = [column.name for column in posterior_columns(HYPOTHESES, (), effects) if column.name not in OF_COMMAND]
    assert sorted(table) == sorted(names)  # the writer puts them in the order of the schema
    assert [name for name in names if name.startswith("effect_")] == [
        *(f"effect_treatment_10 mg/kg_{statistic}" for statistic in ("mean", "q05", "q95")),
        *(f"effect_age_{statistic}" for statistic in ("mean", "q05", "q95")),
    ]
    np.testing.assert_allclose(table["effect_age_mean"], -0.1 * (1 - table["prob_reset"]))
    assert (table["effect_treatment_10 mg/kg_q05"] == 0).all()
    assert (table["effect_treatment_10 mg/kg_q95"] > 0.8).all()


def test_effects_in_a_table_of_evidence() -> None:
    """Names, units and meaning are found in the columns again, also where a covariate is named as a statistic."""
    covariates = (
        *(Covariate("dose_mean", scale=2.0), Covariate("site", "a: b", "a_mean"), Covariate("mean", "x", "y")),
        Covariate("heritable_share"),
    )
    effects = effect_parameters(covariates)
    columns = schema_columns(arrow_schema(evidence_columns(("COMPONENT",), covariates)))
    assert effects_in(columns) == effects
    assert components_in(columns) == ("COMPONENT",)
    assert effects["effect_site_a: b"][2] == "logit of methylation where site is a: b, less that where it is a_mean"
    assert effects_in(evidence_columns(("effect_x",))) == {}


def test_several_hypotheses_count_as_null() -> None:
    table = make_table(make_span([[10, 10]]), make_evidence(1), np.array([True, True, False]))
    np.testing.assert_allclose(table["lfdr"], table["prob_reset"] + table["prob_mendelian"])


def test_nothing_is_flagged_without_a_reason() -> None:
    table = make_table(make_span([[10, 10]]), make_evidence(1))
    assert not any(table[flag][0] for flag in table if flag.startswith("flag_"))


def _one_odd(usual: float, odd: float) -> Array:
    """A value in which the second hypothesis of the second of three loci differs."""
    values = np.full((3, 3), usual)
    values[1, 1] = odd
    return values


@pytest.mark.parametrize(
    ("flag", "column", "usual", "below", "above"),
    [
        ("flag_mc_error", "log_evidence_se", 0.02, posterior.LARGEST_STANDARD_ERROR - 0.001, 0.2),
        ("flag_khat", "khat", np.nan, posterior.LARGEST_KHAT - 0.01, 0.8),
        ("flag_khat", "khat", 0.1, posterior.LARGEST_KHAT - 0.01, np.inf),
        ("flag_evidence", "inner_error", 0.001, EVIDENCE_GOAL - 0.001, EVIDENCE_GOAL + 0.001),
        ("flag_evidence", "inner_error", 0.001, 0.0, np.inf),
        ("flag_evidence", "inner_error", 0.001, 0.0, np.nan),
    ],
)
def test_flags_of_accuracy(flag: str, column: str, usual: float, below: float, above: float) -> None:
    """Each flag rises at the locus where one hypothesis crosses the limit, and no other flag with it."""
    block = make_span([[10, 10]] * 3)
    table = make_table(block, make_evidence(3, **{column: _one_odd(usual, below)}))
    assert table[flag].tolist() == [False, False, False]
    table = make_table(block, make_evidence(3, **{column: _one_odd(usual, above)}))
    assert table[flag].tolist() == [False, True, False]
    others = [name for name in table if name.startswith("flag_") and name != flag]
    assert not any(table[name].any() for name in others)


def test_low_coverage_counts_covered_samples_only() -> None:
    """Fewer than five reads per covered sample; missing samples do not count."""
    table = make_table(make_span([[5, 5, 5], [5, 5, 4], [0, 0, 5], [0, 0, 4], [100, 1, 1]]), make_evidence(5))
    assert table["flag_low_coverage"].tolist() == [False, True, False, True, False]
