"""Levels of the inner integral: which loci are sent on, what comes back, and that an error is put right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_evidence import Study, study  # noqa: F401  (a fixture)

from epivi.families.transmission import refinement
from epivi.families.transmission.density import to_batch
from epivi.families.transmission.outer_integral import HypothesisEvidence, hypothesis_evidence, marginal_proposal
from epivi.families.transmission.refinement import INNER_METHODS, evaluate_batch, sample_field
from epivi.field.compiled.laplace import NOT_CONVERGED
from epivi.loci.source import CountsBatch

LOCI = slice(0, 40)
NODES = 64


@pytest.fixture(autouse=True)
def _once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No locus is taken again for its outer integral: the levels are looked at alone."""
    monkeypatch.setattr(refinement, "LARGEST_OUTER_ERROR", np.inf)


def refined(study: Study, nodes: int = NODES) -> list[HypothesisEvidence]:  # noqa: F811
    return evaluate_batch(study.model, study.meth[LOCI], study.total[LOCI], study.loci[LOCI], nodes, seed=1)


def one_level(study: Study, method: str) -> list[HypothesisEvidence]:  # noqa: F811
    """Every locus by one method, without the refinement."""
    meth, total, loci = study.meth[LOCI], study.total[LOCI], study.loci[LOCI]
    batch = to_batch(CountsBatch(meth, total, loci), len(loci), torch.device("cpu"), torch.float64)
    with torch.no_grad():
        gaussians = study.model.encoder(batch, study.model.hyper)
    return [
        hypothesis_evidence(
            study.model,
            index,
            marginal_proposal(g.mean.numpy(), g.scale_tril.numpy(), len(study.model.hypotheses[index].parameters)),
            *(meth, total, loci, NODES, 1),
            method=method,
        )
        for index, g in enumerate(gaussians)
    ]


def against_mean(value: np.ndarray) -> np.ndarray:
    return np.abs(value - value.mean(1, keepdims=True))


def stacked(evidences: list[HypothesisEvidence], name: str) -> np.ndarray:
    return np.stack([getattr(evidence, name) for evidence in evidences], axis=1)


@pytest.mark.parametrize(
    ("told_by", "limit", "other"),
    [
        ("laplace_correction", "LARGEST_DIFFERENCE", "LARGEST_STEP_DIFFERENCE"),
        ("central_step", "LARGEST_STEP_DIFFERENCE", "LARGEST_DIFFERENCE"),
    ],
)
def test_loci_in_doubt_go_on_and_no_others(
    study: Study,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    told_by: str,
    limit: str,
    other: str,
) -> None:
    """With the limit at the median spread of what tells of doubt, half of the loci are propagated, under all
    hypotheses."""
    laplace, propagated = one_level(study, "laplace"), one_level(study, "ep")
    value = stacked(laplace, told_by)
    spread = np.ptp(value, axis=1)
    if told_by == "central_step":
        spread += refinement.COMMON_STEP_SHARE * np.abs(value.mean(1))
    monkeypatch.setattr(refinement, limit, float(np.median(spread)))
    monkeypatch.setattr(refinement, other, np.inf)
    monkeypatch.setattr(refinement, "EVIDENCE_GOAL", np.inf)  # so that none is sampled
    found = refined(study)
    on = spread > np.median(spread)
    method = stacked(found, "inner_method")
    np.testing.assert_array_equal(method == INNER_METHODS.index("ep"), np.repeat(on[:, None], method.shape[1], axis=1))
    expected = np.where(on[:, None], stacked(propagated, "log_evidence"), stacked(laplace, "log_evidence"))
    np.testing.assert_allclose(stacked(found, "log_evidence"), expected, rtol=1e-12)
    expected = np.where(on[:, None, None], stacked(propagated, "q95"), stacked(laplace, "q95"))
    np.testing.assert_allclose(stacked(found, "q95"), expected, rtol=1e-9)
    unsettled = stacked(propagated, "laplace_correction") == NOT_CONVERGED
    np.testing.assert_array_equal(np.isinf(stacked(found, "inner_error")), on[:, None] & unsettled)


def test_loci_that_are_not_to_be_refined_stay_at_the_first_level(study: Study) -> None:  # noqa: F811
    counts = study.meth[LOCI], study.total[LOCI], study.loci[LOCI]
    found = evaluate_batch(study.model, *counts, NODES, seed=1, is_refined=False)
    expected = stacked(one_level(study, "laplace"), "log_evidence")
    np.testing.assert_allclose(stacked(found, "log_evidence"), expected, atol=1e-9)
    assert np.abs(stacked(refined(study), "log_evidence") - expected).max() > 1e-4


def test_a_locus_without_an_evidence_at_the_first_level_is_refined_nevertheless(
    study: Study,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A point without a mode has no evidence: a hypothesis of a control would be lost there without a word."""

    def without_a_mode(model, index, proposal, meth, total, loci, *rest):  # type: ignore[no-untyped-def]
        found = hypothesis_evidence(model, index, proposal, meth, total, loci, *rest)
        if index == 1 and "laplace" in rest:
            failed = loci == study.loci[LOCI][3]
            found.log_evidence[failed], found.laplace_correction[failed] = -np.inf, NOT_CONVERGED
        return found

    monkeypatch.setattr(refinement, "hypothesis_evidence", without_a_mode)
    counts = study.meth[LOCI], study.total[LOCI], study.loci[LOCI]
    found = stacked(evaluate_batch(study.model, *counts, NODES, seed=1, is_refined=False), "log_evidence")
    propagated = stacked(one_level(study, "ep"), "log_evidence")
    np.testing.assert_allclose(found[3], propagated[3], atol=0.01)  # sampled beyond propagation, as it failed before
    others = np.arange(len(found)) != 3
    np.testing.assert_allclose(found[others], stacked(one_level(study, "laplace"), "log_evidence")[others], atol=1e-9)


def test_differences_of_large_corrections_count_for_more(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Loci with the same difference: those whose corrections are large go on, the others stay and say less error."""
    laplace = one_level(study, "laplace")
    correction = stacked(laplace, "laplace_correction")
    largest, spread = correction.max(1), np.ptp(correction, axis=1)
    monkeypatch.setattr(refinement, "SLOW_CORRECTION", float(np.median(largest)))
    factor = np.maximum(largest / np.median(largest), 1)
    limit = float(np.median(spread * factor))
    monkeypatch.setattr(refinement, "LARGEST_DIFFERENCE", limit)
    monkeypatch.setattr(refinement, "LARGEST_STEP_DIFFERENCE", np.inf)
    found = refined(study)
    on = spread * factor > limit
    assert (on & (spread <= limit)).any()
    first = (stacked(found, "inner_method") == 0).all(1)
    np.testing.assert_array_equal(first, ~on)
    by_correction = refinement.NEXT_ORDER_SHARE * against_mean(correction) * factor[:, None]
    expected = np.maximum(by_correction, against_mean(stacked(laplace, "central_step")))[first]
    assert (factor[first] > 1).any()
    assert (by_correction[first] == expected)[factor[first] > 1].any()
    np.testing.assert_allclose(stacked(found, "inner_error")[first], expected, rtol=1e-6, atol=1e-12)


def test_errors_common_to_the_hypotheses_do_not_count(study: Study) -> None:  # noqa: F811
    """The estimate of the first level is a share of the distance between corrections, not of the corrections, or the
    distance between steps to propagation, not the steps; of either there are loci at which it is the larger."""
    laplace, found = one_level(study, "laplace"), refined(study)
    correction, step = stacked(laplace, "laplace_correction"), stacked(laplace, "central_step")
    first = (stacked(found, "inner_method") == 0).all(1)
    by_correction, by_step = refinement.NEXT_ORDER_SHARE * against_mean(correction), against_mean(step)
    expected = np.maximum(by_correction, by_step)
    np.testing.assert_allclose(stacked(found, "inner_error")[first], expected[first], rtol=1e-6, atol=1e-12)
    assert np.unique((by_step > by_correction)[first]).tolist() == [False, True]
    for value, factor in ((correction[first], 5), (step[first], 2)):
        assert np.median(np.abs(value.mean(1))) > factor * np.median(np.ptp(value, axis=1))


def test_a_central_node_without_propagation_is_in_doubt(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Where the sites do not settle at the centre of one hypothesis, the locus goes on under all."""

    def unsettled(model, index, *arguments):  # type: ignore[no-untyped-def]
        evidence = hypothesis_evidence(model, index, *arguments)
        if index == 1:
            evidence.central_step[0] = np.inf
        return evidence

    monkeypatch.setattr(refinement, "hypothesis_evidence", unsettled)
    monkeypatch.setattr(refinement, "LARGEST_DIFFERENCE", np.inf)
    monkeypatch.setattr(refinement, "LARGEST_STEP_DIFFERENCE", 1e3)
    monkeypatch.setitem(globals(), "LOCI", slice(0, 3))
    found = refined(study)
    assert stacked(found, "inner_method")[:, 0].tolist() == [INNER_METHODS.index("ep"), 0, 0]
    assert np.isfinite(stacked(found, "inner_error")).all()


def test_loci_with_a_coarse_outer_integral_are_taken_again(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """With the limit at the median standard error half of the loci have what four times the nodes find."""
    coarse, fine = refined(study), refined(study, 4 * NODES)
    error = stacked(coarse, "log_evidence_se").max(1)
    monkeypatch.setattr(refinement, "LARGEST_OUTER_ERROR", float(np.median(error)))
    found = refined(study)
    again = error > np.median(error)
    for name in ("log_evidence", "log_evidence_se", "inner_error", "inner_method", "q95"):
        values = [stacked(evidences, name) for evidences in (found, coarse, fine)]
        np.testing.assert_allclose(values[0][again], values[2][again], rtol=1e-9, err_msg=name)
        np.testing.assert_array_equal(values[0][~again], values[1][~again], err_msg=name)
    changed = (stacked(found, "log_evidence") != stacked(coarse, "log_evidence")).any(1)
    np.testing.assert_array_equal(changed, again)


def test_inner_error_covers_what_propagation_changes(study: Study) -> None:  # noqa: F811
    """What Laplace is off by, against the mean of the hypotheses, is within twice the estimate at nine loci of ten."""
    laplace, propagated, found = one_level(study, "laplace"), one_level(study, "ep"), refined(study)
    change = stacked(propagated, "log_evidence") - stacked(laplace, "log_evidence")
    change = np.abs(change - change.mean(1, keepdims=True)).max(1)
    by_laplace = (stacked(found, "inner_method") == 0).all(1)
    assert by_laplace.mean() > 0.5
    ratio = change[by_laplace] / (stacked(found, "inner_error").max(1)[by_laplace] + 1e-3)
    assert np.quantile(ratio, 0.9) < 2
    assert np.median(ratio) > 0.02


def test_sampling_agrees_with_propagation(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Six loci of a dozen individuals, where propagation is right to a few thousandths, sent to the last level.

    A difference above four standard errors and 0.01 nats has a probability below 1e-4 at each.
    """
    monkeypatch.setattr(refinement, "LARGEST_DIFFERENCE", -1.0)
    propagated = one_level(study, "ep")
    monkeypatch.setattr(refinement, "EVIDENCE_GOAL", -1.0)
    monkeypatch.setattr(refinement, "PROPAGATION_SHARE", 1e6)  # sampling is the better one everywhere
    monkeypatch.setitem(globals(), "LOCI", slice(0, 6))
    found = refined(study)
    assert (stacked(found, "inner_method") == INNER_METHODS.index("importance")).all()
    error = stacked(found, "inner_error")
    assert (error < 0.02).mean() > 0.9
    difference = np.abs(stacked(found, "log_evidence") - stacked(propagated, "log_evidence")[:6])
    assert (difference < 4 * error + 0.01).all()


def test_sampling_puts_a_wrong_evidence_right(study: Study) -> None:  # noqa: F811
    """An approximation that is 0.3 nats low at every outer node, and one that is wrong by more at some than others."""
    propagated = one_level(study, "ep")
    for index in (0, 2):
        few = HypothesisEvidence(*(array[:5] for array in propagated[index]))
        right = sample_field(study.model, index, study.meth[:5], study.total[:5], few, 1)
        low = few._replace(log_evidence=few.log_evidence - 0.3, node_log_evidence=few.node_log_evidence - 0.3)
        found = sample_field(study.model, index, study.meth[:5], study.total[:5], low, 1)
        np.testing.assert_allclose(found.log_evidence, right.log_evidence, atol=1e-9)
        uneven = few.node_log_evidence + np.where(np.arange(few.node_weight.shape[1]) % 2, 0.5, -0.5)
        found = sample_field(
            study.model, index, study.meth[:5], study.total[:5], few._replace(node_log_evidence=uneven), 1
        )
        assert (found.inner_error > right.inner_error + 0.05).mean() > 0.5


def test_a_failed_propagation_is_sampled(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Where sites do not settle under one hypothesis, the locus is sampled under all; the others stay."""

    def failing(model, index, *arguments):  # type: ignore[no-untyped-def]
        evidence = hypothesis_evidence(model, index, *arguments)
        if "ep" in [argument for argument in arguments if isinstance(argument, str)] and index == 1:
            evidence.laplace_correction[0] = NOT_CONVERGED
        return evidence

    monkeypatch.setattr(refinement, "hypothesis_evidence", failing)
    monkeypatch.setattr(refinement, "LARGEST_DIFFERENCE", -1.0)
    monkeypatch.setitem(globals(), "LOCI", slice(0, 6))
    found = refined(study)
    method = stacked(found, "inner_method")
    assert (method[0] == INNER_METHODS.index("importance")).all()
    assert (method[1:] == INNER_METHODS.index("ep")).all()
    assert np.isfinite(stacked(found, "inner_error")).all()


def test_sampling_that_tells_less_than_propagation_is_not_taken(
    study: Study,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two loci sent to the last level, one comes back with a larger error than it went with: it stays as it was."""
    propagated = one_level(study, "ep")

    def poor(model, index, meth, total, evidence, seed, design):  # type: ignore[no-untyped-def]
        error = np.where(np.arange(len(meth)) == 0, np.inf if index == 2 else 1e-9, 1e-9)
        return evidence._replace(
            log_evidence=evidence.log_evidence + 1.0, inner_error=error, inner_method=np.full(len(meth), 2)
        )

    monkeypatch.setattr(refinement, "sample_field", poor)
    monkeypatch.setattr(refinement, "LARGEST_DIFFERENCE", -1.0)
    monkeypatch.setattr(refinement, "EVIDENCE_GOAL", 0.0)
    monkeypatch.setitem(globals(), "LOCI", slice(0, 2))
    found, before = refined(study), stacked(propagated, "log_evidence")[:2]
    np.testing.assert_allclose(stacked(found, "log_evidence"), before + np.array([[0.0], [1.0]]), rtol=1e-12)
    assert stacked(found, "inner_method")[:, 0].tolist() == [
        INNER_METHODS.index("ep"),
        INNER_METHODS.index("importance"),
    ]
    assert (stacked(found, "inner_error")[0] != 1e-9).all()


def test_components_of_no_weight_are_left_as_they_are(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Sampling every component of the baseline's prior, or those of weight alone, is the same to the errors."""
    few = HypothesisEvidence(*(array[:6].copy() for array in one_level(study, "ep")[1]))
    sampled: list[int] = []
    exact_field = refinement.exact_field

    def counted(problem, draws, seed):  # type: ignore[no-untyped-def]
        sampled.append(len(problem.meth))
        return exact_field(problem, draws, seed)

    monkeypatch.setattr(refinement, "exact_field", counted)
    some = sample_field(study.model, 1, study.meth[:6], study.total[:6], few, 1)
    monkeypatch.setattr(refinement, "SMALLEST_SAMPLED_SHARE", -1.0)
    every = sample_field(study.model, 1, study.meth[:6], study.total[:6], few, 1)
    assert sampled[0] < sampled[1] == 6 * refinement.SAMPLED_NODES * len(study.model.learned.baseline_weights)
    error = np.hypot(some.inner_error, every.inner_error)
    assert (np.abs(some.log_evidence - every.log_evidence) < 4 * error + 1e-3).all()


def test_nothing_to_correct_is_left_and_not_trusted(study: Study) -> None:  # noqa: F811
    """Where no outer node has a finite evidence, none is made up, and the rest of the loci is not touched."""
    few = HypothesisEvidence(*(array[:2].copy() for array in one_level(study, "ep")[0]))
    few.log_evidence[0], few.node_log_evidence[0], few.node_weight[0] = -np.inf, -np.inf, np.nan
    found = sample_field(study.model, 0, study.meth[:2], study.total[:2], few, 1)
    assert found.log_evidence[0] == -np.inf
    assert np.isinf(found.inner_error[0])
    assert np.isfinite(found.inner_error[1])
    assert found.log_evidence[1] == pytest.approx(few.log_evidence[1], abs=0.05)


def test_heavy_tails_are_never_trusted(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A Pareto shape above the limit leaves no error estimate, so that the locus is flagged."""
    monkeypatch.setattr(refinement, "LARGEST_KHAT", -10.0)
    few = HypothesisEvidence(*(array[:2] for array in one_level(study, "ep")[0]))
    found = sample_field(study.model, 0, study.meth[:2], study.total[:2], few, 1)
    assert np.isinf(found.inner_error).all()
