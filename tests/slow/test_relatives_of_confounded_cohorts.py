"""What relatives and factors say of cohorts without transmission but with what all loci share, and of a true signal.

The cohorts of test_confounded_cohorts.py: six families of a couple and four children, 20 reads, 3,000 loci; three draws
of each kind. Without a cause a run warns of relatives in 1 %, and of a factor in 1 %: of the nine draws of kinds that
should be silent, more than one warning has a chance of 1.3 %.
"""

from __future__ import annotations

import numpy as np
import pytest
import test_confounded_cohorts as cohorts
from test_calibration import report

from epivi.cohort.relatives import relatives
from epivi.quality.by_relative import resemblance
from epivi.quality.factor_relations import factor_findings, relations
from epivi.quality.factors import find_factors, pedigree_kinds
from epivi.quality.relatives_verdict import relatives_findings, verdict
from epivi.quality.resemblance import levels

pytestmark = pytest.mark.slow

LOCI, DRAWS = 3000, 3
SAMPLES = len(cohorts.SHEET.samples)
RELATED = relatives(cohorts.PEDIGREE, cohorts.SHEET.individuals)
LIKENESS = pedigree_kinds(cohorts.PEDIGREE, cohorts.SHEET.individuals)
NONE = np.zeros(SAMPLES)
WEIGHTS = (0.6, 0.1, 0.1, 0.1, 0.1)


def warnings(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts of the findings of one draw."""
    monkeypatch.setattr(cohorts, "LOCI", LOCI)
    is_signal = kind == "signal"
    drawn = cohorts.simulated(WEIGHTS, seed, LOCI) if is_signal else cohorts.without_transmission(kind, seed)
    values, design = levels(drawn.meth, drawn.total, NONE, NONE), np.ones((SAMPLES, 1))
    found = resemblance(values, design, RELATED, {})
    factors = find_factors(values, design, LIKENESS)
    related = relations(factors, cohorts.SHEET, range(SAMPLES), cohorts.PEDIGREE, RELATED)
    findings = [*relatives_findings(found, RELATED.relatedness > 0, {}), *factor_findings(factors, related, ())]
    report(f"{kind} {seed}: {verdict(found)}; factors {[round(factor.share, 4) for factor in factors]}")
    return [finding.text for finding in findings]


def test_what_has_no_cause_is_not_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, variants of single loci, and a true signal."""
    texts = [warnings(kind, seed, monkeypatch) for kind in ("nothing", "variants", "signal") for seed in range(DRAWS)]
    assert sum(map(bool, texts)) <= 1


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("batch is family", "mates (parents of a child) resemble each other"),
        ("cells", "that no column of the sheet explains"),
        ("cells by household", "of one factor at all loci"),
        ("generation", "that goes with generation"),
    ],
)
def test_what_all_loci_share_is_warned_of(kind: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(DRAWS):
        assert any(words in text for text in warnings(kind, seed, monkeypatch))
