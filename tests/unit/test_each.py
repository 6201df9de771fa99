"""`epivi each`: one command for every shard of a job."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from epivi import cli
from epivi.errors import UserError

SHARDS = [
    {"contig": "chr1", "start": 3, "stop": 9, "part": 1},
    {"contig": "HLA*01:02/3", "start": 0, "stop": 4, "part": 0},
]
JOB = "contig=HLA%2A01%3A02%2F3/part-0000"


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What a command in place of epivi's own was called with; it fails where it is told to."""
    calls: list[tuple[str, ...]] = []

    @click.command(context_settings={"ignore_unknown_options": True})
    @click.argument("line", nargs=-1, type=click.UNPROCESSED)
    def recorder(line: tuple[str, ...]) -> None:
        calls.append(line)
        if "--fail-at" in line and line[line.index("--fail-at") + 1] in line[0]:
            raise UserError("no such shard")

    original = cli.LazyGroup.get_command
    monkeypatch.setattr(
        cli.LazyGroup,
        "get_command",
        lambda self, context, name: recorder if name == "recorder" else original(self, context, name),
    )
    return calls


def run(folder: Path, *line: str, job: str = JOB) -> int:
    path = folder / "shards.json"
    path.write_text(json.dumps({JOB: SHARDS}))
    with pytest.raises(SystemExit) as leaving:
        cli.main(["each", "--shards", str(path), "--job", job, *line])
    return int(leaving.value.code or 0)


def test_every_shard_of_the_job_in_order(tmp_path: Path, called: list[tuple[str, ...]]) -> None:
    config = json.dumps({"a": {"contig": 1}})
    line = ["recorder", "{contig}", "--from={start}", "{stop}", "--output", "out/{part}", "--config", config]
    assert run(tmp_path, *line) == 0
    assert called == [
        ("chr1", "--from=3", "9", "--output", "out/contig=chr1/part-0001.parquet", "--config", config),
        ("HLA*01:02/3", "--from=0", "4", "--output", f"out/{JOB}.parquet", "--config", config),
    ]


def test_stops_at_the_shard_that_fails(
    tmp_path: Path, called: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "recorder", "{contig}", "--fail-at", "chr1") == 2
    assert len(called) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "epivi: error: no such shard"


@pytest.mark.parametrize(
    ("line", "job", "words"),
    [(["recorder"], "contig=chr9/part-0000", "chr9"), (["evidense"], JOB, "'evidense' is no command")],
)
def test_unknown_job_or_command_is_one_line(
    tmp_path: Path,
    called: list[tuple[str, ...]],
    capsys: pytest.CaptureFixture[str],
    line: list[str],
    job: str,
    words: str,
) -> None:
    assert run(tmp_path, *line, job=job) == 2
    assert called == []
    (message,) = capsys.readouterr().err.splitlines()
    assert words in message
