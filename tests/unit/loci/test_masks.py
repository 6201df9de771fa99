"""Sites to leave out: what touches a cytosine, against a loop over bases; files, contigs, and what is counted."""

from __future__ import annotations

import json

import numpy as np
import pysam
import pytest
from test_assemble import LOCI, loci_of, write_counts

from epivi.base.errors import UserError
from epivi.cli import main
from epivi.loci import join
from epivi.loci.assemble import AssembleSettings, assemble
from epivi.loci.masks import changed_bases, mask_contigs, read_mask
from epivi.loci.store import LociStore

HEADER = "##fileformat=VCFv4.2\n##contig=<ID=chr1>\n##contig=<ID=chr2>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def variants(path, *rows):
    """A VCF of (contig, 1-based position, REF, ALT)."""
    lines = (f"{contig}\t{pos}\t.\t{ref}\t{alt}\t.\t.\t.\n" for contig, pos, ref, alt in rows)
    path.write_text(HEADER + "".join(lines))
    return path


def cpgs(contig, *starts):
    """Both strands of CpGs, two reads each."""
    return [(contig, pos + at, strand, "CG", 1, 2) for pos in starts for at, strand in ((0, "+"), (1, "-"))]


def assembled(tmp_path, samples, exclude, unit="cpg", merge_strands=True):
    paths = [write_counts(tmp_path / f"s{number}.parquet", rows, f"s{number}") for number, rows in enumerate(samples)]
    settings = AssembleSettings(unit, merge_strands, 1, exclude=tuple(map(str, exclude)))
    assemble(paths, tmp_path / "loci", settings, LOCI, threads=1, on_joined=lambda n_loci: None)
    return LociStore.open(tmp_path / "loci")


def starts_of(store):
    return [(contig, pos) for contig, pos, *_ in loci_of(store)]


@pytest.mark.parametrize(
    ("reference", "allele", "expected"),
    [
        ("C", "T", [(0, 1)]),
        ("CAG", "TAA", [(0, 1), (2, 3)]),
        ("C", "CA", [(1, 1)]),  # between the C and what follows
        ("CG", "C", [(1, 2)]),
        ("ACGT", "AT", [(1, 3)]),
        ("ACG", "ATTG", [(1, 2)]),
    ],
)
def test_bases_that_an_allele_changes(reference, allele, expected):
    assert changed_bases(reference, allele) == expected


@pytest.mark.parametrize(
    ("row", "is_masked"),
    [
        ((101, "C", "T"), True),
        ((102, "G", "A"), True),
        ((102, "G", "C"), True),  # the C is no CpG any more
        ((100, "A", "T"), False),
        ((103, "A", "T"), False),
        ((101, "C", "CT"), True),  # between the two bases
        ((102, "G", "GT"), False),  # after them
        ((100, "AC", "A"), True),
        ((102, "GA", "G"), False),
        ((99, "TACGA", "T"), True),  # a deletion across it
        ((101, "C", "<DEL>"), False),
        ((101, "C", "<NON_REF>"), False),
        ((101, "C", "A,<NON_REF>"), True),
        ((101, "C", "."), False),
        ((101, "C", "*"), False),
    ],
)
def test_variant_on_either_base_masks_a_merged_cpg(tmp_path, row, is_masked):
    """The CpG is at bases 101 and 102, as VCF counts."""
    path = variants(tmp_path / "known.vcf", ("chr1", 301, "C", "T"), ("chr1", *row))
    store = assembled(tmp_path, [cpgs("chr1", 100, 200, 300)], [path])
    assert starts_of(store) == [("chr1", pos) for pos in ((200,) if is_masked else (100, 200))]
    (record,) = store.excluded
    assert (record["excluded"], record["of"]) == (1 + is_masked, "loci")
    assert record["passed_over"] == (row[2] == "<DEL>")


def test_bases_of_one_strand_are_a_cpg_too(tmp_path):
    path = tmp_path / "sites.bed"
    path.write_text("chr1\t100\t101\nchr1\t201\t202\n")
    rows = [*cpgs("chr1", 100, 200, 300), ("chr1", 99, "-", "CHH", 1, 2), ("chr1", 400, "+", "CHH", 1, 2)]
    store = assembled(tmp_path, [rows], [path], merge_strands=False)
    assert starts_of(store) == [("chr1", pos) for pos in (99, 300, 301, 400)]
    assert json.loads((tmp_path / "loci" / "loci.json").read_text())["dropped"] == {
        "min_covered_samples": 0,
        "exclude": 4,
    }


def random_sites(rng, path):
    """Intervals, some over one another; {contig: bases}."""
    bases = {"chr1": set(), "chr2": set()}
    lines = []
    for contig, held in bases.items():
        for start in rng.integers(0, 1500, 60).tolist():
            end = start + int(rng.choice([1, 1, 1, 40]))
            lines.append(f"{contig}\t{start}\t{end}\n")
            held |= set(range(start, end))
    path.write_text("".join(lines))
    return bases


@pytest.mark.parametrize("unit", ["cpg", {"tile": 100}])
def test_random_sites_against_a_loop_over_bases(tmp_path, unit, monkeypatch):
    """Two files, two contigs in one file of loci, windows much smaller than the contigs."""
    monkeypatch.setattr(join, "WINDOW_VALUES", 1)
    monkeypatch.setattr(join, "MIN_WINDOW_BP", 170)
    rng = np.random.default_rng(3)
    paths = [tmp_path / "one.bed", tmp_path / "two.bed"]
    bases = [random_sites(rng, path) for path in paths]
    starts = {contig: np.flatnonzero(rng.random(750) < 0.3) * 2 for contig in ("chr1", "chr2")}
    samples = []
    for _ in range(3):
        rows = []
        for contig, of in starts.items():
            for pos in of[rng.random(of.size) < 0.8].tolist():
                rows.append((contig, pos, "+", "CG", int(rng.integers(5)), 5))
        samples.append(rows)
    store = assembled(tmp_path, samples, paths, unit)
    sums, masked = {}, [set(), set()]
    for number, rows in enumerate(samples):
        for contig, pos, _, _, meth, total in rows:
            touching = [{pos, pos + 1} & one[contig] for one in bases]
            for one, found in zip(masked, touching, strict=True):
                one |= {(contig, pos)} if found else set()
            if not any(touching):
                start = pos if unit == "cpg" else pos // 100 * 100
                pair = sums.setdefault((contig, start), np.zeros((3, 2), int))
                pair[number] += meth, total
    found = {key[:2]: np.array(counts) for key, counts in loci_of(store).items()}
    assert found.keys() == sums.keys()
    assert all(np.array_equal(found[key], sums[key]) for key in sums)
    assert [record["excluded"] for record in store.excluded] == list(map(len, masked))
    assert min(map(len, masked)) > 30


def test_changed_sites_join_nothing_anew(tmp_path):
    """Loci that are one cytosine are left out by the index; tiles must be summed anew."""
    first, second = (variants(tmp_path / f"{pos}.vcf", ("chr1", pos, "C", "T")) for pos in (101, 201))
    rows = [cpgs("chr1", 100, 200)]
    for unit, is_same in (("cpg", True), ({"tile": 150}, False)):
        before = assembled(tmp_path, rows, [first], unit).panels
        store = assembled(tmp_path, rows, [second], unit)
        assert (store.panels == before) == is_same
        assert starts_of(store) == [("chr1", 100 if unit == "cpg" else 0)]


def test_bcf_and_compressed_bed_are_read_as_their_text(tmp_path):
    path = variants(tmp_path / "known.vcf", ("chr1", 101, "C", "T"), ("chr2", 11, "CG", "C"))
    with (
        pysam.VariantFile(str(path)) as file,
        pysam.VariantFile(str(tmp_path / "known.bcf"), "wb", header=file.header) as out,
    ):
        for record in file:
            out.write(record)
    bed = tmp_path / "same.bed"
    bed.write_text("chr1\t100\t101\nchr2\t11\t12\n")
    pysam.tabix_compress(str(bed), str(bed) + ".gz")
    masks = [read_mask(one) for one in (path, tmp_path / "known.bcf", bed, f"{bed}.gz")]
    for mask in masks:
        assert mask.n_sites == 2
        for contig, sites in mask.sites.items():
            np.testing.assert_array_equal(sites, masks[0].sites[contig])


def error_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize("read", [read_mask, mask_contigs])
def test_unreadable_files_are_named(tmp_path, read):
    assert "no such file" in error_of(read, tmp_path / "none.vcf")
    bed = tmp_path / "bad.bed"
    bed.write_text("chr1\t1\t2\nchr1\tone\t2\n")
    assert "bad.bed: line 2: start is 'one'" in error_of(read, bed)
    (tmp_path / "empty.bed").write_text("# nothing\n")
    assert "holds no site to exclude" in error_of(read, tmp_path / "empty.bed")
    vcf = tmp_path / "bad.vcf"
    vcf.write_text("##fileformat=VCFv4.2\nno header\n")
    assert "bad.vcf: cannot be read as VCF or BCF" in error_of(read, vcf)


def test_truncated_variants_are_no_shorter_list(tmp_path):
    """A compressed file that breaks off in the middle is an error, not the sites up to there."""
    rows = [("chr1", pos, "C", "T") for pos in range(1, 60001, 3)]
    path = variants(tmp_path / "known.vcf", *rows)
    pysam.tabix_compress(str(path), str(path) + ".gz")
    whole = (tmp_path / "known.vcf.gz").read_bytes()
    (tmp_path / "cut.vcf.gz").write_bytes(whole[: len(whole) // 2])
    assert "cut.vcf.gz: cannot be read as VCF or BCF" in error_of(read_mask, tmp_path / "cut.vcf.gz")


def test_contigs_that_do_not_meet_are_named(tmp_path, caplog):
    rows = [cpgs("chr1", 100, 200) + cpgs("chrM", 50)]
    path = tmp_path / "sites.bed"
    path.write_text("1\t100\t101\n")
    line = error_of(assembled, tmp_path, rows, [path])
    assert "sites.bed: none of its contigs is one of the loci: '1' against 'chr1' and 'chrM'" in line
    assert "add_chr" in line
    # Some meet: the loci are there, with a warning.
    path.write_text("chr1\t100\t101\nMT\t50\t51\n")
    (record,) = assembled(tmp_path, rows, [path]).excluded
    assert "'MT' against 'chrM'" in record["warning"]
    assert record["excluded"] == 1
    # None lies at a locus: of another build, perhaps.
    path.write_text("chr1\t7\t8\n")
    (record,) = assembled(tmp_path, rows, [path]).excluded
    assert "none of its 1 sites is at a locus" in record["warning"]
    assert record["warning"] in caplog.text
    path.write_text("chr1\t100\t101\n")
    assert assembled(tmp_path, rows, [path]).excluded[0]["warning"] == ""


def test_sites_everywhere_leave_no_locus(tmp_path):
    path = tmp_path / "all.bed"
    path.write_text("chr1\t0\t1000\n")
    assert "loci.exclude mask all 2 loci" in error_of(assembled, tmp_path, [cpgs("chr1", 100, 200)], [path])


def test_command_takes_the_key(tmp_path):
    counts = write_counts(tmp_path / "s.parquet", cpgs("chr1", 100, 200), "s")
    path = variants(tmp_path / "known.vcf", ("chr1", 202, "G", "A"))
    config = json.dumps({"loci": {"exclude": [str(path)]}})
    with pytest.raises(SystemExit, match="0"):
        main(["assemble", str(counts), "--output", str(tmp_path / "loci"), "--config", config])
    assert starts_of(LociStore.open(tmp_path / "loci")) == [("chr1", 100)]
