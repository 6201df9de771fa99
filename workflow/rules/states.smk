"""A shard, the fit and the comparison -> states of all individuals and changes on all branches.

For families with discrete states; the others have no such step.
"""


rule states:
    input:
        evidence="<analysis>/evidence/part-{shard}.parquet",
        loci="<results>/loci/loci.json",
        fit="<analysis>/fit/fit.json",
        kernel=kernel,
        weights="<analysis>/compare/weights.parquet",
        samples=ancient(STAMP["samples"]),
        pedigree=ancient(of_analysis("pedigree_files")),
        classes=of_analysis("classes"),
    output:
        states="<analysis>/states/part-{shard}.parquet",
        branches="<analysis>/branches/part-{shard}.parquet",
    log:
        "<analysis>/logs/states/{shard}.log",
    benchmark:
        "<analysis>/benchmarks/states/{shard}.tsv"
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
        pedigree=of_analysis("pedigree_argument"),
        cohort=of_analysis("cohort_hash"),
        config=step_config("model", "loci", "compare", "seed", "fit", without=NO_PART_OF_THE_FIT),
        code=step_code("states"),
    shell:
        "epivi states --evidence {input.evidence:q} --loci {params.loci:q} --fit {params.fit:q}"
        " --compare {params.compare:q} --samples {input.samples:q} --pedigree {params.pedigree:q}"
        " --states {output.states:q} --branches {output.branches:q} --config {params.config:q} --threads {threads}"
        " 2>&1 | tee {log:q}"
