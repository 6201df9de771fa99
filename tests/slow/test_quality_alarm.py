"""Swapped samples over many cohorts: nothing is raised where none is swapped, and most swaps are found."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
from quality_cases import NO_TRANSMISSION, WEIGHTS, draw, exchanged, findings_of, swaps_of

pytestmark = pytest.mark.slow
COHORTS = 100


@pytest.mark.parametrize("template", ["quartet", "three_generations", "half_sibs"])
@pytest.mark.parametrize("weights", [WEIGHTS, NO_TRANSMISSION], ids=["transmission", "none"])
def test_a_hundred_cohorts_as_declared_raise_nothing(template: str, weights: tuple[float, ...]) -> None:
    """Seeds 1000 to 1099. At most 1 cohort in 1,000 is named by chance where nothing is inherited, so that all hundred
    pass with at least 90 %; where a third of the loci pass something on, the chance is far smaller still."""
    raised = [
        (seed, found.text)
        for seed in range(1000, 1000 + COHORTS)
        for found in findings_of(draw(seed, template, 6, loci=5000, weights=weights))
    ]
    assert raised == []


@pytest.mark.parametrize(
    ("kind", "loci", "cohorts", "least"), [("between", 30_000, 100, 97), ("within", 150_000, 40, 34)]
)
def test_swapped_pairs_are_found(kind: str, loci: int, cohorts: int, least: int) -> None:
    """Seeds from 2000, pairs of samples that can be told apart, drawn at random; no other pair is ever named."""
    found = 0
    for seed in range(2000, 2000 + cohorts):
        cohort = draw(seed, "quartet", 4, loci=loci)
        rng = np.random.default_rng(seed)
        family = np.array([name.split("_")[0] for name in cohort.sheet.samples])
        is_within = family[:, None] == family[None, :]
        pairs = np.argwhere(np.triu(is_within if kind == "within" else ~is_within, 1) & swaps_of(cohort)[1].can_be_seen)
        first, second = rng.choice(pairs).tolist()
        names = {cohort.sheet.samples[index] for index in (first, second)}
        findings = findings_of(exchanged(cohort, (first, second)))
        assert all({one.sample, one.other} == names for one in findings), (seed, names)
        found += bool(findings)
    print(f"{kind} families, {loci} loci: {found} of {cohorts} swapped pairs found")
    assert found >= least
