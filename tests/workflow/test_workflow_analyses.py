"""Further analyses of the loci of a finished cohort: only their own steps run, and the main results stay the same."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from workflow_folder import EXECUTABLES, SETTINGS, Folder, made_once, planned

import epivi
from epivi.tables.parquet import read_table
from epivi.tables.parts import read_parts

OF_ANALYSIS = {"design", "relatives", "fit", "evidence", "controls", "compare", "posterior", "summary"}
# Other mothers: every child is put into the other family.
CHILDREN = "F1_child\tF2_mother\tF2_father\nF2_child\tF1_mother\tF1_father\n"
PARENTS = "".join(f"F{family}_{parent}\t.\t.\n" for family in (1, 2) for parent in ("mother", "father"))
PERMUTED = "individual\tmother\tfather\n" + PARENTS + CHILDREN
PERMUTED_ENTRY = {"pedigree": "permuted.tsv", "model": {"hypotheses": {"paternal": None}}}
WIDE = {"model": {"priors": {"tau": {"alpha": 1, "beta": 1}}}}


def with_analyses(folder: Folder, **analyses: object) -> Folder:
    (folder.path / "permuted.tsv").write_text(PERMUTED)
    folder.edit_config(analyses=analyses)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Files of the main results by their paths, further analyses left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] != "analyses"
    }


@pytest.fixture(scope="session")
def analysed(finished: Folder, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A finished cohort with an analysis under a permuted pedigree, and another's evidence with the main settings."""
    return made_once(tmp_path_factory, "analysed", lambda path: analyse(finished.copy(path)))


def analyse(folder: Folder) -> None:
    """Run one analysis whole and one to the evidence of a shard; nothing of the main one runs or changes."""
    with_analyses(folder, same=None, permuted=PERMUTED_ENTRY)
    before = contents(folder.results)
    plan = folder.snakemake("--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert planned(plan.stdout + plan.stderr) == {*OF_ANALYSIS, "all"}
    run = folder.snakemake("--config", "analysis=permuted")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "/analyses/same" not in run.stdout + run.stderr
    run = folder.snakemake("--printshellcmds", "results/tiny/analyses/same/evidence/part-0000.parquet")
    assert run.returncode == 0, run.stdout + run.stderr
    assert planned(run.stdout + run.stderr) == {"fit", "evidence"}
    assert contents(folder.results) == before


def test_evidence_is_that_of_the_main_analysis_where_the_settings_are(analysed: Folder) -> None:
    folders = (analysed.results / "evidence", analysed.results / "analyses" / "same" / "evidence")
    main, same = (read_table(folder / "part-0000.parquet", "evidence") for folder in folders)
    assert len(main) > 0
    assert main.to_pandas().equals(same.to_pandas())


def test_a_permuted_pedigree_gives_another_evidence_of_the_same_loci(analysed: Folder) -> None:
    folder = analysed.results / "analyses" / "permuted"
    main, permuted = (read_parts(path / "posterior", "posterior").to_pandas() for path in (analysed.results, folder))
    assert permuted[["contig", "pos"]].equals(main[["contig", "pos"]])
    # Without relatives nothing of the pedigree matters; with them it does.
    assert (permuted["log_evidence_mendelian"] != main["log_evidence_mendelian"]).mean() > 0.9
    assert "prob_paternal" in main
    assert "prob_paternal" not in permuted


def test_an_analysis_is_read_as_the_main_results_are(analysed: Folder) -> None:
    folder = analysed.results / "analyses" / "permuted"
    assert {path.name for path in folder.iterdir()} == {
        *("design", "relatives", "fit", "evidence", "controls", "compare", "posterior"),
        *("logs", "benchmarks", "manifest.json", "misfit.parquet"),
    }
    results = epivi.open_results(folder)
    assert results.summary.analysis == "permuted"
    configuration = results.manifest["configuration"]
    assert configuration["pedigree"] == "permuted.tsv"
    assert configuration["fit"]["max_steps"] == SETTINGS["fit"]["max_steps"]
    assert "analyses" not in configuration
    assert results.findings.equals(epivi.open_results(analysed.results).findings)
    assert len(results.posterior(where="lfdr <= 1")) == results.summary.n_loci
    assert set(results.manifest["timings"]) == OF_ANALYSIS - {"summary"}
    line = ["summary", "--results", str(folder)]
    printed = subprocess.run([EXECUTABLES / "epivi", *line], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("cohort tiny, analysis permuted: ")
    line = ["query", "--results", str(folder), "--limit", "2", "--columns", "contig,pos"]
    printed = subprocess.run([EXECUTABLES / "epivi", *line], capture_output=True, text=True, check=True).stdout
    assert len(printed.splitlines()) == 3


def plan_of(folder: Folder, *arguments: str) -> tuple[set[str], set[str]]:
    """Rules that a dry run would run, and the analyses that they would run for."""
    run = folder.snakemake("--dry-run", "--config", "analysis=permuted", *arguments)
    assert run.returncode == 0, run.stderr
    output = run.stdout + run.stderr
    wildcards = [line for line in output.splitlines() if line.strip().startswith("wildcards: analysis=")]
    return planned(output), {line.split("analysis=")[1].split(",")[0] for line in wildcards}


def test_a_change_reruns_its_own_analysis_and_no_other(analysed: Folder, tmp_path: Path) -> None:
    folder = analysed.copy(tmp_path / "changed")
    assert plan_of(folder) == (set(), set())
    with_analyses(folder, same=None, further=WIDE, permuted=PERMUTED_ENTRY)
    assert plan_of(folder) == (set(), set())  # another one beside it changes nothing
    with_analyses(folder, permuted={**PERMUTED_ENTRY, "compare": {"fdr": 0.2}})
    steps = {"compare", "posterior", "summary", "all"}
    assert plan_of(folder) == (steps, {"/analyses/permuted"})
    run = folder.snakemake("--dry-run", "--config", "analysis=main")
    assert "Nothing to be done" in run.stdout + run.stderr
    with_analyses(folder, permuted={**PERMUTED_ENTRY, "fit": {"checkpoint_minutes": 3}})
    assert plan_of(folder) == ({"summary", "all"}, {"/analyses/permuted"})


def test_diagnostics_are_of_the_analysis_that_is_asked_for(analysed: Folder) -> None:
    run = analysed.snakemake("--dry-run", "diagnose", "--config", "analysis=permuted")
    assert planned(run.stdout + run.stderr) == {"diagnose"}
    assert "output: results/tiny/analyses/permuted/diagnose/summary.parquet" in run.stdout + run.stderr
    run = analysed.snakemake("--dry-run", "--printshellcmds", "diagnose")
    assert "output: results/tiny/diagnose/summary.parquet" in run.stdout + run.stderr


def test_jobs_ask_for_what_their_own_analysis_takes(finished: Folder, tmp_path: Path) -> None:
    folder = with_analyses(finished.copy(tmp_path / "jobs"), long={"fit": {"max_steps": 50000, "device": "cuda"}})
    run = folder.snakemake("--dry-run", "results/tiny/analyses/long/fit/fit.json")
    (resources,) = [line for line in (run.stdout + run.stderr).splitlines() if "resources:" in line]
    asked = dict(value.split("=") for value in resources.split("resources: ")[1].split(", "))
    assert asked["gpu"] == "1"
    assert int(asked["runtime"]) > 100


def test_fewer_shards_leave_no_old_parts_of_any_analysis(analysed: Folder, tmp_path: Path) -> None:
    folder = analysed.copy(tmp_path / "shards")
    run = folder.snakemake("--until", "shards", "--config", "evidence={shard_loci: 1000}")
    assert run.returncode == 0, run.stderr
    parts = [path.name for path in (folder.results / "analyses" / "permuted" / "evidence").iterdir()]
    assert parts == ["part-0000.parquet"]


@pytest.mark.parametrize(
    ("analyses", "message"),
    [
        ({"wide": {"model": {"priors": {"tau": {"alpha": -1}}}}}, "analyses.wide.model.priors.tau.alpha is -1"),
        ({"wide": {"loci": {"coverage": {"min": 4}}}}, "analyses.wide.loci is shared by all analyses"),
        ({"wide": {"pedigree": "nowhere.tsv"}}, "analyses.wide: nowhere.tsv"),
        ({"wide": {"model": {"covariates": ["btch"]}}}, "analyses.wide: cohort/samples.tsv"),
        ({"wide": {"model": {"family": "epimutation", "classes": "nowhere.bed"}}}, "analyses.wide: nowhere.bed"),
    ],
)
def test_mistakes_are_found_before_any_job(
    cohort: Folder, tmp_path: Path, analyses: dict[str, object], message: str
) -> None:
    folder = with_analyses(cohort.copy(tmp_path / "mistake"), **analyses)
    run = folder.snakemake()
    assert run.returncode == 2
    lines = [line for line in run.stderr.splitlines() if line.startswith("epivi: error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (folder.path / "results").exists()
