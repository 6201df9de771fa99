"""Declarations of the family `epimutation` as data, its priors, and the table of posteriors."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from state_cases import DECLARED

from epivi.discovery.probabilities import QvalueTable
from epivi.families.epimutation.classes import weighted_quantile
from epivi.families.epimutation.columns import EPIMUTATION_PARAMETERS
from epivi.families.epimutation.hypotheses import LOG_SIZE_SD, EpimutationPriors, parse_epimutation_hypotheses
from epivi.families.epimutation.posterior import columns, table
from epivi.loci.loci_file import LocusBlock
from epivi.loci.store import LocusSpan
from epivi.tables.columns import EVIDENCE_GOAL


def test_free_parameters_are_those_that_a_declaration_leaves_open() -> None:
    found = {hypothesis.name: hypothesis.parameters for hypothesis in parse_epimutation_hypotheses(DECLARED)}
    assert found == {
        "stable": (),
        "neutral": (),
        "labile": ("logit_gain", "logit_loss"),
        "selection": ("log_fitness",),
        "kept": ("log_size",),
        "given": ("logit_gain", "logit_loss"),
    }


def test_priors_stand_around_what_the_class_has() -> None:
    priors = EpimutationPriors(rate_sd=1.5, fitness_sd=0.5)
    assert priors.prior("logit_gain", -4.0) == (-4.0, 1.5)
    assert priors.prior("log_fitness", -4.0) == (0.0, 0.5)
    assert priors.prior("log_size", -4.0) == (math.log(0.5), LOG_SIZE_SD)


def test_quantiles_of_weighted_draws_are_those_of_draws_repeated() -> None:
    random = np.random.default_rng(2)
    values, copies = random.normal(size=400), random.integers(0, 5, 400)
    repeated = np.repeat(values, copies)
    for level in (0.1, 0.5, 0.9):
        found = weighted_quantile(values, copies / copies.sum(), level)
        assert found == pytest.approx(np.quantile(repeated, level), abs=0.02)


def test_the_posterior_table_averages_the_rows_of_evidence() -> None:
    """Two loci and two hypotheses: probabilities, means and flags by hand."""
    hypotheses, weight = ("stable", "labile"), np.array([0.25, 0.75])
    log_evidence = np.array([[-10.0, -9.0], [-20.0, -26.0]])
    rows: dict[str, object] = {"log_evidence": log_evidence.ravel()}
    rows["log_evidence_error"] = [0.0, 0.0, 0.0, 2 * EVIDENCE_GOAL]
    rows["class"] = pa.array(["CG:TE", "CG:TE", "CG:gene", "CG:gene"])
    for k, parameter in enumerate(EPIMUTATION_PARAMETERS):
        for statistic, value in (("mean", 0.3), ("q05", 0.1), ("q50", 0.3), ("q95", 0.6)):
            rows[f"{parameter}_{statistic}"] = [value, value + 0.01 * (k + 1)] * 2
    pos0, code = np.array([5, 9], dtype=np.int32), np.zeros(2, dtype=np.int8)
    total = np.array([[4, 0, 30], [1, 1, 1]], dtype=np.uint16)
    block = LocusBlock("chr1", 0, pos0, pos0 + 2, code, code, total // 2, total)
    span = LocusSpan((block,), *block[1:])
    steps = QvalueTable(np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.array([0, 2]), np.full(2, np.nan))
    is_null = np.array([True, False])
    found = table(span, pa.RecordBatch.from_pydict(rows), hypotheses, is_null, weight[None], steps, 0.05)
    # Whether anything may be called at all is for the command to say, which knows the comparison.
    assert {column.name for column in columns(hypotheses, ())} - found.keys() == {"flag_cannot_tell"}
    odds = weight * np.exp(log_evidence - log_evidence.max(1, keepdims=True))
    probability = odds / odds.sum(1, keepdims=True)
    np.testing.assert_allclose(found["prob_labile"], probability[:, 1])
    np.testing.assert_allclose(found["lfdr"], probability[:, 0])
    assert found["best"].tolist() == ["labile", "stable"]
    assert found["class"].to_pylist() == ["CG:TE", "CG:gene"]
    assert found["covered_samples"].tolist() == [2, 3]
    assert found["coverage_reads"].tolist() == [34, 3]
    assert found["flag_evidence"].tolist() == [False, True]
    assert found["flag_low_coverage"].tolist() == [False, True]
    first = next(iter(EPIMUTATION_PARAMETERS))
    np.testing.assert_allclose(found[f"{first}_mean"], probability @ [0.3, 0.31])
