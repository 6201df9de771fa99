"""A fit by several processes on a CPU: the gradient of one, parameters that stay the same, and ends that are shared."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from fit_cases import SMALL, Run, flat, settings_of, simulated
from ranks_cases import Ended, in_ranks
from transmission_cases import DOUBLE, Array, make_problem, write_store

from epivi.families.transmission import fit as transmission_fit
from epivi.families.transmission.density import LearnedPriors, to_batch
from epivi.families.transmission.hypotheses import parse_hypotheses
from epivi.fit import svi
from epivi.fit.minibatch import RUN_LOCI
from epivi.fit.ranks import OthersEnded, Ranks, joined
from epivi.fit.svi import mean_over_ranks
from epivi.loci.store import LociStore

LOCI = 20 * RUN_LOCI + 5  # the last run is shorter


@pytest.fixture(scope="module")
def loci(tmp_path_factory: pytest.TempPathFactory) -> Path:
    case, counts = simulated(LOCI, seed=1, contigs=1)
    folder = tmp_path_factory.mktemp("loci")
    write_store(folder, case.sheet.samples, {"chr1": counts[0]})
    return folder


def values(ended: list[Ended]) -> list[Any]:
    """What the processes gave; all must have come to the end."""
    assert [(process.status, process.said) for process in ended] == [(0, "")] * len(ended)
    return [process.value for process in ended]


def new_run(loci: Path, ranks: Ranks, batch_loci: int, dtype: torch.dtype, **settings: Any) -> Run:
    case, _ = simulated(20, seed=1)
    problem = make_problem(case, parse_hypotheses(SMALL), (), dtype=dtype)
    return Run(LociStore.open(loci), problem, settings_of(**settings), 4 * RUN_LOCI, batch_loci, ranks)


# --- the gradient


class NoiseOfLoci:
    """Standard normals that depend on the locus and on the position of the call, whoever has the locus."""

    def __init__(self) -> None:
        self._loci = np.empty(0, dtype=int)
        self._calls = 0
        torch.distributions.multivariate_normal._standard_normal = self._draw
        torch.distributions.normal._standard_normal = self._draw
        plain = svi.locus_elbos

        def restarted(*arguments: Any) -> torch.Tensor:
            self._loci, self._calls = arguments[-1].locus.numpy(), 0
            return plain(*arguments)

        svi.locus_elbos = restarted

    def _draw(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        assert shape[0] == len(self._loci)
        self._calls += 1
        noise = np.random.default_rng(self._calls).normal(size=(LOCI, *shape[1:]))
        return torch.as_tensor(noise[self._loci], dtype=dtype)


def copied(gradients: Iterable[torch.Tensor | None]) -> list[Array]:
    """Those that there are: a cohort without covariates has parameters without a gradient."""
    return [gradient.numpy().copy() for gradient in gradients if gradient is not None]


def fit_with_noise_of_loci(loci: Path, steps: int) -> dict[str, Any]:
    """Some steps in double precision with three runs a minibatch: of two processes one has two runs, the other one."""
    transmission_fit.FIT_DTYPE, to_batch.__defaults__, svi.GRADIENT_NORM = DOUBLE, (DOUBLE,), math.inf
    NoiseOfLoci()
    plain, own, drawn = svi.mean_over_ranks, [], []

    def recorded(ranks: Ranks, n_loci: int, parameters: Any, gradients: Any, bound: Any) -> Any:
        own.append((n_loci, copied(gradients)))
        return plain(ranks, n_loci, parameters, gradients, bound)

    svi.mean_over_ranks = recorded
    with joined() as ranks:
        run = new_run(loci, ranks, 3 * RUN_LOCI, DOUBLE, max_steps=steps, check_every=1)
        draw = run.minibatches.draw
        run.minibatches.draw = lambda: drawn.append(draw()) or drawn[-1]  # type: ignore[method-assign]
        modules = (run.state.encoder, run.state.hyper)
        first = next(steps_taken := run.steps())
        gradients = copied(parameter.grad for module in modules for parameter in module.parameters())
        rows = [first, *steps_taken]
    bounds = [(row.batch_elbo, row.holdout_elbo) for row in rows]
    return {"own": own[0], "gradients": gradients, "bounds": bounds, "loci": [batch.locus.tolist() for batch in drawn]}


def test_two_processes_have_the_gradient_of_one(loci: Path) -> None:
    """Same minibatches and noise, dealt unequally; then the steps along it lead to the same bounds."""
    (alone,) = values(in_ranks(fit_with_noise_of_loci, 1, loci, 3))
    parts = values(in_ranks(fit_with_noise_of_loci, 2, loci, 3))
    for whole, *dealt in zip(alone["loci"], *(part["loci"] for part in parts), strict=True):
        assert sorted(whole) == sorted(dealt[0] + dealt[1])
        assert len(dealt[0]) > 1.5 * len(dealt[1])
    for k, gradient in enumerate(alone["gradients"]):
        for part in parts:
            np.testing.assert_allclose(part["gradients"][k], gradient, rtol=1e-9, atol=1e-11)
        alike = np.mean([part["own"][1][k] for part in parts], axis=0)
        assert np.abs(alike - gradient).max() > 1e-3 * np.abs(gradient).max(), "equal weights would do as well"
    for part in parts:
        np.testing.assert_allclose(part["bounds"], alone["bounds"], rtol=1e-8)
    assert parts[0]["bounds"] == parts[1]["bounds"]


def mean_of_parts() -> tuple[list[Any], float]:
    """One process has a gradient of the first parameter, both of the second, none of the third."""
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2,), (1, 2), (3,))]
    with joined() as ranks:
        first = torch.tensor([4.0, 8.0]) if ranks.is_first else None
        gradients = [first, torch.full((1, 2), 10.0 * ranks.rank), None]
        shared = mean_over_ranks(ranks, 3 - 2 * ranks.rank, parameters, gradients, torch.tensor(1.0 + ranks.rank))
    return [None if gradient is None else gradient.tolist() for gradient in shared.gradients], shared.bound.item()


def test_mean_counts_loci_and_a_missing_gradient_as_none_of_its_loci() -> None:
    expected = [[3.0, 6.0], [[2.5, 2.5]], None], pytest.approx(1.25)
    assert values(in_ranks(mean_of_parts, 2)) == [expected, expected]


# --- parameters that stay the same, noise that does not


def fit_and_continue(loci: Path) -> dict[str, Any]:
    """Some steps; then from a state saved on the way by processes with other random numbers."""
    with joined() as ranks:
        run = new_run(loci, ranks, 3 * RUN_LOCI, torch.float32, max_steps=6, check_every=2)
        noise = torch.randn(3).tolist()
        for row in run.steps():
            if row.step == 3:
                saved = copy.deepcopy(run.state.state_dict(run.minibatches))
        end = run.state.state_dict(run.minibatches)
        again = new_run(loci, ranks, 3 * RUN_LOCI, torch.float32, max_steps=6, check_every=2)
        torch.manual_seed(99)
        again.state.load_state_dict(saved, again.minibatches)
        for _ in again.steps():
            pass
        continued = again.state.state_dict(again.minibatches)
    return {"end": flat(end), "continued": flat(continued), "noise": noise, "saved": saved}


@pytest.fixture(scope="module")
def by_two(loci: Path) -> list[dict[str, Any]]:
    return values(in_ranks(fit_and_continue, 2, loci))


def test_processes_keep_the_same_parameters_and_draw_their_own_noise(by_two: list[dict[str, Any]]) -> None:
    one, other = by_two
    assert one["end"] == other["end"] == one["continued"] == other["continued"]
    assert not set(one["noise"]) & set(other["noise"])


def continue_from(loci: Path, saved: dict[str, Any]) -> tuple[list[int], list[Any], list[Any]]:
    """The rest of a fit that other processes began: its steps, its end, its noise."""
    with joined() as ranks:
        run = new_run(loci, ranks, 3 * RUN_LOCI, torch.float32, max_steps=6, check_every=2)
        run.state.load_state_dict(saved, run.minibatches)
        steps = [row.step for row in run.steps()]
        end = run.state.state_dict(run.minibatches)
    return steps, flat([end["encoder"], end["hyper"]]), flat(end["random"])


@pytest.mark.parametrize("size", [1, 3])
def test_another_number_of_processes_goes_on_with_fresh_noise(
    size: int, loci: Path, by_two: list[dict[str, Any]]
) -> None:
    ended = in_ranks(continue_from, size, loci, by_two[0]["saved"])
    assert all("is of another number of processes" in process.said for process in ended)
    steps, end, noise = ended[0].value
    assert steps == [4, 5, 6]
    assert [process.value[1] for process in ended] == [end] * size
    assert len(set(noise)) == size


def come_apart(loci: Path) -> str:
    """A parameter of the second process is changed, as a processor that rounds otherwise would."""
    with joined() as ranks:
        run = new_run(loci, ranks, 3 * RUN_LOCI, torch.float32, max_steps=9, check_every=4)
        steps = []
        try:
            for row in run.steps():
                steps.append(row.step)
                if row.step == 2 and not ranks.is_first:
                    with torch.no_grad():
                        run.state.hyper.baseline_means[0] *= 1 + 1e-6
        except OthersEnded as error:
            return f"{steps[-1]} {error}"
    return ""


def test_processes_that_come_apart_are_told(loci: Path) -> None:
    for said in values(in_ranks(come_apart, 2, loci)):
        assert said.startswith("3 the 2 processes of the fit differ in parameters or device; expected")


# --- the optimum


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Loci enough to learn from."""
    case, counts = simulated(2400, seed=1)
    folder = tmp_path_factory.mktemp("larger")
    write_store(folder, case.sheet.samples, {f"chr{k + 1}": pair for k, pair in enumerate(counts)})
    return folder


def fit_whole(loci: Path, seeds: list[int], steps: int) -> list[dict[str, float]]:
    """What fits of these seeds end with."""
    case, _ = simulated(20, seed=1)
    problem = make_problem(case, parse_hypotheses(SMALL), (), dtype=torch.float32)
    found = []
    with joined() as ranks:
        for seed in seeds:
            settings = settings_of(seed=seed, max_steps=steps)
            run = Run(LociStore.open(loci), problem, settings, 256, ranks=ranks)
            bound = [row.holdout_elbo for row in run.steps()][-1]
            found.append(numbers(LearnedPriors.of(run.state.averaged)) | {"bound": bound})
    return found


def numbers(learned: LearnedPriors) -> dict[str, float]:
    """Those that are free, components of the baseline in order of their means."""
    low, high = np.argsort(learned.baseline_means)
    return {
        "weight of the lower component": learned.baseline_weights[low],
        "mean of the lower component": learned.baseline_means[low],
        "mean of the higher component": learned.baseline_means[high],
        "SD of the lower component": learned.baseline_sds[low],
        "SD of the higher component": learned.baseline_sds[high],
        "spread_location": learned.spread_location,
        "spread_scale": learned.spread_scale,
        "weight of mendelian": learned.hypothesis_weights[1],
    }


# SD over ten seeds of what a fit of 60 steps by two processes found, less what one found.
SD_OF_DIFFERENCES = {
    "weight of the lower component": 0.0033,
    "mean of the lower component": 0.0167,
    "mean of the higher component": 0.0166,
    "SD of the lower component": 0.0240,
    "SD of the higher component": 0.0044,
    "spread_location": 0.0016,
    "spread_scale": 0.0052,
    "weight of mendelian": 0.0307,
    "bound": 0.0388,
}


def test_two_processes_come_to_where_one_does(larger: Path) -> None:
    """A short fit of the same seed, which shares the networks' start, held-out loci and minibatches, but not the noise.

    Nothing differs by more than five of the SDs that such differences have.
    """
    (one,) = values(in_ranks(fit_whole, 1, larger, [1], 60))[0]
    (two,), other = values(in_ranks(fit_whole, 2, larger, [1], 60))
    assert [two] == other
    for name, sd in SD_OF_DIFFERENCES.items():
        assert two[name] == pytest.approx(one[name], abs=5 * sd), name
        assert two[name] != one[name]


MARGIN = 0.05  # also of the bound, nats a locus


@pytest.mark.slow
def test_one_and_two_processes_find_the_same_optimum(larger: Path) -> None:
    """Mean differences between fits of ten seeds by one process and by two.

    Each has an interval that holds zero, at a false-alarm rate of 1 % for all numbers together; and none is wider than
    MARGIN on either side, so that a bias of twice the margin would always be seen.
    """
    seeds = list(range(1, 11))
    one = values(in_ranks(fit_whole, 1, larger, seeds, 150))[0]
    two = values(in_ranks(fit_whole, 2, larger, seeds, 150))[0]
    critical = scipy.stats.t.isf(0.01 / len(one[0]) / 2, len(seeds) - 1)
    for name in one[0]:
        difference = np.array([b[name] - a[name] for a, b in zip(one, two, strict=True)])
        half_width = critical * difference.std(ddof=1) / math.sqrt(len(seeds))
        assert abs(difference.mean()) < half_width, name
        assert half_width < MARGIN, f"{name}: too few seeds to say"
