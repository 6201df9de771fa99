"""A job's shards, the fit and the comparison -> states of all individuals and changes on all branches.

For families with discrete states; the others have no such job.
"""


rule states:
    input:
        evidence="<results>/shards/evidence/{job}.done",
        loci="<results>/loci/loci.json",
        fit="<results>/fit/fit.json",
        kernel="<results>/kernel.compiled",
        shards=ancient("<results>/shards.json"),
        weights="<results>/compare/weights.parquet",
        samples=STAMP["samples"],
        pedigree=PEDIGREE_FILES,
        classes=CLASS_FILES,
    output:
        touch("<results>/shards/states/{job}.done"),
    log:
        "<logs>/states/{job}.log",
    benchmark:
        "<benchmarks>/states/{job}.tsv"
    conda:
        "../../envs/epivi.yaml"
    threads: 8
    resources:
        mem_mb=memory(states_mb),
        runtime=minutes(states_s),
    params:
        loci=subpath(input.loci, parent=True),
        fit=subpath(input.fit, parent=True),
        compare=subpath(input.weights, parent=True),
        folder=subpath(input.shards, parent=True),
        shards=job_hash,
        pedigree=lambda wildcards: PEDIGREE_ARGUMENT,
        config=step_config("model", "loci", "compare", "seed", "fit", without=[("fit", "processes")]),
        code=code_version("states"),
    shell:
        "epivi each --shards {input.shards:q} --job {wildcards.job} states --evidence {params.folder:q}/evidence/{{part}}"
        " --loci {params.loci:q} --fit {params.fit:q} --compare {params.compare:q} --samples {input.samples:q}"
        " --pedigree {params.pedigree:q} --states {params.folder:q}/states/{{part}}"
        " --branches {params.folder:q}/branches/{{part}} --config {params.config:q} --threads {threads}"
        " 2>&1 | tee {log:q}"
