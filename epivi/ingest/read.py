"""Read one sample's methylation counts, from text or from aligned reads in BAM, into loci in genome order.

A new format is one file beside this one and one line in READERS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from epivi.base.errors import UserError
from epivi.base.ordered import in_order
from epivi.ingest.alignments import HOW_TO_GET_TAGS, BamSource, container_of, ends_open, open_bam, with_reference
from epivi.ingest.contexts import with_reference_contexts
from epivi.ingest.contig_loci import WELL_COVERED_READS, ContigLoci, contig_loci
from epivi.ingest.fasta import opened_reference
from epivi.ingest.formats import (
    allc,
    bedmethyl,
    beta_matrix,
    biscuit,
    bismark_bam,
    bismark_cov,
    cgmap,
    cytosine_report,
    dnmtools,
    dss,
    methyldackel,
    methylkit,
    methylome,
    modbam,
    pb_cpg,
)
from epivi.ingest.layout import ALL_READS, Block, Counts, IngestSettings, has_loci
from epivi.ingest.qc import QcRecord, QcTally
from epivi.ingest.refused_tables import refused_lines
from epivi.ingest.spill import Spill
from epivi.ingest.text import TextSource, is_header, open_source, row_line, split, with_commented_header, without_header
from epivi.loci.contig_names import ContigRenamer
from epivi.tables.columns import CONTEXTS
from epivi.tables.parquet import natural_key

__all__ = ["READERS", "Counts", "IngestSettings", "QcRecord", "Reader", "detect", "ingest"]


class Reader(NamedTuple):
    """How one format is recognised (from the fields of one line, perhaps below a track line, or the tags of one aligned
    read) and read."""

    recognises: Callable[[Sequence[str]], bool]
    read: Callable[[Any, IngestSettings], Iterator[Block]]  # of a TextSource, or of a BamSource
    by_header: bool = False  # it recognises the header line, not rows
    has_track_line: bool = False  # without one a file is not taken for this format unless it is named
    is_bam: bool = False
    has_adenines: bool = False  # loci.modification may ask for 6mA
    has_sample_columns: bool = False  # its columns are samples, so that several lines of a sheet may name one file
    haplotype_of: Callable[[Sequence[str]], str] | None = None  # which reads a row says that it is of: all, or a number


# The first that recognises the rows reads them.
READERS = {
    "methyldackel": Reader(methyldackel.recognises, methyldackel.read, has_track_line=True),
    "bismark_cov": Reader(bismark_cov.recognises, bismark_cov.read),
    "cytosine_report": Reader(cytosine_report.recognises, cytosine_report.read),
    "bedmethyl": Reader(bedmethyl.recognises, bedmethyl.read, has_adenines=True),
    "methylome": Reader(methylome.recognises, methylome.read, by_header=True),
    "pb_cpg": Reader(pb_cpg.recognises, pb_cpg.read, haplotype_of=pb_cpg.haplotype_of),
    "allc": Reader(allc.recognises, allc.read),
    "cgmap": Reader(cgmap.recognises, cgmap.read),
    "dnmtools": Reader(dnmtools.recognises, dnmtools.read),
    "biscuit": Reader(biscuit.recognises, biscuit.read),
    "methylkit": Reader(methylkit.recognises, methylkit.read, by_header=True),
    "dss": Reader(dss.recognises, dss.read, by_header=True),
    "beta_matrix": Reader(beta_matrix.recognises, beta_matrix.read, by_header=True, has_sample_columns=True),
    "modbam": Reader(modbam.recognises, modbam.read, is_bam=True, has_adenines=True),
    "bismark_bam": Reader(bismark_bam.recognises, bismark_bam.read, is_bam=True),
}
RECOGNISED_FROM_LINES = 20


def detect(path: str | Path) -> str:
    """Name of the format, from the content. Raises UserError if the file is unreadable or of no known format."""
    return _resolve(Path(path), "auto")[0]


def haplotype_in(path: str | Path, format_name: str = "auto") -> str | None:
    """Which reads a file says that its rows are of: all, or a haplotype's number; None where it does not say.

    Raises UserError as `detect`.
    """
    if container_of(Path(path)):
        return None
    name, source = _resolve(Path(path), format_name)
    said_by = READERS[name].haplotype_of
    if said_by is None or isinstance(source, BamSource):
        return None
    rows = (split(line, source.any_whitespace) for line in source.sample[:RECOGNISED_FROM_LINES])
    return next((said_by(row) for row in rows if READERS[name].recognises(row)), None)


def ingest(
    path: str | Path,
    sample: str,
    settings: IngestSettings,
    write: Callable[[str, Counts], None],
    *,
    format_name: str = "auto",
    spill_directory: str | Path = ".",
    threads: int = 1,
) -> QcRecord:
    """Read a file and hand each contig's loci to `write`: contigs in natural order, loci sorted by position.

    format_name: a key of READERS, or "auto"; spill_directory: where rows of a large file wait in an unnamed temporary
    file; threads: blocks parsed at once. With one, memory holds a block of the file or the rows of one contig; with
    more, some blocks more, or the rows of two contigs. The result is the same.
    Raises UserError naming file, line (or read) and value of what cannot be read, or the format that is not known.
    """
    name, source = _resolve(Path(path), format_name, threads)
    if settings.modification == "a" and not READERS[name].has_adenines:
        raise UserError(f"{path}: {name} counts cytosines, but loci.modification is 'a' (expected m or h)")
    if settings.haplotype != ALL_READS and READERS[name].has_sample_columns:
        raise UserError(f"{path}: {name} has no haplotypes, but haplotype is {settings.haplotype!r} (expected all)")
    if isinstance(source, BamSource):
        source = with_reference(source, settings.reference)
    settings = replace(settings, sample=sample)
    tally = QcTally()
    in_context = _context_of_reference(READERS[name], settings)
    renamed = ContigRenamer(path, settings.rename)
    with Spill(Path(spill_directory)) as spill:
        for block in READERS[name].read(source, settings):
            block = in_context(block)
            block = block._replace(contig=block.contig._replace(values=renamed(block.contig.values)))
            tally.add_block(block)
            tally.add_sums(block, settings)
            _keep_rows(block, settings, spill, tally)
        # Readers that go by the header skip its line themselves.
        rows_of = without_header(source) if READERS[name].by_header and isinstance(source, TextSource) else source
        _require_percent_agrees(rows_of, tally)
        _require_reference_agrees(source, settings, tally)
        tally.last_line_is_open = source.ending.is_open if isinstance(source, TextSource) else ends_open(source)
        for contig, result in _contigs(spill, settings, threads):
            tally.add_contig(contig, result, is_contiguous=contig not in spill.scattered)
            if len(result.loci.pos0):
                write(contig, result.loci)
    _require_assumed_context(source, settings, tally)
    return tally.record(sample=sample, path=str(path), format_name=name, format_given=format_name != "auto")


def _context_of_reference(reader: Reader, settings: IngestSettings) -> Callable[[Block], Block]:
    """What gives a block of text the contexts of the reference, if there is one; readers of BAM files ask it."""
    if settings.reference is None or reader.is_bam:
        return lambda block: block
    return partial(
        with_reference_contexts, reference=opened_reference(settings.reference, settings.rename), settings=settings
    )


def _contigs(spill: Spill, settings: IngestSettings, threads: int) -> Iterator[tuple[str, ContigLoci]]:
    """Contigs in natural order with their loci; with threads, the next is made while the last is written."""
    names = sorted(spill.contigs, key=natural_key)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1)) if threads > 1 else None
        made = in_order(pool, lambda name: contig_loci(spill.take(name), settings), names, ahead=1)
        stack.callback(made.close)
        yield from zip(names, made, strict=True)


def _resolve(path: Path, format_name: str, threads: int = 1) -> tuple[str, TextSource | BamSource]:
    """Name of the format, and the source that its reader takes."""
    if format_name != "auto" and format_name not in READERS:
        raise UserError(f"{path}: format {format_name!r} is not known (expected auto, {', '.join(READERS)})")
    if READERS[format_name].is_bam if format_name != "auto" else container_of(path):
        return _resolve_bam(open_bam(path)._replace(threads=threads), format_name)
    return _resolve_text(replace(open_source(path), threads=threads), format_name)


def _resolve_bam(source: BamSource, format_name: str) -> tuple[str, BamSource]:
    """The format whose tags one of the first reads has; not all reads need have tags."""
    if format_name != "auto":
        return format_name, source
    for name, reader in READERS.items():
        if reader.is_bam and any(map(reader.recognises, source.tags)):
            return name, source
    raise UserError(
        f"{source.path}: none of the first {len(source.tags)} reads has calls (expected the tags MM and ML of a modBAM"
        f" file, or XM and XG of Bismark; {HOW_TO_GET_TAGS})"
    )


def _resolve_text(source: TextSource, format_name: str) -> tuple[str, TextSource]:
    """Name of the format, and the source with its way of separating fields: tabs if the rows make sense so."""
    if format_name == "auto" and (refused := refused_lines(source.preamble, source.sample)):
        raise UserError(refused.message(source.path))
    if len(source.sample) == 1 and is_header(split(source.sample[0], any_whitespace=True)):
        raise UserError(f"{source.path}: the file has no rows")
    candidates = _candidates(source) if format_name == "auto" else {format_name: READERS[format_name]}
    for any_whitespace in (False, True):
        for name, reader in candidates.items():
            found = _recognised(reader, replace(source, any_whitespace=any_whitespace))
            if found is not None:
                return name, found
    if format_name != "auto":
        # The reader itself says which line is wrong.
        return format_name, replace(source, any_whitespace="\t" not in source.sample[0])
    raise UserError(
        f"{source.path}: line {source.header_lines + 1}: the format is not recognised from {source.sample[0][:80]!r}"
        f" (expected {', '.join(READERS)}; name it with --format, or in the sample sheet, or write the counts of"
        " another as a table with the header chr, pos, N, X)"
    )


def _candidates(source: TextSource) -> dict[str, Reader]:
    """The text formats that the file can have."""
    texts = {name: reader for name, reader in READERS.items() if not reader.is_bam}
    return {name: reader for name, reader in texts.items() if source.has_track_line or not reader.has_track_line}


def _recognised(reader: Reader, source: TextSource) -> TextSource | None:
    """The source as the reader takes it, if it has the form, else None.

    Readers that do not go by the header get the rows alone, of which most of the first must have the form, so that the
    reader can name a bad one among them. Others also know a header in a comment line.
    """
    if reader.by_header:
        sources = (source, with_commented_header(source))
        return next((each for each in sources if each and reader.recognises(_fields(each)[0])), None)
    if is_header(_fields(source)[0]) and len(source.sample) > 1:
        source = without_header(source)
    rows = _fields(source)
    return source if 2 * sum(reader.recognises(row) for row in rows) > len(rows) else None


def _fields(source: TextSource) -> list[list[str]]:
    return [split(line, source.any_whitespace) for line in source.sample[:RECOGNISED_FROM_LINES]]


def _keep_rows(block: Block, settings: IngestSettings, spill: Spill, tally: QcTally) -> None:
    """Drop rows of other contigs and contexts and rows without reads; put the others on the spill by contig."""
    contig, counts = block.contig, block.counts
    in_contig = contig.lookup([has_loci(name, settings) for name in contig.values], dtype=bool)
    is_control = contig.lookup([settings.qc.is_control(name) for name in contig.values], dtype=bool)
    is_wanted = np.array([name in settings.contexts for name in CONTEXTS])
    in_context = in_contig & is_wanted[counts.context]
    is_kept = in_context & (counts.total > 0)
    left = [len(is_kept), *(int(np.count_nonzero(mask)) for mask in (~is_control, in_contig, in_context, is_kept))]
    for reason, before, after in zip(("control", "contig", "context", "uncovered"), left, left[1:], strict=False):
        tally.drop({reason: before - after})
    if is_kept.all():
        _spill_by_contig(contig.codes, contig.values, counts, spill)
    else:
        _spill_by_contig(contig.codes[is_kept], contig.values, counts.select(is_kept), spill)


def _spill_by_contig(codes: np.ndarray, names: Sequence[str], counts: Counts, spill: Spill) -> None:
    """Append each run of one contig; a block whose contigs alternate is gathered by contig first."""
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    if len(starts) > len(names):
        spill.scattered.update(names[code] for code in np.unique(codes))
        order = np.argsort(codes, kind="stable")
        codes, counts = codes[order], counts.select(order)
        starts = np.flatnonzero(np.diff(codes, prepend=-1))
    for start, stop in pairwise([*starts.tolist(), len(codes)]):
        spill.append(names[codes[start]], counts.select(slice(start, stop)))


def _require_percent_agrees(source: TextSource | BamSource, tally: QcTally) -> None:
    if 2 * tally.percent_contradicting > tally.percent_checked:
        raise UserError(
            f"{source.path}: the percent contradicts the counts in {tally.percent_contradicting} of"
            f" {tally.percent_checked} covered rows{_at_line(source, tally)} (expected the columns of {tally.layout})"
        )
    tally.contradicting_at = _at_line(source, tally)


def _at_line(source: TextSource | BamSource, tally: QcTally) -> str:
    """Where the first row is whose percent contradicts its counts."""
    if tally.first_contradicting is None or not isinstance(source, TextSource):
        return ""
    return f", first on line {row_line(source, tally.first_contradicting)[0]}"


def _require_reference_agrees(source: TextSource | BamSource, settings: IngestSettings, tally: QcTally) -> None:
    # METHOD: of rows put on a genome by chance, strands known, three quarters or more are on no cytosine.
    missed = tally.dropped["reference_mismatch"]
    if 4 * missed > 3 * tally.reference_checked:
        raise UserError(
            f"{source.path}: {missed} of {tally.reference_checked} rows are on a base that cannot be methylated in"
            f" {settings.reference} (expected the genome that the reads were aligned to, with the format's positions)"
        )


def _require_assumed_context(source: TextSource | BamSource, settings: IngestSettings, tally: QcTally) -> None:
    """Raise a UserError where rows of an assumed context cannot stand beside each other."""
    if tally.context_is_assumed and tally.is_impossible:
        context, pairing = settings.contexts[0], tally.pairing
        raise UserError(
            f"{source.path}: the rows do not say their context, and are not all {context}: {pairing.impossible} of"
            f" {pairing.loci} loci cannot be beside their neighbour, and of {pairing.well_covered} CpGs with"
            f" {WELL_COVERED_READS} reads {pairing.one_stranded} lack their other strand (expected rows of {context}"
            " alone, or loci.reference, from which contexts are read)"
        )
