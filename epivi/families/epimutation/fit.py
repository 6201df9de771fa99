"""Fit of rates, weights and guide under the family `epimutation`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import torch

from epivi.config.load import Config
from epivi.families.epimutation.classes import (
    ClassFit,
    divergence_rows,
    fit_classes,
    learned_states,
    packed,
    profile_rows,
    rate_rows,
    unpacked,
)
from epivi.families.epimutation.columns import EPIMUTATION_TABLES
from epivi.families.epimutation.density import (
    EpimutationBatch,
    LearnedStates,
    Weights,
    build_epimutation,
    epimutation_batch,
)
from epivi.families.epimutation.guide import EPIMUTATION_GUIDES, EpimutationEncoder
from epivi.families.epimutation.prepare import EpimutationProblem
from epivi.families.family import FitResult, FitRun
from epivi.fit.bound import LossRow
from epivi.fit.folder import FitTable
from epivi.fit.minibatch import Minibatches
from epivi.fit.ranks import ALONE, Ranks
from epivi.fit.svi import FitSettings, FitState, fit_steps
from epivi.loci.source import CountsBatch


def start(problem: EpimutationProblem, config: Config, device: torch.device, ranks: Ranks = ALONE) -> FitRun:
    """A fit that has not begun; ranks: the processes that work on it, this one alone where it is left out."""
    return EpimutationFit(problem, config, device, ranks)


class EpimutationFit:
    """Rates of every class from all loci, then the stochastic fit of the guide and of the hypotheses' weights."""

    def __init__(self, problem: EpimutationProblem, config: Config, device: torch.device, ranks: Ranks) -> None:
        section, seed = config.section("fit"), config.seed("fit")
        self._problem, self._section, self._seed = problem, section, seed
        self._device, self._ranks = device, ranks
        self._settings = FitSettings(
            section["max_steps"], section["learning_rate"], section["check_every"], section["tolerance"], seed
        )
        self._minibatches = Minibatches(problem.store, section["batch_loci"], section["holdout_loci"], seed, ranks)
        self._fits: dict[str, ClassFit] = {}
        self._stochastic: StochasticPart | None = None  # once the rates are known

    @property
    def elapsed(self) -> dict[int, float]:
        return {} if self._stochastic is None else self._stochastic.state.elapsed

    @property
    def step(self) -> int:
        return 0 if self._stochastic is None else self._stochastic.state.step

    @property
    def converged(self) -> bool:
        return self._stochastic is None or not self._stochastic.is_needed or self._stochastic.state.converged

    @property
    def loss(self) -> Sequence[LossRow]:
        return [] if self._stochastic is None else self._stochastic.state.loss

    @property
    def finishes_slowly(self) -> bool:
        return True

    def initialize(self) -> None:
        problem = self._problem
        threads = torch.get_num_threads()
        self._fits = self._ranks.from_first(
            lambda: fit_classes(problem.plan, problem.store, problem.classes, self._seed, threads)
        )
        self._stochastic = self._new_part()
        self._stochastic.standardize(self._minibatches.all_held_out())

    def steps(self) -> Iterator[LossRow]:
        assert self._stochastic is not None  # initialize or load_state_dict came before
        return self._stochastic.steps(self._section["guide"])

    def state_dict(self) -> dict[str, Any]:
        assert self._stochastic is not None
        stochastic = self._stochastic.state.state_dict(self._minibatches)
        return {"classes": {name: packed(fit) for name, fit in self._fits.items()}, "stochastic": stochastic}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._fits = {name: unpacked(name, parts) for name, parts in state["classes"].items()}
        self._stochastic = self._new_part()
        self._stochastic.state.load_state_dict(state["stochastic"], self._minibatches)

    def finish(self) -> FitResult:
        assert self._stochastic is not None
        problem = self._problem
        individuals = problem.sheet.individuals
        tables = {
            "rates": rate_rows(self._fits),
            "expected_divergence": divergence_rows(self._fits, problem.pedigree),
            "ratio_profile": profile_rows(
                self._fits, problem.store, problem.classes, problem.pedigree, individuals, self._seed
            ),
        }
        state = self._stochastic.state
        weights = state.averaged.log_weights().exp().detach().cpu().numpy()
        guide = {name: tensor.cpu() for name, tensor in state.encoder.state_dict().items()}
        learned = self._stochastic.learned._replace(hypothesis_weights=weights)
        return FitResult(
            learned, guide, {name: FitTable(EPIMUTATION_TABLES[name], pa.table(rows)) for name, rows in tables.items()}
        )

    def _new_part(self) -> StochasticPart:
        learned = learned_states(self._fits, self._problem.classes, len(self._problem.hypotheses))
        return StochasticPart(
            self._problem,
            learned,
            self._minibatches,
            self._settings,
            self._section["hidden"],
            self._device,
            self._ranks,
        )


class StochasticPart:
    """The stochastic fit of one cohort with the rates of its classes known."""

    def __init__(
        self,
        problem: EpimutationProblem,
        learned: LearnedStates,
        minibatches: Minibatches,
        settings: FitSettings,
        hidden: int,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.learned = learned
        self._minibatches, self._settings, self._device = minibatches, settings, device
        # Double precision: tables of a lineage span more than single precision holds.
        self._dtype = torch.float64
        self._family = build_epimutation(problem.plan, problem.hypotheses, problem.priors, learned, device, self._dtype)
        self._class_code = problem.classes.all_codes(problem.store)
        encoder = EpimutationEncoder(self._family, hidden).to(device, self._dtype)
        hyper = Weights(len(problem.hypotheses)).to(device, self._dtype)
        self.state = FitState(encoder, hyper, settings, ranks)

    @property
    def is_needed(self) -> bool:
        """Whether any hypothesis has a free parameter, so that there is a guide to fit."""
        return any(hypothesis.parameters for hypothesis in self._family.hypotheses)

    def standardize(self, counts: CountsBatch) -> None:
        """Scale what the guide sees by these loci."""
        self.state.encoder.standardize(self._batch(counts, self._minibatches.n_loci, self._device))

    def steps(self, guide: str) -> Iterator[LossRow]:
        """Run; nothing without a guide to fit."""
        if self.is_needed:
            yield from fit_steps(
                self.state,
                self._family,
                EPIMUTATION_GUIDES[guide],
                self._minibatches,
                self._settings,
                self._device,
                self._batch,
            )

    def _batch(self, counts: CountsBatch, n_loci: int, device: torch.device) -> EpimutationBatch:
        codes = self._class_code[counts.locus]
        return epimutation_batch(self._family.plan, self.learned, counts, codes, n_loci, device, self._dtype)
