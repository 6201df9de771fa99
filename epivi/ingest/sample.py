"""One sample's counts, as text or as calls on aligned reads -> Parquet and a quality record."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

from epivi.base.files import write_json
from epivi.config.load import load_config
from epivi.ingest.columns import INGEST_TABLES
from epivi.ingest.counts_table import CountsWriter
from epivi.ingest.fingerprint import FingerprintTally
from epivi.ingest.layout import Counts, ingest_settings
from epivi.ingest.read import ingest
from epivi.loci.counts_file import CONTIG_SUMS_METADATA, SUMS_METADATA, WARNINGS_METADATA
from epivi.tables.parquet import Provenance, TableWriter

logger = logging.getLogger(__name__)


def ingest_sample(
    source: Path,
    sample: str,
    output: Path,
    qc: Path,
    config: str,
    format_name: str,
    haplotype: str,
    threads: int,
) -> None:
    """Read a file's counts of one sample into `output`, with its quality record in `qc`; config: file or JSON.

    Raises UserError where the file cannot be read.
    """
    resolved = load_config(config)
    provenance = Provenance(table="counts", seed=0, config_hash=resolved.hash("loci", "qc"), pedigree_hash="")
    output.parent.mkdir(parents=True, exist_ok=True)
    fingerprint = FingerprintTally()
    with TableWriter(output, INGEST_TABLES["counts"], provenance, metadata={"epivi.sample": sample}) as writer:
        counts = CountsWriter(writer)

        def write(contig: str, loci: Counts) -> None:
            fingerprint.add(contig, loci)
            counts.write(contig, loci)

        record = ingest(
            source,
            sample,
            ingest_settings(resolved.section("loci"), haplotype, resolved.section("qc")),
            write,
            format_name=format_name,
            spill_directory=output.parent,
            threads=threads,
        )
        counts.finish()
        writer.add_metadata(
            {
                SUMS_METADATA: json.dumps(record.sums),
                CONTIG_SUMS_METADATA: json.dumps(record.contig_sums, separators=(",", ":")),
                WARNINGS_METADATA: json.dumps(record.warnings),
                **fingerprint.metadata(),
            }
        )
    by_contig = {
        name: {contig: sums._asdict() for contig, sums in own.items()} for name, own in record.contig_sums.items()
    }
    sums = {name: sums._asdict() for name, sums in record.sums.items()}
    write_json(qc, {**asdict(record), "sums": sums, "contig_sums": by_contig})
    for warning in record.warnings:
        logger.warning("%s: %s", source, warning)
    logger.info("%s (%s): %d rows, %d loci", sample, record.format, record.rows_read, record.loci_written)
