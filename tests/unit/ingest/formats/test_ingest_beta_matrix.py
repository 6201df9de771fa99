"""Beta values of arrays: off unless asked for, placed by position or manifest, and refused where they are none."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from test_ingest_command import arguments, epivi
from test_ingest_files import make_settings

from epivi.base.errors import UserError
from epivi.ingest import text as text_module
from epivi.ingest.layout import IngestSettings
from epivi.ingest.qc import QcRecord
from epivi.ingest.read import detect, ingest

POSITIONS = "contig position s other\nchr2 101 0.26 0.5\nchr2 201 NA 0.5\nchr1 51 1 nan\nchr1 61 0 0\n"
PROBES = "probe s\ncg03 0.5\ncg01 0.25\nrs9 0.5\ncg77 0.1\nch.1.2F 1\ncg02 \n"
MANIFEST = (
    "probe contig position strand\ncg01 chr1 11 +\ncg02 chr1 21 -\ncg03 chr2 5 +\nrs9 chr2 9 +\nch.1.2F chr2 31 +\n"
)


def array_settings(**changes) -> IngestSettings:
    return make_settings(**{"pseudo_reads": 50, **changes})


def run(folder: Path, text: str, settings: IngestSettings, sample: str = "s", **more) -> tuple[list, QcRecord]:
    path = folder / "betas.tsv"
    path.write_text(text.replace(" ", "\t"))
    loci: list = []

    def write(contig, counts):
        columns = (counts.pos0, counts.strand, counts.meth, counts.total)
        loci.extend((contig, *values) for values in zip(*(column.tolist() for column in columns), strict=True))

    return loci, ingest(path, sample, settings, write, spill_directory=folder, **more)


def manifest(folder: Path, text: str = MANIFEST) -> str:
    path = folder / "manifest.tsv"
    path.write_text(text.replace(" ", "\t"))
    return str(path)


@pytest.mark.parametrize("threads", [1, 2])
def test_values_become_pseudo_reads_at_their_positions(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(text_module, "BLOCK_BYTES", 20)
    loci, record = run(tmp_path, POSITIONS, array_settings(), threads=threads)
    assert detect(tmp_path / "betas.tsv") == "beta_matrix"
    assert loci == [("chr1", 50, 0, 50, 50), ("chr1", 60, 0, 0, 50), ("chr2", 100, 0, 13, 50)]
    assert (record.rows_read, record.dropped["uncovered"], record.is_extrapolated) == (4, 1, True)
    assert record.layout == "beta values, 50 pseudo-reads each"
    assert [locus[3] for locus in run(tmp_path, POSITIONS, array_settings(), "other")[0]] == [0, 25, 25]


def test_probes_are_placed_by_the_manifest(tmp_path):
    loci, record = run(tmp_path, PROBES, array_settings(array_manifest=manifest(tmp_path)))
    assert loci == [("chr1", 10, 0, 13, 50), ("chr2", 4, 0, 25, 50)]
    reasons = {"no_position": 1, "context": 2, "uncovered": 1}  # cg77; rs9 and ch.1.2F; cg02
    assert {reason: rows for reason, rows in record.dropped.items() if rows} == reasons
    assert record.rows_read == 6


def test_many_probes_in_any_order(tmp_path, monkeypatch):
    """Against a dictionary, probe by probe."""
    monkeypatch.setattr(text_module, "BLOCK_BYTES", 500)
    generator = np.random.default_rng(5)
    names = [f"cg{number:08d}" for number in generator.permutation(4000)[:1500]]
    betas = {name: round(float(generator.random()), 3) for name in names}
    known = {name: (f"chr{generator.integers(1, 4)}", 3 * place + 1) for place, name in enumerate(sorted(names)[::2])}
    text = "probe contig position\n" + "".join(f"{name} {contig} {pos}\n" for name, (contig, pos) in known.items())
    loci, record = run(
        tmp_path,
        "probe s\n" + "".join(f"{name} {beta}\n" for name, beta in betas.items()),
        array_settings(array_manifest=manifest(tmp_path, text), pseudo_reads=1000),
    )
    expected = sorted((contig, pos - 1, 0, round(1000 * betas[name]), 1000) for name, (contig, pos) in known.items())
    assert loci == expected
    assert record.dropped["no_position"] == 750


def test_arrays_are_refused_unless_the_number_of_pseudo_reads_is_set(tmp_path):
    with pytest.raises(UserError, match=r"are not counts of reads \(expected loci\.array\.pseudo_reads"):
        run(tmp_path, POSITIONS, make_settings())


def test_the_log_says_what_the_number_means(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run(tmp_path, POSITIONS, array_settings())
    assert "count as 50 reads each; evidences and intervals are those of so many reads" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (POSITIONS.replace("0.26", "-2.1"), "line 2: column 3 (beta of s) is '-2.1' (expected a fraction from 0 to 1"),
        (POSITIONS.replace("0.26", "26"), "line 2: column 3 (beta of s) is '26' (expected a fraction from 0 to 1"),
        (POSITIONS.replace("0.26", "x"), "line 2: column 3 (beta of s) is 'x' (expected a number, or NA for a missing"),
        (POSITIONS.replace("101", "NA"), "line 2: column 2 (position) is 'NA' (expected a whole number"),
        (POSITIONS.replace("101", "0"), "line 2: column 2 (position) is '0' (expected a 1-based position)"),
        (POSITIONS.replace(" s ", " t "), "line 1: 0 columns are named 's' (expected one, as the sample is named)"),
        (POSITIONS.replace("other", "s"), "line 1: 2 columns are named 's'"),
        (PROBES, "the rows are probes (expected their positions in loci.array.manifest)"),
        ("contig position s\n", "the file has no rows"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path, text, expected):
    with pytest.raises(UserError, match=re.escape(f"betas.tsv: {expected}")):
        run(tmp_path, text, array_settings())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("probe chrom position\ncg01 1 5\n", "line 1: the header lacks contig (expected probe, contig, position"),
        ("probe contig position\n", "the file has no rows"),
        (MANIFEST + "cg01 chr1 99 +\n", "the probe 'cg01' has two rows (expected one)"),
        (MANIFEST.replace(" 11 ", " 0 "), "line 2: column 3 (position) is '0' (expected a 1-based position)"),
    ],
)
def test_bad_manifests(tmp_path, text, expected):
    with pytest.raises(UserError, match=re.escape(f"manifest.tsv: {expected}")):
        run(tmp_path, PROBES, array_settings(array_manifest=manifest(tmp_path, text)))


def test_arrays_do_not_tell_other_modifications(tmp_path):
    _, record = run(tmp_path, POSITIONS, array_settings(modification="h"))
    assert (record.rows_read, record.dropped["other_modification"]) == (4, 4)


def test_from_the_command_line(tmp_path):
    source = tmp_path / "betas.tsv"
    source.write_text(POSITIONS.replace(" s ", " plant 7 ").replace(" ", "\t").replace("plant\t7", "plant 7"))
    done = epivi(*arguments(tmp_path, source, config=json.dumps({"loci": {"array": {"pseudo_reads": 100}}})))
    assert done.returncode == 0, done.stderr
    assert "WARNING" in done.stderr
    assert "count as 100 reads each" in done.stderr
    assert epivi(*arguments(tmp_path, source)).returncode == 2
