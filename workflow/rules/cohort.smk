"""The cohort, checked before any job: configuration, sample sheet, pedigree, and whose results the folder holds."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import yaml

from epivi.base.errors import Mistakes, UserError, line_of, print_error
from epivi.base.files import write_json
from epivi.cohort.contig_patterns import check_contig_patterns
from epivi.cohort.haplotypes import check_sexual, sampled_units
from epivi.cohort.pedigree import check_samples
from epivi.cohort.pedigree_files import read_pedigree
from epivi.cohort.sameness import check_files
from epivi.cohort.samples import design_matrix, group_index, read_sample_sheet
from epivi.config.load import load_config, suggestion
from epivi.ingest.read import READERS
from epivi.loci.bed import read_bed
from epivi.loci.classes import read_classes


def retyped(value):
    """Numbers and words of a mapping or list given by --config, all of which Snakemake leaves as text."""
    if isinstance(value, dict):
        return {key: retyped(child) for key, child in value.items()}
    if isinstance(value, list):
        return [retyped(child) for child in value]
    return yaml.safe_load(value) if isinstance(value, str) else value


def checked_settings():
    """The resolved configuration; each file is read by itself first, so that errors name file and line."""
    for path in workflow.configfiles:
        load_config(str(path))
    overrides = workflow.config_settings.config
    nested = {key: retyped(value) for key, value in overrides.items() if isinstance(value, (dict, list))}
    settings = load_config(json.dumps(nested), base=config)
    return replace(settings, source=", ".join(map(str, workflow.configfiles)))


def checked_sheet(settings, pedigree):
    """The sample sheet, with its files, its individuals and the columns that the model names."""
    sheet = read_sample_sheet(settings.require("samples"))
    mistakes = Mistakes()
    # The process of each job reads the workflow too: it need not look into every file again.
    if workflow.is_main_process:
        for path in settings.resolved["loci"]["reference"], settings.resolved["qc"]["genotypes"]:
            with mistakes.gather():
                check_readable(path)
        for read in bed_readers(settings):
            with mistakes.gather():
                read()
        with mistakes.gather():
            check_files(sheet)
        with mistakes.gather():
            check_contig_patterns(settings, sheet)
    for line, kind in zip(sheet.lines, sheet.formats):
        if kind not in ("auto", *READERS):
            mistakes.add(f"{sheet.path} line {line}: format is {kind!r}: {suggestion(kind, READERS)}")
    with mistakes.gather():
        check_samples(sheet, pedigree)
        check_sexual(sampled_units(sheet)[0], pedigree, sheet)
    model = settings.section("model")
    for hypothesis in (model, *model["hypotheses"].values()):
        for covariate in hypothesis.get("covariates", []):
            with mistakes.gather():
                design_matrix(sheet, [covariate])
        if "environment" in hypothesis:
            with mistakes.gather():
                group_index(sheet, hypothesis["environment"]["column"])
    mistakes.require_none()
    return sheet


def check_readable(path):
    """A file of the configuration is there and can be read."""
    try:
        if path is not None:
            open(path, "rb").close()
    except OSError as error:
        raise UserError(line_of(error) or str(error))


def bed_readers(settings):
    """What reads each BED file of the configuration whole, as the steps do."""
    unit, classes = settings.resolved["loci"]["unit"], settings.resolved["model"]["classes"]
    if isinstance(unit, dict) and "bed" in unit:
        yield lambda: read_bed(unit["bed"])
    if classes is not None:
        yield lambda: read_classes(classes, settings.contexts)


def check_stamp(folder, stamp):
    """Refuse a folder of results that was made from another cohort's files."""
    path = Path(folder, "cohort.json")
    found = json.loads(path.read_text()) if path.exists() else stamp
    for key, value in stamp.items():
        if found.get(key) != value:
            raise UserError(
                f"{path}: these results were made with {key} {json.dumps(found.get(key))}, but the configuration"
                f" says {json.dumps(value)}: choose another cohort name or remove {folder}"
            )


try:
    SETTINGS = checked_settings()
    STAMP = {key: SETTINGS.require(key) for key in ("cohort", "samples", "pedigree")}
    OUT = f"{SETTINGS.resolved['results']}/{STAMP['cohort']}"
    check_stamp(OUT, STAMP)
    PEDIGREE = read_pedigree(STAMP["pedigree"])
    SHEET = checked_sheet(SETTINGS, PEDIGREE)
except UserError as error:
    print_error(error)
    raise SystemExit(2)


onstart:
    try:
        write_json(f"{OUT}/cohort.json", STAMP)
    except OSError as error:
        print(f"epivi: error: {line_of(error) or error}", file=sys.stderr)
        raise SystemExit(2)
