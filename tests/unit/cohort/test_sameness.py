"""The same reads twice, other names of contigs, positions one base off, another build: named, and nothing else."""

from __future__ import annotations

import gzip
import os

import numpy as np
import pyarrow as pa
import pytest
from cohort_files import (
    Drawn,
    assembled,
    coverage_text,
    cpgs,
    drawn,
    ingested,
    loci_of,
    report_text,
    write_sheet,
)
from places import DATA

from epivi.base.errors import UserError
from epivi.cohort.sameness import SAME_COUNTS_NATS, check_files, repeated_file_mistakes
from epivi.cohort.samples import read_sample_sheet
from epivi.ingest.fingerprint import MOST_WINDOWS, read_fingerprint
from epivi.loci.contig_names import SampleContigs, contig_mistakes, contig_tables, contigs_of_table
from epivi.loci.counts_file import CountsFile
from epivi.quality.findings import contig_findings
from epivi.tables.parquet import read_table

FAULTS = DATA / "faults"
needs_faults = pytest.mark.skipif(not FAULTS.is_dir(), reason="the public test data is not beside the repository")


def message(done) -> str:
    """What a command that failed says: a line for each mistake, which begins with a line of the sheet."""
    assert isinstance(done.exception, UserError), (done.output, done.exception)
    text = str(done.exception)
    assert all("samples.tsv line " in line for line in text.splitlines())
    return text


# ---- one file, several paths


@pytest.mark.parametrize("how", ["symbolic link", "hard link", "dot", "folder link", "absolute"])
def test_a_file_by_another_path_is_the_same_file(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mum.cov").write_text("chr1\t11\t11\t50\t1\t1\n")
    path = {
        "symbolic link": "kid.cov",
        "hard link": "kid.cov",
        "dot": "./data/../data/mum.cov",
        "folder link": "linked/mum.cov",
        "absolute": str(tmp_path / "data" / "mum.cov"),
    }[how]
    if how == "symbolic link":
        os.symlink("data/mum.cov", "kid.cov")
    elif how == "hard link":
        os.link("data/mum.cov", "kid.cov")
    elif how == "folder link":
        os.symlink("data", "linked")
    sheet = read_sample_sheet(write_sheet(tmp_path, [("mum", "mum", "data/mum.cov"), ("kid", "kid", path)]))
    with pytest.raises(UserError) as caught:
        check_files(sheet)
    assert str(caught.value).endswith(
        f"samples.tsv line 3: {path!r} of sample 'kid' is the same file as 'data/mum.cov' of sample 'mum' on line 2,"
        " of individual 'mum', not 'kid': expected one individual a file"
    )


def test_one_file_as_two_replicates_doubles_its_weight(tmp_path):
    (tmp_path / "a.cov").write_text("chr1\t11\t11\t50\t1\t1\n")
    rows = [("a1", "ann", str(tmp_path / "a.cov")), ("a2", "ann", str(tmp_path / "a.cov"))]
    with pytest.raises(UserError, match=r"line 3: .*sample 'a2' is the file of sample 'a1' on line 2: its reads would"):
        check_files(read_sample_sheet(write_sheet(tmp_path, rows)))


def test_all_repeated_files_are_listed(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.cov").write_text("chr1\t11\t11\t50\t1\t1\n")
    rows = [(f"s{row}", f"i{row}", str(tmp_path / f"{name}.cov")) for row, name in enumerate("aabb")]
    mistakes = repeated_file_mistakes(read_sample_sheet(write_sheet(tmp_path, rows)))
    assert ["line 3" in mistakes[0], "line 5" in mistakes[1], len(mistakes)] == [True, True, 2]


def test_a_matrix_and_haplotypes_of_reads_may_share_a_file(tmp_path):
    matrix, bam = tmp_path / "beta.tsv", tmp_path / "cat.bam"
    matrix.write_text("contig\tposition\tann\tbob\nchr1\t11\t0.5\t0.25\n")
    bam.write_bytes(b"BAM\1")
    os.symlink("cat.bam", tmp_path / "same.bam")
    columns = "sample individual path format haplotype"
    rows = [(name, name, str(matrix), "auto", "all") for name in ("ann", "bob")]
    rows += [
        ("cat_1", "cat", str(bam), "modbam", "1"),
        ("cat_2", "cat", str(tmp_path / "same.bam"), "modbam", "2"),
        ("cat_u", "cat", str(bam), "modbam", "unphased"),
    ]
    check_files(read_sample_sheet(write_sheet(tmp_path, rows, columns)))
    # Two lines of text cannot be two haplotypes.
    (tmp_path / "dan.cov").write_text("chr1\t11\t11\t50\t1\t1\n")
    rows = [(f"dan_{number}", "dan", str(tmp_path / "dan.cov"), "auto", number) for number in "12"]
    with pytest.raises(UserError, match="expected each read in one sample"):
        check_files(read_sample_sheet(write_sheet(tmp_path, rows, columns)))


# ---- the same counts in another file


@pytest.fixture(scope="module")
def family() -> dict[str, Drawn]:
    """Mother, father and child at the same CpGs, of the same levels, as twins have them; 400 loci."""
    contig, pos0 = cpgs(1)
    level = np.random.default_rng(2).beta(0.5, 0.5, len(pos0))
    return {name: drawn(seed, contig, pos0, level) for seed, name in enumerate(("mum", "dad", "kid"))}


def test_separate_reads_of_the_same_levels_are_no_repetition(tmp_path, family):
    done = assembled(tmp_path, {name: coverage_text(one) for name, one in family.items()})
    assert done.exit_code == 0, done.exception
    assert read_table(tmp_path / "loci" / "positions.parquet", "positions").num_rows == 0


@pytest.mark.parametrize("how", ["copy", "gzip", "format", "order", "names"])
def test_a_copy_of_counts_is_named_with_both_samples_and_lines(tmp_path, family, how):
    mum = family["mum"]
    order = np.random.default_rng(1).permutation(len(mum.pos0))
    copies: dict[str, str | bytes] = {
        "copy": coverage_text(mum),
        "gzip": gzip.compress(coverage_text(mum).encode()),
        "format": report_text(mum),
        "order": coverage_text(Drawn(*(column[order] for column in mum))),
        "names": coverage_text(mum.named("chr", "")),
    }
    done = assembled(tmp_path, {"mum": coverage_text(mum), "dad": coverage_text(family["dad"]), "kid": copies[how]})
    sheet = tmp_path / "samples.tsv"
    expected = (
        f"{sheet} line 4: sample 'kid' has the same counts as sample 'mum' ({sheet} line 2) at all {len(mum.pos0)}"
    )
    assert message(done).startswith(expected)
    assert not (tmp_path / "loci" / "loci.json").exists()


def test_equal_counts_that_may_be_chance_are_no_error(tmp_path):
    """Five CpGs with one read each in two samples: separate reads are equal one time in a few."""
    text = "".join(f"chr1\t{pos}\t{pos}\t100\t1\t0\n" for pos in range(101, 600, 100))
    assert assembled(tmp_path, {"ann": text, "bob": text}).exit_code == 0


def test_arrays_alike_at_their_extremes_are_no_copies_and_equal_ones_are(tmp_path):
    """Coverage says nothing where it is the same everywhere; so do levels of 0 and 1."""
    rng = np.random.default_rng(5)
    config = {"loci": {"array": {"pseudo_reads": 10}}}

    def matrix(beta: np.ndarray) -> str:
        rows = "".join(f"chr1\t{100 * row + 1}\t{value}\t{value}\n" for row, value in enumerate(beta))
        return f"contig\tposition\tann\tbob\n{rows}"

    extremes, betas = rng.integers(0, 2, 2000), rng.uniform(0, 1, 2000).round(3)
    for name, beta, is_error in (("extremes", extremes, False), ("betas", betas, True)):
        (tmp_path / name).mkdir()
        done = assembled(tmp_path / name, {"ann": matrix(beta), "bob": matrix(beta)}, config)
        assert isinstance(done.exception, UserError) == is_error


def test_the_information_in_counts_is_never_overstated(tmp_path):
    """Against draws: the chance that two draws of the same levels agree at a locus, at depths from .3 to 100.

    20,000 pairs each, seed 3; -log of the share that agree, with the coverage given, is at least what is claimed.
    """
    rng = np.random.default_rng(3)
    for depth in (0.3, 1.0, 3.0, 10.0, 30.0, 100.0):
        level = rng.beta(0.5, 0.5, 20_000)
        totals = rng.poisson(depth, (2, 20_000))
        meths = rng.binomial(totals, level)
        both = (totals > 0).all(0)
        agree = ((totals[0] == totals[1]) & (meths[0] == meths[1]))[both].mean()
        pos0 = 10 + 100 * np.arange(20_000)
        seen = totals[0] > 0
        one = Drawn(np.full(seen.sum(), "chr1"), pos0[seen], meths[0][seen], totals[0][seen])
        found = read_fingerprint(CountsFile.open(ingested(tmp_path, f"d{depth}", coverage_text(one))).metadata)
        assert found.loci == seen.sum()
        assert 0.05 < found.nats / found.loci <= -np.log(agree) + 0.02
        assert found.nats > SAME_COUNTS_NATS


# ---- positions


def test_the_same_few_cpgs_are_kept_of_every_sample(tmp_path):
    """Of 40,000 CpGs in 23 contigs, whatever part of them a sample covers."""
    contig, pos0 = cpgs(4, tuple(f"chr{number}" for number in range(23)), 40_000)
    kept = []
    for seed, depth in ((1, 30.0), (2, 0.5)):
        text = coverage_text(drawn(seed, contig, pos0, depth=depth))
        kept.append(read_fingerprint(CountsFile.open(ingested(tmp_path, f"s{seed}", text)).metadata).positions)
    deep, shallow = kept
    assert MOST_WINDOWS <= len(deep.keys) < 3 * MOST_WINDOWS
    assert deep.bound < shallow.bound
    assert np.isin(shallow.below(deep.bound).keys, deep.keys).all()
    assert len(shallow.below(deep.bound).keys) > 0.2 * len(deep.keys)


@needs_faults
@pytest.mark.parametrize("others", [1, 2, 3])
def test_the_zero_based_file_alone_is_named(tmp_path, others):
    """The five CpGs of the file, beside samples in the usual form."""
    one_based = "".join(f"chr1\t{pos}\t{pos}\t75\t3\t1\n" for pos in range(101, 142, 10))
    texts = {f"s{number}": one_based for number in range(others)} | {"zero": (FAULTS / "zero.cov").read_text()}
    text = message(assembled(tmp_path, texts))
    assert text.startswith(
        f"{tmp_path / 'samples.tsv'} line {others + 2}: the positions of sample 'zero' are one base bef"
    )
    assert "at 5 of 5 CpGs" in text
    assert text.count("one base before") == 1


@pytest.mark.parametrize("bases", [-1, 1])
def test_samples_one_base_off_are_named_in_a_cohort(tmp_path, family, bases):
    """Two of five, one written as whole CpGs; the three others are the usual ones."""
    contig, pos0 = cpgs(1)
    texts = {name: coverage_text(one) for name, one in family.items()}
    texts["off1"] = coverage_text(drawn(8, contig, pos0).moved(bases))
    texts["off2"] = report_text(drawn(9, contig, pos0).moved(bases))
    text = message(assembled(tmp_path, texts))
    assert "line 5: the positions of sample 'off1'" in text
    assert "line 6: the positions of sample 'off2'" in text
    assert text.count("the positions of sample") == 2
    assert ("zero-based positions read as one-based" in text) == (bases == -1)


def test_single_cytosines_of_either_strand_are_not_one_base_off(tmp_path):
    """At low coverage a file without strands has either base of a CpG; beside it one with the strands merged."""
    contig, pos0 = cpgs(6, loci=2000)
    rng = np.random.default_rng(4)
    texts = {"merged": report_text(drawn(1, contig, pos0, depth=1.0))}
    for name in ("ann", "bob"):
        one = drawn(rng.integers(1000), contig, pos0, depth=0.5)
        texts[name] = coverage_text(one._replace(pos0=one.pos0 + rng.integers(0, 2, len(one.pos0))))
    assert assembled(tmp_path, texts).exit_code == 0


def test_another_build_is_named(tmp_path, family):
    """CpGs of another genome of the same density, 20,000 of them in each sample; coverage leaves half of them out."""
    contig, pos0 = cpgs(7, loci=20_000)
    other_contig, other = cpgs(8, loci=20_000)
    texts = {f"s{seed}": coverage_text(drawn(seed, contig, pos0, depth=0.7)) for seed in range(3)}
    texts["other"] = coverage_text(drawn(9, other_contig, other, depth=0.7))
    text = message(assembled(tmp_path, texts))
    assert "line 5: the CpGs of sample 'other' hardly meet those of 's" in text
    assert text.count("hardly meet") == 1
    del texts["other"]
    (tmp_path / "same").mkdir()
    assert assembled(tmp_path / "same", texts).exit_code == 0


def test_samples_of_other_regions_are_not_of_another_build(tmp_path):
    """Two panels of targets that do not overlap share no CpG, and chance gives none."""
    contig, pos0 = cpgs(7, ("chr1",), loci=4000)
    texts = {
        "left": coverage_text(drawn(1, contig[:2000], pos0[:2000])),
        "right": coverage_text(drawn(2, contig[2000:], pos0[2000:])),
    }
    assert assembled(tmp_path, texts, {"loci": {"min_covered_samples": 1}}).exit_code == 0


# ---- names of contigs


def test_half_of_the_samples_without_chr_are_named_and_the_key_mends_it(tmp_path, family):
    texts = {name: coverage_text(one) for name, one in family.items()}
    contig, pos0 = cpgs(1)
    texts["dan"] = coverage_text(drawn(4, contig, pos0).named("chr", ""))
    texts["eve"] = coverage_text(drawn(5, contig, pos0).named("chr", ""))
    (tmp_path / "mixed").mkdir()
    text = message(assembled(tmp_path / "mixed", texts))
    assert "line 5: 'dan' and 'eve' share no contig with" in text
    assert "'1' and '2' against 'chr1' and 'chr2'" in text
    assert "set loci.contigs.rename: add_chr" in text
    table = read_table(tmp_path / "mixed" / "loci" / "contigs.parquet", "contigs").to_pylist()
    assert [(row["contig"], row["sample"]) for row in table if row["sample"] in ("mum", "eve")] == [
        ("chr1", "mum"),
        ("chr2", "mum"),
        ("1", "eve"),
        ("2", "eve"),
    ]
    assert sum(row["loci"] for row in table if row["sample"] == "mum") == len(family["mum"].pos0)
    for choice in ("add_chr", "drop_chr", {"1": "chr1", "2": "chr2"}):
        folder = tmp_path / str(choice)[:5]
        folder.mkdir()
        done = assembled(folder, texts, {"loci": {"contigs": {"rename": choice}, "min_covered_samples": 0.99}})
        assert done.exit_code == 0, done.exception
        loci = loci_of(folder)
        assert {contig for contig, _ in loci} == ({"1", "2"} if choice == "drop_chr" else {"chr1", "chr2"})
        assert len(loci) > 350
        assert all(all(row) for row in loci.values())


@pytest.mark.parametrize(
    ("old", "new", "advice"),
    [
        ("chr", "Chr", "add_chr"),
        ("chr", "CHR", "add_chr"),
        ("chr", "scf", "{OLD: NEW} for each contig"),
        ("chr", "NC_", "{OLD: NEW} for each contig"),
    ],
)
def test_other_spellings_are_shown_with_what_to_write(tmp_path, family, old, new, advice):
    texts = {name: coverage_text(one) for name, one in family.items()}
    texts["kid"] = coverage_text(family["kid"].named(old, new))
    text = message(assembled(tmp_path, texts))
    assert f"line 4: 'kid' shares no contig with 'mum' and 'dad': '{new}1' and '{new}2' against 'chr1'" in text
    assert f"set loci.contigs.rename: {advice}" in text


def test_patterns_name_contigs_as_renamed(tmp_path, family):
    config = {"loci": {"contigs": {"rename": "drop_chr", "include": ["[0-9]"], "exclude": ["2"]}}}
    assert assembled(tmp_path, {name: coverage_text(one) for name, one in family.items()}, config).exit_code == 0
    assert {contig for contig, _ in loci_of(tmp_path)} == {"1"}


def test_two_contigs_of_a_file_do_not_become_one(tmp_path):
    text = "chr1\t11\t11\t50\t1\t1\n1\t21\t21\t50\t1\t1\n"
    with pytest.raises(UserError, match=r"its contigs 'chr1' and '1' would both be 'chr1' by loci\.contigs\.rename"):
        ingested(tmp_path, "ann", text, {"loci": {"contigs": {"rename": "add_chr"}}})


def contigs_of(sample: str, loci: dict[str, int]) -> SampleContigs:
    counts = np.array(list(loci.values()))
    return SampleContigs(sample, tuple(loci), counts, np.zeros_like(counts), counts)


def findings_of(*samples: SampleContigs) -> list[tuple[str, str, str]]:
    """Check, sample and sentence of what stands out, read back from the table of contigs."""
    table = pa.concat_tables(contig_tables(samples))
    found = contig_findings(contigs_of_table(table), lambda name: name != "chrY", [])
    return [(one.check, one.sample, one.text) for one in found]


def test_a_file_cut_short_is_named_by_the_contigs_that_it_lacks():
    whole = {"chr1": 900, "chr2": 600, "chr10": 400, "chrM": 5, "chrY": 100}
    cut = {"chr1": 400, "chr2": 300, "chrY": 60}
    samples = [contigs_of(name, whole) for name in "abc"]
    ((check, sample, text),) = findings_of(*samples, contigs_of("cut", cut))
    assert (check, sample) == ("missing_contigs", "cut")
    assert "no locus on 'chr10', which hold 20" in text
    # chrM would have two loci there, and a woman has no Y.
    other = {"chr1": 400, "chr2": 300, "Chr10": 90}
    assert "it alone has 'Chr10'" in findings_of(*samples, contigs_of("other", other))[0][2]
    assert findings_of(*samples, contigs_of("woman", {"chr1": 9, "chr2": 9, "chr10": 9})) == []


def test_sparse_samples_on_many_scaffolds_are_doubted_and_not_refused():
    """Of 5,000 scaffolds each sample has a tenth: few in common, and no spelling that would explain it."""
    rng = np.random.default_rng(3)
    samples = [
        contigs_of(name, {f"scaffold{number}": 1 for number in rng.choice(5000, 500, replace=False)}) for name in "abc"
    ]
    assert not any(mistake.is_certain for mistake in contig_mistakes(samples))
    assert {check for check, _, _ in findings_of(*samples)} == {"contigs"}


@pytest.mark.parametrize("rename", ["add_chr", {"1": "chr1"}])
def test_a_reference_may_spell_its_contigs_as_some_of_the_samples_do(tmp_path, rename):
    """One FASTA for files with and without `chr`; CpGs at 4 and 8, the last row a C that is none."""
    (tmp_path / "g.fa").write_text(">chr1\nAAAACGAACGAACAA\n")
    (tmp_path / "g.fa.fai").write_text("chr1\t15\t6\t15\t16\n")
    config = {"loci": {"reference": str(tmp_path / "g.fa"), "contigs": {"rename": rename}}}
    for name in ("1", "chr1"):
        text = "".join(f"{name}\t{pos}\t{pos}\t50\t1\t1\n" for pos in (5, 9, 13))
        counts = read_table(ingested(tmp_path, f"s_{name}", text, config), "counts").to_pylist()
        assert [(row["contig"], row["pos"]) for row in counts] == [("chr1", 4), ("chr1", 8)]
    with pytest.raises(UserError, match=r"g\.fa: has no contig '1'"):
        ingested(tmp_path, "other", "1\t5\t5\t50\t1\t1\n", {"loci": {"reference": str(tmp_path / "g.fa")}})
