"""What controls say, on evidences whose truth is known; p-values and intervals against their definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from test_weights import draw, mean_log_likelihood

from epivi.base.errors import UserError
from epivi.discovery.columns import DISCOVERY_TABLES
from epivi.discovery.control_file import check_same_evidence, read_controls
from epivi.discovery.controls import ControlEvidence, control_qvalues, gain_nats, judge, p_value
from epivi.discovery.probabilities import QvalueTable, local_fdr, mixture_probabilities, qvalue_table
from epivi.discovery.weights import WeightPrior, weight_posterior
from epivi.tables.parquet import Provenance, write_table

Array = NDArray[np.float64]
IS_NULL = np.array([True, False])
PRIOR = WeightPrior(np.array([5.0, 1.0]), 0.02)
LOCI = 400


def controls(
    true: Array,
    across: list[Array],
    within: list[Array],
    families: list[Array],
    priors: list[Array] = [],  # noqa: B006
) -> tuple[ControlEvidence, ...]:
    kinds = {"true": [true], "across": across, "within": within, "without_family": families, "prior": priors}
    return tuple(
        ControlEvidence(kind, number, "", each) for kind, found in kinds.items() for number, each in enumerate(found)
    )


def nulls(number: int, seed: int) -> list[Array]:
    return [draw([1.0, 0.0], LOCI, 2.0, seed=100 * seed + k) for k in range(number)]


def signals(number: int, seed: int, weight: float = 0.3) -> list[Array]:
    return [draw([1 - weight, weight], LOCI, 2.0, seed=1000 * seed + k) for k in range(number)]


def verdict_of(found: tuple[ControlEvidence, ...]):
    true = found[0].log_evidence
    weights = weight_posterior(lambda: iter([true]), LOCI, PRIOR, 50, 40, 1).tilted
    return judge(found, PRIOR, weights, IS_NULL, 0.2)


def test_a_signal_along_the_pedigree_is_told() -> None:
    true = signals(1, 1)[0]
    verdict = verdict_of(controls(true, nulls(19, 2), nulls(19, 3), signals(6, 4)))
    assert verdict.cannot_tell == ""
    assert [test.control for test in verdict.tests] == ["across", "within"]
    assert {test.p_value for test in verdict.tests} == {1 / 20}
    lfdr = local_fdr(
        mixture_probabilities(true, weight_posterior(lambda: iter([true]), LOCI, PRIOR, 50, 40, 1).tilted), IS_NULL
    )
    assert verdict.tests[0].called == (lfdr <= 0.2).sum() > 5 * verdict.tests[0].called_exchanged


@pytest.mark.parametrize("kind", ["across", "within"])
def test_what_an_exchange_does_not_break_is_not_called(kind: str) -> None:
    """One exchange that explains as much as the true pedigree is too much, at 19 of them."""
    true = signals(1, 1)[0]
    found = {"across": nulls(19, 2), "within": nulls(19, 3)}
    found[kind][7] = true + np.array([0.0, 0.5])
    verdict = verdict_of(controls(true, found["across"], found["within"], signals(6, 4)))
    assert verdict.cannot_tell.startswith("cannot tell: ")
    assert ("across families" if kind == "across" else "within families") in verdict.cannot_tell
    assert "p = 0.10" in verdict.cannot_tell


def test_a_pedigree_without_room_for_exchanges_meets_itself() -> None:
    """A trio has few orders: the true one comes again and again, so that its p-value stays large."""
    true = signals(1, 1)[0]
    verdict = verdict_of(controls(true, [true] * 19, nulls(19, 3), signals(6, 4)))
    assert verdict.tests[0].p_value == 1.0
    assert "across families" in verdict.cannot_tell


def test_weights_that_rest_on_one_family_are_not_called() -> None:
    """Without one of three families next to nothing is left of the transmission."""
    true = signals(1, 1)[0]
    without = [*signals(2, 4), *nulls(1, 5)]
    verdict = verdict_of(controls(true, nulls(19, 2), nulls(19, 3), without))
    assert "without one family at a time" in verdict.cannot_tell
    assert verdict.family_upper[0] == 1.0


def test_the_interval_over_families_is_the_jackknife() -> None:
    without = signals(6, 4)
    true = signals(1, 1)[0]
    verdict = verdict_of(controls(true, nulls(19, 2), nulls(19, 3), without, signals(2, 6, 0.6)))

    def weight_of(log_evidence: Array) -> float:
        """The most probable weight of the first hypothesis, by search."""
        grid = np.linspace(1e-4, 1 - 1e-4, 40_001)
        odds = np.exp(log_evidence[:, 1] - log_evidence[:, 0])
        objective = [np.log(w + (1 - w) * odds).sum() + 5 * np.log(w) + np.log(1 - w) for w in grid[::40]]
        near = grid[::40][int(np.argmax(objective))] + np.linspace(-2e-3, 2e-3, 401)
        near = near[(near > 0) & (near < 1)]
        objective = [np.log(w + (1 - w) * odds).sum() + 5 * np.log(w) + np.log(1 - w) for w in near]
        return float(near[int(np.argmax(objective))])

    values = np.array([weight_of(each) for each in without])
    error = np.sqrt(5 / 6 * ((values - values.mean()) ** 2).sum())
    reach = 2.5706 * error  # t with 5 degrees of freedom
    assert verdict.family_lower[0] == pytest.approx(weight_of(true) - reach, abs=1e-4)
    assert verdict.family_upper[0] == pytest.approx(weight_of(true) + reach, abs=1e-4)
    assert verdict.prior_upper[0] == pytest.approx(weight_of(true), abs=1e-4)
    assert verdict.prior_lower[0] < 0.6


def test_gain_is_that_of_the_best_weights() -> None:
    log_evidence = draw([0.7, 0.2, 0.1], 300, 1.5, seed=3)
    is_null = np.array([True, False, False])
    at_null = mean_log_likelihood(log_evidence, np.array([1.0, 0.0, 0.0]))
    gain = gain_nats(log_evidence, is_null)
    assert gain > 300 * (mean_log_likelihood(log_evidence, np.array([0.7, 0.2, 0.1])) - at_null)
    assert gain_nats(log_evidence, np.array([True, True, True])) == 0.0


def test_p_values_keep_their_level() -> None:
    """Of 4,000 true gains drawn like 19 others a share of .05 (SE .0034) has p at most .05; ties count against."""
    random = np.random.default_rng(1)
    gains = random.normal(size=(4000, 20))
    assert np.mean([p_value(row[0], row[1:]) <= 0.05 for row in gains]) == pytest.approx(0.05, abs=0.012)
    assert p_value(1.0, [1.0, 0.0, 0.0]) == 0.5


def weight_of_null(log_evidence: Array) -> float:
    """The most probable one under PRIOR, by a search over a grid that is refined four times."""
    lower, upper = 1e-6, 1 - 1e-6
    for _ in range(4):
        grid = np.linspace(lower, upper, 101)
        pairs = np.stack([grid, 1 - grid], axis=1)
        value = [
            mean_log_likelihood(log_evidence, pair) * len(log_evidence) + PRIOR.alpha @ np.log(pair) for pair in pairs
        ]
        best = int(np.argmax(value))
        lower, upper = grid[max(best - 1, 0)], grid[min(best + 1, 100)]
    return float(grid[best])


def rates_of(true: Array, across: list[Array]) -> tuple[QvalueTable, Array, Array, Array]:
    """The table and control q-values, and lfdr as they are and with individuals exchanged."""
    weights = weight_posterior(lambda: iter([true]), len(true), PRIOR, 50, 40, 1).tilted
    table = qvalue_table(lambda: iter([true]), weights, IS_NULL)
    rate = control_qvalues(table, controls(true, across, [], []), PRIOR, weights, IS_NULL)
    lfdr, *others = (local_fdr(mixture_probabilities(each, weights), IS_NULL) for each in (true, *across))
    assert (control_qvalues(table, controls(true, [], [], []), PRIOR, weights, IS_NULL) == 1.0).all()
    return table, rate, lfdr, np.concatenate(others)


def test_rates_of_calls_with_the_pedigree_broken() -> None:
    """Share of loci beyond each lfdr in exchanged pedigrees over the share in the true one, as counted by hand, times
    the share of null loci, of which .7 were drawn: by the weights, which know more than the loci beyond the median."""
    true = draw([0.7, 0.3], 2000, 0.7, seed=1)
    across = [draw([1.0, 0.0], 2000, 0.7, seed=10 + k) for k in range(5)]
    table, rate, lfdr, others = rates_of(true, across)
    null_share = weight_of_null(true) / np.mean([weight_of_null(each) for each in across])
    assert 0.65 < null_share < 0.75
    by_hand = [min(1.0, null_share * np.mean(others <= end) / np.mean(lfdr <= end)) for end in table.lfdr]
    np.testing.assert_allclose(rate, np.minimum.accumulate(by_hand[::-1])[::-1], rtol=1e-3)
    assert rate[0] < 0.2 < rate[-1] <= null_share * 1.001


def test_what_exchanged_pedigrees_show_as_well_is_no_smaller_share_of_null_loci() -> None:
    """All loci are null and lean to transmission alike: the weight of the null is low, as it is when exchanged."""
    true, *across = (each + np.array([0.0, 4.0]) for each in nulls(6, 2))
    assert weight_of_null(true) < 0.5
    _, rate, _, _ = rates_of(true, across)
    assert rate[-1] > 0.9


def test_no_more_loci_are_null_than_lie_where_exchanged_ones_do() -> None:
    """Signals, .3 of the loci, that the weights take for nulls, since the hypothesis says less than they show."""
    true, across = signals(1, 1)[0], nulls(5, 2)
    _, rate, lfdr, others = rates_of(true - np.array([0.0, 6.0]), [each - np.array([0.0, 6.0]) for each in across])
    assert weight_of_null(true - np.array([0.0, 6.0])) > 0.95
    storey = np.mean(lfdr >= np.median(others)) / np.mean(others >= np.median(others))
    assert rate[-1] <= storey * (1 + 1e-12) < 0.8


def test_without_controls_nothing_is_held_against_the_calls() -> None:
    verdict = judge((), PRIOR, np.array([[0.5, 0.5]]), IS_NULL, 0.2)
    assert (verdict.tests, verdict.cannot_tell) == ((), "")
    assert np.isnan(verdict.family_lower).all()


# --- the file --------------------------------------------------------------------------------------------------------


def write(path: Path, found: tuple[ControlEvidence, ...], locus: NDArray[np.int64]) -> Path:
    rows = [
        {"control": each.control, "number": each.number, "detail": each.detail, "locus": number, "hypothesis": name}
        | {"log_evidence": value}
        for each in found
        for number, row in zip(locus.tolist(), each.log_evidence.tolist(), strict=True)
        for name, value in zip(("reset", "mendelian"), row, strict=True)
    ]
    kind = "control_evidence"
    write_table(pa.Table.from_pylist(rows), path, DISCOVERY_TABLES[kind], Provenance(kind, 1, "", ""))
    return path


def test_the_file_is_read_back_and_must_be_of_the_same_evidence(tmp_path: Path) -> None:
    evidence = draw([0.7, 0.3], 30, 2.0, seed=1)
    locus = np.array([3, 4, 5, 21, 22])
    found = controls(evidence[locus], [evidence[locus][::-1]], [], [])
    read = read_controls(write(tmp_path / "c.parquet", found, locus), ["reset", "mendelian"])
    assert [(each.control, each.number) for each in read.evidences] == [("true", 0), ("across", 0)]
    np.testing.assert_array_equal(read.evidences[1].log_evidence, found[1].log_evidence)
    check_same_evidence(read, iter([evidence[:5], evidence[5:]]))
    with pytest.raises(UserError, match=r"c\.parquet: is of another fit than the evidence"):
        check_same_evidence(read, iter([evidence[:5], evidence[5:] + 0.01]))
    with pytest.raises(UserError, match=r"c\.parquet: is of other loci than the evidence"):
        check_same_evidence(read, iter([evidence[:22]]))
    with pytest.raises(UserError, match="holds the hypotheses reset, mendelian; expected reset, maternal"):
        read_controls(tmp_path / "c.parquet", ["reset", "maternal"])
    with pytest.raises(UserError, match="does not begin with the true pedigree"):
        read_controls(write(tmp_path / "d.parquet", found[1:], locus), ["reset", "mendelian"])
