"""Simulated lines under the family `epimutation`: loci, truth, reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import expit, logit

from epivi.base.errors import UserError
from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet
from epivi.config.load import Config
from epivi.families.epimutation.columns import EPIMUTATION_PARAMETERS, EPIMUTATION_TABLES
from epivi.families.epimutation.draw import TrueEmission, TrueRates, simulate_reads, simulate_states
from epivi.families.epimutation.hypotheses import (
    SIGNS,
    EpimutationHypothesis,
    EpimutationPriors,
    parse_epimutation_hypotheses,
)
from epivi.families.epimutation.prepare import with_mode
from epivi.lineage.lineage import Lineage, build_lineage
from epivi.simulate.files import truth_table, write_counts
from epivi.simulate.options import (
    BLOCK_VALUES,
    Options,
    WriteLoci,
    parse_contigs,
    parse_list,
    parse_number,
    parse_weights,
)
from epivi.simulate.positions import FIRST_POSITION, Contig, draw_gaps
from epivi.tables.columns import CONTIG, HYPOTHESIS, POS, Column
from epivi.tables.parquet import Provenance, TableWriter

Array = NDArray[np.float64]

_OF_BRANCHES = {column.name: column for column in EPIMUTATION_TABLES["branches"]}
EPIMUTATION_TRUTH_COLUMNS = (
    CONTIG,
    POS,
    HYPOTHESIS,
    *(Column(name, pa.float64(), unit, values, doc) for name, (unit, values, doc) in EPIMUTATION_PARAMETERS.items()),
)
BRANCH_TRUTH_COLUMNS = (
    CONTIG,
    POS,
    _OF_BRANCHES["parent"],
    _OF_BRANCHES["child"],
    Column("gain", pa.bool_(), "", "true false", "whether a copy was gained on the branch, however it went on"),
    Column("loss", pa.bool_(), "", "true false", "whether a copy was lost on it"),
)


@dataclass(frozen=True)
class EpimutationSimulation:
    """Everything the draws depend on besides the lineage; raises UserError where a value is outside its range."""

    seed: int
    hypotheses: tuple[EpimutationHypothesis, ...]
    weights: tuple[float, ...]  # of the hypotheses; they sum to 1
    priors: EpimutationPriors
    contigs: tuple[Contig, ...]
    gain: float  # per copy and generation
    loss: float
    founder: tuple[float, ...]  # proportions of UU, UM and MM
    emission: TrueEmission
    missing_loci: float  # probability that a sample has no reads at a locus, beyond those drawn with none
    mean_gap_bp: float
    block_loci: int = 65_536

    def __post_init__(self) -> None:
        founder = np.array(self.founder)
        checks = (
            ("--gain", self.gain, 0 < self.gain < 1, "a number between 0 and 1"),
            ("--loss", self.loss, 0 < self.loss < 1, "a number between 0 and 1"),
            (
                "--founder",
                self.founder,
                len(founder) == 3 and founder.min() >= 0 and abs(founder.sum() - 1) < 1e-6,
                "three proportions that sum to 1",
            ),
            (
                "--false-methylated and --false-unmethylated",
                (self.emission.false_methylated, self.emission.false_unmethylated),
                self.emission.dispersion == 0
                or min(self.emission.false_methylated, self.emission.false_unmethylated) > 0,
                "numbers above 0 where --dispersion is",
            ),
            ("--dispersion", self.emission.dispersion, 0 <= self.emission.dispersion < 1, "a number in [0, 1)"),
            ("--mean-gap", self.mean_gap_bp, self.mean_gap_bp >= 2, "a number >= 2: a CpG is two bases long"),
            ("--missing-loci", self.missing_loci, 0 <= self.missing_loci < 1, "a fraction in [0, 1)"),
        )
        for name, value, is_valid, expected in checks:
            if not is_valid:
                raise UserError(f"{name} {value}: expected {expected}")


@dataclass(frozen=True)
class EpimutationBlock:
    """Consecutive loci of one contig; S samples and E branches in the order of the lineage.

    `truth` has an array [L] for each of: hypothesis (int8, index into the settings' hypotheses), gain_rate, loss_rate
    (0 where there are no changes) and log_fitness.
    """

    contig: str
    pos0: NDArray[np.int32]  # [L], 0-based
    meth: NDArray[np.uint16]  # [L, S]
    total: NDArray[np.uint16]  # [L, S]
    gains: NDArray[np.bool_]  # [L, E]
    losses: NDArray[np.bool_]  # [L, E]
    truth: Mapping[str, np.ndarray]


def simulate_lines(settings: EpimutationSimulation, lineage: Lineage) -> Iterator[EpimutationBlock]:
    """Draw the cohort block by block, contig after contig; memory is bounded by one block of loci."""
    for contig_number, contig in enumerate(settings.contigs):
        position = FIRST_POSITION
        for block_number, start in enumerate(range(0, contig.n_loci, settings.block_loci)):
            random = np.random.default_rng([settings.seed, 3, contig_number, block_number])
            n_loci = min(settings.block_loci, contig.n_loci - start)
            pos0 = position + np.cumsum(draw_gaps(settings.mean_gap_bp, n_loci, random))
            if pos0[-1] >= 2**31:
                raise UserError(
                    f"contig {contig.name}: its loci reach beyond 2^31 bases; expected a smaller --mean-gap"
                )
            position = int(pos0[-1])
            yield _draw_block(settings, lineage, contig.name, pos0.astype(np.int32), random)


def _draw_block(
    settings: EpimutationSimulation, lineage: Lineage, contig: str, pos0: NDArray[np.int32], random: np.random.Generator
) -> EpimutationBlock:
    n_loci = len(pos0)
    hypothesis = random.choice(len(settings.weights), size=n_loci, p=settings.weights).astype(np.int8)
    truth = _draw_rates(settings, hypothesis, random)
    rates = TrueRates(truth["gain_rate"], truth["loss_rate"], np.array(settings.founder), truth["log_fitness"])
    drawn = simulate_states(lineage, rates, n_loci, random)
    meth, total = simulate_reads(drawn.states[:, lineage.samples], settings.emission, random)
    missing = random.random(total.shape) < settings.missing_loci
    meth[missing] = total[missing] = 0
    return EpimutationBlock(contig, pos0, meth, total, drawn.gains, drawn.losses, {"hypothesis": hypothesis} | truth)


def _draw_rates(
    settings: EpimutationSimulation, hypothesis: NDArray[np.int8], random: np.random.Generator
) -> dict[str, Array]:
    """Rates and log fitness of each locus under its hypothesis, [L] each."""
    priors, n_loci = settings.priors, len(hypothesis)
    gain, loss, fitness = np.zeros(n_loci), np.zeros(n_loci), np.zeros(n_loci)
    for number, declared in enumerate(settings.hypotheses):
        some = np.flatnonzero(hypothesis == number)
        normal = random.standard_normal((3, len(some)))
        if declared.rates == "shared":
            gain[some], loss[some] = settings.gain, settings.loss
        elif declared.rates == "locus":
            gain[some] = expit(logit(settings.gain) + priors.rate_sd * normal[0])
            loss[some] = expit(logit(settings.loss) + priors.rate_sd * normal[1])
        if declared.selection == "free":
            fitness[some] = priors.fitness_sd * normal[2]
        elif declared.selection in SIGNS:
            size = priors.prior("log_size")
            fitness[some] = SIGNS[str(declared.selection)] * np.exp(size.mean + size.sd * normal[2])
        elif declared.selection is not None:
            fitness[some] = float(declared.selection)
    return {"gain_rate": gain, "loss_rate": loss, "log_fitness": fitness}


def draw(asked: Options, config: Config, pedigree: Pedigree, sheet: SampleSheet) -> WriteLoci:
    model = config.section("model")
    founder = [parse_number("--founder", part, "three proportions") for part in parse_list("--founder", asked.founder)]
    settings = EpimutationSimulation(
        seed=asked.seed,
        hypotheses=parse_epimutation_hypotheses(model["hypotheses"]),
        weights=parse_weights(asked.weights, tuple(model["hypotheses"]), config.null_hypotheses),
        priors=EpimutationPriors(float(model["priors"]["rate_sd"]), float(model["priors"]["fitness_sd"])),
        contigs=parse_contigs(asked.contigs, asked.n_loci),
        gain=asked.gain,
        loss=asked.loss,
        founder=tuple(founder),
        emission=TrueEmission(
            asked.false_methylated, asked.false_unmethylated, asked.dispersion, asked.coverage, asked.coverage_size
        ),
        missing_loci=asked.missing_loci,
        mean_gap_bp=asked.mean_gap,
        block_loci=max(256, min(65_536, BLOCK_VALUES // len(sheet.samples))),
    )
    lineage = build_lineage(with_mode(pedigree, model["mode"]), sheet.individuals)
    names = [hypothesis.name for hypothesis in settings.hypotheses]

    def write(folder: Path, provenance: Provenance) -> None:
        with (
            TableWriter(folder / "truth.parquet", EPIMUTATION_TRUTH_COLUMNS, provenance) as truth,
            TableWriter(folder / "truth_branches.parquet", BRANCH_TRUTH_COLUMNS, provenance) as branches,
        ):

            def add(block: EpimutationBlock) -> None:
                truth.write(truth_table(block, names))
                branches.write(_branch_truth(block, lineage))

            n_loci = sum(contig.n_loci for contig in settings.contigs)
            write_counts(asked, n_loci, simulate_lines(settings, lineage), sheet, folder, add)

    return write


def _branch_truth(block: EpimutationBlock, lineage: Lineage) -> pa.Table:
    """One row for each locus and branch on which anything changed."""
    locus, branch = np.nonzero(block.gains | block.losses)
    ends = np.array(lineage.branches).reshape(-1, 2)[branch].astype(np.int32)
    contig = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(locus), np.int32)), pa.array([block.contig]))
    return pa.table(
        {
            "contig": contig,
            "pos": block.pos0[locus],
            "parent": pa.DictionaryArray.from_arrays(pa.array(ends[:, 0]), pa.array(lineage.nodes)),
            "child": pa.DictionaryArray.from_arrays(pa.array(ends[:, 1]), pa.array(lineage.nodes)),
            "gain": block.gains[locus, branch],
            "loss": block.losses[locus, branch],
        }
    )
