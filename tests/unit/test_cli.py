"""The command line: help, start-up, and how errors end."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from epivi import __version__, cli
from epivi.base.errors import UserError

HEAVY = ("torch", "pyro", "pandas", "scipy", "duckdb", "numba")


def imported(code: str) -> set[str]:
    """Top-level modules that are loaded after `code` has run in a fresh interpreter."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(set(name.split('.')[0] for name in sys.modules))))"
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "epivi", *arguments], capture_output=True, text=True)


def test_help_lists_every_command_and_loads_none() -> None:
    run = run_cli("--help")
    assert run.returncode == 0
    assert all(f"  {name} " in run.stdout for name in cli.COMMANDS)
    code = "from epivi.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert not imported(code) & {*HEAVY, "numpy", "pyarrow"}


def test_help_of_commands_needs_no_heavy_library() -> None:
    modules = ", ".join(f"epivi.commands.{name}" for name in cli.COMMANDS if name != "simulate")
    assert not imported(f"import {modules}") & {"torch", "pyro", "pandas", "numba", "duckdb"}


def test_configuration_sheet_and_pedigree_need_no_torch() -> None:
    assert not imported("import epivi.config.load, epivi.cohort.samples, epivi.cohort.pedigree, epivi.loci.store") & {
        "torch",
        "pyro",
        "pandas",
    }


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help(name: str) -> None:
    run = run_cli(name, "--help")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("Usage: epivi " + name)


def test_every_module_of_commands_is_listed() -> None:
    paths = (Path(cli.__file__).parent / "commands").glob("*.py")
    assert {path.stem for path in paths if "\ndef command(" in path.read_text()} == set(cli.COMMANDS)


def test_version() -> None:
    assert run_cli("--version").stdout == f"epivi, version {__version__}\n"


def test_user_error_is_one_line_and_status_2(tmp_path: Path) -> None:
    missing = tmp_path / "missing.cov"
    options = ["--sample", "a", "--output", str(tmp_path / "a.parquet"), "--qc", str(tmp_path / "a.json")]
    run = run_cli("ingest", str(missing), *options, "--config", "{}")
    assert run.returncode == 2
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("epivi: error: ")
    assert str(missing) in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("nonsense",), ("ingest",), ("query", "--nonsense"), ("--nonsense",)])
def test_wrong_use_is_status_2_without_traceback(arguments: tuple[str, ...]) -> None:
    run = run_cli(*arguments)
    assert run.returncode == 2
    assert "Error: " in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (UserError("a.tsv line 3: bad"), 2, "epivi: error: a.tsv line 3: bad\n"),
        (
            UserError("a line 3: bad\na line 5: worse"),
            2,
            "epivi: error: a line 3: bad\nepivi: error: a line 5: worse\n",
        ),
        (KeyboardInterrupt(), 130, "epivi: interrupted\n"),
        (
            OSError(errno.EROFS, "Read-only file system", "/results/fit"),
            2,
            "epivi: error: /results/fit: read-only file system; expected a place that this user may read and write\n",
        ),
        (
            OSError(errno.EACCES, "Permission denied", "a.cov"),
            2,
            "epivi: error: a.cov: permission denied; expected a place that this user may read and write\n",
        ),
        (
            OSError(errno.EIO, "Input/output error", "a.bam"),
            2,
            "epivi: error: a.bam: input/output error; expected a disk that works: look at it, or choose another\n",
        ),
        (
            OSError(errno.EMFILE, "Too many open files", "a"),
            2,
            "epivi: error: a: too many open files; expected a higher limit of open files, as by ulimit -n\n",
        ),
        (
            OSError(errno.ENOSPC, "Error writing bytes to file"),
            2,
            "epivi: error: output: no space left; expected a disk with more space\n",
        ),
    ],
)
def test_errors_inside_a_command(
    error: BaseException, status: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda self, context, name: failing)
    with pytest.raises(SystemExit) as caught:
        cli.main(["ingest"])
    assert caught.value.code == status
    assert capsys.readouterr().err.strip() == words.strip()


@pytest.mark.parametrize("bug", [ZeroDivisionError(), OSError(errno.EBADF, "Bad file descriptor"), OSError("odd")])
def test_bug_keeps_its_traceback(bug: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def failing() -> None:
        raise bug

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda self, context, name: failing)
    with pytest.raises(type(bug)):
        cli.main(["ingest"])


@pytest.mark.parametrize("name", ["note/counts.parquet", f"{300 * 'n'}.parquet"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, name: str) -> None:
    """Below a file, and of a name that no file can have; nothing is left."""
    (tmp_path / "note").write_text("a file")
    (tmp_path / "a.cov").write_text("chr1\t10\t10\t50\t1\t1\n")
    output = tmp_path / name
    files = ("--output", str(output), "--qc", str(tmp_path / "qc.json"))
    run = run_cli("ingest", str(tmp_path / "a.cov"), "--sample", "a", *files, "--config", "{}")
    assert run.returncode == 2, run.stderr
    assert run.stderr.startswith("epivi: error: ")
    assert run.stderr.count("\n") == 1
    assert "; expected " in run.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"note", "a.cov"}
