"""The inner integral of epivi.field.compiled.nodes in torch, for GPUs: the same steps from the same starting points.

Points (a locus, an outer node, a component of the baseline's prior) lie along the first dimension of every tensor, and
the stages follow one another for as many loci as the memory budget holds: the central nodes by every component, the
other nodes of loci at which one Gaussian stands for all components, those of the other loci. Each point goes through
the steps of Newton's method that the compiled kernel would take, so that the two agree to rounding and not only to the
tolerance at which both stop. A point that has arrived is finished and leaves; the host waits for the device a few times
in each step of all points together.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln
from torch import Tensor

from epivi.field.compiled.expectation_propagation import DAMPING, FULL_SWEEPS, LARGEST_MISMATCH, MAX_SWEEPS
from epivi.field.compiled.field import FieldArrays
from epivi.field.compiled.laplace import LARGEST_CORRECTION, MAX_HALVINGS, MAX_ITERATIONS, NOT_CONVERGED
from epivi.field.compiled.nodes import (
    DECREMENT_TOLERANCE,
    INNER_METHOD_CODES,
    IRRELEVANT_COMPONENT_NATS,
    REWEIGHT_NODES,
    SEPARATE_MODES,
    SMALL_COMPONENT_NATS,
    TILTED_NODES,
    NodeResults,
    check_variances,
)
from epivi.field.torch.field import (
    Points,
    Solution,
    TorchField,
    designs,
    effect_root,
    exponential,
    latent_variance,
    log_observation,
    observation_slopes,
    observation_third_fourth,
    of_design,
    predictor,
    prior_factors,
    scaled_design,
    solve_field,
    torch_field,
)

MEMORY_BYTES = 2**32  # that the tensors of one stage may take
# Columns of results, as in NodeResults: two numbers; then, for each of the P effects, the columns of Effects.
EVIDENCE, CORRECTION = range(2)

T = TypeVar("T")


class Effects(NamedTuple):
    """Moments of the P effects, [..., P] each; the baseline is the first."""

    mean: Tensor
    variance: Tensor
    third: Tensor  # third central moment
    covariance: Tensor  # with the baseline


def effects_of(results: Tensor) -> Effects:
    """Views of the effects' moments in results [..., 2 + 4 P]."""
    return Effects(*results[..., 2:].chunk(4, dim=-1))


def _results(evidence: Tensor, correction: Tensor, effects: Effects) -> Tensor:
    """[..., 2 + 4 P]."""
    return torch.cat([evidence[..., None], correction[..., None], *effects], dim=-1)


def _failed(prior_mean: Tensor, prior_variance: Tensor) -> Tensor:
    """Results [..., 2 + 4 P] of points without a mode: no evidence, NOT_CONVERGED, and the prior's moments."""
    zero = torch.zeros_like(prior_mean)
    covariance = torch.cat([prior_variance[..., :1], zero[..., 1:]], dim=-1)
    effects = Effects(prior_mean, prior_variance, zero, covariance)
    return _results(zero[..., 0] - torch.inf, zero[..., 0] + NOT_CONVERGED, effects)


class Expansion(NamedTuple):
    """The quadratic expansion of every observation at B points, [B, S] each."""

    eta: Tensor
    slope: Tensor
    curvature: Tensor


class Position(NamedTuple):
    """Where B points stand."""

    b: Tensor  # [B, N]
    dual: Tensor  # [B, N], K^-1 b
    beta: Tensor  # [B, P]


class Search(NamedTuple):
    """The state of Newton's method at B points, [B] each where nothing else is said."""

    position: Position
    expansion: Expansion
    before: Position  # where a damped step started
    start_beta: Tensor  # [B, P], where a damped search starts
    previous_gain: Tensor
    joint_before: Tensor
    halvings: Tensor
    is_damped: Tensor
    is_trial: Tensor  # after a damped step whose gain is not yet confirmed
    wants_expected: Tensor  # the next step is by the expected curvature


class Modes(NamedTuple):
    """What a search leaves: results [B, 2 + 4 P], the expansion and the effects at the mode."""

    results: Tensor
    expansion: Expansion
    beta: Tensor  # [B, P]


class Mixture(NamedTuple):
    """The baseline's prior, K components."""

    log_weight: Tensor
    mean: Tensor
    variance: Tensor


class Centre(NamedTuple):
    """The central nodes of L loci."""

    modes: tuple[Modes, ...]  # of each component
    relevant: Tensor  # [L, K]
    dominant: Tensor  # [L]
    is_merged: Tensor  # [L], whether one Gaussian stands for the relevant components
    prior_mean: Tensor  # [L], of that Gaussian
    prior_variance: Tensor  # [L]


class Numerics(NamedTuple):
    tolerance: float
    propagates: bool  # expectation propagation goes on from Laplace's approximation
    quadrature: Tensor  # [2, nodes], Gauss-Hermite nodes and weights of a standard normal
    tilted_quadrature: Tensor


class Counts(NamedTuple):
    """What is evaluated: L loci at J nodes."""

    meth: Tensor  # [L, S], in the field's order
    total: Tensor  # [L, S]
    design: Tensor  # [1 or L, S, P]
    constant: Tensor  # [L], log binomial coefficients
    variances: Tensor  # [L, J, C + 1]
    tau: Tensor  # [L, J]


@torch.no_grad()
def evaluate_nodes_torch(
    arrays: FieldArrays,
    meth: NDArray[np.uint16],
    total: NDArray[np.uint16],
    variances: NDArray[np.float64],
    tau: NDArray[np.float64],
    mixture_weight: NDArray[np.float64],
    mixture_mean: NDArray[np.float64],
    mixture_sd: NDArray[np.float64],
    effect_sd: NDArray[np.float64],
    device: torch.device,
    tolerance: float = DECREMENT_TOLERANCE,
    method: str = "laplace",
    memory_bytes: int = MEMORY_BYTES,
    locus_design: NDArray[np.float64] | None = None,
) -> NodeResults:
    """`evaluate_nodes` on a torch device; arguments and results are those of the compiled kernel.

    memory_bytes: what the tensors of one stage may take, by an estimate from above; one locus is evaluated whatever it
    takes.
    """
    check_variances(arrays, variances)
    field = torch_field(arrays, device)

    def tensor(array: NDArray[Any]) -> Tensor:
        return torch.as_tensor(np.asarray(array, dtype=np.float64), device=device)

    mixture = Mixture(tensor(np.log(mixture_weight)), tensor(mixture_mean), tensor(mixture_sd**2))
    effect_variance = tensor(effect_sd**2)
    numerics = Numerics(
        tolerance, INNER_METHOD_CODES[method] == INNER_METHOD_CODES["ep"], _gauss_hermite(REWEIGHT_NODES, device),
        _gauss_hermite(TILTED_NODES, device),
    )  # fmt: skip
    log_factorial = tensor(gammaln(np.arange(np.max(total, initial=0) + 1.0) + 1.0))
    loci, nodes = tau.shape
    of_loci = np.zeros((*meth.shape, 0)) if locus_design is None else locus_design
    effects = 1 + len(effect_sd)
    at_once = loci_at_once(field, effects, nodes, len(mixture_mean), memory_bytes, numerics.propagates)
    out, central_step = np.empty((loci, nodes, 2 + 4 * effects)), np.empty(loci)
    for first in range(0, loci, at_once):
        some = slice(first, first + at_once)
        m, n = tensor(meth[some][:, field.sample_order]), tensor(total[some][:, field.sample_order])
        constant = (log_factorial[n.long()] - log_factorial[m.long()] - log_factorial[(n - m).long()]).sum(1)
        design = designs(field, tensor(of_loci[some][:, field.sample_order]))
        counts = Counts(m, n, design, constant, tensor(variances[some]), tensor(tau[some]))
        results, step = _evaluate_loci(field, counts, mixture, effect_variance, numerics)
        out[some], central_step[some] = results.cpu().numpy(), step.cpu().numpy()
    evidence, correction = np.moveaxis(out[:, :, :2], 2, 0).copy()
    mean, variance, third, _ = (part.copy() for part in np.split(out[:, :, 2:], 4, axis=2))
    return NodeResults(evidence, correction, mean, variance, third, central_step)


def loci_at_once(
    field: TorchField, effects: int, nodes: int, components: int, memory_bytes: int, propagates: bool
) -> int:
    """Loci of which all nodes, or all components at the central one, fit the budget; at least one."""
    squares = sum(group.covariance.blocks * group.covariance.size**2 for group in field.groups)
    samples = len(field.latent)
    pairs = sum((group.samples.stop - group.samples.start) ** 2 // group.covariance.blocks for group in field.groups)
    numbers = 8 * squares + 8 * pairs + samples * (40 + 10 * effects) + 8 * effects**2
    points, propagated = max(nodes - 1, components), max(nodes - 1 if propagates else 1, components)
    return max(1, memory_bytes // (8 * (numbers * points + 10 * TILTED_NODES * samples * propagated)))


def _gauss_hermite(nodes: int, device: torch.device) -> Tensor:
    node, weight = np.polynomial.hermite_e.hermegauss(nodes)
    return torch.as_tensor(np.stack([node, weight / weight.sum()]), device=device)


def _take(state: T, rows: Tensor) -> T:
    """Some of the points of a tensor, or of every tensor in a tuple of them."""
    return _taken(state, rows)


def _take_points(points: Points, rows: Tensor) -> Points:
    """The same, but for a design that is one for all points."""
    taken = _take(points._replace(design=points.meth), rows)
    return taken._replace(design=points.design if len(points.design) == 1 else points.design[rows])


def _taken(state: Any, rows: Tensor) -> Any:
    if isinstance(state, Tensor):
        return state[rows]
    parts = [_taken(part, rows) for part in state]
    return state._make(parts) if hasattr(state, "_make") else tuple(parts)


def _put(target: Any, rows: Tensor, source: Any) -> None:
    """Set some of the points of a tensor, or of every tensor in a tuple of them."""
    if isinstance(target, Tensor):
        target[rows] = source
    else:
        for into, part in zip(target, source, strict=True):
            _put(into, rows, part)


# --- nodes and components --------------------------------------------------------------------------------------------


def _evaluate_loci(
    field: TorchField, counts: Counts, mixture: Mixture, effect_variance: Tensor, numerics: Numerics
) -> tuple[Tensor, Tensor]:
    """Results [L, J, 2 + 4 P] of some loci, and the step [L] to expectation propagation at their central nodes."""
    loci, nodes = counts.tau.shape
    out = counts.tau.new_empty(loci, nodes, 2 + 4 * (1 + len(effect_variance)))
    centre, out[:, 0] = _central_nodes(field, counts, mixture, effect_variance, numerics)
    if nodes > 1:
        out[:, 1:] = _evaluate_others(field, counts, mixture, effect_variance, numerics, centre)
    out[:, :, EVIDENCE] += counts.constant[:, None]
    return out, _central_step(field, counts, mixture, effect_variance, numerics, centre)


def _evaluate_others(
    field: TorchField, counts: Counts, mixture: Mixture, effect_variance: Tensor, numerics: Numerics, centre: Centre
) -> Tensor:
    """Results [L, J - 1, 2 + 4 P] of all nodes but the central ones, without the binomial coefficients."""
    loci, nodes = counts.tau.shape
    out = counts.tau.new_empty(loci, nodes - 1, 2 + 4 * (1 + len(effect_variance)))
    merged, separate = centre.is_merged.nonzero()[:, 0], (~centre.is_merged).nonzero()[:, 0]
    if len(merged):
        out[merged] = _merged_nodes(field, counts, merged, mixture, effect_variance, numerics, centre)
    if len(separate):
        out[separate] = _separate_nodes(field, counts, separate, mixture, effect_variance, numerics, centre)
    return out


def _central_nodes(
    field: TorchField, counts: Counts, mixture: Mixture, effect_variance: Tensor, numerics: Numerics
) -> tuple[Centre, Tensor]:
    """Every component at the central nodes, from the pooled logit; and the results [L, 2 + 4 P] of their mixture."""
    loci, components = len(counts.tau), len(mixture.mean)
    rows = torch.arange(loci, device=counts.tau.device).repeat(components)
    component = torch.arange(components, device=rows.device).repeat_interleave(loci)
    factors = prior_factors(field, counts.variances[:, 0], counts.tau[:, 0])
    mean, variance = _effects_prior(mixture.mean[component], mixture.variance[component], effect_variance)
    design = _designs_of(counts, rows)
    points = Points(counts.meth[rows], counts.total[rows], _take(factors, rows), mean, variance, design)
    beta = torch.zeros_like(mean)
    methylated, unmethylated = points.meth.sum(1) + 0.5, (points.total - points.meth).sum(1) + 0.5
    beta[:, 0] = (methylated / unmethylated).log()
    eta = of_design(points.design, beta)
    slope, _, expected = observation_slopes(field, points, eta)
    modes = _laplace(field, points, Expansion(eta, slope, expected), beta, numerics.tolerance)
    modes.results[:, EVIDENCE] += mixture.log_weight[component]
    of_component = modes.results.unflatten(0, (components, loci))
    each = tuple(_take(modes, (component == k).nonzero()[:, 0]) for k in range(components))
    centre = _merge(each, mixture)
    return centre, _mix(of_component)


def _central_step(
    field: TorchField, counts: Counts, mixture: Mixture, effect_variance: Tensor, numerics: Numerics, centre: Centre
) -> Tensor:
    """What expectation propagation adds to Laplace's evidence at the central nodes [L]: they are evaluated once more,
    as the other nodes are, by either method, with the components of some weight alone."""
    twice = counts._replace(variances=counts.variances[:, [0, 0]], tau=counts.tau[:, [0, 0]])
    evidence = torch.stack([mode.results[:, EVIDENCE] for mode in centre.modes], dim=1)
    centre = centre._replace(relevant=evidence > evidence.amax(1, keepdim=True) - SMALL_COMPONENT_NATS)
    laplace, propagated = (
        _evaluate_others(field, twice, mixture, effect_variance, numerics._replace(propagates=propagates), centre)[:, 0]
        for propagates in (False, True)
    )
    step = propagated[:, EVIDENCE] - laplace[:, EVIDENCE]
    found = step.isfinite() & (propagated[:, CORRECTION] != NOT_CONVERGED)
    return torch.where(found, step, torch.inf)


def _merge(modes: tuple[Modes, ...], mixture: Mixture) -> Centre:
    """Drop irrelevant components; whether the rest may be merged, and the merged prior's moments."""
    results = torch.stack([mode.results for mode in modes], dim=1)  # [L, K, 2 + 4 P]
    baseline_mean, baseline_variance = (part[:, :, 0] for part in effects_of(results)[:2])
    best, dominant = results[:, :, EVIDENCE].max(1)
    none = torch.isneginf(best)  # no mode was found: the other nodes try every component
    relevant = (results[:, :, EVIDENCE] > best[:, None] - IRRELEVANT_COMPONENT_NATS) | none[:, None]
    share = torch.where(relevant, (results[:, :, EVIDENCE] - best[:, None]).exp(), 0.0)
    share = share / share.sum(1, keepdim=True)
    prior_mean = share @ mixture.mean
    prior_variance = (share * (mixture.variance + (mixture.mean - prior_mean[:, None]) ** 2)).sum(1)
    posterior_mean = (share * baseline_mean).sum(1, keepdim=True)
    between = (share * (baseline_mean - posterior_mean) ** 2).sum(1)
    within = (share * baseline_variance).sum(1)
    is_merged = (between < SEPARATE_MODES * within) & ~none
    return Centre(modes, relevant, dominant, is_merged, prior_mean, prior_variance)


def _merged_nodes(
    field: TorchField,
    counts: Counts,
    loci: Tensor,
    mixture: Mixture,
    effect_variance: Tensor,
    numerics: Numerics,
    centre: Centre,
) -> Tensor:
    """Results [l, J - 1, 2 + 4 P] of loci at which one Gaussian stands for all components."""
    dominant = centre.dominant[loci]
    start = _take(centre.modes[0], loci)
    for k, modes in enumerate(centre.modes[1:], 1):
        of_component = dominant == k
        _put(start, of_component, _take(modes, loci[of_component]))
    mean, variance = centre.prior_mean[loci], centre.prior_variance[loci]
    results = _other_nodes(field, counts, loci, start, mean, variance, effect_variance, numerics)
    results = _reweight(results, mixture, mean[:, None], variance[:, None], numerics.quadrature)
    failed = _failed(*_effects_prior(mean, variance, effect_variance))[:, None]
    return torch.where(results[:, :, EVIDENCE, None].isfinite(), results, failed)


def _separate_nodes(
    field: TorchField,
    counts: Counts,
    loci: Tensor,
    mixture: Mixture,
    effect_variance: Tensor,
    numerics: Numerics,
    centre: Centre,
) -> Tensor:
    """Results [l, J - 1, 2 + 4 P] of loci whose components have posteriors of their own."""
    failed = _failed(*_effects_prior(mixture.mean, mixture.variance, effect_variance))
    results = failed[:, None, None].repeat(1, len(loci), counts.tau.shape[1] - 1, 1)
    for k, modes in enumerate(centre.modes):
        among = centre.relevant[loci, k].nonzero()[:, 0]
        if len(among):
            some = loci[among]
            mean, variance = mixture.mean[k].expand(len(some)), mixture.variance[k].expand(len(some))
            start = _take(modes, some)
            found = _other_nodes(field, counts, some, start, mean, variance, effect_variance, numerics)
            found[:, :, EVIDENCE] += mixture.log_weight[k]
            results[k, among] = found
    return _mix(results)


def _other_nodes(
    field: TorchField,
    counts: Counts,
    loci: Tensor,
    start: Modes,
    prior_mean: Tensor,
    prior_variance: Tensor,
    effect_variance: Tensor,
    numerics: Numerics,
) -> Tensor:
    """Results [l, J - 1, 2 + 4 P] of all nodes but the central one, from its modes, under one Gaussian for each
    locus."""
    nodes = counts.tau.shape[1] - 1
    rows = torch.arange(len(loci), device=loci.device).repeat_interleave(nodes)
    factors = prior_factors(field, counts.variances[loci, 1:].flatten(0, 1), counts.tau[loci, 1:].flatten())
    mean, variance = _effects_prior(prior_mean[rows], prior_variance[rows], effect_variance)
    design = _designs_of(counts, loci[rows])
    points = Points(counts.meth[loci][rows], counts.total[loci][rows], factors, mean, variance, design)
    modes = _laplace(field, points, _take(start.expansion, rows), start.beta[rows], numerics.tolerance)
    results = _propagate(field, points, modes, numerics.tilted_quadrature) if numerics.propagates else modes.results
    return results.unflatten(0, (len(loci), nodes))


def _designs_of(counts: Counts, loci: Tensor) -> Tensor:
    """Of points of these loci, [1 or B, S, P]."""
    return counts.design if len(counts.design) == 1 else counts.design[loci]


def _effects_prior(mean: Tensor, variance: Tensor, effect_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [B, P] of the effects' prior, of which the baseline's are given, [B]."""
    others = effect_variance.expand(len(mean), -1)
    return torch.cat([mean[:, None], torch.zeros_like(others)], 1), torch.cat([variance[:, None], others], 1)


def _reweight(results: Tensor, mixture: Mixture, mean: Tensor, variance: Tensor, quadrature: Tensor) -> Tensor:
    """Replace the merged prior N(mean, variance) of the baseline by the mixture, as the compiled kernel does: over a
    Gaussian with a first-order skewness term; the other effects follow by their regression on the baseline."""
    node, node_weight = quadrature
    effects = effects_of(results)
    old_mean, old_variance, old_third, _ = (part[..., 0] for part in effects)
    sd = old_variance.sqrt()
    skewness = old_third / (old_variance * sd)
    step = sd[..., None] * (node + skewness[..., None] * ((node**2 - 1.0) / 6.0))
    x = old_mean[..., None] + step
    base = 0.5 * (x - mean[..., None]) ** 2 / variance[..., None]
    weight = torch.zeros_like(x)
    for log_weight, component_mean, component_variance in zip(*mixture, strict=True):
        scale = log_weight.exp() * (variance / component_variance).sqrt()
        weight += scale[..., None] * exponential(base - 0.5 * (x - component_mean) ** 2 / component_variance)
    weight *= node_weight
    total = weight.sum(-1)
    first, second, third = ((weight * step**power).sum(-1) / total for power in (1, 2, 3))
    new_variance, new_third = second - first**2, third - 3.0 * first * second + 2.0 * first**3
    # What the mixture changes, against the moments of the skewed Gaussian itself.
    slope = (effects.covariance / old_variance[..., None])[..., 1:]
    variance_change = new_variance - old_variance * (1.0 + skewness**2 / 18.0)
    third_change = new_third - old_third * (1.0 + skewness**2 / 27.0)

    def with_baseline(baseline: Tensor, others: Tensor) -> Tensor:
        return torch.cat([baseline[..., None], others], dim=-1)

    mixed = Effects(
        with_baseline(old_mean + first, effects.mean[..., 1:] + slope * first[..., None]),
        with_baseline(new_variance, effects.variance[..., 1:] + slope**2 * variance_change[..., None]),
        with_baseline(new_third, effects.third[..., 1:] + slope**3 * third_change[..., None]),
        effects.covariance,
    )
    return _results(results[..., EVIDENCE] + total.log(), results[..., CORRECTION], mixed)


def _mix(results: Tensor) -> Tensor:
    """Sum the mixture components [K, ..., 2 + 4 P] out of the evidence and of the effects' moments, [..., 2 + 4 P]."""
    best = results[..., EVIDENCE].amax(0)
    share = (results[..., EVIDENCE] - best).exp()
    total = share.sum(0)
    share = share / total
    effects, of_effects = effects_of(results), share[..., None]
    mean = (of_effects * effects.mean).sum(0)
    offset = effects.mean - mean
    third = effects.third + 3.0 * offset * effects.variance + offset**3
    moments = (mean, (of_effects * (effects.variance + offset**2)).sum(0), (of_effects * third).sum(0))
    covariance = (of_effects * (effects.covariance + offset * offset[..., :1])).sum(0)
    mixed = _results(best + total.log(), (share * results[..., CORRECTION]).sum(0), Effects(*moments, covariance))
    failed = results[0].clone()
    failed[..., EVIDENCE], failed[..., CORRECTION] = -torch.inf, NOT_CONVERGED
    effects_of(failed).third.zero_()
    return torch.where(torch.isneginf(best)[..., None], failed, mixed)


# --- Laplace's method ------------------------------------------------------------------------------------------------


def _laplace(field: TorchField, points: Points, expansion: Expansion, beta: Tensor, tolerance: float) -> Modes:
    """Damped Newton as in epivi.field.compiled.laplace, from a given point; a damped search starts at b = 0 and `beta`.

    A point without a mode has no evidence, NOT_CONVERGED for its correction and the prior's moments.
    """
    results = _failed(points.prior_mean, points.prior_variance)
    modes = Modes(results, Expansion(*(part.clone() for part in expansion)), beta.clone())
    rows = torch.arange(len(beta), device=beta.device)
    search = _new_search(field, expansion, beta)
    for iteration in range(MAX_ITERATIONS):
        if iteration > 0:
            search = search._replace(expansion=_expand(field, points, search))
        eta, slope, curvature = search.expansion
        solution = solve_field(field, points, curvature, curvature * eta + slope)
        # The first step is taken from a point that need not lie in the range of K: it has no predicted gain.
        gain = _predicted_gain(field, points, search, solution) if iteration else torch.full_like(eta[:, 0], torch.inf)
        done, search = _decide(iteration, tolerance, field, points, search, solution, gain)
        arrived = done.nonzero()[:, 0]
        if len(arrived):
            at_mode = _finish(
                field, _take_points(points, arrived), _take(search, arrived), _take(solution, arrived), gain[arrived]
            )
            _put(modes, rows[arrived], at_mode)
            left = (~done).nonzero()[:, 0]
            rows, points, search = rows[left], _take_points(points, left), _take(search, left)
        if not len(rows):
            break
    _put(modes.expansion, rows, search.expansion)
    _put(modes.beta, rows, search.position.beta)
    return modes


def _new_search(field: TorchField, expansion: Expansion, beta: Tensor) -> Search:
    zero, false = torch.zeros_like(beta[:, 0]), torch.zeros_like(beta[:, 0], dtype=torch.bool)
    b = beta.new_zeros(len(beta), field.latents)
    position = Position(b, b, beta)
    return Search(position, expansion, position, beta, zero + torch.inf, zero, zero, false, false, false)


def _expand(field: TorchField, points: Points, search: Search) -> Expansion:
    """Linear predictor, slope and curvature of every sample at the current b and beta."""
    eta = predictor(field, points, search.position.b, search.position.beta)
    slope, observed, expected = observation_slopes(field, points, eta)
    return Expansion(eta, slope, torch.where(search.wants_expected[:, None], expected, observed))


def _log_joint(field: TorchField, points: Points, search: Search) -> Tensor:
    """Log-likelihood and exponent of the prior at the current point (normalizers are in the determinant)."""
    b, dual, beta = search.position
    prior = (b * dual).sum(1) + ((beta - points.prior_mean) ** 2 / points.prior_variance).sum(1)
    return log_observation(field, points, search.expansion.eta).sum(1) - 0.5 * prior


def _predicted_gain(field: TorchField, points: Points, search: Search, solution: Solution) -> Tensor:
    """Half of gradient times Newton step, in nats."""
    b, dual, beta = search.position
    moved = predictor(field, points, solution.b, solution.beta) - search.expansion.eta
    gain = (search.expansion.slope * moved).sum(1) - (dual * (solution.b - b)).sum(1)
    return 0.5 * (gain - ((beta - points.prior_mean) / points.prior_variance * (solution.beta - beta)).sum(1))


def _decide(
    iteration: int,
    tolerance: float,
    field: TorchField,
    points: Points,
    search: Search,
    solution: Solution,
    gain: Tensor,
) -> tuple[Tensor, Search]:
    """Which points have arrived, and the state of the others after their next move.

    Full Newton steps are tried first; where their predicted gain grows, the search starts again with step halving.
    Where the observed curvature is not positive definite, a step by the expected one comes next.
    """
    joint = search.joint_before
    if search.is_damped.any():
        joint = torch.where(search.is_damped, _log_joint(field, points, search), joint)
    goes_back = search.is_trial & (joint < search.joint_before - 1e-10) & (search.halvings < MAX_HALVINGS)
    is_definite = ~solution.log_determinant.isnan()
    gain = torch.where(is_definite, gain, torch.inf)
    done = ~goes_back & is_definite & ~search.wants_expected & (gain.abs() < tolerance)
    is_open = ~goes_back & ~done
    is_worse = gain > search.previous_gain
    restarts = is_open & ~search.is_damped & (is_worse if iteration else is_worse | ~is_definite)
    takes = is_open & ~restarts & is_definite
    marks = takes & search.is_damped
    moved = search._replace(
        position=_move(search, solution, takes, goes_back, restarts),
        before=_choose(marks, search.position, search.before),
        previous_gain=torch.where(takes, gain, search.previous_gain),
        joint_before=torch.where(marks, joint, search.joint_before),
        halvings=torch.where(marks, 0.0, search.halvings + goes_back),
        is_damped=search.is_damped | restarts,
        is_trial=goes_back | marks,
        wants_expected=torch.where(takes, False, search.wants_expected | (is_open & ~restarts & ~is_definite)),
    )
    return done, moved


def _move(search: Search, solution: Solution, takes: Tensor, goes_back: Tensor, restarts: Tensor) -> Position:
    """The Newton target, half of the way back to where a step started, the start of a damped search, or the same."""
    b = torch.zeros_like(solution.b)
    halfway = Position(*(0.5 * (x + old) for x, old in zip(search.position, search.before, strict=True)))
    position = _choose(goes_back, halfway, search.position)
    position = _choose(restarts, Position(b, b, search.start_beta), position)
    return _choose(takes, Position(solution.b, solution.dual, solution.beta), position)


def _choose(condition: Tensor, yes: Position, no: Position) -> Position:
    return Position(*(torch.where(condition[:, None], x, y) for x, y in zip(yes, no, strict=True)))


def _finish(field: TorchField, points: Points, search: Search, solution: Solution, gain: Tensor) -> Modes:
    """Results at modes, with the second-order correction.

    The evidence holds the effect of the last, untaken Newton step to first order.
    """
    value, correction, effects = _second_order(field, points, search, solution, gain)
    # METHOD: the series is asymptotic; as in the compiled kernel, none of it is used where it is of any size.
    moves_little = (effects.mean - solution.beta) ** 2 < points.prior_variance
    small = (correction.abs() < LARGEST_CORRECTION) & moves_little[:, 0]
    moved = small[:, None] & moves_little
    used = Effects(
        torch.where(moved, effects.mean, solution.beta),
        torch.where(moved, effects.variance, torch.minimum(effects.variance, points.prior_variance)),
        torch.where(moved, effects.third, 0.0),
        effects.covariance,
    )
    results = _results(torch.where(small, value + correction, value), correction, used)
    is_finite = _results(value, correction, effects).sum(1).isfinite()
    failed = _failed(points.prior_mean, points.prior_variance)
    return Modes(torch.where(is_finite[:, None], results, failed), search.expansion, search.position.beta)


def _second_order(
    field: TorchField, points: Points, search: Search, solution: Solution, gain: Tensor
) -> tuple[Tensor, Tensor, Effects]:
    """Log evidence without the correction c, [B]; c, [B]; the effects' moments, [B, P].

    The formulas stand in epivi.field.compiled.laplace.
    """
    scaled = scaled_design(field, points, solution)
    variance = latent_variance(field, solution) + (scaled**2).sum(1)
    third, fourth = observation_third_fourth(field, points, search.expansion.eta)
    pull = third * variance
    across = (scaled * pull[:, None]).sum(2)
    correction = (fourth * variance**2).sum(1) / 8.0 + (across**2).sum(1) / 8.0
    for group, root in zip(field.groups, solution.roots, strict=True):
        within = group.between_samples(root.mT @ root)
        own = group.by_block(scaled[:, :, group.samples].mT)  # [B, F, s, P]
        between = own @ own.mT
        cubes = within * (within**2 + 3.0 * between * (within + between))  # (within + between)^3 - between^3
        pulls, thirds = (group.by_block(x[:, group.samples])[..., None] for x in (pull, third))
        correction = correction + (pulls * (within @ pulls)).sum((1, 2, 3)) / 8.0
        correction = correction + (thirds * (cubes @ thirds)).sum((1, 2, 3)) / 12.0
    # The rest of sum_st f3_s f3_t S_st^3, of rank P, is the squared norm of a third-order moment.
    for p in range(scaled.shape[1]):
        moment = (scaled * (third * scaled[:, p])[:, None]) @ scaled.mT
        correction = correction + (moment**2).sum((1, 2)) / 12.0
    determinant_shift = 0.5 * (pull * (predictor(field, points, solution.b, solution.beta) - search.expansion.eta)).sum(
        1
    )
    value = _log_joint(field, points, search) + gain - 0.5 * solution.log_determinant + determinant_shift
    root = effect_root(solution.schur)
    mean = solution.beta + 0.5 * (root @ across[:, :, None])[:, :, 0]
    skew = (third[:, None] * (root @ scaled) ** 3).sum(2)
    return value, correction, Effects(mean, (root**2).sum(2), skew, (root @ root[:, 0, :, None])[:, :, 0])


# --- expectation propagation -----------------------------------------------------------------------------------------


def _propagate(field: TorchField, points: Points, modes: Modes, quadrature: Tensor) -> Tensor:
    """Expectation propagation, as the compiled one, from Laplace's approximation: results [B, 2 + 4 P].

    Evidence, means and covariances are replaced where the sites settle; elsewhere the correction becomes
    NOT_CONVERGED.
    """
    results = modes.results.clone()
    rows = torch.arange(len(results), device=results.device)
    eta, slope, curvature = modes.expansion
    target = slope + curvature * eta
    for sweep in range(MAX_SWEEPS):
        solution = solve_field(field, points, curvature, target)
        mean = predictor(field, points, solution.b, solution.beta)
        variance = latent_variance(field, solution) + (scaled_design(field, points, solution) ** 2).sum(1)
        log_ratio, shift, tilted = _tilted(field, points, curvature, target, mean, variance, quadrature)
        evidence = _log_gaussian(points, solution, curvature, target, mean) + log_ratio.sum(1)
        mismatch = torch.maximum(shift**2 / variance, (tilted / variance - 1.0) ** 2).amax(1)
        settles = (mismatch < LARGEST_MISMATCH) & evidence.isfinite()
        settled, left = settles.nonzero()[:, 0], (~settles).nonzero()[:, 0]
        if len(settled):
            root, place = effect_root(solution.schur[settled]), rows[settled]
            before = effects_of(results[place])
            covariance = (root @ root[:, 0, :, None])[:, :, 0]
            effects = Effects(solution.beta[settled], (root**2).sum(2), before.third, covariance)
            results[place] = _results(evidence[settled], results[place, CORRECTION], effects)
        way = 1.0 if sweep < FULL_SWEEPS else DAMPING
        curvature = curvature + way * (1.0 / tilted - 1.0 / variance)
        target = target + way * ((mean + shift) / tilted - mean / variance)
        if not len(left):
            break
        if len(settled):
            rows, points, curvature, target = rows[left], _take_points(points, left), curvature[left], target[left]
    else:
        results[rows, CORRECTION] = NOT_CONVERGED
    return results


def _log_gaussian(points: Points, solution: Solution, curvature: Tensor, target: Tensor, eta: Tensor) -> Tensor:
    """Log of the integral of prior times sites."""
    prior = (solution.b * solution.dual).sum(1)
    prior = prior + ((solution.beta - points.prior_mean) ** 2 / points.prior_variance).sum(1)
    return ((target - 0.5 * curvature * eta) * eta).sum(1) - 0.5 * prior - 0.5 * solution.log_determinant


def _tilted(
    field: TorchField,
    points: Points,
    curvature: Tensor,
    target: Tensor,
    mean: Tensor,
    variance: Tensor,
    quadrature: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """log E[observation / site] under N(mean, variance), and of the tilted distribution its mean less that one, and its
    variance, [B, S] each."""

    def log_ratio(eta: Tensor) -> Tensor:
        return log_observation(field, points, eta) - (target - 0.5 * curvature * eta) * eta

    node, node_weight = quadrature
    sd = variance.sqrt()
    centre = log_ratio(mean)
    ratio = exponential(log_ratio(mean + node[:, None, None] * sd) - centre)
    powers = torch.stack([node_weight, node_weight * node, node_weight * node**2])
    zeroth, first, second = (powers @ ratio.flatten(1)).unflatten(1, mean.shape)
    first, second = sd * first / zeroth, variance * second / zeroth
    return centre + zeroth.log(), first, second - first**2
