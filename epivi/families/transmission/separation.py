"""Which hypotheses the design of a cohort can separate: least Kullback-Leibler divergences on the Gaussian scale.

    least(A -> B) = min over theta_B of KL(N(0, S_A(theta_A)) || N(0, S_B(theta_B)))

with theta_A typical under the priors and theta_B anything that B allows, shares and tau from 0 to 1 with both ends. It
is the expected log likelihood ratio of a locus, in nats, against the parameters under which B comes closest. Where it
is zero, B mimics A: whatever A makes the samples share, B can. Two hypotheses that mimic each other are one, as far as
this cohort goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet
from epivi.families.family import NormalPrior
from epivi.families.transmission.gaussian_cohort import (
    BlockStack,
    GaussianCohort,
    block_covariances,
    gaussian_cohort,
    weights_at,
)
from epivi.families.transmission.hypotheses import SPREAD, Hypothesis

Array = NDArray[np.float64]

# METHOD: a hypothesis mimics another if the least divergence is below this at the typical parameters and one prior SD
# of every share and of tau to either side of them: a million loci would show less than one nat.
MIMIC_NATS = 1e-6
END = 16.0  # logit of a share or of tau that is taken for 0 or 1
WIDEST = 12.0  # of the log of a spread
STARTS = (-1.5, 1.5)  # logits of shares and of tau that minimization starts from, all combinations
LONGEST_STEP = 2.0
MOST_STEPS = 25
ENOUGH_NATS = 1e-8  # what a further step still gains
ZERO_NATS = 1e-8  # is taken for nothing
FREE_DAMPING, MOST_DAMPING = 0.01, 1e8
ANY_BASELINE_SD = 1e3  # logit
NEAR_END = 4.0  # a logit beyond this is tried at the end itself


class Point(NamedTuple):
    """A covariance under hypothesis h, theta [D], and a level of noise."""

    h: int
    theta: Array
    level: int


def typical_theta(
    hypothesis: Hypothesis, priors: Mapping[str, NormalPrior], log_spread: float, prior_sds: float = 0.0
) -> Array:
    """Parameters [D]: the spread as given, shares and tau at their prior's median, or so many prior SDs above it."""
    rest = [priors[name].mean + prior_sds * priors[name].sd for name in hypothesis.prior_names if name != SPREAD]
    return np.array([log_spread, *rest])


def least_divergence(cohort: GaussianCohort, truths: Sequence[Point], h: int) -> Array:
    """Least divergence [T] of each truth from hypothesis h, nats a locus.

    By Fisher scoring with damping (Levenberg and Marquardt) on the unconstrained scale from every combination of
    STARTS, all at once. Shares and tau that it runs to an end with are set there, and the others are taken on.
    """
    starts = _starts(cohort.hypotheses[h], np.array([truth.theta[0] for truth in truths]))  # [T, K, D]
    truth = np.repeat(np.arange(len(truths)), starts.shape[1])
    target = _Target(cohort, truths, h)
    everything = np.ones(starts.shape[-1], dtype=bool)
    theta, value = _minimize(target, truth, starts.reshape(-1, starts.shape[-1]), everything)
    is_at_end = (np.abs(theta) > NEAR_END) & (value > ZERO_NATS)[:, None]
    is_at_end[:, 0] = False
    for ends in np.unique(is_at_end[is_at_end.any(1)], axis=0):
        which = np.flatnonzero((is_at_end == ends).all(1))
        at_end = np.where(ends, np.sign(theta[which]) * END, theta[which])
        value[which] = np.minimum(value[which], _minimize(target, truth[which], at_end, ~ends)[1])
    least = value.reshape(len(truths), -1).min(1)
    return np.where(least < ZERO_NATS, 0.0, least)


def _starts(hypothesis: Hypothesis, log_spread: Array) -> Array:
    """[T, K, D]."""
    logits = np.array(list(product(STARTS, repeat=len(hypothesis.parameters) - 1)))
    starts = np.empty((len(log_spread), len(logits), len(hypothesis.parameters)))
    starts[:, :, 0] = log_spread[:, None]
    starts[:, :, 1:] = logits
    return starts


class _Expansion(NamedTuple):
    """Divergence of Q parameter sets, its gradient, and the Fisher information."""

    value: Array  # [Q]
    gradient: Array  # [Q, D]
    information: Array  # [Q, D, D]


class _Target:
    """Divergences of the truths from hypothesis h; what does not depend on its parameters is computed once."""

    def __init__(self, cohort: GaussianCohort, truths: Sequence[Point], h: int) -> None:
        self._cohort, self._h = cohort, h
        self._level = np.array([truth.level for truth in truths])
        self._effect_variance = cohort.effect_variance[[truth.h for truth in truths]]  # D of the truths, [T, P]
        self._blocks = [np.stack(blocks) for blocks in zip(*(_blocks_of(cohort, t) for t in truths), strict=True)]
        self._log_determinant = sum(
            (stack.times * _log_determinants(blocks)).sum(-1)
            for stack, blocks in zip(cohort.stacks, self._blocks, strict=True)
        ) + _effect_log_determinants(cohort, self._blocks, self._effect_variance)

    def expand(self, truth: NDArray[np.intp], theta: Array) -> _Expansion:
        """At theta [Q, D], against the truths of these numbers [Q]."""
        cohort, h = self._cohort, self._h
        weighted = weights_at(cohort.hypotheses[h], cohort.terms[h], theta)
        level, variance = self._level[truth], cohort.effect_variance[h]  # D of h, [P]
        found = [
            _Inverse.of(stack, block_covariances(stack, h, weighted.weight, level), blocks[truth])
            for stack, blocks in zip(cohort.stacks, self._blocks, strict=True)
        ]
        # Woodbury's identity, U and D as in epivi.families.transmission.gaussian_cohort.
        f = sum((one.of_design for one in found), np.zeros(()))  # U' B^-1 U, [Q, P, P]
        g = sum((one.of_truth for one in found), np.zeros(()))  # U' B^-1 B_truth B^-1 U
        eye = np.eye(f.shape[-1])
        k = np.linalg.solve(eye + variance[:, None] * f, np.broadcast_to(np.diag(variance), f.shape))
        left = eye - k @ f
        of_effects = self._effect_variance[truth]
        trace = sum((one.trace for one in found), np.zeros(())) - np.einsum("qab,qba->q", k, g)
        trace = trace + np.einsum("qab,qba,qa->q", f, left, of_effects)
        log_determinant = sum((one.log_determinant for one in found), np.zeros(()))
        log_determinant = log_determinant + np.linalg.slogdet(eye + f * variance)[1]
        value = 0.5 * (trace - cohort.samples - self._log_determinant[truth] + log_determinant)
        inner = k @ g @ k + left @ (of_effects[:, :, None] * left.transpose(0, 2, 1))
        gradient, information = np.zeros_like(theta), np.zeros((*theta.shape, theta.shape[-1]))
        of_columns = np.zeros((*theta.shape, *k.shape[1:]))
        for stack, one in zip(cohort.stacks, found, strict=True):
            added = one.derivatives(stack, h, weighted.slope, k, inner)
            gradient += added.gradient
            information += added.information
            of_columns += added.of_columns
        product = k[:, None] @ of_columns
        information += 0.5 * _traces(product, product)
        return _Expansion(value, gradient, information)


class _Derivatives(NamedTuple):
    """What a stack of blocks adds to the derivatives."""

    gradient: Array  # [Q, D]
    information: Array  # [Q, D, D], but for the last term, of `of_columns`
    of_columns: Array  # U' B^-1 dB B^-1 U, [Q, D, P, P]


class _Inverse(NamedTuple):
    """What one stack of blocks adds; Q parameter sets, C blocks of n samples, P columns of the design."""

    inverse: Array  # B^-1, [Q, C, n, n]
    columns: Array  # B^-1 U, [Q, C, n, P]
    relative: Array  # B^-1 B_truth, [Q, C, n, n]
    of_design: Array  # U' B^-1 U, [Q, P, P]
    of_truth: Array  # U' B^-1 B_truth B^-1 U, [Q, P, P]
    trace: Array  # [Q]
    log_determinant: Array  # [Q]

    @classmethod
    def of(cls, stack: BlockStack, blocks: Array, truth: Array) -> _Inverse:
        inverse = np.asarray(np.linalg.inv(blocks), dtype=np.float64)
        columns = inverse @ stack.design
        relative = inverse @ truth
        weighted = stack.times[:, None, None]
        return cls(
            inverse,
            columns,
            relative,
            (weighted * (stack.design.swapaxes(-1, -2) @ columns)).sum(1),
            (weighted * (columns.swapaxes(-1, -2) @ truth @ columns)).sum(1),
            np.trace(relative, axis1=-2, axis2=-1) @ stack.times,
            _log_determinants(blocks) @ stack.times,
        )

    def derivatives(self, stack: BlockStack, h: int, slope: Array, k: Array, inner: Array) -> _Derivatives:
        """slope: of the variances of the terms of hypothesis h, [Q, J, D]; k, inner: [Q, P, P]."""
        shared = stack.shared[h]  # [C, J, n, n]
        size = (*shared.shape[:2], shared.shape[2] * shared.shape[3])
        change = (slope.swapaxes(-1, -2)[:, None] @ shared.reshape(size)).reshape(
            len(slope), len(shared), slope.shape[-1], *shared.shape[2:]
        )  # dB, [Q, C, D, n, n]
        columns, transposed = self.columns, self.columns.swapaxes(-1, -2)
        of_k, of_inner = k[:, None], inner[:, None]
        across = self.relative @ columns @ of_k @ transposed
        # S^-1 - S^-1 S_truth S^-1, by which the divergence changes with the entries of B
        by_entry = self.inverse - columns @ of_k @ transposed - self.relative @ self.inverse
        by_entry += across + across.swapaxes(-1, -2) - columns @ of_inner @ transposed
        relative = self.inverse[:, :, None] @ change
        moved = change @ columns[:, :, None]  # dB B^-1 U, [Q, C, D, n, P]
        one_side = (moved @ of_k[:, :, None]).reshape(*moved.shape[:3], -1)
        other = (self.inverse[:, :, None] @ moved).reshape(*moved.shape[:3], -1)
        times = stack.times[:, None, None]
        information = (times * (_traces(relative, relative) - 2.0 * one_side @ other.swapaxes(-1, -2))).sum(1)
        gradient = (change.reshape(*change.shape[:3], -1) @ by_entry.reshape(*by_entry.shape[:2], -1, 1))[..., 0]
        return _Derivatives(
            0.5 * (stack.times[:, None] * gradient).sum(1),
            0.5 * information,
            (stack.times[:, None, None, None] * (transposed[:, :, None] @ moved)).sum(1),
        )


def _traces(one: Array, other: Array) -> Array:
    """tr(one_d other_e) of D matrices each, [..., D, D] from [..., D, n, n]."""
    flat = one.reshape(*one.shape[:-2], -1)
    traces: Array = flat @ other.swapaxes(-1, -2).reshape(*other.shape[:-2], -1).swapaxes(-1, -2)
    return traces


def _blocks_of(cohort: GaussianCohort, point: Point) -> list[Array]:
    """B of a point, [C, n, n] of each stack."""
    weight = weights_at(cohort.hypotheses[point.h], cohort.terms[point.h], point.theta).weight
    return [block_covariances(s, point.h, weight[None], np.array([point.level]))[0] for s in cohort.stacks]


def _log_determinants(blocks: Array) -> Array:
    determinant: Array = np.linalg.slogdet(blocks)[1]
    return determinant


def _effect_log_determinants(cohort: GaussianCohort, blocks: Sequence[Array], variance: Array) -> Array:
    """log |I + U' B^-1 U D| of the truths, [T]; variance: [T, P]."""
    f = np.zeros(())
    for stack, block in zip(cohort.stacks, blocks, strict=True):
        of_design = stack.design.swapaxes(-1, -2) @ np.linalg.inv(block) @ stack.design
        f = f + (stack.times[:, None, None] * of_design).sum(1)
    determinant: Array = np.linalg.slogdet(np.eye(variance.shape[-1]) + f * variance[:, None, :])[1]
    return determinant


def _minimize(
    target: _Target, truth: NDArray[np.intp], theta: Array, is_free: NDArray[np.bool_]
) -> tuple[Array, Array]:
    """Parameters [Q, D] of least divergence from starts [Q, D], and the divergence [Q]; is_free: [D]; others stay."""
    theta = theta.copy()
    value, gradient, information = target.expand(truth, theta)
    damping = np.full(len(theta), 1e-3)
    active = np.arange(len(theta))
    for _ in range(MOST_STEPS):
        step = _step(gradient[active], information[active], damping[active], is_free)
        trial = theta[active] + step
        trial[:, 0] = np.clip(trial[:, 0], -WIDEST, WIDEST)
        trial[:, 1:] = np.clip(trial[:, 1:], -END, END)
        tried = target.expand(truth[active], trial)
        is_better = tried.value < value[active]
        gained = np.where(is_better, value[active] - tried.value, -(gradient[active] * step).sum(1))
        better = active[is_better]
        theta[better], value[better] = trial[is_better], tried.value[is_better]
        gradient[better], information[better] = tried.gradient[is_better], tried.information[is_better]
        # A step that damping shortened gains little wherever it is.
        is_done = (gained < ENOUGH_NATS) & (damping[active] < FREE_DAMPING)
        damping[active] = np.where(is_better, np.maximum(damping[active] / 8, 1e-9), damping[active] * 8)
        is_done |= (damping[active] > MOST_DAMPING) | (value[active] < ZERO_NATS)
        active = active[~is_done]
        if not len(active):
            break
    return theta, value


def _step(gradient: Array, information: Array, damping: Array, is_free: NDArray[np.bool_]) -> Array:
    diagonal = np.einsum("qdd->qd", information)[:, is_free]
    added = damping[:, None] * (diagonal + 1e-12 * diagonal.max(1, keepdims=True) + 1e-300)
    system = information[:, is_free][:, :, is_free] + added[:, :, None] * np.eye(int(is_free.sum()))
    step = np.zeros_like(gradient)
    step[:, is_free] = -np.linalg.solve(system, gradient[:, is_free, None])[:, :, 0]
    return step * np.minimum(1.0, LONGEST_STEP / np.maximum(np.abs(step).max(1, keepdims=True), 1e-300))


def merged_groups(mimics: NDArray[np.bool_]) -> tuple[tuple[int, ...], ...]:
    """Groups of hypotheses that mimic each other, in the order of their first members; those alone are groups of one.

    mimics: [H, H], whether the hypothesis of the column mimics that of the row.
    """
    _, label = connected_components(coo_array(mimics & mimics.T), directed=False)
    return tuple(tuple(np.flatnonzero(label == number).tolist()) for number in dict.fromkeys(label.tolist()))


def mimicry(
    sheet: SampleSheet,
    pedigree: Pedigree,
    covariates: Sequence[str],
    hypotheses: Sequence[Hypothesis],
    noise: Array,
    typical: Mapping[str, NormalPrior],
    log_spread: float,
) -> NDArray[np.bool_]:
    """Whether the hypothesis of the column mimics that of the row, [H, H].

    noise: [V, S], all levels of which must agree. typical: priors around the true shares and tau. Raises UserError as
    `build_cohort`.

    # METHOD: here the baseline of a locus may be anything. The distribution of baselines is learned from all loci, and
    # takes up whatever all samples share.
    """
    cohort = gaussian_cohort(sheet, pedigree, covariates, hypotheses, noise, ANY_BASELINE_SD)
    size = len(hypotheses)
    pairs = [(h, other) for h in range(size) for other in range(size) if h != other]
    for sds, levels in ((0.0, 1), (-1.0, cohort.levels), (1.0, cohort.levels)):
        pairs = _still_mimicked(cohort, pairs, typical, log_spread, sds, levels)
    mimics = np.eye(size, dtype=bool)
    for pair in pairs:
        mimics[pair] = True
    return mimics


def _still_mimicked(
    cohort: GaussianCohort,
    pairs: Sequence[tuple[int, int]],
    typical: Mapping[str, NormalPrior],
    log_spread: float,
    sds: float,
    levels: int,
) -> list[tuple[int, int]]:
    """Those of the pairs of which the second mimics the first at parameters so many prior SDs from the typical ones."""
    kept = []
    for other in dict.fromkeys(other for _, other in pairs):
        against = [h for h, second in pairs if second == other]
        truths = [
            Point(h, typical_theta(cohort.hypotheses[h], typical, log_spread, sds), level)
            for h in against
            for level in range(levels)
        ]
        least = least_divergence(cohort, truths, other).reshape(len(against), levels)
        kept += [(h, other) for h, nats in zip(against, least.max(1), strict=True) if nats < MIMIC_NATS]
    return kept
