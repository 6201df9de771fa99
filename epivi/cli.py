"""The `epivi` command: finds the sub-command's module, sets up logging, turns user errors into one line."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

import click

from epivi import __version__
from epivi.base.errors import UserError, line_of, print_error

# name -> one-line help; the command itself is `command` in epivi/commands/<name>.py and is imported only when it runs,
# so that `epivi --help` needs no torch.
COMMANDS = {
    "design": "Say what a pedigree can show before it is sequenced.",
    "ingest": "Read one sample's methylation counts into Parquet.",
    "assemble": "Join the samples' counts into memory-mapped loci.",
    "quality": "Check the samples: error rates from controls, swaps, sexes, outliers.",
    "relatives": "How alike relatives of each kind are, and factors that all loci share.",
    "fit": "Fit the model over minibatches of loci.",
    "evidence": "Log evidence and posterior of each hypothesis at a shard of loci.",
    "controls": "A sample of loci with the pedigree broken: what a call rests on.",
    "compare": "Weights of the hypotheses over all loci, and the q-value table.",
    "states": "States of all individuals and changes on all branches (family epimutation).",
    "posterior": "The per-locus table that users query.",
    "summary": "Print a run's result in a few lines and write its manifest.",
    "divergence": "Pairwise divergences and the epimutation rates that fit them.",
    "query": "Select loci by region and SQL condition.",
    "compile": "Compile the evidence kernel ahead of its first use.",
    "simulate": "Draw a cohort from the model, with its truth.",
    "calibrate": "Draw loci from a fit and compare what is claimed of them with their truth.",
    "diagnose": "Put every inference method to the same loci of a fit.",
}


class LazyGroup(click.Group):
    """A click group whose sub-commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"epivi.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="epivi")
@click.option("--quiet", is_flag=True, help="Log warnings only.")
def group(quiet: bool) -> None:
    """Is the methylation state of a locus passed from parent to offspring, how faithfully, and how sure are we?"""
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; user errors print one line and exit with status 2."""
    try:
        status = group.main(
            args=None if arguments is None else list(arguments), standalone_mode=False, prog_name="epivi"
        )
    except UserError as error:
        print_error(error)
        sys.exit(2)
    except OSError as error:
        line = line_of(error)
        if line is None:
            raise
        click.echo(f"epivi: error: {line}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("epivi: interrupted", err=True)
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)
