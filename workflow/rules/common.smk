"""What the rules share: names and files of the cohort, and the parameters of a step."""

import json
import shlex
import sys
from pathlib import Path
from urllib.parse import quote

from epivi.code_version import code_version
from epivi.declarations import DECLARATIONS


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
