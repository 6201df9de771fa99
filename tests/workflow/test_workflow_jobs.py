"""How many jobs a cohort makes, and what they ask a cluster for: dry runs on cohorts of which only the names exist."""

from __future__ import annotations

import re
import resource
import runpy
from pathlib import Path

import yaml
from workflow_folder import REPOSITORY, Folder

from epivi.loci.loci_file import LociFile
from epivi.loci.store import write_loci_manifest
from epivi.tables.parquet import Provenance

COHORT = "large"
# Sizes of 24 chromosomes, Mb; CpGs are taken to be as dense on all of them.
CHROMOSOMES_MB = (
    *(248, 242, 198, 190, 182, 171, 159, 145, 138, 134, 135, 133),
    *(114, 107, 102, 90, 83, 80, 59, 64, 47, 51, 156, 57),
)
N_LOCI = 28_000_000
SHARD_LOCI = 1_000_000  # the default
DRY_RUN_CPU_S = 10


def paper_cohort(path: Path, n_samples: int, **sections: object) -> Folder:
    """Sample sheet, pedigree and configuration of sibling families of four; the samples' files are empty."""
    (path / "counts").mkdir(parents=True)
    names = [f"s{number}" for number in range(n_samples)]
    for name in names:
        (path / "counts" / f"{name}.cov").touch()
    rows = [f"{name}\t{name}\tcounts/{name}.cov\tbismark_cov" for name in names]
    (path / "samples.tsv").write_text("\n".join(["sample\tindividual\tpath\tformat", *rows]) + "\n")
    parents = [("", "") if k % 4 < 2 else (names[k - k % 4], names[k - k % 4 + 1]) for k in range(n_samples)]
    rows = [f"{name}\t{mother}\t{father}" for name, (mother, father) in zip(names, parents, strict=True)]
    (path / "pedigree.tsv").write_text("\n".join(["individual\tmother\tfather", *rows]) + "\n")
    config = {"cohort": COHORT, "samples": "samples.tsv", "pedigree": "pedigree.tsv"}
    (path / "config.yaml").write_text(yaml.safe_dump(config | sections))
    return Folder(path)


def assembled(folder: Folder, contigs: dict[str, int]) -> None:
    """As if every sample were read and the loci assembled, and the list of shards written."""
    results = folder.path / "results" / COHORT
    names = [line.split("\t")[0] for line in (folder.path / "samples.tsv").read_text().splitlines()[1:]]
    for name in names:
        for path in (results / "counts" / f"{name}.parquet", results / "qc" / f"{name}.json"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    files = [LociFile("+0000.arrow", 0, tuple(contigs), tuple(contigs.values()))]
    write_loci_manifest(results / "loci", names, [], files, "cpg", Provenance("loci", 1, "", ""), {})
    rules = runpy.run_path(str(REPOSITORY / "workflow" / "rules" / "shards.smk"))
    rules["write_shards"](results / "loci", results / "shards.json", SHARD_LOCI)


def counted(output: str) -> dict[str, int]:
    """Rule -> jobs that a dry run says it would start; the target `all` starts none."""
    (block,) = set(re.findall(r"^Job stats:\n(.*?)^total", output, re.MULTILINE | re.DOTALL))
    jobs = {line.split()[0]: int(line.split()[1]) for line in block.splitlines()[2:]}
    assert jobs.pop("all") == 1
    return jobs


def dry_run(folder: Folder, *arguments: str) -> tuple[dict[str, int], float]:
    """Jobs by rule, and the seconds of processor that the dry run took."""

    def children_s() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = children_s()
    run = folder.snakemake("--dry-run", "--quiet", "rules", *arguments)
    assert run.returncode == 0, run.stderr
    return counted(run.stdout + run.stderr), children_s() - before


def test_200_samples_of_24_contigs_are_at_most_300_jobs(tmp_path: Path) -> None:
    large = paper_cohort(tmp_path / "cohort", 200)
    first, first_s = dry_run(large)
    assert first["ingest"] == 200
    total = sum(CHROMOSOMES_MB)
    contigs = {f"chr{n}": N_LOCI * megabases // total for n, megabases in enumerate(CHROMOSOMES_MB, 1)}
    assembled(large, contigs)
    then, then_s = dry_run(large)
    jobs = first | then
    assert jobs["evidence"] == jobs["posterior"] == -(-sum(contigs.values()) // SHARD_LOCI)
    assert set(jobs) == {
        *("design", "ingest", "assemble", "shards", "kernel", "fit", "evidence", "controls", "compare"),
        *("posterior", "quality", "relatives", "summary"),
    }
    assert sum(jobs.values()) <= 300
    assert max(first_s, then_s) < DRY_RUN_CPU_S


def test_5000_contigs_are_as_few_jobs_as_their_loci_ask_for(tmp_path: Path) -> None:
    folder = paper_cohort(tmp_path / "cohort", 8)
    assembled(folder, {f"scaffold_{number}": 100 + number for number in range(5000)})
    jobs, cpu_s = dry_run(folder)
    n_loci = sum(range(100, 5100))
    assert jobs["evidence"] == jobs["posterior"] == -(-n_loci // SHARD_LOCI) == 13
    assert cpu_s < DRY_RUN_CPU_S


def resources(folder: Folder) -> dict[str, dict[str, str]]:
    """Rule -> what one of its jobs asks for, in a dry run."""
    run = folder.snakemake("--dry-run")
    assert run.returncode == 0, run.stderr
    asked = re.findall(r"^rule (\w+):.*?^    resources: (.*?)$", run.stdout + run.stderr, re.MULTILINE | re.DOTALL)
    return {rule: dict(value.split("=") for value in values.split(", ")) for rule, values in asked}


def test_jobs_ask_for_what_their_size_takes(tmp_path: Path) -> None:
    """Minutes follow from loci and individuals; GPUs are asked for where the configuration says so, by processes."""
    asked = {}
    cohorts = ((40, 500_000, "auto", 1), (40, 1_000_000, "cuda", 2), (80, 1_000_000, "auto", 2))
    for n_samples, n_loci, device, processes in cohorts:
        fit = {"device": device, "processes": processes}
        folder = paper_cohort(tmp_path / f"{n_samples}-{n_loci}", n_samples, fit=fit)
        assembled(folder, {"chr1": n_loci})
        asked[n_samples, n_loci] = resources(folder)
    small, longer, wider = asked.values()
    for values in (longer, wider):
        assert int(values["evidence"]["runtime"]) > int(small["evidence"]["runtime"])
    assert int(wider["evidence"]["runtime"]) > int(longer["evidence"]["runtime"])
    assert [values["fit"]["gpu"] for values in asked.values()] == ["0", "2", "0"]
    memory_mb = [int(values["fit"]["mem_mb"]) for values in asked.values()]
    assert 1.5 * memory_mb[0] < memory_mb[1] < memory_mb[2]
    assert {values["evidence"]["gpu"] for values in asked.values()} == {"0"}
