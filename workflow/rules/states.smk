"""A shard, the fit and the comparison -> states of all individuals and changes on all branches.

For families with discrete states; the others have no such step.
"""


rule states:
    input:
        evidence="<results>/evidence/part-{shard}.parquet",
        loci="<results>/loci/loci.json",
        fit="<results>/fit/fit.json",
        kernel="<results>/kernel.compiled",
        weights="<results>/compare/weights.parquet",
        samples=ancient(STAMP["samples"]),
        pedigree=ancient(PEDIGREE_FILES),
        classes=CLASS_FILES,
    output:
        states="<results>/states/part-{shard}.parquet",
        branches="<results>/branches/part-{shard}.parquet",
    log:
        "<logs>/states/{shard}.log",
    benchmark:
        "<benchmarks>/states/{shard}.tsv"
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
        pedigree=lambda wildcards: PEDIGREE_ARGUMENT,
        cohort=COHORT_HASH,
        config=step_config("model", "loci", "compare", "seed", "fit", without=NO_PART_OF_THE_FIT),
        code=code_version("states", SETTINGS.family),
    shell:
        "epivi states --evidence {input.evidence:q} --loci {params.loci:q} --fit {params.fit:q}"
        " --compare {params.compare:q} --samples {input.samples:q} --pedigree {params.pedigree:q}"
        " --states {output.states:q} --branches {output.branches:q} --config {params.config:q} --threads {threads}"
        " 2>&1 | tee {log:q}"
