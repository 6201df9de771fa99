"""Rows in long form and back: the hypotheses of a locus follow one another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from epivi.discovery.columns import STATISTICS
from epivi.discovery.rows import evidence_rows, labels, long, wide


class Found(NamedTuple):
    """The evidence of one hypothesis at three loci, with two parameters."""

    log_evidence: np.ndarray
    mean: np.ndarray
    q05: np.ndarray
    q50: np.ndarray
    q95: np.ndarray


def found(start: float) -> Found:
    statistics = [start + 10 * k + np.arange(6.0).reshape(3, 2) for k in range(len(STATISTICS))]
    return Found(start + np.arange(3.0), *statistics)


def test_hypotheses_of_a_locus_follow_one_another_and_come_back_as_columns() -> None:
    evidences = [found(0.0), found(100.0)]
    assert set(STATISTICS) == set(Found._fields[1:])
    rows = evidence_rows({"locus": np.repeat([7, 8, 9], 2)}, ("a", "b"), ("x", "y"), evidences, ("log_evidence",))
    assert list(rows)[:3] == ["locus", "hypothesis", "log_evidence"]
    assert rows["hypothesis"].to_pylist() == ["a", "b"] * 3
    assert rows["log_evidence"].tolist() == [0, 100, 1, 101, 2, 102]
    batch = pa.RecordBatch.from_pydict(rows)
    np.testing.assert_array_equal(wide(batch, "log_evidence", 2), [[0, 100], [1, 101], [2, 102]])
    for statistic in STATISTICS:
        for k, parameter in enumerate(("x", "y")):
            expected = np.stack([getattr(evidence, statistic)[:, k] for evidence in evidences], axis=1)
            np.testing.assert_array_equal(wide(batch, f"{parameter}_{statistic}", 2), expected)


def test_codes_are_words() -> None:
    assert labels(np.array([1, 0, 1]), ["null", "other"]).to_pylist() == ["other", "null", "other"]
    assert long([np.array([1, 2]), np.array([3, 4])]).tolist() == [1, 3, 2, 4]
