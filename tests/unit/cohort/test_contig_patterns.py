"""Patterns of contigs that match nothing: named with what may be meant, where indices tell which contigs there are."""

from __future__ import annotations

import json
from pathlib import Path

import pysam
import pytest

from epivi.base.errors import UserError
from epivi.cohort.contig_patterns import check_contig_patterns, unmatched
from epivi.cohort.samples import read_sample_sheet
from epivi.config.load import load_config


def test_a_pattern_that_matches_nothing_is_told_what_may_be_meant() -> None:
    contigs = ["1", "2", "X"]
    assert unmatched(["1", "?", "[0-9]*"], contigs) == []
    (phrase,) = unmatched(["X", "XX"], contigs)
    assert phrase.startswith("'XX', which matches no contig")
    many = [f"scaffold_{number}" for number in range(7)]
    (phrase,) = unmatched(["9"], many)
    assert phrase.endswith("there are scaffold_0, scaffold_1, scaffold_2, scaffold_3, scaffold_4 and 2 more")


@pytest.mark.parametrize("is_indexed", [True, False])
def test_contigs_are_known_by_their_new_names_and_only_from_indices(tmp_path: Path, is_indexed: bool) -> None:
    """With one sample whose contigs nobody knows, nothing can be said to be missing."""
    plain = tmp_path / "a.cov"
    plain.write_text("1\t5\t5\t50\t1\t1\n2\t5\t5\t50\t1\t1\n")
    if is_indexed:
        pysam.tabix_compress(str(plain), f"{plain}.gz")
        pysam.tabix_index(f"{plain}.gz", seq_col=0, start_col=1, end_col=2)
    path = f"{plain}.gz" if is_indexed else plain
    (tmp_path / "samples.tsv").write_text(f"sample\tindividual\tpath\tformat\na\ta\t{path}\tbismark_cov\n")
    sheet = read_sample_sheet(tmp_path / "samples.tsv")

    def check(include: list[str]) -> None:
        contigs = {"include": include, "rename": {"1": "chr1", "2": "chr2"}}
        check_contig_patterns(load_config(json.dumps({"loci": {"contigs": contigs}})), sheet)

    check(["chr1", "chr*"])
    if is_indexed:
        with pytest.raises(UserError, match=r"loci\.contigs\.include has 'chr3', which matches no contig"):
            check(["chr3"])
    else:
        check(["chr3"])
