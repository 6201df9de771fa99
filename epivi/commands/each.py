"""`epivi each`: another command for every shard of a job, one after another in one process."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from epivi.store import Shard

log = logging.getLogger(__name__)


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--shards", required=True, type=click.Path(path_type=Path), help="Jobs and their shards, as JSON.")
@click.option("--job", required=True, help="Key of the job in the list.")
@click.argument("line", nargs=-1, required=True, metavar="COMMAND...", type=click.UNPROCESSED)
def command(shards: Path, job: str, line: tuple[str, ...]) -> None:
    """Run an epivi COMMAND with its arguments for every shard of a job.

    In the arguments {contig}, {start} and {stop} stand for those of the shard, {part} for its file below a partitioned
    folder. A genome in thousands of contigs so costs a few processes, not one for each contig. It stops at the first
    shard that fails.
    """
    from epivi.cli import group
    from epivi.errors import UserError

    members = _shards(shards, job)
    name, *arguments = line
    with click.Context(group) as context:
        chosen = group.get_command(context, name)
    if chosen is None:
        raise UserError(f"epivi each: {name!r} is no command of epivi; expected one as in epivi --help")
    for number, shard in enumerate(members, 1):
        if len(members) > 1:
            log.info("shard %d of %d: %s", number, len(members), shard.contig)
        filled = [_fill(argument, shard) for argument in arguments]
        chosen.main(args=filled, prog_name=f"epivi {name}", standalone_mode=False)


def _shards(path: Path, job: str) -> list[Shard]:
    from epivi.errors import UserError
    from epivi.store import Shard

    try:
        jobs = json.loads(path.read_text())
        return [Shard(**shard) for shard in jobs[job]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no list of shards that holds the job {job!r} ({error!r})") from None


def _fill(argument: str, shard: Shard) -> str:
    """An argument with the shard's values; not by str.format, since a configuration as JSON has braces of its own."""
    from epivi.store import partition_path

    values = {"contig": shard.contig, "start": shard.start, "stop": shard.stop}
    values["part"] = str(partition_path("", shard.contig, shard.part))
    for name, value in values.items():
        argument = argument.replace(f"{{{name}}}", str(value))
    return argument
