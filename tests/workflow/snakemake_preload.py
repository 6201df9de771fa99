"""What the server of `snakemake_server` has ready before it forks."""

from snakemake.cli import get_argument_parser

import epivi.config.load
import epivi.ingest.read
import epivi.loci.classes  # noqa: F401
from epivi.base.code_version import code_version

COMMANDS = ("ingest", "assemble", "quality", "compare", "summary")
COMMANDS_OF_A_FAMILY = ("compile", "fit", "evidence", "posterior", "diagnose")

get_argument_parser()  # imports the plugins
for command in COMMANDS:
    code_version(command)
for command in COMMANDS_OF_A_FAMILY:
    code_version(command, "transmission")
