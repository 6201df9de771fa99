"""Cohorts drawn from the family `epimutation`, block by block: positions, hypotheses, rates, states and reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from epivi.errors import UserError
from epivi.infer.states.lineage import StateLineage
from epivi.simulate import FIRST_POSITION, Contig, draw_gaps
from epivi.simulate_epimutation import TrueEmission, TrueRates, simulate_reads, simulate_states
from epivi.state_hypotheses import SIGNS, StateHypothesis, StatePriors

Array = NDArray[np.float64]


@dataclass(frozen=True)
class StateSimulation:
    """Everything the draws depend on besides the lineage; raises UserError where a value is outside its range."""

    seed: int
    hypotheses: tuple[StateHypothesis, ...]
    weights: tuple[float, ...]  # of the hypotheses; they sum to 1
    priors: StatePriors
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
class StateBlock:
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


def simulate_lines(settings: StateSimulation, lineage: StateLineage) -> Iterator[StateBlock]:
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
    settings: StateSimulation, lineage: StateLineage, contig: str, pos0: NDArray[np.int32], random: np.random.Generator
) -> StateBlock:
    n_loci = len(pos0)
    hypothesis = random.choice(len(settings.weights), size=n_loci, p=settings.weights).astype(np.int8)
    truth = _draw_rates(settings, hypothesis, random)
    rates = TrueRates(truth["gain_rate"], truth["loss_rate"], np.array(settings.founder), truth["log_fitness"])
    drawn = simulate_states(lineage, rates, n_loci, random)
    meth, total = simulate_reads(drawn.states[:, lineage.samples], settings.emission, random)
    missing = random.random(total.shape) < settings.missing_loci
    meth[missing] = total[missing] = 0
    return StateBlock(contig, pos0, meth, total, drawn.gains, drawn.losses, {"hypothesis": hypothesis} | truth)


def _draw_rates(
    settings: StateSimulation, hypothesis: NDArray[np.int8], random: np.random.Generator
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
