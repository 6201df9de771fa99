"""What a job asks a cluster for: memory and minutes from measured figures, twice as much at each further attempt.

The figures are those of tests/benchmarks/README.md ("Per unit"), whose lines the comments name; what is asked for is
three times the time and twice the memory, since nodes differ and a job that is killed costs more than one that waits.
"""

import json
from math import ceil

from epivi.pedigree import read_pedigree

TIME_MARGIN = 3
MEMORY_MARGIN = 2
SHORTEST_MIN = 10  # below which schedulers gain nothing

N_SAMPLES = len(SHEET.samples)
N_INDIVIDUALS = len(read_pedigree(STAMP["pedigree"]).individuals)
N_HYPOTHESES = len(SETTINGS.section("model")["hypotheses"])


def memory(peak_mb):
    """Resource mem_mb of a step. peak_mb: MB that the step takes, given wildcards and input."""

    def asked(wildcards, input, attempt):
        return ceil(MEMORY_MARGIN * peak_mb(wildcards, input)) * 2 ** (attempt - 1)

    return asked


def minutes(cpu_s):
    """Resource runtime of a step. cpu_s: seconds of processor that the step takes, given wildcards and input."""

    def asked(wildcards, input, threads, attempt):
        return max(SHORTEST_MIN, ceil(TIME_MARGIN * cpu_s(wildcards, input) / threads / 60)) * 2 ** (attempt - 1)

    return asked


def gpus(section):
    """Resource gpu of a step: one where its section of the configuration says cuda."""
    return int(SETTINGS.section(section)["device"] == "cuda")


def cohort_loci(input):
    """Loci of the cohort; a dry run that does not know them yet shows the resource as to be determined."""
    with open(input.shards) as file:
        return sum(shard["stop"] - shard["start"] for job in json.load(file).values() for shard in job)


def ingest_s(wildcards, input):
    return 10 + 0.5 * input.size_mb


def ingest_mb(wildcards, input):
    return 300 + 0.5 * input.size_mb


def assemble_s(wildcards, input):
    return 10 + 0.5 * input.size_mb


def assemble_mb(wildcards, input):
    return 1000 + 1 * N_SAMPLES


# Loci and genome do not matter: at most 200,000 loci are looked at. Of 36 samples 2.7 s of processor and 228 MB, of 200
# samples 17 s and 605 MB.
def quality_s(wildcards, input):
    return 10 + 0.1 * N_SAMPLES


def quality_mb(wildcards, input):
    return 250 + N_SAMPLES + 0.005 * N_SAMPLES**2


def fit_s(wildcards, input):
    return 30 + 3 * N_INDIVIDUALS * N_HYPOTHESES


def fit_mb(wildcards, input):
    return 600 + 5 * N_INDIVIDUALS


def diagnose_s(wildcards, input):
    return 3600


def diagnose_mb(wildcards, input):
    return 4000


def evidence_s(wildcards, input):
    return 60 + 4e-6 * job_loci(wildcards) * N_INDIVIDUALS * N_HYPOTHESES


def evidence_mb(wildcards, input):
    return 700 + 2 * N_INDIVIDUALS


def compare_s(wildcards, input):
    return 20 + 2e-6 * cohort_loci(input) * N_HYPOTHESES


def compare_mb(wildcards, input):
    return 300


def posterior_s(wildcards, input):
    return 20 + 8e-6 * job_loci(wildcards) * N_HYPOTHESES


def posterior_mb(wildcards, input):
    return 600


# bench_epimutation.py, tables: 13 plants, both cores.
def states_s(wildcards, input):
    return 60 + 1e-5 * job_loci(wildcards) * N_INDIVIDUALS


def states_mb(wildcards, input):
    return 1000 + 20 * N_INDIVIDUALS


def summary_s(wildcards, input):
    return 20 + 0.01 * input.size_mb + 1e-6 * cohort_loci(input)


def summary_mb(wildcards, input):
    return 300
