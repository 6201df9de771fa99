"""Folders of loci written without counts files, as epivi assemble writes them of one panel that loses no locus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from epivi.base.files import write_json
from epivi.loci.columns import index_columns, panel_columns
from epivi.loci.loci_file import (
    IndexRows,
    LociFile,
    LociWriter,
    LocusBlock,
    PanelColumns,
    PanelRows,
    as_record,
    contig_file,
    whole_file,
)
from epivi.loci.store import FILES, INDEX, PANELS, RECORD, write_loci_manifest
from epivi.tables.parquet import Provenance

PANEL = "panel"


def write_loci(
    folder: Path,
    samples: Sequence[str],
    blocks: Sequence[LocusBlock],
    provenance: Provenance,
    unit: Any = "cpg",
    *,
    in_one_file: bool = False,
) -> None:
    """Write all loci of every contig, a block each; every contig in a file of its own, or all in one."""
    groups = [list(blocks)] if in_one_file else [[block] for block in blocks]
    own = replace(provenance, table="panel")
    panel_files, index_files = [], []
    for group in groups:
        file = contig_file(group[0].contig)
        panel = [(block.contig, PanelRows(*block[2:])) for block in group]
        panel_files.append(write_file(folder / PANELS / PANEL / file, panel_columns(len(samples)), own, panel))
        rows = [np.arange(block.pos0.size, dtype=np.int32)[:, None] for block in group]
        index = [(block.contig, IndexRows(*block[2:6], row)) for block, row in zip(group, rows, strict=True)]
        index_files.append(write_file(folder / INDEX / file, index_columns(1), provenance, index))
    write_json(folder / PANELS / PANEL / RECORD, {FILES: as_record(panel_files)})
    panels = [PanelColumns(PANEL, tuple(range(len(samples))))]
    write_loci_manifest(folder, samples, panels, index_files, unit, provenance, {})


def write_file(
    path: Path, columns: Any, provenance: Provenance, loci: Sequence[tuple[str, PanelRows | IndexRows]]
) -> LociFile:
    """Write loci of one or more contigs, each with its name, as one file."""
    n_loci: dict[str, int] = {}
    with LociWriter(path, columns, provenance) as writer:
        for contig, rows in loci:
            writer.write(rows)
            n_loci[contig] = n_loci.get(contig, 0) + rows.pos0.size
    return whole_file(path, n_loci)
