"""One sample from a file to its counts and its record, as the command is given it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from epivi.base.errors import UserError
from epivi.ingest.fingerprint import read_fingerprint
from epivi.ingest.sample import ingest_sample
from epivi.loci.counts_file import CountsFile
from epivi.tables.parquet import read_table

ROWS = "chr1\t5\t5\t50\t1\t1\nchr1\t6\t6\t100\t3\t0\nchr2\t9\t9\t0\t0\t4\n"
CONFIG = '{"qc": {"conversion": {"unmethylated_contigs": ["chr2"]}}}'


def test_counts_their_fingerprint_and_sums_are_in_one_file(tmp_path: Path) -> None:
    source, output, qc = tmp_path / "a.cov", tmp_path / "counts" / "a.parquet", tmp_path / "a.json"
    source.write_text(ROWS)
    ingest_sample(source, "a", output, qc, CONFIG, "bismark_cov", "all", threads=1)
    assert read_table(output, "counts").select(["contig", "meth", "total"]).to_pylist() == [
        {"contig": "chr1", "meth": 4, "total": 5}
    ]
    file = CountsFile.open(output)
    assert file.sample == "a"
    fingerprint = read_fingerprint(file.metadata)
    assert fingerprint is not None
    assert fingerprint.loci == 1
    record = json.loads(qc.read_text())
    assert record["rows_read"] == 3
    assert record["loci_written"] == 1
    assert record["sums"]["unmethylated"]["reads"] == 4


def test_a_file_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "a.cov"
    source.write_text(ROWS.replace("100\t3", "100\tthree"))
    with pytest.raises(UserError, match=r"a\.cov: line 2"):
        ingest_sample(source, "a", tmp_path / "a.parquet", tmp_path / "a.json", CONFIG, "bismark_cov", "all", threads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.cov"]
