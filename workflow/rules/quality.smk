"""What the assembled counts say of the samples: tables and warnings; nothing is dropped."""

# Of the model, quality looks at the covariates alone.
MODEL_KEYS = [key for key in SETTINGS.resolved["model"] if key != "covariates"]


rule quality:
    input:
        loci="<results>/loci/loci.json",
        samples=ancient(STAMP["samples"]),
        pedigree=ancient(MAIN_ANALYSIS.pedigree_files),
        genotypes=SETTINGS.resolved["qc"]["genotypes"] or [],
    output:
        "<results>/quality/error_rates.parquet",
        "<results>/quality/sample_quality.parquet",
        "<results>/quality/relatedness.parquet",
        "<results>/quality/findings.parquet",
    log:
        "<logs>/quality.log",
    benchmark:
        "<benchmarks>/quality.tsv"
    conda:
        "../../envs/epivi.yaml"
    resources:
        mem_mb=memory(quality_mb),
        runtime=minutes(quality_s),
    params:
        loci=subpath(input.loci, parent=True),
        folder=subpath(output[0], parent=True),
        pedigree=lambda wildcards: MAIN_ANALYSIS.pedigree_argument,
        cohort=SHEET_HASH,
        config=shared_config("qc", "model", without=[("model", key) for key in MODEL_KEYS]),
        code=code_version("quality"),
    shell:
        "epivi quality --loci {params.loci:q} --samples {input.samples:q} --pedigree {params.pedigree:q}"
        " --output {params.folder:q} --config {params.config:q} 2>&1 | tee {log:q}"
