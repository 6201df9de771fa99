"""Panels: some samples' counts at every locus that any of them has reads at, each in a folder of its own.

A panel is made once. A cohort that grows by a sample keeps the panels that it has and gets one more; which loci the
cohort keeps, and where each panel has them, is the index's business (`epivi.loci.index`). A panel's name is a hash of
what it was made from: the content of its samples' counts, the settings that shape loci, and the code that joins them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from epivi.base.files import atomic_path, content_hash, file_hash, write_json
from epivi.base.ordered import on_threads
from epivi.loci import contig_line, join, masks, units
from epivi.loci.columns import panel_columns
from epivi.loci.contig_line import ContigLine
from epivi.loci.counts_file import CountsFile
from epivi.loci.join import joined, panel_rows
from epivi.loci.loci_file import LociFile, LociWriter, Place, as_record, loci_groups, places_of, whole_file
from epivi.loci.masks import Mask
from epivi.loci.store import FILES, PANELS, RECORD
from epivi.loci.units import LocusUnit
from epivi.tables.columns import FORMAT_VERSION
from epivi.tables.parquet import Provenance

# Every panel costs a look at each locus, so that many are joined into one.
MOST_PANELS = 8
LEAST_USED = 0.5  # share of a panel's samples
STRANDS_AGREED = "some strands are known only from other samples, so that all are looked at together"

Job = TypeVar("Job")
Done = TypeVar("Done")
# Calls a function for every job, in processes of their own where there are several.
RunAll = Callable[[Callable[[Job], Done], Sequence[Job]], Iterator[Done]]


@dataclass(frozen=True)
class Sample:
    """A sample of the cohort, by name and hash of its counts file."""

    name: str
    counts: str


@dataclass(frozen=True)
class Panel:
    """A whole panel.

    is_settled: its rows are the same whatever samples are used of it, and beside all panels that agree on strands.
    has_open: that asks, besides, that no two CpGs be a base apart.
    masked: cytosines left out of tiles and intervals by each file of sites, of any of the panel's samples.
    """

    folder: Path
    samples: tuple[Sample, ...]
    places: Mapping[str, Place]  # of the contigs with a locus
    is_settled: bool
    has_open: bool
    n_bytes: int
    masked: tuple[int, ...]


class PanelPlan(NamedTuple):
    """What becomes of the panels there are: `kept` are used, and `missing` of the cohort's samples need a new one.

    reason: why none is kept although there are some with samples of the cohort, else "".
    """

    kept: tuple[Panel, ...]
    missing: tuple[Sample, ...]
    reason: str = ""


def join_anew(cohort: Sequence[Sample], reason: str) -> PanelPlan:
    """A plan that keeps nothing."""
    return PanelPlan((), tuple(cohort), reason)


def choose_panels(panels: Iterable[Panel], cohort: Sequence[Sample]) -> PanelPlan:
    """The panels to keep; none, where those that exist would cost more than it saves, or be wrong."""
    missing = dict.fromkeys(cohort)
    kept: list[Panel] = []
    for panel in sorted(panels, key=lambda panel: len(missing.keys() & panel.samples), reverse=True):
        used = [sample for sample in panel.samples if sample in missing]
        if not used:
            continue
        if len(used) < LEAST_USED * len(panel.samples):
            return join_anew(cohort, f"of {len(panel.samples)} samples joined before only {len(used)} are used")
        if len(used) < len(panel.samples) and not panel.is_settled:
            return join_anew(cohort, STRANDS_AGREED)
        kept.append(panel)
        for sample in used:
            del missing[sample]
    if len(kept) + bool(missing) > MOST_PANELS:
        return join_anew(cohort, f"there would be more than {MOST_PANELS} panels")
    if len(kept) + bool(missing) > 1 and not all(panel.is_settled for panel in kept):
        return join_anew(cohort, STRANDS_AGREED)
    return PanelPlan(tuple(kept), tuple(missing))


def places_in(cohort: Sequence[Sample], panels: Sequence[Panel]) -> list[tuple[int, ...]]:
    """Of each panel's samples the place in the cohort; -1 if it is not in it, or an earlier panel holds it too."""
    place = {sample: number for number, sample in enumerate(cohort)}
    return [tuple(place.pop(sample, -1) for sample in panel.samples) for panel in panels]


def sample_hashes(files: Sequence[CountsFile], threads: int) -> tuple[Sample, ...]:
    """The samples of counts files, each with the hash of its file."""
    hashes = on_threads(file_hash, [file.path for file in files], threads, ahead=2 * threads)
    return tuple(Sample(file.sample, counts) for file, counts in zip(files, hashes, strict=True))


def shape_of(
    unit: Any, merge_strands: bool, contigs: Sequence[Sequence[str]] = (), exclude: Sequence[str] = ()
) -> dict[str, Any]:
    """What decides on the rows of a panel besides its samples; panels of another shape are of no use.

    unit: as in the configuration; contigs: patterns of those that it may have; exclude: files of sites, which decide on
    what is summed in tiles and intervals, while loci that are one cytosine are left out by the index. The code that
    joins counts is part of it, so that its corrections reach every panel.
    """
    sites = [] if unit == "cpg" else [file_hash(path) for path in exclude]
    if isinstance(unit, Mapping) and "bed" in unit:
        unit = {"bed": file_hash(unit["bed"])}
    return {
        "unit": unit,
        "merge_strands": merge_strands,
        "contigs": [list(patterns) for patterns in contigs],
        "exclude": sites,
        "format_version": FORMAT_VERSION,
        "code": [file_hash(str(module.__file__)) for module in (contig_line, join, masks, units)],
    }


# ------------------------------------------------------------------------------------------------------------- finding


def find_panels(directory: Path, shape: Mapping[str, Any]) -> tuple[list[Panel], list[Path]]:
    """The whole panels of that shape in a folder of loci; and what lies beside them but is no whole panel."""
    panels, broken = [], []
    for folder in sorted((directory / PANELS).glob("*")):
        try:
            record = json.loads((folder / RECORD).read_text())
            panel = _panel(folder, record)
            is_whole = all((folder / entry["file"]).stat().st_size == entry["n_bytes"] for entry in record[FILES])
        except (OSError, ValueError, KeyError, TypeError):
            is_whole = False
        if not is_whole:
            broken.append(folder)
        elif record["shape"] == shape:
            panels.append(panel)
    return panels, broken


def _panel(folder: Path, record: Mapping[str, Any]) -> Panel:
    return Panel(
        folder,
        tuple(Sample(**entry) for entry in record["samples"]),
        places_of(record[FILES]),
        record["is_settled"],
        record["has_open"],
        sum(entry["n_bytes"] for entry in record[FILES]),
        tuple(record["masked"]),
    )


# ------------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class _JoinJob:
    """One file of a new panel."""

    path: Path
    contigs: tuple[tuple[str, LocusUnit], ...]
    counts: tuple[tuple[Path, str], ...]  # each with its hash
    merge_strands: bool
    provenance: Provenance
    masks: tuple[Mask, ...]


class _JoinedFile(NamedTuple):
    file: LociFile
    is_settled: bool
    has_open: bool
    masked: np.ndarray  # int64 [M]


def write_panel(
    directory: Path,
    files: Mapping[Sample, CountsFile],
    contig_units: Mapping[str, LocusUnit],
    shape: Mapping[str, Any],
    provenance: Provenance,
    run_all: RunAll[_JoinJob, _JoinedFile],
    on_joined: Callable[[int], None],
    masks: Sequence[Mask] = (),
) -> Panel:
    """Join the counts of some samples at the contigs of `contig_units` into a new panel, whole or not there.

    `on_joined` is called with the loci of each file as they are done. Small contigs share a file, and so a process.
    """
    samples = tuple(files)
    record: dict[str, Any] = {"samples": [asdict(sample) for sample in samples], "shape": dict(shape)}
    provenance = replace(provenance, table="panel")
    counts = tuple((file.path, sample.counts) for sample, file in files.items())
    folder = directory / PANELS / content_hash(record)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        jobs = [
            _JoinJob(
                temporary / name,
                tuple((contig, contig_units[contig]) for contig in contigs),
                counts,
                shape["merge_strands"],
                provenance,
                tuple(mask.of(contigs) for mask in masks),
            )
            for name, contigs in loci_groups(_most_loci(list(files.values()), contig_units))
        ]
        done = []
        for joined_file in run_all(_join_file, jobs):
            on_joined(sum(joined_file.file.n_loci))
            done.append(joined_file)
        record["is_settled"] = all(each.is_settled for each in done)
        record["has_open"] = any(each.has_open for each in done)
        record["masked"] = sum((each.masked for each in done), np.zeros(len(masks), np.int64)).tolist()
        record[FILES] = as_record([each.file for each in done if each.file.contigs])
        write_json(temporary / RECORD, {**asdict(provenance), **record})
    return _panel(folder, record)


def _most_loci(files: Sequence[CountsFile], contigs: Iterable[str]) -> dict[str, int]:
    """About as many loci as each contig can have: the rows of the sample that has most."""
    return {contig: max(file.contigs[contig].n_rows for file in files if contig in file.contigs) for contig in contigs}


def _join_file(job: _JoinJob) -> _JoinedFile:
    """Write one file; none is left where there is no locus."""
    files, line = _opened(job.counts), ContigLine.of(job.contigs)
    is_settled, has_open = True, False
    n_loci, masked = np.zeros(len(line.contigs), np.int64), np.zeros(len(job.masks), np.int64)
    with LociWriter(job.path, panel_columns(len(files)), job.provenance) as writer:
        for part in joined(files, line, job.merge_strands, job.masks):
            places = line.places(part.sums.keys)
            writer.write(panel_rows(places, part.sums))
            n_loci += np.bincount(places.number, minlength=n_loci.size)
            is_settled &= part.is_settled
            has_open |= part.has_open
            masked += part.masked
    return _JoinedFile(whole_file(job.path, line.by_contig(n_loci)), is_settled, has_open, masked)


@functools.lru_cache(maxsize=1)
def _opened(counts: tuple[tuple[Path, str], ...]) -> list[CountsFile]:
    """Counts files, opened once in each process, not for each file of a panel."""
    return [CountsFile.open(path) for path, _ in counts]
