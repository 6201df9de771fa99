"""The likelihood of `epivi.lineage.likelihood` for rates that all loci share, compiled, WIDTH loci at once.

The contractions of the plan are run forward for the likelihood and in reverse for the posterior: with Z the likelihood
of a locus, each factor f of the product in the model obeys

    d log Z / d log f(x) = P(states are x | reads)

so that the reverse pass, which costs twice the forward one, gives the posterior of every node's state, the joint one of
every child and its parents, and with them the probability of an event on every branch,

    P(at least one gain on the branch | reads) = E[P(end states, at least one gain | parents) / T(end states | parents)]

Tables are scaled by powers of two, which is exact, and what is below SMALLEST of a table's largest entry is set to it.
A loop over loci in threads releases the interpreter lock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from epivi.base.ordered import on_threads
from epivi.field.compiled import simd as lanes
from epivi.field.compiled.simd import WIDTH, Lanes, compiled, exponent, load, power_of_two, select_less, spread, store
from epivi.lineage.elimination import SHARED, EliminationPlan, configurations
from epivi.lineage.likelihood import SMALLEST

Array = NDArray[np.float64]

TINY = 1e-300  # stands for a table's largest entry where that is zero
LOG_2 = math.log(2.0)
LOCI_AT_ONCE = 1 << 12  # of one task of a thread


class PlanArrays(NamedTuple):
    """A plan as compiled code reads it: N nodes, S samples, K contractions of C configurations in all."""

    node_of_sample: NDArray[np.int64]  # [S]
    one: int  # row of ones
    result: int  # row of the likelihood
    rows: int
    nodes: int
    first: NDArray[np.int64]  # [K], first configuration
    terms: NDArray[np.int64]  # [K], configurations of one row of out: 1, or 3 where a node is summed out
    out_row: NDArray[np.int64]  # [K]
    out_rows: NDArray[np.int64]  # [K]
    is_shared: NDArray[np.bool_]  # [K], whether right is a shared table
    branch: NDArray[np.int64]  # [K], first branch of right's transmission, or -1
    parents: NDArray[np.int64]  # [K], branches of right's transmission
    left: NDArray[np.int64]  # [C], rows
    right: NDArray[np.int64]  # [C], rows


class ReadsTable(NamedTuple):
    """Reads of L loci, and how probable the K pairs are."""

    codes: NDArray[np.int32]  # [S, L], numbers of pairs
    probability: Array  # [K, 3], given the state; largest of a row is 1
    log_scale: Array  # [K], log of what a row was divided by


class LineagePosterior(NamedTuple):
    """Posterior probabilities of N nodes' states and of events on E branches."""

    nodes: Array  # [N, 3, L]
    events: Array  # [E, 2 (gain, loss), L]


class ExpectedCounts(NamedTuple):
    """Sums over loci of the posterior, the gradient of the log likelihood by the logarithms of the factors."""

    log_likelihood: float  # nats
    shared: Array  # [R], how often each entry of a shared table is used
    pairs: Array  # [K, 3], sites of samples with each pair of reads, by state


def plan_arrays(plan: EliminationPlan) -> PlanArrays:
    """The plan laid out for compiled code."""
    steps = plan.contractions
    rows = [configurations(step) for step in steps]
    sizes = np.array([len(left) for left, _, _ in rows])
    out_rows = np.array([step.out.rows for step in steps])
    return PlanArrays(
        node_of_sample=plan.lineage.samples,
        one=plan.one.row,
        result=plan.result.row,
        rows=plan.locus_rows,
        nodes=len(plan.lineage.nodes),
        first=np.cumsum(sizes) - sizes,
        terms=sizes // out_rows,
        out_row=np.array([step.out.row for step in steps]),
        out_rows=out_rows,
        is_shared=np.array([step.right.kind == SHARED for step in steps]),
        branch=np.array([step.branch for step in steps]),
        parents=np.array([len(step.right.scope) - 1 if step.branch >= 0 else 0 for step in steps]),
        left=np.concatenate([left for left, _, _ in rows]).astype(np.int64),
        right=np.concatenate([right for _, right, _ in rows]).astype(np.int64),
    )


def reads_table(codes: NDArray[np.int32], log_probability: Array) -> ReadsTable:
    """Encoded reads [S, L] with the log probability of each pair given the state, [K, 3]."""
    peak = log_probability.max(1)
    return ReadsTable(np.ascontiguousarray(codes), np.exp(log_probability - peak[:, None]), peak)


def log_likelihoods(arrays: PlanArrays, shared: Array, reads: ReadsTable, threads: int = 1) -> Array:
    """Log likelihood in nats [Q, L] at Q points; shared: values of the shared tables [Q, R]."""
    shared = np.ascontiguousarray(shared)
    out = np.empty((len(shared), reads.codes.shape[1]))
    _in_ranges(lambda first, stop: _entry_points().forward(arrays, shared, reads, first, stop, out), reads, threads)
    return out


def state_posterior(
    arrays: PlanArrays, shared: Array, events: Array, reads: ReadsTable, weights: Array, threads: int = 1
) -> LineagePosterior:
    """Posterior of the states, averaged over Q points with weights [Q, L] that sum to one at every locus.

    shared: [Q, R]; events: [Q, 4, R], of `likelihood.event_values`. A point whose weight is zero at WIDTH neighbouring
    loci costs nothing there.
    """
    shared, events, weights = (np.ascontiguousarray(array) for array in (shared, events, weights))
    loci = reads.codes.shape[1]
    branches = int(arrays.parents.sum())
    out = LineagePosterior(np.zeros((arrays.nodes, 3, loci)), np.zeros((branches, 2, loci)))

    def evaluate(first: int, stop: int) -> None:
        _entry_points().reverse(arrays, shared, events, reads, weights, first, stop, out)

    _in_ranges(evaluate, reads, threads)
    return out


def expected_counts(arrays: PlanArrays, shared: Array, reads: ReadsTable, threads: int = 1) -> ExpectedCounts:
    """Log likelihood of all loci together at one point [R], and the expected counts there."""
    shared = np.ascontiguousarray(shared)

    def evaluate(first: int, stop: int) -> ExpectedCounts:
        used, pairs = np.zeros((len(shared), WIDTH)), np.zeros(reads.probability.shape)
        total = _entry_points().sums(arrays, shared, reads, first, stop, used, pairs)
        return ExpectedCounts(total, used.sum(1) * shared, pairs)

    parts = _in_ranges(evaluate, reads, threads)
    return ExpectedCounts(
        math.fsum(part.log_likelihood for part in parts),
        np.sum([part.shared for part in parts], axis=0),
        np.sum([part.pairs for part in parts], axis=0),
    )


def _in_ranges(evaluate: Callable[[int, int], Any], reads: ReadsTable, threads: int) -> list[Any]:
    """Results for ranges of loci, in their order; how many threads there are does not change them."""
    loci = reads.codes.shape[1]
    ranges = [(first, min(first + LOCI_AT_ONCE, loci)) for first in range(0, loci, LOCI_AT_ONCE)]
    threads = min(threads, len(ranges))
    return list(on_threads(lambda some: evaluate(*some), ranges, threads, ahead=2 * threads, name="states"))


# ------------------------------------------------------------------------------------------------------- compiled code


@compiled
def _gather(arrays: PlanArrays, reads: ReadsTable, first: int, last: int, values: Array, log_scale: Array) -> None:
    """What the samples say of each node, for WIDTH loci from `first` on; lanes after locus `last` repeat it."""
    for row in range(3 * arrays.nodes + 1):
        store(values, row, spread(1.0))
    for w in range(WIDTH):
        locus = min(first + w, last)
        total = 0.0
        for s in range(arrays.node_of_sample.shape[0]):
            code, row = reads.codes[s, locus], 3 * arrays.node_of_sample[s]
            total += reads.log_scale[code]
            for x in range(3):
                values[row + x, w] *= reads.probability[code, x]
        log_scale[w] = total


@compiled
def _forward(arrays: PlanArrays, shared: Array, values: Array, scale: Array) -> Lanes:
    """All contractions; the number of factors of two that the result was divided by."""
    powers = spread(0.0)
    for k in range(arrays.first.shape[0]):
        place, out = arrays.first[k], arrays.out_row[k]
        largest = spread(TINY)
        for row in range(out, out + arrays.out_rows[k]):
            total = spread(0.0)
            for _ in range(arrays.terms[k]):
                left = load(values, arrays.left[place])
                if arrays.is_shared[k]:
                    total += left * shared[arrays.right[place]]
                else:
                    total += left * load(values, arrays.right[place])
                place += 1
            largest = select_less(largest, total, total, largest)
            store(values, row, total)
        # Only products of messages grow small without bound: each row of a transmission has an entry of about one half.
        if not arrays.is_shared[k]:
            power = exponent(largest)
            powers += power
            divided = power_of_two(0.0 - power)
            store(scale, k, divided)
            for row in range(out, out + arrays.out_rows[k]):
                value = load(values, row) * divided
                store(values, row, select_less(value, SMALLEST, SMALLEST, value))
    return powers


@compiled
def _backward_step(arrays: PlanArrays, k: int, shared: Array, values: Array, scale: Array, slopes: Array) -> None:
    """Hand the slopes of contraction k's out on to left and, where it is not shared, to right.

    Leaves in the rows of out the slopes of the result before it was scaled.
    """
    place, out = arrays.first[k], arrays.out_row[k]
    for row in range(out, out + arrays.out_rows[k]):
        slope = load(slopes, row)
        if not arrays.is_shared[k]:
            slope *= load(scale, k)
            store(slopes, row, slope)
        for _ in range(arrays.terms[k]):
            left, right = arrays.left[place], arrays.right[place]
            if arrays.is_shared[k]:
                store(slopes, left, load(slopes, left) + slope * shared[right])
            else:
                store(slopes, left, load(slopes, left) + slope * load(values, right))
                store(slopes, right, load(slopes, right) + slope * load(values, left))
            place += 1


@compiled
def _backward(arrays: PlanArrays, shared: Array, values: Array, scale: Array, used: int, slopes: Array) -> None:
    """Slopes of the log likelihood by every table's entries, for the first `used` lanes and zero for the others."""
    for row in range(arrays.rows):
        store(slopes, row, spread(0.0))
    for w in range(used):
        slopes[arrays.result, w] = 1.0 / values[arrays.result, w]
    for k in range(arrays.first.shape[0] - 1, -1, -1):
        _backward_step(arrays, k, shared, values, scale, slopes)


@compiled
def _add_shared(arrays: PlanArrays, values: Array, slopes: Array, used: Array) -> None:
    """Add the slopes of the log likelihood by the entries of the shared tables."""
    for k in range(arrays.first.shape[0]):
        if arrays.is_shared[k]:
            place, out = arrays.first[k], arrays.out_row[k]
            for row in range(out, out + arrays.out_rows[k]):
                slope = load(slopes, row)
                for _ in range(arrays.terms[k]):
                    right = arrays.right[place]
                    store(used, right, load(used, right) + slope * load(values, arrays.left[place]))
                    place += 1


@compiled
def _branch_events(
    arrays: PlanArrays, k: int, parent: int, events: Array, values: Array, slopes: Array
) -> tuple[Lanes, Lanes]:
    """Probability of a gain and of a loss on the branch from one parent of contraction k's transmission."""
    gain, loss = spread(0.0), spread(0.0)
    place, out = arrays.first[k], arrays.out_row[k]
    for row in range(out, out + arrays.out_rows[k]):
        slope = load(slopes, row)
        for _ in range(arrays.terms[k]):
            joint, right = slope * load(values, arrays.left[place]), arrays.right[place]
            gain += joint * events[2 * parent, right]
            loss += joint * events[2 * parent + 1, right]
            place += 1
    return gain, loss


@compiled
def _add_posterior(
    arrays: PlanArrays,
    events: Array,
    values: Array,
    slopes: Array,
    weights: Array,
    first: int,
    used: int,
    result: Array,
    out: LineagePosterior,
) -> None:
    """Add the posterior of `used` loci from `first` on, times their weights."""
    for row in range(3 * arrays.nodes):
        store(result, 0, load(values, row) * load(slopes, row))
        node, x = row // 3, row % 3
        for w in range(used):
            out.nodes[node, x, first + w] += weights[first + w] * result[0, w]
    for k in range(arrays.first.shape[0]):
        for parent in range(arrays.parents[k]):
            gain, loss = _branch_events(arrays, k, parent, events, values, slopes)
            store(result, 0, gain)
            store(result, 1, loss)
            branch = arrays.branch[k] + parent
            for w in range(used):
                out.events[branch, 0, first + w] += weights[first + w] * result[0, w]
                out.events[branch, 1, first + w] += weights[first + w] * result[1, w]


@compiled
def _evaluate_points(arrays: PlanArrays, shared: Array, reads: ReadsTable, first: int, stop: int, out: Array) -> None:
    """Log likelihood [Q, L] of loci first to stop."""
    values, scale = np.empty((arrays.rows, WIDTH)), np.ones((arrays.first.shape[0], WIDTH))
    log_scale, powers = np.empty(WIDTH), np.empty((1, WIDTH))
    for start in range(first, stop, WIDTH):
        _gather(arrays, reads, start, stop - 1, values, log_scale)
        for q in range(shared.shape[0]):
            store(powers, 0, _forward(arrays, shared[q], values, scale))
            for w in range(min(WIDTH, stop - start)):
                out[q, start + w] = math.log(values[arrays.result, w]) + LOG_2 * powers[0, w] + log_scale[w]


@compiled
def _evaluate_posterior(
    arrays: PlanArrays,
    shared: Array,
    events: Array,
    reads: ReadsTable,
    weights: Array,
    first: int,
    stop: int,
    out: LineagePosterior,
) -> None:
    """Posterior of loci first to stop."""
    values, slopes = np.empty((arrays.rows, WIDTH)), np.empty((arrays.rows, WIDTH))
    scale, log_scale, result = np.ones((arrays.first.shape[0], WIDTH)), np.empty(WIDTH), np.empty((2, WIDTH))
    for start in range(first, stop, WIDTH):
        used = min(WIDTH, stop - start)
        _gather(arrays, reads, start, stop - 1, values, log_scale)
        for q in range(shared.shape[0]):
            if weights[q, start : start + used].max() > 0.0:
                _forward(arrays, shared[q], values, scale)
                _backward(arrays, shared[q], values, scale, used, slopes)
                _add_posterior(arrays, events[q], values, slopes, weights[q], start, used, result, out)


@compiled
def _evaluate_sums(
    arrays: PlanArrays, shared: Array, reads: ReadsTable, first: int, stop: int, used_shared: Array, pairs: Array
) -> float:
    """Log likelihood of loci first to stop together; adds to the expected counts."""
    values, slopes = np.empty((arrays.rows, WIDTH)), np.empty((arrays.rows, WIDTH))
    scale, log_scale, powers = np.ones((arrays.first.shape[0], WIDTH)), np.empty(WIDTH), np.empty((1, WIDTH))
    total = 0.0
    for start in range(first, stop, WIDTH):
        used = min(WIDTH, stop - start)
        _gather(arrays, reads, start, stop - 1, values, log_scale)
        store(powers, 0, _forward(arrays, shared, values, scale))
        for w in range(used):
            total += math.log(values[arrays.result, w]) + LOG_2 * powers[0, w] + log_scale[w]
        _backward(arrays, shared, values, scale, used, slopes)
        _add_shared(arrays, values, slopes, used_shared)
        for row in range(3 * arrays.nodes):
            store(slopes, row, load(values, row) * load(slopes, row))
        for s in range(arrays.node_of_sample.shape[0]):
            row = 3 * arrays.node_of_sample[s]
            for w in range(used):
                code = reads.codes[s, start + w]
                for x in range(3):
                    pairs[code, x] += slopes[row + x, w]
    return total


class _EntryPoints(NamedTuple):
    forward: Callable[..., None]
    reverse: Callable[..., None]
    sums: Callable[..., float]


@cache
def _entry_points() -> _EntryPoints:
    """What Python calls."""
    sources = (Path(__file__), Path(lanes.__file__))

    def forward(arrays: Any, shared: Any, reads: Any, first: int, stop: int, out: Any) -> None:
        _evaluate_points(arrays, shared, reads, first, stop, out)

    def reverse(
        arrays: Any, shared: Any, events: Any, reads: Any, weights: Any, first: int, stop: int, out: Any
    ) -> None:
        _evaluate_posterior(arrays, shared, events, reads, weights, first, stop, out)

    def sums(arrays: Any, shared: Any, reads: Any, first: int, stop: int, used: Any, pairs: Any) -> float:
        return _evaluate_sums(arrays, shared, reads, first, stop, used, pairs)

    return _EntryPoints(*(lanes.entry_point(each, sources) for each in (forward, reverse, sums)))
