"""A shard of loci -> log evidence and posterior moments of every hypothesis."""


# Beside the fit, so that no evidence job compiles.
rule kernel:
    input:
        # Other loci need no other machine code.
        ancient("<results>/loci/loci.json"),
    output:
        touch("<results>/kernel/{family}.compiled"),
    log:
        "<logs>/kernel/{family}.log",
    conda:
        "../../envs/epivi.yaml"
    resources:
        # Line compile: 24 s of processor, 370 MB.
        mem_mb=memory(lambda wildcards, input: 400),
        runtime=minutes(lambda wildcards, input: 60),
    params:
        code=lambda wildcards: code_version("compile", wildcards.family),
    shell:
        "epivi compile --family {wildcards.family} 2>&1 | tee {log:q}"


rule evidence:
    input:
        loci="<results>/loci/loci.json",
        fit="<analysis>/fit/fit.json",
        kernel=kernel,
        shards=ancient("<results>/shards.json"),
        samples=ancient(STAMP["samples"]),
        pedigree=ancient(of_analysis("pedigree_files")),
        relatedness=ancient(of_analysis("relatedness")),
        classes=of_analysis("classes"),
    output:
        "<analysis>/evidence/part-{shard}.parquet",
    log:
        "<analysis>/logs/evidence/{shard}.log",
    benchmark:
        "<analysis>/benchmarks/evidence/{shard}.tsv"
    conda:
        "../../envs/epivi.yaml"
    threads: 8
    resources:
        mem_mb=memory(evidence_mb),
        runtime=minutes(evidence_s),
        gpu=gpus("evidence"),
    params:
        loci=subpath(input.loci, parent=True),
        fit=subpath(input.fit, parent=True),
        pedigree=of_analysis("pedigree_argument"),
        cohort=of_analysis("cohort_hash"),
        shard=shard_bounds,
        config=step_config("model", "evidence", "seed", without=[("model", "null_hypotheses")]),
        code=step_code("evidence"),
    shell:
        "epivi evidence --loci {params.loci:q} --fit {params.fit:q} --samples {input.samples:q}"
        " --pedigree {params.pedigree:q} {params.shard} --output {output:q} --config {params.config:q}"
        " --threads {threads} 2>&1 | tee {log:q}"
