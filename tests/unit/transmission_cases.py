"""Cohorts of every pedigree mode, and the joint density of the transmission model in plain NumPy and SciPy.

The reference knows the sample sheet, the pedigree and the declaration of a hypothesis, and nothing of blocks, groups
or polynomials: the covariance is that of all individuals at once, by epivi.cohort.kinship.covariance.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from inference_cases import make_pedigree, make_sheet, prior_of_b
from loci_folder import write_loci
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit, logsumexp

from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet, design_matrix
from epivi.config.load import load_config
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.density import Batch, Hyperparameters, TransmissionModel, build_transmission
from epivi.families.transmission.hypotheses import Hypothesis, NormalPrior, parse_hypotheses, share_priors
from epivi.field.layout import Cohort
from epivi.loci.loci_file import LocusBlock
from epivi.loci.store import LociStore
from epivi.tables.parquet import Provenance

torch.set_num_threads(1)

Array = NDArray[np.float64]
CPU = torch.device("cpu")
DOUBLE = torch.float64

COVARIATES = ("age", "batch")
PRIORS = share_priors(
    {
        "heritable_share": {"alpha": 2, "beta": 3},
        "tau": {"alpha": 3, "beta": 2},
        "environment_share": {"alpha": 1.5, "beta": 2},
    }
)
DEFAULT_HYPOTHESES: dict[str, Any] = load_config("{}").section("model", "hypotheses")
CAGE = {"column": "cage"}
DECLARED: dict[str, Any] = {
    **DEFAULT_HYPOTHESES,
    "household": {"environment": CAGE},
    "fixed_household": {"environment": {**CAGE, "share": 0.35}},
    "epigenetic+household": {"heritable_share": "free", "maternal": "tau", "paternal": "tau", "environment": CAGE},
    "fixed_shares": {"heritable_share": 0.4, "maternal": 0.3, "paternal": "tau", "environment": {**CAGE, "share": 0.6}},
    "one_whole": {"heritable_share": "free", "maternal": 1, "paternal": "tau"},
    "constants": {"heritable_share": 0.7, "maternal": 0.2, "paternal": 0.9},
    "own_covariate": {"heritable_share": "free", "maternal": "tau", "paternal": 0, "covariates": ["site"]},
    "null_with_covariate": {"covariates": ["site", "dose"]},
}
HYPOTHESES = parse_hypotheses(DECLARED)


class Case(NamedTuple):
    """A pedigree and the samples drawn from it."""

    pedigree: Pedigree
    sheet: SampleSheet


def full_sheet(individuals: tuple[str, ...], seed: int) -> SampleSheet:
    """A sheet with conversion errors, covariates, and cages that cut across families; replicates share a cage."""
    random = np.random.default_rng(seed)
    size = len(individuals)
    cage_of = {name: f"cage{random.integers(3)}" for name in individuals}
    categories = {
        name: tuple(random.permutation([levels[k % len(levels)] for k in range(size)]).tolist())
        for name, levels in {"batch": ("x", "y", "z"), "site": ("north", "south")}.items()
    }
    numbers = {name: tuple(f"{value:.3f}" for value in random.normal(size=size)) for name in ("age", "dose")}
    return make_sheet(
        individuals,
        false_methylated=random.uniform(0, 0.05, size),
        false_unmethylated=random.uniform(0, 0.05, size),
        columns={**categories, **numbers, "cage": tuple(cage_of[name] for name in individuals)},
    )


PEDIGREES = {
    # Half-sibs (c1, c2 and h), a full-sib mating (i), a backcross (j), an unknown father (k), a second family, a loner.
    "sexual": make_pedigree(
        ("gm",),
        ("gf",),
        ("m", "gm", "gf"),
        ("f",),
        ("f2",),
        ("c1", "m", "f"),
        ("c2", "m", "f"),
        ("h", "m", "f2"),
        ("i", "c1", "c2"),
        ("j", "i", "f"),
        ("k", "h", None),
        ("m2",),
        ("d2",),
        ("t1", "m2", "d2"),
        ("t2", "m2", "d2"),
        ("loner",),
    ),
    "selfing": make_pedigree(
        ("a",),
        ("a1", "a", None, "selfing", 1),
        ("a4", "a1", None, "selfing", 3),
        ("b2", "a", None, "selfing", 2),
        ("b3", "b2", None, "selfing", 1),
        ("z",),
        ("z5", "z", None, "selfing", 5),
    ),
    "clonal": make_pedigree(
        ("a",),
        ("a2", "a", None, "clonal", 2),
        ("a3", "a2", None, "clonal", 1),
        ("b1", "a", None, "clonal", 1),
        ("y",),
        ("y1", "y", None, "clonal", 4),
    ),
    # A cross of two selfed lines, sibs of it mated, and clones of the result.
    "mixed": make_pedigree(
        ("a",),
        ("b",),
        ("a2", "a", None, "selfing", 2),
        ("b3", "b", None, "selfing", 3),
        ("x1", "a2", "b3"),
        ("x2", "a2", "b3"),
        ("w", "x1", "x2"),
        ("w2", "w", None, "clonal", 2),
        ("v", "w2", "b"),
    ),
}
SAMPLED = {  # with replicates, without some parents, and not in the order of the pedigree
    "sexual": ("j", "c1", "t1", "m", "h", "c1", "gf", "i", "loner", "k", "t2", "f2", "m2", "c2"),
    "selfing": ("b3", "a4", "a", "z5", "b2", "a4", "z"),
    "clonal": ("a3", "y1", "b1", "a", "y", "b1"),
    "mixed": ("w2", "a", "x1", "v", "b3", "x1", "b", "x2"),
}
CASES = {
    name: Case(PEDIGREES[name], full_sheet(sampled, seed))
    for seed, (name, sampled) in enumerate(SAMPLED.items(), start=1)
}


class TransmissionProblem(NamedTuple):
    """A cohort with its Pyro family."""

    case: Case
    cohort: Cohort
    family: TransmissionModel


def make_problem(
    case: Case,
    hypotheses: tuple[Hypothesis, ...] = HYPOTHESES,
    covariates: tuple[str, ...] = COVARIATES,
    priors: dict[str, NormalPrior] = PRIORS,
    dtype: torch.dtype = DOUBLE,
) -> TransmissionProblem:
    cohort = build_cohort(case.sheet, case.pedigree, covariates, hypotheses)
    return TransmissionProblem(case, cohort, build_transmission(cohort, hypotheses, priors, CPU, dtype))


@cache
def full_problem(name: str) -> TransmissionProblem:
    """Every hypothesis of HYPOTHESES on one of CASES, in double precision."""
    return make_problem(CASES[name])


def make_hyper(covariates: int, hypotheses: int, components: int = 3) -> Hyperparameters:
    """Hyper-parameters at no special value."""
    random = torch.Generator().manual_seed(7)
    hyper = Hyperparameters(components, covariates, hypotheses).double()
    with torch.no_grad():
        for parameter in hyper.parameters():
            parameter += 0.4 * torch.randn(parameter.shape, generator=random, dtype=DOUBLE)
    return hyper


def make_batch(meth: Array, total: Array, n_loci: int | None = None, dtype: torch.dtype = DOUBLE) -> Batch:
    """Counts [B, S] as a minibatch of the first B of `n_loci` loci."""
    coefficient = stats.binom.logpmf(meth, total, 0.5) + total * np.log(2)
    tensors = (torch.as_tensor(x, dtype=dtype) for x in (meth, total, coefficient))
    return Batch(*tensors, torch.arange(len(meth)), n_loci or len(meth))


def draw_counts(loci: int, samples: int, seed: int, reads: float = 12.0) -> tuple[Array, Array]:
    """Methylated and total reads [L, S] that spread beyond binomial noise; a fifth of the samples are missing."""
    random = np.random.default_rng(seed)
    logit = random.normal(0, 1.5, (loci, 1)) + random.normal(0, 1.0, (loci, samples))
    total = random.poisson(reads, (loci, samples)) * (random.random((loci, samples)) < 0.8)
    return random.binomial(total, expit(logit)).astype(float), total.astype(float)


# --- the joint density ------------------------------------------------------------------------------------------------


class Latents(NamedTuple):
    """Values of every latent at one locus; b of the individuals in the order of their first sample."""

    baseline: float
    effects: Array  # [P - 1]
    parameters: dict[str, float]
    b: Array  # [N]


class Components(NamedTuple):
    """Variances [C + 1], the residual last, and transmissibility that a hypothesis makes of its parameters."""

    parts: Array
    tau: float


def components_of(hypothesis: Hypothesis, parameters: dict[str, float]) -> Components:
    left = np.exp(parameters["log_spread"]) ** 2
    parts = []
    for component in hypothesis.components:
        free = component.share == "free"
        share = expit(parameters[f"logit_{component.name}_share"]) if free else component.share
        parts.append(left * share)
        left = left * (1 - share)
    tau = float(expit(parameters.get("logit_transmissibility", 0.0)))
    return Components(np.array([*parts, left]), tau)


def dense_prior(case: Case, hypothesis: Hypothesis, parts: Components) -> Array:
    """Covariance [N, N] of b, individuals in the order of their first sample."""
    return prior_of_b(case.pedigree, case.sheet, hypothesis, parts.parts, parts.tau)[0]


def owner_of_sample(case: Case) -> NDArray[np.intp]:
    """Position [S] of each sample's individual in the order of first samples."""
    individuals = list(dict.fromkeys(case.sheet.individuals))
    return np.array([individuals.index(name) for name in case.sheet.individuals])


def log_likelihood(case: Case, meth: Array, total: Array, logit: Array) -> float:
    """Sum over samples; [S] each."""
    eps, delta = case.sheet.false_methylated, case.sheet.false_unmethylated
    return float(stats.binom.logpmf(meth, total, eps + (1 - eps - delta) * expit(logit)).sum())


def log_joint(
    case: Case,
    hypothesis: Hypothesis,
    hyper: Hyperparameters,
    covariates: tuple[str, ...],
    latents: Latents,
    meth: Array,
    total: Array,
) -> float:
    """log p(counts, latents | hypothesis) of one locus, all constants included."""
    value = {name: tensor.detach().numpy() for name, tensor in hyper.named_parameters()}
    weights = value["baseline_logits"] - logsumexp(value["baseline_logits"])
    normals = stats.norm.logpdf(latents.baseline, value["baseline_means"], np.exp(value["baseline_log_sds"]))
    result = logsumexp(weights + normals)
    # Covariate columns of the cohort stand in the order of first mention: shared ones, then each hypothesis's own.
    used = [*covariates, *hypothesis.covariates]
    design, names = design_matrix(case.sheet, used)
    order = design_matrix(case.sheet, list(dict.fromkeys([*covariates, "site", "dose"])))[1]
    sds = np.exp(value["effect_log_sds"])[[order.index(name) for name in names]]
    result += stats.norm.logpdf(latents.effects, 0, sds).sum()
    for name, parameter in latents.parameters.items():
        prior = (value["spread_location"], np.exp(value["spread_log_scale"])) if name == "log_spread" else PRIORS[name]
        result += stats.norm.logpdf(parameter, *prior)
    prior_covariance = dense_prior(case, hypothesis, components_of(hypothesis, latents.parameters))
    result += stats.multivariate_normal.logpdf(latents.b, np.zeros(len(latents.b)), prior_covariance)
    logit = latents.baseline + design @ latents.effects + latents.b[owner_of_sample(case)]
    return float(result + log_likelihood(case, meth, total, logit))


# --- stores -----------------------------------------------------------------------------------------------------------


def write_store(folder: Path, samples: tuple[str, ...], counts: dict[str, tuple[Array, Array]]) -> LociStore:
    """A folder of loci from counts [L, S] of each contig, 100 bp apart."""
    provenance = Provenance("loci", 1, "configuration", "pedigree")
    blocks = []
    for contig, (meth, total) in counts.items():
        size = len(meth)
        pos0 = np.arange(size, dtype=np.int32) * 100
        codes = np.zeros(size, np.int8)
        pair = (meth.astype(np.uint16), total.astype(np.uint16))
        blocks.append(LocusBlock(contig, 0, pos0, pos0 + 2, codes, codes, *pair))
    write_loci(folder, samples, blocks, provenance)
    return LociStore.open(folder)
