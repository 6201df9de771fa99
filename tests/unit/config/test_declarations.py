"""What each family's part of the configuration may say, beside the schema and the families themselves."""

from __future__ import annotations

import json
from typing import Any

import pytest

from epivi.config.declarations import DECLARATIONS
from epivi.config.load import load_config
from epivi.families import FAMILIES, family_step


def test_every_family_is_declared() -> None:
    assert tuple(DECLARATIONS) == FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_are_those_of_the_configuration(family: str) -> None:
    model = load_config(json.dumps({"model": {"family": family}})).section("model")
    for key in DECLARATIONS[family].model_keys:
        part: Any = model
        for word in key.split("."):
            assert word in part, key
            part = part[word]
    declared = {key for hypothesis in model["hypotheses"].values() for key in hypothesis}
    assert declared <= set(DECLARATIONS[family].hypothesis_keys)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_declared_where_there_is_such_a_step(family: str) -> None:
    if DECLARATIONS[family].has_states:
        assert family_step(family, "states").tables
    else:
        with pytest.raises(ImportError):
            family_step(family, "states")


@pytest.mark.parametrize(
    ("family", "hypothesis", "words"),
    [
        ("transmission", {"heritable_share": "free", "maternal": 1}, "not paternal"),
        ("transmission", {"heritable_share": "free", "maternal": 0, "paternal": 0}, "nothing is passed on"),
        ("transmission", {"maternal": 1, "paternal": 1}, "no heritable_share"),
        ("transmission", {"covariates": ["age"]}, "stands in model.covariates too"),
        ("epimutation", {}, "has no rates"),
        ("epimutation", {"rates": "none", "selection": "for"}, "nothing to select"),
    ],
)
def test_a_hypothesis_that_contradicts_itself_is_said_to(family: str, hypothesis: dict[str, Any], words: str) -> None:
    problem = DECLARATIONS[family].hypothesis_problem(hypothesis, {"covariates": ["age"]})
    assert problem is not None
    assert words in problem


def test_null_hypotheses_are_those_without_what_a_family_is_about() -> None:
    assert DECLARATIONS["transmission"].is_null({"environment": {"column": "cage"}})
    assert not DECLARATIONS["transmission"].is_null({"heritable_share": "free"})
    assert DECLARATIONS["epimutation"].is_null({"rates": "none"})
    assert not DECLARATIONS["epimutation"].is_null({"rates": "locus"})
