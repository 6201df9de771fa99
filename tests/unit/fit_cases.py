"""Small cohorts to fit, and the fit of one: by its parts, and by the command."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from inference_cases import make_sheet
from transmission_cases import CPU, DEFAULT_HYPOTHESES, PRIORS, Array, Case, TransmissionProblem, write_store

from epivi.cli import main
from epivi.config.load import load_config
from epivi.families.transmission.density import Batch, to_batch
from epivi.families.transmission.fit import initialize, new_state
from epivi.families.transmission.guide import structured_guide
from epivi.families.transmission.hypotheses import parse_hypotheses, share_priors
from epivi.families.transmission.simulate import BaselineComponent, SimulationSettings, simulate_cohort
from epivi.fit.bound import LossRow
from epivi.fit.folder import FIT, GUIDE, LOSS
from epivi.fit.minibatch import Minibatches
from epivi.fit.ranks import ALONE, Ranks
from epivi.fit.svi import FitSettings, fit_steps, holdout_bound
from epivi.loci.store import LociStore
from epivi.simulate.positions import Contig
from epivi.simulate.templates import template_pedigree
from epivi.tables.parquet import read_table

# --- a fit by its parts

TRUE_SPREAD = 0.5
TRUE_BASELINE = (BaselineComponent(0.4, -1.5, 0.6), BaselineComponent(0.6, 1.2, 0.6))
SMALL = {name: DEFAULT_HYPOTHESES[name] for name in ("reset", "mendelian")}


def simulated(n_loci: int, seed: int, contigs: int = 2) -> tuple[Case, list[tuple[Array, Array]]]:
    """Trios under two hypotheses; counts [L, S] of each contig."""
    pedigree = template_pedigree("trio", 8)
    sheet = make_sheet(pedigree.individuals)
    settings = SimulationSettings(
        seed=seed,
        hypotheses=parse_hypotheses(SMALL),
        weights=(0.6, 0.4),
        contigs=tuple(Contig(f"chr{k + 1}", n_loci // contigs) for k in range(contigs)),
        share_priors=PRIORS,
        baseline=TRUE_BASELINE,
        log_spread_location=TRUE_SPREAD,
        log_spread_scale=0.2,
        coverage_mean=25.0,
    )
    cohort = simulate_cohort(settings, pedigree, sheet)
    counts = [(cohort.meth[cohort.contig == k], cohort.total[cohort.contig == k]) for k in range(contigs)]
    return Case(pedigree, sheet), counts


class Run:
    """One fit of the small cohort, ready to step."""

    def __init__(
        self,
        store: LociStore,
        problem: TransmissionProblem,
        settings: FitSettings,
        holdout_loci: int = 32,
        batch_loci: int | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.settings, self.problem = settings, problem
        batch_loci = batch_loci or (64 if holdout_loci > 64 else 32)
        self.minibatches = Minibatches(store, batch_loci, holdout_loci, settings.seed, ranks)
        pyro.set_rng_seed(settings.seed)
        self.state = new_state(problem.cohort, problem.family, 2, 32, settings, CPU, ranks)
        initialize(self.state, to_batch(self.minibatches.all_held_out(), store.n_loci, CPU))

    def steps(self) -> Iterator[LossRow]:
        return fit_steps(
            self.state, self.problem.family, structured_guide, self.minibatches, self.settings, CPU, to_batch
        )

    def bound_of(self, batch: Batch) -> float:
        return holdout_bound(self.state, self.problem.family, structured_guide, batch, seed=3)


def settings_of(**changes: Any) -> FitSettings:
    return FitSettings(max_steps=150, learning_rate=0.02, check_every=15, tolerance=0.0, seed=1)._replace(**changes)


def flat(tree: Any) -> list[Any]:
    """Leaves of nested state, tensors as bytes."""
    if isinstance(tree, dict):
        return [leaf for key in tree for leaf in (key, *flat(tree[key]))]
    if isinstance(tree, (list, tuple)):
        return [leaf for value in tree for leaf in flat(value)]
    if isinstance(tree, torch.Tensor):
        return [tree.detach().numpy().tobytes()]
    return ["nan" if isinstance(tree, float) and math.isnan(tree) else tree]


# --- a fit by the command

STEPS = 9
HYPOTHESES: dict[str, Any] = {"reset": {}, "mendelian": {"heritable_share": "free", "maternal": 1, "paternal": 1}}
MODEL = {"hypotheses": HYPOTHESES, "covariates": ["age"], "baseline_components": 2}
FIT_SECTION = {
    "batch_loci": 32,
    "max_steps": STEPS,
    "check_every": 4,
    "holdout_loci": 32,
    "hidden": 8,
    "device": "cpu",
    "tolerance": 0.0005,
    "shared": "variational",
    "shared_loci": 48,
}


def configuration(**fit: Any) -> str:
    return json.dumps({"seed": 3, "model": MODEL, "fit": {**FIT_SECTION, **fit}})


def write_cohort(folder: Path) -> Path:
    """Loci of four trios, sample sheet and pedigree."""
    pedigree = template_pedigree("trio", 4)
    ages = tuple(f"{10 + 3 * k}" for k in range(12))
    sheet = make_sheet(pedigree.individuals, columns={"age": ages})
    config = load_config(configuration())
    settings = SimulationSettings(
        seed=1,
        hypotheses=parse_hypotheses(HYPOTHESES),
        weights=(0.5, 0.5),
        contigs=(Contig("chr1", 300),),
        share_priors=share_priors(config.section("model", "priors")),
        covariates=("age",),
    )
    cohort = simulate_cohort(settings, pedigree, sheet)
    write_store(folder / "loci", sheet.samples, {"chr1": (cohort.meth, cohort.total)})
    write_sheet(folder / "samples.tsv", list(zip(sheet.samples, sheet.individuals, ages, strict=True)))
    names = (*pedigree.individuals, "")
    rows = zip(pedigree.individuals, pedigree.mother, pedigree.father, strict=True)
    lines = ["\t".join((child, names[mother], names[father])) for child, mother, father in rows]
    (folder / "pedigree.tsv").write_text("\n".join(["individual\tmother\tfather", *lines]) + "\n")
    return folder


def write_sheet(path: Path, rows: list[tuple[str, str, str]]) -> None:
    lines = [f"{sample}\t{individual}\t{sample}.cov.gz\t{age}" for sample, individual, age in rows]
    path.write_text("\n".join(["sample\tindividual\tpath\tage", *lines]) + "\n")


def command_line(folder: Path, output: Path, config: str, *further: str, **inputs: str | Path) -> list[str]:
    """Of a fit of the cohort in the folder; inputs: other files than its own."""
    paths = {"loci": folder / "loci", "samples": folder / "samples.tsv", "pedigree": folder / "pedigree.tsv", **inputs}
    options = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
    return ["fit", *options, "--output", str(output), "--config", config, *further]


def run(*arguments: Any, **inputs: str | Path) -> int:
    """Status of the command."""
    with pytest.raises(SystemExit) as leaving:
        main(command_line(*arguments, **inputs))
    return int(leaving.value.code or 0)


def results(output: Path) -> tuple[Any, ...]:
    """What a fit found, without the clock."""
    record = json.loads((output / FIT).read_text())
    record.pop("elapsed_s")
    guide = torch.load(output / GUIDE, weights_only=True)
    loss = read_table(output / LOSS, "loss").drop_columns(["elapsed_s"]).to_pandas().to_csv(index=False)
    return record, {name: tensor.numpy().tobytes() for name, tensor in guide.items()}, loss
