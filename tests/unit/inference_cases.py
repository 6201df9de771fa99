"""Small cohorts, and slow references in plain NumPy that share no code with the compiled kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, gammaln, logsumexp

from epivi.cohort.kinship import covariance
from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet
from epivi.families.transmission.hypotheses import Hypothesis, parse_hypotheses

Array = NDArray[np.float64]


def make_sheet(individuals: tuple[str, ...], **changes: Any) -> SampleSheet:
    """One sample for each of `individuals` (a repeated name is a replicate), without conversion errors."""
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


def make_pedigree(*rows: tuple[Any, ...]) -> Pedigree:
    """Rows of name and, where they have parents: mother, father or None, mode, generations."""
    full = [(*row, *(None, None, "sexual", 1)[len(row) - 1 :]) for row in rows]
    index = {row[0]: number for number, row in enumerate(full)} | {None: -1}
    return Pedigree(
        individuals=tuple(row[0] for row in full),
        mother=np.array([index[row[1]] for row in full], dtype=np.int32),
        father=np.array([index[row[2]] for row in full], dtype=np.int32),
        mode=tuple(row[3] for row in full),
        generations=np.array([row[4] for row in full], dtype=np.int32),
        sex=("unknown",) * len(full),
    )


def one_hypothesis(**terms: Any) -> Hypothesis:
    return parse_hypotheses({"h": terms})[0]


def prior_of_b(
    pedigree: Pedigree,
    sheet: SampleSheet,
    hypothesis: Hypothesis,
    variances: Array,
    tau: float,
) -> tuple[Array, Array]:
    """Covariance [N, N] of b, individuals in the order of their first sample, and which sample [S, N] is whose.

    variances: [C + 1], of each component and the residual.
    """
    individuals = list(dict.fromkeys(sheet.individuals))
    membership = np.array([[float(owner == name) for name in individuals] for owner in sheet.individuals])
    maternal, paternal = (tau if path == "tau" else float(path) for path in (hypothesis.maternal, hypothesis.paternal))
    rows = [pedigree.individuals.index(name) for name in individuals]
    transmitted = covariance(pedigree, maternal, paternal)[np.ix_(rows, rows)]
    total = variances[-1] * np.eye(len(individuals))
    for variance, component in zip(variances[:-1], hypothesis.components, strict=True):
        together = transmitted
        if component.kind == "environment":
            level_of = dict(zip(sheet.individuals, sheet.columns[component.source], strict=True))
            together = np.array([[float(level_of[a] == level_of[b]) for a in individuals] for b in individuals])
        if component.kind == "relatedness":
            header, *rows = (line.split("\t") for line in Path(component.source).read_text().splitlines())
            value = {
                (row[0], name): float(cell) for row in rows for name, cell in zip(header[1:], row[1:], strict=True)
            }
            together = np.array([[value[a, b] for a in individuals] for b in individuals])
            together = together / np.mean([value[a, a] for a in individuals])
        total = total + variance * together
    return total, membership


# --- the observation -------------------------------------------------------------------------------------------------


def log_observation(m: Array, n: Array, eps: Array, delta: Array, y: Array) -> Array:
    """log Binomial(m; n, eps + (1 - eps - delta) sigmoid(y)) with its coefficient."""
    gain = 1 - eps - delta
    with np.errstate(divide="ignore"):
        log_p = np.logaddexp(np.log(eps), np.log(gain) - np.logaddexp(0, -y))
        log_q = np.logaddexp(np.log(delta), np.log(gain) - np.logaddexp(0, y))
    return m * log_p + (n - m) * log_q + gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1)


def observation_derivatives(m: Array, n: Array, eps: Array, delta: Array, y: Array) -> Array:
    """First to fourth derivative of `log_observation` in y, [4, ...], by arithmetic of truncated power series in y."""
    s = expit(y)
    sigmoid = [s, s * (1 - s)]
    sigmoid.append(sigmoid[1] * (1 - 2 * s) / 2)
    sigmoid.append(sigmoid[1] * (1 - 6 * s * (1 - s)) / 6)
    sigmoid.append(sigmoid[1] * (1 - 2 * s) * (1 - 12 * s * (1 - s)) / 24)
    gain = 1 - eps - delta
    methylated = [eps + gain * s, *(gain * term for term in sigmoid[1:])]
    unmethylated = [delta + gain * expit(-y), *(-gain * term for term in sigmoid[1:])]
    one, other = _log_series(methylated), _log_series(unmethylated)
    factorial = (1, 2, 6, 24)
    return np.array([factorial[k] * (m * one[k] + (n - m) * other[k]) for k in range(4)])


def _log_series(a: list[Array]) -> list[Array]:
    """Coefficients of y^1..y^4 of log(a_0 + a_1 y + ...)."""
    out: list[Array] = []
    for k in range(1, 5):
        out.append((a[k] - sum(j / k * out[j - 1] * a[k - j] for j in range(1, k))) / a[0])
    return out


# --- Laplace's method with dense matrices ----------------------------------------------------------------------------


class DenseLaplace(NamedTuple):
    """What the kernel should return, of one locus."""

    log_evidence: float  # corrected
    correction: float
    effect_mean: Array  # [P]
    effect_variance: Array
    effect_third: Array


def dense_laplace(
    counts: tuple[Array, Array, Array, Array],
    covariance_of_b: Array,
    membership: Array,
    design: Array,
    prior_mean: Array,
    prior_variance: Array,
) -> DenseLaplace:
    """Laplace with second-order correction over all samples at once.

    counts: m, n, eps, delta, [S] each. membership [S, N]; design [S, P]; prior of the effects [P].
    """
    latents = len(covariance_of_b)
    jacobian = np.concatenate([membership, design], axis=1)
    precision = np.zeros((jacobian.shape[1],) * 2)
    precision[:latents, :latents] = np.linalg.inv(covariance_of_b)
    precision[latents:, latents:] = np.diag(1 / prior_variance)
    centre = np.concatenate([np.zeros(latents), prior_mean])
    x = _mode(counts, jacobian, precision, centre, latents)
    first, second, third, fourth = observation_derivatives(*counts, jacobian @ x)
    assert np.abs(jacobian.T @ first - precision @ (x - centre)).max() < 1e-7, "not a stationary point"
    hessian = precision - jacobian.T @ np.diag(second) @ jacobian
    posterior = np.linalg.inv(hessian)
    s = jacobian @ posterior @ jacobian.T
    h = third * np.diag(s)
    correction = (fourth * np.diag(s) ** 2).sum() / 8 + h @ s @ h / 8 + np.einsum("s,st,t->", third, s**3, third) / 12
    log_joint = log_observation(*counts, jacobian @ x).sum() - 0.5 * (x - centre) @ precision @ (x - centre)
    log_determinants = np.linalg.slogdet(precision)[1] - np.linalg.slogdet(hessian)[1]
    with_eta = (posterior @ jacobian.T)[latents:]  # covariance of the effects with every linear predictor
    return DenseLaplace(
        float(log_joint + 0.5 * log_determinants + correction),
        float(correction),
        x[latents:] + 0.5 * with_eta @ h,
        np.diag(posterior)[latents:],
        (third * with_eta**3).sum(1),
    )


def _mode(
    counts: tuple[Array, Array, Array, Array], jacobian: Array, precision: Array, centre: Array, baseline: int
) -> Array:
    """Maximum of the joint density: trust-region searches from two starts, the better one polished by Newton steps."""

    def loss(x: Array) -> float:
        return float(0.5 * (x - centre) @ precision @ (x - centre) - log_observation(*counts, jacobian @ x).sum())

    def gradient(x: Array) -> Array:
        return precision @ (x - centre) - jacobian.T @ observation_derivatives(*counts, jacobian @ x)[0]

    def hessian(x: Array) -> Array:
        return precision - jacobian.T @ np.diag(observation_derivatives(*counts, jacobian @ x)[1]) @ jacobian

    pooled = centre.copy()
    pooled[baseline] = np.log((counts[0].sum() + 0.5) / ((counts[1] - counts[0]).sum() + 0.5))
    found = [minimize(loss, start, method="trust-exact", jac=gradient, hess=hessian) for start in (centre, pooled)]
    x = min(found, key=lambda result: result.fun).x
    for _ in range(5):
        x = x - np.linalg.solve(hessian(x), gradient(x))
    return x


# --- the integral by the trapezoid rule ------------------------------------------------------------------------------


class ExactIntegral(NamedTuple):
    log_evidence: float
    effect_mean: Array  # [P]
    effect_variance: Array
    effect_third: Array


def exact_integral(
    counts: tuple[Array, Array, Array, Array],
    covariance_of_b: Array,
    membership: Array,
    design: Array,
    effect_mean: Array,
    effect_variance: Array,
    step: float = 0.6,
    reach: float = 7.5,
) -> ExactIntegral:
    """Evidence and the effects' first three central moments, for up to four different linear predictors.

    design [S, P]; effect_mean, effect_variance [P] of the prior. The linear predictors that differ are a Gaussian
    vector eta; the grid is laid along the principal axes of the Gaussian at the mode, `step` and `reach` in its
    standard deviations. The rule converges exponentially in the step.
    """
    rows, which = np.unique(np.concatenate([membership, design], axis=1), axis=0, return_inverse=True)
    owner, x = rows[:, : membership.shape[1]], rows[:, membership.shape[1] :]
    size, membership = len(rows), np.eye(len(rows))[which.ravel()]
    prior = owner @ covariance_of_b @ owner.T + (x * effect_variance) @ x.T
    precision = np.linalg.inv(prior)
    centre = x @ effect_mean
    mode = _mode(counts, membership, precision, centre, 0)
    curvature = observation_derivatives(*counts, membership @ mode)[1]
    hessian = precision - membership.T @ np.diag(curvature) @ membership
    root = np.linalg.cholesky(np.linalg.inv(hessian))
    axis = np.arange(-reach, reach + step / 2, step)
    grid = np.stack(np.meshgrid(*(axis,) * size, indexing="ij"), axis=-1).reshape(-1, size)
    eta = mode + grid @ root.T
    of_individual = [
        sum(
            (log_observation(*(part[s] for part in counts), eta[:, i]) for s in np.flatnonzero(membership[:, i])),
            np.zeros(len(eta)),
        )
        for i in range(size)
    ]
    offset = eta - centre
    log_prior = -0.5 * np.einsum("gi,ij,gj->g", offset, precision, offset)
    log_prior -= 0.5 * (np.linalg.slogdet(prior)[1] + size * np.log(2 * np.pi))
    log_density = sum(of_individual, log_prior)
    log_total = logsumexp(log_density)
    weight = np.exp(log_density - log_total)
    slope = precision @ (x * effect_variance)  # [size, P], of the effects' regression on eta
    linear = effect_mean + offset @ slope
    left = effect_variance - ((x * effect_variance) * slope).sum(0)
    mean = weight @ linear
    return ExactIntegral(
        float(log_total + np.linalg.slogdet(root)[1] + size * np.log(step)),
        mean,
        left + weight @ (linear - mean) ** 2,
        weight @ (linear - mean) ** 3,
    )
