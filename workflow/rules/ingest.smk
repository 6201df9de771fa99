"""One sample's file -> its counts, and what was read and dropped."""

from epivi.ingest.alignments import container_of


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


rule ingest:
    input:
        file=lambda wildcards: SHEET.paths[SAMPLE_ROWS[wildcards.sample]],
        reference=SETTINGS.resolved["loci"]["reference"] or [],
        manifest=SETTINGS.resolved["loci"]["array"]["manifest"] or [],
    output:
        counts="<results>/counts/{sample}.parquet",
        qc="<results>/qc/{sample}.json",
    log:
        "<logs>/ingest/{sample}.log",
    benchmark:
        "<benchmarks>/ingest/{sample}.tsv"
    conda:
        "../../envs/epivi.yaml"
    threads: 2
    resources:
        mem_mb=memory(ingest_mb),
        runtime=minutes(ingest_s),
    params:
        sample=lambda wildcards: SHEET.samples[SAMPLE_ROWS[wildcards.sample]],
        format=lambda wildcards: SHEET.formats[SAMPLE_ROWS[wildcards.sample]],
        haplotype=lambda wildcards: SHEET.haplotypes[SAMPLE_ROWS[wildcards.sample]],
        config=reading_config,
        code=code_version("ingest"),
    shell:
        "epivi ingest {input.file:q} --sample {params.sample:q} --format {params.format:q}"
        " --haplotype {params.haplotype:q}"
        " --output {output.counts:q} --qc {output.qc:q} --config {params.config:q}"
        " --threads {threads} 2>&1 | tee {log:q}"
