"""What `fit`, `evidence` and `calibrate` read: loci, samples, pedigree and hypotheses, and how they are stamped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from epivi.config import Config
from epivi.errors import UserError
from epivi.field import Cohort, build_cohort
from epivi.files import content_hash
from epivi.hypotheses import Hypothesis, NormalPrior, parse_hypotheses, share_priors
from epivi.pedigree import Pedigree, check_samples, pedigree_hash, read_pedigree
from epivi.samples import SampleSheet, read_sample_sheet
from epivi.store import LociStore

if TYPE_CHECKING:
    from epivi.fitted import Fitted


class Problem(NamedTuple):
    """A cohort ready for inference; `stamp` changes with samples, sheet columns, pedigree and model."""

    store: LociStore
    cohort: Cohort
    hypotheses: tuple[Hypothesis, ...]
    priors: dict[str, NormalPrior]
    pedigree_hash: str
    stamp: str
    sheet: SampleSheet  # in the order of the store's samples
    pedigree: Pedigree


def read_problem(loci: str, samples: str, pedigree: str, config: Config) -> Problem:
    """Open and join the inputs. Raises UserError where they are missing or do not belong together."""
    store = LociStore.open(loci)
    sheet = _in_order_of(store, read_sample_sheet(samples))
    family = read_pedigree(pedigree)
    check_samples(sheet, family)
    model = config.section("model")
    hypotheses = parse_hypotheses(model["hypotheses"])
    priors = share_priors(model["priors"])
    cohort = build_cohort(sheet, family, model["covariates"], hypotheses)
    identity = pedigree_hash(family)
    stamp = content_hash(
        [
            identity,
            sheet.samples,
            sheet.individuals,
            [*sheet.false_methylated, *sheet.false_unmethylated],
            [sheet.columns[name] for name in config.sheet_columns],
            {key: value for key, value in model.items() if key != "null"},
        ]
    )
    return Problem(store, cohort, hypotheses, priors, identity, stamp, sheet, family)


def read_fit(folder: Path, problem: Problem, samples: str, pedigree: str) -> Fitted:
    """The fit of a problem. Raises UserError where there is none or it is of another problem."""
    from epivi.fitted import load_fit

    fitted = load_fit(folder)
    if fitted.stamp != problem.stamp:
        raise UserError(
            f"{folder}: was fitted to other samples, another pedigree or another model than {samples}, {pedigree} "
            "and the configuration; expected a fit of the same: run epivi fit again"
        )
    return fitted


def _in_order_of(store: LociStore, sheet: SampleSheet) -> SampleSheet:
    """The sheet's rows in the order of the store's samples."""
    position = {name: row for row, name in enumerate(sheet.samples)}
    missing = [name for name in store.samples if name not in position]
    extra = set(sheet.samples) - set(store.samples)
    if missing or extra:
        name, where = (missing[0], "only in the loci") if missing else (min(extra), "only in the sheet")
        raise UserError(
            f"{sheet.path}: its samples are not those of {store.directory}: {name!r} is {where}; expected the sheet "
            "that the loci were made from"
        )
    rows = [position[name] for name in store.samples]

    def pick(values: tuple) -> tuple:
        return tuple(values[row] for row in rows)

    return replace(
        sheet,
        samples=pick(sheet.samples),
        individuals=pick(sheet.individuals),
        paths=pick(sheet.paths),
        formats=pick(sheet.formats),
        false_methylated=sheet.false_methylated[rows],
        false_unmethylated=sheet.false_unmethylated[rows],
        columns={name: pick(values) for name, values in sheet.columns.items()},
        lines=pick(sheet.lines),
    )
