"""A run's result in a few numbers, and its manifest: what went in, with what, how long it took, and what came out."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from epivi.base.errors import UserError
from epivi.base.ordered import on_threads
from epivi.config.analyses import FOLDER
from epivi.config.declarations import DECLARATIONS
from epivi.config.load import Config
from epivi.discovery.merged import group_name, groups_of, read_sentences, warnings_of_groups
from epivi.discovery.misfit import BINS, histogram
from epivi.discovery.replicates import CANNOT_TELL_METADATA, FAMILIES_METADATA, warning_of_few_families
from epivi.fit.record import fit_warnings
from epivi.loci.store import LociStore
from epivi.quality.columns import VERDICT_METADATA
from epivi.tables.parquet import open_parquet, read_table
from epivi.tables.parts import STAMP, Part, batches, whole_table

# Whose versions a result depends on.
DISTRIBUTIONS = ("epivi", "torch", "pyro-ppl", "numba", "numpy", "scipy", "pyarrow", "duckdb", "snakemake")
FLAG_PREFIX = "flag_"
MISFIT = "misfit_pvalue"
USUAL_SHARE = 0.1  # of the loci in the first bin of misfit p-values, above which a warning is due; 0.05 is expected
WITHOUT_CONTROLS = (
    "no controls (controls.enabled is false): nothing shows whether calls follow the pedigree, and what families or "
    "all loci share may be called"
)


@dataclass(frozen=True)
class Weight:
    """Share of the loci for which a hypothesis holds, with its 95 % interval over loci, and over families.

    hypothesis: its name; of hypotheses that the samples cannot separate all names, joined by |, and the shares of all.
    The interval over families is None without controls.
    """

    hypothesis: str
    weight: float
    lower: float
    upper: float
    family_lower: float | None = None
    family_upper: float | None = None


@dataclass(frozen=True)
class Control:
    """The true pedigree among exchanged ones, at a sample of loci: see epivi.discovery.controls.ControlTest."""

    control: str
    exchanges: int
    gain_nats: float
    median_exchanged_nats: float
    largest_exchanged_nats: float
    p_value: float
    called: int
    called_exchanged: float


@dataclass(frozen=True)
class KindOfRelatives:
    """Mean correlation of the logits of all pairs of a kind, above that of the reference; None where not known."""

    kind: str
    pairs: int
    families: int
    correlation: float | None
    se_families: float | None


@dataclass(frozen=True)
class Rate:
    """A rate that the loci of a class share, per copy and generation, with its 95 % interval."""

    locus_class: str
    parameter: str  # alpha, gain; or beta, loss
    median: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Summary:
    """What a run found.

    analysis: name of a further analysis of the cohort's loci; empty for the main one.
    expected: sum over the loci of each hypothesis's probability, by its name in `weights`; n_calls: loci that are
    called; kinds: these by the set of hypotheses that they may be of (kind_set).
    flags: loci that carry each flag, by its column name. warnings: of the quality of the samples, of relatives,
    of few families, of the fit, and of hypotheses that count as null. design: what `epivi design` said.
    cannot_tell: why nothing is called; empty where something may be.
    rates: of the family epimutation. controls: of a family that has them. relatives: kinds of pairs of
    samples, but for the reference; relatives_verdict: what those without blood in common say.
    misfit: loci in bins of equal width of misfit_pvalue; none without controls.
    excluded: what each file of loci.exclude left out, in words.
    """

    cohort: str
    samples: int
    individuals: int
    loci: dict[str, int]  # contig -> loci, in genome order
    weights: tuple[Weight, ...]
    fdr: float
    expected: dict[str, float]
    n_calls: int
    kinds: dict[str, int]
    flags: dict[str, int]
    warnings: tuple[str, ...] = ()
    cannot_tell: str = ""
    rates: tuple[Rate, ...] = ()
    controls: tuple[Control, ...] = ()
    analysis: str = ""
    design: tuple[str, ...] = ()
    excluded: dict[str, str] = field(default_factory=dict)
    misfit: tuple[int, ...] = ()
    relatives: tuple[KindOfRelatives, ...] = ()
    relatives_verdict: str = ""

    @property
    def n_loci(self) -> int:
        """Loci over all contigs."""
        return sum(self.loci.values())


def shared_folder(results: Path) -> Path:
    """Where counts, loci and quality of an analysis are: its folder `results`, or that of its cohort."""
    if (results / "loci").exists() or results.absolute().parent.name != FOLDER:
        return results
    return results.absolute().parent.parent


def summarize(results: Path, settings: Config, individuals: int) -> Summary:
    """Summarize an analysis's folder `results`; the posterior is read in batches, so memory does not grow with it.

    Raises UserError if a table is missing or damaged, or if posterior and loci disagree on the number of loci.
    """
    shared = shared_folder(results)
    store = LociStore.open(shared / "loci")
    weights = read_table(results / "compare" / "weights.parquet", "weights").to_pylist()
    cannot_tell, few_families = _replicates(results / "compare" / "weights.parquet")
    parts = _tables(results, settings, store)["posterior"]
    fdr = float(settings.section("compare")["fdr"])
    names = [row["hypothesis"] for row in weights]
    groups = groups_of(names, [row["merged"] for row in weights])
    is_null = np.isin(names, settings.null_hypotheses)
    controls = _controls(results / "compare" / "control_tests.parquet")
    relatives, relatives_verdict = _relatives(results / "relatives" / "relatives.parquet")
    without_controls = (WITHOUT_CONTROLS,) if DECLARATIONS[settings.family].has_controls and not controls else ()
    expected = {group_name(group, names): 0.0 for group in groups}
    kinds: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    misfit = np.zeros(BINS, np.int64)
    for batch in _posterior_batches(parts, names):
        for group in groups:
            for h in group:
                expected[group_name(group, names)] += pc.sum(batch[f"prob_{names[h]}"]).as_py() or 0.0
        if MISFIT in batch.schema.names:
            misfit += histogram(batch[MISFIT].to_numpy(zero_copy_only=False))
        kinds.update(_counts(batch["kind_set"].filter(batch["called"])))
        flags.update({name: pc.sum(batch[name]).as_py() for name in batch.schema.names if name.startswith(FLAG_PREFIX)})
    return Summary(
        cohort=settings.require("cohort"),
        samples=len(store.samples),
        individuals=individuals,
        loci={contig: store.n_loci_of(contig) for contig in store.contigs},
        weights=tuple(_weight(weights[group[0]]) for group in groups),
        fdr=fdr,
        expected=expected,
        n_calls=kinds.total(),
        kinds=dict(kinds.most_common()),
        flags=dict(flags),
        warnings=(
            *_warnings(shared / "quality" / "findings.parquet"),
            *_warnings(results / "relatives" / "findings.parquet"),
            *_mask_warnings(store),
            *few_families,
            *without_controls,
            *fit_warnings(results / "fit"),
            *warnings_of_groups(names, is_null, groups),
            *_misfit_warning(misfit),
        ),
        cannot_tell=cannot_tell,
        rates=_rates(results / "fit" / "rates.parquet"),
        controls=controls,
        analysis="" if shared == results else results.absolute().name,
        design=_design(results / "design" / "design.parquet"),
        misfit=tuple(misfit.tolist()) if misfit.any() else (),
        excluded={one["file"]: f"{one['excluded']:,} {one['of']}" for one in store.excluded},
        relatives=relatives,
        relatives_verdict=relatives_verdict,
    )


def _replicates(path: Path) -> tuple[str, tuple[str, ...]]:
    """Why nothing is called, or else the warning of few families, from the metadata of the weights."""
    metadata = open_parquet(path, "weights")[0].schema_arrow.metadata or {}
    cannot_tell = metadata.get(CANNOT_TELL_METADATA.encode(), b"").decode()
    families = metadata.get(FAMILIES_METADATA.encode())
    warning = warning_of_few_families(None if families is None else int(families))
    return cannot_tell, (warning,) if warning and not cannot_tell else ()


def _warnings(path: Path) -> tuple[str, ...]:
    """Findings of `epivi quality` or `epivi relatives`; none where it was not run."""
    return tuple(read_table(path, "findings", ["text"])["text"].to_pylist()) if path.exists() else ()


def _design(path: Path) -> tuple[str, ...]:
    """What the design can show, in sentences; none where the family has no such step."""
    return read_sentences(path) if path.exists() else ()


def _misfit_warning(counts: NDArray[np.int64]) -> tuple[str, ...]:
    """Where far more loci than expected have a low p-value: the first bin holds those up to 1 / BINS."""
    total = max(1, counts.sum())
    share, expected = counts[0] / total, total / BINS
    if share <= USUAL_SHARE or counts[0] <= expected + 4 * np.sqrt(expected):  # of few loci the share is chance
        return ()
    return (
        f"{100 * share:.1f} % of the loci have a misfit_pvalue of at most {1 / BINS:g}, where the fitted model gives "
        f"{100 / BINS:g} %: look at misfit.parquet and at loci with flag_misfit",
    )


def misfit_table(counts: Sequence[int]) -> pa.Table:
    """Rows of the table `misfit` from the loci in each bin."""
    edges = np.linspace(0.0, 1.0, len(counts) + 1)
    expected = np.full(len(counts), sum(counts) / len(counts))
    return pa.table({"lower": edges[:-1], "upper": edges[1:], "n_loci": list(counts), "expected": expected})


def _mask_warnings(store: LociStore) -> tuple[str, ...]:
    """What is wrong with files of loci.exclude."""
    return tuple(one["warning"] for one in store.excluded if one["warning"])


def _relatives(path: Path) -> tuple[tuple[KindOfRelatives, ...], str]:
    """Kinds of pairs over all levels, and the verdict; nothing where `epivi relatives` was not run."""
    if not path.exists():
        return (), ""
    verdict = (open_parquet(path, "relatives")[0].schema_arrow.metadata or {}).get(VERDICT_METADATA.encode(), b"")
    names = ("kind", "pairs", "families", "correlation", "se_families")
    rows = [row for row in read_table(path, "relatives").to_pylist() if not row["column"] and not row["is_reference"]]
    return tuple(KindOfRelatives(*(_known(row[name]) for name in names)) for row in rows), verdict.decode()


def _known(value: Any) -> Any:
    """None in place of nan, which JSON does not have."""
    return None if value != value else value


def _weight(row: Mapping[str, Any]) -> Weight:
    """Of a row of the table `weights`: of all hypotheses that it is one with."""
    over_families = ("merged_family_lower", "merged_family_upper")
    return Weight(
        row["merged"],
        row["merged_weight"],
        row["merged_lower"],
        row["merged_upper"],
        *(None if math.isnan(row[name]) else row[name] for name in over_families),
    )


def _controls(path: Path) -> tuple[Control, ...]:
    return tuple(Control(**row) for row in read_table(path, "control_tests").to_pylist())


def _rates(path: Path) -> tuple[Rate, ...]:
    """Gain and loss of every class; none where the family has no such table."""
    if not path.exists():
        return ()
    rows = read_table(path, "rates").to_pylist()
    names = ("class", "parameter", "median", "lower", "upper")
    return tuple(Rate(*(row[name] for name in names)) for row in rows if row["parameter"] in ("alpha", "beta"))


def _tables(results: Path, settings: Config, store: LociStore) -> dict[str, list[Part]]:
    """The run's tables in parts, each whole and made from the comparison that is there.

    Raises UserError where one is not.
    """
    names = ["posterior", *(("states", "branches") if DECLARATIONS[settings.family].has_states else ())]
    tables = {name: whole_table(results / name, name) for name in names}
    path = results / "compare" / "weights.parquet"
    compared = open_parquet(path, "weights")[0].schema_arrow.metadata or {}
    for name, parts in tables.items():
        if parts[0].made_from != compared.get(STAMP.encode(), b"").decode():
            raise UserError(f"{results / name}: was not made from {path}; run the workflow again to its end")
        if parts[0].n_loci != store.n_loci:
            raise UserError(
                f"{results / name}: {parts[0].n_loci:,} loci; expected {store.n_loci:,}, as in "
                f"{shared_folder(results) / 'loci'}: the run is not complete"
            )
    return tables


def _posterior_batches(parts: Sequence[Part], hypotheses: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The columns that are counted, a bounded number of rows at a time."""
    file, _ = open_parquet(parts[0].path, "posterior")
    flags = [name for name in file.schema_arrow.names if name.startswith(FLAG_PREFIX) or name == MISFIT]
    return batches(parts, "posterior", ["called", "kind_set", *(f"prob_{name}" for name in hypotheses), *flags])


def _counts(labels: pa.Array) -> dict[str, int]:
    counted = pc.value_counts(labels.cast(pa.string()))
    return {entry["values"]: entry["counts"] for entry in counted.to_pylist()}


def manifest(
    summary: Summary, settings: Config, inputs: Mapping[str, Iterable[str]], results: Path, threads: int
) -> dict[str, Any]:
    """The run's record.

    inputs: role ("counts", "samples", ...) -> paths of the files; results: the cohort's folder, which holds the
    benchmark files of its steps; threads: how many files are hashed at once.
    """
    return {
        "cohort": summary.cohort,
        "summary": asdict(summary),
        "inputs": _input_records(inputs, threads),
        "configuration": settings.resolved,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in DISTRIBUTIONS},
        "platform": platform.platform(),
        "timings": timings(results / "benchmarks"),
    }


def _input_records(inputs: Mapping[str, Iterable[str]], threads: int) -> list[dict[str, Any]]:
    files = [(role, path) for role, paths in inputs.items() for path in paths]
    digests = on_threads(_sha256, [path for _, path in files], threads, ahead=2 * threads)
    return [
        {"role": role, "path": path, "bytes": os.path.getsize(path), "sha256": digest}
        for (role, path), digest in zip(files, digests, strict=True)
    ]


def _sha256(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot read this input: {error.strerror}") from None


def timings(folder: Path) -> dict[str, dict[str, float]]:
    """Step -> jobs, wall-clock seconds summed over them and of the longest, and the largest resident memory in MB.

    Read from the benchmark files that Snakemake writes: <step>.tsv, or one file for each job below <step>/.
    """
    steps: dict[str, list[tuple[float, float]]] = {}
    for path in sorted(folder.rglob("*.tsv")):
        step = path.relative_to(folder).parts[0].removesuffix(".tsv")
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        # A job that ends before Snakemake looks at it has no memory reading.
        steps.setdefault(step, []).extend((float(row["s"]), _number(row["max_rss"])) for row in rows)
    return {
        step: {
            "jobs": len(jobs),
            "total_s": round(sum(seconds for seconds, _ in jobs), 2),
            "longest_s": round(max(seconds for seconds, _ in jobs), 2),
            "max_rss_mb": max(memory for _, memory in jobs),
        }
        for step, jobs in steps.items()
        if jobs
    }


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def read_summary(path: Path) -> Summary:
    """The summary in a manifest. Raises UserError if the file is missing or is no manifest of epivi."""
    try:
        values = json.loads(path.read_text())["summary"]
        return Summary(
            **{
                **values,
                "weights": tuple(Weight(**weight) for weight in values["weights"]),
                "warnings": tuple(values.get("warnings", ())),
                "rates": tuple(Rate(**rate) for rate in values.get("rates", ())),
                "misfit": tuple(values.get("misfit", ())),
                "controls": tuple(Control(**control) for control in values.get("controls", ())),
                "design": tuple(values.get("design", ())),
                "relatives": tuple(KindOfRelatives(**kind) for kind in values.get("relatives", ())),
            }
        )
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected the manifest of a finished run") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest written by epivi summary ({error!r})") from None
