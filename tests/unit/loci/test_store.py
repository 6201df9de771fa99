"""Files with provenance, counts by contig, and the memory-mapped loci."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loci_folder import PANEL, write_file, write_loci

from epivi.base.errors import UserError
from epivi.base.files import write_json
from epivi.discovery.columns import DISCOVERY_TABLES
from epivi.ingest.columns import INGEST_TABLES
from epivi.loci import loci_file
from epivi.loci.columns import index_columns, panel_columns
from epivi.loci.counts_file import CountsFile
from epivi.loci.loci_file import (
    IndexRows,
    LociFile,
    LocusBlock,
    PanelColumns,
    PanelRows,
    as_record,
    contig_file,
    even_ranges,
)
from epivi.loci.store import FILES, INDEX, PANELS, RECORD, LociStore, read_provenance, write_loci_manifest
from epivi.tables.columns import FORMAT_VERSION, arrow_schema
from epivi.tables.parquet import Provenance, TableWriter, natural_key, read_table, write_table

WEIGHTS = Provenance("weights", 7, "confighash", "pedigreehash")


def weights(n=3):
    return pa.table(
        {
            "weight": np.linspace(0, 1, n),
            "hypothesis": [f"h{i}" for i in range(n)],
            "n_loci": list(range(n)),
            "upper": np.ones(n, np.float32),
            "lower": np.zeros(n),
            **{f"{over}_{end}": np.ones(n) for over in ("family", "prior") for end in ("lower", "upper")},
            "merged": [f"h{i}" for i in range(n)],
            **{f"merged_{what}": np.ones(n) for what in ("weight", "lower", "upper", "family_lower", "family_upper")},
        }
    )


def counts(contig, positions):
    n = len(positions)
    text = {"contig": [contig] * n, "strand": ["+"] * n, "context": ["CG"] * n}
    return pa.table({**text, "pos": positions, "meth": list(range(n)), "total": list(range(1, n + 1))})


# ---- tables


def test_table_round_trip_with_types_and_metadata(tmp_path):
    path = tmp_path / "deep" / "w.parquet"
    write_table(weights(), path, DISCOVERY_TABLES["weights"], WEIGHTS, metadata={"epivi.sample": "a b"})
    table = read_table(path, "weights")
    assert table.column_names == [column.name for column in DISCOVERY_TABLES["weights"]]
    assert [field.type for field in table.schema] == [column.type for column in DISCOVERY_TABLES["weights"]]
    assert table.column("hypothesis").to_pylist() == ["h0", "h1", "h2"]
    assert table.schema.field("weight").metadata[b"unit"] == b"fraction"
    assert table.schema.metadata[b"epivi.sample"] == b"a b"
    assert table.schema.metadata[b"epivi.format_version"] == str(FORMAT_VERSION).encode()
    assert read_provenance(path) == WEIGHTS
    assert read_table(path, "weights", ["n_loci", "weight"]).column_names == ["n_loci", "weight"]
    assert pq.ParquetFile(path).metadata.row_group(0).column(1).compression == "ZSTD"


def test_row_groups_end_when_full_and_when_flushed(tmp_path):
    path = tmp_path / "w.parquet"
    with TableWriter(path, DISCOVERY_TABLES["weights"], WEIGHTS, row_group_rows=10) as writer:
        for n in (4, 4, 25, 3):
            writer.write(weights(n))
        writer.flush()
        writer.flush()
        writer.write(weights(2).to_batches()[0])
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [10, 10, 10, 6, 2]
    expected = [value for n in (4, 4, 25, 3, 2) for value in range(n)]
    assert read_table(path, "weights").column("n_loci").to_pylist() == expected
    assert metadata.row_group(1).column(8).statistics.min == min(expected[10:20])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (weights().drop_columns(["lower"]), r"missing \['lower'\], extra \[\]"),
        (weights().append_column("more", [[1, 2, 3]]), r"missing \[\], extra \['more'\]"),
        (weights().set_column(2, "n_loci", [[1, None, 2]]), "column n_loci holds 1 nulls"),
        (weights().set_column(2, "n_loci", [[1.5, 1, 2]]), "truncated"),
    ],
)
def test_wrong_columns_are_refused_and_leave_no_file(tmp_path, table, message):
    with pytest.raises(ValueError, match=message):
        write_table(table, tmp_path / "w.parquet", DISCOVERY_TABLES["weights"], WEIGHTS)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "w.parquet"
    write_table(weights(2), path, DISCOVERY_TABLES["weights"], WEIGHTS)
    with pytest.raises(ValueError, match="columns"), TableWriter(path, DISCOVERY_TABLES["weights"], WEIGHTS) as writer:
        writer.write(weights(3).drop_columns(["upper"]))
    assert read_table(path, "weights").num_rows == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.parquet"]


def test_an_empty_table_can_be_written(tmp_path):
    write_table(weights(0), tmp_path / "w.parquet", DISCOVERY_TABLES["weights"], WEIGHTS)
    assert read_table(tmp_path / "w.parquet", "weights").num_rows == 0


def test_natural_order():
    names = ["chrX", "chr10", "chr2", "chr1", "2", "10", "scaffold_9.1", "chr02", "chrM", ""]
    expected = ["", "2", "10", "chr1", "chr02", "chr2", "chr10", "chrM", "chrX", "scaffold_9.1"]
    assert sorted(names, key=natural_key) == expected


def test_natural_key_of_numbers_that_python_does_not_read():
    """Beyond 4300 digits int() refuses; zeros in front do not count, and settle what is otherwise equal."""
    names = ["c" + "9" * 4999, "c10" + "0" * 4998, "c2", "c" + "0" * 5000 + "1", "c1", "c"]
    assert sorted(names, key=natural_key) == ["c", "c" + "0" * 5000 + "1", "c1", "c2", names[0], names[1]]


# ---- refusals


def parquet_with(path, metadata):
    schema = arrow_schema(DISCOVERY_TABLES["weights"], metadata)
    pq.write_table(weights().select(schema.names).cast(schema), path)
    return path


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({**WEIGHTS.metadata(), "epivi.format_version": str(FORMAT_VERSION + 1)}, "newer than this epivi"),
        ({**WEIGHTS.metadata(), "epivi.format_version": f"{FORMAT_VERSION + 1}.4"}, "newer than this epivi"),
        ({**WEIGHTS.metadata(), "epivi.format_version": "odd"}, "newer than this epivi"),
        ({**WEIGHTS.metadata(), "epivi.table": "qvalue"}, "holds the table 'qvalue'; expected 'weights'"),
        ({}, "not a file written by epivi"),
    ],
)
def test_files_of_another_kind_or_newer_format(tmp_path, metadata, message):
    path = parquet_with(tmp_path / "w.parquet", metadata)
    with pytest.raises(UserError) as error:
        read_table(path, "weights")
    assert message in one_line(error)
    assert str(path) in one_line(error)


def test_a_newer_minor_version_is_read(tmp_path):
    metadata = {**WEIGHTS.metadata(), "epivi.format_version": f"{FORMAT_VERSION}.9"}
    assert read_table(parquet_with(tmp_path / "w.parquet", metadata), "weights").num_rows == 3


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.99])
def test_truncated_file(tmp_path, keep):
    path = tmp_path / "w.parquet"
    write_table(weights(2000), path, DISCOVERY_TABLES["weights"], WEIGHTS)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match="truncated or damaged") as error:
        read_table(path, "weights")
    assert str(path) in one_line(error)


def test_damage_inside_the_pages(tmp_path):
    path = tmp_path / "w.parquet"
    write_table(weights(5000), path, DISCOVERY_TABLES["weights"], WEIGHTS)
    content = bytearray(path.read_bytes())
    content[4:2000] = b"\xff" * 1996
    path.write_bytes(content)
    with pytest.raises(UserError, match="truncated or damaged") as error:
        read_table(path, "weights")
    one_line(error)


def test_missing_files_folders_and_columns(tmp_path):
    with pytest.raises(UserError, match=r"none\.parquet: no such file"):
        read_table(tmp_path / "none.parquet", "weights")
    with pytest.raises(UserError, match="is a folder; expected one Parquet file"):
        read_table(tmp_path, "weights")
    with pytest.raises(UserError, match="is a folder"):
        read_provenance(tmp_path)
    write_table(weights(), tmp_path / "w.parquet", DISCOVERY_TABLES["weights"], WEIGHTS)
    with pytest.raises(UserError, match="no column 'wait'; expected one of hypothesis, weight"):
        read_table(tmp_path / "w.parquet", "weights", ["wait"])


# ---- counts


def write_counts(path, *tables, flush=True):
    with TableWriter(path, INGEST_TABLES["counts"], Provenance("counts", 1, "", ""), row_group_rows=50) as writer:
        for table in tables:
            writer.write(table)
            if flush:
                writer.flush()
    return path


def test_counts_by_contig(tmp_path):
    path = write_counts(tmp_path / "my sample.parquet", counts("b", list(range(0, 240, 2))), counts("a", [5, 9]))
    file = CountsFile.open(path)
    assert file.sample == "my sample"
    assert list(file.contigs) == ["b", "a"]
    assert file.contigs["b"] == ((0, 1, 2), 120, 0, 238, -1)
    rows = list(file.rows("b", batch_rows=33))
    assert max(batch.pos0.size for batch in rows) <= 33
    assert np.concatenate([batch.pos0 for batch in rows]).tolist() == list(range(0, 240, 2))
    assert np.concatenate([batch.total for batch in rows]).tolist() == list(range(1, 121))
    (only,) = file.rows("a")
    assert [array.tolist() for array in only] == [[5, 9], [0, 0], [0, 0], [0, 1], [1, 2]]
    assert list(file.rows("absent")) == []


def test_one_contig_costs_only_its_bytes(tmp_path):
    path = write_counts(tmp_path / "s.parquet", counts("a", [1, 2]), counts("b", list(range(4000))))
    metadata = pq.ParquetFile(path).metadata
    first = metadata.row_group(1).column(1)
    content = bytearray(path.read_bytes())
    begin = first.dictionary_page_offset or first.data_page_offset
    content[begin : begin + first.total_compressed_size] = b"\xff" * first.total_compressed_size
    path.write_bytes(content)
    file = CountsFile.open(path)
    assert [rows.pos0.tolist() for rows in file.rows("a")] == [[1, 2]]
    with pytest.raises(UserError, match="truncated or damaged"):
        list(file.rows("b"))


@pytest.mark.parametrize("batch_rows", [1, 2, 99])
def test_contigs_that_share_a_row_group(tmp_path, batch_rows):
    """Also where the next starts at a smaller or a larger position, beside row groups of one contig."""
    contents = {"a": [3, 9], "b": [1], "c": [20, 20, 31], "d": [40], "e": list(range(70))}
    path = tmp_path / "s.parquet"
    with TableWriter(path, INGEST_TABLES["counts"], Provenance("counts", 1, "", "")) as writer:
        for contig, positions in contents.items():
            writer.write(counts(contig, positions))
            if contig in "de":
                writer.flush()
    file = CountsFile.open(path)
    assert file.file.num_row_groups == 2
    assert file.contigs["c"] == ((0,), 3, 20, 31, 3)
    for contig in [*contents, *reversed(contents), "a", "e", "b"]:
        rows = list(file.rows(contig, batch_rows))
        assert max(batch.pos0.size for batch in rows) <= batch_rows
        assert np.concatenate([batch.pos0 for batch in rows]).tolist() == contents[contig]
        assert np.concatenate([batch.total for batch in rows]).tolist() == list(range(1, len(contents[contig]) + 1))


def test_rows_of_several_contigs(tmp_path):
    """In the order asked for, wherever they lie: in one of several row groups, or in several."""
    contents = {"a": [3, 9], "b": [1], "c": [20, 20, 31], "d": list(range(70)), "e": [0], "f": [2, 4]}
    path = tmp_path / "s.parquet"
    with TableWriter(path, INGEST_TABLES["counts"], Provenance("counts", 1, "", ""), row_group_rows=50) as writer:
        for contig, positions in contents.items():
            writer.write(counts(contig, positions))
            if contig in "cdf":
                writer.flush()
    file = CountsFile.open(path)
    assert [len(rows.row_groups) for rows in file.contigs.values()] == [1, 1, 1, 2, 1, 1]
    for names in ("abcdef", "fdbax", "d", "x", "", "ecf"):
        rows, number = file.rows_of(names)
        assert rows.pos0.tolist() == [pos for name in names for pos in contents.get(name, [])]
        assert rows.total.tolist() == [n + 1 for name in names for n in range(len(contents.get(name, [])))]
        assert [names[each] for each in number] == [name for name in names for _ in contents.get(name, [])]
        assert [array.dtype for array in rows] == [np.int32, np.int8, np.int8, np.int32, np.int32]
    unsorted = CountsFile.open(write_counts(tmp_path / "u.parquet", counts("a", [5]), counts("b", [5, 3, 6])))
    with pytest.raises(UserError, match="positions of b are not sorted"):
        unsorted.rows_of(["a", "b"])


def test_counts_out_of_order(tmp_path):
    for number, (message, tables, flush) in enumerate(
        [
            ("positions of a are not sorted", [counts("a", [5, 6]), counts("a", [3, 7])], True),
            ("positions of b are not sorted", [counts("a", [1]), counts("b", [5, 4]), counts("c", [1])], False),
            ("rows of a are not contiguous", [counts("a", [1]), counts("b", [1]), counts("a", [2])], False),
        ]
    ):
        with pytest.raises(UserError, match=message) as error:
            CountsFile.open(write_counts(tmp_path / f"{number}.parquet", *tables, flush=flush))
        one_line(error)
    for last in (["a"], ["c", "a"]):
        path = tmp_path / f"{len(last)}.parquet"
        with TableWriter(path, INGEST_TABLES["counts"], Provenance("counts", 1, "", "")) as writer:
            writer.write(counts("a", [1]))
            writer.write(counts("b", [1]))
            writer.flush()
            for contig in last:
                writer.write(counts(contig, [9]))
        with pytest.raises(UserError, match="rows of a are not contiguous"):
            CountsFile.open(path)
    file = CountsFile.open(write_counts(tmp_path / "u.parquet", counts("a", [5, 3, 6])))
    with pytest.raises(UserError, match="positions of a are not sorted"):
        list(file.rows("a"))


# ---- loci

SIZES = {"a/b": 1000, "chr1": 2500, "chr2": 1}
SAMPLES = ("x", "y", "z")
LOCI = Provenance("loci", 4, "c", "")


@pytest.fixture
def blocks():
    rng = np.random.default_rng(11)
    result = {}
    for contig, n in SIZES.items():
        pos0 = np.cumsum(rng.integers(1, 9, n)).astype(np.int32)
        codes = rng.integers(0, 3, (2, n)).astype(np.int8)
        total = (rng.integers(0, 65536, (n, 3)) * (rng.random((n, 3)) < 0.8)).astype(np.uint16)
        result[contig] = LocusBlock(contig, 0, pos0, pos0 + 2, codes[0], codes[1], total // 2, total)
    return result


@pytest.fixture
def directory(tmp_path, blocks, monkeypatch):
    # Record batches of 400 loci, written in pieces of 333.
    monkeypatch.setattr(loci_file, "BATCH_VALUES", 2800)
    folder = tmp_path / "loci"
    write_loci(folder, SAMPLES, list(blocks.values()), LOCI, {"tile": 2})
    return folder


def part(block, rows):
    """Some of a block's loci, by a slice or their numbers."""
    return LocusBlock(block.contig, 0, *(array[rows] for array in block[2:]))


@pytest.fixture
def in_panels(tmp_path, blocks, monkeypatch):
    """The same loci in panels: z beside one that left the cohort and y, then x; with loci that the cohort has not."""
    monkeypatch.setattr(loci_file, "BATCH_VALUES", 2100)
    rng = np.random.default_rng(12)
    folder = tmp_path / "panels"
    panels = [PanelColumns("zy", (2, -1, 1)), PanelColumns("x", (0,)), PanelColumns("yx", (-1, -1))]
    panel_files, index_files = [[] for _ in panels], []
    for contig, block in blocks.items():
        rows = []
        for panel, files in zip(panels, panel_files, strict=True):
            columns = np.array(panel.places)
            has_reads = (block.total[:, columns[columns >= 0]] > 0).any(axis=1)
            # Rows of the panel: loci of the cohort, in between others.
            row = np.where(has_reads, np.cumsum(rng.integers(1, 3, block.pos0.size)) - 1, -1).astype(np.int32)
            n = 0 if not has_reads.any() else int(row.max()) + 2
            rows.append(row)
            if n:
                files.append(write_panel_contig(folder / PANELS / panel.name, block, row, n, columns, rng))
        row = np.stack(rows, axis=1)
        pieces = [
            (contig, IndexRows(*(array[start : start + 333] for array in (*block[2:6], row))))
            for start in range(0, block.pos0.size, 333)
        ]
        index_files.append(write_file(folder / INDEX / contig_file(contig), index_columns(len(panels)), LOCI, pieces))
        assert index_files[-1].n_loci == (SIZES[contig],)
    for panel, files in zip(panels, panel_files, strict=True):
        write_json(folder / PANELS / panel.name / RECORD, {FILES: as_record(files)})
    write_loci_manifest(folder, SAMPLES, panels, index_files, {"tile": 2}, LOCI, {"n_seen": 5000})
    return folder


@pytest.fixture
def in_one_file(tmp_path, blocks, monkeypatch):
    """All contigs in one file of the panel and of the index; record batches hold loci of several of them."""
    monkeypatch.setattr(loci_file, "BATCH_VALUES", 2800)
    folder = tmp_path / "grouped"
    write_loci(folder, SAMPLES, list(blocks.values()), LOCI, {"tile": 2}, in_one_file=True)
    return folder


def write_panel_contig(folder, block, row, n, columns, rng):
    """n loci, among them those of the block at `row` with its counts; all else is noise that no one may read."""
    counts = rng.integers(1, 65536, (2, n, columns.size)).astype(np.uint16)
    for values, source in zip(counts, (block.meth, block.total), strict=True):
        for column, place in enumerate(columns):
            if place >= 0:
                values[row[row >= 0], column] = source[row >= 0, place]
    pos0, codes = np.arange(n, dtype=np.int32), np.zeros(n, np.int8)
    own = dataclasses.replace(LOCI, table="panel")
    noise = (block.contig, PanelRows(pos0, pos0 + 1, codes, codes, *counts))
    return write_file(folder / contig_file(block.contig), panel_columns(columns.size), own, [noise])


def assert_equal(block, whole, start, stop):
    assert block.start == start
    for array, expected in zip(block[2:], whole[2:], strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected[start:stop])


@pytest.mark.parametrize("kind", ["directory", "in_panels", "in_one_file"])
def test_store_gives_back_what_was_written(request, kind, blocks):
    directory = request.getfixturevalue(kind)
    store = LociStore.open(directory)
    assert store.samples == SAMPLES
    assert store.contigs == tuple(SIZES)
    assert store.n_loci == 3501
    assert store.unit == {"tile": 2}
    assert store.provenance == read_provenance(directory) == LOCI
    rng = np.random.default_rng(5)
    for contig, n in SIZES.items():
        assert store.n_loci_of(contig) == n
        ranges = [(0, n), (n, n), (0, 0), (min(399, n), min(402, n))]
        ranges += [tuple(sorted(rng.integers(0, n + 1, 2).tolist())) for _ in range(50)]
        ranges += [(start, min(start + 16, n)) for start in rng.integers(0, n, 50).tolist()]
        for start, stop in ranges:
            assert_equal(store.block(contig, start, stop), blocks[contig], start, stop)
    block = store.block("chr1", 0, 5)
    assert block.strand.tolist() == ["+-."[code] for code in blocks["chr1"].strand_code[:5]]
    assert block.context.tolist() == [("CG", "CHG", "CHH")[code] for code in blocks["chr1"].context_code[:5]]


def test_blocks_and_numbered_blocks_cover_every_locus_once(directory):
    store = LociStore.open(directory)
    for size in (1, 7, 400, 1000, 9999):
        index = store.global_blocks(size)
        ranges = [index[number] for number in range(len(index))]
        assert ranges == [(b.contig, b.start, b.start + b.pos0.size) for b in store.blocks(size)]
        for contig, n in SIZES.items():
            own = [(start, stop) for name, start, stop in ranges if name == contig]
            assert [own[0][0], *(stop for _, stop in own)] == [start for start, _ in own] + [n]
            lengths = {stop - start for start, stop in own}
            assert max(lengths) <= size
            assert max(lengths) - min(lengths) <= 1
        for number in (-1, len(index)):
            with pytest.raises(IndexError):
                index[number]


@pytest.mark.parametrize("kind", ["directory", "in_panels", "in_one_file"])
@pytest.mark.parametrize("size", [1, 7, 400, 1000, 9999])
def test_spans_are_the_blocks_of_their_contigs(request, kind, blocks, size):
    """In ranges that end anywhere, all loci once and in genome order."""
    store = LociStore.open(request.getfixturevalue(kind))
    ranges = even_ranges(store.n_loci, size)
    assert len(ranges) == -(-store.n_loci // size)
    spans = [store.span(start, stop) for start, stop in ranges]
    assert [(span.start, span.start + span.pos0.size) for span in spans] == ranges
    names = [name for span in spans for name in span.contig.to_pylist()]
    assert names == [name for name, n in SIZES.items() for _ in range(n)]
    for place in range(2, 8):
        found = np.concatenate([span[place] for span in spans])
        np.testing.assert_array_equal(found, np.concatenate([blocks[name][place] for name in SIZES]))
    for (start, stop), span in zip(ranges, spans, strict=True):
        assert store.contigs_of(start, stop) == tuple(dict.fromkeys(span.contig.to_pylist()))
    for start, stop in ((0, 0), (-1, 5), (0, store.n_loci + 1)):
        with pytest.raises(IndexError):
            store.span(start, stop)


def test_blocks_are_views_of_the_memory_map(directory):
    store = LociStore.open(directory)
    # Within one record batch of the panel, from 800, and of the index, to 1120.
    block = store.block("chr1", 810, 1110)
    again = store.block("chr1", 810, 1110)
    for array, other in zip(block[2:], again[2:], strict=True):
        assert not array.flags.owndata
        assert not array.flags.writeable
        assert np.shares_memory(array, other)


def test_reading_allocates_nearly_nothing(tmp_path):
    n, samples = 400_000, tuple(f"s{i}" for i in range(20))
    pos0 = np.arange(n, dtype=np.int32)
    codes, reads = np.zeros(n, np.int8), np.full((n, 20), 3, np.uint16)
    write_loci(tmp_path, samples, [LocusBlock("c", 0, pos0, pos0 + 1, codes, codes, reads, reads)], LOCI)
    del reads
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    store = LociStore.open(tmp_path)
    index = store.global_blocks(256)
    total = sum(int(store.block(*index[number]).meth[0, 0]) for number in range(0, len(index), 10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 3 * len(range(0, len(index), 10))
    assert (tmp_path / PANELS / PANEL / "c.arrow").stat().st_size > 32_000_000
    assert peak + pa.total_allocated_bytes() - before < 1_000_000


def meth_sum(store, contig):
    return int(store.block(contig, 0, store.n_loci_of(contig)).meth.sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_store_works_in_other_processes(directory, blocks, method):
    store = LociStore.open(directory)
    assert meth_sum(store, "chr1") == blocks["chr1"].meth.sum()
    assert len(pickle.dumps(store)) < 5000
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(meth_sum, store, "a/b").result() == blocks["a/b"].meth.sum()
    assert meth_sum(store, "chr1") == blocks["chr1"].meth.sum()


def test_ranges_and_contigs_that_are_not_there(directory):
    store = LociStore.open(directory)
    for start, stop in ((-1, 3), (5, 4), (0, 2501)):
        with pytest.raises(IndexError):
            store.block("chr1", start, stop)
    for refused in (lambda: store.block("chr3", 0, 1), lambda: store.n_loci_of("chr3")):
        with pytest.raises(UserError, match="no contig 'chr3'; expected one of a/b, chr1, chr2"):
            refused()


def damaged_manifest(directory, **changes):
    path = directory / "loci.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_manifest_refusals(directory, tmp_path):
    with pytest.raises(UserError, match="no such file; expected a folder written by epivi assemble"):
        LociStore.open(tmp_path / "none")
    damaged_manifest(directory, table="counts")
    with pytest.raises(UserError, match="holds the table 'counts'; expected 'loci'"):
        LociStore.open(directory)
    damaged_manifest(directory, table="loci", format_version=FORMAT_VERSION + 1, version="9.9")
    with pytest.raises(UserError, match=r"written by epivi 9\.9\) is newer"):
        LociStore.open(directory)
    (directory / "loci.json").write_text('{"samples": [')
    with pytest.raises(UserError, match="not a manifest"):
        LociStore.open(directory)
    (directory / "loci.json").write_text('{"format_version": 1}')
    with pytest.raises(UserError, match="not a manifest"):
        LociStore.open(directory)


def test_folder_of_an_earlier_format(directory):
    path = directory / "loci.json"
    manifest = json.loads(path.read_text())
    del manifest["files"]
    path.write_text(
        json.dumps(manifest | {"version": "0.0.9", "contigs": [{"name": "chr1", "file": "f", "n_loci": 1}]})
    )
    with pytest.raises(UserError, match=r"earlier epivi \(0\.0\.9\).*write the loci again: epivi assemble") as error:
        LociStore.open(directory)
    one_line(error)


def test_many_contigs_are_not_all_listed(tmp_path):
    names = tuple(f"scaffold{number}" for number in range(5000))
    write_loci_manifest(tmp_path, ["a"], [], [LociFile("+0000.arrow", 0, names, (4,) * 5000)], "cpg", LOCI, {})
    with pytest.raises(UserError, match=r"expected one of scaffold0, .*, scaffold9 and 4990 more$"):
        LociStore.open(tmp_path).n_loci_of("chr3")


def test_few_files_stay_open(directory, blocks, monkeypatch):
    """A file handle each for thousands of contigs would be more than a process may have."""
    monkeypatch.setattr(loci_file, "MOST_OPEN_FILES", 3)
    store = LociStore.open(directory)
    held = [store.block(contig, 0, 1) for contig in list(SIZES) * 3]
    assert len(store._files._open) == 3
    for block in held:  # views outlive the file's closing
        assert_equal(block, blocks[block.contig], 0, 1)


@pytest.mark.parametrize("folder", [f"{PANELS}/{PANEL}", INDEX])
def test_loci_file_refusals(directory, folder):
    store = LociStore.open(directory)
    chr1, chr2 = (directory / folder / f"{contig}.arrow" for contig in ("chr1", "chr2"))
    content = chr1.read_bytes()
    chr1.write_bytes(chr2.read_bytes())
    with pytest.raises(UserError, match=r"chr1\.arrow: holds 1 loci; chr1 is recorded to end at 2500"):
        store.block("chr1", 0, 1)
    chr1.write_bytes(content)
    content = chr1.read_bytes()
    for keep in (0, 100, len(content) // 2, len(content) - 1):
        chr1.write_bytes(content[:keep])
        with pytest.raises(UserError, match=r"chr1\.arrow: not a readable Arrow file, truncated or damaged") as error:
            LociStore.open(directory).block("chr1", 0, 1)
        one_line(error)
    chr1.unlink()
    with pytest.raises(UserError, match=r"chr1\.arrow: no such file"):
        LociStore.open(directory).block("chr1", 0, 1)


def test_panels_and_samples_that_the_files_have_not(directory):
    for panels, message in (
        ([{"name": PANEL, "places": [0, 1]}], r"panel/a%2Fb\.arrow: its columns are not those of 2 samples"),
        (
            [{"name": PANEL, "places": [0]}, {"name": PANEL, "places": [1]}],
            r"a%2Fb\.arrow: its columns are not those of 2 p",
        ),
        ([{"name": "lost", "places": [0, 1, 2]}], r"lost/panel\.json: no such file"),
    ):
        damaged_manifest(directory, panels=panels)
        with pytest.raises(UserError, match=message):
            LociStore.open(directory).block("a/b", 0, 1)


def test_store_imports_nothing_heavy():
    code = (
        "import sys, epivi.loci.store, epivi.loci.assemble, epivi.commands.assemble\n"
        "print([name for name in ('torch', 'pandas', 'duckdb', 'scipy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
