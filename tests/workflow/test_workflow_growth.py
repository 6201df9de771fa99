"""A cohort that grows by a sample: what runs again, and that it ends as a fresh run of the larger cohort does."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from workflow_folder import COHORT, EXECUTABLES, HYPOTHESES, SETTINGS, Folder

from epivi.loci.assemble import AssembleSettings, assemble
from epivi.loci.store import LociStore
from epivi.tables.parquet import Provenance

NEW = "F1_father"


def drawn(path: Path) -> Folder:
    """A parent and a child of each of two families, in a format that knows the strands."""
    path.mkdir()
    line = "simulate --output cohort --seed 12 --template trio --families 2 --unsampled F1_mother,F2_father"
    line += f" --loci 200 --contigs chr1,chr2 --formats bedmethyl:1 --cohort {COHORT}"
    subprocess.run([EXECUTABLES / "epivi", *line.split()], cwd=path, check=True, capture_output=True)
    config = yaml.safe_load((path / "cohort" / "config.yaml").read_text())
    for section, values in SETTINGS.items():
        config[section] = config.get(section, {}) | values
    config["model"]["hypotheses"] = HYPOTHESES
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return Folder(path)


def run(folder: Folder, *arguments: str) -> str:
    """What a run says that ends well."""
    process = folder.snakemake(*arguments)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout + process.stderr


def started(output: str) -> dict[str, int]:
    """Rule -> jobs that were started."""
    rules = re.findall(r"^(?:local)?(?:rule|checkpoint) (\w+):", output, re.MULTILINE)
    return {rule: rules.count(rule) for rule in rules}


def grow(folder: Folder, *arguments: str) -> str:
    """Run the cohort without one sample, then with it; what the second run says."""
    sheet = folder.path / "cohort" / "samples.tsv"
    rows = sheet.read_text()
    sheet.write_text("".join(line for line in rows.splitlines(keepends=True) if not line.startswith(f"{NEW}\t")))
    run(folder, *arguments)
    before = folder.files()
    loci = folder.results / "loci"
    (panel,) = (loci / "panels").iterdir()
    sheet.write_text(rows)
    output = run(folder, *arguments)
    assert "kept 1 panel (3 samples" in (folder.results / "logs" / "assemble.log").read_text()
    kept = {name for name, time_ns in folder.files().items() if before.get(name) == time_ns}
    others = {f"results/{COHORT}/counts/{path.name}" for path in folder.results.glob("counts/*") if path.stem != NEW}
    assert len(others) == 3
    assert others | {str(path.relative_to(folder.path)) for path in panel.iterdir()} <= kept
    assert len(LociStore.open(loci).panels) == len(list(panel.parent.iterdir())) == 2
    return output


def test_new_sample_is_a_panel_more(tmp_path: Path) -> None:
    """One file is read; those of the others are neither read nor written again, and the loci are as from scratch."""
    folder = drawn(tmp_path / "grown")
    assert started(grow(folder, "--until", "shards")) == {"ingest": 1, "assemble": 1, "shards": 1}
    grown = LociStore.open(folder.results / "loci")
    counts = [folder.results / "counts" / f"{sample}.parquet" for sample in grown.samples]
    settings = AssembleSettings("cpg", True, 0.5)
    assemble(counts, tmp_path / "fresh", settings, Provenance("loci", 1, "", ""), threads=1, on_joined=lambda n: None)
    fresh = LociStore.open(tmp_path / "fresh")
    assert grown.contigs == fresh.contigs
    for contig in fresh.contigs:
        size = fresh.n_loci_of(contig)
        assert size == grown.n_loci_of(contig) > 50
        for array, expected in zip(grown.block(contig, 0, size)[2:], fresh.block(contig, 0, size)[2:], strict=True):
            np.testing.assert_array_equal(array, expected)


@pytest.mark.slow
def test_cohort_grown_by_a_sample_ends_in_the_tables_of_a_fresh_run(tmp_path: Path) -> None:
    fresh, folder = (drawn(tmp_path / name) for name in ("fresh", "grown"))
    run(fresh)
    jobs = started(grow(folder))
    assert jobs["ingest"] == jobs["assemble"] == jobs["fit"] == 1
    assert {"shards", "quality", "evidence", "compare", "posterior", "summary"} <= set(jobs)
    assert folder.tables() == fresh.tables()
    assert "Nothing to be done" in run(folder)
