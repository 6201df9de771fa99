"""The parts of the join one by one: names of contigs, units, several contigs on one line, samples of loci."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transmission_cases import write_store

from epivi.base.errors import UserError
from epivi.loci.contig_line import ContigLine
from epivi.loci.contig_names import ContigRenamer, add_chr, drop_chr, rename_advice
from epivi.loci.contig_patterns import contig_patterns, matches_any
from epivi.loci.source import sample_loci
from epivi.loci.store import LociStore
from epivi.loci.units import CG, PLUS, UNKNOWN, Intervals, Positions, Sums, Tiles, keys_of


@pytest.mark.parametrize(
    ("ensembl", "ucsc"), [("1", "chr1"), ("X", "chrX"), ("MT", "chrM"), ("2L", "chr2L"), ("lambda", "lambda")]
)
def test_spellings_of_a_chromosome(ensembl: str, ucsc: str) -> None:
    assert add_chr(ensembl) == add_chr(ucsc) == ucsc
    assert drop_chr(ucsc) == drop_chr(ensembl) == ensembl


def test_two_contigs_must_not_become_one() -> None:
    renamer = ContigRenamer("a.cov", {"1": "chr1"})
    assert [renamer([name]) for name in ("1", "chr2", "1")] == [("chr1",), ("chr2",), ("chr1",)]
    with pytest.raises(UserError, match=r"a\.cov"):
        renamer(["chr1"])


def test_advice_is_the_renaming_that_makes_names_meet() -> None:
    assert "add_chr" in (rename_advice(["1", "2"], ["chr1", "chr2"]) or "")
    assert rename_advice(["scaffold1"], ["chr1"]) is None


def test_patterns_keep_what_is_included_and_not_excluded() -> None:
    patterns = contig_patterns({"contigs": {"include": ["chr*"], "exclude": ["*_random", "chrM"]}})
    assert [name for name in ("chr1", "chr1_random", "chrM", "1") if patterns.keeps(name)] == ["chr1"]
    assert not matches_any("Chr1", ("chr*",))


def positions(*pos0: int) -> Sums:
    ones = np.ones((len(pos0), 2), dtype=np.int64)
    return Sums(keys_of(np.array(pos0), CG, PLUS), ones, 3 * ones)


def test_units_take_each_position_where_it_belongs() -> None:
    found = positions(3, 99, 100, 150)
    single = Positions(merge_strands=True)
    assert [edge.tolist() for edge in single.extents(single.collect(found).keys)] == [
        [3, 99, 100, 150],
        [5, 101, 102, 152],
    ]
    tiles = Tiles(100)
    joined = tiles.collect(found)
    assert [edge.tolist() for edge in tiles.extents(joined.keys)] == [[0, 100], [100, 200]]
    assert joined.total[:, 0].tolist() == [6, 6]
    assert (joined.keys % 4 == UNKNOWN).all()
    overlapping = Intervals(np.array([0, 50, 120]), np.array([101, 151, 130]))
    within = overlapping.collect(found)
    assert [edge.tolist() for edge in overlapping.extents(within.keys)] == [[0, 50], [101, 151]]
    assert within.total[:, 1].tolist() == [9, 9]
    assert overlapping.numbers(np.array([120, 0]), np.array([130, 101])).tolist() == [2, 0]


def test_contigs_on_a_line_keep_their_positions() -> None:
    line = ContigLine.of([("a", Tiles(300)), ("b", Tiles(300))])
    on_line = line.on_line(np.array([0, 1]), np.array([650, 5]))
    joined = line.unit.collect(Sums(keys_of(on_line, CG, PLUS), *np.ones((2, 2, 1), dtype=np.int64)))
    places = line.places(joined.keys)
    assert places.number.tolist() == [0, 1]
    assert places.pos0.tolist() == [600, 0]
    assert places.end0.tolist() == [900, 300]
    assert line.by_contig(np.array([4, 5])) == {"a": 4, "b": 5}


def test_a_sample_of_loci_is_what_the_store_holds_at_these_numbers(tmp_path: Path) -> None:
    total = np.arange(1, 41, dtype=np.uint16).reshape(20, 2)
    by_contig = {name: (part // 2, part) for name, part in (("chr1", total[:12]), ("chr2", total[12:]))}
    write_store(tmp_path / "loci", ("x", "y"), by_contig)
    store = LociStore.open(tmp_path / "loci")
    found = sample_loci(store, 7, seed=3)
    assert (np.diff(found.number) > 0).all()
    np.testing.assert_array_equal(found.total, total[found.number])
    assert (found.contig == np.where(found.number < 12, "chr1", "chr2")).all()
    assert found.part(slice(2, 4)).number.tolist() == found.number[2:4].tolist()
    assert len(sample_loci(store, 100, seed=3).number) == 20
    assert sample_loci(store, 7, seed=4).number.tolist() != found.number.tolist()
