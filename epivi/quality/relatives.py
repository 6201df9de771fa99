"""From loci, sheet and pedigree to the resemblance of relatives: loci, libraries, and columns to look within."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from epivi.cohort.pedigree import Pedigree
from epivi.cohort.relatives import Relatives, relatives
from epivi.cohort.samples import SampleSheet, design_matrix, group_index
from epivi.config.load import Config
from epivi.ingest.controls import SEX_LINKED, qc_contigs
from epivi.loci.source import sample_runs
from epivi.loci.store import LociStore
from epivi.quality.by_relative import Resemblance, resemblance
from epivi.quality.factor_relations import Relation, factor_findings, relations
from epivi.quality.factors import Factor, find_factors, pedigree_kinds, within_level
from epivi.quality.findings import Finding
from epivi.quality.libraries import Libraries, libraries_of
from epivi.quality.relatives_verdict import relatives_findings, verdict
from epivi.quality.resemblance import Levels, levels

Array = NDArray[np.float64]


class Compared(NamedTuple):
    """A sample of loci of K libraries, ready to be compared."""

    libraries: Libraries
    values: Levels  # [L, K]
    design: Array  # [K, P], intercept and covariates
    related: Relatives
    columns: Mapping[str, NDArray[np.int32]]  # level of each library, [K], by column
    likeness: tuple[csr_array, ...]  # [K, K], what the hypotheses allow pairs to share


class RelativesReport(NamedTuple):
    """What is written, and said, of the relatives."""

    resemblance: Resemblance
    factors: tuple[Factor, ...]
    relations: tuple[Relation, ...]
    findings: tuple[Finding, ...]
    verdict: str


def compared(store: LociStore, sheet: SampleSheet, pedigree: Pedigree, config: Config) -> Compared:
    """Levels at a sample of loci. Raises UserError for a column that the sheet lacks or in which a value is missing.

    # METHOD: haplotypes of one individual, read from one library, are taken together: they share their individual's
    # cells, batch and household, and of the alleles of a pair of relatives nothing says which were handed on, so that a
    # pair of haplotypes is of no one kind. Samples of another library of the individual are its replicates.
    """
    libraries = libraries_of(sheet)
    qc = qc_contigs(config.section("qc"))
    autosomes = {contig for contig in store.contigs if not set(qc.parts(contig)) & set(SEX_LINKED)}
    looked_at = autosomes or set(store.contigs)
    # METHOD: sexes differ on X and Y whoever is related, mates always and siblings often.
    counts = sample_runs(store, config.section("relatives")["loci"], config.seed(), looked_at.__contains__)
    merged = np.eye(len(libraries.names), dtype=np.int64)[libraries.of_sample]  # [S, K]
    errors = [
        merged.T @ rate / merged.sum(0) for rate in (sheet.false_methylated, sheet.false_unmethylated)
    ]  # of a library the mean over its samples, which share their controls
    meth, total = (each.astype(np.int64) @ merged for each in (counts.meth, counts.total))
    covariates = design_matrix(sheet, config.section("model")["covariates"])[0][libraries.first_sample]
    design = np.column_stack([np.ones(len(libraries.names)), covariates])
    columns = {name: group_index(sheet, name)[0][libraries.first_sample] for name in columns_of(sheet, config)}
    environments = [group_index(sheet, name)[0][libraries.first_sample] for name in _environments(config)]
    return Compared(
        libraries,
        levels(meth, total, *errors),
        design,
        relatives(pedigree, libraries.individuals),
        {name: level for name, level in columns.items() if _has_pairs(level)},
        (*pedigree_kinds(pedigree, libraries.individuals), *map(within_level, environments)),
    )


def columns_of(sheet: SampleSheet, config: Config) -> tuple[str, ...]:
    """Columns of the sheet within whose levels relatives are compared."""
    asked = [*config.section("controls")["exchange_within"], *config.section("relatives")["columns"]]
    named = [name for name in config.sheet_columns if _is_category(sheet, name, config)]
    return tuple(dict.fromkeys([*asked, *named]))


def _is_category(sheet: SampleSheet, name: str, config: Config) -> bool:
    """Whether a column that the model names is of categories: an environment, or a covariate that is no number."""
    return name in _environments(config) or design_matrix(sheet, [name])[1][0].level is not None


def _environments(config: Config) -> list[str]:
    """Columns that a hypothesis names as environments."""
    hypotheses = config.section("model")["hypotheses"].values()
    return list(dict.fromkeys(one["column"] for terms in hypotheses for one in terms.get("environment", [])))


def _has_pairs(level: NDArray[np.int32]) -> bool:
    """Whether some share a level and some do not."""
    return 1 < len(np.unique(level)) < len(level)


def relatives_report(cohort: Compared, sheet: SampleSheet, pedigree: Pedigree, config: Config) -> RelativesReport:
    """The resemblance of the relatives, factors that all loci share, warnings and the verdict."""
    found = resemblance(cohort.values, cohort.design, cohort.related, cohort.columns)
    factors = find_factors(cohort.values, cohort.design, cohort.likeness) if found.sd else []
    related = relations(factors, sheet, cohort.libraries.first_sample.tolist(), pedigree, cohort.related)
    findings = (
        *relatives_findings(found, cohort.related.relatedness > 0, cohort.columns),
        *factor_findings(factors, related, config.section("model")["covariates"]),
    )
    return RelativesReport(found, tuple(factors), tuple(related), findings, verdict(found))
