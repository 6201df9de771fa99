"""`epivi divergence` from files to tables, and how it ends where the input is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from divergence_cases import Array, draw_reads, draw_states, lines_pedigree
from places import DATA
from transmission_cases import write_store

from epivi.cli import main
from epivi.loci.store import read_provenance
from epivi.tables.parquet import read_table

PEDIGREES = DATA / "pedigrees"
needs_data = pytest.mark.skipif(not PEDIGREES.is_dir(), reason="the public test data is not beside the repository")
QUICK = ("--starts", 2, "--bootstrap", 10)
LINES, NAMES = lines_pedigree(2, (1, 4, 8))


def run(*arguments: str | Path | int) -> int:
    with pytest.raises(SystemExit) as leaving:
        main(["--quiet", "divergence", *map(str, arguments)])
    code = leaving.value.code
    return code if isinstance(code, int) else 0


def failed(capsys: pytest.CaptureFixture[str], *arguments: str | Path | int) -> str:
    """The one line that a mistake ends with."""
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line.removeprefix("epivi: error: ")


def estimates(folder: Path, model: str = "neutral") -> dict[str, dict[str, Any]]:
    rows = read_table(folder / "fit.parquet", "divergence_fit").to_pylist()
    return {row["parameter"]: row for row in rows if row["model"] == model}


def write_lists(folder: Path, states: Array) -> str:
    """Node list, edge list and methylome tables of simulated plants; the pedigree's JSON."""
    generation = np.array([0, *(int(name.split("_")[0]) for name in NAMES[1:])])
    nodes = "".join(f"{name}.txt,{name},{gen},Y\n" for name, gen in zip(NAMES, generation, strict=True))
    (folder / "nodelist.fn").write_text(f"filename,node,gen,meth\n{nodes}")
    edges = [(NAMES[mother], name) for name, mother in zip(NAMES, LINES.mother, strict=True) if mother >= 0]
    (folder / "edgelist.fn").write_text("from\tto\n" + "".join(f"{a}\t{b}\n" for a, b in edges))
    for column, name in enumerate(NAMES):
        rows = "".join(
            f"{1 + 3 * site // len(states)}\t{site + 1}\t+\tCG\t1\t{'UIM'[state]}\n"
            for site, state in enumerate(states[:, column])
        )
        (folder / f"{name}.txt").write_text(f"seqnames\tstart\tstrand\tcontext\tposteriorMax\tstatus\n{rows}")
    return json.dumps({"nodes": str(folder / "nodelist.fn"), "edges": str(folder / "edgelist.fn")})


@pytest.fixture
def pedigree(tmp_path: Path) -> str:
    return write_lists(tmp_path, draw_states(LINES, 2e-3, 8e-3, 1800, np.random.default_rng(1)))


def test_from_calls(tmp_path: Path, pedigree: str) -> None:
    output = tmp_path / "result"
    assert run("--pedigree", pedigree, "--output", output, *QUICK) == 0
    pairs = read_table(output / "divergence.parquet", "divergence")
    assert pairs.num_rows == 21
    assert set(pairs["n_sites"].to_pylist()) == {1800}
    found = estimates(output)
    assert found["alpha"]["estimate"] == pytest.approx(2e-3, rel=0.5)  # 4 standard errors
    assert found["alpha"]["lower"] < found["alpha"]["estimate"] < found["alpha"]["upper"]
    assert found["alpha"]["resampled"] == "blocks"
    models = {row["model"]: row for row in read_table(output / "models.parquet", "divergence_models").to_pylist()}
    observed, predicted = (pairs[name].to_numpy() for name in ("divergence", "predicted"))
    assert models["neutral"]["rss"] == pytest.approx(((observed - predicted) ** 2).sum(), rel=1e-9)
    assert models["null"]["rss"] == pytest.approx(((observed - observed.mean()) ** 2).sum(), rel=1e-9)
    assert models["neutral"]["p_value"] < 1e-3
    summary = json.loads((output / "summary.json").read_text())
    assert summary["fit"][0]["estimate"] == found["alpha"]["estimate"]
    assert summary["settings"]["mode"] == "selfing"
    assert read_provenance(output / "fit.parquet").pedigree_hash
    profile = read_table(output / "profile.parquet", "divergence_profile")
    assert set(profile["equilibrium_weight"].to_pylist()) == {0.0, 1.0}


def test_same_seed_same_result_and_settings_matter(tmp_path: Path, pedigree: str) -> None:
    for name, more in (
        ("a", ()),
        ("b", ()),
        ("seed", ("--seed", 2)),
        ("free", ("--equilibrium-weight", 0)),
        ("clonal", ("--mode", "clonal")),
        ("founder", ("--unmethylated", 0.7)),
        ("share", ("--unmethylated", 0.7, "--equilibrium", 0.6)),
    ):
        assert run("--pedigree", pedigree, "--output", tmp_path / name, *QUICK, *more) == 0
    found = {name: estimates(tmp_path / name) for name in ("a", "b", "seed", "free", "clonal", "founder", "share")}
    assert found["a"] == found["b"]
    assert found["seed"]["alpha"]["estimate"] == pytest.approx(found["a"]["alpha"]["estimate"], rel=1e-4)
    assert found["seed"]["alpha"]["lower"] != found["a"]["alpha"]["lower"]
    assert abs(found["free"]["ratio"]["estimate"] / found["a"]["ratio"]["estimate"] - 1) > 0.05
    assert found["clonal"]["alpha"]["estimate"] != pytest.approx(found["a"]["alpha"]["estimate"], rel=1e-3)
    # A share that is given stays the same in every replicate; one that is seen does not.
    kept, seen = (found[name]["equilibrium_unmethylated"] for name in ("founder", "a"))
    assert kept["lower"] == pytest.approx(0.7, abs=0.001)
    assert kept["upper"] == pytest.approx(0.7, abs=0.001)
    assert seen["upper"] - seen["lower"] > 0.005
    assert found["share"]["equilibrium_unmethylated"]["estimate"] == pytest.approx(0.6, abs=0.01)
    profile = read_table(tmp_path / "free" / "profile.parquet", "divergence_profile")
    assert set(profile["equilibrium_weight"].to_pylist()) == {0.0}


def test_from_counts(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    states = draw_states(LINES, 2e-3, 8e-3, 4000, random)
    pedigree = write_lists(tmp_path, states[:30])
    meth, total = draw_reads(states, 10, random)
    order = [3, 0, 1, 2, 4, 5, 6]  # the store's samples stand in their own order
    counts = {
        name: (meth[rows][:, order], total[rows][:, order])
        for name, rows in (("1", slice(2500)), ("2", slice(2500, None)))
    }
    write_store(tmp_path / "loci", tuple(NAMES[index] for index in order), counts)
    output = tmp_path / "result"
    assert run("--pedigree", pedigree, "--loci", tmp_path / "loci", "--output", output, *QUICK) == 0
    pairs = read_table(output / "divergence.parquet", "divergence").to_pylist()
    for row in pairs:
        i, j = NAMES.index(row["sample_1"]), NAMES.index(row["sample_2"])
        truth = np.abs(states[:, i] - states[:, j]).mean() / 2
        # The jackknife error is mostly that of the sites drawn; that of the reads is a part of it.
        assert abs(row["divergence"] - truth) < 3 * row["standard_error"]
        assert (row["time1"], row["time2"]) == tuple(
            int(name.split("_")[0].replace("founder", "0")) for name in (row["sample_1"], row["sample_2"])
        )
    found = estimates(output)
    assert found["alpha"]["estimate"] == pytest.approx(2e-3, rel=0.4)  # 4 standard errors
    assert abs(found["intercept"]["estimate"]) < 4 * found["intercept"]["standard_error"]


def test_from_a_table(tmp_path: Path) -> None:
    plants = [(0, 0), (1, 1), (4, 1), (1, 2), (8, 2)]
    pairs = [(a, b) for i, a in enumerate(plants) for b in plants[i + 1 :]]
    random = np.random.default_rng(3)
    noise = random.uniform(0, 1e-4, len(pairs))
    rows = "".join(
        f"{min(a[0], b[0]) if a[1] == b[1] else 0},{a[0]},{b[0]},{(a[0] + b[0]) * 0.001 + extra:.6f}\n"
        for (a, b), extra in zip(pairs, noise, strict=True)
    )
    table = tmp_path / "pairs.csv"
    table.write_text(f"time0,time1,time2,D.value\n{rows}")
    assert run("--pairs", table, "--unmethylated", 0.8, "--output", tmp_path / "result", *QUICK) == 0
    assert estimates(tmp_path / "result")["alpha"]["resampled"] == "residuals"
    assert set(read_table(tmp_path / "result" / "divergence.parquet", "divergence")["sample_1"].to_pylist()) == {"."}
    assert run("--pairs", table, "--unmethylated", 0.8, "--output", tmp_path / "none", "--bootstrap", 0) == 0
    assert np.isnan(estimates(tmp_path / "none")["alpha"]["lower"])
    assert json.loads((tmp_path / "none" / "summary.json").read_text())["fit"][0]["lower"] is None


# ---- mistakes


def test_a_listed_sample_without_its_file(tmp_path: Path, pedigree: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "4_1.txt").unlink()
    line = failed(capsys, "--pedigree", pedigree, "--output", tmp_path / "result")
    missing = tmp_path / "4_1.txt"
    assert line == f"{tmp_path / 'nodelist.fn'} line 7: the file {str(missing)!r} of sample '4_1' does not exist"
    assert not (tmp_path / "result").exists()


def test_mistakes_in_a_table_of_calls(tmp_path: Path, pedigree: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "8_0.txt"
    text = path.read_text()
    path.write_text(text.replace("status", "state", 1))
    line = failed(capsys, "--pedigree", pedigree, "--output", tmp_path / "result")
    assert line.startswith(f"{path}: line 1: the header lacks status (expected seqnames, ")
    path.write_text(text.replace("\tU\n", "\t?\n", 1))
    line = failed(capsys, "--pedigree", pedigree, "--output", tmp_path / "result")
    assert line.startswith(f"{path}: line ")
    assert "column 6 (status) is '?' (expected U, I or M" in line


def test_no_common_sites(tmp_path: Path, pedigree: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "8_0.txt"
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    path.write_text("\n".join("\t".join(["Pt", *row[1:]]) if row[0].isdigit() else "\t".join(row) for row in rows))
    line = failed(capsys, "--pedigree", pedigree, "--output", tmp_path / "result")
    assert line.startswith("samples 'founder' and '8_0' have no site in common: expected sites")


def test_nothing_to_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = np.tile(np.arange(60, dtype=np.int8)[:, None] % 3, (1, 7))
    pedigree = write_lists(tmp_path, same)
    line = failed(capsys, "--pedigree", pedigree, "--output", tmp_path / "result")
    assert line.endswith("nothing to fit: the divergence is 0 in every pair: expected differences")
    pedigree = write_lists(tmp_path, 0 * same)
    line = failed(capsys, "--pedigree", pedigree, "--output", tmp_path / "result")
    assert line == "the share of unmethylated sites is 1: expected both kinds, or --unmethylated"


def test_inputs_that_do_not_go_together(tmp_path: Path, pedigree: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("time0,time1,time2,D.value\n0,1,1,0.1\n")
    output = ("--output", tmp_path / "result")
    assert failed(capsys, *output) == "--pedigree: expected the pedigree of the samples, or --pairs"
    line = failed(capsys, "--pairs", table, "--pedigree", pedigree, *output)
    assert line == f"--pedigree {pedigree}: expected either --pairs or --pedigree, not both"
    line = failed(capsys, "--pairs", table, *output)
    assert line == f"{table}: does not give the share of unmethylated sites: expected it as --unmethylated"
    line = failed(capsys, "--pairs", table, "--unmethylated", 0.5, *output)
    assert line == f"{table}: nothing to fit: 1 pairs: expected more than 4"
    family = tmp_path / "lines.tsv"
    family.write_text("individual\tmother\tfather\tmode\na\t\t\t\nb\ta\t\tclonal\n")
    line = failed(capsys, "--pedigree", family, *output)
    assert line == f"--samples: expected a sample sheet, since {family} names no files of samples"
    write_store(tmp_path / "loci", ("founder", "stranger"), {"1": (np.ones((9, 2)), np.full((9, 2), 5))})
    line = failed(capsys, "--pedigree", pedigree, "--loci", tmp_path / "loci", *output)
    assert line == f"{tmp_path / 'nodelist.fn'}: sample 'stranger' of {tmp_path / 'loci'} is not in it"
    line = failed(capsys, "--pedigree", pedigree, "--loci", tmp_path / "loci", "--context", "CHH", *output)
    assert "stranger" in line
    write_store(tmp_path / "shallow", ("founder", "1_0"), {"1": (np.ones((9, 2)), np.ones((9, 2)))})
    line = failed(capsys, "--pedigree", pedigree, "--loci", tmp_path / "shallow", *output)
    assert line == f"{tmp_path / 'shallow'}: context CG: no site has 2 reads or more"


# ---- published


@needs_data
def test_col0_from_its_own_files(tmp_path: Path) -> None:
    folder = PEDIGREES / "col0_ma"
    pedigree = json.dumps({"nodes": str(folder / "nodelist.fn"), "edges": str(folder / "edgelist.fn")})
    assert run("--pedigree", pedigree, "--output", tmp_path, "--bootstrap", 60) == 0
    found = estimates(tmp_path)
    assert found["alpha"]["estimate"] == pytest.approx(5.80e-5, rel=0.01)
    assert found["beta"]["estimate"] == pytest.approx(6.56e-3, rel=0.01)
    assert found["equilibrium_unmethylated"]["estimate"] == pytest.approx(0.99101, abs=5e-6)
    # The published intercept is of divergences rounded to 1e-5: 2.4 % less than of these.
    assert found["intercept"]["estimate"] == pytest.approx(5.96e-5, rel=0.03)


@needs_data
def test_a_rate_at_the_end_of_the_search_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = PEDIGREES / "ma1_1" / "divergence_pairs.csv"
    given = ("--pairs", table, "--unmethylated", 0.74351, "--bootstrap", 0, "--output", tmp_path)
    assert run(*given, "--equilibrium-weight", 0) == 0
    assert any("alpha is at the limit of the search" in message for message in caplog.messages)
    caplog.clear()
    assert run(*given) == 0
    assert not caplog.messages
