"""Simulated cohorts whose samples may be swapped, as products of loci and as a folder of loci."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from loci_folder import write_loci

from epivi.cohort.kinship import covariance
from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet
from epivi.families.transmission.hypotheses import parse_hypotheses, share_priors
from epivi.families.transmission.simulate import SimulatedCohort, SimulationSettings, simulate_cohort
from epivi.loci.loci_file import LocusBlock
from epivi.quality.findings import Finding, LevelSums, outlier_findings, swap_findings
from epivi.quality.relatedness import (
    PairComparison,
    Products,
    Swap,
    find_swaps,
    locus_blocks,
    methylation_products,
    projector,
    stacked,
)
from epivi.simulate.positions import Contig
from epivi.simulate.templates import template_pedigree
from epivi.tables.parquet import Provenance

HYPOTHESES = parse_hypotheses(
    {
        "reset": {},
        "mendelian": {"heritable_share": "free", "maternal": 1, "paternal": 1},
        "epigenetic": {"heritable_share": "free", "maternal": "tau", "paternal": "tau"},
        "maternal": {"heritable_share": "free", "maternal": "tau", "paternal": 0},
    }
)
PRIORS = share_priors({name: {"alpha": 2, "beta": 2} for name in ("heritable_share", "tau", "environment_share")})
# A third of the loci pass something on, as in the demo cohort.
WEIGHTS = (0.6, 0.2, 0.15, 0.05)
NO_TRANSMISSION = (1.0, 0.0, 0.0, 0.0)


def sheet_of(individuals: tuple[str, ...], paths: tuple[str, ...] | None = None) -> SampleSheet:
    """A sample of each individual, without errors and covariates."""
    n = len(individuals)
    return SampleSheet(
        "samples.tsv",
        individuals,
        individuals,
        paths or individuals,
        ("auto",) * n,
        ("all",) * n,
        np.zeros(n),
        np.zeros(n),
        {},
        tuple(range(2, n + 2)),
    )


def draw(
    seed: int,
    template: str = "quartet",
    families: int = 8,
    *,
    loci: int = 20_000,
    weights: tuple[float, ...] = WEIGHTS,
    coverage: float = 15.0,
) -> SimulatedCohort:
    """A cohort on two contigs, every individual sampled; a tenth of the counts are missing."""
    settings = SimulationSettings(
        seed=seed,
        hypotheses=HYPOTHESES,
        weights=weights,
        contigs=(Contig("chr1", loci // 2), Contig("chr2", loci - loci // 2)),
        share_priors=PRIORS,
        coverage_mean=coverage,
        missing_loci=0.1,
    )
    pedigree = template_pedigree(template, families)
    return simulate_cohort(settings, pedigree, sheet_of(pedigree.individuals))


def exchanged(cohort: SimulatedCohort, *pairs: tuple[int, int]) -> SimulatedCohort:
    """The cohort with the counts of pairs of samples exchanged, one pair after the other."""
    order = np.arange(len(cohort.sheet.samples))
    for first, second in pairs:
        order[[first, second]] = order[[second, first]]
    return replace(cohort, meth=cohort.meth[:, order], total=cohort.total[:, order])


def products_of(cohort: SimulatedCohort) -> Products:
    """Similarity of the samples by block."""
    centre = plain_centre(cohort)
    ranges = (part for block in locus_blocks([len(cohort.meth)]) for part in block)
    return stacked(methylation_products(cohort.meth[a:b], cohort.total[a:b], centre) for _, a, b in ranges)


def plain_centre(cohort: SimulatedCohort) -> np.ndarray:
    return projector(np.zeros((len(cohort.sheet.samples), 0)))


def relatedness_of(pedigree: Pedigree) -> np.ndarray:
    return covariance(pedigree, 1.0, 1.0)


def swaps_of(cohort: SimulatedCohort) -> tuple[list[Swap], PairComparison]:
    return find_swaps(products_of(cohort), relatedness_of(cohort.pedigree), plain_centre(cohort))


def findings_of(cohort: SimulatedCohort) -> list[Finding]:
    """What the quality control says of swaps and outliers."""
    levels = LevelSums.zero(len(cohort.sheet.samples)).plus(cohort.meth, cohort.total).levels()
    samples = cohort.sheet.samples
    return [*outlier_findings(samples, levels), *swap_findings(samples, "methylation", swaps_of(cohort)[0])]


def write_store(folder: Path, cohort: SimulatedCohort) -> Path:
    """The cohort's loci as epivi assemble writes them; path of the folder."""
    blocks = []
    for number, contig in enumerate(cohort.settings.contigs):
        rows = cohort.contig == number
        pos0, codes = cohort.pos0[rows], np.zeros(int(rows.sum()), np.int8)
        meth, total = cohort.meth[rows].astype(np.uint16), cohort.total[rows].astype(np.uint16)
        blocks.append(LocusBlock(contig.name, 0, pos0, pos0 + 2, codes, codes, meth, total))
    write_loci(folder, cohort.sheet.samples, blocks, Provenance("loci", 1, "", ""))
    return folder


def write_tables(folder: Path, cohort: SimulatedCohort, paths: tuple[str, ...] | None = None) -> dict[str, str]:
    """Sample sheet and pedigree of the cohort; their paths by option."""
    names = cohort.pedigree.individuals
    rows = [f"{name}\t{name}\t{path}" for name, path in zip(names, paths or names, strict=True)]
    (folder / "samples.tsv").write_text("\n".join(["sample\tindividual\tpath", *rows]) + "\n")

    def parent(index: int) -> str:
        return names[index] if index >= 0 else ""

    pedigree = cohort.pedigree
    lines = [
        f"{name}\t{parent(pedigree.mother[row])}\t{parent(pedigree.father[row])}\t{pedigree.sex[row]}"
        for row, name in enumerate(names)
    ]
    (folder / "pedigree.tsv").write_text("\n".join(["individual\tmother\tfather\tsex", *lines]) + "\n")
    return {"samples": str(folder / "samples.tsv"), "pedigree": str(folder / "pedigree.tsv")}
