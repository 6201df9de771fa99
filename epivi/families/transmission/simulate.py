"""Draw cohorts from the transmission model itself, with their truth.

For locus l, sample s of individual i(s), and a hypothesis h ~ weights:

    meth_ls  ~ Binomial(total_ls, eps_s + (1 - eps_s - delta_s) sigmoid(y_ls)),   total_ls ~ negative binomial
    y_ls      = baseline_l + x_s' effects_l + b_ls
    b_ls      = sigma_l (sqrt(heritable) a_{i(s)} + sum_c sqrt(share_c) u_{c, i(s)} + sqrt(residual) e_{i(s)})
    u_c       one draw for each group of an environment; of a relatedness matrix R R', R times one for each individual
    a_child   = 1/2 tau_m a_mother + 1/2 tau_p a_father + segregation,   Var(a) = 1

A sample of one haplotype has h / sqrt(2) in place of a: h = tau_m a_mother + its own part of the segregation for the
maternal one (epivi.field.layout); which of two haplotypes of unknown origin is which is drawn for each locus and file.

Loci are drawn in blocks, each quantity of each block from a random stream of its own, so that memory is bounded by a
block and the draws do not depend on what is written or in how many threads. Within the module arrays lie [member, L],
loci last; blocks hand them out as [L, S].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from scipy.special import expit

from epivi.base.errors import UserError
from epivi.cohort.haplotypes import Unit, check_sexual, sampled_units
from epivi.cohort.pedigree import Pedigree, check_samples
from epivi.cohort.relatedness_matrix import read_relatedness_matrix, relatedness_among
from epivi.cohort.samples import SampleSheet, design_matrix, group_index
from epivi.config.load import Config
from epivi.families.transmission.columns import share_parameters
from epivi.families.transmission.hypotheses import (
    Component,
    Hypothesis,
    NormalPrior,
    parse_hypotheses,
    share_priors,
    shared_components,
)
from epivi.field.covariate import Covariate, centred
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

if TYPE_CHECKING:
    from epivi.families.transmission.density import LearnedPriors

# One random stream for each, by position: append, never reorder, or every seed gives another cohort.
STAGES = (
    "positions",
    "hypothesis",
    "baseline",
    "spread",
    "shares",
    "transmitted",
    "individual",
    "environment",
    "covariates",
    "coverage",
    "missing",
    "methylated",
    "haplotypes",
    "further_shares",
    "locus effects",
)
# Priors that the stream "shares" draws from, in this order; the share of a hypothesis's second component of a kind, and
# that of a component of another kind, come from a stream of their own.
FIRST_SHARES = ("logit_environment_share", "logit_heritable_share", "logit_transmissibility")
PAIR_VALUES = 2**22  # covariances of parents held at once: 32 MB

TRUTH_COLUMNS = (
    CONTIG,
    POS,
    HYPOTHESIS,
    Column("baseline", pa.float32(), "fraction", "0..1", "baseline methylation, at the average covariates"),
    Column("spread", pa.float32(), "logit", "> 0", "SD between individuals (sigma)"),
    Column("heritable_share", pa.float32(), "fraction", "0..1", "share of the variance that is transmitted (rho)"),
    Column("transmissibility", pa.float32(), "fraction", "0..1", "tau, or the larger of fixed ones; 0 if none"),
)


def truth_columns(hypotheses: Sequence[Hypothesis]) -> tuple[Column, ...]:
    """Columns of what was drawn: those of every cohort, and the shares of further covariance components."""
    further = share_parameters(shared_components(hypotheses))
    return (*TRUTH_COLUMNS, *(Column(name, pa.float32(), *described) for name, described in further.items()))


class BaselineComponent(NamedTuple):
    """One Gaussian of the mixture that baselines are drawn from, on the logit scale."""

    weight: float
    mean: float
    sd: float


@dataclass(frozen=True)
class SimulationSettings:
    """Everything the draws depend on besides the pedigree and the sample sheet.

    Raises UserError, naming the setting, where a value is outside its range.
    """

    seed: int
    hypotheses: tuple[Hypothesis, ...]
    weights: tuple[float, ...]  # of the hypotheses; they sum to 1
    contigs: tuple[Contig, ...]
    share_priors: Mapping[
        str, NormalPrior
    ]  # of logit rho, eta and tau: epivi.families.transmission.hypotheses.share_priors
    covariates: tuple[str, ...] = ()  # sheet columns with an effect at every locus
    # SD of an effect (logit) per SD of a numeric column, or of a category against the first; one for all, or by the
    # names of epivi.cohort.samples.design_matrix
    covariate_scale: float | Mapping[str, float] = 0.3
    baseline: tuple[BaselineComponent, ...] = (
        BaselineComponent(0.3, -2.0, 0.8),
        BaselineComponent(0.2, 0.0, 1.0),
        BaselineComponent(0.5, 2.0, 0.8),
    )
    log_spread_location: float = 0.0  # log sigma ~ Normal(location, scale)
    log_spread_scale: float = 0.3
    coverage_mean: float = 20.0  # reads
    coverage_size: float = 10.0  # of the negative binomial: variance = mean + mean^2 / size; inf = Poisson
    missing_loci: float = 0.0  # probability that a sample has no reads at a locus, beyond those drawn with none
    mean_gap_bp: float = 100.0  # between neighbouring loci
    cluster_bp: float | None = None  # mean length over which the hypothesis is kept; None: every locus for itself
    block_loci: int = 65_536

    def __post_init__(self) -> None:
        checks: tuple[tuple[str, object, bool, str], ...] = (
            ("seed", self.seed, self.seed >= 0, "a whole number >= 0"),
            ("hypotheses", len(self.hypotheses), len(self.hypotheses) > 0, "at least one"),
            ("weights", self.weights, self._weights_are_proper(), "one >= 0 for each hypothesis, summing to 1"),
            ("contigs", self.contigs, self._contigs_are_proper(), "different names, each with at least one locus"),
            ("covariate_scale", self.covariate_scale, self._covariate_scale_is_proper(), "a number >= 0"),
            ("baseline", self.baseline, self._baseline_is_proper(), "weights > 0 and SDs >= 0"),
            ("log_spread_scale", self.log_spread_scale, self.log_spread_scale >= 0, "a number >= 0"),
            ("coverage_mean", self.coverage_mean, 0 < self.coverage_mean <= 10_000, "a number in (0, 10000]"),
            ("coverage_size", self.coverage_size, self.coverage_size > 0, "a number > 0, or inf"),
            ("missing_loci", self.missing_loci, 0 <= self.missing_loci < 1, "a fraction in [0, 1)"),
            ("mean_gap_bp", self.mean_gap_bp, self.mean_gap_bp >= 2, "a number >= 2: a CpG is two bases long"),
            ("cluster_bp", self.cluster_bp, self.cluster_bp is None or self.cluster_bp > 0, "a number > 0"),
            ("block_loci", self.block_loci, self.block_loci >= 1, "a whole number >= 1"),
        )
        for name, value, is_valid, expected in checks:
            if not is_valid:
                raise UserError(f"simulation: {name} = {value}: expected {expected}")

    @property
    def n_loci(self) -> int:
        return sum(contig.n_loci for contig in self.contigs)

    def _weights_are_proper(self) -> bool:
        weights = np.asarray(self.weights, dtype=float)
        return len(weights) == len(self.hypotheses) and bool((weights >= 0).all()) and abs(weights.sum() - 1) < 1e-6

    def _contigs_are_proper(self) -> bool:
        names = {contig.name for contig in self.contigs}
        return 0 < len(names) == len(self.contigs) and all(contig.n_loci > 0 for contig in self.contigs)

    def _covariate_scale_is_proper(self) -> bool:
        scale = self.covariate_scale
        return min(scale.values(), default=0.0) >= 0 if isinstance(scale, Mapping) else scale >= 0

    def _baseline_is_proper(self) -> bool:
        return len(self.baseline) > 0 and all(part.weight > 0 and part.sd >= 0 for part in self.baseline)


@dataclass(frozen=True)
class SimulatedBlock:
    """Consecutive loci of one contig; S samples in the order of the sheet.

    `truth` has an array [L] for each of: hypothesis (int8, index into the settings' hypotheses), baseline (fraction),
    spread (sigma, logit), transmissibility (tau; for hypotheses that fix both parents' the larger; 0 where nothing
    transmits), heritable_share and the `<name>_share` of every other component of the hypotheses, of the whole variance
    between individuals (0 where absent).
    """

    contig: str
    pos0: np.ndarray  # int32 [L], 0-based
    logit: np.ndarray  # float64 [L, S], y
    meth: np.ndarray  # int32 [L, S]
    total: np.ndarray  # int32 [L, S]
    truth: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class SimulatedCohort:
    """A whole cohort in memory; fields as in SimulatedBlock, over all contigs."""

    pedigree: Pedigree
    sheet: SampleSheet
    settings: SimulationSettings
    contig: np.ndarray  # int32 [L], index into settings.contigs
    pos0: np.ndarray
    logit: np.ndarray
    meth: np.ndarray
    total: np.ndarray
    truth: Mapping[str, np.ndarray]


class LocusCovariates(NamedTuple):
    """Covariates whose values differ between loci: G columns of the design, whose effects are N(0, sd^2)."""

    design: np.ndarray  # float64 [L, S, G]
    sds: np.ndarray  # [G], logit for each unit


def simulate_cohort(
    settings: SimulationSettings, pedigree: Pedigree, sheet: SampleSheet, own: LocusCovariates | None = None
) -> SimulatedCohort:
    """All blocks of `simulate` joined in memory, for small cohorts."""
    blocks = list(simulate(settings, pedigree, sheet, own))
    index = {contig.name: number for number, contig in enumerate(settings.contigs)}
    return SimulatedCohort(
        pedigree=pedigree,
        sheet=sheet,
        settings=settings,
        contig=np.concatenate([np.full(len(block.pos0), index[block.contig], dtype=np.int32) for block in blocks]),
        pos0=np.concatenate([block.pos0 for block in blocks]),
        logit=np.concatenate([block.logit for block in blocks]),
        meth=np.concatenate([block.meth for block in blocks]),
        total=np.concatenate([block.total for block in blocks]),
        truth={name: np.concatenate([block.truth[name] for block in blocks]) for name in blocks[0].truth},
    )


def simulate(
    settings: SimulationSettings, pedigree: Pedigree, sheet: SampleSheet, own: LocusCovariates | None = None
) -> Iterator[SimulatedBlock]:
    """Draw the cohort block by block, contig after contig; memory is bounded by one block of loci.

    own: covariates of single loci, over all contigs; every hypothesis has them, and the truth their effects
    (`locus_effects` [L, G]). Raises UserError where a sample's individual is not in the pedigree, a declared column is
    not in the sheet, or a contig would grow beyond 2^31 bases.
    """
    cohort = _prepare(settings, pedigree, sheet)
    done = 0
    for contig_number, contig in enumerate(settings.contigs):
        previous = _Previous(position=FIRST_POSITION, hypothesis=-1)
        for block_number, start in enumerate(range(0, contig.n_loci, settings.block_loci)):
            n_loci = min(settings.block_loci, contig.n_loci - start)
            streams = _Streams((settings.seed, contig_number, block_number))
            of_block = None if own is None else own._replace(design=own.design[done : done + n_loci])
            block = _draw_block(settings, cohort, contig.name, n_loci, streams, previous, of_block)
            done += n_loci
            previous = _Previous(int(block.pos0[-1]), int(block.truth["hypothesis"][-1]))
            yield block


# --- the pedigree's effect -------------------------------------------------------------------------------------------


# Pairs of individuals (earlier, later), in an order of evaluation, whose covariance some child's variance needs.
ParentPairs = tuple[tuple[int, int], ...]


def parent_pairs(pedigree: Pedigree) -> ParentPairs:
    """Covariances needed for the children's variances, by the tabular method's recursion from each pair of parents.

    Unrelated pairs are left out: in an outbred pedigree there are none.
    """

    def parents(child: int) -> list[int]:
        return [int(parent) for parent in (pedigree.mother[child], pedigree.father[child]) if parent >= 0]

    needed: set[tuple[int, int]] = set()
    waiting = [tuple(sorted(both)) for child in range(len(pedigree.individuals)) if len(both := parents(child)) == 2]
    while waiting:
        first, second = waiting.pop()
        if first == second or (first, second) in needed:
            continue
        needed.add((first, second))
        waiting.extend((min(first, parent), max(first, parent)) for parent in parents(second))
    related: dict[tuple[int, int], None] = {}
    for first, second in sorted(needed, key=lambda pair: (pair[1], pair[0])):
        if any(parent == first or (min(first, parent), max(first, parent)) in related for parent in parents(second)):
            related[first, second] = None
    return tuple(related)


def transmitted_effects(
    pedigree: Pedigree,
    pairs: ParentPairs,
    tau_maternal: np.ndarray,
    tau_paternal: np.ndarray,
    normal: np.ndarray,
) -> np.ndarray:
    """Standardized transmitted effects a [I, L] (variance 1) from standard normals [I, L] and tau_m, tau_p [L].

    The individuals are filled in parents first; the segregation variance of a child of related parents needs their
    covariance, which the tabular method gives for each locus.
    """
    covariance = _pair_covariances(pedigree, pairs, tau_maternal, tau_paternal)
    effects = np.empty_like(normal)
    for child in range(len(pedigree.individuals)):
        terms = _parent_terms(pedigree, child, tau_maternal, tau_paternal)
        mean = sum((weight * effects[parent] for parent, weight in terms), np.zeros_like(tau_maternal))
        variance = sum((weight**2 for _, weight in terms), np.zeros_like(tau_maternal))
        if len(terms) == 2:
            (mother, maternal), (father, paternal) = terms
            variance = variance + 2 * maternal * paternal * _covariance_of(covariance, mother, father)
        effects[child] = mean + np.sqrt(np.maximum(1 - variance, 0.0)) * normal[child]
    return effects


def _parent_terms(
    pedigree: Pedigree, child: int, tau_maternal: np.ndarray, tau_paternal: np.ndarray
) -> list[tuple[int, np.ndarray]]:
    """(parent, weight [L]) of each known parent; a selfing or clonal parent stands for both, once per generation."""
    mother, father = int(pedigree.mother[child]), int(pedigree.father[child])
    if pedigree.mode[child] != "sexual":
        parent = mother if mother >= 0 else father
        return [(parent, ((tau_maternal + tau_paternal) / 2) ** int(pedigree.generations[child]))]
    terms = ((mother, tau_maternal / 2), (father, tau_paternal / 2))
    return [(parent, weight) for parent, weight in terms if parent >= 0]


def _pair_covariances(
    pedigree: Pedigree, pairs: ParentPairs, tau_maternal: np.ndarray, tau_paternal: np.ndarray
) -> dict[tuple[int, int], np.ndarray]:
    covariance: dict[tuple[int, int], np.ndarray] = {}
    for first, second in pairs:
        terms = _parent_terms(pedigree, second, tau_maternal, tau_paternal)
        covariance[first, second] = sum(
            (weight * _covariance_of(covariance, first, parent) for parent, weight in terms),
            np.zeros_like(tau_maternal),
        )
    return covariance


def _covariance_of(covariance: Mapping[tuple[int, int], np.ndarray], one: int, other: int) -> np.ndarray | float:
    return 1.0 if one == other else covariance.get((min(one, other), max(one, other)), 0.0)


# --- the draws of a block --------------------------------------------------------------------------------------------


class _Previous(NamedTuple):
    """The contig's last locus before a block; hypothesis -1: there is none."""

    position: int
    hypothesis: int


class _Streams:
    """Independent random generators, one for each stage of one block."""

    def __init__(self, entropy: tuple[int, ...]) -> None:
        self._entropy = entropy

    def __call__(self, stage: str) -> np.random.Generator:
        return np.random.default_rng([*self._entropy, STAGES.index(stage)])


class _Design(NamedTuple):
    """Columns of the sample sheet with effects, P of them."""

    matrix: np.ndarray  # float64 [S, P]
    scale: np.ndarray  # float64 [P, 1], SD of the effects


class _Haplotype(NamedTuple):
    """Which of the J sampled deviations is a haplotype, and of which parent; one of unknown origin has a pair, whose
    first is maternal where the second is not."""

    sampled: int
    origin: str
    pair: int  # number of the coin that is tossed for both haplotypes of a file, or -1
    is_first: bool


DrawShared = Callable[[np.random.Generator, int], np.ndarray]


class _Cohort(NamedTuple):
    """What every block needs of pedigree and sheet."""

    pedigree: Pedigree
    pairs: ParentPairs
    sampled: np.ndarray  # int [J], the individuals and haplotypes with a sample, as indices into the pedigree
    sampled_index: np.ndarray  # int [S], index into `sampled`
    haplotypes: tuple[_Haplotype, ...]
    design: _Design  # of the covariates at every locus
    own_designs: tuple[_Design, ...]  # [H], of the covariates of one hypothesis
    # [H]: of each component that is not heritable a function that draws it, float64 [S, L] from a generator and L
    shared: tuple[tuple[DrawShared, ...], ...]
    false_methylated: np.ndarray  # float64 [S, 1]
    false_unmethylated: np.ndarray  # float64 [S, 1]


def _prepare(settings: SimulationSettings, pedigree: Pedigree, sheet: SampleSheet) -> _Cohort:
    index = {name: number for number, name in enumerate(pedigree.individuals)}
    check_samples(sheet, pedigree)
    for contig in settings.contigs:
        if contig.n_loci * settings.mean_gap_bp * 1.05 + FIRST_POSITION >= 2**31:
            raise UserError(
                f"simulation: contig {contig.name}: {contig.n_loci} loci {settings.mean_gap_bp} bp apart exceed "
                "2^31 bp: expected more contigs or a smaller mean_gap_bp"
            )
    units, unit_of_sample = sampled_units(sheet)
    check_sexual(units, pedigree, sheet)
    individual = np.array([index[unit.individual] for unit in units], dtype=np.int64)
    # In the order of the pedigree, whatever the sheet's: the draws do not depend on it.
    order = np.argsort(individual, kind="stable")
    sampled, sampled_index = individual[order], np.argsort(order)[unit_of_sample]
    return _Cohort(
        pedigree=pedigree,
        pairs=parent_pairs(pedigree),
        sampled=sampled,
        sampled_index=sampled_index,
        haplotypes=_haplotypes([units[unit] for unit in order]),
        design=_scaled_design(settings, sheet, settings.covariates),
        own_designs=tuple(_scaled_design(settings, sheet, hypothesis.covariates) for hypothesis in settings.hypotheses),
        shared=tuple(
            tuple(DRAWN_BY[component.kind](component, sheet) for component in hypothesis.shared)
            for hypothesis in settings.hypotheses
        ),
        false_methylated=np.asarray(sheet.false_methylated, dtype=float)[:, None],
        false_unmethylated=np.asarray(sheet.false_unmethylated, dtype=float)[:, None],
    )


def _draw_groups(component: Component, sheet: SampleSheet) -> DrawShared:
    group, _ = group_index(sheet, str(component.source))

    def draw(random: np.random.Generator, n_loci: int) -> np.ndarray:
        return random.normal(size=(int(group.max()) + 1, n_loci))[group]

    return draw


def _draw_by_matrix(component: Component, sheet: SampleSheet) -> DrawShared:
    matrix = read_relatedness_matrix(str(component.source))
    individuals = list(dict.fromkeys(sheet.individuals))
    eigenvalues, vectors = np.linalg.eigh(relatedness_among(matrix, sheet, individuals).values)
    root = vectors * np.sqrt(np.maximum(eigenvalues, 0.0))
    of_sample = root[[individuals.index(name) for name in sheet.individuals]]

    def draw(random: np.random.Generator, n_loci: int) -> np.ndarray:
        return of_sample @ random.normal(size=(len(individuals), n_loci))

    return draw


DRAWN_BY: Mapping[str, Callable[[Component, SampleSheet], DrawShared]] = {
    "environment": _draw_groups,
    "relatedness": _draw_by_matrix,
}


def _haplotypes(units: Sequence[Unit]) -> tuple[_Haplotype, ...]:
    files = list(dict.fromkeys((unit.individual, unit.phasing) for unit in units if unit.origin == "unknown"))
    seen: set[int] = set()
    haplotypes = []
    for number, unit in enumerate(units):
        if not unit.is_haplotype:
            continue
        pair = files.index((unit.individual, unit.phasing)) if unit.origin == "unknown" else -1
        haplotypes.append(_Haplotype(number, unit.origin, pair, pair not in seen))
        seen.add(pair)
    return tuple(haplotypes)


def _scaled_design(settings: SimulationSettings, sheet: SampleSheet, covariates: Sequence[str]) -> _Design:
    matrix, columns = design_matrix(sheet, covariates)
    scale = settings.covariate_scale
    scales = [scale[column.name] if isinstance(scale, Mapping) else scale for column in columns]
    return _Design(matrix, np.array(scales)[:, None])


def _draw_block(
    settings: SimulationSettings,
    cohort: _Cohort,
    contig: str,
    n_loci: int,
    streams: _Streams,
    previous: _Previous,
    own: LocusCovariates | None,
) -> SimulatedBlock:
    gaps = draw_gaps(settings.mean_gap_bp, n_loci, streams("positions"))
    hypothesis = _draw_hypotheses(settings, gaps, previous.hypothesis, streams("hypothesis"))
    baseline = _draw_baselines(settings.baseline, n_loci, streams("baseline"))
    spread = np.exp(settings.log_spread_location + settings.log_spread_scale * streams("spread").normal(size=n_loci))
    shares = _draw_shares(settings, hypothesis, streams)
    logit = _draw_deviations(settings, cohort, hypothesis, shares, streams)
    logit *= spread
    logit += baseline
    _add_covariates(logit, cohort, hypothesis, streams("covariates"))
    truth: dict[str, np.ndarray] = {}
    if own is not None:
        effects = streams("locus effects").normal(0, own.sds, (n_loci, len(own.sds)))
        logit += np.einsum("lsg,lg->sl", centred(own.design), effects)
        truth["locus_effects"] = effects
    total = _draw_coverage(settings, logit.shape, streams)
    meth = draw_methylated(streams("methylated"), total, logit, cohort.false_methylated, cohort.false_unmethylated)
    truth |= {
        "hypothesis": hypothesis,
        "baseline": expit(baseline),
        "spread": spread,
        "heritable_share": shares.heritable,
        "transmissibility": shares.transmissibility,
        **_further_shares(settings.hypotheses, hypothesis, shares),
    }
    pos0 = (previous.position + np.cumsum(gaps)).astype(np.int32)
    return SimulatedBlock(contig, pos0, logit.T, meth.T, total.T, truth)


def draw_methylated(
    random: np.random.Generator,
    total: np.ndarray,
    logit: np.ndarray,
    false_methylated: np.ndarray,
    false_unmethylated: np.ndarray,
    overdispersion: np.ndarray | None = None,
) -> np.ndarray:
    """Methylated reads, int32, from reads and logits of one shape; the error rates broadcast to it.

    overdispersion: correlation of the reads of one sample at one locus, in [0, 1), of the same shape: where it is above
    zero the reads are beta-binomial, Beta(mean, 1 - mean) times 1 / overdispersion - 1.
    """
    probability = expit(logit)
    probability *= 1 - false_methylated - false_unmethylated
    probability += false_methylated
    if overdispersion is not None:
        at = np.nonzero((overdispersion > 0) & (probability > 0) & (probability < 1))
        size = 1 / overdispersion[at] - 1
        probability[at] = random.beta(probability[at] * size, (1 - probability[at]) * size)
    return random.binomial(total, probability).astype(np.int32)


def _draw_hypotheses(
    settings: SimulationSettings, gaps: np.ndarray, previous: int, random: np.random.Generator
) -> np.ndarray:
    """Index of each locus's hypothesis, int8 [L].

    # METHOD: with `cluster_bp` the hypothesis is a Markov chain along the contig: over a gap of d bases it is kept with
    # probability exp(-d / cluster_bp), else drawn afresh from the weights (so that it may stay by chance, and every
    # locus alone follows the weights).
    """
    cumulative = np.cumsum(settings.weights)
    drawn = np.searchsorted(cumulative / cumulative[-1], random.random(len(gaps)), side="right").astype(np.int8)
    if settings.cluster_bp is None:
        return drawn
    is_fresh = random.random(len(gaps)) >= np.exp(-gaps / settings.cluster_bp)
    if previous < 0:
        is_fresh[0] = True
    last_fresh = np.maximum.accumulate(np.where(is_fresh, np.arange(len(gaps)), -1))
    return np.where(last_fresh >= 0, drawn[last_fresh], previous).astype(np.int8)


def _draw_baselines(components: Sequence[BaselineComponent], n_loci: int, random: np.random.Generator) -> np.ndarray:
    """Baselines on the logit scale, float64 [L]."""
    weight, mean, sd = (np.array(column) for column in zip(*components, strict=True))
    which = random.choice(len(weight), size=n_loci, p=weight / weight.sum())
    return mean[which] + sd[which] * random.normal(size=n_loci)


class _Shares(NamedTuple):
    """Variance shares and transmission of each locus, float64 [L]; 0 where the hypothesis lacks the component."""

    heritable: np.ndarray
    maternal: np.ndarray
    paternal: np.ndarray
    transmissibility: np.ndarray
    shared: tuple[tuple[np.ndarray, ...], ...]  # [H] of each further component at the hypothesis's loci
    residual: np.ndarray


def _draw_shares(settings: SimulationSettings, hypothesis: np.ndarray, streams: _Streams) -> _Shares:
    size, random = len(hypothesis), streams("shares")
    priors = {name: settings.share_priors[name] for name in FIRST_SHARES}
    drawn = {name: expit(prior.mean + prior.sd * random.normal(size=size)) for name, prior in priors.items()}
    tau, random_further = drawn["logit_transmissibility"], streams("further_shares")
    heritable, maternal, paternal, transmissibility = np.zeros((4, size))
    shared, residual = [], np.ones(size)
    for number, declared in enumerate(settings.hypotheses):
        at = hypothesis == number
        kinds, parts = set[str](), list[np.ndarray]()
        for component in declared.components:
            name = f"logit_{component.kind}_share"
            if name in drawn and component.kind not in kinds:
                value = drawn[name][at]
            else:
                prior = settings.share_priors[name]
                value = expit(prior.mean + prior.sd * random_further.normal(size=np.count_nonzero(at)))
            kinds.add(component.kind)
            value = _free_or_fixed(component.share, value)
            parts.append(residual[at] * value)
            residual[at] *= 1 - value
        if declared.transmits:
            heritable[at], *parts = parts
            maternal[at] = _free_or_fixed(declared.maternal, tau[at])
            paternal[at] = _free_or_fixed(declared.paternal, tau[at])
            has_tau = declared.has_free_transmissibility
            transmissibility[at] = tau[at] if has_tau else max(float(declared.maternal), float(declared.paternal))
        shared.append(tuple(parts))
    return _Shares(heritable, maternal, paternal, transmissibility, tuple(shared), residual)


def _further_shares(hypotheses: Sequence[Hypothesis], hypothesis: np.ndarray, shares: _Shares) -> dict[str, np.ndarray]:
    """Share of the whole variance, float64 [L], of every component that is not heritable, by its column."""
    out = {name: np.zeros(len(hypothesis)) for name in share_parameters(shared_components(hypotheses))}
    for number, (declared, parts) in enumerate(zip(hypotheses, shares.shared, strict=True)):
        for component, part in zip(declared.shared, parts, strict=True):
            out[f"{component.name}_share"][hypothesis == number] = part
    return out


def _free_or_fixed(declared: float | str, drawn: np.ndarray) -> np.ndarray:
    return drawn if isinstance(declared, str) else np.full(len(drawn), float(declared))


def _draw_deviations(
    settings: SimulationSettings, cohort: _Cohort, hypothesis: np.ndarray, shares: _Shares, streams: _Streams
) -> np.ndarray:
    """Deviations b / sigma of the samples from the locus mean, float64 [S, L], variance 1.

    # METHOD: the residual belongs to the individual, not to the sample: replicate samples of one individual share it,
    # so that the likeness of replicates never counts as transmission.
    """
    n_loci = len(hypothesis)
    of_individual = streams("individual").normal(size=(len(cohort.sampled), n_loci))
    of_individual *= np.sqrt(shares.residual)
    random, random_haplotypes = streams("transmitted"), streams("haplotypes")
    step = max(1, PAIR_VALUES // (len(cohort.pairs) + 1))
    transmits = np.flatnonzero(shares.heritable > 0)
    for start in range(0, len(transmits), step):
        at = transmits[start : start + step]
        normal = random.normal(size=(len(cohort.pedigree.individuals), len(at)))
        effects = transmitted_effects(cohort.pedigree, cohort.pairs, shares.maternal[at], shares.paternal[at], normal)
        of_sampled = effects[cohort.sampled]
        if cohort.haplotypes:
            of_sampled = _with_haplotypes(cohort, shares, at, effects, of_sampled, random_haplotypes)
        of_individual[:, at] += np.sqrt(shares.heritable[at]) * of_sampled
    deviations = of_individual[cohort.sampled_index]
    random = streams("environment")
    for number, (draws, parts) in enumerate(zip(cohort.shared, shares.shared, strict=True)):
        at = np.flatnonzero(hypothesis == number)
        for draw, part in zip(draws, parts, strict=True):
            deviations[:, at] += np.sqrt(part) * draw(random, len(at))
    return deviations


def _with_haplotypes(
    cohort: _Cohort,
    shares: _Shares,
    at: np.ndarray,
    effects: np.ndarray,
    of_sampled: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray:
    """Transmitted effects [J, L] with h / sqrt(2) of the haplotypes, from those of all individuals [I, L].

    The segregation s of an individual is the mean of the parts of its chromosomes, s_m and s_p, whose variances are
    2 - c - tau_m^2 and 2 - c - tau_p^2; half their difference is drawn given s, once for each individual.
    """
    pedigree, maternal, paternal = cohort.pedigree, shares.maternal[at], shares.paternal[at]
    between = _pair_covariances(pedigree, cohort.pairs, maternal, paternal)
    chromosomes: dict[int, dict[str, np.ndarray]] = {}
    coins = random.random((1 + max(haplotype.pair for haplotype in cohort.haplotypes), len(at))) < 0.5
    for haplotype in cohort.haplotypes:
        individual = int(cohort.sampled[haplotype.sampled])
        if individual not in chromosomes:
            chromosomes[individual] = _draw_chromosomes(
                pedigree, individual, maternal, paternal, between, effects, random.normal(size=len(at))
            )
        pair = chromosomes[individual]
        if haplotype.origin == "unknown":
            is_maternal = coins[haplotype.pair] == haplotype.is_first
            value = np.where(is_maternal, pair["maternal"], pair["paternal"])
        else:
            value = pair[haplotype.origin]
        of_sampled[haplotype.sampled] = value / np.sqrt(2)
    return of_sampled


def _draw_chromosomes(
    pedigree: Pedigree,
    individual: int,
    maternal: np.ndarray,
    paternal: np.ndarray,
    between: Mapping[tuple[int, int], np.ndarray],
    effects: np.ndarray,
    normal: np.ndarray,
) -> dict[str, np.ndarray]:
    """Both haplotypes' effects [L] of an individual, given everyone's."""
    mother, father = int(pedigree.mother[individual]), int(pedigree.father[individual])
    tau_maternal = maternal if mother >= 0 else np.zeros_like(maternal)
    tau_paternal = paternal if father >= 0 else np.zeros_like(paternal)
    has_both = mother >= 0 and father >= 0
    c = tau_maternal * tau_paternal * _covariance_of(between, mother, father) if has_both else np.zeros_like(maternal)
    from_mother = tau_maternal * effects[mother] if mother >= 0 else np.zeros_like(maternal)
    from_father = tau_paternal * effects[father] if father >= 0 else np.zeros_like(paternal)
    segregation = effects[individual] - (from_mother + from_father) / 2
    of_maternal, of_paternal = 2 - c - tau_maternal**2, 2 - c - tau_paternal**2
    variance = (of_maternal + of_paternal) / 4
    slope = np.divide((of_maternal - of_paternal) / 4, variance, out=np.zeros_like(variance), where=variance > 0)
    rest = np.sqrt(np.maximum(variance * (1 - slope**2), 0.0))
    half_difference = slope * segregation + rest * normal
    return {
        "maternal": from_mother + segregation + half_difference,
        "paternal": from_father + segregation - half_difference,
    }


def _add_covariates(logit: np.ndarray, cohort: _Cohort, hypothesis: np.ndarray, random: np.random.Generator) -> None:
    """Add x' effects to logit [S, L] in place: shared covariates everywhere, a hypothesis's own at its loci."""
    if len(cohort.design.scale):
        logit += _effects(cohort.design, logit.shape[1], random)
    for number, design in enumerate(cohort.own_designs):
        if len(design.scale):
            at = np.flatnonzero(hypothesis == number)
            logit[:, at] += _effects(design, len(at), random)


def _effects(design: _Design, n_loci: int, random: np.random.Generator) -> np.ndarray:
    """x' effects of every sample, float64 [S, L]."""
    return design.matrix @ random.normal(0, design.scale, (len(design.scale), n_loci))


def _draw_coverage(settings: SimulationSettings, shape: tuple[int, ...], streams: _Streams) -> np.ndarray:
    """Reads, int32 [S, L]; 0 where missing."""
    mean, size = settings.coverage_mean, settings.coverage_size
    random = streams("coverage")
    total = (
        random.poisson(mean, shape) if np.isinf(size) else random.negative_binomial(size, size / (size + mean), shape)
    )
    if settings.missing_loci:
        total[streams("missing").random(shape, dtype=np.float32) < settings.missing_loci] = 0
    return total.astype(np.int32)


def fitted_settings(
    hypotheses: Sequence[Hypothesis],
    weight: np.ndarray,
    learned: LearnedPriors,
    share_priors: Mapping[str, NormalPrior],
    effects: Sequence[Covariate],
    covariates: Sequence[str],
    seed: int,
) -> SimulationSettings:
    """A fitted model as a simulation, of one contig of one locus.

    weight: of the hypotheses, [H], of any sum. effects: the columns whose SDs were learned; covariates: the columns of
    the sheet that every hypothesis has.
    """
    baseline = zip(learned.baseline_weights, learned.baseline_means, learned.baseline_sds, strict=True)
    return SimulationSettings(
        seed=seed,
        hypotheses=tuple(hypotheses),
        weights=tuple((weight / weight.sum()).tolist()),
        contigs=(Contig("drawn", 1),),
        share_priors=share_priors,
        covariates=tuple(covariates),
        covariate_scale={effect.name: sd for effect, sd in zip(effects, learned.effect_sds.tolist(), strict=True)},
        baseline=tuple(BaselineComponent(*map(float, component)) for component in baseline),
        log_spread_location=learned.spread_location,
        log_spread_scale=learned.spread_scale,
    )


def draw(asked: Options, config: Config, pedigree: Pedigree, sheet: SampleSheet) -> WriteLoci:
    settings = _make_settings(asked, config, len(sheet.samples))
    names = [hypothesis.name for hypothesis in settings.hypotheses]

    def write(folder: Path, provenance: Provenance) -> None:
        with TableWriter(folder / "truth.parquet", truth_columns(settings.hypotheses), provenance) as truth:
            blocks = simulate(settings, pedigree, sheet)
            write_counts(
                asked, settings.n_loci, blocks, sheet, folder, lambda block: truth.write(truth_table(block, names))
            )

    return write


def _make_settings(asked: Options, config: Config, n_samples: int) -> SimulationSettings:
    model = config.section("model")
    extra = {} if asked.baseline is None else {"baseline": _parse_baseline(asked.baseline)}
    return SimulationSettings(
        seed=asked.seed,
        hypotheses=parse_hypotheses(model["hypotheses"]),
        weights=parse_weights(asked.weights, tuple(model["hypotheses"]), config.null_hypotheses),
        contigs=parse_contigs(asked.contigs, asked.n_loci),
        share_priors=share_priors(model["priors"]),
        covariates=tuple(model["covariates"]),
        covariate_scale=asked.covariate_scale,
        log_spread_location=asked.spread_location,
        log_spread_scale=asked.spread_scale,
        coverage_mean=asked.coverage,
        coverage_size=asked.coverage_size,
        missing_loci=asked.missing_loci,
        mean_gap_bp=asked.mean_gap,
        cluster_bp=asked.clustered,
        block_loci=max(256, min(65_536, BLOCK_VALUES // n_samples)),
        **extra,
    )


def _parse_baseline(text: str) -> tuple[BaselineComponent, ...]:
    def one(entry: str) -> BaselineComponent:
        values = [parse_number("--baseline", value, "weight:mean:sd, three numbers") for value in entry.split(":")]
        if len(values) != 3 or not values[0] > 0 or not values[2] >= 0:
            raise UserError(f"--baseline '{entry}': expected weight:mean:sd with a weight > 0 and an SD >= 0")
        return BaselineComponent(*values)

    return tuple(one(entry) for entry in parse_list("--baseline", text))
