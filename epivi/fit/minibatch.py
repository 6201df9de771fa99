"""Random minibatches of loci from the memory-mapped store: short runs of the genome, each run once an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from epivi.base.errors import UserError
from epivi.fit.ranks import ALONE, Ranks
from epivi.loci.source import CountsBatch
from epivi.loci.store import LociStore

# Runs are short because neighbouring loci repeat each other, and not single loci because a page holds many. They go on
# from contig to contig: otherwise a minibatch would be as small as the contigs are.
RUN_LOCI = 16
LARGEST_HOLDOUT = 0.2  # share of the loci


class Minibatches:
    """Draws minibatches without end; the held-out runs are set aside once and never drawn.

    Of several processes, `ranks`, all follow the same sequence of minibatches, and each reads its own part of the runs.
    Raises UserError when the store has fewer loci than two runs, or there are fewer runs than processes.
    """

    def __init__(self, store: LociStore, batch_loci: int, holdout_loci: int, seed: int, ranks: Ranks = ALONE) -> None:
        self._store = store
        self._n_runs = -(-store.n_loci // RUN_LOCI)
        if self._n_runs < 2:
            raise UserError(
                f"{store.directory}: holds {store.n_loci} loci; the fit needs more than {RUN_LOCI} to hold some out"
            )
        self._random = np.random.default_rng([seed, 0])
        order = self._random.permutation(self._n_runs)
        held_out = max(1, min(-(-holdout_loci // RUN_LOCI), int(LARGEST_HOLDOUT * len(order))))
        self._holdout, self._training = np.sort(order[:held_out]), order[held_out:]
        self._runs_per_batch = min(max(1, batch_loci // RUN_LOCI), len(self._training))
        self._queue = np.empty(0, dtype=np.int64)
        self._own = slice(ranks.rank, None, ranks.size)
        for key, runs in (("batch_loci", self._runs_per_batch), ("holdout_loci", held_out)):
            if runs < ranks.size:
                raise UserError(
                    f"{store.directory}: fit.{key} comes to {runs} runs of {RUN_LOCI} loci; expected at least as many "
                    f"as processes, {ranks.size}"
                )

    @property
    def n_loci(self) -> int:
        return self._store.n_loci

    def all_held_out(self) -> CountsBatch:
        """The held-out loci of all processes."""
        return self._read(self._holdout)

    def holdout(self) -> CountsBatch:
        """The held-out loci of this process."""
        return self._read(self._holdout[self._own])

    def draw(self) -> CountsBatch:
        """The part of this process in the next minibatch."""
        if len(self._queue) < self._runs_per_batch:
            self._queue = np.concatenate([self._queue, self._random.permutation(self._training)])
        runs, self._queue = self._queue[: self._runs_per_batch], self._queue[self._runs_per_batch :]
        return self._read(runs[self._own])

    def state(self) -> dict[str, Any]:
        """Position within the epoch, for a checkpoint."""
        return {"random": self._random.bit_generator.state, "queue": self._queue.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        self._random.bit_generator.state = state["random"]
        self._queue = np.array(state["queue"], dtype=np.int64)

    def _read(self, runs: NDArray[np.int64]) -> CountsBatch:
        n_loci, n_runs = self._store.n_loci, self._n_runs
        spans = [self._store.span(n_loci * run // n_runs, n_loci * (run + 1) // n_runs) for run in runs.tolist()]
        return CountsBatch(
            np.concatenate([span.meth for span in spans]),
            np.concatenate([span.total for span in spans]),
            np.concatenate([np.arange(span.start, span.start + len(span.pos0)) for span in spans]),
        )
