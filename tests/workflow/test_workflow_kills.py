"""Jobs that are killed: the run fails, nothing mixed or partial is made of what they left, the next run ends well."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from test_workflow_epimutation import made
from workflow_folder import PLAIN_ENVIRONMENT, REPOSITORY, Folder

KILLER = Path(__file__).parent / "killer"
# Rule -> the command that it calls; `shards` calls none, `states` is of another family.
COMMANDS = {
    "design": "design",
    "ingest": "ingest",
    "assemble": "assemble",
    "quality": "quality",
    "relatives": "relatives",
    "kernel": "compile",
    "fit": "fit",
    "evidence": "evidence",
    "controls": "controls",
    "compare": "compare",
    "posterior": "posterior",
    "summary": "summary",
}
# A change after which evidence and all after it are made again.
OTHER_NODES = {"evidence": {"shard_loci": 100, "nodes": 32}}
MOMENTS = 2  # of each rule; 24 in all


def killed_run(
    folder: Folder, command: str, *arguments: str, after_s: float = 0.0, has_own_jobs: bool = False
) -> tuple[int, str]:
    """Status and output of a run in which the first process of a command is killed.

    has_own_jobs: as a user starts it, all of it; otherwise the processes are forked from one that is ready.
    """
    mark = folder.path / "killed"
    mark.unlink(missing_ok=True)
    environment = PLAIN_ENVIRONMENT | {
        "KILL_COMMAND": command,
        "KILL_MARK": str(mark),
        "KILL_AFTER_S": str(after_s),
    }
    run = folder.snakemake(*arguments, pythonpath=KILLER if has_own_jobs else None, environment=environment)
    assert mark.exists(), run.stdout + run.stderr
    return run.returncode, run.stdout + run.stderr


def finish(folder: Folder) -> None:
    run = folder.snakemake("--rerun-incomplete")
    assert run.returncode == 0, run.stdout + run.stderr
    again = folder.snakemake("--dry-run")
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.parametrize(
    "rule", [rule if rule == "ingest" else pytest.param(rule, marks=pytest.mark.slow) for rule in COMMANDS]
)
def test_a_killed_process_is_a_failed_rule(finished: Folder, tmp_path: Path, rule: str) -> None:
    folder = finished.copy(tmp_path / "killed")
    status, output = killed_run(folder, COMMANDS[rule], "--forcerun", rule, "--until", rule, has_own_jobs=True)
    assert status != 0
    assert f"Error in rule {rule}:" in output


@pytest.mark.slow
def test_killed_diagnostics_are_a_failed_rule(finished: Folder, tmp_path: Path) -> None:
    status, output = killed_run(finished.copy(tmp_path / "killed"), "diagnose", "--", "diagnose")
    assert status != 0
    assert "Error in rule diagnose:" in output


@pytest.mark.slow
def test_killed_states_are_a_failed_rule_and_the_next_run_ends_well(tmp_path: Path) -> None:
    folder = made(tmp_path / "killed")
    status, output = killed_run(folder, "states")
    assert status != 0
    assert "Error in rule states:" in output
    finish(folder)


def test_every_rule_takes_the_status_of_its_command() -> None:
    """What the test above sees of one rule, of the text of all: bash is strict, and there is one way to call a step."""
    rules = REPOSITORY / "workflow" / "rules"
    assert 'shell.prefix(f"set -euo pipefail; ' in (rules / "common.smk").read_text()
    found = {}
    for path in rules.glob("*.smk"):
        for name, body in re.findall(r"^(?:rule|checkpoint) (\w+):\n(.*?)(?=^\S|\Z)", path.read_text(), re.M | re.S):
            found[name] = body.partition("    shell:\n")[2]
    assert {name for name, shell in found.items() if not shell} == {"shards"}
    assert set(COMMANDS) | {"states", "diagnose"} == found.keys() - {"shards"}
    assert all(re.search(r"2>&1 \| tee \{log:q\}\"\s*\Z", shell) for shell in found.values() if shell)
    assert not any("touch(" in path.read_text() for path in rules.glob("*.smk") if path.name != "evidence.smk")


def test_a_mistake_in_a_step_is_a_failed_rule(finished: Folder, tmp_path: Path) -> None:
    """An ordinary error ends as one: not as a step that completed without its files."""
    folder = finished.copy(tmp_path / "mistake")
    table = next((folder.results / "counts").glob("*.parquet"))
    table.write_bytes(table.read_bytes()[:-100])
    run = folder.snakemake("--forcerun", "assemble", "--until", "assemble")
    output = run.stdout + run.stderr
    assert run.returncode != 0
    assert "Error in rule assemble:" in output
    assert f"epivi: error: results/tiny/counts/{table.name}: not a readable Parquet file" in output
    assert "completed successfully" not in output


@pytest.fixture(scope="module")
def changed(finished: Folder, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A finished run that ran again with another setting, undisturbed."""
    folder = finished.copy(tmp_path_factory.mktemp("changed") / "undisturbed")
    folder.edit_config(**OTHER_NODES)
    finish(folder)
    return folder


def test_evidence_killed_in_the_run_after_a_changed_setting(finished: Folder, changed: Folder, tmp_path: Path) -> None:
    """Old evidence of one shard beside new of others is neither compared nor summed up."""
    folder = finished.copy(tmp_path / "killed")
    folder.edit_config(**OTHER_NODES)
    status, output = killed_run(folder, "evidence", "--keep-going")
    assert status != 0
    assert "Error in rule evidence:" in output
    assert folder.weights() == finished.weights() != changed.weights()
    finish(folder)
    assert folder.tables() == changed.tables()


@pytest.mark.slow
@pytest.mark.parametrize("rule", COMMANDS)
def test_killed_at_any_moment(cohort: Folder, finished: Folder, changed: Folder, tmp_path: Path, rule: str) -> None:
    """In a first run, and in the run after a changed setting: the run fails or was done, and ends as undisturbed."""
    moments = random.Random(f"kills {rule}")
    for number in range(MOMENTS):
        is_first = number % 2 == 0
        source, expected = (cohort, finished) if is_first else (finished, changed)
        folder = source.copy(tmp_path / str(number))
        if not is_first:
            folder.edit_config(**OTHER_NODES)
        forced = ("--forcerun", rule)
        status, output = killed_run(folder, COMMANDS[rule], *forced, after_s=moments.uniform(0.0, 3.0))
        if status == 0:  # the process was done before its moment came
            assert folder.tables() == expected.tables()
        finish(folder)
        assert folder.tables() == expected.tables(), output
