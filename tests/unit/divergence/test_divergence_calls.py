"""Reading state calls and tables of divergences: what comes in, and one clear line for what cannot."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from epivi.base.errors import UserError
from epivi.divergence.calls import Calls, read_calls, read_pairs
from epivi.divergence.pairs import MISSING_STATE

HEADER = "seqnames\tstart\tstrand\tcontext\tposteriorMax\tstatus\n"
ROWS = "2\t20\t+\tCG\t0.999\tM\n2\t21\t-\tCG\t0.999\tI\n10\t5\t+\tCG\t0.98\tU\n10\t7\t+\tCHG\t1\tM\n"


def write(folder: Path, text: str, name: str = "a.txt") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def described(calls: Calls) -> list[tuple[str, list[int]]]:
    return [(calls.contigs[code], row.tolist()) for code, row in zip(calls.contig, calls.states, strict=True)]


def test_letters_words_and_any_order_of_columns(tmp_path: Path) -> None:
    letters = write(tmp_path, HEADER + ROWS)
    words = {"U": "Unmethylated", "I": "intermediate", "M": "METHYLATED"}
    rows = [line.split("\t") for line in ROWS.splitlines()]
    turned = ["\t".join([words[r[5]], "x", r[4], r[3], r[1], r[2], r[0]]) + "\r\n" for r in rows]
    header = "status\tcounts.total\tposteriorMax\tcontext\tstart\tstrand\tseqnames\r\n"
    other = tmp_path / "b.txt.gz"
    other.write_bytes(gzip.compress((header + "".join(reversed(turned))).encode()))
    calls = read_calls([letters, str(other)], ["CG"], 0.99)
    expected = [("2", [2, 2]), ("2", [1, 1]), ("10", [MISSING_STATE] * 2)]
    assert described(calls) == expected
    assert calls.states.dtype == np.int8


def test_posterior_and_contexts(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + ROWS)
    assert described(read_calls([path], ["CG"], 0.98))[2] == ("10", [0])
    assert described(read_calls([path], ["CG", "CHG"], 0))[3] == ("10", [2])


def test_samples_with_different_sites_are_joined(tmp_path: Path) -> None:
    first = write(tmp_path, f"{HEADER}1\t10\t+\tCG\t1\tM\n1\t10\t-\tCG\t1\tU\n9\t10\t+\tCG\t1\tU\n")
    second = write(tmp_path, f"{HEADER}9\t10\t+\tCG\t1\tI\n1\t10\t+\tCG\t1\tM\n3\t7\t*\tCG\t1\tM\n", "b.txt")
    seen = []
    calls = read_calls([first, second], ["CG"], 0.99, lambda: seen.append(1))
    gone = MISSING_STATE
    assert described(calls) == [("1", [2, 2]), ("1", [0, gone]), ("3", [gone, 2]), ("9", [0, 1])]
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEADER.replace("status", "call") + ROWS, "FILE: line 1: the header lacks status (expected seqnames, start, "),
        (HEADER.replace("posteriorMax", "p") + ROWS, "FILE: line 1: the header lacks posteriorMax (expected seqnames"),
        (HEADER, "FILE: the file has no rows"),
        (f"{HEADER}{ROWS}2\t30\t+\tCG\t1\tX\n", "FILE: line 6: column 6 (status) is 'X' (expected U, I or M, or Unm"),
        (f"{HEADER}2\t30\t+\tCG\t1\tNA\n", "FILE: line 2: column 6 (status) is 'NA' (expected U, I or M, or Unmethyl"),
        (f"{HEADER}2\t30\t+\tCG\t1.2\tM\n", "FILE: line 2: column 5 (posteriorMax) is '1.2' (expected a probability f"),
        (f"{HEADER}2\t30\t+\tCG\tnan\tM\n", "FILE: line 2: column 5 (posteriorMax) is 'nan' (expected a probability f"),
        (f"{HEADER}2\t30\t+\tCG\thigh\tM\n", "FILE: line 2: column 5 (posteriorMax) is 'high' (expected a number)"),
        (f"{HEADER}2\t0\t+\tCG\t1\tM\n", "FILE: line 2: column 2 (start) is '0' (expected a 1-based position)"),
        (f"{HEADER}2\t4\tx\tCG\t1\tM\n", "FILE: line 2: column 3 (strand) is 'x' (expected +, - or *)"),
        (f"{HEADER}2\t4\t+\tCG\t1\n", "FILE: line 2: 5 columns (expected 6)"),
        (f"{HEADER}{ROWS}2\t20\t+\tCG\t1\tM\n", "FILE: 2 position 20 is there twice: expected one row a site and str"),
        (f"{HEADER}10\t7\t+\tCHG\t1\tM\n", "FILE: no row has the context CG"),
    ],
)
def test_one_clear_line(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_calls([path], ["CG"], 0.99)
    assert "\n" not in str(caught.value)
    assert str(caught.value).replace(path, "FILE").startswith(expected)


@pytest.mark.parametrize("separator", [",", "\t", " ", ", "])
def test_tables_of_divergences(tmp_path: Path, separator: str) -> None:
    rows = [("time0", "time1", "time2", "D.value"), ("0", "3", "31", "0.0121"), ("2", "2", "4", "1e-3")]
    times, divergence = read_pairs(write(tmp_path, "".join(separator.join(row) + "\n" for row in rows)))
    assert np.transpose(times).tolist() == [[0, 3, 31], [2, 2, 4]]
    assert divergence.tolist() == [0.0121, 0.001]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("time0,time1,time2,D\n0,1,1,0\n", "FILE line 1: no column 'D.value' among 'time0', 'time1', 'time2', 'D'"),
        ("time0,time1,time2,D.value\n0,1,1.5,0\n", "FILE line 2: time2 is '1.5': expected a whole number of generati"),
        ("time0,time1,time2,D.value\n0,1,1,0\n2,3,1,0\n", "FILE line 3: time2 is 1: expected time0 or more"),
        ("time0,time1,time2,D.value\n2,1,3,0\n", "FILE line 2: time1 is 1: expected time0 or more"),
        ("time0,time1,time2,D.value\n0,1,1,NA\n", "FILE line 2: D.value is 'NA': expected a number from 0 to 1"),
        ("time0,time1,time2,D.value\n0,1,1,12\n", "FILE line 2: D.value is '12': expected a number from 0 to 1"),
        ("time0,time1,time2,D.value\n", "FILE: the table of divergences has a header and no rows"),
        ("", "FILE: the table of divergences is empty: expected a header line with time0, time1, time2, D.value"),
    ],
)
def test_tables_of_divergences_with_mistakes(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_pairs(path)
    assert str(caught.value).replace(path, "FILE").startswith(expected)
