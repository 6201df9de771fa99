"""Misfit p-values: uniform over loci of the model, low where planted data do not follow it; what is refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, logsumexp
from scipy.stats import binom, kstest

from epivi.base.errors import UserError
from epivi.discovery.columns import DISCOVERY_TABLES
from epivi.discovery.misfit import (
    SMALLEST_USUAL,
    CountStatistics,
    Usual,
    count_statistics,
    histogram,
    misfit_columns,
    read_usual,
    usual_rows,
    usual_statistic,
)
from epivi.tables.parquet import Provenance, write_table

Array = NDArray[np.float64]
SAMPLES = 14
SPREADS = (0.3, 0.7)  # of the two hypotheses
WEIGHT = np.array([0.6, 0.4])


def drawn(loci: int, seed: int) -> tuple[Array, NDArray[np.int64], np.random.Generator]:
    """Logits [L, S] of the model, and reads whose mean differs between loci."""
    random = np.random.default_rng(seed)
    spread = np.array(SPREADS)[(random.random(loci) > WEIGHT[0]).astype(int)]
    baseline = np.where(random.random(loci) < 0.5, -1.5, 1.5) + random.normal(0, 0.8, loci)
    total = random.poisson(random.choice([8, 15, 30], loci)[:, None], (loci, SAMPLES))
    return baseline[:, None] + spread[:, None] * random.normal(size=total.shape), total, random


def log_evidence(meth: NDArray[np.int64], total: NDArray[np.int64]) -> Array:
    """Of both hypotheses by Gauss-Hermite quadrature over each individual's and the common level, [L, 2]."""
    node, weight = np.polynomial.hermite_e.hermegauss(9)
    log_weight = np.log(weight / weight.sum())
    of_baseline = np.concatenate([-1.5 + 0.8 * node, 1.5 + 0.8 * node])
    log_prior = np.concatenate([log_weight, log_weight]) + np.log(0.5)
    found = []
    for spread in SPREADS:
        level = expit(of_baseline[:, None] + spread * node)  # [B, N]
        own = np.stack(
            [
                meth[..., None] * np.log(levels) + (total - meth)[..., None] * np.log1p(-levels) + log_weight
                for levels in level
            ]
        )
        found.append(logsumexp(logsumexp(own, axis=3).sum(2) + log_prior[:, None], axis=0))
    return np.stack(found, axis=1)


def statistics(meth: NDArray[np.int64], total: NDArray[np.int64]) -> CountStatistics:
    return count_statistics(meth.astype(np.uint16), total.astype(np.uint16))


@cache
def usual(loci: int) -> Usual:
    logit, reads, random = drawn(loci, 1)
    counts = random.binomial(reads, expit(logit))
    return usual_statistic(log_evidence(counts, reads), WEIGHT, statistics(counts, reads))


def pvalues(meth: NDArray[np.int64], total: NDArray[np.int64], loci: int = 1200) -> Array:
    return usual(loci).pvalues(log_evidence(meth, total), statistics(meth, total))


def test_counts_of_the_model_have_uniform_pvalues() -> None:
    """False alarm rate 0.001; 8 % too many small ones at 5 % would be seen. Also among high and low levels alone."""
    logit, total, random = drawn(1200, 2)
    meth = random.binomial(total, expit(logit))
    found = pvalues(meth, total)
    share = meth.sum(1) / total.sum(1)
    for part in (share < 0.3, share > 0.7, np.ones(len(share), bool)):
        assert kstest(found[part], "uniform").pvalue > 0.001
        assert (found[part] <= 0.05).sum() <= binom.ppf(0.999, part.sum(), 0.05)
    assert (found <= SMALLEST_USUAL).sum() <= binom.ppf(0.999, len(found), 2 * SMALLEST_USUAL)


def test_planted_misfit_is_found() -> None:
    """Power at 1 %; a tenth of it would be chance. Levels by genotype, one contrary sample, beta-binomial reads."""
    logit, total, random = drawn(300, 3)
    genotype = random.binomial(2, 0.3, logit.shape)
    variant = random.binomial(total, expit(logit) * (1 - genotype / 2))
    contrary = logit.copy()
    contrary[:, 0] *= -1
    level = expit(logit)
    overdispersed = random.binomial(total, random.beta(level * 4, (1 - level) * 4))
    high = np.abs(logit.mean(1)) > 1
    methylated = logit.mean(1) > 0.5
    assert (pvalues(variant, total)[methylated] <= 0.01).mean() > 0.5
    assert (pvalues(random.binomial(total, expit(contrary)), total)[high] <= 0.01).mean() > 0.4
    assert (pvalues(overdispersed, total) <= 0.01).mean() > 0.6
    assert (pvalues(random.binomial(total, level), total) <= 0.01).mean() < 0.05


def test_few_drawn_loci_do_not_alarm_by_themselves() -> None:
    """The regression has 14 predictors: of 60 drawn loci the residuals would be a seventh too small."""
    logit, total, random = drawn(1000, 4)
    found = pvalues(random.binomial(total, expit(logit)), total, loci=60)
    assert (found <= 0.05).mean() < 0.1
    assert found.min() >= 1 / 61


def test_loci_without_reads_have_no_pvalue() -> None:
    logit, total, random = drawn(5, 5)
    total[2] = 0
    total[3, 1:] = 0
    found = pvalues(random.binomial(total, expit(logit)), total, 200)
    assert np.isnan(found).tolist() == [False, False, True, False, False]
    columns = misfit_columns(None, np.zeros((5, 2)), statistics(total, total))
    assert np.isnan(columns["misfit_pvalue"]).all()
    assert not columns["flag_misfit"].any()


def test_histogram_counts_every_pvalue() -> None:
    counts = histogram(np.array([0.0, 0.049, 0.051, 1.0, np.nan]))
    assert counts.tolist() == [2, 1, *[0] * 17, 1]


def test_file_of_drawn_loci(tmp_path: Path) -> None:
    logit, total, random = drawn(100, 6)
    meth = random.binomial(total, expit(logit))
    found, counts, path = log_evidence(meth, total), statistics(meth, total), tmp_path / "usual_evidence.parquet"
    columns = DISCOVERY_TABLES["usual_evidence"]
    write_table(usual_rows(["a", "b"], found, counts), path, columns, Provenance("usual_evidence", 1, "", ""))
    direct, read = usual_statistic(found, WEIGHT, counts), read_usual(path, ["a", "b"], WEIGHT)
    np.testing.assert_allclose(read.residuals, direct.residuals)
    with pytest.raises(UserError, match="is of other hypotheses than a, c; run epivi controls again"):
        read_usual(path, ["a", "c"], WEIGHT)
