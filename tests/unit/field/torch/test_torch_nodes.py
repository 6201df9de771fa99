"""The inner integral in torch against the compiled kernel and, independently, against dense matrices.

Both take the same steps, so that they agree to rounding. Reached on a CPU, largest difference of a log evidence: 1e-13
nats for up to 24 reads, 2e-12 for up to 200 at levels of 0 and 100 %, 1e-10 at nearly flat modes, 5e-9 for a hundred
relatives with 60,000 reads each (a log evidence of -1000 is there a difference of terms of millions).
With a GPU, `pytest -m gpu` asserts the same of the GPU.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from inference_cases import make_pedigree, make_sheet
from places import REPOSITORY
from test_evidence import Study, study  # noqa: F401  (a fixture)
from test_laplace import CASES, EPIGENETIC, QUARTETS, TRIO, Case, Inputs, draw_inputs
from test_propagation import dense

from epivi.config.load import load_config
from epivi.families.transmission import outer_integral as evidence
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.density import to_batch
from epivi.families.transmission.hypotheses import parse_hypotheses
from epivi.families.transmission.outer_integral import HypothesisEvidence, hypothesis_evidence, marginal_proposal
from epivi.families.transmission.refinement import NODE_FIELDS, evaluate_batch
from epivi.field.compiled.laplace import NOT_CONVERGED
from epivi.field.compiled.nodes import NodeResults, evaluate_nodes
from epivi.field.dense.laplace import laplace as dense_laplace
from epivi.field.dense.problem import FieldVariances, build_field_problem
from epivi.field.torch import field as torch_field_module
from epivi.field.torch import nodes as torch_nodes
from epivi.field.torch.field import torch_field
from epivi.field.torch.nodes import evaluate_nodes_torch, loci_at_once
from epivi.loci.source import CountsBatch

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine shows no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])]
BENCHMARK = REPOSITORY / "tests" / "benchmarks" / "bench_device.py"

NATS = 1e-8  # promised of a log evidence, whatever the counts
ORDINARY_NATS = 1e-10  # with the reads of a sequencing experiment
THREE_COMPONENTS: dict[str, Any] = {
    "mixture_weight": np.array([0.3, 0.2, 0.5]),
    "mixture_mean": np.array([-2.0, 0.0, 2.0]),
    "mixture_sd": np.array([0.4, 1.0, 0.4]),
}
DEFAULT_HYPOTHESES = {h.name: h for h in parse_hypotheses(load_config("{}").section("model")["hypotheses"])}
# An individual of no family, two clones, a selfed line, a trio, sibs with a missing father, three generations.
MANY_FAMILIES = make_pedigree(
    *(("alone",), ("c1",), ("c2", "c1", None, "clonal", 2), ("s1",), ("s2", "s1", None, "selfing", 3)),
    *(("m1",), ("f1",), ("a1", "m1", "f1"), ("m2",), ("f2",), ("a2", "m2", "f2"), ("b2", "m2", "f2")),
    *(("m3",), ("f3",), ("p3", "m3", "f3"), ("q3",), ("x3", "p3", "q3"), ("y3", "p3", "q3")),
)


def many_families(hypothesis: str) -> Case:
    """Blocks of several sizes under the hypotheses of transmission; replicates, unsampled individuals, two
    covariates, and conversion errors of some samples but not of all."""
    sampled = (*(name for name in MANY_FAMILIES.individuals if name not in ("f2", "q3")), "a1", "s2", "s2", "alone")
    errors = np.where(np.arange(len(sampled)) % 3 == 0, 0.0, 0.01)
    columns = {"age": tuple(str(1 + 7 * i % 11) for i in range(len(sampled))), "sex": tuple("ab" * 10)}
    sheet = make_sheet(sampled, false_methylated=errors, false_unmethylated=2 * errors, columns=columns)
    return Case(MANY_FAMILIES, sheet, DEFAULT_HYPOTHESES[hypothesis], ("age", "sex"))


def on_device(inputs: Inputs, device: str, **options: Any) -> NodeResults:
    return evaluate_nodes_torch(*inputs, torch.device(device), **options)


def assert_agree(found: NodeResults, expected: NodeResults, nats: float) -> None:
    """Evidence to `nats`; moments and correction to the same number of SDs or nats, relatively where they are large."""
    np.testing.assert_array_equal(np.isfinite(found.log_evidence), np.isfinite(expected.log_evidence))
    usable = np.isfinite(expected.log_evidence)
    np.testing.assert_allclose(found.log_evidence[usable], expected.log_evidence[usable], rtol=0, atol=nats)
    np.testing.assert_allclose(found.correction, expected.correction, rtol=nats, atol=nats)
    sd = np.sqrt(expected.effect_variance)
    assert (np.abs(found.effect_mean - expected.effect_mean) / sd)[usable].max(initial=0) < nats
    np.testing.assert_allclose(found.effect_variance[usable], expected.effect_variance[usable], rtol=nats)
    assert (np.abs(found.effect_third - expected.effect_third) / sd**3)[usable].max(initial=0) < nats
    np.testing.assert_allclose(found.central_step, expected.central_step, rtol=0, atol=nats)


# --- against the compiled kernel -------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["laplace", "ep"])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_compiled_kernel(name: str, method: str, device: str) -> None:
    """Loci of one baseline component and of three, merged and kept apart; a fifth of the samples is missing."""
    inputs = draw_inputs(CASES[name], loci=12, nodes=4)
    for prior in ({}, THREE_COMPONENTS):
        asked = inputs._replace(**prior)
        expected = evaluate_nodes(*asked, method=method)
        assert_agree(on_device(asked, device, method=method), expected, ORDINARY_NATS)
    laplace = evaluate_nodes(*asked)
    assert (np.abs(expected.log_evidence - laplace.log_evidence).max() > 1e-3) == (method == "ep")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", DEFAULT_HYPOTHESES)
def test_default_hypotheses_with_families_of_different_size(name: str, device: str) -> None:
    inputs = draw_inputs(many_families(name), loci=20, nodes=5)._replace(**THREE_COMPONENTS)
    field = torch_field(inputs.arrays, CPU)
    sizes = {group.covariance.size for group in field.groups}
    assert sizes == {1} if name == "reset" else len(sizes) > 1
    assert len(field.groups) > len(sizes), "no replicates"
    for method in ("laplace", "ep"):
        expected = evaluate_nodes(*inputs, method=method)
        assert_agree(on_device(inputs, device, method=method), expected, ORDINARY_NATS)


def test_merged_and_separate_components_both_occur() -> None:
    """The cases above would not test the one or the other if all loci were alike."""
    inputs = draw_inputs(many_families("mendelian"), loci=20, nodes=5)._replace(**THREE_COMPONENTS)
    is_merged = []
    merge = torch_nodes._merge
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_nodes, "_merge", lambda *given: is_merged.append(merge(*given)) or is_merged[-1])
        on_device(inputs, "cpu")
    assert 0.2 < is_merged[0].is_merged.double().mean() < 0.8


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("eps", "branches"), [(0.0, [True, True, False]), (0.01, [True, True, False]), (0.05, [True, True, True])]
)
def test_extreme_counts(eps: float, branches: list[bool], device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relatives at 0 and 100 %, a prior far away, observed curvature of the wrong sign: searches are damped, steps
    halved, and the expected curvature is taken where the observed is not positive definite."""
    size = len(QUARTETS.individuals)
    errors = {"false_methylated": np.full(size, eps), "false_unmethylated": np.full(size, eps)}
    case = Case(QUARTETS, make_sheet(QUARTETS.individuals, **errors), EPIGENETIC)
    random = np.random.default_rng(4)
    total = random.integers(1, 200, (60, size))
    level = random.choice([0, 0.01, 0.02, 0.5, 0.98, 1], (60, size))
    inputs = draw_inputs(case, loci=60, nodes=4, seed=4)
    inputs = inputs._replace(
        total=total,
        meth=random.binomial(total, eps + (1 - 2 * eps) * level),
        mixture_mean=np.array([-7.0]),
        variances=6 * inputs.variances,
    )
    decide, seen = torch_nodes._decide, np.zeros(3, dtype=bool)

    def watched(*given: Any) -> Any:
        done, search = decide(*given)
        for branch, state in enumerate((search.is_damped, search.halvings > 0, search.wants_expected)):
            seen[branch] |= bool(state.any())
        return done, search

    monkeypatch.setattr(torch_nodes, "_decide", watched)
    assert_agree(on_device(inputs, device), evaluate_nodes(*inputs), ORDINARY_NATS)
    assert seen.tolist() == branches


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("eps", "delta", "meth", "total", "variances", "tau"),
    [
        (0.2, 0.0, (1, 1, 0), (1, 2, 2), (12.212, 12.363), 0.4544),
        (0.05, 0.2, (0, 0, 0), (2, 0, 0), (3.071, 0.347), 0.5126),
        (0.01, 0.01, (0, 0, 106), (26406, 57054, 4962), (0.067, 0.104), 0.7957),
    ],
)
def test_flat_modes(
    eps: float,
    delta: float,
    meth: tuple[int, ...],
    total: tuple[int, ...],
    variances: tuple[float, ...],
    tau: float,
    device: str,
) -> None:
    """Where the likelihood is nearly flat: the correction, up to 470 nats, is the same to 1e-8 of itself."""
    sheet = make_sheet(TRIO.individuals, false_methylated=np.full(3, eps), false_unmethylated=np.full(3, delta))
    around = np.exp(np.linspace(-0.2, 0.2, 201))
    inputs = draw_inputs(Case(TRIO, sheet, EPIGENETIC), loci=1, nodes=1)._replace(
        meth=np.array([meth]),
        total=np.array([total]),
        variances=np.array(variances) * around[None, :, None],
        tau=np.full((1, 201), tau),
        mixture_weight=np.array([0.3, 0.2, 0.5]),
        mixture_mean=np.array([-5.0, 0.0, 4.0]),
        mixture_sd=np.array([0.4, 1.0, 0.5]),
    )
    expected = evaluate_nodes(*inputs)
    assert np.abs(expected.correction).max() > 10
    assert_agree(on_device(inputs, device), expected, NATS)


@pytest.mark.parametrize("device", DEVICES)
def test_large_corrections_are_recorded_and_not_used(device: str) -> None:
    """One individual at 0 % and one at 100 %, a spread of hundreds: the baseline stays between them, and it is the size
    of the correction alone that tells."""
    inputs = draw_inputs(CASES["no relation"], loci=1, nodes=3)
    inputs = inputs._replace(
        total=np.array([[20_000, 20_000, 0]]),
        meth=np.array([[20_000, 0, 0]]),
        variances=np.full((1, 3, 1), 1e5),
        mixture_mean=np.zeros(1),
    )
    expected = evaluate_nodes(*inputs)
    assert (expected.correction > 100).all()
    assert (expected.correction != NOT_CONVERGED).all()
    assert (np.abs(expected.log_evidence) < 100).all()
    assert_agree(on_device(inputs, device), expected, NATS)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("plants", "reads"), [(100, 60_000), (150, 500)])
@pytest.mark.slow
def test_large_families_with_many_reads(plants: int, reads: int, device: str) -> None:
    star = make_pedigree(("p",), *((f"c{i}", "p", None, "selfing", 1 + i % 3) for i in range(plants)))
    inputs = draw_inputs(Case(star, make_sheet(star.individuals[1:]), EPIGENETIC), loci=1, nodes=3)
    total = np.full((1, plants), reads)
    inputs = inputs._replace(total=total, meth=np.random.default_rng(3).binomial(total, 0.4))
    assert_agree(on_device(inputs, device), evaluate_nodes(*inputs), NATS)


@pytest.mark.parametrize("device", DEVICES)
def test_clones_that_are_one_latent(device: str) -> None:
    """Without residual and with tau = 1 the covariance is singular but for the nugget.

    The kernel multiplies by the prior's precision, of 1e10 here, so that 1e-6 is what rounding leaves of it.
    """
    clones = make_pedigree(("a",), ("b", "a", None, "clonal"), ("c", "b", None, "clonal", 3))
    inputs = draw_inputs(Case(clones, make_sheet(clones.individuals), EPIGENETIC), loci=10, nodes=2)
    inputs = inputs._replace(variances=np.tile([0.8, 0.0], (10, 2, 1)), tau=np.ones((10, 2)))
    assert_agree(on_device(inputs, device), evaluate_nodes(*inputs), 1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_points_without_a_mode_are_flagged_alike(device: str) -> None:
    """No step can meet a tolerance of zero: no evidence, a correction that no threshold passes, finite moments."""
    inputs = draw_inputs(CASES["trio"], loci=2, nodes=3)._replace(**THREE_COMPONENTS)
    found = on_device(inputs, device, tolerance=0.0)
    assert (found.correction == NOT_CONVERGED).all()
    assert np.isneginf(found.log_evidence).all()
    assert all(np.isfinite(part).all() for part in found[2:5])


@pytest.mark.parametrize("device", DEVICES)
def test_nodes_around_a_centre_without_a_mode(device: str) -> None:
    """The other nodes then try every component, from where the search at the centre gave up."""
    inputs = draw_inputs(CASES["everything"], loci=6, nodes=3)._replace(**THREE_COMPONENTS)
    inputs.variances[::2, 0] = np.nan
    expected = evaluate_nodes(*inputs)
    np.testing.assert_array_equal(np.isfinite(expected.log_evidence[:, 0]), np.arange(6) % 2 == 1)
    assert np.isfinite(expected.log_evidence[:, 1:]).all()
    assert_agree(on_device(inputs, device), expected, ORDINARY_NATS)


@pytest.mark.parametrize("device", DEVICES)
def test_sites_that_do_not_settle_are_flagged_alike(device: str) -> None:
    """All reads of thousands alike, and a spread of thousands: no tilted distribution is near a Gaussian."""
    inputs = draw_inputs(CASES["conversion errors"], loci=2, nodes=3)
    total = np.full(inputs.total.shape, 20_000, dtype=np.uint16)
    inputs = inputs._replace(
        meth=total, total=total, variances=np.full_like(inputs.variances, 1e6), mixture_sd=np.array([1e3])
    )
    found = on_device(inputs, device, method="ep")
    assert (found.correction[:, 1:] == NOT_CONVERGED).all()
    assert (found.correction[:, 0] != NOT_CONVERGED).all()
    assert_agree(found, evaluate_nodes(*inputs, method="ep"), NATS)


# --- against dense matrices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["unsampled parents", "replicates", "cages and transmission", "covariates"])
def test_against_dense_matrices(name: str, device: str) -> None:
    """Evidence, means and the covariates' variances at every node, and the baseline's variance at the central one, of
    an implementation that shares no code with either: to 1e-8 where Newton's method goes on to rounding."""
    case = CASES[name]
    inputs = draw_inputs(case, loci=6, nodes=3)
    found = on_device(inputs, device, tolerance=1e-15)
    cohort = build_cohort(case.sheet, case.pedigree, case.covariates, [case.hypothesis])
    for node in range(3):
        problem = build_field_problem(
            cohort.fields[0],
            cohort,
            FieldVariances(inputs.variances[:, node], inputs.tau[:, node]),
            np.array([inputs.mixture_mean[0], *np.zeros(len(inputs.effect_sd))]),
            np.array([inputs.mixture_sd[0], *inputs.effect_sd]) ** 2,
            inputs.meth,
            inputs.total,
        )
        expected = dense_laplace(problem)
        assert expected.converged.all()
        np.testing.assert_allclose(found.log_evidence[:, node], expected.log_evidence, atol=NATS)
        effects = found.effect_mean.shape[2]
        np.testing.assert_allclose(found.effect_mean[:, node], expected.mean[:, :effects], atol=NATS)
        variance = np.diagonal(expected.covariance, axis1=1, axis2=2)[:, :effects]
        # Beyond the central node the baseline passes through the skewed Gaussian of the merged components.
        np.testing.assert_allclose(found.effect_variance[:, node, 1:], variance[:, 1:], rtol=NATS)
        if node == 0:
            np.testing.assert_allclose(found.effect_variance[:, 0], variance, rtol=NATS)


def test_propagation_against_dense_matrices() -> None:
    """Evidence to 1e-4 nats, where both stop at a mismatch of 1e-3 SDs."""
    inputs = draw_inputs(CASES["replicates"], loci=6, nodes=3)
    found = on_device(inputs, "cpu", method="ep")
    for node in (1, 2):
        expected = dense(CASES["replicates"], inputs, node)
        np.testing.assert_allclose(found.log_evidence[:, node], expected.log_evidence, atol=1e-4)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_the_budget_does_not_change_results(device: str) -> None:
    """A locus at a time, or all at once."""
    inputs = draw_inputs(CASES["everything"], loci=7, nodes=4)._replace(**THREE_COMPONENTS)
    alone = on_device(inputs, device, method="ep", memory_bytes=1)
    for one, other in zip(alone, on_device(inputs, device, method="ep"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_loci_at_once() -> None:
    """In proportion to the budget, and never less than a locus."""
    field = torch_field(draw_inputs(CASES["everything"], loci=1, nodes=1).arrays, CPU)
    few = loci_at_once(field, 2, 33, 3, 2**24, propagates=False)
    assert loci_at_once(field, 2, 33, 3, 2**27, propagates=False) == pytest.approx(8 * few, rel=0.2)
    assert loci_at_once(field, 2, 33, 3, 2**24, propagates=True) < few
    assert loci_at_once(field, 2, 33, 3, 1, propagates=True) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_matrices_in_several_calls(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than so many at once; with 7 of them a call ends in the middle of a point."""
    inputs = draw_inputs(many_families("mendelian"), loci=5, nodes=4)
    expected = on_device(inputs, device)
    monkeypatch.setattr(torch_field_module, "LARGEST_BATCH", 7)
    for one, other in zip(on_device(inputs, device), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("method", ["laplace", "ep"])
def test_memory_stays_within_the_budget(method: str) -> None:
    inputs = draw_inputs(many_families("epigenetic"), loci=2000, nodes=17)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    evaluate_nodes_torch(*inputs, torch.device("cuda"), method=method, memory_bytes=2**27)
    peak = torch.cuda.max_memory_allocated() - before
    assert 2**25 < peak < 2**27


# --- from the outer integral -----------------------------------------------------------------------------------------


def laplace_rung(study: Study, device: torch.device) -> list[HypothesisEvidence]:  # noqa: F811
    """All hypotheses at some loci with the inner integral of `device`; the encoder runs on the CPU."""
    meth, total, loci = study.meth[:30], study.total[:30], study.loci[:30]
    with torch.no_grad():
        gaussians = study.model.encoder(
            to_batch(CountsBatch(meth, total, loci), 30, CPU, torch.float64), study.model.hyper
        )
    return [
        hypothesis_evidence(
            study.model._replace(device=device),
            index,
            marginal_proposal(g.mean.numpy(), g.scale_tril.numpy(), len(study.model.hypotheses[index].parameters)),
            *(meth, total, loci, 32, 1),
        )
        for index, g in enumerate(gaussians)
    ]


def assert_evidences_agree(found: list[HypothesisEvidence], expected: list[HypothesisEvidence]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.inner_method, other.inner_method)
        np.testing.assert_allclose(one.log_evidence, other.log_evidence, atol=NATS, rtol=0)
        for name in set(HypothesisEvidence._fields) - {"inner_method", "log_evidence", "khat", *NODE_FIELDS}:
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-8, err_msg=name)


def test_a_model_of_another_device_uses_torch(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Evidence and moments of all hypotheses, with what a GPU would be asked computed on the CPU."""
    asked = []

    def on_cpu(*given: Any, **options: Any) -> NodeResults:
        asked.append(given[-1])
        return evaluate_nodes_torch(*given[:-1], CPU, **options)

    expected = laplace_rung(study, CPU)
    assert asked == []
    monkeypatch.setattr(evidence, "evaluate_nodes_torch", on_cpu)
    found = laplace_rung(study, torch.device("cuda"))
    assert asked == [torch.device("cuda")] * len(study.model.hypotheses)
    assert_evidences_agree(found, expected)


@pytest.mark.gpu
@needs_gpu
def test_refinement_on_a_gpu(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Encoder and the first two levels on the GPU: methods, evidence and moments of the CPU."""
    monkeypatch.setattr("epivi.families.transmission.refinement.LARGEST_DIFFERENCE", 0.02)
    device = torch.device("cuda")
    given = (study.meth, study.total, study.loci, 64, 1)
    expected = evaluate_batch(study.model, *given)
    model = evidence.build_evidence_model(
        study.cohort, study.model.hypotheses, study.model.learned, study.model.share_priors,
        study.model.encoder.state_dict(), 8, device,
    )  # fmt: skip
    assert next(model.encoder.parameters()).device.type == "cuda"
    assert {0, 1} <= {int(method) for method in expected[0].inner_method}
    assert_evidences_agree(evaluate_batch(model, *given), expected)


@pytest.mark.gpu
@needs_gpu
def test_benchmark_on_a_gpu() -> None:
    """The table of tests/benchmarks/bench_device.py is printed (pytest -m gpu -s); it holds the largest difference."""
    specification = importlib.util.spec_from_file_location("bench_device", BENCHMARK)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    result = CliRunner().invoke(module.main, ["--loci", "500"], catch_exceptions=False)
    print(result.output)
    assert result.exit_code == 0
    assert "cuda" in result.output
    assert module.largest_difference(500, torch.device("cuda")) < NATS
