"""What the assembled counts say of each sample -> tables and warnings."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from epivi.base.errors import UserError
from epivi.cohort.genotypes import read_dosages
from epivi.cohort.kinship import covariance
from epivi.cohort.pedigree import Pedigree, check_samples, pedigree_hash
from epivi.cohort.pedigree_files import read_pedigree
from epivi.cohort.samples import SampleSheet, design_matrix, in_order_of, read_sample_sheet
from epivi.config.load import Config, load_config
from epivi.ingest.controls import qc_contigs
from epivi.loci.contig_names import contigs_of_table
from epivi.loci.store import CONTIGS, POSITIONS, LociStore
from epivi.quality.columns import QUALITY_TABLES
from epivi.quality.conversion import SampleErrors, sample_errors
from epivi.quality.findings import (
    Finding,
    LevelSums,
    SampleLevels,
    SexCoverage,
    contig_findings,
    error_findings,
    file_findings,
    outlier_findings,
    relatedness_rows,
    same_reads_findings,
    sex_coverage,
    sex_findings,
    swap_findings,
)
from epivi.quality.libraries import Libraries, libraries_of
from epivi.quality.relatedness import (
    MIN_BLOCK_LOCI,
    MIN_BLOCKS,
    MIN_SAMPLES,
    find_swaps,
    genotype_products,
    locus_blocks,
    methylation_products,
    projector,
    stacked,
)
from epivi.quality.same_reads import find_same_reads, read_products, stacked_reads
from epivi.tables.columns import arrow_schema
from epivi.tables.parquet import Provenance, read_table, write_table

log = logging.getLogger(__name__)


def check_quality(loci: str, samples: str, pedigree: str, output: Path, config_source: str) -> None:
    """Tables of quality for the samples of a folder of loci, and a warning for each finding.

    Raises UserError where the files are missing or do not belong together.
    """
    config = load_config(config_source)
    store = LociStore.open(loci)
    sheet = in_order_of(store, read_sample_sheet(samples))
    family = read_pedigree(pedigree)
    check_samples(sheet, family)
    libraries = libraries_of(sheet)
    errors = sample_errors(sheet, store.sums)
    sexes = _sexes(sheet, family)
    two_x = config.section("qc", "sex")["two_x"]
    coverage = sex_coverage(sheet.samples, sexes, _whole_libraries(sheet, store), two_x)
    levels, related, swaps = _over_loci(store, sheet, family, libraries, config)
    findings = [
        *error_findings(errors, expected=_expected_controls(config)),
        *file_findings(store.warnings),
        *_contig_findings(Path(loci), config),
        *outlier_findings(sheet.samples, levels),
        *sex_findings(sheet.samples, sexes, coverage, two_x),
        *swaps,
    ]

    def write(name: str, rows: Iterable[Mapping[str, object]]) -> None:
        provenance = Provenance(name, 0, config.hash("qc"), pedigree_hash(family))
        table = pa.Table.from_pylist(list(rows), schema=arrow_schema(QUALITY_TABLES[name]))
        write_table(table, output / f"{name}.parquet", QUALITY_TABLES[name], provenance)

    write("error_rates", _error_rows(errors))
    write("sample_quality", _sample_rows(sheet, sexes, levels, coverage))
    write("relatedness", related)
    write("findings", [finding._asdict() for finding in findings])
    for finding in findings:
        log.warning("%s", finding.text)
    log.info("quality of %d samples: %d warnings", len(sheet.samples), len(findings))


def _expected_controls(config: Config) -> dict[str, bool]:
    """Whether the configuration names controls for an error rate."""
    conversion = config.section("qc", "conversion")
    return {
        "false_methylated": bool(conversion["unmethylated_contigs"] or conversion["unmethylated_contexts"]),
        "false_unmethylated": bool(conversion["methylated_contigs"]),
    }


def _contig_findings(loci: Path, config: Config) -> list[Finding]:
    """What stands out in the tables that `epivi assemble` wrote beside the loci; nothing where it wrote none."""
    if not (loci / CONTIGS).exists():
        return []
    qc = qc_contigs(config.section("qc"))
    contigs = contigs_of_table(read_table(loci / CONTIGS, "contigs"))
    positions = read_table(loci / POSITIONS, "positions").to_pylist()
    doubtful = [row for row in positions if row["relation"] == "doubtful"]
    return list(contig_findings(contigs, lambda name: not set(qc.parts(name)) & {"x", "y"}, doubtful))


def _sexes(sheet: SampleSheet, pedigree: Pedigree) -> list[str]:
    sex = dict(zip(pedigree.individuals, pedigree.sex, strict=True))
    return [sex[individual] for individual in sheet.individuals]


def _whole_libraries(sheet: SampleSheet, store: LociStore) -> dict[str, Mapping[str, Sequence[float]]]:
    """Sums of samples of all reads: haplotypes lack those of a single X, which has no phase."""
    return {
        sample: store.sums[sample]
        for sample, haplotype in zip(sheet.samples, sheet.haplotypes, strict=True)
        if haplotype == "all" and sample in store.sums
    }


def _over_loci(
    store: LociStore, sheet: SampleSheet, pedigree: Pedigree, libraries: Libraries, config: Config
) -> tuple[SampleLevels, list[dict[str, object]], list[Finding]]:
    """Levels of the samples, reads that they share, and relatedness and swaps of the libraries, from loci spread over
    the genome."""
    qc = qc_contigs(config.section("qc"))
    contigs = [contig for contig in store.contigs if not (set(qc.parts(contig)) & {"x", "y"})] or list(store.contigs)
    design = design_matrix(sheet, config.section("model")["covariates"])[0][libraries.first_sample]
    merged = np.eye(len(libraries.names), dtype=np.int64)[libraries.of_sample]  # [S, K]
    centre = projector(design)
    sums = LevelSums.zero(len(sheet.samples))
    blocks, reads = [], []
    for meth, total in _spread_blocks(store, contigs):
        sums = sums.plus(meth, total)
        reads.append(read_products(total))
        blocks.append(methylation_products(meth @ merged, total @ merged, centre))
    shared = find_same_reads(stacked_reads(reads)) if len(reads) >= MIN_BLOCKS else []
    # One of two samples with the same reads is in the other's place, so that likeness says nothing of the pedigree.
    doubted = {int(libraries.of_sample[sample]) for one in shared for sample in (one.part, one.whole)}
    members = [library for library in range(len(libraries.names)) if library not in doubted]
    if doubted and len(members) >= MIN_SAMPLES:
        centre = projector(design[members])
        blocks = [
            methylation_products(meth @ merged[:, members], total @ merged[:, members], centre)
            for meth, total in _spread_blocks(store, contigs)
        ]
    related: list[dict[str, object]] = []
    findings = list(same_reads_findings(sheet.samples, shared))
    if len(members) < MIN_SAMPLES:
        log.info("too few files to look for swapped samples: %d, expected %d", len(members), MIN_SAMPLES)
        return sums.levels(), related, findings
    if len(blocks) < MIN_BLOCKS:
        log.info("too few loci to look for swapped samples: expected %d or more", MIN_BLOCKS * MIN_BLOCK_LOCI)
    else:
        _compare("methylation", blocks, libraries, members, pedigree, centre, related, findings)
    genotypes = config.section("qc")["genotypes"]
    if genotypes is not None:
        names = list(zip(libraries.names, libraries.individuals, strict=True))
        dosage, found = read_dosages(genotypes, names)
        if len(found) < MIN_SAMPLES:
            raise UserError(f"{genotypes}: has {len(found)} of the cohort's samples: expected {MIN_SAMPLES} or more")
        centre = projector(np.zeros((len(found), 0)))
        variants = [
            genotype_products(dosage[start:stop], centre)
            for block in locus_blocks([len(dosage)])
            for _, start, stop in block
        ]
        if len(variants) < MIN_BLOCKS:
            log.info("%s: too few variants to look for swapped samples: %d", genotypes, len(dosage))
        else:
            _compare("genotypes", variants, libraries, found, pedigree, centre, related, findings)
    return sums.levels(), related, findings


def _spread_blocks(store: LociStore, contigs: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Methylated and total reads [L, S] of blocks of loci that are spread over these contigs."""
    for ranges in locus_blocks([store.n_loci_of(contig) for contig in contigs]):
        rows = store.rows_of([(contigs[contig], start, stop) for contig, start, stop in ranges])
        yield rows.meth.astype(np.int64), rows.total.astype(np.int64)


def _compare(
    source: str,
    blocks: Sequence[tuple[np.ndarray, np.ndarray]],
    libraries: Libraries,
    members: Sequence[int],
    pedigree: Pedigree,
    centre: np.ndarray,
    related: list[dict[str, object]],
    findings: list[Finding],
) -> None:
    """Compare libraries with the pedigree and append to the rows of the table and to the findings."""
    names = [libraries.names[member] for member in members]
    where = {name: index for index, name in enumerate(pedigree.individuals)}
    places = np.array([where[libraries.individuals[member]] for member in members])
    relatedness = covariance(pedigree, 1.0, 1.0)[np.ix_(places, places)]
    swaps, comparison = find_swaps(stacked(blocks), relatedness, centre)
    related += relatedness_rows(names, source, comparison)
    findings += swap_findings(names, source, swaps)
    pairs = len(names) * (len(names) - 1) // 2
    log.info(
        "relatedness by %s follows the pedigree with slope %.3g; a swap could be seen in %d of %d pairs",
        source,
        comparison.share,
        np.count_nonzero(np.triu(comparison.can_be_seen, 1)),
        pairs,
    )


def _error_rows(errors: Mapping[str, Sequence[SampleErrors]]) -> list[dict[str, object]]:
    nan = float("nan")
    return [
        {
            "sample": row.sample,
            "parameter": column,
            "estimate": row.estimated.rate if row.estimated else nan,
            "lower": row.estimated.lower if row.estimated else nan,
            "upper": row.estimated.upper if row.estimated else nan,
            "reads": row.estimated.reads if row.estimated else 0,
            "positions": row.estimated.rows if row.estimated else 0,
            "given": nan if row.given is None else row.given,
            "used": row.used,
            "source": row.reason,
        }
        for column, rows in errors.items()
        for row in rows
    ]


def _sample_rows(
    sheet: SampleSheet, sexes: Sequence[str], levels: SampleLevels, coverage: SexCoverage
) -> list[dict[str, object]]:
    return [
        {
            "sample": sample,
            "individual": sheet.individuals[row],
            "coverage": float(levels.coverage[row]),
            "covered": float(levels.covered[row]),
            "methylation": float(levels.methylation[row]),
            "sex": sexes[row],
            "x_coverage": float(coverage.x[row]),
            "y_coverage": float(coverage.y[row]),
            "x_methylation": float(coverage.x_methylation[row]),
        }
        for row, sample in enumerate(sheet.samples)
    ]
