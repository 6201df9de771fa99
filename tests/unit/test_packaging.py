"""What stands in several files of the repository says the same in each."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib

import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from places import REPOSITORY

import epivi
from epivi.discovery.misfit import SMALLEST_USUAL
from epivi.discovery.probabilities import LOW_COVERAGE
from epivi.families.transmission import posterior
from epivi.families.transmission.columns import effect_parameters, posterior_columns
from epivi.field.covariate import Covariate
from epivi.tables.columns import EVIDENCE_GOAL, markdown_table

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
README = (REPOSITORY / "README.md").read_text()
CI_RUN = REPOSITORY / ".ci" / "run"
INSTALL = "python3 -m venv .venv && .venv/bin/pip install -r envs/requirements.txt"
CONDA_NAMES = {"duckdb": "python-duckdb", "isal": "python-isal", "matplotlib": "matplotlib-base", "torch": "pytorch"}


def constraints() -> dict[str, Requirement]:
    lines = (REPOSITORY / "envs" / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    return {normalized(pin.name): pin for pin in pins}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned_version(pin: Requirement) -> Version:
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    return Version(specifier.version)


def test_requirements_install_the_project_under_the_constraints() -> None:
    lines = (REPOSITORY / "envs" / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["-c constraints.txt", "-e .[test]"]


def test_every_direct_dependency_is_pinned_within_its_bounds() -> None:
    pins, extras = constraints(), PROJECT["optional-dependencies"]
    for text in PROJECT["dependencies"] + extras["test"] + extras["bench"]:
        requirement = Requirement(text)
        assert normalized(requirement.name) in pins, text
        assert pinned_version(pins[normalized(requirement.name)]) in requirement.specifier


def test_constraints_are_versions_and_nothing_else() -> None:
    for name, pin in constraints().items():
        assert pin.url is None
        assert pinned_version(pin).local is None, name
    assert pinned_version(constraints()["torch"]) == Version("2.13.0")


def test_conda_environment_has_the_dependencies_of_the_project() -> None:
    environment = yaml.safe_load((REPOSITORY / "envs" / "epivi.yaml").read_text())
    expected = {f"python{PROJECT['requires-python']}"}
    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        expected.add(CONDA_NAMES.get(requirement.name, requirement.name) + str(requirement.specifier))
    assert {sorted_bounds(text) for text in environment["dependencies"]} == set(map(sorted_bounds, expected))
    assert environment["channels"] == ["conda-forge", "bioconda"]


def sorted_bounds(text: str) -> tuple[str, frozenset[str]]:
    requirement = Requirement(text)
    return requirement.name, frozenset(map(str, requirement.specifier))


def test_readme_gives_both_commands_and_ci_runs_the_tests_by_its_words() -> None:
    assert f"\n{INSTALL} && .venv/bin/snakemake --cores 2\n" in README
    assert f"\n{INSTALL} && .venv/bin/pytest\n" in README
    assert f"{INSTALL} && .venv/bin/pytest" in CI_RUN.read_text()


def test_ci_is_executable_and_stops_at_a_failure() -> None:
    assert os.access(CI_RUN, os.X_OK)
    text = CI_RUN.read_text()
    assert "set -euo pipefail" in text
    subprocess.run(["bash", "-n", CI_RUN], check=True)
    # Its own function, with a first step that fails in the middle of a chain.
    function = text[text.index("step()") : text.index("# The test command")]
    script = f"set -euo pipefail\n{function}\nstep 'true && false && true'\necho went on\n"
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert run.returncode != 0
    assert "went on" not in run.stdout


def test_readme_documents_the_columns_of_the_schema() -> None:
    generated = re.search(r"<!-- columns.*?-->\n\n(.*?)\n<!-- end of columns -->", README, re.DOTALL)
    assert generated is not None
    covariates = (Covariate("COLUMN", scale=1.0), Covariate("COLUMN", "LEVEL", "the first level"))
    columns = posterior_columns(("HYPOTHESIS",), ("COMPONENT",), effect_parameters(covariates))
    assert generated.group(1) == markdown_table(columns)


def test_readme_gives_the_thresholds_of_the_flags() -> None:
    words = {
        "flag_cannot_tell": "fewer than two families have sampled relatives",
        "flag_misfit": f"is at most {SMALLEST_USUAL:g}",
        "flag_evidence": f"is above {EVIDENCE_GOAL:g} nats against",
        "flag_mc_error": f"is above {posterior.LARGEST_STANDARD_ERROR:g} nats",
        "flag_khat": f"is above {posterior.LARGEST_KHAT:g};",
        "flag_low_coverage": f"fewer than {LOW_COVERAGE:g} reads",
    }
    flags = {column.name for column in posterior_columns(("HYPOTHESIS",)) if column.name.startswith("flag_")}
    assert flags == set(words)
    for flag, text in words.items():
        (row,) = re.findall(rf"^\| `{flag}` \| (.*) \|$", README.split("<!-- end of columns -->")[1], re.MULTILINE)
        assert text in row


def test_links_between_documents_lead_somewhere() -> None:
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#]+)", (REPOSITORY / document).read_text()):
            assert target.startswith("https://") or (REPOSITORY / target).exists(), f"{document}: {target}"


def test_changelog_knows_the_version() -> None:
    assert f"\n## {epivi.__version__}\n" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_licence_is_the_one_that_is_declared() -> None:
    assert PROJECT["license"] == "MIT"
    assert (REPOSITORY / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026 epivi developers\n")


def test_wheel_takes_the_schemas_along() -> None:
    wheel = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source, target in wheel["force-include"].items():
        assert target == "epivi/schemas"
        assert all(json.loads(path.read_text()) for path in (REPOSITORY / source).glob("*.json"))
        assert (REPOSITORY / source / "config.schema.json").is_file()
