"""The samples' counts -> memory-mapped loci, and the shards into which later steps divide them."""


localrules:
    shards,


rule assemble:
    input:
        counts=expand("<results>/counts/{sample}.parquet", sample=SAMPLE_ROWS),
        regions=UNIT.get("bed", []) if isinstance(UNIT, dict) else [],
        sites=SETTINGS.resolved["loci"]["exclude"],
    output:
        "<results>/loci/loci.json",
    log:
        "<logs>/assemble.log",
    benchmark:
        "<benchmarks>/assemble.tsv"
    conda:
        "../../envs/epivi.yaml"
    threads: 8
    resources:
        mem_mb=memory(assemble_mb),
        runtime=minutes(assemble_s),
    params:
        folder=subpath(output[0], parent=True),
        config=shared_config("loci"),
        samples=STAMP["samples"],
        code=code_version("assemble"),
    shell:
        "epivi assemble {input.counts:q} --output {params.folder:q} --config {params.config:q}"
        " --samples {params.samples:q} --threads {threads} 2>&1 | tee {log:q}"


checkpoint shards:
    input:
        "<results>/loci/loci.json",
    output:
        shards="<results>/shards.json",
    log:
        "<logs>/shards.log",
    params:
        shard_loci=SETTINGS.resolved["evidence"]["shard_loci"],
        code=code_version("assemble"),
    run:
        write_shards(Path(input[0]).parent, Path(output.shards), params.shard_loci)
