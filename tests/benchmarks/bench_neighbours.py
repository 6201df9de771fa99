"""epivi beside NumPyro's NUTS and glimix-core's binomial mixed model: same loci, same machine, one core, one run.

    python tests/benchmarks/bench_neighbours.py --output neighbours.json

README.md in this folder says what is compared and how to read the numbers. Nothing here asserts on them; only that
NumPyro is given the density that epivi integrates is checked, at random points of it.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.special import expit

from epivi.base.files import write_json
from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet
from epivi.config.load import Config, load_config
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.columns import PARAMETERS
from epivi.families.transmission.density import (
    FIT_DTYPE,
    LearnedPriors,
    TransmissionModel,
    build_transmission,
    to_batch,
    transmission,
)
from epivi.families.transmission.fit import initialize, new_state
from epivi.families.transmission.guide import GUIDES
from epivi.families.transmission.hypotheses import Hypothesis, parse_hypotheses, share_priors
from epivi.families.transmission.outer_integral import (
    EvidenceModel,
    HypothesisEvidence,
    build_evidence_model,
    hypothesis_evidence,
    marginal_proposal,
    nodes_for,
)
from epivi.families.transmission.refinement import evaluate_batch
from epivi.families.transmission.simulate import SimulationSettings, simulate_cohort
from epivi.field.compiled.nodes import evaluate_nodes
from epivi.field.dense.expectation_propagation import ep
from epivi.field.dense.importance import exact_field
from epivi.field.dense.problem import FieldProblem, FieldVariances, build_field_problem
from epivi.field.layout import NUGGET, field_covariance
from epivi.fit.svi import FitSettings, fit_steps
from epivi.loci.source import CountsBatch
from epivi.simulate.positions import Contig

Array = NDArray[np.float64]
Counts = NDArray[np.uint16]
T = TypeVar("T")

CPU = torch.device("cpu")
COHORTS = {12: (2, 2), 28: (4, 3)}  # individuals -> families of four grown-ups, and children in each
HYPOTHESES = ("mendelian", "epigenetic", "maternal", "paternal")
LEAST_SECONDS = 1.5  # of the processor, that a quick call is repeated for
LARGEST_DENSITY_ERROR = 1e-6  # nats
POINT_BASELINE_SD = 1e-4  # logit: a baseline that is as good as fixed
SAMPLING_DRAWS = 40_000  # a locus
BULK_LOCI = 4096


# --- time ------------------------------------------------------------------------------------------------------------


class Seconds(NamedTuple):
    """What a piece of work took: of the processor, and by the clock on the wall."""

    cpu: float
    wall: float

    def over(self, number: float) -> Seconds:
        return Seconds(self.cpu / number, self.wall / number)


def timed(work: Callable[[], T]) -> tuple[T, Seconds]:
    """One call."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def timed_again(work: Callable[[], T]) -> tuple[T, Seconds]:
    """The mean over as many calls as fill LEAST_SECONDS, after one that may have to compile."""
    result, calls = work(), 0
    cpu, wall = time.process_time(), time.perf_counter()
    while not calls or time.process_time() - cpu < LEAST_SECONDS:
        work()
        calls += 1
    return result, Seconds(time.process_time() - cpu, time.perf_counter() - wall).over(calls)


# --- the cohort ------------------------------------------------------------------------------------------------------


class Study(NamedTuple):
    """A simulated cohort of S samples, fitted, and the L loci that all tools are given."""

    model: EvidenceModel
    family: TransmissionModel
    meth: Counts  # [L, S]
    total: Counts  # [L, S]
    hypothesis: int  # the one that is compared
    nodes: int
    seed: int

    @property
    def loci(self) -> NDArray[np.int64]:
        return np.arange(len(self.meth))

    @property
    def declared(self) -> Hypothesis:
        return self.model.hypotheses[self.hypothesis]


class Drawn(NamedTuple):
    """The loci compared, and many more of the same cohort."""

    compared: Study
    bulk: Study


class DrawnLoci:
    """Random minibatches of loci in memory, with what epivi.fit.minibatch.Minibatches offers to a fit."""

    def __init__(self, meth: Counts, total: Counts, section: Mapping[str, Any], seed: int) -> None:
        self.n_loci = len(meth)
        self._meth, self._total = meth, total
        order = np.random.default_rng([seed, 1]).permutation(self.n_loci)
        self._held_out, self._training = np.split(order, [section["holdout_loci"]])
        self._batch = section["batch_loci"]
        self._random = np.random.default_rng([seed, 2])

    def holdout(self) -> CountsBatch:
        return self._read(self._held_out)

    def draw(self) -> CountsBatch:
        return self._read(self._random.choice(self._training, self._batch, replace=False))

    def _read(self, loci: NDArray[np.int64]) -> CountsBatch:
        return CountsBatch(self._meth[loci], self._total[loci], loci)


def family_pedigree(families: int, children: int) -> Pedigree:
    """Families of grandparents on the mother's side, mother, father and children."""
    size = 4 + children
    roles = ("grandmother", "grandfather", "mother", "father", *(f"child{number + 1}" for number in range(children)))

    def repeat(parent: list[int]) -> NDArray[np.int32]:
        return np.array([p + f * size if p >= 0 else -1 for f in range(families) for p in parent], dtype=np.int32)

    return Pedigree(
        individuals=tuple(f"F{f + 1}_{role}" for f in range(families) for role in roles),
        mother=repeat([-1, -1, 0, -1, *[2] * children]),
        father=repeat([-1, -1, 1, -1, *[3] * children]),
        mode=("sexual",) * (size * families),
        generations=np.ones(size * families, dtype=np.int32),
        sex=("unknown",) * (size * families),
    )


def sample_sheet(individuals: tuple[str, ...]) -> SampleSheet:
    """One sample each, read without error: glimix-core's likelihood knows no conversion errors."""
    size = len(individuals)
    return SampleSheet(
        path="samples.tsv",
        samples=individuals,
        individuals=individuals,
        paths=individuals,
        formats=("auto",) * size,
        haplotypes=("all",) * size,
        false_methylated=np.zeros(size),
        false_unmethylated=np.zeros(size),
        columns={},
        lines=tuple(range(2, size + 2)),
    )


def fitted_study(
    individuals: int, loci: int, training_loci: int, coverage: float, hypothesis: str, config: Config, seed: int
) -> Drawn:
    """Draw a cohort under the default hypotheses, equally often, and fit it; the first loci are those compared."""
    pedigree = family_pedigree(*COHORTS[individuals])
    sheet = sample_sheet(pedigree.individuals)
    hypotheses = parse_hypotheses(config.section("model")["hypotheses"])
    priors = share_priors(config.section("model")["priors"])
    settings = SimulationSettings(
        seed=seed,
        hypotheses=hypotheses,
        weights=(1 / len(hypotheses),) * len(hypotheses),
        contigs=(Contig("chr1", loci + training_loci),),
        share_priors=priors,
        coverage_mean=coverage,
    )
    drawn = simulate_cohort(settings, pedigree, sheet)
    meth, total = drawn.meth.astype(np.uint16), drawn.total.astype(np.uint16)
    cohort = build_cohort(sheet, pedigree, (), hypotheses)
    fit = config.section("fit")
    pyro.set_rng_seed(seed)
    steps = FitSettings(fit["max_steps"], fit["learning_rate"], fit["check_every"], fit["tolerance"], seed)
    family = build_transmission(cohort, hypotheses, priors, CPU, FIT_DTYPE)
    state = new_state(cohort, family, config.section("model")["baseline_components"], fit["hidden"], steps, CPU)
    minibatches: Any = DrawnLoci(meth[loci:], total[loci:], fit, seed)
    initialize(state, to_batch(minibatches.holdout(), minibatches.n_loci, CPU))
    for _ in fit_steps(state, family, GUIDES[fit["guide"]], minibatches, steps, CPU, to_batch):
        pass
    learned = LearnedPriors.of(state.averaged)
    bulk = slice(loci, loci + BULK_LOCI)
    study = Study(
        build_evidence_model(cohort, hypotheses, learned, priors, state.encoder.state_dict(), fit["hidden"]),
        build_transmission(cohort, hypotheses, priors, CPU, torch.float64),
        meth[:loci],
        total[:loci],
        [declared.name for declared in hypotheses].index(hypothesis),
        config.section("evidence")["nodes"],
        seed,
    )
    return Drawn(study, study._replace(meth=meth[bulk], total=total[bulk]))


# --- epivi -----------------------------------------------------------------------------------------------------------


def one_evidence(study: Study) -> HypothesisEvidence:
    """Evidence and posterior of the hypothesis at all loci, from the counts: encoder, outer nodes, inner integrals."""
    model, index = study.model, study.hypothesis
    batch = to_batch(CountsBatch(study.meth, study.total, study.loci), len(study.meth), CPU, torch.float64)
    with torch.no_grad():
        theta = model.encoder(batch, model.hyper)[index]
    proposal = marginal_proposal(theta.mean.numpy(), theta.scale_tril.numpy(), len(study.declared.parameters))
    return hypothesis_evidence(model, index, proposal, study.meth, study.total, study.loci, study.nodes, study.seed)


def all_evidences(study: Study) -> list[HypothesisEvidence]:
    """Every hypothesis, as `epivi evidence` does it."""
    return evaluate_batch(study.model, study.meth, study.total, study.loci, study.nodes, study.seed)


class FixedParameters(NamedTuple):
    """Variance components and a Gaussian prior of the baseline at each locus, [L] each."""

    variances: FieldVariances
    baseline_mean: Array  # logit
    baseline_sd: Array  # logit


def kernel_evidence(study: Study, fixed: FixedParameters, method: str) -> Array:
    """Log evidence [L] at given parameters by epivi's compiled kernel, which takes one baseline prior at a time."""
    variances, tau = (np.repeat(part[:, None], 2, 1) for part in fixed.variances)
    out = np.empty(len(tau))
    for locus in range(len(tau)):
        part = slice(locus, locus + 1)
        out[locus] = evaluate_nodes(
            study.model.arrays[study.hypothesis],
            study.meth[part],
            study.total[part],
            variances[part],
            tau[part],
            np.ones(1),
            fixed.baseline_mean[part],
            fixed.baseline_sd[part],
            np.zeros(0),
            method=method,
        ).log_evidence[0, 1]  # node 0 only starts the other
    return out


def kernel_seconds(study: Study, evidence: HypothesisEvidence, method: str) -> Seconds:
    """Of one inner integral by the kernel, at the outer nodes of the hypothesis's own evidence."""
    learned, nodes = study.model.learned, evidence.node_variances
    _, seconds = timed_again(
        lambda: evaluate_nodes(
            study.model.arrays[study.hypothesis],
            study.meth,
            study.total,
            np.ascontiguousarray(nodes[..., :-1]),
            np.ascontiguousarray(nodes[..., -1]),
            learned.baseline_weights,
            learned.baseline_means,
            learned.baseline_sds,
            np.zeros(0),
            method=method,
        )
    )
    return seconds.over(nodes.shape[0] * nodes.shape[1])


def dense_problem(study: Study, fixed: FixedParameters) -> FieldProblem:
    """The same integral for epivi's dense methods."""
    return build_field_problem(
        study.model.cohort.fields[study.hypothesis],
        study.model.cohort,
        fixed.variances,
        fixed.baseline_mean[:, None],
        fixed.baseline_sd[:, None] ** 2,
        study.meth,
        study.total,
    )


# --- NumPyro ---------------------------------------------------------------------------------------------------------


class NutsSettings(NamedTuple):
    """How long NUTS runs, and over how many loci at once."""

    chains: int
    warmup: int  # iterations
    draws: int  # of a chain
    loci_at_once: int  # in one plate


class Sampled(NamedTuple):
    """Posterior of schema.PARAMETERS by NUTS, P of them at L loci, and what the draws are worth."""

    mean: Array  # [L, P]
    sd: Array  # [L, P]
    standard_error: Array  # [L, P], of the mean
    effective_draws: Array  # [L, P]; nan where the hypothesis fixes the parameter
    split_rhat: Array  # [L, P]
    divergent: float  # share of the draws
    leapfrogs: float  # a draw
    density_error: float  # nats, from epivi's model
    compiling: Seconds
    sampling: Seconds


class NumpyroModel(NamedTuple):
    """epivi.families.transmission.density.transmission over a plate of B loci, as NumPyro has it."""

    model: Callable[..., None]  # of meth, total [B, S]; the field is a factor times z, z ~ N(0, I)
    factors: Callable[..., list[Any]]  # of the unconstrained parameters by name: Cholesky factors [B, F, n, n]


def numpyro_model(study: Study) -> NumpyroModel:
    """The density of the study's hypothesis, which has no environment and no covariates."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax.nn import sigmoid

    hypothesis, learned, field = study.declared, study.model.learned, study.family.fields[study.hypothesis]
    terms = [(jnp.asarray(group.exponent.numpy()), jnp.asarray(group.coefficient.numpy())) for group in field.groups]
    latent_of_sample = field.latent_of_sample.numpy()
    mixture = dist.MixtureSameFamily(
        dist.Categorical(probs=jnp.asarray(learned.baseline_weights)),
        dist.Normal(jnp.asarray(learned.baseline_means), jnp.asarray(learned.baseline_sds)),
    )
    priors = {"log_spread": (learned.spread_location, learned.spread_scale), **study.family.priors}

    def factors(theta: Mapping[str, Any]) -> list[Any]:
        variance, share = jnp.exp(2 * theta["log_spread"]), sigmoid(theta["logit_heritable_share"])
        tau = sigmoid(theta["logit_transmissibility"]) if hypothesis.has_free_transmissibility else 0 * share
        heritable, own = variance * share, variance * (1 - share + NUGGET)
        found = []
        for exponent, coefficient in terms:
            transmitted = jnp.einsum("be,efij->bfij", tau[:, None] ** exponent, coefficient)
            diagonal = own[:, None, None, None] * jnp.eye(coefficient.shape[-1])
            found.append(jnp.linalg.cholesky(heritable[:, None, None, None] * transmitted + diagonal))
        return found

    def model(meth: Any, total: Any) -> None:
        with numpyro.plate("loci", len(meth)):
            baseline = numpyro.sample("baseline", mixture)
            theta = {name: numpyro.sample(name, dist.Normal(*priors[name])) for name in hypothesis.parameters}
            field = []
            for k, factor in enumerate(factors(theta)):
                z = numpyro.sample(f"z_{k}", dist.Normal(0.0, 1.0).expand(factor.shape[:3]).to_event(2))
                field.append(jnp.einsum("bfij,bfj->bfi", factor, z).reshape(len(meth), -1))
            y = baseline[:, None] + jnp.concatenate(field, axis=1)[:, latent_of_sample]
            numpyro.sample("meth", dist.Binomial(total, logits=y).to_event(1), obs=meth)

    return NumpyroModel(model, factors)


def density_error(study: Study, numpyro_side: NumpyroModel) -> float:
    """Largest difference, in nats, of NumPyro's density from epivi's Pyro model, at a draw of the prior a locus."""
    import jax
    import jax.numpy as jnp
    from numpyro import handlers

    seeded = handlers.seed(numpyro_side.model, jax.random.key(study.seed))
    trace = handlers.trace(seeded).get_trace(*_as_floats(study))
    sites = {name: site for name, site in trace.items() if site["type"] == "sample"}
    values = {name: site["value"] for name, site in sites.items() if not site["is_observed"]}
    theirs = sum(site["fn"].log_prob(site["value"]) for site in sites.values())
    for k, factor in enumerate(numpyro_side.factors(values)):
        # b = factor z: its density is that of z over the determinant.
        theirs -= jnp.log(jnp.diagonal(factor, axis1=2, axis2=3)).sum((1, 2))
        values[f"field_{k}"] = jnp.einsum("bfij,bfj->bfi", factor, values.pop(f"z_{k}"))
    batch = to_batch(CountsBatch(study.meth, study.total, study.loci), len(study.meth), CPU, torch.float64)
    tensors = {name: torch.tensor(np.asarray(value)) for name, value in values.items()}
    conditioned = pyro.poutine.condition(transmission, data=tensors)
    with torch.no_grad():
        pyro_trace = pyro.poutine.trace(conditioned).get_trace(study.family, study.model.hyper, study.hypothesis, batch)
        pyro_trace.compute_log_prob()
    ours = torch.stack([pyro_trace.nodes[name]["log_prob"] for name in (*tensors, "meth")]).sum(0)
    return float(np.abs(ours.numpy() - np.asarray(theirs)).max())


def _as_floats(study: Study) -> tuple[Array, Array]:
    return study.meth.astype(np.float64), study.total.astype(np.float64)


def sample_with_nuts(study: Study, settings: NutsSettings) -> Sampled:
    """Chains over plates of loci, compiled beforehand."""
    import jax
    from numpyro.infer import MCMC, NUTS

    numpyro_side = numpyro_model(study)
    error = density_error(study, numpyro_side)
    if not error < LARGEST_DENSITY_ERROR:
        raise AssertionError(f"NumPyro's density is {error:.3g} nats off epivi's")

    def chain(key: Any, meth: Any, total: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        nuts = NUTS(numpyro_side.model)
        mcmc = MCMC(nuts, num_warmup=settings.warmup, num_samples=settings.draws, progress_bar=False)
        mcmc.run(key, meth, total, extra_fields=("num_steps", "diverging"))
        draws = mcmc.get_samples()
        return {name: draws[name] for name in ("baseline", *study.declared.parameters)}, mcmc.get_extra_fields()

    meth, total = _as_floats(study)
    parts = [slice(start, start + settings.loci_at_once) for start in range(0, len(meth), settings.loci_at_once)]
    keys = jax.random.split(jax.random.key(study.seed), (len(parts), settings.chains))
    first = keys[0, 0], meth[parts[0]], total[parts[0]]
    compiled, compiling = timed(lambda: jax.jit(chain).lower(*first).compile())
    found, sampling = timed(
        lambda: [
            [jax.block_until_ready(compiled(key, meth[part], total[part])) for key in of_part]
            for part, of_part in zip(parts, keys, strict=True)
        ]
    )
    draws = {  # [L, chains, draws]
        name: np.concatenate([np.stack([one[0][name] for one in of_part]).transpose(2, 0, 1) for of_part in found])
        for name in found[0][0][0]
    }
    extra = {name: np.array([[one[1][name] for one in of_part] for of_part in found]) for name in found[0][0][1]}
    return _summarize(study, draws, extra, compiling, sampling, error)


def _summarize(
    study: Study,
    draws: Mapping[str, Array],
    extra: Mapping[str, Array],
    compiling: Seconds,
    sampling: Seconds,
    error: float,
) -> Sampled:
    """Moments of schema.PARAMETERS from the draws [L, chains, draws] of the unconstrained ones."""
    from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

    hypothesis = study.declared
    share = expit(draws["logit_heritable_share"])
    tau = expit(draws["logit_transmissibility"]) if hypothesis.has_free_transmissibility else np.zeros_like(share)
    maternal, paternal = (
        tau if path == "tau" else np.full_like(tau, float(path)) for path in (hypothesis.maternal, hypothesis.paternal)
    )
    natural = {
        "baseline": expit(draws["baseline"]),
        "spread": np.exp(draws["log_spread"]),
        "heritable_share": share,
        "transmissibility": np.maximum(maternal, paternal),
        "slope": share * (maternal + paternal) / 2,
    }
    values = np.stack([natural[name] for name in PARAMETERS], axis=-1)  # [L, chains, draws, P]
    by_chain = np.moveaxis(values, 0, 2)  # [chains, draws, L, P]
    with np.errstate(invalid="ignore", divide="ignore"):  # a parameter that the hypothesis fixes has no draws
        effective, rhat = effective_sample_size(by_chain), split_gelman_rubin(by_chain)
    sd = values.std((1, 2), ddof=1)
    return Sampled(
        mean=values.mean((1, 2)),
        sd=sd,
        standard_error=sd / np.sqrt(effective),
        effective_draws=effective,
        split_rhat=rhat,
        divergent=float(extra["diverging"].mean()),
        leapfrogs=float(extra["num_steps"].mean()),
        density_error=error,
        compiling=compiling,
        sampling=sampling,
    )


# --- glimix-core -----------------------------------------------------------------------------------------------------


class Propagated(NamedTuple):
    """glimix-core at L loci."""

    at_given: Array  # [L], log evidence at epivi's posterior means, by a fresh object
    again: Seconds  # of an evaluation that starts from the sites of one nearby, mean over loci
    fresh: Seconds  # of the first evaluation of an object
    fitting: Seconds  # a locus, of its own maximization
    failed: int  # maximizations that it gave up
    fitted: FixedParameters  # where it ended [L]; the baseline is a point
    at_fitted: Array  # [L], log evidence there, by a fresh object


def given_parameters(study: Study, evidence: HypothesisEvidence) -> FixedParameters:
    """Posterior means of the variance components, and one Gaussian with the moments of the baseline's mixture."""
    parts = np.einsum("lj,ljc->lc", evidence.node_weight, evidence.node_variances)
    tau = parts[:, -1]
    learned = study.model.learned
    mean = learned.baseline_weights @ learned.baseline_means
    square = learned.baseline_weights @ (learned.baseline_sds**2 + learned.baseline_means**2)
    return FixedParameters(
        FieldVariances(parts[:, :-1], tau),
        np.full(len(tau), mean),
        np.full(len(tau), np.sqrt(square - mean**2)),
    )


def transmitted_covariance(study: Study, tau: Array) -> Array:
    """A(tau) between samples, [L, S, S]."""
    field = study.model.cohort.fields[study.hypothesis]
    covariance = field_covariance(field, np.tile([1.0, 0.0], (len(tau), 1)), tau)
    return covariance[:, field.latent_of_sample][:, :, field.latent_of_sample]


def glimix_model(meth: Counts, total: Counts, covariance: Array, beta: float, of_covariance: float, own: float) -> Any:
    """GLMMExpFam of one locus: logit ~ N(beta, of_covariance K + own I), observations binomial, at these parameters."""
    from glimix_core.glmm import GLMMExpFam
    from numpy_sugar.linalg import economic_qs

    read = total > 0  # it takes no outcome out of none
    trials = total[read].astype(np.float64)
    kinship = economic_qs(covariance[np.ix_(read, read)])
    model = GLMMExpFam(meth[read].astype(np.float64), ("binomial", trials), np.ones((read.sum(), 1)), kinship)
    model.beta = np.array([beta])
    model.scale = of_covariance + own
    model.delta = own / (of_covariance + own)
    return model


def propagate_with_glimix(study: Study, given: FixedParameters) -> Propagated:
    """Its log marginal likelihood at given parameters, and its own maximum over beta and both variances.

    The given baseline has a Gaussian prior, which glimix-core's fixed effects have not: its variance is added to every
    entry of K. In the maximization the intercept is free, as the tool is meant to be used, and K is A(tau) at the given
    tau, which it cannot estimate.
    """
    transmitted = transmitted_covariance(study, given.variances.tau)
    variances, loci = given.variances, len(study.meth)
    at_given, at_fitted, failed = np.empty(loci), np.empty(loci), 0
    beta, heritable, residual = (np.empty(loci) for _ in range(3))
    spent: dict[str, list[Seconds]] = {"fresh": [], "again": [], "fitting": []}
    for locus in range(loci):
        counts = study.meth[locus], study.total[locus]
        kinship = variances.parts[locus, 0] * transmitted[locus] + given.baseline_sd[locus] ** 2
        model = glimix_model(*counts, kinship, given.baseline_mean[locus], 1.0, variances.parts[locus, -1])
        at_given[locus], seconds = timed(model.lml)
        spent["fresh"].append(seconds)
        model.scale *= 1.01
        spent["again"].append(timed(model.lml)[1])
        model = glimix_model(*counts, transmitted[locus], 0.0, 0.5, 0.5)
        with redirect_stdout(StringIO()):  # it prints what it retries
            try:
                _, seconds = timed(partial(model.fit, verbose=False))
                spent["fitting"].append(seconds)
            except (RuntimeError, ValueError):
                failed += 1
        beta[locus], heritable[locus], residual[locus] = model.beta[0], model.v0, model.v1
        at_fitted[locus] = glimix_model(*counts, transmitted[locus], beta[locus], model.v0, model.v1).lml()
    mean = {name: Seconds(*np.mean(values, axis=0).tolist()) for name, values in spent.items()}
    fitted = FixedParameters(
        FieldVariances(np.column_stack([heritable, residual]), variances.tau), beta, np.full(loci, POINT_BASELINE_SD)
    )
    return Propagated(at_given, mean["again"], mean["fresh"], mean["fitting"], failed, fitted, at_fitted)


# --- the comparison --------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One line of the table: a name that says the unit, and what was found."""

    section: str
    name: str
    value: float | Seconds


def compare(study: Study, bulk: Study, settings: NutsSettings) -> list[Row]:
    """Everything that is measured on one cohort."""
    report("epivi")
    evidence, one = timed_again(lambda: one_evidence(study))
    _, every = timed_again(lambda: all_evidences(study))
    _, one_in_bulk = timed_again(lambda: one_evidence(bulk))
    nodes = nodes_for(len(study.declared.parameters), study.nodes)
    ours = {
        f"epivi's one hypothesis, {nodes} nodes": one.over(len(study.meth)),
        f"epivi's one hypothesis, {len(bulk.meth)} loci at once": one_in_bulk.over(len(bulk.meth)),
        "epivi's five hypotheses, all levels": every.over(len(study.meth)),
    }
    rows = [Row("epivi", f"{name}, a locus (ms)", milliseconds(seconds)) for name, seconds in ours.items()]
    report("NumPyro")
    sampled = sample_with_nuts(study, settings)
    rows += nuts_rows(study, evidence, sampled, ours)
    report("glimix-core")
    given = given_parameters(study, evidence)
    propagated = propagate_with_glimix(study, given)
    kernel = {method: kernel_seconds(study, evidence, method) for method in ("laplace", "ep")}
    rows += glimix_rows(propagated, kernel, ours)
    rows += evidence_rows(study, "at epivi's posterior means", given, propagated.at_given)
    rows += evidence_rows(study, "at glimix-core's own maximum", propagated.fitted, propagated.at_fitted)
    return rows


def report(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr)


def milliseconds(seconds: Seconds) -> Seconds:
    return seconds.over(1e-3)


def ratio(slow: Seconds, fast: Seconds) -> Seconds:
    return Seconds(slow.cpu / fast.cpu, slow.wall / fast.wall)


def nuts_rows(study: Study, evidence: HypothesisEvidence, sampled: Sampled, ours: Mapping[str, Seconds]) -> list[Row]:
    """Time against epivi's, a locus; and how far the posterior means are apart."""
    loci = len(study.meth)
    a_locus = sampled.sampling.over(loci)
    with_compiling = Seconds(*np.add(sampled.sampling, sampled.compiling)).over(loci)
    free = np.flatnonzero((sampled.sd > 0).all(0))
    fewest = sampled.effective_draws[:, free].min(1)
    section = "NumPyro NUTS"
    rows = [
        Row(section, "a locus (ms)", milliseconds(a_locus)),
        Row(section, "compiling, once (s)", sampled.compiling),
        Row(section, "effective draws of the worst parameter, median", float(np.median(fewest))),
        Row(section, "the same, 5 % of loci have fewer", float(np.quantile(fewest, 0.05))),
        Row(section, "largest split R-hat", float(sampled.split_rhat[:, free].max())),
        Row(section, "divergent, share of draws", sampled.divergent),
        Row(section, "leapfrog steps a draw", sampled.leapfrogs),
        Row(section, "log density from epivi's, largest difference (nats)", sampled.density_error),
        *(Row(section, f"times {name}", ratio(a_locus, seconds)) for name, seconds in ours.items()),
        *(Row(section, f"with compiling, times {name}", ratio(with_compiling, each)) for name, each in ours.items()),
    ]
    section = "Posterior means, epivi less NUTS"
    for p in free:
        name = list(PARAMETERS)[p]
        difference = evidence.mean[:, p] - sampled.mean[:, p]
        in_sds, in_errors = difference / sampled.sd[:, p], difference / sampled.standard_error[:, p]
        sampling = (sampled.standard_error[:, p] / sampled.sd[:, p]) ** 2
        left = max(0.0, float((in_sds**2 - sampling).mean())) ** 0.5
        rows += [
            Row(section, f"{name}: in posterior SDs, root mean square", root_mean_square(in_sds)),
            Row(section, f"{name}: the same less Monte Carlo error", left),
            Row(section, f"{name}: in Monte Carlo errors, root mean square", root_mean_square(in_errors)),
        ]
    return rows


def root_mean_square(values: Array) -> float:
    return float(np.sqrt((values**2).mean()))


def glimix_rows(propagated: Propagated, kernel: Mapping[str, Seconds], ours: Mapping[str, Seconds]) -> list[Row]:
    """Time against epivi's: one inner integral, and its maximization against the evidence of one hypothesis."""
    section = "glimix-core"
    return [
        Row(section, "epivi's inner integral, Laplace (ms)", milliseconds(kernel["laplace"])),
        Row(section, "epivi's inner integral, EP (ms)", milliseconds(kernel["ep"])),
        Row(section, "first evaluation (ms)", milliseconds(propagated.fresh)),
        Row(section, "evaluation near another (ms)", milliseconds(propagated.again)),
        Row(section, "evaluation near another, times epivi's Laplace", ratio(propagated.again, kernel["laplace"])),
        Row(section, "evaluation near another, times epivi's EP", ratio(propagated.again, kernel["ep"])),
        Row(section, "maximization, a locus (ms)", milliseconds(propagated.fitting)),
        Row(section, "maximizations given up", float(propagated.failed)),
        *(Row(section, f"maximization, times {name}", ratio(propagated.fitting, each)) for name, each in ours.items()),
    ]


def evidence_rows(study: Study, where: str, fixed: FixedParameters, theirs: Array) -> list[Row]:
    """Log evidences at the same parameters, in nats."""
    problem = dense_problem(study, fixed)
    exact = exact_field(problem, SAMPLING_DRAWS, study.seed)
    ours = {
        "corrected Laplace": kernel_evidence(study, fixed, "laplace"),
        "EP": kernel_evidence(study, fixed, "ep"),
        "dense EP": ep(problem).log_evidence,
    }
    section = f"Log evidence {where} (nats)"
    rows = []
    for name, values in ours.items():
        apart = np.abs(values - theirs)
        rows += [
            Row(section, f"epivi's {name} and glimix-core apart, 99 % below", float(np.quantile(apart, 0.99))),
            Row(section, f"epivi's {name} and glimix-core apart, largest", float(apart.max())),
        ]
    for name, values in {**ours, "glimix-core": theirs}.items():
        rows.append(
            Row(section, f"{name} from sampling, root mean square", root_mean_square(values - exact.log_evidence))
        )
    rows.append(Row(section, "sampling, its standard error, root mean square", root_mean_square(exact.log_evidence_se)))
    return rows


def table_of(columns: Mapping[int, Sequence[Row]]) -> Table:
    """A column for each cohort; times are seconds of the processor and, in brackets, by the clock."""
    table = Table("")
    for individuals in columns:
        table.add_column(f"{individuals} individuals", justify="right")
    section = None
    for row, *others in zip(*columns.values(), strict=True):
        if row.section != section:
            table.add_section()
            table.add_row(f"[bold]{row.section}[/bold]")
            section = row.section
        table.add_row(f"  {row.name}", *(cell(one.value) for one in (row, *others)))
    return table


def cell(value: float | Seconds) -> str:
    if isinstance(value, Seconds):
        return f"{value.cpu:,.4g} ({value.wall:,.4g})"
    return f"{value:.3g}"


def record_of(columns: Mapping[int, Sequence[Row]]) -> list[dict[str, Any]]:
    return [
        {
            "individuals": individuals,
            "section": row.section,
            "name": row.name,
            **(row.value._asdict() if isinstance(row.value, Seconds) else {"value": row.value}),
        }
        for individuals, rows in columns.items()
        for row in rows
    ]


def versions() -> dict[str, str]:
    """Of the tools compared. Raises click.UsageError where one is missing."""
    try:
        return {name: version(name) for name in ("epivi", "numpyro", "jax", "glimix-core", "numpy", "torch")}
    except PackageNotFoundError as error:
        raise click.UsageError(
            f"{error.name} is not installed: pip install -c envs/constraints.txt -e .[bench]"
        ) from None


def use_one_core() -> None:
    """Where the system allows; before JAX and glimix-core are loaded, which size their pools by it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)


@click.command(context_settings={"show_default": True})
@click.option(
    "--individuals",
    multiple=True,
    default=tuple(map(str, COHORTS)),
    type=click.Choice(list(map(str, COHORTS))),
    help="Cohorts.",
)
@click.option("--loci", default=64, type=click.IntRange(1), help="Loci of the comparison.")
@click.option("--hypothesis", default="epigenetic", type=click.Choice(HYPOTHESES), help="Hypothesis compared.")
@click.option("--coverage", default=20.0, type=click.FloatRange(1), help="Mean reads of a sample at a locus.")
@click.option("--training-loci", default=8192, type=click.IntRange(BULK_LOCI), help="Further loci, for the fit.")
@click.option("--max-steps", type=click.IntRange(1), help="Steps of the fit, if not the default.")
@click.option("--chains", default=2, type=click.IntRange(2), help="Chains of NUTS at each locus.")
@click.option("--warmup", default=500, type=click.IntRange(1), help="Iterations of a chain to adapt in.")
@click.option("--draws", default=500, type=click.IntRange(4), help="Draws of a chain.")
@click.option("--loci-at-once", default=64, type=click.IntRange(1), help="Loci in one plate of NUTS.")
@click.option("--seed", default=1, type=click.IntRange(0), help="Of everything that is drawn.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file for the numbers.")
def main(
    individuals: tuple[str, ...],
    loci: int,
    hypothesis: str,
    coverage: float,
    training_loci: int,
    max_steps: int | None,
    chains: int,
    warmup: int,
    draws: int,
    loci_at_once: int,
    seed: int,
    output: Path | None,
) -> None:
    """Measure epivi and its neighbours on simulated cohorts."""
    installed = versions()
    if loci % loci_at_once:
        raise click.UsageError(f"--loci {loci}: expected a multiple of --loci-at-once {loci_at_once}")
    use_one_core()
    import jax

    jax.config.update("jax_enable_x64", True)
    config = load_config(json.dumps({"fit": {"max_steps": max_steps}} if max_steps else {}))
    settings = NutsSettings(chains, warmup, draws, loci_at_once)
    columns = {}
    for size in map(int, individuals):
        report(f"{size} individuals: fit")
        drawn = fitted_study(size, loci, training_loci, coverage, hypothesis, config, seed)
        columns[size] = compare(drawn.compared, drawn.bulk, settings)
    Console(width=72 + 28 * len(columns)).print(table_of(columns))
    print(", ".join(f"{name} {number}" for name, number in installed.items()))
    if output is not None:
        options = {name: value for name, value in click.get_current_context().params.items() if name != "output"}
        record = {
            "options": options,
            "versions": installed,
            "platform": platform.platform(),
            "python": platform.python_version(),
            "rows": record_of(columns),
        }
        write_json(output, record)


if __name__ == "__main__":
    main()
