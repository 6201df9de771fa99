"""What a job asks a cluster for: memory and minutes from measured figures, twice as much at each further attempt.

The figures are those of tests/benchmarks/README.md ("Per unit"), whose lines the comments name; what is asked for is
three times the time and twice the memory, since nodes differ and a job that is killed costs more than one that waits.
"""

import json
import os
from math import ceil

from numpy import interp

TIME_MARGIN = 3
MEMORY_MARGIN = 2
SNAKEMAKE_MB = 150  # of the Snakemake that every job starts beside the step
SHORTEST_MIN = 10  # below which schedulers gain nothing

N_SAMPLES = len(SHEET.samples)


def memory(peak_mb):
    """Resource mem_mb of a step. peak_mb: MB that the step takes, given wildcards and input."""

    def asked(wildcards, input, attempt):
        return ceil(MEMORY_MARGIN * (peak_mb(wildcards, input) + SNAKEMAKE_MB)) * 2 ** (attempt - 1)

    return asked


def minutes(cpu_s):
    """Resource runtime of a step. cpu_s: seconds of processor that the step takes, given wildcards and input."""

    def asked(wildcards, input, threads, attempt):
        return max(SHORTEST_MIN, ceil(TIME_MARGIN * cpu_s(wildcards, input) / threads / 60)) * 2 ** (attempt - 1)

    return asked


def gpus(section):
    """Resource gpu of a step: one where its section of the configuration says cuda, one for each process of a fit."""

    def asked(wildcards):
        on_gpu = setting_of(wildcards, section, "device") == "cuda"
        return on_gpu * (setting_of(wildcards, "fit", "processes") if section == "fit" else 1)

    return asked


def n_individuals(wildcards):
    """Individuals of an analysis's pedigree."""
    return len(analysis_of(wildcards).pedigree.individuals)


def n_hypotheses(wildcards):
    """Hypotheses of an analysis."""
    return len(setting_of(wildcards, "model", "hypotheses"))


def cohort_loci(input):
    """Loci of the cohort; a dry run that does not know them yet shows the resource as to be determined."""
    with open(input.shards) as file:
        return sum(stop - start for start, stop in json.load(file).values())


# Each step's seconds and megabytes; the points are in tests/benchmarks/README.md, "Per unit".


def file_mb(input):
    """Size of a sample's file, without the genome that it may be read with."""
    return os.path.getsize(input.file) / 1e6


def design_s(wildcards, input):
    # 36 samples, five hypotheses: 4 s; with a simulation as much as the evidences of its loci take.
    loci = setting_of(wildcards, "design", "simulate") * n_hypotheses(wildcards)
    hypotheses = n_hypotheses(wildcards) / 5
    return 30 + N_SAMPLES * hypotheses**2 + 3 * evidence_locus_s(N_SAMPLES) * loci * hypotheses


def design_mb(wildcards, input):
    # 36 samples: 260 MB; 600 MB with torch, for a simulation.
    return 600 + 5 * N_SAMPLES


def ingest_s(wildcards, input):
    # Text, 2 million loci, 15 MB gzipped: 1.7 s; 0.2 million, 1.5 MB: 0.5 s. Of modBAM 9.4 million bases a second, which
    # are taken for as many bytes.
    return 1 + 0.1 * file_mb(input)


def ingest_mb(wildcards, input):
    # The largest contig is held: 400 MB where all 15 MB are of one, 155 MB for a tenth of that. A genome's largest contig
    # is taken for a tenth of it, and a BAM file, far larger than its calls, for a gigabyte of text.
    return 155 + 1.8 * min(file_mb(input), 1000)


def assemble_s(wildcards, input):
    # 0.2 million loci: 1.4 s for 10 samples, 9.3 s for 200 (212 MB of counts).
    # Sites to leave out: 3.3 s for a VCF file of 400,000 variants without genotypes (3.9 MB compressed).
    return 2 + 0.05 * input.size_mb + 0.85 * sites_mb()


def assemble_mb(wildcards, input):
    # 251 MB for 10 samples, 737 MB for 200, of which mapped files; for each of its processes.
    # And of the sites to leave out 22 MB for 3.9 MB of a VCF file.
    return 8 * (230 + 2.6 * N_SAMPLES) + 6 * sites_mb()


def sites_mb():
    return sum(os.path.getsize(path) for path in SETTINGS.resolved["loci"]["exclude"]) / 1e6


def quality_s(wildcards, input):
    # Whatever the loci, of which at most 200,000 are looked at. Of 36 samples 2.7 s and 228 MB, of 200 17 s and 605 MB.
    return 10 + 0.1 * N_SAMPLES


def quality_mb(wildcards, input):
    return 250 + N_SAMPLES + 0.007 * N_SAMPLES**2


def relatives_s(wildcards, input):
    # 36 samples in eight families, 10,000 loci: 7 s and 300 MB; 200 in 50 families, looked at within a column: 33 s at
    # 2,000 loci.
    return 10 + setting_of(wildcards, "relatives", "loci") / 10_000 * N_SAMPLES


def relatives_mb(wildcards, input):
    # The levels of its loci are held, and in chunks what is made of them.
    return 400 + 64e-6 * setting_of(wildcards, "relatives", "loci") * N_SAMPLES


def fit_s(wildcards, input):
    return setting_of(wildcards, "fit", "max_steps") * fit_step_s(wildcards) + shared_s(wildcards)


def shared_s(wildcards):
    """Of the steps by which the evidence of some loci says what all loci share."""
    if setting_of(wildcards, "fit", "shared") != "evidence":
        return 0
    # 1,500 loci of 21 individuals, five hypotheses, three steps: 17 s, which is 17 times their evidence.
    loci = setting_of(wildcards, "fit", "shared_loci") * n_hypotheses(wildcards) / 5
    return 20 * loci * evidence_locus_s(n_individuals(wildcards))


def fit_step_s(wildcards):
    return 0.1 + 0.003 * n_individuals(wildcards)


def fit_mb(wildcards, input):
    # 583 MB for 24 individuals, for each of its processes; beside them 32 nodes of sampled loci under each hypothesis.
    nodes = setting_of(wildcards, "fit", "shared_loci") * n_hypotheses(wildcards) * 32
    return setting_of(wildcards, "fit", "processes") * (600 + 5 * n_individuals(wildcards)) + 150e-6 * nodes


def diagnose_s(wildcards, input):
    # 8 loci without NUTS: 195 s. NUTS takes half a second a locus and hypothesis, but minutes to start.
    return 1800 + 60 * setting_of(wildcards, "diagnose", "loci")


def diagnose_mb(wildcards, input):
    return 4000


def evidence_s(wildcards, input):
    nodes = setting_of(wildcards, "evidence", "nodes") / 64
    return 60 + evidence_locus_s(n_individuals(wildcards)) / 5 * shard_size(wildcards) * n_hypotheses(wildcards) * nodes


def evidence_locus_s(individuals):
    """Of five hypotheses at 64 nodes. It grows faster than the cohort, since more loci need more than Laplace's method."""
    # 20 reads; 24 individuals: 650 us, 1.6 % of the loci beyond Laplace; 50: 1.35 ms, 9 %; 100: 5.5 ms, 29 %; 200: 32 ms,
    # 66 %. Beyond, as if all went on.
    measured = {0: 0, 24: 650e-6, 50: 1.35e-3, 100: 5.5e-3, 200: 32e-3}
    if individuals > 200:
        return 48e-3 * individuals / 200
    return float(interp(individuals, list(measured), list(measured.values())))


def controls_s(wildcards, input):
    # As many evidences of its loci as there are controls, and one of drawn loci; a family has two members at least.
    individuals = n_individuals(wildcards)
    controls = 5 + 3 * setting_of(wildcards, "controls", "permutations") + individuals / 2
    evidences = controls * setting_of(wildcards, "controls", "loci") * n_hypotheses(wildcards) / 5
    return 60 + evidence_locus_s(individuals) * evidences * setting_of(wildcards, "evidence", "nodes") / 64


def controls_mb(wildcards, input):
    # The rows of a control are few; its loci are evaluated as those of a shard.
    return evidence_mb(wildcards, input)


def evidence_mb(wildcards, input):
    # 644 MB for 24 individuals.
    return 600 + 3 * n_individuals(wildcards)


def compare_s(wildcards, input):
    # A million loci, five hypotheses: 9 s of two cores.
    return 10 + 18e-6 / 5 * cohort_loci(input) * n_hypotheses(wildcards)


def compare_mb(wildcards, input):
    # A million loci: 267 MB; one job's evidence is held at a time.
    return 300


def posterior_s(wildcards, input):
    # A million loci, five hypotheses: 40 s.
    return 10 + 40e-6 / 5 * shard_size(wildcards) * n_hypotheses(wildcards)


def posterior_mb(wildcards, input):
    # A million loci: 519 MB, in pieces of fixed size.
    return 550


# bench_epimutation.py, tables: 13 plants, both cores.
def states_s(wildcards, input):
    return 60 + 1e-5 * shard_size(wildcards) * n_individuals(wildcards)


def states_mb(wildcards, input):
    return 1000 + 20 * n_individuals(wildcards)


def summary_s(wildcards, input):
    # Hashes all input, at half a gigabyte a second, and counts the table.
    return 10 + 0.002 * input.size_mb + 1e-6 * cohort_loci(input)


def summary_mb(wildcards, input):
    # 140 MB.
    return 300
