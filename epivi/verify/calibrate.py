"""Simulation-based calibration: what the tables claim of loci drawn from a fitted model must happen as often.

Loci are drawn from the priors that the fit learned, read at the coverage of the cohort's own loci, evaluated like data
and compared with their truth. Under the model all of this holds exactly, for any prior and any number of reads:

    F(x | D) is uniform, where x is the truth and F its posterior distribution function (Talts et al. 2018)
    of the loci with a probability p of a hypothesis, a share p come from it
    E[p(D | h) / p(D | null)] = 1 over data of the null, and E[p(D | null) / p(D | h)] = 1 over data of h

Under the other scenarios the data are drawn otherwise than the analysis believes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtr, ndtri
from scipy.stats import beta, binom

from epivi.base.errors import UserError
from epivi.cohort.kinship import covariance
from epivi.cohort.pedigree import Pedigree, families
from epivi.cohort.samples import SampleSheet
from epivi.discovery.average import averaged_cdf, unconstrained
from epivi.discovery.probabilities import local_fdr, mixture_probabilities, qvalue_table, rates
from epivi.discovery.weights import Weights, weight_posterior, weight_prior
from epivi.families.transmission.columns import parameters_of, share_parameters
from epivi.families.transmission.density import LearnedPriors
from epivi.families.transmission.hypotheses import Hypothesis, NormalPrior, shared_components
from epivi.families.transmission.outer_integral import HypothesisEvidence
from epivi.families.transmission.simulate import SimulationSettings, draw_methylated, fitted_settings, simulate
from epivi.field.layout import Cohort
from epivi.simulate.positions import Contig

Array = NDArray[np.float64]
Rows = list[dict[str, Any]]
# Counts [L, S] twice and the loci's numbers [L] -> evidences of every hypothesis.
Evaluate = Callable[[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.int64]], list[HypothesisEvidence]]

LEVELS = (0.5, 0.9, 0.95)  # of intervals
NOMINAL_FDR = (0.01, 0.05, 0.1, 0.2, 0.3)
LFDR_EDGES = np.array([0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
DEPTH_STRATA = 3  # of equally many loci
BASELINE_EDGES = np.array([0.0, 0.35, 0.65, 1.0])
POINTS = 100  # of an ECDF
BAND_LEVEL = 0.95
BAND_DRAWS = 1000
# In place of a hypothesis: each locus under the hypothesis that it was drawn from; averaged over hypotheses.
TRUE, AVERAGED = "(true)", "(averaged)"


class Scenario(NamedTuple):
    """How data are drawn; everything that is not named follows the model."""

    meaning: str
    is_null: bool = False  # no locus transmits
    is_relabelled: bool = False  # individuals stand in another family's place
    null_overdispersion: float = 0.0  # correlation of the reads of a sample at loci that do not transmit
    added_false_methylated: float = 0.0  # beyond the sample sheet's, in every second family


SCENARIOS: Mapping[str, Scenario] = {
    "model": Scenario("as the model says"),
    "null": Scenario("no locus transmits", is_null=True),
    # METHOD: 0.1 doubles to quadruples the variance of 20 to 30 reads, the upper end of what bisulfite libraries show.
    "overdispersed": Scenario("null loci with beta-binomial reads", null_overdispersion=0.1),
    # METHOD: families are often one batch in the laboratory, so that a conversion rate that the sheet does not know is
    # common to relatives: the case in which it can be taken for inheritance.
    "conversion": Scenario("conversion fails unnoticed in every second family", added_false_methylated=0.03),
    "pedigree": Scenario("nobody is in the family of the pedigree", is_relabelled=True),
}


class CalibrationPlan(NamedTuple):
    """What the scenarios share: H hypotheses with their weights, and the model as the fit left it."""

    hypotheses: tuple[Hypothesis, ...]
    is_null: NDArray[np.bool_]  # [H]
    weight: Array  # [H]
    pedigree: Pedigree
    sheet: SampleSheet
    settings: SimulationSettings


class Drawn(NamedTuple):
    """L loci of S samples with their truth, as far as the analysis has words for it."""

    meth: NDArray[np.uint16]  # [L, S]
    total: NDArray[np.uint16]  # [L, S]
    hypothesis: NDArray[np.int64]  # [L]
    truth: dict[str, Array]  # parameter -> [L]


class Judged(NamedTuple):
    """What the analysis says of the loci of a scenario; quantiles by parameter, [L, H] each."""

    drawn: Drawn
    log_evidence: Array  # [L, H]
    low: dict[str, Array]  # 5 %
    middle: dict[str, Array]
    high: dict[str, Array]  # 95 %


# --- drawing ---------------------------------------------------------------------------------------------------------


def build_plan(
    hypotheses: Sequence[Hypothesis],
    null_hypotheses: Sequence[str],
    weight: Array,
    learned: LearnedPriors,
    share_priors: Mapping[str, NormalPrior],
    cohort: Cohort,
    covariates: Sequence[str],
    pedigree: Pedigree,
    sheet: SampleSheet,
    seed: int,
) -> CalibrationPlan:
    """The fitted model as a simulation. Raises UserError where no hypothesis is null, or none with a weight."""
    is_null = np.isin([hypothesis.name for hypothesis in hypotheses], null_hypotheses)
    if not weight[is_null].sum() > 0:
        raise UserError(
            "no hypothesis without transmission has a weight: expected one to calibrate discoveries against"
        )
    weight = weight / weight.sum()
    settings = fitted_settings(hypotheses, weight, learned, share_priors, cohort.covariates, covariates, seed)
    return CalibrationPlan(tuple(hypotheses), is_null, weight, pedigree, sheet, settings)


def draw(plan: CalibrationPlan, scenario: Scenario, total: NDArray[np.uint16]) -> Drawn:
    """Loci with the reads `total` [L, S]. The seed is the plan's: scenarios differ in what they change, not by chance.

    Where individuals are relabelled nothing is transmitted along the pedigree that the analysis has, whatever the loci
    were drawn from: their hypothesis is the first null one, and only baseline and spread have a truth.
    """
    weight = np.where(plan.is_null, plan.weight, 0.0) if scenario.is_null else plan.weight
    settings = replace(
        plan.settings,
        weights=tuple((weight / weight.sum()).tolist()),
        contigs=(Contig("calibration", len(total)),),
        block_loci=len(total),
    )
    pedigree = plan.pedigree
    if scenario.is_relabelled:
        pedigree = relabelled(pedigree, tuple(dict.fromkeys(plan.sheet.individuals)), settings.seed)
    (block,) = simulate(settings, pedigree, plan.sheet)
    hypothesis = block.truth["hypothesis"].astype(np.int64)
    overdispersion = np.where(plan.is_null[hypothesis], scenario.null_overdispersion, 0.0)
    meth = draw_methylated(
        np.random.default_rng([settings.seed, 1]),
        total.astype(np.int64),
        block.logit,
        plan.sheet.false_methylated + _added_error(plan, scenario),
        plan.sheet.false_unmethylated,
        np.broadcast_to(overdispersion[:, None], total.shape) if scenario.null_overdispersion else None,
    ).astype(np.uint16)
    truth = true_parameters(plan.hypotheses, hypothesis, block.truth)
    if scenario.is_relabelled:
        hypothesis = np.full(len(total), int(np.flatnonzero(plan.is_null)[0]))
        truth = {name: truth[name] for name in ("baseline", "spread")}
    return Drawn(meth, total, hypothesis, truth)


def true_parameters(
    hypotheses: Sequence[Hypothesis], hypothesis: NDArray[np.int64], drawn: Mapping[str, NDArray]
) -> dict[str, Array]:
    """The parameters of the posterior, [L], from what the simulation drew."""
    tau, share = drawn["transmissibility"], drawn["heritable_share"]
    maternal, paternal = np.zeros(len(tau)), np.zeros(len(tau))
    for h, declared in enumerate(hypotheses):
        at = hypothesis == h
        if declared.transmits:
            for path, values in ((declared.maternal, maternal), (declared.paternal, paternal)):
                values[at] = tau[at] if path == "tau" else float(path)
    return {
        "baseline": drawn["baseline"],
        "spread": drawn["spread"],
        "heritable_share": share,
        "transmissibility": np.maximum(maternal, paternal),
        "slope": share * (maternal + paternal) / 2,
        **{name: drawn[name] for name in share_parameters(shared_components(hypotheses))},
    }


def _added_error(plan: CalibrationPlan, scenario: Scenario) -> Array:
    """Error rate [S] that the sample sheet does not know of: in every second family, by the pedigree's order."""
    family = {
        plan.pedigree.individuals[member]: number
        for number, members in enumerate(families(plan.pedigree))
        for member in members
    }
    is_second = np.array([family[name] % 2 == 0 for name in plan.sheet.individuals])
    return scenario.added_false_methylated * is_second


def relabelled(pedigree: Pedigree, sampled: Sequence[str], seed: int) -> Pedigree:
    """The pedigree with the names of `sampled` exchanged, so that as few pairs as can be remain related.

    Names are exchanged at random, then two at a time wherever a pair of relatives is still one. Raises UserError where
    all are of one family.
    """
    if len(families(pedigree)) < 2:
        raise UserError("scenario pedigree: the pedigree is one family; expected two or more to exchange individuals")
    position = np.array([pedigree.individuals.index(name) for name in sampled])
    is_related = covariance(pedigree, 1.0, 1.0)[np.ix_(position, position)] != 0
    np.fill_diagonal(is_related, False)
    random = np.random.default_rng([seed, 2])
    order = random.permutation(len(sampled))

    def still_related(candidate: NDArray[np.int64]) -> NDArray[np.int64]:
        return (is_related & is_related[np.ix_(candidate, candidate)]).sum(1)

    for _ in range(20 * len(sampled)):
        count = still_related(order)
        if not count.any():
            break
        trial = order.copy()
        one, other = random.choice(np.flatnonzero(count)), random.integers(len(sampled))
        trial[[one, other]] = trial[[other, one]]
        if still_related(trial).sum() <= count.sum():
            order = trial
    names = list(pedigree.individuals)
    for place, name in zip(position, np.array(sampled)[order], strict=True):
        names[place] = str(name)
    return replace(pedigree, individuals=tuple(names))


# --- judging ---------------------------------------------------------------------------------------------------------


def judge(plan: CalibrationPlan, drawn: Drawn, evaluate: Evaluate, chunk_loci: int) -> Iterator[int | Judged]:
    """Evaluate the loci chunk by chunk: yields the number of loci done after each, and last what was found."""
    shape = (len(drawn.meth), len(plan.hypotheses))
    parameters = list(parameters_of(shared_components(plan.hypotheses)))
    judged = Judged(
        drawn, np.empty(shape), *({parameter: np.empty(shape) for parameter in parameters} for _ in range(3))
    )
    for start in range(0, shape[0], chunk_loci):
        part = slice(start, min(start + chunk_loci, shape[0]))
        for h, found in enumerate(evaluate(drawn.meth[part], drawn.total[part], np.arange(part.start, part.stop))):
            judged.log_evidence[part, h] = found.log_evidence
            for k, parameter in enumerate(parameters):
                judged.low[parameter][part, h] = found.q05[:, k]
                judged.middle[parameter][part, h] = found.q50[:, k]
                judged.high[parameter][part, h] = found.q95[:, k]
        yield part.stop - part.start
    yield judged


def is_free(hypothesis: Hypothesis, parameter: str) -> bool:
    """Whether a parameter has a posterior under a hypothesis, rather than one value."""
    free = hypothesis.free_shares
    if parameter.endswith("_share"):
        return parameter.removesuffix("_share") in free
    if parameter == "transmissibility":
        return hypothesis.has_free_transmissibility
    if parameter == "slope":
        passes = (hypothesis.maternal, hypothesis.paternal) != (0, 0)
        return hypothesis.has_free_transmissibility or ("heritable" in free and passes)
    return True


def conditional_cdf(parameter: str, low: Array, middle: Array, high: Array, value: Array) -> Array:
    """Posterior distribution function at `value` under one hypothesis, from its 5, 50 and 95 % quantiles; [L] each.

    # METHOD: on the unconstrained scale a posterior is taken as a shifted log-normal, the g distribution (Hoaglin
    # 1985): z -> middle + scale (exp(g z) - 1) / g. Three quantiles determine it, it is Gaussian where they are
    # symmetric, and its inverse is closed. 90 % intervals do not depend on the choice: they end on the quantiles.
    """
    low, middle, high, x = (unconstrained(parameter, array) for array in (low, middle, high, value))
    z95 = float(ndtri(0.95))
    above, below = np.maximum(high - middle, 1e-12), np.maximum(middle - low, 1e-12)
    g = np.log(above / below) / z95
    g = np.where(np.abs(g) < 1e-6, 1e-6, g)
    reached = 1.0 + (x - middle) * np.expm1(g * z95) / above
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.log(reached) / g
    # The side of a skewed distribution that ends: nothing is below, or above, its end.
    return np.asarray(ndtr(np.where(reached > 0, z, np.where(g > 0, -np.inf, np.inf))))


def transforms(
    plan: CalibrationPlan, judged: Judged, random: np.random.Generator
) -> dict[tuple[str, str], tuple[NDArray[np.int64], Array]]:
    """Probability integral transforms of the truth: (hypothesis, parameter) -> loci and values, [n] each.

    Keys: every hypothesis at the loci drawn from it; TRUE, these together; AVERAGED over the hypotheses, at all loci.
    Where the truth is an atom of the average, one that fixes the parameter, the transform is drawn between the two
    values of the distribution function, which keeps it uniform.
    """
    found: dict[tuple[str, str], tuple[NDArray[np.int64], Array]] = {}
    probability = mixture_probabilities(judged.log_evidence, plan.weight[None])
    for parameter, truth in judged.drawn.truth.items():
        low, middle, high = judged.low[parameter], judged.middle[parameter], judged.high[parameter]
        for h, hypothesis in enumerate(plan.hypotheses):
            at = np.flatnonzero(judged.drawn.hypothesis == h)
            if len(at) and is_free(hypothesis, parameter):
                values = conditional_cdf(parameter, low[at, h], middle[at, h], high[at, h], truth[at])
                found[hypothesis.name, parameter] = at, values
        pieces = [found[h.name, parameter] for h in plan.hypotheses if (h.name, parameter) in found]
        if pieces:
            loci, values = (np.concatenate(column) for column in zip(*pieces, strict=True))
            found[TRUE, parameter] = loci, values
        before, after = averaged_cdf(parameter, probability, low, middle, high, truth)
        found[AVERAGED, parameter] = (
            np.arange(len(truth)),
            before + (after - before) * random.random(len(truth)),
        )
    return found


# --- tables ----------------------------------------------------------------------------------------------------------


def tables(plan: CalibrationPlan, judged: Judged, scenario: str, comparison: Mapping[str, Any]) -> dict[str, Rows]:
    """Rows of the tables calibration_<name> of CALIBRATE_TABLES for one scenario, by <name>.

    comparison: the section `compare` of the configuration, for the weights that are estimated anew from the drawn loci.
    """
    seed, evidence, names = plan.settings.seed, judged.log_evidence, [h.name for h in plan.hypotheses]
    found = transforms(plan, judged, np.random.default_rng([seed, 3]))
    is_null = plan.is_null[judged.drawn.hypothesis]
    estimated = weight_posterior(
        lambda: iter([evidence]),
        len(evidence),
        weight_prior(comparison, plan.is_null),
        comparison["blocks"],
        comparison["draws"],
        seed,
    )
    rows: dict[str, Rows] = {
        "sbc": [
            {"hypothesis": hypothesis, "parameter": parameter} | row
            for (hypothesis, parameter), (_, values) in found.items()
            for row in ecdf_rows(values, seed)
        ],
        "coverage": coverage_rows(found, strata(judged.drawn)),
        "lfdr": [],
        "fdr": [],
        "bayes_factors": bayes_factor_rows(evidence, judged.drawn.hypothesis, names, plan.is_null),
        "weights": weight_rows(plan, judged.drawn, estimated),
    }
    for kind, weights in (("given", plan.weight[None]), ("estimated", estimated.tilted)):
        lfdr = local_fdr(mixture_probabilities(evidence, weights), plan.is_null)
        table = qvalue_table(lambda: iter([evidence]), weights, plan.is_null)
        rows["lfdr"] += [{"weights": kind} | row for row in lfdr_rows(lfdr, is_null)]
        rows["fdr"] += [{"weights": kind} | row for row in fdr_rows(rates(lfdr, table).qvalue, lfdr, is_null)]
    return {name: [{"scenario": scenario} | row for row in found] for name, found in rows.items()}


class Stratum(NamedTuple):
    """Loci of which a property, known without the truth, lies between two values."""

    kind: str  # overall, depth or baseline
    low: float
    high: float
    holds: NDArray[np.bool_]  # [L]


def strata(drawn: Drawn) -> list[Stratum]:
    """All loci, and the loci by mean reads of the covered samples, and by methylated share of the reads.

    # METHOD: strata are of what was observed. Intervals hold for loci chosen by their data; for loci chosen by their
    # truth they need not, and do not, because a truth far out is estimated towards the middle.
    """
    reads = drawn.total.sum(1, dtype=np.int64)
    depth = reads / np.maximum((drawn.total > 0).sum(1), 1)
    methylated = drawn.meth.sum(1, dtype=np.int64) / np.maximum(reads, 1)
    result = [Stratum("overall", 0.0, 0.0, np.ones(len(reads), dtype=bool))]
    edges = {"depth": np.quantile(depth, np.linspace(0, 1, DEPTH_STRATA + 1)), "baseline": BASELINE_EDGES}
    for (kind, ends), values in zip(edges.items(), (depth, methylated), strict=True):
        place = np.searchsorted(ends[1:-1], values, side="right")
        result += [
            Stratum(kind, float(ends[number]), float(ends[number + 1]), place == number)
            for number in range(len(ends) - 1)
            if (place == number).any()
        ]
    return result


def coverage_rows(found: Mapping[tuple[str, str], tuple[NDArray[np.int64], Array]], among: Sequence[Stratum]) -> Rows:
    """How often central intervals hold the truth: single hypotheses overall, TRUE and AVERAGED in every stratum."""
    rows: Rows = []
    for (hypothesis, parameter), (loci, values) in found.items():
        for stratum in among if hypothesis in (TRUE, AVERAGED) else among[:1]:
            inside = values[stratum.holds[loci]]
            for level in LEVELS:
                covered = int((np.abs(inside - 0.5) <= level / 2).sum())
                rows.append(
                    {
                        "hypothesis": hypothesis,
                        "parameter": parameter,
                        "level": level,
                        "stratum": stratum.kind,
                        "stratum_low": stratum.low,
                        "stratum_high": stratum.high,
                    }
                    | share_columns(covered, len(inside), "covered")
                )
    return rows


def share_columns(count: int, number: int, name: str) -> dict[str, Any]:
    """A count among a number of loci, its share and the share's exact 95 % interval (Clopper and Pearson 1934)."""
    low = float(beta.ppf(0.025, count, number - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, number - count)) if count < number else 1.0
    return {"n_loci": number, name: count, "share": count / number if number else np.nan, "lower": low, "upper": high}


def ecdf_rows(values: Array, seed: int) -> Rows:
    """The empirical distribution of transforms at POINTS - 1 points, with the band that a uniform one keeps to."""
    points = np.arange(1, POINTS) / POINTS
    ecdf = np.searchsorted(np.sort(values), points, side="right") / len(values)
    lower, upper = ecdf_band(len(values), POINTS, BAND_LEVEL, BAND_DRAWS, seed)
    return [
        {"n_loci": len(values), "point": float(p), "ecdf": float(e), "lower": float(a), "upper": float(b)}
        for p, e, a, b in zip(points, ecdf, lower, upper, strict=True)
    ]


@lru_cache
def ecdf_band(number: int, points: int, level: float, draws: int, seed: int) -> tuple[Array, Array]:
    """Lower and upper end [points - 1] of a simultaneous band for the ECDF of `number` uniform values.

    Saeilynoja, Buerkner and Vehtari 2022, algorithm 1: pointwise binomial intervals, as wide as it takes for a share
    `level` of simulated ECDFs to lie within all of them. The ECDF at equal steps is a sum of multinomial counts.
    """
    point = np.arange(1, points) / points
    random = np.random.default_rng([seed, number])
    count = random.multinomial(number, np.full(points, 1 / points), size=draws).cumsum(1)[:, :-1]
    at_least = np.where(count > 0, 1 - bdtr(np.maximum(count - 1, 0), number, point), 1.0)
    tail = np.minimum(bdtr(count, number, point), at_least)
    outside = np.quantile(2 * tail.min(1), 1 - level)
    return (
        binom.ppf(outside / 2, number, point) / number,
        binom.ppf(1 - outside / 2, number, point) / number,
    )


def lfdr_rows(lfdr: Array, is_null: NDArray[np.bool_]) -> Rows:
    """Bins of local false discovery rates with the share of their loci that transmits nothing in truth."""
    place = np.searchsorted(LFDR_EDGES[1:-1], lfdr, side="right")
    rows: Rows = []
    for number in range(len(LFDR_EDGES) - 1):
        holds = place == number
        if holds.any():
            bounds = {"bin_low": float(LFDR_EDGES[number]), "bin_high": float(LFDR_EDGES[number + 1])}
            mean = {"mean_lfdr": float(lfdr[holds].mean())}
            rows.append(bounds | mean | share_columns(int(is_null[holds].sum()), int(holds.sum()), "null"))
    return rows


def fdr_rows(qvalue: Array, lfdr: Array, is_null: NDArray[np.bool_]) -> Rows:
    """Calls at each nominal rate: announced and realized share of false ones, and the share of the true ones found."""
    rows: Rows = []
    for nominal in NOMINAL_FDR:
        called = qvalue <= nominal
        transmits = int((~is_null).sum())
        rows.append(
            {
                "nominal": nominal,
                "announced": float(lfdr[called].mean()) if called.any() else np.nan,
                "power": float((called & ~is_null).sum() / transmits) if transmits else np.nan,
            }
            | share_columns(int((called & is_null).sum()), int(called.sum()), "false_calls")
        )
    return rows


def bayes_factor_rows(
    log_evidence: Array, hypothesis: NDArray[np.int64], names: Sequence[str], is_null: NDArray[np.bool_]
) -> Rows:
    """Means of Bayes factors that are one: of each hypothesis against each null over the null's loci, and reversed.

    `largest_share` is the share of the sum that the largest factor has: where it is not small, the mean rests on a few
    loci and its standard error is too small.
    """
    rows: Rows = []
    for null in np.flatnonzero(is_null):
        for other in np.flatnonzero(~is_null):
            for over, against in ((null, other), (other, null)):
                at = hypothesis == over
                if at.sum() < 2:
                    continue
                factor = np.exp(log_evidence[at, against] - log_evidence[at, over])
                rows.append(
                    {
                        "hypothesis": names[int(other)],
                        "null": names[int(null)],
                        "drawn_from": names[int(over)],
                        "n_loci": int(at.sum()),
                        "mean": float(factor.mean()),
                        "standard_error": float(factor.std(ddof=1) / np.sqrt(len(factor))),
                        "largest_share": float(factor.max() / factor.sum()),
                    }
                )
    return rows


def weight_rows(plan: CalibrationPlan, drawn: Drawn, estimated: Weights) -> Rows:
    """The weights that loci were drawn with, the shares that were drawn, and what the comparison makes of them."""
    share = np.bincount(drawn.hypothesis, minlength=len(plan.hypotheses)) / len(drawn.hypothesis)
    columns = (plan.hypotheses, plan.weight, share, estimated.weight, estimated.lower, estimated.upper)
    return [
        {
            "hypothesis": hypothesis.name,
            "given": float(given),
            "drawn": float(found),
            "weight": float(weight),
            "lower": float(lower),
            "upper": float(upper),
            "n_loci": len(drawn.hypothesis),
        }
        for hypothesis, given, found, weight, lower, upper in zip(*columns, strict=True)
    ]
