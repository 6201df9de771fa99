"""A cohort that grows by a sample: what runs again, and that it ends as a fresh run of the larger cohort does."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from workflow_folder import COHORT, EXECUTABLES, HYPOTHESES, SETTINGS, Folder

NEW = "F1_father"


def drawn(path: Path) -> Folder:
    """A cohort of two trios in a format that knows the strands."""
    path.mkdir()
    line = "simulate --output cohort --seed 12 --template trio --families 2 --unsampled F2_mother,F2_father"
    line += f" --loci 200 --contigs chr1,chr2 --formats bedmethyl:1 --cohort {COHORT}"
    subprocess.run([EXECUTABLES / "epivi", *line.split()], cwd=path, check=True, capture_output=True)
    config = yaml.safe_load((path / "cohort" / "config.yaml").read_text())
    for section, values in SETTINGS.items():
        config[section] |= values
    config["model"]["hypotheses"] = HYPOTHESES
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return Folder(path)


def run(folder: Folder) -> str:
    """What a run to the end says."""
    process = folder.snakemake()
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout + process.stderr


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The larger cohort, run to its end."""
    folder = drawn(tmp_path_factory.mktemp("growth") / "fresh")
    run(folder)
    return folder


def jobs(output: str) -> dict[str, int]:
    """Rule -> jobs that were started; the number for those after the shards is only known later."""
    started = re.findall(r"^(?:local)?(?:rule|checkpoint) (\w+):", output, re.MULTILINE)
    return {rule: started.count(rule) for rule in started}


def test_cohort_grown_by_a_sample_ends_as_a_fresh_one(fresh: Folder, tmp_path: Path) -> None:
    folder = drawn(tmp_path / "grown")
    sheet = folder.path / "cohort" / "samples.tsv"
    rows = sheet.read_text()
    without = [line for line in rows.splitlines(keepends=True) if not line.startswith(f"{NEW}\t")]
    sheet.write_text("".join(without))
    run(folder)
    before = folder.files()
    (panel,) = (folder.results / "loci" / "panels").iterdir()
    sheet.write_text(rows)
    output = run(folder)
    started = jobs(output)
    assert started["ingest"] == started["assemble"] == started["fit"] == 1
    assert {"shards", "quality", "evidence", "compare", "posterior", "summary"} <= set(started)
    assert "kept 1 panels (3 samples" in (folder.results / "logs" / "assemble.log").read_text()
    kept = [name for name, time_ns in folder.files().items() if name in before and before[name] == time_ns]
    counts = [name for name in kept if re.match(rf"results/{COHORT}/counts/.*\.parquet", name)]
    assert len(counts) == 3
    assert {str(path.relative_to(folder.path)) for path in panel.iterdir()} <= set(kept)
    assert len(list(panel.parent.iterdir())) == 2
    assert folder.tables() == fresh.tables()
    assert "Nothing to be done" in run(folder)
