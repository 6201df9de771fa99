"""The inner integral at every outer node of every locus: a Gaussian field with binomial counts and effects, whose
baseline has a mixture of Gaussians for a prior.

Everything is float64 and compiled, and works on WIDTH points at once (epivi.field.compiled.simd): first the central
nodes of as many loci, then the other nodes of each locus. The compiled loop releases the interpreter lock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from epivi.field import layout
from epivi.field.compiled.expectation_propagation import propagate
from epivi.field.compiled.field import (
    CORRECTION,
    DONE,
    EVIDENCE,
    EXPECTED,
    MEANS,
    FieldArrays,
    Work,
    allocate,
    copy,
    copy_lane,
    covariance_row,
    effects_of,
    field_arrays,
    fill,
    invert_prior,
    result_rows,
    third_row,
    variance_row,
)
from epivi.field.compiled.laplace import NOT_CONVERGED, expand_observations, laplace
from epivi.field.compiled.simd import (
    WIDTH,
    Lanes,
    compiled,
    entry_point,
    exponential,
    load,
    logarithm,
    spread,
    square_root,
    store,
)
from epivi.field.layout import LatentField

DECREMENT_TOLERANCE = 1e-4  # nats: predicted gain of the next Newton step, whose effect is still added to first order
IRRELEVANT_COMPONENT_NATS = 14.0  # a mixture component this far below the best is left out
SMALL_COMPONENT_NATS = 3.0  # this far below the best, where kept apart, a component matters little to central_step
SEPARATE_MODES = (
    0.25  # variance between the components' posterior means, relative to that within, above which they stay apart
)
REWEIGHT_NODES = 9  # the ratio of mixture and merged prior is nearly constant
TILTED_NODES = 21
EXPECTATION_PROPAGATION = 1
INNER_METHOD_CODES = {
    "laplace": 0,
    "ep": EXPECTATION_PROPAGATION,
}  # of the inner integral, by their number in compiled code


class NodeResults(NamedTuple):
    """The inner integral at every locus and node (L loci, J nodes, P effects of which the baseline is the first)."""

    log_evidence: NDArray[np.float64]  # [L, J], nats, binomial coefficients included, corrected
    correction: NDArray[np.float64]  # [L, J], the second-order correction c
    effect_mean: NDArray[np.float64]  # [L, J, P], logit for each unit of the design's column
    effect_variance: NDArray[np.float64]  # [L, J, P]
    effect_third: NDArray[np.float64]  # [L, J, P], third central moment
    central_step: NDArray[np.float64]  # [L], nats from Laplace to EP at node 0; inf where EP did not settle


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
    tolerance: float = DECREMENT_TOLERANCE,
    method: str = "laplace",
    locus_design: NDArray[np.float64] | None = None,
) -> NodeResults:
    """The inner integral at given variance components.

    meth, total: [L, S] in the cohort's sample order. variances: [L, J, C + 1], of each covariance component and of the
    residual. tau: [L, J]. Node 0 of each locus should be central: the other nodes start from its mode. The baseline has
    a Gaussian mixture prior (K components), the further effects N(0, effect_sd^2). tolerance: Newton's method stops
    where the next step would gain less, in nats. method: a key of INNER_METHOD_CODES; `ep` goes on from
    `laplace` at all nodes but the central one. locus_design: [L, S, G], finite, further columns of the design whose
    values differ between loci; the last G of effect_sd and of the effects in the results are theirs.
    """
    check_variances(arrays, variances)
    of_loci = np.zeros((*meth.shape, 0)) if locus_design is None else locus_design
    at_nodes = [np.empty(tau.shape) for _ in range(2)]
    of_effects = [np.empty((*tau.shape, arrays.design.shape[1] + of_loci.shape[2])) for _ in range(3)]
    out = NodeResults._make([*at_nodes, *of_effects, np.empty(len(tau))])
    methylated, reads = (np.ascontiguousarray(x[:, arrays.sample_order], dtype=np.float64) for x in (meth, total))
    log_factorial = gammaln(np.arange(np.max(total, initial=0) + 1.0) + 1.0)
    m, n = meth.astype(np.intp), total.astype(np.intp)
    constant = (log_factorial[n] - log_factorial[m] - log_factorial[n - m]).sum(1)
    prior = _Prior(*(_as_compiled(x) for x in (np.log(mixture_weight), mixture_mean, mixture_sd**2, effect_sd**2)))

    of_loci = np.ascontiguousarray(of_loci[:, arrays.sample_order], dtype=np.float64)
    points = _Points(methylated, reads, of_loci, constant, _as_compiled(variances), _as_compiled(tau))
    numerics = _Numerics(
        _gauss_hermite(REWEIGHT_NODES), tolerance, INNER_METHOD_CODES[method], _gauss_hermite(TILTED_NODES)
    )

    _entry_point()(arrays, points, prior, numerics, out)
    return out


def check_variances(arrays: FieldArrays, variances: NDArray[np.float64]) -> None:
    """Raises ValueError where there is not one variance for each component and one for the residual."""
    if variances.shape[-1] != arrays.components + 1:
        raise ValueError(f"{variances.shape[-1]} variances: expected {arrays.components} and that of the residual")


def _as_compiled(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """In the one layout for which there is machine code: another one, and a view that is read-only, would have the
    kernel compiled once more, which takes a minute or two."""
    return np.require(x, np.float64, ["C", "W"])


def _gauss_hermite(nodes: int) -> NDArray[np.float64]:
    """Nodes and weights [2, nodes] of a standard normal."""
    node, weight = np.polynomial.hermite_e.hermegauss(nodes)
    return np.stack([node, weight / weight.sum()])


def compile_kernel() -> None:
    """Compile everything by evaluating one locus of one sample."""
    whole, none = np.array([0, 1], dtype=np.int32), np.zeros(0, dtype=np.int32)
    field = LatentField(
        latent_of_sample=whole[:1],
        block_start=whole,
        entry_start=whole * 0,
        entry_component=none,
        entry_row=none,
        entry_column=none,
        entry_exponent=none,
        entry_coefficient=np.zeros(0),
        components=0,
        design=np.ones((1, 1)),
        design_column=none,
        individual=whole[:1],
    )
    counts = np.ones((1, 1), dtype=np.uint16)
    one = np.ones(1)
    arrays = field_arrays(field, 0 * one, 0 * one)
    evaluate_nodes(arrays, counts, counts, np.ones((1, 1, 1)), np.ones((1, 1)), one, one, one, np.zeros(0))


class _Points(NamedTuple):
    """What is evaluated: L loci at J nodes."""

    meth: NDArray[np.float64]  # [L, S], sorted samples
    total: NDArray[np.float64]  # [L, S]
    locus_design: NDArray[np.float64]  # [L, S, G]
    constant: NDArray[np.float64]  # [L], log binomial coefficients
    variances: NDArray[np.float64]  # [L, J, C + 1]
    tau: NDArray[np.float64]  # [L, J]


class _Numerics(NamedTuple):
    """How it is evaluated."""

    quadrature: NDArray[np.float64]  # [2, nodes], Gauss-Hermite nodes and weights of a standard normal
    tolerance: float  # nats, of Newton's method
    method: int  # a value of INNER_METHOD_CODES
    tilted_quadrature: NDArray[np.float64]  # [2, nodes], for the tilted distributions of EP


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
    samples, own = arrays.design.shape[0], points.locus_design.shape[2]
    effects = arrays.design.shape[1] + own
    work = allocate(arrays, own)
    for p in range(1, effects):
        store(work.prior_variance, p, spread(prior.effect_variance[p - 1]))
    results = np.zeros((components, result_rows(effects), WIDTH))
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
                for g in range(own):
                    store(work.locus_design, s * own + g, spread(points.locus_design[locus, s, g]))
            for node in range(1, nodes, WIDTH):
                for w in range(WIDTH):
                    _set_variances(points, locus, min(node + w, nodes - 1), w, work)
                invert_prior(arrays, work)
                if centre.merged[lane]:
                    _merged_nodes(arrays, points, locus, node, prior, numerics, work, lane, centre, out)
                else:
                    _separate_nodes(arrays, points, locus, node, prior, numerics, work, lane, centre, results, out)


@cache
def _entry_point() -> Callable[..., None]:
    """What Python calls."""

    def evaluate_loci(
        arrays: FieldArrays, points: _Points, prior: _Prior, numerics: _Numerics, out: NodeResults
    ) -> None:
        _evaluate_loci(arrays, points, prior, numerics, out)

    return entry_point(evaluate_loci, [*sorted(Path(__file__).parent.glob("*.py")), Path(layout.__file__)])


@compiled
def _set_variances(points: _Points, locus: int, node: int, lane: int, work: Work) -> None:
    parts = points.variances.shape[2]
    for part in range(parts):
        work.variances[part, lane] = points.variances[locus, node, part]
    work.variances[parts, lane] = points.tau[locus, node]


@compiled
def _central_nodes(
    arrays: FieldArrays,
    first: int,
    points: _Points,
    prior: _Prior,
    numerics: _Numerics,
    work: Work,
    results: NDArray[np.float64],
    centre: _Centre,
    out: NodeResults,
) -> None:
    """Every component at the central node of WIDTH loci; unused lanes repeat the last locus."""
    last, own = points.tau.shape[0] - 1, points.locus_design.shape[2]
    for w in range(WIDTH):
        locus = min(first + w, last)
        for s in range(work.eta.shape[0]):
            work.meth[s, w] = points.meth[locus, s]
            work.total[s, w] = points.total[locus, s]
            for g in range(own):
                work.locus_design[s * own + g, w] = points.locus_design[locus, s, g]
        _set_variances(points, locus, 0, w, work)
    invert_prior(arrays, work)
    for k in range(results.shape[0]):
        store(work.prior_mean, 0, spread(prior.mean[k]))
        store(work.prior_variance, 0, spread(prior.variance[k]))
        fill(work.b, 0.0)
        fill(work.start_beta, 0.0)
        for w in range(WIDTH):
            locus = min(first + w, last)
            work.start_beta[0, w] = _pooled_logit(points.meth[locus], points.total[locus])
        copy(work.start_beta, work.beta)
        store(work.search, EXPECTED, spread(1.0))
        expand_observations(arrays, work)
        laplace(arrays, numerics.tolerance, work)
        store(work.results, EVIDENCE, load(work.results, EVIDENCE) + prior.log_weight[k])
        copy(work.results, results[k])
        copy(work.eta, centre.eta[k])
        copy(work.slope, centre.slope[k])
        copy(work.curvature, centre.curvature[k])
        copy(work.beta, centre.beta[k])
    for w in range(min(WIDTH, last + 1 - first)):
        for k in range(results.shape[0]):
            centre.relevant[k, w] = True
        best = _mix(results[:, :, w], centre.relevant[:, w], points.constant[first + w], first + w, 0, out)
        centre.dominant[w], centre.merged[w], centre.prior_mean[w], centre.prior_variance[w] = _merge(
            prior, results[:, :, w], centre.relevant[:, w], best
        )
    _central_steps(arrays, first, prior, numerics, work, results, centre, out)


@compiled
def _central_steps(
    arrays: FieldArrays,
    first: int,
    prior: _Prior,
    numerics: _Numerics,
    work: Work,
    results: NDArray[np.float64],
    centre: _Centre,
    out: NodeResults,
) -> None:
    """What expectation propagation adds to Laplace's evidence at the central nodes, as the other nodes go about it:
    under one Gaussian for all components of the baseline's prior, or by the components that are kept apart."""
    last = min(WIDTH, out.central_step.shape[0] - first) - 1
    sums = np.zeros((2, WIDTH))  # evidence by Laplace and by propagation, relative to the best component's
    components = np.zeros(WIDTH, dtype=np.int64)
    for turn in range(results.shape[0]):
        waiting = False
        for w in range(WIDTH):
            lane = min(w, last)
            k = _component_in_turn(centre, results, lane, turn)
            waiting, components[w] = waiting or k >= 0, k
            _start_lane(centre, max(k, 0), lane, w, prior, work)
        if not waiting:
            break
        laplace(arrays, numerics.tolerance, work)
        _add_evidence(prior, centre, components, last, numerics.quadrature, work, results, sums[0])
        propagate(arrays, numerics.tilted_quadrature, work)
        for w in range(WIDTH):
            if work.search[DONE, w] == 0.0:
                work.results[EVIDENCE, w] = np.nan
        _add_evidence(prior, centre, components, last, numerics.quadrature, work, results, sums[1])
    for w in range(last + 1):
        step = math.log(sums[1, w] / sums[0, w])
        out.central_step[first + w] = step if math.isfinite(step) else np.inf


@compiled
def _component_in_turn(centre: _Centre, results: NDArray[np.float64], lane: int, turn: int) -> int:
    """The dominant component first; then others of some weight, if they are kept apart; -1 after the last."""
    dominant = centre.dominant[lane]
    if turn == 0:
        return dominant
    if centre.merged[lane]:
        return -1
    for k in range(results.shape[0]):
        if k != dominant and results[k, EVIDENCE, lane] > results[dominant, EVIDENCE, lane] - SMALL_COMPONENT_NATS:
            turn -= 1
            if turn == 0:
                return k
    return -1


@compiled
def _start_lane(centre: _Centre, k: int, lane: int, w: int, prior: _Prior, work: Work) -> None:
    """Put lane w of the work at the mode that component k has at the central node in `lane`, under its prior."""
    if centre.merged[lane]:
        work.prior_mean[0, w], work.prior_variance[0, w] = centre.prior_mean[lane], centre.prior_variance[lane]
    else:
        work.prior_mean[0, w], work.prior_variance[0, w] = prior.mean[k], prior.variance[k]
    for s in range(work.eta.shape[0]):
        work.eta[s, w] = centre.eta[k, s, lane]
        work.slope[s, w] = centre.slope[k, s, lane]
        work.curvature[s, w] = centre.curvature[k, s, lane]
    for p in range(work.beta.shape[0]):
        work.start_beta[p, w] = work.beta[p, w] = centre.beta[k, p, lane]


@compiled
def _add_evidence(
    prior: _Prior,
    centre: _Centre,
    components: NDArray[np.int64],
    last: int,
    quadrature: NDArray[np.float64],
    work: Work,
    results: NDArray[np.float64],
    total: NDArray[np.float64],
) -> None:
    """Add the evidence in work.results to that of each lane, with the component's weight or for all that are merged."""
    reweighted = work.results.copy()
    _reweight(prior, load(work.prior_mean, 0), load(work.prior_variance, 0), quadrature, reweighted)
    for w in range(last + 1):
        k = components[w]
        if k >= 0:
            alone = work.results[EVIDENCE, w] + prior.log_weight[k]
            value = reweighted[EVIDENCE, w] if centre.merged[w] else alone
            total[w] += math.exp(value - results[centre.dominant[w], EVIDENCE, w])


@compiled
def _pooled_logit(meth: NDArray[np.float64], total: NDArray[np.float64]) -> float:
    methylated, unmethylated = 0.5, 0.5
    for s in range(total.shape[0]):
        methylated += meth[s]
        unmethylated += total[s] - meth[s]
    return math.log(methylated / unmethylated)


@compiled
def _start_from_centre(centre: _Centre, k: int, lane: int, work: Work) -> None:
    """Every lane at the mode of component k at the central node of the locus in `lane`."""
    copy_lane(centre.eta[k], lane, work.eta)
    copy_lane(centre.slope[k], lane, work.slope)
    copy_lane(centre.curvature[k], lane, work.curvature)
    copy_lane(centre.beta[k], lane, work.start_beta)
    copy(work.start_beta, work.beta)


@compiled
def _merged_nodes(
    arrays: FieldArrays,
    points: _Points,
    locus: int,
    node: int,
    prior: _Prior,
    numerics: _Numerics,
    work: Work,
    lane: int,
    centre: _Centre,
    out: NodeResults,
) -> None:
    """Nodes from `node` on of a locus at which one Gaussian stands for all components."""
    merged_mean, merged_variance = centre.prior_mean[lane], centre.prior_variance[lane]
    store(work.prior_mean, 0, spread(merged_mean))
    store(work.prior_variance, 0, spread(merged_variance))
    _start_from_centre(centre, centre.dominant[lane], lane, work)
    laplace(arrays, numerics.tolerance, work)
    if numerics.method == EXPECTATION_PROPAGATION:
        propagate(arrays, numerics.tilted_quadrature, work)
    _reweight(prior, spread(merged_mean), spread(merged_variance), numerics.quadrature, work.results)
    for w in range(min(WIDTH, points.tau.shape[1] - node)):
        if not math.isfinite(work.results[EVIDENCE, w]):
            _set_failed(work.prior_mean[:, w], work.prior_variance[:, w], work.results[:, w])
        _store(work.results[:, w], points.constant[locus], locus, node + w, out)


@compiled
def _separate_nodes(
    arrays: FieldArrays,
    points: _Points,
    locus: int,
    node: int,
    prior: _Prior,
    numerics: _Numerics,
    work: Work,
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
            laplace(arrays, numerics.tolerance, work)
            if numerics.method == EXPECTATION_PROPAGATION:
                propagate(arrays, numerics.tilted_quadrature, work)
            store(work.results, EVIDENCE, load(work.results, EVIDENCE) + prior.log_weight[k])
            copy(work.results, results[k])
    for w in range(min(WIDTH, points.tau.shape[1] - node)):
        _mix(results[:, :, w], centre.relevant[:, lane], points.constant[locus], locus, node + w, out)


@compiled
def _merge(
    prior: _Prior, results: NDArray[np.float64], relevant: NDArray[np.bool_], best: float
) -> tuple[int, bool, float, float]:
    """Drop irrelevant components; the dominant one, whether the rest may be merged, and the merged prior's moments."""
    dominant, variances = 0, variance_row(effects_of(results.shape[1]))
    if best == -np.inf:  # no mode was found: the other nodes try every component
        return dominant, False, 0.0, 0.0
    total, prior_mean, posterior_mean, within = 0.0, 0.0, 0.0, 0.0
    for k in range(results.shape[0]):
        relevant[k] = results[k, EVIDENCE] > best - IRRELEVANT_COMPONENT_NATS
        if results[k, EVIDENCE] > results[dominant, EVIDENCE]:
            dominant = k
        if relevant[k]:
            share = math.exp(results[k, EVIDENCE] - best)
            total += share
            prior_mean += share * prior.mean[k]
            posterior_mean += share * results[k, MEANS]
            within += share * results[k, variances]
    prior_mean, posterior_mean, within = prior_mean / total, posterior_mean / total, within / total
    between, prior_variance = 0.0, 0.0
    for k in range(results.shape[0]):
        if relevant[k]:
            share = math.exp(results[k, EVIDENCE] - best) / total
            between += share * (results[k, MEANS] - posterior_mean) ** 2
            prior_variance += share * (prior.variance[k] + (prior.mean[k] - prior_mean) ** 2)
    return dominant, between < SEPARATE_MODES * within, prior_mean, prior_variance


@compiled
def _reweight(
    prior: _Prior,
    merged_mean: Lanes,
    merged_variance: Lanes,
    quadrature: NDArray[np.float64],
    results: NDArray[np.float64],
) -> None:
    """Replace the merged prior of the baseline by the mixture, in `results`: log E[ratio] is added to the evidence, and
    the moments become those under the mixture.

    The expectation is over the baseline's posterior under the merged prior, a Gaussian with a first-order skewness term
    (Cornish-Fisher), where the ratio is nearly constant. The other effects follow the baseline by their regression on
    it.
    """
    effects = effects_of(results.shape[0])
    variances, thirds, covariances = variance_row(effects), third_row(effects), covariance_row(effects)
    mean, variance = load(results, MEANS), load(results, variances)
    sd = square_root(variance)
    skewness = load(results, thirds) / (variance * sd)
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
            scale = math.exp(prior.log_weight[k]) * square_root(merged_variance / prior.variance[k])
            exponent = base - from_component * from_component * (0.5 / prior.variance[k])
            weight += scale * exponential(exponent)
        weight *= quadrature[1, i]
        total += weight
        first += weight * step
        second += weight * step * step
        third += weight * step * step * step
    first, second, third = first / total, second / total, third / total
    new_variance, new_third = second - first * first, third - 3.0 * first * second + 2.0 * first * first * first
    # What the mixture changes, against the moments of the skewed Gaussian itself.
    square = skewness * skewness
    variance_change = new_variance - variance * (1.0 + square * (1.0 / 18.0))
    third_change = new_third - load(results, thirds) * (1.0 + square * (1.0 / 27.0))
    for p in range(1, effects):
        slope = load(results, covariances + p) / variance
        store(results, MEANS + p, load(results, MEANS + p) + slope * first)
        store(results, variances + p, load(results, variances + p) + slope * slope * variance_change)
        store(results, thirds + p, load(results, thirds + p) + slope * slope * slope * third_change)
    store(results, EVIDENCE, load(results, EVIDENCE) + logarithm(total))
    store(results, MEANS, mean + first)
    store(results, variances, new_variance)
    store(results, thirds, new_third)


@compiled
def _set_failed(
    prior_mean: NDArray[np.float64], prior_variance: NDArray[np.float64], results: NDArray[np.float64]
) -> None:
    """Of a point without an evidence: what marks it, and the prior's moments."""
    effects = prior_mean.shape[0]
    results[EVIDENCE], results[CORRECTION] = -np.inf, NOT_CONVERGED
    for p in range(effects):
        results[MEANS + p], results[variance_row(effects) + p] = prior_mean[p], prior_variance[p]
        results[third_row(effects) + p] = 0.0


@compiled
def _store(results: NDArray[np.float64], constant: float, locus: int, node: int, out: NodeResults) -> None:
    effects = out.effect_mean.shape[2]
    out.log_evidence[locus, node] = results[EVIDENCE] + constant
    out.correction[locus, node] = results[CORRECTION]
    for p in range(effects):
        out.effect_mean[locus, node, p] = results[MEANS + p]
        out.effect_variance[locus, node, p] = results[variance_row(effects) + p]
        out.effect_third[locus, node, p] = results[third_row(effects) + p]


@compiled
def _mix(
    results: NDArray[np.float64], relevant: NDArray[np.bool_], constant: float, locus: int, node: int, out: NodeResults
) -> float:
    """Sum the mixture components out of the evidence and of the effects' moments; returns the best component's."""
    best = -np.inf
    for k in range(results.shape[0]):
        if relevant[k]:
            best = max(best, results[k, EVIDENCE])
    if best == -np.inf:
        _store(results[0], 0.0, locus, node, out)
        out.log_evidence[locus, node], out.correction[locus, node] = best, NOT_CONVERGED
        out.effect_third[locus, node] = 0.0
        return best
    total, correction = 0.0, 0.0
    for k in range(results.shape[0]):
        if relevant[k]:
            share = math.exp(results[k, EVIDENCE] - best)
            total += share
            correction += share * results[k, CORRECTION]
    out.log_evidence[locus, node] = best + math.log(total) + constant
    out.correction[locus, node] = correction / total
    for p in range(out.effect_mean.shape[2]):
        _mix_effect(results, relevant, best, total, p, locus, node, out)
    return best


@compiled
def _mix_effect(
    results: NDArray[np.float64],
    relevant: NDArray[np.bool_],
    best: float,
    total: float,
    p: int,
    locus: int,
    node: int,
    out: NodeResults,
) -> None:
    """Moments of one effect over the components, whose shares are exp(evidence - best) / total."""
    effects = out.effect_mean.shape[2]
    mean = 0.0
    for k in range(results.shape[0]):
        if relevant[k]:
            mean += math.exp(results[k, EVIDENCE] - best) * results[k, MEANS + p]
    mean /= total
    variance, third = 0.0, 0.0
    for k in range(results.shape[0]):
        if relevant[k]:
            share = math.exp(results[k, EVIDENCE] - best) / total
            offset, within = results[k, MEANS + p] - mean, results[k, variance_row(effects) + p]
            variance += share * (within + offset * offset)
            third += share * (results[k, third_row(effects) + p] + 3.0 * offset * within + offset**3)
    out.effect_mean[locus, node, p] = mean
    out.effect_variance[locus, node, p] = variance
    out.effect_third[locus, node, p] = third
