"""A cohort's results as one object, for scripts and notebooks; nothing is read before it is asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from epivi.base.errors import UserError
from epivi.base.files import atomic_path
from epivi.results.query import select, write_bed
from epivi.results.selection import BED_COLUMNS, Selection
from epivi.results.summary import Summary, read_summary, shared_folder
from epivi.tables.parquet import PathLike, conform, read_table


def open_results(path: PathLike) -> Results:
    """The results that the workflow wrote: of a cohort, from its folder `<results>/<cohort>`, or of a further analysis
    of its loci, from `<results>/<cohort>/analyses/<name>`.

    Raises UserError where the folder holds no finished run.
    """
    folder = Path(path)
    if not (folder / "manifest.json").is_file():
        raise UserError(f"{folder}: no manifest.json; expected the folder of a cohort's results, after a finished run")
    return Results(folder)


@dataclass(frozen=True)
class Results:
    """Results of one analysis of a cohort. Tables are whole and of one run, or a UserError says what is missing."""

    path: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What went in, with which settings and versions, and what came out."""
        manifest: dict[str, Any] = json.loads((self.path / "manifest.json").read_text())
        return manifest

    @cached_property
    def summary(self) -> Summary:
        """The result in a few numbers, as `epivi summary` prints it."""
        return read_summary(self.path / "manifest.json")

    @cached_property
    def weights(self) -> pa.Table:
        """Share of the loci for which each hypothesis holds, with its interval."""
        return read_table(self.path / "compare" / "weights.parquet", "weights")

    @cached_property
    def design(self) -> pa.Table:
        """What the samples can show of every two hypotheses, as it was computed before the run."""
        return read_table(self.path / "design" / "design.parquet", "design")

    @cached_property
    def findings(self) -> pa.Table:
        """Warnings about samples, each with its number and limit."""
        return read_table(shared_folder(self.path) / "quality" / "findings.parquet", "findings")

    @cached_property
    def relatives(self) -> pa.Table:
        """How alike relatives of each kind are, within and across levels of columns of the sheet."""
        return read_table(self.path / "relatives" / "relatives.parquet", "relatives")

    def posterior(
        self, region: str | None = None, where: str = "", columns: Sequence[str] = (), limit: int | None = None
    ) -> pa.Table:
        """Loci of a region that meet a condition, in genome order.

        region: contig, contig:start-end (0-based, half-open), contig:start- or contig:position; where: a condition in
        SQL; columns: all where there are none. Raises UserError on an unknown contig or column and on bad SQL.
        """
        return self._table(Selection(region, where, tuple(columns), limit))

    def states(self, region: str | None = None, where: str = "", columns: Sequence[str] = ()) -> pa.Table:
        """Posterior states of individuals (family `epimutation`); arguments and errors as of `posterior`."""
        return self._table(Selection(region, where, tuple(columns), table="states"))

    def branches(self, region: str | None = None, where: str = "", columns: Sequence[str] = ()) -> pa.Table:
        """Gains and losses on the branches of the lineage; arguments and errors as of `posterior`."""
        return self._table(Selection(region, where, tuple(columns), table="branches"))

    def to_bed(self, path: PathLike, region: str | None = None, where: str = "") -> None:
        """Write loci as BED of six columns: the best hypothesis or the set of kinds, 1000 (1 - lfdr) and the strand."""
        with (
            select(self.path, Selection(region, where, BED_COLUMNS)) as result,
            atomic_path(path) as temporary,
            temporary.open("wb") as stream,
        ):
            write_bed(result, stream)

    def _table(self, selection: Selection) -> pa.Table:
        with select(self.path, selection) as result:
            batches = list(result.batches)
            table = pa.Table.from_batches(batches) if batches else result.schema.empty_table()
            return conform(table, result.schema)
