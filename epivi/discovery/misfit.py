"""Misfit at a locus: its log evidence among those that the fitted model gives to counts drawn from itself.

# METHOD: the check is a prior predictive one, at the fitted values and at the locus's own coverage (Box 1980): how
# often do counts of the model have as low an evidence? The statistic is the log evidence of the mixture less the log
# likelihood of the counts at their own proportions, which takes out what any model of such counts would have. Its mean
# and spread still depend on coverage and level, and are learned from the drawn counts by regression; what is left is
# compared with that of the drawn counts. Drawing at every locus would cost as much as the evidence itself many times.
# Only low evidences are misfit: a locus that varies less than the model expects is not one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import logsumexp, xlogy

from epivi.base.errors import UserError
from epivi.tables.parquet import read_table

Array = NDArray[np.float64]

# Loci of the model reach it once in a thousand; with 2,000 drawn loci the smallest p-value is half of it.
SMALLEST_USUAL = 0.001
BINS = 20  # of the histogram of p-values
RIDGE = 1.0  # of standardized predictors of the mean
SCALE_RIDGE = 50.0  # of those of the log of squared residuals, which are far noisier


class CountStatistics(NamedTuple):
    """What the check needs of the counts of L loci, [L] each."""

    reads: NDArray[np.int64]
    methylated_reads: NDArray[np.int64]
    covered_samples: NDArray[np.int64]
    saturated_nats: Array  # log likelihood at each sample's own proportion, without binomial coefficients


def count_statistics(meth: NDArray[np.uint16], total: NDArray[np.uint16]) -> CountStatistics:
    """From methylated and all reads [L, S]."""
    m, n = meth.astype(np.float64), total.astype(np.float64)
    share = np.divide(m, n, out=np.zeros_like(m), where=n > 0)
    saturated = (xlogy(m, share) + xlogy(n - m, 1 - share)).sum(1)
    return CountStatistics(
        total.sum(1, dtype=np.int64), meth.sum(1, dtype=np.int64), np.count_nonzero(total, axis=1), saturated
    )


def mixture_statistic(log_evidence: Array, weight: Array, counts: CountStatistics) -> Array:
    """Log evidence [L] of the mixture of hypotheses with these weights [H], less what the counts allow at most."""
    with np.errstate(divide="ignore"):
        return np.asarray(logsumexp(log_evidence + np.log(weight), axis=1)) - counts.saturated_nats


def _predictors(counts: CountStatistics) -> Array:
    """Smooth functions of coverage and level [L, P], the constant first."""
    level = (counts.methylated_reads + 0.5) / (counts.reads + 1.0)
    covered = counts.covered_samples.astype(np.float64)
    depth = np.log(np.maximum(counts.reads, 1) / np.maximum(covered, 1))
    variance = np.log(4 * level * (1 - level))
    rarer = np.log(np.maximum(counts.reads * np.minimum(level, 1 - level), 0.5))
    logit = np.log(level / (1 - level))
    columns = (
        np.ones_like(level), logit, variance, variance**2, variance**3, depth, depth * variance, depth * variance**2,
        rarer, rarer**2, covered, covered * variance, covered * depth, logit * variance,
    )  # fmt: skip
    return np.stack(columns, axis=1)


class Usual(NamedTuple):
    """How the statistic is distributed over counts of the model; P predictors, R drawn loci."""

    weight: Array  # [H], of the hypotheses in the mixture
    centre: Array  # [P], of the predictors
    scale: Array  # [P]
    mean_slopes: Array  # [P]
    log_scale_slopes: Array  # [P]
    residuals: Array  # [R], standardized, ascending

    def standardized(self, log_evidence: Array, counts: CountStatistics) -> Array:
        """How far the statistic of L loci lies above its mean, in SDs."""
        predictors = (_predictors(counts) - self.centre) / self.scale
        excess = mixture_statistic(log_evidence, self.weight, counts) - predictors @ self.mean_slopes
        # Beyond what was drawn the line is not trusted to make everything usual.
        log_scale = np.clip(predictors @ self.log_scale_slopes, -2.0, 2.0)
        return np.asarray(excess / np.exp(log_scale))

    def pvalues(self, log_evidence: Array, counts: CountStatistics) -> Array:
        """Share of the model's loci whose evidence is as low, [L]; nan where no sample has reads."""
        below = np.searchsorted(self.residuals, self.standardized(log_evidence, counts), side="right")
        return np.where(counts.reads > 0, (1.0 + below) / (1.0 + len(self.residuals)), np.nan)


def usual_statistic(log_evidence: Array, weight: Array, counts: CountStatistics) -> Usual:
    """From the log evidences [R, H] of drawn counts; loci without reads say nothing and are left out."""
    read = counts.reads > 0
    log_evidence, counts = log_evidence[read], CountStatistics._make(column[read] for column in counts)
    predictors = _predictors(counts)
    centre, scale = predictors.mean(0), predictors.std(0)
    centre[0], scale[0] = 0.0, 1.0
    scale = np.where(scale > 1e-9, scale, np.inf)  # a predictor that is the same everywhere predicts nothing
    z = (predictors - centre) / scale
    statistic = mixture_statistic(log_evidence, weight, counts)
    mean_slopes = _ridge(z, statistic, RIDGE)
    residual = statistic - z @ mean_slopes
    squared = np.log(residual**2 + 1e-3 * residual.var())
    log_scale_slopes = _ridge(z, squared, SCALE_RIDGE) / 2
    log_scale_slopes[0] = 0.0
    usual = Usual(weight, centre, scale, mean_slopes, log_scale_slopes, np.zeros(0))
    # Each drawn locus as one that the regression has not seen.
    shrunk = z.T @ z + np.diag(np.where(np.arange(z.shape[1]) > 0, RIDGE, 1e-9))
    leverage = np.einsum("rp,rp->r", z, np.linalg.solve(shrunk, z.T).T)
    return usual._replace(residuals=np.sort(usual.standardized(log_evidence, counts) / (1 - leverage)))


def _ridge(z: Array, value: Array, penalty: float) -> Array:
    """Slopes of a regression whose constant, the first predictor, is not shrunk."""
    shrunk = np.full(z.shape[1], penalty)
    shrunk[0] = 1e-9
    return np.asarray(np.linalg.solve(z.T @ z + np.diag(shrunk), z.T @ value))


# ---------------------------------------------------------------------------------------------------------------- table


def usual_rows(names: Sequence[str], log_evidence: Array, counts: CountStatistics) -> pa.Table:
    """Rows of the table `usual_evidence` of R drawn loci from their log evidences [R, H]."""
    repeated = {name: np.repeat(column, len(names)) for name, column in counts._asdict().items()}
    return pa.table(
        {
            "draw": np.repeat(np.arange(len(log_evidence)), len(names)),
            "hypothesis": list(names) * len(log_evidence),
            "log_evidence": log_evidence.ravel(),
            **repeated,
        }
    )


def read_usual(path: Path, names: Sequence[str], weight: Array) -> Usual:
    """How the statistic is distributed, from the file of drawn loci.

    Raises UserError where it is of other hypotheses.
    """
    rows = read_table(path, "usual_evidence")
    h = len(names)
    if rows["hypothesis"].to_pylist()[:h] != list(names) or rows.num_rows % h:
        raise UserError(f"{path}: is of other hypotheses than {', '.join(names)}; run epivi controls again")
    columns: dict[str, Any] = {name: rows[name].to_numpy()[::h] for name in CountStatistics._fields}
    return usual_statistic(rows["log_evidence"].to_numpy().reshape(-1, h), weight, CountStatistics(**columns))


def misfit_columns(usual: Usual | None, log_evidence: Array, counts: CountStatistics) -> dict[str, Any]:
    """Columns of the posterior for L loci; p-values are nan where nothing was drawn."""
    loci = len(log_evidence)
    pvalue = np.full(loci, np.nan) if usual is None else usual.pvalues(log_evidence, counts)
    return {"misfit_pvalue": pvalue, "flag_misfit": pvalue <= SMALLEST_USUAL}


def histogram(pvalues: Array) -> NDArray[np.int64]:
    """Loci in each of BINS equal bins of their p-values; nan are left out."""
    return np.histogram(pvalues[~np.isnan(pvalues)], BINS, (0.0, 1.0))[0].astype(np.int64)
