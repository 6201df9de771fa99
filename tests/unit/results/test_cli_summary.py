"""`epivi summary` on tables whose content is known."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from loci_folder import write_loci

from epivi.base.errors import UserError
from epivi.commands.summary import command
from epivi.config.load import load_config
from epivi.discovery.columns import DISCOVERY_TABLES
from epivi.discovery.controls import ControlTest
from epivi.discovery.misfit import BINS
from epivi.families.transmission.columns import posterior_columns
from epivi.loci.loci_file import LocusBlock
from epivi.quality.columns import QUALITY_TABLES, VERDICT_METADATA
from epivi.results.results import open_results
from epivi.results.summary import _misfit_warning, summarize, timings
from epivi.tables.columns import Column, arrow_schema
from epivi.tables.parquet import Provenance, read_table, write_table
from epivi.tables.parts import STAMP, part_metadata, part_path

HYPOTHESES = ("reset", "epigenetic")
LOCI = {"chr1": 5, "2": 3}
# One value a locus, in the order of LOCI.
KINDS = ["epigenetic"] * 3 + ["epigenetic|mendelian"] * 5
PROBABILITY = [0.25, 1.0, 1.0, 0.5, 1.0, 0.25, 0.25, 1.0]
QVALUES = [0.9, 0.01, 0.05, 0.6, 0.0501, 0.9, 0.9, 0.02]
BEST = ["reset", "epigenetic", "epigenetic", "", "", "reset", "reset", "epigenetic"]
MISFIT = [0.01, 0.03, 0.2, 0.5, 0.72, 0.9, 1.0, np.nan]
LOW_COVERAGE = [True, False, False, True, False, False, True, False]


def provenance(table: str) -> Provenance:
    return Provenance(table, 1, "", "")


def column_values(column: Column, start: int, stop: int) -> pa.Array:
    known = {
        "kind_set": KINDS,
        "prob_epigenetic": PROBABILITY,
        "qvalue": QVALUES,
        "best": BEST,
        "flag_low_coverage": LOW_COVERAGE,
        "misfit_pvalue": MISFIT,
    }
    known["called"] = [qvalue <= 0.05 for qvalue in QVALUES]
    if column.name in known:
        return pa.array(known[column.name][start:stop])
    if column.name in ("contig", "strand", "context"):
        return pa.array(["."] * (stop - start))
    return pa.array(np.zeros(stop - start)).cast(column.type)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A finished run of two samples, its inputs beside it."""
    folder = tmp_path / "results" / "known"
    blocks = []
    start = 0
    for contig, n_loci in LOCI.items():
        codes = np.zeros(n_loci, np.int8)
        pos0 = np.arange(n_loci, dtype=np.int32)
        counts = np.ones((n_loci, 2), np.uint16)
        blocks.append(LocusBlock(contig, 0, pos0, pos0 + 1, codes, codes, counts, counts))
        columns = posterior_columns(HYPOTHESES)
        values = {column.name: column_values(column, start, start + n_loci) for column in columns}
        path = part_path(folder / "posterior", f"{len(blocks) - 1:04d}")
        metadata = part_metadata((start, start + n_loci), sum(LOCI.values()), [contig], "posterior", "weights")
        table = pa.table(values | {"contig": [contig] * n_loci})
        write_table(table, path, columns, provenance("posterior"), metadata=metadata)
        start += n_loci
    write_loci(folder / "loci", ("a", "b"), blocks, provenance("loci"))
    weights = {"hypothesis": HYPOTHESES, "weight": [0.75, 0.25], "lower": [0.7, 0.2], "upper": [0.8, 0.3]}
    weights |= {"family_lower": [0.6, np.nan], "family_upper": [0.9, np.nan]}
    weights |= {"prior_lower": [np.nan] * 2, "prior_upper": [np.nan] * 2}
    weights |= {"merged": HYPOTHESES, "merged_weight": [0.75, 0.25]}
    weights |= {f"merged_{end}": weights[end] for end in ("lower", "upper", "family_lower", "family_upper")}
    control = ("within", 19, 119.25, 38.0, 39.5, 0.05, 26, 1.25)
    write_table(
        pa.Table.from_pylist([dict(zip(ControlTest._fields, control, strict=True))]),
        folder / "compare" / "control_tests.parquet",
        DISCOVERY_TABLES["control_tests"],
        provenance("control_tests"),
    )
    table = pa.table(weights | {"n_loci": [8, 8]})
    write_table(
        table,
        folder / "compare" / "weights.parquet",
        DISCOVERY_TABLES["weights"],
        provenance("weights"),
        metadata={STAMP: "weights"},
    )
    (folder / "fit").mkdir()
    (folder / "fit" / "fit.json").write_text('{"warnings": []}')
    (folder / "benchmarks" / "evidence").mkdir(parents=True)
    (folder / "benchmarks" / "fit.tsv").write_text("s\th:m:s\tmax_rss\n12.5\t0:00:12\t300.25\n")
    (folder / "benchmarks" / "evidence" / "1.tsv").write_text("s\th:m:s\tmax_rss\n2.0\t0:00:02\t100\n")
    (folder / "benchmarks" / "evidence" / "2.tsv").write_text("s\th:m:s\tmax_rss\n3.0\t0:00:03\tNA\n")
    for sample in ("a", "b"):
        (tmp_path / f"{sample}.cov").write_text(f"counts of {sample}\n")
    (tmp_path / "samples.tsv").write_text("sample\tindividual\tpath\na\ta\ta.cov\nb\tb\tb.cov\n")
    (tmp_path / "pedigree.tsv").write_text("individual\tmother\tfather\na\t.\t.\nb\ta\t.\nc\ta\t.\n")
    return folder


@pytest.fixture
def config(tmp_path: Path) -> str:
    values = {
        "cohort": "known",
        "samples": str(tmp_path / "samples.tsv"),
        "pedigree": str(tmp_path / "pedigree.tsv"),
        "model": {"hypotheses": {"reset": {}, "epigenetic": {"heritable_share": "free", "maternal": 1, "paternal": 1}}},
        "compare": {"fdr": 0.05},
    }
    return json.dumps(values)


def test_counts_of_loci_calls_and_flags(results: Path, config: str) -> None:
    summary = summarize(results, load_config(config), 3)
    assert summary.loci == {"chr1": 5, "2": 3}
    assert summary.n_loci == 8
    assert summary.expected == {"reset": 0.0, "epigenetic": 5.25}
    assert summary.kinds == {"epigenetic": 2, "epigenetic|mendelian": 1}
    assert summary.n_calls == 3
    assert summary.flags == {
        "flag_cannot_tell": 0,
        "flag_evidence": 0,
        "flag_khat": 0,
        "flag_low_coverage": 3,
        "flag_misfit": 0,
        "flag_mc_error": 0,
    }
    assert sum(summary.misfit) == 7
    assert [place for place, loci in enumerate(summary.misfit) if loci] == [0, 4, 10, 14, 18, 19]
    assert [(weight.hypothesis, weight.weight) for weight in summary.weights] == [("reset", 0.75), ("epigenetic", 0.25)]


def test_manifest_and_table(results: Path, config: str, tmp_path: Path) -> None:
    run = CliRunner().invoke(command, ["--results", str(results), "--config", config, "--threads", "2"])
    assert run.exit_code == 0, run.output
    manifest = json.loads((results / "manifest.json").read_text())
    content = b"counts of b\n"
    assert manifest["inputs"][-1] == {
        "role": "counts",
        "path": str(tmp_path / "b.cov"),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert [record["role"] for record in manifest["inputs"]] == ["samples", "pedigree", "counts", "counts"]
    assert manifest["configuration"]["evidence"]["shard_loci"] == 1_000_000  # defaults are written out
    assert manifest["summary"]["individuals"] == 3
    assert "8 loci on 2 contigs, 2 samples, 3 individuals" in run.output
    assert "0.700 to 0.800" in run.output
    assert "0.600 to 0.900" in run.output
    words = " ".join(run.output.split())
    assert "individuals exchanged, within: gain 39.5 nats at most in 19, 119.2 as they are; p = 0.05" in words
    assert "of 26 sampled calls 1.2 stay" in words
    assert "3 loci called" in run.output
    assert "  1 epigenetic or mendelian" in run.output
    assert "flag_low_coverage 3" in run.output
    assert "misfit: 28.6 % of the loci have a p-value of at most 0.05, where the model gives 5 %" in run.output
    table = read_table(results / "misfit.parquet", "misfit").to_pandas()
    assert table.n_loci.tolist() == manifest["summary"]["misfit"]
    assert (table.n_loci.sum(), table.expected.sum()) == (7, pytest.approx(7))
    again = CliRunner().invoke(command, ["--results", str(results)])
    assert again.output == run.output


def test_warnings_of_the_quality_are_printed_and_kept(results: Path, config: str) -> None:
    text = "a: false_methylated is 0 in the sample sheet, which is used, but 0.02 (0.01 to 0.03) by the controls"
    row = {"check": "error_rate", "sample": "a", "other": "", "value": 0.02, "limit": 0.0, "text": text}
    table = pa.Table.from_pylist([row], schema=arrow_schema(QUALITY_TABLES["findings"]))
    write_table(table, results / "quality" / "findings.parquet", QUALITY_TABLES["findings"], provenance("findings"))
    run = CliRunner().invoke(command, ["--results", str(results), "--config", config])
    assert run.output.splitlines()[-1] == f"warning: {text}"
    assert json.loads((results / "manifest.json").read_text())["summary"]["warnings"] == [text]
    again = CliRunner().invoke(command, ["--results", str(results)])
    assert again.output == run.output


def test_warnings_of_the_fit_are_printed_and_kept(results: Path, config: str) -> None:
    text = "SD of the effect of age: 0.1 with a standard error of 0.2"
    (results / "fit" / "fit.json").write_text(json.dumps({"warnings": [text]}))
    run = CliRunner().invoke(command, ["--results", str(results), "--config", config])
    assert run.output.splitlines()[-1] == f"warning: {text}"
    assert json.loads((results / "manifest.json").read_text())["summary"]["warnings"] == [text]


def test_what_files_of_sites_left_out_is_said(results: Path, config: str, tmp_path: Path) -> None:
    path = results / "loci" / "loci.json"
    loci, sites = json.loads(path.read_text()), tmp_path / "sites.bed"
    sites.write_text("1\t2\t3\n")
    loci["exclude"] = [{"file": str(sites), "excluded": 1234, "of": "loci", "warning": "'MT' against 'chrM'"}]
    path.write_text(json.dumps(loci))
    settings = json.loads(config) | {"loci": {"exclude": [str(sites)]}}
    run = CliRunner().invoke(command, ["--results", str(results), "--config", json.dumps(settings)])
    assert f"left out for {sites}: 1,234 loci" in run.output
    assert "warning: 'MT' against 'chrM'" in run.output
    manifest = json.loads((results / "manifest.json").read_text())
    assert manifest["summary"]["excluded"] == {str(sites): "1,234 loci"}
    assert "exclude" in [record["role"] for record in manifest["inputs"]]


def test_much_misfit_is_warned_of() -> None:
    counts = np.full(BINS, 1000)
    assert _misfit_warning(counts) == ()
    counts[0] = 3000
    (warning,) = _misfit_warning(counts)
    assert warning.startswith(
        "13.6 % of the loci have a misfit_pvalue of at most 0.05, where the fitted model gives 5 %"
    )


def test_relatives_are_printed_and_kept(results: Path, config: str) -> None:
    """Kinds of the whole cohort with their errors, the verdict, and the warnings after those of the samples."""
    columns = QUALITY_TABLES["relatives"]
    values = {"level": "", "families": 6, "pairs": 6, "correlation": 0.34, "se_families": 0.01, "is_reference": False}
    others = {column.name: 0.0 for column in columns if column.name not in values}
    rows = [
        others | values | {"column": "", "kind": "mates"},
        others | values | {"column": "", "kind": "in_laws", "se_families": float("nan")},
        others | values | {"column": "", "kind": "unrelated", "is_reference": True},
        others | values | {"column": "batch", "kind": "mates", "correlation": 0.9},
    ]
    path = results / "relatives" / "relatives.parquet"
    table = pa.Table.from_pylist(rows, schema=arrow_schema(columns))
    metadata = {VERDICT_METADATA: "mates resemble each other"}
    write_table(table, path, columns, provenance("relatives"), metadata=metadata)
    finding = {"check": "relatives", "sample": "", "other": "", "value": 0.34, "limit": 0.0, "text": "it is the batch"}
    table = pa.Table.from_pylist([finding], schema=arrow_schema(QUALITY_TABLES["findings"]))
    path = results / "relatives" / "findings.parquet"
    write_table(table, path, QUALITY_TABLES["findings"], provenance("findings"))
    run = CliRunner().invoke(command, ["--results", str(results), "--config", config])
    lines = run.output.splitlines()
    assert "correlation of relatives (SE over families): mates 0.34 (0.01), in laws 0.34 (?)" in lines
    assert "relatives: mates resemble each other" in lines
    assert lines[-1] == "warning: it is the batch"
    kept = json.loads((results / "manifest.json").read_text())["summary"]
    assert kept["relatives"][0] == {k: v for k, v in rows[0].items() if k in kept["relatives"][0]}
    assert kept["relatives"][1]["se_families"] is None
    assert kept["relatives_verdict"] == "mates resemble each other"
    again = CliRunner().invoke(command, ["--results", str(results)])
    assert again.output == run.output
    assert open_results(results).relatives.num_rows == 4


def test_a_run_without_controls_is_warned_of(results: Path, config: str) -> None:
    assert summarize(results, load_config(config), 3).warnings == ()
    path = results / "compare" / "control_tests.parquet"
    columns = DISCOVERY_TABLES["control_tests"]
    write_table(pa.Table.from_pylist([], arrow_schema(columns)), path, columns, provenance("control_tests"))
    (warning,) = summarize(results, load_config(config), 3).warnings
    assert warning.startswith("no controls (controls.enabled is false)")


def test_incomplete_posterior_is_refused(results: Path, config: str) -> None:
    part_path(results / "posterior", "0001").unlink()
    with pytest.raises(UserError, match="loci 5 to 8 of 8 are missing in the table posterior"):
        summarize(results, load_config(config), 3)


def test_a_posterior_of_other_weights_is_refused(results: Path, config: str) -> None:
    path = results / "compare" / "weights.parquet"
    table = read_table(path, "weights")
    write_table(table, path, DISCOVERY_TABLES["weights"], provenance("weights"), metadata={STAMP: "newer"})
    with pytest.raises(UserError, match=r"posterior: was not made from .*weights\.parquet"):
        summarize(results, load_config(config), 3)


def test_results_open_where_a_run_has_finished(results: Path, config: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json; expected the folder of a cohort's results"):
        open_results(results)
    CliRunner().invoke(command, ["--results", str(results), "--config", config])
    opened = open_results(results)
    assert opened.summary.n_loci == 8
    assert opened.manifest["summary"]["cohort"] == "known"
    assert opened.weights["weight"].to_pylist() == [0.75, 0.25]
    assert opened.posterior()["qvalue"].to_pylist() == QVALUES
    called = opened.posterior(where="qvalue < 0.05", columns=["qvalue", "best"])
    assert called.to_pylist() == [{"qvalue": 0.01, "best": "epigenetic"}, {"qvalue": 0.02, "best": "epigenetic"}]
    opened.to_bed(tmp_path / "calls.bed", where="qvalue <= 0.05")
    assert len((tmp_path / "calls.bed").read_text().splitlines()) == 3
    with pytest.raises(UserError, match="no states table here"):
        opened.states()


def test_timings_add_jobs_up(results: Path) -> None:
    assert timings(results / "benchmarks") == {
        "evidence": {"jobs": 2, "total_s": 5.0, "longest_s": 3.0, "max_rss_mb": 100.0},
        "fit": {"jobs": 1, "total_s": 12.5, "longest_s": 12.5, "max_rss_mb": 300.25},
    }


def test_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    run = CliRunner().invoke(command, ["--results", str(tmp_path)])
    assert isinstance(run.exception, UserError)
    assert str(tmp_path / "manifest.json") in str(run.exception)
