"""A user's mistakes end in one clear line and an exit status that is not 0, and leave nothing half-written."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pysam
import pytest
import yaml
from workflow_folder import COHORT, Folder


def error_lines(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("epivi: error:")]


def first_counts(folder: Folder, suffix: str = "") -> Path:
    return next(path for path in sorted((folder.path / "cohort" / "counts").iterdir()) if path.name.endswith(suffix))


def misspell_a_key(folder: Folder) -> None:
    folder.edit_config(compare={"fdrr": 0.1})


def leave_out_the_pedigree(folder: Folder) -> None:
    config = yaml.safe_load((folder.path / "config.yaml").read_text())
    del config["pedigree"]
    (folder.path / "config.yaml").write_text(yaml.safe_dump(config))


def remove_a_file_of_counts(folder: Folder) -> None:
    first_counts(folder).unlink()


def name_a_sample_twice(folder: Folder) -> None:
    path = folder.path / "cohort" / "samples.tsv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[1]]))


def close_the_pedigree_to_a_cycle(folder: Folder) -> None:
    path = folder.path / "cohort" / "pedigree.tsv"
    path.write_text("individual\tmother\tfather\na\tb\t.\nb\ta\t.\n")


def name_an_unknown_format(folder: Folder) -> None:
    folder.edit("cohort/samples.tsv", "\tbismark_cov\t", "\tbismark_cow\t")


def ask_for_a_column_that_the_sheet_lacks(folder: Folder) -> None:
    config = yaml.safe_load((folder.path / "config.yaml").read_text())
    folder.edit_config(model=config["model"] | {"covariates": ["batch"]})


def exchange_within_a_column_that_the_sheet_lacks(folder: Folder) -> None:
    folder.edit_config(controls={"exchange_within": ["batch"]})


def link_a_child_to_its_mother(folder: Folder) -> None:
    """The child's path is a symbolic link to the mother's file."""
    counts = folder.path / "cohort" / "counts"
    mother, child = (next(counts.glob(f"F1_{name}.*")) for name in ("mother", "child"))
    child.unlink()
    child.symlink_to(mother.name)


def describe_a_sample_of_no_individual(folder: Folder) -> None:
    path = folder.path / "cohort" / "pedigree.tsv"
    path.write_text("individual\tmother\tfather\nsomebody\t.\t.\n")


def name_classes_that_are_not_there(folder: Folder) -> None:
    config = yaml.safe_load((folder.path / "config.yaml").read_text())
    model = {"family": "epimutation", "classes": "clases.bed"}
    folder.edit_config(model=model, loci=config["loci"])


def leave_a_sampled_individual_out_of_relatedness(folder: Folder) -> None:
    config = yaml.safe_load((folder.path / "config.yaml").read_text())
    (folder.path / "relatedness.tsv").write_text("individual1\tindividual2\trelatedness\nsomebody\tsomebody\t1\n")
    hypotheses = {"reset": {}, "genotype": {"relatedness": {"file": "relatedness.tsv"}}}
    folder.edit_config(model=config["model"] | {"hypotheses": hypotheses, "null_hypotheses": ["reset"]})


def name_regions_that_cannot_be_read(folder: Folder) -> None:
    config = yaml.safe_load((folder.path / "config.yaml").read_text())
    (folder.path / "regions.bed").write_text("chr1\t10\t20\nchr1\tten\t20\n")
    folder.edit_config(loci=config["loci"] | {"unit": {"bed": "regions.bed"}})


def name_a_genome_that_is_not_there(folder: Folder) -> None:
    config = yaml.safe_load((folder.path / "config.yaml").read_text())
    folder.edit_config(loci=config["loci"] | {"reference": "genome.fa"})


def exclude_sites_that_are_not_there(folder: Folder) -> None:
    config = yaml.safe_load((folder.path / "config.yaml").read_text())
    folder.edit_config(loci=config["loci"] | {"exclude": ["known.vcf.gz"]})


def exclude_sites_that_cannot_be_read(folder: Folder) -> None:
    config = yaml.safe_load((folder.path / "config.yaml").read_text())
    (folder.path / "sites.bed").write_text("chr1\t10\t11\nchr1\t12\n")
    folder.edit_config(loci=config["loci"] | {"exclude": ["sites.bed"]})


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (name_classes_that_are_not_there, ["clases.bed"]),
        (name_regions_that_cannot_be_read, ["regions.bed", "line 2", "ten"]),
        (exclude_sites_that_are_not_there, ["known.vcf.gz", "no such file"]),
        (exclude_sites_that_cannot_be_read, ["sites.bed", "line 2", "expected contig, start, end"]),
        (name_a_genome_that_is_not_there, ["genome.fa", "no such file"]),
        (leave_a_sampled_individual_out_of_relatedness, ["relatedness.tsv: no individual 'F1_", "samples.tsv, line 2"]),
        (misspell_a_key, ["config.yaml line", "compare.fdrr", "did you mean 'fdr'"]),
        (leave_out_the_pedigree, ["config.yaml", "pedigree"]),
        (remove_a_file_of_counts, ["samples.tsv line 3", "F1_child"]),
        (name_a_sample_twice, ["samples.tsv line 6"]),
        (close_the_pedigree_to_a_cycle, ["pedigree.tsv", "a", "b"]),
        (name_an_unknown_format, ["samples.tsv line", "bismark_cow", "bismark_cov"]),
        (ask_for_a_column_that_the_sheet_lacks, ["samples.tsv", "batch"]),
        (exchange_within_a_column_that_the_sheet_lacks, ["samples.tsv", "no column 'batch'"]),
        (link_a_child_to_its_mother, ["samples.tsv line 3", "F1_child", "the same file as", "F1_mother", "line 2"]),
    ],
)
def test_mistake_is_found_before_any_job(
    cohort: Folder, tmp_path: Path, mistake: Callable[[Folder], None], words: list[str]
) -> None:
    folder = cohort.copy(tmp_path / "mistake")
    mistake(folder)
    run = folder.snakemake()
    assert run.returncode == 2
    assert "Traceback" not in run.stdout + run.stderr
    assert len(error_lines(run.stderr)) == 1, run.stderr
    for word in words:
        assert word in error_lines(run.stderr)[0]
    assert not (folder.path / "results").exists()


def test_contig_pattern_that_matches_nothing_is_told_from_indices(cohort: Folder, tmp_path: Path) -> None:
    folder = cohort.copy(tmp_path / "contigs")
    for path in (folder.path / "cohort" / "counts").iterdir():
        plain = path.with_name(path.name.removesuffix(".gz"))
        plain.write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
        pysam.tabix_compress(str(plain), str(path), force=True)
        pysam.tabix_index(str(path), seq_col=0, start_col=1, end_col=2, zerobased=".bed" in path.name, force=True)
    run = folder.snakemake("--dry-run", "--config", "loci={contigs: {include: [chr1, chr2]}}")
    assert run.returncode == 2
    (line,) = error_lines(run.stderr)
    assert "loci.contigs.include has 'chr2', which matches no contig; did you mean 'chr1'?" in line
    run = folder.snakemake("--dry-run", "--config", "loci={contigs: {include: [chr1]}}")
    assert run.returncode == 0, run.stderr
    (folder.path / "sites.bed").write_text("1\t10\t11\n")
    run = folder.snakemake("--dry-run", "--config", "loci={exclude: [sites.bed]}")
    assert run.returncode == 2
    (line,) = error_lines(run.stderr)
    assert "sites.bed: none of its contigs is one of the loci: '1' against" in line


def test_value_on_the_command_line_is_checked(cohort: Folder) -> None:
    run = cohort.snakemake("--dry-run", "--config", "compare={fdr: 2}")
    assert run.returncode == 2
    assert "compare.fdr is 2" in error_lines(run.stderr)[0]


def truncate_a_gzip(folder: Folder) -> Path:
    path = first_counts(folder, ".bed.gz")
    path.write_bytes(path.read_bytes()[:-40])
    return path


def drop_a_column(folder: Folder) -> Path:
    path = first_counts(folder, ".cov.gz")
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    lines[41] = lines[41].rpartition("\t")[0]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def test_bad_counts_fail_their_own_samples(cohort: Folder, tmp_path: Path) -> None:
    folder = cohort.copy(tmp_path / "counts")
    words = {truncate_a_gzip(folder): "truncated", drop_a_column(folder): "line 42"}
    assert len(words) == 2
    run = folder.snakemake("--keep-going", "--until", "ingest")
    assert run.returncode == 1
    lines = error_lines(run.stdout + run.stderr)
    assert len(lines) == 2, run.stdout
    counts = {path.name for path in (folder.results / "counts").iterdir()}
    qc = {path.stem for path in (folder.results / "qc").iterdir()}
    assert len(counts) == len(qc) == 2
    for path, word in words.items():
        sample = path.name.split(".")[0]
        (line,) = (line for line in lines if path.name in line)
        assert word in line
        assert line in (folder.results / "logs" / "ingest" / f"{sample}.log").read_text()
        assert f"{sample}.parquet" not in counts
        assert sample not in qc


def test_no_locus_left_names_the_filter(cohort: Folder, tmp_path: Path) -> None:
    folder = cohort.copy(tmp_path / "empty")
    run = folder.snakemake("--config", "loci={coverage: {min: 30}, min_covered_samples: 4}")
    assert run.returncode == 1
    lines = error_lines(run.stdout + run.stderr)
    assert len(lines) == 1
    assert "min_covered_samples" in lines[0]
    # The joined counts are whole, and serve the next try; there are no loci.
    assert sorted(path.name for path in folder.results.glob("loci/*")) == [
        "contigs.parquet",
        "panels",
        "positions.parquet",
    ]
    assert not (folder.results / "fit").exists()


def test_folder_of_another_cohort_is_left_alone(finished: Folder, tmp_path: Path) -> None:
    before = finished.files()
    other = tmp_path / "other.tsv"
    other.write_text((finished.path / "cohort" / "pedigree.tsv").read_text())
    run = finished.snakemake("--config", f"pedigree={other}")
    assert run.returncode == 2
    assert len(error_lines(run.stderr)) == 1
    assert "cohort.json" in run.stderr
    assert f"results/{COHORT}" in run.stderr
    assert finished.files() == before


def test_without_configfile_the_demo_runs_and_config_extends_it(cohort: Folder) -> None:
    for arguments, name in (([], "demo"), (["--config", "cohort=renamed"], "renamed")):
        run = cohort.snakemake("--dry-run", *arguments, configfile=None)
        assert run.returncode == 0, run.stderr
        assert f"results/{name}/manifest.json" in run.stdout + run.stderr


def test_mistakes_of_several_kinds_are_said_in_one_run(cohort: Folder, tmp_path: Path) -> None:
    folder = cohort.copy(tmp_path / "mistakes")
    remove_a_file_of_counts(folder)
    describe_a_sample_of_no_individual(folder)
    name_a_genome_that_is_not_there(folder)
    run = folder.snakemake("--dry-run")
    assert run.returncode == 2
    lines = error_lines(run.stdout + run.stderr)
    assert len(lines) == 1 + 1 + 4
    assert "genome.fa" in lines[0]
    assert "does not exist" in lines[1]
    assert all("is not in the pedigree" in line for line in lines[2:])


@pytest.mark.parametrize("key", ["null", '"null"'])
def test_the_former_name_of_the_null_hypotheses_is_advice(cohort: Folder, tmp_path: Path, key: str) -> None:
    """Without quotes, YAML hands the workflow a key that is nothing."""
    folder = cohort.copy(tmp_path / "null")
    path = folder.path / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del config["model"]
    path.write_text(yaml.safe_dump(config) + f"model:\n  {key}: [reset, mendelian]\n")
    run = folder.snakemake("--dry-run")
    output = run.stdout + run.stderr
    assert run.returncode == 0, output
    assert output.count("model.null is now called model.null_hypotheses") == 1
