"""The family `transmission` at each step of the workflow; its density is epivi.models.transmission."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

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
    from epivi.evidence import HypothesisEvidence
    from epivi.field import Cohort
    from epivi.fitted import Fitted
    from epivi.hypotheses import Hypothesis, NormalPrior
    from epivi.infer.svi import LossRow
    from epivi.minibatch import CountsBatch
    from epivi.models.transmission import LearnedPriors
    from epivi.pedigree import Pedigree
    from epivi.samples import SampleSheet
    from epivi.schema import Column
    from epivi.store import LociStore, LocusSpan

log = logging.getLogger(__name__)

FEWEST_FAMILIES = 3  # below which the fit warns that hypotheses are hardly told apart
STATISTICS = ("mean", "q05", "q50", "q95")


class Problem(NamedTuple):
    """A cohort ready for inference; `stamp` changes with samples, sheet columns, pedigree and model."""

    store: LociStore
    cohort: Cohort
    hypotheses: tuple[Hypothesis, ...]
    priors: dict[str, NormalPrior]
    pedigree_hash: str
    stamp: str
    sheet: SampleSheet  # in the order of the store's samples
    pedigree: Pedigree

    @property
    def hypothesis_names(self) -> tuple[str, ...]:
        return tuple(hypothesis.name for hypothesis in self.hypotheses)


class TransmissionFamily:
    """Quantitative transmission on the logit scale."""

    chunk_loci = 512  # with 64 nodes an array of all takes 0.26 MB, which processors keep at hand

    def prepare(self, inputs: Inputs, config: Config) -> Problem:
        from epivi.field import build_cohort
        from epivi.files import content_hash
        from epivi.hypotheses import parse_hypotheses, share_priors

        model, sheet = config.section("model"), inputs.sheet
        hypotheses = parse_hypotheses(model["hypotheses"])
        cohort = build_cohort(sheet, inputs.pedigree, model["covariates"], hypotheses)
        stamp = content_hash(
            [
                *inputs.base_stamp,
                [*sheet.false_methylated, *sheet.false_unmethylated],
                [sheet.columns[name] for name in config.sheet_columns],
                {key: value for key, value in model.items() if key != "null_hypotheses"},
            ]
        )
        priors = share_priors(model["priors"])
        return Problem(inputs.store, cohort, hypotheses, priors, inputs.pedigree_hash, stamp, sheet, inputs.pedigree)

    def learned_type(self) -> Any:
        from epivi.models.transmission import LearnedPriors

        return LearnedPriors

    def compile_kernel(self) -> None:
        from epivi.infer.kernel.nodes import compile_kernel

        compile_kernel()

    def start_fit(self, problem: Problem, config: Config, device: torch.device, ranks: Ranks = ALONE) -> FitRun:
        from epivi.field import has_exact_reads

        if config.section("fit")["method"] == "cavi" and not has_exact_reads(problem.cohort):
            raise UserError(
                f"{problem.sheet.path}: fit.method cavi needs false_methylated and false_unmethylated to be 0 for "
                "every sample; expected another method"
            )
        _warn_of_few_families(problem)
        return TransmissionFit(problem, config, device, ranks)

    def evidence_columns(self) -> tuple[Column, ...]:
        from epivi.schema import TABLES

        return TABLES["evidence"]

    def evidence_tables(
        self,
        problem: Problem,
        fitted: Fitted,
        config: Config,
        spans: Iterable[LocusSpan],
        threads: int,
    ) -> Iterator[pa.Table]:
        import numpy as np

        from epivi.evidence import build_evidence_model
        from epivi.fitted import device_of
        from epivi.ladder import evaluate_chunks
        from epivi.minibatch import CountsBatch

        settings = config.section("evidence")
        model = build_evidence_model(
            problem.cohort, problem.hypotheses, fitted.learned, problem.priors, fitted.encoder_state, fitted.hidden,
            device_of(settings["device"], "evidence"),
        )  # fmt: skip
        waiting = deque["LocusSpan"]()

        def chunks() -> Iterator[CountsBatch]:
            for span in spans:
                waiting.append(span)
                yield CountsBatch(span.meth, span.total, span.start + np.arange(len(span.pos0)))

        with closing(evaluate_chunks(model, chunks(), settings["nodes"], config.seed("evidence"), threads)) as found:
            for evidences in found:
                yield _evidence_rows(waiting.popleft(), problem.hypothesis_names, evidences)

    def state_tables(
        self,
        problem: Problem,
        fitted: Fitted,
        weight: NDArray[np.float64],
        spans: Iterable[LocusSpan],
        threads: int,
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        raise UserError("model.family transmission has no discrete states of individuals: expected epimutation")

    def posterior_columns(self, hypotheses: Sequence[str]) -> tuple[Column, ...]:
        from epivi.schema import posterior_columns

        return posterior_columns(hypotheses)

    def posterior_table(
        self,
        span: LocusSpan,
        evidence: pa.RecordBatch,
        hypotheses: Sequence[str],
        is_null: NDArray[np.bool_],
        weight: NDArray[np.float64],
        table: QvalueTable,
    ) -> dict[str, Any]:
        import numpy as np

        from epivi.posterior import EvidenceColumns, posterior_table
        from epivi.schema import PARAMETERS

        statistics = [f"{parameter}_{statistic}" for parameter in PARAMETERS for statistic in STATISTICS]
        wide = {
            name: evidence[name].to_numpy().astype(np.float64).reshape(-1, len(hypotheses))
            for name in ("log_evidence", "log_evidence_se", "khat", "inner_error", *statistics)
        }
        shard = EvidenceColumns(
            wide["log_evidence"],
            wide["log_evidence_se"],
            wide["khat"],
            wide["inner_error"],
            {name: wide[name] for name in statistics},
        )
        return posterior_table(span, shard, hypotheses, is_null, weight, table)


class TransmissionFit:
    """The stochastic fit, and what another method then learns anew."""

    def __init__(self, problem: Problem, config: Config, device: torch.device, ranks: Ranks) -> None:
        from epivi.infer.svi import FIT_DTYPE, FitSettings, FitState, new_state
        from epivi.minibatch import Minibatches
        from epivi.models.transmission import build_transmission

        section, seed = config.section("fit"), config.seed("fit")
        self._problem, self._section, self._seed, self._device = problem, section, seed, device
        self._settings = FitSettings(
            section["max_steps"], section["learning_rate"], section["check_every"], section["tolerance"], seed
        )
        self._family = build_transmission(problem.cohort, problem.hypotheses, problem.priors, device, FIT_DTYPE)
        self._minibatches = Minibatches(problem.store, section["batch_loci"], section["holdout_loci"], seed, ranks)
        components = config.section("model")["baseline_components"]
        self._state: FitState = new_state(
            problem.cohort, self._family, components, section["hidden"], self._settings, device, ranks
        )

    @property
    def elapsed(self) -> dict[int, float]:
        return self._state.elapsed

    @property
    def step(self) -> int:
        return self._state.step

    @property
    def converged(self) -> bool:
        return self._state.converged

    @property
    def loss(self) -> Sequence[LossRow]:
        return self._state.loss

    @property
    def finishes_slowly(self) -> bool:
        return bool(self._section["method"] != "svi")

    def initialize(self) -> None:
        from epivi.infer.svi import initialize, to_batch

        initialize(self._state, to_batch(self._minibatches.all_held_out(), self._minibatches.n_loci, self._device))

    def steps(self) -> Iterator[LossRow]:
        from epivi.guides import GUIDES
        from epivi.infer.svi import fit_steps

        guide = GUIDES[self._section["guide"]]
        return fit_steps(self._state, self._family, guide, self._minibatches, self._settings, self._device)

    def state_dict(self) -> dict[str, Any]:
        return self._state.state_dict(self._minibatches)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state.load_state_dict(state, self._minibatches)

    def finish(self) -> FitResult:
        from epivi.models.transmission import LearnedPriors

        learned = LearnedPriors.of(self._state.averaged)
        encoder = {name: tensor.cpu() for name, tensor in self._state.encoder.state_dict().items()}
        if self._section["method"] != "svi":
            learned = _learn_anew(self._problem, learned, encoder, self._section, self._seed)
        return FitResult(learned, encoder, {})


def _warn_of_few_families(problem: Problem) -> None:
    families = min(
        (len(f.block_start) - 1 for h, f in zip(problem.hypotheses, problem.cohort.fields, strict=True) if h.transmits),
        default=FEWEST_FAMILIES,
    )
    if families < FEWEST_FAMILIES:
        log.warning(
            "unrelated families: %d. What a whole family shares cannot be told from the baseline of the locus, so that "
            "the weights of the hypotheses rest on the priors; look at the posteriors within a hypothesis",
            families,
        )  # fmt: skip


def _learn_anew(
    problem: Problem,
    learned: LearnedPriors,
    encoder: dict[str, Any],
    section: dict[str, Any],
    seed: int,
) -> LearnedPriors:
    """What all loci share, by the method of the configuration at some of them."""
    import numpy as np
    from tqdm import tqdm

    from epivi.evidence import build_evidence_model
    from epivi.guides import GUIDES
    from epivi.infer.empirical_bayes import iterate
    from epivi.minibatch import sample_loci

    method, cohort = section["method"], problem.cohort
    model = build_evidence_model(cohort, problem.hypotheses, learned, problem.priors, encoder, section["hidden"])
    loci = sample_loci(problem.store, section["method_loci"], seed)
    with tqdm(desc=f"fit by {method}", unit=" loci", disable=None) as bar:
        for step in iterate(model, GUIDES[section["guide"]], method, loci, seed, bar.update):
            log.info("%s: log evidence %.4f nats per locus", method, step.log_evidence)
    if not step.converged:
        log.warning("%s: not converged", method)
    weights = zip(problem.hypotheses, learned.hypothesis_weights, step.learned.hypothesis_weights, strict=True)
    for hypothesis, before, after in weights:
        log.info("weight of %s: %.3f by svi, %.3f by %s", hypothesis.name, before, after, method)
    if not all(np.isfinite(value).all() for value in step.learned):
        raise UserError(f"fit.method: {method} found no hyper-parameters; expected another method, or more loci")
    return step.learned


def _evidence_rows(span: LocusSpan, names: Sequence[str], evidences: list[HypothesisEvidence]) -> pa.Table:
    """Long form: the hypotheses of a locus follow one another."""
    import numpy as np
    import pyarrow as pa

    from epivi.ladder import INNER_METHODS
    from epivi.schema import PARAMETERS
    from epivi.store import long_places

    h = len(names)

    def long(values: list[np.ndarray]) -> np.ndarray:
        return np.stack(values, axis=1).ravel()

    codes = pa.array(np.tile(np.arange(h, dtype=np.int32), len(span.pos0)))
    columns = {
        **long_places(span, h),
        "end": np.repeat(span.end0, h),
        "hypothesis": pa.DictionaryArray.from_arrays(codes, pa.array(names)),
    }
    methods = pa.array(long([evidence.inner_method for evidence in evidences]).astype(np.int32))
    columns["inner_method"] = pa.DictionaryArray.from_arrays(methods, pa.array(INNER_METHODS))
    for name in ("log_evidence", "log_evidence_se", "khat", "inner_error", "laplace_correction"):
        columns[name] = long([getattr(evidence, name) for evidence in evidences])
    for k, parameter in enumerate(PARAMETERS):
        for statistic in STATISTICS:
            values = long([getattr(evidence, statistic)[:, k] for evidence in evidences])
            columns[f"{parameter}_{statistic}"] = values.astype(np.float32)
    return pa.table(columns)
