"""Jobs of near equal size and the shards in each: one evidence job and one posterior job for as many loci."""

import json
import shutil
from itertools import chain
from pathlib import Path

from epivi.files import content_hash, write_json
from epivi.pieces import pieces_folder
from epivi.store import LociStore, Shard, partition_path

# Steps that work shard by shard, and the tables of each.
SHARDED = {"evidence": ("evidence",), "posterior": ("posterior",), "states": ("states", "branches")}


def done_file(results, step, job):
    """What stands for all files of a job of a step: a wildcard can't hold several contigs, and some names not even one.

    SLURM replaces what follows a percent sign in the name of its log, and so can't run a job named after HLA%2A01.
    """
    return Path(results, "shards", step, f"{job}.done")


def shard_files(results, step, shard):
    """The tables of a step for a shard."""
    return [partition_path(Path(results, table), shard.contig, shard.part) for table in SHARDED[step]]


def write_shards(loci, output, shard_loci):
    """List the shards of each job, and remove what an earlier run wrote for shards and jobs that are no more."""
    results = output.parent
    jobs = {f"{number:04d}": shards for number, shards in enumerate(LociStore.open(loci).jobs(shard_loci))}
    for step, tables in SHARDED.items():
        kept = {done_file(results, step, job) for job in jobs}
        kept |= {results / "benchmarks" / step / f"{job}.tsv" for job in jobs}
        kept |= {path for shard in chain.from_iterable(jobs.values()) for path in shard_files(results, step, shard)}
        partitions = [f"{table}/contig=*/part-*.parquet" for table in tables]
        for pattern in (f"shards/{step}/*.done", f"benchmarks/{step}/*.tsv", *partitions):
            for path in set(results.glob(pattern)) - kept:
                path.unlink()
        kept_pieces = {pieces_folder(path) for path in kept}
        for folder in chain.from_iterable(results.glob(f"{table}/contig=*/.part-*.pieces") for table in tables):
            if folder not in kept_pieces:
                shutil.rmtree(folder)
    write_json(output, {job: [shard._asdict() for shard in shards] for job, shards in jobs.items()})


def forget_missing(results):
    """Take a job for not done where one of its files is no longer there."""
    path = Path(results, "shards.json")
    jobs = json.loads(path.read_text()) if path.exists() else {}
    for step in SHARDED:
        for job, shards in jobs.items():
            done = done_file(results, step, job)
            files = (path for shard in shards for path in shard_files(results, step, Shard(**shard)))
            if done.exists() and not all(path.exists() for path in files):
                done.unlink()


def jobs():
    """The shards of every job, known once the loci are assembled."""
    with checkpoints.shards.get().output.shards.open() as file:
        return json.load(file)


def job_hash(wildcards):
    """What identifies the shards of a job: with other shards it runs again."""
    return content_hash(jobs()[wildcards.job])


def job_loci(wildcards):
    """Number of loci of a job."""
    return sum(shard["stop"] - shard["start"] for shard in jobs()[wildcards.job])


def done(*steps):
    """What stands for all jobs of some steps, as an input function."""
    return lambda wildcards: [str(done_file("<results>", step, job)) for step in steps for job in jobs()]
