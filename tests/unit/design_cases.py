"""Small pedigrees for statements about designs, and dense covariances that share no code with the closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from inference_cases import make_pedigree, make_sheet
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet
from epivi.families.family import NormalPrior
from epivi.families.transmission.hypotheses import Hypothesis, parse_hypotheses, share_priors
from epivi.verify.design import Assumed, everyone

Array = NDArray[np.float64]

DEFAULT: Mapping[str, Mapping[str, Any]] = {
    "reset": {},
    "mendelian": {"heritable_share": "free", "maternal": 1, "paternal": 1},
    "epigenetic": {"heritable_share": "free", "maternal": "tau", "paternal": "tau"},
    "maternal": {"heritable_share": "free", "maternal": "tau", "paternal": 0},
    "paternal": {"heritable_share": "free", "maternal": 0, "paternal": "tau"},
}
PARENTS = (("mother",), ("father",))
PEDIGREES: Mapping[str, Pedigree] = {
    "trio": make_pedigree(*PARENTS, ("child", "mother", "father")),
    "parents and 3 children": make_pedigree(*PARENTS, *((f"child{k}", "mother", "father") for k in (1, 2, 3))),
    "3 generations, 7": make_pedigree(
        ("grandmother",),
        ("grandfather",),
        ("father",),
        ("mother", "grandmother", "grandfather"),
        *((f"child{k}", "mother", "father") for k in (1, 2, 3)),
    ),
    "4-generation line": make_pedigree(
        ("founder1",),
        ("founder2",),
        ("mate2",),
        ("mate3",),
        ("second", "founder1", "founder2"),
        ("third", "second", "mate2"),
        ("fourth", "third", "mate3"),
    ),
}


def families_of(pedigree: Pedigree, number: int) -> Pedigree:
    """So many copies of a pedigree side by side."""
    names = pedigree.individuals

    def named(copy: int, index: int) -> str | None:
        return None if index < 0 else f"{names[index]}_{copy}"

    return make_pedigree(
        *(
            (
                f"{name}_{copy}",
                named(copy, int(pedigree.mother[k])),
                named(copy, int(pedigree.father[k])),
                pedigree.mode[k],
                int(pedigree.generations[k]),
            )
            for copy in range(number)
            for k, name in enumerate(names)
        )
    )


def whole_sheet(pedigree: Pedigree, **changes: Any) -> SampleSheet:
    """A sample of every individual."""
    return make_sheet(pedigree.individuals, **changes)


def haplotype_sheet(pedigree: Pedigree) -> SampleSheet:
    """Both haplotypes of every individual, of known parents; the column `person` says whose they are."""
    individuals = tuple(name for name in pedigree.individuals for _ in range(2))
    size = len(individuals)
    origins = {f"s{k}": ("maternal", "paternal")[k % 2] for k in range(size)}
    return make_sheet(
        individuals,
        haplotypes=("1", "2") * (size // 2),
        origins=origins,
        phasings={f"s{k}": "wgs" for k in range(size)},
        columns={"person": individuals},
    )


def hypotheses_of(declared: Mapping[str, Mapping[str, Any]] = DEFAULT) -> tuple[Hypothesis, ...]:
    return parse_hypotheses(declared)


def priors_around(heritable_share: float = 0.6, tau: float = 0.5) -> dict[str, NormalPrior]:
    """Priors with these medians, and the SDs of Beta(2, 2)."""
    shapes = {"alpha": 2, "beta": 2}
    names = ("heritable_share", "environment_share", "relatedness_share")
    prior = share_priors({**dict.fromkeys(names, shapes), "tau": shapes})
    return prior | {
        "logit_heritable_share": prior["logit_heritable_share"]._replace(mean=float(logit(heritable_share))),
        "logit_transmissibility": prior["logit_transmissibility"]._replace(mean=float(logit(tau))),
    }


def kinship(pedigree: Pedigree, maternal: float, paternal: float) -> Array:
    """Covariance of transmitted effects, by simulating their linear map: a = L e with Var(a) = 1."""
    size = len(pedigree.individuals)
    rows = np.zeros((size, size))
    for child in range(size):
        for parent, passed in ((pedigree.mother[child], maternal), (pedigree.father[child], paternal)):
            if parent >= 0:
                rows[child] += 0.5 * passed * rows[parent]
        rows[child, child] = np.sqrt(1.0 - (rows[child] ** 2).sum())
    return rows @ rows.T


def dense_covariance(
    pedigree: Pedigree, hypothesis: Hypothesis, theta: Array, noise: Array, baseline_sd: float
) -> Array:
    """Of one sample of every individual, from the definition of a hypothesis without environments."""
    values = dict(zip(hypothesis.parameters, theta, strict=True))
    share = expit(values["logit_heritable_share"]) if hypothesis.transmits else 0.0
    tau = expit(values.get("logit_transmissibility", 0.0))
    maternal, paternal = (tau if path == "tau" else float(path) for path in (hypothesis.maternal, hypothesis.paternal))
    one = share * kinship(pedigree, maternal, paternal) + (1 - share) * np.eye(len(noise))
    return np.exp(2 * values["log_spread"]) * one + np.diag(noise) + baseline_sd**2


def divergence(truth: Array, other: Array) -> float:
    """KL(N(0, truth) || N(0, other)), nats."""
    relative = np.linalg.solve(other, truth)
    return float(0.5 * (np.trace(relative) - len(truth) - np.linalg.slogdet(relative)[1]))


def searched_divergence(
    truth: Array, pedigree: Pedigree, hypothesis: Hypothesis, noise: Array, baseline_sd: float, starts: Sequence[float]
) -> float:
    """The least divergence by a search with numerical gradients, from every combination of starting logits."""

    def value(theta: Array) -> float:
        return divergence(truth, dense_covariance(pedigree, hypothesis, theta, noise, baseline_sd))

    free = len(hypothesis.parameters) - 1
    bounds = [(-3.0, 3.0), *[(-16.0, 16.0)] * free]
    options = {"ftol": 1e-13, "gtol": 1e-8, "maxfun": 1000}
    found = (
        minimize(value, np.array([0.2, *start]), method="L-BFGS-B", bounds=bounds, options=options).fun
        for start in product(starts, repeat=free)
    )
    return float(min(found))


def asked_of(pedigree: Pedigree, **changes: Any) -> Assumed:
    """20 reads of everyone at half methylation, share .6 and tau .5."""
    sheet = everyone(pedigree)
    priors = priors_around()
    values = {
        "sheet": sheet,
        "pedigree": pedigree,
        "covariates": (),
        "hypotheses": hypotheses_of(),
        "priors": priors,
        "typical": priors,
        "reads": np.full(len(sheet.samples), 20.0),
        "levels": (0.5,),
        "spread": 1.0,
        "region_loci": 10,
    }
    return Assumed(**values | changes)
