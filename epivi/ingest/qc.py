"""The quality record of one ingested file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from epivi.ingest.alignments import FLAGS
from epivi.ingest.contig_loci import WELL_COVERED_READS, ContigLoci, Pairing
from epivi.ingest.controls import (
    AUTOSOMES,
    METHYLATED,
    SEX_LINKED,
    UNMETHYLATED,
    ContigSums,
    ReadSums,
    read_sums,
    read_sums_by,
)
from epivi.ingest.layout import CG, Block, Counts, IngestSettings, has_loci
from epivi.tables.columns import CONTEXTS

# Lower edges of the coverage histogram; the last bin is open.
COVERAGE_EDGES = (1, 2, 3, 5, 10, 15, 20, 30, 50, 100, 200, 500)
# Coverage is counted exactly up to this many reads, and as this many above.
COVERAGE_COUNTED = 1 << 16
DROP_REASONS = (
    "control",
    "contig",
    "other_modification",
    "no_position",
    "reference_mismatch",
    "mutated",
    "context",
    "uncovered",
    "below_min_coverage",
    "above_max_coverage",
)
# How reasons begin for which loci.calls.bad_reads leaves reads out.
BAD_READ = "bad_"
# METHOD: up to this share of the loci may be beside a neighbour that cannot be there, as sites of variants are, where a
# file goes by its reads; among cytosines of all contexts a quarter is.
IMPOSSIBLE_SHARE, IMPOSSIBLE_LEAST = 0.01, 10
# METHOD: more CpGs on one strand alone than this are named; among well covered CpGs chance leaves 3 %, among cytosines
# of all contexts most are. A library that reads one strand is named too.
ONE_STRANDED_SHARE, ONE_STRANDED_LEAST = 0.2, 20
# METHOD: variants and errors of reads leave a few percent of the calls on a base that the reference lacks, also between
# subspecies; another genome, another build or a masked one leave much more.
OTHER_GENOME_SHARE, OTHER_GENOME_LEAST = 0.1, 20
# METHOD: callers tag all reads, some but those without a base to call; a file with more reads than these without the
# tags was put together from runs with and without calls, or lost tags on the way.
UNTAGGED_SHARE = 0.1
# Reasons for which a read is left out before its tags are looked at.
BEFORE_TAGS = (*FLAGS, "bad_sequence", "contig")
# METHOD: where nearly no base of a file without strands has a neighbour that could be its partner, the file has a row
# for each CpG with its strands merged, which is common. Among all cytosines a quarter have such a neighbour.
ONE_ROW_A_CPG = 0.99


@dataclass(frozen=True)
class QcRecord:
    """What was read and what became of it. rows_read == rows_kept + sum(dropped.values()), always.

    format_given: the format was named by the user, not recognised; layout: how the columns were understood;
    is_extrapolated: the counts are derived from a percentage or a probability and the coverage, no reads were counted.
    dropped: rows by reason, each row once: control (of qc.conversion, never a locus), contig (excluded),
    other_modification, no_position (a probe that the manifest of an array lacks), reference_mismatch (of a text file:
    on a base of loci.reference that cannot carry the modification), mutated (a site that dnmtools marks, or the other C
    of its CpG), context (not asked for), uncovered (no reads), below_min_coverage and above_max_coverage (rows of loci
    outside the limits once strands are merged).
    duplicates_merged, strands_merged: kept rows added to another row, so that
    loci_written == rows_kept - duplicates_merged - strands_merged.
    strand_unknown: CpGs written with strand "." at their own position, for the join over samples to place.
    is_sorted: contigs stood together and positions rose within each.
    percent_checked, percent_contradicting: covered rows with a percent, and those whose percent is not the counts'.
    context_is_assumed: the file does not say the context of its rows, nor does loci.reference; pairing: Pairing of the
    loci (epivi.ingest.contig_loci), by name. last_line_is_open: the end of the last line is missing.
    coverage: reads at the loci written: mean, quantiles, histogram as [{from, to, loci}], `to` inclusive or null.
    methylation: of each context: loci, reads, methylated_reads, level (of all reads), mean_locus_level.
    rows_by_contig: rows counting the modification, contigs as named in the file; loci_by_contig: loci written.
    Of a BAM file a row is a base with calls on one strand; before there are rows, reads_read and calls_read (on reads
    that count) are left out by the reasons of reads_dropped (unmapped, secondary, supplementary, qc_fail, duplicate,
    contig, no_tag, other_haplotype, unphased, unreadable_phase (HP or PS is no whole number), no_sequence,
    hard_clipped, other_modification, combined_code (calls of C alone, where m or h is asked for)) and calls_dropped
    (other_base: not the base that is modified; not_aligned, reference_mismatch, partly_called: 5mC or 5hmC was not
    looked at, where both are asked for; ambiguous, mate_overlap, unknown_context, other_phase_set: another phase set
    has more reads at the locus; context_disagrees). The others are the reads of the rows: calls_read -
    sum(calls_dropped.values()) == the sum of `total` over rows_read. Of a text file all four are empty.
    With loci.calls.bad_reads: skip, reads_dropped has the reads that cannot be counted too: bad_sequence, bad_CIGAR,
    bad_name, and bad_ with the name of a tag.
    phase_sets: phase sets (contig and tag PS) of the reads, where the sample is one haplotype. reads_by_sample: where
    the header of a BAM file has read groups (@RG) of several samples (SM), the reads that count of each.
    sums: ReadSums of the contigs of `unmethylated` and `methylated` controls and of the sex contigs `x` and `y`, as far
    as the configuration asks for them; contig_sums: those of all other loci (`autosomes`, before limits of coverage)
    and of contexts that are `unmethylated`, by contig, since the contigs of the cohort are chosen when it is assembled.
    """

    sample: str
    path: str
    format: str
    format_given: bool
    layout: str
    is_extrapolated: bool
    rows_read: int
    rows_kept: int
    loci_written: int
    dropped: dict[str, int]
    duplicates_merged: int
    strands_merged: int
    strand_unknown: int
    is_sorted: bool
    percent_checked: int
    percent_contradicting: int
    context_is_assumed: bool
    pairing: dict[str, int]
    last_line_is_open: bool
    coverage: dict[str, Any]
    methylation: dict[str, dict[str, float]]
    rows_by_contig: dict[str, int]
    loci_by_contig: dict[str, int]
    reads_read: int
    reads_dropped: dict[str, int]
    calls_read: int
    calls_dropped: dict[str, int]
    phase_sets: int
    reads_by_sample: dict[str, int]
    sums: dict[str, ReadSums]
    contig_sums: ContigSums
    warnings: tuple[str, ...]


@dataclass
class QcTally:
    """Running sums of a QcRecord while a file is read (`add_block`) and its contigs are written (`add_contig`)."""

    rows_read: int = 0
    layout: str = ""
    is_extrapolated: bool = False
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DROP_REASONS, 0))
    duplicates_merged: int = 0
    strands_merged: int = 0
    strand_unknown: int = 0
    is_sorted: bool = True
    percent_checked: int = 0
    percent_contradicting: int = 0
    first_contradicting: int | None = None  # row
    contradicting_at: str = ""  # its line, in words
    context_is_assumed: bool = False
    pairing: Pairing = field(default_factory=lambda: Pairing(0, 0))
    reference_checked: int = 0
    last_line_is_open: bool = False
    rows_by_contig: dict[str, int] = field(default_factory=dict)
    loci_by_contig: dict[str, int] = field(default_factory=dict)
    reads_read: int = 0
    reads_dropped: Counter[str] = field(default_factory=Counter)
    calls_read: int = 0
    calls_dropped: Counter[str] = field(default_factory=Counter)
    phase_sets: set[tuple[str, str]] = field(default_factory=set)  # contig, tag PS
    reads_by_sample: Counter[str] = field(default_factory=Counter)
    sums: dict[str, ReadSums] = field(default_factory=dict)
    contig_sums: ContigSums = field(default_factory=dict)
    _loci_by_coverage: np.ndarray = field(default_factory=lambda: np.zeros(COVERAGE_COUNTED + 1, dtype=np.int64))
    _sums: np.ndarray = field(default_factory=lambda: np.zeros((len(CONTEXTS), 4)))  # loci, reads, methylated, levels

    def add_block(self, block: Block) -> None:
        """Count a block of rows as the reader gave it."""
        self.rows_read += len(block.counts.pos0) + sum(block.dropped.values())
        self.layout = block.layout
        self.is_extrapolated |= block.is_extrapolated
        self.percent_checked += block.percent_checked
        self.percent_contradicting += block.percent_contradicting
        if self.first_contradicting is None:
            self.first_contradicting = block.first_contradicting
        self.context_is_assumed |= block.context_is_assumed
        self.reference_checked += block.reference_checked
        self.drop(block.dropped)
        if block.alignments:
            self.reads_read += block.alignments.reads
            self.reads_dropped.update(block.alignments.reads_dropped)
            self.calls_read += block.alignments.calls
            self.calls_dropped.update(block.alignments.calls_dropped)
            self.phase_sets |= block.alignments.phase_sets
            self.reads_by_sample.update(block.alignments.reads_by_sample)
        rows = np.bincount(block.contig.codes, minlength=len(block.contig.values))
        for contig, count in zip(block.contig.values, rows.tolist(), strict=True):
            if count:
                self.rows_by_contig[contig] = self.rows_by_contig.get(contig, 0) + count

    def add_sums(self, block: Block, settings: IngestSettings) -> None:
        """Add the block's reads to the sums that quality control asks for.

        METHOD: an unmethylated contig counts in the contexts of the loci, since errors of calls differ between
        contexts; a methylated one at CpGs only, which are what M.SssI methylates.
        """
        if not any(settings.qc):
            return
        contig, counts = block.contig, block.counts
        in_contexts = np.array([name in settings.contexts for name in CONTEXTS])[counts.context]
        is_summed = {METHYLATED: counts.context == CG}
        parts = [settings.qc.parts(label) for label in contig.values]
        for name in (UNMETHYLATED, METHYLATED, *SEX_LINKED):
            in_part = [name in of_contig for of_contig in parts]
            if any(in_part):
                self._add_to_sum(name, counts, contig.lookup(in_part, dtype=bool) & is_summed.get(name, in_contexts))
        is_genome = contig.lookup([has_loci(label, settings) for label in contig.values], dtype=bool)
        is_autosome = contig.lookup([AUTOSOMES in of_contig for of_contig in parts], dtype=bool)
        self._add_by_contig(AUTOSOMES, block, is_genome & is_autosome & in_contexts)
        if settings.qc.unmethylated_contexts:
            wanted = np.array([name in settings.qc.unmethylated_contexts for name in CONTEXTS])[counts.context]
            self._add_by_contig(UNMETHYLATED, block, wanted & is_genome)

    def _add_to_sum(self, name: str, counts: Counts, rows: np.ndarray) -> None:
        self.sums[name] = self.sums.get(name, ReadSums()) + read_sums(counts.meth[rows], counts.total[rows])

    def _add_by_contig(self, name: str, block: Block, rows: np.ndarray) -> None:
        own = self.contig_sums.setdefault(name, {})
        codes, counts = block.contig.codes[rows], block.counts
        for contig, sums in read_sums_by(codes, block.contig.values, counts.meth[rows], counts.total[rows]).items():
            own[contig] = own.get(contig, ReadSums()) + sums

    def drop(self, dropped: dict[str, int]) -> None:
        """Add rows left out, by reason."""
        for reason, rows in dropped.items():
            self.dropped[reason] += rows

    def add_contig(self, contig: str, result: ContigLoci, *, is_contiguous: bool) -> None:
        """Count a finished contig."""
        self.drop(result.dropped)
        self.duplicates_merged += result.duplicates_merged
        self.strands_merged += result.strands_merged
        self.strand_unknown += result.strand_unknown
        self.pairing = Pairing(*map(sum, zip(self.pairing, result.pairing, strict=True)))
        self.is_sorted &= result.was_sorted and is_contiguous
        if len(result.loci.pos0):
            self.loci_by_contig[contig] = len(result.loci.pos0)
            self._add_loci(result.loci)

    @property
    def is_impossible(self) -> bool:
        """Whether more loci than variants explain cannot be beside their neighbours."""
        return self.pairing.impossible >= max(IMPOSSIBLE_LEAST, IMPOSSIBLE_SHARE * self.pairing.loci)

    @property
    def calls_on_reference(self) -> int:
        """Calls of a BAM file whose base was looked up in the reference, if there is one."""
        return self.calls_read - self.calls_dropped["other_base"] - self.calls_dropped["not_aligned"]

    def _add_loci(self, loci: Counts) -> None:
        reads = np.minimum(loci.total, COVERAGE_COUNTED)
        loci_by_coverage = np.bincount(reads)  # as long as the largest: contigs may be many and small
        self._loci_by_coverage[: len(loci_by_coverage)] += loci_by_coverage
        weights = (None, loci.total, loci.meth, loci.meth / loci.total)
        for column, weight in enumerate(weights):
            self._sums[:, column] += np.bincount(loci.context, weights=weight, minlength=len(CONTEXTS))

    def record(self, *, sample: str, path: str, format_name: str, format_given: bool) -> QcRecord:
        """The finished record."""
        rows_kept = self.rows_read - sum(self.dropped.values())
        return QcRecord(
            sample=sample,
            path=path,
            format=format_name,
            format_given=format_given,
            layout=self.layout,
            is_extrapolated=self.is_extrapolated,
            rows_read=self.rows_read,
            rows_kept=rows_kept,
            loci_written=sum(self.loci_by_contig.values()),
            dropped=dict(self.dropped),
            duplicates_merged=self.duplicates_merged,
            strands_merged=self.strands_merged,
            strand_unknown=self.strand_unknown,
            is_sorted=self.is_sorted,
            percent_checked=self.percent_checked,
            percent_contradicting=self.percent_contradicting,
            context_is_assumed=self.context_is_assumed,
            pairing=self.pairing._asdict(),
            last_line_is_open=self.last_line_is_open,
            coverage=self._coverage(),
            methylation=self._methylation(),
            rows_by_contig=dict(self.rows_by_contig),
            loci_by_contig=dict(self.loci_by_contig),
            reads_read=self.reads_read,
            reads_dropped=dict(+self.reads_dropped),
            calls_read=self.calls_read,
            calls_dropped=dict(+self.calls_dropped),
            phase_sets=len(self.phase_sets),
            reads_by_sample=dict(self.reads_by_sample),
            sums=dict(self.sums),
            contig_sums=self.contig_sums,
            warnings=(*self._warnings(rows_kept), *self._doubts(), *self._doubtful_reads()),
        )

    def _coverage(self) -> dict[str, Any]:
        counts = self._loci_by_coverage
        n_loci = int(counts.sum())
        if not n_loci:
            return {"mean": None, "min": None, "q05": None, "median": None, "q95": None, "max": None, "histogram": []}
        cumulative = np.cumsum(counts)

        def quantile(fraction: float) -> int:
            return int(np.searchsorted(cumulative, max(1, np.ceil(fraction * n_loci))))

        uppers = [*(edge - 1 for edge in COVERAGE_EDGES[1:]), None]
        return {
            "mean": float(self._sums[:, 1].sum() / n_loci),
            "min": quantile(0.0),
            "q05": quantile(0.05),
            "median": quantile(0.5),
            "q95": quantile(0.95),
            "max": quantile(1.0),
            "histogram": [
                {"from": lower, "to": upper, "loci": int(counts[lower : None if upper is None else upper + 1].sum())}
                for lower, upper in zip(COVERAGE_EDGES, uppers, strict=True)
            ],
        }

    def _methylation(self) -> dict[str, dict[str, float]]:
        return {
            context: {
                "loci": int(n_loci),
                "reads": int(reads),
                "methylated_reads": int(methylated),
                "level": methylated / reads,
                "mean_locus_level": levels / n_loci,
            }
            for context, (n_loci, reads, methylated, levels) in zip(CONTEXTS, self._sums.tolist(), strict=True)
            if n_loci
        }

    def _warnings(self, rows_kept: int) -> tuple[str, ...]:
        reasons = _listed(self.dropped)
        n_phased = len({contig for contig, _ in self.phase_sets})
        bad = {reason: reads for reason, reads in self.reads_dropped.items() if reason.startswith(BAD_READ)}
        n_bad = sum(bad.values())
        candidates = (
            (
                self.rows_read > 0 and rows_kept == 0,
                f"all {self.rows_read} rows were dropped ({reasons}); the sample has no loci",
            ),
            (
                self.rows_read == 0,
                f"no call of {self.reads_read} reads counts (reads left out: {_listed(self.reads_dropped) or 'none'};"
                f" calls left out: {_listed(self.calls_dropped) or 'none'}); the sample has no loci",
            ),
            (
                self.is_extrapolated,
                "the counts are extrapolated from a percentage or a probability, reads were not counted",
            ),
            (
                len(self.phase_sets) > n_phased,
                f"the haplotype's reads are of {len(self.phase_sets)} phase sets on {n_phased} contigs; its number"
                " means the same chromosome only within one",
            ),
            (
                self.reads_dropped["unreadable_phase"] > 0,
                f"{self.reads_dropped['unreadable_phase']} reads have a tag HP or PS that is no whole number; they are"
                " of no haplotype, and left out",
            ),
            (
                self.reads_dropped["combined_code"] > 0,
                f"{self.reads_dropped['combined_code']} reads call 5mC and 5hmC together (code C) and are left out;"
                " loci.modification mh counts them",
            ),
            (
                n_bad > 0,
                f"{n_bad} of {self.reads_read} reads ({100 * n_bad / max(1, self.reads_read):.3g} %) cannot be counted"
                f" and are left out ({_listed(bad)})",
            ),
            (not self.is_sorted, "the file was not sorted by contig and position"),
            (
                self.percent_contradicting > 0,
                f"the percent contradicts the counts in {self.percent_contradicting} of {self.percent_checked} covered"
                f" rows{self.contradicting_at}; the counts are used",
            ),
            (
                self.duplicates_merged > 0,
                f"{self.duplicates_merged} rows repeat a position and strand; their counts are summed",
            ),
        )
        return tuple(text for holds, text in candidates if holds)

    def _doubts(self) -> tuple[str, ...]:
        """What makes it doubtful that the rows are what they are taken for."""
        pairing, missed = self.pairing, self.dropped["reference_mismatch"]
        one_stranded = pairing.one_stranded / max(1, pairing.well_covered)
        candidates = (
            (
                self.last_line_is_open,
                "the last line has no end (a missing newline): the file may be cut off, and its last number with it",
            ),
            (
                missed > 0,
                f"{missed} of {self.reference_checked} rows are on a base of loci.reference that cannot be methylated;"
                " they are left out",
            ),
            (
                self.is_impossible,
                f"{pairing.impossible} of {pairing.loci} loci cannot be beside their neighbour, if their contexts and"
                " strands are right",
            ),
            (
                self.context_is_assumed
                and self.strand_unknown < ONE_ROW_A_CPG * pairing.loci
                and pairing.well_covered >= ONE_STRANDED_LEAST
                and one_stranded > ONE_STRANDED_SHARE,
                f"the context CG is assumed, and of {pairing.well_covered} loci with {WELL_COVERED_READS} reads or more"
                f" {100 * one_stranded:.0f} % lack their other strand: other cytosines than CpGs, or a library that"
                " reads one strand; set loci.reference to find out",
            ),
            (
                self.context_is_assumed and pairing.loci > 0 and not self._sums[CG, 0],
                "the context is assumed, and nothing in the file shows whether it is right; loci.reference would",
            ),
        )
        return tuple(text for holds, text in candidates if holds)

    def _doubtful_reads(self) -> tuple[str, ...]:
        """What makes it doubtful that a BAM file has the reads of one sample, with their calls, on this genome."""
        missed, checked = self.calls_dropped["reference_mismatch"], self.calls_on_reference
        untagged = self.reads_dropped["no_tag"]
        looked_at = self.reads_read - sum(self.reads_dropped[reason] for reason in BEFORE_TAGS)
        candidates = (
            (
                missed >= OTHER_GENOME_LEAST and missed > OTHER_GENOME_SHARE * checked,
                f"{missed} of {checked} calls ({100 * missed / max(1, checked):.3g} %) are on a base that"
                " loci.reference lacks, more than variants explain, and are left out: is it the genome that the reads"
                " were aligned to?",
            ),
            (
                untagged > UNTAGGED_SHARE * looked_at,
                f"{untagged} of {looked_at} aligned reads ({100 * untagged / max(1, looked_at):.3g} %) have no calls in"
                " their tags and are left out: were they called without modified bases, or have they lost their tags?",
            ),
            (
                len(self.reads_by_sample) > 1,
                f"the reads are of {len(self.reads_by_sample)} samples by their read groups"
                f" ({_listed(dict(sorted(self.reads_by_sample.items())))}), and all count for this one: are they of one"
                " individual?",
            ),
        )
        return tuple(text for holds, text in candidates if holds)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items() if count)
