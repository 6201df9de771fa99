"""Cohorts whose samples are haplotypes: the covariance against dense algebra and against the mechanism drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conversion_cases import called
from quality_cases import PRIORS, sheet_of, write_store, write_tables

from epivi.base.errors import UserError
from epivi.cohort.haplotypes import Unit, sampled_units
from epivi.cohort.kinship import transmission_polynomials, unit_polynomials
from epivi.cohort.pedigree import Pedigree
from epivi.cohort.samples import SampleSheet, read_sample_sheet
from epivi.commands import evidence, fit
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.hypotheses import parse_hypotheses
from epivi.families.transmission.simulate import BaselineComponent, SimulationSettings, simulate_cohort
from epivi.field.compiled.field import field_arrays
from epivi.field.compiled.nodes import evaluate_nodes
from epivi.field.dense.laplace import laplace
from epivi.field.dense.problem import FieldVariances, build_field_problem
from epivi.field.layout import field_covariance
from epivi.simulate.positions import Contig
from epivi.simulate.templates import template_pedigree
from epivi.tables.parquet import read_table

HYPOTHESES = parse_hypotheses(
    {
        "reset": {},
        "mendelian": {"heritable_share": "free", "maternal": 1, "paternal": 1},
        "epigenetic": {"heritable_share": "free", "maternal": "tau", "paternal": "tau"},
        "maternal": {"heritable_share": "free", "maternal": "tau", "paternal": 0},
        "paternal": {"heritable_share": "free", "maternal": 0, "paternal": "tau"},
        "unequal": {"heritable_share": "free", "maternal": "tau", "paternal": 0.4},
    }
)
TRANSMITTING = HYPOTHESES[1:]
SIDES = ("maternal", "paternal")


def random_pedigree(rng: np.random.Generator, size: int) -> Pedigree:
    """Parents among the earlier, related ones as well, and some unknown."""
    mother, father = np.full(size, -1, np.int32), np.full(size, -1, np.int32)
    for child in range(2, size):
        both = rng.permutation(child)[:2]
        known = rng.random(2) < 0.75
        mother[child], father[child] = np.where(known, both, -1)
    names = tuple(f"i{number}" for number in range(size))
    return Pedigree(names, mother, father, ("sexual",) * size, np.ones(size, np.int32), ("unknown",) * size)


def taus(hypothesis, tau: float) -> tuple[float, float]:
    return tuple(tau if value == "tau" else float(value) for value in (hypothesis.maternal, hypothesis.paternal))


def dense_haplotypes(pedigree: Pedigree, tau_maternal: float, tau_paternal: float) -> np.ndarray:
    """Covariance [2 I, 2 I] of everyone's h_m and h_p: h = T h + s solved as linear equations, Var(s) in order."""
    n = len(pedigree.individuals)
    transfer, segregation = np.zeros((2 * n, 2 * n)), np.zeros(2 * n)
    for child in range(n):
        for side, (parents, tau) in enumerate(((pedigree.mother, tau_maternal), (pedigree.father, tau_paternal))):
            if parents[child] >= 0:
                transfer[2 * child + side, 2 * parents[child] : 2 * parents[child] + 2] = tau / 2
        solve = np.linalg.inv(np.eye(2 * n) - transfer)
        without = solve @ np.diag(segregation) @ solve.T
        c = without[2 * child, 2 * child + 1]
        for row in (2 * child, 2 * child + 1):
            segregation[row] = 2 - c - without[row, row]
    return solve @ np.diag(segregation) @ solve.T


def loading(pedigree: Pedigree, units: Sequence[Unit], is_first_maternal: dict[str, bool]) -> np.ndarray:
    """What each unit takes of h_m and h_p of everyone, [K, 2 I]; `is_first_maternal`: the labels of each file."""
    out = np.zeros((len(units), 2 * len(pedigree.individuals)))
    for row, unit in enumerate(units):
        at = 2 * pedigree.individuals.index(unit.individual)
        if unit.origin == "both":
            out[row, at : at + 2] = 0.5
        elif unit.origin == "unknown":
            out[row, at + int((unit.number == "1") != is_first_maternal[unit.phasing])] = np.sqrt(0.5)
        else:
            out[row, at + SIDES.index(unit.origin)] = np.sqrt(0.5)
    return out


def value_at(polynomials: np.ndarray, tau: float) -> np.ndarray:
    return polynomials @ tau ** np.arange(polynomials.shape[2])


def units_of(kinds: Sequence[tuple[str, str]]) -> list[Unit]:
    """Kinds: both, maternal, paternal, or the file and number of an unknown haplotype."""
    return [
        Unit(name, "unknown", kind[-1], kind[:-1]) if kind[-1].isdecimal() else Unit(name, kind, "", "")
        for name, kind in kinds
    ]


@pytest.mark.parametrize("hypothesis", TRANSMITTING, ids=[one.name for one in TRANSMITTING])
def test_known_haplotypes_have_the_covariance_of_the_linear_system(hypothesis):
    """Ten pedigrees of nine, with inbreeding and unknown parents, everyone as both, maternal and paternal: to 1e-12."""
    rng = np.random.default_rng(4)
    for _ in range(10):
        pedigree = random_pedigree(rng, 9)
        units = units_of([(name, kind) for name in pedigree.individuals for kind in ("both", *SIDES)])
        tau = rng.uniform(0.2, 0.95)
        dense = dense_haplotypes(pedigree, *taus(hypothesis, tau))
        by_hand = loading(pedigree, units, {})
        polynomials = unit_polynomials(pedigree, hypothesis, units)
        np.testing.assert_allclose(value_at(polynomials, tau), by_hand @ dense @ by_hand.T, atol=1e-12)
        # Individuals alone have the covariance that they have without any haplotype.
        both = polynomials[::3, ::3]
        alone = transmission_polynomials(pedigree, hypothesis, np.arange(9, dtype=np.int32))
        np.testing.assert_allclose(both[:, :, : alone.shape[2]], alone, atol=1e-12)


@pytest.mark.parametrize("hypothesis", TRANSMITTING, ids=[one.name for one in TRANSMITTING])
def test_unknown_haplotypes_have_the_covariance_of_the_mixture_of_labels(hypothesis):
    """Against the mean over all 2^5 labellings of the files, known haplotypes beside them: to 1e-12."""
    rng = np.random.default_rng(5)
    for _ in range(5):
        pedigree = random_pedigree(rng, 6)
        files = {"a": "i2", "b": "i3", "c": "i4", "d": "i5", "e": "i5"}
        kinds = [(name, f"{file}{number}") for file, name in files.items() for number in (1, 2)]
        kinds += [("i5", "both"), ("i3", "maternal"), ("i4", "paternal"), ("i0", "both")]
        units = units_of(kinds)
        tau = rng.uniform(0.2, 0.95)
        dense = dense_haplotypes(pedigree, *taus(hypothesis, tau))
        expected = np.zeros((len(units), len(units)))
        for labels in product((False, True), repeat=len(files)):
            by_hand = loading(pedigree, units, dict(zip(files, labels, strict=True)))
            expected += by_hand @ dense @ by_hand.T / 2 ** len(files)
        actual = value_at(unit_polynomials(pedigree, hypothesis, units), tau)
        np.testing.assert_allclose(actual, expected, atol=1e-12)
        assert np.linalg.eigvalsh(actual).min() > -1e-9


def test_a_haplotype_depends_on_one_parent_only():
    pedigree = template_pedigree("trio", 1)
    mother, father, child = pedigree.individuals
    units = units_of([(child, "maternal"), (child, "paternal"), (mother, "both"), (father, "both")])
    for hypothesis, expected in (
        (TRANSMITTING[0], [[1, 0, np.sqrt(0.5), 0], [0, 1, 0, np.sqrt(0.5)]]),
        (TRANSMITTING[2], [[1, 0, 0.6 * np.sqrt(0.5), 0], [0, 1, 0, 0]]),
        (TRANSMITTING[3], [[1, 0, 0, 0], [0, 1, 0, 0.6 * np.sqrt(0.5)]]),
    ):
        np.testing.assert_allclose(value_at(unit_polynomials(pedigree, hypothesis, units), 0.6)[:2], expected)


def test_covariance_is_that_of_chromosomes_handed_on_at_random():
    """The mechanism itself, not its Gaussian: each parent hands on one of two chromosomes, tau of which survives.

    300,000 loci of three generations, seed 6; every entry within 5 standard errors (false alarm 4e-5 for 66 entries).
    """
    rng = np.random.default_rng(6)
    loci, tau = 300_000, (0.8, 0.5)
    pedigree = template_pedigree("three_generations", 1)
    n = len(pedigree.individuals)
    h = rng.normal(size=(n, 2, loci)) * np.sqrt(2)
    for child in range(n):
        for side, parent in enumerate((pedigree.mother[child], pedigree.father[child])):
            if parent >= 0:
                handed = h[parent, rng.integers(0, 2, loci), np.arange(loci)]
                h[child, side] = tau[side] * handed + np.sqrt(1 - tau[side] ** 2) * h[child, side]
    kinds = [(name, side) for name in pedigree.individuals[2:] for side in SIDES]
    kinds += [(name, "both") for name in pedigree.individuals[:2]] + [(pedigree.individuals[4], "f1")]
    units = units_of(kinds)
    values = loading(pedigree, units, {"f": True}) @ h.reshape(2 * n, loci)
    values[-1] = np.where(rng.random(loci) < 0.5, h[4, 0], h[4, 1]) / np.sqrt(2)
    hypothesis = parse_hypotheses({"h": {"heritable_share": "free", "maternal": 0.8, "paternal": 0.5}})[0]
    expected = value_at(unit_polynomials(pedigree, hypothesis, units), 1.0)
    error = np.sqrt((1 + expected**2) / loci)
    assert np.abs((values @ values.T / loci - expected) / error).max() < 5


# ---- sheets


def sheet_from(
    folder: Path, *rows: str, columns: str = "sample individual path haplotype parent_of_origin"
) -> SampleSheet:
    (folder / "s.tsv").write_text("\n".join("\t".join(row.split(" ")) for row in (columns, *rows)) + "\n")
    return read_sample_sheet(folder / "s.tsv")


def test_units_of_a_mixed_cohort(tmp_path):
    sheet = sheet_from(
        tmp_path,
        "a ann a.bam all .",
        "b1 bob b.bam 1 .",
        "b2 bob b.bam 2 unknown",
        "bu bob b.bam unphased .",
        "c1 cat c.bam 1 maternal",
        "c2 cat c.bam 2 paternal",
        "cr cat more.bam 2 maternal",
        "a2 ann again.bam . both",
        "d1 dan d_hap1.bed . paternal",
    )
    units, of_sample = sampled_units(sheet)
    assert of_sample.tolist() == [0, 1, 2, 3, 4, 5, 4, 0, 6]
    assert [unit.name for unit in units] == [
        "ann",
        "bob haplotype 1 of b1",
        "bob haplotype 2 of b1",
        "bob",
        "cat maternal haplotype",
        "cat paternal haplotype",
        "dan paternal haplotype",
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("a ann a.bam 1 .", "b ann a.bam all ."), "line 3: 'a.bam' is counted whole and by haplotype"),
        (("a ann a.bam 1 .", "b ann a.bam 1 ."), "line 3: 'a.bam': a haplotype is listed twice"),
        (
            ("a ann a.bam 1 .", "b ann a.bam 2 .", "c ann a.bam 3 ."),
            "line 4: 'a.bam' has 3 haplotypes: expected at most 2",
        ),
        (("a ann a.bam 1 maternal", "b ann a.bam 2 maternal"), "its haplotypes are maternal and maternal"),
        (("a ann a.bam 1 maternal", "b ann a.bam 2 ."), "its haplotypes are maternal and unknown"),
    ],
)
def test_haplotypes_that_cannot_be_are_named(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        sampled_units(sheet_from(tmp_path, *rows))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a ann a.bam 1 mum", "parent_of_origin is 'mum': expected maternal, paternal, unknown, both or auto"),
        ("a ann a.bam unphased maternal", "of unphased reads: expected both"),
        ("a ann a.bam 2 both", "of haplotype 2: expected maternal, paternal or unknown"),
    ],
)
def test_bad_origins_are_named(tmp_path, row, message):
    with pytest.raises(UserError, match=f"line 2: parent_of_origin.*{message}|line 2: {message}"):
        sheet_from(tmp_path, row)


def test_haplotypes_of_a_selfed_plant_are_refused():
    pedigree = template_pedigree("selfing_lines", 1)
    name = pedigree.individuals[1]
    sheet = SampleSheet(**{**vars(sheet_of((name,))), "origins": {name: "maternal"}})
    with pytest.raises(UserError, match="has haplotypes but arose by selfing"):
        build_cohort(sheet, pedigree, (), HYPOTHESES)


# ---- simulation and field


def haplotype_sheet(pedigree: Pedigree, known: bool) -> SampleSheet:
    """Two haplotypes of everyone in one file each, first the maternal one where that is known."""
    names = [f"{name}_{number}" for name in pedigree.individuals for number in (1, 2)]
    individuals = tuple(name for name in pedigree.individuals for _ in (1, 2))
    sheet = sheet_of(individuals, tuple(f"{name}.bam" for name in individuals))
    origins = {name: SIDES[row % 2] for row, name in enumerate(names)} if known else {}
    changes = {"samples": tuple(names), "haplotypes": ("1", "2") * len(pedigree.individuals), "origins": origins}
    return SampleSheet(**{**vars(sheet), **changes})


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", ["mendelian", "maternal", "paternal"])
def test_simulated_haplotypes_have_the_covariance_of_the_field(known, name):
    """60,000 loci, seed 9: every entry of the covariance within 5 standard errors (66 entries: false alarm 4e-5)."""
    pedigree = template_pedigree("three_generations", 1)
    sheet = haplotype_sheet(pedigree, known)
    fixed = {"mendelian": (1, 1), "maternal": (0.7, 0), "paternal": (0, 0.7)}[name]
    terms = {"heritable_share": 0.6, "maternal": fixed[0], "paternal": fixed[1]}
    hypotheses = parse_hypotheses({name: terms})
    settings = SimulationSettings(
        seed=9,
        hypotheses=hypotheses,
        weights=(1.0,),
        contigs=(Contig("chr1", 60_000),),
        share_priors=PRIORS,
        log_spread_scale=0.0,
        baseline=(BaselineComponent(1.0, 0.0, 0.0),),
    )
    cohort = build_cohort(sheet, pedigree, (), hypotheses)
    logit = simulate_cohort(settings, pedigree, sheet).logit
    field = cohort.fields[0]
    dense = field_covariance(field, np.array([[0.6, 0.4]]), np.ones(1))[0][
        np.ix_(field.latent_of_sample, field.latent_of_sample)
    ]
    variance = np.diag(dense)
    error = np.sqrt((variance[:, None] * variance[None, :] + dense**2) / len(logit))
    assert np.abs((logit.T @ logit / len(logit) - dense) / error).max() < 5


# ---- inference

SHARE, TAU, SPREAD = 0.6, 0.8, 1.0


def log_evidence(
    sheet: SampleSheet, pedigree: Pedigree, meth: np.ndarray, total: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of maternal and of paternal transmission [2, L] at the drawn variances: by the kernel, and by dense Laplace."""
    cohort = build_cohort(sheet, pedigree, (), HYPOTHESES[3:5])
    ones = np.ones(len(meth))
    by_kernel, by_dense = [], []
    for field in cohort.fields:
        arrays = field_arrays(field, cohort.false_methylated, cohort.false_unmethylated)
        shares = np.array([SHARE, 1 - SHARE]) * SPREAD**2
        variances = np.broadcast_to(shares, (len(meth), 1, 2)).copy()
        mixture = (np.ones(1), np.zeros(1), np.ones(1))
        counts = meth.astype(np.uint16), total.astype(np.uint16)
        nodes = evaluate_nodes(arrays, *counts, variances, TAU * ones[:, None], *mixture, np.empty(0), tolerance=1e-12)
        by_kernel.append(nodes.log_evidence[:, 0])
        problem = build_field_problem(
            field, cohort, FieldVariances(variances[:, 0], TAU * ones), np.zeros(1), np.ones(1), meth, total
        )
        by_dense.append(laplace(problem).log_evidence)
    return np.array(by_kernel), np.array(by_dense)


@pytest.fixture(scope="module")
def paternal_cohort():
    """150 loci that only fathers pass on, in eight quartets whose every sample is two haplotypes."""
    pedigree = template_pedigree("quartet", 8)
    hypotheses = parse_hypotheses({"paternal": {"heritable_share": SHARE, "maternal": 0, "paternal": TAU}})
    settings = SimulationSettings(
        seed=10,
        hypotheses=hypotheses,
        weights=(1.0,),
        contigs=(Contig("chr1", 150),),
        share_priors=PRIORS,
        log_spread_location=np.log(SPREAD),
        log_spread_scale=0.0,
        baseline=(BaselineComponent(1.0, 0.0, 1.0),),
        coverage_mean=15,
    )
    return pedigree, simulate_cohort(settings, pedigree, haplotype_sheet(pedigree, known=True))


def test_the_kernel_and_dense_algebra_agree_on_haplotypes(paternal_cohort):
    pedigree, drawn = paternal_cohort
    for known in (True, False):
        by_kernel, by_dense = log_evidence(haplotype_sheet(pedigree, known), pedigree, drawn.meth, drawn.total)
        np.testing.assert_allclose(by_kernel, by_dense, atol=1e-6)


def test_haplotypes_of_known_origin_tell_the_parents_apart(paternal_cohort):
    """The same reads: known origin gives most of the evidence, and the sum of both haplotypes least.

    Mean log Bayes factors of paternal against maternal, seed 10: 0.78, 0.30 and 0.19 nats a locus. Where the field took
    no notice of the origin, the first two would be equal; the differences are above five of their errors over 150 loci.
    """
    pedigree, drawn = paternal_cohort
    known, unknown = (
        np.subtract(*log_evidence(haplotype_sheet(pedigree, is_known), pedigree, drawn.meth, drawn.total)[0][::-1])
        for is_known in (True, False)
    )
    whole = sheet_of(pedigree.individuals)
    summed = [counts[:, ::2] + counts[:, 1::2] for counts in (drawn.meth, drawn.total)]
    together = np.subtract(*log_evidence(whole, pedigree, *summed)[0][::-1])
    for more, less in ((known, unknown), (known, together)):
        difference = more - less
        assert difference.mean() > 5 * difference.std() / np.sqrt(len(difference))
    assert known.mean() > 0.5
    assert together.mean() > 0
    assert unknown.mean() > 0


def test_unphased_samples_beside_haplotypes(paternal_cohort):
    """Half the individuals as a whole, half by haplotype, and unphased reads beside the haplotypes of one."""
    pedigree, drawn = paternal_cohort
    by_haplotype = haplotype_sheet(pedigree, known=True)
    whole = sheet_of(pedigree.individuals)
    names = [name for name in by_haplotype.samples if int(name[1]) <= 4]
    rows = [by_haplotype.samples.index(name) for name in names]
    rest = [row for row, name in enumerate(whole.samples) if int(name[1]) > 4]
    picked = {
        key: (*(getattr(by_haplotype, key)[row] for row in rows), *(getattr(whole, key)[row] for row in rest), extra)
        for key, extra in (
            ("samples", "unphased"),
            ("individuals", "F1_mother"),
            ("paths", "F1_mother.bam"),
            ("haplotypes", "unphased"),
            ("formats", "auto"),
        )
    }
    n = len(picked["samples"])
    sheet = SampleSheet(
        **{
            **vars(whole),
            **picked,
            "false_methylated": np.zeros(n),
            "false_unmethylated": np.zeros(n),
            "lines": tuple(range(n)),
            "origins": by_haplotype.origins,
        }
    )

    def columns(counts: np.ndarray) -> np.ndarray:
        both = counts[:, ::2] + counts[:, 1::2]
        return np.column_stack([counts[:, rows], both[:, rest], counts[:, 0]])

    by_kernel, by_dense = log_evidence(sheet, pedigree, columns(drawn.meth), columns(drawn.total))
    np.testing.assert_allclose(by_kernel, by_dense, atol=1e-6)
    assert (by_kernel[1] - by_kernel[0]).mean() > 0.2


def test_a_cohort_of_haplotypes_is_fitted_and_its_evidence_names_the_parent(tmp_path):
    """From loci on disk through `epivi fit` and `epivi evidence`: 60 loci that only fathers pass on, 16 steps."""
    pedigree = template_pedigree("quartet", 6)
    sheet = haplotype_sheet(pedigree, known=True)
    settings = SimulationSettings(
        seed=12,
        hypotheses=parse_hypotheses({"paternal": {"heritable_share": 0.9, "maternal": 0, "paternal": 1}}),
        weights=(1.0,),
        contigs=(Contig("chr1", 60),),
        share_priors=PRIORS,
        coverage_mean=30,
    )
    drawn = simulate_cohort(settings, pedigree, sheet)
    write_store(tmp_path / "loci", drawn)
    options = {**write_tables(tmp_path, drawn), "loci": str(tmp_path / "loci")}
    rows = zip(sheet.samples, sheet.individuals, sheet.paths, sheet.haplotypes, strict=True)
    lines = ["\t".join([*row, sheet.origins[row[0]]]) for row in rows]
    header = "sample\tindividual\tpath\thaplotype\tparent_of_origin"
    Path(options["samples"]).write_text("\n".join([header, *lines]) + "\n")
    declared = {
        "maternal": {"heritable_share": "free", "maternal": "tau", "paternal": 0},
        "paternal": {"heritable_share": "free", "maternal": 0, "paternal": "tau"},
    }
    steps = {"max_steps": 16, "check_every": 8, "batch_loci": 16, "holdout_loci": 16, "hidden": 8, "device": "cpu"}
    steps |= {"shared_loci": 16}
    config = json.dumps({"model": {"hypotheses": declared}, "fit": steps, "evidence": {"nodes": 32}})
    words = [word for name, path in options.items() for word in (f"--{name}", path)]
    where = ["--fit", str(tmp_path / "fit"), "--start", "0", "--stop", "60"]
    called(fit.command, *words, "--output", str(tmp_path / "fit"), "--config", config)
    called(evidence.command, *words, *where, "--output", str(tmp_path / "e.parquet"), "--config", config)
    table = read_table(tmp_path / "e.parquet", "evidence").to_pandas()
    found = table.pivot(index="pos", columns="hypothesis", values="log_evidence")
    assert len(found) == 60
    assert (found["paternal"] - found["maternal"]).mean() > 0.5
