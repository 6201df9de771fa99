"""Evidences per second by size of cohort, where the time goes, and how it grows with each factor by itself.

    python tests/benchmarks/bench_evidence.py --threads 2 --loci 8192 --output evidence.json

Cohorts are drawn from the model and fitted for a short while, so that the outer nodes lie where a fit puts them.
README.md in this folder says how to read the numbers. Nothing here asserts on time.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import arviz_stats.base  # noqa: F401  (the first uneven locus imports it, which is not to be measured)
import click
import numpy as np
import pyro
import torch
from rich.console import Console
from rich.table import Table

from epivi.base.files import write_json
from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet
from epivi.config.load import load_config
from epivi.families.transmission import outer_integral as evidence
from epivi.families.transmission import refinement
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.density import FIT_DTYPE, LearnedPriors, build_transmission, to_batch
from epivi.families.transmission.fit import initialize, new_state
from epivi.families.transmission.guide import GUIDES
from epivi.families.transmission.hypotheses import parse_hypotheses, share_priors
from epivi.families.transmission.outer_integral import EvidenceModel, build_evidence_model
from epivi.families.transmission.simulate import SimulationSettings, simulate_cohort
from epivi.field.compiled import nodes as kernel_nodes
from epivi.fit.minibatch import Minibatches
from epivi.fit.svi import FitSettings, fit_steps
from epivi.loci.source import CountsBatch
from epivi.simulate.positions import Contig
from epivi.simulate.templates import choose_unsampled, template_pedigree

SEED = 1
NULL_WEIGHT = 0.5
FIT_LOCI, HOLDOUT_LOCI, BATCH_LOCI, HIDDEN = 8192, 512, 128, 64
COMPONENTS = 3  # of the baseline
WARM_LOCI = 64  # evaluated before the clock runs, to compile
INDIVIDUALS = (12, 28, 50)
FACTORS: dict[str, tuple[int, ...]] = {
    "individuals": (6, 12, 24, 48),
    "hypotheses": (1, 2, 3, 5),
    "nodes": (32, 64, 128, 256),
    "loci": (512, 2048, 8192, 32768),
}


class Study(NamedTuple):
    """A fitted cohort and counts [L, S] that the fit has not seen."""

    model: EvidenceModel
    meth: np.ndarray
    total: np.ndarray
    fit_step_s: float  # processor seconds of one step of the fit, a part of its evaluations included


@dataclass(frozen=True)
class Timing:
    """One evaluation. Wall clock with all threads; processor seconds by what they were spent on, all threads summed."""

    individuals: int
    hypotheses: int
    nodes: int
    loci: int
    threads: int
    wall_s: float
    cpu_s: float
    kernel_s: float  # inner evaluations
    lattice_s: float  # outer nodes
    moments_s: float  # posterior means and quantiles
    propagated: float  # share of loci that went beyond Laplace
    fit_step_s: float

    @property
    def loci_per_s(self) -> float:
        return self.loci / self.wall_s

    @property
    def cpu_us_per_locus(self) -> float:
        return 1e6 * self.cpu_s / self.loci

    def share(self, part_s: float) -> float:
        return part_s / self.cpu_s


class DrawnLoci:
    """Minibatches of counts in memory; the held-out loci come first."""

    def __init__(self, meth: np.ndarray, total: np.ndarray) -> None:
        self._meth, self._total = meth, total
        self._random = np.random.default_rng(SEED)

    @property
    def n_loci(self) -> int:
        return len(self._meth)

    def holdout(self) -> CountsBatch:
        return self._of(np.arange(HOLDOUT_LOCI))

    def draw(self) -> CountsBatch:
        return self._of(self._random.integers(HOLDOUT_LOCI, self.n_loci, BATCH_LOCI))

    def _of(self, loci: np.ndarray) -> CountsBatch:
        return CountsBatch(self._meth[loci], self._total[loci], loci)


def families_of_seven(number: int) -> Pedigree:
    """Grandparents, parents and three children in each."""
    roles = ("grandmother", "grandfather", "mother", "father", "child1", "child2", "child3")
    mother, father = np.array([-1, -1, 0, -1, 2, 2, 2]), np.array([-1, -1, 1, -1, 3, 3, 3])
    first = 7 * np.arange(number)[:, None]
    return Pedigree(
        tuple(f"F{family}_{role}" for family in range(number) for role in roles),
        np.where(mother < 0, -1, mother + first).ravel().astype(np.int32),
        np.where(father < 0, -1, father + first).ravel().astype(np.int32),
        ("sexual",) * (7 * number),
        np.ones(7 * number, dtype=np.int32),
        ("unknown",) * (7 * number),
    )


def sampled_pedigree(individuals: int) -> tuple[Pedigree, tuple[str, ...]]:
    """28 are four families of seven; else three-generation families of six, the surplus unsampled."""
    if individuals == 28:
        pedigree = families_of_seven(4)
        return pedigree, pedigree.individuals
    pedigree = template_pedigree("three_generations", -(-individuals // 6))
    unsampled = choose_unsampled(pedigree, len(pedigree.individuals) - individuals, SEED)
    return pedigree, tuple(name for name in pedigree.individuals if name not in unsampled)


def sheet_of(names: tuple[str, ...]) -> SampleSheet:
    """One sample of each individual, without conversion error."""
    size = len(names)
    return SampleSheet(
        path="samples.tsv",
        samples=names,
        individuals=names,
        paths=("",) * size,
        formats=("bismark_cov",) * size,
        haplotypes=("all",) * size,
        false_methylated=np.zeros(size),
        false_unmethylated=np.zeros(size),
        columns={},
        lines=tuple(range(2, size + 2)),
    )


def make_study(individuals: int, hypotheses: int, loci: int, coverage: float, steps: int) -> Study:
    """Draw a cohort under the first of the default hypotheses and fit it for a few steps."""
    model = load_config("{}").section("model")
    declared = dict(list(model["hypotheses"].items())[:hypotheses])
    parsed, priors = parse_hypotheses(declared), share_priors(model["priors"])
    pedigree, sampled = sampled_pedigree(individuals)
    sheet = sheet_of(sampled)
    others = (1 - NULL_WEIGHT) / max(1, hypotheses - 1)
    weights = (NULL_WEIGHT, *(others for _ in range(hypotheses - 1))) if hypotheses > 1 else (1.0,)
    settings = SimulationSettings(
        seed=SEED,
        hypotheses=parsed,
        weights=weights,
        contigs=(Contig("chr1", FIT_LOCI + loci),),
        share_priors=priors,
        coverage_mean=coverage,
    )
    drawn = simulate_cohort(settings, pedigree, sheet)
    meth, total = drawn.meth.astype(np.uint16), drawn.total.astype(np.uint16)
    cohort = build_cohort(sheet, pedigree, (), parsed)
    pyro.set_rng_seed(SEED)
    device = torch.device("cpu")
    family = build_transmission(cohort, parsed, priors, device, FIT_DTYPE)
    fit = FitSettings(max_steps=steps, learning_rate=0.005, check_every=steps, tolerance=0.0, seed=SEED)
    minibatches = cast(Minibatches, DrawnLoci(meth[:FIT_LOCI], total[:FIT_LOCI]))
    state = new_state(cohort, family, COMPONENTS, HIDDEN, fit, device)
    initialize(state, to_batch(minibatches.holdout(), FIT_LOCI, device))
    began = time.process_time()
    for _ in fit_steps(state, family, GUIDES["structured"], minibatches, fit, device, to_batch):
        pass
    fit_step_s = (time.process_time() - began) / steps
    learned = LearnedPriors.of(state.averaged)
    fitted = build_evidence_model(cohort, parsed, learned, priors, state.encoder.state_dict(), HIDDEN)
    return Study(fitted, meth[FIT_LOCI:], total[FIT_LOCI:], fit_step_s)


@contextmanager
def clocks() -> Iterator[dict[str, float]]:
    """Processor seconds of the parts of an evidence while the block runs, each in the thread that it runs in."""
    seconds = {"kernel": 0.0, "lattice": 0.0, "moments": 0.0}

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments)
            finally:
                seconds[part] += time.thread_time() - began

        return call

    kernel = timed("kernel", kernel_nodes._entry_point())
    places: list[tuple[Any, str, Callable[..., Any]]] = [
        (kernel_nodes, "_entry_point", lambda: kernel),
        (evidence, "lattice_nodes", timed("lattice", evidence.lattice_nodes)),
        (evidence, "_moments", timed("moments", evidence._moments)),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in places]
    for module, name, function in places:
        setattr(module, name, function)
    try:
        yield seconds
    finally:
        for module, name, function in before:
            setattr(module, name, function)


def evaluate(study: Study, loci: int, nodes: int, threads: int) -> Timing:
    """Take `loci` loci through all levels, chunk by chunk as the command does."""
    chunks = (
        CountsBatch(study.meth[first:stop], study.total[first:stop], np.arange(first, stop))
        for first in range(0, loci, refinement.CHUNK_LOCI)
        for stop in (min(first + refinement.CHUNK_LOCI, loci),)
    )
    refinement.evaluate_batch(
        study.model, study.meth[:WARM_LOCI], study.total[:WARM_LOCI], np.arange(WARM_LOCI), nodes, SEED
    )
    propagated = 0
    with clocks() as seconds:
        wall, cpu = time.perf_counter(), time.process_time()
        for evidences in refinement.evaluate_chunks(study.model, chunks, nodes, SEED, threads):
            propagated += int(np.any([found.inner_method > 0 for found in evidences], axis=0).sum())
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Timing(
        individuals=len(study.model.cohort.individuals),
        hypotheses=len(study.model.hypotheses),
        nodes=nodes,
        loci=loci,
        threads=threads,
        wall_s=wall,
        cpu_s=cpu,
        kernel_s=seconds["kernel"],
        lattice_s=seconds["lattice"],
        moments_s=seconds["moments"],
        propagated=propagated / loci,
        fit_step_s=study.fit_step_s,
    )


def cells(timing: Timing) -> list[str]:
    rest = timing.cpu_s - timing.kernel_s - timing.lattice_s - timing.moments_s
    parts = (timing.kernel_s, timing.lattice_s, timing.moments_s, rest)
    return [
        *(f"{x:,}" for x in (timing.individuals, timing.hypotheses, timing.nodes, timing.loci, timing.threads)),
        f"{timing.loci_per_s:,.0f}",
        f"{timing.cpu_us_per_locus:.0f}",
        *(f"{100 * timing.share(part):.0f} %" for part in parts),
        f"{100 * timing.propagated:.1f} %",
        f"{1e3 * timing.fit_step_s:.0f}",
    ]


def table_of(title: str, timings: list[Timing]) -> Table:
    table = Table(title=title)
    for name in (
        *("individuals", "hypotheses", "nodes", "loci", "threads", "loci/s", "CPU µs/locus"),
        *("inner", "outer nodes", "moments", "rest", "beyond Laplace", "fit: ms/step"),
    ):
        table.add_column(name, justify="right")
    for timing in timings:
        table.add_row(*cells(timing))
    return table


@click.command(context_settings={"show_default": True})
@click.option("--individuals", multiple=True, default=INDIVIDUALS, type=click.IntRange(1), help="Repeat for more.")
@click.option("--loci", default=4096, type=click.IntRange(1), help="Loci that are evaluated, where they do not vary.")
@click.option("--nodes", default=64, type=click.IntRange(1), help="Outer nodes, where they do not vary.")
@click.option("--coverage", default=20.0, type=float, help="Mean reads of a sample at a locus.")
@click.option("--fit-steps", default=200, type=click.IntRange(1), help="Steps of each fit.")
@click.option("--threads", default=os.cpu_count() or 1, type=click.IntRange(1), help="Threads of the evidence.")
@click.option("--growth/--no-growth", default=True, help="Whether to vary each factor by itself.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the numbers here, as JSON.")
def main(
    individuals: tuple[int, ...],
    loci: int,
    nodes: int,
    coverage: float,
    fit_steps: int,
    threads: int,
    growth: bool,
    output: Path | None,
) -> None:
    """Measure evidences on cohorts drawn from the model; the first size where the number does not vary."""
    torch.set_num_threads(1)
    console = Console(width=165)
    hypotheses = len(load_config("{}").section("model")["hypotheses"])
    most = max(loci, *FACTORS["loci"]) if growth else loci
    first = make_study(individuals[0], hypotheses, most, coverage, fit_steps)
    sizes: list[Timing] = []
    for size in individuals:
        study = first if size == individuals[0] else make_study(size, hypotheses, loci, coverage, fit_steps)
        sizes += [evaluate(study, loci, nodes, count) for count in dict.fromkeys((1, threads))]
    console.print(table_of("size of the cohort", sizes))
    grown: dict[str, list[Timing]] = {}
    if growth:
        grown["individuals"] = [
            evaluate(make_study(size, hypotheses, loci, coverage, fit_steps), loci, nodes, threads)
            for size in FACTORS["individuals"]
        ]
        grown["hypotheses"] = [
            evaluate(make_study(individuals[0], number, loci, coverage, fit_steps), loci, nodes, threads)
            for number in FACTORS["hypotheses"]
        ]
        grown["nodes"] = [evaluate(first, loci, number, threads) for number in FACTORS["nodes"]]
        grown["loci"] = [evaluate(first, number, nodes, threads) for number in FACTORS["loci"]]
    for factor, timings in grown.items():
        console.print(table_of(f"growth with {factor}", timings))
    if output is not None:
        record = {
            "coverage_reads": coverage,
            "fit_steps": fit_steps,
            "cores": os.cpu_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "sizes": [asdict(timing) for timing in sizes],
            "growth": {factor: [asdict(timing) for timing in timings] for factor, timings in grown.items()},
        }
        write_json(output, record)


if __name__ == "__main__":
    main()
