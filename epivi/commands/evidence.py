"""`epivi evidence`: a shard of loci and a fit -> log evidence and posterior moments of every hypothesis."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

log = logging.getLogger(__name__)

# Whole chunks of every family; some seconds' work in small cohorts, some minutes' in the largest.
PIECE_LOCI = 1 << 15


@click.command("evidence")
@click.option("--loci", required=True, type=click.Path(), help="Folder written by epivi assemble.")
@click.option("--fit", "fit_folder", required=True, type=click.Path(path_type=Path), help="Folder of the fit.")
@click.option("--samples", required=True, type=click.Path(), help="Sample sheet.")
@click.option("--pedigree", required=True, help='Pedigree file, or {"nodes": ..., "edges": ...} as JSON.')
@click.option("--start", default=0, show_default=True, type=click.IntRange(min=0), help="First locus of the shard.")
@click.option("--stop", type=click.IntRange(min=1), help="Locus after the last.  [default: all loci]")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Parquet file of the shard.")
@click.option("--config", "config_source", required=True, help="Configuration file, or inline JSON.")
@click.option("--resume/--no-resume", default=True, show_default=True, help="Go on from what a killed run finished.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Processor threads.")
def command(
    loci: str,
    fit_folder: Path,
    samples: str,
    pedigree: str,
    start: int,
    stop: int | None,
    output: Path,
    config_source: str,
    resume: bool,
    threads: int,
) -> None:
    """Integrate every hypothesis at every locus of a shard.

    Loci are counted over the genome, from 0, in the order of the store. While it runs, finished pieces of the shard are
    kept in a hidden folder beside the output; killed, the same command goes on from them, and a shard that is whole is
    left as it is, unless the fit, the loci, the configuration or epivi itself have changed.
    """
    from tqdm import tqdm

    from epivi.base.code_version import code_version
    from epivi.base.errors import UserError
    from epivi.base.files import content_hash, file_hash
    from epivi.config.load import load_config
    from epivi.discovery.replicates import FAMILIES_METADATA
    from epivi.families import family_step
    from epivi.families.inputs import read_fit, read_inputs
    from epivi.fit.folder import FIT, GUIDE, use_threads
    from epivi.loci.store import MANIFEST, LocusSpan
    from epivi.tables.parquet import Provenance
    from epivi.tables.parts import part_metadata
    from epivi.tables.pieces import PiecewiseTable, forget

    config = load_config(config_source)
    evidence = family_step(config.family, "evidence")
    prepare = family_step(config.family, "prepare")
    problem = prepare.prepare(read_inputs(loci, samples, pedigree), config)
    store = problem.store
    fitted = read_fit(fit_folder, problem, samples, pedigree, config.family)
    stop = store.n_loci if stop is None else stop
    if not start < stop <= store.n_loci:
        raise UserError(f"--start {start} --stop {stop}: there are {store.n_loci} loci; expected some of them")
    use_threads(1)  # of torch: the threads of the evidence take chunks of loci each
    provenance = Provenance(
        "evidence", config.seed("evidence"), config.hash("model", "evidence"), problem.pedigree_hash
    )
    files = (fit_folder / FIT, fit_folder / GUIDE, store.directory / MANIFEST)
    stamp = content_hash([code_version("evidence", config.family), provenance.metadata(), *map(file_hash, files)])
    if not resume:
        forget(output)
        output.unlink(missing_ok=True)
    families = prepare.families(problem)
    replicates = {} if families is None else {FAMILIES_METADATA: str(families)}
    table = PiecewiseTable(
        output,
        evidence.columns(problem),
        provenance,
        metadata=part_metadata((start, stop), store.n_loci, store.contigs_of(start, stop), stamp) | replicates,
        loci=(start, stop),
        piece_loci=PIECE_LOCI,
        rows_per_locus=len(problem.hypothesis_names),
    )
    if table.is_whole():
        log.info("%s: is already complete", output)
        return
    missing = table.missing()
    n_missing = sum(last - first for first, last in missing)
    if n_missing < stop - start:
        log.info(
            "%s: %d of %d loci are already done; continuing from them", output, stop - start - n_missing, stop - start
        )

    def spans() -> Iterator[LocusSpan]:
        for begin, end in missing:
            for first in range(begin, end, evidence.CHUNK_LOCI):
                yield store.span(first, min(first + evidence.CHUNK_LOCI, end))

    started = time.monotonic()
    with tqdm(total=n_missing, desc="evidence", unit=" loci", disable=None) as bar:
        tables = evidence.tables(problem, fitted, config, spans(), threads)
        table.write(tables, _Progress(output.name, n_missing, bar.update))
    seconds = time.monotonic() - started
    log.info("%s: %d loci in %.1f s (%.0f loci/s)", output, n_missing, seconds, n_missing / seconds)


class _Progress:
    """Moves a bar, and writes a line a minute for those who read the log."""

    def __init__(self, name: str, n_loci: int, move: Callable[[int], object]) -> None:
        self._name, self._n_loci, self._move = name, n_loci, move
        self._done, self._reported = 0, time.monotonic()

    def __call__(self, n_loci: int) -> None:
        self._done += n_loci
        self._move(n_loci)
        if time.monotonic() - self._reported > 60:
            log.info("%s: %d of %d loci", self._name, self._done, self._n_loci)
            self._reported = time.monotonic()
