"""The no-U-turn sampler on a Pyro model function: the reference that the other methods are held to.

Hoffman and Gelman 2014 (Journal of Machine Learning Research 15:1593), multinomial variant, as Pyro implements it. The
model function is used as it stands; what sampling needs is put around it:

    b ~ N(mu, L L')    becomes    z ~ N(0, I),  b = mu + L z          for every latent multivariate normal site

because the variance of b is itself sampled, and a centred b narrows with it to a funnel (Papaspiliopoulos, Roberts and
Skold 2007, Statistical Science 22:59). Constrained sites are sampled on their unconstrained scale.

# METHOD: many loci of one hypothesis are sampled in one joint chain. They are independent, but share step size and
# tree, so that trees grow slowly with their number while a gradient of 64 loci costs what one of a single locus does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.infer.mcmc import NUTS
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam.reparam import Reparam
from pyro.ops.integrator import potential_grad
from torch import Tensor
from torch.distributions import biject_to

from epivi.families.transmission.density import Batch, Hyperparameters, TransmissionModel, transmission
from epivi.field.layout import LatentField
from epivi.field.torch.prior import latent_positions

Array = NDArray[np.float64]
Model = Callable[..., None]

STANDARD = "_standard"  # suffix of the standard normal site that stands for a multivariate normal one
START_RADIUS = 2.0  # chains start uniformly within it, on the unconstrained scale
MAX_STARTS = 100
TARGET_ACCEPTANCE = 0.8
MAX_TREE_DEPTH = 10


class NutsSettings(NamedTuple):
    """How long to sample."""

    chains: int
    warmup: int  # transitions of each chain that adapt step size and mass matrix and are thrown away
    draws: int  # of each chain
    loci_together: int = 64  # loci in one joint chain, of `transmission_nuts`


class Chains(NamedTuple):
    """C chains of T draws of a model's latent sites, on the scale and in the coordinates of the model."""

    sites: dict[str, Array]  # [C, T, ...]
    divergences: NDArray[np.int64]  # [C], transitions after warm-up whose energy error was beyond any bound


class Density(NamedTuple):
    """A model's log density as the sampler sees it: unconstrained, multivariate normal sites non-centred."""

    potential: Callable[[dict[str, Tensor]], Tensor]  # minus the log density, all constants included
    transforms: dict[str, Any]  # from a site's own scale to the unconstrained one
    shapes: dict[str, torch.Size]  # on the unconstrained scale


class DrawSummary(NamedTuple):
    """Posterior moments from draws, and how well they are known; all of the draws' trailing shape."""

    mean: Array
    mean_se: Array  # Monte Carlo standard error
    sd: Array
    sd_se: Array
    rhat: Array  # rank-normalized, split


class NutsPosterior(NamedTuple):
    """One hypothesis at L loci; D parameters: the P effects, baseline first, and the hypothesis' free parameters on
    their unconstrained scale; N latents b in the order of the LatentField."""

    parameters: Array  # [C, T, L, D]
    field: Array  # [C, T, L, N]
    parameter_summary: DrawSummary  # [L, D]
    field_summary: DrawSummary  # [L, N]
    covariance: Array  # [L, D, D], of the parameters
    covariance_se: Array  # [L, D, D], Monte Carlo standard error
    divergences: NDArray[np.int64]  # [L], of the joint chains that a locus was in


# --- any model -------------------------------------------------------------------------------------------------------


class NonCentred(Reparam):
    """A multivariate normal site as an affine map of a standard normal one."""

    def apply(self, msg: Any) -> Any:
        normal, event_dim = self._unwrap(msg["fn"])
        value, standard = msg["value"], None
        if value is not None:
            offset = (value - normal.loc)[..., None]
            standard = torch.linalg.solve_triangular(normal.scale_tril, offset, upper=False)[..., 0]
        unit = self._wrap(dist.Normal(torch.zeros_like(normal.loc), 1.0).to_event(1), event_dim)
        standard = pyro.sample(msg["name"] + STANDARD, unit, obs=standard, infer={"is_observed": msg["is_observed"]})
        if value is None:
            value = normal.loc + (normal.scale_tril @ standard[..., None])[..., 0]
        return {"fn": dist.Delta(value, event_dim=event_dim).mask(False), "value": value, "is_observed": True}


def non_centred(model: Model) -> Model:
    """The model with every latent multivariate normal site made non-centred."""

    def choose(site: Any) -> Reparam | None:
        fn = site["fn"]
        while isinstance(fn, dist.Independent):
            fn = fn.base_dist
        return NonCentred() if isinstance(fn, dist.MultivariateNormal) and not site["is_observed"] else None

    return poutine.reparam(model, config=choose)


def sampled_density(model: Model, args: tuple[Any, ...]) -> Density:
    """The density that `run_nuts` samples.

    Raises ValueError for a model that is not in double precision, and for one with a plate that holds only a part of
    what it stands for: its density would be scaled up.
    """
    moved = non_centred(model)
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        trace = poutine.trace(moved).get_trace(*args)
        sites: dict[str, Any] = {name: trace.nodes[name] for name in _latent_names(trace)}
        scaled = [name for name, site in trace.nodes.items() if site["type"] == "sample" and site["scale"] != 1.0]
        if scaled:
            raise ValueError(f"NUTS needs whole plates; site {scaled[0]!r} stands for more than it holds")
        single = [name for name, site in sites.items() if site["value"].dtype != torch.float64]
        if single:
            raise ValueError(f"NUTS needs double precision; site {single[0]!r} is {sites[single[0]]['value'].dtype}")
        transforms = {name: biject_to(_support(site["fn"])).inv for name, site in sites.items()}
        values = {name: transforms[name](site["value"]).detach() for name, site in sites.items()}
        _, potential, _, _ = initialize_model(
            moved, args, transforms=transforms, initial_params=values, init_strategy=init_to_sample
        )
    return Density(potential, transforms, {name: value.shape for name, value in values.items()})


def _latent_names(trace: poutine.Trace) -> list[str]:
    subsample = pyro.poutine.subsample_messenger._Subsample
    return [name for name, site in trace.iter_stochastic_nodes() if not isinstance(site["fn"], subsample)]


def _support(fn: Any) -> Any:
    # torch has no transform for the constraint in which it wraps the support of a mixture.
    return fn.component_distribution.support if isinstance(fn, dist.MixtureSameFamily) else fn.support


def run_nuts(model: Model, args: tuple[Any, ...], settings: NutsSettings, seed: int) -> Chains:
    """Draw from the posterior of a Pyro model's latent sites, chain after chain.

    Diagonal mass matrix; `model(*args)` must be in double precision and hold whole plates. Raises RuntimeError where no
    start with a finite density is found.
    """
    density = sampled_density(model, args)
    chains, divergences = [], []
    # Validation would look at every number of every gradient; blocked, because a caller may itself be traced.
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False), poutine.block():
        for chain_seed in np.random.SeedSequence(seed).generate_state(settings.chains):
            torch.manual_seed(int(chain_seed))
            draws, diverged = _run_chain(density, settings)
            chains.append(_model_sites(model, args, density, draws))
            divergences.append(diverged)
    sites = {name: np.stack([chain[name] for chain in chains]) for name in chains[0]}
    return Chains(sites, np.array(divergences))


def _run_chain(density: Density, settings: NutsSettings) -> tuple[list[dict[str, Tensor]], int]:
    """Unconstrained draws of one chain, and how many transitions diverged."""
    kernel = NUTS(potential_fn=density.potential, target_accept_prob=TARGET_ACCEPTANCE, max_tree_depth=MAX_TREE_DEPTH)
    kernel.initial_params = _start(density)
    kernel.setup(settings.warmup)
    values, draws = kernel.initial_params, []
    for transition in range(settings.warmup + settings.draws):
        values = kernel.sample(values)
        if transition >= settings.warmup:
            draws.append({name: value.detach() for name, value in values.items()})
    return draws, len(kernel.diagnostics()["divergences"])


def _start(density: Density) -> dict[str, Tensor]:
    for _ in range(MAX_STARTS):
        start = {
            name: START_RADIUS * (2.0 * torch.rand(shape, dtype=torch.float64) - 1.0)
            for name, shape in density.shapes.items()
        }
        gradients, energy = potential_grad(density.potential, start)
        if all(part.isfinite().all() for part in (energy, *gradients.values())):
            return start
    raise RuntimeError(f"no start with a finite density in {MAX_STARTS} attempts")


def _model_sites(
    model: Model, args: tuple[Any, ...], density: Density, draws: list[dict[str, Tensor]]
) -> dict[str, Array]:
    """Every draw in the model's own sites, [T, ...], by running the model function on it."""
    names = _latent_names(poutine.trace(model).get_trace(*args))
    values: dict[str, list[Array]] = {name: [] for name in names}
    with torch.no_grad():
        for draw in draws:
            given = {name: density.transforms[name].inv(value) for name, value in draw.items()}
            nodes: Any = poutine.trace(poutine.condition(non_centred(model), data=given)).get_trace(*args).nodes
            for name in names:
                values[name].append(nodes[name]["value"].numpy())
    return {name: np.stack(some) for name, some in values.items()}


# --- summaries -------------------------------------------------------------------------------------------------------


def summarize_draws(draws: Array) -> DrawSummary:
    """Moments of every quantity in draws [C, T, ...], their Monte Carlo errors and r-hat (Vehtari et al. 2021)."""
    from arviz_stats.base import array_stats  # imported where needed: it is slow to load

    axes = {"chain_axis": 0, "draw_axis": 1}
    return DrawSummary(
        mean=draws.mean((0, 1)),
        mean_se=array_stats.mcse(draws, method="mean", **axes),
        sd=draws.reshape(-1, *draws.shape[2:]).std(0, ddof=1),
        sd_se=array_stats.mcse(draws, method="sd", **axes),
        rhat=array_stats.rhat(draws, **axes),
    )


def draw_covariance(draws: Array) -> tuple[Array, Array]:
    """Posterior covariance [L, D, D] from draws [C, T, L, D], and its Monte Carlo standard error."""
    from arviz_stats.base import array_stats  # imported where needed: it is slow to load

    offset = draws - draws.mean((0, 1))
    size = draws.shape[-1]
    row, column = np.tril_indices(size)
    products = offset[..., row] * offset[..., column]
    covariance, error = np.empty((2, *draws.shape[2:], size))
    for out, value in (
        (covariance, products.mean((0, 1))),
        (error, array_stats.mcse(products, chain_axis=0, draw_axis=1, method="mean")),
    ):
        out[..., row, column] = out[..., column, row] = value
    return covariance, error


# --- the transmission family -----------------------------------------------------------------------------------------


def transmission_nuts(
    family: TransmissionModel,
    hyper: Hyperparameters,
    hypothesis: int,
    field: LatentField,
    batch: Batch,
    settings: NutsSettings,
    seed: int,
) -> NutsPosterior:
    """Posterior of every latent of hypothesis number `hypothesis` at the loci of `batch`, hyper-parameters given.

    family, hyper and batch must be in double precision. field: the one that family.fields[hypothesis] was made of.
    batch: its loci are taken for all there are, whatever its n_loci. Locus by locus the draws depend on which others
    are sampled with it.
    """
    fixed = copy.deepcopy(hyper).requires_grad_(False)
    loci = len(batch.locus)
    parts, divergences = [], []
    for number, first in enumerate(range(0, loci, settings.loci_together)):
        part = slice(first, first + settings.loci_together)
        size = len(batch.locus[part])
        some = Batch(batch.meth[part], batch.total[part], batch.log_binomial[part], torch.arange(size), size)
        part_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        chains = run_nuts(transmission, (family, fixed, hypothesis, some), settings, part_seed)
        parts.append(_arranged(family, hypothesis, field, chains.sites))
        divergences.append(np.full(size, chains.divergences.sum()))
    parameters, latents = (np.concatenate(arrays, axis=2) for arrays in zip(*parts, strict=True))
    return NutsPosterior(
        parameters,
        latents,
        summarize_draws(parameters),
        summarize_draws(latents),
        *draw_covariance(parameters),
        np.concatenate(divergences),
    )


def _arranged(
    family: TransmissionModel, hypothesis: int, field: LatentField, sites: dict[str, Array]
) -> tuple[Array, Array]:
    """Parameters [C, T, B, D] and latents [C, T, B, N] from the sites of `transmission`."""
    columns = [sites["baseline"][..., None]]
    if "effects" in sites:
        columns.append(sites["effects"])
    columns += [sites[name][..., None] for name in family.hypotheses[hypothesis].parameters]
    tensors = family.fields[hypothesis]
    groups = [sites[f"field_{k}"] for k in range(len(tensors.groups))]
    latents = np.concatenate([group.reshape(*group.shape[:3], -1) for group in groups], axis=3)
    return np.concatenate(columns, axis=3), latents[..., latent_positions(field, tensors)]
