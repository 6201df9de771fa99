"""The inner integral: a Gaussian field with binomial leaves, by Laplace's method with its second-order correction.

For one locus and fixed variance components the leaves are m_s ~ Binomial(n_s, eps_s + (1 - eps_s - delta_s)
sigmoid(eta_s)), eta_s = x_s' beta + b_i(s), with beta ~ N(mu, diag(v)) and b ~ N(0, K), K block-diagonal. The mode of
(b, beta) is found by damped Newton with the observed curvature (the expected one where the observed is not positive
definite: with conversion error the likelihood is not log-concave everywhere). With T = (K^-1 + W)^-1 block by block,
the effects are eliminated last through their Schur complement.

    log p(D) ~= log-joint at the mode - 1/2 log|I + K W| - 1/2 log|Schur| - 1/2 sum log v + c
    c = sum_s f4_s S_ss^2 / 8 + h' S h / 8 + sum_st f3_s f3_t S_st^3 / 12,      h_s = f3_s S_ss

(Tierney and Kadane 1986; the mean moves by S h / 2). S is the posterior covariance of eta, f3 and
f4 the third and fourth derivatives of the log-likelihood. The work between blocks is linear in blocks: across blocks
S has rank P, so sum S_st^3 is a sum of squared third-order moments.

Everything is float64 and compiled. The compiled loop releases the interpreter lock, so that threads share the loci.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from epivi.field import LatentField

MAX_ITERATIONS = 60
DECREMENT_TOLERANCE = 1e-4  # nats: predicted gain of the next Newton step, whose effect is still added to first order
IRRELEVANT_COMPONENT_NATS = 14.0  # a mixture component this far below the best is left out
LARGEST_CORRECTION = 20.0  # nats that are still added to the log evidence
NOT_CONVERGED = 1e3  # recorded as the correction of a point without a mode, so that it is flagged
SEPARATE_MODES = (
    0.25  # variance between the components' posterior means, relative to that within, above which they stay apart
)

entry_point = njit(cache=True, nogil=True, error_model="numpy")
# Without wrappers for calls from Python, a function of the inside compiles in two thirds of the time.
compiled = njit(  # type: ignore[call-overload]
    cache=True, nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)


class FieldArrays(NamedTuple):
    """A LatentField as the kernel wants it; samples are sorted by latent."""

    sample_order: NDArray[np.int32]  # [S]
    latent: NDArray[np.int32]  # [S], latent of each sorted sample
    block_start: NDArray[np.int32]  # [F + 1]
    block_sample_start: NDArray[np.int32]  # [F + 1]
    matrix_start: NDArray[np.int64]  # [F + 1], offset of each block's square matrix
    entry_start: NDArray[np.int32]
    entry_row: NDArray[np.int32]
    entry_column: NDArray[np.int32]
    entry_exponent: NDArray[np.int32]
    entry_coefficient: NDArray[np.float64]
    group: NDArray[np.int32]  # [N]
    design: NDArray[np.float64]  # [S, P], sorted samples
    false_methylated: NDArray[np.float64]  # [S]
    false_unmethylated: NDArray[np.float64]  # [S]


class NodeResults(NamedTuple):
    """The inner integral at every locus and node (L loci, J nodes); the baseline is the first effect."""

    log_evidence: NDArray[np.float64]  # [L, J], nats, binomial coefficients included, corrected
    correction: NDArray[np.float64]  # [L, J], the second-order correction c
    baseline_mean: NDArray[np.float64]  # [L, J], logit
    baseline_variance: NDArray[np.float64]  # [L, J]
    baseline_third: NDArray[np.float64]  # [L, J], third central moment


def field_arrays(
    field: LatentField, false_methylated: NDArray[np.float64], false_unmethylated: NDArray[np.float64]
) -> FieldArrays:
    """Sort the samples by latent and lay out the block matrices."""
    order = np.argsort(field.latent_of_sample, kind="stable").astype(np.int32)
    latent = field.latent_of_sample[order]
    sizes = np.diff(field.block_start).astype(np.int64)
    return FieldArrays(
        sample_order=order,
        latent=latent,
        block_start=field.block_start,
        block_sample_start=np.searchsorted(latent, field.block_start).astype(np.int32),
        matrix_start=np.concatenate([[0], np.cumsum(sizes**2)]),
        entry_start=field.entry_start,
        entry_row=field.entry_row,
        entry_column=field.entry_column,
        entry_exponent=field.entry_exponent,
        entry_coefficient=field.entry_coefficient,
        group=field.group,
        design=np.ascontiguousarray(field.design[order]),
        false_methylated=false_methylated[order],
        false_unmethylated=false_unmethylated[order],
    )


def evaluate_nodes(
    arrays: FieldArrays,
    meth: NDArray[np.uint16],
    total: NDArray[np.uint16],
    variances: NDArray[np.float64],
    tau: NDArray[np.float64],
    mixture_weight: NDArray[np.float64],
    mixture_mean: NDArray[np.float64],
    mixture_sd: NDArray[np.float64],
    effect_sd: NDArray[np.float64],
    threads: int = 1,
) -> NodeResults:
    """The inner integral at given variance components.

    meth, total: [L, S] in the cohort's sample order. variances: [L, J, 3], the heritable, environment and residual
    variance. tau: [L, J]. Node 0 of each locus should be central: the other nodes start from its mode. The baseline
    has a Gaussian mixture prior (K components), the further effects N(0, effect_sd^2).
    """
    out = NodeResults(*(np.empty(tau.shape) for _ in range(5)))
    methylated, reads = (np.ascontiguousarray(x[:, arrays.sample_order], dtype=np.float64) for x in (meth, total))
    prior = _Prior(np.log(mixture_weight), mixture_mean, mixture_sd**2, effect_sd**2)
    node, weight = np.polynomial.hermite_e.hermegauss(9)
    quadrature = np.stack([node, weight / weight.sum()])

    def part(loci: slice) -> None:
        _evaluate_loci(
            arrays,
            methylated[loci],
            reads[loci],
            variances[loci],
            tau[loci],
            prior,
            quadrature,
            NodeResults(*(array[loci] for array in out)),
        )

    bounds = np.linspace(0, len(tau), 4 * threads + 1).astype(int)  # a few parts a thread, to even out their lengths
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, map(slice, bounds[:-1], bounds[1:])))
    return out


def compile_kernel() -> None:
    """Compile everything by evaluating one locus of one sample."""
    whole, none = np.array([0, 1], dtype=np.int32), np.zeros(0, dtype=np.int32)
    field = LatentField(
        latent_of_sample=whole[:1],
        block_start=whole,
        entry_start=whole * 0,
        entry_row=none,
        entry_column=none,
        entry_exponent=none,
        entry_coefficient=np.zeros(0),
        group=whole[:1] - 1,
        design=np.ones((1, 1)),
        design_column=none,
        individual=whole[:1],
    )
    counts = np.ones((1, 1), dtype=np.uint16)
    one = np.ones(1)
    arrays = field_arrays(field, 0 * one, 0 * one)
    evaluate_nodes(arrays, counts, counts, np.ones((1, 1, 3)), np.ones((1, 1)), one, one, one, np.zeros(0))


@compiled
def _leaf(m: float, n: float, eps: float, delta: float, y: float) -> tuple[float, float, float]:
    """Slope of the log-likelihood, and its observed and expected curvature (negated second derivatives)."""
    e = math.exp(-abs(y))
    inverse = 1.0 / (1.0 + e)
    s, c = (inverse, e * inverse) if y >= 0 else (e * inverse, inverse)
    s1 = s * c
    if eps == 0.0 and delta == 0.0:
        return m - n * s, n * s1, n * s1
    gain = 1.0 - eps - delta
    p, q = eps + gain * s, delta + gain * c
    p1 = gain * s1
    share = 1.0 / (p * q)
    ratio_p, ratio_q = q * share, p * share  # 1 / p and 1 / q
    slope = p1 * (m * ratio_p - (n - m) * ratio_q)
    squares = p1 * p1 * (m * ratio_p * ratio_p + (n - m) * ratio_q * ratio_q)
    return slope, squares - slope * (c - s), n * p1 * p1 * share


@compiled
def _log_leaf(m: float, n: float, eps: float, delta: float, y: float) -> float:
    """Log-likelihood without the binomial coefficient."""
    e = math.exp(-abs(y))
    if eps == 0.0 and delta == 0.0:
        return m * y - n * ((y if y > 0 else 0.0) + math.log1p(e))
    inverse = 1.0 / (1.0 + e)
    s, c = (inverse, e * inverse) if y >= 0 else (e * inverse, inverse)
    gain = 1.0 - eps - delta
    value = m * math.log(eps + gain * s) if m > 0 else 0.0
    return value + ((n - m) * math.log(delta + gain * c) if n > m else 0.0)


@compiled
def _leaf_third_fourth(m: float, n: float, eps: float, delta: float, y: float) -> tuple[float, float]:
    """Third and fourth derivative of the log-likelihood."""
    e = math.exp(-abs(y))
    s = 1.0 / (1.0 + e) if y >= 0 else e / (1.0 + e)
    c = e / (1.0 + e) if y >= 0 else 1.0 / (1.0 + e)
    s1 = s * c
    if eps == 0.0 and delta == 0.0:
        w = n * s1
        return -w * (c - s), -w * (1.0 - 6.0 * s1)
    gain = 1.0 - eps - delta
    p, q = eps + gain * s, delta + gain * c
    p1 = gain * s1
    p2 = p1 * (c - s)
    p3 = p1 * (1.0 - 6.0 * s1)
    p4 = p2 * (1.0 - 12.0 * s1)
    third, fourth = 0.0, 0.0
    if m > 0:
        r1, r2, r3, r4 = p1 / p, p2 / p, p3 / p, p4 / p
        third += m * (r3 - 3 * r1 * r2 + 2 * r1**3)
        fourth += m * (r4 - 4 * r1 * r3 - 3 * r2 * r2 + 12 * r1 * r1 * r2 - 6 * r1**4)
    if n > m:
        r1, r2, r3, r4 = -p1 / q, -p2 / q, -p3 / q, -p4 / q
        third += (n - m) * (r3 - 3 * r1 * r2 + 2 * r1**3)
        fourth += (n - m) * (r4 - 4 * r1 * r3 - 3 * r2 * r2 + 12 * r1 * r1 * r2 - 6 * r1**4)
    return third, fourth


@compiled
def _cholesky(a: NDArray[np.float64], offset: int, n: int) -> float:
    """Lower Cholesky factor in place of the n x n matrix that starts at a[offset], row by row.

    Returns the log determinant, nan where the matrix is not positive definite.
    """
    log_determinant, determinant = 0.0, 1.0  # the logarithm of a product is taken before it can overflow
    for j in range(n):
        row = offset + j * n
        pivot = a[row + j]
        for k in range(j):
            pivot -= a[row + k] * a[row + k]
        if not pivot > 0.0:
            return math.nan
        determinant *= pivot
        if not 1e-150 < determinant < 1e150:
            log_determinant += math.log(determinant)
            determinant = 1.0
        a[row + j] = math.sqrt(pivot)
        inverse = 1.0 / a[row + j]
        for i in range(j + 1, n):
            other = offset + i * n
            value = a[other + j]
            for k in range(j):
                value -= a[other + k] * a[row + k]
            a[other + j] = value * inverse
    return log_determinant + math.log(determinant)


class _Work(NamedTuple):
    """One thread's scratch: S samples, N latents, P effects, Q the summed squares of block sizes, E powers of tau."""

    eta: NDArray[np.float64]  # [S]
    slope: NDArray[np.float64]  # [S]
    curvature: NDArray[np.float64]  # [S]
    pull: NDArray[np.float64]  # [S], third derivative times variance of eta
    third: NDArray[np.float64]  # [S]
    scaled: NDArray[np.float64]  # [S, P], Schur^-1/2 (x_s - (T C)_i)
    b: NDArray[np.float64]  # [N]
    dual: NDArray[np.float64]  # [N], K^-1 b
    new_b: NDArray[np.float64]  # [N]
    new_dual: NDArray[np.float64]  # [N]
    old_b: NDArray[np.float64]  # [N], where a damped step started
    old_dual: NDArray[np.float64]  # [N]
    weight: NDArray[np.float64]  # [N], curvature summed over replicates
    pseudo: NDArray[np.float64]  # [N], weight-times-target
    solved: NDArray[np.float64]  # [N], T pseudo
    cross: NDArray[np.float64]  # [N, P], C = Z' W X
    solved_cross: NDArray[np.float64]  # [N, P], T C
    factor: NDArray[np.float64]  # [Q], L with K = L L'
    inner: NDArray[np.float64]  # [Q], R with R R' = I + L' W L
    posterior: NDArray[np.float64]  # [Q], T
    beta: NDArray[np.float64]  # [P]
    new_beta: NDArray[np.float64]  # [P]
    old_beta: NDArray[np.float64]  # [P]
    start_beta: NDArray[np.float64]  # [P]
    across: NDArray[np.float64]  # [P]
    row: NDArray[np.float64]  # [P]
    schur: NDArray[np.float64]  # [P, P] row by row
    powers: NDArray[np.float64]  # [E]
    column: NDArray[np.float64]  # [largest block]


@compiled
def _allocate(arrays: FieldArrays) -> _Work:
    s, p = arrays.design.shape
    n = arrays.group.shape[0]
    q = arrays.matrix_start[-1]
    largest = 1
    for f in range(arrays.block_start.shape[0] - 1):
        largest = max(largest, arrays.block_start[f + 1] - arrays.block_start[f])
    degree = 1
    for e in arrays.entry_exponent:
        degree = max(degree, e + 1)
    return _Work(
        np.zeros(s), np.zeros(s), np.zeros(s), np.zeros(s), np.zeros(s), np.zeros((s, p)),
        np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n),
        np.zeros(n), np.zeros(n),
        np.zeros((n, p)), np.zeros((n, p)),
        np.zeros(q), np.zeros(q), np.zeros(q),
        np.zeros(p), np.zeros(p), np.zeros(p), np.zeros(p), np.zeros(p), np.zeros(p), np.zeros(p * p),
        np.zeros(degree), np.zeros(largest),
    )  # fmt: skip


@compiled
def _copy(source: NDArray[np.float64], target: NDArray[np.float64]) -> None:
    for i in range(source.shape[0]):
        target[i] = source[i]


@compiled
def _factor_prior(
    arrays: FieldArrays, heritable: float, environment: float, residual: float, tau: float, work: _Work
) -> None:
    """Lower Cholesky factor L of every block of K."""
    work.powers[0] = 1.0
    for e in range(1, work.powers.shape[0]):
        work.powers[e] = work.powers[e - 1] * tau
    # A hundred-thousandth of the SD as a deviation of one's own keeps K definite where a fixed share leaves none.
    nugget = residual + 1e-10 * (heritable + environment + residual)
    for f in range(arrays.block_start.shape[0] - 1):
        start = arrays.block_start[f]
        n = arrays.block_start[f + 1] - start
        if n == 1 and arrays.entry_start[f] == arrays.entry_start[f + 1] and arrays.group[start] < 0:
            work.factor[arrays.matrix_start[f]] = math.sqrt(nugget)
            continue
        offset = arrays.matrix_start[f]
        for i in range(n):
            for j in range(i + 1):
                shared = arrays.group[start + i] >= 0 and arrays.group[start + i] == arrays.group[start + j]
                work.factor[offset + i * n + j] = environment if shared else 0.0
            work.factor[offset + i * n + i] += nugget
        for entry in range(arrays.entry_start[f], arrays.entry_start[f + 1]):
            work.factor[offset + arrays.entry_row[entry] * n + arrays.entry_column[entry]] += (
                heritable * arrays.entry_coefficient[entry] * work.powers[arrays.entry_exponent[entry]]
            )
        _cholesky(work.factor, offset, n)


@compiled
def _apply_posterior(
    factor: NDArray[np.float64], inner: NDArray[np.float64], offset: int, n: int, v: NDArray[np.float64], first: int
) -> None:
    """v <- T v = L (R R')^-1 L' v in place, for the block whose matrices start at `offset` and vector at v[first]."""
    for i in range(n):
        total = 0.0
        for k in range(i, n):
            total += factor[offset + k * n + i] * v[first + k]
        for k in range(i):
            total -= inner[offset + i * n + k] * v[first + k]
        v[first + i] = total / inner[offset + i * n + i]
    for i in range(n - 1, -1, -1):
        total = v[first + i]
        for k in range(i + 1, n):
            total -= inner[offset + k * n + i] * v[first + k]
        v[first + i] = total / inner[offset + i * n + i]
    for i in range(n - 1, -1, -1):
        total = 0.0
        for k in range(i + 1):
            total += factor[offset + i * n + k] * v[first + k]
        v[first + i] = total


@compiled
def _leaves(
    arrays: FieldArrays, meth: NDArray[np.float64], total: NDArray[np.float64], expected: bool, work: _Work
) -> None:
    """Linear predictor, slope and curvature of every sample at the current b and beta."""
    for s in range(total.shape[0]):
        y = work.b[arrays.latent[s]]
        for p in range(work.beta.shape[0]):
            y += arrays.design[s, p] * work.beta[p]
        work.eta[s] = y
        work.slope[s] = 0.0
        work.curvature[s] = 0.0
        if total[s] > 0.0:
            slope, observed, fisher = _leaf(
                meth[s], total[s], arrays.false_methylated[s], arrays.false_unmethylated[s], y
            )
            work.slope[s] = slope
            work.curvature[s] = fisher if expected else observed


@compiled
def _log_joint(
    arrays: FieldArrays,
    meth: NDArray[np.float64],
    total: NDArray[np.float64],
    prior_mean: NDArray[np.float64],
    prior_variance: NDArray[np.float64],
    work: _Work,
) -> float:
    """Log-likelihood and exponent of the prior at the current point (normalizers are in the determinant)."""
    value = 0.0
    for s in range(total.shape[0]):
        if total[s] > 0.0:
            value += _log_leaf(meth[s], total[s], arrays.false_methylated[s], arrays.false_unmethylated[s], work.eta[s])
    for i in range(work.b.shape[0]):
        value -= 0.5 * work.b[i] * work.dual[i]
    for p in range(work.beta.shape[0]):
        value -= 0.5 * (work.beta[p] - prior_mean[p]) ** 2 / prior_variance[p]
    return value


@compiled
def _newton_target(
    arrays: FieldArrays, prior_mean: NDArray[np.float64], prior_variance: NDArray[np.float64], work: _Work
) -> tuple[bool, float]:
    """Solve for the maximum of the quadratic expansion at the current point.

    Fills inner, solved, cross, solved_cross, schur (its Cholesky factor) and the new b, dual and beta. Returns
    whether the curvature is positive definite, and log|I + K W| + log|Schur| + sum log prior_variance.
    """
    effects = work.beta.shape[0]
    log_determinant = 0.0
    for i in range(work.b.shape[0]):
        work.weight[i] = 0.0
        work.pseudo[i] = 0.0
        for p in range(effects):
            work.cross[i, p] = 0.0
    for p in range(effects):
        work.new_beta[p] = prior_mean[p] / prior_variance[p]
        for q in range(p + 1):
            work.schur[p * effects + q] = 0.0
        work.schur[p * effects + p] = 1.0 / prior_variance[p]
        log_determinant += math.log(prior_variance[p])
    for s in range(work.eta.shape[0]):
        i = arrays.latent[s]
        w = work.curvature[s]
        target = w * work.eta[s] + work.slope[s]
        work.weight[i] += w
        work.pseudo[i] += target
        for p in range(effects):
            x = arrays.design[s, p]
            work.cross[i, p] += w * x
            work.new_beta[p] += x * target
            for q in range(p + 1):
                work.schur[p * effects + q] += w * x * arrays.design[s, q]
    for f in range(arrays.block_start.shape[0] - 1):
        start = arrays.block_start[f]
        n = arrays.block_start[f + 1] - start
        if n == 1:
            log_determinant += _eliminate_single(start, work.factor[arrays.matrix_start[f]], work)
            continue
        offset = arrays.matrix_start[f]
        _inner_matrix(work.factor, work.weight, work.inner, offset, n, start)
        block_log_determinant = _cholesky(work.inner, offset, n)
        if math.isnan(block_log_determinant):
            return False, 0.0
        log_determinant += block_log_determinant
        for i in range(start, start + n):
            work.solved[i] = work.pseudo[i]
        _apply_posterior(work.factor, work.inner, offset, n, work.solved, start)
        for p in range(effects):
            for i in range(n):
                work.column[i] = work.cross[start + i, p]
            _apply_posterior(work.factor, work.inner, offset, n, work.column, 0)
            for i in range(n):
                work.solved_cross[start + i, p] = work.column[i]
                work.new_beta[p] -= work.cross[start + i, p] * work.solved[start + i]
                for q in range(p + 1):
                    work.schur[p * effects + q] -= work.column[i] * work.cross[start + i, q]
    log_determinant += _cholesky(work.schur, 0, effects)
    if math.isnan(log_determinant):
        return False, 0.0
    _solve_lower(work.schur, work.new_beta)
    _solve_upper(work.schur, work.new_beta)
    for i in range(work.b.shape[0]):
        shift, cross = 0.0, 0.0
        for p in range(effects):
            shift += work.solved_cross[i, p] * work.new_beta[p]
            cross += work.cross[i, p] * work.new_beta[p]
        work.new_b[i] = work.solved[i] - shift
        work.new_dual[i] = work.pseudo[i] - cross - work.weight[i] * work.new_b[i]
    return True, log_determinant


@compiled
def _inner_matrix(
    factor: NDArray[np.float64],
    weight: NDArray[np.float64],
    inner: NDArray[np.float64],
    offset: int,
    n: int,
    start: int,
) -> None:
    """I + L' W L of one block, lower triangle; W may be negative where the likelihood is not log-concave."""
    for i in range(n):
        for j in range(i + 1):
            inner[offset + i * n + j] = 1.0 if i == j else 0.0
    for k in range(n):
        row = offset + k * n
        for i in range(k + 1):
            scaled = weight[start + k] * factor[row + i]
            for j in range(i + 1):
                inner[offset + i * n + j] += scaled * factor[row + j]


@compiled
def _eliminate_single(i: int, root: float, work: _Work) -> float:
    """A block of one latent: T = K / (1 + K W); returns log(1 + K W), nan where the curvature is not definite."""
    variance = root * root
    pivot = 1.0 + variance * work.weight[i]
    posterior = variance / pivot
    work.solved[i] = posterior * work.pseudo[i]
    effects = work.beta.shape[0]
    for p in range(effects):
        work.solved_cross[i, p] = posterior * work.cross[i, p]
        work.new_beta[p] -= work.cross[i, p] * work.solved[i]
        for q in range(p + 1):
            work.schur[p * effects + q] -= work.solved_cross[i, p] * work.cross[i, q]
    return math.log(pivot) if pivot > 0.0 else math.nan


@compiled
def _solve_lower(factor: NDArray[np.float64], v: NDArray[np.float64]) -> None:
    n = v.shape[0]
    for i in range(n):
        for k in range(i):
            v[i] -= factor[i * n + k] * v[k]
        v[i] /= factor[i * n + i]


@compiled
def _solve_upper(factor: NDArray[np.float64], v: NDArray[np.float64]) -> None:
    """Solve with the transpose of a lower factor."""
    n = v.shape[0]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            v[i] -= factor[k * n + i] * v[k]
        v[i] /= factor[i * n + i]


@compiled
def _decrement(
    arrays: FieldArrays, prior_mean: NDArray[np.float64], prior_variance: NDArray[np.float64], work: _Work
) -> float:
    """Half of gradient times Newton step: the predicted gain in nats."""
    gain = 0.0
    for i in range(work.b.shape[0]):
        gain -= work.dual[i] * (work.new_b[i] - work.b[i])
    for p in range(work.beta.shape[0]):
        gain -= (work.beta[p] - prior_mean[p]) / prior_variance[p] * (work.new_beta[p] - work.beta[p])
    for s in range(work.eta.shape[0]):
        i = arrays.latent[s]
        move = work.new_b[i] - work.b[i]
        for p in range(work.beta.shape[0]):
            move += arrays.design[s, p] * (work.new_beta[p] - work.beta[p])
        gain += work.slope[s] * move
    return 0.5 * gain


@compiled
def _laplace(
    arrays: FieldArrays,
    meth: NDArray[np.float64],
    total: NDArray[np.float64],
    prior_mean: NDArray[np.float64],
    prior_variance: NDArray[np.float64],
    work: _Work,
) -> tuple[float, float, float, float, float]:
    """Log evidence without binomial coefficients, its correction; the baseline's mean, variance and third moment.

    Starts with the Newton step from the point whose leaves stand in work.eta, slope and curvature, and leaves those
    of the mode there; work.start_beta is where a damped search would start. work.factor must hold the prior's
    factors. Full Newton steps are tried first; where their predicted gain grows, the search starts again with step
    halving.
    """
    restart, damped, expected = False, False, False
    previous_gain = np.inf
    for iteration in range(MAX_ITERATIONS):
        if restart:
            for i in range(work.b.shape[0]):
                work.b[i] = 0.0
                work.dual[i] = 0.0
            _copy(work.start_beta, work.beta)
            restart = False
        if iteration > 0:
            _leaves(arrays, meth, total, expected, work)
        definite, log_determinant = _newton_target(arrays, prior_mean, prior_variance, work)
        # The first step is taken from a point that need not lie in the range of K: it has no predicted gain.
        gain = _decrement(arrays, prior_mean, prior_variance, work) if definite and iteration > 0 else np.inf
        if definite and not expected and abs(gain) < DECREMENT_TOLERANCE:
            value = _log_joint(arrays, meth, total, prior_mean, prior_variance, work) + gain - 0.5 * log_determinant
            correction, determinant_shift, mean, variance, third = _second_order(arrays, meth, total, work)
            value += determinant_shift
            if not math.isfinite(value + correction + mean + variance + third):
                break
            # METHOD: the series is asymptotic. Where the mode is nearly flat, as conversion error can make it, its
            # second terms are of any size: the correction is then recorded, for the flag, and none of them is used.
            shift = mean - work.new_beta[0]
            if abs(correction) < LARGEST_CORRECTION and shift * shift < prior_variance[0]:
                return value + correction, correction, mean, variance, third
            return value, correction, work.new_beta[0], min(variance, prior_variance[0]), 0.0
        if not damped and (gain > previous_gain or (iteration == 0 and not definite)):
            restart, damped = True, True
        elif not definite:
            expected = True
        elif damped:
            _damped_step(arrays, meth, total, prior_mean, prior_variance, work)
            expected = False
        else:
            _copy(work.new_b, work.b)
            _copy(work.new_dual, work.dual)
            _copy(work.new_beta, work.beta)
            expected = False
            previous_gain = gain
    return -np.inf, NOT_CONVERGED, prior_mean[0], prior_variance[0], 0.0


@compiled
def _damped_step(
    arrays: FieldArrays,
    meth: NDArray[np.float64],
    total: NDArray[np.float64],
    prior_mean: NDArray[np.float64],
    prior_variance: NDArray[np.float64],
    work: _Work,
) -> None:
    """Move towards the Newton target, halving the step until the joint density does not fall."""
    _copy(work.b, work.old_b)
    _copy(work.dual, work.old_dual)
    _copy(work.beta, work.old_beta)
    before = _log_joint(arrays, meth, total, prior_mean, prior_variance, work)
    step = 1.0
    for _ in range(40):
        for i in range(work.b.shape[0]):
            work.b[i] = work.old_b[i] + step * (work.new_b[i] - work.old_b[i])
            work.dual[i] = work.old_dual[i] + step * (work.new_dual[i] - work.old_dual[i])
        for p in range(work.beta.shape[0]):
            work.beta[p] = work.old_beta[p] + step * (work.new_beta[p] - work.old_beta[p])
        _leaves(arrays, meth, total, False, work)
        if _log_joint(arrays, meth, total, prior_mean, prior_variance, work) >= before - 1e-10:
            return
        step *= 0.5


@compiled
def _posterior_blocks(arrays: FieldArrays, work: _Work) -> None:
    """T = Y' Y with Y = R^-1 L', block by block."""
    for f in range(arrays.block_start.shape[0] - 1):
        n = arrays.block_start[f + 1] - arrays.block_start[f]
        offset = arrays.matrix_start[f]
        if n == 1:
            variance = work.factor[offset] ** 2
            work.posterior[offset] = variance / (1.0 + variance * work.weight[arrays.block_start[f]])
            continue
        # Row j of `posterior` first holds column j of Y, from which T is then formed row by row, last row first.
        for j in range(n):
            row = offset + j * n
            for i in range(n):
                value = work.factor[row + i] if i <= j else 0.0
                for k in range(i):
                    value -= work.inner[offset + i * n + k] * work.posterior[row + k]
                work.posterior[row + i] = value / work.inner[offset + i * n + i]
        for i in range(n - 1, -1, -1):
            for j in range(i + 1):
                value = 0.0
                for k in range(n):
                    value += work.posterior[offset + i * n + k] * work.posterior[offset + j * n + k]
                work.column[j] = value
            for j in range(i + 1):
                work.posterior[offset + i * n + j] = work.column[j]
        for i in range(n):
            for j in range(i):
                work.posterior[offset + j * n + i] = work.posterior[offset + i * n + j]


@compiled
def _second_order(
    arrays: FieldArrays, meth: NDArray[np.float64], total: NDArray[np.float64], work: _Work
) -> tuple[float, float, float, float, float]:
    """At the mode: the correction c; the change of -1/2 log-determinant over the last, untaken Newton step; and the
    baseline's mean, variance and third central moment."""
    samples, effects = arrays.design.shape
    _posterior_blocks(arrays, work)
    result, determinant_shift = 0.0, 0.0
    across = work.across  # sum_s scaled_s h_s
    for p in range(effects):
        across[p] = 0.0
    h = work.pull
    for f in range(arrays.block_start.shape[0] - 1):
        start = arrays.block_start[f]
        n = arrays.block_start[f + 1] - start
        offset = arrays.matrix_start[f] - start * n - start  # of T[i, j] by latents i and j: offset + i n + j
        first, last = arrays.block_sample_start[f], arrays.block_sample_start[f + 1]
        for s in range(first, last):
            i = arrays.latent[s]
            variance = work.posterior[offset + i * n + i]
            for p in range(effects):
                value = arrays.design[s, p] - work.solved_cross[i, p]
                for q in range(p):
                    value -= work.schur[p * effects + q] * work.scaled[s, q]
                work.scaled[s, p] = value / work.schur[p * effects + p]
                variance += work.scaled[s, p] ** 2
            third, fourth = 0.0, 0.0
            if total[s] > 0.0:
                third, fourth = _leaf_third_fourth(
                    meth[s], total[s], arrays.false_methylated[s], arrays.false_unmethylated[s], work.eta[s]
                )
            work.third[s] = third
            h[s] = third * variance
            result += fourth * variance * variance / 8.0
            move = work.new_b[i] - work.b[i]
            for p in range(effects):
                move += arrays.design[s, p] * (work.new_beta[p] - work.beta[p])
            determinant_shift += 0.5 * h[s] * move
            for p in range(effects):
                across[p] += work.scaled[s, p] * h[s]
        for s in range(first, last):
            if work.third[s] == 0.0:
                continue
            for t in range(first, s + 1):
                within = work.posterior[offset + arrays.latent[s] * n + arrays.latent[t]]
                between = 0.0
                for p in range(effects):
                    between += work.scaled[s, p] * work.scaled[t, p]
                cubes = (within + between) ** 3 - between**3
                pair = h[s] * h[t] * within / 8.0 + work.third[s] * work.third[t] * cubes / 12.0
                result += pair if s == t else 2.0 * pair
    for p in range(effects):
        result += across[p] ** 2 / 8.0
    result += _rank_three(work.third, work.scaled) / 12.0

    # Covariance of the baseline with eta_s is (U^-T scaled_s)_0; U^-T's first row solves U u = e_0.
    row = work.row
    for p in range(effects):
        row[p] = 1.0 if p == 0 else 0.0
    _solve_lower(work.schur, row)
    mean, variance, third = work.new_beta[0], 0.0, 0.0
    for p in range(effects):
        mean += 0.5 * row[p] * across[p]
        variance += row[p] ** 2
    for s in range(samples):
        if work.third[s] != 0.0:
            covariance = 0.0
            for p in range(effects):
                covariance += row[p] * work.scaled[s, p]
            third += work.third[s] * covariance**3
    return result, determinant_shift, mean, variance, third


@compiled
def _rank_three(weight: NDArray[np.float64], vectors: NDArray[np.float64]) -> float:
    """sum_st weight_s weight_t (vectors_s . vectors_t)^3 as the squared norm of the third-order moment."""
    samples, effects = vectors.shape
    norm = 0.0
    for p in range(effects):
        for q in range(p, effects):
            for r in range(q, effects):
                moment = 0.0
                for s in range(samples):
                    moment += weight[s] * vectors[s, p] * vectors[s, q] * vectors[s, r]
                multiplicity = 1.0 if p == q == r else (3.0 if (p == q or q == r) else 6.0)
                norm += multiplicity * moment * moment
    return norm


@compiled
def _log_binomials(meth: NDArray[np.float64], total: NDArray[np.float64]) -> float:
    value = 0.0
    for s in range(total.shape[0]):
        if total[s] > 0.0:
            value += math.lgamma(total[s] + 1.0) - math.lgamma(meth[s] + 1.0) - math.lgamma(total[s] - meth[s] + 1.0)
    return value


@compiled
def _pooled_logit(meth: NDArray[np.float64], total: NDArray[np.float64]) -> float:
    methylated, unmethylated = 0.5, 0.5
    for s in range(total.shape[0]):
        methylated += meth[s]
        unmethylated += total[s] - meth[s]
    return math.log(methylated / unmethylated)


class _Prior(NamedTuple):
    """The prior of the effects: a Gaussian mixture for the baseline, Gaussians of mean zero for the rest."""

    log_weight: NDArray[np.float64]  # [K]
    mean: NDArray[np.float64]  # [K]
    variance: NDArray[np.float64]  # [K]
    effect_variance: NDArray[np.float64]  # [P - 1]


@entry_point
def _evaluate_loci(
    arrays: FieldArrays,
    meth: NDArray[np.float64],
    total: NDArray[np.float64],
    variances: NDArray[np.float64],
    tau: NDArray[np.float64],
    prior: _Prior,
    quadrature: NDArray[np.float64],
    out: NodeResults,
) -> None:
    """All nodes of some loci. At the central node every component of the baseline's prior is tried by itself; at the
    others the components whose posteriors coincide are replaced by one Gaussian and put right by quadrature."""
    components = prior.log_weight.shape[0]
    effects = arrays.design.shape[1]
    work = _allocate(arrays)
    prior_mean, prior_variance = np.zeros(effects), np.empty(effects)
    for p in range(1, effects):
        prior_variance[p] = prior.effect_variance[p - 1]
    samples = work.eta.shape[0]
    start = np.zeros((components, 3, samples))  # eta, slope and curvature at each component's central mode
    start_beta = np.zeros((components, effects))
    results = np.zeros((components, 5))
    relevant = np.ones(components, dtype=np.bool_)
    for locus in range(tau.shape[0]):
        constant = _log_binomials(meth[locus], total[locus])
        pooled = _pooled_logit(meth[locus], total[locus])
        for k in range(components):
            relevant[k] = True
            for p in range(effects):
                start_beta[k, p] = pooled if p == 0 else 0.0
        merged, dominant = False, 0
        merged_mean, merged_variance = 0.0, 0.0
        for node in range(tau.shape[1]):
            _factor_prior(
                arrays, variances[locus, node, 0], variances[locus, node, 1], variances[locus, node, 2],
                tau[locus, node], work,
            )  # fmt: skip
            for k in range(components):
                if not relevant[k] or (merged and k != dominant):
                    continue
                prior_mean[0] = merged_mean if merged else prior.mean[k]
                prior_variance[0] = merged_variance if merged else prior.variance[k]
                _copy(start_beta[k], work.start_beta)
                if node == 0:
                    _start_from_effects(arrays, meth[locus], total[locus], work)
                else:
                    _copy(start[k, 0], work.eta)
                    _copy(start[k, 1], work.slope)
                    _copy(start[k, 2], work.curvature)
                evidence, correction, mean, variance, third = _laplace(
                    arrays, meth[locus], total[locus], prior_mean, prior_variance, work
                )
                results[k, 0] = evidence + prior.log_weight[k]
                results[k, 1], results[k, 2], results[k, 3], results[k, 4] = correction, mean, variance, third
                if node == 0:
                    _copy(work.eta, start[k, 0])
                    _copy(work.slope, start[k, 1])
                    _copy(work.curvature, start[k, 2])
                    _copy(work.beta, start_beta[k])
            if merged:
                log_ratio, mean, variance, third = _reweight(
                    prior, merged_mean, merged_variance, results[dominant, 2], results[dominant, 3],
                    results[dominant, 4], quadrature,
                )  # fmt: skip
                evidence = results[dominant, 0] - prior.log_weight[dominant] + log_ratio + constant
                if not math.isfinite(evidence):
                    _store(out, locus, node, -np.inf, NOT_CONVERGED, merged_mean, merged_variance, 0.0)
                    continue
                _store(out, locus, node, evidence, results[dominant, 1], mean, variance, third)
                continue
            best = _mix(results, relevant, constant, locus, node, out)
            if node == 0:
                dominant, merged, merged_mean, merged_variance = _merge(prior, results, relevant, best)


@compiled
def _start_from_effects(
    arrays: FieldArrays, meth: NDArray[np.float64], total: NDArray[np.float64], work: _Work
) -> None:
    """Leaves at b = 0 and the starting effects."""
    for i in range(work.b.shape[0]):
        work.b[i] = 0.0
    _copy(work.start_beta, work.beta)
    _leaves(arrays, meth, total, True, work)


@compiled
def _merge(
    prior: _Prior, results: NDArray[np.float64], relevant: NDArray[np.bool_], best: float
) -> tuple[int, bool, float, float]:
    """Drop irrelevant components; the dominant one, whether the rest may be merged, and the merged prior's moments."""
    dominant = 0
    if best == -np.inf:  # no mode was found: the other nodes try every component
        return dominant, False, 0.0, 0.0
    total, prior_mean, posterior_mean, within = 0.0, 0.0, 0.0, 0.0
    for k in range(results.shape[0]):
        relevant[k] = results[k, 0] > best - IRRELEVANT_COMPONENT_NATS
        if results[k, 0] > results[dominant, 0]:
            dominant = k
        if relevant[k]:
            share = math.exp(results[k, 0] - best)
            total += share
            prior_mean += share * prior.mean[k]
            posterior_mean += share * results[k, 2]
            within += share * results[k, 3]
    prior_mean, posterior_mean, within = prior_mean / total, posterior_mean / total, within / total
    between, prior_variance = 0.0, 0.0
    for k in range(results.shape[0]):
        if relevant[k]:
            share = math.exp(results[k, 0] - best) / total
            between += share * (results[k, 2] - posterior_mean) ** 2
            prior_variance += share * (prior.variance[k] + (prior.mean[k] - prior_mean) ** 2)
    return dominant, between < SEPARATE_MODES * within, prior_mean, prior_variance


@compiled
def _reweight(
    prior: _Prior,
    merged_mean: float,
    merged_variance: float,
    mean: float,
    variance: float,
    third: float,
    quadrature: NDArray[np.float64],
) -> tuple[float, float, float, float]:
    """Replace the merged prior of the baseline by the mixture: log E[ratio], and the moments under the mixture.

    The expectation is over the baseline's posterior under the merged prior, a Gaussian with a first-order skewness term
    (Cornish-Fisher), where the ratio is nearly constant.
    """
    sd = math.sqrt(variance)
    skewness = third / (variance * sd)
    nodes = quadrature.shape[1]
    x, weight = np.empty(nodes), np.empty(nodes)
    total, new_mean = 0.0, 0.0
    for i in range(nodes):
        z = quadrature[0, i]
        x[i] = mean + sd * (z + skewness * (z * z - 1.0) / 6.0)
        ratio = 0.0
        base = -0.5 * (x[i] - merged_mean) ** 2 / merged_variance
        for k in range(prior.mean.shape[0]):
            exponent = prior.log_weight[k] - 0.5 * (x[i] - prior.mean[k]) ** 2 / prior.variance[k] - base
            ratio += math.exp(exponent) * math.sqrt(merged_variance / prior.variance[k])
        weight[i] = quadrature[1, i] * ratio
        total += weight[i]
        new_mean += weight[i] * x[i]
    new_mean /= total
    new_variance, new_third = 0.0, 0.0
    for i in range(nodes):
        offset = x[i] - new_mean
        new_variance += weight[i] / total * offset**2
        new_third += weight[i] / total * offset**3
    return math.log(total), new_mean, new_variance, new_third


@compiled
def _store(
    out: NodeResults,
    locus: int,
    node: int,
    evidence: float,
    correction: float,
    mean: float,
    variance: float,
    third: float,
) -> None:
    out.log_evidence[locus, node] = evidence
    out.correction[locus, node] = correction
    out.baseline_mean[locus, node] = mean
    out.baseline_variance[locus, node] = variance
    out.baseline_third[locus, node] = third


@compiled
def _mix(
    results: NDArray[np.float64], relevant: NDArray[np.bool_], constant: float, locus: int, node: int, out: NodeResults
) -> float:
    """Sum the mixture components out of the evidence and of the baseline's moments; returns the best component's."""
    best = -np.inf
    for k in range(results.shape[0]):
        if relevant[k]:
            best = max(best, results[k, 0])
    if best == -np.inf:
        _store(out, locus, node, best, NOT_CONVERGED, results[0, 2], results[0, 3], 0.0)
        return best
    total, correction, mean = 0.0, 0.0, 0.0
    for k in range(results.shape[0]):
        if relevant[k]:
            share = math.exp(results[k, 0] - best)
            total += share
            correction += share * results[k, 1]
            mean += share * results[k, 2]
    mean /= total
    variance, third = 0.0, 0.0
    for k in range(results.shape[0]):
        if relevant[k]:
            share = math.exp(results[k, 0] - best) / total
            offset = results[k, 2] - mean
            variance += share * (results[k, 3] + offset * offset)
            third += share * (results[k, 4] + 3.0 * offset * results[k, 3] + offset**3)
    _store(out, locus, node, best + math.log(total) + constant, correction / total, mean, variance, third)
    return best
