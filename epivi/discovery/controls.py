"""What controls say of the comparison: whether the pedigree matters, how many calls survive without it, and how far the
weights rest on single families and on the prior of the shares.

Controls are evidences of a sample of loci with one thing changed (epivi.families.transmission.controls). Loci are not
replicates of what they all share; individuals and families are. So the calls of a run stand only where the true
pedigree explains the loci better than pedigrees with the individuals exchanged do, and where no single family carries
them. A control is a lower bound of what is false: what it does not break it does not show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from epivi.discovery.merged import Groups, each_alone
from epivi.discovery.probabilities import QvalueTable, local_fdr, mixture_probabilities
from epivi.discovery.weights import WeightPrior, maximum_likelihood, most_probable_weights

Array = NDArray[np.float64]

TRUE = "true"  # the last of this kind is at the level of the others, the first what the run's evidence is
# METHOD: a signal along the pedigree beats both exchanges; what belongs to whole families (a batch, a household) is as
# strong with the roles exchanged within them; what belongs to single individuals is about as strong with both.
# Siblings with other parents (`sibships`) keep a part of what is passed on, so that control is shown and not asked.
ASKED = {
    "across": "individuals exchanged across families explain the loci as well, so that nothing is shown to follow this "
    "pedigree",
    "within": "the roles within families exchanged, the pedigree explains the loci as well, so that what a family "
    "shares may be its batch or household",
}
LEVEL = 0.05  # of the tests
TIE_NATS = 1e-6  # gains this close are equal: an exchange between like individuals changes nothing


class ControlEvidence(NamedTuple):
    """Log evidences [L, H] of the sampled loci under one variant."""

    control: str
    number: int
    detail: str
    log_evidence: Array


class ControlTest(NamedTuple):
    """The true pedigree among its exchanges of one kind."""

    control: str
    exchanges: int
    gain_nats: float  # of the true pedigree, over all sampled loci
    median_exchanged_nats: float
    largest_exchanged_nats: float
    p_value: float
    called: int  # sampled loci
    called_exchanged: float  # the same of an exchange, on average


class Verdict(NamedTuple):
    """What the controls say; ranges are of the weights, [H], and nan where nothing was tried."""

    tests: tuple[ControlTest, ...]
    family_lower: Array
    family_upper: Array
    prior_lower: Array
    prior_upper: Array
    merged_family_lower: Array  # of the group of each hypothesis, [H]
    merged_family_upper: Array
    cannot_tell: str  # why nothing is called; empty where something may be


def gain_nats(log_evidence: Array, is_null: NDArray[np.bool_]) -> float:
    """How much better the loci are explained with the transmitting hypotheses than without, at the best weights."""
    if is_null.all():
        return 0.0
    _, with_all = maximum_likelihood(lambda: [log_evidence], len(log_evidence), len(is_null))
    _, with_null = maximum_likelihood(lambda: [log_evidence[:, is_null]], len(log_evidence), int(is_null.sum()))
    return with_all - with_null


def p_value(true_gain: float, exchanged: Sequence[float]) -> float:
    """Share of gains that are at least the true one, itself among them: exact whatever the number of exchanges.

    A pedigree with few possible exchanges is often drawn unchanged, so that its p-values stay large.
    """
    as_good = sum(gain >= true_gain - TIE_NATS for gain in exchanged)
    return (1 + as_good) / (1 + len(exchanged))


def judge(
    controls: Sequence[ControlEvidence],
    prior: WeightPrior,
    weights: Array,
    is_null: NDArray[np.bool_],
    lfdr_called: float,
    groups: Groups | None = None,
) -> Verdict:
    """Tests of the pedigree and ranges of the weights.

    weights: [R, H], draws over which probabilities are averaged; lfdr_called: the largest that is called, negative
    where none is. groups: of hypotheses that nothing separates, each alone without; is_null counts whole groups.
    """
    by_kind = _by_kind(controls)
    groups = each_alone(len(is_null)) if groups is None else groups
    if not by_kind:
        nothing = np.full(len(is_null), np.nan)
        return Verdict((), nothing, nothing, nothing, nothing, nothing, nothing, "")
    true = by_kind[TRUE][-1].log_evidence
    tests = tuple(
        _test(kind, true, [each.log_evidence for each in by_kind[kind]], weights, is_null, lfdr_called)
        for kind in by_kind
        if kind in (*ASKED, "sibships")
    )
    members = [next(group for group in groups if h in group) for h in range(len(is_null))]
    sums = np.array([*np.eye(len(is_null)), *(np.isin(np.arange(len(is_null)), group) for group in members), ~is_null])
    lower, upper = _without_each_family(by_kind, prior, sums.astype(float))
    family_lower, merged_lower = np.split(lower[:-1], 2)
    family_upper, merged_upper = np.split(upper[:-1], 2)
    others = [_most_probable(each.log_evidence, prior) for each in by_kind.get("prior", [])]
    around = np.array([_most_probable(true, prior), *others]) if others else np.full((1, len(is_null)), np.nan)
    cannot_tell = _why_not(tests, float(lower[-1]))
    return Verdict(
        tests, family_lower, family_upper, around.min(0), around.max(0), merged_lower, merged_upper, cannot_tell
    )


def _by_kind(controls: Sequence[ControlEvidence]) -> Mapping[str, list[ControlEvidence]]:
    kinds: dict[str, list[ControlEvidence]] = {}
    for each in controls:
        kinds.setdefault(each.control, []).append(each)
    return kinds


def _test(
    kind: str,
    true: Array,
    exchanged: Sequence[Array],
    weights: Array,
    is_null: NDArray[np.bool_],
    lfdr_called: float,
) -> ControlTest:
    gain = gain_nats(true, is_null)
    gains = [gain_nats(each, is_null) for each in exchanged]
    called, *others = (_called(each, weights, is_null, lfdr_called) for each in (true, *exchanged))
    return ControlTest(
        kind,
        len(gains),
        gain,
        float(np.median(gains)),
        max(gains),
        p_value(gain, gains),
        called,
        float(np.mean(others)),
    )


def _called(log_evidence: Array, weights: Array, is_null: NDArray[np.bool_], lfdr_called: float) -> int:
    return int((local_fdr(mixture_probabilities(log_evidence, weights), is_null) <= lfdr_called).sum())


def _most_probable(log_evidence: Array, prior: WeightPrior) -> Array:
    return most_probable_weights(lambda: [log_evidence], len(log_evidence), prior)


def _without_each_family(
    by_kind: Mapping[str, list[ControlEvidence]], prior: WeightPrior, sums: Array
) -> tuple[Array, Array]:
    """95 % jackknife interval over families of sums of the weights, [N] each; sums: [N, H], which are added.

    # METHOD: the families of the cohort are a sample of families. Deleted one at a time they show how far the weights
    # rest on each, which the loci, all of the same families, cannot (Efron and Stein 1981).
    """
    without = [_most_probable(each.log_evidence, prior) for each in by_kind.get("without_family", [])]
    if len(without) < 2:
        return np.full(len(sums), np.nan), np.full(len(sums), np.nan)
    whole = _most_probable(by_kind[TRUE][-1].log_evidence, prior)
    values, centre = np.array(without) @ sums.T, sums @ whole
    n = len(values)
    error = np.sqrt((n - 1) / n * ((values - values.mean(0)) ** 2).sum(0))
    reach = float(stdtrit(n - 1, 0.975)) * error
    return np.maximum(centre - reach, 0.0), np.minimum(centre + reach, 1.0)


def _why_not(tests: Sequence[ControlTest], transmitted_lower: float) -> str:
    """The first reason against calls."""
    for test in tests:
        if test.control in ASKED and test.p_value > LEVEL:
            return (
                f"cannot tell: {ASKED[test.control]} (gain {test.gain_nats:.1f} nats; exchanged {test.exchanges} times "
                f"{test.median_exchanged_nats:.1f} at the median and {test.largest_exchanged_nats:.1f} at most; p = "
                f"{test.p_value:.2f}). No locus is called"
            )
    if transmitted_lower <= 0.0:
        return (
            "cannot tell: without one family at a time the weight of transmission varies so much that it may be "
            "nothing. No locus is called"
        )
    return ""


def control_qvalues(
    table: QvalueTable,
    controls: Sequence[ControlEvidence],
    prior: WeightPrior,
    weights: Array,
    is_null: NDArray[np.bool_],
) -> Array:
    """False discovery rate of calling up to each step of lfdr, from individuals exchanged across families, [T].

    The share of loci that a broken pedigree calls, times the share of null loci, over the share that the true one
    calls; 1 without such a control.
    """
    by_kind = _by_kind(controls)
    if "across" not in by_kind:
        return np.ones(len(table.lfdr))
    true, exchanged = by_kind[TRUE][-1], by_kind["across"]
    lfdr, lfdr_exchanged = (_lfdr(kind, weights, is_null) for kind in ([true], exchanged))
    null_share = min(_null_share_by_weights(true, exchanged, prior, is_null), _null_share(lfdr, lfdr_exchanged))
    survive = np.searchsorted(np.sort(lfdr_exchanged), table.lfdr, side="right") / len(lfdr_exchanged)
    called = table.n_loci / table.n_loci[-1]
    ratio = np.minimum(null_share * survive / called, 1.0)
    return np.minimum.accumulate(ratio[::-1])[::-1]


def _lfdr(controls: Sequence[ControlEvidence], weights: Array, is_null: NDArray[np.bool_]) -> Array:
    """Of the loci of all these controls, one after another."""
    found = [local_fdr(mixture_probabilities(each.log_evidence, weights), is_null) for each in controls]
    return np.concatenate(found)


def _null_share_by_weights(
    true: ControlEvidence, exchanged: Sequence[ControlEvidence], prior: WeightPrior, is_null: NDArray[np.bool_]
) -> float:
    """Weight of the null hypotheses as the loci are, over the mean weight that exchanged pedigrees give them.

    # METHOD: with individuals exchanged all loci are null, so that what is missing from a weight of 1 there is missing
    # for another reason than transmission, such as cells that differ, and is not to be taken for it here.
    """
    as_it_is, *others = (_most_probable(each.log_evidence, prior)[is_null].sum() for each in (true, *exchanged))
    return float(min(1.0, as_it_is / np.mean(others)))


def _null_share(true: Array, exchanged: Array) -> float:
    """Largest share of the loci that can be null, from their lfdr as they are and with individuals exchanged.

    # METHOD: with individuals exchanged all loci are null. Of those as they are, the ones beyond the median of the
    # others count as null, which is too many rather than too few (Storey and Tibshirani 2003).
    """
    middle = np.median(exchanged)
    return min(1.0, float((true >= middle).mean() / (exchanged >= middle).mean()))
