"""A shard of loci -> log evidence and posterior moments of every hypothesis."""


# Beside the fit, so that no evidence job compiles.
rule kernel:
    input:
        "<results>/loci/loci.json",
    output:
        touch("<results>/kernel.compiled"),
    log:
        "<logs>/kernel.log",
    conda:
        "../../envs/epivi.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        code=code_version("compile"),
    shell:
        "epivi compile 2>&1 | tee {log:q}"


rule evidence:
    input:
        loci="<results>/loci/loci.json",
        fit="<results>/fit/fit.json",
        kernel="<results>/kernel.compiled",
        samples=STAMP["samples"],
        pedigree=PEDIGREE_FILES,
    output:
        "<results>/evidence/contig={contig}/part-{part}.parquet",
    log:
        "<logs>/evidence/contig={contig}/part-{part}.log",
    benchmark:
        "<benchmarks>/evidence/contig={contig}/part-{part}.tsv"
    conda:
        "../../envs/epivi.yaml"
    threads: 8
    resources:
        mem_mb=growing(8000),
        runtime=growing(120),
    params:
        loci=subpath(input.loci, parent=True),
        fit=subpath(input.fit, parent=True),
        pedigree=lambda wildcards: PEDIGREE_ARGUMENT,
        shard=shard_of,
        config=step_config("model", "evidence", "seed", without=[("model", "null")]),
        code=code_version("evidence"),
    shell:
        "epivi evidence --loci {params.loci:q} --fit {params.fit:q} --samples {input.samples:q}"
        " --pedigree {params.pedigree:q} --contig {params.shard[contig]:q} --start {params.shard[start]}"
        " --stop {params.shard[stop]} --output {output:q} --config {params.config:q} --threads {threads}"
        " 2>&1 | tee {log:q}"
