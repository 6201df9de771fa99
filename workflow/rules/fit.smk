"""The model's fit over minibatches of loci."""


rule fit:
    input:
        loci="<results>/loci/loci.json",
        samples=STAMP["samples"],
        pedigree=PEDIGREE_FILES,
    output:
        "<results>/fit/fit.json",
    log:
        "<logs>/fit.log",
    benchmark:
        "<benchmarks>/fit.tsv"
    conda:
        "../../envs/epivi.yaml"
    # Half of what there is, and the kernel compiles on the rest: a small fit gains nothing from a second thread.
    threads: max(1, (workflow.cores or 8) // 2)
    resources:
        mem_mb=growing(8000),
        runtime=growing(240),
    params:
        loci=subpath(input.loci, parent=True),
        folder=subpath(output[0], parent=True),
        pedigree=lambda wildcards: PEDIGREE_ARGUMENT,
        config=step_config("model", "fit", "seed", without=[("model", "null")]),
        code=code_version("fit"),
    shell:
        "epivi fit --loci {params.loci:q} --samples {input.samples:q} --pedigree {params.pedigree:q}"
        " --output {params.folder:q} --config {params.config:q} --threads {threads} 2>&1 | tee {log:q}"
