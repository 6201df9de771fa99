"""What simulated cohorts of all families share: options, positions, pedigrees, files."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from inference_cases import make_sheet

from epivi.base.errors import UserError
from epivi.simulate.files import pedigree_text, sheet_text
from epivi.simulate.formats import TEXT_FORMATS
from epivi.simulate.options import parse_contigs, parse_list, parse_weights
from epivi.simulate.positions import draw_gaps
from epivi.simulate.templates import TEMPLATES, choose_unsampled, template_pedigree


def test_loci_are_divided_evenly_among_contigs() -> None:
    assert parse_contigs("3", 11) == (("chr1", 4), ("chr2", 4), ("chr3", 3))
    assert parse_contigs("X,HLA*01", 2) == (("X", 1), ("HLA*01", 1))


@pytest.mark.parametrize("text", ["0", "a,a", "a b", "a,,b", "4"])
def test_contigs_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--contigs"):
        parse_contigs(text, 3)


def test_weights_are_of_named_hypotheses_or_half_of_the_null_ones() -> None:
    names, null = ("reset", "mendelian", "epigenetic"), ("reset",)
    assert parse_weights(None, names, null) == (0.5, 0.25, 0.25)
    assert parse_weights("epigenetic=0.2,reset=0.8", names, null) == (0.8, 0.0, 0.2)
    with pytest.raises(UserError, match="did you mean 'mendelian'"):
        parse_weights("mendelien=1", names, null)
    with pytest.raises(UserError, match=r"sum to 1, not 0\.5"):
        parse_weights("reset=0.5", names, null)
    assert parse_list("--x", " ") == []


def test_gaps_have_their_mean_and_leave_room_for_the_g() -> None:
    """Of 20,000 gaps the mean has a standard error of 0.13: 0.7 is missed with a probability below 1e-6."""
    gaps = draw_gaps(20.0, 20_000, np.random.default_rng(1))
    assert gaps.min() >= 2
    assert gaps.mean() == pytest.approx(20.0, abs=0.7)


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_make_families_with_parents_before_children(template: str) -> None:
    pedigree = template_pedigree(template, 12)
    own = np.arange(len(pedigree.individuals))
    assert (pedigree.mother < own).all()
    assert (pedigree.father < own).all()
    assert {name[:4] for name in pedigree.individuals} == {f"F{number:02d}_" for number in range(1, 13)}
    rows = pd.read_csv(io.StringIO(pedigree_text(pedigree)), sep="\t")
    assert rows["individual"].tolist() == list(pedigree.individuals)


def test_every_family_keeps_a_sample() -> None:
    pedigree = template_pedigree("trio", 3)
    unsampled = choose_unsampled(pedigree, 6, seed=1)
    assert len({name[:2] for name in set(pedigree.individuals) - set(unsampled)}) == 3
    assert unsampled != choose_unsampled(pedigree, 6, seed=2)
    with pytest.raises(UserError, match="unsampled = 7: expected 0 to 6"):
        choose_unsampled(pedigree, 7, seed=1)


def test_the_sheet_has_a_row_a_sample() -> None:
    sheet = make_sheet(("a", "b", "a"), columns={"batch": ("x", "y", "y")})
    rows = pd.read_csv(io.StringIO(sheet_text(sheet)), sep="\t")
    assert rows["individual"].tolist() == ["a", "b", "a"]
    assert rows["batch"].tolist() == ["x", "y", "y"]


@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_every_format_holds_the_counts(name: str) -> None:
    """Methylated reads and all reads, or all but the methylated, stand in each row, whatever the format."""
    pos0, meth, total = np.array([7, 30]), np.array([2, 5], dtype=np.int32), np.array([9, 5], dtype=np.int32)
    rows = TEXT_FORMATS[name].table("chr1", pos0, meth, total, 1).to_pandas().astype(str).to_numpy()
    for row, place, m, n in zip(rows.tolist(), pos0, meth, total, strict=True):
        assert row[0] == "chr1"
        assert str(m) in row
        assert {str(n), str(n - m)} & set(row[4:])
        assert {str(place), str(place + 1)} & set(row[1:3])
