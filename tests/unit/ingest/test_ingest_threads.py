"""Blocks parsed on several threads give what one thread gives: the loci, the record, and the first error."""

from __future__ import annotations

import gzip
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pysam
import pytest
from test_ingest_files import make_settings

from epivi.base.errors import UserError
from epivi.base.ordered import in_order
from epivi.ingest import spill as spill_module
from epivi.ingest import text as text_module
from epivi.ingest.read import ingest


def coverage(n_rows: int = 1500) -> str:
    rows = ((f"chr{1 + number % 3}", 7 * number + 1 + number % 2) for number in range(n_rows))
    return "".join(f"{contig}\t{pos}\t{pos}\t25\t1\t3\n" for contig, pos in rows)


def run(path: Path, threads: int) -> tuple[list, object]:
    written: list = []

    def write(contig, loci):
        written.append((contig, *(column.tolist() for column in loci)))

    record = ingest(path, "s", make_settings(), write, spill_directory=path.parent, threads=threads)
    return written, record


@pytest.mark.parametrize("separator", ["\t", "  "])
@pytest.mark.parametrize("memory_bytes", [1 << 28, 5000, 0])
def test_any_number_of_threads(tmp_path, monkeypatch, separator, memory_bytes):
    path = tmp_path / "in.cov.gz"
    text = "# a comment\n" + coverage().replace("\n", "\n\n", 40).replace("\t", separator)
    path.write_bytes(gzip.compress(text.encode()))
    expected = run(path, 1)
    assert sum(len(contig[1]) for contig in expected[0]) == expected[1].loci_written == 1500
    monkeypatch.setattr(text_module, "BLOCK_BYTES", 300)
    monkeypatch.setattr(spill_module, "MEMORY_BYTES", memory_bytes)
    for threads in (1, 2, 5):
        assert run(path, threads) == expected


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_of_several_errors_is_the_one_raised(tmp_path, monkeypatch, threads):
    """A wrong value, then a line that does not parse, then a damaged end: the file is read in order."""
    monkeypatch.setattr(text_module, "BLOCK_BYTES", 3000)
    monkeypatch.setattr(text_module, "SAMPLE_BYTES", 300)
    rows = coverage(30_000).splitlines(keepends=True)
    faults = [(100, "chr1\t5\t5\t50\t-1\t1\n"), (1200, "chr1\t5\t5\t50\tx\t1\n")]
    path = tmp_path / "in.cov.gz"
    for number, line in reversed(faults):
        rows[number] = line
        path.write_bytes(gzip.compress("".join(rows).encode())[:-3])
        with pytest.raises(UserError, match=f"line {number + 1}: column 5"):
            run(path, threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_file_cut_short_is_not_read_as_a_whole(tmp_path, threads):
    path = tmp_path / "cut.cov.gz"
    raw = gzip.compress(coverage(60_000).encode(), compresslevel=1)
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match="is truncated or damaged"):
        run(path, threads)


def test_members_of_bgzip_and_of_several_gzip_files(tmp_path):
    text = coverage(20_000)
    half = text.index("\n", len(text) // 2) - 3  # within a line
    plain, members, blocked = (tmp_path / name for name in ("plain", "members", "blocked"))
    plain.write_text(text)
    members.write_bytes(b"".join(gzip.compress(part.encode()) for part in (text[:half], text[half:])))
    with pysam.BGZFile(str(blocked), "wb") as file:
        file.write(text.encode())
    expected, _ = run(plain, 1)
    assert run(members, 2)[0] == run(blocked, 2)[0] == expected


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "BLOCK_BYTES", 100)
    monkeypatch.setattr(text_module, "LINE_BYTES_MAX", 250)
    path = tmp_path / "in.cov"
    path.write_text(coverage(5) + "chr1" * 100)
    with pytest.raises(UserError, match=r"a line is longer than 250 bytes \(expected a table\)"):
        run(path, 1)


def test_results_come_in_order_and_few_are_under_way():
    started, lock, n_started, most = [], threading.Lock(), 0, 0

    def slow_square(number):
        nonlocal n_started
        with lock:
            n_started += 1
        time.sleep(0.002 * (number % 3))
        return number * number

    with ThreadPoolExecutor(3) as pool:
        for place, square in enumerate(in_order(pool, slow_square, range(30), ahead=4)):
            started.append(square)
            most = max(most, n_started - place)
    assert started == [number * number for number in range(30)]
    assert 1 < most <= 5


@pytest.mark.parametrize("n_workers", [0, 2])
def test_what_an_item_or_its_making_raises_comes_in_its_place(n_workers):
    def items():
        yield from (1, 2, 4)
        raise KeyError("items")

    def inverse(number):
        return 1 / (number - 4 * fails)

    for fails, expected in ((False, KeyError), (True, ZeroDivisionError)):
        given = []
        with ThreadPoolExecutor(2) as workers, pytest.raises(expected):
            given.extend(in_order(workers if n_workers else None, inverse, items(), ahead=5))
        assert len(given) == (2 if fails else 3)
