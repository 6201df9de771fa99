"""How many families it takes to learn weights from, and to trust them."""

from __future__ import annotations

import pytest

from epivi.discovery.columns import DISCOVERY_TABLES
from epivi.discovery.probabilities import QvalueTable
from epivi.discovery.replicates import warning_of_few_families, why_family_is_not_told, why_nothing_is_called


@pytest.mark.parametrize(
    ("families", "reason", "warning"),
    [
        (0, "no two of the sampled individuals are related", "no two of the sampled"),
        (1, "only one family has two or more sampled relatives", "only one family"),
        (2, "", "families with sampled relatives: 2"),
        (3, "", ""),
        (None, "", ""),  # no hypothesis has transmission
    ],
)
def test_what_is_said_of_a_number_of_families(families: int | None, reason: str, warning: str) -> None:
    found = why_nothing_is_called(families)
    assert found == "" if reason == "" else found.startswith(f"cannot tell: {reason}")
    said = warning_of_few_families(families)
    assert said == "" if warning == "" else warning in said


def test_a_factor_that_coincides_with_families_is_a_reason() -> None:
    batch = {"check": "relatives", "text": "mates resemble each other"}
    family = {"check": "family_factor", "text": "cannot tell family from factor: 9 %"}
    assert why_family_is_not_told([]) == why_family_is_not_told([batch]) == ""
    assert why_family_is_not_told([batch, family]) == "cannot tell family from factor: 9 %. No locus is called"


def test_tables_of_the_comparison_have_a_row_a_hypothesis_and_a_row_a_step() -> None:
    names = {name: [column.name for column in columns] for name, columns in DISCOVERY_TABLES.items()}
    ranges = [f"{over}_{end}" for over in ("family", "prior") for end in ("lower", "upper")]
    merged = ["merged", *(f"merged_{name}" for name in ("weight", "lower", "upper", "family_lower", "family_upper"))]
    assert names["weights"] == ["hypothesis", "weight", "lower", "upper", *ranges, "n_loci", *merged]
    assert set(names["qvalue"]) == set(QvalueTable._fields)
