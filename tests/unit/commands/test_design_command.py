"""`epivi design` from files: what it writes and says, what it measures, and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from design_cases import PEDIGREES, families_of
from loci_folder import write_loci

from epivi.base.errors import UserError
from epivi.commands.design import command
from epivi.discovery.merged import read_groups, read_sentences
from epivi.loci.loci_file import LocusBlock
from epivi.simulate.files import pedigree_text
from epivi.tables.parquet import Provenance, read_table

FEW = {
    "reset": {},
    "mendelian": {"heritable_share": "free", "maternal": 1, "paternal": 1},
    "epigenetic": {"heritable_share": "free", "maternal": "tau", "paternal": "tau"},
}


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Two trios: pedigree.tsv, samples.tsv and config.json."""
    trios = families_of(PEDIGREES["trio"], 2)
    (tmp_path / "pedigree.tsv").write_text(pedigree_text(trios))
    rows = [f"{name}\t{name}\t{name}.cov\tb{k % 2}\n" for k, name in enumerate(trios.individuals)]
    (tmp_path / "samples.tsv").write_text("sample\tindividual\tpath\tbatch\n" + "".join(rows))
    config = {"model": {"hypotheses": FEW, "covariates": ["batch"]}, "design": {"methylation": [0.5]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def run(cohort: Path, *more: str) -> str:
    line = ["--pedigree", str(cohort / "pedigree.tsv"), "--samples", str(cohort / "samples.tsv")]
    done = CliRunner().invoke(command, [*line, "--config", str(cohort / "config.json"), *more], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_tables_figure_and_what_is_said(cohort: Path) -> None:
    output = cohort / "design"
    said = run(cohort, "--output", str(output))
    assert "these samples can never tell mendelian from epigenetic" in said
    table = read_table(output / "design.parquet", "design")
    assert table.num_rows == 6
    assert (
        list(read_sentences(output / "design.parquet"))
        == said.splitlines()[: len(read_sentences(output / "design.parquet"))]
    )
    metadata = table.schema.metadata
    assert read_groups(output / "design.parquet", list(FEW), metadata[b"epivi.pedigree_hash"].decode()) == (
        (0,),
        (1, 2),
    )
    confusion = read_table(output / "design_confusion.parquet", "design_confusion").to_pandas()
    assert set(confusion["best"]) == {"reset", "mendelian|epigenetic"}
    assert read_table(output / "design_next.parquet", "design_next").num_rows == 3 * 6
    figure = (output / "design.svg").read_text()
    assert "<!-- never -->" in figure
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    assert len(before) == 4
    run(cohort, "--output", str(output))
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_a_pedigree_alone(cohort: Path) -> None:
    """With given reads and replicates; half of the reads twice are as good."""
    two = {name: FEW[name] for name in ("reset", "mendelian")}

    def nats(*more: str) -> np.ndarray:
        output = cohort / "alone"
        line = ["--pedigree", str(cohort / "pedigree.tsv"), "--output", str(output), *more]
        config = json.dumps({"design": {"methylation": [0.5]}, "model": {"hypotheses": two}})
        done = CliRunner().invoke(command, [*line, "--config", config], catch_exceptions=False)
        assert done.exit_code == 0
        return read_table(output / "design.parquet", "design")["least_nats"].to_numpy()

    of_20 = nats("--coverage", "20")
    np.testing.assert_allclose(nats("--coverage", "10", "--replicates", "2"), of_20, rtol=1e-5, atol=1e-8)
    assert nats("--coverage", "5")[1] < of_20[1]


def test_coverage_is_measured_where_there_are_counts(cohort: Path) -> None:
    names = families_of(PEDIGREES["trio"], 2).individuals
    total = np.full((40, 6), 8, np.uint16)
    total[:, 5] = 0  # a sample without reads
    meth = (total // 2).astype(np.uint16)
    codes, pos0 = np.zeros(40, np.int8), np.arange(40, dtype=np.int32)
    block = LocusBlock("chr1", 0, pos0, pos0 + 1, codes, codes, meth, total)
    write_loci(cohort / "loci", names, [block], Provenance("loci", 1, "", ""))
    assert "assumed are 0 to 8 reads, methylation 0.5, 0.5, 0.5" in run(cohort, "--loci", str(cohort / "loci"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--simulate", "5"), "--simulate 5: expected 0, or at least the 10 loci of a region"),
        (("--replicates", "2"), "--replicates 2: expected without --samples"),
        (("--loci", "loci", "--coverage", "5"), "--loci loci: expected with --samples, and without --coverage"),
        (("--config", '{"model": {"family": "epimutation"}}'), "model.family is epimutation: expected transmission"),
        (("--config", '{"design": {"methylation": [1]}}'), r"design\.methylation\[1\] is 1: expected a number between"),
        (("--samples", "none.tsv"), "none.tsv: the sample sheet does not exist"),
    ],
)
def test_mistakes_have_one_line(cohort: Path, more: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(cohort, *more)


def test_a_hypothesis_that_needs_the_sheet(cohort: Path) -> None:
    config = json.dumps({"model": {"hypotheses": {"reset": {}, "home": {"environment": {"column": "home"}}}}})
    line = ["--pedigree", str(cohort / "pedigree.tsv"), "--config", config]
    with pytest.raises(UserError, match="every individual of the pedigree: the sample sheet has no column 'home'"):
        CliRunner().invoke(command, line, catch_exceptions=False)
