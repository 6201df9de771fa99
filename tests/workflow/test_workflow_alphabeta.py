"""Real selfed lines from AlphaBeta's lists and methylome tables to the posterior, by the real commands."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from workflow_folder import HYPOTHESES, REPOSITORY, SETTINGS, Folder

from epivi.loci.store import LociStore
from epivi.tables.parts import read_parts

LINES = REPOSITORY.parent / "shared" / "data" / "pedigrees" / "col0_ma"
CONTIG = "2"  # the one with the fewest sites

pytestmark = pytest.mark.skipif(not LINES.is_dir(), reason="the public test data is not beside the repository")


def reads_by_position() -> dict[str, Counter[int]]:
    """Sample -> reads at each CpG of the contig, both strands together, at the C of the + strand."""
    reads: dict[str, Counter[int]] = {}
    for node in csv.DictReader((LINES / "nodelist.fn").read_text().splitlines()):
        if node["meth"] == "Y":
            counter = reads.setdefault(node["node"], Counter())
            rows = csv.DictReader((LINES / node["filename"]).read_text().splitlines(), delimiter="\t")
            for row in rows:
                if row["seqnames"] == CONTIG and row["context"] == "CG" and 0 < int(row["counts.total"]) <= 500:
                    counter[int(row["start"]) - 1 - (row["strand"] == "-")] += int(row["counts.total"])
    return reads


@pytest.mark.slow
def test_lines_of_alphabeta_end_to_end(tmp_path: Path) -> None:
    config = {
        "cohort": "col0",
        "samples": str(LINES / "nodelist.fn"),
        "pedigree": {name: str(LINES / f"{name[:-1]}list.fn") for name in ("nodes", "edges")},
        "loci": {"contigs": {"include": [CONTIG]}, "min_covered_samples": 7},
        "model": {"hypotheses": HYPOTHESES},
        "fit": SETTINGS["fit"],
        "controls": SETTINGS["controls"],
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    run = Folder(tmp_path).snakemake()
    assert run.returncode == 0, run.stdout + run.stderr
    results = tmp_path / "results" / "col0"
    reads = reads_by_position()
    covered = Counter(pos0 for counter in reads.values() for pos0 in counter)
    expected = sorted(pos0 for pos0, n_samples in covered.items() if n_samples >= 7)
    assert len(expected) > 50
    assert LociStore.open(results / "loci").samples == tuple(reads)
    posterior = read_parts(results / "posterior", "posterior").to_pydict()
    assert posterior["contig"] == [CONTIG] * len(expected)
    assert posterior["pos"] == expected
    assert posterior["covered_samples"] == [covered[pos0] for pos0 in expected]
    assert posterior["coverage_reads"] == [sum(counter[pos0] for counter in reads.values()) for pos0 in expected]
    for row in zip(*(posterior[f"prob_{name}"] for name in HYPOTHESES), strict=True):
        assert sum(row) == pytest.approx(1, abs=1e-9)
    summary = json.loads((results / "manifest.json").read_text())["summary"]
    assert (summary["samples"], summary["individuals"]) == (13, 23)
