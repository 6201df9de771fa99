"""Log Bayes factors and field SDs against the gold standard, in one small cell; tests/benchmarks/bench_accuracy.py has
all of them.

Seeds are fixed. First the gold standard itself is tried, on fields that quadrature can sum and against another sampler;
then production is held to it. Run with `pytest -m slow -s` to see the figures.
"""

from __future__ import annotations

import accuracy_cases as cases
import numpy as np
import pytest
import torch
from scipy.special import log_expit, logsumexp

from epivi.config.load import load_config
from epivi.field.dense.importance import exact_field
from epivi.field.dense.problem import FieldProblem, FieldVariances, build_field_problem, log_binomials, log_observation
from epivi.tables.columns import EVIDENCE_GOAL

pytestmark = pytest.mark.slow

COVERAGE = 20.0
LOCI = 40


@pytest.fixture(scope="module")
def study() -> cases.Setup:
    torch.set_num_threads(1)
    return cases.setup(12, seed=12, training_loci=2000)


@pytest.fixture(scope="module")
def found(study: cases.Setup) -> cases.Comparison:
    drawn = cases.draw_loci(study, COVERAGE, LOCI, seed=3)
    counts = drawn.meth.astype(np.uint16), drawn.total.astype(np.uint16)
    gold = cases.gold_evidence(study.model, *counts, outer_nodes=512, scrambles=16, points=512, seed=3)
    return cases.compare(study.model, *counts, np.arange(LOCI), gold)


def common_baseline(errors: float) -> FieldProblem:
    """Four individuals of a common baseline: reads about one half, at an end, few, and none."""
    meth = np.array([[10.0, 14, 3, 0], [0, 0, 0, 0], [20, 1, 2, 0], [30, 30, 5, 0]])
    total = np.array([[20.0, 25, 6, 0], [20, 25, 6, 0], [20, 25, 6, 0], [30, 30, 5, 0]])
    covariance = np.tile(np.diag([1.0, 2.0, 2.0, 2.0, 2.0]), (4, 1, 1))
    loading = np.concatenate([np.ones((4, 1)), np.eye(4)], axis=1)
    return FieldProblem(meth, total, np.zeros((4, 5)), covariance, loading, np.full(4, errors), np.full(4, errors))


@pytest.mark.parametrize("errors", [0.0, 0.01])
def test_gold_knows_fields_that_quadrature_sums(errors: float) -> None:
    """Nested trapezoids over the baseline and every individual; 16 scrambles each, within four standard errors."""
    problem = common_baseline(errors)
    grid = np.linspace(-10, 10, 401)
    log_normal = -0.5 * grid**2 + np.log(grid[1] - grid[0]) - 0.5 * np.log(2 * np.pi)
    eta = grid[:, None] + np.sqrt(2.0) * grid  # baseline by individual
    for locus in range(4):
        one = problem._replace(meth=problem.meth[locus][None], total=problem.total[locus][None])
        observations = log_observation(one, np.repeat(eta[..., None], 4, axis=2))
        exact = (
            logsumexp(log_normal + logsumexp(observations + log_normal[:, None], axis=1).sum(1)) + log_binomials(one)[0]
        )
        rows = np.full(16, locus)
        repeated = FieldProblem(
            problem.meth[rows], problem.total[rows], problem.prior_mean[rows], problem.prior_covariance[rows],
            problem.loading, problem.false_methylated, problem.false_unmethylated,
        )  # fmt: skip
        ratio = np.exp(cases.field_evidence(repeated, cases.scrambled_points(4, 16, 1024, seed=2)) - exact)
        error = ratio.std(ddof=1) / 4
        print(f"    errors {errors}, locus {locus}: ratio to quadrature {ratio.mean():.5f} +- {error:.5f}")
        assert error < 0.002
        assert abs(ratio.mean() - 1) < 4 * error + 1e-5


def test_gold_agrees_with_another_sampler(study: cases.Setup) -> None:
    """Sixteen fields of a pedigree; a difference of more than 4.5 standard errors has a probability of 1e-4 in all."""
    drawn = cases.draw_loci(study, COVERAGE, 16, seed=4)
    variance = drawn.truth["spread"] ** 2
    problem = build_field_problem(
        study.model.cohort.fields[1],
        study.model.cohort,
        FieldVariances(0.5 * np.column_stack([variance, variance]), np.zeros(16)),
        [0.5],
        [1.0],
        drawn.meth,
        drawn.total,
    )
    reference = exact_field(problem, 40_000, seed=1)
    estimates = np.stack(
        [cases.field_evidence(problem, cases.scrambled_points(12, 16, 512, seed=seed)) for seed in range(8)]
    )
    error = np.sqrt(estimates.var(0, ddof=1) / 8 + reference.log_evidence_se**2)
    difference = estimates.mean(0) - reference.log_evidence
    print(f"    standard errors {np.median(error):.4f}, differences in them {np.round(difference / error, 1)}")
    assert np.median(error) < 0.005
    assert (np.abs(difference) < 4.5 * error).all()


def test_bayes_factors_are_within_a_fiftieth_of_a_nat(found: cases.Comparison) -> None:
    """At most two of 40 loci surely miss .02 nats without a flag (probability .007 if 1 % do), and gold can tell."""
    error, se = cases.bayes_factor_error(found)
    print(f"    error: median {np.median(error):.4f}, largest {error.max():.4f}")
    print(f"    gold's standard error: median {np.median(se):.4f}, largest {se.max():.4f}")
    assert np.median(se) < 0.002
    assert np.quantile(se, 0.9) < 0.01
    is_missed = (error - 2 * se > EVIDENCE_GOAL) & ~found.is_flagged
    assert is_missed.sum() <= 2
    assert np.median(error) < 0.005
    # The comparison would see evidences that are wrong by .05 nats under one hypothesis.
    wrong = found._replace(production=found.production + 0.05 * np.eye(found.production.shape[1])[2])
    error, se = cases.bayes_factor_error(wrong)
    assert np.mean(error - 2 * se > EVIDENCE_GOAL) > 0.9


def test_what_evidences_are_off_by_at_all_loci_alike_is_a_fraction_of_the_tilt(found: cases.Comparison) -> None:
    """Mean log Bayes factors within the tilt's default with 4 standard errors to spare (false alarm once in 10,000)."""
    tilt = load_config("{}").section("compare")["tilt_nats"]
    mean, se = cases.common_error(found)
    print(f"    mean errors {np.array2string(mean, precision=5)}, standard errors {np.array2string(se, precision=5)}")
    assert (np.abs(mean) + 4 * se < tilt).all()
    wrong = found._replace(production=found.production + 2 * tilt * np.eye(found.production.shape[1])[2])
    mean, se = cases.common_error(wrong)
    assert (np.abs(mean) - 4 * se > tilt).any()


def test_inner_errors_are_of_the_right_size(found: cases.Comparison) -> None:
    """Root mean squares over 40 loci: what Laplace and the lattice are off by is not above twice what is stated."""
    share, upper = cases.measured_share(
        cases.against_mean(found.production - found.gold), found.against_mean_se, found.inner_error
    )
    print(f"    error over inner_error {share:.2f}, with gold's own error {upper:.2f}")
    assert share < 2.0


def test_sds_at_fixed_variance_components(study: cases.Setup) -> None:
    """Six loci: EP and linear response within 2 % of the truth and what its reference is off by; mean field below."""
    ratios, errors = cases.sd_ratios(study, COVERAGE, 6, 20_000, seed=5, methods=("ep", "lrvb", "meanfield"))
    for method, ratio in ratios.items():
        medians = {name: round(float(np.median(values)), 4) for name, values in ratio._asdict().items()}
        print(f"    {method:10s} median ratios {medians}")
    for part in cases.SpreadRatios._fields:
        error = getattr(errors, part)
        for method in ("ep", "lrvb"):
            off = np.abs(getattr(ratios[method], part) - 1) - 4 * error
            assert np.quantile(off, 0.9) < 0.02, (method, part)
        assert np.median(error) < 0.02
    assert np.median(ratios["meanfield"].baseline) < 0.7


def test_an_observation_without_errors_is_the_logistic_one() -> None:
    """The likelihood that gold sums, at its simplest: one individual all methylated, by one-dimensional quadrature."""
    problem = FieldProblem(
        np.full((16, 1), 7.0), np.full((16, 1), 7.0), np.zeros((16, 1)), np.full((16, 1, 1), 4.0), np.ones((1, 1)),
        np.zeros(1), np.zeros(1),
    )  # fmt: skip
    grid = np.linspace(-24, 24, 4001)
    exact = logsumexp(7 * log_expit(grid) - grid**2 / 8) + np.log((grid[1] - grid[0]) / np.sqrt(8 * np.pi))
    found = cases.field_evidence(problem, cases.scrambled_points(1, 16, 1024, seed=1))
    assert abs(np.exp(found - exact).mean() - 1) < 1e-3
