"""`epivi simulate`: write a cohort drawn from the model, ready to be analysed, and its truth."""

from __future__ import annotations

import re
import shlex
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import click
import numpy as np
import pyarrow as pa
import pyarrow.csv
import yaml
from click.core import ParameterSource
from tqdm import tqdm

from epivi.config import Config, load_config, suggestion
from epivi.declarations import DECLARATIONS
from epivi.errors import UserError
from epivi.files import atomic_path
from epivi.hypotheses import parse_hypotheses, share_priors
from epivi.pedigree import Pedigree, families, pedigree_hash, read_pedigree
from epivi.samples import SampleSheet
from epivi.schema import EPIMUTATION_TABLES, INGEST_TABLES, STATE_PARAMETERS, TRANSMISSION_TABLES, Column
from epivi.simulate import (
    TEMPLATES,
    TEXT_FORMATS,
    BaselineComponent,
    Contig,
    SimulationSettings,
    choose_unsampled,
    simulate,
    template_pedigree,
)
from epivi.store import Provenance, TableWriter

if TYPE_CHECKING:
    from epivi.infer.states.lineage import StateLineage
    from epivi.simulate_states import StateBlock

BLOCK_VALUES = 4_000_000  # loci x samples drawn at once: about 0.3 GB
RECORD = "simulate.txt"  # the command line; marks a folder as one that --overwrite may replace
SHEET_COLUMNS = ("sample", "individual", "path", "format", "false_methylated", "false_unmethylated")
WRITE_OPTIONS = pyarrow.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")

_OF_EVIDENCE = {column.name: column for column in TRANSMISSION_TABLES["evidence"]}
TRUTH_COLUMNS = (
    INGEST_TABLES["counts"][0],
    _OF_EVIDENCE["pos"],
    _OF_EVIDENCE["hypothesis"],
    Column("baseline", pa.float32(), "fraction", "0..1", "baseline methylation, at the average covariates"),
    Column("spread", pa.float32(), "logit", "> 0", "SD between individuals (sigma)"),
    Column("heritable_share", pa.float32(), "fraction", "0..1", "share of the variance that is transmitted (rho)"),
    Column("transmissibility", pa.float32(), "fraction", "0..1", "tau, or the larger of fixed ones; 0 if none"),
    Column("environment_share", pa.float32(), "fraction", "0..1", "share of the rest that a shared environment has"),
)

_OF_BRANCHES = {column.name: column for column in EPIMUTATION_TABLES["branches"]}
STATE_TRUTH_COLUMNS = (
    *TRUTH_COLUMNS[:3],
    *(Column(name, pa.float64(), unit, values, doc) for name, (unit, values, doc) in STATE_PARAMETERS.items()),
)
BRANCH_TRUTH_COLUMNS = (
    *TRUTH_COLUMNS[:2],
    _OF_BRANCHES["parent"],
    _OF_BRANCHES["child"],
    Column("gain", pa.bool_(), "", "true false", "whether a copy was gained on the branch, however it went on"),
    Column("loss", pa.bool_(), "", "true false", "whether a copy was lost on it"),
)

DEFAULT_FAMILY = "transmission"
WriteLoci = Callable[[Path, Provenance], None]


@click.command(name="simulate", context_settings={"show_default": True})
@click.option("--output", required=True, type=click.Path(), help="Folder to make.")
@click.option("--seed", required=True, type=click.IntRange(0), help="The same seed and options give the same files.")
@click.option("--template", type=click.Choice(list(TEMPLATES)), help="Shape of the families.  [default: trio]")
@click.option("--families", "n_families", type=click.IntRange(1), help="Number of families.  [default: 10]")
@click.option("--pedigree", type=click.Path(), help="Pedigree file, instead of a template.")
@click.option("--family", type=click.Choice(list(DECLARATIONS)), help="Model family.  [default: as configured]")
@click.option("--config", "config_source", help="Configuration whose hypotheses, covariates and priors are drawn from.")
@click.option("--loci", "n_loci", default=20_000, type=click.IntRange(1), help="Loci over all contigs.")
@click.option("--contigs", default="1", help="How many, or their names: chr1,chr2.")
@click.option("--mean-gap", default=100.0, type=float, help="Mean distance of neighbouring loci, bp.")
@click.option("--clustered", type=float, help="Keep the hypothesis over runs of this mean length, bp.")
@click.option(
    "--weights", help="Of the hypotheses: reset=0.6,mendelian=0.4; half for those of no transmission if absent."
)
@click.option("--baseline", help="Mixture of logit baselines, weight:mean:sd,weight:mean:sd,...")
@click.option("--spread-location", default=0.0, type=float, help="Mean of log sigma.")
@click.option("--spread-scale", default=0.3, type=float, help="SD of log sigma.")
@click.option("--coverage", default=20.0, type=float, help="Mean reads of a sample at a locus.")
@click.option("--coverage-size", default=10.0, type=float, help="Negative binomial size; inf for Poisson.")
@click.option("--missing-loci", default=0.0, type=float, help="Fraction of loci without reads, in each sample.")
@click.option(
    "--unsampled", default="0", help="Individuals without sample: fraction, number (at random), or names a,b."
)
@click.option("--replicates", default=1, type=click.IntRange(1), help="Samples of each sampled individual.")
@click.option("--false-methylated", default=0.0, type=float, help="P(read methylated | base is not).")
@click.option("--false-unmethylated", default=0.0, type=float, help="P(read unmethylated | base is methylated).")
@click.option("--gain", default=1e-3, type=float, help="Of the family epimutation: gains per copy and generation.")
@click.option("--loss", default=2e-3, type=float, help="Of the same: losses per copy and generation.")
@click.option("--founder", default="0.6,0.02,0.38", help="Of the same: proportions of UU, UM and MM in founders.")
@click.option("--dispersion", default=0.02, type=float, help="Of the same: correlation of the reads of a site.")
@click.option(
    "--covariates", default="", help="Sheet columns at random: batch:3 (categories) or age (numbers), by comma."
)
@click.option("--covariate-scale", default=0.3, type=float, help="SD of a covariate's effects, logit.")
@click.option(
    "--environment",
    default="",
    help="Sheet columns of shared environment: household:family, litter:mother, cage:8 (levels at random), by comma. "
    "Without --config each also adds a hypothesis of its name.",
)
@click.option("--formats", default="bismark_cov", help="Of the samples' files: bismark_cov:0.8,bedmethyl:0.2.")
@click.option("--percent-decimals", default=2, type=click.IntRange(0, 12), help="Decimals of the percent column.")
@click.option("--gzip-level", default=6, type=click.IntRange(1, 9), help="Compression of the counts.")
@click.option("--cohort", help="Name of the cohort.  [default: name of the folder]")
@click.option("--threads", default=1, type=click.IntRange(1), help="Threads that format and compress.")
@click.option("--overwrite", is_flag=True, help="Replace a folder made by this command.")
@click.pass_context
def command(context: click.Context, /, **options: Any) -> None:
    """Draw a cohort from the model, with its truth.

    Writes counts/, samples.tsv, pedigree.tsv, config.yaml, truth.parquet and simulate.txt into a new folder.
    """
    asked = Options(**options)
    output = Path(asked.output)
    _check_output(output, asked.overwrite)
    covariates = _parse_columns("--covariates", asked.covariates)
    environments = _parse_columns("--environment", asked.environment)
    config = _read_config(asked, output, covariates, environments)
    pedigree = _make_pedigree(asked)
    sheet = _make_sheet(asked, pedigree, covariates, environments)
    write_loci = DRAWS[config.family](asked, config, pedigree, sheet)
    with atomic_path(output) as folder:
        (folder / "counts").mkdir(parents=True)
        (folder / RECORD).write_text(_command_line(context) + "\n")
        (folder / "config.yaml").write_text(_config_text(config))
        (folder / "pedigree.tsv").write_text(pedigree_text(pedigree))
        (folder / "samples.tsv").write_text(sheet_text(sheet))
        provenance = Provenance("truth", asked.seed, config.hash(), pedigree_hash(pedigree))
        write_loci(folder, provenance)


@dataclass(frozen=True)
class Options:
    """The command's options as click hands them over; text is parsed below, so that it can be recorded as given."""

    output: str
    seed: int
    template: str | None
    n_families: int | None
    pedigree: str | None
    family: str | None
    config_source: str | None
    n_loci: int
    contigs: str
    mean_gap: float
    clustered: float | None
    weights: str | None
    baseline: str | None
    spread_location: float
    spread_scale: float
    coverage: float
    coverage_size: float
    missing_loci: float
    unsampled: str
    replicates: int
    false_methylated: float
    false_unmethylated: float
    gain: float
    loss: float
    founder: str
    dispersion: float
    covariates: str
    covariate_scale: float
    environment: str
    formats: str
    percent_decimals: int
    gzip_level: int
    cohort: str | None
    threads: int
    overwrite: bool


# --- what was asked for ----------------------------------------------------------------------------------------------


def _check_output(output: Path, may_overwrite: bool) -> None:
    """Refuse to replace anything but an empty folder or, if asked, one that this command made."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / RECORD).is_file():
        raise UserError(f"--output {output}: exists and was not made by epivi simulate; expected a new or empty folder")
    if not may_overwrite:
        raise UserError(f"--output {output}: exists; expected a new folder, or --overwrite")


def _split(option: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if any(not part for part in parts):
        raise UserError(f"{option} '{text}': an empty entry; expected entries separated by single commas")
    return parts


def _number(option: str, text: str, expected: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{option} '{text}': expected {expected}") from None


def _parse_columns(option: str, text: str) -> dict[str, str]:
    """Column name -> its kind, "" where none is given."""
    columns: dict[str, str] = {}
    for entry in _split(option, text):
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
        names = _split("--unsampled", text)
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
    for entry in _split("--formats", text):
        name, colon, share = entry.partition(":")
        if name not in TEXT_FORMATS or name in shares:
            raise UserError(f"--formats '{entry}': expected different ones of {', '.join(TEXT_FORMATS)}")
        shares[name] = _number("--formats", share, "name:share") if colon else 1.0
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


def _draw_transmission(asked: Options, config: Config, pedigree: Pedigree, sheet: SampleSheet) -> WriteLoci:
    settings = _make_settings(asked, config, len(sheet.samples))
    names = [hypothesis.name for hypothesis in settings.hypotheses]

    def write(folder: Path, provenance: Provenance) -> None:
        with TableWriter(folder / "truth.parquet", TRUTH_COLUMNS, provenance) as truth:
            blocks = simulate(settings, pedigree, sheet)
            _write_counts(
                asked, settings.n_loci, blocks, sheet, folder, lambda block: truth.write(_truth_table(block, names))
            )

    return write


def _draw_epimutation(asked: Options, config: Config, pedigree: Pedigree, sheet: SampleSheet) -> WriteLoci:
    from epivi.families.epimutation.prepare import with_mode
    from epivi.infer.states.lineage import build_lineage
    from epivi.simulate_epimutation import TrueEmission
    from epivi.simulate_states import StateSimulation, simulate_lines
    from epivi.state_hypotheses import StatePriors, parse_state_hypotheses

    model = config.section("model")
    founder = [_number("--founder", part, "three proportions") for part in _split("--founder", asked.founder)]
    settings = StateSimulation(
        seed=asked.seed,
        hypotheses=parse_state_hypotheses(model["hypotheses"]),
        weights=_parse_weights(asked.weights, tuple(model["hypotheses"]), config.null_hypotheses),
        priors=StatePriors(float(model["priors"]["rate_sd"]), float(model["priors"]["fitness_sd"])),
        contigs=_parse_contigs(asked.contigs, asked.n_loci),
        gain=asked.gain,
        loss=asked.loss,
        founder=tuple(founder),
        emission=TrueEmission(
            asked.false_methylated, asked.false_unmethylated, asked.dispersion, asked.coverage, asked.coverage_size
        ),
        missing_loci=asked.missing_loci,
        mean_gap_bp=asked.mean_gap,
        block_loci=max(256, min(65_536, BLOCK_VALUES // len(sheet.samples))),
    )
    lineage = build_lineage(with_mode(pedigree, model["mode"]), sheet.individuals)
    names = [hypothesis.name for hypothesis in settings.hypotheses]

    def write(folder: Path, provenance: Provenance) -> None:
        with (
            TableWriter(folder / "truth.parquet", STATE_TRUTH_COLUMNS, provenance) as truth,
            TableWriter(folder / "truth_branches.parquet", BRANCH_TRUTH_COLUMNS, provenance) as branches,
        ):

            def add(block: StateBlock) -> None:
                truth.write(_truth_table(block, names))
                branches.write(_branch_truth(block, lineage))

            n_loci = sum(contig.n_loci for contig in settings.contigs)
            _write_counts(asked, n_loci, simulate_lines(settings, lineage), sheet, folder, add)

    return write


# What a family draws, and the function that writes it.
DRAWS: Mapping[str, Callable[[Options, Config, Pedigree, SampleSheet], WriteLoci]] = {
    "transmission": _draw_transmission,
    "epimutation": _draw_epimutation,
}


def _make_settings(asked: Options, config: Config, n_samples: int) -> SimulationSettings:
    model = config.section("model")
    extra = {} if asked.baseline is None else {"baseline": _parse_baseline(asked.baseline)}
    return SimulationSettings(
        seed=asked.seed,
        hypotheses=parse_hypotheses(model["hypotheses"]),
        weights=_parse_weights(asked.weights, tuple(model["hypotheses"]), config.null_hypotheses),
        contigs=_parse_contigs(asked.contigs, asked.n_loci),
        share_priors=share_priors(model["priors"]),
        covariates=tuple(model["covariates"]),
        covariate_scale=asked.covariate_scale,
        log_spread_location=asked.spread_location,
        log_spread_scale=asked.spread_scale,
        coverage_mean=asked.coverage,
        coverage_size=asked.coverage_size,
        missing_loci=asked.missing_loci,
        mean_gap_bp=asked.mean_gap,
        cluster_bp=asked.clustered,
        block_loci=max(256, min(65_536, BLOCK_VALUES // n_samples)),
        **extra,
    )


def _parse_weights(text: str | None, names: Sequence[str], null: Sequence[str]) -> tuple[float, ...]:
    """One weight for each hypothesis, 0 if not named. Without text: half for the null ones, half for the rest."""
    if text is None:
        groups = [group for group in (null, [name for name in names if name not in null]) if group]
        return tuple(1 / len(groups) / next(len(group) for group in groups if name in group) for name in names)
    weights: dict[str, float] = {}
    for entry in _split("--weights", text):
        name, equals, value = entry.partition("=")
        if name not in names or not equals:
            raise UserError(f"--weights '{entry}': expected hypothesis=weight; {suggestion(name, names)}")
        weights[name] = _number("--weights", value, "a number")
    if not all(weight >= 0 for weight in weights.values()) or abs(sum(weights.values()) - 1) > 1e-6:
        raise UserError(f"--weights '{text}': expected weights >= 0 that sum to 1, not {sum(weights.values()):.6g}")
    return tuple(weights.get(name, 0.0) for name in names)


def _parse_baseline(text: str) -> tuple[BaselineComponent, ...]:
    def one(entry: str) -> BaselineComponent:
        values = [_number("--baseline", value, "weight:mean:sd, three numbers") for value in entry.split(":")]
        if len(values) != 3 or not values[0] > 0 or not values[2] >= 0:
            raise UserError(f"--baseline '{entry}': expected weight:mean:sd with a weight > 0 and an SD >= 0")
        return BaselineComponent(*values)

    return tuple(one(entry) for entry in _split("--baseline", text))


def _parse_contigs(text: str, n_loci: int) -> tuple[Contig, ...]:
    """Contigs with the loci divided evenly; the first ones get what is left over."""
    names = [f"chr{number}" for number in range(1, int(text) + 1)] if text.isdecimal() else _split("--contigs", text)
    if not names or len(set(names)) < len(names) or any(re.search(r"\s", name) for name in names):
        raise UserError(f"--contigs '{text}': expected a number above 0, or different names without blanks")
    if len(names) > n_loci:
        raise UserError(f"--contigs '{text}': {len(names)} contigs for {n_loci} loci; expected at least one locus each")
    least, left = divmod(n_loci, len(names))
    return tuple(Contig(name, least + (number < left)) for number, name in enumerate(names))


# --- what is written -------------------------------------------------------------------------------------------------


def _command_line(context: click.Context) -> str:
    """The options given, as a line that makes the same cohort again; --overwrite and --threads change no file."""
    words = ["epivi", "simulate"]
    for parameter in context.command.params:
        name = parameter.name or ""
        is_given = context.get_parameter_source(name) == ParameterSource.COMMANDLINE
        if is_given and name not in ("overwrite", "threads"):
            words += [parameter.opts[0], str(context.params[name])]
    return shlex.join(words)


def _config_text(config: Config) -> str:
    """The configuration with every key, so that nothing is inherited from the file it is laid over."""
    resolved = {name: value for name, value in config.resolved.items() if value is not None}
    return "# A simulated cohort; the line that made it is in simulate.txt.\n" + yaml.safe_dump(
        resolved, sort_keys=False
    )


def pedigree_text(pedigree: Pedigree) -> str:
    """The pedigree as a table with a header, parents before children."""

    def name(index: int) -> str:
        return pedigree.individuals[index] if index >= 0 else "."

    rows = zip(
        pedigree.individuals,
        map(name, pedigree.mother),
        map(name, pedigree.father),
        pedigree.sex,
        pedigree.mode,
        map(str, pedigree.generations),
        strict=True,
    )
    return _table_text(("individual", "mother", "father", "sex", "mode", "generations"), rows)


def sheet_text(sheet: SampleSheet) -> str:
    """The sample sheet as a table with a header; paths are relative to it."""
    rows = zip(
        sheet.samples,
        sheet.individuals,
        sheet.paths,
        sheet.formats,
        map(str, sheet.false_methylated.tolist()),
        map(str, sheet.false_unmethylated.tolist()),
        *sheet.columns.values(),
        strict=True,
    )
    return _table_text((*SHEET_COLUMNS, *sheet.columns), rows)


def _table_text(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in (header, *rows))


class _SampleFile:
    """One sample's gzipped counts, appended block by block without keeping the file open (cohorts may be large)."""

    def __init__(self, path: Path, kind: str, decimals: int, gzip_level: int) -> None:
        self._path = path
        self._table = TEXT_FORMATS[kind].table
        self._decimals = decimals
        # The gzip header that zlib writes by itself (31 = 16 + 15) has neither time nor name: same draws, same bytes.
        self._compressor = zlib.compressobj(gzip_level, zlib.DEFLATED, 31)
        self._add(self._compressor.compress(TEXT_FORMATS[kind].header.encode()))

    def append(self, contig: str, pos0: np.ndarray, meth: np.ndarray, total: np.ndarray) -> None:
        is_covered = total > 0
        sink = pa.BufferOutputStream()
        table = self._table(contig, pos0[is_covered], meth[is_covered], total[is_covered], self._decimals)
        pyarrow.csv.write_csv(table, sink, WRITE_OPTIONS)
        self._add(self._compressor.compress(sink.getvalue()))

    def finish(self) -> None:
        self._add(self._compressor.flush())

    def _add(self, data: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(data)


class DrawnBlock(Protocol):
    """Loci that were drawn, of whatever family: L of one contig, S samples; `truth` holds columns [L] by name."""

    @property
    def contig(self) -> str: ...

    @property
    def pos0(self) -> np.ndarray: ...

    @property
    def meth(self) -> np.ndarray: ...

    @property
    def total(self) -> np.ndarray: ...

    @property
    def truth(self) -> Mapping[str, np.ndarray]: ...


class _AppendJob(NamedTuple):
    file: _SampleFile
    block: DrawnBlock
    sample: int

    def run(self) -> None:
        block = self.block
        self.file.append(block.contig, block.pos0, block.meth[:, self.sample], block.total[:, self.sample])


def _write_counts(
    asked: Options,
    n_loci: int,
    blocks: Iterator[Any],
    sheet: SampleSheet,
    folder: Path,
    add_truth: Callable[[Any], None],
) -> None:
    """Counts of every sample, block by block, and what `add_truth` writes; samples are formatted in parallel."""
    files = [
        _SampleFile(folder / path, kind, asked.percent_decimals, asked.gzip_level)
        for path, kind in zip(sheet.paths, sheet.formats, strict=True)
    ]
    with (
        ThreadPoolExecutor(asked.threads) as pool,
        tqdm(total=n_loci, unit=" loci", unit_scale=True, disable=None, desc="simulate") as progress,
    ):
        for block in blocks:
            list(pool.map(_AppendJob.run, [_AppendJob(file, block, number) for number, file in enumerate(files)]))
            add_truth(block)
            progress.update(len(block.pos0))
        for file in files:
            file.finish()


def _branch_truth(block: StateBlock, lineage: StateLineage) -> pa.Table:
    """One row for each locus and branch on which anything changed."""
    locus, branch = np.nonzero(block.gains | block.losses)
    ends = np.array(lineage.branches).reshape(-1, 2)[branch].astype(np.int32)
    contig = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(locus), np.int32)), pa.array([block.contig]))
    return pa.table(
        {
            "contig": contig,
            "pos": block.pos0[locus],
            "parent": pa.DictionaryArray.from_arrays(pa.array(ends[:, 0]), pa.array(lineage.nodes)),
            "child": pa.DictionaryArray.from_arrays(pa.array(ends[:, 1]), pa.array(lineage.nodes)),
            "gain": block.gains[locus, branch],
            "loss": block.losses[locus, branch],
        }
    )


def _truth_table(block: DrawnBlock, hypotheses: Sequence[str]) -> pa.Table:
    n_loci = len(block.pos0)
    columns = dict(block.truth) | {
        "contig": pa.DictionaryArray.from_arrays(pa.array(np.zeros(n_loci, np.int32)), pa.array([block.contig])),
        "pos": block.pos0,
        "hypothesis": pa.DictionaryArray.from_arrays(
            pa.array(block.truth["hypothesis"].astype(np.int32)), pa.array(hypotheses)
        ),
    }
    return pa.table(columns)
