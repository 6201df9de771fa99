"""All evidence -> weights of the hypotheses and q-values; then, shard by shard, the table that users query."""


rule compare:
    input:
        shards="<results>/shards.json",
        evidence=parts("<analysis>/evidence"),
    output:
        weights="<analysis>/compare/weights.parquet",
        summary="<analysis>/compare/weights.json",
        qvalue="<analysis>/compare/qvalue.parquet",
    log:
        "<analysis>/logs/compare.log",
    benchmark:
        "<analysis>/benchmarks/compare.tsv"
    conda:
        "../../envs/epivi.yaml"
    resources:
        mem_mb=memory(compare_mb),
        runtime=minutes(compare_s),
    params:
        analysis=subpath(output.weights, ancestor=2),
        folder=subpath(output.weights, parent=True),
        config=step_config("model", "compare", "seed"),
        code=code_version("compare"),
    shell:
        "epivi compare --evidence {params.analysis:q}/evidence --output {params.folder:q}"
        " --config {params.config:q} 2>&1 | tee {log:q}"


rule posterior:
    input:
        evidence="<analysis>/evidence/part-{shard}.parquet",
        loci="<results>/loci/loci.json",
        weights="<analysis>/compare/weights.parquet",
        qvalue="<analysis>/compare/qvalue.parquet",
    output:
        "<analysis>/posterior/part-{shard}.parquet",
    log:
        "<analysis>/logs/posterior/{shard}.log",
    benchmark:
        "<analysis>/benchmarks/posterior/{shard}.tsv"
    conda:
        "../../envs/epivi.yaml"
    resources:
        mem_mb=memory(posterior_mb),
        runtime=minutes(posterior_s),
    params:
        loci=subpath(input.loci, parent=True),
        compare=subpath(input.weights, parent=True),
        config=step_config("model", "compare"),
        code=step_code("posterior"),
    shell:
        "epivi posterior --evidence {input.evidence:q} --loci {params.loci:q} --compare {params.compare:q}"
        " --output {output:q} --config {params.config:q} 2>&1 | tee {log:q}"
