"""Time and memory of the discrete engine: rates of a class, tables of all loci, the divergence estimator beside them.

    python tests/benchmarks/bench_epimutation.py --loci 1000000 --plants 13 --threads 2 --output epimutation.json

Reads are drawn in memory; reading and writing of files is not in the figures. Nothing here asserts on time.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from scipy.special import logsumexp

from epivi.base.files import write_json
from epivi.cohort.pedigree import Pedigree
from epivi.divergence.counts import sums_of_counts
from epivi.divergence.fit import Assumptions, bootstrap, fit_neutral
from epivi.divergence.pairs import block_replicates, pair_times, pairs_of
from epivi.families.epimutation.draw import TrueEmission, TrueRates, simulate_reads, simulate_states
from epivi.lineage import kernel
from epivi.lineage.elimination import EliminationPlan, build_plan
from epivi.lineage.emission import collect_pairs, encode, log_probability
from epivi.lineage.likelihood import EpimutationRates, event_values, shared_values
from epivi.lineage.lineage import build_lineage
from epivi.lineage.rates import ClassReads, RatePosterior, rate_posterior, unpack

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
from divergence_cases import lines_pedigree

Array = np.ndarray[Any, Any]
SEED = 1
DESIGNS = {13: (2, (1, 2, 4, 5, 8, 11)), 27: (13, (5, 30))}
CHUNK_LOCI = 1 << 14
WARM_LOCI = 64  # evaluated before the clock runs, to compile
GRID = 9  # points of log alpha_l and of log beta_l where every locus has its own
SPREAD = 2.0  # how far the grid goes, in units of log 10
SELECTION = (-1.0, -0.5, 0.5, 1.0)
BLOCKS, REPLICATES, LEAST_READS = 100, 100, 3
LEAST_WEIGHT = 1e-4  # of a point at a locus, below which its states are left out of the average


class Cost(NamedTuple):
    """What a step took."""

    seconds: float  # by the clock
    cpu_seconds: float
    peak_mb: float  # of the process up to the end of the step


@contextmanager
def measured(costs: dict[str, Cost], name: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    costs[name] = Cost(time.perf_counter() - wall, time.process_time() - cpu, peak)
    print(f"{name:28} {costs[name].seconds:8.1f} s  {costs[name].cpu_seconds:8.1f} CPU s  {peak:7.0f} MB", flush=True)


def draw_reads(pedigree: Pedigree, individuals: list[str], n_loci: int, depth: float) -> tuple[Array, Array]:
    """Methylated and total reads uint16 [L, S], drawn in chunks."""
    lineage, random = build_lineage(pedigree, individuals), np.random.default_rng(SEED)
    meth, total = (np.empty((n_loci, len(individuals)), dtype=np.uint16) for _ in range(2))
    for first in range(0, n_loci, CHUNK_LOCI):
        rows = slice(first, min(first + CHUNK_LOCI, n_loci))
        drawn = simulate_states(
            lineage, TrueRates(1e-4, 4e-4, np.array([0.7, 0.01, 0.29])), rows.stop - rows.start, random
        )
        states = drawn.states[:, lineage.samples]
        meth[rows], total[rows] = simulate_reads(states, TrueEmission(0.01, 0.03, 0.02, depth), random)
    return meth, total


def hypotheses(posterior: RatePosterior) -> tuple[EpimutationRates, Array]:
    """Points [Q] of stable, neutral, labile and selection for and against MM; and the number of each point's."""
    rates, _ = unpack(torch.as_tensor(posterior.mode))
    step = 10 ** torch.linspace(-SPREAD, SPREAD, GRID, dtype=torch.float64)
    factor_alpha, factor_beta = (values.ravel() for values in torch.meshgrid(step, step, indexing="ij"))
    one = torch.ones(1, dtype=torch.float64)
    selection = torch.tensor(SELECTION, dtype=torch.float64)
    alpha = rates.alpha * torch.cat([1e-6 * one, one, factor_alpha, one.expand(len(selection))])
    beta = rates.beta * torch.cat([1e-6 * one, one, factor_beta, one.expand(len(selection))])
    log_fitness = torch.cat([torch.zeros(2 + len(factor_alpha), dtype=torch.float64), selection])
    of_point = np.array([0, 1, *[2] * len(factor_alpha), *np.where(selection.numpy() > 0, 3, 4)])
    return EpimutationRates(
        alpha.clamp(max=0.5), beta.clamp(max=0.5), rates.founder.expand(len(alpha), 3), log_fitness
    ), of_point


def tables(
    plan: EliminationPlan, codes: Array, table: Array, rates: EpimutationRates, of_point: Array, threads: int
) -> None:
    """Evidences of all hypotheses, probabilities of states and changes averaged over all points, chunk by chunk."""
    arrays = kernel.plan_arrays(plan)
    shared, events = shared_values(plan, rates).numpy(), event_values(plan, rates).numpy()
    log_prior = -np.log(np.bincount(of_point)[of_point])[:, None]
    for first in range(0, codes.shape[1], CHUNK_LOCI):
        reads = kernel.reads_table(codes[:, first : first + CHUNK_LOCI], table)
        log_joint = kernel.log_likelihoods(arrays, shared, reads, threads) + log_prior
        evidence = np.stack([logsumexp(log_joint[of_point == h], axis=0) for h in range(5)])
        weights = np.exp(log_joint - logsumexp(log_joint, axis=0))
        weights[weights < LEAST_WEIGHT] = 0
        weights /= weights.sum(0)
        posterior = kernel.state_posterior(arrays, shared, events, reads, weights, threads)
        assert np.isfinite(evidence).all()
        assert np.isfinite(posterior.events).all()


def divergence(pedigree: Pedigree, individuals: list[str], meth: Array, total: Array) -> None:
    """AlphaBeta's estimator with its bootstrap, on the same reads."""
    size = -(-len(meth) // BLOCKS)

    def reads(block: int) -> Iterator[tuple[Array, Array]]:
        for first in range(block * size, min((block + 1) * size, len(meth)), CHUNK_LOCI):
            rows = slice(first, min(first + CHUNK_LOCI, (block + 1) * size))
            yield meth[rows], total[rows]

    sums, _ = sums_of_counts(reads, BLOCKS, len(individuals), LEAST_READS)
    pairs = pairs_of(sums, *pair_times(pedigree, individuals), individuals)
    share = pairs.unmethylated_share
    fit = fit_neutral(pairs.times, pairs.divergence, Assumptions("selfing", share, share, 1.0), starts=10, seed=1)
    drawn = block_replicates(pairs, REPLICATES, seed=1)
    bootstrap(pairs.times, ((row, Assumptions("selfing", p, p, 1.0)) for row, p in zip(*drawn, strict=True)), fit)


@click.command()
@click.option("--loci", default=1_000_000, show_default=True)
@click.option("--plants", default="13", show_default=True, type=click.Choice(["13", "27"]))
@click.option("--depth", default=10.0, show_default=True)
@click.option("--draws", type=int, help="Of the posterior of the rates.  [default: by the number of loci]")
@click.option("--threads", default=2, show_default=True)
@click.option("--output", type=click.Path(path_type=Path))
def main(loci: int, plants: str, depth: float, draws: int | None, threads: int, output: Path | None) -> None:
    torch.set_num_threads(threads)
    pedigree, individuals = lines_pedigree(*DESIGNS[int(plants)])
    plan = build_plan(build_lineage(pedigree, individuals))
    costs: dict[str, Cost] = {}
    with measured(costs, "drawing reads"):
        meth, total = draw_reads(pedigree, individuals, loci, depth)
    with measured(costs, "pairs and codes"):
        chunks = [slice(first, first + CHUNK_LOCI) for first in range(0, loci, CHUNK_LOCI)]
        pairs = collect_pairs((meth[rows], total[rows]) for rows in chunks)
        codes = np.concatenate([encode(pairs, meth[rows], total[rows]) for rows in chunks], axis=1)

    with measured(costs, "compiling"):
        few = np.ascontiguousarray(codes[:, :WARM_LOCI])
        warm = rate_posterior(plan, ClassReads(pairs, lambda: [few]), draws=64, seed=SEED)
        points, of_point = hypotheses(warm)
        _, emission = unpack(torch.as_tensor(warm.mode))
        reads = torch.as_tensor(pairs.meth), torch.as_tensor(pairs.total)
        tables(plan, few, log_probability(emission, *reads).numpy(), points, of_point, threads)
    with measured(costs, "posterior of the rates"):
        posterior = rate_posterior(plan, ClassReads(pairs, lambda: [codes]), draws=draws, seed=SEED, threads=threads)
    print("alpha", posterior.interval("alpha"), "beta", posterior.interval("beta"), "k-hat", posterior.khat)
    points, of_point = hypotheses(posterior)
    _, emission = unpack(torch.as_tensor(posterior.mode))
    with measured(costs, "tables"):
        tables(plan, codes, log_probability(emission, *reads).numpy(), points, of_point, threads)
    print(f"{len(of_point)} points, {loci / costs['tables'].seconds:,.0f} loci/s by the clock, "
          f"{loci / costs['tables'].cpu_seconds:,.0f} loci per CPU second")  # fmt: skip
    with measured(costs, "divergence estimator"):
        divergence(pedigree, individuals, meth, total)
    if output is not None:
        write_json(output, {name: cost._asdict() for name, cost in costs.items()})


if __name__ == "__main__":
    main()
