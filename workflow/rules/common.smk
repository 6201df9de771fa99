"""What the rules share: names and files of the cohort, and the parameters of a step."""

import json
import shlex
import sys
from pathlib import Path
from urllib.parse import quote

from epivi.base.code_version import code_version
from epivi.base.files import content_hash
from epivi.cohort.pedigree import pedigree_hash
from epivi.config.declarations import DECLARATIONS
from epivi.ingest.alignments import container_of


include: "cohort.smk"
include: "shards.smk"
include: "resources.smk"


# Names of samples may hold characters that file names must not.
SAMPLE_ROWS = {quote(name, safe=""): row for row, name in enumerate(SHEET.samples)}
UNIT = SETTINGS.resolved["loci"]["unit"]
CLASS_FILES = SETTINGS.resolved["model"]["classes"] or []
# The tables that the run is to end with.
LAST_TABLES = ["posterior", *(["states", "branches"] if DECLARATIONS[SETTINGS.family].has_states else [])]
if isinstance(STAMP["pedigree"], dict):
    PEDIGREE_FILES = list(STAMP["pedigree"].values())
    PEDIGREE_ARGUMENT = json.dumps(STAMP["pedigree"])
else:
    PEDIGREE_FILES = PEDIGREE_ARGUMENT = STAMP["pedigree"]


# What the steps after the assembly see of the sample sheet and of the pedigree: comments, the order of the sheet's
# rows and columns that the model does not name rerun nothing.
COHORT_HASH = content_hash([pedigree_hash(PEDIGREE), SHEET.content(SETTINGS.sheet_columns)])
SHEET_HASH = content_hash([COHORT_HASH, SHEET.content(SHEET.columns)])  # for a step that looks at all columns
# Keys, as (section, key), that do not change what a fit is.
NO_PART_OF_THE_FIT = [("fit", "processes"), ("fit", "checkpoint_minutes")]


def reading_config(wildcards):
    """The configuration that a sample is read by.

    A sample is read once, with all its contigs: which of them the cohort has is for the assembly to say. Of aligned
    reads the contigs that `include` names are read alone, as each costs its reads.
    """
    selected = SETTINGS.select("loci", "qc")
    for section, key in (("loci", "unit"), ("loci", "min_covered_samples"), ("qc", "genotypes")):
        del selected[section][key]
    contigs = selected["loci"]["contigs"]
    del contigs["exclude"]
    if container_of(Path(SHEET.paths[SAMPLE_ROWS[wildcards.sample]])) is None:
        del contigs["include"]
    return json.dumps(selected)


def step_config(*sections, without=()):
    """The parts of the configuration that a step depends on, as JSON: a change elsewhere does not rerun the step.

    without: keys, as (section, key), of these sections that the step does not look at.
    """
    selected = SETTINGS.select(*sections)
    for section, key in without:
        del selected[section][key]
    return json.dumps(selected)


# In place of Snakemake's own prefix: of `epivi ... | tee`, the status must be that of epivi.
# `.venv/bin/snakemake` without activation: shell jobs must find the `epivi` beside it.
shell.prefix(f"set -euo pipefail; export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; ")


pathvars:
    results=OUT,
    logs=f"{OUT}/logs",
    benchmarks=f"{OUT}/benchmarks",


wildcard_constraints:
    sample="[^/]+",
    shard=r"\d+",
