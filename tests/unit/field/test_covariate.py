"""Columns of the covariate matrix by name."""

from __future__ import annotations

import numpy as np

from epivi.field.covariate import Covariate, centred


def test_a_level_stands_in_the_name_of_its_column() -> None:
    """A number has none; a category that is named as a number with a level would be is told from it by its fields."""
    age, batch = Covariate("age", scale=2.0), Covariate("batch", "y", "x")
    assert (age.name, batch.name) == ("age", "batch[y]")
    assert Covariate("batch[y]").name == batch.name
    assert Covariate("batch[y]") != batch


def test_columns_of_single_loci_are_centred_locus_by_locus() -> None:
    design = np.array([[[0.0, 1.0], [2.0, 1.0]], [[5.0, 0.0], [5.0, 4.0]]])
    np.testing.assert_array_equal(centred(design), [[[-1, 0], [1, 0]], [[0, -2], [0, 2]]])
