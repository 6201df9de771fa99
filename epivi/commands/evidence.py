"""`epivi evidence`: a shard of loci and a fit -> log evidence and posterior moments of every hypothesis."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from epivi.evidence import HypothesisEvidence

log = logging.getLogger(__name__)


@click.command("evidence")
@click.option("--loci", required=True, type=click.Path(), help="Folder written by epivi assemble.")
@click.option("--fit", "fit_folder", required=True, type=click.Path(path_type=Path), help="Folder of the fit.")
@click.option("--samples", required=True, type=click.Path(), help="Sample sheet.")
@click.option("--pedigree", required=True, help='Pedigree file, or {"nodes": ..., "edges": ...} as JSON.')
@click.option("--contig", required=True, help="Contig of the shard.")
@click.option("--start", default=0, show_default=True, type=click.IntRange(min=0), help="First locus of the shard.")
@click.option("--stop", type=click.IntRange(min=1), help="Locus after the last.  [default: all of the contig]")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Parquet file of the shard.")
@click.option("--config", "config_source", required=True, help="Configuration file, or inline JSON.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Processor threads.")
def command(
    loci: str,
    fit_folder: Path,
    samples: str,
    pedigree: str,
    contig: str,
    start: int,
    stop: int | None,
    output: Path,
    config_source: str,
    threads: int,
) -> None:
    """Integrate every hypothesis at every locus of a shard.

    Loci are counted within the contig, from 0, in the order of the store.
    """
    import numpy as np
    from tqdm import tqdm

    from epivi.commands.problem import read_fit, read_problem
    from epivi.config import load_config
    from epivi.errors import UserError
    from epivi.evidence import build_evidence_model
    from epivi.fitted import device_of, use_threads
    from epivi.ladder import CHUNK_LOCI, evaluate_chunks
    from epivi.minibatch import CountsBatch
    from epivi.schema import TABLES
    from epivi.store import LocusBlock, Provenance, TableWriter

    config = load_config(config_source)
    problem = read_problem(loci, samples, pedigree, config)
    fitted = read_fit(fit_folder, problem, samples, pedigree)
    stop = problem.store.n_loci_of(contig) if stop is None else stop
    if not start < stop <= problem.store.n_loci_of(contig):
        raise UserError(
            f"--start {start} --stop {stop}: {contig} has {problem.store.n_loci_of(contig)} loci; expected a part of it"
        )
    use_threads(1)  # of torch: the threads of the evidence take chunks of loci each
    settings, seed = config.section("evidence"), config.seed("evidence")
    model = build_evidence_model(
        problem.cohort, problem.hypotheses, fitted.learned, problem.priors, fitted.encoder_state, fitted.hidden,
        device_of(settings["device"], "evidence"),
    )  # fmt: skip
    before = problem.store.contigs[: problem.store.contigs.index(contig)]
    offset = sum(problem.store.n_loci_of(name) for name in before)
    columns = TABLES["evidence"]
    provenance = Provenance("evidence", seed, config.hash("model", "evidence"), problem.pedigree_hash)
    metadata = {"epivi.contig": contig, "epivi.start": str(start), "epivi.stop": str(stop)}
    blocks = deque[LocusBlock]()

    def chunks() -> Iterator[CountsBatch]:
        for first in range(start, stop, CHUNK_LOCI):
            block = problem.store.block(contig, first, min(first + CHUNK_LOCI, stop))
            blocks.append(block)
            yield CountsBatch(block.meth, block.total, offset + block.start + np.arange(len(block.pos0)))

    names = [hypothesis.name for hypothesis in problem.hypotheses]
    started, reported, done = time.monotonic(), time.monotonic(), 0
    with (
        TableWriter(output, columns, provenance, metadata=metadata) as writer,
        tqdm(total=stop - start, desc=f"evidence {contig}", unit=" loci", disable=None) as bar,
        closing(evaluate_chunks(model, chunks(), settings["nodes"], seed, threads)) as evaluated,
    ):
        for evidences in evaluated:
            block = blocks.popleft()
            writer.write(_rows(block.pos0, block.end0, names, evidences))
            done += len(block.pos0)
            bar.update(len(block.pos0))
            if time.monotonic() - reported > 60:
                log.info("%s: %d of %d loci", contig, done, stop - start)
                reported = time.monotonic()
    seconds = time.monotonic() - started
    log.info("%s: %d loci in %.1f s (%.0f loci/s)", output, stop - start, seconds, (stop - start) / seconds)


def _rows(pos0: np.ndarray, end0: np.ndarray, names: list[str], evidences: list[HypothesisEvidence]) -> pa.Table:
    """Long form: the hypotheses of a locus follow one another."""
    import numpy as np
    import pyarrow as pa

    from epivi.ladder import INNER_METHODS
    from epivi.schema import PARAMETERS

    h = len(names)

    def long(values: list[np.ndarray]) -> np.ndarray:
        return np.stack(values, axis=1).ravel()

    codes = pa.array(np.tile(np.arange(h, dtype=np.int32), len(pos0)))
    columns = {
        "pos": np.repeat(pos0, h),
        "end": np.repeat(end0, h),
        "hypothesis": pa.DictionaryArray.from_arrays(codes, pa.array(names)),
    }
    methods = pa.array(long([evidence.inner_method for evidence in evidences]).astype(np.int32))
    columns["inner_method"] = pa.DictionaryArray.from_arrays(methods, pa.array(INNER_METHODS))
    for name in ("log_evidence", "log_evidence_se", "khat", "inner_error", "laplace_correction"):
        columns[name] = long([getattr(evidence, name) for evidence in evidences])
    for k, parameter in enumerate(PARAMETERS):
        for statistic in ("mean", "q05", "q50", "q95"):
            values = long([getattr(evidence, statistic)[:, k] for evidence in evidences])
            columns[f"{parameter}_{statistic}"] = values.astype(np.float32)
    return pa.table(columns)
