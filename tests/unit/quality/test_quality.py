"""Swapped samples, wrong sexes, outliers: found where they are, and nothing where they are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conversion_cases import CONFIG, DRAWN, cohort
from quality_cases import (
    NO_TRANSMISSION,
    draw,
    exchanged,
    findings_of,
    plain_centre,
    products_of,
    relatedness_of,
    sheet_of,
    swaps_of,
    write_store,
    write_tables,
)

from epivi.base.errors import UserError
from epivi.cohort.genotypes import MISSING, read_dosages
from epivi.commands.quality import command
from epivi.ingest.controls import ReadSums
from epivi.quality.check import check_quality
from epivi.quality.findings import LevelSums, outlier_findings, sex_coverage, sex_findings
from epivi.quality.libraries import libraries_of
from epivi.quality.relatedness import (
    MAX_BLOCK_LOCI,
    MAX_BLOCKS,
    _distance,
    _gain,
    _without_noise,
    compare,
    locus_blocks,
    methylation_products,
    projector,
    stacked,
)
from epivi.simulate.templates import template_pedigree
from epivi.tables.parquet import read_table


def place(cohort, name: str) -> int:
    return cohort.sheet.samples.index(name)


# ---- the statistic


def test_the_gain_is_the_fall_of_the_squares_when_two_samples_change_places():
    """Against least squares on the exchanged matrices, entry by entry, to 1e-9."""
    rng = np.random.default_rng(3)
    for template in ("quartet", "three_generations", "half_sibs", "selfing_lines"):
        centre = projector(np.zeros((len(relatedness_of(template_pedigree(template, 2))), 0)))
        relatedness = relatedness_of(template_pedigree(template, 2))
        expected = _without_noise(centre @ relatedness @ centre, centre)
        noise = rng.normal(size=expected.shape)
        similarity = noise + noise.T - np.diag(np.diag(noise + noise.T))
        gain, distance = _gain(expected, similarity), _distance(expected)
        share = 0.3
        for s, t in zip(*np.triu_indices(len(expected), 1), strict=True):
            order = np.arange(len(expected))
            order[[s, t]] = order[[t, s]]
            swapped = expected[np.ix_(order, order)]
            fall = ((similarity - share * expected) ** 2).sum() - ((similarity - share * swapped) ** 2).sum()
            # Each pair of samples stands twice in the matrices, and the gain of the squares is 2 h D for each.
            assert fall == pytest.approx(4 * share * gain[s, t], abs=1e-9)
            assert ((expected - swapped) ** 2).sum() == pytest.approx(4 * distance[s, t], abs=1e-9)


def test_declared_pairs_score_minus_one_and_swapped_ones_one():
    """20,000 loci, seed 5: the scores' mean is -1 to 0.05 as declared; a swapped pair's is 1 to 0.35 (3.5 errors)."""
    cohort = draw(5)
    _, comparison = swaps_of(cohort)
    assert np.nanmean(comparison.score) == pytest.approx(-1, abs=0.05)
    first, second = place(cohort, "F1_child1"), place(cohort, "F2_child1")
    _, swapped = swaps_of(exchanged(cohort, (first, second)))
    assert swapped.score[first, second] == pytest.approx(1, abs=0.35)
    related = comparison.expected > 0.4
    np.fill_diagonal(related, False)
    assert comparison.observed[related].mean() == pytest.approx(0.5, abs=0.05)
    assert comparison.observed[comparison.expected == 0].mean() == pytest.approx(0, abs=0.02)


def uneven(cohort):
    """Every fourth sample with a fifth of the reads, and conversion failing in 5 % of another fourth."""
    rng = np.random.default_rng(cohort.settings.seed)
    samples = np.arange(cohort.total.shape[1])
    total = np.where(samples % 4 == 0, cohort.total // 5, cohort.total)
    failed = np.where(samples % 4 == 1, 0.05, 0.0)
    level = failed + (1 - failed) / (1 + np.exp(-cohort.logit))
    return replace(cohort, meth=rng.binomial(total, level), total=total)


@pytest.mark.parametrize(("template", "families"), [("quartet", 1), ("three_generations", 1), ("trio", 2)])
def test_z_is_standard_where_nothing_is_inherited_and_samples_are_unlike(template, families):
    """20 cohorts of 5,000 loci, seeds 100 to 119: every pair's mean z is within 1 of 0 (4.5 standard errors: one of
    these 30 pairs misses by chance in 0.02 % of tests), and the SD of all within 0.25 of 1. Without the samples' own
    noise taken out, means reach 6 and cohorts as declared are named."""
    cohorts = (uneven(draw(seed, template, families, loci=5000, weights=NO_TRANSMISSION)) for seed in range(100, 120))
    z = np.stack([one.z[np.triu(one.can_be_seen, 1)] for _, one in map(swaps_of, cohorts)])
    assert np.abs(z.mean(0)).max() < 1
    assert z.std() == pytest.approx(1, abs=0.25)


def test_levels_and_covariates_of_samples_are_no_relatedness():
    """A batch with failed conversion and a batch shift, across families: unremoved, both would be taken for kinship."""
    cohort = draw(8, "quartet", 4, loci=6000)
    rng = np.random.default_rng(8)
    batch = np.tile([0, 1], len(cohort.sheet.samples) // 2)
    shift = rng.normal(size=(len(cohort.meth), 1)) * batch
    shifted = 1 / (1 + np.exp(-(cohort.logit + shift)))
    meth = rng.binomial(cohort.total, 0.05 * batch + (1 - 0.05 * batch) * shifted)
    relatedness = relatedness_of(cohort.pedigree)

    def score(design: np.ndarray) -> float:
        centre = projector(design)
        ranges = (part for block in locus_blocks([len(meth)]) for part in block)
        blocks = [methylation_products(meth[a:b], cohort.total[a:b], centre) for _, a, b in ranges]
        similarity = compare(stacked(blocks), relatedness, centre).observed
        same = (batch[:, None] == batch[None, :]) & (relatedness == 0)
        return similarity[same].mean() - similarity[(relatedness == 0) & ~same].mean()

    assert score(np.zeros((len(batch), 0))) > 1.0
    assert abs(score(batch[:, None].astype(float))) < 0.3


# ---- found, and not found


@pytest.mark.parametrize(
    ("template", "families", "first", "second"),
    [
        ("quartet", 8, "F1_child1", "F5_child2"),
        ("quartet", 8, "F2_mother", "F3_father"),
        ("three_generations", 6, "F1_grandmother", "F1_child1"),
        ("trio", 12, "F01_child", "F07_child"),
        ("half_sibs", 6, "F1_child1", "F1_child3"),
    ],
)
def test_a_swapped_pair_is_found_and_named(template, families, first, second):
    cohort = draw(11, template, families, loci=40_000)
    swapped = exchanged(cohort, (place(cohort, first), place(cohort, second)))
    findings = findings_of(swapped)
    assert [(found.check, {found.sample, found.other}) for found in findings] == [("swap", {first, second})]
    assert findings[0].value > findings[0].limit
    assert f"{findings[0].sample} and {findings[0].other} look swapped by methylation" in findings[0].text


def test_a_swap_within_a_family_is_found():
    """Only the other parent tells mother from child, so that it takes more loci."""
    cohort = draw(11, "quartet", 4, loci=120_000)
    swapped = exchanged(cohort, (place(cohort, "F4_mother"), place(cohort, "F4_child1")))
    assert [{found.sample, found.other} for found in findings_of(swapped)] == [{"F4_mother", "F4_child1"}]


def test_three_samples_in_a_circle_are_two_exchanges():
    cohort = draw(12, loci=40_000)
    names = ("F1_child1", "F3_mother", "F6_child2")
    a, b, c = (place(cohort, name) for name in names)
    findings = findings_of(exchanged(cohort, (a, b), (b, c)))
    assert len(findings) == 2
    assert {name for found in findings for name in (found.sample, found.other)} == set(names)


@pytest.mark.parametrize("weights", [NO_TRANSMISSION, (0.6, 0.2, 0.15, 0.05)])
def test_cohorts_as_declared_raise_nothing(weights):
    """Eight seeds of a small cohort. At most one cohort in 1,000 may be named where nothing is inherited (all eight
    pass with 99.2 % or more); a hundred seeds are in tests/slow."""
    for seed in range(200, 208):
        assert findings_of(draw(seed, "quartet", 4, loci=2000, weights=weights)) == []


def test_swaps_that_cannot_be_seen_are_said_to_be_so():
    """Full siblings without descendants, and parents of the same children, have the same relatives."""
    cohort = draw(13, "quartet", 4, loci=2000)
    _, comparison = swaps_of(cohort)
    seen = comparison.can_be_seen
    for family in range(1, 5):
        mother, father, one, two = (
            place(cohort, f"F{family}_{role}") for role in ("mother", "father", "child1", "child2")
        )
        assert not seen[mother, father]
        assert not seen[one, two]
        assert seen[mother, one]
    assert np.isnan(comparison.z[0, 1])
    assert findings_of(exchanged(cohort, (place(cohort, "F1_child1"), place(cohort, "F1_child2")))) == []
    # A grandparent tells the parents apart.
    three = draw(13, "three_generations", 2, loci=2000)
    assert swaps_of(three)[1].can_be_seen[place(three, "F1_mother"), place(three, "F1_father")]


def test_blocks_of_loci_are_spread_over_the_genome():
    blocks = list(locus_blocks([100_000_000, 3, 50_000_000]))
    assert len(blocks) == MAX_BLOCKS
    assert all(stop - start == MAX_BLOCK_LOCI for ((_, start, stop),) in blocks)
    assert sum(contig == 0 for ((contig, _, _),) in blocks) == 67
    # Scaffolds shorter than a block are joined, and few loci are all there, each once.
    scaffolds = list(locus_blocks([7] * 300))
    assert len(scaffolds) == MAX_BLOCKS
    loci = [(contig, locus) for block in scaffolds for contig, start, stop in block for locus in range(start, stop)]
    assert loci == [(contig, locus) for contig in range(300) for locus in range(7)]
    assert list(locus_blocks([19])) == [((0, 0, 19),)]


# ---- outliers and sexes


def test_outlying_coverage_and_methylation_are_named_with_their_numbers():
    cohort = draw(14, "quartet", 3, loci=2000)
    total, meth = cohort.total.copy(), cohort.meth.copy()
    total[:, 4], meth[:, 4] = total[:, 4] // 8, np.minimum(meth[:, 4] // 8, total[:, 4] // 8)
    rng = np.random.default_rng(1)
    meth[:, 7] = rng.binomial(total[:, 7], 0.5)
    levels = LevelSums.zero(12).plus(meth[:900], total[:900]).plus(meth[900:], total[900:]).levels()
    np.testing.assert_allclose(levels.coverage, total.mean(0))
    np.testing.assert_allclose(levels.covered, (total > 0).mean(0))
    found = list(outlier_findings(cohort.sheet.samples, levels))
    assert [(one.check, one.sample) for one in found if one.sample != cohort.sheet.samples[4]] == [
        ("methylation", cohort.sheet.samples[7])
    ]
    assert ("coverage", cohort.sheet.samples[4]) in [(one.check, one.sample) for one in found]
    assert found[0].value == pytest.approx(total[:, 4].mean())
    assert list(outlier_findings(cohort.sheet.samples[:2], LevelSums.zero(2).levels())) == []


def sums_of_sexes(copies: list[tuple[float, float]], rng: np.random.Generator) -> dict[str, dict[str, ReadSums]]:
    """Reads of X, Y and autosomes of samples with so many copies of X and Y; coverage varies 5 % beyond chance."""
    sums = {}
    for number, (x, y) in enumerate(copies):
        depth = 200_000 * rng.uniform(0.5, 2)
        reads = [rng.poisson(depth * share * rng.normal(1, 0.05)) for share in (1.0, 0.025 * x, 0.005 * y + 0.0005)]
        named = zip(("autosomes", "x", "y"), reads, strict=True)
        sums[f"s{number}"] = {name: ReadSums(100, int(count), int(count) // 2) for name, count in named}
    return sums


@pytest.mark.parametrize("two_x", ["female", "male"])
def test_the_wrong_sex_is_found_and_the_right_one_is_not(two_x):
    """50 cohorts of ten, seed 2; in every one of them a man and a woman are exchanged, or a pair of one sex is not."""
    rng = np.random.default_rng(2)
    one_x = "male" if two_x == "female" else "female"
    sexes = [two_x, one_x] * 5
    copies = [(2.0, 0.0), (1.0, 1.0)] * 5
    samples = [f"s{number}" for number in range(10)]
    for _ in range(50):
        right = sums_of_sexes(copies, rng)
        assert list(sex_findings(samples, sexes, sex_coverage(samples, sexes, right, two_x), two_x)) == []
        wrong = {**right, "s2": right["s5"], "s5": right["s2"]}
        found = list(sex_findings(samples, sexes, sex_coverage(samples, sexes, wrong, two_x), two_x))
        assert [(one.check, one.sample) for one in found] == [
            (check, sample) for sample in ("s2", "s5") for check in ("sex_x", "sex_y")
        ]
        assert [one.value for one in found[:2]] == pytest.approx([0.5, 1.0], abs=0.25)
        unknown = ["unknown" if sample in ("s2", "s5") else sex for sample, sex in zip(samples, sexes, strict=True)]
        coverage = sex_coverage(samples, unknown, wrong, two_x)
        assert list(sex_findings(samples, unknown, coverage, two_x)) == []
        assert coverage.x[2] == pytest.approx(0.5, abs=0.2)


def test_without_sex_contigs_or_declared_sexes_nothing_is_said():
    samples, sexes = ["a", "b", "c"], ["female", "male", "unknown"]
    sums = sums_of_sexes([(2, 0)] * 3, np.random.default_rng(1))
    for known in ({}, {f"s{n}": {"autosomes": ReadSums(1, 9999, 1)} for n in range(3)}, sums):
        coverage = sex_coverage(samples, sexes, known, "female")
        assert np.isnan(coverage.x).all()
        assert list(sex_findings(samples, sexes, coverage, "female")) == []


# ---- genotypes


def write_vcf(path: Path, names: list[str], dosages: np.ndarray) -> None:
    """A VCF of dosages [V, S], 2 kb apart, with a multiallelic, an indel and a too near record between."""
    header = ["##fileformat=VCFv4.2", "##contig=<ID=chr1,length=900000000>"]
    header += ['##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">']
    lines = [*header, "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *names])]
    texts = np.array(["0/0", "0|1", "1/1", "./."])
    for row, dosage in enumerate(dosages):
        pos = 1000 + 2000 * row
        genotypes = "\t".join(texts[dosage])
        lines.append(f"chr1\t{pos}\t.\tA\tG\t.\t.\t.\tGT\t{genotypes}")
        if row == 0:
            for offset, ref, alt in ((10, "C", "T"), (1200, "A", "G,T"), (1300, "AC", "A")):
                lines.append(f"chr1\t{pos + offset}\t.\t{ref}\t{alt}\t.\t.\t.\tGT\t{genotypes}")
    path.write_text("\n".join(lines) + "\n")


def dropped_genes(cohort, variants: int, rng: np.random.Generator) -> np.ndarray:
    """Dosages [V, I] by Mendel's rules down the pedigree."""
    frequency = rng.uniform(0.1, 0.9, variants)
    pedigree = cohort.pedigree
    genes = np.zeros((len(pedigree.individuals), 2, variants), dtype=np.int64)
    for child in range(len(genes)):
        for side, parent in enumerate((pedigree.mother[child], pedigree.father[child])):
            drawn = rng.random(variants) < frequency
            choice = rng.integers(0, 2, variants)
            genes[child, side] = drawn if parent < 0 else genes[parent, choice, np.arange(variants)]
    return genes.sum(1).T


def test_dosages_of_a_vcf(tmp_path):
    dosages = np.array([[0, 1, 2], [3, 1, 0], [1, 1, 1], [2, 3, 0]])
    write_vcf(tmp_path / "g.vcf", ["bob", "ann", "dan"], dosages)
    read, found = read_dosages(tmp_path / "g.vcf", [("ann_blood", "ann"), ("eve", "eve"), ("bob", "bob")])
    assert found == (0, 2)
    # Samples in the order of the names; the second variant differs only in dan, the third in nobody.
    assert read.tolist() == [[1, 0], [MISSING, 2]][:1]
    with pytest.raises(UserError, match=r"g\.vcf: has none of the cohort's samples or individuals, such as 'eve'"):
        read_dosages(tmp_path / "g.vcf", [("eve", "e")])
    (tmp_path / "no.vcf").write_text("nothing\n")
    with pytest.raises(UserError, match=r"no\.vcf: cannot be read as VCF or BCF"):
        read_dosages(tmp_path / "no.vcf", [("eve", "e")])


# ---- the command


def run(folder: Path, paths: dict[str, str], config: dict | None = None):
    options = [word for name, path in paths.items() for word in (f"--{name}", path)]
    done = CliRunner().invoke(
        command, [*options, "--output", str(folder / "quality"), "--config", json.dumps(config or {})]
    )
    assert done.exit_code == 0, done.output
    names = ("sample_quality", "relatedness", "findings")
    return [read_table(folder / "quality" / f"{name}.parquet", name).to_pylist() for name in names]


def test_command_finds_a_swap_by_methylation_and_by_genotypes(tmp_path, caplog):
    cohort = draw(21, "quartet", 6, loci=30_000)
    first, second = place(cohort, "F1_mother"), place(cohort, "F4_child1")
    swapped = exchanged(cohort, (first, second))
    paths = {"loci": str(write_store(tmp_path / "loci", swapped)), **write_tables(tmp_path, swapped)}
    genes = dropped_genes(cohort, 2000, np.random.default_rng(3))
    order = np.arange(24)
    order[[5, 9]] = order[[9, 5]]
    write_vcf(tmp_path / "g.vcf", list(cohort.sheet.samples), genes[:, order])
    samples, related, findings = run(tmp_path, paths, {"qc": {"genotypes": str(tmp_path / "g.vcf")}})
    assert [(row["check"], {row["sample"], row["other"]}) for row in findings] == [
        ("swap", {"F1_mother", "F4_child1"}),
        ("swap", {cohort.sheet.samples[5], cohort.sheet.samples[9]}),
    ]
    assert "look swapped by methylation" in caplog.text
    assert "look swapped by genotypes" in caplog.text
    assert len(samples) == 24
    assert len(related) == 2 * 24 * 23 // 2
    by_genotype = [row for row in related if row["source"] == "genotypes" and row["expected"] == 0.5]
    assert np.median([row["observed"] for row in by_genotype]) == pytest.approx(0.5, abs=0.05)


def test_command_tables_error_rates_and_names_what_is_wrong_with_them(tmp_path):
    paths = cohort(tmp_path, CONFIG, {"ann": ("0.004", ""), "bob": ("0", "0.03")})
    *_, findings = run(tmp_path, paths, CONFIG)
    assert [(row["check"], row["sample"], row["limit"]) for row in findings] == [("error_rate", "bob", 0.0)]
    assert findings[0]["text"].startswith("bob: false_methylated is 0 in the sample sheet, which is used, but 0.0")
    rows = read_table(tmp_path / "quality" / "error_rates.parquet", "error_rates").to_pylist()
    assert [row["source"] for row in rows] == ["sheet", "sheet", "controls", "controls", "sheet", "controls"]
    assert [row["given"] for row in rows[:2]] == [0.004, 0.0]
    assert rows[2]["used"] == rows[2]["estimate"]
    assert all(0 < row["lower"] < row["estimate"] < row["upper"] for row in rows)
    wrong = {**CONFIG, "qc": {"conversion": {"unmethylated_contigs": ["pUC19"], "methylated_contigs": ["chrM"]}}}
    (tmp_path / "wrong").mkdir()
    *_, findings = run(tmp_path / "wrong", cohort(tmp_path / "wrong", wrong), wrong)
    assert [(row["check"], row["sample"]) for row in findings] == [
        (check, sample) for check in ("control_rate", "few_control_reads") for sample in DRAWN
    ]
    assert "false_methylated of the controls is 0.9" in findings[0]["text"]


def test_command_on_too_few_loci_says_so_and_goes_on(tmp_path, caplog):
    caplog.set_level("INFO")
    cohort = draw(22, "trio", 2, loci=300)
    paths = {"loci": str(write_store(tmp_path / "loci", cohort)), **write_tables(tmp_path, cohort)}
    samples, related, findings = run(tmp_path, paths)
    assert "too few loci to look for swapped samples" in caplog.text
    assert (len(samples), related, findings) == (6, [], [])


@pytest.mark.parametrize(("template", "families"), [("trio", 1), ("quartet", 1)])
@pytest.mark.filterwarnings("error")
def test_command_on_few_samples(tmp_path, template, families, caplog):
    """A trio says nothing of swaps; one quartet is compared."""
    caplog.set_level("INFO")
    cohort = draw(23, template, families, loci=1000)
    paths = {"loci": str(write_store(tmp_path / "loci", cohort)), **write_tables(tmp_path, cohort)}
    samples, related, findings = run(tmp_path, paths)
    assert ("too few files to look for swapped samples: 3, expected 4" in caplog.text) == (template == "trio")
    assert (len(samples), len(related), findings) == ((3, 0, []) if template == "trio" else (4, 6, []))


def test_genotypes_of_few_samples_are_refused(tmp_path):
    cohort = draw(23, "trio", 2, loci=1000)
    paths = {"loci": str(write_store(tmp_path / "loci", cohort)), **write_tables(tmp_path, cohort)}
    write_vcf(tmp_path / "g.vcf", list(cohort.sheet.samples[:3]), np.array([[0, 1, 2]] * 30))
    config = json.dumps({"qc": {"genotypes": str(tmp_path / "g.vcf")}})
    with pytest.raises(UserError, match="has 3 of the cohort's samples: expected 4 or more"):
        check_quality(**paths, output=tmp_path / "quality", config_source=config)
    assert not (tmp_path / "quality").exists()


def test_rows_of_one_file_are_one_library_of_each_individual():
    """Haplotypes of a file cannot be swapped for one another; samples that are columns of one matrix can."""
    sheet = sheet_of(("ann", "bob", "ann", "cat"), ("x.bam", "x.bam", "x.bam", "y.bam"))
    libraries = libraries_of(replace(sheet, haplotypes=("1", "1", "2", "all")))
    assert libraries.individuals == ("ann", "bob", "cat")
    assert libraries.of_sample.tolist() == [0, 1, 0, 2]
    assert libraries.first_sample.tolist() == [0, 1, 3]
    columns = libraries_of(replace(sheet, samples=("a1", "b", "a2", "c"), paths=("beta.tsv",) * 4))
    assert columns.names == ("a1", "b", "a2", "c")  # two replicates of one individual among them
    # Haplotypes in files of their own are a pair too: alike within a strain, they would pass for swapped.
    pair = sheet_of(("m1", "m1", "m2"), ("a.cov", "b.cov", "c.cov"))
    names = ("m1_bl6", "m1_cast", "m2_bl6")
    origins = {"m1_bl6": "maternal", "m1_cast": "paternal", "m2_bl6": "maternal"}
    assert libraries_of(replace(pair, samples=names, origins=origins)).of_sample.tolist() == [0, 0, 1]


def test_no_false_kinship_from_products_of_no_loci():
    products = products_of(draw(1, "trio", 2, loci=400))
    nothing = products._replace(product=0 * products.product, scale=0 * products.scale)
    cohort = draw(1, "trio", 2, loci=400)
    comparison = compare(nothing, relatedness_of(cohort.pedigree), plain_centre(cohort))
    assert np.isnan(comparison.z).all()
    assert np.isnan(comparison.share)
    assert np.isnan(comparison.observed).all()
