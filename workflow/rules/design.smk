"""What the pedigree and the samples can show, said before anything else runs."""


rule design:
    input:
        samples=ancient(STAMP["samples"]),
        pedigree=ancient(of_analysis("pedigree_files")),
        relatedness=ancient(of_analysis("relatedness")),
    output:
        design="<analysis>/design/design.parquet",
        confusion="<analysis>/design/design_confusion.parquet",
        following="<analysis>/design/design_next.parquet",
        figure="<analysis>/design/design.svg",
    log:
        "<analysis>/logs/design.log",
    benchmark:
        "<analysis>/benchmarks/design.tsv"
    # Before any other job: what it says may change what is to be sequenced.
    priority: 1
    conda:
        "../../envs/epivi.yaml"
    threads: 2
    resources:
        mem_mb=memory(design_mb),
        runtime=minutes(design_s),
    params:
        folder=subpath(output.design, parent=True),
        pedigree=of_analysis("pedigree_argument"),
        cohort=of_analysis("cohort_hash"),
        config=step_config("model", "design", "seed", without=[("model", "null_hypotheses")]),
        code=code_version("design"),
    shell:
        "epivi design --samples {input.samples:q} --pedigree {params.pedigree:q} --output {params.folder:q}"
        " --config {params.config:q} --threads {threads} 2>&1 | tee {log:q}"
