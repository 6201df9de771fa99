"""Hypotheses that nothing separates are one: in kinds, in what counts as null, and in what is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from epivi.base.errors import UserError
from epivi.discovery.merged import (
    GROUPS_METADATA,
    each_alone,
    groups_of,
    merged_nulls,
    read_groups,
    read_sentences,
    summed,
    warnings_of_groups,
    why_nothing_is_separate,
)
from epivi.discovery.probabilities import kinds
from epivi.tables.columns import HYPOTHESIS
from epivi.tables.parquet import Provenance, write_table

NAMES = ("reset", "mendelian", "epigenetic", "maternal", "household")
IS_NULL = np.array([True, False, False, False, True])
TRIO = ((0,), (1, 2), (3,), (4,))


def test_kinds_never_choose_within_a_group() -> None:
    """Also where one member alone has 90 %; a set that needs one member has all of them."""
    probability = np.array(
        [
            [0.02, 0.93, 0.02, 0.02, 0.01],  # one member has nearly all
            [0.02, 0.45, 0.45, 0.05, 0.03],
            [0.02, 0.30, 0.20, 0.45, 0.03],  # two kinds
            [0.02, 0.01, 0.02, 0.92, 0.03],
            [0.40, 0.20, 0.35, 0.04, 0.01],  # no member is as probable as `reset`, together they are
            [0.90, 0.06, 0.03, 0.005, 0.005],
        ]
    )
    found = kinds(probability, NAMES, IS_NULL, TRIO)
    merged = "mendelian|epigenetic"
    assert found.kind_set.tolist() == [merged, merged, f"{merged}|maternal", "maternal", merged, merged]
    assert found.best.tolist() == [merged, merged, "", "maternal", merged, "reset"]
    alone = kinds(probability, NAMES, IS_NULL)
    assert alone.best.tolist() == ["mendelian", "", "", "maternal", "reset", "reset"]
    same = kinds(probability, NAMES, IS_NULL, each_alone(5))
    assert (same.kind_set.tolist(), same.best.tolist()) == (alone.kind_set.tolist(), alone.best.tolist())


def test_a_group_with_a_null_hypothesis_is_null() -> None:
    """And so never called, which the user is told; with all of them nothing is."""
    siblings = ((0,), (1, 4), (2,), (3,))
    assert merged_nulls(IS_NULL, siblings).tolist() == [True, True, False, False, True]
    assert merged_nulls(IS_NULL, TRIO).tolist() == IS_NULL.tolist()
    (warning,) = warnings_of_groups(NAMES, IS_NULL, siblings)
    assert warning.startswith("mendelian|household: the samples cannot separate mendelian from household")
    assert warnings_of_groups(NAMES, IS_NULL, TRIO) == ()
    assert why_nothing_is_separate(IS_NULL, siblings) == ""
    assert why_nothing_is_separate(np.ones(5, dtype=bool), ((0, 1, 2, 3, 4),)) == ""  # nothing is asked
    assert why_nothing_is_separate(IS_NULL, ((0, 1, 2, 3, 4),)).startswith("cannot tell: the samples cannot separate")
    probability = np.array([[0.1, 0.5, 0.1, 0.1, 0.2]])
    found = kinds(probability, NAMES, merged_nulls(IS_NULL, siblings), siblings)
    assert (found.best.item(), found.kind_set.item()) == ("mendelian|household", "epigenetic|maternal")


def test_groups_by_the_names_that_tables_hold() -> None:
    merged = ["reset", "mendelian|epigenetic", "mendelian|epigenetic", "maternal", "household"]
    assert groups_of(NAMES, merged) == TRIO
    np.testing.assert_allclose(summed(np.arange(10.0).reshape(2, 5), TRIO), [[0, 3, 3, 4], [5, 13, 8, 9]])


def write_design(path: Path, groups: list[list[str]]) -> Path:
    table = pa.table({"hypothesis": pa.array(["reset"]).dictionary_encode()})
    metadata = {GROUPS_METADATA: json.dumps(groups), "epivi.design": json.dumps(["it is said"])}
    write_table(table, path, (HYPOTHESIS,), Provenance("design", 1, "", "family"), metadata=metadata)
    return path


def test_groups_are_read_in_the_order_of_the_hypotheses(tmp_path: Path) -> None:
    path = write_design(
        tmp_path / "design.parquet", [["household"], ["epigenetic", "mendelian"], ["maternal"], ["reset"]]
    )
    assert read_groups(path, NAMES, "family") == TRIO
    assert read_sentences(path) == ("it is said",)
    with pytest.raises(UserError, match=r"design\.parquet: is of another pedigree than the evidence"):
        read_groups(path, NAMES, "another")
    with pytest.raises(UserError, match=r"holds the hypotheses .*; expected reset, mendelian, as configured"):
        read_groups(path, NAMES[:2], "family")
