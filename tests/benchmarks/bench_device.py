"""Time of the inner integral by the compiled kernel and in torch, on the CPU and on a GPU where there is one.

    python tests/benchmarks/bench_device.py --loci 2000

A point is one outer node of one locus under one hypothesis. The compiled kernel and torch on the CPU have one thread
and are timed by its CPU time; torch on a GPU by the wall clock, transfers included. The first call of each, which
compiles or loads, is not counted. Nothing here asserts on time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.special import expit

from epivi.cohort.samples import SampleSheet
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.hypotheses import parse_hypotheses
from epivi.field.compiled.field import field_arrays
from epivi.field.compiled.nodes import NodeResults, evaluate_nodes
from epivi.field.torch.nodes import evaluate_nodes_torch
from epivi.simulate.templates import template_pedigree

HYPOTHESES: dict[str, dict[str, Any]] = {
    "reset": {},
    "epigenetic": {"heritable_share": "free", "maternal": "tau", "paternal": "tau"},
}
COHORTS = {"8 trios": ("trio", 8), "10 of three generations": ("three_generations", 10), "50 trios": ("trio", 50)}
NODES = 33
READS = 15


class TransmissionProblem(NamedTuple):
    """One hypothesis at some loci: the arguments of evaluate_nodes."""

    name: str
    arguments: dict[str, Any]  # of evaluate_nodes
    points: int


def problems(loci: int) -> Iterator[TransmissionProblem]:
    """Every cohort under every hypothesis."""
    random = np.random.default_rng(1)
    for cohort_name, (template, families) in COHORTS.items():
        pedigree = template_pedigree(template, families)
        size = len(pedigree.individuals)
        sheet = SampleSheet(
            path="samples.tsv",
            samples=pedigree.individuals,
            individuals=pedigree.individuals,
            paths=pedigree.individuals,
            formats=("bismark_cov",) * size,
            haplotypes=("all",) * size,
            false_methylated=np.zeros(size),
            false_unmethylated=np.zeros(size),
            columns={},
            lines=tuple(range(2, size + 2)),
        )
        hypotheses = parse_hypotheses(HYPOTHESES)
        cohort = build_cohort(sheet, pedigree, (), hypotheses)
        total = random.poisson(READS, (loci, size))
        level = expit(random.normal(0, 2, (loci, 1)) + random.normal(0, 0.7, (loci, size)))
        meth = random.binomial(total, level)
        for hypothesis, field in zip(hypotheses, cohort.fields, strict=True):
            shares = random.dirichlet((2, 2), (loci, NODES))[..., -1 - field.components :]
            spread = random.uniform(0.2, 2.0, (loci, NODES, 1))
            variances = spread * shares / shares.sum(2, keepdims=True)
            arguments = {
                "arrays": field_arrays(field, cohort.false_methylated, cohort.false_unmethylated),
                "meth": meth.astype(np.uint16),
                "total": total.astype(np.uint16),
                "variances": variances,
                "tau": random.uniform(0.1, 0.95, (loci, NODES)),
                "mixture_weight": np.array([0.3, 0.2, 0.5]),
                "mixture_mean": np.array([-2.0, 0.0, 2.0]),
                "mixture_sd": np.array([0.8, 1.0, 0.8]),
                "effect_sd": np.zeros(0),
            }
            yield TransmissionProblem(f"{cohort_name}, {hypothesis.name}", arguments, loci * NODES)


def compiled(problem: TransmissionProblem, method: str = "laplace") -> NodeResults:
    return evaluate_nodes(**problem.arguments, method=method)


def in_torch(problem: TransmissionProblem, device: torch.device, method: str = "laplace") -> NodeResults:
    return evaluate_nodes_torch(**problem.arguments, device=device, method=method)  # results are on the host


def seconds(call: Callable[[], NodeResults], clock: Callable[[], float]) -> float:
    """Of the second call."""
    call()
    began = clock()
    call()
    return clock() - began


def largest_difference(loci: int, device: torch.device) -> float:
    """Largest difference of a log evidence between the compiled kernel and torch on the device, nats."""
    return max(float(np.abs(in_torch(p, device)[0] - compiled(p)[0]).max()) for p in problems(loci))


@click.command(help=__doc__)
@click.option("--loci", default=500, show_default=True, type=click.IntRange(min=1), help="Loci of each cohort.")
@click.option("--method", default="laplace", show_default=True, type=click.Choice(["laplace", "ep"]))
def main(loci: int, method: str) -> None:
    torch.set_num_threads(1)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    table = Table("cohort, hypothesis", "kernel", *(f"torch, {name}" for name in devices), title="points a second")
    for problem in problems(loci):
        times = [seconds(partial(compiled, problem, method), time.process_time)]
        for name in devices:
            clock = time.process_time if name == "cpu" else time.perf_counter
            times.append(seconds(partial(in_torch, problem, torch.device(name), method), clock))
        table.add_row(problem.name, *(f"{problem.points / taken:,.0f}" for taken in times))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
