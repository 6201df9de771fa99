"""Versions of the package's code, read once by a process from which others are forked."""

from __future__ import annotations

from epivi.base.code_version import code_version

COMMANDS = ("design", "ingest", "assemble", "quality", "relatives", "compare", "summary")
COMMANDS_OF_A_FAMILY = ("compile", "fit", "evidence", "posterior", "controls", "diagnose")


def read_versions() -> None:
    """So that forks need not parse the package for what rules and commands ask of it."""
    for command in COMMANDS:
        code_version(command)
    for command in COMMANDS_OF_A_FAMILY:
        code_version(command, "transmission")
