"""Tables in pieces: what a killed run leaves, what the next one takes over, and that the file is the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from epivi.base.errors import UserError
from epivi.base.files import exclusive
from epivi.tables import pieces
from epivi.tables.columns import Column
from epivi.tables.parquet import Provenance, open_parquet
from epivi.tables.pieces import PiecewiseTable, forget_all, pieces_folder, second_name

COLUMNS = (Column("pos", pa.int32(), "bp", ">= 0", ""), Column("value", pa.float64(), "", "", ""))
LOCI = (100, 1130)
PIECE, CHUNK, ROWS = 256, 64, 3  # loci of a piece and of a table, rows of a locus


class Killed(Exception):
    pass


def table_at(path: Path, stamp: str = "first") -> PiecewiseTable:
    return PiecewiseTable(
        path,
        COLUMNS,
        Provenance("evidence", 1, "", ""),
        metadata={"epivi.contig": "chr1", "epivi.stamp": stamp},
        loci=LOCI,
        piece_loci=PIECE,
        rows_per_locus=ROWS,
    )


def chunks(ranges: list[tuple[int, int]], until: int | None = None) -> Iterator[pa.Table]:
    """The rows of some loci; killed at the locus `until`."""
    for first, last in ranges:
        for begin in range(first, last, CHUNK):
            if until is not None and begin >= until:
                raise Killed
            pos = np.repeat(np.arange(begin, min(begin + CHUNK, last), dtype=np.int32), ROWS)
            yield pa.table({"pos": pos, "value": np.sin(pos.astype(float))})


def write(path: Path, stamp: str = "first", until: int | None = None) -> int:
    """Loci that were computed."""
    done: list[int] = []
    table = table_at(path, stamp)
    table.write(chunks(table.missing(), until), done.append)
    return sum(done)


@pytest.fixture
def undisturbed(tmp_path: Path) -> bytes:
    path = tmp_path / "undisturbed.parquet"
    assert write(path) == LOCI[1] - LOCI[0]
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, second_name(path).name}
    rows = open_parquet(path, "evidence")[0].read()
    np.testing.assert_array_equal(rows["pos"], np.repeat(np.arange(*LOCI), ROWS))
    return path.read_bytes()


@pytest.mark.parametrize("until", [100, 101, 400, 1000, 1124])
def test_goes_on_from_whole_pieces(tmp_path: Path, undisturbed: bytes, until: int) -> None:
    """Killed anywhere: nothing under the table's name, then only the pieces that are not whole, and the same bytes."""
    path = tmp_path / "part.parquet"
    with pytest.raises(Killed):
        write(path, until=until)
    assert not path.exists()
    whole = (until - LOCI[0]) // PIECE * PIECE
    assert table_at(path).missing()[0][0] == LOCI[0] + whole
    assert write(path) == LOCI[1] - LOCI[0] - whole
    assert path.read_bytes() == undisturbed
    assert table_at(path).is_whole()
    assert not pieces_folder(path).exists()


def test_killed_as_the_pieces_are_put_together(
    tmp_path: Path, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the table has its name, and after it has but the pieces are still there."""
    path = tmp_path / "part.parquet"

    def killed(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(pieces, "open_parquet", lambda path, *kind: killed() if kind else open_parquet(path))
        with pytest.raises(Killed):
            write(path)
    assert not path.exists()
    assert table_at(path).missing() == []
    with monkeypatch.context() as patch:
        patch.setattr(pieces.shutil, "rmtree", killed)
        with pytest.raises(Killed):
            write(path)
    assert path.read_bytes() == undisturbed
    assert pieces_folder(path).exists()
    assert table_at(path).is_whole()
    assert not pieces_folder(path).exists()


def test_other_stamps_and_damaged_pieces_are_written_anew(tmp_path: Path, undisturbed: bytes) -> None:
    path = tmp_path / "part.parquet"
    with pytest.raises(Killed):
        write(path, "other", until=700)
    with pytest.raises(Killed):
        write(path, until=900)
    first = sorted(pieces_folder(path).glob("*.parquet"), key=lambda piece: int(piece.name.split("-")[0]))[0]
    first.write_bytes(first.read_bytes()[:-20])
    assert [begin for begin, _ in table_at(path).missing()] == [100, 868, 1124]
    assert write(path) == PIECE + LOCI[1] - 868
    assert path.read_bytes() == undisturbed
    assert not table_at(path, "other").is_whole()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    with exclusive(pieces_folder(path) / "lock"), pytest.raises(UserError, match="is writing it"):
        write(path)


def test_nothing_hidden_is_left_where_it_is_no_longer_needed(tmp_path: Path) -> None:
    write(tmp_path / "part-0000.parquet")
    with pytest.raises(Killed):
        write(tmp_path / "part-0001.parquet", until=700)
    forget_all(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["part-0000.parquet"]
