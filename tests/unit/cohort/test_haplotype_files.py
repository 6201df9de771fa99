"""Haplotypes in files of their own: declared as the pair of an individual, and held to what the files say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from cohort_files import write_sheet
from places import DATA

from epivi.base.errors import UserError
from epivi.cohort.haplotypes import check_haplotypes, sampled_units
from epivi.cohort.kinship import unit_polynomials
from epivi.cohort.pedigree import check_samples
from epivi.cohort.pedigree_files import read_pedigree
from epivi.cohort.sameness import check_files, haplotype_file_mistakes
from epivi.cohort.samples import SampleSheet, read_sample_sheet
from epivi.commands import ingest
from epivi.families.transmission.hypotheses import parse_hypotheses
from epivi.tables.parquet import read_table

MOUSE = DATA / "haplotypes" / "mouse_f1"
COLUMNS = "sample individual path haplotype phasing parent_of_origin"
HYPOTHESES = parse_hypotheses({"epigenetic": {"heritable_share": "free", "maternal": "tau", "paternal": "tau"}})


def pb_rows(label: str, seed: int = 1) -> str:
    """The BED of pb-CpG-tools for all reads or one haplotype, with its comments."""
    rng = np.random.default_rng(seed)
    total = rng.poisson(9, 30) + 1
    meth = rng.binomial(total, 0.5)
    rows = [
        f"chr1\t{pos}\t{pos + 1}\t{100 * m / n:.1f}\t{label}\t{n}\t{m}\t{n - m}\t.\t."
        for pos, m, n in zip(range(100, 3100, 100), meth, total, strict=True)
    ]
    return "\n".join(["##pileup-mode=count", *rows]) + "\n"


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """Files of all reads and of both haplotypes of two individuals, in the current directory."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("ann", "bob")):
        for label in ("Total", "hap1", "hap2"):
            (tmp_path / f"{name}.{label}.bed").write_text(pb_rows(label, seed))
    return tmp_path


def sheet_of(folder: Path, *rows: str) -> SampleSheet:
    return read_sample_sheet(write_sheet(folder, [tuple(row.split(" ")) for row in rows], COLUMNS))


def test_two_files_declared_as_a_pair_are_the_two_chromosomes(tmp_path):
    """As two numbers of one BAM file are, and unlike two files of which nothing is known."""
    pedigree = tmp_path / "pedigree.tsv"
    pedigree.write_text("individual\tmother\tfather\nann\t\t\ncat\tann\t\n")
    files = sheet_of(tmp_path, "a1 ann 1.bed 1 wgs .", "a2 ann 2.bed 2 wgs .", "c cat c.bed . . .")
    reads = sheet_of(tmp_path, "a1 ann a.bam 1 . .", "a2 ann a.bam 2 . .", "c cat c.bed . . .")
    apart = sheet_of(tmp_path, "a1 ann 1.bed 1 x .", "a2 ann 2.bed 2 y .", "c cat c.bed . . .")
    family = read_pedigree(str(pedigree))
    as_files, as_reads, as_apart = (
        unit_polynomials(family, HYPOTHESES[0], sampled_units(sheet)[0]) for sheet in (files, reads, apart)
    )
    np.testing.assert_array_equal(as_files, as_reads)
    assert as_files[0, 1, 0] == 0.0
    assert as_apart[0, 1, 0] == pytest.approx(0.5)
    # The same number of the same phasing, from another library, is a replicate.
    more = sheet_of(tmp_path, "a1 ann 1.bed 1 wgs .", "a2 ann 2.bed 2 wgs .", "a3 ann brain.bed 1 wgs .")
    units, of_sample = sampled_units(more)
    assert of_sample.tolist() == [0, 1, 0]
    assert [unit.name for unit in units] == ["ann haplotype 1 of phasing wgs", "ann haplotype 2 of phasing wgs"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ("a ann 1.bed 1 . .", "b ann 2.bed 2 . ."),
            "line 3: '2.bed': 'ann' has haplotypes of unknown origin in 2 files",
        ),
        (("a ann 1.bed . . unknown", "b ann 2.bed . . unknown"), "has haplotypes of unknown origin in 2 files"),
        (
            ("a ann 1.bed 1 p maternal", "b ann 2.bed 1 p paternal"),
            "haplotype 1 is maternal and paternal in one phasing",
        ),
        (("a ann 1.bed 1 p maternal", "b ann 2.bed 2 p maternal"), "its haplotypes are maternal and maternal"),
        (("a ann 1.bed 1 p .", "b ann 2.bed 2 p .", "c ann 3.bed 3 p ."), "has 3 haplotypes: expected at most 2"),
    ],
)
def test_pairs_that_cannot_be_are_named(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        check_haplotypes(sheet_of(tmp_path, *rows))


@pytest.mark.parametrize(
    "rows",
    [
        ("a1 ann ann.hap1.bed 1 wgs .", "a2 ann ann.hap2.bed 2 wgs .", "b bob bob.Total.bed . . ."),
        ("a1 ann ann.hap1.bed . . maternal", "a2 ann ann.hap2.bed . . paternal"),
        ("a1 ann ann.hap2.bed 2 . maternal", "b1 bob bob.hap2.bed 2 . paternal"),
    ],
)
def test_what_the_files_say_too_is_accepted(files, rows):
    sheet = sheet_of(files, *rows)
    check_files(sheet)
    check_haplotypes(sheet)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ("a1 ann ann.hap1.bed 1 w .", "a2 ann ann.hap2.bed 2 w .", "a ann ann.Total.bed . . ."),
            "line 2: 'ann.hap1.bed' holds haplotype 1, whose reads count in all those of 'a' on line 4 too",
        ),
        (
            ("a ann ann.Total.bed . . paternal",),
            "line 2: 'ann.Total.bed' holds all reads, as it says itself, but parent_of_origin is 'paternal'",
        ),
        (("a ann ann.Total.bed 1 . .",), "holds all reads, as it says itself, but haplotype is '1': expected all"),
        (("a ann ann.hap1.bed 2 . .",), "holds haplotype 1, as it says itself, but haplotype is '2': expected 1"),
        (("a ann ann.hap1.bed . . .",), "holds haplotype 1, as it says itself, not all reads: expected haplotype 1"),
        (
            ("m ann ann.hap1.bed 1 . maternal", "p ann copy.bed 1 . paternal"),
            "line 3: 'copy.bed' holds haplotype 1 and is paternal, while 'm' on line 2 holds haplotype 1 and",
        ),
    ],
)
def test_lines_that_contradict_the_files_are_named(files, rows, message):
    (files / "copy.bed").write_text(pb_rows("hap1", 7))
    with pytest.raises(UserError) as caught:
        check_files(sheet_of(files, *rows))
    assert message in str(caught.value)
    assert haplotype_file_mistakes(sheet_of(files, "b bob bob.Total.bed . . .")) == []


@pytest.mark.parametrize(
    ("haplotype", "label", "is_read"), [("1", "hap1", True), ("2", "hap1", False), ("1", "Total", False)]
)
def test_ingest_reads_the_haplotype_that_it_is_asked_for(files, haplotype, label, is_read):
    options = ["--sample", "s", "--output", "s.parquet", "--qc", "s.json", "--config", "{}", "--haplotype", haplotype]
    done = CliRunner().invoke(ingest.command, [f"ann.{label}.bed", *options])
    if is_read:
        assert done.exit_code == 0, done.output
        assert read_table(files / "s.parquet", "counts").num_rows == 30
    else:
        assert isinstance(done.exception, UserError)
        assert f"column 5 (haplotype) is '{label}' (expected hap{haplotype}, since the sample's" in str(done.exception)
        assert not (files / "s.parquet").exists()


@pytest.mark.skipif(not MOUSE.is_dir(), reason="the public test data is not beside the repository")
def test_real_haplotype_files_are_pairs_by_phasing_or_by_parent(tmp_path):
    """The six files of three mice: by parent as they come, and by numbers with a phasing where parents are not said."""
    by_parent = read_sample_sheet(MOUSE / "samples.tsv")
    rows = [
        f"{name} {name[:2]} {MOUSE / Path(path).name} {1 if 'bl6' in name else 2} np ."
        for name, path in zip(by_parent.samples, by_parent.paths, strict=True)
    ]
    by_number = sheet_of(tmp_path, *rows)
    pedigree = read_pedigree(str(MOUSE / "pedigree.tsv"))
    for sheet in (by_parent, by_number):
        check_files(sheet)
        check_samples(sheet, pedigree)
        units = sampled_units(sheet)[0]
        assert len(units) == 6
        within = unit_polynomials(pedigree, HYPOTHESES[0], units)[0, 1]
        # Of one individual the two chromosomes are unrelated, as its parents are.
        assert within[0] == 0.0
    with pytest.raises(UserError, match="'m1' has haplotypes of unknown origin in 2 files"):
        sampled_units(sheet_of(tmp_path, *(row.replace(" np ", " . ") for row in rows)))
