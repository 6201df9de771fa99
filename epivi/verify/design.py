"""What a cohort can show before anything is sequenced: from pedigree, samples, coverage and priors alone.

For every ordered pair of hypotheses, on the Gaussian scale (epivi.families.transmission.gaussian_cohort): the least
Kullback-Leibler divergence in closed form, and the distribution of the log Bayes factor of a locus and of a region,
with the marginal likelihoods over the priors. Which hypotheses nothing can separate, and what to sequence next.

Related: transmissibility in David and Ricard (2019), the reset coefficient in Varona et al. (2015), power of pedigrees
in forrel (Vigeland), and Bayes factor design analysis (Schoenbrodt and Wagenmakers 2018).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, logsumexp, ndtri

from epivi.cohort.kinship import sampled_families
from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet
from epivi.config.load import Config
from epivi.families.family import NormalPrior
from epivi.families.transmission.gaussian_cohort import (
    BASELINE_SD,
    GaussianCohort,
    block_covariances,
    gaussian_cohort,
    read_noise,
    weights_at,
)
from epivi.families.transmission.hypotheses import (
    SPREAD,
    TRANSMISSIBILITY,
    Hypothesis,
    parse_hypotheses,
    share_priors,
)
from epivi.families.transmission.lattice import generating_vector
from epivi.families.transmission.separation import Point, least_divergence, merged_groups, mimicry, typical_theta
from epivi.tables.columns import EVIDENCE_GOAL

Array = NDArray[np.float64]
Rows = list[dict[str, Any]]

ENOUGH_NATS = 5.0  # that decide between two hypotheses: a Bayes factor of 150
STRONG = np.log(10.0)  # log Bayes factor from which evidence is strong
SPREAD_SCALE = 0.3  # SD of the log of the spread between loci, as `epivi simulate` draws it
NODES = 64  # of the integral over a hypothesis's parameters
DRAWS = 1500  # loci of each hypothesis, over all levels of methylation
FEWEST_DRAWS = 100  # of a level
MOST_ENTRIES = 5_000  # of all blocks, with which there are so many draws
CHUNK_VALUES = 2**23  # of whitened loci at once: 64 MB
REGIONS = 2000  # regions put together from them
LOCUS, REGION = "locus", "region"
LEVEL_RANGE = (0.01, 0.99)  # of measured methylation, beyond which reads show next to nothing
MOST_OPTIONS = 3  # named in a sentence
OUTCOMES = ("expected_log_bf", "p_right", "p_misleading", "p_weak")


class Assumed(NamedTuple):
    """What is asked about: a cohort, and what is assumed of its loci; S samples, V levels of methylation.

    typical: priors of shares and of tau whose medians are the true values; priors: those of the analysis.
    """

    sheet: SampleSheet
    pedigree: Pedigree
    covariates: tuple[str, ...]
    hypotheses: tuple[Hypothesis, ...]
    priors: Mapping[str, NormalPrior]
    typical: Mapping[str, NormalPrior]
    reads: Array  # [S], mean of a sample at a locus
    levels: tuple[float, ...]  # [V]
    spread: float  # SD between individuals, logit
    region_loci: int

    @property
    def log_spread(self) -> float:
        return float(np.log(self.spread))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(hypothesis.name for hypothesis in self.hypotheses)

    @property
    def noise(self) -> Array:
        """Variances of the reads around the logit, [V, S]."""
        errors = (self.sheet.false_methylated, self.sheet.false_unmethylated)
        return np.stack([read_noise(level, self.reads, *errors) for level in self.levels])

    def cohort(self, baseline_sd: float = BASELINE_SD) -> GaussianCohort:
        return gaussian_cohort(self.sheet, self.pedigree, self.covariates, self.hypotheses, self.noise, baseline_sd)


def assumed(config: Config, sheet: SampleSheet, pedigree: Pedigree, reads: Array, levels: Sequence[float]) -> Assumed:
    """From a configuration; reads: [S]."""
    model, settings = config.section("model"), config.section("design")
    priors = share_priors(model["priors"])
    typical = dict(priors)
    for name, key in (("logit_heritable_share", "heritable_share"), (TRANSMISSIBILITY, "tau")):
        if settings[key] is not None:
            typical[name] = priors[name]._replace(mean=float(logit(settings[key])))
    return Assumed(
        sheet,
        pedigree,
        tuple(model["covariates"]),
        parse_hypotheses(model["hypotheses"]),
        priors,
        typical,
        reads,
        tuple(levels),
        settings["spread"],
        settings["region_loci"],
    )


def everyone(pedigree: Pedigree, replicates: int = 1) -> SampleSheet:
    """A sheet with so many samples of every individual of a pedigree, without files."""
    individuals = tuple(name for name in pedigree.individuals for _ in range(replicates))
    size = len(individuals)
    return SampleSheet(
        path="every individual of the pedigree",
        samples=tuple(f"{name}_{k % replicates + 1}" for k, name in enumerate(individuals)),
        individuals=individuals,
        paths=tuple(map(str, range(size))),
        formats=("auto",) * size,
        haplotypes=("all",) * size,
        false_methylated=np.zeros(size),
        false_unmethylated=np.zeros(size),
        columns={},
        lines=tuple(range(1, size + 1)),
    )


def measured_levels(meth: NDArray[np.uint16], total: NDArray[np.uint16]) -> tuple[float, ...]:
    """Levels of methylation that a third of the loci each are around, from counts [L, S] of loci."""
    covered = total.sum(1) > 0
    share = (meth.sum(1)[covered] + 0.5) / (total.sum(1)[covered] + 1.0)
    low, high = LEVEL_RANGE
    return tuple(float(np.clip(level, low, high)) for level in np.quantile(share, (1 / 6, 1 / 2, 5 / 6)))


class Separation(NamedTuple):
    """Least divergences of each hypothesis (rows) from each other one (columns), [H, H], nats a locus."""

    of_cohort: Array
    of_family: Array  # with a known baseline, by the number of families; nan without a family
    is_mimicked: NDArray[np.bool_]  # whether the column mimics the row
    groups: tuple[tuple[int, ...], ...]  # hypotheses that nothing can separate


def separation(asked: Assumed) -> Separation:
    """The closed form."""
    families = sampled_families(asked.pedigree, asked.sheet.individuals)
    known = least_matrix(asked, asked.cohort(0.0)) / families if families else np.full((len(asked.names),) * 2, np.nan)
    mimics = mimicry(
        asked.sheet, asked.pedigree, asked.covariates, asked.hypotheses, asked.noise, asked.typical, asked.log_spread
    )
    return Separation(least_matrix(asked, asked.cohort()), known, mimics, merged_groups(mimics))


def least_matrix(asked: Assumed, cohort: GaussianCohort) -> Array:
    """Least divergences [H, H] at the typical parameters, averaged over the levels of methylation."""
    size, levels = len(asked.names), cohort.levels
    least = np.zeros((size, size))
    for other in range(size):
        rows = [h for h in range(size) if h != other]
        truths = [
            Point(h, typical_theta(asked.hypotheses[h], asked.typical, asked.log_spread), level)
            for h in rows
            for level in range(levels)
        ]
        least[rows, other] = least_divergence(cohort, truths, other).reshape(len(rows), levels).mean(1)
    return least


# --- Bayes factors ---------------------------------------------------------------------------------------------------


def drawn_marginals(asked: Assumed, seed: int) -> Array:
    """Log marginal likelihoods [H, M, H] of about DRAWS loci of each hypothesis at its typical parameters.

    # METHOD: on the Gaussian scale. The priors of shares and of tau are those of the analysis, that of the log of the
    # spread is normal around the true one with SPREAD_SCALE; each integral is a mean over a lattice of NODES points of
    # the prior.
    """
    cohort, size = asked.cohort(), len(asked.names)
    draws = _draws_of_a_level(cohort)
    nodes = [prior_nodes(hypothesis, asked.priors, asked.log_spread) for hypothesis in asked.hypotheses]
    found = []
    for level in range(cohort.levels):
        random = np.random.default_rng([seed, 8, level])
        drawn = [
            _draw(cohort, Point(h, typical_theta(one, asked.typical, asked.log_spread), level), draws, random)
            for h, one in enumerate(asked.hypotheses)
        ]
        together = [np.concatenate(parts, axis=-1) for parts in zip(*drawn, strict=True)]
        columns = [log_marginal(cohort, h, nodes[h], level, together) for h in range(size)]
        found.append(np.stack(columns, axis=1).reshape(size, draws, size))
    return np.concatenate(found, axis=1)


def _draws_of_a_level(cohort: GaussianCohort) -> int:
    """Fewer where the samples hang together in large blocks, so that it takes seconds to minutes."""
    entries = sum(float(stack.times.sum()) * stack.design.shape[1] ** 2 for stack in cohort.stacks)
    return max(FEWEST_DRAWS, int(DRAWS / cohort.levels * min(1.0, MOST_ENTRIES / entries)))


def prior_nodes(
    hypothesis: Hypothesis, priors: Mapping[str, NormalPrior], log_spread: float, nodes: int = NODES
) -> Array:
    """Points of the prior of a hypothesis's parameters, [K, D], equally probable."""
    dimensions = len(hypothesis.parameters)
    vector = np.array(generating_vector(dimensions, nodes))
    uniform = (np.outer(np.arange(nodes), vector) / nodes + 0.5 / nodes) % 1.0
    mean = [log_spread if name == SPREAD else priors[name].mean for name in hypothesis.prior_names]
    sd = [SPREAD_SCALE if name == SPREAD else priors[name].sd for name in hypothesis.prior_names]
    return np.array(mean) + np.array(sd) * ndtri(uniform)


def _draw(cohort: GaussianCohort, point: Point, size: int, random: np.random.Generator) -> list[Array]:
    """Loci drawn at a point: of each class of equal blocks, stack by stack, [n, copies, size]."""
    effects = np.sqrt(cohort.effect_variance[point.h])[:, None] * random.normal(
        size=(cohort.effect_variance.shape[1], size)
    )
    weight = weights_at(cohort.hypotheses[point.h], cohort.terms[point.h], point.theta).weight
    drawn = []
    for stack in cohort.stacks:
        (blocks,) = block_covariances(stack, point.h, weight[None], np.array([point.level]))
        for block, design, times in zip(np.linalg.cholesky(blocks), stack.design, stack.times.astype(int), strict=True):
            normal = random.normal(size=(block.shape[0], times * size))
            own = (block @ normal).reshape(block.shape[0], times, size)
            drawn.append(own + (design @ effects)[:, None, :])
    return drawn


def log_marginal(cohort: GaussianCohort, h: int, theta: Array, level: int, loci: Sequence[Array]) -> Array:
    """Log of the mean likelihood over nodes theta [K, D] of hypothesis h, [M], at loci as `_draw` gives them."""
    weight = weights_at(cohort.hypotheses[h], cohort.terms[h], theta).weight
    variance, size = cohort.effect_variance[h], loci[0].shape[-1]
    nodes, columns = len(theta), len(variance)
    square, log_determinant = np.zeros((nodes, size)), np.zeros(nodes)
    f, crossed = np.zeros((nodes, columns, columns)), np.zeros((nodes, columns, size))
    remaining = iter(loci)
    for stack in cohort.stacks:
        of_stack = [next(remaining) for _ in stack.times]
        most = max(1, CHUNK_VALUES // max(y.size for y in of_stack))
        for first in range(0, nodes, most):
            part = slice(first, min(first + most, nodes))
            roots = np.linalg.cholesky(
                block_covariances(stack, h, weight[part], np.full(part.stop - part.start, level))
            )
            inverse = np.linalg.inv(roots)  # [K, C, n, n]
            log_determinant[part] += 2 * (np.log(np.diagonal(roots, axis1=-2, axis2=-1)).sum(-1) @ stack.times)
            for c, (times, y) in enumerate(zip(stack.times, of_stack, strict=True)):
                white = (inverse[:, c] @ y.reshape(len(y), -1)).reshape(len(inverse), len(y), -1, size)
                design = inverse[:, c] @ stack.design[c]
                square[part] += (white**2).sum((1, 2))
                f[part] += times * (design.swapaxes(1, 2) @ design)
                crossed[part] += design.swapaxes(1, 2) @ white.sum(2)
    system = np.eye(columns) + variance[:, None] * f  # I + D U' B^-1 U
    square -= (crossed * np.linalg.solve(system, variance[:, None] * crossed)).sum(1)
    log_determinant += np.linalg.slogdet(system)[1]
    log_likelihood = -0.5 * (square + log_determinant[:, None] + cohort.samples * np.log(2 * np.pi))
    marginal: Array = logsumexp(log_likelihood, axis=0) - np.log(nodes)
    return marginal


def regions_of(marginals: Array, loci: int, regions: int, random: np.random.Generator) -> Array:
    """Sums over regions of so many loci of one hypothesis, drawn with replacement, [H, regions, H]."""
    chosen = random.integers(marginals.shape[1], size=(regions, loci))
    return np.stack([of_truth[chosen].sum(1) for of_truth in marginals])


def outcomes(log_bayes_factor: Array) -> dict[str, float]:
    """What log Bayes factors [M] of a true hypothesis against another amount to."""
    right, misleading = (log_bayes_factor > STRONG).mean(), (log_bayes_factor < -STRONG).mean()
    values = (log_bayes_factor.mean(), right, misleading, 1.0 - right - misleading)
    return dict(zip(OUTCOMES, map(float, values), strict=True))


def best_shares(log_evidence: Array, groups: Sequence[Sequence[int]]) -> Array:
    """Share of loci at which each group of hypotheses has the highest evidence, [H, groups], from [H, M, H]."""
    of_group = np.stack(
        [logsumexp(log_evidence[:, :, list(group)], axis=2) - np.log(len(group)) for group in groups], axis=2
    )
    best = of_group.argmax(2)
    return np.stack([(best == g).mean(1) for g in range(len(groups))], axis=1)


# --- rows of the tables ----------------------------------------------------------------------------------------------


class Evaluated(NamedTuple):
    """Log evidences of loci and of regions whose hypothesis is known, [H, M, H] each."""

    locus: Array
    region: Array

    @property
    def by_unit(self) -> Mapping[str, Array]:
        return {LOCUS: self.locus, REGION: self.region}


def predicted(asked: Assumed, seed: int) -> Evaluated:
    """On the Gaussian scale."""
    marginals = drawn_marginals(asked, seed)
    return Evaluated(marginals, regions_of(marginals, asked.region_loci, REGIONS, np.random.default_rng([seed, 9])))


def group_name(asked: Assumed, group: Sequence[int]) -> str:
    return "|".join(asked.names[h] for h in group)


def pair_rows(asked: Assumed, found: Separation, expected: Evaluated, realized: Evaluated | None) -> Rows:
    """Rows of the table `design`: every ordered pair of hypotheses."""
    group_of = {h: group for group in found.groups for h in group}
    rows = []
    for h, other in permutations(range(len(asked.names)), 2):
        own, of_family = float(found.of_cohort[h, other]), float(found.of_family[h, other])
        is_mimicked = bool(found.is_mimicked[h, other])
        row: dict[str, Any] = {
            "hypothesis": asked.names[h],
            "alternative": asked.names[other],
            "merged": group_name(asked, group_of[h]) if other in group_of[h] else "",
            "is_mimicked": is_mimicked,
            "least_nats": own,
            "least_nats_family": of_family,
            "loci": needed(own, is_mimicked),
            "families_times_loci": needed(of_family, is_mimicked),
        }
        for prefix, evaluated in (("", expected), ("realized_", realized)):
            for unit in (LOCUS, REGION):
                if evaluated is None:
                    values = dict.fromkeys(OUTCOMES, np.nan)
                else:
                    log_evidence = evaluated.by_unit[unit][h]
                    values = outcomes(log_evidence[:, h] - log_evidence[:, other])
                row |= {f"{prefix}{unit}_{name}": value for name, value in values.items()}
        rows.append(row)
    return rows


def needed(nats: float, is_mimicked: bool) -> float:
    """How often so many nats must be had for ENOUGH_NATS; inf for never."""
    return float("inf") if is_mimicked or not nats > 0 else ENOUGH_NATS / nats


def confusion_rows(asked: Assumed, found: Separation, expected: Evaluated, realized: Evaluated | None) -> Rows:
    """Rows of the table `design_confusion`: which group of hypotheses has the highest evidence, by the true one."""
    rows = []
    for unit in (LOCUS, REGION):
        shares = best_shares(expected.by_unit[unit], found.groups)
        seen = None if realized is None else best_shares(realized.by_unit[unit], found.groups)
        n = 0 if realized is None else realized.by_unit[unit].shape[1]
        rows += [
            {
                "unit": unit,
                "hypothesis": name,
                "best": group_name(asked, group),
                "share": float(shares[h, g]),
                "realized_share": float("nan") if seen is None else float(seen[h, g]),
                "n": n,
            }
            for h, name in enumerate(asked.names)
            for g, group in enumerate(found.groups)
        ]
    return rows


# --- in words --------------------------------------------------------------------------------------------------------


def sentences(asked: Assumed, found: Separation, rows: Rows, further: Rows) -> list[str]:
    """What the tables `design` and `design_next` say, for the terminal and the summary."""
    return [
        _assumptions(asked),
        *_never(asked, found),
        *_hardest(asked, found, rows),
        *_strong(asked, rows),
        *_below_promise(asked, found),
        *_next(asked, found, further),
    ]


def _assumptions(asked: Assumed) -> str:
    families = sampled_families(asked.pedigree, asked.sheet.individuals)
    reads = sorted({f"{value:.3g}" for value in (asked.reads.min(), asked.reads.max())}, key=float)
    used = dict.fromkeys(name for one in asked.hypotheses for name in one.prior_names if name != SPREAD)
    truth = ", ".join(f"{_words(name)} {expit(asked.typical[name].mean):.2g}" for name in used)
    return (
        f"design: {len(asked.sheet.samples)} samples, {families} families with sampled relatives; assumed are "
        f"{' to '.join(reads)} reads, methylation {', '.join(f'{level:.3g}' for level in asked.levels)}, SD between "
        f"individuals {asked.spread:.3g}" + (f", {truth}" if truth else "")
    )


def _words(prior: str) -> str:
    return "tau" if prior == TRANSMISSIBILITY else prior.removeprefix("logit_").replace("_", " ")


def _never(asked: Assumed, found: Separation) -> list[str]:
    merged = [group for group in found.groups if len(group) > 1]
    return [
        f"these samples can never tell {_listed([asked.names[h] for h in group])}, whatever the loci and reads: "
        f"reported as {group_name(asked, group)}"
        for group in merged
    ]


def _listed(names: Sequence[str]) -> str:
    return " from ".join([", ".join(names[:-1]), names[-1]])


def separations(found: Separation) -> list[tuple[float, int, int]]:
    """Nats a locus that separate two hypotheses of different groups, the larger of both directions, least first."""
    group = {h: g for g, members in enumerate(found.groups) for h in members}
    least = np.maximum(found.of_cohort, found.of_cohort.T)
    pairs = [(float(least[a, b]), a, b) for a, b in combinations(range(len(least)), 2) if group[a] != group[b]]
    return sorted(pairs)


def _hardest(asked: Assumed, found: Separation, rows: Rows) -> list[str]:
    ranked = separations(found)
    if not ranked:
        return []
    nats, one, other = ranked[0]
    truth, against = (one, other) if found.of_cohort[one, other] >= found.of_cohort[other, one] else (other, one)
    (row,) = [r for r in rows if (r["hypothesis"], r["alternative"]) == (asked.names[truth], asked.names[against])]
    pair = f"hardest to separate: {asked.names[truth]} from {asked.names[against]}"
    if not nats:
        return [f"{pair}, which are the same at these values and differ at others only"]
    families = row["families_times_loci"] / asked.region_loci
    return [
        f"{pair}, by {nats:.2g} nats a locus: {ENOUGH_NATS:g} nats take {row['loci']:,.0f} independent loci of this "
        f"cohort, or {families:,.0f} families in a region of {asked.region_loci} loci"
    ]


def _strong(asked: Assumed, rows: Rows) -> list[str]:
    base = asked.names[0]
    shown = [row for row in rows if row["alternative"] == base]
    if not shown:
        return []
    shares = ", ".join(f"{row['hypothesis']} {row[f'{REGION}_p_right']:.0%}" for row in shown)
    return [f"strong evidence (Bayes factor above 10) against {base} in a region of {asked.region_loci} loci: {shares}"]


def _below_promise(asked: Assumed, found: Separation) -> list[str]:
    weak = [
        f"{asked.names[one]} and {asked.names[other]}"
        for nats, one, other in separations(found)
        if nats < EVIDENCE_GOAL
    ]
    if not weak:
        return []
    return [
        f"separated by less than the {EVIDENCE_GOAL:g} nats a locus that evidences are right to, so that more loci do "
        f"not help, but more families do: {', '.join(weak)}"
    ]


def _next(asked: Assumed, found: Separation, further: Rows) -> list[str]:
    """Of the pair that this cohort separates least: the options that add most."""
    merged = [(group[0], group[1]) for group in found.groups if len(group) > 1]
    hardest = [*merged, *((one, other) for _, one, other in separations(found)[:1])]
    sentences = []
    for one, other in hardest[:2]:
        pair = (asked.names[one], asked.names[other])
        best = [
            row for row in further if (row["hypothesis"], row["alternative"]) == pair and row["gain_per_sample"] > 0
        ]
        named = "; ".join(f"{row['option']}, {row['gain_per_sample']:.2g}" for row in best[:MOST_OPTIONS])
        what = f"nats a locus and sample that would separate {' and '.join(pair)} better"
        sentences.append(
            f"{what}: {named}" if named else f"nothing that was tried separates {' and '.join(pair)} better"
        )
    return sentences
