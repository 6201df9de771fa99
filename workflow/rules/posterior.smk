"""All evidence -> weights of the hypotheses and q-values; then, shard by shard, the table that users query."""


rule compare:
    input:
        shards="<results>/shards.json",
        evidence=parts("evidence"),
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
        results=subpath(input.shards, parent=True),
        folder=subpath(output.weights, parent=True),
        config=step_config("model", "compare", "seed"),
        code=code_version("compare"),
    shell:
        "epivi compare --evidence {params.results:q}/evidence --output {params.folder:q}"
        " --config {params.config:q} 2>&1 | tee {log:q}"


rule posterior:
    input:
        evidence="<results>/evidence/part-{shard}.parquet",
        loci="<results>/loci/loci.json",
        weights="<results>/compare/weights.parquet",
        qvalue="<results>/compare/qvalue.parquet",
    output:
        "<results>/posterior/part-{shard}.parquet",
    log:
        "<logs>/posterior/{shard}.log",
    benchmark:
        "<benchmarks>/posterior/{shard}.tsv"
    conda:
        "../../envs/epivi.yaml"
    resources:
        mem_mb=memory(posterior_mb),
        runtime=minutes(posterior_s),
    params:
        loci=subpath(input.loci, parent=True),
        compare=subpath(input.weights, parent=True),
        config=step_config("model", "compare"),
        code=code_version("posterior", SETTINGS.family),
    shell:
        "epivi posterior --evidence {input.evidence:q} --loci {params.loci:q} --compare {params.compare:q}"
        " --output {output:q} --config {params.config:q} 2>&1 | tee {log:q}"
