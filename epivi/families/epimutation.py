"""The family `epimutation` at each step of the workflow; its density is epivi.models.epimutation."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from epivi.errors import UserError
from epivi.infer.ranks import ALONE, Ranks
from epivi.models.family import FitResult, FitRun, Inputs

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch
    from numpy.typing import NDArray

    from epivi.compare import QvalueTable
    from epivi.config import Config
    from epivi.fitted import Fitted
    from epivi.infer.states.elimination import EliminationPlan
    from epivi.infer.states.lineage import StateLineage
    from epivi.infer.svi import FitSettings, LossRow
    from epivi.locus_classes import LocusClasses
    from epivi.minibatch import CountsBatch, Minibatches
    from epivi.models.epimutation import LearnedStates, StateBatch
    from epivi.pedigree import Pedigree
    from epivi.samples import SampleSheet
    from epivi.schema import Column
    from epivi.state_evidence import StateEvidence
    from epivi.state_fit import ClassFit
    from epivi.state_hypotheses import StateHypothesis, StatePriors
    from epivi.state_tables import LocusStates
    from epivi.store import LociStore, LocusSpan

Result = TypeVar("Result")
STATISTICS = ("mean", "q05", "q50", "q95")
UNKNOWN_CONTEXT = "."  # of adenines, which have no context


class StateProblem(NamedTuple):
    """A cohort ready for inference; `stamp` changes with samples, pedigree, classes and model."""

    store: LociStore
    plan: EliminationPlan
    hypotheses: tuple[StateHypothesis, ...]
    priors: StatePriors
    classes: LocusClasses
    pedigree_hash: str
    stamp: str
    sheet: SampleSheet  # in the order of the store's samples
    pedigree: Pedigree  # with the mode that the configuration says

    @property
    def hypothesis_names(self) -> tuple[str, ...]:
        return tuple(hypothesis.name for hypothesis in self.hypotheses)


def _require_whole_individuals(sheet: SampleSheet) -> None:
    """Raise UserError for a sample of one haplotype: a state is that of both copies."""
    for row, sample in enumerate(sheet.samples):
        if sheet.origin_of(row) != "both":
            raise UserError(
                f"{sheet.path} line {sheet.lines[row]}: sample {sample!r} is one haplotype; "
                "expected whole individuals, as the family epimutation needs them"
            )


class EpimutationFamily:
    """Gain and loss of discrete states along selfed lines, clones and crosses."""

    chunk_loci = 1 << 14  # 121 points at all of them are 16 MB

    def prepare(self, inputs: Inputs, config: Config) -> StateProblem:
        from epivi.files import content_hash
        from epivi.infer.states.elimination import build_plan
        from epivi.infer.states.lineage import build_lineage
        from epivi.locus_classes import read_classes
        from epivi.state_hypotheses import StatePriors, parse_state_hypotheses

        _require_whole_individuals(inputs.sheet)
        model = config.section("model")
        contexts = (UNKNOWN_CONTEXT,) if config.section("loci")["modification"] == "a" else config.contexts
        classes = read_classes(model["classes"], contexts)
        pedigree = with_mode(inputs.pedigree, model["mode"])
        plan = build_plan(build_lineage(pedigree, inputs.sheet.individuals), "pedigree")
        intervals = {name: [part.tolist() for part in contig] for name, contig in classes.contigs.items()}
        stamp = content_hash(
            [
                *inputs.base_stamp,
                classes.names,
                intervals,
                {key: value for key, value in model.items() if key != "null_hypotheses"},
            ]
        )
        return StateProblem(
            inputs.store,
            plan,
            parse_state_hypotheses(model["hypotheses"]),
            StatePriors(float(model["priors"]["rate_sd"]), float(model["priors"]["fitness_sd"])),
            classes,
            inputs.pedigree_hash,
            stamp,
            inputs.sheet,
            pedigree,
        )

    def learned_type(self) -> Any:
        from epivi.models.epimutation import LearnedStates

        return LearnedStates

    def compile_kernel(self) -> None:
        from epivi.state_tables import compile_kernel

        compile_kernel()

    def start_fit(self, problem: StateProblem, config: Config, device: torch.device, ranks: Ranks = ALONE) -> FitRun:
        return EpimutationFit(problem, config, device, ranks)

    def evidence_columns(self) -> tuple[Column, ...]:
        from epivi.schema import TABLES

        return TABLES["state_evidence"]

    def evidence_tables(
        self,
        problem: StateProblem,
        fitted: Fitted,
        config: Config,
        spans: Iterable[LocusSpan],
        threads: int,
    ) -> Iterator[pa.Table]:
        from epivi.state_evidence import build_state_model, evaluate_loci

        model = build_state_model(problem.plan, problem.hypotheses, problem.priors, fitted.learned)

        def evaluate(span: LocusSpan) -> pa.Table:
            codes = problem.classes.codes_of(span)
            found = evaluate_loci(model, span.meth, span.total, codes)
            return _evidence_rows(span, codes, problem.classes.names, problem.hypothesis_names, found)

        return _in_threads(evaluate, spans, threads)

    def state_tables(
        self,
        problem: StateProblem,
        fitted: Fitted,
        weight: NDArray[np.float64],
        spans: Iterable[LocusSpan],
        threads: int,
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        from epivi.state_evidence import build_state_model
        from epivi.state_tables import locus_states

        model = build_state_model(problem.plan, problem.hypotheses, problem.priors, fitted.learned)

        def evaluate(span: LocusSpan) -> tuple[pa.Table, pa.Table]:
            found = locus_states(model, weight, span.meth, span.total, problem.classes.codes_of(span))
            return _state_rows(span, problem.plan.lineage, found), _branch_rows(span, problem.plan.lineage, found)

        return _in_threads(evaluate, spans, threads)

    def posterior_columns(self, hypotheses: Sequence[str]) -> tuple[Column, ...]:
        from epivi.schema import state_posterior_columns

        return state_posterior_columns(hypotheses)

    def posterior_table(
        self,
        span: LocusSpan,
        evidence: pa.RecordBatch,
        hypotheses: Sequence[str],
        is_null: NDArray[np.bool_],
        weight: NDArray[np.float64],
        table: QvalueTable,
    ) -> dict[str, Any]:
        from epivi.state_posterior import state_posterior_table

        return state_posterior_table(span, evidence, hypotheses, is_null, weight, table)


def with_mode(pedigree: Pedigree, mode: str | None) -> Pedigree:
    """The pedigree with another mode for the individuals that have one parent and are not of a cross."""
    from dataclasses import replace

    if mode is None:
        return pedigree
    return replace(pedigree, mode=tuple(own if own == "sexual" else mode for own in pedigree.mode))


class EpimutationFit:
    """Rates of every class from all loci, then the stochastic fit of the guide and of the hypotheses' weights."""

    def __init__(self, problem: StateProblem, config: Config, device: torch.device, ranks: Ranks) -> None:
        from epivi.infer.svi import FitSettings
        from epivi.minibatch import Minibatches

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
        import torch

        from epivi.state_fit import fit_classes

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
        from epivi.state_fit import packed

        assert self._stochastic is not None
        stochastic = self._stochastic.state.state_dict(self._minibatches)
        return {"classes": {name: packed(fit) for name, fit in self._fits.items()}, "stochastic": stochastic}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        from epivi.state_fit import unpacked

        self._fits = {name: unpacked(name, parts) for name, parts in state["classes"].items()}
        self._stochastic = self._new_part()
        self._stochastic.state.load_state_dict(state["stochastic"], self._minibatches)

    def finish(self) -> FitResult:
        import pyarrow as pa

        from epivi.state_fit import divergence_rows, profile_rows, rate_rows

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
        return FitResult(learned, guide, {name: pa.table(rows) for name, rows in tables.items()})

    def _new_part(self) -> StochasticPart:
        from epivi.state_fit import learned_states

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
        problem: StateProblem,
        learned: LearnedStates,
        minibatches: Minibatches,
        settings: FitSettings,
        hidden: int,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        import torch

        from epivi.guides.states import StateEncoder
        from epivi.infer.svi import FitState
        from epivi.models.epimutation import Weights, build_epimutation

        self.learned = learned
        self._minibatches, self._settings, self._device = minibatches, settings, device
        # Double precision: tables of a lineage span more than single precision holds.
        self._dtype = torch.float64
        self._family = build_epimutation(problem.plan, problem.hypotheses, problem.priors, learned, device, self._dtype)
        self._class_code = problem.classes.all_codes(problem.store)
        encoder = StateEncoder(self._family, hidden).to(device, self._dtype)
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
        from epivi.guides import STATE_GUIDES
        from epivi.infer.svi import fit_steps

        if self.is_needed:
            yield from fit_steps(
                self.state,
                self._family,
                STATE_GUIDES[guide],
                self._minibatches,
                self._settings,
                self._device,
                self._batch,
            )

    def _batch(self, counts: CountsBatch, n_loci: int, device: torch.device) -> StateBatch:
        from epivi.models.epimutation import state_batch

        codes = self._class_code[counts.locus]
        return state_batch(self._family.plan, self.learned, counts, codes, n_loci, device, self._dtype)


def _in_threads(evaluate: Callable[[LocusSpan], Result], spans: Iterable[LocusSpan], threads: int) -> Iterator[Result]:
    """Results of the spans in their order, each by one thread; two spans for each thread are held at a time."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="states") as pool:
        for span in spans:
            waiting.append(pool.submit(evaluate, span))
            if len(waiting) == 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _labels(codes: NDArray[np.int64], words: Sequence[str]) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(list(words)))


def _state_rows(span: LocusSpan, lineage: StateLineage, found: LocusStates) -> pa.Table:
    """Long form: the nodes of a locus follow one another."""
    import numpy as np
    import pyarrow as pa

    from epivi.store import long_places

    n = len(lineage.nodes)
    columns = {
        **long_places(span, n),
        "node": _labels(np.tile(np.arange(n), len(span.pos0)), lineage.nodes),
    }
    names = ("prob_unmethylated", "prob_intermediate", "prob_methylated")
    return pa.table(columns | {name: found.states[:, :, x].ravel() for x, name in enumerate(names)})


def _branch_rows(span: LocusSpan, lineage: StateLineage, found: LocusStates) -> pa.Table:
    """Long form: the branches of a locus follow one another."""
    import numpy as np
    import pyarrow as pa

    from epivi.store import long_places

    parent, child = np.array(lineage.branches).reshape(-1, 2).T
    columns = {
        **long_places(span, len(parent)),
        "parent": _labels(np.tile(parent, len(span.pos0)), lineage.nodes),
        "child": _labels(np.tile(child, len(span.pos0)), lineage.nodes),
    }
    return pa.table(
        columns | {name: found.events[:, :, x].ravel() for x, name in enumerate(("prob_gain", "prob_loss"))}
    )


def _evidence_rows(
    span: LocusSpan,
    class_code: NDArray[np.int16],
    classes: Sequence[str],
    names: Sequence[str],
    evidences: list[StateEvidence],
) -> pa.Table:
    """Long form: the hypotheses of a locus follow one another."""
    import numpy as np
    import pyarrow as pa

    from epivi.schema import STATE_PARAMETERS
    from epivi.store import long_places

    h = len(names)

    def long(values: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.stack(values, axis=1).ravel()

    columns = {
        **long_places(span, h),
        "end": np.repeat(span.end0, h),
        "hypothesis": _labels(np.tile(np.arange(h), len(span.pos0)), names),
        "class": _labels(np.repeat(class_code, h), classes),
    }
    for name in ("log_evidence", "log_evidence_error"):
        columns[name] = long([getattr(evidence, name) for evidence in evidences])
    for k, parameter in enumerate(STATE_PARAMETERS):
        for statistic in STATISTICS:
            values = long([getattr(evidence, statistic)[:, k] for evidence in evidences])
            columns[f"{parameter}_{statistic}"] = values.astype(np.float32)
    return pa.table(columns)
