"""Covariance components as data: any number of them, through the compiled kernel, torch and the dense methods."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from inference_cases import dense_laplace, log_observation, make_pedigree, make_sheet, prior_of_b
from numpy.typing import NDArray
from scipy.special import expit, logit, logsumexp

from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet
from epivi.families.transmission import outer_integral as evidence
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.components import shares_at, variance_components_at
from epivi.families.transmission.density import LearnedPriors, build_transmission, variance_components
from epivi.families.transmission.encoder import Encoder
from epivi.families.transmission.hypotheses import Hypothesis, parse_hypotheses, share_priors
from epivi.families.transmission.outer_integral import (
    EvidenceModel,
    OuterProposal,
    build_evidence_model,
    hypothesis_evidence,
)
from epivi.families.transmission.simulate import (
    BaselineComponent,
    SimulatedCohort,
    SimulationSettings,
    simulate_cohort,
)
from epivi.field.compiled.field import field_arrays
from epivi.field.compiled.nodes import evaluate_nodes
from epivi.field.dense.expectation_propagation import ep
from epivi.field.dense.laplace import laplace
from epivi.field.dense.problem import FieldVariances, build_field_problem
from epivi.field.layout import field_covariance
from epivi.field.torch.nodes import evaluate_nodes_torch
from epivi.field.torch.prior import field_tensors, latent_positions
from epivi.simulate.positions import Contig

Array = NDArray[np.float64]
CPU = torch.device("cpu")

PEDIGREE = make_pedigree(
    ("a",), ("b",), ("c", "a", "b"), ("d", "a", "b"), ("e",), ("f", "c", "e"), ("g", "a", None, "selfing", 2), ("h",)
)
SHEET = make_sheet(
    ("a", "b", "c", "d", "f", "g", "h", "c"),
    columns={
        "cage": ("1", "2", "1", "3", "2", "4", "4", "1"),
        "batch": ("x", "y", "x", "x", "y", "y", "x", "x"),
        "room": ("n", "n", "s", "s", "s", "n", "n", "s"),
    },
    false_methylated=np.full(8, 0.01),
    false_unmethylated=np.full(8, 0.02),
)
PASSED = {"heritable_share": "free", "maternal": "tau", "paternal": "tau"}
CAGE, BATCH, ROOM = ({"column": name} for name in ("cage", "batch", "room"))
# Of everyone, in another order, and of one more; of full rank.
MATRIX = Path(tempfile.mkdtemp()) / "relatedness.tsv"


def write_matrix(path: Path, names: Sequence[str], values: Array) -> None:
    rows = [["", *names], *([name, *map(repr, row)] for name, row in zip(names, values.tolist(), strict=True))]
    path.write_text("".join("\t".join(row) + "\n" for row in rows))


def genomic(individuals: int, seed: int) -> Array:
    """A relatedness of as many individuals from hardly more genotypes, of full rank, on another scale than 1."""
    genotypes = np.random.default_rng(seed).normal(size=(individuals, individuals + 4))
    return 0.8 * genotypes @ genotypes.T / genotypes.shape[1]


write_matrix(MATRIX, tuple("hgfedcbax"), genomic(9, seed=1))
RELATED = {"file": str(MATRIX)}
# By the number of components.
DECLARED: dict[str, dict[str, Any]] = {
    "0": {},
    "1": {"environment": [BATCH]},
    "2": {**PASSED, "environment": [CAGE]},
    "3": {**PASSED, "environment": [CAGE, BATCH]},
    "4": {**PASSED, "environment": [CAGE, {"column": "batch", "share": 0.3}, ROOM]},
    "1, a matrix": {"relatedness": RELATED},
    "4, a matrix": {**PASSED, "environment": [CAGE, BATCH], "relatedness": RELATED},
}
HYPOTHESES = dict(zip(DECLARED, parse_hypotheses(DECLARED), strict=True))
PRIORS = share_priors(
    {
        "heritable_share": {"alpha": 2, "beta": 2},
        "tau": {"alpha": 3, "beta": 2},
        "environment_share": {"alpha": 2, "beta": 4},
        "relatedness_share": {"alpha": 2, "beta": 3},
    }
)


def test_components_are_named_after_their_columns_where_there_are_several() -> None:
    assert [component.name for component in HYPOTHESES["4"].components] == ["heritable", "cage", "batch", "room"]
    assert HYPOTHESES["4"].parameters == (
        *("log_spread", "logit_heritable_share", "logit_cage_share", "logit_room_share", "logit_transmissibility"),
    )
    assert HYPOTHESES["4"].prior_names[1:4] == ("logit_heritable_share", *("logit_environment_share",) * 2)
    (alone,) = parse_hypotheses({"one": {"environment": CAGE}})
    assert [component.name for component in alone.components] == ["environment"]


def test_each_share_is_one_of_what_is_left() -> None:
    """By hand: sigma^2 = 4, shares 1/2, 1/4, 0.3 and 1/2 of what is left."""
    hypothesis = HYPOTHESES["4"]
    theta = np.array([[np.log(2.0), 0.0, np.log(1 / 3), 0.0, np.log(4.0)]])
    parts, tau = variance_components_at(hypothesis, theta)
    expected = np.array([0.5, 0.125, 0.3 * 0.375, 0.5 * 0.7 * 0.375, 0.5 * 0.7 * 0.375])
    np.testing.assert_allclose(parts, 4 * expected[None], rtol=1e-14)
    np.testing.assert_allclose(tau, 0.8)
    in_torch = variance_components(
        hypothesis, {name: torch.as_tensor(theta[:, d]) for d, name in enumerate(hypothesis.parameters)}
    )
    np.testing.assert_allclose(in_torch.variances, parts, rtol=1e-14)
    np.testing.assert_allclose(in_torch.tau, tau, rtol=1e-14)
    shares = shares_at(hypothesis, theta)
    assert list(shares) == ["heritable", "cage", "batch", "room"]
    np.testing.assert_allclose([share[0] for share in shares.values()], expected[:-1], rtol=1e-14)


def draw_variances(hypothesis: Hypothesis, nodes: int, seed: int) -> tuple[Array, Array]:
    """Variances [J, C + 1] and tau [J]."""
    random = np.random.default_rng(seed)
    count = len(hypothesis.components) + 1
    return random.uniform(0.5, 2.0, (nodes, 1)) * random.dirichlet(np.full(count, 3.0), nodes), random.random(nodes)


@pytest.mark.parametrize("number", DECLARED)
def test_covariance_of_each_engine(number: str) -> None:
    hypothesis = HYPOTHESES[number]
    (field,) = build_cohort(SHEET, PEDIGREE, [], [hypothesis]).fields
    assert field.components == len(hypothesis.components) == int(number[0])
    variances, tau = draw_variances(hypothesis, 3, seed=1)
    found = field_covariance(field, variances, tau, nugget=0.0)
    tensors = field_tensors(field, CPU, torch.float64)
    by_torch = np.zeros_like(found)
    for node in range(3):
        expected = prior_of_b(PEDIGREE, SHEET, hypothesis, variances[node], tau[node])[0]
        expected = expected[np.ix_(field.individual, field.individual)]
        np.testing.assert_allclose(found[node], expected, rtol=0, atol=1e-14)
    place = latent_positions(field, tensors)
    first = 0
    for group in tensors.groups:
        of_blocks = group.at(torch.as_tensor(variances), torch.as_tensor(tau)).numpy()
        for block in range(group.blocks):
            members = np.flatnonzero((place >= first) & (place < first + group.size))
            members = members[np.argsort(place[members])]
            by_torch[:, members[:, None], members] = of_blocks[:, block]
            first += group.size
    np.testing.assert_allclose(by_torch, found, rtol=0, atol=1e-9)  # with the nugget


class Drawn(NamedTuple):
    meth: NDArray[np.uint16]  # [L, S]
    total: NDArray[np.uint16]


def draw_counts(loci: int, reads: int, seed: int) -> Drawn:
    random = np.random.default_rng(seed)
    total = random.integers(0, 2 * reads, (loci, len(SHEET.samples)))
    level = expit(random.normal(0, 1, (loci, 1)) + random.normal(0, 1, total.shape))
    return Drawn(random.binomial(total, level).astype(np.uint16), total.astype(np.uint16))


MEAN, SD = 0.4, 1.3  # of the baseline's prior


@pytest.mark.parametrize("number", DECLARED)
def test_evidence_of_each_engine(number: str) -> None:
    """Laplace: compiled, in torch and dense, against matrices in plain NumPy; EP: compiled and in torch against dense.

    The tolerances are those at which the engines are compared elsewhere: where Newton's method stops, and 1e-4 for EP.
    """
    hypothesis, drawn = HYPOTHESES[number], draw_counts(3, 15, seed=2)
    cohort = build_cohort(SHEET, PEDIGREE, [], [hypothesis])
    (field,) = cohort.fields
    variances, tau = draw_variances(hypothesis, 3, seed=3)
    arrays = field_arrays(field, cohort.false_methylated, cohort.false_unmethylated)
    given = (np.tile(variances, (3, 1, 1)), np.tile(tau, (3, 1)), np.ones(1), np.full(1, MEAN), np.full(1, SD))
    arguments = (arrays, *drawn, *given, np.zeros(0))
    by_kernel = evaluate_nodes(*arguments, tolerance=1e-12)
    by_torch = evaluate_nodes_torch(*arguments, CPU, tolerance=1e-12)
    np.testing.assert_allclose(by_torch.log_evidence, by_kernel.log_evidence, atol=1e-8)
    propagated = evaluate_nodes(*arguments, method="ep")
    np.testing.assert_allclose(
        evaluate_nodes_torch(*arguments, CPU, method="ep").log_evidence, propagated.log_evidence, atol=1e-8
    )
    design = np.ones((len(SHEET.samples), 1))
    for node in range(3):
        at = FieldVariances(np.tile(variances[node], (3, 1)), np.full(3, tau[node]))
        problem = build_field_problem(field, cohort, at, [MEAN], [SD**2], *drawn)
        np.testing.assert_allclose(laplace(problem).log_evidence, by_kernel.log_evidence[:, node], atol=1e-8)
        if node > 0:  # the kernel keeps Laplace at the first
            np.testing.assert_allclose(ep(problem).log_evidence, propagated.log_evidence[:, node], atol=1e-4)
        prior, membership = prior_of_b(PEDIGREE, SHEET, hypothesis, variances[node], tau[node])
        for locus in range(3):
            counts = (*(x[locus].astype(float) for x in drawn), SHEET.false_methylated, SHEET.false_unmethylated)
            expected = dense_laplace(counts, prior, membership, design, np.array([MEAN]), np.array([SD**2]))
            assert by_kernel.log_evidence[locus, node] == pytest.approx(expected.log_evidence, abs=1e-6)


@pytest.mark.parametrize("number", DECLARED)
def test_evidence_by_brute_force(number: str) -> None:
    """Three individuals: the sum over a grid of their logits, exact to 1e-8. Expectation propagation misses it by less
    than 5e-3 nats, and by ten times that without any one of the components."""
    hypothesis = HYPOTHESES[number]
    names = ("a", "c", "d")
    at = [SHEET.individuals.index(name) for name in names]
    columns = {name: tuple(values[k] for k in at) for name, values in SHEET.columns.items()}
    sheet = make_sheet(names, columns=columns)
    cohort = build_cohort(sheet, PEDIGREE, [], [hypothesis])
    arrays = field_arrays(cohort.fields[0], cohort.false_methylated, cohort.false_unmethylated)
    total = np.array([[20, 18, 17]], dtype=np.uint16)
    meth = np.array([[19, 17, 16]], dtype=np.uint16)
    variances = np.array([2.0, 1.6, 1.2, 0.8])[: len(hypothesis.components)]
    variances = np.append(variances, 0.3)
    prior, _ = prior_of_b(PEDIGREE, sheet, hypothesis, variances, 0.7)

    def exact(covariance: Array) -> float:
        root = np.linalg.cholesky(covariance + SD**2)
        axis = np.linspace(-5.5, 5.5, 61)
        z = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
        y = MEAN + z @ root.T
        zero = np.zeros(3)
        log_density = log_observation(meth[0].astype(float), total[0].astype(float), zero, zero, y).sum(1)
        log_density -= 0.5 * (z**2).sum(1) + 1.5 * np.log(2 * np.pi)
        return float(logsumexp(log_density) + 3 * np.log(axis[1] - axis[0]))

    given = (np.tile(variances, (1, 2, 1)), np.full((1, 2), 0.7), np.ones(1), np.full(1, MEAN), np.full(1, SD))
    whole = exact(prior)
    for evaluate in (evaluate_nodes, lambda *a, method: evaluate_nodes_torch(*a, CPU, method=method)):
        found = evaluate(arrays, meth, total, *given, np.zeros(0), method="ep").log_evidence[0, 1]
        assert found == pytest.approx(whole, abs=5e-3)
    for component in range(len(hypothesis.components)):
        without = variances * (np.arange(len(variances)) != component)
        assert abs(exact(prior_of_b(PEDIGREE, sheet, hypothesis, without, 0.7)[0]) - whole) > 0.05


def test_variances_of_another_number_are_refused() -> None:
    cohort = build_cohort(SHEET, PEDIGREE, [], [HYPOTHESES["2"]])
    arrays = field_arrays(cohort.fields[0], cohort.false_methylated, cohort.false_unmethylated)
    one = np.ones(1)
    given = (np.ones((1, 1, 2)), np.ones((1, 1)), one, one, one, np.zeros(0))
    for evaluate in (evaluate_nodes, lambda *a: evaluate_nodes_torch(*a, CPU)):
        with pytest.raises(ValueError, match="2 variances: expected 2 and that of the residual"):
            evaluate(arrays, *draw_counts(1, 5, seed=1), *given)


# --- the outer integral ----------------------------------------------------------------------------------------------

LEARNED = LearnedPriors(
    np.array([0.4, 0.6]), np.array([-2.0, 1.0]), np.array([1.0, 0.8]), 0.1, 0.4, np.zeros(0), np.full(6, 1 / 6)
)


def make_model(declared: dict[str, dict[str, Any]]) -> EvidenceModel:
    hypotheses = parse_hypotheses(declared)
    cohort = build_cohort(SHEET, PEDIGREE, [], hypotheses)
    family = build_transmission(cohort, hypotheses, PRIORS, CPU, torch.float64)
    encoder = Encoder(cohort, family, 4)
    return build_evidence_model(cohort, hypotheses, LEARNED, PRIORS, encoder.state_dict(), 4)


def counts_of_before() -> Drawn:
    random = np.random.default_rng(5)
    total = random.integers(0, 40, (4, 8)).astype(np.uint16)
    return Drawn(random.binomial(total, random.beta(2, 2, (4, 8))).astype(np.uint16), total)


BEFORE = {
    "reset": ({}, [-23.0698528922, -18.4785830382, -16.2391093605, -23.0054968931]),
    "mendelian": (
        {"heritable_share": "free", "maternal": 1, "paternal": 1},
        [-23.1193744443, -19.2226335724, -16.4286472286, -23.0327006288],
    ),
    "epigenetic": (PASSED, [-23.0913208689, -18.7247962646, -16.2980160737, -23.139999877]),
    "cage": ({"environment": CAGE}, [-23.6049622411, -18.3948689491, -15.93779011, -22.8573245084]),
    "fixed": (
        {"heritable_share": 0.4, "maternal": 0.5, "paternal": 1, "environment": {"column": "cage", "share": 0.3}},
        [-23.4927851473, -18.5161752971, -16.0213031572, -22.9798937816],
    ),
    "both": ({**PASSED, "environment": CAGE}, [-23.0591117494, -18.2646945249, -16.0874170664, -22.8510773294]),
}


def test_evidence_is_that_of_the_versions_with_three_variances() -> None:
    """Log evidence of hypotheses in the words of before, by the version that had heritable, environment and residual
    variance and no list of components: all digits that are kept here."""
    model = make_model({name: terms for name, (terms, _) in BEFORE.items()})
    for index, (_, expected) in enumerate(BEFORE.values()):
        dimensions = len(model.hypotheses[index].parameters)
        proposal = OuterProposal(np.zeros((4, dimensions)), np.tile(0.5 * np.eye(dimensions), (4, 1, 1)))
        found = hypothesis_evidence(model, index, proposal, *counts_of_before(), np.arange(4), 64, 3)
        np.testing.assert_allclose(found.log_evidence, expected, rtol=0, atol=1e-9)


def test_evidence_in_five_and_six_dimensions() -> None:
    """Four loci against eight lattices of four times as many nodes: from a proposal that knows the prior alone, the
    error is below 0.05 nats, and not above what is claimed, beyond which a locus gets more nodes."""
    model = make_model({"5": DECLARED["3"], "6": {**PASSED, "environment": [CAGE, BATCH, ROOM]}})
    drawn = counts_of_before()
    for index, hypothesis in enumerate(model.hypotheses):
        dimensions = len(hypothesis.parameters)
        assert dimensions == 5 + index
        # The prior, which the inflation makes twice as wide.
        priors = [evidence.prior_of(model, name) for name in hypothesis.prior_names]
        mean, sd = (np.tile([getattr(prior, name) for prior in priors], (4, 1)) for name in ("mean", "sd"))
        proposal = OuterProposal(mean, sd[:, :, None] * np.eye(dimensions))

        def found_with(nodes: int, seed: int, index: int = index, proposal: OuterProposal = proposal) -> Any:
            return hypothesis_evidence(model, index, proposal, *drawn, np.arange(4), nodes, seed)

        many = np.stack([found_with(256, seed).log_evidence for seed in range(8)])
        exact = logsumexp(many, axis=0) - np.log(len(many))
        few = [found_with(64, seed) for seed in range(8, 12)]
        error = np.stack([found.log_evidence - exact for found in few])
        claimed = np.stack([found.log_evidence_se for found in few])
        assert np.sqrt((error**2).mean()) < 0.05
        assert np.sqrt((error**2).mean()) < np.sqrt((claimed**2).mean())


def test_reported_shares_are_those_of_the_whole_variance() -> None:
    """Means by hand from the nodes, 0 for what a hypothesis lacks, the value of what is fixed."""
    model = make_model({"4": DECLARED["4"], "cage": {"environment": {"column": "cage", "share": 0.25}}, "reset": {}})
    drawn = counts_of_before()
    found = []
    for index, hypothesis in enumerate(model.hypotheses):
        dimensions = len(hypothesis.parameters)
        proposal = OuterProposal(np.zeros((4, dimensions)), np.tile(0.5 * np.eye(dimensions), (4, 1, 1)))
        found.append(hypothesis_evidence(model, index, proposal, *drawn, np.arange(4), 64, 3))
    whole = found[0].node_variances[..., :-1]
    share = (found[0].node_weight[..., None] * whole / whole.sum(2, keepdims=True)).sum(1)
    np.testing.assert_allclose(found[0].mean[:, [2, 5, 6, 7]], share[:, :4], rtol=1e-12)
    assert (found[0].q05[:, 5:] < found[0].q50[:, 5:]).all()
    assert (found[0].q50[:, 5:] < found[0].q95[:, 5:]).all()
    for statistic in (found[1].mean, found[1].q05, found[1].q50, found[1].q95):
        np.testing.assert_allclose(statistic[:, 5:], np.tile([0.25, 0.0, 0.0], (4, 1)), rtol=1e-12)
    assert not found[2].q95[:, 5:].any()


# --- a simulated cohort ----------------------------------------------------------------------------------------------

WORST = 5.0  # |z| of some hundreds of numbers: a false alarm in 2,000 runs


def study_cohort(folder: Path) -> tuple[Pedigree, SampleSheet, str]:
    """Twenty-four unrelated individuals in cages of three, batches of six and with a relatedness matrix."""
    names = tuple(f"i{number:02}" for number in range(24))
    write_matrix(folder / "related.tsv", names, genomic(24, seed=3))
    order = np.random.default_rng(4).permutation(24)
    cage = tuple(f"cage{number}" for number in np.arange(24) // 3)
    columns = {"cage": cage, "batch": tuple(f"batch{number}" for number in order % 4)}
    return make_pedigree(*((name,) for name in names)), make_sheet(names, columns=columns), str(folder / "related.tsv")


LARGE = {"alpha": 4, "beta": 2}
LARGE_SHARES = share_priors(
    {"heritable_share": LARGE, "environment_share": LARGE, "relatedness_share": LARGE, "tau": LARGE}
)


def simulated(
    declared: dict[str, dict[str, Any]], pedigree: Pedigree, sheet: SampleSheet, loci: int, seed: int
) -> SimulatedCohort:
    hypotheses = parse_hypotheses(declared)
    settings = SimulationSettings(
        seed=seed,
        hypotheses=hypotheses,
        weights=(1 / len(hypotheses),) * len(hypotheses),
        contigs=(Contig("chr1", loci),),
        share_priors=LARGE_SHARES,
        baseline=(BaselineComponent(1.0, 0.3, 0.8),),
        coverage_mean=40.0,
    )
    return simulate_cohort(settings, pedigree, sheet)


def test_drawn_cohort_has_the_covariance_of_its_components(tmp_path: Path) -> None:
    """Two environments and a matrix with fixed shares, over 20,000 loci, against matrices by hand."""
    pedigree, sheet, path = study_cohort(tmp_path)
    terms = {
        "environment": [{"column": "cage", "share": 0.3}, {"column": "batch", "share": 0.4}],
        "relatedness": {"file": path, "share": 0.5},
    }
    drawn = simulated({"all": terms}, pedigree, sheet, 20_000, seed=5)
    scaled = (drawn.logit - logit(drawn.truth["baseline"])[:, None]) / drawn.truth["spread"][:, None]
    (hypothesis,) = parse_hypotheses({"all": terms})
    expected, _ = prior_of_b(pedigree, sheet, hypothesis, np.array([0.3, 0.28, 0.21, 0.21]), 0.0)
    np.testing.assert_allclose([drawn.truth[f"{name}_share"][0] for name in ("cage", "batch")], [0.3, 0.28])
    np.testing.assert_allclose(drawn.truth["relatedness_share"], 0.21)

    def worst(covariance: Array) -> float:
        error = np.sqrt((np.outer(np.diagonal(covariance), np.diagonal(covariance)) + covariance**2) / len(scaled))
        return float((np.abs(scaled.T @ scaled / len(scaled) - covariance) / error).max())

    assert worst(expected) < WORST
    for without in np.eye(4)[:3]:
        parts = np.array([0.3, 0.28, 0.21, 0.21]) * (1 - without)
        assert worst(prior_of_b(pedigree, sheet, hypothesis, parts, 0.0)[0]) > 2 * WORST


def test_two_environments_and_a_matrix_are_told_apart(tmp_path: Path) -> None:
    """240 loci of four hypotheses in equal parts, at the priors that they were drawn with: the probabilities are right
    on average, and those of the true hypotheses, 0.53 to 0.78 where guessing gives 0.25, show that the data tell. Of
    the shares, nine in ten lie in their 90 % intervals. |z| of seven numbers above 4: once in 2,000 runs.
    """
    pedigree, sheet, path = study_cohort(tmp_path)
    declared = {
        "reset": {},
        "cage": {"environment": {"column": "cage"}},
        "batch": {"environment": {"column": "batch"}},
        "related": {"relatedness": {"file": path}},
    }
    drawn = simulated(declared, pedigree, sheet, 240, seed=6)
    hypotheses = parse_hypotheses(declared)
    cohort = build_cohort(sheet, pedigree, [], hypotheses)
    learned = LearnedPriors(np.ones(1), np.array([0.3]), np.array([0.8]), 0.0, 0.3, np.zeros(0), np.full(4, 0.25))
    family = build_transmission(cohort, hypotheses, LARGE_SHARES, CPU, torch.float64)
    model = build_evidence_model(cohort, hypotheses, learned, LARGE_SHARES, Encoder(cohort, family, 4).state_dict(), 4)
    counts = drawn.meth.astype(np.uint16), drawn.total.astype(np.uint16)
    found = []
    for index, hypothesis in enumerate(hypotheses):
        dimensions = len(hypothesis.parameters)
        mean, scale = np.array([0.0, 0.8])[:dimensions], np.array([0.2, 0.6])[:dimensions]
        proposal = OuterProposal(np.tile(mean, (240, 1)), np.tile(np.diag(scale), (240, 1, 1)))
        found.append(hypothesis_evidence(model, index, proposal, *counts, np.arange(240), 64, 7))
    log_evidence = np.stack([one.log_evidence for one in found], axis=1)
    probability = np.exp(log_evidence - logsumexp(log_evidence, axis=1, keepdims=True))
    truth = drawn.truth["hypothesis"]
    of_truth = probability[np.arange(240), truth]
    for index in range(4):
        excess = (truth == index) - probability[:, index]
        error = np.sqrt((probability[:, index] * (1 - probability[:, index])).sum())
        assert abs(excess.sum() / error) < 4
        assert of_truth[truth == index].mean() > 0.4
    for index, name in ((1, "cage_share"), (2, "batch_share"), (3, "relatedness_share")):
        column = 5 + ("cage_share", "batch_share", "relatedness_share").index(name)
        at = truth == index
        low, high = found[index].q05[at, column], found[index].q95[at, column]
        inside = ((low < drawn.truth[name][at]) & (drawn.truth[name][at] < high)).sum()
        assert abs(inside - 0.9 * at.sum()) < 4 * np.sqrt(0.09 * at.sum())
        correlation = np.corrcoef(found[index].mean[at, column], drawn.truth[name][at])[0, 1]
        assert correlation > 0.4 or name == "relatedness_share"  # of which 24 individuals at one locus tell less
