"""Every inference method on the same loci: asked for by name (`snakemake diagnose`), as it takes minutes."""


rule diagnose:
    input:
        loci="<results>/loci/loci.json",
        fit="<analysis>/fit/fit.json",
        kernel="<results>/kernel/transmission.compiled",
        samples=ancient(STAMP["samples"]),
        pedigree=ancient(of_analysis("pedigree_files")),
        relatedness=ancient(of_analysis("relatedness")),
    output:
        "<analysis>/diagnose/summary.parquet",
        "<analysis>/diagnose/evidences.parquet",
        "<analysis>/diagnose/bounds.parquet",
        "<analysis>/diagnose/posteriors.parquet",
    log:
        "<analysis>/logs/diagnose.log",
    benchmark:
        "<analysis>/benchmarks/diagnose.tsv"
    # A rule with wildcards could not be asked for by name.
    pathvars:
        analysis=f"{OUT}{ASKED}",
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
        pedigree=of_analysis("pedigree_argument"),
        cohort=of_analysis("cohort_hash"),
        config=step_config("model", "evidence", "diagnose", "seed"),
        code=code_version("diagnose", "transmission"),
    shell:
        "epivi diagnose --loci {params.loci:q} --fit {params.fit:q} --samples {input.samples:q}"
        " --pedigree {params.pedigree:q} --output {params.folder:q} --config {params.config:q} --threads {threads}"
        " 2>&1 | tee {log:q}"
