"""Options of `epivi simulate`, read and checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from epivi.base.errors import UserError
from epivi.config.load import suggestion
from epivi.simulate.positions import Contig
from epivi.tables.parquet import Provenance

BLOCK_VALUES = 4_000_000  # loci x samples drawn at once: about 0.3 GB
WriteLoci = Callable[[Path, Provenance], None]


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


def parse_list(option: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if any(not part for part in parts):
        raise UserError(f"{option} '{text}': an empty entry; expected entries separated by single commas")
    return parts


def parse_number(option: str, text: str, expected: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{option} '{text}': expected {expected}") from None


def parse_weights(text: str | None, names: Sequence[str], null: Sequence[str]) -> tuple[float, ...]:
    """One weight for each hypothesis, 0 if not named. Without text: half for the null ones, half for the rest."""
    if text is None:
        groups = [group for group in (null, [name for name in names if name not in null]) if group]
        return tuple(1 / len(groups) / next(len(group) for group in groups if name in group) for name in names)
    weights: dict[str, float] = {}
    for entry in parse_list("--weights", text):
        name, equals, value = entry.partition("=")
        if name not in names or not equals:
            raise UserError(f"--weights '{entry}': expected hypothesis=weight; {suggestion(name, names)}")
        weights[name] = parse_number("--weights", value, "a number")
    if not all(weight >= 0 for weight in weights.values()) or abs(sum(weights.values()) - 1) > 1e-6:
        raise UserError(f"--weights '{text}': expected weights >= 0 that sum to 1, not {sum(weights.values()):.6g}")
    return tuple(weights.get(name, 0.0) for name in names)


def parse_contigs(text: str, n_loci: int) -> tuple[Contig, ...]:
    """Contigs with the loci divided evenly; the first ones get what is left over."""
    names = (
        [f"chr{number}" for number in range(1, int(text) + 1)] if text.isdecimal() else parse_list("--contigs", text)
    )
    if not names or len(set(names)) < len(names) or any(re.search(r"\s", name) for name in names):
        raise UserError(f"--contigs '{text}': expected a number above 0, or different names without blanks")
    if len(names) > n_loci:
        raise UserError(f"--contigs '{text}': {len(names)} contigs for {n_loci} loci; expected at least one locus each")
    least, left = divmod(n_loci, len(names))
    return tuple(Contig(name, least + (number < left)) for number, name in enumerate(names))
