"""Quadrature over what loci have of their own, against dense integration of the Pyro model's own density."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import pyro
import pytest
import torch
from scipy.interpolate import CubicSpline
from scipy.special import expit, logit, logsumexp
from state_cases import GAIN, LEARNED, PRIORS, StateCase, state_case

from epivi.families.epimutation import quadrature as state_evidence
from epivi.families.epimutation.density import EpimutationModel, build_epimutation, epimutation, epimutation_batch
from epivi.families.epimutation.quadrature import EpimutationEvidence, evaluate_loci
from epivi.loci.source import CountsBatch
from epivi.tables.columns import EVIDENCE_GOAL

CPU, DOUBLE = torch.device("cpu"), torch.float64
LOCI = 16
DENSE = 41  # points of each parameter, over +-6 prior SDs


@pytest.fixture(scope="module")
def case() -> StateCase:
    return state_case(LOCI, seed=3)


@pytest.fixture(scope="module")
def found(case: StateCase) -> list[EpimutationEvidence]:
    return evaluate_loci(case.model, case.meth, case.total, case.class_code)


def family_of(case: StateCase) -> EpimutationModel:
    return build_epimutation(case.model.plan, case.model.hypotheses, PRIORS, LEARNED, CPU, DOUBLE)


def log_joint(case: StateCase, hypothesis: int, theta: dict[str, np.ndarray], points: int = 1) -> np.ndarray:
    """log p(reads, theta) by the Pyro model with its sites at given values [P, L], [P, L]: every point has copies of
    the loci, so that the model is called once."""
    meth, total = (np.tile(counts, (points, 1)) for counts in (case.meth, case.total))
    size = points * LOCI
    counts = CountsBatch(meth, total, np.arange(size))
    batch = epimutation_batch(case.model.plan, LEARNED, counts, np.tile(case.class_code, points), size, CPU, DOUBLE)
    conditioned = pyro.condition(epimutation, data={name: torch.as_tensor(at.ravel()) for name, at in theta.items()})
    trace = pyro.poutine.trace(conditioned).get_trace(family_of(case), hypothesis, batch)
    trace.compute_log_prob()
    sites = [site for name, site in trace.nodes.items() if name == "reads" or name in theta]
    return sum(site["unscaled_log_prob"] for site in sites).detach().numpy().reshape(points, LOCI)


class Dense(NamedTuple):
    """The model's own density on a grid."""

    z: np.ndarray  # [Q, D], points in prior SDs
    log_joint: np.ndarray  # [Q, L], with the prior
    cell: float  # of integration


@pytest.fixture(scope="module")
def dense(case: StateCase) -> Callable[[int], Dense]:
    """By number of the hypothesis; each is computed once."""
    return cache(lambda hypothesis: on_a_grid(case, hypothesis))


def on_a_grid(case: StateCase, hypothesis: int) -> Dense:
    names = case.model.hypotheses[hypothesis].parameters
    axis = np.linspace(-6.0, 6.0, DENSE)
    z = np.stack(np.meshgrid(*[axis] * len(names), indexing="ij"), -1).reshape(-1, len(names))
    code = case.class_code.astype(int)
    rows = []
    for some in np.split(z, DENSE):
        theta = {}
        for k, name in enumerate(names):
            centre = {"logit_gain": logit(LEARNED.alpha), "logit_loss": logit(LEARNED.beta)}.get(name, np.zeros(2))[
                code
            ]
            prior = PRIORS.prior(name)
            theta[name] = centre + prior.mean + prior.sd * some[:, [k]]
        rows.append(log_joint(case, hypothesis, theta, len(some)))
    sds = [PRIORS.prior(name).sd for name in names]
    cell = float(np.prod([(axis[1] - axis[0]) * sd for sd in sds]))
    return Dense(z, np.concatenate(rows), cell)


@pytest.mark.parametrize("name", ["stable", "neutral"])
def test_hypotheses_without_free_parameters_are_the_likelihood(
    case: StateCase, found: list[EpimutationEvidence], name: str
) -> None:
    number = [hypothesis.name for hypothesis in case.model.hypotheses].index(name)
    expected = log_joint(case, number, {})[0]
    np.testing.assert_allclose(found[number].log_evidence, expected, rtol=0, atol=1e-8)
    assert not found[number].log_evidence_error.any()
    rate = 0.0 if name == "stable" else np.array(GAIN)[case.class_code]
    for statistic in (found[number].mean, found[number].q05, found[number].q95):
        np.testing.assert_allclose(statistic[:, 0], rate, rtol=1e-12)


@pytest.mark.parametrize("name", ["labile", "selection", "kept", "given"])
def test_evidence_is_the_dense_integral_of_the_model(
    case: StateCase, found: list[EpimutationEvidence], dense: Callable[[int], Dense], name: str
) -> None:
    number = [hypothesis.name for hypothesis in case.model.hypotheses].index(name)
    _, rows, cell = dense(number)
    expected = logsumexp(rows, axis=0) + np.log(cell)
    error = np.abs(found[number].log_evidence - expected)
    assert error.max() < EVIDENCE_GOAL / 2
    assert found[number].log_evidence_error.max() < EVIDENCE_GOAL


@pytest.mark.parametrize(("name", "column"), [("labile", 0), ("labile", 1), ("selection", 2), ("kept", 2)])
def test_quantiles_are_those_of_the_dense_posterior(
    case: StateCase, found: list[EpimutationEvidence], dense: Callable[[int], Dense], name: str, column: int
) -> None:
    number = [hypothesis.name for hypothesis in case.model.hypotheses].index(name)
    names = case.model.hypotheses[number].parameters
    z, rows, _ = dense(number)
    posterior = np.exp(rows - logsumexp(rows, axis=0))
    axis = column if name == "labile" else 0
    points = np.unique(z[:, axis])
    density = np.array([posterior[z[:, axis] == point].sum(0) for point in points]) / (points[1] - points[0])
    fine = np.linspace(points[0], points[-1], 4001)
    cumulative = CubicSpline(points, density).antiderivative()(fine)
    for level, quantiles in ((0.05, found[number].q05), (0.5, found[number].q50), (0.95, found[number].q95)):
        expected = np.array([np.interp(level, cumulative[:, locus], fine) for locus in range(LOCI)])
        value = quantiles[:, column]
        if names[axis].startswith("logit"):
            rate = (LEARNED.alpha, LEARNED.beta)[column][case.class_code]
            z_found = (logit(value) - logit(rate)) / PRIORS.rate_sd
        else:
            prior = PRIORS.prior(names[axis])
            z_found = ((np.log(value) if name == "kept" else value) - prior.mean) / prior.sd
        np.testing.assert_allclose(z_found, expected, rtol=0, atol=0.03)  # prior SDs


def test_a_finer_grid_is_used_where_the_usual_one_errs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loci where every plant has another state have many changes, and a posterior narrower than the grid's step."""
    case = state_case(40, seed=8, names=("labile",), families=3)
    random = np.random.default_rng(1)
    total = np.full_like(case.total, 20)
    meth = np.where(random.random(case.meth.shape) < 0.5, total, 0).astype(np.uint16)
    found = evaluate_loci(case.model, meth, total, case.class_code)[0]
    monkeypatch.setattr(state_evidence, "MOST_HALVINGS", 0)
    usual = evaluate_loci(case.model, meth, total, case.class_code)[0]
    monkeypatch.setattr(state_evidence, "STEP", state_evidence.STEP / 8)
    finest = evaluate_loci(case.model, meth, total, case.class_code)[0]
    is_sure = found.log_evidence_error < EVIDENCE_GOAL
    assert is_sure.sum() > 10  # elsewhere a rate of 1/2 a generation is likely, beyond the ends of the grid
    off = np.abs(found.log_evidence - finest.log_evidence)
    assert off[is_sure].max() < EVIDENCE_GOAL
    off = np.abs(usual.log_evidence - finest.log_evidence)
    assert off.max() > 0.1  # the data could have failed the lines above
    assert (usual.log_evidence_error[off > EVIDENCE_GOAL] > state_evidence.REFINE_ERROR).all()  # and is refined


def test_mean_rates_are_averages_over_the_posterior(
    case: StateCase, found: list[EpimutationEvidence], dense: Callable[[int], Dense]
) -> None:
    number = [hypothesis.name for hypothesis in case.model.hypotheses].index("labile")
    z, rows, _ = dense(number)
    posterior = np.exp(rows - logsumexp(rows, axis=0))
    gain = expit(logit(LEARNED.alpha)[case.class_code][None, :] + PRIORS.rate_sd * z[:, [0]])
    np.testing.assert_allclose(found[number].mean[:, 0], (posterior * gain).sum(0), rtol=0.03)


def test_threads_do_not_change_the_numbers() -> None:
    case = state_case(9000, seed=2, names=("neutral", "selection"))
    one, two = (evaluate_loci(case.model, case.meth, case.total, case.class_code, threads) for threads in (1, 2))
    for left, right in zip(one, two, strict=True):
        np.testing.assert_array_equal(left.log_evidence, right.log_evidence)
