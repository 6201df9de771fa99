"""Positions of simulated loci."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FIRST_POSITION = 10_000  # start of a contig before its first locus, as chromosomes begin with unsequenced bases


class Contig(NamedTuple):
    """A contig and how many loci it gets."""

    name: str
    n_loci: int


def draw_gaps(mean_gap_bp: float, n_loci: int, random: np.random.Generator) -> np.ndarray:
    """Bases between neighbouring loci, int64 [L]: one (the G of a CpG) and a geometric number."""
    return 1 + random.geometric(1 / (mean_gap_bp - 1), size=n_loci)
