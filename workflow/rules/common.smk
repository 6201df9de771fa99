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
MAIN_ANALYSIS = ANALYSES[""]
# The analyses to run, and the one of a step that is run for one alone.
ASKED = analysis_folder(SETTINGS.analysis)
TO_RUN = list(ANALYSES) if SETTINGS.analysis is None else [ASKED]
# For a step that looks at all columns, and not at relatedness matrices.
SHEET_HASH = content_hash([pedigree_hash(MAIN_ANALYSIS.pedigree), SHEET.content(SHEET.columns)])
# Keys, as (section, key), that do not change what a fit is.
NO_PART_OF_THE_FIT = [("fit", "processes"), ("fit", "checkpoint_minutes")]


def reading_config(wildcards):
    """The configuration that a sample is read by.

    A sample is read once, with all its contigs: which of them the cohort has is for the assembly to say. Of aligned
    reads the contigs that `include` names are read alone, as each costs its reads.
    """
    selected = SETTINGS.select("loci", "qc")
    for section, key in (("loci", "unit"), ("loci", "min_covered_samples"), ("loci", "exclude"), ("qc", "genotypes")):
        del selected[section][key]
    contigs = selected["loci"]["contigs"]
    del contigs["exclude"]
    if container_of(Path(SHEET.paths[SAMPLE_ROWS[wildcards.sample]])) is None:
        del contigs["include"]
    return json.dumps(selected)


def analysis_of(wildcards):
    """The analysis that a job is part of: that of the wildcard `analysis`, else the one that is asked for."""
    return ANALYSES[wildcards.get("analysis", ASKED)]


def family_of(wildcards):
    """Model family of the analysis that a job is part of."""
    return analysis_of(wildcards).settings.family


def setting_of(wildcards, section, key):
    """A value of the configuration of the analysis that a job is part of."""
    return analysis_of(wildcards).settings.resolved[section][key]


def of_analysis(field):
    """A field of the analysis that a job is part of, as input or parameter."""
    return lambda wildcards: getattr(analysis_of(wildcards), field)


def shared_config(*sections, without=(), settings=SETTINGS):
    """The parts of the configuration that a step depends on, as JSON: a change elsewhere does not rerun the step.

    sections: all where none is named. without: keys, as (section, key), of these that the step does not look at.
    """
    selected = settings.select(*sections)
    for section, key in without:
        del selected[section][key]
    return json.dumps(selected)


def step_config(*sections, without=()):
    """The same of a step that each analysis has, as a parameter of its jobs."""
    return lambda wildcards: shared_config(*sections, without=without, settings=analysis_of(wildcards).settings)


def step_code(command):
    """Version of the code of a command that takes steps of the analysis's family, as a parameter of its jobs."""
    return lambda wildcards: code_version(command, family_of(wildcards))


def kernel(wildcards):
    """What says that the machine code of the analysis's family is there."""
    return f"<results>/kernel/{family_of(wildcards)}.compiled"


def exchange_columns(wildcards):
    """What the sheet says in the columns within which the controls exchange individuals, as a parameter."""
    return content_hash(SHEET.content(setting_of(wildcards, "controls", "exchange_within")))


def relatives_hash(wildcards):
    """The pedigree of an analysis, and all columns of the sheet, by which its relatives are looked at."""
    return content_hash([pedigree_hash(analysis_of(wildcards).pedigree), SHEET.content(SHEET.columns)])


def control_files(wildcards):
    """The file of the controls of an analysis that has them, as a list."""
    has_controls = DECLARATIONS[family_of(wildcards)].has_controls and setting_of(wildcards, "controls", "enabled")
    return ["<analysis>/controls/control_evidence.parquet"] if has_controls else []


def design_files(wildcards):
    """The table of the design of an analysis whose family has one, as a list."""
    return ["<analysis>/design/design.parquet"] if DECLARATIONS[family_of(wildcards)].has_design else []


def usual_files(wildcards):
    """The file of loci drawn from the fitted model, of an analysis that has controls, as a list."""
    return [path.replace("control_evidence", "usual_evidence") for path in control_files(wildcards)]


def last_tables(wildcards):
    """The files of the tables that an analysis is to end with."""
    has_states = DECLARATIONS[family_of(wildcards)].has_states
    tables = ["posterior", *(["states", "branches"] if has_states else [])]
    return parts(*(f"<analysis>/{table}" for table in tables))(wildcards)


# In place of Snakemake's own prefix: of `epivi ... | tee`, the status must be that of epivi.
# `.venv/bin/snakemake` without activation: shell jobs must find the `epivi` beside it.
shell.prefix(f"set -euo pipefail; export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; ")


# What all analyses share is in <results>; each has its own below <analysis>, which is the same folder for the main one.
# The constraint stands here, as those below do not reach into path variables.
pathvars:
    results=OUT,
    logs=f"{OUT}/logs",
    benchmarks=f"{OUT}/benchmarks",
    analysis=f"{OUT}{{analysis,(?:/analyses/[^/]+)?}}",


wildcard_constraints:
    family="[^/]+",
    sample="[^/]+",
    shard=r"\d+",
