"""Inputs that are not what they are said to be: the same reads twice, positions one base off, another genome build.

What is in the sample sheet is compared before any job, by file; counts are compared at assembly, by their fingerprints.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from epivi.base.errors import Mistakes, UserError
from epivi.cohort.samples import ALL_READS, SampleSheet
from epivi.ingest.fingerprint import WINDOW_BP, Fingerprint, Positions
from epivi.ingest.read import READERS, detect, haplotype_in
from epivi.loci.contig_names import quoted

# ---------------------------------------------------------------------------------------------------------------- files


def repeated_file_mistakes(sheet: SampleSheet) -> list[str]:
    """Lines of the sheet whose file another line names too, by whatever path: each a sentence for a UserError.

    One file may be named by the two haplotypes and the unphased reads of one individual, where it holds aligned reads,
    and by every sample of a matrix.
    """
    mistakes = []
    for row, first in enumerate(sheet.first_of_file):
        if row == first or not os.path.exists(sheet.paths[row]) or _has_sample_columns(sheet, row):
            continue
        same_path = sheet.paths[row] == sheet.paths[first]
        other = "the file" if same_path else f"the same file as {sheet.paths[first]!r}"
        place = (
            f"{sheet.path} line {sheet.lines[row]}: {sheet.paths[row]!r} of sample {sheet.samples[row]!r} is {other} of"
            f" sample {sheet.samples[first]!r} on line {sheet.lines[first]}"
        )
        if sheet.individuals[row] != sheet.individuals[first]:
            mistakes.append(
                f"{place}, of individual {sheet.individuals[first]!r}, not {sheet.individuals[row]!r}: expected one"
                " individual a file"
            )
        elif not _is_part(sheet, row) or not _is_part(sheet, first):
            mistakes.append(f"{place}: its reads would count twice; expected each read in one sample")
    return mistakes


def haplotype_file_mistakes(sheet: SampleSheet) -> list[str]:
    """Lines that contradict what a file says of its haplotype: each a sentence for a UserError.

    Only files of formats that say it are looked at: of pb-CpG-tools.
    """
    said = {row: label for row in range(len(sheet.samples)) if (label := _haplotype_in(sheet, row)) is not None}
    mistakes = []
    for row, label in said.items():
        given, origin = sheet.haplotypes[row], sheet.origin_of(row)
        file = f"{sheet.path} line {sheet.lines[row]}: {sheet.paths[row]!r} holds"
        if label == ALL_READS:
            if given != ALL_READS:
                mistakes.append(f"{file} all reads, as it says itself, but haplotype is {given!r}: expected all")
            elif origin != "both":
                mistakes.append(
                    f"{file} all reads, as it says itself, but parent_of_origin is {origin!r}: expected both"
                )
            continue
        if given not in (label, ALL_READS):
            mistakes.append(
                f"{file} haplotype {label}, as it says itself, but haplotype is {given!r}: expected {label}"
            )
        elif origin == "both":
            mistakes.append(f"{file} haplotype {label}, as it says itself, not all reads: expected haplotype {label}")
        for other, other_label in said.items():
            if sheet.individuals[other] != sheet.individuals[row]:
                continue
            place = f"{sheet.samples[other]!r} on line {sheet.lines[other]}"
            if other_label == ALL_READS:
                mistakes.append(
                    f"{file} haplotype {label}, whose reads count in all those of {place} too: expected the haplotypes"
                    " or the file of all reads, not both"
                )
            elif other_label == label and other < row and _is_contrary(sheet, row, other):
                mistakes.append(
                    f"{file} haplotype {label} and is {origin}, while {place} holds haplotype {label} and is"
                    f" {sheet.origin_of(other)}: expected one parent of origin, or different names in `phasing`"
                )
    return mistakes


def _is_contrary(sheet: SampleSheet, row: int, other: int) -> bool:
    """Whether two files of one number are of different parents, though no phasing of its own is named for each."""
    phasings = [sheet.phasings.get(sheet.samples[index]) for index in (row, other)]
    has_own = None not in phasings and phasings[0] != phasings[1]
    return {sheet.origin_of(row), sheet.origin_of(other)} == {"maternal", "paternal"} and not has_own


def _haplotype_in(sheet: SampleSheet, row: int) -> str | None:
    try:
        return haplotype_in(sheet.paths[row], sheet.formats[row])
    except (UserError, OSError):
        return None  # said when the file is read


def _is_part(sheet: SampleSheet, row: int) -> bool:
    """Whether a sample is a part of the reads of a BAM file."""
    if sheet.haplotypes[row] == ALL_READS:
        return False
    reader = _reader(sheet, row)
    return reader is not None and READERS[reader].is_bam


def _has_sample_columns(sheet: SampleSheet, row: int) -> bool:
    reader = _reader(sheet, row)
    return reader is not None and READERS[reader].has_sample_columns


def _reader(sheet: SampleSheet, row: int) -> str | None:
    """The format of a sample's file, None where it is not recognised."""
    if sheet.formats[row] != "auto":
        return sheet.formats[row] if sheet.formats[row] in READERS else None
    try:
        return detect(sheet.paths[row])
    except UserError:
        return None


# --------------------------------------------------------------------------------------------------------------- counts

# METHOD: equal counts are an error where separate reads of the same levels would give them with a probability below
# exp(-50) = 2e-22: in a cohort of 10,000 samples, once in 10^14 cohorts.
SAME_COUNTS_NATS = 50.0


def repeated_counts_mistakes(fingerprints: Mapping[str, Fingerprint], lines: Mapping[str, str]) -> list[str]:
    """Samples whose counts are equal beyond chance to those of an earlier one: each a sentence for a UserError.

    lines: what to call each sample's place in the sample sheet.
    """
    first: dict[str, str] = {}
    mistakes = []
    for sample, found in fingerprints.items():
        if found.nats < SAME_COUNTS_NATS:
            continue
        other = first.setdefault(found.digest, sample)
        if other != sample:
            mistakes.append(
                f"{lines[sample]}: sample {sample!r} has the same counts as sample {other!r} ({lines[other]}) at all"
                f" {found.loci} loci: the same reads in another file? expected each read in one sample"
            )
    return mistakes


# ------------------------------------------------------------------------------------------------------------ positions

# METHOD: what neighbours of the CpGs would meet by chance is measured at displacements of 3 to 31 bp. CpGs of one
# genome meet 10 to 100 times as often as that, those of another build no more often.
DISPLACEMENTS = tuple(range(3, 32))
SAME_FOLD = 5.0
OTHER_FOLD = 3.0
MIN_BY_CHANCE = 5.0  # below, nothing is said of the build
# No two CpGs start one base apart, but of a CpG of unknown strand either base may be listed; so many by chance on one
# side, all of them, have a probability of 2^-5 in a file of five loci, and of 2^-1000 in a genome.
MIN_SHIFTED = 5
MOST_UNSHIFTED = 0.2
MIN_MEETING = 3

Relation = Literal["same", "before", "after", "build", "doubtful", "unknown"]


class Meeting(NamedTuple):
    """How a sample's CpGs lie to those of others, among `rows` that could meet."""

    rows: int
    same: int  # at the same base as one of the others
    before: int  # one base before one of theirs
    after: int  # one base after
    by_chance: float  # expected of unrelated positions, at any displacement

    @property
    def relation(self) -> Relation:
        """What that says of the two."""
        shifted = max(self.before, self.after)
        floor = max(MIN_SHIFTED, SAME_FOLD * self.by_chance)
        if shifted >= floor and self.same + min(self.before, self.after) <= MOST_UNSHIFTED * shifted:
            return "before" if self.before > self.after else "after"
        if self.same >= max(MIN_MEETING, SAME_FOLD * self.by_chance) or self.same > 0.5 * self.rows:
            return "same"
        if self.by_chance < MIN_BY_CHANCE:
            return "unknown"
        return "build" if self.same <= OTHER_FOLD * self.by_chance else "doubtful"


def meeting(sample: Positions, others: Positions) -> Meeting:
    """How the CpGs of a sample lie to those of others, in the windows that both have whole."""
    bound = min(sample.bound, others.bound)
    ours, theirs = sample.below(bound).keys, others.below(bound).keys
    before, same, after = (_met(ours, theirs, displacement) for displacement in (1, 0, -1))
    chance = [_met(ours, theirs, sign * displacement) for displacement in DISPLACEMENTS for sign in (1, -1)]
    return Meeting(len(ours), round(same), round(before), round(after), float(np.mean(chance)))


def _met(ours: np.ndarray, theirs: np.ndarray, displacement: int) -> float:
    """How many of our positions, moved by a displacement, are among theirs; as if windows had no ends."""
    if not len(ours) or not len(theirs):
        return 0.0
    moved = (ours.astype(np.int64) + displacement).astype(np.uint64)
    inside = (moved >> np.uint64(6)) == (ours >> np.uint64(6))
    moved = moved[inside]
    at = np.minimum(np.searchsorted(theirs, moved), len(theirs) - 1)
    return float(np.count_nonzero(theirs[at] == moved)) * WINDOW_BP / (WINDOW_BP - abs(displacement))


@dataclass
class PositionGroup:
    """Samples whose CpGs are at the same bases; `positions` are those of all of them."""

    samples: list[str]
    positions: Positions
    doubtful: dict[str, Meeting] = field(default_factory=dict)


class Placed(NamedTuple):
    """A sample that is not at the bases of the largest group of samples."""

    sample: str
    relation: Relation
    meeting: Meeting


def position_groups(fingerprints: Mapping[str, Fingerprint]) -> list[PositionGroup]:
    """Samples by the bases that their CpGs are at, the largest group first; within it the sample with most CpGs first.

    A sample of which nothing can be said goes with the first group.
    """
    groups: list[PositionGroup] = []
    order = sorted(fingerprints, key=lambda name: -len(fingerprints[name].positions.keys))
    for sample in order:
        positions = fingerprints[sample].positions
        found = [(group, meeting(positions, group.positions)) for group in groups]
        home = next((group for group, one in found if one.relation == "same"), None)
        if home is None and not any(one.relation in ("before", "after", "build") for _, one in found):
            home = groups[0] if groups else None
            if home is not None and found[0][1].relation == "doubtful":
                home.doubtful[sample] = found[0][1]
        if home is None:
            groups.append(PositionGroup([sample], positions))
        else:
            home.samples.append(sample)
            home.positions = _union(home.positions, positions)
    place = {sample: number for number, sample in enumerate(fingerprints)}
    for group in groups:
        group.samples.sort(key=place.__getitem__)
    return sorted(groups, key=lambda group: -len(group.samples))


def _union(first: Positions, second: Positions) -> Positions:
    bound = min(first.bound, second.bound)
    return Positions(np.union1d(first.below(bound).keys, second.below(bound).keys), bound)


def misplaced(fingerprints: Mapping[str, Fingerprint]) -> tuple[list[str], list[Placed]]:
    """The samples of the largest group, and those that are elsewhere or may be."""
    if not fingerprints:
        return [], []
    first, *others = position_groups(fingerprints)
    placed = [
        Placed(sample, relation, one)
        for group in others
        for sample in group.samples
        for one in [meeting(fingerprints[sample].positions, first.positions)]
        for relation in [one.relation]
        if relation != "same"
    ]
    doubtful = [Placed(sample, "doubtful", one) for sample, one in first.doubtful.items()]
    return first.samples, [*placed, *doubtful]


def position_mistakes(usual: Sequence[str], placed: Sequence[Placed], lines: Mapping[str, str]) -> Iterator[str]:
    """Samples one base off, or of another build: each a sentence for a UserError."""
    others = quoted(usual)
    for sample, relation, found in placed:
        if relation in ("before", "after"):
            number = max(found.before, found.after)
            cause = "zero-based positions read as one-based" if relation == "before" else "one-based read as zero-based"
            total = number + found.same + min(found.before, found.after)
            yield (
                f"{lines[sample]}: the positions of sample {sample!r} are one base {relation} those of {others} at"
                f" {number} of {total} CpGs: {cause}? expected the same bases in all samples, so name the file's own"
                " `format`, or write its positions anew"
            )
        elif relation == "build":
            yield (
                f"{lines[sample]}: the CpGs of sample {sample!r} hardly meet those of {others}: {found.same} of"
                f" {found.rows} looked at, where unrelated positions would meet at {found.by_chance:.0f}: another build"
                " of the genome? expected one build in all samples"
            )


def check_files(sheet: SampleSheet) -> None:
    """Every file of counts exists, and is one sample's; raises UserError with a line for each that is not."""
    mistakes = Mistakes()
    for sample, path, line in zip(sheet.samples, sheet.paths, sheet.lines, strict=True):
        if not Path(path).is_file():
            # Absolute: a path of the sheet is from the sheet's folder or from the current one.
            place, path = f"{sheet.path} line {line}", os.path.abspath(path)
            mistakes.add(f"{place}: the file {path!r} of sample {sample!r} does not exist")
    for mistake in (*repeated_file_mistakes(sheet), *haplotype_file_mistakes(sheet)):
        mistakes.add(mistake)
    mistakes.require_none()
