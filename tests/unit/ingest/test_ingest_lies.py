"""Text files that are not what they look like: read rightly, refused in one line, or named."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pysam
import pytest
from places import DATA

from epivi.base.errors import UserError
from epivi.ingest import fasta as fasta_module
from epivi.ingest import text as text_module
from epivi.ingest.layout import Counts, IngestSettings
from epivi.ingest.qc import QcRecord
from epivi.ingest.read import ingest
from epivi.loci.store import LociStore
from epivi.quality.findings import file_findings
from epivi.tables.columns import CONTEXTS, STRANDS

FAULTS = DATA / "faults"
needs_faults = pytest.mark.skipif(not FAULTS.is_dir(), reason="the public test data beside the repository are absent")

Locus = tuple[str, int, str, str, int, int]  # contig, pos0, strand, context, meth, total


def run(path: Path, format_name: str = "auto", **changes) -> tuple[list[Locus], QcRecord]:
    defaults = {
        "contexts": ("CG",), "modification": "m", "merge_strands": True, "include": ("*",), "exclude": (),
        "min_coverage": 1, "max_coverage": 500,
    }  # fmt: skip
    loci: list[Locus] = []

    def write(contig: str, counts: Counts) -> None:
        columns = (column.tolist() for column in counts)
        for pos0, strand, context, meth, total in zip(*columns, strict=True):
            loci.append((contig, pos0, STRANDS[strand], CONTEXTS[context], meth, total))

    options = IngestSettings(**{**defaults, **changes})
    record = ingest(path, "s", options, write, format_name=format_name, spill_directory=path.parent)
    assert record.rows_read == record.rows_kept + sum(record.dropped.values())
    return loci, record


def read_text(tmp_path: Path, text: str, **changes) -> tuple[list[Locus], QcRecord]:
    path = tmp_path / "input"
    path.write_text(text)
    return run(path, **changes)


def refusal(tmp_path: Path, text: str, **changes) -> str:
    with pytest.raises(UserError) as caught:
        read_text(tmp_path, text, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{tmp_path / 'input'}: ")


def table(*rows: str) -> str:
    """Rows as text; fields are written with spaces here and tabs there."""
    return "".join("\t".join(row.split()) + "\n" for row in rows)


def modkit(pos0: int, code: str, strand: str, meth: int, canonical: int, other: int = 0) -> str:
    total = meth + canonical + other
    percent = 100 * meth / max(1, total)
    return (
        f"chr1 {pos0} {pos0 + 1} {code} {total} {strand} {pos0} {pos0 + 1} 255,0,0 {total} {percent:.2f}"
        f" {meth} {canonical} {other} 0 0 0 0"
    )


# ---------------------------------------------------------------------------------------------- files of the collection

WHOLE = {
    "modkit_old21.bed": [(30, 40)] * 5,
    "modbam2bed11.bed": [(3, 4)] * 4,
    "modkit_header.bed": [(6, 8), (1, 5)],
    "quote_contig.cov": [(3, 4)] * 3,
    "report_cpg.txt": [(8, 9)],
    "cut_methylome.txt": [*[(3, 40)] * 3, (3, 4)],
}


@needs_faults
@pytest.mark.parametrize("name", WHOLE)
def test_faults_come_out_right(name):
    loci, record = run(FAULTS / name)
    assert [locus[4:] for locus in loci] == WHOLE[name]
    assert {locus[0] for locus in loci} == {"chr1"}
    assert record.rows_kept == record.rows_read
    assert any("the last line has no end" in warning for warning in record.warnings) == (name == "cut_methylome.txt")


@needs_faults
def test_every_cytosine_is_no_cpg_where_the_reference_says_so():
    reference = FAULTS / "every_cytosine.fa"
    loci, record = run(FAULTS / "every_cytosine.bed", reference=str(reference))
    sequences = dict(part.split("\n", 1) for part in reference.read_text().upper().split(">")[1:])
    sequences = {name.lower(): bases.replace("\n", "") for name, bases in sequences.items()}
    cpgs = set()
    for line in (FAULTS / "every_cytosine.bed").read_text().splitlines():
        contig, start, _, _, _, strand, *_ = line.split("\t")
        at = int(start) - (strand == "-")
        if at >= 0 and sequences[contig][at : at + 2] == "CG":
            cpgs.add((contig, at))
    assert len(cpgs) > 100
    assert {locus[:2] for locus in loci} == cpgs
    (warning,) = record.warnings  # its rows were not drawn from the sequence
    assert f"{record.dropped['reference_mismatch']} of 1509 rows are on a base of loci.reference" in warning


@needs_faults
def test_every_cytosine_is_refused_without_the_reference():
    with pytest.raises(UserError, match=r"not all CG: .* loci cannot be beside .* lack their other strand .*reference"):
        run(FAULTS / "every_cytosine.bed")


# ------------------------------------------------------------------------------------------------------------- contexts


@pytest.fixture
def genome(tmp_path: Path) -> tuple[Path, str]:
    sequence = "".join(random.Random(3).choices("ACGT", k=3000))
    path = tmp_path / "genome.fa"
    path.write_text(">other\nACGT\n>chr1\n" + "\n".join(sequence[i : i + 50] for i in range(0, 3000, 50)) + "\n")
    pysam.faidx(str(path))
    return path, sequence


def cytosines(sequence: str) -> list[tuple[int, str, str]]:
    """Position, strand and context of every cytosine, one by one."""
    complement = str.maketrans("ACGT", "TGCA")
    found = []
    for at, base in enumerate(sequence):
        after = sequence[at + 1 : at + 3] if base == "C" else sequence[max(0, at - 2) : at][::-1].translate(complement)
        if base in "CG":
            context = "CG" if after[:1] == "G" else "." if len(after) < 2 else "CHG" if after[1] == "G" else "CHH"
            found.append((at, "+" if base == "C" else "-", context))
    return found


WRITERS = {
    "bismark_cov": lambda at, strand: f"chr1 {at + 1} {at + 1} 75 6 2",
    "bedmethyl": lambda at, strand: modkit(at, "m", strand, 6, 2),
    "methyldackel": lambda at, strand: f"chr1 {at} {at + 1} 75 6 2",
    "cytosine_report": lambda at, strand: f"chr1 {at + 1} {strand} 6 2 CG CGN",  # says what is not so
}


@pytest.mark.parametrize("format_name", WRITERS)
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("wanted", [("CG",), ("CHH",), ("CG", "CHG", "CHH")])
def test_the_reference_tells_the_contexts(tmp_path, monkeypatch, genome, format_name, shuffled, wanted):
    monkeypatch.setattr(fasta_module, "TILE_BITS", 7)  # many tiles
    monkeypatch.setattr(text_module, "BLOCK_BYTES", 5000)
    path, sequence = genome
    every = [one for one in cytosines(sequence) if one[0] > 0]
    rows = [WRITERS[format_name](at, strand) for at, strand, _ in every]
    if shuffled:
        random.Random(1).shuffle(rows)
    loci, record = read_text(tmp_path, table(*rows), format_name=format_name, reference=str(path), contexts=wanted)
    strands: dict[tuple[int, str], int] = {}
    for at, strand, context in every:
        key = (at - (strand == "-" and context == "CG"), context)
        strands[key] = strands.get(key, 0) + 1
    expected = sorted((at, context, 8 * n) for (at, context), n in strands.items() if context in wanted)
    assert sorted((locus[1], locus[3], locus[5]) for locus in loci) == expected
    assert all(locus[2] == "+" for locus in loci if locus[3] == "CG")
    assert (record.dropped["reference_mismatch"], record.context_is_assumed) == (0, False)


def test_rows_off_the_cytosines_are_left_out_and_named(tmp_path, genome):
    path, sequence = genome
    rows = [f"chr1 {at + 1} {at + 1} 75 6 2" for at, _, context in cytosines(sequence) if context == "CG"]
    at = sequence.index("A", 100)
    loci, record = read_text(tmp_path, table(*rows, f"chr1 {at + 1} {at + 1} 75 6 2"), reference=str(path))
    assert record.dropped["reference_mismatch"] == 1
    assert f"1 of {len(rows) + 1} rows are on a base of loci.reference that cannot be methylated" in record.warnings[-1]
    assert at not in {locus[1] for locus in loci}


def test_positions_of_another_genome_are_refused(tmp_path, genome):
    path, sequence = genome
    rows = [f"chr1 {at + 1} {at + 1} 75 6 2" for at, base in enumerate(sequence) if base in "AT"]
    message = f"{len(rows)} of {len(rows)} rows are on a base that cannot be methylated in {path}"
    assert refusal(tmp_path, table(*rows), reference=str(path)).startswith(message)
    assert refusal(tmp_path, table("chr1 9001 9001 75 6 2"), reference=str(path)).startswith("1 of 1 rows are on")
    with pytest.raises(UserError, match=r"genome\.fa: has no contig 'chr9'"):
        read_text(tmp_path, table("chr9 11 11 75 6 2"), reference=str(path))
    excluded = table("chr9 11 11 75 6 2", *(f"chr1 {sequence.index('CG') + 1} {sequence.index('CG') + 1} 75 6 2",))
    assert len(read_text(tmp_path, excluded, reference=str(path), exclude=("chr9",))[0]) == 1


@pytest.mark.parametrize("format_name", ["bismark_cov", "methyldackel"])
def test_lone_strands_are_named_where_the_context_is_assumed(tmp_path, genome, format_name):
    every = [WRITERS[format_name](at, strand) for at, strand, _ in cytosines(genome[1])]
    cpgs = [WRITERS[format_name](at, strand) for at, strand, context in cytosines(genome[1]) if context == "CG"]
    _, record = read_text(tmp_path, table(*every), format_name=format_name)
    share = 100 * record.pairing["one_stranded"] / record.pairing["well_covered"]
    (warning,) = record.warnings
    assert f"{share:.0f} % lack their other strand" in warning
    assert share > 50
    assert read_text(tmp_path, table(*cpgs), format_name=format_name)[1].warnings == ()


@pytest.mark.parametrize("merge_strands", [True, False])
def test_rows_that_cannot_be_neighbours_are_refused_whatever_the_coverage(tmp_path, genome, merge_strands):
    rows = [modkit(at, "m", strand, 1, 0) for at, strand, _ in cytosines(genome[1])[1:]]
    assert "not all CG" in refusal(tmp_path, table(*rows), merge_strands=merge_strands)
    assert "not all CHH" in refusal(tmp_path, table(*rows), contexts=("CHH",))
    assert "not all CHG" in refusal(tmp_path, table(*rows), contexts=("CHG",))


@pytest.mark.parametrize("context", ["CG", "CHG"])
def test_rows_of_one_context_pass(tmp_path, genome, context):
    rows = [modkit(at, "m", strand, 5, 3) for at, strand, of in cytosines(genome[1]) if of == context]
    loci, record = read_text(tmp_path, table(*rows), contexts=(context,))
    assert loci
    if context == "CG":
        assert record.warnings == ()
    else:
        assert "nothing in the file shows" in record.warnings[-1]


@pytest.mark.parametrize("spelling", ["CG", "CpG", "cg", "CPG", "cpg", "CGA", "cgn"])
@pytest.mark.parametrize("form", ["cytosine_report", "methylome", "allc"])
def test_spellings_of_a_context(tmp_path, spelling, form):
    text = {
        "cytosine_report": table(f"chr1 101 + 3 1 {spelling} CGA", f"chr1 102 - 5 0 {spelling} CGT"),
        "methylome": table(
            "seqnames start strand context counts.methylated counts.total",
            f"chr1 101 + {spelling} 3 4", f"chr1 102 - {spelling} 5 5",
        ),
        "allc": table(f"chr1 101 + {spelling} 3 4 1", f"chr1 102 - {spelling} 5 5 1"),
    }  # fmt: skip
    loci, record = read_text(tmp_path, text[form])
    assert (loci, record.format) == ([("chr1", 100, "+", "CG", 8, 9)], form)


@pytest.mark.parametrize(
    ("spelling", "context"), [("CpHpG", "CHG"), ("chh", "CHH"), ("CAG", "CHG"), ("CHN", "."), ("CN", ".")]
)
def test_other_contexts_and_what_is_none(tmp_path, spelling, context):
    rows = table("chr1 101 + 3 1 CG CGA", f"chr1 111 + 3 1 {spelling} CNN")
    loci, record = read_text(tmp_path, rows, contexts=("CG", "CHG", "CHH"))
    assert [locus[3] for locus in loci] == (["CG"] if context == "." else ["CG", context])
    assert record.dropped["context"] == (context == ".")
    message = refusal(tmp_path, table("chr1 101 + 3 1 CG CGA", "chr1 105 + 3 1 CG CGA", "chr1 111 + 3 1 GCH CNN"))
    assert message == "line 3: column 6 (context) is 'GCH' (expected CG, CHG, CHH, or bases from the cytosine on)"


# ----------------------------------------------------------------------------------------------------- counts and codes


def test_counts_of_modkit_must_add_up(tmp_path):
    good = [modkit(10 * at, "m", "+", 3, 1, 1) for at in range(1, 4)]
    assert [locus[4:] for locus in read_text(tmp_path, table(*good))[0]] == [(3, 5)] * 3
    bad = modkit(50, "m", "+", 3, 1, 1).split()
    bad[13] = "2"
    message = refusal(tmp_path, table(*good, " ".join(bad)))
    assert message.startswith("line 4: column 10 (coverage) is '5' (expected the sum of the modified, canonical and")
    old = modkit(50, "m", "+", 3, 1, 1).split()
    blocks = [*old[:9], "1", "1", "0", *old[9:]]
    blocks[16] = "7"
    message = refusal(
        tmp_path, table(*(" ".join([*r.split()[:9], "1 1 0", *r.split()[9:]]) for r in good), " ".join(blocks))
    )
    assert message.startswith("line 4: column 13 (coverage) is '5'")


def test_two_counts_are_at_most_the_coverage(tmp_path):
    row = "chr1 {0} {1} 5mC 1000 + {0} {1} 0,0,0 {2} 75.00 1 3"
    assert read_text(tmp_path, table(row.format(10, 11, 5)))[0][0][4:] == (3, 4)
    message = refusal(tmp_path, table(row.format(10, 11, 5), row.format(20, 21, 3)))
    assert message.startswith("line 2: column 10 (coverage) is '3' (expected at least the sum of the two counts)")


def test_a_percent_that_contradicts_is_named_with_its_line(tmp_path):
    rows = [f"chr1 {10 * at} {10 * at} 75 3 1" for at in range(1, 6)]
    _, record = read_text(tmp_path, table(*rows, "chr1 90 90 10 3 1", "chr1 95 95 10 3 1"))
    assert "contradicts the counts in 2 of 7 covered rows, first on line 6" in record.warnings[0]
    assert ", first on line 1 " in refusal(tmp_path, table("chr1 5 5 10 3 1", "chr1 90 90 10 3 1", rows[0]))


def test_modbam2bed_without_calls_and_with_another_share(tmp_path):
    row = "chr1 {0} {1} 5mC {2} + {0} {1} 0,0,0 {3} {4}"
    text = table(
        row.format(10, 11, 1000, 8, "25.00"), row.format(20, 21, 0, 7, "nan"), row.format(30, 31, 667, 6, "50.00")
    )
    loci, record = read_text(tmp_path, text)
    assert [locus[1:] for locus in loci] == [(10, "+", "CG", 2, 8), (30, "+", "CG", 2, 4)]
    assert record.dropped["uncovered"] == 1
    assert refusal(tmp_path, table(row.format(10, 11, 1001, 8, "25.00"))).startswith(
        "line 1: column 5 (score) is '1001'"
    )


def test_codes_of_modifications_are_kept_apart(tmp_path):
    both = table(modkit(10, "m", "+", 3, 5, 2), modkit(10, "h", "+", 2, 5, 3), modkit(10, "C", "+", 5, 5))
    assert [locus[4:] for locus in read_text(tmp_path, both)[0]] == [(3, 10)]
    assert [locus[4:] for locus in read_text(tmp_path, both, modification="h")[0]] == [(2, 10)]
    message = refusal(tmp_path, both, modification="mh")
    assert (
        message
        == "line 3: column 4 (modification) is 'C' (expected rows of m or rows of C, which count the same reads)"
    )


def test_both_modifications_together(tmp_path):
    apart = table(modkit(10, "m", "+", 3, 5, 2), modkit(10, "h", "+", 2, 5, 3), modkit(11, "h", "-", 1, 3, 0))
    assert [locus[4:] for locus in read_text(tmp_path, apart, modification="mh")[0]] == [(5, 10)]
    together = table(modkit(10, "C", "+", 5, 5), modkit(11, "C", "-", 1, 3))
    assert [locus[4:] for locus in read_text(tmp_path, together, modification="mh")[0]] == [(6, 14)]
    for alone in ("m", "h"):
        message = refusal(tmp_path, together, modification=alone)
        assert message.startswith("line 1: column 4 (modification) is 'C', which counts 5mC and 5hmC together")
        assert "expected such rows, or loci.modification 'mh'" in message


def test_a_motif_with_another_place_is_no_second_row_of_the_context(tmp_path):
    rows = table(modkit(10, "m,CG,0", "+", 3, 5), modkit(10, "m,CCGG,1", "+", 3, 5), modkit(20, "m,CG,1", "+", 3, 5))
    loci, record = read_text(tmp_path, rows)
    assert [locus[1:] for locus in loci] == [(10, "+", "CG", 3, 8)]
    assert record.duplicates_merged == 0


# ------------------------------------------------------------------------------------------- headers, quotes, the end

ROWS = {
    "bismark_cov": ("chr start end percent meth unmeth", "c1 11 11 75 3 1", "c1 21 21 75 3 1"),
    "cytosine_report": ("chrom pos strand meth unmeth context bases", "c1 11 + 3 1 CG CGA", "c1 21 + 3 1 CG CGA"),
    "bedmethyl": (
        "chrom start end name score strand tstart tend color cov percent mod canonical other del fail diff nocall",
        "c1 10 11 m 4 + 10 11 0,0,0 4 75.00 3 1 0 0 0 0 0",
        "c1 20 21 m 4 + 20 21 0,0,0 4 75.00 3 1 0 0 0 0 0",
    ),
    "methylome": (
        "seqnames start strand context counts.methylated counts.total", "c1 11 + CG 3 4", "c1 21 + CG 3 4",
    ),
    "methyldackel": ("chrom start end percent meth unmeth", "c1 10 11 75 3 1", "c1 20 21 75 3 1"),
    "pb_cpg": (
        "chrom begin end mod_score type cov est_mod est_unmod dis",
        "c1 10 11 74.0 Total 4 3 1 75.0",
        "c1 20 21 74.0 Total 4 3 1 75.0",
    ),
    "allc": ("chrom pos strand mc_class mc_count total methylated", "c1 11 + CGA 3 4 1", "c1 21 + CGA 3 4 1"),
    "beta_matrix": ("contig position s", "c1 11 0.75", "c1 21 0.75"),
}  # fmt: skip
TWO_LOCI = [("c1", 10, 3, 4), ("c1", 20, 3, 4)]


def quoted(line: str) -> str:
    return "\t".join(f'"{field}"' for field in line.split())


OPENINGS = {
    "bare": lambda header: header,
    "commented": lambda header: f"#{header}",
    "capitals": lambda header: header.upper() if "s\n" not in f"{header}\n" else header.replace("c", "C", 1),
    "quoted": quoted,
    "below a comment": lambda header: f"# made by hand\n{header}",
    "below a browser line": lambda header: f"Browser position chr1\n{header}",
}


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("format_name", ROWS)
@pytest.mark.parametrize("given", [False, True])
def test_headers_in_any_reader(tmp_path, format_name, opening, given):
    header, *rows = ROWS[format_name]
    text = OPENINGS[opening](header.replace(" ", "\t")) + "\n" + table(*rows)
    if format_name == "methyldackel":
        text = 'TRACK type="bedGraph" description="x CpG methylation levels"\n' + text
    loci, record = read_text(tmp_path, text, format_name=format_name if given else "auto", pseudo_reads=4)
    assert [(*locus[:2], *locus[4:]) for locus in loci] == TWO_LOCI
    assert (record.format, record.rows_read) == (format_name, 2)


@pytest.mark.parametrize("mark", ['"', "'"])
@pytest.mark.parametrize("separator", ["\t", " "])
@pytest.mark.parametrize("format_name", [name for name in ROWS if name != "methyldackel"])
def test_quotes_around_any_field(tmp_path, format_name, separator, mark):
    header, *rows = ROWS[format_name]
    lines = [separator.join(f"{mark}{field}{mark}" for field in row.split()) for row in (header, *rows)]
    loci, record = read_text(tmp_path, "\n".join(lines) + "\n", pseudo_reads=4)
    assert [(*locus[:2], *locus[4:]) for locus in loci] == TWO_LOCI
    assert record.format == format_name


def test_a_quote_that_is_not_closed_is_named(tmp_path):
    rows = table("c1 11 11 75 3 1", "c1 21 21 75 3 1", '"c1 31 31 75 3 1')
    assert refusal(tmp_path, rows) == "line 3: column 1 (contig) is '\"c1' (expected no quote, or two around it)"
    rows = table("c1 11 11 75 3 1", "c1 21 21 75 3 1", 'c1 31 31 75 3 "1')
    assert refusal(tmp_path, rows).startswith("line 3: column 6 (unmethylated) is '\"1' (expected a whole number")


def test_a_row_that_is_wrong_is_no_header(tmp_path):
    rows = table("c1 x 11 75 3 1", "c1 21 21 75 3 1", "c1 31 31 75 3 1")
    assert refusal(tmp_path, rows).startswith("line 1: column 2 (start) is 'x'")
    assert refusal(tmp_path, table(ROWS["bismark_cov"][0])) == "the file has no rows"
    header, *rows = ROWS["bismark_cov"]
    assert refusal(tmp_path, table(header, *rows, "c1 31 x 75 3 1")).startswith("line 4: column 3 (end) is 'x'")


@pytest.mark.parametrize("packed", ["plain", "gzip", "bgzip"])
@pytest.mark.parametrize("format_name", ROWS)
def test_a_last_line_without_its_end_is_named(tmp_path, format_name, packed):
    header, *rows = ROWS[format_name]
    text = table(header, *rows) if format_name != "methyldackel" else 'track type="bedGraph"\n' + table(*rows)
    for content, is_open in ((text, False), (text[:-1], True), (text + "\n", False)):
        path = tmp_path / "input"
        if packed == "bgzip":
            with pysam.BGZFile(str(path), "wb") as file:
                file.write(content.encode())
        else:
            path.write_bytes(gzip.compress(content.encode()) if packed == "gzip" else content.encode())
        loci, record = run(path, pseudo_reads=4)
        assert len(loci) == 2
        assert record.last_line_is_open == is_open
        assert any("the last line has no end" in warning for warning in record.warnings) == is_open


def test_what_was_doubtful_goes_with_the_counts(tmp_path):
    path = tmp_path / "cut.cov"
    path.write_text("c1\t11\t11\t75\t3\t1")
    outputs = ["--output", str(tmp_path / "s.parquet"), "--qc", str(tmp_path / "s.json")]
    ingested = ["ingest", str(path), "--sample", "s", *outputs]
    assembled = ["assemble", str(tmp_path / "s.parquet"), "--output", str(tmp_path / "loci")]
    for arguments in (ingested, assembled):
        subprocess.run([sys.executable, "-m", "epivi", *arguments, "--config", "{}"], check=True, capture_output=True)
    warnings = LociStore.open(str(tmp_path / "loci")).warnings
    (finding,) = file_findings(warnings)
    assert (finding.check, finding.sample) == ("file", "s")
    assert finding.text.startswith("s: the last line has no end")


def test_surroundings_of_positions_at_the_ends_of_contigs_and_tiles(tmp_path, monkeypatch):
    monkeypatch.setattr(fasta_module, "TILE_BITS", 3)
    path = tmp_path / "genome.fa"
    sequence = "ACGTTGCAACGTacgttgcaAC"
    path.write_text(f">a\nACG\n>b\n{sequence}\n")
    pysam.faidx(str(path))
    reference = fasta_module.Reference(str(path))
    pos0 = np.array([*range(len(sequence)), 40, 0], dtype=np.int32)
    found = reference.around(np.array([1] * (len(pos0) - 1) + [0]), ("a", "b"), pos0)
    padded = "\0\0" + sequence.upper() + "\0" * 40
    expected = [padded[at : at + 5] for at in pos0[:-1]] + ["\0\0ACG"]
    assert [bytes(row).decode() for row in found] == expected
