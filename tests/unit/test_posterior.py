"""Model averaging against a mixture that is sampled, and the flags."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from epivi.compare import QvalueTable
from epivi.posterior import (
    LARGEST_CORRECTION_DIFFERENCE,
    EvidenceColumns,
    averaged_quantile,
    posterior_table,
)
from epivi.schema import PARAMETERS, posterior_columns
from epivi.store import LocusBlock

NAMES = ("reset", "mendelian", "epigenetic")
IS_NULL = np.array([True, False, False])


def quantiles_of(samples: np.ndarray) -> list[np.ndarray]:
    return list(np.quantile(samples, [0.05, 0.5, 0.95], axis=0))


@pytest.mark.parametrize("level", [0.05, 0.95])
@pytest.mark.parametrize("parameter", ["heritable_share", "spread"])
def test_averaged_quantile_is_the_mixtures(parameter: str, level: float) -> None:
    """Two Gaussians on the unconstrained scale, mixed 0.7 to 0.3, against 2e6 draws (error of a quantile < 0.003)."""
    random = np.random.default_rng(1)
    backward = np.exp if parameter == "spread" else expit
    one, other = (backward(random.normal(m, s, 1_000_000)) for m, s in ((-1.0, 0.5), (0.8, 0.9)))
    mixture = np.where(random.random(1_000_000) < 0.7, one, other)
    low, middle, high = (np.array([[a, b]]) for a, b in zip(quantiles_of(one), quantiles_of(other), strict=True))
    found = averaged_quantile(parameter, np.array([[0.7, 0.3]]), low, middle, high, level)
    assert found[0] == pytest.approx(np.quantile(mixture, level), rel=0.01)


def test_atoms_are_kept() -> None:
    """A mass at 0 (reset) and at 1 (mendelian) decides a quantile as soon as it is large enough."""
    low, middle, high = (np.tile([0.0, 1.0, q], (3, 1)) for q in (0.2, 0.5, 0.8))
    probability = np.array([[0.04, 0.04, 0.92], [0.2, 0.0, 0.8], [0.0, 0.3, 0.7]])
    lower = averaged_quantile("transmissibility", probability, low, middle, high, 0.05)
    upper = averaged_quantile("transmissibility", probability, low, middle, high, 0.95)
    assert lower[1] == 0.0
    assert upper[2] == 1.0
    assert 0.0 < lower[0] < 0.2 < 0.8 < upper[0] < 1.0


def shard(loci: int) -> EvidenceColumns:
    random = np.random.default_rng(2)
    statistics = {}
    for parameter in PARAMETERS:
        low = random.uniform(0.1, 0.3, (loci, 3))
        values = {"q05": low, "q50": low + 0.2, "q95": low + 0.4, "mean": low + 0.21}
        statistics |= {f"{parameter}_{name}": value for name, value in values.items()}
    return EvidenceColumns(
        random.normal(-50, 2, (loci, 3)),
        np.full((loci, 3), 0.01),
        np.full((loci, 3), np.nan),
        np.full((loci, 3), 0.4),
        statistics,
    )


def block(loci: int, reads: int = 10) -> LocusBlock:
    position = np.arange(loci, dtype=np.int32)
    code = np.zeros(loci, dtype=np.int8)
    total = np.full((loci, 4), reads, dtype=np.uint16)
    total[:, 3] = 0
    return LocusBlock("chr1", 0, position, position + 2, code, code, total // 2, total)


TABLE = QvalueTable(np.array([0.5, 1.0]), np.array([0.2, 0.4]), np.array([1, 2]))


def test_columns_are_those_of_the_schema_and_means_are_weighted() -> None:
    evidence = shard(6)
    weight = np.array([0.5, 0.3, 0.2])
    columns = posterior_table(block(6), evidence, NAMES, IS_NULL, weight, TABLE)
    assert list(columns) == [column.name for column in posterior_columns(NAMES)]
    probability = np.stack([columns[f"prob_{name}"] for name in NAMES], axis=1)
    np.testing.assert_allclose(probability.sum(1), 1.0)
    odds = np.exp(evidence.log_evidence[:, 1] - evidence.log_evidence[:, 0]) * 0.3 / 0.5
    np.testing.assert_allclose(probability[:, 1] / probability[:, 0], odds)
    np.testing.assert_allclose(columns["lfdr"], probability[:, 0])
    np.testing.assert_allclose(columns["slope_mean"], (probability * evidence.statistics["slope_mean"]).sum(1))
    assert (columns["covered_samples"] == 3).all()
    assert (columns["coverage_reads"] == 30).all()


def test_flags() -> None:
    evidence = shard(4)
    evidence.laplace_correction[0, 1] += 2 * LARGEST_CORRECTION_DIFFERENCE
    evidence.laplace_correction[3] = 1000.0  # no hypothesis found a mode
    evidence.khat[1, 2] = 0.9
    evidence.log_evidence_se[2, 0] = 0.5
    columns = posterior_table(block(4), evidence, NAMES, IS_NULL, np.full(3, 1 / 3), TABLE)
    assert columns["flag_evidence"].tolist() == [True, False, False, True]
    assert columns["flag_khat"].tolist() == [False, True, False, False]
    assert columns["flag_mc_error"].tolist() == [False, False, True, False]
    assert not columns["flag_low_coverage"].any()
    few = posterior_table(block(4, reads=2), evidence, NAMES, IS_NULL, np.full(3, 1 / 3), TABLE)
    assert few["flag_low_coverage"].all()
