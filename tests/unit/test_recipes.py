"""The recipes of CONTRIBUTING, each carried out on a copy of the repository in the files that its row names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from places import REPOSITORY

CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text()
TABLE = CONTRIBUTING[CONTRIBUTING.index("| to add |") : CONTRIBUTING.index("A **family** is")]
ROWS = {line.split("|")[1].strip(): line for line in TABLE.splitlines()[2:] if line.startswith("|")}
Edit = tuple[str, str]
COPIED = ("epivi", "workflow", "config", "tests/unit", "tests/data", "envs")
SCHEMA = "workflow/schemas/config.schema.json"
README = "config/README.md"

TRANSMISSION = "epivi/families/transmission"
READER = """
import numpy as np

from epivi.ingest.layout import UNKNOWN, Block, Counts, only_context
from epivi.ingest.text import Column, read_rows


def recognises(row):
    return len(row) == 5 and row[4] == "toy"


def read(source, settings):
    columns = tuple(Column(k, n, kind) for k, (n, kind) in enumerate({"contig": "text", "pos": "integer",
                    "meth": "integer", "total": "integer"}.items()))
    context = only_context(source, settings, "toy")
    for rows in read_rows(source, columns):
        values, unknown = rows.columns, np.full(rows.size, UNKNOWN, np.int8)
        counts = Counts(values["pos"], unknown, np.full(rows.size, context, np.int8), values["meth"], values["total"])
        yield Block(values["contig"], counts, {}, 0, 0, "toy", context_is_assumed=True)
"""
RULE = """
rule toy:
    output:
        "<results>/toy.txt",
    shell:
        "epivi --version > {output:q}"
"""
COMMAND = '''
import click


@click.command("toy")
def command() -> None:
    """Do a toy thing."""
'''
DECLARATION = """
    "toy": Declaration(
        hypothesis_keys=("rates", "selection"),
        model_keys=(),
        fit_methods=("svi",),
        has_states=False,
        has_controls=False,
        has_design=False,
        hypothesis_problem=lambda hypothesis, model: None,
        is_null=lambda hypothesis: hypothesis["rates"] == "none",
    ),
}
"""


class Recipe(NamedTuple):
    """What is written: text of new files, edits (old, new) of others; and code that shows that it works."""

    files: Mapping[str, str | Edit | list[Edit]]
    check: str  # Python, run in the copy
    shows: str = ""  # regular expression in what it prints


STEPS = {
    "prepare": "def prepare(inputs, config): ...\ndef families(problem): ...\ndef learned_type(): ...\n",
    "compile": "def compile_kernel(): print('compiled a toy')\n",
    "fit": "def start(problem, config, device, ranks): ...\n",
    "evidence": "CHUNK_LOCI = 1\ndef columns(problem): ...\ndef tables(problem, fitted, config, spans, threads): ...\n",
    "posterior": "def columns(names, evidence): ...\ndef table(span, evidence, names, is_null, weight, qvalues): ...\n",
    "simulate": "def draw(asked, config, pedigree, sheet): ...\n",
}
RECIPES = {
    "an input format": Recipe(
        {
            "epivi/ingest/formats/toy.py": READER,
            "epivi/ingest/read.py": (
                "READERS = {\n",
                'from epivi.ingest.formats import toy\n\nREADERS = {\n    "toy": Reader(toy.recognises, toy.read),\n',
            ),
        },
        "from pathlib import Path; Path('a.txt').write_text('chr1\\t5\\t3\\t4\\ttoy\\n');"
        "from epivi.cli import main;"
        "main('ingest a.txt --sample s --output o.parquet --qc q.json --config {}'.split())",
        r"s \(toy\): 1 rows, 1 loci",
    ),
    "a hypothesis": Recipe(
        {},
        "from epivi.config.load import load_config;"
        "from epivi.families.transmission.hypotheses import parse_hypotheses;"
        'config = load_config(\'{"model": {"hypotheses": {"reset": {}, "toy": {"heritable_share": 0.5, '
        '"maternal": 1, "paternal": 0}}}}\');'
        "print([h.name for h in parse_hypotheses(config.section('model')['hypotheses'])])",
        r"'reset', 'toy'",
    ),
    "a kind of covariance component": Recipe(
        {
            f"{TRANSMISSION}/cohort.py": (
                '    "environment": _within_groups,\n',
                '    "environment": _within_groups,\n    "toy": _within_groups,\n',
            ),
            f"{TRANSMISSION}/simulate.py": (
                '    "environment": _draw_groups,\n',
                '    "environment": _draw_groups,\n    "toy": _draw_groups,\n',
            ),
            "epivi/config/declarations.py": [
                (
                    'SOURCES = {"environment": "column", ',
                    'SOURCES = {"toy": "column", "environment": "column", ',
                ),
                ('"environment", "relatedness", "covariates")', '"toy", "environment", "relatedness", "covariates")'),
                (
                    '            "priors.environment_share",\n',
                    '            "priors.environment_share",\n            "priors.toy_share",\n',
                ),
            ],
            SCHEMA: [
                (
                    '              "environment": {\n',
                    '              "toy": {"type": "object", "$ref": "#/$defs/environment", "description": "A toy."},\n'
                    '              "environment": {\n',
                ),
                (
                    '            "environment_share": {\n',
                    '            "toy_share": {"type": "object", "additionalProperties": false, "properties": '
                    '{"alpha": {"type": "number", "default": 2, "expected": "a number", "description": "Toy."}, '
                    '"beta": '
                    '{"type": "number", "default": 2, "expected": "a number", "description": "Toy."}}},\n'
                    '            "environment_share": {\n',
                ),
            ],
            README: [
                (
                    "| `model.hypotheses.<name>.environment.column`",
                    "| `model.hypotheses.<name>.toy.column` | the name of a sample-sheet column | absent | "
                    "Sample-sheet column that names the group. |\n"
                    "| `model.hypotheses.<name>.toy.share` | free, or a number above 0 and "
                    "at most 1 | `free` | Share of the variance that is not heritable which the groups explain; of "
                    "several environments, of what those before it in the list leave. |\n"
                    "| `model.hypotheses.<name>.environment.column`",
                ),
                (
                    "| `model.priors.environment_share.alpha`",
                    "| `model.priors.toy_share.alpha` | a number | `2` | Toy. |\n"
                    "| `model.priors.toy_share.beta` | a number | `2` | Toy. |\n"
                    "| `model.priors.environment_share.alpha`",
                ),
            ],
        },
        "import numpy as np; from inference_cases import make_pedigree, make_sheet;"
        "from epivi.config.load import load_config;"
        "from epivi.families.transmission.cohort import build_cohort;"
        "from epivi.families.transmission.hypotheses import parse_hypotheses, share_priors;"
        'model = load_config(\'{"model": {"hypotheses": {"reset": {}, "toy": {"toy": {"column": "herd"}}}}}\')'
        ".section('model'); hypotheses = parse_hypotheses(model['hypotheses']);"
        "sheet = make_sheet(('a', 'b', 'c'), columns={'herd': ('1', '2', '1')});"
        "fields = build_cohort(sheet, make_pedigree(('a',), ('b',), ('c',)), [], hypotheses).fields;"
        "print(hypotheses[1].parameters, np.diff(fields[1].block_start),"
        "'logit_toy_share' in share_priors(model['priors']))",
        r"'logit_toy_share'\) \[2 1\] True",
    ),
    "a reference method for the latent field": Recipe(
        {
            "epivi/field/dense/toy.py": "from epivi.field.dense.laplace import laplace\n\n\n"
            "def toy(problem):\n    return laplace(problem)\n",
            "epivi/field/dense/methods.py": (
                '    "laplace": laplace,\n',
                '    "laplace": laplace,\n    "toy": __import__("epivi.field.dense.toy", fromlist=["toy"]).toy,\n',
            ),
        },
        "from epivi.field.dense.methods import FIELD_METHODS; print(FIELD_METHODS['toy'].__module__)",
        "epivi.field.dense.toy",
    ),
    "an inference method": Recipe(
        {
            f"{TRANSMISSION}/locus/toy.py": "from epivi.families.transmission.locus.nested import nested_laplace\n\n\n"
            "def toy(problem):\n    return nested_laplace(problem)\n",
            f"{TRANSMISSION}/locus/methods.py": (
                "LOCUS_METHODS: Mapping[str, Method] = {",
                "from epivi.families.transmission.locus.toy import toy\n\n"
                'LOCUS_METHODS: Mapping[str, Method] = {"toy": toy, ',
            ),
            SCHEMA: [
                (
                    '"enum": ["svi", "meanfield", "cavi", "laplace", "ep", "lrvb"',
                    '"enum": ["toy", "svi", "meanfield", "cavi", "laplace", "ep", "lrvb"',
                ),
                ('"expected": "a list of svi, ', '"expected": "a list of toy, svi, '),
            ],
            README: [("| a list of svi, ", "| a list of toy, svi, ")],
        },
        "from epivi.config.load import load_config;"
        "from epivi.families.transmission.locus.methods import LOCUS_METHODS;"
        'config = load_config(\'{"diagnose": {"methods": ["toy"]}}\');'
        "print(LOCUS_METHODS[config.section('diagnose')['methods'][0]].__module__)",
        "locus.toy",
    ),
    "a guide": Recipe(
        {
            f"{TRANSMISSION}/guide.py": ("GUIDES = {", 'GUIDES = {"toy": structured_guide, '),
            SCHEMA: [
                ('"enum": ["structured", "meanfield"]', '"enum": ["structured", "meanfield", "toy"]'),
                ('"expected": "structured or meanfield"', '"expected": "structured, meanfield or toy"'),
            ],
            README: [("| structured or meanfield |", "| structured, meanfield or toy |")],
        },
        "from epivi.config.load import load_config; from epivi.families.transmission.guide import GUIDES;"
        "print(GUIDES[load_config('{\"fit\": {\"guide\": \"toy\"}}').section('fit')['guide'].strip()].__name__)",
        "structured_guide",
    ),
    "a way in which data do not follow the model": Recipe(
        {
            "epivi/verify/calibrate.py": (
                "SCENARIOS: Mapping[str, Scenario] = {\n",
                'SCENARIOS: Mapping[str, Scenario] = {\n    "toy": Scenario("as a toy", null_overdispersion=0.5),\n',
            )
        },
        "from epivi.verify.calibrate import SCENARIOS; print(SCENARIOS['toy'].null_overdispersion)",
        "0.5",
    ),
    "something to sequence next": Recipe(
        {
            "epivi/verify/next_samples.py": (
                '    "twice the reads',
                '    "toys": (False, lambda asked: Option(asked, len(asked.sheet.samples))),\n    "twice the reads',
            )
        },
        "from design_cases import PEDIGREES, asked_of; from epivi.verify.next_samples import options;"
        "print([name for name, option in options(asked_of(PEDIGREES['trio'])).items() if option.samples == 3])",
        r"'toys'",
    ),
    "a column of a table": Recipe(
        {
            "epivi/quality/columns.py": (
                '"findings": (\n',
                '"findings": (\n        Column("toy", pa.int32(), "toys", ">= 0", "how many toys"),\n',
            )
        },
        "from epivi.tables.columns import arrow_schema, markdown_table;"
        "from epivi.quality.columns import QUALITY_TABLES as T;"
        "print(markdown_table(T['findings']), arrow_schema(T['findings']).field('toy').metadata)",
        r"`toy`.*how many toys(.|\n)*how many toys",
    ),
    "a command": Recipe(
        {
            "epivi/commands/toy.py": COMMAND,
            "epivi/cli.py": ("COMMANDS = {\n", 'COMMANDS = {\n    "toy": "Do a toy thing, in one line.",\n'),
        },
        "from epivi.cli import main\nfor words in (['--help'], ['toy', '--help']):\n"
        "    try: main(words)\n    except SystemExit: pass",
        r"in one line\.(.|\n)*Usage: epivi toy",
    ),
    "a step of the workflow": Recipe(
        {
            "workflow/rules/toy.smk": RULE,
            "Snakefile": (
                'include: "workflow/rules/diagnose.smk"\n',
                'include: "workflow/rules/diagnose.smk"\ninclude: "workflow/rules/toy.smk"\n',
            ),
        },
        "import subprocess, sys; subprocess.run([sys.executable, '-m', 'snakemake','--dry-run', '--cores', '1',"
        " 'toy'])",
        r"rule toy:",
    ),
    "a family": Recipe(
        {
            **{f"epivi/families/toy/{step}.py": text for step, text in STEPS.items()},
            "epivi/families/toy/__init__.py": '"""A toy family."""\n',
            "epivi/config/declarations.py": (
                '        is_null=lambda hypothesis: hypothesis["rates"] == "none",\n    ),\n}\n',
                '        is_null=lambda hypothesis: hypothesis["rates"] == "none",\n    ),' + DECLARATION,
            ),
            SCHEMA: [
                ('"enum": ["transmission", "epimutation"]', '"enum": ["transmission", "epimutation", "toy"]'),
                ('"expected": "transmission or epimutation"', '"expected": "transmission, epimutation or toy"'),
                ('"family_defaults": {', '"family_defaults": {"toy": {"none": {"rates": "none"}},'),
            ],
            README: [
                ("| transmission or epimutation |", "| transmission, epimutation or toy |"),
                ("## ", "```yaml\nmodel:\n  family: toy\n  hypotheses:\n    none: {rates: none}\n```\n\n## "),
            ],
        },
        "from epivi.config.load import load_config; from epivi.families import family_step;"
        'config = load_config(\'{"model": {"family": "toy"}}\'); print(config.null_hypotheses);'
        "[family_step(config.family, step) for step in ('prepare', 'fit', 'evidence', 'posterior', 'simulate')];"
        "from epivi.cli import main; main(['compile', '--family', 'toy'])",
        r"none(.|\n)*compiled a toy",
    ),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in COPIED:
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "Snakefile", tmp_path / "Snakefile")
    return tmp_path


def write(copy: Path, files: Mapping[str, str | Edit | list[Edit]]) -> None:
    for name, edits in files.items():
        path = copy / name
        if isinstance(edits, str):
            assert not path.exists()
            path.parent.mkdir(exist_ok=True)
            path.write_text(edits)
            continue
        for old, new in [edits] if isinstance(edits, tuple) else edits:
            text = path.read_text()
            assert old in text, f"{name} has no {old!r}"
            path.write_text(text.replace(old, new, 1))


def run(copy: Path, *arguments: str) -> str:
    """What Python prints in the copy, whose package comes before the installed one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(copy), str(copy / "tests" / "unit")])}
    done = subprocess.run([sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr


# Those that fit something take most of the time.
SLOW = {"an inference method", "a guide", "a way in which data do not follow the model"}


@pytest.mark.parametrize("row", [pytest.param(row, marks=pytest.mark.slow) if row in SLOW else row for row in RECIPES])
def test_a_recipe_works(copy: Path, row: str) -> None:
    recipe = RECIPES[row]
    write(copy, recipe.files)
    assert re.search(recipe.shows, shown := run(copy, "-c", recipe.check)), shown


def test_the_documentation_of_the_configuration_follows(copy: Path) -> None:
    """Of all recipes together: the schema has no word that config/README.md lacks."""
    documented = [recipe.files for recipe in RECIPES.values() if SCHEMA in recipe.files]
    for files in documented:
        write(copy, files)
    shown = run(copy, "-m", "pytest", "-q", "-n", "0", "-k", "readme", "tests/unit/config/test_config_documentation.py")
    assert re.search(r"\d\d passed", shown), shown
    assert len(documented) > 2
    assert all(README in files for files in documented)


@pytest.mark.parametrize("row", RECIPES)
def test_a_row_names_every_file(row: str) -> None:
    named = set(re.findall(r"`([\w/.<>]+)`", ROWS[row]))
    for name in RECIPES[row].files:
        path = re.sub(r"\btoy\b", "<name>", name)
        assert path in named or path.rpartition("/")[0] + "/" in named, path


def test_every_row_has_its_recipe() -> None:
    assert set(ROWS) - {
        "another term of a hypothesis",
        "an input of covariates whose values differ between loci",
    } == set(RECIPES)
