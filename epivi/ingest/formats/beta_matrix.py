"""Beta values of methylation arrays: a header line, a row a probe or locus, a column a sample named as in the sheet.

The rows say where they are in one of two ways: by the columns `contig` and `position` (1-based, at the + strand's C) in
front of the samples, or by a probe's name in the first column and a manifest, a table with the columns `probe`,
`contig` and `position`. A missing value is empty, NA or NaN.

An array measures a ratio of intensities, not reads. Nothing is read unless `loci.array.pseudo_reads` says how many
reads each value is to stand for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from epivi.base.errors import UserError
from epivi.ingest.layout import CG, OTHER_CONTEXT, Block, Counts, IngestSettings, combined_strand
from epivi.ingest.modifications import COMBINED
from epivi.ingest.text import (
    MISSING,
    Column,
    Rows,
    TextColumn,
    TextSource,
    is_number,
    open_source,
    read_rows,
    require,
    require_column_count,
    split,
    with_commented_header,
    without_header,
)

logger = logging.getLogger(__name__)

CONTIG_NAMES = frozenset(("contig", "chr", "chrom", "chromosome", "seqnames"))
POSITION_NAMES = frozenset(("position", "pos", "mapinfo"))
PROBE_NAMES = frozenset(("probe", "probe_id", "probeid", "id_ref", "ilmnid", "targetid"))
MANIFEST_COLUMNS = {"probe": "text", "contig": "text", "position": "integer"}
NOT_CPG = ("ch.", "rs", "nv")  # beginnings of the names of probes of other cytosines and of variants


class _Manifest(NamedTuple):
    """Probes in order of their names, and where they are; every array is [probes]."""

    probe: np.ndarray  # str
    contig: TextColumn
    pos0: np.ndarray  # int32


def recognises(row: Sequence[str]) -> bool:
    """Whether one row is the header of such a table."""
    return len(row) > 1 and (_has_positions(row) or row[0].lower() in PROBE_NAMES)


def _has_positions(names: Sequence[str]) -> bool:
    return len(names) > 2 and names[0].lower() in CONTIG_NAMES and names[1].lower() in POSITION_NAMES


def read(source: TextSource, settings: IngestSettings) -> Iterator[Block]:
    """Yield the rows of the sample's column as counts of pseudo-reads.

    Raises UserError if no number of pseudo-reads is set, if the sample has no column or the probes have no manifest,
    and naming line and value of a bad row.
    """
    if settings.pseudo_reads is None:
        _require_betas(source)
        raise UserError(
            f"{source.path}: beta values of an array are not counts of reads (expected loci.array.pseudo_reads, the"
            " number of reads that a value is to stand for)"
        )
    source, names = _header(source)
    value = _sample_column(source, names, settings.sample)
    _warn(source, settings.pseudo_reads)
    if _has_positions(names):
        place = (Column(0, "contig", "text"), Column(1, "position", "integer"))
        for rows in read_rows(source, (*place, value)):
            require(source, rows, rows.columns["position"] >= 1, place[1], "a 1-based position")
            pos0 = rows.columns["position"] - np.int32(1)
            context = np.full(rows.size, CG, dtype=np.int8)
            yield _block(source, rows, value, rows.columns["contig"], pos0, context, settings)
        return
    manifest = _read_manifest(source, settings)
    for rows in read_rows(source, (Column(0, "probe", "text"), value)):
        yield _block_of_probes(source, rows, value, manifest, settings)


def _require_betas(source: TextSource) -> None:
    """Raise a UserError if the first rows are whole numbers, or hold words: counts by position, of whatever tool."""
    rows = [split(line, source.any_whitespace)[2:] for line in source.sample[1:]]
    values = [value for row in rows for value in row if value not in MISSING]
    are_counts = all(map(str.isdecimal, values)) and any(int(value) > 1 for value in values)
    has_positions = _has_positions(split(source.sample[0], source.any_whitespace))
    if has_positions and (are_counts or not all(map(is_number, values))):
        raise UserError(
            f"{source.path}: the header has a contig and a position, but the rows hold no beta values (expected chr,"
            " pos, N, X with reads and methylated reads, or beta values from 0 to 1)"
        )


def _header(source: TextSource) -> tuple[TextSource, list[str]]:
    """The source with its header line skipped, and the names of the columns."""
    names = split(source.sample[0], source.any_whitespace)
    if not recognises(names):
        raise UserError(
            f"{source.path}: line {source.header_lines + 1}: {names[0]!r} opens the header (expected the columns contig"
            " and position, or probe)"
        )
    source = without_header(source)
    require_column_count(source, len(names), len(names))
    return source, names


def _sample_column(source: TextSource, names: Sequence[str], sample: str) -> Column:
    if names.count(sample) != 1:
        raise UserError(
            f"{source.path}: line {source.header_lines}: {names.count(sample)} columns are named {sample!r}"
            " (expected one, as the sample is named)"
        )
    return Column(names.index(sample), f"beta of {sample}", "number or missing")


def _warn(source: TextSource, pseudo_reads: int) -> None:
    logger.warning(
        "%s: beta values of an array count as %d reads each; evidences and intervals are those of so many reads, grow"
        " more certain with the number, and are not calibrated unless it matches the noise of the array",
        source.path,
        pseudo_reads,
    )


def _read_manifest(source: TextSource, settings: IngestSettings) -> _Manifest:
    if settings.array_manifest is None:
        raise UserError(f"{source.path}: the rows are probes (expected their positions in loci.array.manifest)")
    manifest = open_source(Path(settings.array_manifest))
    manifest = with_commented_header(manifest) or manifest
    names = [name.lower() for name in split(manifest.sample[0], any_whitespace=False)]
    missing = [name for name in MANIFEST_COLUMNS if name not in names]
    if missing:
        raise UserError(
            f"{manifest.path}: line {manifest.header_lines + 1}: the header lacks {missing[0]}"
            f" (expected {', '.join(MANIFEST_COLUMNS)}, separated by tabs)"
        )
    manifest = without_header(manifest)
    columns = {name: Column(names.index(name), name, kind) for name, kind in MANIFEST_COLUMNS.items()}
    probes: list[np.ndarray] = []
    contigs: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    for rows in read_rows(manifest, tuple(columns.values())):
        require(manifest, rows, rows.columns["position"] >= 1, columns["position"], "a 1-based position")
        for texts, name in ((probes, "probe"), (contigs, "contig")):
            text: TextColumn = rows.columns[name]
            texts.append(np.array(text.values)[text.codes])
        positions.append(rows.columns["position"])
    probe = np.concatenate(probes)
    order = np.argsort(probe, kind="stable")
    probe = probe[order]
    repeated = np.flatnonzero(probe[1:] == probe[:-1])
    if len(repeated):
        raise UserError(f"{manifest.path}: the probe {str(probe[repeated[0]])!r} has two rows (expected one)")
    values, codes = np.unique(np.concatenate(contigs)[order], return_inverse=True)
    contig = TextColumn(codes.astype(np.int32), tuple(map(str, values)))
    return _Manifest(probe, contig, np.concatenate(positions)[order] - np.int32(1))


def _block_of_probes(
    source: TextSource, rows: Rows, value: Column, manifest: _Manifest, settings: IngestSettings
) -> Block:
    """Counts at the positions of the probes; those that the manifest lacks are left out."""
    text: TextColumn = rows.columns["probe"]
    names = np.array(text.values)
    nearest = np.minimum(np.searchsorted(manifest.probe, names), len(manifest.probe) - 1)
    row = nearest[text.codes]
    is_known = (manifest.probe[nearest] == names)[text.codes]
    is_cpg = text.lookup([not name.startswith(NOT_CPG) for name in text.values], dtype=bool)
    context = np.where(is_cpg, CG, OTHER_CONTEXT).astype(np.int8)
    contig = manifest.contig._replace(codes=manifest.contig.codes[row])
    block = _block(source, rows, value, contig, manifest.pos0[row], context, settings)
    if is_known.all() or settings.modification not in ("m", COMBINED):
        return block
    return block._replace(
        contig=contig._replace(codes=contig.codes[is_known]),
        counts=block.counts.select(is_known),
        dropped={"no_position": int(np.count_nonzero(~is_known))},
    )


def _block(
    source: TextSource,
    rows: Rows,
    value: Column,
    contig: TextColumn,
    pos0: np.ndarray,
    context: np.ndarray,
    settings: IngestSettings,
) -> Block:
    """The sample's values as counts.

    # METHOD: a beta value stands for a fixed number of reads, whatever its probe's noise: pseudo_reads times beta of
    # them, rounded, are methylated. Where the array's SD at half methylation is s, 1 / (4 s^2) reads have the same.
    # Arrays of bisulfite-treated DNA do not distinguish 5hmC from 5mC, and are taken for 5mC, or for both.
    """
    beta = rows.columns[value.name]
    is_missing = np.isnan(beta)
    require(source, rows, is_missing | ((beta >= 0) & (beta <= 1)), value,
            "a fraction from 0 to 1; M-values and percentages are not beta values")  # fmt: skip
    n_reads = settings.pseudo_reads or 0
    meth = np.floor(np.where(is_missing, 0, beta) * n_reads + 0.5).astype(np.int32)
    total = np.where(is_missing, 0, n_reads).astype(np.int32)
    strand = np.full(rows.size, combined_strand(settings), dtype=np.int8)
    counts = Counts(pos0, strand, context, meth, total)
    is_wanted = settings.modification in ("m", COMBINED)
    kept = slice(None) if is_wanted else slice(0)
    return Block(
        contig._replace(codes=contig.codes[kept]),
        counts.select(kept),
        dropped={} if is_wanted else {"other_modification": rows.size},
        percent_checked=0,
        percent_contradicting=0,
        layout=f"beta values, {n_reads} pseudo-reads each",
        is_extrapolated=True,
    )
