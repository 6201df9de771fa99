"""The parts of ingest one by one: contexts, strands, known contigs, names of columns, phase sets, fingerprints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bam_cases import make_settings

from epivi.base.errors import UserError
from epivi.ingest.contexts import COMPLEMENT, contexts_by_bases, following_bases
from epivi.ingest.contig_loci import contig_loci
from epivi.ingest.controls import METHYLATED, UNMETHYLATED, QcContigs, ReadSums, read_sums, read_sums_by
from epivi.ingest.counts_table import LARGE_CONTIG_ROWS, CountsWriter
from epivi.ingest.fingerprint import FingerprintTally, read_fingerprint
from epivi.ingest.header import named_columns
from epivi.ingest.layout import Counts
from epivi.ingest.modifications import MODIFICATION_CODES, MODIFICATIONS, MODIFIED_BASE
from epivi.ingest.phasing import NO_PHASE_SET, PhasedSpans
from epivi.ingest.text import open_source
from epivi.tables.columns import CONTEXTS, STRANDS

PLUS, MINUS, UNKNOWN = range(len(STRANDS))


def counts(*rows: tuple[int, int, int, int], context: str = "CG") -> Counts:
    """Rows of position, strand, methylated and total reads."""
    pos0, strand, meth, total = (np.array(column, dtype=np.int32) for column in zip(*rows, strict=True))
    return Counts(pos0, strand.astype(np.int8), np.full(len(pos0), CONTEXTS.index(context), dtype=np.int8), meth, total)


@pytest.mark.parametrize(
    ("following", "context"), [("GA", "CG"), ("GN", "CG"), ("AG", "CHG"), ("TT", "CHH"), ("NG", "."), ("AN", ".")]
)
def test_a_context_is_what_follows_on_the_strand(following: str, context: str) -> None:
    first, second = np.frombuffer(following.encode(), dtype=np.uint8)[:, None]
    assert contexts_by_bases(first, second).tolist() == [CONTEXTS.index(context)]
    # The same read from the other strand: the reverse complement stands before the G.
    bases = COMPLEMENT[np.frombuffer((following[::-1] + "C").encode(), dtype=np.uint8)]
    last, minus = np.array([2]), np.array([True])
    assert [following_bases(bases, last, minus, d)[0][0] for d in (1, 2, 3)] == [first[0], second[0], 0]


def test_strands_of_a_cpg_are_one_locus_and_its_rows_are_accounted_for() -> None:
    rows = counts((10, PLUS, 2, 5), (11, MINUS, 1, 4), (11, MINUS, 1, 1), (30, UNKNOWN, 1, 3), (31, UNKNOWN, 1, 1))
    found = contig_loci(rows, make_settings())
    assert found.loci.pos0.tolist() == [10, 30]
    assert found.loci.total.tolist() == [10, 4]
    assert found.loci.meth.tolist() == [4, 2]
    assert len(rows.pos0) == len(found.loci.pos0) + found.duplicates_merged + found.strands_merged
    kept_apart = contig_loci(rows, make_settings(merge_strands=False))
    assert kept_apart.loci.pos0.tolist() == [10, 11, 30, 31]
    limited = contig_loci(rows, make_settings(max_coverage=9))
    assert limited.loci.pos0.tolist() == [30]
    assert limited.dropped == {"below_min_coverage": 0, "above_max_coverage": 3}


def test_known_contigs_are_summed_whether_they_are_loci_or_not() -> None:
    contigs = QcContigs(unmethylated=("lambda", "chrM"), methylated=("pUC*",), x=("chrX",))
    assert contigs.parts("pUC19") == (METHYLATED,)
    assert contigs.parts("lambda") == (UNMETHYLATED,)
    assert contigs.parts("chr1") == ("autosomes",)
    assert [contigs.is_control(name) for name in ("chrM", "chrX")] == [True, False]
    assert contigs.is_summed("chrX")
    meth, total = np.array([1, 0, 3]), np.array([4, 0, 3])
    sums = read_sums(meth, total)
    assert sums == ReadSums(2, 7, 4, 25.0, 10.0, 13.0)
    by_name = read_sums_by(np.array([1, 0, 1]), ["none", "some"], meth, total)
    assert by_name == {"some": sums}


class _Writer:
    """Stands in for the writer of a file: rows of each row group."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = [[]]

    def write(self, table) -> None:
        self.groups[-1] += table["contig"].to_pylist()

    def flush(self) -> None:
        self.groups.append([])


def test_small_contigs_share_row_groups_and_large_ones_have_their_own() -> None:
    small = counts((1, PLUS, 1, 2), (5, PLUS, 0, 2))
    large = small.select(np.zeros(LARGE_CONTIG_ROWS, dtype=int))
    writer = _Writer()
    table = CountsWriter(writer)
    for name, loci in (("a", small), ("b", small), ("large", large), ("c", small)):
        table.write(name, loci)
    table.finish()
    found = [sorted(set(group)) for group in writer.groups if group]
    assert found == [["a", "b"], ["large"], ["c"]]
    assert sum(map(len, writer.groups)) == 3 * 2 + LARGE_CONTIG_ROWS


def test_columns_are_found_by_name_or_named_as_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("POS\tchr\tmeth\n5\tchr1\t2\n")
    source, columns = named_columns(open_source(path), {"chr": "text", "pos": "integer"})
    assert [(column.place, column.name) for column in columns.values()] == [(1, "chr"), (0, "pos")]
    assert source.sample[0].startswith("5")
    with pytest.raises(UserError, match="line 1: the header lacks total"):
        named_columns(open_source(path), {"total": "integer"})


def test_every_code_stands_for_one_modification() -> None:
    codes = [code for codes in MODIFICATIONS.values() for code in codes]
    assert len(codes) == len(set(codes))
    assert set(codes) <= MODIFICATION_CODES
    assert MODIFIED_BASE.keys() == MODIFICATIONS.keys()


def test_the_phase_set_of_most_reads_counts() -> None:
    spans = PhasedSpans()
    for start, stop, phase_set in ((0, 50, 7), (5, 50, 7), (40, 90, 9), (41, 90, 9), (42, 90, 9)):
        spans.note("chr1", start, stop, phase_set)
    assert spans.has_several("chr1")
    assert not spans.has_several("chr2")
    loci = np.array([3, 45, 60, 200])
    assert spans.larger_sets("chr1", loci).tolist() == [7, 9, 9, NO_PHASE_SET]
    spans.forget("chr1", 60)
    assert spans.larger_sets("chr1", loci).tolist() == [NO_PHASE_SET, 9, 9, NO_PHASE_SET]


def test_fingerprints_tell_other_reads_and_not_other_orders_of_contigs() -> None:
    random = np.random.default_rng(2)
    rows = {
        name: counts(*((10 * k, PLUS, int(m), 9) for k, m in enumerate(random.integers(0, 10, 60)))) for name in "ab"
    }

    def of(names: str, changed: bool = False):
        tally = FingerprintTally()
        for name in names:
            loci = rows[name]
            tally.add(name, loci._replace(meth=np.minimum(loci.meth + changed, 9)))
        return read_fingerprint(tally.metadata())

    first, turned, other = of("ab"), of("ba"), of("ab", changed=True)
    assert first.digest == turned.digest != other.digest
    assert first.loci == 120
    assert first.nats > 10
    assert np.array_equal(first.positions.keys, other.positions.keys)
    assert read_fingerprint({}) is None
