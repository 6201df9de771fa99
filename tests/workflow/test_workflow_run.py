"""The workflow on a tiny cohort: from counts to the manifest, what runs again after a change, and after a kill."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset
import pytest
from forked_run import ForkedRun
from workflow_folder import COHORT, CONTIGS, HYPOTHESES, REPOSITORY, SETTINGS, Folder, planned, tree

import epivi
from epivi.base.errors import UserError
from epivi.cohort.samples import in_order_of, read_sample_sheet
from epivi.loci.store import LociStore
from epivi.tables.parquet import read_table
from epivi.tables.parts import part_path, read_parts, whole_table

AFTER_LOCI = {
    "fit",
    "quality",
    "relatives",
    "shards",
    "controls",
    "compare",
    "summary",
    "all",
}  # all that a dry run knows while the shards are not


def test_posterior_has_every_locus_of_the_store(finished: Folder) -> None:
    store = LociStore.open(finished.results / "loci")
    posterior = read_parts(finished.results / "posterior", "posterior", ["contig", "pos", "lfdr", "qvalue"])
    assert set(store.contigs) == set(CONTIGS)
    assert posterior.num_rows == store.n_loci > 200
    for contig in store.contigs:
        pos0 = store.block(contig, 0, store.n_loci_of(contig)).pos0
        rows = posterior.filter(pyarrow.compute.equal(posterior["contig"], contig))
        assert rows["pos"].to_pylist() == pos0.tolist()


def test_processes_of_their_own_make_the_same_tables(cohort: Folder, finished: Folder, tmp_path: Path) -> None:
    """As a user starts them, none forked from one that is ready."""
    folder = cohort.copy(tmp_path / "own")
    run = folder.snakemake(is_forked=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert folder.tables() == finished.tables()


def test_shards_are_files_that_may_hold_several_contigs(finished: Folder) -> None:
    found = [part.contigs for part in whole_table(finished.results / "evidence", "evidence")]
    contigs = LociStore.open(finished.results / "loci").contigs
    assert found == [contigs[:1], contigs, contigs[1:]]
    assert set(contigs) == set(CONTIGS)
    assert not list(finished.results.glob("**/contig=*"))


def test_manifest_says_what_went_in_and_what_came_out(finished: Folder) -> None:
    manifest = json.loads((finished.results / "manifest.json").read_text())
    assert manifest["summary"]["cohort"] == COHORT
    assert sum(manifest["summary"]["loci"].values()) == LociStore.open(finished.results / "loci").n_loci
    roles = [record["role"] for record in manifest["inputs"]]
    assert sorted(set(roles)) == ["counts", "pedigree", "samples"]
    assert roles.count("counts") == 4
    for record in manifest["inputs"]:
        content = (finished.path / record["path"]).read_bytes()
        assert record["bytes"] == len(content)
        assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert manifest["configuration"]["fit"]["max_steps"] == 20
    assert {"python", "epivi", "torch", "snakemake"} <= set(manifest["versions"])
    histogram = read_table(finished.results / "misfit.parquet", "misfit")["n_loci"].to_pylist()
    assert histogram == manifest["summary"]["misfit"]
    assert sum(histogram) == LociStore.open(finished.results / "loci").n_loci
    jobs = {step: timing["jobs"] for step, timing in manifest["timings"].items()}
    n_jobs = len(json.loads((finished.results / "shards.json").read_text()))
    assert jobs == {
        "design": 1,
        "ingest": 4,
        "assemble": 1,
        "quality": 1,
        "relatives": 1,
        "fit": 1,
        "evidence": n_jobs,
        "controls": 1,
        "compare": 1,
        "posterior": n_jobs,
    }


def test_what_the_pedigree_cannot_separate_is_one_everywhere(finished: Folder) -> None:
    """Two mothers with a child each: nothing that shows whether fathers transmit, or through whom."""
    groups = ["reset|paternal", "mendelian|epigenetic|maternal"]
    names = ["reset", "mendelian", "epigenetic", "maternal", "paternal"]
    results = epivi.open_results(finished.results)
    assert [weight.hypothesis for weight in results.summary.weights] == groups
    assert list(results.summary.expected) == groups
    weights = results.weights.to_pandas().set_index("hypothesis")
    assert weights["merged"].tolist() == [groups[name in groups[1].split("|")] for name in names]
    sums = {group: weights.weight[group.split("|")].sum() for group in groups}
    assert weights["merged_weight"].to_numpy() == pytest.approx([sums[group] for group in weights["merged"]])
    posterior = results.posterior().to_pandas()
    for group in groups:
        assert posterior[f"prob_{group}"].to_numpy() == pytest.approx(
            posterior[[f"prob_{name}" for name in group.split("|")]].sum(axis=1).to_numpy()
        )
    # A group with a null hypothesis is null.
    assert posterior["lfdr"].to_numpy() == pytest.approx(posterior["prob_reset|paternal"].to_numpy())
    assert set(posterior["best"]) <= set(groups)
    assert set(posterior["kind_set"]) == {groups[1]}
    said = results.summary.design
    assert "these samples can never tell reset from paternal, whatever the loci and reads" in said[1]
    assert "can never tell mendelian, epigenetic from maternal" in said[2]
    (warning,) = [text for text in results.summary.warnings if text.startswith("reset|paternal")]
    assert warning.endswith("so that paternal counts as null and is never called")
    printed = (finished.results / "logs" / "summary.log").read_text()
    assert "mendelian|epigenetic|maternal" in printed
    assert said[1] in printed
    assert (finished.results / "logs" / "design.log").read_text().splitlines()[0] == said[0]


def test_results_open_in_python(finished: Folder, tmp_path: Path) -> None:
    results = epivi.open_results(finished.results)
    whole = read_parts(finished.results / "posterior", "posterior")
    assert results.posterior().to_pandas().equals(whole.to_pandas())
    contig = CONTIGS[0]
    found = results.posterior(contig, where="lfdr < 0.9", columns=["pos", "lfdr"], limit=5)
    assert found.column_names == ["pos", "lfdr"]
    expected = whole.to_pandas().query("contig == @contig and lfdr < 0.9").head(5)
    assert found["pos"].to_pylist() == expected["pos"].tolist()
    assert results.summary.n_loci == len(whole)
    assert results.manifest["summary"]["cohort"] == COHORT
    merged = dict(zip(results.weights["merged"].to_pylist(), results.weights["merged_weight"].to_pylist(), strict=True))
    assert merged == {weight.hypothesis: weight.weight for weight in results.summary.weights}
    assert set(results.relatives["kind"].to_pylist()) == {"mother_child", "unrelated"}
    assert results.summary.relatives_verdict in (finished.results / "logs" / "summary.log").read_text()
    assert len(results.findings) == len(read_table(finished.results / "quality" / "findings.parquet", "findings"))
    results.to_bed(tmp_path / "all.bed")
    assert len((tmp_path / "all.bed").read_text().splitlines()) == len(whole)
    with pytest.raises(UserError, match="no states table here; run the workflow first"):
        results.states()
    with pytest.raises(UserError, match=r"no manifest\.json"):
        epivi.open_results(tmp_path)


def test_evidence_from_memory_is_that_of_the_workflow(finished: Folder) -> None:
    """Bit for bit, with the fit; near it without, where what all loci share is the same."""
    store = LociStore.open(finished.results / "loci")
    span = store.span(0, store.n_loci)
    sheet = in_order_of(store, read_sample_sheet(finished.path / "cohort" / "samples.tsv"))
    configuration = epivi.open_results(finished.results).manifest["configuration"]
    model = configuration["model"]
    given = {
        "seed": configuration["seed"],
        "meth": span.meth,
        "total": span.total,
        "pedigree": finished.path / "cohort" / "pedigree.tsv",
        "hypotheses": model["hypotheses"],
        "priors": model["priors"],
        "individuals": sheet.individuals,
        "samples": sheet.samples,
        "false_methylated": sheet.false_methylated,
        "false_unmethylated": sheet.false_unmethylated,
    }
    workflow = read_parts(finished.results / "evidence", "evidence")
    fitted = epivi.evidence(**given, fit=finished.results / "fit")
    columns = fitted.table.column_names[1:]
    assert set(columns) | {"contig", "pos", "end"} == set(workflow.column_names)
    assert fitted.table.select(columns).to_pandas().equals(workflow.select(columns).to_pandas())
    assert fitted.table["locus"].to_pylist() == np.repeat(np.arange(store.n_loci), len(fitted.hypotheses)).tolist()
    own = epivi.evidence(**given, hyperparameters=fitted.hyperparameters)
    difference = np.abs(
        (own.log_evidence - own.log_evidence[:, :1]) - (fitted.log_evidence - fitted.log_evidence[:, :1])
    )
    flagged = fitted.table["log_evidence_se"].to_numpy().reshape(difference.shape).max(1) > 0.1
    assert (difference.max(1) < 0.02)[~flagged].mean() >= 0.99
    with pytest.raises(UserError, match="was fitted to other samples"):
        epivi.evidence(**{**given, "false_methylated": 0.1}, fit=finished.results / "fit")


def test_summary_is_printed_and_logged(finished: Folder) -> None:
    table = (finished.results / "logs" / "summary.log").read_text()
    assert f"cohort {COHORT}" in table
    assert "epigenetic" in table
    assert table in (finished.path / "run.out").read_text()


def test_every_step_leaves_a_log(finished: Folder) -> None:
    logs = {path.relative_to(finished.results / "logs").parts[0] for path in finished.results.rglob("*.log")}
    expected = {
        "ingest",
        "assemble.log",
        "fit.log",
        "evidence",
        "controls.log",
        "relatives.log",
        "compare.log",
        "posterior",
        "summary.log",
    }
    assert expected <= logs


def test_second_run_does_nothing(finished: Folder) -> None:
    before = finished.files()
    run = finished.snakemake()
    assert run.returncode == 0
    assert "Nothing to be done" in run.stdout + run.stderr
    assert finished.files() == before


@pytest.mark.parametrize(
    ("override", "rules"),
    [
        ("compare={fdr: 0.2}", {"compare", "posterior", "summary", "all"}),
        ("model={null_hypotheses: [reset, mendelian]}", {"compare", "posterior", "summary", "all"}),
        ("evidence={nodes: 32}", {"evidence", "controls", "compare", "posterior", "summary", "all"}),
        ("fit={max_steps: 30}", {"fit", "evidence", "controls", "compare", "posterior", "summary", "all"}),
        ("relatives={loci: 50}", {"relatives", "compare", "posterior", "summary", "all"}),
        ("controls={loci: 30}", {"controls", "compare", "posterior", "summary", "all"}),
        ("fit={checkpoint_minutes: 3}", {"summary", "all"}),
        ("qc={genotypes: config.yaml}", {"quality", "summary", "all"}),
        ("loci={min_covered_samples: 4}", {"assemble", *AFTER_LOCI}),
        ("loci={contigs: {include: [chr1]}}", {"assemble", *AFTER_LOCI}),
        ("loci={contigs: {exclude: [chr1]}}", {"assemble", *AFTER_LOCI}),
        ("loci={coverage: {min: 2}}", {"ingest", "assemble", *AFTER_LOCI}),
    ],
)
def test_changed_value_reruns_what_depends_on_it_and_no_more(finished: Folder, override: str, rules: set[str]) -> None:
    run = finished.snakemake("--dry-run", "--config", override)
    assert run.returncode == 0, run.stderr
    assert planned(run.stdout + run.stderr) == rules


def test_changed_sites_to_leave_out_rerun_the_assembly_and_no_sample(finished: Folder, tmp_path: Path) -> None:
    folder = finished.copy(tmp_path / "exclude")
    store = LociStore.open(folder.results / "loci")
    block = store.block(CONTIGS[0], 0, 3)
    path = folder.path / "sites.bed"
    path.write_text("".join(f"{CONTIGS[0]}\t{pos + 1}\t{pos + 2}\n" for pos in block.pos0[:2].tolist()))
    loci = json.loads((folder.results / "manifest.json").read_text())["configuration"]["loci"]
    folder.edit_config(loci=loci | {"exclude": ["sites.bed"]})
    run = folder.snakemake("--until", "shards")
    output = run.stdout + run.stderr
    assert run.returncode == 0, output
    assert planned(output) == {"assemble", "shards"}
    masked = LociStore.open(folder.results / "loci")
    assert masked.block(CONTIGS[0], 0, 1).pos0 == block.pos0[2]
    assert masked.n_loci == store.n_loci - 2
    assert masked.excluded[0]["excluded"] == 2
    path.write_text(path.read_text().splitlines()[0] + "\n")
    run = folder.snakemake("--dry-run")
    assert {"assemble", "fit", "summary"} <= planned(run.stdout + run.stderr)
    assert "ingest" not in planned(run.stdout + run.stderr)


def test_what_the_sheet_and_the_pedigree_say_counts_and_not_how(finished: Folder, tmp_path: Path) -> None:
    """Comments, blank lines and a further column rerun only what looks at all columns and the record of inputs."""
    folder = finished.copy(tmp_path / "sheet")
    sheet, pedigree = (folder.path / "cohort" / f"{name}.tsv" for name in ("samples", "pedigree"))
    header, *rows = sheet.read_text().splitlines()
    rows = [f"{row}\tnote" for row in rows]
    sheet.write_text("\n".join(["# collected in spring", f"{header}\tremark", "", *rows]) + "\n")
    header, *rows = pedigree.read_text().splitlines()
    pedigree.write_text("\n".join([header, "# by the breeder", *rows]) + "\n")
    run = folder.snakemake("--dry-run")
    assert planned(run.stdout + run.stderr) == {*("quality", "relatives", "compare", "posterior", "summary", "all")}
    sheet.write_text(sheet.read_text().replace("F1_child\tF1_child", "F1_child\tF1_father", 1))
    run = folder.snakemake("--dry-run")
    assert {"fit", "quality", "evidence"} <= planned(run.stdout + run.stderr) | {"evidence"}


def test_changed_fdr_leaves_fit_and_evidence_alone(finished: Folder, tmp_path: Path) -> None:
    folder = finished.copy(tmp_path / "fdr")
    before = folder.files()
    folder.edit_config(compare={"fdr": 0.5, "draws": 20, "blocks": 10})
    run = folder.snakemake()
    assert run.returncode == 0, run.stderr
    changed = {name for name, time_ns in folder.files().items() if before.get(name) != time_ns}
    steps = {Path(name).parts[2] for name in changed if name.startswith("results/")} - {"logs", "benchmarks"}
    assert steps == {"compare", "posterior", "manifest.json", "misfit.parquet"} | ({"cohort.json"} & steps)
    assert json.loads((folder.results / "manifest.json").read_text())["summary"]["fdr"] == 0.5


def test_two_processes_fit_where_a_fit_is_needed(finished: Folder, tmp_path: Path) -> None:
    """Another number of processes makes no fit anew; a fit that is missing is made by as many."""
    folder = finished.copy(tmp_path / "processes")
    folder.edit_config(fit={**SETTINGS["fit"], "processes": 2})
    run = folder.snakemake("--dry-run")
    assert planned(run.stdout + run.stderr) <= {"summary", "all"}
    record = folder.results / "fit" / "fit.json"
    assert json.loads(record.read_text())["settings"]["processes"] == 1
    record.unlink()
    run = folder.snakemake("--", f"results/{COHORT}/fit/fit.json")
    assert run.returncode == 0, run.stderr
    assert json.loads(record.read_text())["settings"]["processes"] == 2


def test_fewer_shards_leave_no_old_parts(finished: Folder, tmp_path: Path) -> None:
    folder = finished.copy(tmp_path / "shards")
    fewer = ("--config", "evidence={shard_loci: 1000}")
    run = folder.snakemake("--until", "shards", *fewer)
    assert run.returncode == 0, run.stderr
    for table in ("evidence", "posterior"):
        assert [path.name for path in (folder.results / table).iterdir()] == ["part-0000.parquet"]
    run = folder.snakemake("--dry-run", *fewer)
    output = run.stdout + run.stderr
    assert planned(output) == {"evidence", "compare", "posterior", "summary", "all"}
    assert len(re.findall(r"^rule evidence:", output, re.MULTILINE)) == 1  # the part that stays holds other loci now


def test_lost_file_of_a_shard_is_made_again_where_it_is_needed(finished: Folder, tmp_path: Path) -> None:
    """By its job; the other jobs stay."""
    folder = finished.copy(tmp_path / "lost")
    part_path(folder.results / "evidence", "0001").unlink()
    run = folder.snakemake("--dry-run", "--config", "compare={fdr: 0.2}")
    output = run.stdout + run.stderr
    assert planned(output) == {"evidence", "compare", "posterior", "summary", "all"}
    assert len(re.findall(r"^rule evidence:", output, re.MULTILINE)) == 1


def test_tables_of_an_earlier_layout_are_removed(finished: Folder, tmp_path: Path) -> None:
    """They would be read together with the new ones by whoever reads all files below the folder."""
    folder = finished.copy(tmp_path / "former")
    former = folder.results / "posterior" / "contig=chr1" / "part-0000.parquet"
    former.parent.mkdir()
    shutil.copy(part_path(folder.results / "posterior", "0000"), former)
    run = folder.snakemake("--until", "shards", "--forcerun", "shards")
    assert run.returncode == 0, run.stderr
    assert not former.parent.exists()


def test_changed_input_reruns_its_own_sample(finished: Folder, tmp_path: Path) -> None:
    folder = finished.copy(tmp_path / "input")
    path = sorted((folder.path / "cohort" / "counts").iterdir())[0]
    content = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(content[:-1])))
    run = folder.snakemake("--dry-run")
    assert planned(run.stdout + run.stderr) == {"ingest", "assemble", *AFTER_LOCI}
    assert len(re.findall(r"^rule ingest:", run.stdout + run.stderr, re.MULTILINE)) == 1


def reads_of_its_own(path: Path) -> Path:
    """A coverage file of the same positions with other reads: the same ones twice would be refused."""
    assert path.name.endswith(".cov.gz")
    rows = [line.split("\t") for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    reads = [(int(unmethylated) + 1, int(methylated)) for *_, methylated, unmethylated in rows]
    lines = [
        "\t".join([*row[:3], f"{100 * m / (m + u):.6g}", str(m), str(u)])
        for row, (m, u) in zip(rows, reads, strict=True)
    ]
    other = path.with_name("replicate.cov.gz")
    other.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return other


def test_new_sample_costs_its_own_file_and_what_depends_on_all(finished: Folder, tmp_path: Path) -> None:
    """The other samples are not read again, and the kernel is not compiled again."""
    folder = finished.copy(tmp_path / "grown")
    sheet = folder.path / "cohort" / "samples.tsv"
    header, *rows = sheet.read_text().splitlines()
    values = dict(zip(header.split("\t"), rows[0].split("\t"), strict=True)) | {"sample": "replicate"}
    values["path"] = str(reads_of_its_own(folder.path / "cohort" / values["path"]))
    sheet.write_text("\n".join([header, *rows, "\t".join(values.values())]) + "\n")
    run = folder.snakemake("--until", "shards")
    output = run.stdout + run.stderr
    assert run.returncode == 0, output
    assert planned(output) == {"ingest", "assemble", "shards"}
    assert re.search(r"^ingest +1$", output, re.MULTILINE)
    run = folder.snakemake("--dry-run")
    output = run.stdout + run.stderr
    after = {"fit", "evidence", "controls", "compare", "posterior", "quality", "relatives", "summary", "all"}
    assert planned(output) == {"design", *after}


@pytest.mark.parametrize(
    ("module", "old", "new", "rules"),
    [
        ("commands/posterior.py", "CHUNK_LOCI = 50_000", "CHUNK_LOCI = 40_000", {"posterior", "summary", "all"}),
        ("commands/posterior.py", "log = ", "# a comment\nlog = ", set()),
        ("cli.py", "\n\n\n", "\n\nedited = True\n\n\n", set()),
    ],
)
def test_edit_inside_the_package_reruns_the_steps_that_use_it(
    finished: Folder, tmp_path: Path, module: str, old: str, new: str, rules: set[str]
) -> None:
    for name in ("epivi", "workflow", "envs"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "Snakefile", tmp_path)
    path = tmp_path / "epivi" / module
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    run = finished.snakemake("--dry-run", snakefile=tmp_path / "Snakefile", pythonpath=tmp_path)
    assert run.returncode == 0, run.stderr
    assert planned(run.stdout + run.stderr) == rules


def wait_for(process: subprocess.Popen[str] | ForkedRun, happened: Callable[[], bool]) -> None:
    """Return as soon as it has happened; fails if the process ends before."""
    while not happened():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.slow
def test_interrupted_fit_goes_on_beside_another_cohort(finished: Folder, tmp_path: Path) -> None:
    """Ctrl-C in the fit of a second cohort of the same folder; run again, the fit is finished, the first left as it
    was. What comes after the fit is in test_workflow_faults."""
    folder = finished.copy(tmp_path / "interrupted")
    first = tree(folder.results)
    second = folder.path / "results" / "second"
    folder.edit_config(
        cohort="second",
        model={"hypotheses": HYPOTHESES},
        fit=SETTINGS["fit"] | {"max_steps": 50},
    )
    log = second / "logs" / "fit.log"
    process = folder.start("--until", "fit")
    wait_for(process, lambda: log.exists() and "step 10:" in log.read_text())
    os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches every process of the group
    process.communicate(timeout=300)
    assert process.returncode != 0
    assert (second / "fit" / "checkpoint.pt").exists()
    assert not (second / "fit" / "fit.json").exists()
    run = folder.snakemake("--until", "fit", "--rerun-incomplete")
    assert run.returncode == 0, run.stdout + run.stderr
    continued = re.search(r"continuing at step (\d+)", log.read_text())
    assert continued is not None
    assert 10 <= int(continued.group(1)) < 50
    loss = read_table(second / "fit" / "loss.parquet", "loss", ["step"])
    assert loss["step"].to_pylist() == list(range(1, 51))
    assert (second / "fit" / "fit.json").exists()
    assert tree(folder.results) == first
    assert not list(folder.path.rglob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_run_goes_on(cohort: Folder, tmp_path: Path, number: signal.Signals) -> None:
    folder = cohort.copy(tmp_path / "stopped")
    process = folder.start("--until", "assemble", has_own_jobs=number != signal.SIGKILL)
    wait_for(process, lambda: any(folder.results.glob("counts/*.parquet")))
    if number == signal.SIGKILL:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    process.communicate(timeout=300)
    assert process.returncode != 0
    assert not (folder.results / "loci" / "loci.json").exists()
    if number == signal.SIGKILL:
        unlocked = folder.snakemake("--unlock")
        assert unlocked.returncode == 0, unlocked.stderr
    run = folder.snakemake("--until", "assemble", "--rerun-incomplete")
    assert run.returncode == 0, run.stdout + run.stderr
    assert LociStore.open(folder.results / "loci").n_loci > 200


def test_a_matrix_of_two_individuals_is_read_as_both(cohort: Folder, tmp_path: Path) -> None:
    """Two columns of one table of beta values, beside files of counts: no reads are there twice."""
    folder = cohort.copy(tmp_path / "matrix")
    individuals = ("F1_mother", "F2_mother")
    counts = [pd.read_csv(folder.path / f"cohort/counts/{name}.cov.gz", sep="\t", header=None) for name in individuals]
    betas = [table.set_index([0, 1])[4] / (table.set_index([0, 1])[4] + table.set_index([0, 1])[5]) for table in counts]
    matrix = pd.concat(betas, axis=1, keys=individuals).rename_axis(["contig", "position"])
    matrix.to_csv(folder.path / "cohort" / "betas.tsv", sep="\t", na_rep="NA")
    for name in individuals:
        folder.edit("cohort/samples.tsv", f"counts/{name}.cov.gz\tbismark_cov", "betas.tsv\tbeta_matrix")
    folder.edit_config(
        loci={"array": {"pseudo_reads": 30}, "contigs": {"include": [CONTIGS[0]]}},
        model={"hypotheses": HYPOTHESES},
        evidence={"shard_loci": 1000},
    )
    run = folder.snakemake()
    assert run.returncode == 0, run.stdout + run.stderr
    records = {name: json.loads((folder.results / "qc" / f"{name}.json").read_text()) for name in individuals}
    assert {name: record["loci_written"] for name, record in records.items()} == {
        name: int(matrix[name].notna().sum()) for name in individuals
    }
    manifest = json.loads((folder.results / "manifest.json").read_text())
    assert [record["path"] for record in manifest["inputs"]].count("cohort/betas.tsv") == 2


def test_two_cohorts_run_at_the_same_time(cohort: Folder, tmp_path: Path) -> None:
    folder = cohort.copy(tmp_path / "both")
    names = ("left", "right")
    runs = [folder.start("--until", "ingest", "--config", f"cohort={name}") for name in names]
    for process in runs:
        output = process.communicate(timeout=600)
        assert process.returncode == 0, output
    for name in names:
        assert len(list((folder.path / "results" / name / "counts").glob("*.parquet"))) == 4


def test_diagnostics_are_asked_for_by_name(finished: Folder, tmp_path: Path) -> None:
    """Nothing of the main job runs again, and a second time nothing at all."""
    folder = finished.copy(tmp_path / "diagnose")
    asked = ("--printshellcmds", "diagnose", "--config", "diagnose={loci: 2, methods: [meanfield, lrvb, laplace]}")
    run = folder.snakemake(*asked)
    assert run.returncode == 0, run.stdout + run.stderr
    assert planned(run.stdout + run.stderr) == {"diagnose"}
    tables = folder.results / "diagnose"
    summary = read_table(tables / "summary.parquet", "diagnose_summary").to_pandas()
    assert set(summary["method"]) == {"meanfield", "lrvb", "laplace"}
    evidences = read_table(tables / "evidences.parquet", "diagnose_evidences").to_pandas()
    assert len(evidences.drop_duplicates(["contig", "pos"])) == 2
    for name in ("bounds", "posteriors"):
        assert read_table(tables / f"{name}.parquet", f"diagnose_{name}").num_rows > 0
    assert "|error of log Bayes factor|" in (folder.results / "logs" / "diagnose.log").read_text()
    again = folder.snakemake(*asked)
    assert "Nothing to be done" in again.stdout + again.stderr


def test_unknown_method_of_the_diagnostics_is_one_line(cohort: Folder) -> None:
    run = cohort.snakemake("--dry-run", "--config", "diagnose={methods: [lapplace]}")
    assert run.returncode != 0
    assert "diagnose.methods" in run.stdout + run.stderr
    assert "lapplace" in run.stdout + run.stderr
