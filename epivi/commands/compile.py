"""`epivi compile`: compile the evidence kernel ahead of its first use."""

from __future__ import annotations

import logging
import time

import click

from epivi.families import FAMILIES, family_step

log = logging.getLogger(__name__)


@click.command("compile")
@click.option("--family", default="transmission", show_default=True, type=click.Choice(FAMILIES))
def command(family: str) -> None:
    """Compile the evidence kernel, so that no evidence job has to.

    The machine code is cached beside the installed package, or in the folder NUMBA_CACHE_DIR where that is set, and is
    reused by every process on processors of the same kind.
    """
    started = time.monotonic()
    family_step(family, "compile").compile_kernel()
    log.info("evidence kernel ready after %.1f s", time.monotonic() - started)
