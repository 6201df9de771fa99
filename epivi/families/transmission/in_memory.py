"""Evidence of loci that are in memory: counts as arrays, without files, a store or a fit (`epivi.evidence`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from epivi.base.errors import UserError
from epivi.cohort.haplotypes import check_sexual, sampled_units
from epivi.cohort.kinship import sampled_families
from epivi.cohort.pedigree import Pedigree, check_samples
from epivi.cohort.pedigree_files import pedigree_of_table, read_pedigree
from epivi.cohort.samples import SampleSheet, as_texts, check_unique, columns_of
from epivi.config.load import Config, load_config, suggestion
from epivi.discovery.merged import group_name
from epivi.discovery.probabilities import mixture_probabilities
from epivi.discovery.replicates import why_nothing_is_called
from epivi.discovery.weights import WeightPrior, Weights, prior_weights, weight_posterior, weight_prior
from epivi.families.family import NormalPrior
from epivi.families.inputs import base_stamp
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.columns import evidence_columns, parameters_of
from epivi.families.transmission.density import LearnedPriors
from epivi.families.transmission.estimate import estimated_hyperparameters, starting_hyperparameters
from epivi.families.transmission.evidence import long_rows
from epivi.families.transmission.gaussian_cohort import read_noise
from epivi.families.transmission.hypotheses import Hypothesis, parse_hypotheses, share_priors, shared_components
from epivi.families.transmission.outer_integral import build_evidence_model
from epivi.families.transmission.prepare import stamp_of
from epivi.families.transmission.proposal import adapting_model
from epivi.families.transmission.refinement import evaluate_batch
from epivi.families.transmission.separation import merged_groups, mimicry
from epivi.field.covariate import Covariate
from epivi.field.layout import Cohort
from epivi.fit.folder import load_fit
from epivi.loci.source import CountsBatch
from epivi.tables.columns import Column, arrow_schema
from epivi.tables.parquet import PathLike, conform

ESTIMATED, STARTING = "estimated", "starting"
FEWEST_LOCI = 100  # with reads, to estimate hyper-parameters from
LARGEST_COUNT = 65_535
PLACES = ("contig", "pos", "end")  # of the evidence table, in whose place stands `locus`
LOCUS = Column("locus", pa.int64(), "", ">= 0", "number of the locus")
# Hyper-parameters by name, and whether each is a list.
HYPERPARAMETERS: Mapping[str, bool] = {
    "baseline_weights": True,
    "baseline_means": True,
    "baseline_sds": True,
    "spread_location": False,
    "spread_scale": False,
    "effect_sds": True,
}
POSITIVE = ("baseline_weights", "baseline_sds", "spread_scale", "effect_sds")


@dataclass(frozen=True)
class Evidence:
    """Evidence of H hypotheses at L loci.

    table: the columns of the workflow's evidence table (`evidence/part-*.parquet`), with `locus`, the locus's number,
    in place of contig, pos and end: one row a locus and hypothesis, the hypotheses of a locus in a row. log_evidence is
    in nats; log_evidence_se above 0.1, inner_error above 0.02 and khat above 0.7 are what the workflow flags.
    log_evidence: the same column as an array [L, H].
    hypotheses: names [H]. hyperparameters: what was used, as `epivi.evidence` takes it.
    families: of the pedigree with two or more sampled relatives; None where no hypothesis has transmission.
    prior: of the weights, as in the configuration's defaults.
    merged: names of hypotheses, joined by |, that no reads of these samples can separate, as `epivi design` finds them:
    only the sum of their weights, and of their probabilities, is known.
    """

    table: pa.Table
    log_evidence: NDArray[np.float64]
    hypotheses: tuple[str, ...]
    hyperparameters: dict[str, Any]
    families: int | None
    prior: WeightPrior
    merged: tuple[str, ...]

    def weights(self, blocks: int = 100, draws: int = 200, seed: int = 1) -> Weights:
        """Shares of the loci for which each hypothesis holds, with 95 % intervals: weight, lower, upper, [H] each.

        draws: from their posterior; blocks: of neighbouring loci that are weighted together in it. With fewer than two
        families that have sampled relatives nothing is learned: the draws are those of the prior.
        """
        n_loci = len(self.log_evidence)
        if why_nothing_is_called(self.families):
            return prior_weights(self.prior, draws, seed, n_loci)
        return weight_posterior(lambda: [self.log_evidence], n_loci, self.prior, blocks, draws, seed)

    def probabilities(self, weights: Weights | ArrayLike) -> NDArray[np.float64]:
        """Posterior probability of each hypothesis, [L, H], averaged over `weights()`, or for given weights [H]."""
        given = weights.tilted if isinstance(weights, Weights) else np.asarray(weights, dtype=np.float64)[None]
        return mixture_probabilities(self.log_evidence, given)


def evidence(
    meth: ArrayLike,
    total: ArrayLike,
    pedigree: Pedigree | PathLike | Mapping[str, Any] | Any,
    hypotheses: Mapping[str, Any] | None = None,
    *,
    individuals: Sequence[str],
    samples: Sequence[str] | None = None,
    columns: Any = None,
    covariates: Sequence[str] = (),
    false_methylated: ArrayLike = 0.0,
    false_unmethylated: ArrayLike = 0.0,
    priors: Mapping[str, Any] | None = None,
    hyperparameters: str | Mapping[str, Any] | None = None,
    fit: PathLike | None = None,
    loci: ArrayLike | None = None,
    nodes: int = 64,
    seed: int = 1,
    threads: int = 1,
) -> Evidence:
    """Log evidence of every hypothesis at every locus, from counts in memory; the family `transmission`.

    The numbers are those of `epivi evidence`: the same integrals and refinement, and, for the same `seed` and numbers
    of `loci`, the same lattice. With `fit`, the folder of a finished fit of the same samples, pedigree and model, they
    are what the workflow writes. Without, the proposals of the outer integral are adapted to each locus, which takes
    two to three times as long.

    meth, total: methylated and all reads, whole numbers [L, S] from 0 to 65535; total 0 is missing.
    pedigree: a table with the columns individual, mother, father (and sex, mode, generations), as a mapping or
        DataFrame; a path of a pedigree file, or {"nodes": path, "edges": path}; or a Pedigree.
    hypotheses: as `model.hypotheses` in the configuration; the default set without.
    individuals: whose each sample is, names [S]; the same name twice are replicates.
    samples: names of the samples [S]; s1, s2, ... without.
    columns: what a sample sheet would have besides, name -> values [S], as a mapping or DataFrame: numbers are
        standardized, text is a category.
    covariates: those of the columns that shift the mean under every hypothesis.
    false_methylated, false_unmethylated: probabilities from 0 to below 0.5, one for all samples or [S].
    priors: as `model.priors` in the configuration.
    hyperparameters: "estimated" from the loci (the default without `fit`; needs 100 of them), by expectation-
        maximization at up to 500 loci drawn at random; "starting", where a fit starts, which is vague; or a mapping:
        baseline_weights, baseline_means, baseline_sds [K] (logit), spread_location, spread_scale (mean and SD of the
        log of the SD between individuals on the logit scale), effect_sds [C] (logit, for each covariate column).
    loci: numbers of the loci [L], which decide the shifts of the lattice; 0, 1, ... without.
    nodes: as `evidence.nodes`. threads: processor threads; the numbers do not depend on them.

    Raises UserError for what does not fit together, naming the argument and what was expected.

    Two families of four, 200 loci at which the levels of individuals differ by an SD of 0.8 and nothing is passed on:

    >>> import numpy as np
    >>> import epivi
    >>> names = [f"{family}_{member}" for family in "AB" for member in ("mother", "father", "child1", "child2")]
    >>> parents = {"individual": names, "mother": ["", "", "A_mother", "A_mother", "", "", "B_mother", "B_mother"],
    ...            "father": ["", "", "A_father", "A_father", "", "", "B_father", "B_father"]}
    >>> random = np.random.default_rng(1)
    >>> level = 1 / (1 + np.exp(-random.normal(0, 1.5, (200, 1)) - random.normal(0, 0.8, (200, 8))))
    >>> total = random.poisson(20, level.shape)
    >>> found = epivi.evidence(random.binomial(total, level), total, parents, individuals=names)
    >>> found.hypotheses
    ('reset', 'mendelian', 'epigenetic', 'maternal', 'paternal')
    >>> found.log_evidence.shape, found.table.num_rows, found.table.column_names[:3]
    ((200, 5), 1000, ['locus', 'hypothesis', 'log_evidence'])
    >>> bool(abs(np.exp(found.hyperparameters["spread_location"]) - 0.8) < 0.2)
    True
    >>> found.probabilities(found.weights()).sum(axis=1).round(6).min()
    np.float64(1.0)
    """
    counts = _checked_counts(meth, total, loci)
    config = _configuration(hypotheses, covariates, priors, nodes, seed)
    model = config.section("model")
    sheet = _sheet(counts.meth.shape[1], individuals, samples, columns, false_methylated, false_unmethylated)
    relatives = _pedigree(pedigree)
    check_samples(sheet, relatives)
    check_sexual(sampled_units(sheet)[0], relatives, sheet)
    declared = parse_hypotheses(model["hypotheses"])
    cohort = build_cohort(sheet, relatives, model["covariates"], declared)
    shares = share_priors(model["priors"])
    if fit is not None:
        if hyperparameters is not None:
            raise UserError("hyperparameters: are those of the fit: expected one of fit and hyperparameters")
        fitted = load_fit(Path(fit), LearnedPriors)
        if fitted.stamp != stamp_of(base_stamp(sheet, relatives), sheet, config):
            raise UserError(
                f"fit: {fit} was fitted to other samples, individuals, error rates, columns, another pedigree or other "
                "hypotheses or priors: expected a fit of the same"
            )
        learned = fitted.learned
        integrals = build_evidence_model(
            cohort, declared, learned, shares, fitted.encoder_state, fitted.hidden, trained_at=fitted.trained_at
        )
    else:
        components = model["baseline_components"]
        if hyperparameters in (None, ESTIMATED):
            _check_enough(counts)
            used = dict.fromkeys([*model["covariates"], *(name for one in declared for name in one.covariates)])
            learned = estimated_hyperparameters(counts, sheet, relatives, list(used), components, len(declared), seed)
        elif hyperparameters == STARTING:
            learned = starting_hyperparameters(components, cohort)
        else:
            learned = _given_hyperparameters(hyperparameters, cohort)
        integrals = adapting_model(cohort, declared, learned, shares, seed)
    nodes = config.section("evidence")["nodes"]
    found = evaluate_batch(integrals, counts.meth, counts.total, counts.locus, nodes, seed, threads)
    names = tuple(hypothesis.name for hypothesis in declared)
    components = shared_components(declared)
    parameters = list(parameters_of(components, cohort.covariates))
    rows = long_rows({"locus": np.repeat(counts.locus, len(names))}, names, parameters, found)
    return Evidence(
        conform(rows, _schema(components, cohort.covariates)),
        np.stack([one.log_evidence for one in found], axis=1),
        names,
        _as_mapping(learned),
        sampled_families(relatives, sheet.individuals) if any(one.transmits for one in declared) else None,
        weight_prior(config.section("compare"), np.isin(names, config.null_hypotheses)),
        _merged(counts, sheet, relatives, model["covariates"], declared, shares, learned.spread_location),
    )


def _merged(
    counts: CountsBatch,
    sheet: SampleSheet,
    pedigree: Pedigree,
    covariates: Sequence[str],
    hypotheses: Sequence[Hypothesis],
    priors: Mapping[str, NormalPrior],
    log_spread: float,
) -> tuple[str, ...]:
    """Hypotheses that the samples with reads cannot separate; nothing is said where there are none."""
    if not counts.total.any():
        return ()
    noise = read_noise(0.5, counts.total.mean(0), sheet.false_methylated, sheet.false_unmethylated)
    mimics = mimicry(sheet, pedigree, covariates, hypotheses, noise[None], priors, log_spread)
    names = [hypothesis.name for hypothesis in hypotheses]
    return tuple(group_name(group, names) for group in merged_groups(mimics) if len(group) > 1)


def _schema(components: Sequence[str], covariates: Sequence[Covariate]) -> pa.Schema:
    """Of the table: that of the evidence, with the locus's number in place of its place."""
    columns = evidence_columns(components, covariates)
    return arrow_schema((LOCUS, *(column for column in columns if column.name not in PLACES)))


def _configuration(
    hypotheses: Mapping[str, Any] | None,
    covariates: Sequence[str],
    priors: Mapping[str, Any] | None,
    nodes: int,
    seed: int,
) -> Config:
    """What is asked for as a configuration, checked as one."""
    model: dict[str, Any] = {"covariates": list(covariates)}
    model |= {} if hypotheses is None else {"hypotheses": dict(hypotheses)}
    model |= {} if priors is None else {"priors": dict(priors)}
    try:
        text = json.dumps({"model": model, "evidence": {"nodes": nodes}, "seed": seed})
    except TypeError as error:
        raise UserError(f"hypotheses, priors, nodes and seed: {error}: expected what a configuration holds") from None
    return load_config(text)


def _checked_counts(meth: ArrayLike, total: ArrayLike, loci: ArrayLike | None) -> CountsBatch:
    """Counts as the integrals take them. Raises UserError for shapes that do not meet and for what is no count."""
    methylated, reads = (_whole_numbers(name, value) for name, value in (("meth", meth), ("total", total)))
    if methylated.shape != reads.shape:
        raise UserError(f"meth is {_shape(methylated)} and total {_shape(reads)}: expected the same shape")
    above = np.argwhere(methylated > reads)
    if len(above):
        locus, sample = above[0]
        raise UserError(
            f"meth[{locus}, {sample}] is {methylated[locus, sample]}: expected at most total, {reads[locus, sample]}"
        )
    numbers = np.arange(len(reads)) if loci is None else np.asarray(loci)
    if numbers.shape != (len(reads),):
        raise UserError(f"loci has the shape {_shape(numbers)}: expected ({len(reads)},), one number a locus")
    if not np.issubdtype(numbers.dtype, np.integer) or (numbers < 0).any():
        raise UserError("loci: expected whole numbers >= 0")
    return CountsBatch(methylated.astype(np.uint16), reads.astype(np.uint16), numbers.astype(np.int64))


def _whole_numbers(name: str, value: ArrayLike) -> NDArray[Any]:
    array = np.asarray(value)
    if array.ndim != 2 or not array.size:
        raise UserError(f"{name} has the shape {_shape(array)}: expected (loci, samples), one of each at least")
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        raise UserError(f"{name} holds {array.dtype}: expected whole numbers")
    with np.errstate(invalid="ignore"):
        wrong = np.argwhere(~((array >= 0) & (array <= LARGEST_COUNT) & (array == np.floor(array))))
    if len(wrong):
        locus, sample = wrong[0]
        raise UserError(
            f"{name}[{locus}, {sample}] is {array[locus, sample]}: expected a whole number from 0 to {LARGEST_COUNT}; "
            "missing is a total of 0"
        )
    return array


def _shape(array: NDArray[Any]) -> str:
    return str(tuple(array.shape))


def _sheet(
    size: int,
    individuals: Sequence[str],
    samples: Sequence[str] | None,
    columns: Any,
    false_methylated: ArrayLike,
    false_unmethylated: ArrayLike,
) -> SampleSheet:
    """The sample sheet that the arguments make up; its rows, for messages, are numbered from 1."""
    owners = as_texts(individuals)
    names = tuple(f"s{number}" for number in range(1, size + 1)) if samples is None else as_texts(samples)
    texts = (
        {} if columns is None else {name: as_texts(values) for name, values in columns_of(columns, "columns").items()}
    )
    lists = {
        "individuals": owners,
        "samples": names,
        **{f"columns[{name!r}]": values for name, values in texts.items()},
    }
    for name, values in lists.items():
        if len(values) != size:
            raise UserError(f"{name} has {len(values)} values: expected {size}, as meth and total have samples")
    lines = tuple(range(1, size + 1))
    check_unique("samples", "sample", names, lines)
    return SampleSheet(
        path="individuals",
        samples=names,
        individuals=owners,
        paths=names,
        formats=("auto",) * size,
        haplotypes=("all",) * size,
        false_methylated=_probabilities("false_methylated", false_methylated, size),
        false_unmethylated=_probabilities("false_unmethylated", false_unmethylated, size),
        columns=texts,
        lines=lines,
    )


def _probabilities(name: str, value: ArrayLike, size: int) -> NDArray[np.float64]:
    array = np.asarray(value, dtype=np.float64)
    if array.shape not in ((), (size,)):
        raise UserError(f"{name} has the shape {_shape(array)}: expected one number, or ({size},)")
    if not ((array >= 0) & (array < 0.5)).all():
        raise UserError(f"{name}: expected numbers from 0 to below 0.5")
    return np.broadcast_to(array, (size,)).copy()


def _pedigree(given: Any) -> Pedigree:
    if isinstance(given, Pedigree):
        return given
    is_lists = isinstance(given, Mapping) and set(given) == {"nodes", "edges"}
    return read_pedigree(given) if is_lists or isinstance(given, str | Path) else pedigree_of_table(given)


def _check_enough(counts: CountsBatch) -> None:
    covered = int(counts.total.any(1).sum())
    if covered < FEWEST_LOCI:
        raise UserError(
            f"hyperparameters: {covered} loci with reads are too few to estimate them from: expected at least "
            f"{FEWEST_LOCI}, or hyperparameters={STARTING!r}, or numbers"
        )


def _given_hyperparameters(given: Any, cohort: Cohort) -> LearnedPriors:
    """Numbers that the user gives. Raises UserError where they are no mixture, spread and effects of this cohort."""
    if not isinstance(given, Mapping):
        raise UserError(f"hyperparameters: {given!r}: expected {ESTIMATED!r}, {STARTING!r} or a mapping of numbers")
    if "effect_sds" not in given and not cohort.covariates:
        given = {**given, "effect_sds": []}
    for name in given:
        if name not in HYPERPARAMETERS:
            raise UserError(f"hyperparameters: unknown key {name!r}; {suggestion(str(name), HYPERPARAMETERS)}")
    values: dict[str, Any] = {}
    for name, is_list in HYPERPARAMETERS.items():
        if name not in given:
            raise UserError(f"hyperparameters: the key {name!r} is missing")
        try:
            array = np.asarray(given[name], dtype=np.float64)
        except (TypeError, ValueError):
            array = np.full((), np.nan)
        if array.ndim != is_list or not np.isfinite(array).all() or (name in POSITIVE and (array <= 0).any()):
            kind = "a list of numbers" if is_list else "a number"
            raise UserError(f"hyperparameters: {name}: expected {kind}{' above 0' if name in POSITIVE else ''}")
        values[name] = array if is_list else float(array)
    components = len(values["baseline_weights"])
    for name, size in (("baseline_means", components), ("baseline_sds", components)):
        if not len(values[name]) == size > 0:
            raise UserError(f"hyperparameters: {name} has {len(values[name])} values: expected {size}, one a component")
    if len(values["effect_sds"]) != len(cohort.covariates):
        raise UserError(
            f"hyperparameters: effect_sds has {len(values['effect_sds'])} values: expected {len(cohort.covariates)}, "
            f"one for each of {', '.join(covariate.name for covariate in cohort.covariates) or 'no covariates'}"
        )
    values["baseline_weights"] = values["baseline_weights"] / values["baseline_weights"].sum()
    return LearnedPriors(**values, hypothesis_weights=np.full(len(cohort.fields), 1 / len(cohort.fields)))


def _as_mapping(learned: LearnedPriors) -> dict[str, Any]:
    values = learned._asdict()
    return {name: values[name].tolist() if is_list else values[name] for name, is_list in HYPERPARAMETERS.items()}
