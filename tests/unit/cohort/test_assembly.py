"""Samples are compared before they are joined: the tables of the comparison, and the same reads twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from epivi.base.errors import UserError
from epivi.cohort.assembly import assemble_cohort
from epivi.ingest.sample import ingest_sample
from epivi.loci.store import CONTIGS, LociStore
from epivi.tables.parquet import read_table

LOCI = 300
CONFIG = '{"loci": {"min_covered_samples": 2, "contigs": {"include": ["chr*", "scaffold"]}}}'


def counts_of(folder: Path, sample: str, seed: int) -> str:
    """CpGs of chr1, and one of a contig that the configuration leaves out."""
    random = np.random.default_rng(seed)
    total = random.integers(5, 40, LOCI)
    meth = random.binomial(total, 0.5)
    rows = [
        f"chr1\t{10 * k + 1}\t{10 * k + 1}\t{100 * m / n}\t{m}\t{n - m}\n"
        for k, (m, n) in enumerate(zip(meth.tolist(), total.tolist(), strict=True))
    ]
    source, output = folder / f"{sample}.cov", folder / f"{sample}.parquet"
    source.write_text("".join(rows) + "lambda\t5\t5\t0\t0\t3\n")
    ingest_sample(source, sample, output, folder / f"{sample}.json", "{}", "bismark_cov", "all", threads=1)
    return str(output)


def test_samples_are_joined_and_patterns_without_a_contig_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts = [counts_of(tmp_path, sample, seed) for seed, sample in enumerate(("a", "b"))]
    assemble_cohort(counts, tmp_path / "loci", CONFIG, None, threads=1)
    store = LociStore.open(tmp_path / "loci")
    assert (store.samples, store.contigs, store.n_loci) == (("a", "b"), ("chr1",), LOCI)
    contigs = read_table(tmp_path / "loci" / CONTIGS, "contigs").to_pydict()
    assert set(contigs["contig"]) == {"chr1"}
    assert "'scaffold', which matches no contig" in caplog.text


def test_the_same_reads_twice_are_two_lines_of_the_sheet(tmp_path: Path) -> None:
    counts = [counts_of(tmp_path, sample, seed=1) for sample in ("a", "b")]
    sheet = tmp_path / "samples.tsv"
    sheet.write_text(f"sample\tindividual\tpath\na\tx\t{tmp_path}/a.cov\nb\ty\t{tmp_path}/b.cov\n")
    with pytest.raises(UserError, match=r"samples\.tsv line 3.*line 2"):
        assemble_cohort(counts, tmp_path / "loci", CONFIG, str(sheet), threads=1)
    assert not (tmp_path / "loci" / "loci.json").exists()
