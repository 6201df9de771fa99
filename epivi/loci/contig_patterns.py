"""Which contigs `loci.contigs` keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple


class ContigPatterns(NamedTuple):
    """Shell-style patterns of contig names: one of `include` must match, and none of `exclude`."""

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def keeps(self, contig: str) -> bool:
        return matches_any(contig, self.include) and not matches_any(contig, self.exclude)


def contig_patterns(loci: Mapping[str, Any]) -> ContigPatterns:
    """From the `loci` section of the resolved configuration."""
    return ContigPatterns(tuple(loci["contigs"]["include"]), tuple(loci["contigs"]["exclude"]))


def matches_any(contig: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(contig, pattern) for pattern in patterns)
