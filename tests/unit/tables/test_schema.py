"""The specification of the tables."""

from __future__ import annotations

import pyarrow as pa
import pytest

from epivi.discovery.columns import DISCOVERY_TABLES
from epivi.divergence.columns import DIVERGENCE_TABLES
from epivi.families.epimutation.columns import EPIMUTATION_TABLES
from epivi.families.transmission.columns import (
    PARAMETERS,
    TRANSMISSION_TABLES,
    effect_parameters,
    evidence_columns,
    posterior_columns,
)
from epivi.field.covariate import Covariate
from epivi.fit.columns import FIT_TABLES
from epivi.ingest.columns import INGEST_TABLES
from epivi.loci.columns import LOCI_TABLES, index_columns, panel_columns
from epivi.quality.columns import QUALITY_TABLES
from epivi.tables.columns import arrow_schema, markdown_table, schema_columns
from epivi.verify.columns import CALIBRATE_TABLES, DESIGN_TABLES, DIAGNOSE_TABLES

HYPOTHESES = ("reset", "epigenetic", "epigenetic+cis")
COVARIATES = (Covariate("age", scale=3.0), Covariate("batch", "y", "x"))
EVERY_TABLE = {
    **INGEST_TABLES,
    **LOCI_TABLES,
    **QUALITY_TABLES,
    **FIT_TABLES,
    **TRANSMISSION_TABLES,
    **EPIMUTATION_TABLES,
    **DISCOVERY_TABLES,
    **CALIBRATE_TABLES,
    **DESIGN_TABLES,
    **DIAGNOSE_TABLES,
    **DIVERGENCE_TABLES,
    "panel": panel_columns(3),
    "loci": index_columns(2),
    "posterior": posterior_columns(HYPOTHESES),
    "posterior with effects": posterior_columns(HYPOTHESES, (), effect_parameters(COVARIATES)),
    "evidence with effects": evidence_columns((), COVARIATES),
}


@pytest.mark.parametrize("table", EVERY_TABLE)
def test_each_column_is_named_once_and_explained(table):
    columns = EVERY_TABLE[table]
    names = [column.name.lower() for column in columns]
    assert len(set(names)) == len(names)
    assert all(column.doc and column.range for column in columns)
    numeric = [c for c in columns if pa.types.is_floating(c.type) or pa.types.is_integer(c.type)]
    assert all(column.unit for column in numeric if column.name != "khat")


@pytest.mark.parametrize("table", EVERY_TABLE)
def test_a_schema_gives_its_columns_back(table):
    schema = arrow_schema(EVERY_TABLE[table], {"epivi.table": table})
    assert schema_columns(schema) == tuple(EVERY_TABLE[table])
    assert schema.metadata == {b"epivi.table": table.encode()}
    assert not any(field.nullable for field in schema)


def test_posterior_has_every_column_of_each_hypothesis():
    names = [column.name for column in posterior_columns(HYPOTHESES)]
    for hypothesis in HYPOTHESES:
        assert f"log_evidence_{hypothesis}" in names
        assert f"prob_{hypothesis}" in names
        assert all(f"{p}_{s}_{hypothesis}" in names for p in PARAMETERS for s in ("mean", "q05", "q95"))
    assert names[:6] == ["contig", "pos", "end", "strand", "context", "covered_samples"]


def test_hypotheses_that_sql_cannot_tell_apart():
    with pytest.raises(ValueError, match="differ in more than case"):
        posterior_columns(["reset", "Reset"])


def test_markdown_has_a_row_a_column_and_escapes_bars():
    columns = posterior_columns(["a|b"])
    lines = markdown_table(columns).splitlines()
    assert len(lines) == len(columns) + 2
    assert "| `prob_a\\|b` | double | probability | 0..1 | posterior probability of a\\|b |" in lines
    assert "| `meth` | uint16[samples] | reads |" in markdown_table(panel_columns(7))
    assert "| `row` | int32[panels] |" in markdown_table(index_columns(2))
