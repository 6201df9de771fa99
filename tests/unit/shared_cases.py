"""Few individuals that have nothing in common but a covariate, whose likelihood is a sum over a grid."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
from inference_cases import make_pedigree, make_sheet
from numpy.typing import NDArray
from scipy import stats
from scipy.interpolate import CubicSpline
from scipy.special import expit, logsumexp

from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.density import LearnedPriors
from epivi.families.transmission.hypotheses import parse_hypotheses
from epivi.families.transmission.outer_integral import EvidenceModel
from epivi.families.transmission.proposal import adapting_model
from epivi.loci.source import CountsBatch

Array = NDArray[np.float64]

EFFECT_SD, LOCATION, SCALE = 0.5, -0.3, 0.6  # logits; of the log of the spread
WEIGHTS, MEANS, SDS = np.array([0.4, 0.6]), np.array([-1.5, 1.0]), np.array([0.7, 0.9])
ERROR = 0.01  # of a read, either way
NAMES = ("a", "b", "c", "d", "e", "f", "g", "h")
AGE = np.array([-1.5, -1.0, -0.5, -0.1, 0.3, 0.7, 1.2, 1.9])
READS = 25.0
LOCI = 20
SHEET = make_sheet(
    NAMES,
    false_methylated=np.full(len(NAMES), ERROR),
    false_unmethylated=np.full(len(NAMES), ERROR),
    columns={"age": tuple(f"{age:.1f}" for age in AGE)},
)
PEDIGREE = make_pedigree(*((name,) for name in NAMES[:-2]), (NAMES[-2], "a", "b"), (NAMES[-1], "a", "b"))
TRANSMITS = {"heritable_share": "free", "maternal": 1, "paternal": 1}


def standardized_age() -> Array:
    """As the design has it."""
    return (AGE - AGE.mean()) / AGE.std()


@cache
def unrelated(loci: int) -> CountsBatch:
    """Loci drawn with the values above, independent individuals."""
    random = np.random.default_rng(5)
    component = random.choice(2, loci, p=WEIGHTS)
    baseline = random.normal(MEANS[component], SDS[component])[:, None]
    effect = random.normal(0, EFFECT_SD, (loci, 1)) * standardized_age()
    spread = np.exp(random.normal(LOCATION, SCALE, (loci, 1)))
    level = expit(baseline + effect + spread * random.normal(size=(loci, len(NAMES))))
    total = random.poisson(READS, (loci, len(NAMES)))
    meth = random.binomial(total, ERROR + (1 - 2 * ERROR) * level)
    return CountsBatch(meth.astype(np.uint16), total.astype(np.uint16), np.arange(loci))


def model_at(effect_sd: float, location: float, scale: float) -> EvidenceModel:
    """Under the one hypothesis that individuals have nothing in common."""
    hypotheses = parse_hypotheses({"reset": {}})
    learned = LearnedPriors(WEIGHTS, MEANS, SDS, location, scale, np.array([effect_sd]), np.ones(1))
    return adapting_model(build_cohort(SHEET, PEDIGREE, ["age"], hypotheses), hypotheses, learned, {}, 1)


def related_model() -> EvidenceModel:
    """Under two hypotheses, of which the first alone has the covariate."""
    from transmission_cases import PRIORS

    hypotheses = parse_hypotheses({"aging": {"covariates": ["age"]}, "mendelian": TRANSMITS})
    learned = LearnedPriors(WEIGHTS, MEANS, SDS, LOCATION, SCALE, np.array([EFFECT_SD]), np.array([0.5, 0.5]))
    return adapting_model(build_cohort(SHEET, PEDIGREE, [], hypotheses), hypotheses, learned, PRIORS, 1)


class Brute:
    """The likelihood of each locus on a grid of baseline, effect and log spread; parameters are the log of the effect's
    SD, the location and the log of the scale."""

    def __init__(self, counts: CountsBatch) -> None:
        # Spacings of at most the SD of what is integrated: a sum over a regular grid is then right to 1e-8.
        self.baseline, self.effect = np.linspace(-4.5, 4.5, 33), np.linspace(-2.4, 2.4, 25)
        self.log_spread = np.linspace(-3.0, 1.8, 30)
        self.grids = np.stack(
            [self._grid(meth.astype(float), total.astype(float)) for meth, total in zip(*counts[:2], strict=True)]
        )  # [L, baselines, effects, spreads]
        self._sum_baselines(WEIGHTS, MEANS, SDS)

    def with_mixture(self, weights: Array, means: Array, sds: Array) -> Brute:
        """The same with another mixture of the baselines."""
        other = copy.copy(self)
        other._sum_baselines(weights, means, sds)
        return other

    def _sum_baselines(self, weights: Array, means: Array, sds: Array) -> None:
        density = logsumexp(np.log(weights) + stats.norm.logpdf(self.baseline[:, None], means, sds), axis=1)
        log_weight = density + np.log(np.diff(self.baseline)[0])
        self.log_grid = logsumexp(self.grids + log_weight[:, None, None], axis=1)  # [L, effects, spreads]

    def _grid(self, meth: Array, total: Array) -> Array:
        fine = np.linspace(-11, 11, 133)
        node, weight = np.polynomial.hermite_e.hermegauss(21)
        levels = expit(fine[:, None, None] + np.exp(self.log_spread)[:, None] * node)  # [x, spreads, nodes]
        total_log = np.zeros((len(self.baseline), len(self.effect), len(self.log_spread)))
        for m, n, age in zip(meth, total, standardized_age(), strict=True):
            likelihood = stats.binom.pmf(m, n, ERROR + (1 - 2 * ERROR) * levels) @ (weight / weight.sum())
            along = CubicSpline(fine, np.log(likelihood))
            total_log += along(self.baseline[:, None] + age * self.effect)
        return total_log

    def log_likelihood(self, at: Array) -> Array:
        """[L]."""
        sd, location, scale = np.exp(at[0]), at[1], np.exp(at[2])
        effect = stats.norm.logpdf(self.effect, 0, sd) + np.log(np.diff(self.effect)[0])
        spread = stats.norm.logpdf(self.log_spread, location, scale) + np.log(np.diff(self.log_spread)[0])
        return np.array(logsumexp(self.log_grid + effect[:, None] + spread, axis=(1, 2)))

    def slopes(self, at: Array) -> Array:
        """[L, 3], by central differences."""
        steps = 1e-4 * np.eye(3)
        return np.stack(
            [(self.log_likelihood(at + step) - self.log_likelihood(at - step)) / 2e-4 for step in steps], axis=1
        )

    def standard_errors(self, at: Array) -> Array:
        """[3], by the observed information or by its sandwich with the loci's scores, whichever is larger."""
        steps = 1e-3 * np.eye(3)
        information = [-(self.slopes(at + step) - self.slopes(at - step)).sum(0) / 2e-3 for step in steps]
        inverse, slopes = np.linalg.inv(np.array(information)), self.slopes(at)
        sandwich = inverse @ slopes.T @ slopes @ inverse * len(slopes) / (len(slopes) - 1)
        return np.sqrt(np.maximum(np.diagonal(sandwich), np.diagonal(inverse)))


@cache
def brute(loci: int) -> Brute:
    return Brute(unrelated(loci))
