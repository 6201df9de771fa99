"""Compile what the evidence of the family `epimutation` runs."""

from __future__ import annotations

import numpy as np

from epivi.families.epimutation.density import LearnedStates
from epivi.families.epimutation.hypotheses import EpimutationPriors, parse_epimutation_hypotheses
from epivi.families.epimutation.quadrature import build_epimutation_model, class_reads, hypothesis_grid
from epivi.families.epimutation.states import locus_states
from epivi.lineage.elimination import build_plan
from epivi.lineage.kernel import expected_counts
from epivi.lineage.lineage import CLONAL, FOUNDER, Lineage


def compile_kernel() -> None:
    """Compile what fit, evidence and states run, by one locus of one founder and its clone."""
    lineage = Lineage(("founder", "clone"), (FOUNDER, CLONAL), ((), (0,)), (1, 1), np.array([1]))
    one, third = np.full(1, 0.01), np.full((1, 3), 1.0 / 3.0)
    hypotheses = parse_epimutation_hypotheses({"neutral": {"rates": "shared"}})
    learned = LearnedStates(one, one, third, one, one, one, np.ones(1))
    model = build_epimutation_model(build_plan(lineage), hypotheses, EpimutationPriors(1.0, 1.0), learned)
    meth, total = np.ones((1, 1), np.uint16), np.full((1, 1), 2, np.uint16)
    locus_states(model, np.ones(1), meth, total, np.zeros(1, np.int16))
    shared = hypothesis_grid(model, hypotheses[0], 0).shared[0]
    expected_counts(model.arrays, shared, class_reads(learned, 0, meth, total))
