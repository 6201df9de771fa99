"""Every hypothesis at every locus, by an inner integral as good as the locus needs.

The levels, each for the loci that the one before leaves in doubt: Laplace with its second-order correction; expectation
propagation; importance sampling of the field at a few outer nodes. What is in doubt is measured by `inner_error`, the
estimated error of a log evidence against the mean of the locus's hypotheses: an error common to them moves no
comparison. For Laplace it is the larger of a share of the correction and what propagation changes at one point. Loci
whose outer integral is in doubt are taken again with more outer nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from epivi.base.ordered import on_threads
from epivi.families.transmission.outer_integral import (
    EvidenceModel,
    HypothesisEvidence,
    OuterProposal,
    hypothesis_evidence,
    inner_integral,
    locus_columns,
    proposals_of,
)
from epivi.field.compiled.laplace import NOT_CONVERGED
from epivi.field.dense.importance import exact_field
from epivi.field.dense.problem import FieldVariances, build_field_problem
from epivi.loci.source import CountsBatch, DesignedBatch
from epivi.tables.columns import EVIDENCE_GOAL

Array = NDArray[np.float64]
Evaluate = Callable[[NDArray[np.int64], str, int], list[HypothesisEvidence]]  # of rows, by a method, with outer nodes
Sample = Callable[[NDArray[np.int64], int, HypothesisEvidence], HypothesisEvidence]  # of rows, under a hypothesis
NODE_FIELDS = ("node_weight", "node_log_evidence", "node_variances")

CHUNK_LOCI = 512  # evaluated at once: with 64 nodes an array of all takes 0.26 MB, which processors keep at hand
INNER_METHODS = ("laplace", "ep", "importance")
# METHOD: shares of a step that are taken for the error left, all against the mean of the hypotheses, as measured by
# tests/benchmarks/bench_accuracy.py at 12, 28 and 60 individuals and 5, 20 and 60 reads: over the 123 hardest loci that
# sampling resolves to .003 nats, root mean square errors are .15 of the spread of the second-order corrections for
# Laplace (nine cells, .08 to .28), and .23 of the step from Laplace for expectation propagation (95 % interval .14 to
# .33, cells 0 to .5; .001 nats, of which two thirds are sampling's own).
NEXT_ORDER_SHARE = 0.3
PROPAGATION_SHARE = 0.3
# METHOD: nats between the corrections of a locus's hypotheses; beyond, expectation propagation. Where the corrections
# themselves pass one nat, as they do in 60 individuals, the terms that follow shrink no longer, and their differences
# count for more in proportion.
LARGEST_DIFFERENCE = 0.05
# METHOD: nats between the steps that expectation propagation makes at one point of each hypothesis, the proposal's
# centre, and a share of their mean. Corrections that hardly differ can hide an error: at 28 individuals a locus with
# corrections of 1.03 to 1.04 was off by .03. Over the whole lattice the steps differ by 1.5 times what they do at the
# centre, at a locus of ten by three times (the 158 loci at which that is .01 nats or more), and by more where the steps
# themselves are large.
LARGEST_STEP_DIFFERENCE = 0.009
COMMON_STEP_SHARE = 0.05
SLOW_CORRECTION = 1.0  # nats of a correction, from which on the terms after it shrink no longer
# METHOD: nats of standard error, from which on a locus is evaluated anew with more outer nodes. The standard error is
# two to four times the lattice's own error in the mean, but single loci of 60 individuals had errors of .03 to .04 at
# standard errors of .036 to .041; at 12 and 28 individuals hardly a locus comes so far.
LARGEST_OUTER_ERROR = 0.03
FINER = 4  # times the outer nodes
SAMPLED_NODES = 4  # outer nodes, drawn by their weights, at which the field is sampled
DRAWS = 4000
SMALLEST_SAMPLED_SHARE = 1e-3  # of the evidence at a node, of a component of the baseline's prior that is sampled
LARGEST_KHAT = 0.7


def evaluate_chunks(
    model: EvidenceModel,
    chunks: Iterable[CountsBatch | DesignedBatch],
    nodes: int,
    seed: int,
    threads: int = 1,
    is_refined: bool = True,
) -> Generator[list[HypothesisEvidence], None, None]:
    """Every hypothesis at every locus of each chunk, in the order of the chunks.

    Each chunk is evaluated by one thread, so that its numbers do not depend on how many there are. The chunks are read
    when they are about to be needed: two for each thread are held at a time.
    """

    def evaluate(chunk: CountsBatch | DesignedBatch) -> list[HypothesisEvidence]:
        counts, design = chunk if isinstance(chunk, DesignedBatch) else (chunk, None)
        return _evaluate_chunk(model, counts, design, nodes, seed, is_refined)

    yield from on_threads(evaluate, chunks, threads, ahead=2 * threads - 1, name="evidence")


def evaluate_batch(
    model: EvidenceModel,
    meth: NDArray[np.uint16],
    total: NDArray[np.uint16],
    loci: NDArray[np.int64],
    nodes: int,
    seed: int,
    threads: int = 1,
    locus_design: Array | None = None,
    is_refined: bool = True,
) -> list[HypothesisEvidence]:
    """Every hypothesis at L loci: meth, total [L, S] in the cohort's sample order; loci [L], numbers in the genome.

    locus_design: [L, S, G], the values at each locus of the columns that the model has locus effects of. Without
    is_refined all loci that have an evidence at the first level stay there, with its nodes.
    """
    parts = [slice(first, first + CHUNK_LOCI) for first in range(0, len(loci), CHUNK_LOCI)]

    def chunks() -> Iterator[CountsBatch | DesignedBatch]:
        for part in parts:
            counts = CountsBatch(meth[part], total[part], loci[part])
            yield counts if locus_design is None else DesignedBatch(counts, locus_design[part])

    done = list(evaluate_chunks(model, chunks(), nodes, seed, threads, is_refined))
    return [
        HypothesisEvidence._make(np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        for pieces in zip(*done, strict=True)
    ]


def _evaluate_chunk(
    model: EvidenceModel, counts: CountsBatch, design: Array | None, nodes: int, seed: int, is_refined: bool
) -> list[HypothesisEvidence]:
    meth, total, loci = counts
    proposals = proposals_of(model, counts)

    def design_of(some: NDArray[np.int64]) -> Array | None:
        return None if design is None else design[some]

    def evaluate(some: NDArray[np.int64], method: str, nodes: int) -> list[HypothesisEvidence]:
        return [
            hypothesis_evidence(
                model,
                index,
                OuterProposal(proposal.mean[some], proposal.scale_tril[some]),
                meth[some],
                total[some],
                loci[some],
                nodes,
                seed,
                method,
                design_of(some),
            )
            for index, proposal in enumerate(proposals)
        ]

    def sample(some: NDArray[np.int64], index: int, evidence: HypothesisEvidence) -> HypothesisEvidence:
        return sample_field(model, index, meth[some], total[some], evidence, seed, design_of(some))

    if not is_refined:
        return _first_level(len(loci), nodes, evaluate, sample)
    evidences = _refine(np.arange(len(loci)), nodes, evaluate, sample)
    outer_error = np.stack([evidence.log_evidence_se for evidence in evidences], axis=1).max(1)
    coarse = np.flatnonzero(outer_error > LARGEST_OUTER_ERROR)
    if not len(coarse):
        return evidences
    finer = _refine(coarse, FINER * nodes, evaluate, sample)
    return [_replace(old, new, coarse, but=NODE_FIELDS) for old, new in zip(evidences, finer, strict=True)]


def _first_level(loci: int, nodes: int, evaluate: Evaluate, sample: Sample) -> list[HypothesisEvidence]:
    """A chunk as it is before any refinement, but for loci that have no evidence there under some hypothesis."""
    evidences = evaluate(np.arange(loci), INNER_METHODS[0], nodes)
    correction = np.stack([evidence.laplace_correction for evidence in evidences], axis=1)
    failed = np.flatnonzero((correction == NOT_CONVERGED).any(1))
    if not len(failed):
        return evidences
    refined = _refine(failed, nodes, evaluate, sample)
    return [_replace(old, new, failed) for old, new in zip(evidences, refined, strict=True)]


def _refine(rows: NDArray[np.int64], nodes: int, evaluate: Evaluate, sample: Sample) -> list[HypothesisEvidence]:
    """All levels for some loci of a chunk."""
    evidences = evaluate(rows, "laplace", nodes)
    correction = np.stack([evidence.laplace_correction for evidence in evidences], axis=1)
    weighed = correction * np.maximum(correction.max(1, keepdims=True) / SLOW_CORRECTION, 1)
    central_step = np.stack([evidence.central_step for evidence in evidences], axis=1)
    error = np.maximum(NEXT_ORDER_SHARE * _against_mean(weighed), _against_mean(central_step))
    evidences = _with_errors(evidences, error)
    step_difference = _range(central_step) + COMMON_STEP_SHARE * np.abs(central_step.mean(1))
    is_close = (np.ptp(weighed, axis=1) <= LARGEST_DIFFERENCE) & (step_difference <= LARGEST_STEP_DIFFERENCE)
    doubtful = np.flatnonzero(~is_close | (correction == NOT_CONVERGED).any(1))
    if not len(doubtful):
        return evidences
    propagated = evaluate(rows[doubtful], "ep", nodes)
    step = np.stack(
        [new.log_evidence - old.log_evidence[doubtful] for new, old in zip(propagated, evidences, strict=True)], axis=1
    )
    failed = np.stack([evidence.laplace_correction for evidence in propagated], axis=1) == NOT_CONVERGED
    error = np.where(failed, np.inf, PROPAGATION_SHARE * _against_mean(step))
    propagated = _with_errors(propagated, error)
    hard = np.flatnonzero((error > EVIDENCE_GOAL).any(1) | ~np.isfinite(step).all(1))
    better, sampled = _sample_where_better(
        rows[doubtful[hard]], [_rows(evidence, hard) for evidence in propagated], error[hard].max(1), sample
    )
    if len(better):
        propagated = [_replace(old, new, hard[better]) for old, new in zip(propagated, sampled, strict=True)]
    return [_replace(old, new, doubtful) for old, new in zip(evidences, propagated, strict=True)]


def _sample_where_better(
    rows: NDArray[np.int64], evidences: list[HypothesisEvidence], error: Array, sample: Sample
) -> tuple[NDArray[np.int64], list[HypothesisEvidence]]:
    """Which of some loci sampling knows better than to `error` [L], under every hypothesis, and what it finds there.

    In large cohorts the draws may be less precise than propagation. The first hypothesis that shows this ends the
    attempt.
    """
    better = np.arange(len(rows))
    found: list[HypothesisEvidence] = []
    for k, evidence in enumerate(evidences):
        if not len(better):
            break
        sampled = sample(rows[better], k, _rows(evidence, better))
        stays = sampled.inner_error < error[better]
        found = [_rows(other, stays) for other in (*found, sampled)]
        better = better[stays]
    return better, found


def _against_mean(value: Array) -> Array:
    """Distance from the mean over hypotheses, [L, H]."""
    with np.errstate(invalid="ignore"):
        distance = np.abs(value - value.mean(1, keepdims=True))
    return np.where(np.isnan(distance), np.inf, distance)


def _range(value: Array) -> Array:
    """Largest less smallest over hypotheses, [L]; infinite where one is."""
    with np.errstate(invalid="ignore"):
        width = np.ptp(value, axis=1)
    return np.where(np.isnan(width), np.inf, width)


def _with_errors(evidences: list[HypothesisEvidence], error: Array) -> list[HypothesisEvidence]:
    return [evidence._replace(inner_error=error[:, index]) for index, evidence in enumerate(evidences)]


def _rows(evidence: HypothesisEvidence, rows: NDArray[np.int64] | NDArray[np.bool_]) -> HypothesisEvidence:
    return HypothesisEvidence._make(array[rows] for array in evidence)


def _replace(
    old: HypothesisEvidence, new: HypothesisEvidence, rows: NDArray[np.int64], but: Sequence[str] = ()
) -> HypothesisEvidence:
    for name in HypothesisEvidence._fields:
        if name not in but:
            getattr(old, name)[rows] = getattr(new, name)
    return old


def sample_field(
    model: EvidenceModel,
    index: int,
    meth: NDArray[np.uint16],
    total: NDArray[np.uint16],
    evidence: HypothesisEvidence,
    seed: int,
    locus_design: Array | None = None,
) -> HypothesisEvidence:
    """Correct the log evidence of a few loci by sampling the field at outer nodes that their posterior weights draw.

        p(D | h) = q(D | h) E[p(D | theta, h) / q(D | theta, h)],     theta ~ q(theta | D, h)

    q is the approximation that `evidence` holds; its moments stay. inner_error is the Monte Carlo standard error, or
    infinite where the weights have a tail too heavy for one.
    """
    loci = len(meth)
    level = (np.arange(SAMPLED_NODES) + 0.5) / SAMPLED_NODES
    cumulative = np.cumsum(evidence.node_weight, axis=1)
    chosen = (cumulative[:, :, None] < level * cumulative[:, -1:, None]).sum(1)  # [L, nodes sampled]
    rows = np.arange(loci)[:, None]
    variances = evidence.node_variances[rows, chosen]
    variances = variances.reshape(-1, variances.shape[-1])
    repeat = np.repeat(np.arange(loci), SAMPLED_NODES)
    design = None if locus_design is None else locus_design[repeat]
    component = _by_component(model, index, meth[repeat], total[repeat], variances, design)
    share = np.exp(component - logsumexp(component, axis=0))
    # What the other components add is left as propagation has it.
    k, at = np.nonzero((share > SMALLEST_SAMPLED_SHARE) | ~np.isfinite(component))
    learned, own = model.learned, locus_columns(model, index, meth[repeat], design)
    of_loci = np.array(model.locus_effects.sds)[model.locus_effects.of(index)]
    effects = np.concatenate([model.effect_sds[index], of_loci])
    problem = build_field_problem(
        model.cohort.fields[index],
        model.cohort,
        FieldVariances(variances[at, :-1], variances[at, -1]),
        np.column_stack([learned.baseline_means[k], *np.zeros((len(effects), len(k)))]),
        np.column_stack([learned.baseline_sds[k], *np.tile(effects[:, None], len(k))]) ** 2,
        meth[repeat[at]],
        total[repeat[at]],
        None if own is None else own[at],
    )
    exact = exact_field(problem, DRAWS, seed)
    variance, khat = np.zeros_like(component), np.full_like(component, -np.inf)
    component[k, at] = exact.log_evidence + np.log(learned.baseline_weights[k])
    variance[k, at] = exact.log_evidence_se**2
    khat[k, at] = np.nan_to_num(exact.khat, nan=-np.inf)  # weights that are all the same have no tail
    share = np.exp(component - logsumexp(component, axis=0))
    ratio = logsumexp(component, axis=0).reshape(loci, -1) - evidence.node_log_evidence[rows, chosen]
    sampling = (share**2 * variance).sum(0).reshape(loci, -1).sum(1) / SAMPLED_NODES**2
    shape = np.where(share > SMALLEST_SAMPLED_SHARE, khat, -np.inf).max(0).reshape(loci, -1).max(1)
    with np.errstate(invalid="ignore"):  # from outer nodes without an evidence to correct
        error = np.sqrt(sampling + ratio.var(1, ddof=1) / SAMPLED_NODES)
        corrected = evidence.log_evidence + logsumexp(ratio, axis=1) - np.log(SAMPLED_NODES)
    usable = np.isfinite(corrected)
    return evidence._replace(
        log_evidence=np.where(usable, corrected, evidence.log_evidence),
        khat=np.fmax(evidence.khat, shape),
        inner_error=np.where(usable & (shape < LARGEST_KHAT), error, np.inf),
        inner_method=np.full(loci, INNER_METHODS.index("importance")),
    )


def _by_component(
    model: EvidenceModel,
    index: int,
    meth: NDArray[np.uint16],
    total: NDArray[np.uint16],
    variances: Array,
    locus_design: Array | None,
) -> Array:
    """Log evidence of each component of the baseline's prior, its weight included, by propagation: [K, L].

    variances: [L, C + 2], as in HypothesisEvidence.node_variances.
    """
    twice = np.repeat(variances[:, None], 2, axis=1)  # the first node only starts the second
    parts, tau = np.ascontiguousarray(twice[..., :-1]), np.ascontiguousarray(twice[..., -1])
    learned = model.learned
    log_evidence = []
    for k, weight in enumerate(learned.baseline_weights):
        one = learned._replace(
            baseline_weights=np.ones(1),
            baseline_means=learned.baseline_means[k, None],
            baseline_sds=learned.baseline_sds[k, None],
        )
        found = inner_integral(model._replace(learned=one), index, meth, total, parts, tau, "ep", locus_design)
        log_evidence.append(found.log_evidence[:, 1] + np.log(weight))
    return np.stack(log_evidence)
