"""Quality of the samples as the data show it: what stands out is a warning with its number, and nothing is dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from epivi.ingest.controls import AUTOSOMES, ReadSums
from epivi.loci.contig_names import LEAST_SHARED, SampleContigs, contig_mistakes, missing_contigs, quoted
from epivi.quality.conversion import MAX_RATE, MIN_READS, SampleErrors
from epivi.quality.relatedness import PairComparison, Swap
from epivi.quality.same_reads import SameReads

# METHOD: coverage this many times above or below the median stands out. Samples of one sequencing run are within a
# factor of two, haplotypes have half.
COVERAGE_FOLD = 4.0
# METHOD: a level of methylation stands out beyond six times the SD that the median absolute deviation implies, and
# beyond 0.05; samples whose level were Gaussian would be named once in 5e8.
METHYLATION_SDS = 6.0
METHYLATION_DIFFERENCE = 0.05
# METHOD: sexes differ by a factor of two in the coverage of X; the sex seen is that on whose side of the factor's
# square root a sample lies. Coverage of X against the autosomes varies by some percent between samples of a kind.
MIN_SEX_READS = 1000
MIN_SEXED_SAMPLES = 3
HALF = 0.5


class Finding(NamedTuple):
    """Something about one or two samples that a user should look at.

    value: the number behind it; limit: what it was compared with; text: both in a sentence.
    """

    check: str
    sample: str
    other: str  # the second sample, "" where there is none
    value: float
    limit: float
    text: str


def error_findings(errors: Mapping[str, Sequence[SampleErrors]], *, expected: Mapping[str, bool]) -> Iterator[Finding]:
    """Error rates that cannot be used, or that contradict the sample sheet.

    expected: by column, whether the configuration names controls for it.
    """
    for column, rows in errors.items():
        for row in rows:
            if not expected[column]:
                continue
            estimated = row.estimated
            if estimated is None or estimated.reads < MIN_READS:
                reads = 0 if estimated is None else estimated.reads
                text = f"{row.sample}: controls have {reads} reads, fewer than {MIN_READS}: {column} is {row.used:g}"
                yield Finding("few_control_reads", row.sample, "", reads, MIN_READS, text)
            elif estimated.rate > MAX_RATE:
                text = (
                    f"{row.sample}: {column} of the controls is {estimated.rate:.3g}, above {MAX_RATE:g}: are they what"
                    f" qc.conversion says? {row.used:g} is used"
                )
                yield Finding("control_rate", row.sample, "", estimated.rate, MAX_RATE, text)
            elif row.disagrees:
                text = (
                    f"{row.sample}: {column} is {row.given:g} in the sample sheet, which is used, but"
                    f" {estimated.rate:.3g} ({estimated.lower:.3g} to {estimated.upper:.3g}) by the controls"
                )
                yield Finding("error_rate", row.sample, "", estimated.rate, row.used, text)


def file_findings(warnings: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """What was doubtful when the file of a sample was read."""
    nan = float("nan")
    for sample, texts in warnings.items():
        for text in texts:
            yield Finding("file", sample, "", nan, nan, f"{sample}: {text}")


class SampleLevels(NamedTuple):
    """Coverage and methylation of S samples at the same loci, [S]."""

    coverage: NDArray[np.float64]  # reads a locus, loci without reads included
    covered: NDArray[np.float64]  # share of the loci with reads
    methylation: NDArray[np.float64]  # mean level of the covered loci; nan without any


class LevelSums(NamedTuple):
    """Running sums of SampleLevels over blocks of loci."""

    loci: int
    reads: NDArray[np.float64]  # [S]
    covered: NDArray[np.float64]  # [S], loci with reads
    methylation: NDArray[np.float64]  # [S], sum of the levels of those

    @classmethod
    def zero(cls, samples: int) -> LevelSums:
        return cls(0, *np.zeros((3, samples)))

    def plus(self, meth: NDArray, total: NDArray) -> LevelSums:
        """The sums with a block [L, S] added."""
        level = meth / np.maximum(total, 1)
        added = (total.sum(0, dtype=np.float64), (total > 0).sum(0), np.where(total > 0, level, 0.0).sum(0))
        return LevelSums(self.loci + len(total), *(one + more for one, more in zip(self[1:], added, strict=True)))

    def levels(self) -> SampleLevels:
        loci = max(self.loci, 1)
        nan = np.full(len(self.reads), np.nan)
        mean = np.divide(self.methylation, self.covered, out=nan, where=self.covered > 0)
        return SampleLevels(self.reads / loci, self.covered / loci, mean)


class SexCoverage(NamedTuple):
    """Coverage of the sex contigs against the autosomes, in units of two copies of X, and of the one of Y; nan where
    unknown, [S]."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    x_methylation: NDArray[np.float64]


def outlier_findings(samples: Sequence[str], levels: SampleLevels) -> Iterator[Finding]:
    """Samples whose coverage or methylation is unlike the others'; nothing in cohorts of fewer than three."""
    if len(samples) < 3:
        return
    usual = float(np.median(levels.coverage))
    for sample, coverage in zip(samples, levels.coverage.tolist(), strict=True):
        if not usual / COVERAGE_FOLD <= coverage <= usual * COVERAGE_FOLD:
            text = (
                f"{sample}: {coverage:.3g} reads a locus, more than {COVERAGE_FOLD:g}-fold from the median {usual:.3g}"
            )
            yield Finding("coverage", sample, "", coverage, usual, text)
    median = float(np.nanmedian(levels.methylation))
    deviation = np.abs(levels.methylation - median)
    limit = max(METHYLATION_DIFFERENCE, METHYLATION_SDS * 1.4826 * float(np.nanmedian(deviation)))
    for sample, level, away in zip(samples, levels.methylation.tolist(), deviation.tolist(), strict=True):
        if away > limit:
            text = f"{sample}: methylation {level:.3f}, further than {limit:.2g} from the median {median:.3f}"
            yield Finding("methylation", sample, "", level, median, text)


def sex_coverage(
    samples: Sequence[str], sexes: Sequence[str], sums: Mapping[str, Mapping[str, Sequence[Any]]], two_x: str
) -> SexCoverage:
    """Relative coverage of X and Y of samples whose declared sexes are `sexes`: female, male or unknown.

    # METHOD: the unit is the median over the samples of declared sex, each as if declared rightly, so that it holds
    # while most are; where fewer than three are declared there is no unit.
    """
    ratio = {name: np.array([_ratio(sums.get(sample, {}), name) for sample in samples]) for name in ("x", "y")}
    is_declared = np.array([sex != "unknown" for sex in sexes])
    has_two_x = np.array([sex == two_x for sex in sexes])
    copies = np.where(has_two_x, 1.0, HALF)
    x = ratio["x"] / _median(ratio["x"][is_declared] / copies[is_declared])
    y = ratio["y"] / _median(ratio["y"][is_declared & ~has_two_x])
    level = np.array([_level(sums.get(sample, {})) for sample in samples])
    return SexCoverage(x, y, level)


def sex_findings(samples: Sequence[str], sexes: Sequence[str], coverage: SexCoverage, two_x: str) -> Iterator[Finding]:
    """Samples whose coverage of X, or of Y, is nearer to that of the other sex than to that of the declared one."""
    for index, (sample, sex) in enumerate(zip(samples, sexes, strict=True)):
        if sex == "unknown":
            continue
        has_two_x = sex == two_x
        x, y = float(coverage.x[index]), float(coverage.y[index])
        if (x < np.sqrt(HALF)) if has_two_x else (x > np.sqrt(HALF)):
            expected = 1.0 if has_two_x else HALF
            text = f"{sample}: declared {sex}, but coverage of X is {x:.2f} of that of two copies, not {expected:g}"
            yield Finding("sex_x", sample, "", x, expected, text)
        if (y > HALF) if has_two_x else (y < HALF):
            expected = 0.0 if has_two_x else 1.0
            text = f"{sample}: declared {sex}, but coverage of Y is {y:.2f} of that of one copy, not {expected:g}"
            yield Finding("sex_y", sample, "", y, expected, text)


def swap_findings(samples: Sequence[str], source: str, swaps: Sequence[Swap]) -> Iterator[Finding]:
    """Samples that fit each other's place in the pedigree better than their own."""
    for swap in swaps:
        first, second = samples[swap.first], samples[swap.second]
        text = (
            f"{first} and {second} look swapped by {source}: relatedness to the others {swap.score:.2f} on a scale from"
            f" -1 (as declared) to 1 (swapped), z = {swap.z:.1f}, above {swap.critical:.1f}"
        )
        yield Finding("swap", first, second, swap.z, swap.critical, text)


def same_reads_findings(samples: Sequence[str], found: Sequence[SameReads]) -> Iterator[Finding]:
    """Samples whose reads seem to be those of another, or some of them."""
    for part, whole, ratio, critical, share in found:
        if ratio == 0:
            text = f"{samples[part]} and {samples[whole]} have equal coverage at all loci looked at: the same reads"
        else:
            text = (
                f"{samples[part]} seems to hold reads of {samples[whole]}, which has {1 / share:.2f} times as many:"
                f" coverage differs by {ratio:.3f} of the variance of separate reads, below {critical:.2f}: a copy, a"
                " part, or one library aligned twice"
            )
        yield Finding("same_reads", samples[part], samples[whole], ratio, critical, text)


def contig_findings(
    contigs: Sequence[SampleContigs], is_looked_at: Callable[[str], bool], doubtful: Sequence[Mapping[str, Any]]
) -> Iterator[Finding]:
    """Samples whose contigs or positions are not those of the others, where `epivi assemble` could not be sure.

    is_looked_at: whether samples may not lack a contig, by its name. doubtful: rows of the table `positions`.
    """
    for mistake in contig_mistakes(contigs):
        yield Finding("contigs", mistake.samples[0], "", mistake.shared, LEAST_SHARED, mistake.text)
    for sample, names, share, own in missing_contigs(contigs, is_looked_at):
        alone = f"; it alone has {quoted(own)}" if own else ""
        text = (
            f"{sample}: no locus on {quoted(names)}, which hold {100 * share:.3g} % of those of the others{alone}: is"
            " the file cut short, or are these contigs named otherwise?"
        )
        yield Finding("missing_contigs", sample, "", share, 0.0, text)
    for row in doubtful:
        text = (
            f"{row['sample']}: {row['same']} of {row['cpgs']} CpGs looked at are CpGs of the other samples, where"
            f" unrelated positions would have {row['by_chance']:.0f} in common: partly another build of the genome?"
        )
        yield Finding("positions", row["sample"], "", row["same"], row["by_chance"], text)


def relatedness_rows(samples: Sequence[str], source: str, comparison: PairComparison) -> Iterator[dict[str, object]]:
    """Rows of the table `relatedness`: every pair of samples."""
    for first, second in combinations(range(len(samples)), 2):
        yield {
            "sample": samples[first],
            "other": samples[second],
            "source": source,
            "expected": float(comparison.expected[first, second]),
            "observed": float(comparison.observed[first, second]),
            "standard_error": float(comparison.standard_error[first, second]),
            "swap_score": float(comparison.score[first, second]),
            "swap_z": float(comparison.z[first, second]),
            "swap_can_be_seen": bool(comparison.can_be_seen[first, second]),
        }


def _ratio(sums: Mapping[str, Sequence[Any]], name: str) -> float:
    """Reads of a sex contig by those of the autosomes; nan without enough of them."""
    autosomes = ReadSums(*sums.get(AUTOSOMES, ()))
    if autosomes.reads < MIN_SEX_READS:
        return float("nan")
    return ReadSums(*sums.get(name, ())).reads / autosomes.reads


def _level(sums: Mapping[str, Sequence[Any]]) -> float:
    x = ReadSums(*sums.get("x", ()))
    return x.methylated / x.reads if x.reads else float("nan")


def _median(values: NDArray[np.float64]) -> float:
    """Median of what is known, nan where that is too few, or 0."""
    known = values[np.isfinite(values)]
    median = float(np.median(known)) if len(known) >= MIN_SEXED_SAMPLES else float("nan")
    return median if median > 0 else float("nan")
