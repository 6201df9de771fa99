"""The cohort, checked before any job: configuration, sample sheet, pedigree, and whose results the folder holds."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import yaml

from epivi.base.errors import Mistakes, UserError, line_of, print_error
from epivi.base.files import content_hash, write_json
from epivi.cohort.contig_patterns import check_contig_patterns, known_contigs
from epivi.cohort.haplotypes import check_sexual, sampled_units
from epivi.cohort.pedigree import check_samples, pedigree_hash
from epivi.cohort.pedigree_files import read_pedigree
from epivi.cohort.relatedness_matrix import content, read_relatedness_matrix, relatedness_among
from epivi.cohort.sameness import check_files
from epivi.cohort.samples import design_matrix, group_index, read_sample_sheet
from epivi.config.analyses import analysis_folder
from epivi.config.load import load_config, suggestion
from epivi.ingest.read import READERS
from epivi.loci.bed import read_bed
from epivi.loci.classes import read_classes
from epivi.loci.masks import check_mask_contigs, mask_contigs


class Analysis(NamedTuple):
    """One analysis of the cohort's loci.

    settings: its configuration. pedigree, pedigree_files, pedigree_argument: what it has as pedigree, the files of that,
    and the option of the commands. classes: files with classes of loci. relatedness: files of relatedness matrices.
    cohort_hash: what its steps see of the sample sheet, of the pedigree and of relatedness, so that comments, the order of the sheet's rows and columns that the model does not name
    rerun nothing.
    """

    settings: object
    pedigree: object
    pedigree_files: list
    pedigree_argument: str
    classes: list
    relatedness: tuple
    cohort_hash: str


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


def checked_sheet(settings):
    """The sample sheet, and the mistakes found in it, in its files and in those of the configuration."""
    sheet = read_sample_sheet(settings.require("samples"))
    mistakes = Mistakes()
    # The process of each job reads the workflow too: it need not look into every file again.
    if workflow.is_main_process:
        for path in settings.resolved["loci"]["reference"], settings.resolved["qc"]["genotypes"]:
            with mistakes.gather():
                check_readable(path)
        with mistakes.gather():
            read_regions(settings)
        contigs = known_contigs(settings, sheet) if settings.resolved["loci"]["exclude"] else None
        for path in settings.resolved["loci"]["exclude"]:
            with mistakes.gather():
                check_mask_contigs(path, mask_contigs(path), contigs or ())
        with mistakes.gather():
            check_files(sheet)
        with mistakes.gather():
            check_contig_patterns(settings, sheet)
    for line, kind in zip(sheet.lines, sheet.formats):
        if kind not in ("auto", *READERS):
            mistakes.add(f"{sheet.path} line {line}: format is {kind!r}: {suggestion(kind, READERS)}")
    return sheet, mistakes


def checked_analysis(settings, sheet, mistakes):
    """An analysis, with the sheet's individuals in its pedigree and the columns that its model names."""
    given = settings.require("pedigree")
    pedigree = read_pedigree(given)
    with mistakes.gather():
        check_samples(sheet, pedigree)
        check_sexual(sampled_units(sheet)[0], pedigree, sheet)
    model = settings.section("model")
    for hypothesis in (model, *model["hypotheses"].values()):
        for covariate in hypothesis.get("covariates", []):
            with mistakes.gather():
                design_matrix(sheet, [covariate])
        for environment in hypothesis.get("environment", []):
            with mistakes.gather():
                group_index(sheet, environment["column"])
    for column in (*settings.section("controls")["exchange_within"], *settings.section("relatives")["columns"]):
        with mistakes.gather():
            group_index(sheet, column)
    matrices = []
    for path in settings.relatedness_files:
        with mistakes.gather():
            matrices.append(read_relatedness_matrix(path))
            relatedness_among(matrices[-1], sheet, sheet.individuals)
    classes = [] if model["classes"] is None else [model["classes"]]
    for path in classes if workflow.is_main_process else []:
        with mistakes.gather():
            read_classes(path, settings.contexts)
    mistakes.require_none()
    files = list(given.values()) if isinstance(given, dict) else [given]
    argument = json.dumps(given) if isinstance(given, dict) else given
    seen = [pedigree_hash(pedigree), sheet.content(settings.sheet_columns), *map(content, matrices)]
    return Analysis(settings, pedigree, files, argument, classes, settings.relatedness_files, content_hash(seen))


def checked_analyses(settings, sheet, mistakes):
    """Every analysis, by its folder below the cohort's; what is wrong with the main one is said once."""
    analyses = {"": checked_analysis(settings, sheet, mistakes)}
    for name, further in settings.analyses.items():
        try:
            analyses[analysis_folder(name)] = checked_analysis(further, sheet, Mistakes())
        except UserError as error:
            for line in str(error).splitlines():
                mistakes.add(f"analyses.{name}: {line}")
    mistakes.require_none()
    return analyses


def check_readable(path):
    """A file of the configuration is there and can be read."""
    try:
        if path is not None:
            open(path, "rb").close()
    except OSError as error:
        raise UserError(line_of(error) or str(error))


def read_regions(settings):
    """Read the BED file of the loci whole, as the assembly does."""
    unit = settings.resolved["loci"]["unit"]
    if isinstance(unit, dict) and "bed" in unit:
        read_bed(unit["bed"])


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
    SHEET, found = checked_sheet(SETTINGS)
    ANALYSES = checked_analyses(SETTINGS, SHEET, found)
except UserError as error:
    print_error(error)
    raise SystemExit(2)


onstart:
    try:
        write_json(f"{OUT}/cohort.json", STAMP)
    except OSError as error:
        print(f"epivi: error: {line_of(error) or error}", file=sys.stderr)
        raise SystemExit(2)
