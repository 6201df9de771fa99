"""The samples' counts as the loci of a cohort: `epivi assemble`.

What exists already is used: only samples that no panel holds are joined, into a panel of their own, and the index is
written anew. The result is that of a fresh assembly; where panels side by side could not give it, all samples are
joined anew. Contigs are independent; those of one file are joined together, in one process.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from epivi.base.errors import UserError
from epivi.base.files import atomic_path, exclusive
from epivi.base.worker_processes import worker_processes
from epivi.loci.bed import read_bed
from epivi.loci.contig_patterns import ContigPatterns
from epivi.loci.counts_file import CountsFile
from epivi.loci.index import ContigTally, IndexContig, IndexedFile, IndexJob, PanelPart, index_file
from epivi.loci.loci_file import NOWHERE, LociFile, PanelColumns, loci_groups
from epivi.loci.masks import Mask, check_mask_contigs, contig_problem, read_mask
from epivi.loci.panels import (
    STRANDS_AGREED,
    Panel,
    PanelPlan,
    RunAll,
    Sample,
    choose_panels,
    find_panels,
    join_anew,
    places_in,
    sample_hashes,
    shape_of,
    write_panel,
)
from epivi.loci.store import CONTIGS, INDEX, MANIFEST, PANELS, POSITIONS, write_loci_manifest
from epivi.loci.units import LocusUnit, Positions, Tiles
from epivi.tables.parquet import PathLike, Provenance, natural_key

LOCK = "assemble.lock"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AssembleSettings:
    """`unit` as in the configuration: "cpg", {"tile": width in bp} or {"bed": path}.

    `min_covered_samples` is a fraction below 1 of all samples, or a whole number of samples. `exclude` are files of
    sites to leave out (epivi.loci.masks): of loci that are one cytosine the locus, of others the cytosine's reads.
    """

    unit: Any
    merge_strands: bool
    min_covered_samples: float
    contigs: ContigPatterns = ContigPatterns()  # noqa: RUF009 (a NamedTuple, which nothing changes)
    exclude: tuple[str, ...] = ()


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
    on_joined: Callable[[int], None],
) -> tuple[ContigTally, ...]:
    """Join counts files (one a sample, in this order) into the folder `output`, which a `LociStore` opens.

    Contigs come in natural order. Panels in the folder are kept where they hold the same counts; killed at any moment,
    it leaves what was there before or nothing that opens. `on_joined` is called with the loci of each file that is
    joined. Raises UserError if files are damaged or repeat a sample, or if no locus is left.
    """
    files = [CountsFile.open(path).of_contigs(settings.contigs.keeps) for path in counts]
    _check_samples(files)
    samples_needed(settings.min_covered_samples, len(files))
    contig_units = _contig_units(files, settings)
    masks = _masks(settings.exclude, list(contig_units))
    output = Path(output)
    check_replaceable(output)
    with exclusive(output / LOCK), _processes(threads, len(contig_units)) as run_all:
        shape = shape_of(settings.unit, settings.merge_strands, settings.contigs, settings.exclude)
        cohort = dict(zip(sample_hashes(files, threads), files, strict=True))
        assembly = _Assembly(output, cohort, settings, contig_units, masks, shape, provenance, run_all, on_joined)
        return assembly.run()


@dataclass(frozen=True)
class _Assembly:
    """One cohort on its way into a folder."""

    output: Path
    cohort: Mapping[Sample, CountsFile]
    settings: AssembleSettings
    contig_units: Mapping[str, LocusUnit]
    masks: tuple[Mask, ...]
    shape: Mapping[str, Any]
    provenance: Provenance
    run_all: RunAll
    on_joined: Callable[[int], None]

    def run(self) -> tuple[ContigTally, ...]:
        samples = tuple(self.cohort)
        plan = choose_panels(self._found(), samples)
        try:
            panels, tallies = self._written(plan)
        except PanelsDisagreeError:
            plan = join_anew(samples, STRANDS_AGREED)
            panels, tallies = self._written(plan)
        self._remove_unused(panels)
        self._report(plan, panels, tallies)
        return tallies

    def _found(self) -> list[Panel]:
        panels, broken = find_panels(self.output, self.shape)
        if broken:
            # A manifest that may name a panel must not outlive it.
            (self.output / MANIFEST).unlink(missing_ok=True)
        for path in broken:
            _remove(path)
        return panels

    def _written(self, plan: PanelPlan) -> tuple[list[Panel], tuple[ContigTally, ...]]:
        """The panels of a plan, of which the missing one is written, and what became of each contig in their index."""
        panels = [*plan.kept, *([self._write_panel(plan.missing)] if plan.missing else [])]
        if len(panels) > 1 and not all(panel.is_settled for panel in panels):
            raise PanelsDisagreeError
        places = places_in(tuple(self.cohort), panels)
        with atomic_path(self.output / INDEX) as folder:
            folder.mkdir()
            files, tallies, masked = self._write_index(folder, panels, places)
            _check_any_left(list(self.cohort.values()), self.settings, tallies)
            # From here to the new manifest nothing opens.
            (self.output / MANIFEST).unlink(missing_ok=True)
        self._write_manifest(
            [*map(PanelColumns, (panel.folder.name for panel in panels), places)], files, tallies, masked
        )
        return panels, tallies

    def _write_panel(self, missing: Sequence[Sample]) -> Panel:
        files = {sample: self.cohort[sample] for sample in missing}
        contigs = set().union(*(file.contigs for file in files.values()))
        contig_units = {contig: unit for contig, unit in self.contig_units.items() if contig in contigs}
        return write_panel(
            self.output,
            files,
            contig_units,
            self.shape,
            self.provenance,
            run_all=self.run_all,
            on_joined=self.on_joined,
            masks=() if self._masks_loci else self.masks,
        )

    def _write_index(
        self, folder: Path, panels: Sequence[Panel], places: Sequence[tuple[int, ...]]
    ) -> tuple[list[LociFile], tuple[ContigTally, ...], list[int]]:
        """The files, the contigs in natural order, and what each mask leaves out. Raises PanelsDisagreeError."""
        parts = tuple(
            PanelPart(
                panel.folder,
                len(panel.samples),
                tuple(column for column, place in enumerate(of_panel) if place >= 0),
                panel.has_open,
            )
            for panel, of_panel in zip(panels, places, strict=True)
        )
        needed = samples_needed(self.settings.min_covered_samples, len(self.cohort))
        contigs = {
            name: IndexContig(name, unit, tuple(panel.places.get(name, NOWHERE) for panel in panels))
            for name, unit in self.contig_units.items()
        }
        sizes = {name: max(place.n_loci for place in contig.places) for name, contig in contigs.items()}
        jobs = [
            IndexJob(
                folder / name,
                tuple(map(contigs.__getitem__, group)),
                parts,
                self.settings.merge_strands,
                needed,
                self.provenance,
                tuple(mask.of(group) for mask in self.masks) if self._masks_loci else (),
            )
            for name, group in loci_groups({name: size for name, size in sizes.items() if size})
        ]
        done: list[IndexedFile] = list(self.run_all(index_file, jobs))
        if not all(each.strands_agree for each in done):
            raise PanelsDisagreeError
        for each in done:
            _log_tallies(each.tallies)
        tallies = sorted(
            (tally for each in done for tally in each.tallies), key=lambda tally: natural_key(tally.contig)
        )
        # Samples that were joined apart have cytosines in common: the panel with most of them is counted.
        masked = np.max([panel.masked for panel in panels], axis=0)
        if self._masks_loci:
            masked = sum((each.masked for each in done), np.zeros(len(self.masks), np.int64))
        return [each.file for each in done if each.file.contigs], tuple(tallies), masked.tolist()

    @property
    def _masks_loci(self) -> bool:
        """Whether masks leave out whole loci, in the index, and not cytosines of tiles and intervals, when joined."""
        return bool(self.settings.unit == "cpg")

    def _excluded(self, masked: Sequence[int]) -> list[dict[str, Any]]:
        """What the manifest says of each file of `loci.exclude`."""
        what = "loci" if self._masks_loci else "cytosines"
        records = []
        for mask, count in zip(self.masks, masked, strict=True):
            warning = contig_problem(mask.path, list(mask.sites), list(self.contig_units))
            if not warning and not count:
                warning = f"{mask.path}: none of its {mask.n_sites:,} sites is at a locus: is it of this genome build?"
            if warning:
                log.warning("%s", warning)
            log.info("%s: %d sites leave out %d %s", mask.path, mask.n_sites, count, what)
            if mask.n_passed_over:
                log.info("%s: %d symbolic alleles are passed over", mask.path, mask.n_passed_over)
            record = {"file": mask.path, "sites": mask.n_sites, "excluded": count, "of": what, "warning": warning}
            records.append(record | {"passed_over": mask.n_passed_over})
        return records

    def _write_manifest(
        self,
        panels: Sequence[PanelColumns],
        files: Sequence[LociFile],
        tallies: Sequence[ContigTally],
        masked: Sequence[int],
    ) -> None:
        samples = tuple(self.cohort)
        n_seen, n_loci = sum(tally.n_seen for tally in tallies), sum(tally.n_loci for tally in tallies)
        n_masked = sum(tally.n_masked for tally in tallies)
        details = {
            "merge_strands": self.settings.merge_strands,
            "min_covered_samples": self.settings.min_covered_samples,
            "samples_needed": samples_needed(self.settings.min_covered_samples, len(samples)),
            "n_seen": n_seen,
            "dropped": {"min_covered_samples": n_seen - n_loci - n_masked, "exclude": n_masked},
            "exclude": self._excluded(masked),
            "n_scaled": sum(tally.n_scaled for tally in tallies),
            "sums": {sample.name: file.sums for sample, file in self.cohort.items() if file.sums},
            "warnings": {sample.name: file.warnings for sample, file in self.cohort.items() if file.warnings},
        }
        names = [sample.name for sample in samples]
        write_loci_manifest(self.output, names, panels, files, self.settings.unit, self.provenance, details)

    def _remove_unused(self, panels: Sequence[Panel]) -> None:
        """Panels of other samples, and the files of an earlier format."""
        kept = {panel.folder for panel in panels}
        for path in (*(self.output / PANELS).iterdir(), *self.output.glob("*.arrow")):
            if path not in kept:
                _remove(path)

    def _report(self, plan: PanelPlan, panels: Sequence[Panel], tallies: Sequence[ContigTally]) -> None:
        if plan.reason:
            log.info("all samples are joined anew: %s", plan.reason)
        new = [panel for panel in panels if panel not in plan.kept]
        index_bytes = sum(path.stat().st_size for path in (self.output / INDEX).iterdir())
        log.info(
            "kept %s; wrote %s and the index of %d loci (%.1f MB)",
            _described(plan.kept),
            _described(new),
            sum(tally.n_loci for tally in tallies),
            index_bytes / 1e6,
        )


def _log_tallies(tallies: Sequence[ContigTally]) -> None:
    n_loci, n_seen = sum(tally.n_loci for tally in tallies), sum(tally.n_seen for tally in tallies)
    others = f" and {len(tallies) - 1} other small contigs" if len(tallies) > 1 else ""
    log.info("%s%s: kept %d of %d loci", tallies[0].contig, others, n_loci, n_seen)


def _described(panels: Sequence[Panel]) -> str:
    if not panels:
        return "no panel"
    n_samples = sum(len(panel.samples) for panel in panels)
    n_loci = sum(place.n_loci for panel in panels for place in panel.places.values())
    megabytes = sum(panel.n_bytes for panel in panels) / 1e6
    count = "1 panel" if len(panels) == 1 else f"{len(panels)} panels"
    return f"{count} ({n_samples} samples, {n_loci} loci, {megabytes:.1f} MB)"


class PanelsDisagreeError(Exception):
    """Panels cannot stand side by side: joined at once, the samples would agree on other strands."""


def _contig_units(files: Sequence[CountsFile], settings: AssembleSettings) -> dict[str, LocusUnit]:
    """The unit of each contig that can have loci."""
    contigs = list(dict.fromkeys(contig for file in files for contig in file.contigs))
    if not contigs:
        raise UserError(
            f"no locus seen: the {len(files)} counts files hold no row of a contig that loci.contigs keeps: look at"
            " loci.coverage.min, loci.context and loci.contigs, and at what the samples' qc records count as dropped"
        )
    if settings.unit == "cpg":
        return dict.fromkeys(contigs, Positions(settings.merge_strands))
    if "tile" in settings.unit:
        return dict.fromkeys(contigs, Tiles(settings.unit["tile"]))
    intervals = read_bed(settings.unit["bed"])
    return {contig: intervals[contig] for contig in contigs if contig in intervals}


def _masks(paths: Sequence[str], contigs: Sequence[str]) -> tuple[Mask, ...]:
    """The sites of files, with those of contigs that have no loci; UserError for one that has no contig of theirs."""
    masks = tuple(map(read_mask, paths))
    for mask in masks:
        check_mask_contigs(mask.path, list(mask.sites), contigs)
    return masks


@contextmanager
def _processes(threads: int, n_contigs: int) -> Iterator[RunAll]:
    """A map over jobs, in up to as many processes as there are contigs."""
    if threads == 1 or n_contigs < 2:
        yield map
        return
    with worker_processes(min(threads, n_contigs)) as pool:
        yield pool.map


def _check_samples(files: Sequence[CountsFile]) -> None:
    seen: dict[str, Path] = {}
    for file in files:
        if file.sample in seen:
            raise UserError(f"{file.path}: holds the sample {file.sample!r}, as {seen[file.sample]} does already")
        seen[file.sample] = file.path


def check_replaceable(output: Path) -> None:
    """What is no longer needed in the folder is removed, so it must hold nothing but loci."""
    if output.is_dir():
        own = {MANIFEST, PANELS, INDEX, LOCK, CONTIGS, POSITIONS}
        other = [
            entry.name
            for entry in os.scandir(output)
            if entry.name not in own and not entry.name.endswith((".arrow", ".tmp"))
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
    n_masked = sum(tally.n_masked for tally in tallies)
    if n_masked:
        raise UserError(
            f"no locus left: the files of loci.exclude mask all {n_masked} loci that are covered in enough samples: "
            "expected sites, not regions of the whole genome"
        )
    if n_seen:
        needed = samples_needed(settings.min_covered_samples, len(files))
        raise UserError(
            f"no locus left: {n_seen} seen in {len(files)} samples, none covered in the {needed} samples that "
            f"loci.min_covered_samples = {settings.min_covered_samples:g} asks for"
        )
    n_rows = sum(part.n_rows for file in files for part in file.contigs.values())
    raise UserError(
        f"no locus seen: the {len(files)} counts files hold {n_rows} rows and none lies in an interval of "
        f"{settings.unit['bed']}"
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
