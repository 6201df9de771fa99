"""The family `epimutation` behind its commands: fit, resumed fit, guide, classes, modes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro
import pytest
import torch
from click.testing import CliRunner
from ranks_cases import in_ranks
from state_cases import LEARNED, PRIORS, state_case

from epivi.base.errors import UserError
from epivi.cli import main
from epivi.cohort.pedigree_files import read_pedigree
from epivi.commands.assemble import command as assemble
from epivi.commands.fit import command as fit
from epivi.commands.ingest import command as ingest
from epivi.commands.simulate import command as simulate
from epivi.config.load import Config, load_config
from epivi.families.epimutation import classes, evidence, states
from epivi.families.epimutation import fit as fit_step
from epivi.families.epimutation.density import Weights, build_epimutation, epimutation_batch
from epivi.families.epimutation.guide import EPIMUTATION_GUIDES, EpimutationEncoder
from epivi.families.epimutation.prepare import EpimutationProblem, prepare, with_mode
from epivi.families.epimutation.quadrature import evaluate_loci
from epivi.families.inputs import read_fit, read_inputs, read_problem
from epivi.fit.bound import locus_elbos
from epivi.fit.svi import FitSettings, FitState, fit_steps
from epivi.lineage import rates
from epivi.loci.source import CountsBatch
from epivi.simulate.templates import template_pedigree
from epivi.tables.parquet import read_table

CPU, DOUBLE = torch.device("cpu"), torch.float64


def test_the_bound_lies_below_the_evidence_and_the_guide_comes_near_it() -> None:
    """Mean over draws of the bound of every hypothesis, before and after a short fit, against the quadrature."""
    names = ("stable", "neutral", "labile", "selection")
    case = state_case(256, seed=6, names=names)
    family = build_epimutation(case.model.plan, case.model.hypotheses, PRIORS, LEARNED, CPU, DOUBLE)
    counts = CountsBatch(case.meth, case.total, np.arange(256))
    batch = epimutation_batch(case.model.plan, LEARNED, counts, case.class_code, 256, CPU, DOUBLE)
    evidence = np.array([found.log_evidence.mean() for found in evaluate_loci(case.model, *case[1:4])])

    class Batches:
        n_loci = 256

        def draw(self) -> CountsBatch:
            return counts

        holdout = draw

    pyro.set_rng_seed(1)
    settings = FitSettings(60, 0.02, 30, 1e-6, 1)
    encoder = EpimutationEncoder(family, 16).to(CPU, DOUBLE)
    encoder.standardize(batch)
    state = FitState(encoder, Weights(len(names)).to(CPU, DOUBLE), settings)

    def bounds() -> np.ndarray:
        pyro.set_rng_seed(2)
        with torch.no_grad():
            draws = [
                locus_elbos(family, state.hyper, EPIMUTATION_GUIDES["structured"], encoder, batch) for _ in range(20)
            ]
        return torch.stack(draws).mean((0, 2)).numpy()

    before = bounds()
    for _ in fit_steps(state, family, EPIMUTATION_GUIDES["structured"], Batches(), settings, CPU, lambda *_: batch):
        pass
    after = bounds()
    np.testing.assert_allclose(after[:2], evidence[:2], atol=1e-9)  # nothing is approximated there
    assert (after <= evidence + 0.02).all()  # Monte Carlo error of the mean over 256 loci and 20 draws
    assert (after[2:] > evidence[2:] - 0.1).all()
    assert (after[2:] > before[2:]).all()


class Cohort(NamedTuple):
    folder: Path
    config: Config

    def arguments(self, output: str, **sections: object) -> list[str]:
        config = json.dumps(load_config(json.dumps(sections), base=self.config.resolved).resolved)
        return [
            "--loci", str(self.folder / "loci"), "--samples", str(self.folder / "c" / "samples.tsv"),
            "--pedigree", str(self.folder / "c" / "pedigree.tsv"), "--output", str(self.folder / output),
            "--config", config,
        ]  # fmt: skip

    def problem(self, **model: object) -> EpimutationProblem:
        config = load_config(json.dumps({"model": model}), base=self.config.resolved)
        paths = (self.folder / "loci", self.folder / "c" / "samples.tsv", self.folder / "c" / "pedigree.tsv")
        return prepare(read_inputs(*map(str, paths)), config)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Two selfed lines, 400 loci, ready to be fitted."""
    folder = tmp_path_factory.mktemp("lines")
    line = "--seed 2 --family epimutation --template selfing_lines --families 1 --loci 400 --gain 0.02 --loss 0.03"
    line += " --false-methylated 0.01 --false-unmethylated 0.02 --weights neutral=1"
    run = CliRunner().invoke(simulate, ["--output", str(folder / "c"), *line.split()])
    assert run.exit_code == 0, run.output
    fit_section = {
        "max_steps": 12,
        "batch_loci": 32,
        "holdout_loci": 32,
        "check_every": 4,
        "hidden": 4,
        "device": "cpu",
    }
    written = load_config(str(folder / "c" / "config.yaml"))
    config = load_config(json.dumps({"fit": fit_section}), base=written.resolved)
    paths = []
    for path in sorted((folder / "c" / "counts").iterdir()):
        paths.append(folder / f"{path.name.split('.')[0]}.parquet")
        options = ["--sample", paths[-1].stem, "--output", str(paths[-1]), "--qc", str(folder / "qc.json")]
        run = CliRunner().invoke(ingest, [str(path), *options, "--config", str(folder / "c" / "config.yaml")])
        assert run.exit_code == 0, run.output
    options = ["--output", str(folder / "loci"), "--config", str(folder / "c" / "config.yaml")]
    run = CliRunner().invoke(assemble, [*map(str, paths), *options])
    assert run.exit_code == 0, run.output
    return Cohort(folder, config)


@pytest.fixture(scope="module")
def fitted(cohort: Cohort) -> Path:
    run = CliRunner().invoke(fit, cohort.arguments("fit"), catch_exceptions=False)
    assert run.exit_code == 0, run.output
    return cohort.folder / "fit"


def test_the_fit_is_read_back(cohort: Cohort, fitted: Path) -> None:
    found = read_fit(fitted, cohort.problem(), "sheet", "pedigree", "epimutation")
    learned = found.learned
    assert learned.alpha.shape == (1,)
    assert learned.founder.shape == (1, 3)
    assert learned.hypothesis_weights.sum() == pytest.approx(1)
    assert 0.01 < learned.alpha[0] < 0.04
    assert 0.015 < learned.beta[0] < 0.06
    rates = {row["parameter"]: row for row in read_table(fitted / "rates.parquet", "rates").to_pylist()}
    assert rates["alpha"]["lower"] < 0.02 < rates["alpha"]["upper"]
    assert rates["beta"]["lower"] < 0.03 < rates["beta"]["upper"]
    shares = sum(rates[f"founder_{state}"]["mean"] for state in ("UU", "UM", "MM"))
    assert shares == pytest.approx(1)


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates and profiles as rough as they may be where it is not they that are judged."""
    monkeypatch.setattr(rates, "MOST_DRAWS", rates.FEWEST_DRAWS)
    monkeypatch.setattr(classes, "PROFILE_STARTS", 1)
    monkeypatch.setattr(classes, "PROFILE_RATIOS", classes.PROFILE_RATIOS[::6])
    monkeypatch.setattr(classes, "RATIOS", classes.RATIOS[::3])


@pytest.mark.usefixtures("few_draws")
def test_a_fit_continues_from_its_saved_state_to_the_same_numbers(cohort: Cohort) -> None:
    problem = cohort.problem()
    pyro.set_rng_seed(5)
    run = fit_step.start(problem, cohort.config, CPU)
    run.initialize()
    steps = run.steps()
    for row in steps:
        run.elapsed[row.step] = 1.0
        if row.step == 5:
            stream = io.BytesIO()
            torch.save(run.state_dict(), stream)
    stream.seek(0)
    other = fit_step.start(problem, cohort.config, CPU)
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert other.step == 5
    assert [row.step for row in other.steps()] == list(range(6, 13))
    assert [row.batch_elbo for row in other.loss] == [row.batch_elbo for row in run.loss]
    first, second = run.finish(), other.finish()
    for one, two in zip(first.learned, second.learned, strict=True):
        np.testing.assert_array_equal(one, two)
    assert all(first.tables[name].rows.equals(second.tables[name].rows) for name in first.tables)


def test_two_processes_share_the_stochastic_part(cohort: Cohort, fitted: Path) -> None:
    """The first process alone finds the rates, the same as ever; with them both fit the guide."""
    ended = in_ranks(main, 2, ["fit", *cohort.arguments("two")])
    assert [process.status for process in ended] == [0, 0], [process.said for process in ended]
    assert "class CG: 400 loci" in ended[0].said
    assert ended[1].said == ""
    other = cohort.folder / "two"
    assert {path.name for path in other.iterdir()} == {path.name for path in fitted.iterdir()}
    for name in ("rates", "expected_divergence", "ratio_profile"):
        one, two = (read_table(folder / f"{name}.parquet", name) for folder in (fitted, other))
        assert one.equals(two)
    one, two = (read_table(folder / "loss.parquet", "loss").to_pandas() for folder in (fitted, other))
    assert two["step"].tolist() == one["step"].tolist()
    np.testing.assert_allclose(two["holdout_elbo"].dropna(), one["holdout_elbo"].dropna(), atol=0.5)


def test_threads_do_not_change_the_tables(cohort: Cohort, fitted: Path) -> None:
    problem = cohort.problem()
    found = read_fit(fitted, problem, "sheet", "pedigree", "epimutation")
    spans = [problem.store.span(first, first + 50) for first in range(0, 400, 50)]
    one, two = (list(evidence.tables(problem, found, cohort.config, spans, n)) for n in (1, 2))
    assert [table["pos"][0].as_py() for table in one] == [span.pos0[0] for span in spans]
    assert all(left.equals(right) for left, right in zip(one, two, strict=True))
    weight = np.full(4, 0.25)
    one, two = (list(states.tables(problem, found, weight, spans, n)) for n in (1, 2))
    assert all(a.equals(b) for left, right in zip(one, two, strict=True) for a, b in zip(left, right, strict=True))


@pytest.mark.usefixtures("few_draws")
def test_without_a_free_parameter_there_is_nothing_to_fit_but_rates(cohort: Cohort) -> None:
    hypotheses = {"stable": {"rates": "none"}, "neutral": {"rates": "shared"}}
    arguments = cohort.arguments("few", model={"hypotheses": hypotheses})
    run = CliRunner().invoke(fit, arguments, catch_exceptions=False)
    assert run.exit_code == 0, run.output
    found = read_fit(cohort.folder / "few", cohort.problem(hypotheses=hypotheses), "s", "p", "epimutation")
    np.testing.assert_allclose(found.learned.hypothesis_weights, 0.5)


def test_a_fit_of_other_classes_is_refused(cohort: Cohort, fitted: Path, tmp_path: Path) -> None:
    (tmp_path / "a.bed").write_text("chr1\t0\t5000\tTE\n")
    with pytest.raises(UserError, match="was fitted to other samples"):
        read_fit(fitted, cohort.problem(classes=str(tmp_path / "a.bed")), "sheet", "pedigree", "epimutation")


def test_clones_and_selfed_lines_have_other_likelihoods(cohort: Cohort) -> None:
    as_read, clonal = cohort.problem(), cohort.problem(mode="clonal")
    assert {table.mode for table in as_read.plan.transmissions} == {"selfing"}
    assert {table.mode for table in clonal.plan.transmissions} == {"clonal"}
    assert as_read.stamp != clonal.stamp


def test_a_mode_is_only_for_individuals_with_one_parent() -> None:
    pedigree = template_pedigree("trio", 1)
    assert with_mode(pedigree, "clonal") == pedigree
    lines = with_mode(template_pedigree("selfing_lines", 1), "clonal")
    assert set(lines.mode) == {"sexual", "clonal"}  # the founder has no parent
    assert with_mode(lines, None) is lines


def test_commands_of_the_other_family_refuse_in_one_line(cohort: Cohort) -> None:
    folder = cohort.folder
    paths = (folder / "loci", folder / "c" / "samples.tsv", folder / "c" / "pedigree.tsv")
    with pytest.raises(UserError, match=r"model\.family is epimutation: expected transmission"):
        read_problem(*map(str, paths), cohort.config)


def test_haplotypes_are_refused(cohort: Cohort, tmp_path: Path) -> None:
    header, first, *others = (cohort.folder / "c" / "samples.tsv").read_text().splitlines()
    rows = [f"{header}\tparent_of_origin", f"{first}\tmaternal", *(f"{line}\t" for line in others)]
    sheet = tmp_path / "samples.tsv"
    sheet.write_text("\n".join(rows) + "\n")
    inputs = read_inputs(str(cohort.folder / "loci"), str(sheet), str(cohort.folder / "c" / "pedigree.tsv"))
    with pytest.raises(UserError, match=r"line 2: sample .* is one haplotype; expected whole individuals"):
        prepare(inputs, cohort.config)


def test_simulated_truth_belongs_to_the_lineage(cohort: Cohort) -> None:
    pedigree = read_pedigree(str(cohort.folder / "c" / "pedigree.tsv"))
    truth = read_table(cohort.folder / "c" / "truth_branches.parquet", "truth").to_pydict()
    parent = dict(zip(pedigree.individuals, pedigree.mother.tolist(), strict=True))
    for above, child in zip(truth["parent"], truth["child"], strict=True):
        assert pedigree.individuals[parent[child]] == above
    loci = read_table(cohort.folder / "c" / "truth.parquet", "truth").to_pydict()
    assert set(loci["hypothesis"]) == {"neutral"}
    assert set(loci["gain_rate"]) == {0.02}
    changed = len(set(truth["pos"]))
    # Of 400 loci, with 14 generations of two copies at 0.02 to 0.03: 1 - exp(-0.7), and 4 SDs of 10 on either side.
    assert 160 < changed < 240


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--gain 0", "--gain 0.0: expected a number between 0 and 1"),
        ("--founder 0.5,0.5", "--founder (0.5, 0.5): expected three proportions that sum to 1"),
        ("--false-methylated 0", "numbers above 0 where --dispersion is"),
        ("--config {config} --family transmission", "--family transmission"),
    ],
)
def test_bad_options_of_simulate(cohort: Cohort, tmp_path: Path, option: str, expected: str) -> None:
    line = "--seed 1 --template clones --families 1 --false-methylated 0.01 --false-unmethylated 0.01 --loci 10"
    family = "" if "--family" in option else "--family epimutation"
    options = f"{line} {family} {option}".format(config=cohort.folder / "c" / "config.yaml").split()
    with pytest.raises(UserError) as error:
        CliRunner().invoke(simulate, ["--output", str(tmp_path / "x"), *options], catch_exceptions=False)
    assert expected in str(error.value)
