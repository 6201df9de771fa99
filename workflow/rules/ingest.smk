"""One sample's file -> its counts, and what was read and dropped."""


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
