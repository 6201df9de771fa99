"""What the assembled counts say of the samples and of relatives: tables and warnings; nothing is dropped."""

# Of the model, quality looks at the covariates alone.
MODEL_KEYS = [key for key in SETTINGS.resolved["model"] if key != "covariates"]

# Relatives are compared within the levels of columns that the hypotheses and the controls name.
KEYS_OF_RELATIVES = {
    "model": ("family", "covariates", "hypotheses"),
    "controls": ("exchange_within",),
    "qc": ("sex",),
}
relatives_config = step_config(
    "model",
    "controls",
    "qc",
    "relatives",
    "seed",
    without=[
        (section, key)
        for section, kept in KEYS_OF_RELATIVES.items()
        for key in SETTINGS.resolved[section]
        if key not in kept
    ],
)


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


rule relatives:
    input:
        loci="<results>/loci/loci.json",
        samples=ancient(STAMP["samples"]),
        pedigree=ancient(of_analysis("pedigree_files")),
    output:
        "<analysis>/relatives/relatives.parquet",
        "<analysis>/relatives/factors.parquet",
        "<analysis>/relatives/factor_values.parquet",
        "<analysis>/relatives/factor_relations.parquet",
        "<analysis>/relatives/findings.parquet",
        "<analysis>/relatives/relatives.svg",
    log:
        "<analysis>/logs/relatives.log",
    benchmark:
        "<analysis>/benchmarks/relatives.tsv"
    conda:
        "../../envs/epivi.yaml"
    resources:
        mem_mb=memory(relatives_mb),
        runtime=minutes(relatives_s),
    params:
        loci=subpath(input.loci, parent=True),
        folder=subpath(output[0], parent=True),
        pedigree=of_analysis("pedigree_argument"),
        cohort=relatives_hash,
        config=relatives_config,
        code=code_version("relatives"),
    shell:
        "epivi relatives --loci {params.loci:q} --samples {input.samples:q} --pedigree {params.pedigree:q}"
        " --output {params.folder:q} --config {params.config:q} 2>&1 | tee {log:q}"
