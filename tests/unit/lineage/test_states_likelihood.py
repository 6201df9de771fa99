"""Likelihood and posteriors of lineages against enumeration over the states of all nodes, and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lineage_cases import BACKCROSS, CLONAL, CROSS, LINEAGES, SELFING, Enumeration, founder, pedigree_of
from numpy.testing import assert_allclose

from epivi.base.errors import UserError
from epivi.lineage import kernel
from epivi.lineage.elimination import build_plan
from epivi.lineage.likelihood import EpimutationRates, event_values, log_likelihood, shared_values, sum_samples
from epivi.lineage.lineage import Lineage, build_lineage

LOCI = 37  # more than one group of lanes
POINTS = [(1e-3, 3e-2, 0.0), (0.2, 0.1, 0.0), (1e-5, 1e-9, 0.0), (0.03, 0.05, -0.4), (0.02, 0.3, 0.7)]
PROPORTIONS = np.array([[0.6, 0.1, 0.3], [0.3, 0.3, 0.4], [0.9, 1e-4, 0.0999], [0.5, 0.25, 0.25], [0.2, 0.5, 0.3]])


def tensor(values: object) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, dtype=float))


def grid() -> EpimutationRates:
    """The points of POINTS, shape [Q]."""
    alpha, beta, log_fitness = tensor(POINTS).T
    return EpimutationRates(alpha, beta, tensor(PROPORTIONS), log_fitness)


def draw_emission(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes int32 [S, L] and log probabilities [K, 3], some of them nearly certain."""
    random = np.random.default_rng(seed)
    table = np.log(random.dirichlet([0.2, 0.2, 0.2], size=200) + 1e-12) - random.exponential(5, size=(200, 1))
    return random.integers(200, size=(samples, LOCI)).astype(np.int32), table


def sample_emission(codes: np.ndarray, table: np.ndarray) -> torch.Tensor:
    return tensor(table).T[:, torch.as_tensor(codes, dtype=torch.int64)].movedim(1, 0)


@pytest.mark.parametrize("name", LINEAGES)
def test_both_engines_agree_with_enumeration(name: str) -> None:
    """Log likelihood to 1e-10 relative to its size, states and events of every branch to 1e-10."""
    lineage = LINEAGES[name]
    plan, rates = build_plan(lineage), grid()
    codes, table = draw_emission(len(lineage.samples), seed=1)
    arrays, reads = kernel.plan_arrays(plan), kernel.reads_table(codes, table)
    shared, events = shared_values(plan, rates).numpy(), event_values(plan, rates).numpy()
    compiled = kernel.log_likelihoods(arrays, shared, reads)
    node_emission = sum_samples(plan, sample_emission(codes, table))
    column = EpimutationRates(
        rates.alpha[:, None], rates.beta[:, None], rates.founder[:, None], rates.log_fitness[:, None]
    )
    in_torch = log_likelihood(plan, column, node_emission).numpy()
    assert_allclose(compiled, in_torch, rtol=1e-12)
    for q, (alpha, beta, log_fitness) in enumerate(POINTS):
        only = np.zeros((len(POINTS), LOCI))
        only[q] = 1
        posterior = kernel.state_posterior(arrays, shared, events, reads, only)
        for locus in (0, 1, LOCI - 1):
            oracle = Enumeration(lineage, alpha, beta, PROPORTIONS[q], table[codes[:, locus]], log_fitness)
            assert_allclose(compiled[q, locus], oracle.log_likelihood, rtol=1e-10)
            assert_allclose(posterior.nodes[:, :, locus], oracle.nodes, atol=1e-10)
            assert_allclose(posterior.events[:, :, locus], oracle.events, atol=1e-10)


def test_posterior_is_averaged_over_points() -> None:
    lineage = LINEAGES["mixed"]
    plan, rates = build_plan(lineage), grid()
    codes, table = draw_emission(len(lineage.samples), seed=2)
    arrays, reads = kernel.plan_arrays(plan), kernel.reads_table(codes, table)
    shared, events = shared_values(plan, rates).numpy(), event_values(plan, rates).numpy()
    weights = np.random.default_rng(3).dirichlet(np.ones(len(POINTS)), size=LOCI).T
    average = kernel.state_posterior(arrays, shared, events, reads, weights)
    each = [kernel.state_posterior(arrays, shared, events, reads, np.eye(len(POINTS))[:, [q] * LOCI]) for q in range(5)]
    assert_allclose(average.nodes, sum(w * one.nodes for w, one in zip(weights, each, strict=True)), atol=1e-14)
    assert_allclose(average.events, sum(w * one.events for w, one in zip(weights, each, strict=True)), atol=1e-14)
    assert_allclose(average.nodes.sum(1), 1, atol=1e-12)


@pytest.mark.parametrize("name", ["selfing", "replicates", "loop_of_sibs"])
def test_expected_counts_are_the_gradient(name: str) -> None:
    """By the logarithms of all shared values and of the table of emissions, against automatic differentiation."""
    lineage = LINEAGES[name]
    plan = build_plan(lineage)
    codes, table = draw_emission(len(lineage.samples), seed=4)
    rates = EpimutationRates(tensor(0.1), tensor(0.05), tensor([0.5, 0.2, 0.3]))
    shared = shared_values(plan, rates)
    counts = kernel.expected_counts(kernel.plan_arrays(plan), shared.numpy(), kernel.reads_table(codes, table), 2)

    log_table = tensor(table).requires_grad_()
    emission = sum_samples(plan, log_table.T[:, torch.as_tensor(codes, dtype=torch.int64)].movedim(1, 0))
    alpha = rates.alpha.clone().requires_grad_()
    total = log_likelihood(plan, rates._replace(alpha=alpha), emission).sum()
    by_table, by_alpha = torch.autograd.grad(total, (log_table, alpha))
    assert counts.log_likelihood == pytest.approx(total.item(), rel=1e-12)
    assert_allclose(counts.pairs, by_table.numpy(), atol=1e-9)
    used = torch.tensor(counts.shared)
    (chained,) = torch.autograd.grad((used * shared_values(plan, rates._replace(alpha=alpha)).log()).sum(), alpha)
    assert chained.item() == pytest.approx(by_alpha.item(), rel=1e-9)


@pytest.mark.parametrize("name", ["unsampled", "clonal", "cross", "backcross"])
def test_gradients(name: str) -> None:
    """By rates of their own at every locus, proportions, selection and emissions, against finite differences."""
    lineage = LINEAGES[name]
    plan, random = build_plan(lineage), np.random.default_rng(5)
    loci = 2
    inputs = (
        tensor(random.uniform(0.05, 0.3, loci)).requires_grad_(),
        tensor(random.uniform(0.05, 0.3, loci)).requires_grad_(),
        tensor(random.dirichlet([3, 3, 3])).requires_grad_(),
        tensor(0.3).requires_grad_(),
        tensor(random.normal(size=(len(lineage.nodes), 3, loci))).requires_grad_(),
    )

    def value(alpha, beta, proportions, log_fitness, emission):  # type: ignore[no-untyped-def]
        return log_likelihood(plan, EpimutationRates(alpha, beta, proportions, log_fitness), emission)

    assert torch.autograd.gradcheck(value, inputs)


def test_many_contradictory_samples_do_not_underflow() -> None:
    """60 clones that nothing but 60 mutations explains: e^-1000 and less, against a sum of logarithms by hand."""
    rows = [founder("f"), *((f"c{k}", "f", "", "clonal", 1) for k in range(60))]
    lineage = build_lineage(pedigree_of(*rows), [f"c{k}" for k in range(60)])
    plan = build_plan(lineage)
    table = np.array([[0.0, -200.0, -200.0], [-200.0, -200.0, 0.0]])
    codes = np.array([[k % 2] for k in range(60)], dtype=np.int32)
    alpha = beta = 1e-10
    rates = EpimutationRates(tensor([alpha]), tensor([beta]), tensor([[0.5, 0.0, 0.5]]))
    found = kernel.log_likelihoods(
        kernel.plan_arrays(plan), shared_values(plan, rates).numpy(), kernel.reads_table(codes, table)
    )
    stay, change = 2 * np.log1p(-alpha), 2 * np.log(alpha)
    assert_allclose(found, 30 * stay + 30 * change, rtol=1e-12)  # from UU and from MM alike
    in_torch = log_likelihood(plan, rates, sum_samples(plan, sample_emission(codes, table)))
    assert_allclose(in_torch.numpy(), found[0], rtol=1e-12)


def test_lineage_of_samples() -> None:
    """Idle individuals go, edges join, founders of samples stay, unknown parents get a founder."""
    lineage = build_lineage(SELFING, ["b", "d"])
    assert lineage == Lineage(
        ("f", "b", "d"), ("founder", "selfing", "selfing"), ((), (0,), (0,)), (1, 4, 31), lineage.samples
    )
    assert lineage.samples.tolist() == [1, 2]
    assert build_lineage(SELFING, ["b", "d"], keep_unsampled=True).nodes == SELFING.individuals
    cross = build_lineage(CROSS, ["c"])
    assert cross.nodes == ("m", "p", "a", "other parent of c", "c")
    assert cross.branches == ((0, 2), (1, 2), (2, 4), (3, 4))
    assert build_lineage(CLONAL, ["a"]).nodes == ("f", "a")
    assert build_lineage(BACKCROSS, ["m"]).nodes == ("m",)
    with pytest.raises(UserError, match="'nobody' of a sample is not in the pedigree"):
        build_lineage(SELFING, ["nobody"])


def test_pedigree_with_too_many_loops_is_refused() -> None:
    """Twelve founders in a full diallel cross."""
    names = [f"f{k}" for k in range(12)]
    rows = [founder(name) for name in names]
    rows += [(f"{a}x{b}", a, b, "sexual", 1) for k, a in enumerate(names) for b in names[k + 1 :]]
    lineage = build_lineage(pedigree_of(*rows), [row[0] for row in rows])
    with pytest.raises(UserError, match=r"diallel.tsv: the inbreeding loops through 'f\d+', .* expected at most 10"):
        build_plan(lineage, "diallel.tsv")
