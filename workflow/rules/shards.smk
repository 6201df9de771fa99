"""Ranges of near equal size of the loci: one job of each step that goes by shards, and one file of each of its tables."""

import json
import shutil
from pathlib import Path

from epivi.base.files import write_json
from epivi.loci.loci_file import even_ranges
from epivi.loci.store import LociStore
from epivi.tables.parts import FORMER_PATTERN, PATTERN, part_path
from epivi.tables.pieces import forget

# Steps that work shard by shard, and the tables of each.
SHARDED = {"evidence": ("evidence",), "posterior": ("posterior",), "states": ("states", "branches")}


def write_shards(loci, output, shard_loci):
    """List the shards, first locus and locus after the last, and remove what was written for shards that are no more."""
    n_loci = LociStore.open(loci).n_loci
    shards = {f"{number:04d}": bounds for number, bounds in enumerate(even_ranges(n_loci, shard_loci))}
    for results in (output.parent, *output.parent.glob("analyses/*")):
        remove_other_shards(results, shards)
    write_json(output, shards)


def remove_other_shards(results, shards):
    """Remove from the folder of an analysis what is not of these shards."""
    for step, tables in SHARDED.items():
        for table in tables:
            folder = results / table
            kept = {part_path(folder, shard) for shard in shards}
            for path in set(folder.glob(PATTERN)) - kept:
                path.unlink()
                forget(path)
            for former in folder.glob(FORMER_PATTERN):
                shutil.rmtree(former)
        kept = {results / "benchmarks" / step / f"{shard}.tsv" for shard in shards}
        for path in set(results.glob(f"benchmarks/{step}/*.tsv")) - kept:
            path.unlink()


def shards():
    """First locus and locus after the last of every shard, known once the loci are assembled."""
    with checkpoints.shards.get().output.shards.open() as file:
        return json.load(file)


def shard_bounds(wildcards):
    """Options that name the loci of a shard; with other loci its job runs again."""
    start, stop = shards()[wildcards.shard]
    return f"--start {start} --stop {stop}"


def shard_size(wildcards):
    """Number of loci of a shard."""
    start, stop = shards()[wildcards.shard]
    return stop - start


def parts(*folders):
    """All files of some tables, of which each has a folder, as an input function."""
    return lambda wildcards: [str(part_path(folder, shard)) for folder in folders for shard in shards()]
