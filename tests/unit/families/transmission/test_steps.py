"""The steps of the family on files of a small cohort: preparation, fit, evidence, and the kernel compiled ahead."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fit_cases import HYPOTHESES, MODEL, configuration, write_cohort

from epivi.base.errors import UserError
from epivi.config.load import Config, load_config
from epivi.families.inputs import read_inputs
from epivi.families.transmission import evidence
from epivi.families.transmission.compile import compile_kernel
from epivi.families.transmission.fit import start
from epivi.families.transmission.prepare import TransmissionProblem, families, learned_type, prepare
from epivi.field.compiled import nodes
from epivi.fit.folder import Fitted

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort"))


def problem_of(folder: Path, config: Config) -> TransmissionProblem:
    return prepare(read_inputs(*(str(folder / name) for name in ("loci", "samples.tsv", "pedigree.tsv"))), config)


def test_a_problem_is_stamped_with_what_a_fit_depends_on(folder: Path) -> None:
    def stamp(**model: object) -> str:
        return problem_of(folder, load_config(json.dumps({"model": MODEL | model}))).stamp

    assert stamp() == stamp(null_hypotheses=["reset", "mendelian"])
    assert stamp() != stamp(covariates=[])
    assert stamp() != stamp(hypotheses={"reset": {}})


def test_families_matter_where_a_hypothesis_transmits(folder: Path) -> None:
    assert families(problem_of(folder, load_config(configuration()))) == 4
    only_reset = load_config(json.dumps({"model": MODEL | {"hypotheses": {"reset": {}}}}))
    assert families(problem_of(folder, only_reset)) is None


def test_a_fit_learns_what_evidence_needs(folder: Path) -> None:
    """Rows in the order of loci and hypotheses, whatever the spans, and the columns of the table."""
    config = load_config(configuration(max_steps=3))
    problem = problem_of(folder, config)
    run = start(problem, config, CPU)
    run.initialize()
    assert [row.step for row in run.steps()] == [1, 2, 3]
    result = run.finish()
    assert isinstance(result.learned, learned_type())
    fitted = Fitted(
        stamp=problem.stamp, learned=result.learned, trained_at=result.trained_at, encoder_state=result.guide_state,
        hidden=8, guide="structured",
    )  # fmt: skip
    whole = list(evidence.tables(problem, fitted, config, [problem.store.span(0, 24)], threads=1))
    parts = list(evidence.tables(problem, fitted, config, [problem.store.span(0, 7), problem.store.span(7, 24)], 2))
    (table,) = whole
    assert [part.num_rows for part in parts] == [14, 34]
    assert set(table.column_names) == {column.name for column in evidence.columns(problem)}
    assert table["hypothesis"].to_pylist() == list(HYPOTHESES) * 24
    found = np.concatenate([part["log_evidence"].to_numpy() for part in parts])
    np.testing.assert_allclose(found, table["log_evidence"].to_numpy(), rtol=1e-12)
    assert np.isfinite(found).all()


def test_cavi_needs_samples_without_errors(folder: Path) -> None:
    config = load_config(configuration(method="cavi"))
    problem = problem_of(folder, config)
    assert start(problem, config, CPU).finishes_slowly
    cohort = problem.cohort._replace(false_methylated=problem.cohort.false_methylated + 0.01)
    with pytest.raises(UserError, match=r"samples\.tsv: fit\.method cavi needs false_methylated"):
        start(problem._replace(cohort=cohort), config, CPU)


def test_compiling_ahead_leaves_machine_code() -> None:
    compile_kernel()
    assert nodes._entry_point().signatures
