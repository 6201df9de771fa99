"""Simulated loci of lines: block by block, with the truth that was drawn, and refusals; and the kernel beside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from state_cases import DECLARED, FOUNDER, PRIORS

from epivi.base.errors import UserError
from epivi.families.epimutation.compile import compile_kernel
from epivi.families.epimutation.draw import TrueEmission
from epivi.families.epimutation.hypotheses import parse_epimutation_hypotheses
from epivi.families.epimutation.simulate import EpimutationSimulation, simulate_lines
from epivi.lineage import kernel
from epivi.lineage.lineage import build_lineage
from epivi.simulate.positions import Contig
from epivi.simulate.templates import template_pedigree

SETTINGS = EpimutationSimulation(
    seed=5,
    hypotheses=parse_epimutation_hypotheses({name: DECLARED[name] for name in ("stable", "neutral", "labile")}),
    weights=(0.3, 0.4, 0.3),
    priors=PRIORS,
    contigs=(Contig("chr1", 700), Contig("chr2", 300)),
    gain=0.05,
    loss=0.1,
    founder=tuple(FOUNDER[0]),
    emission=TrueEmission(0.01, 0.02, 0.02, 12.0),
    missing_loci=0.1,
    mean_gap_bp=50.0,
    block_loci=256,
)
PEDIGREE = template_pedigree("selfing_lines", 1)
LINEAGE = build_lineage(PEDIGREE, PEDIGREE.individuals)


def test_blocks_hold_all_loci_and_stable_ones_never_change() -> None:
    blocks = list(simulate_lines(SETTINGS, LINEAGE))
    sizes = [(block.contig, len(block.pos0)) for block in blocks]
    assert sizes == [("chr1", 256), ("chr1", 256), ("chr1", 188), ("chr2", 256), ("chr2", 44)]
    for block in blocks:
        assert (np.diff(block.pos0) >= 2).all()
        assert (block.meth <= block.total).all()
        stable = block.truth["hypothesis"] == 0
        assert not (block.gains | block.losses)[stable].any()
        assert (block.truth["gain_rate"] == 0).tolist() == stable.tolist()
        neutral = block.truth["hypothesis"] == 1
        assert set(block.truth["gain_rate"][neutral]) == {0.05}
    changed = np.concatenate([(block.gains | block.losses).any(1) for block in blocks])
    assert changed.sum() > 100
    # A sample has no reads at a tenth of the loci; with 12 on average hardly any for another reason. 7,000 draws and
    # more: 0.07 to 0.13 is missed with a probability below 1e-9.
    missing = np.concatenate([block.total == 0 for block in blocks])
    assert 0.07 < missing.mean() < 0.13


def test_the_same_seed_draws_the_same_loci() -> None:
    first, again = ([block.meth for block in simulate_lines(SETTINGS, LINEAGE)] for _ in range(2))
    other = [block.meth for block in simulate_lines(replace(SETTINGS, seed=6), LINEAGE)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gain": 0.0}, "--gain 0.0: expected a number between 0 and 1"),
        ({"founder": (0.5, 0.2, 0.2)}, "three proportions that sum to 1"),
        ({"emission": TrueEmission(0.0, 0.02, 0.02, 12.0)}, "numbers above 0 where --dispersion is"),
        ({"mean_gap_bp": 1.0}, "a CpG is two bases long"),
        ({"missing_loci": 1.0}, "--missing-loci 1.0: expected a fraction"),
    ],
)
def test_values_out_of_range_are_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as raised:
        replace(SETTINGS, **change)
    assert words in str(raised.value)


def test_compiling_ahead_leaves_nothing_to_compile() -> None:
    """One locus of two samples has the types of a genome's."""
    compile_kernel()
    compiled = [len(entry.signatures) for entry in kernel._entry_points()]
    assert compiled == [1, 1, 1]
