"""All evidence -> weights of the hypotheses and q-values; then, shard by shard, the table that users query."""


rule controls:
    input:
        loci="<results>/loci/loci.json",
        fit="<analysis>/fit/fit.json",
        kernel=kernel,
        samples=ancient(STAMP["samples"]),
        pedigree=ancient(of_analysis("pedigree_files")),
        relatedness=ancient(of_analysis("relatedness")),
    output:
        evidence="<analysis>/controls/control_evidence.parquet",
        usual="<analysis>/controls/usual_evidence.parquet",
    log:
        "<analysis>/logs/controls.log",
    benchmark:
        "<analysis>/benchmarks/controls.tsv"
    conda:
        "../../envs/epivi.yaml"
    threads: 8
    resources:
        mem_mb=memory(controls_mb),
        runtime=minutes(controls_s),
        gpu=gpus("evidence"),
    params:
        loci=subpath(input.loci, parent=True),
        fit=subpath(input.fit, parent=True),
        pedigree=of_analysis("pedigree_argument"),
        cohort=of_analysis("cohort_hash"),
        exchanged=exchange_columns,
        config=step_config(
            "model", "evidence", "controls", "seed", without=[("model", "null_hypotheses"), ("evidence", "shard_loci")]
        ),
        code=step_code("controls"),
    shell:
        "epivi controls --loci {params.loci:q} --fit {params.fit:q} --samples {input.samples:q}"
        " --pedigree {params.pedigree:q} --output {output.evidence:q} --usual {output.usual:q}"
        " --config {params.config:q} --threads {threads} 2>&1 | tee {log:q}"


rule compare:
    input:
        shards="<results>/shards.json",
        evidence=parts("<analysis>/evidence"),
        controls=control_files,
        design=design_files,
        relatives="<analysis>/relatives/findings.parquet",
    output:
        weights="<analysis>/compare/weights.parquet",
        summary="<analysis>/compare/weights.json",
        draws="<analysis>/compare/weight_draws.parquet",
        qvalue="<analysis>/compare/qvalue.parquet",
        tests="<analysis>/compare/control_tests.parquet",
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
        controls=lambda wildcards, input: f"--controls {shlex.quote(input.controls[0])}" if input.controls else "",
        design=lambda wildcards, input: f"--design {shlex.quote(input.design[0])}" if input.design else "",
        config=step_config("model", "compare", "seed"),
        code=code_version("compare"),
    shell:
        "epivi compare --evidence {params.analysis:q}/evidence --output {params.folder:q}"
        " {params.controls} {params.design} --relatives {input.relatives:q} --config {params.config:q} 2>&1 | tee {log:q}"


rule posterior:
    input:
        evidence="<analysis>/evidence/part-{shard}.parquet",
        loci="<results>/loci/loci.json",
        weights="<analysis>/compare/weights.parquet",
        draws="<analysis>/compare/weight_draws.parquet",
        qvalue="<analysis>/compare/qvalue.parquet",
        usual=usual_files,
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
        usual=lambda wildcards, input: f"--usual {shlex.quote(input.usual[0])}" if input.usual else "",
        config=step_config("model", "compare"),
        code=step_code("posterior"),
    shell:
        "epivi posterior --evidence {input.evidence:q} --loci {params.loci:q} --compare {params.compare:q}"
        " {params.usual} --output {output:q} --config {params.config:q} 2>&1 | tee {log:q}"
