"""Text files that are not read although users bring them, by their first lines: what they are, what to bring."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from epivi.ingest.refused import WITH_READS, Refused

BLANK = re.compile(r"[ \t]")


class _Lines(NamedTuple):
    """The beginning of a text file: lines before the rows, the first rows, and their fields."""

    preamble: Sequence[str]
    rows: Sequence[str]
    fields: Sequence[Sequence[str]]

    def has_names(self, *names: str) -> bool:
        """Whether the first row names these columns, whatever the case."""
        return {name.lower() for name in names} <= {field.strip("\"'#").lower() for field in self.fields[0]}

    def most(self, is_so: Callable[[Sequence[str]], bool]) -> bool:
        """Whether this holds of more than half of the rows."""
        return 2 * sum(map(is_so, self.fields)) > len(self.fields)


def _is_vcf(lines: _Lines) -> bool:
    return any(line.startswith("##fileformat=VCF") for line in lines.preamble)


def _is_wiggle(lines: _Lines) -> bool:
    return lines.rows[0].startswith(("fixedStep", "variableStep"))


def _is_fastq(lines: _Lines) -> bool:
    return len(lines.rows) > 2 and lines.rows[0].startswith("@") and lines.rows[2].startswith("+")


def _is_bedgraph(lines: _Lines) -> bool:
    def is_row(row: Sequence[str]) -> bool:
        return len(row) == 4 and row[1].isdecimal() and row[2].isdecimal() and int(row[1]) < int(row[2])

    return lines.most(lambda row: is_row(row) and re.fullmatch(r"[-+0-9.eE]+|NA|nan|NaN", row[3]) is not None)


def _is_atcgmap(lines: _Lines) -> bool:
    return lines.most(lambda row: len(row) == 16 and len(row[1]) == 1 and all(map(str.isdecimal, row[5:15])))


def _is_xcounts(lines: _Lines) -> bool:
    has_contig = any(len(row) == 1 and not row[0].isdecimal() for row in lines.fields)
    return has_contig and lines.most(lambda row: len(row) == 3 and all(map(str.isdecimal, row)))


def _is_comma_separated(lines: _Lines) -> bool:
    rows = [re.sub(r" *, *", ",", line) for line in lines.rows]
    return len({row.count(",") for row in rows}) == 1 and rows[0].count(",") >= 3 and not any(map(BLANK.search, rows))


AS_TABLE = "as a table with the header chr, pos, N, X (format dss)"

REFUSED_LINES: dict[str, tuple[Callable[[_Lines], bool], Refused]] = {
    "vcf": (_is_vcf, Refused("a VCF file, variants", "counts of methylation; of biscuit, what vcf2bed writes")),
    "wiggle": (_is_wiggle, Refused("a wiggle file, levels without reads", WITH_READS)),
    "fasta": (
        lambda lines: lines.rows[0].startswith(">"),
        Refused("a FASTA file", "counts, or a BAM file of aligned reads with calls"),
    ),
    "fastq": (_is_fastq, Refused("a FASTQ file", "counts, or a BAM file of aligned reads with calls")),
    "web page": (
        lambda lines: lines.rows[0].lstrip().lower().startswith(("<!doctype", "<html", "<?xml")),
        Refused("a web page", "the file itself: the download went wrong"),
    ),
    "bedgraph": (
        _is_bedgraph,
        Refused(
            "a bedGraph, one value a row: a level without its reads, or reads without a level",
            "rows with both: the .cov of Bismark, MethylDackel extract without --fraction, --counts and --logit, or"
            " modkit pileup without --bedgraph",
        ),
    ),
    "atcgmap": (_is_atcgmap, Refused("an ATCGmap of BS-Seeker2", "its CGmap: cgmaptools convert atcgmap2cgmap")),
    "xcounts": (_is_xcounts, Refused("an xcounts file of dnmtools", "its counts: dnmtools unxcounts")),
    "methratio": (
        lambda lines: lines.has_names("chr", "pos", "C_count", "CT_count"),
        Refused("a methratio table of BSMAP", f"its columns chr, pos, CT_count and C_count {AS_TABLE}"),
    ),
    "methylkit object": (
        lambda lines: lines.has_names("chr", "start", "coverage", "numCs", "numTs"),
        Refused("a table of a methylKit object", f"its columns chr, start, coverage and numCs {AS_TABLE}"),
    ),
    "nanopolish calls": (
        lambda lines: lines.has_names("read_name", "log_lik_ratio"),
        Refused(
            "calls of single reads by Nanopolish",
            f"their counts: calculate_methylation_frequency.py --split-groups, and of that chromosome, start + 1,"
            f" called_sites and called_sites_methylated {AS_TABLE}",
        ),
    ),
    "nanopolish frequencies": (
        lambda lines: lines.has_names("start", "called_sites", "called_sites_methylated"),
        Refused(
            "a table of frequencies by Nanopolish or f5c",
            f"its chromosome, start + 1, called_sites and called_sites_methylated, groups split, {AS_TABLE}",
        ),
    ),
    "commas": (_is_comma_separated, Refused("a table separated by commas", "one separated by tabs")),
}


def refused_lines(preamble: Sequence[str], rows: Sequence[str]) -> Refused | None:
    """What a text file is, from the lines before its rows and the first of the rows; None if it may be read."""
    lines = _Lines(preamble, rows, [row.split() for row in rows])
    return next((refused for is_it, refused in REFUSED_LINES.values() if is_it(lines)), None)
