# A cohort file given by --configfile stands alone: read as well, the demo's values would be merged under it.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/design.smk"
include: "workflow/rules/ingest.smk"
include: "workflow/rules/loci.smk"
include: "workflow/rules/quality.smk"
include: "workflow/rules/fit.smk"
include: "workflow/rules/evidence.smk"
include: "workflow/rules/posterior.smk"
include: "workflow/rules/states.smk"
include: "workflow/rules/summary.smk"
include: "workflow/rules/diagnose.smk"


rule all:
    default_target: True
    input:
        expand("<results>{analysis}/manifest.json", analysis=TO_RUN),
