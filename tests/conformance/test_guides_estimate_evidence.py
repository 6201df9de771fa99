"""Every guide under every kind of hypothesis against the evidence that direct integration gives.

The evidence is E_q[p(counts, theta, b | h) / q(theta, b | h)] for any guide that covers the posterior, so a wrong
density of model or guide, or a coordinate handed to the wrong site, shows. The reference sums the prior of the logits
over a grid of the parameters and integrates over the logits of two individuals.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, gammaln, logsumexp

from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.density import Batch, Hyperparameters, build_transmission
from epivi.families.transmission.guide import GUIDES
from epivi.families.transmission.hypotheses import NormalPrior, parse_hypotheses, share_priors
from epivi.fit.bound import locus_elbos
from epivi.fit.gaussian import GaussianTheta

torch.set_num_threads(1)

Array = NDArray[np.float64]
DRAWS = 15_000
CAGE = {"column": "cage"}
DECLARED: dict[str, Any] = {
    "reset": {},
    "mendelian": {"heritable_share": "free", "maternal": 1, "paternal": 1},
    "epigenetic": {"heritable_share": "free", "maternal": "tau", "paternal": "tau"},
    "maternal": {"heritable_share": "free", "maternal": "tau", "paternal": 0},
    "paternal": {"heritable_share": "free", "maternal": 0, "paternal": "tau"},
    "household": {"environment": CAGE},
    "epigenetic+household": {
        "heritable_share": "free",
        "maternal": "tau",
        "paternal": "tau",
        "environment": CAGE,
    },
    "fixed": {"heritable_share": 0.8, "maternal": 0.9, "paternal": "tau", "environment": {**CAGE, "share": 0.4}},
    "covariate": {"heritable_share": "free", "maternal": 1, "paternal": 1, "covariates": ["age"]},
}
HYPOTHESES = parse_hypotheses(DECLARED)
SLAB = {"alpha": 2, "beta": 2}
PRIORS = share_priors({"heritable_share": SLAB, "tau": SLAB, "environment_share": SLAB})
# A selfed plant and its offspring two generations on, the latter in two replicates; they share a cage.
PEDIGREE = Pedigree(
    individuals=("parent", "child"),
    mother=np.array([-1, 0], dtype=np.int32),
    father=np.array([-1, -1], dtype=np.int32),
    mode=("sexual", "selfing"),
    generations=np.array([1, 2], dtype=np.int32),
    sex=("unknown", "unknown"),
)
OWNER = np.array([0, 1, 1])
ERRORS = (np.array([0.01, 0.0, 0.02]), np.array([0.0, 0.03, 0.01]))
SHEET = SampleSheet(
    path="samples.tsv",
    samples=("p", "c1", "c2"),
    individuals=("parent", "child", "child"),
    paths=("p", "c1", "c2"),
    formats=("auto",) * 3,
    haplotypes=("all",) * 3,
    false_methylated=ERRORS[0],
    false_unmethylated=ERRORS[1],
    columns={"cage": ("one",) * 3, "age": ("1", "2", "2")},
    lines=(2, 3, 4),
)
AGE = np.array([-np.sqrt(2), 1 / np.sqrt(2)])  # of the individuals: 1, 2, 2 standardized over samples
COUNTS = {
    "usual": ([4, 9, 11], [12, 14, 13]),
    "apart": ([1, 20, 17], [18, 21, 17]),
    "missing parent": ([0, 3, 0], [0, 9, 2]),
}
HYPER = {
    "baseline_logits": [0.3, -0.4],
    "baseline_means": [-0.8, 1.1],
    "baseline_log_sds": [-0.2, 0.1],
    "spread_location": -0.1,
    "spread_log_scale": -0.9,
    "effect_log_sds": [-0.5],
    "hypothesis_logits": [0.0] * len(DECLARED),
}


def hyper_module() -> Hyperparameters:
    hyper = Hyperparameters(2, 1, len(DECLARED)).double()
    hyper.load_state_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in HYPER.items()})
    return hyper


def wide_theta(effects: int, parameters: int) -> GaussianTheta:
    """q(theta) about as wide as the prior, with correlations, at every locus of the batch."""
    mean = torch.tensor([0.2] * effects + [0.2] + [0.0] * (parameters - 1), dtype=torch.float64)
    sd = torch.tensor([1.4] + [0.7] * (effects - 1) + [0.6] + [1.2] * (parameters - 1), dtype=torch.float64)
    root = torch.diag(sd) + 0.1 * torch.tril(torch.ones(len(sd), len(sd), dtype=torch.float64), -1)
    return GaussianTheta(mean.expand(DRAWS, -1), root.expand(DRAWS, -1, -1))


def importance_weights(guide: str, counts: str) -> dict[str, Array]:
    """log p / q of DRAWS draws under each hypothesis: the same locus as a minibatch of its own copies."""
    cohort = build_cohort(SHEET, PEDIGREE, [], HYPOTHESES)
    family = build_transmission(cohort, HYPOTHESES, PRIORS, torch.device("cpu"), torch.float64)
    meth, total = (torch.tensor(x, dtype=torch.float64).expand(DRAWS, 3) for x in COUNTS[counts])
    coefficient = torch.lgamma(total + 1) - torch.lgamma(meth + 1) - torch.lgamma(total - meth + 1)
    batch = Batch(meth, total, coefficient, torch.arange(DRAWS), DRAWS)
    gaussians = tuple(
        wide_theta(1 + len(field.design_column), len(hypothesis.parameters))
        for hypothesis, field in zip(HYPOTHESES, cohort.fields, strict=True)
    )
    torch.manual_seed(1)
    with torch.no_grad():
        elbos = locus_elbos(family, hyper_module(), GUIDES[guide], lambda *_: gaussians, batch)  # type: ignore[arg-type]
    return dict(zip(DECLARED, elbos.numpy(), strict=True))


def normal_nodes(prior: NormalPrior, nodes: int) -> list[tuple[float, float]]:
    """Values and weights of a normal prior."""
    node, weight = np.polynomial.hermite_e.hermegauss(nodes)
    return list(zip(prior.mean + prior.sd * node, weight / weight.sum(), strict=True))


@cache
def evidence(name: str, counts: str) -> float:
    """log p(counts | h): the logits' prior summed over the parameters, times the likelihood, over a grid of logits."""
    terms = DECLARED[name]
    spread = NormalPrior(HYPER["spread_location"], float(np.exp(HYPER["spread_log_scale"])))
    share = NormalPrior(*PRIORS["logit_heritable_share"])  # all three slabs are the same
    is_free = [
        True,
        terms.get("heritable_share") == "free",
        terms.get("environment", {}).get("share", "free") == "free" and "environment" in terms,
        "tau" in terms.values(),
    ]
    grids = [normal_nodes(spread if k == 0 else share, 7) if free else [(0.0, 1.0)] for k, free in enumerate(is_free)]
    weights = np.exp(HYPER["baseline_logits"] - logsumexp(HYPER["baseline_logits"]))
    means, sds = np.array(HYPER["baseline_means"]), np.exp(HYPER["baseline_log_sds"])
    slope_variance = np.exp(HYPER["effect_log_sds"][0]) ** 2 if "covariates" in terms else 0.0
    axis = np.linspace(-13, 13, 105)
    one, other = np.meshgrid(axis, axis, indexing="ij")
    prior = np.zeros_like(one)
    for (log_sigma, a), (logit_rho, b), (logit_eta, c), (logit_tau, d) in product(*grids):
        rho = expit(logit_rho) if is_free[1] else terms.get("heritable_share", 0.0)
        eta = expit(logit_eta) if is_free[2] else terms.get("environment", {}).get("share", 0.0)
        maternal, paternal = (
            expit(logit_tau) if terms.get(path) == "tau" else terms.get(path, 0.0) for path in ("maternal", "paternal")
        )
        shared = rho * ((maternal + paternal) / 2) ** 2 + (1 - rho) * eta
        variance = np.exp(2 * log_sigma)
        effect = slope_variance * np.outer(AGE, AGE)
        for weight, mean, sd in zip(weights, means, sds, strict=True):
            first, second = variance + sd**2 + effect[0, 0], variance + sd**2 + effect[1, 1]
            between = variance * shared + sd**2 + effect[0, 1]
            determinant = first * second - between**2
            quadratic = (
                second * (one - mean) ** 2 - 2 * between * (one - mean) * (other - mean) + first * (other - mean) ** 2
            ) / determinant
            prior += a * b * c * d * weight * np.exp(-0.5 * quadratic) / (2 * np.pi * np.sqrt(determinant))
    step = axis[1] - axis[0]
    assert prior.sum() * step**2 == pytest.approx(1, abs=1e-4)
    log_likelihood = np.zeros_like(one)
    for owner, m, n, eps, delta in zip(OWNER, *COUNTS[counts], *ERRORS, strict=True):
        p = eps + (1 - eps - delta) * expit([one, other][owner])
        log_likelihood += m * np.log(p) + (n - m) * np.log1p(-p) + gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1)
    return float(np.log((prior * np.exp(log_likelihood)).sum() * step**2))


@pytest.mark.parametrize("counts", list(COUNTS))
def test_weights_of_the_structured_guide_average_to_the_evidence(counts: str) -> None:
    """|z| below 4.5 for 27 estimates, false alarm 2e-4, with standard errors below 0.03 nats."""
    for name, log_weights in importance_weights("structured", counts).items():
        exact = evidence(name, counts)
        weights = np.exp(log_weights - exact)
        error = weights.std() / np.sqrt(DRAWS)
        assert error < 0.03, (name, error)
        assert abs(weights.mean() - 1) < 4.5 * error, (name, weights.mean(), error)


@pytest.mark.parametrize("counts", list(COUNTS))
@pytest.mark.parametrize("guide", list(GUIDES))
def test_bound_is_below_the_evidence(guide: str, counts: str) -> None:
    """The factorized guide does not cover the posterior well enough to weight its draws, but its bound is one."""
    for name, log_weights in importance_weights(guide, counts).items():
        assert log_weights.mean() + 3 * log_weights.std() / np.sqrt(DRAWS) < evidence(name, counts), name


def test_evidences_of_the_hypotheses_differ() -> None:
    """By more than the standard errors allowed above, so that one hypothesis's density would not pass for another's."""
    values = np.array([evidence(name, "apart") for name in DECLARED])
    gaps = np.abs(values[:, None] - values[None, :])[np.triu_indices(len(values), 1)]
    assert np.median(gaps) > 0.1
