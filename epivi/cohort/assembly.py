"""The samples' counts compared with each other, and joined into memory-mapped loci."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from epivi.base.errors import UserError
from epivi.cohort.contig_patterns import unmatched
from epivi.cohort.sameness import Placed, misplaced, position_mistakes, repeated_counts_mistakes
from epivi.cohort.samples import read_sample_sheet
from epivi.config.load import load_config
from epivi.ingest.fingerprint import read_fingerprint
from epivi.loci.assemble import AssembleSettings, assemble, check_replaceable
from epivi.loci.columns import LOCI_TABLES
from epivi.loci.contig_names import SampleContigs, contig_mistakes, contig_tables
from epivi.loci.contig_patterns import ContigPatterns, contig_patterns
from epivi.loci.counts_file import CountsFile
from epivi.loci.store import CONTIGS, POSITIONS
from epivi.tables.columns import arrow_schema
from epivi.tables.parquet import Provenance, TableWriter, write_table

log = logging.getLogger(__name__)


def assemble_cohort(counts: Sequence[str], output: Path, config_source: str, samples: str | None, threads: int) -> None:
    """Join counts files into a folder of loci, after comparing their samples.

    samples: the sample sheet, whose lines messages name.

    Raises UserError for samples that cannot be of one cohort.
    """
    config = load_config(config_source)
    loci = config.section("loci")
    patterns = contig_patterns(loci)
    settings = AssembleSettings(
        loci["unit"], loci["merge_strands"], loci["min_covered_samples"], patterns, tuple(loci["exclude"])
    )
    provenance = Provenance("loci", config.seed(), config.hash("loci"), pedigree_hash="")
    _compare_samples(counts, output, samples, patterns, provenance)
    with tqdm(desc="assemble", unit=" loci", unit_scale=True, disable=None) as bar:
        tallies = assemble(counts, output, settings, provenance, threads=threads, on_joined=bar.update)
    n_loci = sum(tally.n_loci for tally in tallies)
    log.info("%s: %d loci of %d samples on %d contigs", output, n_loci, len(counts), sum(t.n_loci > 0 for t in tallies))
    n_scaled = sum(tally.n_scaled for tally in tallies)
    if n_scaled:
        log.warning("%d counts of 65535 reads or more: scaled down to it, keeping their proportion", n_scaled)


def _compare_samples(
    counts: Sequence[str], output: Path, sheet: str | None, patterns: ContigPatterns, provenance: Provenance
) -> None:
    """Write the tables `contigs` and `positions`; raise UserError for samples that cannot be of one cohort."""
    whole = [CountsFile.open(path) for path in counts]
    files = [file.of_contigs(patterns.keeps) for file in whole]
    _report_contigs(whole, files, patterns)
    check_replaceable(output)
    contigs = [_sample_contigs(file) for file in files]
    prints = {file.sample: found for file in files if (found := read_fingerprint(file.metadata)) is not None}
    usual, placed = misplaced(prints)
    _write_tables(output, contigs, placed, provenance)
    lines = _lines(files, sheet)
    repeated = repeated_counts_mistakes(prints, lines)
    named = [f"{lines[one.samples[0]]}: {one.text}" for one in contig_mistakes(contigs) if one.is_certain]
    mistakes = [*repeated, *named, *position_mistakes(usual, placed, lines)]
    if mistakes:
        raise UserError("\n".join(mistakes))


def _report_contigs(whole: Sequence[CountsFile], files: Sequence[CountsFile], patterns: ContigPatterns) -> None:
    """How many contigs loci.contigs leaves out, and which of its patterns match none."""
    there, kept = (sorted({contig for file in of for contig in file.contigs}) for of in (whole, files))
    if len(kept) < len(there):
        log.info("loci.contigs keeps %d of %d contigs", len(kept), len(there))
    for phrase in unmatched(patterns.include, there):
        log.warning("loci.contigs.include has %s", phrase)


def _sample_contigs(file: CountsFile) -> SampleContigs:
    parts = file.contigs.values()
    columns = np.array([(part.n_rows, part.first_pos0, part.last_pos0) for part in parts], np.int64).reshape(-1, 3)
    return SampleContigs(file.sample, tuple(file.contigs), *columns.T)


def _write_tables(
    output: Path, contigs: Sequence[SampleContigs], placed: Sequence[Placed], provenance: Provenance
) -> None:
    with TableWriter(output / CONTIGS, LOCI_TABLES["contigs"], replace(provenance, table="contigs")) as writer:
        for table in contig_tables(contigs):
            writer.write(table)
    rows = [
        {
            "sample": sample,
            "relation": relation,
            "cpgs": found.rows,
            "same": found.same,
            "before": found.before,
            "after": found.after,
            "by_chance": found.by_chance,
        }
        for sample, relation, found in placed
    ]
    table = pa.Table.from_pylist(rows, schema=arrow_schema(LOCI_TABLES["positions"]))
    write_table(table, output / POSITIONS, LOCI_TABLES["positions"], replace(provenance, table="positions"))


def _lines(files: Sequence[CountsFile], sheet: str | None) -> dict[str, str]:
    """What to call each sample's place: its line of the sheet, or else its counts file."""
    places = {file.sample: str(file.path) for file in files}
    if sheet is None:
        return places
    rows = read_sample_sheet(sheet)
    return places | {name: f"{sheet} line {line}" for name, line in zip(rows.samples, rows.lines, strict=True)}
