"""Contexts of cytosines: by the bases that follow, in letters or in a reference, and as files spell them."""

from __future__ import annotations

import numpy as np

from epivi.ingest.fasta import MARGIN, Reference
from epivi.ingest.layout import CG, MINUS, OTHER_CONTEXT, UNKNOWN, Block, IngestSettings, keeps_contig
from epivi.tables.columns import CONTEXTS

IS_H = np.isin(np.arange(256), np.frombuffer(b"ACT", dtype=np.uint8))
COMPLEMENT = np.zeros(256, dtype=np.uint8)
COMPLEMENT[np.frombuffer(b"ACGTN", dtype=np.uint8)] = np.frombuffer(b"TGCAN", dtype=np.uint8)
A, C, G = b"ACG"


def contexts_by_bases(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Index into schema.CONTEXTS from the two bases after a cytosine; "." where they are not known; int8 [rows]."""
    is_h = IS_H[first]
    context = np.full(len(first), OTHER_CONTEXT, dtype=np.int8)
    context[is_h & IS_H[second]] = CONTEXTS.index("CHH")
    context[is_h & (second == G)] = CONTEXTS.index("CHG")
    context[first == G] = CG
    return context


def following_bases(
    bases: np.ndarray, place: np.ndarray, is_minus: np.ndarray, distance: int
) -> tuple[np.ndarray, np.ndarray]:
    """The base at a distance downstream of each place, on its strand, 0 beyond the end; and where it stands."""
    there = place + np.where(is_minus, -distance, distance)
    is_inside = (there >= 0) & (there < len(bases))
    there = np.where(is_inside, there, place)
    base = np.where(is_minus, COMPLEMENT[bases[there]], bases[there])
    return np.where(is_inside, base, 0), there


def with_reference_contexts(block: Block, reference: Reference, settings: IngestSettings) -> Block:
    """The block with the reference's contexts, without rows on a base that cannot carry the modification.

    Only contigs that are read are looked up. Rows whose file says another context than CG, CHG and CHH keep it. A CpG
    of unknown strand gets the strand of its base where strands are merged. Raises UserError if the reference lacks a
    contig.
    """
    counts, names = block.counts, block.contig.values
    is_read = block.contig.lookup([keeps_contig(name, settings) for name in names], dtype=bool)
    is_adenine = settings.modification == "a"
    rows = np.flatnonzero(is_read & ((counts.context != OTHER_CONTEXT) | is_adenine))
    around = reference.around(block.contig.codes[rows], names, counts.pos0[rows])
    here, strand = around[:, MARGIN], counts.strand[rows]
    plus_base = A if is_adenine else C
    minus_base = COMPLEMENT[plus_base]
    is_minus = (strand == MINUS) | ((strand == UNKNOWN) & (here == minus_base))
    is_there = here == np.where(is_minus, minus_base, plus_base)
    if is_adenine:
        context = counts.context
    else:
        upstream, downstream = COMPLEMENT[around[:, :MARGIN]], around[:, MARGIN + 1 :]
        nearest = np.where(is_minus, upstream[:, 1], downstream[:, 0])
        found = contexts_by_bases(nearest, np.where(is_minus, upstream[:, 0], downstream[:, 1]))
        context = counts.context.copy()
        context[rows] = found
        if settings.merge_strands:
            is_told = (strand == UNKNOWN) & (found == CG)
            strand = np.where(is_told, is_minus, strand).astype(np.int8)  # PLUS is 0, MINUS is 1
    strands = counts.strand.copy()
    strands[rows] = strand
    is_kept = np.ones(len(counts.pos0), dtype=bool)
    is_kept[rows] = is_there
    return block._replace(
        contig=block.contig._replace(codes=block.contig.codes[is_kept]),
        counts=counts._replace(context=context, strand=strands).select(is_kept),
        dropped={**block.dropped, "reference_mismatch": int(np.count_nonzero(~is_kept))},
        reference_checked=len(rows),
        context_is_assumed=False,
        layout=f"{block.layout}; context from the reference",
    )
