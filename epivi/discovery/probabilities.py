"""From log evidences and weights to probabilities of the hypotheses, local false discovery rates and q-values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from epivi.discovery.merged import Groups, each_alone, group_name, summed

Array = NDArray[np.float64]
# Yields log evidences [n, H] of consecutive loci, in genome order, anew at every call.
EvidencePass = Callable[[], Iterable[Array]]

LOW_COVERAGE = 5.0  # reads per covered sample, below which a posterior is flagged
CHUNK_LOCI = 4096
LEAST_LIKELY_NATS = -690.0  # nats below the best hypothesis: no probability is ever exactly zero
KIND_LEVEL = 0.9  # of the transmitted probability, which the set of kinds holds
LFDR_EDGES = np.concatenate([[0.0], expit(np.linspace(-20.0, 20.0, 4001)), [1.0]])  # 1 % apart in odds


class QvalueTable(NamedTuple):
    """Steps of lfdr: `qvalue` is the mean lfdr of all loci whose lfdr is at most `lfdr`.

    control_qvalue: the same rate as controls see it; nan without controls.
    """

    lfdr: Array  # [T], upper ends of the steps that hold loci
    qvalue: Array  # [T]
    n_loci: NDArray[np.int64]  # [T], cumulative
    control_qvalue: Array  # [T]

    def largest_lfdr(self, fdr: float) -> float:
        """Upper end of the last step that may be called; -1 where there is none."""
        is_called = (self.qvalue <= fdr) & ~(self.control_qvalue > fdr)
        return float(self.lfdr[is_called].max(initial=-1.0))


def mixture_probabilities(log_evidence: Array, weights: Array) -> Array:
    """Posterior probability [L, H] of every hypothesis, averaged over R draws of the weights [R, H].

    log_evidence: [L, H], nats. A hypothesis of weight 0 in all draws has probability 0.
    """
    result = np.empty(log_evidence.shape)
    for first in range(0, len(log_evidence), CHUNK_LOCI):
        chunk = log_evidence[first : first + CHUNK_LOCI]
        relative = np.maximum(chunk - chunk.max(1, keepdims=True), LEAST_LIKELY_NATS)
        likelihood = np.exp(relative)
        share = (1.0 / (likelihood @ weights.T)) @ weights / len(weights)
        result[first : first + CHUNK_LOCI] = likelihood * share
    return result / result.sum(1, keepdims=True)


def local_fdr(probability: Array, is_null: NDArray[np.bool_]) -> Array:
    """Posterior probability that nothing is transmitted, [L]."""
    return np.minimum(probability[:, is_null].sum(1), 1.0)


def qvalue_table(evidence: EvidencePass, weights: Array, is_null: NDArray[np.bool_]) -> QvalueTable:
    """Bayesian false discovery rate of calling all loci up to a given lfdr, in steps of 1 % in odds.

    weights: [R, H], draws over which probabilities are averaged.
    """
    count = np.zeros(len(LFDR_EDGES) - 1, dtype=np.int64)
    total = np.zeros(len(count))
    for log_evidence in evidence():
        lfdr = local_fdr(mixture_probabilities(log_evidence, weights), is_null)
        step = np.clip(np.searchsorted(LFDR_EDGES, lfdr, side="left") - 1, 0, len(count) - 1)
        count += np.bincount(step, minlength=len(count))
        total += np.bincount(step, weights=lfdr, minlength=len(count))
    occupied = count > 0
    cumulative = np.cumsum(count)[occupied]
    qvalue = np.cumsum(total)[occupied] / cumulative
    return QvalueTable(LFDR_EDGES[1:][occupied], qvalue, cumulative, np.full(len(qvalue), np.nan))


def nothing_called(table: QvalueTable) -> QvalueTable:
    """The same steps with q-values of 1."""
    return table._replace(qvalue=np.ones_like(table.qvalue))


class Rates(NamedTuple):
    """False discovery rates of each locus."""

    qvalue: Array  # [L]
    control_qvalue: Array  # [L]

    def called(self, fdr: float) -> NDArray[np.bool_]:
        """Whether both are at most `fdr`; without controls the first alone."""
        return (self.qvalue <= fdr) & ~(self.control_qvalue > fdr)


def rates(lfdr: Array, table: QvalueTable) -> Rates:
    """Rates of each locus from the step that its lfdr lies in."""
    step = np.minimum(np.searchsorted(table.lfdr, lfdr, side="left"), len(table.qvalue) - 1)
    return Rates(table.qvalue[step], table.control_qvalue[step])


class Kinds(NamedTuple):
    """What is known of the kind of each locus, as names; those of a group stand together, joined by | too."""

    kind_set: NDArray[np.str_]  # [L], names joined by |; empty where no hypothesis transmits
    best: NDArray[np.str_]  # [L], empty where the kind is open


def kinds(
    probability: Array, hypotheses: Sequence[str], is_null: NDArray[np.bool_], groups: Groups | None = None
) -> Kinds:
    """The smallest set of transmitting hypotheses with KIND_LEVEL of the transmitted probability, and the best one.

    probability: [L, H]. The best hypothesis is named where it is a null hypothesis, or the only member of the set.
    groups: of hypotheses that nothing separates, which are one here, and null if a member is; without, each is alone.
    """
    groups = each_alone(len(hypotheses)) if groups is None else groups
    probability = summed(probability, groups)
    is_null = np.array([is_null[list(group)].any() for group in groups])
    names = np.array([group_name(group, hypotheses) for group in groups])
    transmitting = np.flatnonzero(~is_null)
    given = probability[:, transmitting]
    given = given / np.maximum(given.sum(1, keepdims=True), np.finfo(float).tiny)
    order = np.argsort(-given, axis=1, kind="stable")
    ranked = np.take_along_axis(given, order, axis=1)
    is_needed = np.cumsum(ranked, axis=1) - ranked < KIND_LEVEL
    is_member = np.zeros(given.shape, dtype=bool)
    np.put_along_axis(is_member, order, is_needed, axis=1)
    found, which = np.unique(is_member, axis=0, return_inverse=True)
    sets = np.array(["|".join(names[transmitting[row]]) for row in found], dtype=str)
    kind_set = sets[which.reshape(-1)]
    best = probability.argmax(1)
    is_open = ~is_null[best] & (is_member.sum(1) > 1)
    return Kinds(kind_set, np.where(is_open, "", names[best]))
