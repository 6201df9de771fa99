"""Folders of loci written without counts files, as epivi assemble writes them of one panel that loses no locus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from epivi.schema import index_columns, panel_columns
from epivi.store import (
    INDEX,
    PANEL_LOCI_METADATA,
    PANELS,
    ContigSummary,
    ContigWriter,
    IndexBlock,
    LocusBlock,
    PanelColumns,
    Provenance,
    contig_file,
    write_loci_manifest,
)

PANEL = "panel"


def write_loci(
    folder: Path, samples: Sequence[str], blocks: Sequence[LocusBlock], provenance: Provenance, unit: Any = "cpg"
) -> None:
    """Write all loci of every contig, a block each."""
    summaries = []
    for block in blocks:
        file, size = contig_file(block.contig), block.pos0.size
        row = np.arange(size, dtype=np.int32)[:, None]
        columns, own = panel_columns(len(samples)), replace(provenance, table="panel")
        with ContigWriter(folder / PANELS / PANEL / file, block.contig, columns, own) as writer:
            writer.write(block)
        metadata = {PANEL_LOCI_METADATA: f"[{size}]"}
        with ContigWriter(folder / INDEX / file, block.contig, index_columns(1), provenance, metadata) as writer:
            writer.write(IndexBlock(*block[:6], row))
        summaries.append(ContigSummary(block.contig, f"{INDEX}/{file}", size))
    panels = [PanelColumns(PANEL, tuple(range(len(samples))))]
    write_loci_manifest(folder, samples, panels, summaries, unit, provenance, {})
