"""Every long step on a full disk: one line, nothing half-written, and the same files once there is space."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from epivi.cli import main
from epivi.tables.parquet import read_table

MODEL = {"hypotheses": {"reset": {}, "mendelian": {"heritable_share": "free", "maternal": 1, "paternal": 1}}}
FIT = {
    "batch_loci": 64,
    "holdout_loci": 64,
    "max_steps": 3,
    "check_every": 2,
    "hidden": 8,
    "device": "cpu",
    "shared_loci": 16,
}
COMPARE = {"draws": 20, "blocks": 5}
CONFIG = json.dumps({"cohort": "a", "seed": 3, "model": MODEL, "fit": FIT, "compare": COMPARE})

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


CLOCKED = ("qc.json", "checkpoint.pt")  # say when, or how long


def run(*line: object) -> int:
    with pytest.raises(SystemExit) as leaving:
        main(["--quiet", *map(str, line)])
    return int(leaving.value.code or 0)


def command(step: str, inputs: Path, output: Path) -> list[object]:
    """The line of a step whose inputs are results of the steps before, and whose outputs lie elsewhere."""
    cohort, loci, config = inputs / "cohort", inputs / "loci", ("--config", CONFIG)
    problem = ("--loci", loci, "--samples", cohort / "samples.tsv", "--pedigree", cohort / "pedigree.tsv", *config)
    counts = [inputs / "counts" / f"{sample}.parquet" for sample in samples(inputs)]
    part = "part-0000.parquet"
    lines: dict[str, list[object]] = {
        "ingest": [
            *("ingest", next((cohort / "counts").glob(f"{samples(inputs)[0]}.*")), "--sample", samples(inputs)[0]),
            *("--output", output / "counts" / f"{samples(inputs)[0]}.parquet", "--qc", output / "qc.json", *config),
        ],
        "assemble": ["assemble", *counts, "--output", output / "loci", *config],
        "fit": ["fit", *problem, "--output", output / "fit"],
        "evidence": [
            *("evidence", *problem, "--fit", inputs / "fit"),
            *("--output", output / "evidence" / part),
        ],
        "compare": ["compare", "--evidence", inputs / "evidence", "--output", output / "compare", *config],
        "posterior": [
            *("posterior", "--evidence", inputs / "evidence" / part, "--loci", loci, *config),
            *("--compare", inputs / "compare", "--output", output / "posterior" / part),
        ],
    }
    return lines[step]


def samples(inputs: Path) -> list[str]:
    return [line.split("\t")[0] for line in (inputs / "cohort" / "samples.tsv").read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of two trios after every step, on a disk with space."""
    folder = tmp_path_factory.mktemp("space")
    line = "simulate --seed 1 --template trio --families 2 --loci 1000 --contigs chr1 --cohort a"
    assert run(*line.split(), "--output", folder / "cohort") == 0
    for sample in samples(folder):
        (file,) = (folder / "cohort" / "counts").glob(f"{sample}.*")
        output = ("--output", folder / "counts" / f"{sample}.parquet", "--qc", folder / f"{sample}.json")
        assert run("ingest", file, "--sample", sample, "--config", CONFIG, *output) == 0
    for step in ("assemble", "fit", "evidence", "compare", "posterior"):
        assert run(*command(step, folder, folder)) == 0
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of the given size, or resizes it; returns its folder."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size: str) -> Path:
        options = f"size={size}" if not os.path.ismount(disk) else f"remount,size={size}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)
        return disk

    try:
        mount("4k")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    yield mount
    subprocess.run(["umount", "--lazy", disk], check=True)  # a failed writer may not have let go of its file yet


def content(path: Path) -> object:
    """What a file says, without the clock."""
    if path.suffix == ".json":
        return re.sub(r'"elapsed_s": [0-9.]+', "", path.read_text())
    if path.name == "loss.parquet":
        return read_table(path, "loss").drop_columns(["elapsed_s"]).to_pandas().to_csv()
    return path.read_bytes()


@pytest.mark.parametrize("step", ["ingest", "assemble", "fit", "evidence", "compare", "posterior"])
def test_full_disk(
    step: str, results: Path, small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = small_disk("4k")
    capsys.readouterr()
    assert run(*command(step, results, disk)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("epivi: error: ")
    assert "no space left" in line
    whole = {path.name for path in disk.rglob("*") if path.is_file()}
    assert whole <= {"qc.json", "weights.json", "qvalue.parquet", "guide.pt", "contigs.parquet", "positions.parquet"}
    small_disk("64m")
    assert run(*command(step, results, disk)) == 0
    written = [path.relative_to(disk) for path in disk.rglob("*") if path.is_file() and path.name not in CLOCKED]
    assert written
    for name in written:
        assert content(disk / name) == content(results / name), name
