"""Write a cohort drawn from the model, ready to be analysed, and its truth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from epivi.base.errors import UserError
from epivi.base.files import atomic_path
from epivi.cohort.pedigree import Pedigree, families, pedigree_hash
from epivi.cohort.pedigree_files import read_pedigree
from epivi.cohort.samples import SampleSheet
from epivi.config.load import Config, load_config, suggestion
from epivi.families import family_step
from epivi.simulate.files import SHEET_COLUMNS, pedigree_text, sheet_text
from epivi.simulate.formats import TEXT_FORMATS
from epivi.simulate.options import Options, parse_list, parse_number
from epivi.simulate.templates import choose_unsampled, template_pedigree
from epivi.tables.parquet import Provenance

RECORD = "simulate.txt"  # the command line; marks a folder as one that --overwrite may replace

DEFAULT_FAMILY = "transmission"


def write_cohort(asked: Options, line: str) -> None:
    """Write the cohort that was asked for into a new folder; line: the command line that makes it again.

    Raises UserError for options that do not fit together.
    """
    output = Path(asked.output)
    _check_output(output, asked.overwrite)
    covariates = _parse_columns("--covariates", asked.covariates)
    environments = _parse_columns("--environment", asked.environment)
    config = _read_config(asked, output, covariates, environments)
    pedigree = _make_pedigree(asked)
    sheet = _make_sheet(asked, pedigree, covariates, environments)
    write_loci = family_step(config.family, "simulate").draw(asked, config, pedigree, sheet)
    with atomic_path(output) as folder:
        (folder / "counts").mkdir(parents=True)
        (folder / RECORD).write_text(line + "\n")
        (folder / "config.yaml").write_text(_config_text(config))
        (folder / "pedigree.tsv").write_text(pedigree_text(pedigree))
        (folder / "samples.tsv").write_text(sheet_text(sheet))
        provenance = Provenance("truth", asked.seed, config.hash(), pedigree_hash(pedigree))
        write_loci(folder, provenance)


# --- what was asked for ----------------------------------------------------------------------------------------------


def _check_output(output: Path, may_overwrite: bool) -> None:
    """Refuse to replace anything but an empty folder or, if asked, one that this command made."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / RECORD).is_file():
        raise UserError(f"--output {output}: exists and was not made by epivi simulate; expected a new or empty folder")
    if not may_overwrite:
        raise UserError(f"--output {output}: exists; expected a new folder, or --overwrite")


def _parse_columns(option: str, text: str) -> dict[str, str]:
    """Column name -> its kind, "" where none is given."""
    columns: dict[str, str] = {}
    for entry in parse_list(option, text):
        name, _, kind = entry.partition(":")
        if not re.fullmatch(r"[A-Za-z]\w*", name) or name in SHEET_COLUMNS or name in columns:
            raise UserError(f"{option} '{entry}': expected a new column name of letters, digits and '_'")
        columns[name] = kind
    return columns


def _read_config(
    asked: Options, output: Path, covariates: Mapping[str, str], environments: Mapping[str, str]
) -> Config:
    """The configuration written beside the counts: the given one, or the defaults with the columns asked for."""
    named = {
        "cohort": asked.cohort or re.sub(r"[^A-Za-z0-9._-]+", "_", output.resolve().name),
        "samples": str(output / "samples.tsv"),
        "pedigree": str(output / "pedigree.tsv"),
    }
    if asked.config_source is not None:
        given = load_config(asked.config_source)
        if asked.family not in (None, given.family):
            raise UserError(
                f"--family {asked.family}: {given.source} says {given.family}; expected one of the two only"
            )
        for column in given.sheet_columns:
            if column not in covariates and column not in environments:
                raise UserError(
                    f"{given.source}: model names the column '{column}': expected it in --covariates or --environment"
                )
        return load_config("{}", base=given.resolved | named)
    chosen = {"model": {"family": asked.family or DEFAULT_FAMILY}}
    model = load_config("{}", base=chosen).section("model")
    for name in environments:
        if name in model["hypotheses"]:
            raise UserError(f"--environment '{name}': a hypothesis has this name; expected another")
    model["covariates"] = list(covariates)
    model["hypotheses"] |= {name: {"environment": {"column": name, "share": "free"}} for name in environments}
    return load_config("{}", base={"model": model, "seed": asked.seed} | named)


def _make_pedigree(asked: Options) -> Pedigree:
    if asked.pedigree is None:
        return template_pedigree(asked.template or "trio", asked.n_families or 10)
    if asked.template is not None or asked.n_families is not None:
        raise UserError(f"--pedigree {asked.pedigree}: expected without --template and --families")
    return read_pedigree(asked.pedigree)


def _unsampled(text: str, pedigree: Pedigree, seed: int) -> tuple[str, ...]:
    """Individuals without sample, from a fraction below 1, a whole number, or names."""
    try:
        number = float(text)
    except ValueError:
        names = parse_list("--unsampled", text)
        for name in names:
            if name not in pedigree.individuals:
                raise UserError(
                    f"--unsampled '{name}': no such individual; {suggestion(name, pedigree.individuals)}"
                ) from None
        return tuple(names)
    if not (0 <= number < 1 or (number >= 1 and number.is_integer())):
        raise UserError(f"--unsampled {text}: expected a fraction in [0, 1), a whole number, or names")
    count = int(number) if number >= 1 else round(number * len(pedigree.individuals))
    return choose_unsampled(pedigree, count, seed)


def _make_sheet(
    asked: Options, pedigree: Pedigree, covariates: Mapping[str, str], environments: Mapping[str, str]
) -> SampleSheet:
    for name in ("false_methylated", "false_unmethylated"):
        if not 0 <= getattr(asked, name) < 0.5:
            raise UserError(f"--{name.replace('_', '-')} {getattr(asked, name)}: expected a probability in [0, 0.5)")
    unsampled = set(_unsampled(asked.unsampled, pedigree, asked.seed))
    sampled = [name for name in pedigree.individuals if name not in unsampled]
    if not sampled:
        raise UserError(f"--unsampled {asked.unsampled}: leaves no sample")
    for name in sampled:
        if not re.fullmatch(r"[\w.+=@-]+", name):
            raise UserError(f"--pedigree {asked.pedigree}: individual '{name}' cannot name a file")
    suffixes = [f"_r{number}" for number in range(1, asked.replicates + 1)] if asked.replicates > 1 else [""]
    samples = tuple(name + suffix for name in sampled for suffix in suffixes)
    individuals = tuple(name for name in sampled for _ in suffixes)
    formats = _repeat_formats(asked.formats, len(samples))
    random = np.random.default_rng([asked.seed, 0])
    columns = {name: _covariate(name, kind, len(samples), random) for name, kind in covariates.items()}
    for name, kind in environments.items():
        level = _environment(name, kind, pedigree, random)
        columns[name] = tuple(level[individual] for individual in individuals)
    return SampleSheet(
        path=str(Path(asked.output) / "samples.tsv"),
        samples=samples,
        individuals=individuals,
        paths=tuple(f"counts/{name}{TEXT_FORMATS[kind].suffix}" for name, kind in zip(samples, formats, strict=True)),
        formats=formats,
        haplotypes=("all",) * len(samples),
        false_methylated=np.full(len(samples), asked.false_methylated),
        false_unmethylated=np.full(len(samples), asked.false_unmethylated),
        columns=columns,
        lines=tuple(range(2, len(samples) + 2)),
    )


def _repeat_formats(text: str, n_samples: int) -> tuple[str, ...]:
    """Formats spread evenly over the samples: each sample takes the one that is furthest behind its share."""
    shares: dict[str, float] = {}
    for entry in parse_list("--formats", text):
        name, colon, share = entry.partition(":")
        if name not in TEXT_FORMATS or name in shares:
            raise UserError(f"--formats '{entry}': expected different ones of {', '.join(TEXT_FORMATS)}")
        shares[name] = parse_number("--formats", share, "name:share") if colon else 1.0
    if not shares or not all(0 < share < np.inf for share in shares.values()):
        raise UserError(f"--formats '{text}': expected name:share with shares above 0")
    names, wanted = list(shares), np.array(list(shares.values())) / sum(shares.values())
    count = np.zeros(len(names))
    chosen = []
    for number in range(1, n_samples + 1):
        behind = int(np.argmax(np.round(wanted * number - count, 9)))
        count[behind] += 1
        chosen.append(names[behind])
    return tuple(chosen)


def _levels(option: str, name: str, kind: str, n: int, random: np.random.Generator) -> list[str]:
    """n values of `kind` levels, as equally often as can be, in random order."""
    if not kind.isdecimal() or not 2 <= int(kind) <= n:
        raise UserError(f"{option} '{name}:{kind}': expected a number of levels from 2 to {n}")
    return [f"{name}{level + 1}" for level in random.permutation(np.arange(n) % int(kind))]


def _covariate(name: str, kind: str, n_samples: int, random: np.random.Generator) -> tuple[str, ...]:
    if kind:
        return tuple(_levels("--covariates", name, kind, n_samples, random))
    return tuple(f"{value:.3f}" for value in random.normal(size=n_samples))


def _environment(name: str, kind: str, pedigree: Pedigree, random: np.random.Generator) -> dict[str, str]:
    """Level of each individual: its family, its mother's children (alone if unknown), or one of `kind` at random."""
    individuals = pedigree.individuals
    if kind == "family":
        members = enumerate(families(pedigree), start=1)
        return {individuals[member]: f"{name}{number}" for number, indices in members for member in indices}
    if kind == "mother":
        return {
            child: f"{name}_of_{individuals[mother]}" if mother >= 0 else f"{name}_{child}"
            for child, mother in zip(individuals, pedigree.mother, strict=True)
        }
    if not kind.isdecimal():
        raise UserError(f"--environment '{name}:{kind}': expected family, mother or a number of levels")
    return dict(zip(individuals, _levels("--environment", name, kind, len(individuals), random), strict=True))


# --- what is written -------------------------------------------------------------------------------------------------


def _config_text(config: Config) -> str:
    """The configuration with every key, so that nothing is inherited from the file it is laid over."""
    resolved = {name: value for name, value in config.resolved.items() if value is not None}
    return "# A simulated cohort; the line that made it is in simulate.txt.\n" + yaml.safe_dump(
        resolved, sort_keys=False
    )
