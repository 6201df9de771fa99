"""`epivi simulate`: write a cohort drawn from the model, ready to be analysed, and its truth."""

from __future__ import annotations

import shlex
from typing import Any

import click
from click.core import ParameterSource

from epivi.config.declarations import DECLARATIONS

# The keys of epivi.simulate.templates.TEMPLATES, without importing them.
TEMPLATE_NAMES = ("trio", "quartet", "three_generations", "half_sibs", "selfing_lines", "clones")


@click.command(name="simulate", context_settings={"show_default": True})
@click.option("--output", required=True, type=click.Path(), help="Folder to make.")
@click.option("--seed", required=True, type=click.IntRange(0), help="The same seed and options give the same files.")
@click.option("--template", type=click.Choice(TEMPLATE_NAMES), help="Shape of the families.  [default: trio]")
@click.option("--families", "n_families", type=click.IntRange(1), help="Number of families.  [default: 10]")
@click.option("--pedigree", type=click.Path(), help="Pedigree file, instead of a template.")
@click.option("--family", type=click.Choice(list(DECLARATIONS)), help="Model family.  [default: as configured]")
@click.option("--config", "config_source", help="Configuration whose hypotheses, covariates and priors are drawn from.")
@click.option("--loci", "n_loci", default=20_000, type=click.IntRange(1), help="Loci over all contigs.")
@click.option("--contigs", default="1", help="How many, or their names: chr1,chr2.")
@click.option("--mean-gap", default=100.0, type=float, help="Mean distance of neighbouring loci, bp.")
@click.option("--clustered", type=float, help="Keep the hypothesis over runs of this mean length, bp.")
@click.option(
    "--weights", help="Of the hypotheses: reset=0.6,mendelian=0.4; half for those of no transmission if absent."
)
@click.option("--baseline", help="Mixture of logit baselines, weight:mean:sd,weight:mean:sd,...")
@click.option("--spread-location", default=0.0, type=float, help="Mean of log sigma.")
@click.option("--spread-scale", default=0.3, type=float, help="SD of log sigma.")
@click.option("--coverage", default=20.0, type=float, help="Mean reads of a sample at a locus.")
@click.option("--coverage-size", default=10.0, type=float, help="Negative binomial size; inf for Poisson.")
@click.option("--missing-loci", default=0.0, type=float, help="Fraction of loci without reads, in each sample.")
@click.option(
    "--unsampled", default="0", help="Individuals without sample: fraction, number (at random), or names a,b."
)
@click.option("--replicates", default=1, type=click.IntRange(1), help="Samples of each sampled individual.")
@click.option("--false-methylated", default=0.0, type=float, help="P(read methylated | base is not).")
@click.option("--false-unmethylated", default=0.0, type=float, help="P(read unmethylated | base is methylated).")
@click.option("--gain", default=1e-3, type=float, help="Of the family epimutation: gains per copy and generation.")
@click.option("--loss", default=2e-3, type=float, help="Of the same: losses per copy and generation.")
@click.option("--founder", default="0.6,0.02,0.38", help="Of the same: proportions of UU, UM and MM in founders.")
@click.option("--dispersion", default=0.02, type=float, help="Of the same: correlation of the reads of a site.")
@click.option(
    "--covariates", default="", help="Sheet columns at random: batch:3 (categories) or age (numbers), by comma."
)
@click.option("--covariate-scale", default=0.3, type=float, help="SD of a covariate's effects, logit.")
@click.option(
    "--environment",
    default="",
    help="Sheet columns of shared environment: household:family, litter:mother, cage:8 (levels at random), by comma. "
    "Without --config each also adds a hypothesis of its name.",
)
@click.option("--formats", default="bismark_cov", help="Of the samples' files: bismark_cov:0.8,bedmethyl:0.2.")
@click.option("--percent-decimals", default=2, type=click.IntRange(0, 12), help="Decimals of the percent column.")
@click.option("--gzip-level", default=6, type=click.IntRange(1, 9), help="Compression of the counts.")
@click.option("--cohort", help="Name of the cohort.  [default: name of the folder]")
@click.option("--threads", default=1, type=click.IntRange(1), help="Threads that format and compress.")
@click.option("--overwrite", is_flag=True, help="Replace a folder made by this command.")
@click.pass_context
def command(context: click.Context, /, **options: Any) -> None:
    """Draw a cohort from the model, with its truth.

    Writes counts/, samples.tsv, pedigree.tsv, config.yaml, truth.parquet and simulate.txt into a new folder.
    """
    from epivi.commands.simulated_cohort import write_cohort
    from epivi.simulate.options import Options

    write_cohort(Options(**options), _command_line(context))


def _command_line(context: click.Context) -> str:
    """The options given, as a line that makes the same cohort again; --overwrite and --threads change no file."""
    words = ["epivi", "simulate"]
    for parameter in context.command.params:
        name = parameter.name or ""
        is_given = context.get_parameter_source(name) == ParameterSource.COMMANDLINE
        if is_given and name not in ("overwrite", "threads"):
            words += [parameter.opts[0], str(context.params[name])]
    return shlex.join(words)
