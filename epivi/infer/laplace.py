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

Everything is float64 and compiled, and works on WIDTH points at once (epivi.infer.lanes): first the central nodes of
as many loci, then the other nodes of each locus. The compiled loop releases the interpreter lock, so that threads share
the loci.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import gammaln

from epivi.field import LatentField
from epivi.infer.lanes import (
    WIDTH,
    Lanes,
    compiled,
    exponential,
    load,
    logarithm,
    select_less,
    spread,
    square_root,
    store,
)
from epivi.infer.leaf import leaf, leaf_third_fourth, log_leaf

MAX_ITERATIONS = 60
MAX_HALVINGS = 40
DECREMENT_TOLERANCE = 1e-4  # nats: predicted gain of the next Newton step, whose effect is still added to first order
IRRELEVANT_COMPONENT_NATS = 14.0  # a mixture component this far below the best is left out
LARGEST_CORRECTION = 20.0  # nats that are still added to the log evidence
NOT_CONVERGED = 1e3  # recorded as the correction of a point without a mode, so that it is flagged
SEPARATE_MODES = (
    0.25  # variance between the components' posterior means, relative to that within, above which they stay apart
)
PIVOTS_A_LOGARITHM = 8  # pivots multiplied before their logarithm is taken: the product neither over- nor underflows


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
    tolerance: float = DECREMENT_TOLERANCE,
) -> NodeResults:
    """The inner integral at given variance components.

    meth, total: [L, S] in the cohort's sample order. variances: [L, J, 3], the heritable, environment and residual
    variance. tau: [L, J]. Node 0 of each locus should be central: the other nodes start from its mode. The baseline
    has a Gaussian mixture prior (K components), the further effects N(0, effect_sd^2). tolerance: Newton's method stops
    where the next step would gain less, in nats.
    """
    out = NodeResults(*(np.empty(tau.shape) for _ in range(5)))
    methylated, reads = (np.ascontiguousarray(x[:, arrays.sample_order], dtype=np.float64) for x in (meth, total))
    log_factorial = gammaln(np.arange(np.max(total, initial=0) + 1.0) + 1.0)
    m, n = meth.astype(np.intp), total.astype(np.intp)
    constant = (log_factorial[n] - log_factorial[m] - log_factorial[n - m]).sum(1)
    prior = _Prior(np.log(mixture_weight), mixture_mean, mixture_sd**2, effect_sd**2)
    node, weight = np.polynomial.hermite_e.hermegauss(9)

    points = _Points(methylated, reads, constant, variances, tau)
    numerics = _Numerics(np.stack([node, weight / weight.sum()]), tolerance)

    kernel = _entry_point()

    def part(loci: slice) -> None:
        some = _Points(*(x[loci] for x in points))
        kernel(arrays, some, prior, numerics, NodeResults(*(x[loci] for x in out)))

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


class _Work(NamedTuple):
    """One thread's scratch: S samples, N latents, P effects, Q the summed squares of block sizes, E powers of tau.

    Every row holds a number for each of WIDTH points.
    """

    meth: NDArray[np.float64]  # [S, W]
    total: NDArray[np.float64]  # [S, W]
    eta: NDArray[np.float64]  # [S, W]
    slope: NDArray[np.float64]  # [S, W]
    curvature: NDArray[np.float64]  # [S, W]
    pull: NDArray[np.float64]  # [S, W], third derivative times variance of eta
    third: NDArray[np.float64]  # [S, W]
    scaled: NDArray[np.float64]  # [S P, W], Schur^-1/2 (x_s - (T C)_i)
    b: NDArray[np.float64]  # [N, W]
    dual: NDArray[np.float64]  # [N, W], K^-1 b
    new_b: NDArray[np.float64]  # [N, W]
    new_dual: NDArray[np.float64]  # [N, W]
    old_b: NDArray[np.float64]  # [N, W], where a damped step started
    old_dual: NDArray[np.float64]  # [N, W]
    weight: NDArray[np.float64]  # [N, W], curvature summed over replicates
    pseudo: NDArray[np.float64]  # [N, W], weight-times-target
    solved: NDArray[np.float64]  # [N, W], T pseudo
    cross: NDArray[np.float64]  # [N P, W], C = Z' W X
    solved_cross: NDArray[np.float64]  # [N P, W], T C
    factor: NDArray[np.float64]  # [Q, W], L with K = L L'
    inner: NDArray[np.float64]  # [Q, W], R with R R' = I + L' W L
    posterior: NDArray[np.float64]  # [Q, W], T
    beta: NDArray[np.float64]  # [P, W]
    new_beta: NDArray[np.float64]  # [P, W]
    old_beta: NDArray[np.float64]  # [P, W]
    start_beta: NDArray[np.float64]  # [P, W], where a damped search starts
    prior_mean: NDArray[np.float64]  # [P, W]
    prior_variance: NDArray[np.float64]  # [P, W]
    across: NDArray[np.float64]  # [P, W]
    row: NDArray[np.float64]  # [P, W]
    schur: NDArray[np.float64]  # [P P, W]
    powers: NDArray[np.float64]  # [E, W]
    column: NDArray[np.float64]  # [largest block, W]
    variances: NDArray[np.float64]  # [4, W]: heritable, environment, residual variance; tau
    results: NDArray[np.float64]  # [5, W]: log evidence, correction, baseline's mean, variance, third moment
    search: NDArray[np.float64]  # [rows of the search below, W]


# Rows of _Work.search: the state of Newton's method in each lane. Flags are 0 or 1.
LOG_DETERMINANT, GAIN, PREVIOUS_GAIN, JOINT, JOINT_BEFORE = 0, 1, 2, 3, 4
DONE, DAMPED, EXPECTED, TRIAL, HALVINGS = 5, 6, 7, 8, 9
TAKE, KEEP, BACK, MARK, RESTART = 10, 11, 12, 13, 14  # how the point moves next
SEARCH_ROWS = 15


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
        _rows(s), _rows(s), _rows(s), _rows(s), _rows(s), _rows(s), _rows(s), _rows(s * p),
        _rows(n), _rows(n), _rows(n), _rows(n), _rows(n), _rows(n), _rows(n), _rows(n), _rows(n),
        _rows(n * p), _rows(n * p), _rows(q), _rows(q), _rows(q),
        _rows(p), _rows(p), _rows(p), _rows(p), _rows(p), _rows(p), _rows(p), _rows(p), _rows(p * p),
        _rows(degree), _rows(largest), _rows(4), _rows(5), _rows(SEARCH_ROWS),
    )  # fmt: skip


@compiled
def _rows(n: int) -> NDArray[np.float64]:
    return np.zeros((n, WIDTH))


@compiled
def _copy(source: NDArray[np.float64], target: NDArray[np.float64]) -> None:
    for i in range(source.shape[0]):
        store(target, i, load(source, i))


@compiled
def _fill(target: NDArray[np.float64], value: float) -> None:
    for i in range(target.shape[0]):
        store(target, i, spread(value))


@compiled
def _copy_lane(source: NDArray[np.float64], lane: int, target: NDArray[np.float64]) -> None:
    """One lane of `source` into every lane of `target`."""
    for i in range(source.shape[0]):
        store(target, i, spread(source[i, lane]))


@compiled
def _cholesky(a: NDArray[np.float64], offset: int, n: int) -> Lanes:
    """Lower Cholesky factor in place of the n x n matrix that starts at a[offset], row by row; on the diagonal stand
    the reciprocals, as divisions are slow.

    Returns the log determinant, not a number in lanes where the matrix is not positive definite.
    """
    log_determinant, determinant = spread(0.0), spread(1.0)
    for j in range(n):
        row = offset + j * n
        pivot = load(a, row + j)
        for k in range(j):
            pivot -= load(a, row + k) * load(a, row + k)
        determinant *= select_less(0.0, pivot, pivot, np.nan)
        if (j + 1) % PIVOTS_A_LOGARITHM == 0:
            log_determinant += logarithm(determinant)
            determinant = spread(1.0)
        inverse = 1.0 / square_root(pivot)
        store(a, row + j, inverse)
        for i in range(j + 1, n):
            other = offset + i * n
            value = load(a, other + j)
            for k in range(j):
                value -= load(a, other + k) * load(a, row + k)
            store(a, other + j, value * inverse)
    return log_determinant + logarithm(determinant)


@compiled
def _factor_prior(arrays: FieldArrays, work: _Work) -> None:
    """Lower Cholesky factor L of every block of K, for the variances and tau in work.variances."""
    heritable, environment, residual = load(work.variances, 0), load(work.variances, 1), load(work.variances, 2)
    tau = load(work.variances, 3)
    store(work.powers, 0, spread(1.0))
    for e in range(1, work.powers.shape[0]):
        store(work.powers, e, load(work.powers, e - 1) * tau)
    # A hundred-thousandth of the SD as a deviation of one's own keeps K definite where a fixed share leaves none.
    nugget = residual + 1e-10 * (heritable + environment + residual)
    for f in range(arrays.block_start.shape[0] - 1):
        start = arrays.block_start[f]
        n = arrays.block_start[f + 1] - start
        offset = arrays.matrix_start[f]
        if n == 1 and arrays.entry_start[f] == arrays.entry_start[f + 1] and arrays.group[start] < 0:
            store(work.factor, offset, square_root(nugget))
            continue
        for i in range(n):
            for j in range(i + 1):
                shared = arrays.group[start + i] >= 0 and arrays.group[start + i] == arrays.group[start + j]
                value = environment if shared else spread(0.0)
                if i == j:
                    value += nugget
                store(work.factor, offset + i * n + j, value)
        for entry in range(arrays.entry_start[f], arrays.entry_start[f + 1]):
            place = offset + arrays.entry_row[entry] * n + arrays.entry_column[entry]
            term = heritable * arrays.entry_coefficient[entry] * load(work.powers, arrays.entry_exponent[entry])
            store(work.factor, place, load(work.factor, place) + term)
        _cholesky(work.factor, offset, n)
        for i in range(n):
            store(work.factor, offset + i * n + i, 1.0 / load(work.factor, offset + i * n + i))


@compiled
def _apply_posterior(
    factor: NDArray[np.float64], inner: NDArray[np.float64], offset: int, n: int, v: NDArray[np.float64], first: int
) -> None:
    """v <- T v = L (R R')^-1 L' v in place, for the block whose matrices start at `offset` and vector at v[first]."""
    for i in range(n):
        total = spread(0.0)
        for k in range(i, n):
            total += load(factor, offset + k * n + i) * load(v, first + k)
        for k in range(i):
            total -= load(inner, offset + i * n + k) * load(v, first + k)
        store(v, first + i, total * load(inner, offset + i * n + i))
    for i in range(n - 1, -1, -1):
        total = load(v, first + i)
        for k in range(i + 1, n):
            total -= load(inner, offset + k * n + i) * load(v, first + k)
        store(v, first + i, total * load(inner, offset + i * n + i))
    for i in range(n - 1, -1, -1):
        total = spread(0.0)
        for k in range(i + 1):
            total += load(factor, offset + i * n + k) * load(v, first + k)
        store(v, first + i, total)


@compiled
def _predictor(arrays: FieldArrays, s: int, b: NDArray[np.float64], beta: NDArray[np.float64]) -> Lanes:
    """Linear predictor of sample s."""
    y = load(b, arrays.latent[s])
    for p in range(beta.shape[0]):
        y += arrays.design[s, p] * load(beta, p)
    return y


@compiled
def _leaves(arrays: FieldArrays, work: _Work) -> None:
    """Linear predictor, slope and curvature of every sample at the current b and beta."""
    expected = load(work.search, EXPECTED)
    for s in range(work.eta.shape[0]):
        y = _predictor(arrays, s, work.b, work.beta)
        slope, observed, fisher = leaf(
            load(work.meth, s), load(work.total, s), arrays.false_methylated[s], arrays.false_unmethylated[s], y
        )
        store(work.eta, s, y)
        store(work.slope, s, slope)
        store(work.curvature, s, select_less(0.5, expected, fisher, observed))


@compiled
def _log_joint(arrays: FieldArrays, work: _Work) -> Lanes:
    """Log-likelihood and exponent of the prior at the current point (normalizers are in the determinant)."""
    value = spread(0.0)
    for s in range(work.eta.shape[0]):
        eps, delta = arrays.false_methylated[s], arrays.false_unmethylated[s]
        value += log_leaf(load(work.meth, s), load(work.total, s), eps, delta, load(work.eta, s))
    for i in range(work.b.shape[0]):
        value -= 0.5 * load(work.b, i) * load(work.dual, i)
    for p in range(work.beta.shape[0]):
        offset = load(work.beta, p) - load(work.prior_mean, p)
        value -= 0.5 * offset * offset / load(work.prior_variance, p)
    return value


@compiled
def _newton_target(arrays: FieldArrays, work: _Work) -> Lanes:
    """Solve for the maximum of the quadratic expansion at the current point.

    Fills inner, solved, cross, solved_cross, schur (its Cholesky factor) and the new b, dual and beta. Returns
    log|I + K W| + log|Schur| + sum log prior_variance, not a number where the curvature is not positive definite.
    """
    log_determinant = _sum_leaves(arrays, work)
    effects = work.beta.shape[0]
    for f in range(arrays.block_start.shape[0] - 1):
        start = arrays.block_start[f]
        n = arrays.block_start[f + 1] - start
        offset = arrays.matrix_start[f]
        if n == 1:
            log_determinant += _solve_single(start, load(work.factor, offset), work)
        else:
            _inner_matrix(work.factor, work.weight, work.inner, offset, n, start)
            log_determinant += _cholesky(work.inner, offset, n)
            for i in range(start, start + n):
                store(work.solved, i, load(work.pseudo, i))
            _apply_posterior(work.factor, work.inner, offset, n, work.solved, start)
            for p in range(effects):
                for i in range(n):
                    store(work.column, i, load(work.cross, (start + i) * effects + p))
                _apply_posterior(work.factor, work.inner, offset, n, work.column, 0)
                for i in range(n):
                    store(work.solved_cross, (start + i) * effects + p, load(work.column, i))
        for i in range(start, start + n):
            for p in range(effects):
                cross = load(work.cross, i * effects + p)
                store(work.new_beta, p, load(work.new_beta, p) - cross * load(work.solved, i))
                for q in range(p + 1):
                    value = load(work.schur, p * effects + q) - cross * load(work.solved_cross, i * effects + q)
                    store(work.schur, p * effects + q, value)
    log_determinant += _cholesky(work.schur, 0, effects)
    _solve_lower(work.schur, work.new_beta)
    _solve_upper(work.schur, work.new_beta)
    for i in range(work.b.shape[0]):
        value, dual = load(work.solved, i), load(work.pseudo, i)
        for p in range(effects):
            beta = load(work.new_beta, p)
            value -= load(work.solved_cross, i * effects + p) * beta
            dual -= load(work.cross, i * effects + p) * beta
        store(work.new_b, i, value)
        store(work.new_dual, i, dual - load(work.weight, i) * value)
    return log_determinant


@compiled
def _sum_leaves(arrays: FieldArrays, work: _Work) -> Lanes:
    """Sum the leaves' curvatures and targets by latent and effect; returns sum log prior_variance."""
    effects = work.beta.shape[0]
    _fill(work.weight, 0.0)
    _fill(work.pseudo, 0.0)
    _fill(work.cross, 0.0)
    _fill(work.schur, 0.0)
    log_variance = spread(0.0)
    for p in range(effects):
        variance = load(work.prior_variance, p)
        store(work.new_beta, p, load(work.prior_mean, p) / variance)
        store(work.schur, p * effects + p, 1.0 / variance)
        log_variance += logarithm(variance)
    for s in range(work.eta.shape[0]):
        i = arrays.latent[s]
        w = load(work.curvature, s)
        target = w * load(work.eta, s) + load(work.slope, s)
        store(work.weight, i, load(work.weight, i) + w)
        store(work.pseudo, i, load(work.pseudo, i) + target)
        for p in range(effects):
            x = arrays.design[s, p]
            store(work.cross, i * effects + p, load(work.cross, i * effects + p) + w * x)
            store(work.new_beta, p, load(work.new_beta, p) + x * target)
            for q in range(p + 1):
                value = load(work.schur, p * effects + q) + w * (x * arrays.design[s, q])
                store(work.schur, p * effects + q, value)
    return log_variance


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
            value = spread(1.0 if i == j else 0.0)
            for k in range(i, n):
                row = offset + k * n
                value += load(factor, row + i) * load(factor, row + j) * load(weight, start + k)
            store(inner, offset + i * n + j, value)


@compiled
def _solve_single(i: int, root: Lanes, work: _Work) -> Lanes:
    """A block of one latent: T = K / (1 + K W); returns log(1 + K W), not a number where that is not positive."""
    variance = root * root
    pivot = 1.0 + variance * load(work.weight, i)
    posterior = variance / pivot
    store(work.solved, i, posterior * load(work.pseudo, i))
    effects = work.beta.shape[0]
    for p in range(effects):
        store(work.solved_cross, i * effects + p, posterior * load(work.cross, i * effects + p))
    return logarithm(pivot)


@compiled
def _solve_lower(factor: NDArray[np.float64], v: NDArray[np.float64]) -> None:
    n = v.shape[0]
    for i in range(n):
        value = load(v, i)
        for k in range(i):
            value -= load(factor, i * n + k) * load(v, k)
        store(v, i, value * load(factor, i * n + i))


@compiled
def _solve_upper(factor: NDArray[np.float64], v: NDArray[np.float64]) -> None:
    """Solve with the transpose of a lower factor."""
    n = v.shape[0]
    for i in range(n - 1, -1, -1):
        value = load(v, i)
        for k in range(i + 1, n):
            value -= load(factor, k * n + i) * load(v, k)
        store(v, i, value * load(factor, i * n + i))


@compiled
def _predicted_gain(arrays: FieldArrays, work: _Work) -> Lanes:
    """Half of gradient times Newton step, in nats."""
    gain = spread(0.0)
    for i in range(work.b.shape[0]):
        gain -= load(work.dual, i) * (load(work.new_b, i) - load(work.b, i))
    for p in range(work.beta.shape[0]):
        slope = (load(work.beta, p) - load(work.prior_mean, p)) / load(work.prior_variance, p)
        gain -= slope * (load(work.new_beta, p) - load(work.beta, p))
    for s in range(work.eta.shape[0]):
        gain += load(work.slope, s) * (_predictor(arrays, s, work.new_b, work.new_beta) - load(work.eta, s))
    return 0.5 * gain


@compiled
def _laplace(arrays: FieldArrays, tolerance: float, work: _Work) -> None:
    """Find the mode and fill work.results: log evidence without binomial coefficients, its correction; the baseline's
    mean, variance and third central moment.

    Starts with the Newton step from the point whose leaves stand in work.eta, slope and curvature, and leaves those
    of the mode there; work.start_beta is where a damped search would start. work.factor must hold the prior's
    factors. Full Newton steps are tried first; where their predicted gain grows, the search starts again with step
    halving. A lane that has arrived stands still until all have.
    """
    _fill(work.search, 0.0)
    store(work.search, PREVIOUS_GAIN, spread(np.inf))
    searching, unfinished = False, True
    for iteration in range(MAX_ITERATIONS):
        if iteration > 0:
            _leaves(arrays, work)
        store(work.search, LOG_DETERMINANT, _newton_target(arrays, work))
        # The first step is taken from a point that need not lie in the range of K: it has no predicted gain.
        store(work.search, GAIN, _predicted_gain(arrays, work) if iteration > 0 else spread(np.inf))
        if searching:
            store(work.search, JOINT, _log_joint(arrays, work))
        unfinished, searching = _decide(iteration, tolerance, work.search)
        if not unfinished:
            break
        _move(work.b, work.new_b, work.old_b, work.b, 0.0, work.search)
        _move(work.dual, work.new_dual, work.old_dual, work.b, 0.0, work.search)
        _move(work.beta, work.new_beta, work.old_beta, work.start_beta, 1.0, work.search)
    _second_order(arrays, work)
    _finish(work)


@compiled
def _decide(iteration: int, tolerance: float, search: NDArray[np.float64]) -> tuple[bool, bool]:
    """What each lane does next. Returns whether any is not done, and whether any is damped."""
    unfinished, searching = False, False
    for w in range(WIDTH):
        search[TAKE, w], search[KEEP, w], search[BACK, w] = 0.0, 1.0, 0.0
        search[MARK, w], search[RESTART, w] = 0.0, 0.0
        if search[DONE, w] == 1.0:
            continue
        unfinished = True
        if search[TRIAL, w] == 1.0:
            if search[JOINT, w] < search[JOINT_BEFORE, w] - 1e-10 and search[HALVINGS, w] < MAX_HALVINGS:
                search[KEEP, w], search[BACK, w] = 0.5, 0.5
                search[HALVINGS, w] += 1.0
                searching = True
                continue
            search[TRIAL, w] = 0.0
        definite = not math.isnan(search[LOG_DETERMINANT, w])
        gain = search[GAIN, w] if definite else np.inf
        if definite and search[EXPECTED, w] == 0.0 and abs(gain) < tolerance:
            search[DONE, w] = 1.0
        elif search[DAMPED, w] == 0.0 and (gain > search[PREVIOUS_GAIN, w] or (iteration == 0 and not definite)):
            search[RESTART, w], search[DAMPED, w] = 1.0, 1.0
        elif not definite:
            search[EXPECTED, w] = 1.0
        else:
            search[TAKE, w], search[EXPECTED, w] = 1.0, 0.0
            search[PREVIOUS_GAIN, w] = gain
            if search[DAMPED, w] == 1.0:
                search[MARK, w], search[TRIAL, w], search[HALVINGS, w] = 1.0, 1.0, 0.0
                search[JOINT_BEFORE, w] = search[JOINT, w]
        searching = searching or search[DAMPED, w] == 1.0
    return unfinished, searching


@compiled
def _move(
    x: NDArray[np.float64],
    new: NDArray[np.float64],
    old: NDArray[np.float64],
    start: NDArray[np.float64],
    start_scale: float,
    search: NDArray[np.float64],
) -> None:
    """The next point: the Newton target, the same, half of the way back to where a step started, or the start."""
    take, keep, back = load(search, TAKE), load(search, KEEP), load(search, BACK)
    mark, restart = load(search, MARK), load(search, RESTART)
    for i in range(x.shape[0]):
        value, before = load(x, i), load(old, i)
        moved = select_less(0.5, take, load(new, i), keep * value + back * before)
        first = load(start, i) * start_scale if start_scale != 0.0 else spread(0.0)
        store(old, i, select_less(0.5, mark, value, before))
        store(x, i, select_less(0.5, restart, first, moved))


@compiled
def _finish(work: _Work) -> None:
    """Put together the results of every lane; of one without a mode, what marks it."""
    for w in range(WIDTH):
        value, correction = work.results[0, w], work.results[1, w]
        mean, variance, third = work.results[2, w], work.results[3, w], work.results[4, w]
        if work.search[DONE, w] == 0.0 or not math.isfinite(value + correction + mean + variance + third):
            work.results[0, w], work.results[1, w] = -np.inf, NOT_CONVERGED
            work.results[2, w], work.results[3, w] = work.prior_mean[0, w], work.prior_variance[0, w]
            work.results[4, w] = 0.0
            continue
        # METHOD: the series is asymptotic. Where the mode is nearly flat, as conversion error can make it, its
        # second terms are of any size: the correction is then recorded, for the flag, and none of them is used.
        shift = mean - work.new_beta[0, w]
        if abs(correction) < LARGEST_CORRECTION and shift * shift < work.prior_variance[0, w]:
            work.results[0, w] = value + correction
        else:
            work.results[2, w] = work.new_beta[0, w]
            work.results[3, w] = min(variance, work.prior_variance[0, w])
            work.results[4, w] = 0.0


@compiled
def _posterior_blocks(arrays: FieldArrays, work: _Work) -> None:
    """T = Y' Y with Y = R^-1 L', block by block."""
    for f in range(arrays.block_start.shape[0] - 1):
        n = arrays.block_start[f + 1] - arrays.block_start[f]
        offset = arrays.matrix_start[f]
        if n == 1:
            variance = load(work.factor, offset) * load(work.factor, offset)
            store(work.posterior, offset, variance / (1.0 + variance * load(work.weight, arrays.block_start[f])))
            continue
        # Row j of `posterior` first holds column j of Y, from which T is then formed row by row, last row first.
        for i in range(n):
            inverse = load(work.inner, offset + i * n + i)
            for j in range(n):
                row = offset + j * n
                value = load(work.factor, row + i) if i <= j else spread(0.0)
                for k in range(i):
                    value -= load(work.inner, offset + i * n + k) * load(work.posterior, row + k)
                store(work.posterior, row + i, value * inverse)
        for i in range(n - 1, -1, -1):
            for j in range(i + 1):
                value = spread(0.0)
                for k in range(n):
                    value += load(work.posterior, offset + i * n + k) * load(work.posterior, offset + j * n + k)
                store(work.column, j, value)
            for j in range(i + 1):
                store(work.posterior, offset + i * n + j, load(work.column, j))
        for i in range(n):
            for j in range(i):
                store(work.posterior, offset + j * n + i, load(work.posterior, offset + i * n + j))


@compiled
def _second_order(arrays: FieldArrays, work: _Work) -> None:
    """At the mode, into work.results: the log evidence with the effect of the last, untaken Newton step, but without
    the correction c; c; and the baseline's mean, variance and third central moment."""
    samples, effects = arrays.design.shape
    _posterior_blocks(arrays, work)
    _fill(work.across, 0.0)  # sum_s scaled_s h_s
    correction, determinant_shift = spread(0.0), spread(0.0)
    for f in range(arrays.block_start.shape[0] - 1):
        start = arrays.block_start[f]
        n = arrays.block_start[f + 1] - start
        offset = arrays.matrix_start[f] - start * n - start  # of T[i, j] by latents i and j: offset + i n + j
        first, last = arrays.block_sample_start[f], arrays.block_sample_start[f + 1]
        for s in range(first, last):
            i = arrays.latent[s]
            variance = load(work.posterior, offset + i * n + i)
            variance += _scale_row(arrays, s, work)
            third, fourth = leaf_third_fourth(
                load(work.meth, s), load(work.total, s), arrays.false_methylated[s], arrays.false_unmethylated[s],
                load(work.eta, s),
            )  # fmt: skip
            pull = third * variance
            store(work.third, s, third)
            store(work.pull, s, pull)
            correction += fourth * variance * variance * 0.125
            move = _predictor(arrays, s, work.new_b, work.new_beta) - load(work.eta, s)
            determinant_shift += 0.5 * pull * move
            for p in range(effects):
                store(work.across, p, load(work.across, p) + load(work.scaled, s * effects + p) * pull)
        for s in range(first, last):
            third, pull = load(work.third, s) * (1.0 / 12.0), load(work.pull, s) * 0.125
            row = offset + arrays.latent[s] * n
            for t in range(first, s + 1):
                within = load(work.posterior, row + arrays.latent[t])
                between = spread(0.0)
                for p in range(effects):
                    between += load(work.scaled, s * effects + p) * load(work.scaled, t * effects + p)
                # (within + between)^3 - between^3
                cubes = within * (within * within + 3.0 * between * (within + between))
                pair = pull * load(work.pull, t) * within + third * load(work.third, t) * cubes
                correction += pair if s == t else 2.0 * pair
    for p in range(effects):
        correction += load(work.across, p) * load(work.across, p) * 0.125
    correction += _rank_three(work.third, work.scaled, effects) * (1.0 / 12.0)
    value = _log_joint(arrays, work) + load(work.search, GAIN) - 0.5 * load(work.search, LOG_DETERMINANT)
    store(work.results, 0, value + determinant_shift)
    store(work.results, 1, correction)
    _baseline_moments(samples, effects, work)


@compiled
def _scale_row(arrays: FieldArrays, s: int, work: _Work) -> Lanes:
    """Fill scaled_s; returns its squared length, the part of the variance of eta_s that the effects bring."""
    effects = arrays.design.shape[1]
    i = arrays.latent[s]
    length = spread(0.0)
    for p in range(effects):
        value = arrays.design[s, p] - load(work.solved_cross, i * effects + p)
        for q in range(p):
            value -= load(work.schur, p * effects + q) * load(work.scaled, s * effects + q)
        value *= load(work.schur, p * effects + p)
        store(work.scaled, s * effects + p, value)
        length += value * value
    return length


@compiled
def _baseline_moments(samples: int, effects: int, work: _Work) -> None:
    """Mean, variance and third central moment of the first effect."""
    # Covariance of the baseline with eta_s is (U^-T scaled_s)_0; U^-T's first row solves U u = e_0.
    for p in range(effects):
        store(work.row, p, spread(1.0 if p == 0 else 0.0))
    _solve_lower(work.schur, work.row)
    mean, variance, third = load(work.new_beta, 0), spread(0.0), spread(0.0)
    for p in range(effects):
        entry = load(work.row, p)
        mean += 0.5 * entry * load(work.across, p)
        variance += entry * entry
    for s in range(samples):
        covariance = spread(0.0)
        for p in range(effects):
            covariance += load(work.row, p) * load(work.scaled, s * effects + p)
        third += load(work.third, s) * covariance * covariance * covariance
    store(work.results, 2, mean)
    store(work.results, 3, variance)
    store(work.results, 4, third)


@compiled
def _rank_three(weight: NDArray[np.float64], vectors: NDArray[np.float64], effects: int) -> Lanes:
    """sum_st weight_s weight_t (vectors_s . vectors_t)^3 as the squared norm of the third-order moment."""
    norm = spread(0.0)
    for p in range(effects):
        for q in range(p, effects):
            for r in range(q, effects):
                moment = spread(0.0)
                for s in range(weight.shape[0]):
                    row = s * effects
                    moment += load(weight, s) * load(vectors, row + p) * load(vectors, row + q) * load(vectors, row + r)
                multiplicity = 1.0 if p == q == r else (3.0 if (p == q or q == r) else 6.0)
                norm += multiplicity * moment * moment
    return norm


@compiled
def _pooled_logit(meth: NDArray[np.float64], total: NDArray[np.float64]) -> float:
    methylated, unmethylated = 0.5, 0.5
    for s in range(total.shape[0]):
        methylated += meth[s]
        unmethylated += total[s] - meth[s]
    return math.log(methylated / unmethylated)


class _Points(NamedTuple):
    """What is evaluated: L loci at J nodes."""

    meth: NDArray[np.float64]  # [L, S], sorted samples
    total: NDArray[np.float64]  # [L, S]
    constant: NDArray[np.float64]  # [L], log binomial coefficients
    variances: NDArray[np.float64]  # [L, J, 3]
    tau: NDArray[np.float64]  # [L, J]


class _Numerics(NamedTuple):
    """How it is evaluated."""

    quadrature: NDArray[np.float64]  # [2, nodes], Gauss-Hermite nodes and weights of a standard normal
    tolerance: float  # nats, of Newton's method


class _Prior(NamedTuple):
    """The prior of the effects: a Gaussian mixture for the baseline, Gaussians of mean zero for the rest."""

    log_weight: NDArray[np.float64]  # [K]
    mean: NDArray[np.float64]  # [K]
    variance: NDArray[np.float64]  # [K]
    effect_variance: NDArray[np.float64]  # [P - 1]


class _Centre(NamedTuple):
    """The central node of WIDTH loci, for each of K components of the baseline's prior."""

    eta: NDArray[np.float64]  # [K, S, W]
    slope: NDArray[np.float64]  # [K, S, W]
    curvature: NDArray[np.float64]  # [K, S, W]
    beta: NDArray[np.float64]  # [K, P, W]
    relevant: NDArray[np.bool_]  # [K, W]
    dominant: NDArray[np.int64]  # [W], the best component
    merged: NDArray[np.bool_]  # [W], whether one Gaussian stands for the relevant components
    prior_mean: NDArray[np.float64]  # [W], of that Gaussian
    prior_variance: NDArray[np.float64]  # [W]


@compiled
def _evaluate_loci(arrays: FieldArrays, points: _Points, prior: _Prior, numerics: _Numerics, out: NodeResults) -> None:
    """All nodes of some loci. At the central node every component of the baseline's prior is tried by itself; at the
    others the components whose posteriors coincide are replaced by one Gaussian and put right by quadrature."""
    components = prior.log_weight.shape[0]
    samples, effects = arrays.design.shape
    work = _allocate(arrays)
    for p in range(1, effects):
        store(work.prior_variance, p, spread(prior.effect_variance[p - 1]))
    results = np.zeros((components, 5, WIDTH))
    centre = _Centre(
        np.zeros((components, samples, WIDTH)), np.zeros((components, samples, WIDTH)),
        np.zeros((components, samples, WIDTH)), np.zeros((components, effects, WIDTH)),
        np.zeros((components, WIDTH), dtype=np.bool_), np.zeros(WIDTH, dtype=np.int64),
        np.zeros(WIDTH, dtype=np.bool_), np.zeros(WIDTH), np.zeros(WIDTH),
    )  # fmt: skip
    loci, nodes = points.tau.shape
    for first in range(0, loci, WIDTH):
        lanes_used = min(WIDTH, loci - first)
        _central_nodes(arrays, first, points, prior, numerics, work, results, centre, out)
        for lane in range(lanes_used):
            locus = first + lane
            for s in range(samples):
                store(work.meth, s, spread(points.meth[locus, s]))
                store(work.total, s, spread(points.total[locus, s]))
            for node in range(1, nodes, WIDTH):
                for w in range(WIDTH):
                    _set_variances(points, locus, min(node + w, nodes - 1), w, work)
                _factor_prior(arrays, work)
                if centre.merged[lane]:
                    _merged_nodes(arrays, points, locus, node, prior, numerics, work, lane, centre, out)
                else:
                    _separate_nodes(arrays, points, locus, node, prior, numerics, work, lane, centre, results, out)


@cache
def _entry_point() -> Callable[..., int]:
    """What Python calls. The machine code is cached, under a key that changes with every file of the kernel: Numba's
    own looks at this file only."""
    files = (Path(__file__).with_name(name) for name in ("lanes.py", "leaf.py", "laplace.py"))
    version = zlib.crc32(b"".join(file.read_bytes() for file in files))

    @njit(cache=True, nogil=True, error_model="numpy")
    def evaluate_loci(
        arrays: FieldArrays, points: _Points, prior: _Prior, numerics: _Numerics, out: NodeResults
    ) -> int:
        _evaluate_loci(arrays, points, prior, numerics, out)
        return version

    return evaluate_loci


@compiled
def _set_variances(points: _Points, locus: int, node: int, lane: int, work: _Work) -> None:
    for part in range(3):
        work.variances[part, lane] = points.variances[locus, node, part]
    work.variances[3, lane] = points.tau[locus, node]


@compiled
def _central_nodes(
    arrays: FieldArrays,
    first: int,
    points: _Points,
    prior: _Prior,
    numerics: _Numerics,
    work: _Work,
    results: NDArray[np.float64],
    centre: _Centre,
    out: NodeResults,
) -> None:
    """Every component at the central node of WIDTH loci; unused lanes repeat the last locus."""
    last = points.tau.shape[0] - 1
    for w in range(WIDTH):
        locus = min(first + w, last)
        for s in range(work.eta.shape[0]):
            work.meth[s, w] = points.meth[locus, s]
            work.total[s, w] = points.total[locus, s]
        _set_variances(points, locus, 0, w, work)
    _factor_prior(arrays, work)
    for k in range(results.shape[0]):
        store(work.prior_mean, 0, spread(prior.mean[k]))
        store(work.prior_variance, 0, spread(prior.variance[k]))
        _fill(work.b, 0.0)
        _fill(work.start_beta, 0.0)
        for w in range(WIDTH):
            locus = min(first + w, last)
            work.start_beta[0, w] = _pooled_logit(points.meth[locus], points.total[locus])
        _copy(work.start_beta, work.beta)
        store(work.search, EXPECTED, spread(1.0))
        _leaves(arrays, work)
        _laplace(arrays, numerics.tolerance, work)
        store(work.results, 0, load(work.results, 0) + prior.log_weight[k])
        _copy(work.results, results[k])
        _copy(work.eta, centre.eta[k])
        _copy(work.slope, centre.slope[k])
        _copy(work.curvature, centre.curvature[k])
        _copy(work.beta, centre.beta[k])
    for w in range(min(WIDTH, last + 1 - first)):
        for k in range(results.shape[0]):
            centre.relevant[k, w] = True
        best = _mix(results[:, :, w], centre.relevant[:, w], points.constant[first + w], first + w, 0, out)
        centre.dominant[w], centre.merged[w], centre.prior_mean[w], centre.prior_variance[w] = _merge(
            prior, results[:, :, w], centre.relevant[:, w], best
        )


@compiled
def _start_from_centre(centre: _Centre, k: int, lane: int, work: _Work) -> None:
    """Every lane at the mode of component k at the central node of the locus in `lane`."""
    _copy_lane(centre.eta[k], lane, work.eta)
    _copy_lane(centre.slope[k], lane, work.slope)
    _copy_lane(centre.curvature[k], lane, work.curvature)
    _copy_lane(centre.beta[k], lane, work.start_beta)
    _copy(work.start_beta, work.beta)


@compiled
def _merged_nodes(
    arrays: FieldArrays,
    points: _Points,
    locus: int,
    node: int,
    prior: _Prior,
    numerics: _Numerics,
    work: _Work,
    lane: int,
    centre: _Centre,
    out: NodeResults,
) -> None:
    """Nodes from `node` on of a locus at which one Gaussian stands for all components."""
    merged_mean, merged_variance = centre.prior_mean[lane], centre.prior_variance[lane]
    store(work.prior_mean, 0, spread(merged_mean))
    store(work.prior_variance, 0, spread(merged_variance))
    _start_from_centre(centre, centre.dominant[lane], lane, work)
    _laplace(arrays, numerics.tolerance, work)
    _reweight(prior, merged_mean, merged_variance, numerics.quadrature, work.results)
    for w in range(min(WIDTH, points.tau.shape[1] - node)):
        value = work.results[0, w] + points.constant[locus]
        if math.isfinite(value):
            _store(
                out, locus, node + w, value, work.results[1, w],
                work.results[2, w], work.results[3, w], work.results[4, w],
            )  # fmt: skip
        else:
            _store(out, locus, node + w, -np.inf, NOT_CONVERGED, merged_mean, merged_variance, 0.0)


@compiled
def _separate_nodes(
    arrays: FieldArrays,
    points: _Points,
    locus: int,
    node: int,
    prior: _Prior,
    numerics: _Numerics,
    work: _Work,
    lane: int,
    centre: _Centre,
    results: NDArray[np.float64],
    out: NodeResults,
) -> None:
    """Nodes from `node` on of a locus whose components have posteriors of their own."""
    for k in range(results.shape[0]):
        if centre.relevant[k, lane]:
            store(work.prior_mean, 0, spread(prior.mean[k]))
            store(work.prior_variance, 0, spread(prior.variance[k]))
            _start_from_centre(centre, k, lane, work)
            _laplace(arrays, numerics.tolerance, work)
            store(work.results, 0, load(work.results, 0) + prior.log_weight[k])
            _copy(work.results, results[k])
    for w in range(min(WIDTH, points.tau.shape[1] - node)):
        _mix(results[:, :, w], centre.relevant[:, lane], points.constant[locus], locus, node + w, out)


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
    quadrature: NDArray[np.float64],
    results: NDArray[np.float64],
) -> None:
    """Replace the merged prior of the baseline by the mixture, in `results`: log E[ratio] is added to the evidence, and
    the moments become those under the mixture.

    The expectation is over the baseline's posterior under the merged prior, a Gaussian with a first-order skewness term
    (Cornish-Fisher), where the ratio is nearly constant.
    """
    mean, variance = load(results, 2), load(results, 3)
    sd = square_root(variance)
    skewness = load(results, 4) / (variance * sd)
    total, first, second, third = spread(0.0), spread(0.0), spread(0.0), spread(0.0)  # raw moments about the old mean
    for i in range(quadrature.shape[1]):
        z = quadrature[0, i]
        step = sd * (z + skewness * ((z * z - 1.0) / 6.0))
        x = mean + step
        from_merged = x - merged_mean
        base = from_merged * from_merged * (0.5 / merged_variance)
        weight = spread(0.0)
        for k in range(prior.mean.shape[0]):
            from_component = x - prior.mean[k]
            scale = math.exp(prior.log_weight[k]) * math.sqrt(merged_variance / prior.variance[k])
            exponent = base - from_component * from_component * (0.5 / prior.variance[k])
            weight += scale * exponential(exponent)
        weight *= quadrature[1, i]
        total += weight
        first += weight * step
        second += weight * step * step
        third += weight * step * step * step
    first, second, third = first / total, second / total, third / total
    store(results, 0, load(results, 0) + logarithm(total))
    store(results, 2, mean + first)
    store(results, 3, second - first * first)
    store(results, 4, third - 3.0 * first * second + 2.0 * first * first * first)


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
