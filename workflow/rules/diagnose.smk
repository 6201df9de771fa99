"""Every inference method on the same loci: asked for by name (`snakemake diagnose`), as it takes minutes."""


rule diagnose:
    input:
        loci="<results>/loci/loci.json",
        fit="<results>/fit/fit.json",
        kernel="<results>/kernel.compiled",
        samples=ancient(STAMP["samples"]),
        pedigree=ancient(PEDIGREE_FILES),
    output:
        "<results>/diagnose/summary.parquet",
        "<results>/diagnose/evidences.parquet",
        "<results>/diagnose/bounds.parquet",
        "<results>/diagnose/posteriors.parquet",
    log:
        "<logs>/diagnose.log",
    benchmark:
        "<benchmarks>/diagnose.tsv"
    conda:
        "../../envs/epivi.yaml"
    threads: 2
    resources:
        mem_mb=memory(diagnose_mb),
        runtime=minutes(diagnose_s),
    params:
        loci=subpath(input.loci, parent=True),
        fit=subpath(input.fit, parent=True),
        folder=subpath(output[0], parent=True),
        pedigree=lambda wildcards: PEDIGREE_ARGUMENT,
        cohort=COHORT_HASH,
        config=step_config("model", "evidence", "diagnose", "seed"),
        code=code_version("diagnose", "transmission"),
    shell:
        "epivi diagnose --loci {params.loci:q} --fit {params.fit:q} --samples {input.samples:q}"
        " --pedigree {params.pedigree:q} --output {params.folder:q} --config {params.config:q} --threads {threads}"
        " 2>&1 | tee {log:q}"
