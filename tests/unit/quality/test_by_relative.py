"""Kinds of relatives with errors over families: false alarms, power, a slow jackknife, and what cannot be said.

Levels are drawn as logits without reads' noise, whose removal test_resemblance.py holds; eight families of four.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from epivi.cohort.pedigree import Pedigree
from epivi.cohort.relatives import Relatives, relatives
from epivi.quality.by_relative import FALSE_ALARM_RATE, Resemblance, Row, resemblance
from epivi.quality.findings import Finding
from epivi.quality.relatives_verdict import relatives_findings, verdict
from epivi.quality.resemblance import Levels

Array = NDArray[np.float64]
MEMBERS = 4
LOCI = 300


def nuclear(families: int) -> Pedigree:
    """Two parents and two children a family."""
    size = families * MEMBERS
    first = np.repeat(np.arange(families) * MEMBERS, MEMBERS)
    is_child = np.tile([False, False, True, True], families)
    return Pedigree(
        tuple(f"F{number // MEMBERS}_{number % MEMBERS}" for number in range(size)),
        np.where(is_child, first, -1).astype(np.int32),
        np.where(is_child, first + 1, -1).astype(np.int32),
        ("sexual",) * size,
        np.ones(size, dtype=np.int32),
        ("female", "male") * (size // 2),
    )


def related(families: int, repeats: int = 1) -> Relatives:
    pedigree = nuclear(families)
    return relatives(pedigree, pedigree.individuals * repeats)


def levels_of(deviation: Array) -> Levels:
    return Levels(deviation, np.zeros_like(deviation), np.ones_like(deviation))


def drawn(kind: str, seed: int, families: int = 8, loci: int = LOCI) -> Array:
    """Deviations [L, S]: of individuals alone, with a share passed on, or with what a family or household shares."""
    random = np.random.default_rng(seed)
    who = related(families)
    own = random.normal(size=(loci, families * MEMBERS))
    of_family = np.repeat(np.arange(families), MEMBERS)
    if kind == "signal":
        share = 0.5 * who.relatedness + 0.5 * np.eye(len(own.T))
        return own @ np.linalg.cholesky(share).T
    if kind == "batch is family":
        return own + 0.7 * random.normal(size=(loci, families))[:, of_family]
    if kind == "household":  # one factor of all loci, which families have more or less of
        return own + random.normal(size=(loci, 1)) * random.normal(size=families)[of_family]
    return own


def compare(deviation: Array, who: Relatives, columns: dict[str, NDArray[np.int32]] | None = None) -> Resemblance:
    return resemblance(levels_of(deviation), np.ones((len(deviation.T), 1)), who, columns or {})


def warned(found: Resemblance, who: Relatives, columns: dict[str, NDArray[np.int32]] | None = None) -> list[Finding]:
    return list(relatives_findings(found, who.relatedness > 0, columns or {}))


def row_of(found: Resemblance, kind: str, column: str = "", level: str = "") -> Row:
    (row,) = [row for row in found.rows if (row.kind, row.column, row.level) == (kind, column, level)]
    return row


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_they_are_said_to_be() -> None:
    """80 cohorts each, of no resemblance and of a true signal: 1 % would be .8 each, and more than 4 has a chance
    of .1 %. Errors over families are those that the correlations scatter by, within 40 %; the ratio's SD is 10 %."""
    for kind in ("nothing", "signal"):
        who = related(8)
        found = [compare(drawn(kind, seed), who) for seed in range(80)]
        assert FALSE_ALARM_RATE == 0.01
        assert sum(bool(warned(one, who)) for one in found) <= 4
        rows = [row_of(one, "mates") for one in found]
        scatter = np.std([row.correlation for row in rows])
        assert abs(np.mean([row.correlation for row in rows])) < 4 * scatter / np.sqrt(len(rows))
        assert 0.7 < np.sqrt(np.mean([row.se_families**2 for row in rows])) / scatter < 1.4


def test_batches_that_are_families_are_seen_in_mates() -> None:
    """In each of 8 cohorts; the true share, .49 of 1.49, is inside the interval in 6 at least (2 misses more: .6 %)."""
    who = related(8)
    found = [compare(drawn("batch is family", seed), who) for seed in range(8)]
    texts = [warned(one, who) for one in found]
    assert all(len(one) == 1 and "mates" in one[0].text and "household" in one[0].text for one in texts)
    rows = [row_of(one, "mates") for one in found]
    assert sum(row.lower < 0.49 / 1.49 < row.upper for row in rows) >= 6
    assert all(row.detectable < row.correlation for row in rows)


def test_true_relatives_resemble_each_other_and_mates_do_not() -> None:
    who = related(8)
    found = compare(drawn("signal", 1, loci=2000), who)
    assert row_of(found, "mother_child").correlation == pytest.approx(0.25, abs=0.04)
    assert row_of(found, "full_sibs").correlation == pytest.approx(0.25, abs=0.04)
    assert row_of(found, "mother_child").lower > 0
    assert abs(row_of(found, "mates").correlation) < 0.05
    assert "mates do not resemble each other beyond error" in verdict(found)
    unrelated = row_of(found, "unrelated")
    assert (unrelated.is_reference, unrelated.correlation, unrelated.pairs) == (True, 0.0, 32 * 28 // 2)


def test_one_factor_of_all_loci_has_an_error_over_families_and_not_over_loci() -> None:
    """Households that have more or less of one factor: 3,000 loci know it by .01, eight families by .1 and more."""
    row = row_of(compare(drawn("household", 3, loci=3000), related(8)), "mates")
    assert row.se_loci < 0.03
    assert row.se_families > 4 * row.se_loci


def test_errors_are_those_of_leaving_out_each_family() -> None:
    """Slowly: each family's samples removed, and the whole computed again."""
    deviation = drawn("batch is family", 4, families=5)
    row = row_of(compare(deviation, related(5)), "mates")
    rest = []
    for family in range(5):
        keep = [sample for sample in range(20) if sample // MEMBERS != family]
        rest.append(row_of(compare(deviation[:, keep], related(4)), "mates").correlation)
    assert row.se_families == pytest.approx(np.sqrt(4 / 5 * ((rest - np.mean(rest)) ** 2).sum()), rel=0.02)
    assert row.families == 5


def test_one_family_has_no_standard_error() -> None:
    """And no unrelated pair: its mates are what the others are relative to."""
    found = compare(drawn("signal", 5, families=1), related(1))
    row = row_of(found, "mother_child")
    assert found.reference == "mates"
    assert np.isfinite(row.correlation)
    assert np.isnan([row.se_families, row.lower, row.detectable]).all()
    assert warned(found, related(1)) == []
    assert "no mates or in-laws" in verdict(found)
    two = compare(drawn("batch is family", 5, families=2), related(2))
    assert np.isnan(row_of(two, "mates").se_families)
    assert "without a standard error" in verdict(two)


def test_nothing_that_varies_is_said() -> None:
    """Levels without variance beyond that of reads: no correlation, however small the numbers that are divided."""
    random = np.random.default_rng(6)
    noise = np.full((LOCI, 32), 0.04)
    values = Levels(random.normal(0, 0.2, noise.shape), noise, np.ones_like(noise))
    found = resemblance(values, np.ones((32, 1)), related(8), {})
    assert found.sd == 0
    assert np.isnan([row.correlation for row in found.rows]).all()
    assert "do not differ beyond what their reads explain" in verdict(found)
    assert warned(found, related(8)) == []


def test_replicates_should_resemble_each_other() -> None:
    """Two libraries of each: alike to 1 / 1.2 as drawn; with libraries of other individuals not at all."""
    random = np.random.default_rng(7)
    individuals = drawn("nothing", 7)
    libraries = np.concatenate([individuals, individuals], axis=1) + random.normal(0, 0.45, (LOCI, 64))
    who = related(8, repeats=2)
    alike = compare(libraries, who)
    assert row_of(alike, "replicates").correlation == pytest.approx(1 / 1.2, abs=0.05)
    assert warned(alike, who) == []
    libraries[:, 32:] = random.permutation(libraries[:, 32:], axis=1)
    (finding,) = warned(compare(libraries, who), who)
    assert "samples of one individual hardly resemble" in finding.text


def test_batches_within_families_are_seen_across_them() -> None:
    """Two batches, each with one parent and one child of every family; each has a factor of its own at every locus."""
    random = np.random.default_rng(8)
    batch = np.tile([0, 1, 0, 1], 8).astype(np.int32)
    who = related(8)
    deviation = drawn("nothing", 8) + random.normal(0, 0.7, (LOCI, 2))[:, batch]
    found = compare(deviation, who, {"batch": batch})
    same = row_of(found, "same level", "batch", "within less across")
    assert same.lower > 0.1
    assert row_of(found, "unrelated", "batch", "within").correlation > 0.1
    assert row_of(found, "unrelated", "batch", "across").is_reference
    assert row_of(found, "mother_child", "batch", "within").pairs == 8
    (finding,) = warned(found, who, {"batch": batch})
    assert "same batch are more alike" in finding.text
    without = compare(drawn("nothing", 9), who, {"batch": batch})
    assert warned(without, who, {"batch": batch}) == []


def test_a_batch_that_is_the_family_is_not_distinguished_from_it() -> None:
    who = related(8)
    batch = who.family.copy()
    # Mates are in one batch and not related, so that the batch is told from blood by them alone.
    found = compare(drawn("nothing", 10), who, {"batch": batch})
    assert warned(found, who, {"batch": batch}) == []
    children = np.flatnonzero(np.arange(32) % MEMBERS >= 2)
    only = Relatives(*(each[np.ix_(children, children)] for each in who[:2]), who.family[children])
    found = compare(drawn("nothing", 10)[:, children], only, {"batch": batch[children]})
    assert np.isnan(row_of(found, "same level", "batch", "within less across").correlation)
    (finding,) = warned(found, only, {"batch": batch[children]})
    assert "cannot be distinguished from inheritance" in finding.text


def test_more_families_than_are_left_out_one_by_one() -> None:
    """70 families: several are left out together, and the error stays what it is."""
    values = [row_of(compare(drawn("nothing", seed, 70, 100), related(70)), "mates") for seed in range(1)]
    assert all(row.families == 70 and row.freedom == 59 for row in values)
    assert all(0.5 < row.se_families / row.se_loci < 2 for row in values)
