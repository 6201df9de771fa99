"""What the controls change in a problem: the pedigree's roles, one family's reads, the prior of the share; no more."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from fit_cases import MODEL, write_cohort

from epivi.cohort.permutations import EXCHANGES
from epivi.config.load import load_config
from epivi.families.inputs import read_inputs
from epivi.families.transmission.controls import OTHER_SHARES, variants
from epivi.families.transmission.prepare import prepare


def test_every_control_changes_one_thing(tmp_path: Path) -> None:
    """Four trios: seen from the truth, a control has other individuals, fewer reads or another prior, and a number."""
    folder = write_cohort(tmp_path)
    config = load_config(json.dumps({"model": MODEL, "controls": {"permutations": 2}}))
    problem = prepare(read_inputs(*(str(folder / name) for name in ("loci", "samples.tsv", "pedigree.tsv"))), config)
    refined, true, *found = variants(problem, config, seed=1)
    assert refined == true._replace(number=0, detail="refined", is_refined=True)
    assert true.control == "true"
    assert true.is_counted.all()
    assert not any(variant.is_refined for variant in (true, *found))
    kinds = [(variant.control, variant.number) for variant in found]
    families, priors = [("without_family", k) for k in (1, 2, 3, 4)], [("prior", k) for k in (1, 2, 3)]
    assert kinds == [*((kind, k) for kind in EXCHANGES for k in (1, 2)), *families, *priors]
    counted = [int(variant.is_counted.sum()) for variant in found]
    assert counted == [12] * 6 + [9] * 4 + [12] * 3
    for variant in found:
        individuals = variant.problem.sheet.individuals
        assert sorted(individuals) == sorted(problem.sheet.individuals)
        assert (individuals != problem.sheet.individuals) >= (variant.control in EXCHANGES and variant.is_changed)
        assert (variant.problem.priors != problem.priors) == (variant.control == "prior")
        np.testing.assert_array_equal(variant.problem.sheet.false_methylated, problem.sheet.false_methylated)
    assert [variant.detail for variant in found[-3:]] == list(OTHER_SHARES)
    other = [variant.problem.sheet.individuals for variant in list(variants(problem, config, seed=2))[2:4]]
    assert other != [variant.problem.sheet.individuals for variant in found[:2]]
