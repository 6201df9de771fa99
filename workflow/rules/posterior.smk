"""All evidence -> weights of the hypotheses and q-values; then, job by job, the table that users query."""


rule compare:
    input:
        shards="<results>/shards.json",
        evidence=done("evidence"),
    output:
        weights="<results>/compare/weights.parquet",
        summary="<results>/compare/weights.json",
        qvalue="<results>/compare/qvalue.parquet",
    log:
        "<logs>/compare.log",
    benchmark:
        "<benchmarks>/compare.tsv"
    conda:
        "../../envs/epivi.yaml"
    resources:
        mem_mb=memory(compare_mb),
        runtime=minutes(compare_s),
    params:
        evidence=subpath(input.shards, parent=True),
        folder=subpath(output.weights, parent=True),
        config=step_config("model", "compare", "seed"),
        code=code_version("compare"),
    shell:
        "epivi compare --evidence {params.evidence:q}/evidence --output {params.folder:q}"
        " --config {params.config:q} 2>&1 | tee {log:q}"


rule posterior:
    input:
        evidence="<results>/shards/evidence/{job}.done",
        loci="<results>/loci/loci.json",
        shards=ancient("<results>/shards.json"),
        weights="<results>/compare/weights.parquet",
        qvalue="<results>/compare/qvalue.parquet",
    output:
        touch("<results>/shards/posterior/{job}.done"),
    log:
        "<logs>/posterior/{job}.log",
    benchmark:
        "<benchmarks>/posterior/{job}.tsv"
    conda:
        "../../envs/epivi.yaml"
    resources:
        mem_mb=memory(posterior_mb),
        runtime=minutes(posterior_s),
    params:
        loci=subpath(input.loci, parent=True),
        compare=subpath(input.weights, parent=True),
        folder=subpath(input.shards, parent=True),
        shards=job_hash,
        config=step_config("model", "compare"),
        code=code_version("posterior"),
    shell:
        "epivi each --shards {input.shards:q} --job {wildcards.job} posterior"
        " --evidence {params.folder:q}/evidence/{{part}} --loci {params.loci:q} --compare {params.compare:q}"
        " --output {params.folder:q}/posterior/{{part}} --config {params.config:q} 2>&1 | tee {log:q}"
