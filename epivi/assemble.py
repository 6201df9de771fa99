"""The samples' counts as loci: `epivi assemble`. Contigs are independent and run in processes of their own."""

from __future__ import annotations

import functools
import itertools
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from epivi.errors import UserError
from epivi.files import atomic_path
from epivi.join import joined, locus_block
from epivi.store import (
    MANIFEST,
    ContigSummary,
    CountsFile,
    LociWriter,
    PathLike,
    Provenance,
    loci_file,
    natural_key,
    write_loci_manifest,
)
from epivi.units import Intervals, Positions, Sums, Tiles, Unit, read_bed


@dataclass(frozen=True)
class AssembleSettings:
    """`unit` as in the configuration: "cpg", {"tile": width in bp} or {"bed": path}.

    `min_covered_samples` is a fraction below 1 of all samples, or a whole number of samples.
    """

    unit: Any
    merge_strands: bool
    min_covered_samples: float


class ContigTally(NamedTuple):
    """What became of one contig."""

    contig: str
    n_rows: int  # counts read, over all samples
    n_seen: int  # loci with at least one read
    n_loci: int  # loci kept
    n_scaled: int  # counts (locus and sample) scaled down to fit 16 bits


def _unit_of(settings: AssembleSettings, intervals: Intervals | None) -> Unit:
    if settings.unit == "cpg":
        return Positions(settings.merge_strands)
    return Tiles(settings.unit["tile"]) if intervals is None else intervals


@dataclass(frozen=True)
class _Job:
    """One contig to assemble."""

    contig: str
    directory: Path
    samples: tuple[str, ...]
    settings: AssembleSettings
    intervals: Intervals | None
    provenance: Provenance


def _assemble_contig(files: Sequence[CountsFile], job: _Job) -> ContigTally:
    """Write one contig's loci; no file is left where none is kept."""
    unit = _unit_of(job.settings, job.intervals)
    needed = samples_needed(job.settings.min_covered_samples, len(files))
    n_rows = n_seen = n_scaled = 0
    path = job.directory / loci_file(job.contig)
    with LociWriter(path, job.contig, job.samples, job.provenance) as writer:
        for rows, sums in joined(files, job.contig, unit, job.settings.merge_strands):
            kept = np.count_nonzero(sums.total, axis=1) >= needed
            block, scaled = locus_block(job.contig, writer.n_loci, unit, Sums(*(array[kept] for array in sums)))
            writer.write(block)
            n_rows, n_seen, n_scaled = n_rows + rows, n_seen + kept.size, n_scaled + scaled
    if not writer.n_loci:
        path.unlink()
    return ContigTally(job.contig, n_rows, n_seen, writer.n_loci, n_scaled)


@functools.cache
def _worker_files(paths: tuple[Path, ...]) -> list[CountsFile]:
    return [CountsFile.open(path) for path in paths]


def _assemble_in_worker(paths: tuple[Path, ...], job: _Job) -> ContigTally:
    return _assemble_contig(_worker_files(paths), job)


# ------------------------------------------------------------------------------------------------------------ assembly


def samples_needed(min_covered_samples: float, n_samples: int) -> int:
    """Number of samples that must have reads at a locus: at least the fraction, or the number itself."""
    if min_covered_samples < 1:
        # A fraction such as 0.1 of 30 must not need a fourth sample because of rounding.
        return max(1, math.ceil(min_covered_samples * n_samples - 1e-9))
    if min_covered_samples > n_samples:
        raise UserError(
            f"loci.min_covered_samples is {min_covered_samples:g}; expected at most {n_samples}, all samples"
        )
    return int(min_covered_samples)


def assemble(
    counts: Sequence[PathLike],
    output: PathLike,
    settings: AssembleSettings,
    provenance: Provenance,
    *,
    threads: int,
    on_contig: Callable[[ContigTally], None],
) -> tuple[ContigTally, ...]:
    """Join counts files (one a sample, in this order) into the folder `output`, which a `LociStore` opens.

    Contigs come in natural order; those without a locus are left out. `on_contig` hears of each as it is done.
    Raises UserError if files are damaged or repeat a sample, or if no locus is left.
    """
    files = [CountsFile.open(path) for path in counts]
    _check_samples(files)
    samples_needed(settings.min_covered_samples, len(files))
    output = Path(output)
    _check_replaceable(output)
    intervals = (
        read_bed(settings.unit["bed"]) if isinstance(settings.unit, Mapping) and "bed" in settings.unit else None
    )
    with atomic_path(output) as temporary:
        temporary.mkdir()
        jobs = _jobs(files, temporary, settings, intervals, provenance)
        tallies = sorted(_run(files, jobs, threads, on_contig), key=lambda tally: natural_key(tally.contig))
        _check_any_left(files, settings, tallies)
        _write_manifest(temporary, files, settings, provenance, tallies)
    return tuple(tallies)


def _jobs(
    files: Sequence[CountsFile],
    directory: Path,
    settings: AssembleSettings,
    intervals: Mapping[str, Intervals] | None,
    provenance: Provenance,
) -> list[_Job]:
    """Contigs that can have loci, largest first so that processes end together."""
    rows: dict[str, int] = {}
    for contig, part in itertools.chain.from_iterable(file.contigs.items() for file in files):
        rows[contig] = rows.get(contig, 0) + part.n_rows
    contigs = [contig for contig in rows if intervals is None or contig in intervals]
    samples = tuple(file.sample for file in files)
    return [
        _Job(contig, directory, samples, settings, intervals[contig] if intervals else None, provenance)
        for contig in sorted(contigs, key=lambda contig: -rows[contig])
    ]


def _run(
    files: Sequence[CountsFile], jobs: Sequence[_Job], threads: int, on_contig: Callable[[ContigTally], None]
) -> Iterator[ContigTally]:
    if threads == 1 or len(jobs) < 2:
        for job in jobs:
            on_contig(tally := _assemble_contig(files, job))
            yield tally
        return
    paths = tuple(file.path for file in files)
    # Fork is not safe once Arrow has started its threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(threads, len(jobs)), mp_context=context) as pool:
        for tally in pool.map(functools.partial(_assemble_in_worker, paths), jobs):
            on_contig(tally)
            yield tally


def _check_samples(files: Sequence[CountsFile]) -> None:
    seen: dict[str, Path] = {}
    for file in files:
        if file.sample in seen:
            raise UserError(f"{file.path}: holds the sample {file.sample!r}, as {seen[file.sample]} does already")
        seen[file.sample] = file.path


def _check_replaceable(output: Path) -> None:
    """A folder is replaced as a whole, so it must hold nothing but loci."""
    if output.is_dir():
        other = [
            entry.name for entry in os.scandir(output) if entry.name != MANIFEST and not entry.name.endswith(".arrow")
        ]
        if other:
            raise UserError(
                f"{output}: would be replaced but holds {sorted(other)[0]!r}; expected a new or loci folder"
            )
    elif output.exists():
        raise UserError(f"{output}: is a file; expected a new folder")


def _check_any_left(files: Sequence[CountsFile], settings: AssembleSettings, tallies: Sequence[ContigTally]) -> None:
    if any(tally.n_loci for tally in tallies):
        return
    n_seen = sum(tally.n_seen for tally in tallies)
    if n_seen:
        needed = samples_needed(settings.min_covered_samples, len(files))
        raise UserError(
            f"no locus left: {n_seen} seen in {len(files)} samples, none covered in the {needed} samples that "
            f"loci.min_covered_samples = {settings.min_covered_samples:g} asks for"
        )
    n_rows = sum(part.n_rows for file in files for part in file.contigs.values())
    if n_rows:
        raise UserError(
            f"no locus seen: the {len(files)} counts files hold {n_rows} rows and none lies in an interval of "
            f"{settings.unit['bed']}"
        )
    raise UserError(
        f"no locus seen: the {len(files)} counts files hold no row, since the filters of ingest took them all: look at "
        "loci.coverage.min, loci.context and loci.contigs, and at what the samples' qc records count as dropped"
    )


def _write_manifest(
    directory: Path,
    files: Sequence[CountsFile],
    settings: AssembleSettings,
    provenance: Provenance,
    tallies: Sequence[ContigTally],
) -> None:
    n_seen, n_loci = sum(tally.n_seen for tally in tallies), sum(tally.n_loci for tally in tallies)
    details = {
        "merge_strands": settings.merge_strands,
        "min_covered_samples": settings.min_covered_samples,
        "samples_needed": samples_needed(settings.min_covered_samples, len(files)),
        "n_seen": n_seen,
        "dropped": {"min_covered_samples": n_seen - n_loci},
        "n_scaled": sum(tally.n_scaled for tally in tallies),
        "sums": {file.sample: file.sums for file in files if file.sums},
    }
    contigs = [ContigSummary(tally.contig, loci_file(tally.contig), tally.n_loci) for tally in tallies if tally.n_loci]
    write_loci_manifest(directory, [file.sample for file in files], contigs, settings.unit, provenance, details)
