"""`epivi divergence`: calls, counts or given divergences -> pairwise divergences and epimutation rates."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    import numpy as np

    from epivi.cohort.samples import SampleSheet
    from epivi.divergence.fit import Assumptions, Bootstrap, ModelComparison, NeutralFit, NullFit, PairTimes
    from epivi.divergence.pairs import BlockSums, Pairs
    from epivi.loci.store import LociStore

log = logging.getLogger(__name__)

CHUNK_LOCI = 1 << 14
PROFILE_STARTS = 3  # at each ratio: one unknown less than the fit, and neighbours show a missed optimum


class Observed(NamedTuple):
    """Divergences of P pairs, and the sums over sites that they come from where the input has sites."""

    sample_1: list[str]
    sample_2: list[str]
    times: PairTimes
    divergence: np.ndarray  # [P]
    pairs: Pairs | None
    unmethylated: float | None  # share of UU, where it can be seen
    mode: str
    pedigree_hash: str


@click.command("divergence")
@click.option("--pedigree", help='Pedigree file, or {"nodes": ..., "edges": ...} of AlphaBeta as JSON.')
@click.option("--samples", type=click.Path(), help="Sample sheet or node list.  [default: the pedigree's node list]")
@click.option(
    "--loci",
    type=click.Path(path_type=Path),
    help="Folder written by epivi assemble: use its counts.  [default: the state calls in the samples' files]",
)
@click.option(
    "--pairs",
    "pairs_file",
    type=click.Path(path_type=Path),
    help="Divergences already computed, in place of pedigree and samples: a table with time0, time1, time2, D.value.",
)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of the tables.")
@click.option("--context", "contexts", multiple=True, default=("CG",), show_default=True, help="May be repeated.")
@click.option(
    "--min-posterior",
    default=0.99,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Calls with a smaller posteriorMax are missing.",
)
@click.option(
    "--min-reads", default=3, show_default=True, type=click.IntRange(min=2), help="Sites with fewer are missing."
)
@click.option(
    "--mode",
    type=click.Choice(["selfing", "clonal"]),
    help="How lines are propagated.  [default: as the pedigree says]",
)
@click.option(
    "--unmethylated",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of unmethylated sites in the founder.  [default: the samples' mean; needed with --pairs]",
)
@click.option(
    "--equilibrium",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of unmethylated sites in the long run.  [default: that of the founder]",
)
@click.option(
    "--equilibrium-weight",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Weight of the penalty that ties the rates to the equilibrium; 0 is without.",
)
@click.option("--starts", default=10, show_default=True, type=click.IntRange(min=1), help="Random starts of a fit.")
@click.option("--blocks", default=100, show_default=True, type=click.IntRange(min=2), help="Blocks of sites, in all.")
@click.option("--bootstrap", default=500, show_default=True, type=click.IntRange(min=0), help="Replicates.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(min=0), help="Of starts and bootstrap.")
def command(
    pedigree: str | None,
    samples: str | None,
    loci: Path | None,
    pairs_file: Path | None,
    output: Path,
    contexts: tuple[str, ...],
    min_posterior: float,
    min_reads: int,
    mode: str | None,
    unmethylated: float | None,
    equilibrium: float | None,
    equilibrium_weight: float,
    starts: int,
    blocks: int,
    bootstrap: int,
    seed: int,
) -> None:
    """Pairwise divergences of selfed or clonal lines, and AlphaBeta's estimate of their epimutation rates.

    Divergences come from the state calls of methylome tables, from counts (--loci), or from a table (--pairs). The
    rates of gain and loss, alpha and beta, minimize the squared differences to what the neutral model predicts for
    every pair. Divergences hardly distinguish the two: with the default penalty their ratio is what keeps today's share
    of unmethylated sites in equilibrium. profile.parquet shows what the divergences alone say of it.

    Writes divergence.parquet, fit.parquet, models.parquet, profile.parquet and summary.json. Intervals are from a
    bootstrap over blocks of neighbouring sites; with --pairs, over residuals, which takes pairs for independent.
    """
    from epivi.base.errors import UserError
    from epivi.base.files import content_hash
    from epivi.divergence.fit import Assumptions, compare, fit_neutral, fit_null

    if pairs_file is not None:
        observed = _from_table(pairs_file, pedigree, samples, loci, mode)
    else:
        observed = _from_samples(pedigree, samples, loci, mode, contexts, min_posterior, min_reads, blocks)
    share = observed.unmethylated if unmethylated is None else unmethylated
    if share is None:
        raise UserError(f"{pairs_file}: does not give the share of unmethylated sites: expected it as --unmethylated")
    if not 0 < share < 1:
        raise UserError(f"the share of unmethylated sites is {share:g}: expected both kinds, or --unmethylated")
    assumptions = Assumptions(observed.mode, share, share if equilibrium is None else equilibrium, equilibrium_weight)
    try:
        neutral = fit_neutral(observed.times, observed.divergence, assumptions, starts=starts, seed=seed)
    except ValueError as error:
        raise UserError(f"{pairs_file or samples or pedigree}: nothing to fit: {error}") from None
    null = fit_null(observed.divergence)
    spread = _bootstrap(observed, assumptions, neutral, unmethylated, equilibrium, bootstrap, seed)
    comparison = compare(neutral, null)
    profile, supported = _profile(observed, assumptions, seed)
    settings = {
        "mode": observed.mode,
        "contexts": list(contexts),
        "min_posterior": min_posterior,
        "min_reads": min_reads,
        "founder_unmethylated": share,
        "equilibrium_unmethylated": assumptions.equilibrium_unmethylated,
        "equilibrium_weight": equilibrium_weight,
        "blocks": blocks,
        "bootstrap": bootstrap,
    }
    tables = {
        "divergence": _divergence_rows(observed, neutral),
        "fit": _fit_rows(neutral, null, spread, "nothing" if spread is None else _resampled(observed)),
        "models": _model_rows(neutral, null, comparison),
        "profile": profile,
    }
    _write(output, tables, settings, seed, content_hash(settings), observed.pedigree_hash, supported)
    _report(tables["fit"], supported, equilibrium_weight, spread)


# ------------------------------------------------------------------------------------------------------------ the input


def _from_table(path: Path, pedigree: str | None, samples: str | None, loci: Path | None, mode: str | None) -> Observed:
    from epivi.base.errors import UserError
    from epivi.divergence.calls import read_pairs

    for name, value in (("--pedigree", pedigree), ("--samples", samples), ("--loci", loci)):
        if value is not None:
            raise UserError(f"{name} {value}: expected either --pairs or {name}, not both")
    times, divergence = read_pairs(path)
    nobody = ["."] * len(divergence)
    return Observed(nobody, nobody, times, divergence, None, None, mode or "selfing", "")


def _from_samples(
    pedigree: str | None,
    samples: str | None,
    loci: Path | None,
    mode: str | None,
    contexts: tuple[str, ...],
    min_posterior: float,
    min_reads: int,
    blocks: int,
) -> Observed:
    from epivi.base.errors import UserError
    from epivi.cohort.pedigree import check_samples, pedigree_hash
    from epivi.cohort.pedigree_files import read_pedigree
    from epivi.cohort.sameness import check_files
    from epivi.cohort.samples import read_sample_sheet
    from epivi.divergence.calls import read_calls
    from epivi.divergence.pairs import pair_times, pairs_of, sums_of_calls, uniparental_mode
    from epivi.loci.store import LociStore

    if pedigree is None:
        raise UserError("--pedigree: expected the pedigree of the samples, or --pairs")
    family = read_pedigree(pedigree)
    sheet = read_sample_sheet(samples if samples is not None else _node_list(pedigree))
    check_samples(sheet, family)
    mode = mode or uniparental_mode(family)
    if loci is None:
        check_files(sheet)
        names, individuals = sheet.samples, list(sheet.individuals)
        with _bar(len(names), "read", "files") as bar:
            calls = read_calls(sheet.paths, contexts, min_posterior, bar.update)
        log.info("%d sites in %d samples", len(calls.contig), len(names))
        sums = sums_of_calls(calls.states, calls.contig, blocks)
    else:
        store = LociStore.open(loci)
        names, individuals = store.samples, _individuals(store, sheet)
        sums = _sums_of_counts(store, contexts, min_reads, blocks)
    first, second, times = pair_times(family, individuals)
    _say_unrelated(len(names), len(first), sheet.path)
    pairs = pairs_of(sums, first, second, times, names)
    return Observed(
        [names[index] for index in first],
        [names[index] for index in second],
        times,
        pairs.divergence,
        pairs,
        pairs.unmethylated_share,
        mode,
        pedigree_hash(family),
    )


def _node_list(pedigree: str) -> str:
    import json

    from epivi.base.errors import UserError

    if not pedigree.lstrip().startswith("{"):
        raise UserError(f"--samples: expected a sample sheet, since {pedigree} names no files of samples")
    return str(json.loads(pedigree)["nodes"])


def _say_unrelated(n_samples: int, n_pairs: int, path: str) -> None:
    from epivi.base.errors import UserError

    unrelated = n_samples * (n_samples - 1) // 2 - n_pairs
    if not n_pairs:
        raise UserError(f"{path}: no two samples descend from the same founder in the pedigree: expected some")
    if unrelated:
        log.warning("%d pairs of samples without a common ancestor in the pedigree are left out", unrelated)


def _individuals(store: LociStore, sheet: SampleSheet) -> list[str]:
    """Individual of each sample of the store."""
    from epivi.base.errors import UserError

    individual = dict(zip(sheet.samples, sheet.individuals, strict=True))
    for name in store.samples:
        if name not in individual:
            raise UserError(f"{sheet.path}: sample {name!r} of {store.directory} is not in it")
    return [individual[name] for name in store.samples]


def _sums_of_counts(store: LociStore, contexts: tuple[str, ...], min_reads: int, blocks: int) -> BlockSums:
    import numpy as np

    from epivi.base.errors import UserError
    from epivi.divergence.counts import sums_of_counts
    from epivi.tables.columns import CONTEXTS

    wanted = np.isin(CONTEXTS, contexts)
    index = store.global_blocks(-(-store.n_loci // blocks))

    def chunks(number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        contig, start, stop = index[number]
        for low in range(start, stop, CHUNK_LOCI):
            block = store.block(contig, low, min(low + CHUNK_LOCI, stop))
            kept = wanted[block.context_code]
            yield block.meth[kept], block.total[kept]

    try:
        with _bar(2 * len(index), "counts", "blocks") as bar:
            sums, emission = sums_of_counts(chunks, len(index), len(store.samples), min_reads, bar.update)
    except ValueError as error:
        raise UserError(f"{store.directory}: context {' or '.join(contexts)}: {error}") from None
    log.info(
        "methylated reads at unmethylated sites %.4f, unmethylated at methylated sites %.4f, dispersion %.4f",
        emission.false_methylated,
        emission.false_unmethylated,
        emission.dispersion,
    )
    return sums


def _bar(total: int, what: str, unit: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=f" {unit}", disable=None)


# --------------------------------------------------------------------------------------------------------- the estimate


def _bootstrap(
    observed: Observed,
    assumptions: Assumptions,
    neutral: NeutralFit,
    unmethylated: float | None,
    equilibrium: float | None,
    replicates: int,
    seed: int,
) -> Bootstrap | None:
    from dataclasses import replace

    from epivi.divergence.fit import bootstrap, residual_replicates
    from epivi.divergence.pairs import block_replicates

    if not replicates:
        return None
    if observed.pairs is None:
        drawn = residual_replicates(neutral, observed.divergence, replicates, seed)
        shares = [assumptions.founder_unmethylated] * replicates
    else:
        resampled = block_replicates(observed.pairs, replicates, seed)
        drawn, shares = resampled.divergence, resampled.unmethylated_share.tolist()

    def with_share(share: float) -> Assumptions:
        """What was given stays; what was seen is seen anew in every replicate."""
        founder = share if unmethylated is None else unmethylated
        return replace(
            assumptions,
            founder_unmethylated=founder,
            equilibrium_unmethylated=founder if equilibrium is None else equilibrium,
        )

    with _bar(replicates, "bootstrap", "replicates") as bar:

        def each() -> Iterator[tuple[np.ndarray, Assumptions]]:
            for divergence, share in zip(drawn, shares, strict=True):
                yield divergence, with_share(share)
                bar.update()

        return bootstrap(observed.times, each(), neutral)


def _resampled(observed: Observed) -> str:
    return "residuals" if observed.pairs is None else "blocks"


def _profile(
    observed: Observed, assumptions: Assumptions, seed: int
) -> tuple[dict[str, list[Any]], tuple[float, float]]:
    """Rows of the profile without and with the penalty, and the ratios that the divergences alone allow."""
    from dataclasses import replace

    from epivi.divergence.fit import PROFILE_RATIOS, profile_ratio, supported_ratios

    rows: dict[str, list[Any]] = {}
    weights = [0.0] + [assumptions.equilibrium_weight] * (assumptions.equilibrium_weight > 0)
    for weight in weights:
        weighted = replace(assumptions, equilibrium_weight=weight)
        fits = profile_ratio(
            observed.times, observed.divergence, weighted, PROFILE_RATIOS, starts=PROFILE_STARTS, seed=seed
        )
        if weight == 0:
            supported = supported_ratios(PROFILE_RATIOS, fits)
        for ratio, fit in zip(PROFILE_RATIOS.tolist(), fits, strict=True):
            row = {
                "equilibrium_weight": weight,
                "ratio": ratio,
                "alpha": fit.alpha,
                "beta": fit.beta,
                "founder_intermediate": fit.founder_intermediate,
                "intercept": fit.intercept,
                "rss": fit.rss,
                "penalty": fit.penalty,
            }
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
    return rows, supported


# ----------------------------------------------------------------------------------------------------------- the output


def _divergence_rows(observed: Observed, neutral: NeutralFit) -> dict[str, Any]:
    import numpy as np

    from epivi.divergence.pairs import jackknife_error

    pairs, size = observed.pairs, len(observed.divergence)
    return {
        "sample_1": observed.sample_1,
        "sample_2": observed.sample_2,
        "time0": observed.times.ancestor,
        "time1": observed.times.first,
        "time2": observed.times.second,
        "n_sites": np.zeros(size) if pairs is None else pairs.sites.sum(axis=0),
        "divergence": observed.divergence,
        "standard_error": np.full(size, np.nan) if pairs is None else jackknife_error(pairs),
        "predicted": neutral.predicted,
    }


def _fit_rows(neutral: NeutralFit, null: NullFit, spread: Bootstrap | None, resampled: str) -> dict[str, list[Any]]:
    from epivi.divergence.fit import REPORTED, reported

    nan = float("nan")
    unknown = [nan] * len(REPORTED)
    return {
        "model": ["neutral"] * len(REPORTED) + ["null"],
        "parameter": [*REPORTED, "intercept"],
        "estimate": [*reported(neutral).tolist(), null.intercept],
        "standard_error": [*(unknown if spread is None else spread.standard_error.tolist()), nan],
        "lower": [*(unknown if spread is None else spread.lower.tolist()), nan],
        "upper": [*(unknown if spread is None else spread.upper.tolist()), nan],
        "resampled": [resampled] * len(REPORTED) + ["nothing"],
    }


def _model_rows(neutral: NeutralFit, null: NullFit, comparison: ModelComparison) -> dict[str, list[Any]]:
    from epivi.divergence.fit import PARAMETERS

    nan = float("nan")
    return {
        "model": ["neutral", "null"],
        "n_pairs": [len(neutral.predicted)] * 2,
        "n_parameters": [len(PARAMETERS), 1],
        "rss": [neutral.rss, null.rss],
        "penalty": [neutral.penalty, 0.0],
        "aic": [comparison.aic_neutral, comparison.aic_null],
        "f_statistic": [comparison.f_statistic, nan],
        "p_value": [comparison.p_value, nan],
        "starts": [neutral.starts, 1],
        "agreeing_starts": [neutral.agreeing_starts, 1],
    }


def _write(
    output: Path,
    tables: dict[str, Any],
    settings: dict[str, Any],
    seed: int,
    config_hash: str,
    pedigree_hash: str,
    supported: tuple[float, float],
) -> None:
    import pyarrow as pa

    from epivi.base.files import write_json
    from epivi.divergence.columns import DIVERGENCE_TABLES
    from epivi.tables.parquet import Provenance, write_table

    for name, rows in tables.items():
        kind = name if name == "divergence" else f"divergence_{name}"
        provenance = Provenance(kind, seed, config_hash, pedigree_hash)
        write_table(pa.table(rows), output / f"{name}.parquet", DIVERGENCE_TABLES[kind], provenance)
    small = {name: pa.table(tables[name]).to_pylist() for name in ("fit", "models")}
    low, high = supported
    summary = {**small, "ratios_supported_without_penalty": {"lower": low, "upper": high}, "settings": settings}
    write_json(output / "summary.json", _without_nan(summary))


def _without_nan(value: Any) -> Any:
    """JSON has no nan: null says the same."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _report(
    rows: dict[str, list[Any]], supported: tuple[float, float], weight: float, spread: Bootstrap | None
) -> None:
    from epivi.divergence.fit import RATE_BOUNDS

    for model, name, value, lower, upper in zip(
        *(rows[key] for key in ("model", "parameter", "estimate", "lower", "upper")), strict=True
    ):
        log.info("%-8s %-24s %.4g (%.4g to %.4g)", model, name, value, lower, upper)
    for name, value in zip(rows["parameter"], rows["estimate"], strict=True):
        if name in ("alpha", "beta") and not 1.01 * RATE_BOUNDS[0] < value < 0.99 * RATE_BOUNDS[1]:
            log.warning("%s is at the limit of the search, %g: the divergences do not identify it", name, value)
    log.info("without a penalty the divergences support ratios of loss to gain from %.3g to %.3g", *supported)
    if weight > 0:
        log.info("the ratio above is what the equilibrium penalty makes of it (--equilibrium-weight 0: without)")
    if spread is not None and spread.failed:
        log.warning("%d bootstrap replicates had no differences and were left out", spread.failed)
