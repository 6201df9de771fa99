"""Tables in parts: whole and of one run, or one line that says what is not."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from epivi.base.errors import UserError
from epivi.tables.columns import Column
from epivi.tables.parquet import Provenance, write_table
from epivi.tables.parts import batches, part_metadata, part_path, read_part, read_parts, whole_table

COLUMNS = (Column("pos", pa.int32(), "bp", ">= 0", ""), Column("value", pa.float64(), "", "", ""))
CUTS = (0, 4, 9, 15)


def write_part(folder: Path, number: int, bounds: tuple[int, int], stamp: str = "one", n_loci: int = CUTS[-1]) -> None:
    positions = list(range(*bounds))
    metadata = part_metadata(bounds, n_loci, ["a", "b"], stamp, "source")
    table = pa.table({"pos": positions, "value": [0.5 * pos for pos in positions]})
    write_table(
        table, part_path(folder, f"{number:04d}"), COLUMNS, Provenance("branches", 1, "", ""), metadata=metadata
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, bounds in enumerate(pairwise(CUTS)):
        write_part(tmp_path, number, bounds)
    return tmp_path


def test_parts_make_the_table_in_genome_order(folder: Path) -> None:
    # More than ten thousand parts: their names no longer sort as their numbers do.
    part_path(folder, "0002").rename(part_path(folder, "10000"))
    write_part(folder, 2, CUTS[1:3])
    part_path(folder, "0001").unlink()
    parts = whole_table(folder, "branches")
    assert [(part.start, part.stop) for part in parts] == [(0, 4), (4, 9), (9, 15)]
    assert {(part.n_loci, part.contigs, part.stamp, part.made_from) for part in parts} == {
        (15, ("a", "b"), "one", "source")
    }
    assert read_parts(folder, "branches")["pos"].to_pylist() == list(range(15))
    assert read_parts(folder, "branches", ["value"]).column_names == ["value"]
    chosen = [batch.column("pos").to_pylist() for batch in batches(parts, "branches", ["pos"], rows=3)]
    assert [pos for batch in chosen for pos in batch] == list(range(15))
    assert max(map(len, chosen)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: part_path(folder, "0000").unlink(), "loci 0 to 4 of 15 are missing"),
        (lambda folder: part_path(folder, "0001").unlink(), "loci 4 to 9 of 15 are missing"),
        (lambda folder: part_path(folder, "0002").unlink(), "loci 9 to 15 of 15 are missing"),
        (lambda folder: write_part(folder, 7, (6, 9)), "loci 6 to 9 of 15 stand in two files"),
        (lambda folder: write_part(folder, 1, (4, 9), stamp="two"), r"part-0001\.parquet: not made from the same"),
        (lambda folder: write_part(folder, 1, (4, 9), n_loci=16), r"part-0001\.parquet: not made from the same"),
        (lambda folder: [part.unlink() for part in folder.glob("*")], "no branches table here; run the workflow"),
        (lambda folder: part_path(folder, "0001").write_bytes(b"PAR1"), r"part-0001\.parquet: not a readable"),
    ],
)  # fmt: skip
def test_what_is_not_one_whole_table_is_one_line(folder: Path, change: object, message: str) -> None:
    change(folder)  # type: ignore[operator]
    for read in (whole_table, read_parts):
        with pytest.raises(UserError, match=message) as error:
            read(folder, "branches")
        assert "\n" not in str(error.value)


def test_tables_of_an_earlier_layout_are_named(tmp_path: Path) -> None:
    (tmp_path / "contig=chr1").mkdir()
    with pytest.raises(UserError, match="no branches table here but folders contig=<name> of an earlier epivi"):
        whole_table(tmp_path, "branches")


def test_a_file_that_says_nothing_of_its_loci_is_no_part(tmp_path: Path) -> None:
    path = part_path(tmp_path, "0000")
    table = pa.table({"pos": [1], "value": [0.5]})
    write_table(table, path, COLUMNS, Provenance("branches", 1, "", ""))
    with pytest.raises(UserError, match="does not say which loci it holds"):
        read_part(path, "branches")
