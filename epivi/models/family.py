"""What the commands need of a model family; FAMILIES in epivi.families holds the families.

A family is reached only through this Protocol, so that no command asks which family it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch
    from numpy.typing import NDArray

    from epivi.compare import QvalueTable
    from epivi.config import Config
    from epivi.fitted import Fitted
    from epivi.infer.ranks import Ranks
    from epivi.infer.svi import LossRow
    from epivi.pedigree import Pedigree
    from epivi.samples import SampleSheet
    from epivi.schema import Column
    from epivi.store import LociStore, LocusSpan


class Inputs(NamedTuple):
    """A cohort's files as read and joined; the sheet's rows stand in the order of the store's samples."""

    store: LociStore
    sheet: SampleSheet
    pedigree: Pedigree
    pedigree_hash: str
    base_stamp: tuple[Any, ...]  # what every family's stamp holds: pedigree, samples, individuals


class FamilyProblem(Protocol):
    """A cohort ready for inference under one family; `stamp` changes with all that a fit depends on but the counts."""

    @property
    def store(self) -> LociStore: ...

    @property
    def hypothesis_names(self) -> tuple[str, ...]: ...

    @property
    def pedigree_hash(self) -> str: ...

    @property
    def stamp(self) -> str: ...


class PyroFamily(Protocol):
    """The density of a family for one cohort: all that the Pyro model function needs besides the data."""

    def density(self, hyper: Any, hypothesis: int, batch: Any) -> None:
        """The Pyro model function of one hypothesis over a minibatch of loci."""


class FitResult(NamedTuple):
    """What a finished fit leaves: a NamedTuple of numbers and arrays, the guide's state, tables by name."""

    learned: Any
    guide_state: dict[str, Any]
    tables: Mapping[str, pa.Table]


class FitRun(Protocol):
    """A fit under way; of several processes, each has one, and all call the same methods in the same order."""

    @property
    def elapsed(self) -> dict[int, float]:
        """Seconds at each step, kept by the caller, who has the clock."""

    @property
    def step(self) -> int: ...

    @property
    def converged(self) -> bool: ...

    @property
    def loss(self) -> Sequence[LossRow]: ...

    @property
    def finishes_slowly(self) -> bool:
        """Whether `finish` takes so long that the state should be saved before."""

    def initialize(self) -> None:
        """Start from the data; not called where a saved state is loaded."""

    def steps(self) -> Iterator[LossRow]:
        """Run, one row a step, until converged or out of steps; the caller may stop at any row."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def finish(self) -> FitResult:
        """What was learned; of several processes, the first alone calls it."""


class Family(Protocol):
    """One model family: its part of fit, evidence, states and posterior. Its declaration is in epivi.declarations."""

    chunk_loci: int  # loci that the evidence takes at once

    def prepare(self, inputs: Inputs, config: Config) -> FamilyProblem:
        """Join inputs and hypotheses. Raises UserError where they do not fit the family."""

    def learned_type(self) -> Any:
        """The NamedTuple of what all loci share, as kept in fit.json."""

    def compile_kernel(self) -> None:
        """Compile what the evidence runs, so that no later process has to."""

    def start_fit(self, problem: Any, config: Config, device: torch.device, ranks: Ranks = ...) -> FitRun:
        """A fit that has not begun; ranks: the processes that work on it, this one alone where it is left out.

        Raises UserError where fit and data do not go together. Nothing is exchanged with other processes yet.
        """

    def evidence_columns(self) -> tuple[Column, ...]: ...

    def evidence_tables(
        self, problem: Any, fitted: Fitted, config: Config, spans: Iterable[LocusSpan], threads: int
    ) -> Iterator[pa.Table]:
        """The evidence table of each span of loci, hypotheses of a locus in a row."""

    def state_tables(
        self, problem: Any, fitted: Fitted, weight: NDArray[np.float64], spans: Iterable[LocusSpan], threads: int
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Tables `states` and `branches` of each span, averaged over hypotheses of these weights, for a family
        that is declared to have states."""

    def posterior_columns(self, hypotheses: Sequence[str]) -> tuple[Column, ...]: ...

    def posterior_table(
        self,
        span: LocusSpan,
        evidence: pa.RecordBatch,
        hypotheses: Sequence[str],
        is_null: NDArray[np.bool_],
        weight: NDArray[np.float64],
        table: QvalueTable,
    ) -> dict[str, Any]:
        """Columns of the posterior table for the loci of a span from their rows of evidence."""
