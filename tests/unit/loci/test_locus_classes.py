"""Classes of loci: contexts crossed with the annotation of a BED file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from epivi.base.errors import UserError
from epivi.loci.classes import read_classes
from epivi.loci.loci_file import LocusBlock
from epivi.tables.columns import CONTEXTS


def block(pos0: list[int], context: list[str], contig: str = "chr1") -> LocusBlock:
    n = len(pos0)
    start = np.array(pos0, dtype=np.int32)
    code = np.array([CONTEXTS.index(name) for name in context], dtype=np.int8)
    reads = np.ones((n, 1), dtype=np.uint16)
    return LocusBlock(contig, 0, start, start + 1, np.zeros(n, np.int8), code, reads, reads)


def bed(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "classes.bed"
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def test_without_a_file_the_classes_are_the_contexts() -> None:
    classes = read_classes(None, ("CG", "CHH"))
    assert classes.names == ("CG", "CHH")
    assert classes.codes(block([1, 5, 9], ["CG", "CHH", "CG"])).tolist() == [0, 1, 0]


def test_a_locus_belongs_to_the_interval_of_its_first_base(tmp_path: Path) -> None:
    path = bed(tmp_path, "chr1\t100\t200\tTE", "chr1\t10\t20\tgene", "chr1\t20\t30\tTE", "chr2\t0\t5\tgene")
    classes = read_classes(path, ("CG", "CHG"))
    assert classes.names == ("CG:TE", "CG:gene", "CG:other", "CHG:TE", "CHG:gene", "CHG:other")
    codes = classes.codes(block([9, 10, 19, 20, 30, 199, 200], ["CG"] * 6 + ["CHG"]))
    assert [classes.names[code] for code in codes] == [
        "CG:other", "CG:gene", "CG:gene", "CG:TE", "CG:other", "CG:TE", "CHG:other",
    ]  # fmt: skip
    assert classes.codes(block([4], ["CHG"], "chr2")).tolist() == [4]
    assert classes.codes(block([4], ["CG"], "chr3")).tolist() == [2]


def test_intervals_of_one_class_may_overlap(tmp_path: Path) -> None:
    path = bed(tmp_path, "chr1\t0\t50\tTE", "chr1\t10\t20\tTE", "chr1\t40\t60\tTE", "chr1\t60\t70\tgene")
    classes = read_classes(path, ("CG",))
    assert [classes.names[code] for code in classes.codes(block([0, 55, 60, 70], ["CG"] * 4))] == [
        "CG:TE", "CG:TE", "CG:gene", "CG:other",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            ["chr1\t0\t50\tTE", "chr1\t60\t80\tTE", "chr1\t49\t55\tgene"],
            "line 3: chr1:49-55 of class 'gene' overlaps 0-",
        ),
        (["chr1\t0\t90\tTE", "chr1\t10\t20\tTE", "chr1\t50\t55\tgene"], "overlaps 0-90 of class 'TE' on line 1"),
        (["chr1\t0\t50"], "line 1: no class; expected its name in the fourth column"),
        (["chr1\t0\t50\tother"], "line 1: the class 'other' is for loci outside all intervals"),
        (["# nothing"], "holds no interval"),
        (["chr1\t5\t5\tTE"], "line 1: end is 5"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, lines: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=r"classes\.bed") as error:
        read_classes(bed(tmp_path, *lines), ("CG",))
    assert expected in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.bed: cannot be read as BED"):
        read_classes(str(tmp_path / "none.bed"), ("CG",))


def test_an_unknown_context_is_refused() -> None:
    with pytest.raises(UserError, match="context 'CHH'"):
        read_classes(None, ("CG",)).codes(block([1], ["CHH"]))
