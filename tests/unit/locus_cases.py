"""A small cohort drawn from the model, and the problem of every hypothesis at its loci."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from inference_cases import make_pedigree, make_sheet

from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.density import LearnedPriors, build_transmission
from epivi.families.transmission.encoder import Encoder
from epivi.families.transmission.guide import GUIDES
from epivi.families.transmission.hypotheses import parse_hypotheses, share_priors
from epivi.families.transmission.locus.methods import build_locus_problems
from epivi.families.transmission.locus.problem import LocusProblem
from epivi.families.transmission.outer_integral import EvidenceModel, build_evidence_model
from epivi.families.transmission.simulate import BaselineComponent, SimulationSettings, simulate_cohort
from epivi.simulate.positions import Contig

LOCI = 6
NODES = 64
SEED = 5
DECLARED: dict[str, dict[str, Any]] = {
    "reset": {},
    "epigenetic": {"heritable_share": "free", "maternal": "tau", "paternal": "tau"},
}
SHARES = share_priors(
    {
        "heritable_share": {"alpha": 2, "beta": 2},
        "tau": {"alpha": 3, "beta": 2},
        "environment_share": {"alpha": 2, "beta": 2},
    }
)
# Families of three sizes, so that no order of latents is another one by chance; a replicate and a covariate.
PEDIGREE = make_pedigree(
    ("m1",), ("f1",), ("c1", "m1", "f1"), ("d1", "m1", "f1"), ("alone",), ("m2",), ("f2",), ("c2", "m2", "f2")
)
INDIVIDUALS = ("c1", "m1", "f1", "alone", "d1", "c2", "m2", "f2", "c1")
AGES = ("-1", "1", "0", "1", "-1", "0", "1", "-1", "-1")


def make_learned(components: int = 2, covariates: int = 1) -> LearnedPriors:
    return LearnedPriors(
        baseline_weights=np.array([0.6, 0.4, 0.0][:components]) / sum([0.6, 0.4, 0.0][:components]),
        baseline_means=np.array([-1.5, 1.5, 0.0][:components]),
        baseline_sds=np.array([0.8, 1.0, 1.0][:components]),
        spread_location=-0.1,
        spread_scale=0.4,
        effect_sds=np.full(covariates, 0.5),
        hypothesis_weights=np.full(len(DECLARED), 1 / len(DECLARED)),
    )


def make_model(learned: LearnedPriors, loci: int = LOCI) -> tuple[EvidenceModel, np.ndarray, np.ndarray]:
    """The model with an untrained guide, and counts meth, total [L, S] drawn from it."""
    covariates = ("age",) if len(learned.effect_sds) else ()
    sheet = make_sheet(INDIVIDUALS, columns={"age": AGES})
    hypotheses = parse_hypotheses(DECLARED)
    baseline = tuple(map(BaselineComponent, learned.baseline_weights, learned.baseline_means, learned.baseline_sds))
    settings = SimulationSettings(
        seed=4,
        hypotheses=hypotheses,
        weights=(0.5, 0.5),
        contigs=(Contig("chr1", loci),),
        share_priors=SHARES,
        covariates=covariates,
        baseline=baseline,
        log_spread_location=learned.spread_location,
        log_spread_scale=learned.spread_scale,
        coverage_mean=12,
        missing_loci=0.1,
    )
    drawn = simulate_cohort(settings, PEDIGREE, sheet)
    cohort = build_cohort(sheet, PEDIGREE, covariates, hypotheses)
    torch.manual_seed(0)
    family = build_transmission(cohort, hypotheses, SHARES, torch.device("cpu"), torch.float64)
    model = build_evidence_model(cohort, hypotheses, learned, SHARES, Encoder(cohort, family, 8).state_dict(), 8)
    return model, drawn.meth.astype(np.uint16), drawn.total.astype(np.uint16)


def make_problems(learned: LearnedPriors | None = None, nodes: int = NODES, loci: int = LOCI) -> list[LocusProblem]:
    model, meth, total = make_model(make_learned() if learned is None else learned, loci)
    return build_locus_problems(model, GUIDES["structured"], meth, total, np.arange(loci), nodes, SEED)
