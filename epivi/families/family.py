"""What the commands need of a model family; epivi.families says which steps a family has.

A family is reached only through these, so that no command asks which family it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from epivi.cohort.pedigree import Pedigree
    from epivi.cohort.samples import SampleSheet
    from epivi.fit.bound import LossRow
    from epivi.fit.folder import FitTable
    from epivi.loci.store import LociStore


class Inputs(NamedTuple):
    """A cohort's files as read and joined; the sheet's rows stand in the order of the store's samples."""

    store: LociStore
    sheet: SampleSheet
    pedigree: Pedigree
    pedigree_hash: str
    base_stamp: tuple[Any, ...]  # what every family's stamp holds: pedigree, samples, individuals


class NormalPrior(NamedTuple):
    """A Gaussian prior on an unconstrained scale."""

    mean: float
    sd: float


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


class FitResult(NamedTuple):
    """What a finished fit leaves: a NamedTuple of numbers and arrays, the guide's state, tables by name.

    trained_at: values of the same type at which the guide was trained, None where they are those learned. record:
    further entries of fit.json; warnings: for the summary of the run.
    """

    learned: Any
    guide_state: dict[str, Any]
    tables: Mapping[str, FitTable]
    trained_at: Any = None
    record: Mapping[str, Any] = MappingProxyType({})
    warnings: tuple[str, ...] = ()


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
