"""Shards of loci: one evidence job and one posterior job each."""

import json
from pathlib import Path

from epivi.files import write_json
from epivi.store import LociStore, partition_path


def write_shards(loci, output, shard_loci):
    """List the shards, and remove what an earlier run wrote for shards that are no more.

    The list maps each shard's path below evidence/ and posterior/, without suffix, to its contig, start and stop.
    """
    parts = {
        str(partition_path("", shard.contig, shard.part).with_suffix("")): shard
        for shard in LociStore.open(loci).shards(shard_loci)
    }
    for step in ("evidence", "posterior"):
        for folder in (output.parent / step, output.parent / "benchmarks" / step):
            for path in folder.glob("contig=*/part-*"):
                if f"{path.parent.name}/{path.stem}" not in parts:
                    path.unlink()
    write_json(output, {part: shard._asdict() for part, shard in parts.items()})


def shards():
    """The list of shards, known once the loci are assembled."""
    with checkpoints.shards.get().output.shards.open() as file:
        return json.load(file)


def shard_of(wildcards):
    """Contig, start and stop of the shard of a job."""
    return shards()[f"contig={wildcards.contig}/part-{wildcards.part}"]


def parts_of(table):
    """The files of all shards of a table, as an input function."""
    return lambda wildcards: [f"<results>/{table}/{part}.parquet" for part in shards()]
