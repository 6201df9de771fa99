"""Minibatches of a store: what is held out, how often each run of loci is drawn, and where a checkpoint continues."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from transmission_cases import draw_counts, write_store

from epivi.base.errors import UserError
from epivi.fit.minibatch import LARGEST_HOLDOUT, RUN_LOCI, Minibatches
from epivi.fit.ranks import Ranks
from epivi.loci.loci_file import even_ranges
from epivi.loci.source import CountsBatch
from epivi.loci.store import LociStore

SIZES = {"chr1": 20 * RUN_LOCI, "chr2": 7 * RUN_LOCI + 5, "chrX": 3}
LOCI = sum(SIZES.values())
RUNS = 28  # of near equal length, two of them over the end of a contig
SAMPLES = ("a", "b", "c")


def make_store(folder: Path, sizes: dict[str, int]) -> LociStore:
    counts = {name: draw_counts(size, len(SAMPLES), seed) for seed, (name, size) in enumerate(sizes.items())}
    return write_store(folder, SAMPLES, counts)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LociStore:
    return make_store(tmp_path_factory.mktemp("loci"), SIZES)


@pytest.fixture(scope="module")
def genome(store: LociStore) -> CountsBatch:
    """All loci in genome order."""
    blocks = [store.block(contig, 0, size) for contig, size in SIZES.items()]
    return CountsBatch(
        np.concatenate([block.meth for block in blocks]),
        np.concatenate([block.total for block in blocks]),
        np.arange(LOCI),
    )


def loci_of_runs(store: LociStore) -> list[frozenset[int]]:
    """The runs of at most RUN_LOCI loci that the genome is cut into."""
    return [frozenset(range(start, stop)) for start, stop in even_ranges(store.n_loci, RUN_LOCI)]


def test_minibatches_are_as_large_as_asked_for_whatever_the_contigs(tmp_path: Path) -> None:
    """On scaffolds of three loci a minibatch of 128 had 24, and so had what is held out."""
    store = make_store(tmp_path, {f"scaffold{number}": 3 for number in range(200)})
    minibatches = Minibatches(store, 128, 64, seed=1)
    assert 8 * 15 <= len(minibatches.draw().locus) <= 128
    assert 4 * 15 <= len(minibatches.holdout().locus) <= 64


def test_counts_are_those_of_the_loci_they_name(store: LociStore, genome: CountsBatch) -> None:
    minibatches = Minibatches(store, 64, 48, seed=1)
    seen: set[int] = set()
    for batch in [minibatches.holdout(), *(minibatches.draw() for _ in range(12))]:
        np.testing.assert_array_equal(batch.meth, genome.meth[batch.locus])
        np.testing.assert_array_equal(batch.total, genome.total[batch.locus])
        assert batch.locus.dtype == np.int64
        seen |= set(batch.locus.tolist())
    assert seen == set(range(LOCI))
    assert minibatches.n_loci == LOCI


@pytest.mark.parametrize("batch_loci", [16, 48, 112])
def test_holdout_is_never_drawn_and_an_epoch_draws_every_other_run_once(store: LociStore, batch_loci: int) -> None:
    minibatches = Minibatches(store, batch_loci, 48, seed=2)
    held_out = set(minibatches.holdout().locus.tolist())
    training = [run for run in loci_of_runs(store) if not run & held_out]
    assert len(training) == RUNS - 3
    assert sum(len(run) for run in training) == LOCI - len(held_out)
    runs_per_batch = batch_loci // RUN_LOCI
    draws = 3 * len(training)  # a multiple of epochs whatever the size of a batch
    stream: list[int] = []
    sizes = []
    for _ in range(draws):
        loci = minibatches.draw().locus.tolist()
        assert not held_out & set(loci)
        sizes.append(len(loci))
        stream += loci
    # The stream is whole epochs one after the other: cut it run by run.
    order, position = [], 0
    which = {min(run): number for number, run in enumerate(training)}
    while position < len(stream):
        number = which[stream[position]]
        run = stream[position : position + len(training[number])]
        assert run == list(range(run[0], run[0] + len(run)))
        assert frozenset(run) == training[number]
        order.append(number)
        position += len(run)
    assert len(order) == draws * runs_per_batch
    epochs = np.array(order).reshape(-1, len(training))
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(len(training)), (len(epochs), 1)))
    assert (epochs[0] != epochs[1]).any()
    assert max(sizes) <= batch_loci


def test_holdout_is_the_same_at_every_look_and_for_every_batch_size(store: LociStore) -> None:
    one, other = Minibatches(store, 16, 48, seed=3), Minibatches(store, 160, 48, seed=3)
    before = one.holdout().locus
    for _ in range(5):
        one.draw()
    np.testing.assert_array_equal(one.holdout().locus, before)
    np.testing.assert_array_equal(other.holdout().locus, before)
    assert set(Minibatches(store, 16, 48, seed=4).holdout().locus) != set(before)


def test_seed_decides_the_draws(store: LociStore) -> None:
    streams = [[m.draw().locus.tolist() for _ in range(4)] for m in (Minibatches(store, 48, 48, s) for s in (5, 5, 6))]
    assert streams[0] == streams[1]
    assert streams[0] != streams[2]


def test_holdout_is_at_most_a_share_of_the_loci(store: LociStore) -> None:
    minibatches = Minibatches(store, 16, 10_000, seed=1)
    assert len(minibatches.holdout().locus) <= int(LARGEST_HOLDOUT * RUNS) * RUN_LOCI
    assert len(minibatches.holdout().locus) >= int(LARGEST_HOLDOUT * RUNS) * RUN_LOCI * 0.6


@pytest.mark.parametrize("draws", [0, 1, 3, 9])
def test_restored_stream_continues(store: LociStore, draws: int) -> None:
    """Through a file that holds plain values only; restored where other draws had been made."""
    first = Minibatches(store, 80, 48, seed=7)
    for _ in range(draws):
        first.draw()
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second = Minibatches(store, 80, 48, seed=7)
    second.draw()
    second.restore(torch.load(file, weights_only=True))
    for _ in range(12):
        np.testing.assert_array_equal(second.draw().locus, first.draw().locus)


def test_batch_larger_than_the_store_is_all_training_loci(store: LociStore) -> None:
    minibatches = Minibatches(store, 100_000, 48, seed=1)
    both = [*minibatches.draw().locus, *minibatches.holdout().locus]
    assert sorted(both) == list(range(LOCI))


def test_two_runs_suffice_and_one_is_refused(tmp_path: Path) -> None:
    minibatches = Minibatches(make_store(tmp_path / "two", {"chr1": RUN_LOCI + 1}), 256, 512, seed=1)
    assert sorted([*minibatches.draw().locus, *minibatches.holdout().locus]) == list(range(RUN_LOCI + 1))
    with pytest.raises(UserError, match=rf"one: holds {RUN_LOCI} loci; the fit needs more than {RUN_LOCI}"):
        Minibatches(make_store(tmp_path / "one", {"chr1": RUN_LOCI}), 256, 512, seed=1)


# --- several processes


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_every_minibatch_and_the_held_out_loci(store: LociStore, size: int) -> None:
    """Disjoint parts that together are what one process has, over an epoch and into the next; parts are unequal."""
    whole = Minibatches(store, 7 * RUN_LOCI, 5 * RUN_LOCI, seed=2)
    parts = [Minibatches(store, 7 * RUN_LOCI, 5 * RUN_LOCI, 2, Ranks(rank, size)) for rank in range(size)]
    for part in parts:
        np.testing.assert_array_equal(part.all_held_out().locus, whole.all_held_out().locus)
    unequal = 0
    for draws in ("holdout", *["draw"] * 8):
        expected, *dealt = (getattr(minibatches, draws)().locus.tolist() for minibatches in (whole, *parts))
        assert sorted(expected) == sorted(locus for part in dealt for locus in part)
        assert min(map(len, dealt)) > 0
        unequal += len(set(map(len, dealt))) > 1
    assert unequal > 4


def test_stream_that_two_processes_began_is_gone_on_with_by_one(store: LociStore) -> None:
    whole = Minibatches(store, 64, 48, seed=2)
    parts = [Minibatches(store, 64, 48, 2, Ranks(rank, 2)) for rank in range(2)]
    for _ in range(3):
        for minibatches in (whole, *parts):
            minibatches.draw()
    assert parts[0].state() == parts[1].state() == whole.state()


@pytest.mark.parametrize(("batch_loci", "holdout_loci", "key"), [(32, 480, "batch_loci"), (480, 32, "holdout_loci")])
def test_more_processes_than_runs_are_refused(store: LociStore, batch_loci: int, holdout_loci: int, key: str) -> None:
    Minibatches(store, batch_loci, holdout_loci, 1, Ranks(0, 2))
    with pytest.raises(
        UserError, match=f"fit.{key} comes to 2 runs of 16 loci; expected at least as many as processes, 3"
    ):
        Minibatches(store, batch_loci, holdout_loci, 1, Ranks(0, 3))
