"""One family, thousands of loci: the run says that it cannot tell, whatever the loci have in common."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from workflow_folder import SETTINGS, Folder

import epivi

TRIO = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "faults" / "constant_trio"


@pytest.mark.skipif(not TRIO.is_dir(), reason="shared/data/faults is not beside the clone")
def test_a_trio_in_which_nothing_varies_calls_nothing(tmp_path: Path) -> None:
    """It had mendelian 1.000 (1.000 to 1.000) and 2,000 of 2,000 loci called with q = 0."""
    folder = Folder(tmp_path / "run")
    shutil.copytree(TRIO, folder.path / "cohort")
    config = {"cohort": "tiny", "samples": "cohort/samples.tsv", "pedigree": "cohort/pedigree.tsv", **SETTINGS}
    config["evidence"] = {"shard_loci": 2000}
    (folder.path / "config.yaml").write_text(yaml.safe_dump(config))
    run = folder.snakemake()
    output = run.stdout + run.stderr
    assert run.returncode == 0, output
    assert "cannot tell: only one family has two or more sampled relatives" in output
    results = epivi.open_results(folder.results)
    posterior = results.posterior().to_pandas()
    assert len(posterior) == 2000
    assert (posterior.qvalue == 1).all()
    assert posterior.flag_cannot_tell.all()
    # What single loci say of nothing: about the share of the null among the hypotheses, and never certain.
    assert posterior.lfdr.between(0.02, 0.9).all()
    weights = results.weights.to_pandas()
    # No more than the prior: five loci of `reset` and one of each other hypothesis.
    assert weights.weight.between(0.05, 0.7).all()
    assert (weights.upper - weights.lower > 0.2).all()
    assert not posterior.called.any()
    summary = json.loads((folder.results / "manifest.json").read_text())["summary"]
    assert summary["cannot_tell"].startswith("cannot tell")
    assert summary["n_calls"] == 0
