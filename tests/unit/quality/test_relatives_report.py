"""From a folder of loci to the report: which loci, which libraries, which columns; what a user is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from quality_cases import draw, sheet_of, write_store

from epivi.base.errors import UserError
from epivi.cohort.relatives import KINDS
from epivi.cohort.samples import SampleSheet
from epivi.config.load import Config, load_config
from epivi.families.transmission.simulate import SimulatedCohort
from epivi.loci.store import LociStore
from epivi.quality.relatives import columns_of, compared, relatives_report
from epivi.quality.relatives_verdict import verdict

MODEL = {"hypotheses": {"reset": {}, "shared": {"environment": {"column": "cage", "share": "free"}}}}


def config_of(**sections: object) -> Config:
    return load_config(json.dumps(sections))


@pytest.fixture(scope="module")
def cohort() -> SimulatedCohort:
    return draw(31, "quartet", 4, loci=1200)


@pytest.fixture(scope="module")
def store(cohort: SimulatedCohort, tmp_path_factory: pytest.TempPathFactory) -> LociStore:
    return LociStore.open(write_store(tmp_path_factory.mktemp("relatives") / "loci", cohort))


def with_columns(sheet: SampleSheet, **columns: list[str]) -> SampleSheet:
    return replace(sheet, columns={name: tuple(values) for name, values in columns.items()})


def test_report_of_a_cohort_with_a_true_signal(cohort: SimulatedCohort, store: LociStore) -> None:
    report = relatives_report(
        compared(store, cohort.sheet, cohort.pedigree, config_of()), cohort.sheet, cohort.pedigree, config_of()
    )
    kinds = {row.kind: row for row in report.resemblance.rows}
    assert set(kinds) == {"mother_child", "father_child", "full_sibs", "mates", "unrelated"}
    assert (kinds["mates"].pairs, kinds["full_sibs"].pairs, kinds["unrelated"].pairs) == (4, 4, 96)
    assert report.findings == ()
    assert report.verdict == verdict(report.resemblance)
    assert report.resemblance.loci == 1200


def test_loci_of_sex_chromosomes_are_left_out(cohort: SimulatedCohort, store: LociStore) -> None:
    """Mates always differ there."""
    sex = {"x_contigs": ["chr2"]}
    found = compared(store, cohort.sheet, cohort.pedigree, config_of(qc={"sex": sex}))
    assert len(found.values.weight) == store.n_loci_of("chr1") == 600
    few = compared(store, cohort.sheet, cohort.pedigree, config_of(qc={"sex": sex}, relatives={"loci": 100}))
    assert len(few.values.weight) == 100


def test_haplotypes_of_an_individual_are_taken_together(cohort: SimulatedCohort, tmp_path: Path) -> None:
    """The reads of each individual in two haplotypes of one file: the same levels, and no pair of haplotypes."""
    random = np.random.default_rng(32)
    first = random.binomial(cohort.total, 0.5)
    meth = random.hypergeometric(cohort.meth, cohort.total - cohort.meth, first)
    names = cohort.sheet.samples
    twice = sheet_of(tuple(name for name in names for _ in range(2)), tuple(name for name in names for _ in range(2)))
    sheet = replace(
        twice,
        samples=tuple(f"{name}_{number}" for name in names for number in (1, 2)),
        haplotypes=("1", "2") * len(names),
        columns={"batch": tuple(f"B{row // 4 % 3}" for row in range(2 * len(names)))},
    )
    halves = [np.stack(pair, axis=2).reshape(len(meth), -1) for pair in (
        (meth, cohort.meth - meth), (first, cohort.total - first))]  # fmt: skip
    apart = replace(cohort, meth=halves[0], total=halves[1], sheet=sheet)
    split = LociStore.open(write_store(tmp_path / "split", apart))
    config = config_of(relatives={"columns": ["batch"]})
    found = compared(split, sheet, cohort.pedigree, config)
    whole = compared(
        LociStore.open(write_store(tmp_path / "whole", cohort)),
        with_columns(cohort.sheet, batch=list(sheet.columns["batch"][::2])),
        cohort.pedigree,
        config,
    )
    for one, other in zip(found.values, whole.values, strict=True):
        np.testing.assert_allclose(one, other)
    np.testing.assert_array_equal(found.related.kind, whole.related.kind)
    np.testing.assert_array_equal(found.columns["batch"], whole.columns["batch"])
    off = ~np.eye(len(names), dtype=bool)
    assert list(KINDS).index("replicates") not in found.related.kind[off]


def test_columns_that_are_looked_within(cohort: SimulatedCohort, store: LociStore) -> None:
    """Those that are named, and categories of the model; a number is none, nor is a column with one level or with as
    many as samples."""
    size = len(cohort.sheet.samples)
    sheet = with_columns(
        cohort.sheet,
        cage=[f"c{row % 3}" for row in range(size)],
        treatment=["drug", "none"] * (size // 2),
        age=[str(20 + row % 5) for row in range(size)],
        plate=["one", "two"] * (size // 2),
        run=["same"] * size,
        tube=[f"t{row}" for row in range(size)],
    )
    config = config_of(
        model=MODEL | {"covariates": ["treatment", "age"]},
        controls={"exchange_within": ["plate"]},
        relatives={"columns": ["run", "tube"]},
    )
    assert columns_of(sheet, config) == ("plate", "run", "tube", "treatment", "cage")
    found = compared(store, sheet, cohort.pedigree, config)
    assert set(found.columns) == {"plate", "treatment", "cage"}
    assert found.design.shape == (size, 3)
    with pytest.raises(UserError, match=r"has no column 'plat'; did you mean 'plate'"):
        compared(store, sheet, cohort.pedigree, config_of(relatives={"columns": ["plat"]}))
