"""What all loci share by their evidence: the maximum of the likelihood, and what is said where the loci say nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from shared_cases import EFFECT_SD, LOCATION, LOCI, NAMES, SCALE, brute, model_at, related_model, unrelated

from epivi.families.transmission import outer_integral, shared
from epivi.families.transmission.outer_integral import CPU, EvaluatedNodes
from epivi.families.transmission.reweighting import SD_BOUNDS, scores, vector_of
from epivi.families.transmission.shared import SharedFit, learn_shared, reweighting_of
from epivi.field.compiled.nodes import NodeResults
from epivi.field.torch.nodes import evaluate_nodes_torch
from epivi.loci.source import CountsBatch

START = (0.6 * EFFECT_SD, LOCATION - 0.1, 0.7 * SCALE)  # about as far off as a bound leaves them


@pytest.fixture(scope="module")
def found() -> SharedFit:
    return learn_shared(model_at(*START), unrelated(LOCI), seed=1)


def test_steps_end_at_the_maximum_of_the_likelihood_by_quadrature(found: SharedFit) -> None:
    """No value is further from it than a tenth of its standard error, by slopes and curvatures of the likelihood with
    the mixture of baselines that was found."""
    values, exact = found.learned, brute(LOCI)
    at = np.array([np.log(values.effect_sds[0]), values.spread_location, np.log(values.spread_scale)])
    exact = exact.with_mixture(values.baseline_weights, values.baseline_means, values.baseline_sds)
    slope = exact.slopes(at).sum(0)
    assert (np.abs(slope) * exact.standard_errors(at) < 0.1).all()
    start = exact.slopes(np.array([np.log(START[0]), START[1], np.log(START[2])])).sum(0)
    assert (np.abs(start) * exact.standard_errors(at) > 0.5).any()
    assert found.converged
    assert found.log_evidences[1] > found.log_evidences[0] + 0.02
    assert found.log_evidences[1] == pytest.approx(exact.log_likelihood(at).mean(), abs=0.01)


def test_threads_change_nothing(found: SharedFit) -> None:
    done: list[int] = []
    model = model_at(*START)
    again = learn_shared(model, unrelated(LOCI), seed=1, threads=2, advance=done.append)
    for one, other in zip(found.learned, again.learned, strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.record() == found.record()
    assert sum(done) % LOCI == 0


def test_the_engine_of_gpus_has_the_same_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_torch(*given: Any, method: str, locus_design: Any) -> NodeResults:
        return evaluate_nodes_torch(*given, CPU, method=method, locus_design=locus_design)

    model, counts = model_at(EFFECT_SD, LOCATION, SCALE), unrelated(2)
    compiled = reweighting_of(model, counts, seed=1)
    monkeypatch.setattr(outer_integral, "evaluate_nodes", by_torch)
    found = scores(reweighting_of(model, counts, seed=1), vector_of(model.learned))
    expected = scores(compiled, vector_of(model.learned))
    np.testing.assert_allclose(found.derivative, expected.derivative, atol=1e-4)
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, atol=1e-4)


@pytest.mark.parametrize("failing", [1, LOCI])
def test_loci_without_an_evidence_are_left_out(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none has one, the values are those at hand, and the record says so."""
    plain = shared.evaluated_nodes

    def failed(*arguments: Any) -> EvaluatedNodes:
        nodes = plain(*arguments)
        nodes.log_weight[:failing] = -np.inf
        nodes.log_weight[failing:, 3] = np.nan
        return nodes

    monkeypatch.setattr(shared, "evaluated_nodes", failed)
    model = model_at(*START)
    result = learn_shared(model, unrelated(LOCI), seed=1)
    assert result.loci == LOCI - failing
    for value in result.learned:
        assert np.isfinite(value).all()
    json.dumps(result.record(), allow_nan=False)
    if failing == LOCI:
        assert result.learned is model.learned
        assert result.warnings[0].startswith("no sampled locus has an evidence")
    else:
        assert result.converged


def test_several_hypotheses_share_what_they_share() -> None:
    """One hypothesis lacks the covariate: its loci say nothing of the effect, whose SD is still found."""
    model = related_model()
    result = learn_shared(model, unrelated(LOCI), seed=1)
    assert result.learned.hypothesis_weights.sum() == pytest.approx(1)
    assert result.learned.effect_sds[0] == pytest.approx(EFFECT_SD, abs=4 * result.effect_errors[0])
    assert result.log_evidences[1] > result.log_evidences[0]


def drawn(effect: float, spread: float, loci: int = LOCI) -> CountsBatch:
    """Every locus alike, but for a baseline; logits."""
    random = np.random.default_rng(2)
    level = expit(
        random.normal(0, 1, (loci, 1))
        + effect * random.normal(size=(loci, 1)) * np.arange(len(NAMES))
        + spread * random.normal(size=(loci, len(NAMES)))
    )
    total = np.full(level.shape, 30)
    return CountsBatch(random.binomial(total, level).astype(np.uint16), total.astype(np.uint16), np.arange(loci))


NOTHING = CountsBatch(*(np.zeros((LOCI, len(NAMES)), dtype=np.uint16) for _ in range(2)), np.arange(LOCI))


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        pytest.param(
            drawn(0.0, 0.0),
            "SD of the effect of age: ended at the smallest value that is looked for, 0.02",
            id="constant",
        ),
        pytest.param(drawn(0.0, 0.7), "SD of the effect of age", id="no effect"),
        pytest.param(
            drawn(0.5, 0.5, loci=1), "with nothing in 1 sampled locus to distinguish it from 0", id="one locus"
        ),
        pytest.param(
            NOTHING,
            f"SD of the log spread over loci: 0.6 with a standard error of 6 from {LOCI} sampled loci",
            id="no reads",
        ),
    ],
)
def test_what_the_loci_do_not_say_is_named(counts: CountsBatch, says: str) -> None:
    """Numbers stay numbers, and the record is JSON without nan."""
    result = learn_shared(model_at(EFFECT_SD, LOCATION, SCALE), counts, seed=1)
    assert any(says in warning for warning in result.warnings), result.warnings
    for value in result.learned:
        assert np.isfinite(value).all()
    assert (result.learned.effect_sds >= SD_BOUNDS[0] * (1 - 1e-9)).all()
    json.dumps(result.record(), allow_nan=False)
