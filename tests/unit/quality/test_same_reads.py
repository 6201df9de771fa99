"""Samples that share reads are named; twins, replicates and arrays, which are as alike in their levels, are not."""

from __future__ import annotations

import numpy as np
import pytest
from quality_cases import draw, findings_of, write_store, write_tables
from test_quality import run

from epivi.quality.same_reads import MOST_RATIO, SameReads, find_same_reads, read_products, stacked_reads

BLOCKS = 50


def found_in(total: np.ndarray) -> list[SameReads]:
    return find_same_reads(stacked_reads(map(read_products, np.array_split(total, BLOCKS))))


def separate(seed: int, samples: int, loci: int = 20_000, depth: float = 12.0) -> np.ndarray:
    """Coverage [L, S] by separate reads, with one profile of coverage and unlike depths."""
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(4, depth / 4, (loci, 1)) * np.linspace(1, 0.3, samples))


@pytest.mark.parametrize("depth", [0.3, 2.0, 12.0, 300.0])
def test_separate_reads_are_not_shared(depth):
    """Ten cohorts of six, seeds 0 to 9; at most one in 1,000 may be named."""
    for seed in range(10):
        assert found_in(separate(seed, 6, loci=4000, depth=depth)) == []


@pytest.mark.parametrize("depth", [0.3, 2.0, 12.0, 300.0])
@pytest.mark.parametrize("share", [1.0, 0.8, 0.5, 0.3])
def test_a_downsampled_copy_is_named_at_every_depth(depth, share):
    """The ratio of variances is that of the theory, (1 - f) / (1 + f), to .08."""
    total = separate(3, 5, depth=depth)
    found = found_in(np.column_stack([total, np.random.default_rng(4).binomial(total[:, 0], share)]))
    assert [(one.part, one.whole) for one in found] == [(5, 0)]
    assert found[0].ratio == pytest.approx((1 - share) / (1 + share), abs=0.08)
    assert found[0].ratio < found[0].critical <= MOST_RATIO


def test_one_library_aligned_twice_is_named():
    """The second alignment loses 3 % of the reads, and finds 3 % that the first had not."""
    total = separate(5, 4)
    rng = np.random.default_rng(6)
    again = rng.binomial(total[:, 1], 0.97) + rng.poisson(0.03 * total[:, 1])
    found = found_in(np.column_stack([total, again]))
    assert [{one.part, one.whole} for one in found] == [{1, 4}]


def test_both_haplotypes_and_their_sum_share_reads_and_the_two_do_not():
    total = np.random.default_rng(7).poisson(8.0, (20_000, 2))
    found = found_in(np.column_stack([total, total.sum(1)]))
    assert [(one.part, one.whole) for one in found] == [(0, 2), (1, 2)]


def test_arrays_and_depths_made_equal_say_nothing():
    """100 pseudo-reads at every probe but the few that failed, and reads cut down to ten wherever there are more."""
    rng = np.random.default_rng(8)
    assert found_in(np.where(rng.random((5000, 4)) < 0.01, 0, 100)) == []
    assert found_in(np.minimum(rng.poisson(30, (5000, 4)), 10)) == []


def test_the_command_names_shared_reads_and_not_a_swap(tmp_path):
    """A child's counts are its uncle's, and less deep; seen as a swap before, of these or others."""
    cohort = draw(21, "quartet", 6, loci=30_000)
    child, other = (cohort.sheet.samples.index(name) for name in ("F1_child1", "F4_father"))
    rng = np.random.default_rng(9)
    meth, unmeth = (rng.binomial(reads, 0.7) for reads in (cohort.meth, cohort.total - cohort.meth))
    cohort.meth[:, child], cohort.total[:, child] = meth[:, other], (meth + unmeth)[:, other]
    assert "swap" in {found.check for found in findings_of(cohort)}
    paths = {"loci": str(write_store(tmp_path / "loci", cohort)), **write_tables(tmp_path, cohort)}
    _, related, findings = run(tmp_path, paths)
    assert [(row["check"], row["sample"], row["other"]) for row in findings] == [
        ("same_reads", "F1_child1", "F4_father")
    ]
    assert "F1_child1 seems to hold reads of F4_father, which has 1.43 times as many" in findings[0]["text"]
    named = {row[key] for row in related for key in ("sample", "other")}
    assert named == set(cohort.sheet.samples) - {"F1_child1", "F4_father"}
