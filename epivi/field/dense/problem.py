"""One problem for every approximate method: a Gaussian latent with binomial observations, at fixed variance components.

At each of L loci independently

    u ~ N(prior_mean, prior_covariance),        eta = loading u,
    m_s ~ Binomial(n_s, eps_s + (1 - eps_s - delta_s) sigmoid(eta_s)),      s = 1 .. S.

Of a pedigree, u holds the P effects and then the N latents of the field. Everything is dense, float64 and vectorized
over loci: these are reference methods for some hundreds of loci, not the evidence of millions.

The methods whose answer does not depend on coordinates work in w with u = prior_mean + R w, R R' = prior_covariance,
w ~ N(0, I): a nearly singular prior is then harmless, and every precision is at least about the identity.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from epivi.field.layout import Cohort, LatentField, field_covariance

Array = NDArray[np.float64]

LARGEST_LOGIT = 600.0  # beyond it derivatives no longer change and probabilities would underflow
LARGEST_SLAB = 2**19  # observations times quadrature nodes that are held in memory at once


class FieldProblem(NamedTuple):
    """L loci, S samples, M latents."""

    meth: Array  # [L, S]
    total: Array  # [L, S], 0 where a sample is missing
    prior_mean: Array  # [L, M]
    prior_covariance: Array  # [L, M, M]
    loading: Array  # [S, M], or [L, S, M] where it differs between loci; eta = loading u
    false_methylated: Array  # [S], eps
    false_unmethylated: Array  # [S], delta


class FieldPosterior(NamedTuple):
    """What a method says of u at each locus."""

    mean: Array  # [L, M]
    covariance: Array  # [L, M, M]
    log_evidence: Array  # [L], nats, binomial coefficients and normalized priors included; nan where there is none
    is_bound: bool  # whether log_evidence is never above the true one
    converged: NDArray[np.bool_]  # [L]


class FieldVariances(NamedTuple):
    """Variance components of the field and its transmissibility at each locus."""

    parts: Array  # [L, C + 1], the residual last
    tau: Array  # [L]


def build_field_problem(
    field: LatentField,
    cohort: Cohort,
    variances: FieldVariances,
    effect_mean: ArrayLike,
    effect_variance: ArrayLike,
    meth: ArrayLike,
    total: ArrayLike,
    locus_design: ArrayLike | None = None,
) -> FieldProblem:
    """The problem of one hypothesis' field: u is the P effects, baseline first, and then b in the field's order.

    effect_mean, effect_variance: [P] or [L, P], of the independent Gaussian priors. meth, total: [L, S], in the
    cohort's order of samples. locus_design: [L, S, G], columns of the design whose values differ between loci, whose
    effects are the last G of the P.
    """
    counts, reads = (np.asarray(array, dtype=np.float64) for array in (meth, total))
    of_loci = np.zeros((*counts.shape, 0)) if locus_design is None else np.asarray(locus_design, dtype=np.float64)
    loci, effects, latents = len(counts), field.design.shape[1] + of_loci.shape[2], len(field.individual)
    covariance = np.zeros((loci, effects + latents, effects + latents))
    diagonal = np.arange(effects)
    covariance[:, diagonal, diagonal] = effect_variance
    covariance[:, effects:, effects:] = field_covariance(field, variances.parts, variances.tau)
    mean = np.zeros((loci, effects + latents))
    mean[:, :effects] = effect_mean
    membership = np.eye(latents)[field.latent_of_sample]
    return FieldProblem(
        meth=counts,
        total=reads,
        prior_mean=mean,
        prior_covariance=covariance,
        loading=_loading(field.design, of_loci, membership),
        false_methylated=cohort.false_methylated,
        false_unmethylated=cohort.false_unmethylated,
    )


def _loading(design: Array, of_loci: Array, membership: Array) -> Array:
    if not of_loci.shape[2]:
        return np.concatenate([design, membership], axis=1)
    common = (np.broadcast_to(part, (len(of_loci), *part.shape)) for part in (design, membership))
    first, last = common
    return np.concatenate([first, of_loci, last], axis=2)


def apply(loading: Array, u: Array) -> Array:
    """loading u of every locus, [L, S], for u [L, M] and a loading that is one for all loci or each one's own."""
    return u @ loading.T if loading.ndim == 2 else multiply(loading, u)


def apply_transposed(loading: Array, x: Array) -> Array:
    """loading' x of every locus, [L, M], for x [L, S]."""
    return x @ loading if loading.ndim == 2 else multiply(transpose(loading), x)


def select_loci(problem: FieldProblem, loci: NDArray[np.intp] | NDArray[np.bool_] | slice) -> FieldProblem:
    """The same problem at some of its loci."""
    return problem._replace(
        meth=problem.meth[loci],
        total=problem.total[loci],
        prior_mean=problem.prior_mean[loci],
        prior_covariance=problem.prior_covariance[loci],
        loading=problem.loading if problem.loading.ndim == 2 else problem.loading[loci],
    )


# --- the observation -------------------------------------------------------------------------------------------------


def log_binomials(problem: FieldProblem) -> Array:
    """Sum of the log binomial coefficients, [L]."""
    m, n = problem.meth, problem.total
    return (gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1)).sum(-1)


def has_conversion_error(problem: FieldProblem) -> bool:
    return bool(problem.false_methylated.any() or problem.false_unmethylated.any())


def log_observation(problem: FieldProblem, eta: Array) -> Array:
    """Log-likelihood of every observation without its binomial coefficient; eta: [..., L, S], any leading axes."""
    m, n = problem.meth, problem.total
    if not has_conversion_error(problem):
        return m * eta - n * np.logaddexp(0.0, eta)
    eps, delta = problem.false_methylated, problem.false_unmethylated
    gain = 1.0 - eps - delta
    methylated, unmethylated = _sigmoids(eta)
    return m * np.log(eps + gain * methylated) + (n - m) * np.log(delta + gain * unmethylated)


def observation_derivatives(problem: FieldProblem, eta: Array) -> tuple[Array, Array, Array, Array]:
    """First to fourth derivative of `log_observation` in eta, each [..., L, S].

    With p = eps + (1 - eps - delta) sigmoid(eta) and r_k the k-th derivative of p over p, (log p)' = r_1, (log p)'' =
    r_2 - r_1^2, (log p)''' = r_3 - 3 r_1 r_2 + 2 r_1^3 and so on; for 1 - p likewise.
    """
    m, n = problem.meth, problem.total
    p, q, slopes = _read_probabilities(problem, eta)
    if not has_conversion_error(problem):
        return m - n * p, -n * slopes[0], -n * slopes[1], -n * slopes[2]
    out = []
    for orders in zip(_log_derivatives(p, slopes, 1.0), _log_derivatives(q, slopes, -1.0), strict=True):
        out.append(m * orders[0] + (n - m) * orders[1])
    return out[0], out[1], out[2], out[3]


def expected_curvature(problem: FieldProblem, eta: Array) -> Array:
    """Fisher information of every observation about its eta, [..., L, S]; never negative."""
    p, q, slopes = _read_probabilities(problem, eta)
    return problem.total * slopes[0] ** 2 / (p * q)


def _sigmoids(eta: Array) -> tuple[Array, Array]:
    """sigmoid(eta) and sigmoid(-eta), each to full relative precision and never zero."""
    eta = np.clip(eta, -LARGEST_LOGIT, LARGEST_LOGIT)
    e = np.exp(-np.abs(eta))
    larger, smaller = 1.0 / (1.0 + e), e / (1.0 + e)
    return np.where(eta >= 0, larger, smaller), np.where(eta >= 0, smaller, larger)


def _read_probabilities(problem: FieldProblem, eta: Array) -> tuple[Array, Array, tuple[Array, Array, Array, Array]]:
    """P(read methylated) p, 1 - p, and the first four derivatives of p."""
    s, c = _sigmoids(eta)
    eps, delta = problem.false_methylated, problem.false_unmethylated
    gain = 1.0 - eps - delta
    s1 = s * c
    first = gain * s1
    second = first * (c - s)
    return eps + gain * s, delta + gain * c, (first, second, first * (1 - 6 * s1), second * (1 - 12 * s1))


def _log_derivatives(
    p: Array, slopes: tuple[Array, Array, Array, Array], sign: float
) -> tuple[Array, Array, Array, Array]:
    """First to fourth derivative of log p."""
    r1, r2, r3, r4 = (sign * slope / p for slope in slopes)
    square = r1 * r1
    return (
        r1,
        r2 - square,
        r3 - 3 * r1 * r2 + 2 * r1 * square,
        r4 - 4 * r1 * r3 - 3 * r2 * r2 + 12 * square * r2 - 6 * square * square,
    )


# METHOD: the trapezoid rule rather than Gauss-Hermite: the integrands are analytic in a strip (sigmoid's nearest poles
# are i pi away), where its error falls exponentially in nodes and not in their square root, and it reaches ten standard
# deviations with as many nodes.
NODES = np.linspace(-10.0, 10.0, 81)
WEIGHTS = np.exp(-0.5 * NODES**2) / np.exp(-0.5 * NODES**2).sum()


def expected_observation(problem: FieldProblem, mean: Array, variance: Array) -> Array:
    """E of `log_observation` and of its four derivatives, [5, L, S], where eta_s ~ N(mean, variance), [L, S] both."""
    out = np.zeros((5, *mean.shape))
    sd = np.sqrt(variance)
    for node, weight in node_slabs(mean.size):
        eta = mean + node * sd
        for order, value in enumerate((log_observation(problem, eta), *observation_derivatives(problem, eta))):
            out[order] += (weight * value).sum(0)
    return out


def node_slabs(observations: int) -> list[tuple[Array, Array]]:
    """NODES and WEIGHTS, [K, 1, 1] each, in as many parts as keep K * observations small."""
    parts = min(len(NODES), -(-len(NODES) * observations // LARGEST_SLAB))
    split = zip(np.array_split(NODES, parts), np.array_split(WEIGHTS, parts), strict=True)
    return [(node[:, None, None], weight[:, None, None]) for node, weight in split]


# --- batched linear algebra ------------------------------------------------------------------------------------------


def transpose(a: Array) -> Array:
    return np.swapaxes(a, -1, -2)


def multiply(a: Array, x: Array) -> Array:
    """Matrices [..., N, M] times vectors [..., M]."""
    return (a @ x[..., None])[..., 0]


def factor(a: Array) -> tuple[Array, Array]:
    """Lower Cholesky factor of every matrix [..., N, N], and its inverse; nan where one is not positive definite.

    By halves, so that a matrix that fails does not stop the others, as it does in np.linalg.cholesky.
    """
    size = a.shape[-1]
    if size == 1:
        root = np.sqrt(np.where(a > 0.0, a, np.nan))
        return root, 1.0 / root
    half = size // 2
    lower, inverse = np.zeros_like(a), np.zeros_like(a)
    top, inverse_top = factor(a[..., :half, :half])
    side = a[..., half:, :half] @ transpose(inverse_top)
    bottom, inverse_bottom = factor(a[..., half:, half:] - side @ transpose(side))
    lower[..., :half, :half], lower[..., half:, :half], lower[..., half:, half:] = top, side, bottom
    inverse[..., :half, :half], inverse[..., half:, half:] = inverse_top, inverse_bottom
    inverse[..., half:, :half] = -inverse_bottom @ side @ inverse_top
    return lower, inverse


def lower_inverse(lower: Array) -> Array:
    """Inverse of lower triangular matrices [..., N, N]."""
    size = lower.shape[-1]
    if size == 1:
        return 1.0 / lower
    half = size // 2
    inverse = np.zeros_like(lower)
    inverse[..., :half, :half] = lower_inverse(lower[..., :half, :half])
    inverse[..., half:, half:] = lower_inverse(lower[..., half:, half:])
    inverse[..., half:, :half] = -inverse[..., half:, half:] @ lower[..., half:, :half] @ inverse[..., :half, :half]
    return inverse


def is_definite(lower: Array) -> NDArray[np.bool_]:
    """Which matrices [...] had a Cholesky factor [..., N, N]."""
    return np.asarray(~np.isnan(lower).any((-2, -1)))


def log_determinant(lower: Array) -> Array:
    """Of the positive definite matrices with these Cholesky factors [..., N, N]."""
    return 2.0 * np.log(np.diagonal(lower, axis1=-2, axis2=-1)).sum(-1)


class Whitened(NamedTuple):
    """The problem in w, with u = prior_mean + root w and eta = offset + projection w."""

    root: Array  # [L, M, M], lower
    inverse_root: Array  # [L, M, M]
    projection: Array  # [L, S, M]
    offset: Array  # [L, S]


def whiten(problem: FieldProblem) -> Whitened:
    """Raises ValueError where a prior covariance is not positive definite."""
    root, inverse_root = factor(problem.prior_covariance)
    bad = np.flatnonzero(~is_definite(root))
    if len(bad):
        raise ValueError(f"prior_covariance of locus {bad[0]} of the problem is not positive definite")
    return Whitened(root, inverse_root, problem.loading @ root, apply(problem.loading, problem.prior_mean))


class SiteGaussian(NamedTuple):
    """N(w; 0, I) times prod_s exp(pull_s xi_s - precision_s xi_s^2 / 2), where xi = eta - offset = projection w.

    Everything is nan where the product cannot be normalized.
    """

    inverse_factor: Array  # [L, M, M], its transpose times itself is the covariance of w
    mean: Array  # [L, M], of w
    level_mean: Array  # [L, S], of xi
    level_variance: Array  # [L, S], of xi
    log_integral: Array  # [L], of the product


def combine_sites(white: Whitened, precision: Array, pull: Array) -> SiteGaussian:
    """The Gaussian that a Gaussian site on every observation, precision and pull [L, S], makes of the prior."""
    projection = white.projection
    information = np.eye(projection.shape[-1]) + transpose(projection) @ (precision[..., None] * projection)
    lower, inverse = factor(information)
    half = multiply(inverse, multiply(transpose(projection), pull))
    spread = projection @ transpose(inverse)
    return SiteGaussian(
        inverse_factor=inverse,
        mean=multiply(transpose(inverse), half),
        level_mean=multiply(spread, half),
        level_variance=(spread**2).sum(-1),
        log_integral=0.5 * (half**2).sum(-1) - 0.5 * log_determinant(lower),
    )


def unwhiten(problem: FieldProblem, white: Whitened, mean: Array, inverse_factor: Array) -> tuple[Array, Array]:
    """Mean [L, M] and covariance [L, M, M] of u from the mean of w and the inverse factor of its precision."""
    spread = white.root @ transpose(inverse_factor)
    return problem.prior_mean + multiply(white.root, mean), spread @ transpose(spread)
