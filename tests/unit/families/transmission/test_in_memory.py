"""Evidence from arrays: the numbers of the workflow's step, hyper-parameters from the loci, one line for bad input."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from inference_cases import make_pedigree, make_sheet

import epivi
from epivi.base.errors import UserError
from epivi.cohort.pedigree import Pedigree
from epivi.config.load import load_config
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.density import LearnedPriors, build_transmission
from epivi.families.transmission.encoder import Encoder
from epivi.families.transmission.hypotheses import parse_hypotheses, share_priors
from epivi.families.transmission.in_memory import HYPERPARAMETERS
from epivi.families.transmission.outer_integral import CPU, build_evidence_model
from epivi.families.transmission.refinement import evaluate_batch
from epivi.families.transmission.simulate import BaselineComponent, SimulationSettings, simulate_cohort
from epivi.simulate.positions import Contig
from epivi.simulate.templates import template_pedigree

MODEL = load_config("{}").section("model")
PEDIGREE = template_pedigree("three_generations", 2)
NAMES = PEDIGREE.individuals
AGES = tuple(f"{age:.1f}" for age in np.random.default_rng(3).uniform(20, 70, len(NAMES)))
TRUE: dict[str, Any] = {
    "baseline_weights": [0.3, 0.2, 0.5],
    "baseline_means": [-2.0, 0.0, 2.0],
    "baseline_sds": [0.8, 1.0, 0.8],
    "spread_location": -0.3,
    "spread_scale": 0.4,
}
SEED = 5
assert TRUE.keys() == HYPERPARAMETERS.keys() - {"effect_sds"}


def drawn(loci: int, covariates: tuple[str, ...] = (), effect_sd: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Counts [L, S] of the default hypotheses in equal parts, with the hyper-parameters TRUE."""
    mixture = zip(TRUE["baseline_weights"], TRUE["baseline_means"], TRUE["baseline_sds"], strict=True)
    settings = SimulationSettings(
        seed=3,
        hypotheses=parse_hypotheses(MODEL["hypotheses"]),
        weights=(0.2,) * 5,
        contigs=(Contig("chr1", loci),),
        share_priors=share_priors(MODEL["priors"]),
        covariates=covariates,
        covariate_scale=effect_sd,
        baseline=tuple(BaselineComponent(*component) for component in mixture),
        log_spread_location=TRUE["spread_location"],
        log_spread_scale=TRUE["spread_scale"],
        missing_loci=0.1,
    )
    simulated = simulate_cohort(settings, PEDIGREE, make_sheet(NAMES, columns={"age": AGES}))
    return simulated.meth.astype(int), simulated.total.astype(int)


@pytest.fixture(scope="module")
def counts() -> tuple[np.ndarray, np.ndarray]:
    return drawn(150)


@pytest.fixture(scope="module")
def found(counts: tuple[np.ndarray, np.ndarray]) -> epivi.Evidence:
    return epivi.evidence(*counts, PEDIGREE, individuals=NAMES, hyperparameters=TRUE, seed=SEED)


def test_what_no_reads_can_separate_is_said(found: epivi.Evidence) -> None:
    """Of trios, also where one sample has no reads, which leaves a mother and child; not of three generations."""
    assert found.merged == ()
    trio = template_pedigree("trio", 1)
    total = np.full((2, 3), 10)
    given = {"individuals": trio.individuals, "hyperparameters": "starting"}
    assert epivi.evidence(total // 2, total, trio, **given).merged == ("mendelian|epigenetic",)
    total[:, 1] = 0
    mother_and_child = epivi.evidence(total // 2, total, trio, **given).merged
    assert mother_and_child == ("reset|mendelian|epigenetic|maternal|paternal",)
    assert epivi.evidence(0 * total, 0 * total, trio, **given).merged == ()


def test_bayes_factors_are_those_around_an_encoder(
    counts: tuple[np.ndarray, np.ndarray], found: epivi.Evidence
) -> None:
    """Seen: the largest difference over loci and hypotheses is .008 nats."""
    hypotheses, shares = parse_hypotheses(MODEL["hypotheses"]), share_priors(MODEL["priors"])
    cohort = build_cohort(make_sheet(NAMES), PEDIGREE, [], hypotheses)
    learned = LearnedPriors(
        **{name: np.array(value) if isinstance(value, list) else value for name, value in TRUE.items()},
        effect_sds=np.zeros(0),
        hypothesis_weights=np.full(5, 0.2),
    )
    family = build_transmission(cohort, hypotheses, shares, CPU, encoder_dtype())
    model = build_evidence_model(cohort, hypotheses, learned, shares, Encoder(cohort, family, 8).state_dict(), 8)
    meth, total = (part.astype(np.uint16) for part in counts)
    other = evaluate_batch(model, meth, total, np.arange(len(meth)), 256, SEED)
    log_evidence = np.stack([one.log_evidence for one in other], axis=1)
    factors = found.log_evidence[:, 1:] - found.log_evidence[:, :1]
    difference = np.abs(factors - (log_evidence[:, 1:] - log_evidence[:, :1])).max(1)
    assert (difference < 0.02).mean() >= 0.99
    assert np.ptp(factors, axis=0).min() > 0.5  # loci differ by far more


def encoder_dtype() -> Any:
    import torch

    return torch.float64


def test_table_is_that_of_the_workflow_with_numbers_for_places(found: epivi.Evidence) -> None:
    table = found.table.to_pandas()
    assert table["locus"].tolist() == np.repeat(np.arange(150), 5).tolist()
    assert table["hypothesis"].astype(str).tolist() == list(MODEL["hypotheses"]) * 150
    assert table["log_evidence"].to_numpy().reshape(-1, 5) == pytest.approx(found.log_evidence)
    assert {"inner_error", "khat", "log_evidence_se", "slope_mean", "baseline_q95"} <= set(table.columns)
    assert not {"contig", "pos", "end"} & set(table.columns)
    assert set(table["inner_method"].astype(str)) <= {"laplace", "ep", "importance"}


def test_a_locus_is_the_same_among_others_and_alone(
    counts: tuple[np.ndarray, np.ndarray], found: epivi.Evidence
) -> None:
    some = slice(40, 60)
    part = epivi.evidence(
        counts[0][some], counts[1][some], PEDIGREE, individuals=NAMES, hyperparameters=found.hyperparameters,
        seed=SEED, loci=np.arange(40, 60), threads=2,
    )  # fmt: skip
    assert np.array_equal(part.log_evidence, found.log_evidence[some])
    assert part.table["locus"].to_pylist()[:5] == [40] * 5


@pytest.mark.parametrize("kind", [dict, pd.DataFrame, pa.table, Path])
def test_a_pedigree_may_be_a_table_or_a_file(
    counts: tuple[np.ndarray, np.ndarray], found: epivi.Evidence, tmp_path: Path, kind: Any
) -> None:
    name_of = [*NAMES, None]
    columns = {
        "individual": list(NAMES),
        "mother": [name_of[parent] for parent in PEDIGREE.mother],
        "father": [name_of[parent] for parent in PEDIGREE.father],
    }
    given = kind(columns) if kind is not Path else tmp_path / "pedigree.tsv"
    if kind is Path:
        pd.DataFrame(columns).to_csv(given, sep="\t", index=False)
    again = epivi.evidence(counts[0][:8], counts[1][:8], given, individuals=NAMES, hyperparameters=TRUE, seed=SEED)
    assert np.array_equal(again.log_evidence, found.log_evidence[:8])
    assert again.families == 2


def test_hyperparameters_are_estimated_from_the_loci() -> None:
    """Truth: spread exp(N(-.3, .4)), effects of SD .5. Seen: location -.30, scale .40, effects .50."""
    meth, total = drawn(500, ("age",), 0.5)
    given = {"individuals": NAMES, "columns": {"age": AGES}, "covariates": ["age"], "hypotheses": {"reset": {}}}
    estimated = epivi.evidence(meth, total, PEDIGREE, **given).hyperparameters
    assert estimated["spread_location"] == pytest.approx(-0.3, abs=0.12)
    assert estimated["spread_scale"] == pytest.approx(0.4, abs=0.15)
    assert estimated["effect_sds"] == pytest.approx([0.5], abs=0.1)
    weights, means, sds = (np.array(estimated[f"baseline_{name}"]) for name in ("weights", "means", "sds"))
    truth = [np.array(TRUE[f"baseline_{name}"]) for name in ("weights", "means", "sds")]
    for power in (1, 2):  # moments of the mixture, whatever its components
        moment = weights @ (means**2 * (power == 2) + sds**2 * (power == 2) + means * (power == 1))
        true = truth[0] @ (truth[1] ** 2 * (power == 2) + truth[2] ** 2 * (power == 2) + truth[1] * (power == 1))
        assert moment == pytest.approx(true, abs=0.45)
    starting = epivi.evidence(meth[:2], total[:2], PEDIGREE, hyperparameters="starting", **given).hyperparameters
    assert starting["baseline_means"] == [-3.0, 0.0, 3.0]


def test_weights_and_probabilities(found: epivi.Evidence) -> None:
    weights = found.weights(draws=20)
    assert weights.weight.sum() == pytest.approx(1)
    assert (weights.lower <= weights.upper).all()
    assert found.probabilities(weights).sum(axis=1) == pytest.approx(1)
    assert found.probabilities(weights.weight).sum(axis=1) == pytest.approx(1)
    assert found.prior.alpha.tolist() == [5, 1, 1, 1, 1]


def test_one_family_is_not_learned_from(counts: tuple[np.ndarray, np.ndarray]) -> None:
    trio = make_pedigree(("m",), ("f",), ("c", "m", "f"))
    some = [part[:4, :3] for part in counts]
    found = epivi.evidence(*some, trio, individuals=trio.individuals, hyperparameters="starting")
    assert found.families == 1
    # Those of the prior: 5 loci of `reset` and one of each other hypothesis.
    assert found.weights(draws=2000).weight == pytest.approx(np.array([5, 1, 1, 1, 1]) / 9, abs=0.03)


def test_the_example_of_the_docstring_runs() -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(epivi.evidence, "epivi.evidence", globs={})
    runner = doctest.DocTestRunner(verbose=False)
    assert len(example.examples) >= 10
    assert runner.run(example).failed == 0


def test_import_of_the_package_stays_light() -> None:
    code = "import sys, epivi; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


ARRAY = np.full((3, 12), 4)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "shapes": ({"meth": ARRAY[:, :3]}, r"meth is (3, 3) and total (3, 12): expected the same shape"),
    "one dimension": ({"meth": ARRAY[0]}, "meth has the shape (12,): expected (loci, samples)"),
    "above": ({"meth": ARRAY + np.eye(3, 12, dtype=int)}, "meth[0, 0] is 5: expected at most total, 4"),
    "negative": ({"meth": -ARRAY}, "meth[0, 0] is -4: expected a whole number from 0 to 65535"),
    "fraction": ({"total": ARRAY + 0.5}, "total[0, 0] is 4.5: expected a whole number"),
    "nan": ({"total": np.where(np.eye(3, 12), np.nan, 9)}, "total[0, 0] is nan: expected a whole number"),
    "too many": ({"total": ARRAY * 20000}, "total[0, 0] is 80000: expected a whole number"),
    "text": ({"meth": np.full((3, 12), "a")}, "meth holds <U1: expected whole numbers"),
    "individuals": ({"individuals": NAMES[:4]}, "individuals has 4 values: expected 12"),
    "unknown": ({"individuals": ("nobody", *NAMES[1:])}, "individual 'nobody' of sample 's1' is not in the pedigree"),
    "samples": ({"samples": ("a", *NAMES[1:11], "a")}, "sample 'a' is given twice"),
    "columns": ({"columns": {"age": [1, 2]}}, "columns['age'] has 2 values: expected 12"),
    "covariate": ({"covariates": ["age"]}, "no column 'age'"),
    "missing": ({"columns": {"age": [None, *range(11)]}, "covariates": ["age"]}, "column 'age' of sample 's1' is"),
    "errors": ({"false_methylated": 0.7}, "false_methylated: expected numbers from 0 to below 0.5"),
    "errors' shape": ({"false_unmethylated": [0.1, 0.2]}, "false_unmethylated has the shape (2,): expected one number"),
    "hypotheses": ({"hypotheses": {"h": {"maternal": 1}}}, "model.hypotheses.h has maternal but no heritable_share"),
    "priors": ({"priors": {"tau": {"alpha": 0}}}, "model.priors.tau.alpha is 0"),
    "nodes": ({"nodes": 33}, "evidence.nodes is 33"),
    "loci": ({"loci": [1, 2]}, "loci has the shape (2,): expected (3,)"),
    "few": ({"hyperparameters": "estimated"}, "3 loci with reads are too few to estimate them from"),
    "word": ({"hyperparameters": "guessed"}, "'guessed': expected 'estimated', 'starting' or a mapping"),
    "key": ({"hyperparameters": {"spred": 1}}, "unknown key 'spred'; did you mean 'spread_"),
    "lacking": ({"hyperparameters": {"spread_scale": 1}}, "the key 'baseline_weights' is missing"),
    "sd": ({"hyperparameters": TRUE | {"spread_scale": 0}}, "spread_scale: expected a number above 0"),
    "components": ({"hyperparameters": TRUE | {"baseline_sds": [1]}}, "baseline_sds has 1 values: expected 3"),
    "effects": ({"hyperparameters": TRUE | {"effect_sds": [1]}}, "effect_sds has 1 values: expected 0"),
    "pedigree": ({"pedigree": {"individual": ["a"], "mother": [""]}}, "pedigree: no column 'father'"),
    "parent": (
        {"pedigree": {"individual": ["a"], "mother": ["b"], "father": [""]}},
        "pedigree line 1: unknown parent 'b' of 'a'",
    ),
    "kind": ({"pedigree": 3}, "pedigree: a int: expected a mapping from names to columns"),
    "fit": ({"fit": "nowhere", "hyperparameters": "starting"}, "expected one of fit and hyperparameters"),
    "no fit": ({"fit": "nowhere", "hyperparameters": None}, "expected a folder written by epivi fit"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name: str) -> None:
    change, message = BAD[name]
    given: dict[str, Any] = {
        "meth": ARRAY, "total": ARRAY, "pedigree": PEDIGREE, "individuals": NAMES, "hyperparameters": "starting",
    } | change  # fmt: skip
    assert isinstance(PEDIGREE, Pedigree)
    with pytest.raises(UserError) as caught:
        epivi.evidence(**given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
