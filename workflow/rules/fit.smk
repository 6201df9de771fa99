"""The model's fit over minibatches of loci."""

# Half of what this machine has, and the kernel compiles on the rest: a small fit gains nothing from a second thread.
# Should the fit come to its evidences before the kernel is there, it compiles it for itself.
# A cluster has no such number, and the cores of the node that a job finds itself on are not all its own.
LOCAL_CORES = workflow.resource_settings.cores if workflow.is_main_process else None
FIT_THREADS = max(1, LOCAL_CORES // 2) if LOCAL_CORES else 8


rule fit:
    input:
        loci="<results>/loci/loci.json",
        samples=ancient(STAMP["samples"]),
        pedigree=ancient(of_analysis("pedigree_files")),
        relatedness=ancient(of_analysis("relatedness")),
        classes=of_analysis("classes"),
    output:
        "<analysis>/fit/fit.json",
    log:
        "<analysis>/logs/fit.log",
    benchmark:
        "<analysis>/benchmarks/fit.tsv"
    conda:
        "../../envs/epivi.yaml"
    threads: lambda wildcards: max(FIT_THREADS, setting_of(wildcards, "fit", "processes"))
    resources:
        mem_mb=memory(fit_mb),
        runtime=minutes(fit_s),
        gpu=gpus("fit"),
        # Not parameters: how many processes work at a fit and how often they save it is no part of what it is, and
        # other numbers rerun nothing.
        processes=lambda wildcards: setting_of(wildcards, "fit", "processes"),
        checkpoint_minutes=lambda wildcards: str(setting_of(wildcards, "fit", "checkpoint_minutes")),
    params:
        loci=subpath(input.loci, parent=True),
        folder=subpath(output[0], parent=True),
        pedigree=of_analysis("pedigree_argument"),
        cohort=of_analysis("cohort_hash"),
        config=step_config("model", "fit", "seed", without=[("model", "null_hypotheses"), *NO_PART_OF_THE_FIT]),
        code=step_code("fit"),
    shell:
        "fit='epivi fit'; [ {resources.processes} -eq 1 ] ||"
        " fit='env OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node {resources.processes} -m epivi fit'; "
        "$fit --loci {params.loci:q} --samples {input.samples:q} --pedigree {params.pedigree:q}"
        " --output {params.folder:q} --config {params.config:q}"
        " --checkpoint-minutes {resources.checkpoint_minutes} --threads"
        " $(({threads} < {resources.processes} ? 1 : {threads} / {resources.processes})) 2>&1 | tee {log:q}"
