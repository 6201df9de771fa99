"""Counts of loci in memory: batches and samples of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epivi.loci.store import LociStore

# METHOD: sampled loci come in runs of neighbours, as many as one minibatch of reading takes, all over the genome.
RUN_LOCI = 20


class CountsBatch(NamedTuple):
    """Counts of B loci; `locus` numbers them among all loci of the store in genome order."""

    meth: NDArray[np.uint16]  # [B, S]
    total: NDArray[np.uint16]  # [B, S]
    locus: NDArray[np.int64]  # [B]


class DesignedBatch(NamedTuple):
    """Counts of B loci, and covariates whose values differ between loci."""

    counts: CountsBatch
    locus_design: NDArray[np.float64]  # [B, S, G]


class LocusSample(NamedTuple):
    """Some loci of a store: their place, number in the genome and counts."""

    contig: NDArray[np.str_]
    pos: NDArray[np.int32]
    number: NDArray[np.int64]
    meth: NDArray[np.uint16]  # [L, S]
    total: NDArray[np.uint16]  # [L, S]

    def part(self, some: slice) -> LocusSample:
        return LocusSample(self.contig[some], self.pos[some], self.number[some], self.meth[some], self.total[some])


def sample_loci(store: LociStore, number: int, seed: int) -> LocusSample:
    """Random loci of the store in genome order, without replacement; all of them where it has no more."""
    size = min(number, store.n_loci)
    chosen = np.sort(np.random.default_rng([seed, 5]).choice(store.n_loci, size, replace=False))
    index = store.global_blocks(1)
    contigs, blocks = [], []
    for locus in chosen.tolist():
        contig, start, stop = index[locus]
        contigs.append(contig)
        blocks.append(store.block(contig, start, stop))
    return LocusSample(
        np.array(contigs),
        np.concatenate([block.pos0 for block in blocks]),
        chosen,
        np.concatenate([block.meth for block in blocks]),
        np.concatenate([block.total for block in blocks]),
    )


def sample_runs(
    store: LociStore, number: int, seed: int, is_looked_at: Callable[[str], bool] = lambda contig: True
) -> CountsBatch:
    """About `number` loci in runs of RUN_LOCI neighbours, drawn without replacement; all where there are no more.

    is_looked_at: of the name of a contig, of which there must be one; loci on others are left out.
    """
    runs = -(-store.n_loci // RUN_LOCI)
    drawn = np.random.default_rng([seed, 7]).permutation(runs).tolist()
    bounds = ((run * RUN_LOCI, min((run + 1) * RUN_LOCI, store.n_loci)) for run in drawn)
    allowed = (each for each in bounds if any(map(is_looked_at, store.contigs_of(*each))))
    spans = [store.span(*each) for each in sorted(islice(allowed, -(-number // RUN_LOCI)))]
    of_span = [np.concatenate([np.full(len(b.pos0), is_looked_at(b.contig)) for b in span.blocks]) for span in spans]
    kept = np.concatenate(of_span)
    return CountsBatch(
        np.concatenate([span.meth for span in spans])[kept],
        np.concatenate([span.total for span in spans])[kept],
        np.concatenate([span.start + np.arange(len(span.pos0)) for span in spans])[kept],
    )
