"""The run's record and the few lines that a user reads first."""


rule summary:
    input:
        SHEET.paths,
        STAMP["samples"],
        of_analysis("pedigree_files"),
        of_analysis("relatedness"),
        last_tables,
        expand("<results>/qc/{sample}.json", sample=SAMPLE_ROWS),
        "<results>/quality/findings.parquet",
        "<analysis>/relatives/relatives.parquet",
        "<analysis>/relatives/findings.parquet",
        shards="<results>/shards.json",
        # Known before the loci are, so that the fit can be asked for by --until.
        fit="<analysis>/fit/fit.json",
        weights="<analysis>/compare/weights.parquet",
    output:
        "<analysis>/manifest.json",
    log:
        "<analysis>/logs/summary.log",
    conda:
        "../../envs/epivi.yaml"
    threads: 4
    resources:
        mem_mb=memory(summary_mb),
        runtime=minutes(summary_s),
    params:
        folder=subpath(output[0], parent=True),
        config=step_config(),
        code=code_version("summary"),
    shell:
        "epivi summary --results {params.folder:q} --config {params.config:q} --threads {threads} 2>&1 | tee {log:q}"
