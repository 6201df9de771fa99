"""Selfed lines through the whole workflow under `family: epimutation`, with two classes of annotation."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import duckdb
import pytest
import yaml
from workflow_folder import EXECUTABLES, SETTINGS, Folder

from epivi.tables.parquet import read_table
from epivi.tables.parts import read_parts

CONTIGS = ("chr1", "chr2")
LOCI = 600
LINE = (
    "simulate --output cohort --seed 3 --family epimutation --template selfing_lines --families 2 --coverage 15"
    f" --loci {LOCI} --contigs {','.join(CONTIGS)} --gain 0.01 --loss 0.02 --false-methylated 0.01"
    " --false-unmethylated 0.02 --weights neutral=0.8,labile=0.2 --cohort lines"
)


def made(path: Path) -> Folder:
    path.mkdir()
    subprocess.run([EXECUTABLES / "epivi", *LINE.split()], cwd=path, check=True, capture_output=True)
    (path / "classes.bed").write_text("chr1\t0\t25000\tTE\nchr2\t0\t10000000\tgene\n")
    config = yaml.safe_load((path / "cohort" / "config.yaml").read_text())
    for section, values in SETTINGS.items():
        config[section] = config.get(section, {}) | values
    config["model"]["classes"] = "classes.bed"
    config["evidence"]["shard_loci"] = 300
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return Folder(path)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of results of a finished run."""
    folder = made(tmp_path_factory.mktemp("epimutation") / "run")
    run = folder.snakemake()
    assert run.returncode == 0, run.stdout + run.stderr
    again = folder.snakemake("--dry-run")
    assert "Nothing to be done" in again.stdout + again.stderr
    return folder.path / "results" / "lines"


def test_every_locus_has_its_probabilities(lines: Path) -> None:
    posterior = read_parts(lines / "posterior", "posterior").to_pydict()
    assert len(posterior["pos"]) == LOCI
    names = ("stable", "neutral", "labile", "selection")
    for row in zip(*(posterior[f"prob_{name}"] for name in names), strict=True):
        assert sum(row) == pytest.approx(1, abs=1e-9)
    # Loci of the first contig beyond the interval are of the class `other`.
    expected = {"chr1": {"CG:TE", "CG:other"}, "chr2": {"CG:gene"}}
    for contig, classes in expected.items():
        assert {c for c, name in zip(posterior["class"], posterior["contig"], strict=True) if name == contig} == classes


def test_states_and_branches_cover_the_lineage(lines: Path) -> None:
    states = read_parts(lines / "states", "states")
    branches = read_parts(lines / "branches", "branches")
    nodes = set(states["node"].to_pylist())
    assert len(states) == LOCI * len(nodes)
    assert len(nodes) == 14
    assert len(branches) == LOCI * 12
    total = sum(states[f"prob_{name}"].to_numpy() for name in ("unmethylated", "intermediate", "methylated"))
    assert total == pytest.approx(1, abs=1e-5)


def test_changes_are_found_where_they_were_drawn(lines: Path) -> None:
    """Branches that are called a gain at 0.95 carry one in truth, nine in ten at least, and some are called."""
    truth = lines.parents[1] / "cohort" / "truth_branches.parquet"
    files = f"read_parquet('{lines}/branches/*.parquet')"
    called, right = duckdb.sql(
        f"SELECT count(*), count(*) FILTER (truth.gain) FROM {files} called LEFT JOIN '{truth}' truth "
        "USING (contig, pos, parent, child) WHERE prob_gain > 0.95"
    ).fetchall()[0]
    assert called >= 20
    assert right >= 0.9 * called


def test_rates_of_every_class_hold_the_truth_and_are_reported(lines: Path) -> None:
    rates = {
        (row["class"], row["parameter"]): row
        for row in read_table(lines / "fit" / "rates.parquet", "rates").to_pylist()
    }
    assert {name for name, _ in rates} == {"CG:TE", "CG:gene", "CG:other"}
    # The loci that vary around the class's rate move its mean up a little: within a factor of two of the truth.
    for parameter, value in (("alpha", 0.01), ("beta", 0.02)):
        row = rates["CG:gene", parameter]
        assert row["lower"] < row["median"] < row["upper"]
        assert value / 2 < row["median"] < value * 2
    summary = json.loads((lines / "manifest.json").read_text())["summary"]
    assert len(summary["rates"]) == 6
    profile = read_table(lines / "fit" / "ratio_profile.parquet", "ratio_profile").to_pydict()
    assert set(profile["estimator"]) == {"likelihood", "divergence"}
    divergence = read_table(lines / "fit" / "expected_divergence.parquet", "expected_divergence").to_pydict()
    assert max(divergence["generations"]) == 7
    assert divergence["divergence"][0] == 0


def test_loci_can_be_queried(lines: Path) -> None:
    line = [EXECUTABLES / "epivi", "query", "chr1", "--results", lines, "--columns", "pos,class,gain_rate_mean,best"]
    run = subprocess.run([*map(str, line), "--where", "prob_labile > 0.5"], capture_output=True, text=True, check=True)
    header, *rows = run.stdout.splitlines()
    assert header.split("\t") == ["pos", "class", "gain_rate_mean", "best"]
    # The best hypothesis is named where nothing else may be.
    assert all(row.split("\t")[-1] in ("labile", "") for row in rows)


def test_branches_can_be_queried(lines: Path) -> None:
    line = [EXECUTABLES / "epivi", "query", "chr1:0-30000", "--results", lines, "--table", "branches"]
    run = subprocess.run([*map(str, line), "--where", "prob_gain > 0.9"], capture_output=True, text=True, check=True)
    header, *rows = run.stdout.splitlines()
    assert header.split("\t") == ["contig", "pos", "parent", "child", "prob_gain", "prob_loss"]
    assert rows
    assert all(int(row.split("\t")[1]) < 30000 and float(row.split("\t")[4]) > 0.9 for row in rows)


def test_states_are_refused_for_another_family(tmp_path: Path) -> None:
    line = [EXECUTABLES / "epivi", "states", "--config", json.dumps({"model": {"family": "transmission"}})]
    files = ("evidence", "loci", "fit", "compare", "samples", "pedigree", "states", "branches")
    arguments = [part for name in files for part in (f"--{name}", str(tmp_path / name))]
    run = subprocess.run([*map(str, line), *arguments], capture_output=True, text=True)
    assert run.returncode == 2
    assert "model.family is transmission, which has no discrete states: expected epimutation" in run.stderr
