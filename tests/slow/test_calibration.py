"""Calibration on cohorts drawn from the model at known hyper-parameters: what the tables claim happens as often.

Evidence is integrated with the true hyper-parameters and a guide trained for a minute, as the commands do after a fit.
Two cohorts: trios and three-generation families read without error; and one with replicate samples, conversion errors,
missing samples, a covariate and cages. Seeds are fixed. Each bound is four standard errors wide plus the stated
allowance for what the approximations may cost, so that a test of k statistics fails by chance with probability below
k * 1e-4. Run with `pytest -m slow -s` to see the figures.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro
import pytest
import torch
from numpy.typing import NDArray

from epivi.cohort.samples import SampleSheet
from epivi.discovery.average import averaged_quantile
from epivi.discovery.probabilities import local_fdr, mixture_probabilities, qvalue_table, rates
from epivi.discovery.weights import WeightPrior, Weights, weight_posterior
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.columns import PARAMETERS
from epivi.families.transmission.density import Hyperparameters, LearnedPriors, build_transmission, to_batch
from epivi.families.transmission.encoder import Encoder
from epivi.families.transmission.guide import structured_guide
from epivi.families.transmission.hypotheses import Hypothesis, parse_hypotheses, share_priors
from epivi.families.transmission.outer_integral import HypothesisEvidence, build_evidence_model
from epivi.families.transmission.posterior import LARGEST_STANDARD_ERROR
from epivi.families.transmission.refinement import evaluate_batch
from epivi.families.transmission.simulate import BaselineComponent, SimulatedCohort, SimulationSettings, simulate_cohort
from epivi.field.layout import Cohort
from epivi.fit.bound import locus_elbos
from epivi.loci.source import CountsBatch
from epivi.simulate.positions import Contig
from epivi.simulate.templates import template_pedigree

pytestmark = pytest.mark.slow

Array = NDArray[np.float64]
LOCI = 9000
COHORTS = 30  # of LOCI / COHORTS loci each, for the intervals of the weights
NODES = 64
TRAINING_STEPS = 400
TRAINING_LOCI = 128
BOUND = 4.0  # standard errors
SHARES = share_priors(
    {
        "heritable_share": {"alpha": 2, "beta": 2},
        "tau": {"alpha": 2, "beta": 2},
        "environment_share": {"alpha": 2, "beta": 2},
    }
)
TRANSMITS = {"heritable_share": "free"}
HYPOTHESES: dict[str, dict[str, Any]] = {
    "reset": {},
    "mendelian": TRANSMITS | {"maternal": 1, "paternal": 1},
    "epigenetic": TRANSMITS | {"maternal": "tau", "paternal": "tau"},
    "maternal": TRANSMITS | {"maternal": "tau", "paternal": 0},
}
CAGES = {"environment": {"environment": {"column": "cage", "share": "free"}}}
BASELINE = (BaselineComponent(0.3, -2.0, 0.8), BaselineComponent(0.2, 0.0, 1.0), BaselineComponent(0.5, 2.0, 0.8))


class Study(NamedTuple):
    """A cohort, its truth, and what epivi made of it; L loci, H hypotheses."""

    drawn: SimulatedCohort
    hypotheses: tuple[Hypothesis, ...]
    evidences: list[HypothesisEvidence]
    log_evidence: Array  # [L, H]
    weights: Weights
    probability: Array  # [L, H]
    is_null: NDArray[np.bool_]  # [H]

    @property
    def truth(self) -> NDArray[np.int8]:
        """Index of the true hypothesis, [L]."""
        return self.drawn.truth["hypothesis"]


class CalibrationPlan(NamedTuple):
    declared: dict[str, dict[str, Any]]
    weights: tuple[float, ...]
    sheet: SampleSheet
    settings: dict[str, Any]
    pedigree: Any


def _sheet(individuals: tuple[str, ...], **changes: Any) -> SampleSheet:
    size = len(individuals)
    sheet = SampleSheet(
        path="samples.tsv",
        samples=tuple(f"s{number}" for number in range(size)),
        individuals=individuals,
        paths=("",) * size,
        formats=("bismark_cov",) * size,
        haplotypes=("all",) * size,
        false_methylated=np.zeros(size),
        false_unmethylated=np.zeros(size),
        columns={},
        lines=tuple(range(2, size + 2)),
    )
    return replace(sheet, **changes)


def _plain() -> CalibrationPlan:
    pedigree = template_pedigree("three_generations", 6)
    return CalibrationPlan(HYPOTHESES, (0.5, 0.2, 0.15, 0.15), _sheet(pedigree.individuals), {}, pedigree)


def _difficult() -> CalibrationPlan:
    """Two samples of every third individual, grandmothers unsampled, error rates of half a percent."""
    pedigree = template_pedigree("three_generations", 6)
    sampled = [name for name in pedigree.individuals if "grandmother" not in name]
    individuals = tuple(sampled + sampled[::3])
    random = np.random.default_rng(5)
    cage = {name: f"c{random.integers(8)}" for name in sampled}
    sheet = _sheet(
        individuals,
        false_methylated=np.full(len(individuals), 0.005),
        false_unmethylated=np.full(len(individuals), 0.005),
        columns={
            "age": tuple(str(random.integers(20, 70)) for _ in individuals),
            "cage": tuple(cage[name] for name in individuals),
        },
    )
    settings = {"covariates": ("age",), "missing_loci": 0.1, "covariate_scale": 0.3}
    return CalibrationPlan(HYPOTHESES | CAGES, (0.4, 0.15, 0.15, 0.15, 0.15), sheet, settings, pedigree)


PLANS = {"plain": _plain, "difficult": _difficult}


@pytest.fixture(scope="module", params=list(PLANS))
def study(request: pytest.FixtureRequest) -> Study:
    plan = PLANS[request.param]()
    hypotheses = parse_hypotheses(plan.declared)
    settings = SimulationSettings(
        seed=17,
        hypotheses=hypotheses,
        weights=plan.weights,
        contigs=(Contig("chr1", LOCI),),
        share_priors=SHARES,
        baseline=BASELINE,
        log_spread_location=0.2,
        **plan.settings,
    )
    drawn = simulate_cohort(settings, plan.pedigree, plan.sheet)
    cohort = build_cohort(plan.sheet, plan.pedigree, settings.covariates, hypotheses)
    weight, mean, sd = (np.array(column) for column in zip(*BASELINE, strict=True))
    learned = LearnedPriors(
        weight,
        mean,
        sd,
        settings.log_spread_location,
        settings.log_spread_scale,
        np.full(len(cohort.covariates), settings.covariate_scale),
        np.array(plan.weights),
    )
    training = simulate_cohort(replace(settings, seed=18, contigs=(Contig("chr1", 20_000),)), plan.pedigree, plan.sheet)
    state = _trained_encoder(cohort, hypotheses, learned, training)
    model = build_evidence_model(cohort, hypotheses, learned, SHARES, state, 64)
    meth, total = (x.astype(np.uint16) for x in (drawn.meth, drawn.total))
    pieces = []
    for start in range(0, LOCI, 1000):
        part = slice(start, start + 1000)
        pieces.append(evaluate_batch(model, meth[part], total[part], np.arange(LOCI)[part], NODES, 1, 2))
    evidences = [
        HypothesisEvidence(*map(np.concatenate, zip(*(piece[h] for piece in pieces), strict=True)))
        for h in range(len(hypotheses))
    ]
    log_evidence = np.stack([evidence.log_evidence for evidence in evidences], axis=1)
    is_null = np.array([not hypothesis.transmits for hypothesis in hypotheses])
    weights = weight_posterior(lambda: iter([log_evidence]), LOCI, prior_of(is_null), 100, 200, 1)
    probability = mixture_probabilities(log_evidence, weights.tilted)
    return Study(drawn, hypotheses, evidences, log_evidence, weights, probability, is_null)


def prior_of(is_null: NDArray[np.bool_]) -> WeightPrior:
    """That of the configuration."""
    return WeightPrior(np.where(is_null, 5.0, 1.0), 0.005)


def _trained_encoder(
    cohort: Cohort, hypotheses: tuple[Hypothesis, ...], learned: LearnedPriors, training: SimulatedCohort
) -> dict[str, Any]:
    """The amortized guide of a short fit, with the hyper-parameters held at the truth."""
    pyro.set_rng_seed(1)
    torch.set_num_threads(1)  # matrices this small only wait for one another
    device = torch.device("cpu")
    family = build_transmission(cohort, hypotheses, SHARES, device, torch.float32)
    hyper = Hyperparameters.restored(learned).float()
    encoder = Encoder(cohort, family, 64).float()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.005)
    random = np.random.default_rng(1)
    counts = [x.astype(np.uint16) for x in (training.meth, training.total)]
    for step in range(TRAINING_STEPS):
        loci = random.choice(len(training.meth), 1000 if step == 0 else TRAINING_LOCI, replace=False)
        batch = to_batch(CountsBatch(counts[0][loci], counts[1][loci], loci), len(training.meth), device)
        if step == 0:
            encoder.summary.standardize(batch)
            continue
        optimizer.param_groups[0]["lr"] = 0.005 * 0.05 ** (step / TRAINING_STEPS)
        optimizer.zero_grad()
        (-locus_elbos(family, hyper, structured_guide, encoder, batch).mean(1).sum()).backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 100.0)
        optimizer.step()
    return encoder.state_dict()


def report(*words: object) -> None:
    print("   ", *words)


def allowed(share: float, number: int, allowance: float) -> float:
    """How far an observed share may lie from its expectation."""
    return BOUND * np.sqrt(share * (1 - share) / number) + allowance


def truth_of(study: Study, parameter: str, h: int) -> Array:
    """The drawn value of a parameter at every locus, as hypothesis h defines it."""
    if parameter != "slope":
        return study.drawn.truth[parameter]
    hypothesis = study.hypotheses[h]
    tau = study.drawn.truth["transmissibility"]
    passed = sum(tau if path == "tau" else float(path) for path in (hypothesis.maternal, hypothesis.paternal)) / 2
    return study.drawn.truth["heritable_share"] * passed


# --- parameters ------------------------------------------------------------------------------------------------------


def test_intervals_cover_under_the_true_hypothesis(study: Study) -> None:
    """90 % intervals and medians, for every free parameter and hypothesis, at the loci where that hypothesis holds."""
    for h, hypothesis in enumerate(study.hypotheses):
        at, found = study.truth == h, study.evidences[h]
        number = int(at.sum())
        for k, parameter in enumerate(PARAMETERS):
            if np.ptp(found.q50[at, k]) == 0:
                continue
            value = truth_of(study, parameter, h)[at]
            inside = float(((found.q05[at, k] <= value) & (value <= found.q95[at, k])).mean())
            below = float((value < found.q50[at, k]).mean())
            report(
                f"{hypothesis.name:12s} {parameter:17s} {number:5d} loci: covers {inside:.3f}, below median {below:.3f}"
            )
            assert abs(inside - 0.9) < allowed(0.9, number, 0.01), (hypothesis.name, parameter)
            assert abs(below - 0.5) < allowed(0.5, number, 0.02), (hypothesis.name, parameter)


def test_means_are_unbiased_under_the_true_hypothesis(study: Study) -> None:
    """The posterior mean is right on average: its mean error within four standard errors and a hundredth of the SD."""
    for h, hypothesis in enumerate(study.hypotheses):
        at, found = study.truth == h, study.evidences[h]
        for k, parameter in enumerate(PARAMETERS):
            if np.ptp(found.q50[at, k]) == 0:
                continue
            value = truth_of(study, parameter, h)[at]
            error = value - found.mean[at, k]
            z = error.mean() / (error.std() / np.sqrt(at.sum()))
            report(f"{hypothesis.name:12s} {parameter:17s} mean error {error.mean():+.4f}, z {z:+.1f}")
            assert abs(error.mean()) < BOUND * error.std() / np.sqrt(at.sum()) + 0.02 * value.std()
            # The posterior knows something: it is closer to the truth than the prior's mean.
            if parameter in ("baseline", "spread"):
                assert error.std() < 0.8 * value.std()


def test_averaged_intervals_cover(study: Study) -> None:
    """Averaged over hypotheses, at all loci together; where a parameter is absent its truth is 0."""
    for k, parameter in enumerate(PARAMETERS):
        columns = (np.stack([getattr(e, q)[:, k] for e in study.evidences], axis=1) for q in ("q05", "q50", "q95"))
        q05, q50, q95 = columns
        low, high = (averaged_quantile(parameter, study.probability, q05, q50, q95, level) for level in (0.05, 0.95))
        value = np.empty(LOCI)
        for h in range(len(study.hypotheses)):
            at = study.truth == h
            value[at] = truth_of(study, parameter, h)[at]
        covers = float(((low <= value + 1e-9) & (value <= high + 1e-9)).mean())
        report(f"averaged {parameter:17s} covers {covers:.3f}")
        if parameter in ("baseline", "spread"):
            assert abs(covers - 0.9) < allowed(0.9, LOCI, 0.01)
        else:
            # An interval that ends on an atom holds more than its nominal probability.
            assert covers > 0.9 - allowed(0.9, LOCI, 0.01)


# --- hypotheses ------------------------------------------------------------------------------------------------------


def test_probabilities_are_frequencies(study: Study) -> None:
    """Among loci with lfdr of about x, a share x is null; the same for every hypothesis's probability.

    At the weights that loci were drawn with: estimated ones are uncertain by more than a bin's share is, and an error
    of theirs shifts all bins alike (test_weights_and_their_intervals looks at it).
    """
    probability = mixture_probabilities(study.log_evidence, np.array([study.drawn.settings.weights]))
    lfdr = local_fdr(probability, study.is_null)
    columns = {"lfdr": (lfdr, study.is_null[study.truth])}
    columns |= {h.name: (probability[:, k], study.truth == k) for k, h in enumerate(study.hypotheses)}
    for name, (values, holds) in columns.items():
        order = np.argsort(values)
        for part in np.array_split(order, 10):
            expected, observed = float(values[part].mean()), float(holds[part].mean())
            if name == "lfdr":
                report(f"lfdr {expected:.3f}: {observed:.3f} of {len(part)} loci are null")
            assert abs(observed - expected) < allowed(expected, len(part), 0.01), (name, expected, observed)
    assert np.quantile(lfdr, 0.9) - np.quantile(lfdr, 0.1) > 0.2, "data that say nothing would pass"


def test_bayes_factors_have_mean_one_under_the_null(study: Study) -> None:
    """E[p(D | h) / p(D | reset)] = 1 over data from reset: an identity of evidences, whatever h; within 3 errors."""
    at = study.truth == 0
    for h, hypothesis in list(enumerate(study.hypotheses))[1:]:
        factor = np.exp(study.log_evidence[at, h] - study.log_evidence[at, 0])
        error = factor.std() / np.sqrt(at.sum())
        report(f"{hypothesis.name:12s} mean Bayes factor under reset {factor.mean():.4f} +- {error:.4f}")
        assert abs(factor.mean() - 1) < 3 * error + 0.005
        # And the other way round, which no constant error of an evidence could pass as well.
        there = study.truth == h
        inverse = np.exp(study.log_evidence[there, 0] - study.log_evidence[there, h])
        error = inverse.std() / np.sqrt(there.sum())
        report(f"{'':12s} mean inverse under {hypothesis.name} {inverse.mean():.4f} +- {error:.4f}")
        assert abs(inverse.mean() - 1) < 3 * error + 0.005


def test_false_discoveries_are_as_announced(study: Study) -> None:
    """Calls at q < 0.05, 0.1 and 0.2: the realized share of false ones."""
    table = qvalue_table(lambda: iter([study.log_evidence]), study.weights.tilted, study.is_null)
    lfdr = local_fdr(study.probability, study.is_null)
    qvalue = rates(lfdr, table).qvalue
    is_false = study.is_null[study.truth]
    for nominal in (0.05, 0.1, 0.2):
        called = qvalue <= nominal
        if called.sum() < 30:
            report(f"q <= {nominal}: {called.sum()} calls, too few to judge")
            continue
        realized, expected = float(is_false[called].mean()), float(lfdr[called].mean())
        report(f"q <= {nominal}: {called.sum()} calls, realized {realized:.3f}")
        assert abs(realized - expected) < allowed(expected, int(called.sum()), 0.01)
    assert (qvalue <= 0.2).sum() >= 100


def test_weights_and_their_intervals(study: Study) -> None:
    """Over all loci off by less than the width of the interval, four standard errors: nine weights are looked at, and
    one cohort can miss some. Over 30 cohorts of 300 loci the interval covers in at least 24 of them.

    With a true coverage of 95 % fewer hits have a probability of 4e-4 for one weight; small cohorts' percentile
    intervals are a little short of it.
    """
    weights = np.array(study.drawn.settings.weights)
    hits = np.zeros(len(weights), dtype=int)
    estimates = []
    for part in np.array_split(study.log_evidence, COHORTS):
        found = weight_posterior(partial(iter, [part]), len(part), prior_of(study.is_null), 50, 200, 1)
        hits += (found.lower <= weights) & (weights <= found.upper)
        estimates.append(found.weight)
    for h, hypothesis in enumerate(study.hypotheses):
        whole = [getattr(study.weights, name)[h] for name in ("weight", "lower", "upper")]
        mean = np.mean(estimates, axis=0)[h]
        report(
            f"{hypothesis.name:12s} weight {weights[h]:.2f}: {whole[0]:.3f} ({whole[1]:.3f} to {whole[2]:.3f}), "
            f"mean of {COHORTS} cohorts {mean:.3f}, covered in {hits[h]}"
        )
        width = whole[2] - whole[1]
        assert abs(whole[0] - weights[h]) < width
    assert (hits >= 24).all(), hits


def test_integrals_are_accurate(study: Study) -> None:
    """Hardly any locus needs a flag for its Monte Carlo error or its weights."""
    error = np.stack([evidence.log_evidence_se for evidence in study.evidences])
    khat = np.stack([evidence.khat for evidence in study.evidences])
    correction = np.stack([evidence.laplace_correction for evidence in study.evidences])
    report(f"standard error: median {np.median(error):.4f}, 99 % {np.quantile(error, 0.99):.4f} nats")
    report(f"k-hat above 0.7: {(np.nan_to_num(khat) > 0.7).any(0).mean():.4f} of loci")
    report(f"correction: median {np.median(correction):.3f}, largest {correction.max():.3f} nats")
    report(
        f"range of the correction over hypotheses above 0.2: {(np.ptp(correction, axis=0) > 0.2).mean():.4f} of loci"
    )
    assert (error > LARGEST_STANDARD_ERROR).any(0).mean() < 0.1
    assert (np.nan_to_num(khat) > 0.7).any(0).mean() < 0.01
