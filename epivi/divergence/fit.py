"""Epimutation rates from pairwise divergences: the least-squares estimator of AlphaBeta, neutral and null model.

A site of a plant is unmethylated, intermediate or methylated: UU, UM, MM, in this order everywhere. Each generation
gains methylation with probability alpha and loses it with probability beta per haploid genome; T(alpha, beta) is the
matrix of transitions between the three. Of two plants at t1 and t2 generations from the founder, whose last common
ancestor lived at t0,

    D(t0, t1, t2) = c + sum_s (pi T^t0)_s sum_xy (T^(t1 - t0))_sx (T^(t2 - t0))_sy |x - y| / 2
    pi = (p, (1 - p) w, (1 - p) (1 - w))

with x and y the number of methylated alleles, p the founder's share of UU, w the share of UM in the rest, and c the
divergence that errors of measurement add to every pair. Least squares over alpha, beta, w and c, plus, where asked for,

    weight * (number of pairs) * (equilibrium share of UU under alpha and beta - share of UU)^2

because divergences hardly distinguish gain from loss: the penalty, not the data, then decides the ratio of the two
rates. The null model is a constant. Formulas: Shahryary et al. 2020, Genome Biology 21:260.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import least_squares
from scipy.stats import f as f_distribution

from epivi.lineage.transitions import UNIPARENTAL

# |x - y| / 2 of two plants with x and y methylated alleles.
DIFFERENCE = np.abs(np.subtract.outer(np.arange(3), np.arange(3))) / 2
PARAMETERS = ("alpha", "beta", "founder_intermediate", "intercept")
# METHOD: rates are searched on the log scale between these bounds; an estimate at a bound is not identified.
RATE_BOUNDS = (1e-10, 0.5)
# METHOD: c may be negative. Divergences from counts are unbiased and scatter around zero where nothing differs; a bound
# at zero would bias what is estimated beside it.
INTERCEPT_BOUND = 1.0
START_RATES = (1e-6, 1e-2)
SAME_OPTIMUM = 1e-6  # relative difference of the objective
TOLERANCE = 1e-13
MAX_EVALUATIONS = 2000
PROFILE_RATIOS = np.logspace(-3, 3, 19)


class PairTimes(NamedTuple):
    """Generations since the founder of P pairs, int64 [P] each."""

    ancestor: np.ndarray  # t0, of the last common ancestor
    first: np.ndarray  # t1, at least t0
    second: np.ndarray  # t2, at least t0


@dataclass(frozen=True)
class Assumptions:
    """What the neutral model takes as given.

    mode: "selfing" or "clonal"; founder_unmethylated: p, the founder's share of UU, in (0, 1);
    equilibrium_unmethylated: share of UU that the penalty pulls the equilibrium to; equilibrium_weight: weight of the
    penalty, 0 for none.
    """

    mode: str
    founder_unmethylated: float
    equilibrium_unmethylated: float
    equilibrium_weight: float


class NeutralFit(NamedTuple):
    """A minimum of the neutral model's objective, for P pairs."""

    alpha: float  # gains per haploid genome, site and generation
    beta: float  # losses, likewise
    founder_intermediate: float  # w
    intercept: float  # c
    equilibrium: np.ndarray  # shares of UU, UM and MM in the long run [3]
    rss: float  # residual sum of squares, without the penalty
    penalty: float
    predicted: np.ndarray  # [P]
    starts: int
    agreeing_starts: int  # of them, those that ended within SAME_OPTIMUM of the best

    @property
    def parameters(self) -> np.ndarray:
        """[4] in the order of PARAMETERS."""
        return np.array([self.alpha, self.beta, self.founder_intermediate, self.intercept])


class NullFit(NamedTuple):
    """The model without accumulation: the same divergence for every pair."""

    intercept: float
    rss: float


class ModelComparison(NamedTuple):
    """F-test of the neutral against the null model, and Akaike's criterion of both, as if pairs were independent."""

    f_statistic: float
    p_value: float
    aic_neutral: float
    aic_null: float


# ------------------------------------------------------------------------------------------------------------ the model


@cache
def _transition_polynomial(mode: str) -> np.ndarray:
    """Coefficients of 1, a, b, a^2, b^2 and ab in T, float64 [6, 3, 3].

    T of `epivi.lineage.transitions` is a polynomial of degree two in the rates a and b, with multiples of a quarter for
    coefficients, so that six of its values give them without rounding.
    """
    points = torch.tensor([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1)], dtype=torch.float64)
    none, plus_a, minus_a, plus_b, minus_b, both = UNIPARENTAL[mode](*points.T).numpy()
    linear = [(plus_a - minus_a) / 2, (plus_b - minus_b) / 2]
    squares = [(plus_a + minus_a) / 2 - none, (plus_b + minus_b) / 2 - none]
    return np.stack([none, *linear, *squares, both - plus_a - plus_b + none])


def _transition(a: float, b: float, mode: str) -> np.ndarray:
    """T, probability of the state in a row's offspring, and its derivatives by alpha and by beta, float64 [3, 3, 3]."""
    powers = np.array([[1.0, a, b, a**2, b**2, a * b], [0.0, 1.0, 0.0, 2 * a, 0.0, b], [0.0, 0.0, 1.0, 0.0, 2 * b, a]])
    return np.tensordot(powers, _transition_polynomial(mode), 1)


def equilibrium(alpha: float, beta: float, mode: str) -> np.ndarray:
    """Shares of UU, UM and MM that T leaves as they are, float64 [3]; alpha + beta must be positive.

    With s = alpha + beta, a share u = beta / s of the alleles is U; with h of UM, u - h/2 of the sites are UU. Clones
    keep h = 2 u (1 - u); selfing lowers it to h = 4 alpha beta (2 - s) / (s (1 + 2 s - s^2)).
    """
    return _equilibrium(alpha, beta, mode)[0]


def _equilibrium(a: float, b: float, mode: str) -> tuple[np.ndarray, float, float]:
    """The equilibrium, and the derivatives of its share of UU by alpha and by beta."""
    s = a + b
    u = b / s
    if mode == "selfing":
        h = 4 * a * b * (2 - s) / (s * (1 + 2 * s - s**2))
        common = -1 / (2 - s) - 1 / s - (2 - 2 * s) / (1 + 2 * s - s**2)
    else:
        h = 2 * a * b / s**2
        common = -2 / s
    by_alpha = -b / s**2 - h * (1 / a + common) / 2
    by_beta = a / s**2 - h * (1 / b + common) / 2
    return np.array([u - h / 2, h, 1 - u - h / 2]), by_alpha, by_beta


class _Model:
    """D and its Jacobian at given times; what depends on the times alone is prepared once."""

    def __init__(self, times: PairTimes, assumptions: Assumptions) -> None:
        exponents = np.stack([times.ancestor, times.first - times.ancestor, times.second - times.ancestor])
        self._exponents, places = np.unique(exponents, return_inverse=True)
        self._places = places.reshape(exponents.shape)
        self._assumptions = assumptions

    def evaluate(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """D [P] and its derivatives by the parameters [P, 4]."""
        alpha, beta, intermediate, intercept = parameters
        powers = self._powers(alpha, beta)[self._places]  # [3, P, 3 (value, by alpha, by beta), 3, 3]
        ancestor, first, second = powers
        differing = first[:, 0] @ DIFFERENCE  # [P, s, y]
        split = np.einsum("psy,psy->ps", differing, second[:, 0])  # expected difference given the ancestor's state
        split_by = np.einsum("pisx,psx->pis", first[:, 1:], second[:, 0] @ DIFFERENCE)
        split_by = split_by + np.einsum("psy,pisy->pis", differing, second[:, 1:])
        rest = 1 - self._assumptions.founder_unmethylated
        founder = np.array([1 - rest, rest * intermediate, rest * (1 - intermediate)])
        states = founder @ ancestor  # [P, 3, s]
        value = intercept + np.einsum("ps,ps->p", states[:, 0], split)
        by_rates = np.einsum("pis,ps->pi", states[:, 1:], split) + np.einsum("ps,pis->pi", states[:, 0], split_by)
        by_intermediate = np.einsum("ps,ps->p", np.array([0.0, rest, -rest]) @ ancestor[:, 0], split)
        return value, np.column_stack([by_rates, by_intermediate, np.ones_like(value)])

    def _powers(self, alpha: float, beta: float) -> np.ndarray:
        """T^e and its derivatives by alpha and beta at every distinct exponent e, [E, 3, 3, 3]."""
        # The first block row of ((T, Ta, Tb), (0, T, 0), (0, 0, T))^e is T^e and its two derivatives.
        value, by_alpha, by_beta = _transition(alpha, beta, self._assumptions.mode)
        step = np.zeros((9, 9))
        step[:3, :3] = step[3:6, 3:6] = step[6:, 6:] = value
        step[:3, 3:6], step[:3, 6:] = by_alpha, by_beta
        gaps = np.diff(self._exponents, prepend=0)
        jumps = {gap: np.linalg.matrix_power(step, gap) for gap in np.unique(gaps).tolist()}
        result = np.empty((len(gaps), 3, 3, 3))
        power = np.eye(9)
        for place, gap in enumerate(gaps.tolist()):
            power = power @ jumps[gap]
            result[place] = power[:3].reshape(3, 3, 3).swapaxes(0, 1)
        return result


# -------------------------------------------------------------------------------------------------------- least squares


class _Objective:
    """Residuals of the neutral model and of its penalty, in units of the divergences' standard deviation.

    Pairs of equal times are fitted by their mean, which leaves the optimum as it is. Unknowns are alpha and beta on the
    log scale, w and c. Raises ValueError where nothing could be learned, as `fit_neutral` says.
    """

    def __init__(self, times: PairTimes, divergence: np.ndarray, assumptions: Assumptions) -> None:
        ends = np.sort([times.first, times.second], axis=0)
        distinct, place = np.unique(np.stack([times.ancestor, *ends]), axis=1, return_inverse=True)
        self._place = place.ravel()
        size = np.bincount(self._place)
        if len(divergence) <= len(PARAMETERS):
            raise ValueError(f"{len(divergence)} pairs: expected more than {len(PARAMETERS)}")
        if len(size) < 3:
            raise ValueError(f"{len(size)} different combinations of times: expected three or more")
        self.scale = float(np.std(divergence))
        if self.scale == 0:
            raise ValueError(f"the divergence is {divergence[0]:g} in every pair: expected differences")
        self._model = _Model(PairTimes(*distinct), assumptions)
        self._mean = np.bincount(self._place, weights=divergence) / size
        self._weight = np.sqrt(size) / self.scale
        # METHOD: the penalty grows with the number of pairs, as the sum of squares does, so that the same weight means
        # the same in small and large pedigrees.
        self._penalty_weight = np.sqrt(assumptions.equilibrium_weight * len(divergence)) / self.scale
        self._divergence, self._assumptions = divergence, assumptions
        self._latest: tuple[bytes, tuple[np.ndarray, np.ndarray]] | None = None

    def _evaluate(self, unknowns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """D and its Jacobian by the parameters; the search asks for both, one after the other."""
        if self._latest is None or self._latest[0] != unknowns.tobytes():
            parameters = np.append(np.exp(unknowns[:2]), unknowns[2:])
            self._latest = (unknowns.tobytes(), self._model.evaluate(parameters))
        return self._latest[1]

    def residuals(self, unknowns: np.ndarray) -> np.ndarray:
        """Weighted residuals of the K combinations of times, and of the penalty, [K + 1]."""
        alpha, beta = np.exp(unknowns[:2])
        value, _ = self._evaluate(unknowns)
        unmethylated = _equilibrium(alpha, beta, self._assumptions.mode)[0][0]
        pull = unmethylated - self._assumptions.equilibrium_unmethylated
        return np.append(self._weight * (value - self._mean), self._penalty_weight * pull)

    def jacobian(self, unknowns: np.ndarray) -> np.ndarray:
        """Derivatives of the residuals by the unknowns, [K + 1, 4]."""
        alpha, beta = np.exp(unknowns[:2])
        _, by_parameter = self._evaluate(unknowns)
        _, by_alpha, by_beta = _equilibrium(alpha, beta, self._assumptions.mode)
        pull = self._penalty_weight * np.array([by_alpha, by_beta, 0.0, 0.0])
        return np.vstack([self._weight[:, None] * by_parameter, pull]) * np.array([alpha, beta, 1.0, 1.0])

    def fit(self, unknowns: np.ndarray, starts: int, agreeing: int) -> NeutralFit:
        """The fit that these unknowns stand for."""
        alpha, beta = np.exp(unknowns[:2])
        predicted = self._evaluate(unknowns)[0][self._place]
        return NeutralFit(
            alpha=float(alpha),
            beta=float(beta),
            founder_intermediate=float(unknowns[2]),
            intercept=float(unknowns[3]),
            equilibrium=equilibrium(alpha, beta, self._assumptions.mode),
            rss=float(np.sum((self._divergence - predicted) ** 2)),
            penalty=float((self.residuals(unknowns)[-1] * self.scale) ** 2),
            predicted=predicted,
            starts=starts,
            agreeing_starts=agreeing,
        )


class _Line(NamedTuple):
    """Unknowns as an affine function of what is searched: offset [4] + basis [4, F] @ searched [F], within bounds."""

    offset: np.ndarray
    basis: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def _everything() -> _Line:
    low, high = np.log(RATE_BOUNDS)
    lower = np.array([low, low, 0.0, -INTERCEPT_BOUND])
    return _Line(np.zeros(4), np.eye(4), lower, np.array([high, high, 1.0, INTERCEPT_BOUND]))


def _fixed_ratio(ratio: float) -> _Line:
    """Beta is `ratio` times alpha, and both stay within their bounds."""
    shift = float(np.log(ratio))
    low, high = np.log(RATE_BOUNDS)
    return _Line(
        np.array([0.0, shift, 0.0, 0.0]),
        np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
        np.array([max(low, low - shift), 0.0, -INTERCEPT_BOUND]),
        np.array([min(high, high - shift), 1.0, INTERCEPT_BOUND]),
    )


def _minimize(objective: _Objective, line: _Line, starts: np.ndarray) -> tuple[np.ndarray, int]:
    """The best unknowns [4] over the starts [N, F], and how many starts ended there.

    Raises RuntimeError if the best start did not converge.
    """
    margin = 1e-9 * (line.upper - line.lower)
    found = [
        least_squares(
            lambda searched: objective.residuals(line.offset + line.basis @ searched),
            np.clip(start, line.lower + margin, line.upper - margin),
            jac=lambda searched: objective.jacobian(line.offset + line.basis @ searched) @ line.basis,
            bounds=(line.lower, line.upper),
            x_scale="jac",
            ftol=TOLERANCE,
            xtol=TOLERANCE,
            gtol=TOLERANCE,
            max_nfev=MAX_EVALUATIONS,
        )
        for start in starts
    ]
    best = min(found, key=lambda result: result.cost)
    if not best.success:
        raise RuntimeError(f"least squares did not converge within {MAX_EVALUATIONS} evaluations: {best.message}")
    agreeing = sum(bool(result.cost <= best.cost * (1 + SAME_OPTIMUM)) for result in found)
    return line.offset + line.basis @ best.x, agreeing


def _random_starts(divergence: np.ndarray, starts: int, seed: int) -> np.ndarray:
    """Rates log-uniform within START_RATES, w uniform, c between zero and the smallest divergence; [starts, 4]."""
    draw = np.random.default_rng([seed, starts]).uniform(size=(starts, 4))
    low, high = np.log(START_RATES)
    return draw * [high - low, high - low, 1.0, divergence.min()] + [low, low, 0.0, 0.0]


def fit_neutral(
    times: PairTimes, divergence: np.ndarray, assumptions: Assumptions, *, starts: int, seed: int
) -> NeutralFit:
    """Fit the neutral model to P divergences [P] from several random starts.

    Raises ValueError where there are no more pairs than parameters, where the pairs have fewer than three different
    combinations of times, and where all divergences are equal; RuntimeError where the search does not converge.
    """
    objective = _Objective(times, divergence, assumptions)
    unknowns, agreeing = _minimize(objective, _everything(), _random_starts(divergence, starts, seed))
    return objective.fit(unknowns, starts, agreeing)


def refit(times: PairTimes, divergence: np.ndarray, assumptions: Assumptions, start: NeutralFit) -> NeutralFit:
    """Fit the neutral model again, from another fit, to resampled divergences [P]; raises as `fit_neutral`."""
    objective = _Objective(times, divergence, assumptions)
    unknowns, agreeing = _minimize(objective, _everything(), _unknowns(start)[None])
    return objective.fit(unknowns, 1, agreeing)


def _unknowns(fit: NeutralFit) -> np.ndarray:
    return np.array([np.log(fit.alpha), np.log(fit.beta), fit.founder_intermediate, fit.intercept])


def fit_null(divergence: np.ndarray) -> NullFit:
    """Fit the model without accumulation to P divergences [P]: their mean."""
    intercept = float(divergence.mean())
    return NullFit(intercept, float(np.sum((divergence - intercept) ** 2)))


def compare(neutral: NeutralFit, null: NullFit) -> ModelComparison:
    """F-test and Akaike's criterion of the two models.

    Both treat pairs as independent, which pairs that share a plant are not: the p-value is too small.
    """
    n, extra = len(neutral.predicted), len(PARAMETERS) - 1
    left = n - len(PARAMETERS)
    statistic = (null.rss - neutral.rss) / extra / (neutral.rss / left) if neutral.rss > 0 else np.inf
    # The variance of the residuals is a parameter too.
    return ModelComparison(
        f_statistic=float(statistic),
        p_value=float(f_distribution.sf(statistic, extra, left)),
        aic_neutral=_aic(neutral.rss, n, len(PARAMETERS) + 1),
        aic_null=_aic(null.rss, n, 2),
    )


def _aic(rss: float, n: int, parameters: int) -> float:
    return float(n * np.log(rss / n) + 2 * parameters) if rss > 0 else -np.inf


# --------------------------------------------------------------------------------------------------- what is identified


def profile_ratio(
    times: PairTimes,
    divergence: np.ndarray,
    assumptions: Assumptions,
    ratios: np.ndarray,
    *,
    starts: int,
    seed: int,
) -> list[NeutralFit]:
    """The best fit at each ratio of loss to gain, beta / alpha; raises as `fit_neutral`."""
    objective = _Objective(times, divergence, assumptions)
    searched = _random_starts(divergence, starts, seed)
    fits = []
    for ratio in ratios.tolist():
        line = _fixed_ratio(ratio)
        # A start's rates keep their geometric mean.
        centre = searched[:, :2].mean(axis=1) - np.log(ratio) / 2
        unknowns, agreeing = _minimize(objective, line, np.column_stack([centre, searched[:, 2:]]))
        fits.append(objective.fit(unknowns, starts, agreeing))
    return fits


def supported_ratios(ratios: np.ndarray, fits: Sequence[NeutralFit]) -> tuple[float, float]:
    """Least and largest of the profiled ratios that an F-test at 5 % does not distinguish from the best.

    Where it is the first or last of them, the data set no limit on that side. Pairs are treated as independent, so that
    the range is too narrow.
    """
    rss = np.array([fit.rss for fit in fits])
    left = len(fits[0].predicted) - len(PARAMETERS)
    supported = ratios[rss <= rss.min() * (1 + f_distribution.ppf(0.95, 1, left) / left)]
    return float(supported.min()), float(supported.max())


# ------------------------------------------------------------------------------------------------------------ bootstrap


REPORTED = ("alpha", "beta", "ratio", "founder_intermediate", "intercept", "equilibrium_unmethylated")


class Bootstrap(NamedTuple):
    """Spread of what is reported over R replicates that could be fitted."""

    standard_error: np.ndarray  # [6], in the order of REPORTED
    lower: np.ndarray  # [6], 2.5 % quantile
    upper: np.ndarray  # [6], 97.5 % quantile
    replicates: int  # R
    failed: int  # replicates left out: nothing differs between their pairs


def reported(fit: NeutralFit) -> np.ndarray:
    """Values in the order of REPORTED, float64 [6]."""
    return np.array(
        [fit.alpha, fit.beta, fit.beta / fit.alpha, fit.founder_intermediate, fit.intercept, fit.equilibrium[0]]
    )


def bootstrap(
    times: PairTimes, replicates: Iterable[tuple[np.ndarray, Assumptions]], start: NeutralFit
) -> Bootstrap | None:
    """Percentile intervals from replicates, each divergences [P] and the assumptions that go with them.

    None if fewer than two replicates could be fitted. Raises RuntimeError where a search does not converge.
    """
    values, failed = [], 0
    for divergence, assumptions in replicates:
        if np.ptp(divergence) == 0:
            failed += 1
            continue
        values.append(reported(refit(times, divergence, assumptions, start)))
    if len(values) < 2:
        return None
    table = np.array(values)
    # Of R draws, the k-th smallest stands at k / (R + 1): other definitions make intervals of few draws too narrow.
    lower, upper = np.quantile(table, [0.025, 0.975], axis=0, method="weibull")
    return Bootstrap(table.std(axis=0, ddof=1), lower, upper, len(values), failed)


def residual_replicates(fit: NeutralFit, divergence: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """Divergences [replicates, P]: the fitted ones with residuals drawn with replacement.

    For divergences that come without their sites. Pairs are treated as independent, as in the published standard
    errors; pairs that share a plant are not.
    """
    random = np.random.default_rng([seed, 1])
    residual = divergence - fit.predicted
    drawn: np.ndarray = fit.predicted + random.choice(residual, size=(replicates, len(residual)))
    return drawn
