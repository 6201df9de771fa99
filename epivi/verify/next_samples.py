"""What to sequence next: further samples of a cohort, ranked by the divergence that each adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import ALL_READS, SampleSheet
from epivi.verify.design import Array, Assumed, Rows, least_matrix


class Parents(NamedTuple):
    """Parents of a child: indices into the pedigree, -1 where not known, and how the child arose."""

    mother: int
    father: int
    mode: str


class Newcomer(NamedTuple):
    """An individual to be added with one sample; like: the sample whose covariates and depth it has."""

    parents: Parents
    like: int


class Option(NamedTuple):
    """Something to sequence: the changed cohort, and how many samples' reads it costs."""

    changed: Assumed
    samples: int


def options(asked: Assumed) -> dict[str, Option]:
    """What this cohort allows, by name, in the order of OPTIONS.

    A relatedness matrix has no one who was not sampled: with one, no individuals are added.
    """
    is_fixed = any(part.kind == "relatedness" for one in asked.hypotheses for part in one.components)
    found = {}
    for name, (adds_individuals, change) in OPTIONS.items():
        option = None if is_fixed and adds_individuals else change(asked)
        if option is not None:
            found[name] = option
    return found


def _sampled(asked: Assumed) -> dict[int, int]:
    """Of each sampled individual, by its index in the pedigree, its first sample."""
    position = {name: index for index, name in enumerate(asked.pedigree.individuals)}
    first: dict[int, int] = {}
    for row, name in enumerate(asked.sheet.individuals):
        first.setdefault(position[name], row)
    return first


def _couples(asked: Assumed) -> dict[Parents, int]:
    """Parents of sampled children, and each one's first sampled child."""
    couples: dict[Parents, int] = {}
    pedigree = asked.pedigree
    for child in _sampled(asked):
        parents = Parents(int(pedigree.mother[child]), int(pedigree.father[child]), pedigree.mode[child])
        if max(parents.mother, parents.father) >= 0:
            couples.setdefault(parents, child)
    return couples


def _child(asked: Assumed) -> Option | None:
    sampled = _sampled(asked)
    return _added(asked, [Newcomer(parents, sampled[child]) for parents, child in _couples(asked).items()])


def _grandchild(asked: Assumed) -> Option | None:
    """Of each couple, a child of a child with someone unrelated who is not sampled; of a line, one generation more."""
    sampled = _sampled(asked)
    return _added(
        asked,
        [
            Newcomer(Parents(*_as_parent(asked.pedigree, child), parents.mode), sampled[child])
            for parents, child in _couples(asked).items()
        ],
    )


def _half_sib(asked: Assumed) -> Option | None:
    """Of each couple, a child of one of them, who is sampled if one is, with someone unrelated who is not."""
    sampled = _sampled(asked)
    newcomers = []
    for parents, child in _couples(asked).items():
        if parents.mode == "sexual":
            known = [parent for parent in (parents.mother, parents.father) if parent >= 0]
            parent = max(known, key=lambda one: (one in sampled, one == parents.mother))
            sides = (parent, -1) if parent == parents.mother else (-1, parent)
            newcomers.append(Newcomer(Parents(*sides, "sexual"), sampled[child]))
    return _added(asked, newcomers)


def _as_parent(pedigree: Pedigree, individual: int) -> tuple[int, int]:
    """Mother and father of a child of this individual alone: a father where he is one already, or male."""
    is_father = pedigree.mode[individual] == "sexual" and (
        pedigree.sex[individual] == "male" or individual in pedigree.father.tolist()
    )
    return (-1, individual) if is_father else (individual, -1)


def _added(asked: Assumed, newcomers: Sequence[Newcomer]) -> Option | None:
    if not newcomers:
        return None
    pedigree, sheet = asked.pedigree, asked.sheet
    names = tuple(f"newcomer {k + 1}" for k in range(len(newcomers)))
    changed = replace(
        pedigree,
        individuals=(*pedigree.individuals, *names),
        mother=np.append(pedigree.mother, [one.parents.mother for one in newcomers]).astype(np.int32),
        father=np.append(pedigree.father, [one.parents.father for one in newcomers]).astype(np.int32),
        mode=(*pedigree.mode, *(one.parents.mode for one in newcomers)),
        generations=np.append(pedigree.generations, np.ones(len(names))).astype(np.int32),
        sex=(*pedigree.sex, *("unknown",) * len(names)),
    )
    rows = [*range(len(sheet.samples)), *(one.like for one in newcomers)]
    individuals = (*sheet.individuals, *names)
    return Option(_with_rows(asked, changed, rows, individuals, whole=len(sheet.samples)), len(names))


def _family(asked: Assumed) -> Option | None:
    """Every family once more: its gain per sample is that of families like these."""
    pedigree, size = asked.pedigree, len(asked.pedigree.individuals)

    def twice(parents: np.ndarray) -> np.ndarray:
        return np.concatenate([parents, np.where(parents >= 0, parents + size, -1)]).astype(np.int32)

    changed = replace(
        pedigree,
        individuals=(*pedigree.individuals, *(f"{name} of another family" for name in pedigree.individuals)),
        mother=twice(pedigree.mother),
        father=twice(pedigree.father),
        mode=pedigree.mode * 2,
        generations=np.tile(pedigree.generations, 2),
        sex=pedigree.sex * 2,
    )
    rows = list(range(len(asked.sheet.samples)))
    individuals = (*asked.sheet.individuals, *(f"{name} of another family" for name in asked.sheet.individuals))
    environments = {part.source for one in asked.hypotheses for part in one.components if part.kind == "environment"}
    grown = _with_rows(asked, changed, rows * 2, individuals, whole=2 * len(rows))
    columns = {
        name: (*values[: len(rows)], *(f"{value} of another family" for value in values[len(rows) :]))
        if name in environments
        else values
        for name, values in grown.sheet.columns.items()
    }
    return Option(grown._replace(sheet=replace(grown.sheet, columns=columns)), len(rows))


def _coverage(asked: Assumed) -> Option | None:
    return Option(asked._replace(reads=2 * asked.reads), len(asked.sheet.samples))


def _phased(asked: Assumed) -> Option | None:
    """Both haplotypes of every whole sample, of known parents, with half of its reads each; none in selfed lines."""
    sheet = asked.sheet
    whole = [
        row
        for row in range(len(sheet.samples))
        if sheet.haplotypes[row] == ALL_READS and sheet.origin_of(row) == "both"
    ]
    if not whole or set(asked.pedigree.mode) != {"sexual"}:
        return None
    rows = [row for row in range(len(sheet.samples)) for _ in range(2 if row in whole else 1)]
    doubled = _with_rows(asked, asked.pedigree, rows, tuple(sheet.individuals[row] for row in rows), whole=0)
    is_second = [k > 0 and rows[k - 1] == row for k, row in enumerate(rows)]
    samples = tuple(f"{sheet.samples[row]} haplotype {1 + two}" for row, two in zip(rows, is_second, strict=True))
    changed = replace(
        doubled.sheet,
        samples=samples,
        paths=samples,
        haplotypes=tuple(
            str(1 + two) if row in whole else sheet.haplotypes[row] for row, two in zip(rows, is_second, strict=True)
        ),
        origins={
            name: ("maternal", "paternal")[two] if row in whole else sheet.origin_of(row)
            for name, row, two in zip(samples, rows, is_second, strict=True)
        },
        phasings={
            name: f"of {sheet.samples[row]}" if row in whole else sheet.phasing_of(row)
            for name, row in zip(samples, rows, strict=True)
        },
    )
    reads = np.array([asked.reads[row] / (2 if row in whole else 1) for row in rows])
    return Option(doubled._replace(sheet=changed, reads=reads), len(whole))


def _with_rows(
    asked: Assumed, pedigree: Pedigree, rows: Sequence[int], individuals: tuple[str, ...], whole: int
) -> Assumed:
    """A cohort whose samples are copies of rows of the sheet; those from number `whole` on are of all reads."""
    sheet = asked.sheet
    names = tuple(f"{sheet.samples[row]} {k}" for k, row in enumerate(rows))

    def kept(values: Sequence[str]) -> tuple[str, ...]:
        return tuple(values[row] for row in rows)

    is_new = [k >= whole > 0 for k in range(len(rows))]
    changed = SampleSheet(
        path=sheet.path,
        samples=names,
        individuals=individuals,
        paths=names,
        formats=("auto",) * len(rows),
        haplotypes=tuple(
            ALL_READS if new else value for new, value in zip(is_new, kept(sheet.haplotypes), strict=True)
        ),
        false_methylated=sheet.false_methylated[list(rows)],
        false_unmethylated=sheet.false_unmethylated[list(rows)],
        columns={name: kept(values) for name, values in sheet.columns.items()},
        lines=tuple(range(1, len(rows) + 1)),
        origins={
            name: "both" if new else sheet.origin_of(row) for name, row, new in zip(names, rows, is_new, strict=True)
        },
        phasings={
            name: f"{sheet.phasing_of(row)} {individual}"
            for name, row, individual, new in zip(names, rows, individuals, is_new, strict=True)
            if not new
        },
    )
    return asked._replace(sheet=changed, pedigree=pedigree, reads=asked.reads[list(rows)])


# Name -> whether individuals are added, and the change; None where the cohort does not allow it.
OPTIONS: Mapping[str, tuple[bool, Callable[[Assumed], Option | None]]] = {
    "a further child of each couple": (True, _child),
    "a grandchild of each couple": (True, _grandchild),
    "a half-sib of each couple's children": (True, _half_sib),
    "another family like these": (True, _family),
    "twice the reads of each sample": (False, _coverage),
    "phased haplotypes of each sample": (False, _phased),
}


def next_rows(asked: Assumed, before: Array) -> Rows:
    """Rows of the table `design_next`: every pair of hypotheses by every option, best first.

    before: least divergences [H, H] of the cohort as it is. Of a pair the larger of its two directions counts: what a
    hypothesis that can be like the other would show if it were true.
    """
    found = [
        (name, option, least_matrix(option.changed, option.changed.cohort())) for name, option in options(asked).items()
    ]
    rows: Rows = []
    for one, other in combinations(range(len(asked.names)), 2):
        separated = float(max(before[one, other], before[other, one]))
        of_pair: Rows = [
            {
                "hypothesis": asked.names[one],
                "alternative": asked.names[other],
                "option": name,
                "samples": option.samples,
                "least_nats": separated,
                "least_nats_then": float(max(least[one, other], least[other, one])),
            }
            for name, option, least in found
        ]
        for row in of_pair:
            row["gain_per_sample"] = (row["least_nats_then"] - separated) / row["samples"]
        of_pair.sort(key=lambda row: -row["gain_per_sample"])
        rows += [row | {"rank": number} for number, row in enumerate(of_pair, 1)]
    return rows
