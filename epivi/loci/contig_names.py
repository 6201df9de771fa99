"""Names of contigs: other spellings of the same ones, a table of contigs by sample, and samples that share none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from epivi.base.errors import UserError
from epivi.tables.parquet import natural_key

Rename = Callable[[str], str]

# Chromosomes, by number, letter or Roman numeral, with an arm or a subgenome: 1, 2L, 1A, X, MT, IV, Un. Not scaffolds,
# spike-ins and accessions, whose names are the same with and without the prefix.
_CHROMOSOME = re.compile(r"[0-9]+[A-Za-z]{0,2}|[A-Za-z]{1,2}|[IVX]+|Un")
_PREFIX = re.compile(r"(?i)chr(omosome)?_?")
_MITOCHONDRION = re.compile(r"(?i)mt?")


def add_chr(name: str) -> str:
    """The UCSC spelling of a chromosome: chr1 for 1 and Chr1, chrM for MT; other names as they are."""
    bare = _bare(name)
    if bare is None:
        return name
    return "chrM" if _MITOCHONDRION.fullmatch(bare) else f"chr{bare}"


def drop_chr(name: str) -> str:
    """The Ensembl spelling of a chromosome: 1 for chr1 and Chr1, MT for chrM; other names as they are."""
    bare = _bare(name)
    if bare is None:
        return name
    return "MT" if _MITOCHONDRION.fullmatch(bare) else bare


CHOICES: Mapping[str, Rename] = {"add_chr": add_chr, "drop_chr": drop_chr}


def _bare(name: str) -> str | None:
    """A chromosome's name without a prefix; None of other contigs."""
    bare = _PREFIX.sub("", name, count=1) if _PREFIX.match(name) else name
    return bare if _CHROMOSOME.fullmatch(bare) else None


def _as_is(name: str) -> str:
    return name


def _mapped(names: Mapping[str, str], name: str) -> str:
    return names.get(name, name)


def contig_renamer(setting: Any) -> Rename:
    """The names that contigs get, from `loci.contigs.rename`: a choice, a mapping from old to new, or None."""
    if isinstance(setting, Mapping):
        return partial(_mapped, dict(setting))
    return CHOICES.get(setting, _as_is)


class ContigRenamer:
    """Renames the contigs of one file; raises UserError where two of them would become one."""

    def __init__(self, path: Any, setting: Any) -> None:
        self._path = path
        self._rename = cache(contig_renamer(setting))
        self._old: dict[str, str] = {}

    def __call__(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(map(self._renamed, names))

    def _renamed(self, name: str) -> str:
        new = self._rename(name)
        old = self._old.setdefault(new, name)
        if old != name:
            raise UserError(
                f"{self._path}: its contigs {old!r} and {name!r} would both be {new!r} by loci.contigs.rename (expected"
                " different names)"
            )
        return new


# ---------------------------------------------------------------------------------------------------- contigs by sample


class SampleContigs(NamedTuple):
    """A sample's loci on each of its contigs: names [C], and rows, first and last position, int64 [C]."""

    sample: str
    names: tuple[str, ...]
    loci: np.ndarray
    first: np.ndarray
    last: np.ndarray


def contig_tables(samples: Sequence[SampleContigs]) -> Iterator[pa.Table]:
    """Rows of the table `contigs`, a sample at a time, its contigs in natural order."""
    for one in samples:
        order = sorted(range(len(one.names)), key=lambda index: natural_key(one.names[index]))
        yield pa.table(
            {
                "contig": [one.names[index] for index in order],
                "sample": [one.sample] * len(order),
                "loci": one.loci[order],
                "first_pos": one.first[order],
                "last_pos": one.last[order],
            }
        )


# METHOD: a sample belongs to those with whom it has half of its loci on contigs of the same names. Samples of one
# naming have nearly all there; of two namings that differ in chromosomes, at most what lies on scaffolds.
LEAST_SHARED = 0.5
# Below this share, and from so many loci, it cannot be chance where no other spelling explains it.
FEW_SHARED = 0.05
MIN_LOCI = 100


@dataclass
class ContigGroup:
    """Samples whose contigs have names in common, and all these names."""

    samples: list[str]
    names: set[str]
    loci: int


def contig_groups(samples: Sequence[SampleContigs]) -> list[ContigGroup]:
    """Samples by the names of their contigs, the group of most samples first, then of most loci; none without loci."""
    groups: list[ContigGroup] = []
    for one in sorted(samples, key=lambda one: -int(one.loci.sum())):
        total = int(one.loci.sum())
        if not total:
            continue
        home = next((group for group in groups if _shared(one, group.names) >= LEAST_SHARED), None)
        if home is None:
            groups.append(ContigGroup([one.sample], set(one.names), total))
        else:
            home.samples.append(one.sample)
            home.names.update(one.names)
            home.loci += total
    place = {one.sample: number for number, one in enumerate(samples)}
    for group in groups:
        group.samples.sort(key=place.__getitem__)
    return sorted(groups, key=lambda group: (-len(group.samples), -group.loci))


def _shared(one: SampleContigs, names: set[str]) -> float:
    """Share of a sample's loci on contigs of these names."""
    is_shared = np.array([name in names for name in one.names])
    return float(one.loci[is_shared].sum() / one.loci.sum())


class ContigMistake(NamedTuple):
    """Samples that share no or few contigs with the others; `is_certain` where that cannot be sparse data."""

    samples: tuple[str, ...]
    shared: float  # share of their loci
    is_certain: bool
    text: str


def contig_mistakes(samples: Sequence[SampleContigs]) -> list[ContigMistake]:
    """Samples that share no or few contigs with the largest group, and what to write to make the names one."""
    groups = contig_groups(samples)
    by_name = {one.sample: one for one in samples}
    return [_contig_mistake(group, groups[0], by_name) for group in groups[1:]]


def _contig_mistake(group: ContigGroup, usual: ContigGroup, by_name: Mapping[str, SampleContigs]) -> ContigMistake:
    shared = max(_shared(by_name[sample], usual.names) for sample in group.samples)
    ours, theirs = (_largest(by_name[one.samples[0]]) for one in (group, usual))
    number = f"contigs with {100 * shared:.1f} % of the loci" if shared else "no contig"
    text = (
        f"{quoted(group.samples)} share{'s' if len(group.samples) == 1 else ''} {number} with {quoted(usual.samples)}:"
        f" {quoted(ours)} against {quoted(theirs)}"
    )
    advice = rename_advice(ours, theirs)
    is_certain = advice is not None or (shared < FEW_SHARED and group.loci >= MIN_LOCI)
    expected = advice or "{OLD: NEW} for each contig, if they are the same under other names"
    text += f"; expected the same names in all samples: set loci.contigs.rename: {expected}"
    return ContigMistake(tuple(group.samples), shared, is_certain, text)


def rename_advice(ours: Sequence[str], theirs: Sequence[str]) -> str | None:
    """The value of loci.contigs.rename that makes names of ours and theirs one; None where no spelling does."""
    for choice, rename in CHOICES.items():
        ours_new, theirs_new = ({rename(name) for name in names} for names in (ours, theirs))
        is_better = len(ours_new & theirs_new) > len(set(ours) & set(theirs))
        # The choice after which the names of most samples stay as they are.
        if is_better and (theirs_new == set(theirs) or choice == list(CHOICES)[-1]):
            return choice
    by_key = {name.lower(): name for name in theirs}
    pairs = {name: by_key[name.lower()] for name in ours if name.lower() in by_key and name not in theirs}
    if not pairs:
        return None
    shown = ", ".join(f"{old}: {new}" for old, new in list(pairs.items())[:2])
    return f"{{{shown}{', ...' if len(pairs) > 2 else ''}}}"


# METHOD: a contig is missing in a sample where its depth would give this many loci there: by chance e^-50, of
# independent ones. Neighbours are covered together, so that it takes more than a handful.
LEAST_EXPECTED = 50.0
MOST_CONTIGS = 1000


class MissingContigs(NamedTuple):
    """Contigs on which a sample alone has no locus, and the share of the others' loci that they hold."""

    sample: str
    names: tuple[str, ...]
    share: float
    own: tuple[str, ...]  # contigs that this sample alone has


def missing_contigs(samples: Sequence[SampleContigs], is_looked_at: Callable[[str], bool]) -> list[MissingContigs]:
    """Samples without a locus on a large contig where all others have some; of three samples or more."""
    present = [one for one in samples if len(one.names)]
    if len(present) < 3:
        return []
    loci: Counter[str] = Counter()
    for one in present:
        loci.update(dict(zip(one.names, one.loci.tolist(), strict=True)))
    names = [name for name, _ in loci.most_common(MOST_CONTIGS) if is_looked_at(name)]
    column = {name: index for index, name in enumerate(names)}
    table = np.zeros((len(present), len(names)))
    for row, one in enumerate(present):
        for name, count in zip(one.names, one.loci.tolist(), strict=True):
            if name in column:
                table[row, column[name]] = count
    total = np.array([one.loci.sum() for one in present], np.float64)
    share = table / total[:, None]
    found = []
    for row, one in enumerate(present):
        others = np.delete(share, row, axis=0)
        is_missing = (table[row] == 0) & (others.min(0) * total[row] >= LEAST_EXPECTED)
        if is_missing.any():
            own = (table[row] > 0) & (others.max(0) == 0)
            found.append(
                MissingContigs(
                    one.sample,
                    tuple(names[index] for index in np.flatnonzero(is_missing)),
                    float(others.mean(0)[is_missing].sum()),
                    tuple(names[index] for index in np.flatnonzero(own)),
                )
            )
    return found


def contigs_of_table(table: pa.Table) -> list[SampleContigs]:
    """The samples of a table `contigs`."""
    columns = [table[name].to_numpy(zero_copy_only=False) for name in ("sample", "contig", "loci")]
    positions = [table[name].to_numpy() for name in ("first_pos", "last_pos")]
    starts = np.flatnonzero(columns[0][1:] != columns[0][:-1]) + 1
    parts = zip(*(np.split(column, starts) for column in [*columns, *positions]), strict=True)
    return [
        SampleContigs(str(sample[0]), tuple(contig.tolist()), loci, first, last)
        for sample, contig, loci, first, last in parts
        if len(sample)
    ]


def _largest(one: SampleContigs) -> list[str]:
    """The hundred contigs with most loci, in natural order."""
    return sorted((one.names[index] for index in np.argsort(-one.loci)[:100]), key=natural_key)


def quoted(names: Sequence[str], most: int = 3) -> str:
    """Some names, in quotes."""
    if not names:
        return ""
    shown = list(map(repr, names[:most]))
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most} more"
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
