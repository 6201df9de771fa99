"""What a column of a table is: name, type, unit, range and meaning; and the version of the format.

The tables themselves stand in the columns.py of each folder. The documentation tables and the field metadata of the
files are both made from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

# Readers refuse a file whose version is larger. Raise it whenever an old reader would misread a new file.
FORMAT_VERSION = 2

# Codes of the dictionaries in the loci files are positions in these tuples; "." is unknown, or both strands together.
STRANDS = ("+", "-", ".")
CONTEXTS = ("CG", "CHG", "CHH", ".")

EVIDENCE_GOAL = 0.02  # nats: what log Bayes factors are promised to be right to, or flagged
LABEL = pa.dictionary(pa.int32(), pa.string())


class Column(NamedTuple):
    """One column: `unit` is "" for names, codes and flags; `range` says which values occur, in words or as a..b."""

    name: str
    type: pa.DataType
    unit: str
    range: str
    doc: str


CONTIG = Column("contig", LABEL, "", "name", "contig, as named by the inputs")
POS = Column("pos", pa.int32(), "bp", ">= 0", "0-based start; a strand-merged CpG sits at the C of the + strand")
END = Column("end", pa.int32(), "bp", "> pos", "end, exclusive")
HYPOTHESIS = Column("hypothesis", LABEL, "", "name", "hypothesis, as named by the configuration")
SAMPLE = Column("sample", LABEL, "", "name", "sample, as named by the sample sheet")


def arrow_schema(columns: Sequence[Column], metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """Arrow schema of `columns`: no nulls; each field's metadata holds its doc, unit and range."""
    fields = [
        pa.field(column.name, column.type, False, {"doc": column.doc, "unit": column.unit, "range": column.range})
        for column in columns
    ]
    return pa.schema(fields, dict(metadata or {}))


def schema_columns(schema: pa.Schema) -> tuple[Column, ...]:
    """The columns that `schema` was made from, read back from its field metadata."""
    return tuple(_field_column(field) for field in schema)


def _field_column(field: pa.Field) -> Column:
    notes = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    return Column(field.name, field.type, notes.get("unit", ""), notes.get("range", ""), notes.get("doc", ""))


def markdown_table(columns: Sequence[Column]) -> str:
    """The documentation table of `columns`, in Markdown."""
    rows = [("column", "type", "unit", "range", "meaning"), ("---",) * 5]
    rows += [(f"`{column.name}`", type_name(column.type), column.unit, column.range, column.doc) for column in columns]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def type_name(kind: pa.DataType) -> str:
    """A short name of an Arrow type: dictionaries are called by their values, lists by item and dimension."""
    if pa.types.is_dictionary(kind):
        return type_name(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.value_type}[{kind.value_field.name}]"
    return str(kind)
