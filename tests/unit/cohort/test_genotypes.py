"""Dosages of a VCF: which variants count, by which name a sample is found, and one line for what cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from epivi.base.errors import UserError
from epivi.cohort.genotypes import MISSING, read_dosages

HEADER = (
    "##fileformat=VCFv4.2\n##contig=<ID=chr1>\n##contig=<ID=chr2>\n"
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tmouse\tsecond\tthird\n"
)
ROWS = (
    ("chr1", 100, "A", "G", ("0/0", "0/1", "1|1")),
    ("chr1", 900, "A", "G", ("1/1", "0/1", "0/0")),  # near the one before
    ("chr1", 2000, "A", "G", ("0/1", "0/1", "./.")),  # one dosage alone
    ("chr1", 3000, "A", "GT", ("0/0", "0/1", "1/1")),  # an insertion
    ("chr1", 4000, "A", "G,T", ("0/0", "0/1", "1/2")),  # three alleles
    ("chr1", 5000, "A", "G", ("1/1", ".", "0/1")),
    ("chr2", 5100, "C", "T", ("0/1", "1/1", "0/0")),  # another contig is not near
)


def written(folder: Path) -> Path:
    path = folder / "g.vcf"
    lines = ["\t".join([c, str(p), ".", r, a, ".", ".", ".", "GT", *g]) for c, p, r, a, g in ROWS]
    path.write_text(HEADER + "\n".join(lines) + "\n")
    return path


def test_variants_that_count_and_names_that_are_found(tmp_path: Path) -> None:
    names = [("sample_1", "mouse"), ("nobody",), ("third", "mouse"), ("second",)]
    dosages, found = read_dosages(written(tmp_path), names)
    assert found == (0, 2, 3)
    np.testing.assert_array_equal(dosages, [[0, 2, 1], [2, 1, MISSING], [1, 0, 2]])


def test_what_is_no_vcf_or_of_others_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has none of the cohort's samples or individuals, such as 'a'"):
        read_dosages(written(tmp_path), [("a", "b")])
    other = tmp_path / "other.vcf"
    other.write_text("no variants\n")
    with pytest.raises(UserError, match=r"other\.vcf: cannot be read as VCF or BCF"):
        read_dosages(other, [("a",)])
