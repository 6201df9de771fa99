"""All evidence -> weights of the hypotheses and q-values; then, shard by shard, the table that users query."""


localrules:
    compare,


rule compare:
    input:
        shards="<results>/shards.json",
        evidence=parts_of("evidence"),
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
        mem_mb=growing(4000),
        runtime=growing(60),
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
        evidence="<results>/evidence/contig={contig}/part-{part}.parquet",
        loci="<results>/loci/loci.json",
        weights="<results>/compare/weights.parquet",
        qvalue="<results>/compare/qvalue.parquet",
    output:
        "<results>/posterior/contig={contig}/part-{part}.parquet",
    log:
        "<logs>/posterior/contig={contig}/part-{part}.log",
    benchmark:
        "<benchmarks>/posterior/contig={contig}/part-{part}.tsv"
    conda:
        "../../envs/epivi.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        loci=subpath(input.loci, parent=True),
        compare=subpath(input.weights, parent=True),
        config=step_config("model", "compare"),
        code=code_version("posterior"),
    shell:
        "epivi posterior --evidence {input.evidence:q} --loci {params.loci:q} --compare {params.compare:q}"
        " --output {output:q} --config {params.config:q} 2>&1 | tee {log:q}"
