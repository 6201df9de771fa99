"""A small cohort of selfed lines drawn from the family `epimutation`, and the family's model of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from epivi.families.epimutation.density import LearnedStates
from epivi.families.epimutation.draw import SimulatedStates, TrueEmission, TrueRates, simulate_reads, simulate_states
from epivi.families.epimutation.hypotheses import EpimutationPriors, parse_epimutation_hypotheses
from epivi.families.epimutation.quadrature import EpimutationEvidenceModel, build_epimutation_model
from epivi.lineage.elimination import build_plan
from epivi.lineage.lineage import build_lineage
from epivi.simulate.templates import template_pedigree

DECLARED = {
    "stable": {"rates": "none"},
    "neutral": {"rates": "shared"},
    "labile": {"rates": "locus"},
    "selection": {"rates": "shared", "selection": "free"},
    "kept": {"rates": "shared", "selection": "for"},
    "given": {"rates": "locus", "selection": -0.5},
}
PRIORS = EpimutationPriors(rate_sd=1.5, fitness_sd=1.0)
GAIN, LOSS = (5e-3, 1e-3), (1e-2, 4e-3)  # of the two classes
FOUNDER = np.array([[0.6, 0.05, 0.35], [0.3, 0.1, 0.6]])
LEARNED = LearnedStates(
    np.array(GAIN), np.array(LOSS), FOUNDER, np.full(2, 0.01), np.full(2, 0.02), np.full(2, 0.02), np.full(6, 1 / 6)
)


class StateCase(NamedTuple):
    model: EpimutationEvidenceModel
    meth: np.ndarray  # [L, S]
    total: np.ndarray  # [L, S]
    class_code: np.ndarray  # [L]
    truth: SimulatedStates


def state_case(n_loci: int, seed: int, names: tuple[str, ...] = tuple(DECLARED), families: int = 1) -> StateCase:
    """Loci of two classes under shared rates."""
    pedigree = template_pedigree("selfing_lines", families)
    plan = build_plan(build_lineage(pedigree, pedigree.individuals))
    random = np.random.default_rng(seed)
    class_code = random.integers(0, 2, n_loci).astype(np.int16)
    rates = TrueRates(np.array(GAIN)[class_code], np.array(LOSS)[class_code], FOUNDER[class_code])
    truth = simulate_states(plan.lineage, rates, n_loci, random)
    meth, total = simulate_reads(truth.states[:, plan.lineage.samples], TrueEmission(0.01, 0.02, 0.02, 12.0), random)
    hypotheses = parse_epimutation_hypotheses({name: DECLARED[name] for name in names})
    return StateCase(build_epimutation_model(plan, hypotheses, PRIORS, LEARNED), meth, total, class_code, truth)
