"""Columns of the covariate matrix by name."""

from __future__ import annotations

from epivi.field.covariate import Covariate


def test_a_level_stands_in_the_name_of_its_column() -> None:
    """A number has none; a category that is named as a number with a level would be is told from it by its fields."""
    age, batch = Covariate("age", scale=2.0), Covariate("batch", "y", "x")
    assert (age.name, batch.name) == ("age", "batch[y]")
    assert Covariate("batch[y]").name == batch.name
    assert Covariate("batch[y]") != batch
