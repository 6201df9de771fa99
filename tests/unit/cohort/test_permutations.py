"""Exchanges of individuals: who may take whose place, and what stays as it was."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from inference_cases import make_sheet
from test_pedigree import build

from epivi.base.errors import UserError
from epivi.cohort.pedigree import families
from epivi.cohort.permutations import exchanged

# Three families of a couple, two children and a grandchild with a mate from outside; one has a half-brother too.
FAMILIES = ("A", "B", "C")
PEDIGREE = build(
    *(
        row
        for f in FAMILIES
        for row in (
            (f"{f}m", "", ""),
            (f"{f}f", "", ""),
            (f"{f}c1", f"{f}m", f"{f}f"),
            (f"{f}c2", f"{f}m", f"{f}f"),
            (f"{f}mate", "", ""),
            (f"{f}g", f"{f}c1", f"{f}mate"),
        )
    ),
    ("Ahalf", "Am", ""),
)
SEX = {"m": "female", "f": "male", "c1": "female", "c2": "male", "mate": "male", "g": "female", "half": "male"}
PEDIGREE = replace(PEDIGREE, sex=tuple(SEX[name[1:]] for name in PEDIGREE.individuals))


def draw(exchange: str, draws: int = 200, **columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Which individual each one's samples came to stand for, in each draw; columns must be alike."""
    before = make_sheet(PEDIGREE.individuals, columns=columns)
    random = np.random.default_rng(3)
    found = [exchanged(before, PEDIGREE, exchange, tuple(columns), random) for _ in range(draws)]
    for after in found:
        assert after.samples == before.samples
        assert sorted(after.individuals) == sorted(before.individuals)
    return [dict(zip(before.individuals, after.individuals, strict=True)) for after in found]


def places(found: list[dict[str, str]], name: str) -> set[str]:
    return {moved[name] for moved in found}


def test_across_families_keeps_sex_and_generation() -> None:
    found = draw("across")
    assert places(found, "Am") == {"Am", "Bm", "Cm"}
    assert places(found, "Ac2") == places(found, "Ahalf") == {"Ac2", "Bc2", "Cc2", "Ahalf"}
    # The mates from outside are founders, as the grandfathers are.
    assert places(found, "Amate") == {f"{f}{role}" for f in FAMILIES for role in ("f", "mate")}
    counts = Counter(moved["Am"] for moved in found)
    assert all(40 < counts[name] < 95 for name in counts)  # of 200 / 3; beyond 4 SDs


def test_within_families_keeps_the_family_and_nothing_else() -> None:
    found = draw("within")
    members = {f: {name for name in PEDIGREE.individuals if name[0] == f} for f in FAMILIES}
    assert len(families(PEDIGREE)) == 3
    for f in FAMILIES:
        assert places(found, f"{f}m") == members[f]


def test_sibships_stay_together_and_get_other_parents() -> None:
    found = draw("sibships")
    assert places(found, "Ac1") == {"Ac1", "Bc1", "Cc1"}
    for moved in found:
        assert {moved[f"{f}c1"][0] + moved[f"{f}c2"][0] for f in FAMILIES} <= {"AA", "BB", "CC"}
    # A half-brother is a sibship of his own, like none.
    assert places(found, "Ahalf") == {"Ahalf"}


@pytest.mark.parametrize("exchange", ["across", "within", "sibships"])
def test_a_column_that_must_be_alike(exchange: str) -> None:
    batch = tuple("1" if name[0] in "AB" else "2" for name in PEDIGREE.individuals)
    found = draw(exchange, batch=batch)
    assert all(moved[name][0] == "C" for moved in found for name in moved if name[0] == "C")


def test_a_column_that_is_not_there_or_has_gaps() -> None:
    random = np.random.default_rng(1)
    gaps = make_sheet(PEDIGREE.individuals, columns={"batch": ("",) * len(PEDIGREE.individuals)})
    for column, words in (
        ("btach", "no column 'btach'; did you mean 'batch'"),
        ("batch", "column 'batch' of sample 's0'"),
    ):
        with pytest.raises(UserError, match=words):
            exchanged(gaps, PEDIGREE, "across", (column,), random)


def test_replicates_and_haplotypes_move_together() -> None:
    """All samples of an individual go where it goes, and only to one whose haplotypes are known alike."""
    before = make_sheet(("Am", "Am", "Bm", "Bm", "Cm"), origins={"s0": "maternal", "s1": "paternal"})
    random = np.random.default_rng(1)
    found = [exchanged(before, PEDIGREE, "across", (), random).individuals for _ in range(50)]
    assert {individuals[:2] for individuals in found} == {("Am", "Am")}
    assert {individuals[2:] for individuals in found} == {("Bm", "Bm", "Cm"), ("Cm", "Cm", "Bm")}


def test_one_family_has_nobody_to_exchange_across_with() -> None:
    trio = build(("m", "", ""), ("f", "", ""), ("c", "m", "f"))
    before = make_sheet(trio.individuals)
    random = np.random.default_rng(1)
    found = {exchanged(before, trio, "across", (), random).individuals for _ in range(20)}
    assert found == {("m", "f", "c"), ("f", "m", "c")}  # of unknown sex
