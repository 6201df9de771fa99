"""`epivi simulate`: files that read back as the draws, reproducibly, whole or not at all."""

from __future__ import annotations

import gzip
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import REPOSITORY

from epivi.base.errors import UserError
from epivi.cli import main
from epivi.cohort.kinship import covariance
from epivi.cohort.pedigree import pedigree_hash
from epivi.cohort.pedigree_files import read_pedigree
from epivi.cohort.samples import read_sample_sheet
from epivi.commands import simulated_cohort
from epivi.config.load import load_config
from epivi.families.transmission import simulate as transmission_simulate
from epivi.families.transmission.hypotheses import parse_hypotheses, share_priors
from epivi.families.transmission.simulate import SimulationSettings, simulate_cohort
from epivi.ingest.layout import ingest_settings
from epivi.ingest.read import detect, ingest
from epivi.loci.store import read_provenance
from epivi.simulate.formats import TEXT_FORMATS
from epivi.simulate.positions import Contig
from epivi.tables.parquet import read_table

DEMO = REPOSITORY / "tests" / "data" / "demo"
SMALL = ["--seed", "5", "--template", "trio", "--families", "2", "--loci", "300", "--contigs", "chr1,chrX"]
MIXED = [*SMALL, "--formats", "bismark_cov:0.5,bedmethyl:0.5", "--missing-loci", "0.2"]


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as leaving:
        main(["simulate", *map(str, arguments)])
    return int(leaving.value.code or 0)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line of a user error."""
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def counts_of(path: Path, kind: str) -> dict[tuple[str, int], tuple[int, int, float]]:
    """(contig, pos0) -> (methylated, total, percent) of a file in one of the two formats, read row by row."""
    counts = {}
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        cells = line.split("\t")
        if kind == "bismark_cov":
            contig, start, end, percent, meth, unmeth = cells
            assert start == end
            counts[contig, int(start) - 1] = (int(meth), int(meth) + int(unmeth), float(percent))
        else:
            contig, start, end, code, score, strand, thick_start, thick_end, color, valid, percent, meth, canonical = (
                cells[:13]
            )
            assert (code, strand, color, cells[13:]) == ("m", ".", "255,0,0", ["0"] * 5)
            assert (thick_start, thick_end, score) == (start, end, valid)
            assert int(end) == int(start) + 1
            assert int(meth) + int(canonical) == int(valid)
            counts[contig, int(start)] = (int(meth), int(valid), float(percent))
    return counts


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_files_hold_the_draws_of_the_settings_they_name(tmp_path: Path) -> None:
    """What the written configuration, sheet and pedigree say, drawn again in memory, is what the count files hold."""
    output = tmp_path / "cohort"
    columns = ["--covariates", "batch:2,age", "--environment", "household:family"]
    errors = ["--false-methylated", "0.01", "--false-unmethylated", "0.03"]
    assert run("--output", output, *MIXED, *columns, *errors, "--replicates", "2", "--unsampled", "2") == 0
    config = load_config(str(output / "config.yaml"))
    pedigree, sheet = read_pedigree(config.require("pedigree")), read_sample_sheet(config.require("samples"))
    assert len(sheet.samples) == 2 * (6 - 2)
    assert sheet.formats.count("bedmethyl") == 4
    assert set(sheet.false_methylated) == {0.01}
    assert set(sheet.false_unmethylated) == {0.03}
    model = config.section("model")
    assert model["covariates"] == ["batch", "age"]
    assert model["hypotheses"]["household"] == {"environment": [{"column": "household", "share": "free"}]}
    settings = SimulationSettings(
        seed=5,
        hypotheses=parse_hypotheses(model["hypotheses"]),
        weights=(0.25, 0.125, 0.125, 0.125, 0.125, 0.25),  # half for no transmission: reset and household
        contigs=(Contig("chr1", 150), Contig("chrX", 150)),
        share_priors=share_priors(model["priors"]),
        covariates=("batch", "age"),
        missing_loci=0.2,
    )
    cohort = simulate_cohort(settings, pedigree, sheet)
    loci = [(settings.contigs[code].name, int(pos)) for code, pos in zip(cohort.contig, cohort.pos0, strict=True)]
    for sample, (path, kind) in enumerate(zip(sheet.paths, sheet.formats, strict=True)):
        expected = {
            locus: (int(meth), int(total), pytest.approx(100 * meth / total, abs=0.00501))
            for locus, meth, total in zip(loci, cohort.meth[:, sample], cohort.total[:, sample], strict=True)
            if total > 0
        }
        read = counts_of(Path(path), kind)
        assert read == expected
        assert list(read) == list(expected)
        assert 0.6 < len(read) / 300 < 0.95
    truth = read_table(output / "truth.parquet", "truth").to_pydict()
    assert list(zip(truth["contig"], truth["pos"], strict=True)) == loci
    assert truth["hypothesis"] == [settings.hypotheses[code].name for code in cohort.truth["hypothesis"]]
    for name in ("baseline", "spread", "heritable_share", "transmissibility", "environment_share"):
        np.testing.assert_allclose(truth[name], cohort.truth[name], rtol=1e-6)
    assert read_provenance(output / "truth.parquet").pedigree_hash == pedigree_hash(pedigree)


def test_same_line_same_bytes_whatever_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the line is the recorded one; the record of another seed makes other counts."""
    monkeypatch.setattr(transmission_simulate, "BLOCK_VALUES", 6 * 256)  # several blocks
    folders = []
    for name, extra in (("one", []), ("two", ["--threads", "2"])):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert run("--output", "cohort", *MIXED[:-2], "--loci", "900", *extra) == 0
        folders.append(files_under(tmp_path / name))
    assert folders[0] == folders[1]
    words = shlex.split((tmp_path / "one" / "cohort" / "simulate.txt").read_text())
    (tmp_path / "three").mkdir()
    monkeypatch.chdir(tmp_path / "three")
    assert words[:2] == ["epivi", "simulate"]
    assert run(*words[2:]) == 0
    assert files_under(tmp_path / "three") == folders[0]
    words[words.index("--seed") + 1] = "6"
    assert run(*words[2:], "--overwrite") == 0
    other = files_under(tmp_path / "three")
    assert set(other) == set(folders[0])
    assert all(other[name] != content for name, content in folders[0].items() if "counts" in name)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = transmission_simulate.simulate

    def interrupted(*arguments: Any) -> Iterator[Any]:
        yield next(iter(real(*arguments)))
        raise KeyboardInterrupt

    monkeypatch.setattr(transmission_simulate, "simulate", interrupted)
    assert run("--output", tmp_path / "cohort", *SMALL) == 130
    assert list(tmp_path.iterdir()) == []


def test_existing_folders_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    assert run("--output", precious, *SMALL) == 0  # an empty folder is as good as none
    before = files_under(precious)
    assert "expected a new folder, or --overwrite" in error_of(capsys, "--output", precious, *SMALL)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    assert "not made by epivi simulate" in error_of(capsys, "--output", foreign, *SMALL, "--overwrite")
    assert files_under(foreign) == {"thesis.txt": b"years of work"}
    assert run("--output", precious, *SMALL, "--overwrite") == 0
    assert files_under(precious) == before


def test_the_given_configuration_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its hypotheses, priors and covariates are drawn from, and it is written with the cohort's own files."""
    source = tmp_path / "mine.yaml"
    source.write_text(
        "cohort: other\nsamples: a.tsv\npedigree: b.tsv\nloci: {coverage: {min: 4}}\nmodel:\n"
        "  covariates: [age]\n  hypotheses:\n    none: {}\n"
        "    half: {heritable_share: 0.5, maternal: 0.5, paternal: 1}\n"
    )
    output = tmp_path / "cohort"
    arguments = ["--output", output, *SMALL, "--config", source]
    assert "model names the column 'age'" in error_of(capsys, *arguments)
    assert run(*arguments, "--covariates", "age", "--weights", "half=1", "--cohort", "mine") == 0
    config = load_config(str(output / "config.yaml"))
    assert config.require("cohort") == "mine"
    assert config.require("samples") == str(output / "samples.tsv")
    assert config.section("loci", "coverage") == {"min": 4, "max": 500}
    assert list(config.section("model", "hypotheses")) == ["none", "half"]
    truth = read_table(output / "truth.parquet", "truth").to_pydict()
    assert set(truth["hypothesis"]) == {"half"}
    assert set(truth["heritable_share"]) == {0.5}


def test_a_pedigree_file_is_drawn_on_and_written_back(tmp_path: Path) -> None:
    source = tmp_path / "mine.tsv"
    source.write_text(
        "individual\tmother\tfather\tmode\tgenerations\n"
        "root\t.\t.\t.\t1\nline\troot\t.\tselfing\t4\nother\t.\t.\t.\t1\ncross\tother\tline\tsexual\t1\n"
    )
    output = tmp_path / "cohort"
    columns = ["--environment", "litter:mother,cage:2,house:family"]
    assert (
        run("--output", output, "--seed", "1", "--pedigree", source, "--loci", "50", "--unsampled", "root", *columns)
        == 0
    )
    given, written = read_pedigree(str(source)), read_pedigree(str(output / "pedigree.tsv"))
    assert written.individuals == given.individuals
    np.testing.assert_array_equal(covariance(written, 0.7, 0.4), covariance(given, 0.7, 0.4))
    sheet = read_sample_sheet(str(output / "samples.tsv"))
    assert set(sheet.individuals) == {"line", "other", "cross"}
    assert sheet.columns["litter"] == ("litter_of_root", "litter_other", "litter_of_other")
    assert set(sheet.columns["cage"]) <= {"cage1", "cage2"}
    assert set(sheet.columns["house"]) == {"house1"}


def test_several_environments_and_a_relatedness_matrix(tmp_path: Path) -> None:
    """Of the configuration: a column of the truth for each, which share the whole variance."""
    names = [f"F{family}_{role}" for family in (1, 2) for role in ("mother", "father", "child")]
    lines = [f"{one} {other} {1.0 if one == other else 0.25}" for one in names for other in names if one <= other]
    (tmp_path / "relatedness.txt").write_text("\n".join(["individual1 individual2 relatedness", *lines]))
    terms = {
        "environment": [{"column": "cage", "share": 0.5}, {"column": "batch", "share": 0.4}],
        "relatedness": {"file": str(tmp_path / "relatedness.txt"), "share": 0.5},
    }
    asked = {"model": {"hypotheses": {"reset": {}, "all": terms}}}
    arguments = ["--families", "2", "--loci", "60", "--environment", "cage:2,batch:3", "--config", json.dumps(asked)]
    assert run("--output", tmp_path / "cohort", "--seed", "1", *arguments) == 0
    truth = read_table(tmp_path / "cohort" / "truth.parquet", "truth").to_pandas()
    of_all = truth["hypothesis"] == "all"
    assert 10 < of_all.sum() < 60
    for name, share in {"cage": 0.5, "batch": 0.2, "relatedness": 0.15, "heritable": 0.0}.items():
        np.testing.assert_allclose(truth[f"{name}_share"], np.where(of_all, share, 0.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "rest=1"], "did you mean 'reset'?"),
        (["--weights", "reset=0.5"], "sum to 1, not 0.5"),
        (["--weights", "reset=1.5,mendelian=-0.5"], "weights >= 0"),
        (["--weights", "reset=many"], "'many': expected a number"),
        (["--baseline", "1:0"], "--baseline '1:0': expected weight:mean:sd"),
        (["--formats", "wig"], "--formats 'wig': expected different ones of bismark_cov, bedmethyl"),
        (["--formats", "bedmethyl:0"], "shares above 0"),
        (["--contigs", "chr1,chr1"], "different names"),
        (["--contigs", "0"], "a number above 0"),
        (["--contigs", "301"], "301 contigs for 300 loci"),
        (["--unsampled", "6"], "expected 0 to 4"),
        (["--unsampled", "1.5"], "--unsampled 1.5: expected a fraction"),
        (["--unsampled", "F1_moter"], "did you mean 'F1_mother'?"),
        (["--false-methylated", "0.5"], "--false-methylated 0.5: expected a probability"),
        (["--covariates", "sample"], "--covariates 'sample': expected a new column name"),
        (["--covariates", "batch:9"], "a number of levels from 2 to 6"),
        (["--environment", "maternal:2"], "a hypothesis has this name"),
        (["--environment", "cage"], "expected family, mother or a number"),
        (["--pedigree", "p.tsv"], "--pedigree p.tsv: expected without --template and --families"),
        (["--coverage", "-1"], "coverage_mean = -1.0"),
        (["--clustered", "0"], "cluster_bp = 0.0"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(capsys, "--output", tmp_path / "cohort", *SMALL, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_every_format_is_recognised_and_holds_the_same_counts(tmp_path: Path) -> None:
    """Ingest reads from each of them what was drawn, whatever else the format says."""
    read: dict[str, list[tuple[str, list[int], list[int], list[int]]]] = {}
    for name, form in TEXT_FORMATS.items():
        assert run("--output", tmp_path / name, *SMALL, "--missing-loci", "0.2", "--formats", name) == 0
        path = min((tmp_path / name / "counts").glob(f"*{form.suffix}"))
        assert detect(path) == name
        read[name] = []
        record = ingest(
            path,
            "s",
            ingest_settings(load_config("{}").section("loci")),
            lambda contig, counts, loci=read[name]: loci.append(
                (contig, counts.pos0.tolist(), counts.meth.tolist(), counts.total.tolist())
            ),
            spill_directory=tmp_path,
        )
        assert (record.warnings, record.rows_read > 100) == ((), True)
    assert all(loci == read["bedmethyl"] for loci in read.values())


def test_formats_repeat_in_their_shares() -> None:
    formats = simulated_cohort._repeat_formats("bismark_cov:0.8,bedmethyl:0.2", 10)
    assert [number for number, name in enumerate(formats) if name == "bedmethyl"] == [2, 7]
    assert simulated_cohort._repeat_formats("bedmethyl", 3) == ("bedmethyl",) * 3
    with pytest.raises(UserError, match="empty entry"):
        simulated_cohort._repeat_formats("bedmethyl,", 3)


# --- the demo cohort


def test_the_demo_is_small_and_whole() -> None:
    sizes = [path.stat().st_size for path in DEMO.rglob("*") if path.is_file()]
    assert sum(sizes) < 5_000_000
    truth = read_table(DEMO / "truth.parquet", "truth")
    assert truth.num_rows == 20_000
    assert truth["contig"].unique().to_pylist() == ["chr1", "chr2", "chr3"]


def test_the_configuration_at_the_root_is_the_demo_and_otherwise_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of config/config.yaml with another cohort in it must inherit nothing but defaults."""
    monkeypatch.chdir(REPOSITORY)
    own = {"cohort": "demo", "samples": "config/samples.tsv", "pedigree": "config/pedigree.tsv"}
    assert load_config("config/config.yaml").resolved == load_config("{}").resolved | own
    sheet, made = read_sample_sheet("config/samples.tsv"), read_sample_sheet("tests/data/demo/samples.tsv")
    assert sheet.paths == made.paths
    assert all(Path(path).is_file() for path in sheet.paths)
    assert (sheet.samples, sheet.individuals, sheet.formats) == (made.samples, made.individuals, made.formats)
    assert np.array_equal(sheet.false_methylated, made.false_methylated)
    assert np.array_equal(sheet.false_unmethylated, made.false_unmethylated)
    pedigree = read_pedigree("config/pedigree.tsv")
    assert pedigree_hash(pedigree) == pedigree_hash(read_pedigree("tests/data/demo/pedigree.tsv"))


def test_the_recorded_line_makes_the_demo_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte by byte after decompression, so that neither zlib nor the level matters."""
    monkeypatch.chdir(REPOSITORY)
    words = shlex.split((DEMO / "simulate.txt").read_text())
    assert words[words.index("--output") + 1] == "tests/data/demo"
    words[words.index("--output") + 1] = str(tmp_path / "demo")
    words[words.index("--gzip-level") + 1] = "1"
    assert run(*words[2:]) == 0
    for name in ("pedigree.tsv", "samples.tsv"):
        assert (tmp_path / "demo" / name).read_text() == (DEMO / name).read_text()
    assert read_table(tmp_path / "demo" / "truth.parquet", "truth").equals(read_table(DEMO / "truth.parquet", "truth"))
    paths = sorted((DEMO / "counts").iterdir())
    assert len(paths) == 36
    for path in paths:
        again = (tmp_path / "demo" / "counts" / path.name).read_bytes()
        assert gzip.decompress(again) == gzip.decompress(path.read_bytes()), path.name
