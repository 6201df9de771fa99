"""`epivi evidence`, `compare` and `posterior` on a small cohort on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from epivi.cli import main
from epivi.cohort.pedigree import pedigree_hash
from epivi.cohort.pedigree_files import read_pedigree
from epivi.commands import evidence as evidence_command
from epivi.commands import posterior as posterior_command
from epivi.config.load import load_config
from epivi.discovery.control_file import read_controls
from epivi.discovery.merged import GROUPS_METADATA
from epivi.discovery.probabilities import kinds, local_fdr, mixture_probabilities, qvalue_table, rates
from epivi.discovery.replicates import FAMILIES_METADATA
from epivi.discovery.weights import WeightPrior, prior_weights, weight_posterior
from epivi.families.inputs import read_fit, read_inputs
from epivi.families.transmission import evidence as evidence_step
from epivi.families.transmission import refinement
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.columns import PARAMETERS, effect_parameters, evidence_columns, posterior_columns
from epivi.families.transmission.controls import log_evidences as log_evidences_of
from epivi.families.transmission.controls import variants
from epivi.families.transmission.prepare import prepare
from epivi.field.covariate import Covariate
from epivi.loci.source import CountsBatch, sample_runs
from epivi.loci.store import LociStore, read_provenance
from epivi.quality.columns import FAMILY_FACTOR, QUALITY_TABLES
from epivi.tables.columns import arrow_schema
from epivi.tables.parquet import Provenance, read_table, write_table
from epivi.tables.parts import STAMP, part_path, read_part, read_parts
from epivi.verify.columns import DESIGN_TABLES

LOCI = 150
CONTIGS = ("chr1", "chr2")
HYPOTHESES = {
    "reset": {},
    "mendelian": {"heritable_share": "free", "maternal": 1, "paternal": 1},
    "epigenetic": {"heritable_share": "free", "maternal": "tau", "paternal": "tau"},
}
COVARIATES = (Covariate("treatment", "drug", "control"), Covariate("age"))
SETTINGS: dict[str, Any] = {
    "seed": 3,
    "model": {"hypotheses": HYPOTHESES, "baseline_components": 2, "covariates": ["treatment", "age"]},
    "fit": {"max_steps": 12, "check_every": 6, "batch_loci": 32, "holdout_loci": 16, "hidden": 8, "shared_loci": 24},
    "evidence": {"nodes": 32},
    "compare": {"blocks": 20, "draws": 50},
}
# That of the configuration, for one null hypothesis of three.
PRIOR = WeightPrior(np.array([5.0, 1.0, 1.0]), 0.005)


@dataclass(frozen=True)
class Cohort:
    """A fitted cohort and what its commands are called with."""

    folder: Path
    config: str

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def store(self) -> LociStore:
        return LociStore.open(self.path("loci"))

    def bounds(self, contig: str) -> tuple[int, int]:
        """First locus and locus after the last of one of the two contigs, of all loci."""
        first = self.store.n_loci_of(CONTIGS[0])
        return (0, first) if contig == CONTIGS[0] else (first, self.store.n_loci)

    def evidence(self, output: Path, *arguments: str | Path, contig: str = "chr1", **changes: str | Path) -> list[str]:
        """The command line of one shard, a contig; `changes` replace options."""
        start, stop = self.bounds(contig)
        options: dict[str, str | Path] = {
            "loci": self.path("loci"),
            "fit": self.path("fit"),
            "samples": self.path("samples.tsv"),
            "pedigree": self.path("pedigree.tsv"),
            "start": str(start),
            "stop": str(stop),
            "output": output,
            "config": self.config,
        }
        pairs = [text for name, value in (options | changes).items() for text in (f"--{name}", str(value))]
        return ["evidence", *pairs, *map(str, arguments)]


def run(arguments: Sequence[str | Path]) -> None:
    """A command that must succeed."""
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    assert not leaving.value.code


def error_of(capsys: pytest.CaptureFixture[str], arguments: Sequence[str | Path]) -> str:
    """The one line of a user error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    assert leaving.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("cohort") / "drawn"
    line = f"simulate --output {folder} --seed 4 --template trio --families 3 --loci {LOCI} --spread-location 0.3"
    run([*line.split(), "--contigs", ",".join(CONTIGS), "--missing-loci", "0.1", "--covariates", "treatment:2,age"])
    sheet = folder / "samples.tsv"
    sheet.write_text(sheet.read_text().replace("treatment1", "control").replace("treatment2", "drug"))
    config = json.dumps(SETTINGS | {"loci": yaml.safe_load((folder / "config.yaml").read_text())["loci"]})
    samples = [row.split("\t")[0] for row in (folder / "samples.tsv").read_text().splitlines()[1:]]
    counts = []
    for sample in samples:
        counts.append(folder / "ingested" / f"{sample}.parquet")
        source, quality = folder / "counts" / f"{sample}.cov.gz", folder / "qc" / f"{sample}.json"
        run(["ingest", source, "--sample", sample, "--output", counts[-1], "--qc", quality, "--config", config])
    run(["assemble", *counts, "--output", folder / "loci", "--config", config])
    inputs = ["--samples", folder / "samples.tsv", "--pedigree", folder / "pedigree.tsv", "--config", config]
    run(["fit", "--loci", folder / "loci", "--output", folder / "fit", *inputs])
    return Cohort(folder, config)


@pytest.fixture(scope="module")
def whole(cohort: Cohort) -> Path:
    """The evidence of all loci, one shard a contig."""
    root = cohort.path("evidence")
    for contig in CONTIGS:
        run(cohort.evidence(part_of(root, contig), contig=contig))
    return root


def part_of(root: Path, contig: str) -> Path:
    return part_path(root, f"{CONTIGS.index(contig):04d}")


@pytest.fixture(scope="module")
def comparison(cohort: Cohort, whole: Path) -> Path:
    run(["compare", "--evidence", whole, "--output", cohort.path("compare"), "--config", cohort.config])
    return cohort.path("compare")


def posterior_arguments(cohort: Cohort, evidence: Path, comparison: Path, output: Path) -> list[str | Path]:
    folders = ["--loci", cohort.path("loci"), "--compare", comparison]
    return ["posterior", "--evidence", evidence, *folders, "--output", output, "--config", cohort.config]


def assert_tables_agree(one: pa.Table, other: pa.Table) -> None:
    assert one.schema.names == other.schema.names
    assert one.num_rows == other.num_rows
    for name in one.schema.names:
        left, right = (table[name].to_pandas().to_numpy() for table in (one, other))
        if left.dtype == object:
            assert left.tolist() == right.tolist()
        else:
            np.testing.assert_allclose(left.astype(float), right.astype(float), rtol=1e-6, err_msg=name)


# --- evidence --------------------------------------------------------------------------------------------------------


def test_rows_are_loci_by_hypotheses(cohort: Cohort, whole: Path) -> None:
    """The schema's columns; loci in the order of the store, hypotheses in that of the configuration."""
    for contig in CONTIGS:
        path = part_of(whole, contig)
        table = read_table(path, "evidence")
        assert table.schema.names == [column.name for column in evidence_columns((), COVARIATES)]
        block = cohort.store.block(contig, 0, cohort.store.n_loci_of(contig))
        assert set(table["contig"].to_pylist()) == {contig}
        np.testing.assert_array_equal(table["pos"].to_numpy(), np.repeat(block.pos0, 3))
        np.testing.assert_array_equal(table["end"].to_numpy(), np.repeat(block.end0, 3))
        assert table["hypothesis"].to_pylist() == list(HYPOTHESES) * len(block.pos0)
        assert np.isfinite(table["log_evidence"].to_numpy()).all()
        # No likelier than certain, and no unlikelier than a nat a read: a fair coin costs 0.7.
        reads = np.repeat(block.total.sum(1, dtype=np.int64), 3)
        assert (table["log_evidence"].to_numpy() < 0).all()
        assert (table["log_evidence"].to_numpy() > -reads).all()
        for parameter in PARAMETERS:
            low, middle, high = (table[f"{parameter}_{q}"].to_numpy() for q in ("q05", "q50", "q95"))
            assert ((low <= middle) & (middle <= high)).all()
        for effect in effect_parameters(COVARIATES):
            low, mean, high = (table[f"{effect}_{s}"].to_numpy() for s in ("q05", "mean", "q95"))
            assert ((low < mean) & (mean < high)).all()
        share = table["heritable_share_mean"].to_numpy().reshape(-1, 3)
        assert (share[:, 0] == 0).all()
        assert (share[:, 1:] > 0.01).all()
        assert (table["transmissibility_mean"].to_numpy().reshape(-1, 3)[:, 1] == 1).all()


def test_evidence_files_tell_where_they_come_from(cohort: Cohort, whole: Path) -> None:
    path = part_of(whole, "chr2")
    found, config = read_provenance(path), load_config(cohort.config)
    assert (found.table, found.seed) == ("evidence", 3)
    assert found.config_hash == config.hash("model", "evidence")
    assert found.pedigree_hash == pedigree_hash(read_pedigree(cohort.path("pedigree.tsv")))
    part = read_part(path, "evidence")
    assert part.contigs == ("chr2",)
    assert (part.start, part.stop, part.n_loci) == (*cohort.bounds("chr2"), cohort.store.n_loci)


def test_shards_have_the_rows_of_the_whole(
    cohort: Cohort, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards, which need not end where a contig ends, pieces within a shard and threads are of no consequence."""
    monkeypatch.setattr(refinement, "CHUNK_LOCI", 11)
    first = cohort.store.n_loci_of("chr1")
    cuts = [0, 1, 30, first + 7, cohort.store.n_loci]
    for number, (start, stop) in enumerate(pairwise(cuts)):
        path = part_path(tmp_path, f"{number:04d}")
        run(cohort.evidence(path, "--threads", "2", start=str(start), stop=str(stop)))
    assert read_part(part_path(tmp_path, "0002"), "evidence").contigs == CONTIGS
    assert_tables_agree(read_parts(tmp_path, "evidence"), read_parts(whole, "evidence"))


def test_a_killed_shard_goes_on_where_it_was(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes as undisturbed, of which only the missing pieces are computed; what is whole is left alone until
    the fit is another."""
    monkeypatch.setattr(evidence_step, "CHUNK_LOCI", 8)
    monkeypatch.setattr(evidence_command, "PIECE_LOCI", 24)
    undisturbed, path, fit = tmp_path / "undisturbed.parquet", tmp_path / "part.parquet", tmp_path / "fit"
    shutil.copytree(cohort.path("fit"), fit)
    run(cohort.evidence(undisturbed, fit=fit))
    compute = evidence_step.tables
    loci_left, seen = [60], []

    def interrupted(*arguments: Any) -> Iterator[pa.Table]:
        for table in compute(*arguments):
            if loci_left[0] <= 0:
                raise MemoryError
            loci_left[0] -= table.num_rows // len(HYPOTHESES)
            seen.append(table.num_rows // len(HYPOTHESES))
            yield table

    monkeypatch.setattr(evidence_step, "tables", interrupted)
    with pytest.raises(MemoryError):
        main(cohort.evidence(path, fit=fit))
    assert not path.exists()
    n_loci, whole_pieces = cohort.store.n_loci_of("chr1"), sum(seen) // 24 * 24
    assert 0 < whole_pieces < n_loci
    for again, expected in ((0, n_loci - whole_pieces), (1, 0)):
        loci_left[0] = n_loci
        seen.clear()
        run(cohort.evidence(path, fit=fit))
        assert sum(seen) == expected, again
        assert path.read_bytes() == undisturbed.read_bytes()
    record = json.loads((fit / "fit.json").read_text())
    (fit / "fit.json").write_text(json.dumps(record | {"elapsed_s": 1.5}))
    loci_left[0] = 2 * n_loci
    run(cohort.evidence(path, fit=fit))
    run(cohort.evidence(path, "--no-resume", fit=fit))
    assert sum(seen) == 2 * n_loci


def test_seed_moves_the_nodes(cohort: Cohort, whole: Path, tmp_path: Path) -> None:
    other = json.loads(cohort.config)
    other["evidence"]["seed"] = 99
    run(cohort.evidence(tmp_path / "part.parquet", config=json.dumps(other)))
    one = read_table(part_of(whole, "chr1"), "evidence")["log_evidence"].to_numpy()
    two = read_table(tmp_path / "part.parquet", "evidence")["log_evidence"].to_numpy()
    assert (one != two).all()
    assert np.median(np.abs(one - two)) < 0.1


def test_a_fit_of_another_pedigree_is_refused(
    cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of other hypotheses; a setting that the fit does not depend on is no difference."""
    lines = cohort.path("pedigree.tsv").read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    child = next(row for row in cells[1:] if row[cells[0].index("mother")] not in ("", ".", "NA", "0"))
    child[cells[0].index("father")] = "."
    (tmp_path / "pedigree.tsv").write_text("".join("\t".join(row) + "\n" for row in cells))
    line = error_of(capsys, cohort.evidence(tmp_path / "x.parquet", pedigree=tmp_path / "pedigree.tsv"))
    assert str(cohort.path("fit")) in line
    assert "epivi fit" in line
    other = json.loads(cohort.config)
    other["model"]["hypotheses"] = {"reset": {}}
    assert "fit" in error_of(capsys, cohort.evidence(tmp_path / "x.parquet", config=json.dumps(other)))
    other["model"] = SETTINGS["model"] | {"null_hypotheses": ["reset", "mendelian"]}
    run(cohort.evidence(tmp_path / "y.parquet", stop="2", config=json.dumps(other)))
    assert not (tmp_path / "x.parquet").exists()


def test_mistakes_have_one_line(cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "x.parquet"
    n_loci = cohort.store.n_loci
    line = error_of(capsys, cohort.evidence(output, start="5", stop=str(n_loci + 1)))
    assert f"there are {n_loci} loci" in line
    assert "--start 7 --stop 7" in error_of(capsys, cohort.evidence(output, start="7", stop="7"))
    assert "epivi fit" in error_of(capsys, cohort.evidence(output, fit=tmp_path / "none"))
    rows = cohort.path("samples.tsv").read_text().splitlines()
    (tmp_path / "fewer.tsv").write_text("\n".join(rows[:-1]) + "\n")
    assert "fewer.tsv" in error_of(capsys, cohort.evidence(output, samples=tmp_path / "fewer.tsv"))
    assert list(tmp_path.glob("*.parquet")) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_device(cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = json.dumps(json.loads(cohort.config) | {"evidence": {"nodes": 32, "device": "cuda"}})
    line = error_of(capsys, cohort.evidence(tmp_path / "x.parquet", config=asked))
    assert line.endswith(
        "evidence.device: cuda was asked for, but this machine shows no CUDA device; expected cpu or auto"
    )
    assert list(tmp_path.glob("*.parquet")) == []


def test_order_of_the_sheet_does_not_matter(cohort: Cohort, whole: Path, tmp_path: Path) -> None:
    """Samples are matched by name, never by the row they stand in."""
    rows = cohort.path("samples.tsv").read_text().splitlines()
    (tmp_path / "samples.tsv").write_text("\n".join([rows[0], *reversed(rows[1:])]) + "\n")
    run(cohort.evidence(tmp_path / "part.parquet", stop="20", samples=tmp_path / "samples.tsv"))
    found = read_table(tmp_path / "part.parquet", "evidence")
    assert_tables_agree(found, read_table(part_of(whole, "chr1"), "evidence").slice(0, 60))


# --- compare ---------------------------------------------------------------------------------------------------------


def log_evidences(root: Path) -> np.ndarray:
    parts = [read_table(part_of(root, contig), "evidence") for contig in CONTIGS]
    return np.concatenate([part["log_evidence"].to_numpy().reshape(-1, 3) for part in parts])


def test_comparison_is_of_all_loci(cohort: Cohort, whole: Path, comparison: Path) -> None:
    """Weights and q-values of all contigs' evidence in genome order, and where they come from."""
    values = log_evidences(whole)
    expected = weight_posterior(lambda: iter([values]), len(values), PRIOR, 20, 50, 3)
    weights = read_table(comparison / "weights.parquet", "weights")
    assert weights["hypothesis"].to_pylist() == list(HYPOTHESES)
    assert weights["n_loci"].to_pylist() == [cohort.store.n_loci] * 3
    for name in ("weight", "lower", "upper"):
        np.testing.assert_allclose(weights[name].to_numpy(), getattr(expected, name), atol=1e-6)
    readable = json.loads((comparison / "weights.json").read_text())
    assert [row["hypothesis"] for row in readable] == list(HYPOTHESES)
    np.testing.assert_allclose([row["weight"] for row in readable], weights["weight"].to_numpy())
    table = read_table(comparison / "qvalue.parquet", "qvalue")
    steps = qvalue_table(lambda: iter([values]), expected.tilted, np.array([True, False, False]))
    np.testing.assert_allclose(table["qvalue"].to_numpy(), steps.qvalue, rtol=1e-5)
    assert table["n_loci"].to_pylist()[-1] == cohort.store.n_loci
    for name, kind in (("weights.parquet", "weights"), ("qvalue.parquet", "qvalue")):
        found = read_provenance(comparison / name)
        assert found.table == kind
        assert found.config_hash == load_config(cohort.config).hash("model", "compare")
        assert found.pedigree_hash == read_provenance(part_of(whole, "chr1")).pedigree_hash


@pytest.mark.parametrize(
    "names",
    [
        ["reset", "mendelian", "maternal"],
        ["mendelian", "reset", "epigenetic"],
        ["reset", "mendelian", "epigenetic", "maternal"],
        ["reset", "mendelian"],
        ["reset"],
    ],
)
def test_evidence_of_other_hypotheses_is_refused(
    names: list[str], cohort: Cohort, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Renamed, reordered, more, or fewer: also where the configured ones are the first of those in the file."""
    maternal = {"heritable_share": "free", "maternal": "tau", "paternal": 0}
    other = json.loads(cohort.config)
    other["model"]["hypotheses"] = {name: (HYPOTHESES | {"maternal": maternal})[name] for name in names}
    arguments = ["compare", "--evidence", whole, "--output", tmp_path, "--config", json.dumps(other)]
    line = error_of(capsys, arguments)
    assert "part-0000.parquet" in line
    assert "reset, mendelian, epigenetic" in line
    assert list(tmp_path.iterdir()) == []


def write_design(path: Path, groups: list[list[str]], pedigree_hash: str) -> Path:
    """A table `design` with these groups; of its rows the comparison reads nothing."""
    columns = DESIGN_TABLES["design"]
    metadata = {GROUPS_METADATA: json.dumps(groups)}
    table = pa.Table.from_pylist([], arrow_schema(columns))
    write_table(table, path, columns, Provenance("design", 1, "", pedigree_hash), metadata=metadata)
    return path


def test_what_a_design_cannot_separate_is_merged(
    cohort: Cohort, whole: Path, comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same draws, summed; kinds and probabilities of the group; with a null hypothesis the group is null."""
    identity = read_provenance(part_of(whole, "chr1")).pedigree_hash
    design = write_design(tmp_path / "design.parquet", [["reset"], ["mendelian", "epigenetic"]], identity)
    line = ["compare", "--evidence", whole, "--config", cohort.config]
    run([*line, "--output", tmp_path / "compare", "--design", design])
    weights = read_table(tmp_path / "compare" / "weights.parquet", "weights").to_pandas()
    before = read_table(comparison / "weights.parquet", "weights").to_pandas()
    np.testing.assert_allclose(weights.weight, before.weight, rtol=1e-12)
    assert before.merged.tolist() == list(HYPOTHESES)
    assert weights.merged.tolist() == ["reset", "mendelian|epigenetic", "mendelian|epigenetic"]
    np.testing.assert_allclose(weights.merged_weight, [before.weight[0], *[before.weight[1:].sum()] * 2])
    drawn = (
        read_table(tmp_path / "compare" / "weight_draws.parquet", "weight_draws")["weight"].to_numpy().reshape(-1, 3)
    )
    np.testing.assert_allclose(weights.merged_upper[1], np.quantile(drawn[:, 1:].sum(1), 0.975))
    output = tmp_path / "posterior.parquet"
    run(posterior_arguments(cohort, part_of(whole, "chr1"), tmp_path / "compare", output))
    posterior = pq.read_table(output).to_pandas()
    both = posterior["prob_mendelian|epigenetic"]
    np.testing.assert_allclose(both, posterior.prob_mendelian + posterior.prob_epigenetic)
    assert set(posterior.kind_set) == {"mendelian|epigenetic"}
    assert set(posterior.best) <= {"reset", "mendelian|epigenetic"}
    with_null = write_design(tmp_path / "null.parquet", [["reset", "mendelian"], ["epigenetic"]], identity)
    run([*line, "--output", tmp_path / "compare", "--design", with_null])
    run(posterior_arguments(cohort, part_of(whole, "chr1"), tmp_path / "compare", output))
    posterior = pq.read_table(output).to_pandas()
    np.testing.assert_allclose(posterior.lfdr, posterior.prob_reset + posterior.prob_mendelian)
    assert set(posterior.best) <= {"reset|mendelian", "epigenetic"}
    nothing = write_design(tmp_path / "all.parquet", [list(HYPOTHESES)], identity)
    run([*line, "--output", tmp_path / "compare", "--design", nothing])
    run(posterior_arguments(cohort, part_of(whole, "chr1"), tmp_path / "compare", output))
    posterior = pq.read_table(output).to_pandas()
    assert posterior.flag_cannot_tell.all()
    assert (posterior.qvalue == 1).all()
    other = write_design(tmp_path / "other.parquet", [["reset"], ["mendelian", "epigenetic"]], "another")
    assert "is of another pedigree" in error_of(capsys, [*line, "--output", tmp_path / "x", "--design", other])
    assert not (tmp_path / "x").exists()


def test_no_evidence_has_one_line(cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", "--evidence", tmp_path, "--output", tmp_path / "out", "--config", cohort.config]
    assert str(tmp_path) in error_of(capsys, arguments)


def test_a_table_of_another_kind_is_refused(
    cohort: Cohort, comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(comparison / "weights.parquet", part_path(tmp_path, "0000"))
    arguments = ["compare", "--evidence", tmp_path, "--output", tmp_path / "out", "--config", cohort.config]
    assert "weights" in error_of(capsys, arguments)


# --- posterior -------------------------------------------------------------------------------------------------------


def test_posterior_of_a_shard(
    cohort: Cohort, whole: Path, comparison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row a locus with the schema's columns; probabilities and q-values of this evidence and these weights."""
    monkeypatch.setattr(posterior_command, "CHUNK_LOCI", 17)
    output = part_path(tmp_path, "0001")
    run(posterior_arguments(cohort, part_of(whole, "chr2"), comparison, output))
    table = pq.ParquetFile(output).read()
    columns = posterior_columns(list(HYPOTHESES), (), effect_parameters(COVARIATES))
    assert table.schema.names == [column.name for column in columns]
    assert [table.schema.field(column.name).type for column in columns] == [column.type for column in columns]
    block = cohort.store.block("chr2", 0, cohort.store.n_loci_of("chr2"))
    np.testing.assert_array_equal(table["pos"].to_numpy(), block.pos0)
    np.testing.assert_array_equal(table["coverage_reads"].to_numpy(), block.total.sum(1))
    evidence = read_table(part_of(whole, "chr2"), "evidence")
    values = evidence["log_evidence"].to_numpy().reshape(-1, 3)
    weights = read_table(comparison / "weight_draws.parquet", "weight_draws")["tilted"].to_numpy().reshape(50, 3)
    probability = mixture_probabilities(values, weights)
    for h, name in enumerate(HYPOTHESES):
        np.testing.assert_array_equal(table[f"log_evidence_{name}"].to_numpy(), values[:, h])
        np.testing.assert_allclose(table[f"prob_{name}"].to_numpy(), probability[:, h])
        conditional = evidence["baseline_mean"].to_numpy().reshape(-1, 3)[:, h]
        np.testing.assert_array_equal(table[f"baseline_mean_{name}"].to_numpy(), conditional)
    lfdr = local_fdr(probability, np.array([True, False, False]))
    np.testing.assert_allclose(table["lfdr"].to_numpy(), lfdr)
    np.testing.assert_allclose(table["transmitted"].to_numpy(), 1 - lfdr)
    expected = kinds(probability, list(HYPOTHESES), np.array([True, False, False]))
    assert table["kind_set"].to_pylist() == expected.kind_set.tolist()
    assert table["best"].to_pylist() == expected.best.tolist()
    everywhere = log_evidences(whole)
    steps = qvalue_table(lambda: iter([everywhere]), weights, np.array([True, False, False]))
    np.testing.assert_allclose(table["qvalue"].to_numpy(), rates(lfdr, steps).qvalue, rtol=1e-5)
    found = read_provenance(output)
    assert (found.table, found.seed) == ("posterior", 3)
    assert found.config_hash == load_config(cohort.config).hash("model", "compare")
    assert found.pedigree_hash == read_provenance(part_of(whole, "chr2")).pedigree_hash
    part = read_part(output, "posterior")
    assert (part.start, part.stop, part.contigs) == (*cohort.bounds("chr2"), ("chr2",))
    assert part.made_from == pq.read_schema(comparison / "weights.parquet").metadata[STAMP.encode()].decode()


def test_posterior_of_the_middle_of_a_contig(cohort: Cohort, whole: Path, comparison: Path, tmp_path: Path) -> None:
    """A shard's rows are matched with the loci it was made from, not with the first of the contig."""
    shard, output = tmp_path / "e.parquet", tmp_path / "p.parquet"
    run(cohort.evidence(shard, start="20", stop="45"))
    run(posterior_arguments(cohort, shard, comparison, output))
    run(posterior_arguments(cohort, part_of(whole, "chr1"), comparison, tmp_path / "whole.parquet"))
    found, expected = (pq.ParquetFile(path).read() for path in (output, tmp_path / "whole.parquet"))
    assert_tables_agree(found, expected.slice(20, 25))


def of_families(whole: Path, folder: Path, families: int) -> Path:
    """The same evidence, of a cohort of so many families as its parts say."""
    folder.mkdir()
    for path in sorted(whole.glob("part-*.parquet")):
        table = pq.read_table(path)
        assert table.schema.metadata[FAMILIES_METADATA.encode()] == b"3"
        metadata = table.schema.metadata | {FAMILIES_METADATA.encode(): str(families).encode()}
        pq.write_table(table.replace_schema_metadata(metadata), folder / path.name)
    return folder


def test_nothing_is_called_of_one_family(
    cohort: Cohort, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights of the prior, q-values of 1, a flag; two families are compared, with a warning."""
    one, compared = of_families(whole, tmp_path / "one", 1), tmp_path / "compared"
    run(["compare", "--evidence", one, "--output", compared, "--config", cohort.config])
    assert "cannot tell: only one family has two or more sampled relatives" in caplog.text
    weights = read_table(compared / "weights.parquet", "weights")
    expected_weights = prior_weights(PRIOR, 50, 3, cohort.store.n_loci)
    for name in ("weight", "lower", "upper"):
        np.testing.assert_allclose(weights[name].to_numpy(), getattr(expected_weights, name))
    assert weights["lower"].to_numpy()[1] < 0.01 < 0.3 < weights["upper"].to_numpy()[1]
    run(posterior_arguments(cohort, part_of(one, "chr2"), compared, tmp_path / "posterior.parquet"))
    posterior = pq.read_table(tmp_path / "posterior.parquet")
    assert set(posterior["qvalue"].to_pylist()) == {1.0}
    assert set(posterior["flag_cannot_tell"].to_pylist()) == {True}
    values = read_table(part_of(one, "chr2"), "evidence")["log_evidence"].to_numpy().reshape(-1, 3)
    expected = mixture_probabilities(values, expected_weights.tilted)
    np.testing.assert_allclose(posterior["lfdr"].to_numpy(), expected[:, 0], rtol=1e-12)
    caplog.clear()
    two, compared = of_families(whole, tmp_path / "two", 2), tmp_path / "compared two"
    run(["compare", "--evidence", two, "--output", compared, "--config", cohort.config])
    assert "families with sampled relatives: 2" in caplog.text
    assert read_table(compared / "weights.parquet", "weights")["weight"].to_pylist() != expected_weights.weight.tolist()


def test_nothing_is_called_where_a_factor_coincides_with_families(
    cohort: Cohort, whole: Path, comparison: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The weights are learned all the same; other findings forbid nothing."""
    row = {"check": FAMILY_FACTOR, "sample": "", "other": "", "value": 0.9, "limit": 0.5}
    checked = {FAMILY_FACTOR: "cannot tell family from factor: 9 %", "factor": "9 % go with age"}
    for check, text in checked.items():
        findings, compared = tmp_path / check / "findings.parquet", tmp_path / check / "compared"
        table = pa.Table.from_pylist([row | {"check": check, "text": text}], arrow_schema(QUALITY_TABLES["findings"]))
        write_table(table, findings, QUALITY_TABLES["findings"], Provenance("findings", 1, "", ""))
        options = ["--relatives", findings, "--config", cohort.config]
        run(["compare", "--evidence", whole, "--output", compared, *options])
        is_forbidden = check == FAMILY_FACTOR
        assert (f"{text}. No locus is called" in caplog.text) == is_forbidden
        found = read_table(compared / "qvalue.parquet", "qvalue")["qvalue"].to_pylist()
        usual = read_table(comparison / "qvalue.parquet", "qvalue")["qvalue"].to_pylist()
        assert found == ([1.0] * len(usual) if is_forbidden else usual)
        weights = read_table(compared / "weights.parquet", "weights")["weight"]
        assert weights.equals(read_table(comparison / "weights.parquet", "weights")["weight"])


def test_several_null_hypotheses(cohort: Cohort, whole: Path, comparison: Path, tmp_path: Path) -> None:
    other = json.loads(cohort.config)
    other["model"]["null_hypotheses"] = ["reset", "mendelian"]
    run(["compare", "--evidence", whole, "--output", tmp_path / "compare", "--config", json.dumps(other)])
    changed = Cohort(cohort.folder, json.dumps(other))
    output = tmp_path / "part.parquet"
    run(posterior_arguments(changed, part_of(whole, "chr1"), tmp_path / "compare", output))
    table = pq.ParquetFile(output).read()
    expected = table["prob_reset"].to_numpy() + table["prob_mendelian"].to_numpy()
    np.testing.assert_allclose(table["lfdr"].to_numpy(), expected)


def test_posterior_refuses_what_does_not_belong_together(
    cohort: Cohort, whole: Path, comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard, output = part_of(whole, "chr1"), tmp_path / "part.parquet"
    other = json.loads(cohort.config)
    for names in (["reset", "mendelian"], ["reset", "epigenetic", "mendelian"]):
        other["model"]["hypotheses"] = {name: HYPOTHESES[name] for name in names}
        changed = Cohort(cohort.folder, json.dumps(other))
        line = error_of(capsys, posterior_arguments(changed, shard, comparison, output))
        assert "run epivi" in line
    line = error_of(capsys, posterior_arguments(cohort, shard, tmp_path / "none", output))
    assert "weights.parquet" in line
    assert not output.exists()


def test_parts_of_two_runs_are_never_mixed(
    cohort: Cohort, whole: Path, comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed setting, and one of two jobs that then ended: nothing is made of new and old evidence together."""
    mixed, output = tmp_path / "evidence", tmp_path / "part.parquet"
    shutil.copytree(whole, mixed)
    other = json.loads(cohort.config)
    other["evidence"]["nodes"] = 64
    run(cohort.evidence(part_of(mixed, "chr2"), contig="chr2", config=json.dumps(other)))
    arguments = ["compare", "--evidence", mixed, "--output", tmp_path / "compare", "--config", json.dumps(other)]
    line = error_of(capsys, arguments)
    assert "not made from the same inputs, settings and code as part-0000.parquet" in line
    assert "part-0001.parquet" in line
    line = error_of(capsys, posterior_arguments(cohort, part_of(mixed, "chr2"), comparison, output))
    assert "was made from other evidence than" in line
    part_of(mixed, "chr2").unlink()
    line = error_of(capsys, arguments)
    start, stop = cohort.bounds("chr2")
    assert f"loci {start:,} to {stop:,} of {stop:,} are missing in the table evidence" in line
    assert not (tmp_path / "compare").exists()
    assert not output.exists()


def test_weights_and_q_values_are_of_one_comparison(
    cohort: Cohort, whole: Path, comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A comparison that was killed between its two tables is no comparison."""
    other = json.loads(cohort.config)
    other["compare"]["blocks"] = 10
    run(["compare", "--evidence", whole, "--output", tmp_path, "--config", json.dumps(other)])
    shutil.copy(comparison / "weights.parquet", tmp_path)
    line = error_of(capsys, posterior_arguments(cohort, part_of(whole, "chr1"), tmp_path, tmp_path / "x.parquet"))
    assert "qvalue.parquet: is of another comparison" in line


def test_a_finished_shard_that_was_removed_is_there_again(
    cohort: Cohort, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Snakemake removes the output of a job whose end it did not see."""
    path = tmp_path / "part.parquet"
    run(cohort.evidence(path))
    content = path.read_bytes()
    path.unlink()

    def computed(*arguments: Any) -> Iterator[pa.Table]:
        raise AssertionError("it is there already")

    monkeypatch.setattr(evidence_step, "tables", computed)
    run(cohort.evidence(path))
    assert path.read_bytes() == content


# --- controls --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def controls(cohort: Cohort) -> Path:
    config = json.dumps(json.loads(cohort.config) | {"controls": {"loci": 40, "permutations": 3}})
    output = cohort.path("controls.parquet")
    inputs = ["--samples", cohort.path("samples.tsv"), "--pedigree", cohort.path("pedigree.tsv"), "--config", config]
    outputs = ["--output", output, "--usual", cohort.path("usual.parquet")]
    run(["controls", "--loci", cohort.path("loci"), "--fit", cohort.path("fit"), *outputs, *inputs])
    return output


def test_controls_of_a_sample_of_loci(cohort: Cohort, whole: Path, controls: Path) -> None:
    """Every kind of control at the same loci; what is not changed has the evidences of the run itself."""
    found = read_controls(controls, list(HYPOTHESES))
    kinds = [each.control for each in found.evidences]
    assert kinds == ["true", "true", *np.repeat(["across", "within", "sibships", "without_family", "prior"], 3)]
    assert len(found.locus) == 40
    np.testing.assert_array_equal(np.diff(found.locus)[:19], 1)  # runs of neighbours
    np.testing.assert_allclose(found.evidences[0].log_evidence, log_evidences(whole)[found.locus], atol=1e-9)
    by_name = {(each.control, each.number): each for each in found.evidences}
    assert [by_name["true", number].detail for number in (0, 1)] == ["refined", "first level"]
    assert by_name["without_family", 1].detail == "F1_mother, F1_father, F1_child"
    # Transmission is what the controls change; without it only a family left out changes anything.
    true = found.evidences[1].log_evidence
    for each in found.evidences[2:]:
        # Without transmission only the nodes differ, which the network places by what it sees.
        difference = np.abs(each.log_evidence[:, 0] - true[:, 0]).max()
        assert difference > 1 if each.control == "without_family" else difference < 0.05
    assert any(not np.allclose(by_name["across", number].log_evidence, true) for number in (1, 2, 3))


def test_an_exchange_is_the_reads_of_others_in_the_same_places(cohort: Cohort) -> None:
    """The same evidences as the true pedigree's with reads and covariates of the samples exchanged."""
    config = load_config(json.dumps(json.loads(cohort.config) | {"controls": {"loci": 40, "permutations": 6}}))
    problem = prepare(read_inputs(*(str(cohort.path(n)) for n in ("loci", "samples.tsv", "pedigree.tsv"))), config)
    fitted = read_fit(cohort.path("fit"), problem, "", "")
    counts = sample_runs(problem.store, 20, 1)
    _, true, *others = variants(problem, config, 5)
    changed = next(each for each in others if each.control == "across" and each.is_changed)
    found = log_evidences_of(changed, fitted, config, counts, 1)
    place = [problem.sheet.individuals.index(name) for name in changed.problem.sheet.individuals]
    assert place != list(range(len(place)))
    moved = [np.empty_like(array) for array in (counts.meth, counts.total)]
    for array, source in zip(moved, (counts.meth, counts.total), strict=True):
        array[:, place] = source
    # What the covariates say of a sample goes with its reads.
    order = np.argsort(place)
    columns = {name: tuple(np.array(values)[order]) for name, values in problem.sheet.columns.items()}
    sheet = replace(problem.sheet, columns=columns)
    covariates = config.section("model")["covariates"]
    together = problem._replace(
        sheet=sheet, cohort=build_cohort(sheet, problem.pedigree, covariates, problem.hypotheses)
    )
    moved_counts = CountsBatch(moved[0], moved[1], counts.locus)
    expected = log_evidences_of(true._replace(problem=together), fitted, config, moved_counts, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - log_evidences_of(true, fitted, config, counts, 1)).max() > 1e-3


def test_controls_decide_whether_anything_is_called(
    cohort: Cohort, whole: Path, controls: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Three exchanges cannot reach 5 %: the comparison cannot tell, and the table says so."""
    run(["compare", "--evidence", whole, "--output", tmp_path, "--controls", controls, "--config", cohort.config])
    assert "cannot tell: individuals exchanged across families explain the loci as well" in caplog.text
    tests = read_table(tmp_path / "control_tests.parquet", "control_tests").to_pandas()
    assert tests.control.tolist() == ["across", "within", "sibships"]
    assert (tests.p_value >= 0.25).all()
    weights = read_table(tmp_path / "weights.parquet", "weights").to_pandas()
    assert (weights.family_lower <= weights.family_upper).all()
    assert (weights.prior_lower <= weights.prior_upper).all()
    output = tmp_path / "posterior.parquet"
    usual = cohort.path("usual.parquet")
    run([*posterior_arguments(cohort, part_of(whole, "chr1"), tmp_path, output), "--usual", usual])
    posterior = pq.read_table(output)
    assert set(posterior["flag_cannot_tell"].to_pylist()) == {True}
    assert set(posterior["called"].to_pylist()) == {False}
    drawn = read_table(usual, "usual_evidence").to_pandas()
    assert drawn.draw.nunique() == 40
    # Coverage is that of the sampled loci.
    locus = read_controls(controls, list(HYPOTHESES)).locus
    span = cohort.store.span(0, cohort.store.n_loci)
    np.testing.assert_array_equal(drawn.reads[:: len(HYPOTHESES)], span.total[locus].sum(1))
    pvalue = posterior["misfit_pvalue"].to_numpy()
    assert 1 / 41 <= pvalue.min() < 0.3
    assert 0.7 < pvalue.max() <= 1


def test_controls_of_another_fit_are_refused(
    cohort: Cohort, whole: Path, controls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(controls)
    values = table["log_evidence"].to_numpy() + 0.01
    other = table.set_column(table.schema.get_field_index("log_evidence"), table.schema.field("log_evidence"), [values])
    pq.write_table(other, tmp_path / "other.parquet")
    arguments = ["compare", "--evidence", whole, "--output", tmp_path / "out", "--config", cohort.config]
    line = error_of(capsys, [*arguments, "--controls", tmp_path / "other.parquet"])
    assert "other.parquet: is of another fit than the evidence; run epivi controls again" in line
