"""What two individuals are to one another: named pairs of a pedigree of three generations, and of lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from epivi.cohort.pedigree_files import read_pedigree
from epivi.cohort.relatives import KINDS, WITHOUT_BLOOD, relatives

# A couple with two children; the daughter has children by two men, the son by one woman; a third family alone.
THREE_GENERATIONS = """individual mother father
grandmother . .
grandfather . .
daughter grandmother grandfather
son grandmother grandfather
first_man . .
second_man . .
woman . .
girl daughter first_man
boy daughter first_man
later daughter second_man
cousin woman son
open daughter .
stranger . .
"""
PAIRS = {
    ("grandmother", "grandmother"): "replicates",
    ("grandmother", "grandfather"): "mates",
    ("daughter", "grandmother"): "mother_child",
    ("grandfather", "son"): "father_child",
    ("daughter", "son"): "full_sibs",
    ("girl", "boy"): "full_sibs",
    ("girl", "later"): "maternal_half_sibs",
    # The second father is not known: full or half siblings.
    ("girl", "open"): "second_degree",
    ("grandfather", "cousin"): "grandparent",
    ("later", "grandmother"): "grandparent",
    ("son", "girl"): "avuncular",
    ("cousin", "daughter"): "avuncular",
    ("cousin", "girl"): "third_degree",
    ("cousin", "open"): "third_degree",
    ("woman", "son"): "mates",
    ("woman", "grandmother"): "in_laws",
    ("first_man", "second_man"): "in_laws",
    ("first_man", "later"): "in_laws",
    ("stranger", "grandmother"): "unrelated",
}


def read(text: str, folder: Path) -> object:
    path = folder / "pedigree.tsv"
    path.write_text(text.replace(" ", "\t"))
    return read_pedigree(str(path))


def kind_of(found: object, names: list[str], first: str, second: str) -> str:
    codes = {found.kind[names.index(a), names.index(b)] for a, b in ((first, second), (second, first))}
    assert len(codes) == 1
    return list(KINDS)[codes.pop()]


def test_named_pairs_of_three_generations(tmp_path: Path) -> None:
    pedigree = read(THREE_GENERATIONS, tmp_path)
    names = list(pedigree.individuals)
    found = relatives(pedigree, names)
    assert {pair: kind_of(found, names, *pair) for pair in PAIRS} == PAIRS
    kinds = np.array(list(KINDS))[found.kind]
    assert ((found.relatedness < 1e-12) == np.isin(kinds, WITHOUT_BLOOD)).all()
    families = {name: int(number) for name, number in zip(names, found.family, strict=True)}
    assert families["stranger"] != families["girl"]
    assert len(set(families.values())) == 2


def test_whom_the_samples_do_not_show_still_connects(tmp_path: Path) -> None:
    """Mates without a sampled child, and a grandparent without the sampled parent."""
    pedigree = read(THREE_GENERATIONS, tmp_path)
    names = ["woman", "son", "grandmother", "girl", "girl"]
    found = relatives(pedigree, names)
    assert kind_of(found, names, "woman", "son") == "mates"
    assert kind_of(found, names, "grandmother", "girl") == "grandparent"
    assert list(KINDS)[found.kind[3, 4]] == "replicates"


def test_mates_of_one_blood_are_relatives(tmp_path: Path) -> None:
    """What first cousins who have a child share may be passed on to both."""
    pedigree = read(THREE_GENERATIONS + "inbred girl cousin\n", tmp_path)
    names = list(pedigree.individuals)
    assert kind_of(relatives(pedigree, names), names, "girl", "cousin") == "third_degree"


@pytest.mark.parametrize("mode", ["selfing", "clonal"])
def test_lines_have_kinds_of_their_own(mode: str, tmp_path: Path) -> None:
    header = "individual mother father mode generations\n"
    lines = f"founder . . . .\nA founder . {mode} 3\nA1 A . {mode} 2\nB founder . {mode} 5\nother . . . .\n"
    pedigree = read(header + lines, tmp_path)
    names = list(pedigree.individuals)
    found = relatives(pedigree, names)
    assert kind_of(found, names, "A1", "founder") == "line_of_descent"
    assert kind_of(found, names, "A", "A1") == "line_of_descent"
    assert kind_of(found, names, "A1", "B") == "sister_lines"
    assert kind_of(found, names, "A1", "other") == "unrelated"
