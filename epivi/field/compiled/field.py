"""The Gaussian field of the kernel: scratch memory, the prior's factors, and the solution for given sites, in lanes.

For one locus and fixed variance components the observations are m_s ~ Binomial(n_s, eps_s + (1 - eps_s - delta_s)
sigmoid(eta_s)), eta_s = x_s' beta + b_i(s), with beta ~ N(mu, diag(v)) and b ~ N(0, K), K block-diagonal. Each
observation is replaced by a site, a Gaussian in eta_s of curvature W_s. With T = (K^-1 + W)^-1 block by block, the
effects are eliminated last through their Schur complement. Across blocks the posterior covariance of eta then has the
rank of the effects, so that all work is linear in blocks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epivi.field.compiled.simd import (
    WIDTH,
    Lanes,
    compiled,
    exponent,
    load,
    logarithm,
    power_of_two,
    select_less,
    spread,
    square_root,
    store,
)
from epivi.field.layout import NUGGET, LatentField

PIVOTS_A_PRODUCT = 8  # pivots multiplied before their exponent is taken out: the product neither over- nor underflows
CACHE_LINE_BYTES = 64


class FieldArrays(NamedTuple):
    """A LatentField as the kernel wants it; samples are sorted by latent."""

    sample_order: NDArray[np.int32]  # [S]
    latent: NDArray[np.int32]  # [S], latent of each sorted sample
    block_start: NDArray[np.int32]  # [F + 1]
    block_sample_start: NDArray[np.int32]  # [F + 1]
    matrix_start: NDArray[np.int64]  # [F + 1], offset of each block's square matrix
    entry_start: NDArray[np.int32]
    entry_component: NDArray[np.int32]
    entry_row: NDArray[np.int32]
    entry_column: NDArray[np.int32]
    entry_exponent: NDArray[np.int32]
    entry_coefficient: NDArray[np.float64]
    components: int  # C
    design: NDArray[np.float64]  # [S, P], sorted samples
    false_methylated: NDArray[np.float64]  # [S]
    false_unmethylated: NDArray[np.float64]  # [S]


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
        entry_component=field.entry_component,
        entry_row=field.entry_row,
        entry_column=field.entry_column,
        entry_exponent=field.entry_exponent,
        entry_coefficient=field.entry_coefficient,
        components=field.components,
        design=np.ascontiguousarray(field.design[order]),
        false_methylated=false_methylated[order],
        false_unmethylated=false_unmethylated[order],
    )


class Work(NamedTuple):
    """One thread's scratch: S samples, N latents, P effects of which the last G are of columns whose values differ
    between loci, Q the summed squares of block sizes, E powers of tau, C covariance components.

    Every row holds a number for each of WIDTH points.
    """

    meth: NDArray[np.float64]  # [S, W]
    total: NDArray[np.float64]  # [S, W]
    locus_design: NDArray[np.float64]  # [S G, W], the columns of the design whose values differ between loci
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
    whitened: NDArray[np.float64]  # [N, W], R^-1 pseudo
    cross: NDArray[np.float64]  # [N P, W], C = Z' W X
    whitened_cross: NDArray[np.float64]  # [N P, W], R^-1 C
    solved_cross: NDArray[np.float64]  # [N P, W], T C
    precision: NDArray[np.float64]  # [Q, W], K^-1, lower triangle
    factor: NDArray[np.float64]  # [Q, W], R with R R' = K^-1 + W, lower triangle; at the mode T
    beta: NDArray[np.float64]  # [P, W]
    new_beta: NDArray[np.float64]  # [P, W]
    old_beta: NDArray[np.float64]  # [P, W]
    start_beta: NDArray[np.float64]  # [P, W], where a damped search starts
    prior_mean: NDArray[np.float64]  # [P, W]
    prior_variance: NDArray[np.float64]  # [P, W]
    across: NDArray[np.float64]  # [P, W]
    schur: NDArray[np.float64]  # [P P, W]
    effect_root: NDArray[np.float64]  # [P P, W], E with E E' the posterior covariance of the effects, row by row
    powers: NDArray[np.float64]  # [E, W]
    prior_determinant: NDArray[np.float64]  # [2, W], |K|: mantissa and exponent of two
    determinant: NDArray[np.float64]  # [2, W], |K^-1 + W| |Schur|
    variances: NDArray[np.float64]  # [C + 2, W]: of each component and of the residual; tau
    results: NDArray[np.float64]  # [rows of the results below, W]
    search: NDArray[np.float64]  # [rows of the search below, W]


# Rows of Work.results: log evidence and correction; then, for each of the P effects of which the baseline is the first,
# P means, P variances, P third central moments, and P covariances with the baseline.
EVIDENCE, CORRECTION, MEANS = 0, 1, 2


@compiled
def result_rows(effects: int) -> int:
    return MEANS + 4 * effects


@compiled
def effects_of(rows: int) -> int:
    """The effects P of so many rows of results."""
    return (rows - MEANS) // 4


@compiled
def variance_row(effects: int) -> int:
    return MEANS + effects


@compiled
def third_row(effects: int) -> int:
    return MEANS + 2 * effects


@compiled
def covariance_row(effects: int) -> int:
    return MEANS + 3 * effects


# Rows of Work.search: the state of Newton's method in each lane. Flags are 0 or 1.
GAIN, PREVIOUS_GAIN, JOINT, JOINT_BEFORE = 0, 1, 2, 3
DONE, DAMPED, EXPECTED, TRIAL, HALVINGS = 4, 5, 6, 7, 8
TAKE, KEEP, BACK, MARK, RESTART = 9, 10, 11, 12, 13  # how the point moves next
MISMATCH = 14  # of expectation propagation
SEARCH_ROWS = 15


@compiled
def allocate(arrays: FieldArrays, locus_columns: int) -> Work:
    s, p = arrays.design.shape
    p += locus_columns
    n = arrays.block_start[-1]
    q = arrays.matrix_start[-1]
    degree = 1
    for e in arrays.entry_exponent:
        degree = max(degree, e + 1)
    return Work(
        _rows(s), _rows(s), _rows(s * locus_columns), _rows(s), _rows(s), _rows(s), _rows(s), _rows(s), _rows(s * p),
        _rows(n), _rows(n), _rows(n), _rows(n), _rows(n), _rows(n), _rows(n), _rows(n), _rows(n),
        _rows(n * p), _rows(n * p), _rows(n * p), _rows(q), _rows(q),
        _rows(p), _rows(p), _rows(p), _rows(p), _rows(p), _rows(p), _rows(p), _rows(p * p), _rows(p * p),
        _rows(degree), _rows(2), _rows(2), _rows(arrays.components + 2), _rows(result_rows(p)), _rows(SEARCH_ROWS),
    )  # fmt: skip


@compiled
def _rows(n: int) -> NDArray[np.float64]:
    """Zeros [n, WIDTH] that start at a cache line: a vector that straddles two lines takes two loads."""
    spare = CACHE_LINE_BYTES // 8
    memory = np.zeros(n * WIDTH + spare)
    skip = (spare - memory.ctypes.data // 8 % spare) % spare
    return memory[skip : skip + n * WIDTH].reshape(n, WIDTH)


@compiled
def copy(source: NDArray[np.float64], target: NDArray[np.float64]) -> None:
    for i in range(source.shape[0]):
        store(target, i, load(source, i))


@compiled
def fill(target: NDArray[np.float64], value: float) -> None:
    for i in range(target.shape[0]):
        store(target, i, spread(value))


@compiled
def copy_lane(source: NDArray[np.float64], lane: int, target: NDArray[np.float64]) -> None:
    """One lane of `source` into every lane of `target`."""
    for i in range(source.shape[0]):
        store(target, i, spread(source[i, lane]))


@compiled
def cholesky(a: NDArray[np.float64], offset: int, n: int, determinant: NDArray[np.float64]) -> None:
    """Lower Cholesky factor in place of the n x n matrix that starts at a[offset], row by row; on the diagonal stand
    the reciprocals, as divisions are slow.

    Multiplies `determinant` [2, W], a mantissa and an exponent of two; the mantissa becomes not a number in lanes where
    the matrix is not positive definite.
    """
    product = load(determinant, 0)
    for j in range(n):
        row = offset + j * n
        pivot = load(a, row + j)
        for k in range(j):
            pivot -= load(a, row + k) * load(a, row + k)
        product *= select_less(0.0, pivot, pivot, np.nan)
        if (j + 1) % PIVOTS_A_PRODUCT == 0 or j == n - 1:
            power = exponent(product)
            product *= power_of_two(0.0 - power)
            store(determinant, 1, load(determinant, 1) + power)
        inverse = 1.0 / square_root(pivot)
        store(a, row + j, inverse)
        for i in range(j + 1, n):
            other = offset + i * n
            value = load(a, other + j)
            for k in range(j):
                value -= load(a, other + k) * load(a, row + k)
            store(a, other + j, value * inverse)
    store(determinant, 0, product)


@compiled
def clear_determinant(determinant: NDArray[np.float64]) -> None:
    store(determinant, 0, spread(1.0))
    store(determinant, 1, spread(0.0))


@compiled
def log_determinant(determinant: NDArray[np.float64]) -> Lanes:
    return logarithm(load(determinant, 0)) + load(determinant, 1) * math.log(2.0)


@compiled
def invert(a: NDArray[np.float64], offset: int, n: int) -> None:
    """From a factor R as `cholesky` leaves it to (R R')^-1, in place, lower triangle."""
    for j in range(n):
        first = load(a, offset + j * n + j)
        for i in range(j + 1, n):
            row = offset + i * n
            value = load(a, row + j) * first
            for k in range(j + 1, i):
                value += load(a, row + k) * load(a, offset + k * n + j)
            store(a, row + j, 0.0 - value * load(a, row + i))
    # Now R^-1 = Y. The sums of Y' Y reach from their row downwards, so that a finished row is not read again.
    for i in range(n):
        for j in range(i + 1):
            value = spread(0.0)
            for k in range(i, n):
                value += load(a, offset + k * n + i) * load(a, offset + k * n + j)
            store(a, offset + i * n + j, value)


@compiled
def invert_prior(arrays: FieldArrays, work: Work) -> None:
    """Precision K^-1 of every block and the determinant |K|, for the variances and tau in work.variances."""
    residual, tau = load(work.variances, arrays.components), load(work.variances, arrays.components + 1)
    store(work.powers, 0, spread(1.0))
    for e in range(1, work.powers.shape[0]):
        store(work.powers, e, load(work.powers, e - 1) * tau)
    variance = spread(0.0)
    for part in range(arrays.components + 1):
        variance += load(work.variances, part)
    own = residual + NUGGET * variance
    clear_determinant(work.prior_determinant)
    for f in range(arrays.block_start.shape[0] - 1):
        n = arrays.block_start[f + 1] - arrays.block_start[f]
        offset = arrays.matrix_start[f]
        for i in range(n):
            for j in range(i):
                store(work.precision, offset + i * n + j, spread(0.0))
            store(work.precision, offset + i * n + i, own)
        for entry in range(arrays.entry_start[f], arrays.entry_start[f + 1]):
            place = offset + arrays.entry_row[entry] * n + arrays.entry_column[entry]
            term = load(work.variances, arrays.entry_component[entry]) * arrays.entry_coefficient[entry]
            term *= load(work.powers, arrays.entry_exponent[entry])
            store(work.precision, place, load(work.precision, place) + term)
        cholesky(work.precision, offset, n, work.prior_determinant)
        invert(work.precision, offset, n)


@compiled
def predictor(arrays: FieldArrays, s: int, b: NDArray[np.float64], beta: NDArray[np.float64], work: Work) -> Lanes:
    """Linear predictor of sample s."""
    y = load(b, arrays.latent[s])
    fixed = arrays.design.shape[1]
    own = beta.shape[0] - fixed
    for p in range(fixed):
        y += arrays.design[s, p] * load(beta, p)
    for g in range(own):
        y += load(work.locus_design, s * own + g) * load(beta, fixed + g)
    return y


@compiled
def solve_field(arrays: FieldArrays, work: Work) -> None:
    """Solve for the maximum of the quadratic expansion at the current point.

    Fills factor, whitened, whitened_cross, schur (its Cholesky factor), the determinant and the new b, dual and beta.
    The determinant's mantissa is not a number where the curvature is not positive definite.
    """
    _sum_observations(arrays, work)
    clear_determinant(work.determinant)
    effects = work.beta.shape[0]
    for f in range(arrays.block_start.shape[0] - 1):
        start = arrays.block_start[f]
        n = arrays.block_start[f + 1] - start
        offset = arrays.matrix_start[f]
        for i in range(n):
            for j in range(i):
                store(work.factor, offset + i * n + j, load(work.precision, offset + i * n + j))
            diagonal = offset + i * n + i
            store(work.factor, diagonal, load(work.precision, diagonal) + load(work.weight, start + i))
        cholesky(work.factor, offset, n, work.determinant)
        for i in range(n):
            row = offset + i * n
            inverse = load(work.factor, row + i)
            value = load(work.pseudo, start + i)
            for k in range(i):
                value -= load(work.factor, row + k) * load(work.whitened, start + k)
            value *= inverse
            store(work.whitened, start + i, value)
            for p in range(effects):
                cross = load(work.cross, (start + i) * effects + p)
                for k in range(i):
                    cross -= load(work.factor, row + k) * load(work.whitened_cross, (start + k) * effects + p)
                cross *= inverse
                store(work.whitened_cross, (start + i) * effects + p, cross)
                store(work.new_beta, p, load(work.new_beta, p) - cross * value)
                for q in range(p + 1):
                    shared = cross * load(work.whitened_cross, (start + i) * effects + q)
                    store(work.schur, p * effects + q, load(work.schur, p * effects + q) - shared)
    cholesky(work.schur, 0, effects, work.determinant)
    solve_lower(work.schur, work.new_beta)
    solve_upper(work.schur, work.new_beta)
    for f in range(arrays.block_start.shape[0] - 1):
        start = arrays.block_start[f]
        n = arrays.block_start[f + 1] - start
        offset = arrays.matrix_start[f]
        for i in range(n - 1, -1, -1):
            value, dual = load(work.whitened, start + i), load(work.pseudo, start + i)
            for p in range(effects):
                beta = load(work.new_beta, p)
                value -= load(work.whitened_cross, (start + i) * effects + p) * beta
                dual -= load(work.cross, (start + i) * effects + p) * beta
            for k in range(i + 1, n):
                value -= load(work.factor, offset + k * n + i) * load(work.new_b, start + k)
            value *= load(work.factor, offset + i * n + i)
            store(work.new_b, start + i, value)
            store(work.new_dual, start + i, dual - load(work.weight, start + i) * value)


@compiled
def log_volume(work: Work) -> Lanes:
    """log|I + K W| + log|Schur| + sum log prior_variance, after `solve_field`."""
    value = log_determinant(work.prior_determinant) + log_determinant(work.determinant)
    for p in range(work.beta.shape[0]):
        value += logarithm(load(work.prior_variance, p))
    return value


@compiled
def _sum_observations(arrays: FieldArrays, work: Work) -> None:
    """Sum the observations' curvatures and targets by latent and effect."""
    effects, fixed = work.beta.shape[0], arrays.design.shape[1]
    own = effects - fixed
    fill(work.weight, 0.0)
    fill(work.pseudo, 0.0)
    fill(work.cross, 0.0)
    fill(work.schur, 0.0)
    for p in range(effects):
        variance = load(work.prior_variance, p)
        store(work.new_beta, p, load(work.prior_mean, p) / variance)
        store(work.schur, p * effects + p, 1.0 / variance)
    for s in range(work.eta.shape[0]):
        i = arrays.latent[s]
        w = load(work.curvature, s)
        target = w * load(work.eta, s) + load(work.slope, s)
        store(work.weight, i, load(work.weight, i) + w)
        store(work.pseudo, i, load(work.pseudo, i) + target)
        for p in range(fixed):
            x = arrays.design[s, p]
            store(work.cross, i * effects + p, load(work.cross, i * effects + p) + w * x)
            store(work.new_beta, p, load(work.new_beta, p) + x * target)
            for q in range(p + 1):
                value = load(work.schur, p * effects + q) + w * (x * arrays.design[s, q])
                store(work.schur, p * effects + q, value)
        for g in range(own):
            p, of_locus = fixed + g, load(work.locus_design, s * own + g)
            weighted = w * of_locus
            store(work.cross, i * effects + p, load(work.cross, i * effects + p) + weighted)
            store(work.new_beta, p, load(work.new_beta, p) + of_locus * target)
            for q in range(fixed):
                store(work.schur, p * effects + q, load(work.schur, p * effects + q) + weighted * arrays.design[s, q])
            for h in range(g + 1):
                place = p * effects + fixed + h
                store(work.schur, place, load(work.schur, place) + weighted * load(work.locus_design, s * own + h))


@compiled
def solve_lower(factor: NDArray[np.float64], v: NDArray[np.float64]) -> None:
    n = v.shape[0]
    for i in range(n):
        value = load(v, i)
        for k in range(i):
            value -= load(factor, i * n + k) * load(v, k)
        store(v, i, value * load(factor, i * n + i))


@compiled
def solve_upper(factor: NDArray[np.float64], v: NDArray[np.float64]) -> None:
    """Solve with the transpose of a lower factor."""
    n = v.shape[0]
    for i in range(n - 1, -1, -1):
        value = load(v, i)
        for k in range(i + 1, n):
            value -= load(factor, k * n + i) * load(v, k)
        store(v, i, value * load(factor, i * n + i))


@compiled
def effect_covariance(work: Work) -> None:
    """After `solve_field`: effect_root, and the effects' variances and covariances with the baseline into results.

    Their covariance is (U U')^-1 with U = schur, the field eliminated, so that row p of its root solves U u = e_p.
    """
    effects = work.beta.shape[0]
    for p in range(effects):
        row = work.effect_root[p * effects : (p + 1) * effects]
        for q in range(effects):
            store(row, q, spread(1.0 if q == p else 0.0))
        solve_lower(work.schur, row)
        variance, covariance = spread(0.0), spread(0.0)
        for q in range(effects):
            entry = load(row, q)
            variance += entry * entry
            covariance += entry * load(work.effect_root, q)
        store(work.results, variance_row(effects) + p, variance)
        store(work.results, covariance_row(effects) + p, covariance)


@compiled
def posterior_blocks(arrays: FieldArrays, work: Work) -> None:
    """After `solve_field`: T C into solved_cross, and T, lower triangle, in the place of factor."""
    effects = work.beta.shape[0]
    for f in range(arrays.block_start.shape[0] - 1):
        start = arrays.block_start[f]
        n = arrays.block_start[f + 1] - start
        offset = arrays.matrix_start[f]
        for p in range(effects):
            for i in range(n - 1, -1, -1):
                value = load(work.whitened_cross, (start + i) * effects + p)
                for k in range(i + 1, n):
                    value -= load(work.factor, offset + k * n + i) * load(work.solved_cross, (start + k) * effects + p)
                store(work.solved_cross, (start + i) * effects + p, value * load(work.factor, offset + i * n + i))
        invert(work.factor, offset, n)


@compiled
def scale_row(arrays: FieldArrays, s: int, work: Work) -> Lanes:
    """Fill scaled_s; returns its squared length, the part of the variance of eta_s that the effects bring."""
    effects, fixed = work.beta.shape[0], arrays.design.shape[1]
    own = effects - fixed
    i = arrays.latent[s]
    length = spread(0.0)
    for p in range(fixed):
        value = arrays.design[s, p] - load(work.solved_cross, i * effects + p)
        length += _scale_entry(value, s, p, effects, work)
    for g in range(own):
        p = fixed + g
        value = load(work.locus_design, s * own + g) - load(work.solved_cross, i * effects + p)
        length += _scale_entry(value, s, p, effects, work)
    return length


@compiled
def _scale_entry(value: Lanes, s: int, p: int, effects: int, work: Work) -> Lanes:
    """Store the entry of scaled_s of which `value` is the right-hand side; returns its square."""
    for q in range(p):
        value -= load(work.schur, p * effects + q) * load(work.scaled, s * effects + q)
    value *= load(work.schur, p * effects + p)
    store(work.scaled, s * effects + p, value)
    return value * value
